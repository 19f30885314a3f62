//! What the forwarder is doing; published through a `tokio::sync::watch` channel, read by metrics and status.

use std::sync::Arc;

/// A snapshot.
#[derive(Debug, Clone, Default)]
pub struct ForwardStatus {
    /// At least one broker answers.
    pub connected: bool,
    /// Records handed to librdkafka and not yet reported.
    pub in_flight: u64,
    /// Records confirmed since start.
    pub delivered: u64,
    /// Records that failed and will be sent again, since start.
    pub retried: u64,
    /// Dead letters since start.
    pub dead_lettered: u64,
    /// Producers made since start (the first one included).
    pub producers: u64,
    /// When Kafka last confirmed something, milliseconds since 1970.
    pub last_delivered_ms: Option<i64>,
    /// Topics that are parked now.
    pub parked: Vec<ParkedTopic>,
    /// The last error of the link, empty when there was none or it is over.
    pub last_error: String,
}

/// One parked Kafka topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParkedTopic {
    /// Kafka topic.
    pub topic: Arc<str>,
    /// Why, in words.
    pub reason: String,
    /// Since when, milliseconds since 1970.
    pub since_ms: i64,
}
