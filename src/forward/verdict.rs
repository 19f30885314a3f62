//! What a Kafka error means for the events it hit: one table for every code that a send, a delivery report or a fatal
//! error can give.
//!
//! The rows follow what was observed against Apache Kafka 4.1 (librdkafka 2.12). Two rules stand above the table:
//! no row releases an event (custody rule 2), and a code that nobody has thought of gets the cautious verdict,
//! [`Verdict::NewProducer`]: forget the connection's state, wait, send again.

use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaErrorCode as Code;

use crate::planted::{Bug, planted};

/// What happens next with the events that got this error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The local queue is full: nothing failed, go on later with the same record.
    Wait,
    /// Nobody's fault: send it again in its place.
    Resend,
    /// This producer cannot be trusted any more: make a new one, after a wait that grows, and send again.
    NewProducer,
    /// Some record of the batch is not acceptable: send in smaller and smaller groups; a record that fails alone
    /// is a dead letter.
    Alone,
    /// This very record was judged by itself and will never be accepted.
    DeadLetter,
    /// It bears a time that Kafka does not take: send again with another (`time.rs`).
    Retime,
    /// The Kafka topic is missing, forbidden or confirms nothing: its events wait in a lane of their own.
    ParkTopic,
}

/// The table.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "a code nobody thought of gets the cautious verdict, never a release"
)]
pub(super) fn verdict(code: Code) -> Verdict {
    match code {
        Code::QueueFull => Verdict::Wait,

        // Victims of somebody else's failure.
        Code::PurgeQueue // still queued when the producer was given up
        | Code::PurgeInflight // in flight at that moment: may be in Kafka already, the id tells
        | Code::InvalidDifferentRecord // another record of the batch was the bad one
        | Code::Retry => Verdict::Resend,

        // The batch holds something that the topic does not take; the report does not say which record.
        Code::MessageSizeTooLarge // over max.message.bytes: one record, or only all of them together
        | Code::MessageBatchTooLarge
        | Code::InvalidMessageSize
        | Code::InvalidRecord // no key into a compacted topic, a refused schema
        | Code::InvalidMessage => Verdict::Alone,

        Code::InvalidTimestamp if planted(Bug::BelieveTheClock) => Verdict::Alone,
        Code::InvalidTimestamp => Verdict::Retime, // the gateway's clock, most of all

        Code::InvalidTopic => Verdict::DeadLetter, // a name that no cluster takes

        Code::UnknownTopic
        | Code::UnknownTopicOrPartition
        | Code::UnknownPartition
        | Code::UnknownTopicId
        | Code::TopicAuthorizationFailed
        | Code::PolicyViolation
        | Code::LeaderNotAvailable // this and the next two: found by `stalls.rs`; librdkafka itself goes on trying
        | Code::NotEnoughReplicas
        | Code::NotEnoughReplicasAfterAppend
        | Code::TimedOutQueue
        | Code::UnsupportedForMessageFormat => Verdict::ParkTopic,

        // Idempotence lost its thread, the producer was fenced or gapless delivery was at stake (Fatal,
        // GaplessGuarantee, OutOfOrderSequenceNumber, InvalidProducerEpoch, …); time-outs; credentials; the unknown.
        _ => Verdict::NewProducer,
    }
}

/// The code inside any of rdkafka's errors; `Fail` where there is none.
#[expect(clippy::wildcard_enum_match_arm, reason = "errors without a code are all the same here: the cautious verdict")]
pub(super) fn code_of(error: &KafkaError) -> Code {
    match error {
        KafkaError::MessageProduction(code) => *code,
        // The only NUL-terminated string handed over is the topic name.
        KafkaError::Nul(_) => Code::InvalidTopic,
        other => other.rdkafka_error_code().unwrap_or(Code::Fail),
    }
}

/// Did a broker say so? Otherwise librdkafka did, because none has answered: that is no sign of a link.
pub(super) fn is_an_answer(code: Code) -> bool {
    ![
        Code::MessageTimedOut,
        Code::PurgeQueue,
        Code::PurgeInflight,
        Code::BrokerTransportFailure,
        Code::AllBrokersDown,
        Code::OperationTimedOut,
    ]
    .contains(&code)
}

/// The table for a refusal by `send` itself, where a size is judged record by record.
pub(super) fn send_verdict(code: Code) -> Verdict {
    match verdict(code) {
        Verdict::Alone => Verdict::DeadLetter,
        other @ (Verdict::Wait
        | Verdict::Resend
        | Verdict::NewProducer
        | Verdict::DeadLetter
        | Verdict::Retime
        | Verdict::ParkTopic) => other,
    }
}

