//! The watermark topic: is it there, is it compacted, how many partitions has it? Where the agent may, it makes one.
//!
//! A topic that is not compacted loses the watermark when its retention ends, which may be during an outage: then the
//! next start would repeat what it had in doubt. So nothing is sent before the topic is right.

use std::fmt;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::{Client, ClientContext, DefaultClientContext};
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaErrorCode as Code;

use crate::watermark::TOPIC_SETTINGS;

/// Partitions of a topic that the agent makes itself. A fleet has about one a gateway, from `tidegate kafka-setup`; who
/// has not run that has few gateways.
const PARTITIONS: i32 = 50;

/// How many partitions it has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Partitions {
    pub(super) count: u32,
}

/// Why it cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum TopicError {
    /// Somebody must create it.
    #[error("the watermark topic {topic} does not exist and cannot be created ({cause}); run tidegate kafka-setup")]
    Missing { topic: String, cause: String },
    /// Somebody must give rights.
    #[error("the watermark topic {topic}: {cause}; this client needs Describe, Read and Write on it")]
    Forbidden { topic: String, cause: String },
    /// Somebody must set it right.
    #[error("the watermark topic {topic} has cleanup.policy={policy}; set it to compact, or watermarks are lost")]
    NotCompacted { topic: String, policy: String },
    /// Nobody answers.
    #[error("ask about the watermark topic: {0}")]
    Kafka(#[from] KafkaError),
}

/// The topic as it is, after making it if it was missing.
pub(super) fn ensure<C: ClientContext>(
    config: &ClientConfig,
    client: &Client<C>,
    topic: &str,
    wait: Duration,
) -> Result<Partitions, TopicError> {
    let Some(partitions) = look(client, topic, wait)? else {
        create(config, topic, wait)?;
        return wait_for(client, topic, wait);
    };
    Ok(partitions)
}

/// A new topic is known everywhere a moment later.
fn wait_for<C: ClientContext>(client: &Client<C>, topic: &str, wait: Duration) -> Result<Partitions, TopicError> {
    for _ in 0..50 {
        if let Some(partitions) = look(client, topic, wait)? {
            return Ok(partitions);
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Err(TopicError::Missing { topic: topic.to_owned(), cause: "created, but not there".to_owned() })
}

/// `None`: it is not there.
fn look<C: ClientContext>(client: &Client<C>, topic: &str, wait: Duration) -> Result<Option<Partitions>, TopicError> {
    let metadata = client.fetch_metadata(Some(topic), wait)?;
    let Some(found) = metadata.topics().iter().find(|found| found.name() == topic) else { return Ok(None) };
    if let Some(error) = found.error() {
        let code = Code::from(error);
        if [Code::UnknownTopicOrPartition, Code::UnknownTopic, Code::LeaderNotAvailable].contains(&code) {
            return Ok(None);
        }
        if code == Code::TopicAuthorizationFailed {
            return Err(TopicError::Forbidden { topic: topic.to_owned(), cause: "not authorized".to_owned() });
        }
        return Err(KafkaError::MetadataFetch(code).into());
    }
    let led = found.partitions().iter().all(|partition| partition.error().is_none());
    let count = u32::try_from(found.partitions().len()).unwrap_or(0);
    Ok((count > 0 && led).then_some(Partitions { count }))
}

fn create(config: &ClientConfig, topic: &str, wait: Duration) -> Result<(), TopicError> {
    let missing = |cause: &dyn fmt::Display| TopicError::Missing { topic: topic.to_owned(), cause: cause.to_string() };
    // The cluster's own default of replicas.
    let new = NewTopic::new(topic, PARTITIONS, TopicReplication::Fixed(-1));
    let new = TOPIC_SETTINGS.iter().fold(new, |new, (name, value, _)| new.set(name, value));
    let results = block(async {
        let admin: AdminClient<DefaultClientContext> = config.create()?;
        admin
            .create_topics([&new], &AdminOptions::new().operation_timeout(Some(wait)).request_timeout(Some(wait)))
            .await
    })?;
    for result in results {
        match result {
            Ok(_) => tracing::info!(topic, partitions = PARTITIONS, "kafka: made the watermark topic"),
            Err((_, Code::TopicAlreadyExists)) => {}
            Err((_, code)) => return Err(missing(&code)),
        }
    }
    Ok(())
}

/// Is it compacted? False: that cannot be said yet. Who may not ask is not answered; then whoever gave the rights has seen to it.
pub(super) fn check_policy(config: &ClientConfig, topic: &str, wait: Duration) -> Result<bool, TopicError> {
    let described = block(async {
        let admin: AdminClient<DefaultClientContext> = config.create()?;
        admin
            .describe_configs(&[ResourceSpecifier::Topic(topic)], &AdminOptions::new().request_timeout(Some(wait)))
            .await
    })?;
    for resource in described {
        match resource {
            Ok(resource) => {
                let policy = resource.get("cleanup.policy").and_then(|entry| entry.value.clone());
                // rdkafka 0.39 keeps a refusal to itself and gives an empty list; a topic that is being made at this
                // moment has no settings yet.
                let Some(policy) = policy.filter(|policy| !policy.is_empty()) else { return Ok(false) };
                if !policy.split(',').any(|word| word.trim() == "compact") || policy.contains("delete") {
                    return Err(TopicError::NotCompacted { topic: topic.to_owned(), policy });
                }
            }
            Err(code) => tracing::debug!(topic, %code, "kafka: the watermark topic's settings cannot be looked at"),
        }
    }
    Ok(true)
}

/// rdkafka's admin client has a thread of its own; its answers are futures that need no reactor.
pub(super) fn block<T>(work: impl Future<Output = Result<T, KafkaError>>) -> Result<T, KafkaError> {
    match tokio::runtime::Builder::new_current_thread().build() {
        Ok(runtime) => runtime.block_on(work),
        Err(_) => Err(KafkaError::Canceled),
    }
}
