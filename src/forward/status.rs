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
    /// With exactly-once delivery.
    pub transactions: Option<Transactions>,
}

/// What exactly-once delivery has done since start.
#[derive(Debug, Clone, Default)]
pub struct Transactions {
    /// Everything up to here is delivered, by a committed watermark; 0 before the first is known.
    pub watermark: u64,
    /// Transactions committed.
    pub committed: u64,
    /// Transactions aborted.
    pub aborted: u64,
    /// Commits and aborts whose `EndTxn` was sent more than once; each cost a new producer.
    pub end_txn_retried: u64,
    /// From the last record's being sent to the commit's end, all together.
    pub commit_seconds: f64,
    /// Why nothing can be sent; empty when something can.
    pub blocked: String,
    /// ... and somebody must set the watermark topic right.
    pub topic_unusable: bool,
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
