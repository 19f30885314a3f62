//! The watermark topic as it is against as it should be. Pure.

use std::time::Duration;

use super::plan::{MIN_INSYNC, TopicPlan};
use crate::settings::Timestamp;

/// A topic as Kafka describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TopicFound {
    pub(super) partitions: i32,
    /// Of the partition that has fewest.
    pub(super) replicas: i32,
    /// All settings in force; `None` when we may not ask.
    pub(super) settings: Option<Vec<Setting>>,
}

/// How a broker is set to keep transactions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TransactionLog {
    /// `transaction.state.log.replication.factor`
    pub(super) replicas: usize,
    /// `transaction.state.log.min.isr`
    pub(super) in_sync: usize,
}

/// A cluster that is too small for its own setting has no coordinator for transactions, and says so nowhere. `is_made`: the
/// internal topic was made before, so the number of its copies is decided.
pub(super) fn judge_transactions(found: Option<TransactionLog>, brokers: usize, is_made: bool) -> Option<Finding> {
    let Some(TransactionLog { replicas, in_sync }) = found else {
        let text = "this client may not read the brokers' settings (DescribeConfigs on the cluster); check that \
             transaction.state.log.replication.factor and transaction.state.log.min.isr are not more than the number \
             of brokers";
        return Some(Finding { weight: Weight::Unknown, text: text.to_owned() });
    };
    if is_made || replicas <= brokers && in_sync <= brokers {
        return None;
    }
    let text = format!(
        "the cluster has {brokers} broker{} and transaction.state.log.replication.factor={replicas}, \
         transaction.state.log.min.isr={in_sync}: it cannot coordinate transactions, so gateways with delivery = \
         \"exactly-once\" wait. Start more brokers, or set both in server.properties to {brokers} at most and \
         restart the brokers",
        if brokers == 1 { "" } else { "s" }
    );
    Some(Finding { weight: Weight::Wrong, text })
}

/// A setting in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Setting {
    pub(super) name: String,
    pub(super) value: String,
    /// Set for this topic, not inherited.
    pub(super) own: bool,
}

/// What is to be said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Finding {
    pub(super) weight: Weight,
    pub(super) text: String,
}

/// What happens next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Weight {
    /// Must be mended, and `--apply` mends it.
    Wrong,
    /// Works, and costs; `--apply` does not touch it.
    Costly,
    /// Could not be looked at.
    Unknown,
}

impl TopicFound {
    fn setting(&self, name: &str) -> Option<&str> {
        self.settings.as_ref()?.iter().find(|setting| setting.name == name).map(|setting| &*setting.value)
    }
}

/// What is wrong, and what it costs.
pub(super) fn judge(plan: &TopicPlan, found: &TopicFound) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut say = |weight, text| findings.push(Finding { weight, text });
    let name = &plan.name;
    if found.settings.is_none() {
        say(
            Weight::Unknown,
            format!(
                "topic {name}: this client may not read its settings (DescribeConfigs); check that they are as below"
            ),
        );
    }
    for (setting, wanted) in &plan.settings {
        let Some(is) = found.setting(setting).filter(|is| is != wanted) else { continue };
        if *setting == MIN_INSYNC && at_least(is, wanted) {
            continue;
        }
        let why = if *setting == "cleanup.policy" { ": watermarks would be lost" } else { "" };
        say(Weight::Wrong, format!("topic {name} has {setting}={is}; it should be {wanted}{why}"));
    }
    if found.partitions < plan.partitions {
        say(
            Weight::Costly,
            format!(
                "topic {name} has {} partitions; {} fit this fleet. Gateways that share a partition read more after \
                 a start and wait for each other. More partitions move the gateways' watermarks: add partitions only \
                 when all gateways have been stopped cleanly (kafka-topics.sh --alter --topic {name} --partitions \
                 {})",
                found.partitions, plan.partitions, plan.partitions
            ),
        );
    }
    if found.replicas < plan.replicas {
        say(
            Weight::Costly,
            format!(
                "topic {name} has {} replicas; with {} no watermark is lost when a broker is lost \
                 (kafka-reassign-partitions.sh)",
                found.replicas, plan.replicas
            ),
        );
    }
    findings
}

