//! Asks and tells the cluster.

use std::future::Future;
use std::time::Duration;

use rdkafka::admin::{
    AdminClient, AdminOptions, AlterConfig, ConfigSource, NewTopic, ResourceSpecifier, TopicReplication,
};
use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::metadata::MetadataBroker;

use super::judge::{Setting, TopicFound, TransactionLog};
use super::plan::TopicPlan;

/// One question to the cluster.
const QUESTION: Duration = Duration::from_secs(15);

/// Why the cluster could not be asked or told.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClusterError {
    #[error("the Kafka client cannot be started: {0}")]
    Runtime(#[from] std::io::Error),
    #[error("Kafka could not be asked: {0}")]
    Ask(KafkaError),
    #[error("Kafka refused to {what}: {code}")]
    Refused { what: String, code: RDKafkaErrorCode },
}

/// The way to the administration of a cluster.
pub(super) struct Cluster {
    admin: AdminClient<Quiet>,
    runtime: tokio::runtime::Runtime,
}

/// What Kafka tells of itself.
pub(super) struct Overview {
    pub(super) brokers: usize,
    /// Of the brokers.
    pub(super) ids: Vec<i32>,
    pub(super) topics: Vec<String>,
}

/// Our answers say what is wrong; librdkafka's lines would stand between them.
struct Quiet;

impl ClientContext for Quiet {
    fn log(&self, _level: RDKafkaLogLevel, _facility: &str, _message: &str) {}
    fn error(&self, _error: KafkaError, _reason: &str) {}
}

impl Cluster {
    /// Connects when it is first asked.
    pub(super) fn new(way: &ClientConfig) -> Result<Self, ClusterError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let admin = way.create_with_context(Quiet).map_err(ClusterError::Ask)?;
        Ok(Self { admin, runtime })
    }

    /// Brokers and topics.
    pub(super) fn overview(&self) -> Result<Overview, ClusterError> {
        let metadata = self.admin.inner().fetch_metadata(None, QUESTION).map_err(ClusterError::Ask)?;
        let topics = metadata.topics().iter().filter(|topic| topic.error().is_none());
        Ok(Overview {
            brokers: metadata.brokers().len(),
            ids: metadata.brokers().iter().map(MetadataBroker::id).collect(),
            topics: topics.map(|topic| topic.name().to_owned()).collect(),
        })
    }

    /// What that broker is set to keep transactions with; `None` when we may not ask.
    pub(super) fn transaction_log(&self, broker: i32) -> Result<Option<TransactionLog>, ClusterError> {
        let asked = [ResourceSpecifier::Broker(broker)];
        let answers = self.ask(self.admin.describe_configs(&asked, &options()))?;
        let Some(Ok(resource)) = answers.into_iter().next() else { return Ok(None) };
        let number = |name: &str| {
            resource
                .entries
                .iter()
                .find(|entry| entry.name == name)
                .and_then(|entry| entry.value.as_ref()?.parse().ok())
        };
        let (replicas, in_sync) =
            (number("transaction.state.log.replication.factor"), number("transaction.state.log.min.isr"));
        Ok(replicas.zip(in_sync).map(|(replicas, in_sync)| TransactionLog { replicas, in_sync }))
    }

    /// The topic as it is; `None` when there is none, or we may not see it.
    pub(super) fn topic(&self, name: &str) -> Result<Option<TopicFound>, ClusterError> {
        let metadata = self.admin.inner().fetch_metadata(Some(name), QUESTION).map_err(ClusterError::Ask)?;
        let found = metadata.topics().iter().find(|topic| topic.name() == name && topic.error().is_none());
        let Some(found) = found.filter(|found| !found.partitions().is_empty()) else { return Ok(None) };
        let number = |count: usize| i32::try_from(count).unwrap_or(i32::MAX);
        Ok(Some(TopicFound {
            partitions: number(found.partitions().len()),
            replicas: found.partitions().iter().map(|p| number(p.replicas().len())).min().unwrap_or(0),
            settings: self.settings(name)?,
        }))
    }

    /// `None` when we may not ask: rdkafka 0.39 keeps the refusal to itself and gives an empty list.
    fn settings(&self, name: &str) -> Result<Option<Vec<Setting>>, ClusterError> {
        let asked = [ResourceSpecifier::Topic(name)];
        let answers = self.ask(self.admin.describe_configs(&asked, &options()))?;
        let Some(Ok(resource)) = answers.into_iter().next() else { return Ok(None) };
        if resource.entries.is_empty() {
            return Ok(None);
        }
        let settings = resource.entries.into_iter().filter_map(|entry| {
            let own = entry.source == ConfigSource::DynamicTopic;
            Some(Setting { name: entry.name, value: entry.value?, own })
        });
        Ok(Some(settings.collect()))
    }

    /// Makes it; that it is there already is well.
    pub(super) fn create(&self, plan: &TopicPlan) -> Result<(), ClusterError> {
        let mut new = NewTopic::new(&plan.name, plan.partitions, TopicReplication::Fixed(plan.replicas));
        for (name, value) in &plan.settings {
            new = new.set(name, value);
        }
        match self.ask(self.admin.create_topics([&new], &options()))?.into_iter().next() {
            Some(Err((_, code))) if code != RDKafkaErrorCode::TopicAlreadyExists => {
                Err(ClusterError::Refused { what: format!("create topic {}", plan.name), code })
            }
            Some(Ok(_) | Err(_)) | None => Ok(()),
        }
    }

    /// Puts these settings in place of all that the topic has of its own. Whether Kafka took them only a look tells:
    /// rdkafka 0.39 keeps a refusal to itself.
    pub(super) fn alter(&self, name: &str, settings: &[(String, String)]) -> Result<(), ClusterError> {
        let mut wanted = AlterConfig::new(ResourceSpecifier::Topic(name));
        for (name, value) in settings {
            wanted = wanted.set(name, value);
        }
        match self.ask(self.admin.alter_configs([&wanted], &options()))?.into_iter().next() {
            Some(Err((_, code))) => Err(ClusterError::Refused { what: format!("change topic {name}"), code }),
            Some(Ok(_)) | None => Ok(()),
        }
    }

    fn ask<T>(&self, question: impl Future<Output = Result<T, KafkaError>>) -> Result<T, ClusterError> {
        self.runtime.block_on(question).map_err(ClusterError::Ask)
    }
}

fn options() -> AdminOptions {
    AdminOptions::new().request_timeout(Some(QUESTION)).operation_timeout(Some(QUESTION))
}
