//! What the forwarder is doing; published through a `tokio::sync::watch` channel, read by metrics and status.

use std::sync::Arc;
use std::time::Duration;

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
    /// How far the gateway's clock is ahead of Kafka's; `None` until Kafka has said its time.
    pub clock_ahead_ms: Option<i64>,
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
    /// From the last record's being sent to the commit's end.
    pub commits: CommitTimes,
    /// Why nothing can be sent; empty when something can.
    pub blocked: String,
    /// ... and somebody must set the watermark topic right.
    pub topic_unusable: bool,
}

/// How long commits took, by classes.
#[derive(Debug, Clone, Default)]
pub struct CommitTimes {
    /// All together.
    pub seconds: f64,
    /// How many there were in each class; the last one is what took longer than all bounds.
    pub counts: [u64; COMMIT_BOUNDS_S.len() + 1],
}

/// Upper bounds of the classes: close together where a local network is, and up to what a bad link takes.
pub const COMMIT_BOUNDS_S: [f64; 16] =
    [0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

impl CommitTimes {
    /// One more.
    pub fn note(&mut self, took: Duration) {
        let seconds = took.as_secs_f64();
        self.seconds += seconds;
        let class = COMMIT_BOUNDS_S.partition_point(|bound| *bound < seconds);
        if let Some(count) = self.counts.get_mut(class) {
            *count = count.saturating_add(1);
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_counts_in_the_first_class_that_holds_it() {
        let mut times = CommitTimes::default();
        for ms in [1, 5, 6, 10_000, 10_001] {
            times.note(Duration::from_millis(ms));
        }
        assert_eq!((times.counts[0], times.counts[1]), (2, 1));
        assert_eq!((times.counts[15], times.counts[16]), (1, 1));
        assert!((times.seconds - 20.013).abs() < 1e-9);
    }
}