/// What the time that records bear means for a topic of readings.
pub(super) fn judge_data(name: &str, found: &TopicFound, timestamp: Timestamp) -> Vec<String> {
    let setting = |name| found.setting(name).unwrap_or_default();
    let time = |name| setting(name).parse().ok().map(Duration::from_millis);
    if setting("message.timestamp.type") == "LogAppendTime" {
        return vec![format!(
            "topic {name} gives records Kafka's own time, and that is right: the header tidegate-arrived has the \
             time of arrival"
        )];
    }
    let mut said = Vec::new();
    let deletes = setting("cleanup.policy").split(',').any(|word| word.trim() == "delete");
    if let Some(kept) = time("retention.ms").filter(|_| deletes && timestamp == Timestamp::Arrival) {
        said.push(format!(
            "topic {name} keeps records for {}, and their time is the time of arrival: Kafka deletes a reading as \
             soon as it comes, if it has waited longer at a gateway. Raise retention.ms, or set timestamp = \
             \"delivery\"",
            humantime::format_duration(kept)
        ));
    }
    if let Some(oldest) = time("message.timestamp.before.max.ms").filter(|oldest| *oldest < FOR_EVER) {
        said.push(match timestamp {
            Timestamp::Arrival => format!(
                "topic {name} refuses records older than {} (message.timestamp.before.max.ms): readings that waited \
                 longer get the time of delivery",
                humantime::format_duration(oldest)
            ),
            Timestamp::Delivery => format!(
                "topic {name} refuses records older than {} (message.timestamp.before.max.ms): readings of a gateway \
                 whose clock is further behind wait until the gateway has learned Kafka's time",
                humantime::format_duration(oldest)
            ),
        });
    }
    said
}

/// Kafka's word for it is 292 million years; a century is as good.
const FOR_EVER: Duration = Duration::from_secs(100 * 365 * 86_400);

fn at_least(is: &str, wanted: &str) -> bool {
    matches!((is.parse::<u64>(), wanted.parse::<u64>()), (Ok(is), Ok(wanted)) if is >= wanted)
}

