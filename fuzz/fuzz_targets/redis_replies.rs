#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| dyndata::fuzzing::redis_replies(data));
