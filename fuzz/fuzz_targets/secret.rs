#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| key_service::fuzz::secret(data));
