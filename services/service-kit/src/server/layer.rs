//! What happens around every call: its context is read, its deadline kept, its end measured and logged.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use http_body_util::BodyExt;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;
use tonic::body::Body;
use tonic::codegen::BoxFuture;
use tonic::{Code, Status};
use tower::{Layer, Service};
use tracing::{Instrument, Span};

use super::admission::{Admitted, admit};
use super::dispatch::Services;
use super::methods::{Method, Methods};
use crate::actor::{self, Actor};
use crate::context::{REQUEST_ID_KEY, RequestContext, RequestId, TRACEPARENT_KEY, is_traceparent};
use crate::entropy::OsEntropy;
use crate::ids::CallIds;
use crate::status::{deadline_exceeded, invalid_fields, overloaded, too_large, undecodable};
use crate::telemetry::metrics::LOAD_SHED;
use crate::telemetry::traces;
use crate::violations::Violations;

/// Our own deadline ends a call just before tonic's does, which would call it CANCELLED.
const BEFORE_TONIC: Duration = Duration::from_millis(5);
/// What a frequent call that finds no place has nevertheless: memory may answer it as soon as its message is here.
const GRACE: Duration = Duration::from_millis(100);
const TIMEOUT_KEY: &str = "grpc-timeout";
/// Among the headers of an answer that has no message.
static GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// What holds for every call of a server.
#[derive(Debug)]
struct Rules {
    limit: Duration,
    /// Paths that the limit does not hold for.
    long_calls: Vec<&'static str>,
    /// Paths of calls so many and so cheap that telling each an id would be much of their cost.
    frequent_calls: Vec<&'static str>,
    methods: Methods,
    ids: CallIds,
    /// Room for calls in progress.
    places: Semaphore,
}

/// Held while a call is in progress; `None`: it needs none.
type Place = Option<SemaphorePermit<'static>>;

/// Too many calls are in progress.
struct Full;

impl Full {
    /// Counts a call that is refused for it. Nothing was done, so that it may go to another replica.
    fn refuse() -> Status {
        metrics::counter!(LOAD_SHED.name, "limit" => "calls").increment(1);
        overloaded()
    }
}

impl Rules {
    /// A place for a call, unless it needs none.
    fn place(&'static self, needed: bool) -> Result<Place, Full> {
        if needed { self.places.try_acquire().map(Some).map_err(|_| Full) } else { Ok(None) }
    }
}

/// The rules are kept for as long as the process lives: a shared count of who uses them would pass from processor to processor
/// with every call. The services go with their server, and with them what they hold.
#[derive(Clone, Debug)]
pub(super) struct ContextLayer {
    rules: &'static Rules,
    services: Arc<Services>,
}

impl ContextLayer {
    pub(super) fn new(
        (limit, max_calls): (Duration, usize),
        (long_calls, frequent_calls): (Vec<&'static str>, Vec<&'static str>),
        methods: Methods,
        services: Services,
    ) -> Self {
        let (ids, places) = (CallIds::new(&OsEntropy), Semaphore::new(max_calls));
        let rules = Rules { limit, long_calls, frequent_calls, methods, ids, places };
        Self { rules: Box::leak(Box::new(rules)), services: Arc::new(services) }
    }
}

impl<S> Layer<S> for ContextLayer {
    type Service = ContextService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        ContextService { inner, rules: self.rules, services: self.services.clone() }
    }
}

#[derive(Clone, Debug)]
pub(super) struct ContextService<S> {
    inner: S,
    rules: &'static Rules,
    services: Arc<Services>,
}

