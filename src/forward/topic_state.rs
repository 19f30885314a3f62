//! What brokers say of a Kafka topic: can it take records at all?

use std::sync::Arc;
use std::time::Duration;

use rdkafka::client::{Client, ClientContext};
use rdkafka::metadata::MetadataPartition;
use rdkafka::types::RDKafkaErrorCode as Code;

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Found {
    /// It is there, and each of its partitions has a leader; the one with fewest has so many replicas in sync.
    Led { partitions: u32, in_sync: usize },
    /// It is there, and these of its partitions have no leader: the brokers that hold them are away.
    Leaderless { partitions: u32, without: Vec<i32> },
    /// There is none, or it is being made.
    Missing,
    /// It may not be looked at.
    Forbidden,
    /// Nobody has answered; or something that says nothing.
    Silent(Code),
}

/// The answers of brokers, by Kafka topic.
pub(super) type Answers = Vec<(Arc<str>, Found)>;

/// Asks a broker, and waits so long for the answer.
pub(super) fn look<C: ClientContext>(client: &Client<C>, topic: &str, wait: Duration) -> Found {
    let metadata = match client.fetch_metadata(Some(topic), wait) {
        Ok(metadata) => metadata,
        Err(error) => return Found::Silent(super::verdict::code_of(&error)),
    };
    let Some(found) = metadata.topics().iter().find(|found| found.name() == topic) else { return Found::Missing };
    if let Some(error) = found.error() {
        let code = Code::from(error);
        return if [Code::UnknownTopicOrPartition, Code::UnknownTopic, Code::LeaderNotAvailable].contains(&code) {
            Found::Missing
        } else if code == Code::TopicAuthorizationFailed {
            Found::Forbidden
        } else {
            Found::Silent(code)
        };
    }
    let partitions = u32::try_from(found.partitions().len()).unwrap_or(0);
    let without: Vec<i32> =
        found.partitions().iter().filter(|partition| partition.leader() < 0).map(MetadataPartition::id).collect();
    match partitions {
        0 => Found::Missing,
        partitions if without.is_empty() => {
            let in_sync = found.partitions().iter().map(|partition| partition.isr().len()).min().unwrap_or(0);
            Found::Led { partitions, in_sync }
        }
        partitions => Found::Leaderless { partitions, without },
    }
}
