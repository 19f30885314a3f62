//! With `timestamp = "arrival"`: how long do the topics keep what they are given? Kafka goes by the record's own time, so
//! what has waited here for longer than that is deleted as soon as it is there, though it was confirmed. Nobody is told
//! by Kafka; so the agent looks, where it may, and warns before.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, ConfigResource, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use rdkafka::error::KafkaError;

use super::watermark_topic::block;
use crate::retry::Backoff;
use crate::route::Routes;
use crate::route::template::TopicTemplate;
use crate::stop::Stop;

/// Topics that are looked at: those that routes name in full. More of them would be a long question, and the first few say it.
const MOST_TOPICS: usize = 100;

/// One question to the cluster.
const ASK: Duration = Duration::from_secs(15);

/// A stop is heard so soon.
const LOOK: Duration = Duration::from_millis(250);

/// Looks once Kafka answers, on a thread of its own, and says what it finds.
pub(super) fn watch(config: ClientConfig, routes: Arc<Routes>, stop: Stop) {
    let thread = thread::Builder::new().name("retention".to_owned()).spawn(move || {
        let whole = routes.topics().map(TopicTemplate::prefix).filter(|(_, whole)| *whole);
        let topics: Vec<&str> = whole.map(|(name, _)| name).take(MOST_TOPICS).collect();
        let mut backoff = Backoff::new();
        while !topics.is_empty() && !stop.requested() {
            match ask(&config, &topics) {
                Ok(found) => return found.iter().for_each(say),
                Err(error) => tracing::debug!(%error, "kafka: the agent cannot read the retention of its topics"),
            }
            let wait = backoff.next_wait();
            for _ in 0..wait.as_millis().checked_div(LOOK.as_millis()).unwrap_or(0) {
                if stop.requested() {
                    return;
                }
                thread::sleep(LOOK);
            }
        }
    });
    if let Err(error) = thread {
        tracing::debug!(%error, "kafka: the agent cannot read the retention of its topics, because the system gives \
             no thread");
    }
}

fn ask(config: &ClientConfig, topics: &[&str]) -> Result<Vec<ConfigResource>, KafkaError> {
    let asked: Vec<ResourceSpecifier<'_>> = topics.iter().map(|topic| ResourceSpecifier::Topic(topic)).collect();
    let described = block(async {
        let admin: AdminClient<DefaultClientContext> = config.create()?;
        admin.describe_configs(&asked, &AdminOptions::new().request_timeout(Some(ASK))).await
    })?;
    // Topics that are not there, and those that we may not look at, have no settings.
    Ok(described.into_iter().flatten().collect())
}

fn say(resource: &ConfigResource) {
    let rdkafka::admin::OwnedResourceSpecifier::Topic(topic) = &resource.specifier else { return };
    let value = |name: &str| resource.get(name).and_then(|entry| entry.value.as_deref()).unwrap_or_default();
    if let Some(kept) = keeps(value("cleanup.policy"), value("message.timestamp.type"), value("retention.ms")) {
        tracing::warn!(
            topic,
            retention = %humantime::format_duration(kept),
            "kafka: with timestamp = \"arrival\" Kafka deletes a reading of this topic as soon as it arrives, if it \
             has waited at this gateway for longer than the topic's retention: raise retention.ms, or set timestamp \
             = \"delivery\""
        );
    }
}

/// How long a topic keeps a record by the time it bears; `None`: for ever, or by another time.
fn keeps(policy: &str, timestamp_type: &str, retention_ms: &str) -> Option<Duration> {
    let deletes = policy.split(',').any(|word| word.trim() == "delete");
    let kept = retention_ms.parse().ok().map(Duration::from_millis);
    kept.filter(|_| deletes && timestamp_type != "LogAppendTime")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_topic_that_deletes_by_the_senders_time_is_worth_a_warning() {
        let week = Some(Duration::from_secs(7 * 86_400));
        assert_eq!(keeps("delete", "CreateTime", "604800000"), week);
        assert_eq!(keeps("compact,delete", "", "604800000"), week);
        assert_eq!(keeps("delete", "CreateTime", "-1"), None);
        assert_eq!(keeps("compact", "CreateTime", "604800000"), None);
        assert_eq!(keeps("delete", "LogAppendTime", "604800000"), None);
        assert_eq!(keeps("", "", ""), None);
    }
}