/// All settings that the topic has of its own, with the plan's in place of what differs: Kafka's old request `AlterConfigs`, the one
/// that librdkafka offers here, forgets what it is not told again.
pub(super) fn altered(plan: &TopicPlan, found: &TopicFound) -> Vec<(String, String)> {
    let planned = |name: &str| plan.settings.iter().any(|(planned, _)| *planned == name);
    let kept = found.settings.iter().flatten().filter(|setting| setting.own && !planned(&setting.name));
    let kept = kept.map(|setting| (setting.name.clone(), setting.value.clone()));
    let wanted = plan.settings.iter().map(|(name, value)| {
        let higher = found.setting(name).filter(|is| *name == MIN_INSYNC && at_least(is, value));
        ((*name).to_owned(), higher.unwrap_or(value).to_owned())
    });
    kept.chain(wanted).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> TopicPlan {
        TopicPlan::new("w", 10, 3)
    }

    fn right() -> TopicFound {
        let own = |(name, value): &(&str, String)| Setting { name: (*name).into(), value: value.clone(), own: true };
        TopicFound { partitions: 10, replicas: 3, settings: Some(plan().settings.iter().map(own).collect()) }
    }

    fn with(name: &str, value: &str) -> TopicFound {
        let mut found = right();
        for setting in found.settings.iter_mut().flatten().filter(|setting| setting.name == name) {
            value.clone_into(&mut setting.value);
        }
        found
    }

    fn weights(found: &TopicFound) -> Vec<Weight> {
        judge(&plan(), found).iter().map(|finding| finding.weight).collect()
    }

    #[test]
    fn what_was_created_by_the_plan_is_right() {
        assert_eq!(judge(&plan(), &right()), []);
        assert_eq!(weights(&with(MIN_INSYNC, "3")), []);
        assert_eq!(weights(&TopicFound { partitions: 50, replicas: 5, ..right() }), []);
    }

    #[test]
    fn each_way_of_being_wrong_is_named() {
        for (name, value) in [
            ("cleanup.policy", "delete"),
            ("cleanup.policy", "compact,delete"),
            ("segment.bytes", "1073741824"),
            (MIN_INSYNC, "1"),
        ] {
            let findings = judge(&plan(), &with(name, value));
            assert_eq!(findings.len(), 1, "{name}");
            assert_eq!(findings[0].weight, Weight::Wrong);
            assert!(findings[0].text.contains(&format!("{name}={value}")), "{findings:?}");
        }
        assert_eq!(weights(&TopicFound { partitions: 9, ..right() }), [Weight::Costly]);
        assert_eq!(weights(&TopicFound { replicas: 1, ..right() }), [Weight::Costly]);
        assert_eq!(weights(&TopicFound { settings: None, ..right() }), [Weight::Unknown]);
    }

    #[test]
    fn a_cluster_too_small_for_its_log_of_transactions_is_told() {
        let log = |replicas, in_sync| Some(TransactionLog { replicas, in_sync });
        let weight =
            |found, brokers, is_made| judge_transactions(found, brokers, is_made).map(|finding| finding.weight);
        assert_eq!(weight(log(3, 2), 1, false), Some(Weight::Wrong));
        assert_eq!(weight(log(1, 2), 1, false), Some(Weight::Wrong));
        assert_eq!(weight(log(1, 1), 1, false), None);
        assert_eq!(weight(log(3, 2), 3, false), None);
        assert_eq!(weight(log(3, 2), 1, true), None);
        assert_eq!(weight(None, 1, false), Some(Weight::Unknown));
    }

    #[test]
    fn a_topic_of_readings_is_judged_by_the_time_that_they_bear() {
        let topic = |settings: &[(&str, &str)]| {
            let own =
                |(name, value): &(&str, &str)| Setting { name: (*name).into(), value: (*value).into(), own: true };
            TopicFound { partitions: 1, replicas: 1, settings: Some(settings.iter().map(own).collect()) }
        };
        let week = [("cleanup.policy", "delete"), ("retention.ms", "604800000")];
        let usual = [week[0], week[1], ("message.timestamp.before.max.ms", "9223372036854775807")];
        assert_eq!(judge_data("d", &topic(&usual), Timestamp::Delivery), Vec::<String>::new());
        let said = judge_data("d", &topic(&usual), Timestamp::Arrival);
        assert!(said.len() == 1 && said[0].contains("keeps records for 7days"), "{said:?}");
        let strict = [week[0], week[1], ("message.timestamp.before.max.ms", "3600000")];
        assert_eq!(judge_data("d", &topic(&strict), Timestamp::Arrival).len(), 2);
        assert_eq!(judge_data("d", &topic(&strict), Timestamp::Delivery).len(), 1);
        let kafkas = [week[0], week[1], ("message.timestamp.type", "LogAppendTime")];
        assert!(judge_data("d", &topic(&kafkas), Timestamp::Arrival)[0].contains("and that is right"));
        assert_eq!(
            judge_data("d", &TopicFound { settings: None, ..topic(&[]) }, Timestamp::Arrival),
            Vec::<String>::new()
        );
    }

    #[test]
    fn setting_it_right_keeps_the_topics_other_settings() {
        let mut found = with("cleanup.policy", "delete");
        found.settings.as_mut().unwrap().extend([
            Setting { name: "max.message.bytes".into(), value: "7".into(), own: true },
            Setting { name: "retention.ms".into(), value: "9".into(), own: false },
        ]);
        let altered = altered(&plan(), &found);
        assert!(altered.contains(&("max.message.bytes".into(), "7".into())));
        assert!(altered.contains(&("cleanup.policy".into(), "compact".into())));
        assert!(altered.iter().all(|(name, _)| name != "retention.ms"));
        assert_eq!(altered.len(), plan().settings.len() + 1);
    }
}