impl<S> Service<Request<Body>> for ContextService<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Send,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let started = Instant::now();
        let rules = self.rules;
        let path = request.uri().path();
        let heard = Heard::of(request.headers());
        let mut end = End {
            started,
            method: rules.methods.find(path),
            frequent: rules.frequent_calls.contains(&path),
            request_id: heard.request_id.unwrap_or_else(|| RequestId::made(rules.ids.next())),
            traceparent: heard.traceparent,
            span: None,
        };
        end.span = traces::enabled().then(|| end.span());
        let vital = end.method.vital;
        // What is frequent needs a place only if it takes a while.
        let admitted = admit(&request, heard.actor, vital)
            .and_then(|admitted| Ok((admitted, rules.place(!vital && !end.frequent).map_err(|_| Full::refuse())?)));
        let (Admitted { actor, caller, peer }, place) = match admitted {
            Ok(admitted) => admitted,
            Err(status) => return Box::pin(std::future::ready(Ok(end.of(status.into_http())))),
        };
        let own = (!rules.long_calls.contains(&path)).then_some(rules.limit);
        let limit = [own, heard.timeout].into_iter().flatten().min();
        request.extensions_mut().insert(RequestContext {
            request_id: end.request_id.clone(),
            traceparent: end.span.as_ref().and_then(traces::of_span).or_else(|| end.traceparent.clone()),
            actor,
            deadline: limit.and_then(|limit| started.checked_add(limit)),
            caller,
            peer,
        });
        let mut answer = self.services.call(request, |request| Box::pin(self.inner.call(request)));
        Box::pin(async move {
            // What is answered at the first look needs neither a timer nor, unless calls are traced, a span: making both costs more
            // than many an answer.
            let response = match first_look(&mut answer, end.span.as_ref()).await {
                Poll::Ready(response) => response,
                Poll::Pending => {
                    let (limit, place, late) = match rules.place(end.frequent) {
                        Ok(place) => (limit, place, deadline_exceeded as fn() -> Status),
                        Err(Full) => (Some(limit.map_or(GRACE, |limit| limit.min(GRACE))), None, Full::refuse as _),
                    };
                    let span = end.span.clone().unwrap_or_else(|| end.span());
                    // Boxed, so that what is answered at the first look carries no room for it.
                    Box::pin(bounded(answer, limit, place, late).instrument(span)).await
                }
            };
            response.map(|response| held(end.of(response), place))
        })
    }
}

/// Polls an answer once, in its span if it has one.
async fn first_look(
    answer: &mut BoxFuture<Response<Body>, Infallible>,
    span: Option<&Span>,
) -> Poll<Result<Response<Body>, Infallible>> {
    std::future::poll_fn(|cx| {
        Poll::Ready(match span {
            Some(span) => span.in_scope(|| answer.as_mut().poll(cx)),
            None => answer.as_mut().poll(cx),
        })
    })
    .await
}

/// The same response, which is in progress until its last message is taken: it lies in memory for so long.
fn held(response: Response<Body>, place: Place) -> Response<Body> {
    let Some(place) = place else { return response };
    response.map(|body| {
        let kept = move |frame| {
            let _held = &place;
            frame
        };
        Body::new(body.map_frame(kept))
    })
}

/// What the headers of a call say, read in one pass.
struct Heard {
    request_id: Option<RequestId>,
    traceparent: Option<String>,
    /// An actor that cannot be read must not pass for none at all.
    actor: Result<Option<Actor>, Status>,
    /// The caller's deadline.
    timeout: Option<Duration>,
}

impl Heard {
    fn of(headers: &HeaderMap) -> Self {
        let mut heard = Self { request_id: None, traceparent: None, actor: Ok(None), timeout: None };
        for (name, value) in headers {
            match name.as_str() {
                REQUEST_ID_KEY => heard.request_id = heard.request_id.or_else(|| RequestId::of_caller(value)),
                TRACEPARENT_KEY => {
                    let text = value.to_str().ok().filter(|text| is_traceparent(text));
                    heard.traceparent = heard.traceparent.or_else(|| text.map(str::to_owned));
                }
                actor::METADATA_KEY => heard.actor = another_actor(&heard.actor, value),
                TIMEOUT_KEY => {
                    heard.timeout = heard.timeout.or_else(|| value.to_str().ok().and_then(timeout));
                }
                _ => {}
            }
        }
        heard
    }
}

/// One call is made for one actor.
fn another_actor(before: &Result<Option<Actor>, Status>, value: &HeaderValue) -> Result<Option<Actor>, Status> {
    let parsed = value.to_str().ok().and_then(|text| text.parse().ok());
    match (before, parsed) {
        (Ok(None), Some(actor)) => Ok(Some(actor)),
        _ => {
            let field = format!("metadata {}", actor::METADATA_KEY);
            Err(invalid_fields(&Violations::of(field, actor::MalformedActor.to_string())))
        }
    }
}

