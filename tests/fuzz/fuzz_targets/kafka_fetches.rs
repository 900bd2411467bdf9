//! See `kafka_llm_processor::fuzzing`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| kafka_llm_processor::fuzzing::read(
    "kafka_fetches",
    bytes
));
