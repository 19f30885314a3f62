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

use super::topic_state::{self, Found};
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
    #[error(
        "the watermark topic {topic} does not exist, and the agent cannot create it ({cause}); run tidegate kafka-setup"
    )]
    Missing { topic: String, cause: String },
    /// Somebody must give rights.
    #[error("the watermark topic {topic}: {cause}; this client needs Describe, Read and Write on it")]
    Forbidden { topic: String, cause: String },
    /// Somebody must set it right.
    #[error("the watermark topic {topic} has cleanup.policy={policy}; set it to compact, or Kafka deletes watermarks")]
    NotCompacted { topic: String, policy: String },
    /// The brokers that hold it must come back.
    #[error("partition {partition} of the watermark topic {topic}, where this gateway's watermark is, has no leader")]
    Leaderless { topic: String, partition: i32 },
    /// Nobody answers.
    #[error("Kafka does not answer about the watermark topic: {0}")]
    Kafka(#[from] KafkaError),
}

/// The topic as it is, after making it if it was missing. Of its partitions only the one that `own` names for their number
/// counts: another one without a leader is other gateways' trouble.
pub(super) fn ensure<C: ClientContext>(
    config: &ClientConfig,
    client: &Client<C>,
    topic: &str,
    own: impl Fn(u32) -> i32,
    wait: Duration,
) -> Result<Partitions, TopicError> {
    let found = look(client, topic, &own, wait)?;
    if let Some(partitions) = found {
        return Ok(partitions);
    }
    create(config, topic, wait)?;
    // A new topic is known everywhere, and led, a moment later.
    let mut last =
        TopicError::Missing { topic: topic.to_owned(), cause: "it was created, but Kafka does not show it".to_owned() };
    for _ in 0..50 {
        match look(client, topic, &own, wait) {
            Ok(Some(partitions)) => return Ok(partitions),
            Ok(None) => {}
            Err(error @ TopicError::Leaderless { .. }) => last = error,
            Err(error) => return Err(error),
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Err(last)
}

/// `None`: it is not there.
fn look<C: ClientContext>(
    client: &Client<C>,
    topic: &str,
    own: &impl Fn(u32) -> i32,
    wait: Duration,
) -> Result<Option<Partitions>, TopicError> {
    match topic_state::look(client, topic, wait) {
        Found::Led { partitions: count, .. } => Ok(Some(Partitions { count })),
        Found::Leaderless { partitions: count, without } => {
            let partition = own(count);
            if without.contains(&partition) {
                return Err(TopicError::Leaderless { topic: topic.to_owned(), partition });
            }
            Ok(Some(Partitions { count }))
        }
        Found::Missing => Ok(None),
        Found::Forbidden => Err(TopicError::Forbidden { topic: topic.to_owned(), cause: "not authorized".to_owned() }),
        Found::Silent(code) => Err(KafkaError::MetadataFetch(code).into()),
    }
}

fn create(config: &ClientConfig, topic: &str, wait: Duration) -> Result<(), TopicError> {
    let missing = |cause: &dyn fmt::Display| TopicError::Missing { topic: topic.to_owned(), cause: cause.to_string() };
    // The cluster's own default of replicas.
    let new = NewTopic::new(topic, PARTITIONS, TopicReplication::Fixed(-1));
    let new = TOPIC_SETTINGS.iter().fold(new, |new, (name, value, _)| new.set(name, value));
    let results = block(async {
        let admin = administrator(config)?;
        admin
            .create_topics([&new], &AdminOptions::new().operation_timeout(Some(wait)).request_timeout(Some(wait)))
            .await
    })?;
    for result in results {
        match result {
            Ok(_) => tracing::info!(topic, partitions = PARTITIONS, "kafka: the agent created the watermark topic"),
            Err((_, Code::TopicAlreadyExists)) => {}
            Err((_, code)) => return Err(missing(&code)),
        }
    }
    Ok(())
}

/// Is it compacted? False: that cannot be said yet. Who may not ask is not answered; then whoever gave the rights has seen to it.
pub(super) fn check_policy(config: &ClientConfig, topic: &str, wait: Duration) -> Result<bool, TopicError> {
    let described = block(async {
        let admin = administrator(config)?;
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
            Err(code) => tracing::debug!(topic, %code, "kafka: the agent cannot read the settings of the watermark \
                 topic"),
        }
    }
    Ok(true)
}

/// rdkafka 0.39 panics when the system gives its administrator no thread for the answers, and a panic ends the agent. So it
/// is asked for some first: what `TasksMax=` allows may be used up by clients of a large cluster.
fn administrator(config: &ClientConfig) -> Result<AdminClient<DefaultClientContext>, KafkaError> {
    let spare = (0..SPARE_THREADS).map(|_| {
        let (hand, let_go) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::Builder::new().spawn(move || let_go.recv().is_err());
        thread.map(|thread| (hand, thread))
    });
    let spare: Vec<_> = spare.collect::<Result<_, _>>().map_err(|error| {
        KafkaError::ClientCreation(format!("the system gives no thread ({error}); raise TasksMax= of the service"))
    })?;
    for (hand, thread) in spare {
        drop(hand);
        drop(thread.join());
    }
    config.create()
}

/// An administrator's own, a thread a broker of an ordinary cluster, and some to spare.
const SPARE_THREADS: usize = 16;

/// rdkafka's admin client has a thread of its own; its answers are futures that need no reactor.
pub(super) fn block<T>(work: impl Future<Output = Result<T, KafkaError>>) -> Result<T, KafkaError> {
    match tokio::runtime::Builder::new_current_thread().build() {
        Ok(runtime) => runtime.block_on(work),
        Err(_) => Err(KafkaError::Canceled),
    }
}