/// The answer, or what is said when its time is over; it holds its place until then.
async fn bounded(
    answer: BoxFuture<Response<Body>, Infallible>,
    limit: Option<Duration>,
    _place: Place,
    late: fn() -> Status,
) -> Result<Response<Body>, Infallible> {
    match limit {
        None => answer.await,
        Some(limit) => tokio::time::timeout(limit.saturating_sub(BEFORE_TONIC), answer)
            .await
            .unwrap_or_else(|_| Ok(late().into_http())),
    }
}

/// What is done at a call's end: its id is echoed, the call counted, and how it ended logged. What a stream ends with comes later
/// and is not seen here.
struct End {
    started: Instant,
    method: &'static Method,
    /// A success of such a call is told no id of ours: it leaves nothing behind that the id could lead to.
    frequent: bool,
    request_id: RequestId,
    traceparent: Option<String>,
    /// Made at once where calls are traced, else only for those that take a while.
    span: Option<Span>,
}

impl End {
    fn span(&self) -> Span {
        traces::serving(&self.method.name, &self.request_id, self.traceparent.as_deref())
    }

    fn of(&self, response: Response<Body>) -> Response<Body> {
        let (mut response, code) = match response.headers().get(&GRPC_STATUS) {
            // A success tells its status behind its messages.
            None => (response, Code::Ok),
            Some(_) => blame_the_sender(response),
        };
        let told = !self.frequent || self.request_id.is_the_callers() || code != Code::Ok;
        if let Some(mut value) = told.then(|| self.request_id.to_header()).flatten() {
            // Each is seen once: HTTP/2's table of header fields is not to learn it.
            value.set_sensitive(true);
            response.headers_mut().insert(HeaderName::from_static(REQUEST_ID_KEY), value);
        }
        let elapsed = self.started.elapsed();
        self.method.ended(code, elapsed);
        if let Some(span) = &self.span {
            traces::ended(span, code);
        }
        let (path, request_id) = (&self.method.name, &self.request_id);
        let own = self.span.as_ref().and_then(traces::of_span);
        let trace_id = own.as_deref().or(self.traceparent.as_deref()).and_then(traces::trace_id);
        let millis = elapsed.as_micros() as f64 / 1_000.0;
        match code {
            Code::Internal | Code::Unknown | Code::DataLoss => {
                tracing::error!(path, %request_id, trace_id, ?code, millis, "call failed")
            }
            _ => tracing::debug!(path, %request_id, trace_id, ?code, millis, "call ended"),
        }
        response
    }
}

/// An answer without messages, and its code. tonic calls a message that it cannot read INTERNAL, which it is not: anybody
/// could fill the log with our faults. One that is too large it calls OUT_OF_RANGE, as if there were another to come, and one whose
/// sender breaks off INTERNAL or UNKNOWN.
fn blame_the_sender(response: Response<Body>) -> (Response<Body>, Code) {
    const DECODING: &str = "failed to decode Protobuf message: ";
    const UNREADABLE: [&str; 3] =
        ["protocol error: received message with ", "Unexpected EOF decoding stream", "Missing request message"];
    const TOO_LARGE: &str = "Error, decoded message length too large: ";
    const BROKEN_OFF: &str = "h2 protocol error: ";
    let Some(status) = Status::from_header_map(response.headers()) else { return (response, Code::Ok) };
    let message = status.message();
    let blamed = match status.code() {
        _ if !status.details().is_empty() => None,
        Code::Internal | Code::Unknown if message.starts_with(BROKEN_OFF) => Some(Status::cancelled(message)),
        Code::Internal if UNREADABLE.iter().any(|start| message.starts_with(start)) => Some(undecodable(message)),
        Code::Internal => message.strip_prefix(DECODING).map(undecodable),
        Code::OutOfRange => message.strip_prefix(TOO_LARGE).map(too_large),
        _ => None,
    };
    match blamed {
        Some(blamed) => {
            let code = blamed.code();
            (blamed.into_http(), code)
        }
        None => (response, status.code()),
    }
}

