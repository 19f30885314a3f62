//! What the forwarder is doing; published through a `tokio::sync::watch` channel, read by metrics and status.

use std::sync::Arc;
use std::time::Duration;

/// A snapshot.
#[derive(Debug, Clone, Default)]
pub(crate) struct ForwardStatus {
    /// At least one broker answers.
    pub connected: bool,
    /// Records handed to librdkafka and not yet reported.
    pub in_flight: u64,
    /// Records confirmed since start.
    pub delivered: u64,
    /// Records that failed and will be sent again, since start.
    pub retried: u64,
    /// Readings in chunks that could not be read, since start, at most: they are held, and tried again at the next start.
    pub unread: u64,
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
    /// Why readings of the main lane wait, when nothing of it flows.
    pub waiting: Option<Waiting>,
    /// The last error of the link, empty when there was none or it is over.
    pub last_error: String,
    /// With exactly-once delivery.
    pub transactions: Option<Transactions>,
}

/// Readings wait, and nothing flows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Waiting {
    /// The kind of cause.
    pub reason: Reason,
    /// The cause, in words.
    pub why: String,
    /// Since when, milliseconds since 1970.
    pub since_ms: i64,
}

/// What keeps readings from Kafka.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    /// Nobody answers.
    NoBroker,
    /// The names of brokers cannot be resolved.
    NameNotResolved,
    /// Credentials or certificates.
    Refused,
    /// Kafka has no coordinator for transactions.
    NoCoordinator,
    /// Kafka has a coordinator for transactions, which does not let us begin.
    Registering,
    /// Our last transaction is not over on all its partitions.
    LastTransaction,
    /// Another gateway's transaction is open in our partition of the watermark topic.
    OtherTransaction,
    /// The watermark topic is missing, forbidden, not compacted, or has no leader where it matters.
    WatermarkTopic,
    /// The watermark is being read.
    ReadingWatermark,
    /// Records are on their way, and none is confirmed.
    Sending,
    /// The end of a transaction is on its way.
    EndingTransaction,
    /// After a failure, before the next try.
    StartingAgain,
    /// Too many former clients are still being ended.
    EndingClients,
    /// The buffer's file cannot be read.
    Buffer,
    /// A Kafka topic is parked; all others flow.
    ParkedTopic,
}

impl Reason {
    /// All of them.
    pub(crate) const ALL: [Self; 15] = [
        Self::NoBroker,
        Self::NameNotResolved,
        Self::Refused,
        Self::NoCoordinator,
        Self::Registering,
        Self::LastTransaction,
        Self::OtherTransaction,
        Self::WatermarkTopic,
        Self::ReadingWatermark,
        Self::Sending,
        Self::EndingTransaction,
        Self::StartingAgain,
        Self::EndingClients,
        Self::Buffer,
        Self::ParkedTopic,
    ];

    /// As the status, the metric and the log name it: a part of the interface.
    #[must_use]
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::NoBroker => "no_broker",
            Self::NameNotResolved => "name_not_resolved",
            Self::Refused => "refused",
            Self::NoCoordinator => "no_coordinator",
            Self::Registering => "registering",
            Self::LastTransaction => "last_transaction",
            Self::OtherTransaction => "other_transaction",
            Self::WatermarkTopic => "watermark_topic",
            Self::ReadingWatermark => "reading_watermark",
            Self::Sending => "sending",
            Self::EndingTransaction => "ending_transaction",
            Self::StartingAgain => "starting_again",
            Self::EndingClients => "ending_clients",
            Self::Buffer => "buffer",
            Self::ParkedTopic => "parked_topic",
        }
    }

    /// May this be what becomes of one broker that refuses this client?
    pub(crate) fn may_come_of_a_refusal(self) -> bool {
        [Self::Registering, Self::ReadingWatermark, Self::Sending, Self::EndingTransaction, Self::StartingAgain]
            .contains(&self)
    }

    /// What a person may do. Everything goes on by itself as soon as the cause is gone.
    #[must_use]
    pub(crate) fn remedy(self) -> &'static str {
        match self {
            Self::NoBroker => "check that Kafka runs, that [kafka] brokers is right, and that the link works",
            Self::NameNotResolved => "check the link, the name servers, and the names in [kafka] brokers",
            Self::Refused => "check the credentials and certificates in [kafka.options], and this machine's clock",
            Self::NoCoordinator => {
                "start more brokers, or set transaction.state.log.replication.factor and \
                 transaction.state.log.min.isr of the cluster to at most the number of its brokers; tidegate \
                 kafka-setup shows them"
            }
            Self::Registering => "read the brokers' log; the agent tries again",
            Self::LastTransaction => {
                "start the brokers that hold the partitions of the last readings; after some seconds the agent goes \
                 on under another transactional.id"
            }
            Self::OtherTransaction => {
                "nothing: Kafka ends the other transaction after its time-out; with more partitions of the watermark \
                 topic it happens less often"
            }
            Self::WatermarkTopic => {
                "run tidegate kafka-setup: it says how the watermark topic must be set and which \
                 rights this client needs"
            }
            Self::ReadingWatermark => "nothing; if it lasts, check the link",
            Self::Sending => "check the speed of the link and the quotas of the cluster, and read the brokers' log",
            Self::EndingTransaction => "check the link, and read the brokers' log",
            Self::StartingAgain => "read the brokers' log; the agent tries again, at least every 30 s",
            Self::EndingClients => "check the name servers: librdkafka cannot end a client while it waits for them",
            Self::Buffer => "check the disk, and read the agent's log",
            Self::ParkedTopic => {
                "create the topic, give the rights, or bring its brokers back; tidegate status says which"
            }
        }
    }
}

/// What exactly-once delivery has done since start.
#[derive(Debug, Clone, Default)]
pub(crate) struct Transactions {
    /// Everything up to here is delivered, by a committed watermark; 0 before the first is known.
    pub watermark: u64,
    /// Transactions committed.
    pub committed: u64,
    /// Transactions aborted.
    pub aborted: u64,
    /// Commits and aborts whose `EndTxn` was sent more than once; each cost a new producer.
    pub end_txn_retried: u64,
    /// `transaction.timeout.ms` of the present producer.
    pub timeout: Duration,
    /// From the last record's being sent to the commit's end.
    pub commits: CommitTimes,
    /// Why nothing can be sent; empty when something can.
    pub blocked: String,
    /// ... and somebody must set the watermark topic right.
    pub topic_unusable: bool,
}

/// How long commits took, by classes.
#[derive(Debug, Clone, Default)]
pub(crate) struct CommitTimes {
    /// All together.
    pub seconds: f64,
    /// How many there were in each class; the last one is what took longer than all bounds.
    pub counts: [u64; COMMIT_BOUNDS_S.len() + 1],
}

/// Upper bounds of the classes: close together where a local network is, and up to what a bad link takes.
pub(crate) const COMMIT_BOUNDS_S: [f64; 16] =
    [0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

impl CommitTimes {
    /// One more.
    pub(crate) fn note(&mut self, took: Duration) {
        let seconds = took.as_secs_f64();
        self.seconds += seconds;
        let class = COMMIT_BOUNDS_S.partition_point(|bound| *bound < seconds);
        if let Some(count) = self.counts.get_mut(class) {
            *count += 1;
        }
    }
}

/// One parked Kafka topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ParkedTopic {
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