/// Why a record became a dead letter, for the operator.
#[expect(clippy::wildcard_enum_match_arm, reason = "other codes speak for themselves")]
pub(super) fn dead_letter_reason(code: Code) -> String {
    match code {
        Code::MessageSizeTooLarge | Code::MessageBatchTooLarge | Code::InvalidMessageSize => format!(
            "too large for Kafka ({code}): raise max.message.bytes of the topic, and message.max.bytes in [kafka.options]"
        ),
        Code::InvalidTopic => format!("Kafka does not accept the topic's name ({code})"),
        other => format!("Kafka refuses this reading, also alone in a batch ({other})"),
    }
}

/// Why a topic is parked and what opens it, for the operator.
#[expect(clippy::wildcard_enum_match_arm, reason = "other codes speak for themselves")]
pub(super) fn park_reason(code: Code) -> (&'static str, &'static str) {
    match code {
        Code::TopicAuthorizationFailed => ("not authorized", "grant Write and Describe on the topic to this client"),
        Code::UnknownTopic | Code::UnknownTopicOrPartition | Code::UnknownTopicId => ("missing", "create the topic"),
        Code::UnknownPartition => ("partition missing", "give the topic its partitions back"),
        Code::LeaderNotAvailable => ("a partition has no leader", "start the brokers that hold its replicas"),
        Code::NotEnoughReplicas | Code::NotEnoughReplicasAfterAppend => (
            "too few replicas are in sync",
            "start the brokers that hold its replicas, or lower min.insync.replicas of the topic",
        ),
        Code::TimedOutQueue => (
            "Kafka confirms nothing, although brokers answer",
            "check that this gateway can reach the broker that leads the topic, at the address in advertised.listeners",
        ),
        Code::InvalidTimestamp => {
            ("it refuses every time stamp", "check message.timestamp.*.max.ms of the topic, and the brokers' clocks")
        }
        Code::UnsupportedForMessageFormat => ("message format too old", "raise message.format.version of the topic"),
        _ => ("a policy of the cluster refuses records", "read the brokers' log"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_of_the_recovery_table_has_its_verdict() {
        let rows = [
            (Code::QueueFull, Verdict::Wait),
            (Code::PurgeQueue, Verdict::Resend),
            (Code::PurgeInflight, Verdict::Resend),
            (Code::InvalidDifferentRecord, Verdict::Resend),
            (Code::MessageSizeTooLarge, Verdict::Alone),
            (Code::MessageBatchTooLarge, Verdict::Alone),
            (Code::InvalidRecord, Verdict::Alone),
            (Code::InvalidTimestamp, Verdict::Retime),
            (Code::InvalidTopic, Verdict::DeadLetter),
            (Code::UnknownTopicOrPartition, Verdict::ParkTopic),
            (Code::UnknownTopic, Verdict::ParkTopic),
            (Code::UnknownPartition, Verdict::ParkTopic),
            (Code::TopicAuthorizationFailed, Verdict::ParkTopic),
            (Code::OutOfOrderSequenceNumber, Verdict::NewProducer),
            (Code::InvalidProducerEpoch, Verdict::NewProducer),
            (Code::InvalidProducerIdMapping, Verdict::NewProducer),
            (Code::UnknownProducerId, Verdict::NewProducer),
            (Code::InvalidTransactionalState, Verdict::NewProducer),
            (Code::Fenced, Verdict::NewProducer),
            (Code::ProducerFenced, Verdict::NewProducer),
            (Code::Fatal, Verdict::NewProducer),
            (Code::GaplessGuarantee, Verdict::NewProducer),
            (Code::MessageTimedOut, Verdict::NewProducer),
            (Code::BrokerTransportFailure, Verdict::NewProducer),
            (Code::OperationTimedOut, Verdict::NewProducer),
            (Code::Authentication, Verdict::NewProducer),
            (Code::ClusterAuthorizationFailed, Verdict::NewProducer),
            (Code::NotEnoughReplicas, Verdict::ParkTopic),
            (Code::LeaderNotAvailable, Verdict::ParkTopic),
            (Code::KafkaStorageError, Verdict::NewProducer),
            (Code::Unknown, Verdict::NewProducer),
        ];
        for (code, expected) in rows {
            assert_eq!(verdict(code), expected, "{code:?}");
        }
    }

    #[test]
    fn what_comes_of_waiting_in_vain_is_no_answer() {
        for code in [Code::MessageTimedOut, Code::PurgeQueue, Code::PurgeInflight, Code::BrokerTransportFailure] {
            assert!(!is_an_answer(code), "{code:?}");
        }
        for code in [Code::MessageSizeTooLarge, Code::TopicAuthorizationFailed, Code::NotEnoughReplicas] {
            assert!(is_an_answer(code), "{code:?}");
        }
    }

    #[test]
    fn a_size_refused_by_send_is_judged_by_itself() {
        assert_eq!(send_verdict(Code::MessageSizeTooLarge), Verdict::DeadLetter);
        assert_eq!(send_verdict(Code::QueueFull), Verdict::Wait);
        assert_eq!(send_verdict(Code::Fatal), Verdict::NewProducer);
        assert_eq!(send_verdict(Code::TopicAuthorizationFailed), Verdict::ParkTopic);
    }
}