/// `grpc-timeout`: up to 8 digits and a unit.
fn timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 {
        return None;
    }
    let amount: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(amount * 3_600),
        "M" => Duration::from_secs(amount * 60),
        "S" => Duration::from_secs(amount),
        "m" => Duration::from_millis(amount),
        "u" => Duration::from_micros(amount),
        "n" => Duration::from_nanos(amount),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic_types::StatusExt;

    #[test]
    fn a_message_that_cannot_be_read_is_the_senders_fault() {
        let decoding = Status::internal("failed to decode Protobuf message: A.b: buffer underflow").into_http();
        let told = Status::from_header_map(blame_the_sender(decoding).0.headers()).expect("a status");
        assert_eq!(told.code(), Code::InvalidArgument);
        assert!(told.message().contains("A.b: buffer underflow"), "{told:?}");
        assert_eq!(told.get_error_details().error_info().map(|info| info.reason.as_str()), Some("INVALID_FIELDS"));
        for unreadable in [
            "protocol error: received message with compressed-flag but no grpc-encoding was specified",
            "Unexpected EOF decoding stream.",
            "Missing request message.",
        ] {
            let told = Status::from_header_map(blame_the_sender(Status::internal(unreadable).into_http()).0.headers());
            assert_eq!(told.expect("a status").code(), Code::InvalidArgument, "{unreadable}");
        }
        let large =
            Status::out_of_range("Error, decoded message length too large: found 9 bytes, the limit is: 8 bytes");
        let told = Status::from_header_map(blame_the_sender(large.into_http()).0.headers()).expect("a status");
        assert_eq!(told.code(), Code::InvalidArgument);
        assert_eq!(told.message(), "the message is too large: found 9 bytes, the limit is: 8 bytes");
        for broken_off in
            ["error reading a body from connection", "stream error received: unspecific protocol error detected"]
        {
            for code in [Code::Unknown, Code::Internal] {
                let broken_off = Status::new(code, format!("h2 protocol error: {broken_off}"));
                let told = Status::from_header_map(blame_the_sender(broken_off.into_http()).0.headers());
                assert_eq!(told.expect("a status").code(), Code::Cancelled);
            }
        }
        let cursor = crate::status::StatusBuilder::new(Code::OutOfRange, "CURSOR_AHEAD", "ahead").build();
        let told = Status::from_header_map(blame_the_sender(cursor.into_http()).0.headers()).expect("a status");
        assert_eq!(told.code(), Code::OutOfRange);
        let own = Status::from_header_map(blame_the_sender(crate::status::internal().into_http()).0.headers());
        assert_eq!(own.expect("a status").code(), Code::Internal);
    }

    #[test]
    fn timeouts_of_every_unit_are_read() {
        let read = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(TIMEOUT_KEY, HeaderValue::from_static(text));
            Heard::of(&headers).timeout
        };
        assert_eq!(read("5S"), Some(Duration::from_secs(5)));
        assert_eq!(read("250m"), Some(Duration::from_millis(250)));
        for malformed in ["", "S", "5", "5x", "123456789S", "-1S"] {
            assert_eq!(read(malformed), None, "{malformed}");
        }
    }

    #[test]
    fn an_actor_that_cannot_be_read_is_not_none() {
        let read = |values: &[&[u8]]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(actor::METADATA_KEY, HeaderValue::from_bytes(value).expect("what a header can carry"));
            }
            Heard::of(&headers).actor
        };
        assert!(matches!(read(&[]), Ok(None)));
        assert_eq!(read(&[b"user/usr_1"]).expect("an actor"), Some(Actor::User("usr_1".into())));
        let malformed: [&[&[u8]]; 5] =
            [&[b"root"], &[b""], &[b"user/\xff\xfe"], &[b"user/\xc3\xa4"], &[b"user/usr_1", b"user/usr_1"]];
        for values in malformed {
            let status = read(values).expect_err("must be refused");
            let details = status.get_error_details();
            let fields = details.bad_request().map(|bad| bad.field_violations.as_slice()).unwrap_or_default();
            assert_eq!(
                (status.code(), details.error_info().map(|info| info.reason.as_str())),
                (Code::InvalidArgument, Some("INVALID_FIELDS")),
                "{values:?}"
            );
            assert_eq!(
                fields.iter().map(|one| one.field.as_str()).collect::<Vec<_>>(),
                ["metadata x-keysweep-actor"],
                "{values:?}"
            );
        }
    }
}
