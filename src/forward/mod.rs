//! Kafka out: batches of held events to their topics; what Kafka confirms is released, nothing else.

pub mod status;
