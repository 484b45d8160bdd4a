//! HTTP/2 by bytes, for what no client library lets one send.

/// What every connection begins with.
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const PRIORITY: u8 = 2;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PUSH_PROMISE: u8 = 5;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;

pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;
pub(crate) const PADDED: u8 = 8;

pub(crate) const NO_ERROR: u32 = 0;
pub(crate) const CANCEL: u32 = 8;
pub(crate) const REFUSED_STREAM: u32 = 7;

/// The names of error codes, by number.
pub(crate) const ERRORS: [&str; 14] = [
    "NO_ERROR",
    "PROTOCOL_ERROR",
    "INTERNAL_ERROR",
    "FLOW_CONTROL_ERROR",
    "SETTINGS_TIMEOUT",
    "STREAM_CLOSED",
    "FRAME_SIZE_ERROR",
    "REFUSED_STREAM",
    "CANCEL",
    "COMPRESSION_ERROR",
    "CONNECT_ERROR",
    "ENHANCE_YOUR_CALM",
    "INADEQUATE_SECURITY",
    "HTTP_1_1_REQUIRED",
];

/// One frame.
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a frame");
    let mut bytes = length.to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// The end of a stream before its time.
pub(crate) fn reset(stream: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &CANCEL.to_be_bytes())
}

/// One header field as HPACK has it: literal, never to be remembered.
pub(crate) fn field(name: &str, value: &str) -> Vec<u8> {
    literal(0x10, name, value)
}

/// One header field that the other end must remember, in its table of 4 KiB.
pub(crate) fn remembered(name: &str, value: &str) -> Vec<u8> {
    literal(0x40, name, value)
}

/// The field that was remembered last.
pub(crate) const LAST_REMEMBERED: u8 = 0x80 | 62;

fn literal(kind: u8, name: &str, value: &str) -> Vec<u8> {
    let mut bytes = vec![kind];
    for text in [name, value] {
        bytes.extend(length(text.len()));
        bytes.extend(text.as_bytes());
    }
    bytes
}

/// An integer with a prefix of seven bits.
fn length(mut value: usize) -> Vec<u8> {
    const PREFIX: usize = 0x7f;
    let byte = |value: usize| u8::try_from(value).expect("seven bits");
    if value < PREFIX {
        return vec![byte(value)];
    }
    let mut bytes = vec![byte(PREFIX)];
    value -= PREFIX;
    while value > PREFIX {
        bytes.push(byte(value & PREFIX) | 0x80);
        value >>= 7;
    }
    bytes.push(byte(value));
    bytes
}

/// The header block of a gRPC call.
pub(crate) fn call(path: &str) -> Vec<u8> {
    let fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "localhost"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
    ];
    fields.iter().flat_map(|(name, value)| field(name, value)).collect()
}

/// A gRPC message that says it is so long, and what there is of it.
pub(crate) fn message(length: usize, bytes: &[u8]) -> Vec<u8> {
    let mut message = vec![0];
    message.extend(u32::try_from(length).expect("a message").to_be_bytes());
    message.extend(bytes);
    message
}

#[test]
fn lengths_are_written_as_hpack_has_them() {
    assert_eq!(length(10), [10]);
    assert_eq!(length(127), [127, 0]);
    // RFC 7541, C.1.2, with two more bits of prefix.
    assert_eq!(length(1337), [127, 0xba, 0x09]);
}
