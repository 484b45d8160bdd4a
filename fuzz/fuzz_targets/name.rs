#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| location_service::fuzz::name(data));
