//! What the centre must have for a fleet, from the configuration of one of its gateways. Pure.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::time::Duration;

use crate::route::Routes;
use crate::route::template::TopicTemplate;
use crate::watermark::{TOPIC_SETTINGS, partitions_for};

/// What all transactional ids of a fleet begin with: `tidegate-<buffer id>`.
const TRANSACTIONAL_ID_PREFIX: &str = "tidegate-";

/// The watermark topic as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TopicPlan {
    pub(super) name: String,
    pub(super) partitions: i32,
    pub(super) replicas: i32,
    /// Name and value, `min.insync.replicas` included.
    pub(super) settings: Vec<(&'static str, String)>,
}

impl TopicPlan {
    /// For so many gateways on so many brokers.
    pub(super) fn new(name: &str, gateways: u32, brokers: usize) -> Self {
        // Three copies, of which two confirm: one broker may be away and nothing is lost or refused.
        let (replicas, in_sync) = match brokers {
            0 | 1 => (1, 1),
            2 => (2, 1),
            _ => (3, 2),
        };
        let mut settings: Vec<_> = TOPIC_SETTINGS.iter().map(|(name, value, _)| (*name, (*value).to_owned())).collect();
        settings.push((MIN_INSYNC, in_sync.to_string()));
        Self { name: name.to_owned(), partitions: partitions_for(gateways), replicas, settings }
    }

    /// The command that creates it.
    pub(super) fn create_line(&self, bootstrap: &str) -> String {
        let mut line = format!(
            "kafka-topics.sh --bootstrap-server {bootstrap} --create --if-not-exists --topic {} --partitions {} \
             --replication-factor {}",
            self.name, self.partitions, self.replicas
        );
        for (name, value) in &self.settings {
            // Writing to a String cannot fail.
            write!(line, " --config {name}={value}").unwrap_or_default();
        }
        line
    }

    /// The command that sets an existing one right.
    pub(super) fn alter_line(&self, bootstrap: &str) -> String {
        let settings: Vec<String> = self.settings.iter().map(|(name, value)| format!("{name}={value}")).collect();
        format!(
            "kafka-configs.sh --bootstrap-server {bootstrap} --alter --entity-type topics --entity-name {} \
             --add-config {}",
            self.name,
            settings.join(",")
        )
    }
}

/// Copies that must have a record before it counts as written.
pub(super) const MIN_INSYNC: &str = "min.insync.replicas";

/// A right that an edge principal needs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Right {
    /// `--topic` or `--transactional-id`, and the name.
    pub(super) resource: Resource,
    /// Is the name only a beginning?
    pub(super) prefixed: bool,
    /// Operations.
    pub(super) operations: &'static [&'static str],
}

/// Of what.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Resource {
    /// Transactions.
    TransactionalId(String),
    /// A Kafka topic.
    Topic(String),
}

/// The rights of an edge principal, and nothing more.
pub(super) fn rights(routes: &Routes, watermark_topic: &str) -> Vec<Right> {
    let mut rights = vec![
        Right {
            resource: Resource::TransactionalId(TRANSACTIONAL_ID_PREFIX.to_owned()),
            prefixed: true,
            operations: &["Write", "Describe"],
        },
        Right {
            resource: Resource::Topic(watermark_topic.to_owned()),
            prefixed: false,
            // The last to see that it is compacted.
            operations: &["Read", "Write", "Describe", "DescribeConfigs"],
        },
    ];
    let redirected = routes.redirected_to().map(|topic| (topic, true));
    let topics: BTreeSet<(&str, bool)> = routes.topics().map(TopicTemplate::prefix).chain(redirected).collect();
    for (name, whole) in topics {
        // A template that begins with a name can make any topic.
        let (name, prefixed) = if name.is_empty() { ("*", false) } else { (name, !whole) };
        let resource = Resource::Topic(name.to_owned());
        rights.push(Right { resource, prefixed, operations: &["Write", "Describe"] });
    }
    rights
}

impl Right {
    /// The command that gives it.
    pub(super) fn line(&self, bootstrap: &str, principal: &str) -> String {
        let (kind, name) = match &self.resource {
            Resource::TransactionalId(name) => ("--transactional-id", name),
            Resource::Topic(name) => ("--topic", name),
        };
        let operations: Vec<String> =
            self.operations.iter().map(|operation| format!("--operation {operation}")).collect();
        let pattern = if self.prefixed { "prefixed" } else { "literal" };
        format!(
            "kafka-acls.sh --bootstrap-server {bootstrap} --add --allow-principal {} {} {kind} {} \
             --resource-pattern-type {pattern}",
            quoted(&full_principal(principal)),
            operations.join(" "),
            quoted(name),
        )
    }

    /// May it touch every topic?
    pub(super) fn is_everything(&self) -> bool {
        self.resource == Resource::Topic("*".to_owned())
    }
}

/// `gateways` means `User:gateways`.
fn full_principal(principal: &str) -> String {
    if principal.contains(':') { principal.to_owned() } else { format!("User:{principal}") }
}

/// For a shell.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | ':' | '/' | '=' | ',' | '@');
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

/// What a fleet costs when each gateway always has something to send, so that it makes a transaction each `linger`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Cost {
    /// Transactions a second, of all.
    pub(super) transactions_per_second: f64,
    /// Cores of brokers, before replication.
    pub(super) broker_cores: f64,
    /// Bytes a day on the wire of one gateway, besides the readings.
    pub(super) gateway_bytes_per_day: f64,
}

/// Broker CPU of a transaction that carries one batch; measured on Apache Kafka 4.1, one broker, 400 producers, warm.
const BROKER_SECONDS_A_TRANSACTION: f64 = 0.003;

/// Bytes on the wire, in both directions, that a transaction costs whatever it carries: 1,228 against 372 with one
/// reading in it (`cargo bench --bench transactions -- wire`).
const BYTES_A_TRANSACTION: f64 = 860.0;

const SECONDS_A_DAY: f64 = 86_400.0;

/// With this `linger`.
pub(super) fn cost(gateways: u32, linger: Duration) -> Cost {
    // Commits follow each other no faster than the link's round trips; 10 ms is a short one.
    let each = 1.0 / linger.max(SHORTEST_TRANSACTION).as_secs_f64();
    let all = each * f64::from(gateways);
    Cost {
        transactions_per_second: all,
        broker_cores: all * BROKER_SECONDS_A_TRANSACTION,
        gateway_bytes_per_day: each * BYTES_A_TRANSACTION * SECONDS_A_DAY,
    }
}

const SHORTEST_TRANSACTION: Duration = Duration::from_millis(10);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, Env};

    fn routes(tables: &[(&str, &str)]) -> Routes {
        let mut text = String::from(
            "[[listen]]\nname = \"a\"\naddress = \"127.0.0.1:1\"\n[kafka]\nbrokers = [\"k:1\"]\n[agent]\ndata_dir = \"/x\"\n",
        );
        for (from, to) in tables {
            write!(text, "[[route]]\nfrom = \"{from}\"\nto = \"{to}\"\n").unwrap();
        }
        let env = Env::of("gw");
        config::parse(&text, "t", &env).unwrap().routes
    }

    #[test]
    fn the_rights_are_those_of_the_routes_and_no_more() {
        let routes = routes(&[("a/#", "plain"), ("b/{x}/#", "sensors.{x}"), ("c/{x}", "sensors.{x}")]);
        let lines: Vec<String> = rights(&routes, "w.m").iter().map(|right| right.line("k:1", "gate's")).collect();
        let begin = r"kafka-acls.sh --bootstrap-server k:1 --add --allow-principal 'User:gate'\''s' --operation";
        assert_eq!(
            lines,
            [
                format!(
                    "{begin} Write --operation Describe --transactional-id tidegate- --resource-pattern-type prefixed"
                ),
                format!(
                    "{begin} Read --operation Write --operation Describe --operation DescribeConfigs --topic w.m \
                     --resource-pattern-type literal"
                ),
                format!("{begin} Write --operation Describe --topic plain --resource-pattern-type literal"),
                format!("{begin} Write --operation Describe --topic sensors. --resource-pattern-type prefixed"),
            ]
        );
    }

    #[test]
    fn a_template_that_begins_with_a_name_needs_a_right_on_all_topics_and_that_is_known() {
        let rights = rights(&routes(&[("{x}/#", "{x}")]), "w");
        let line = rights[2].line("k:1", "Group:edge");
        assert!(line.contains("--allow-principal Group:edge"), "{line}");
        assert!(line.ends_with("--topic '*' --resource-pattern-type literal"), "{line}");
        assert_eq!(rights.iter().filter(|right| right.is_everything()).count(), 1);
    }

    #[test]
    fn the_topic_fits_the_fleet_and_the_cluster() {
        let plan = |gateways, brokers| {
            let plan = TopicPlan::new("w", gateways, brokers);
            let in_sync = plan.settings.iter().find(|(name, _)| *name == MIN_INSYNC).unwrap().1.clone();
            (plan.partitions, plan.replicas, in_sync)
        };
        assert_eq!(plan(0, 1), (1, 1, "1".into()));
        assert_eq!(plan(200, 2), (200, 2, "1".into()));
        assert_eq!(plan(5000, 9), (1000, 3, "2".into()));
        let line = TopicPlan::new("w", 7, 3).create_line("k:1");
        assert!(line.contains("--if-not-exists --topic w --partitions 7 --replication-factor 3"), "{line}");
        assert!(line.contains(" --config cleanup.policy=compact") && line.ends_with("min.insync.replicas=2"), "{line}");
    }

    #[test]
    fn the_cost_is_the_measured_one() {
        let cost = cost(5000, Duration::from_secs(1));
        assert!((cost.broker_cores - 15.0).abs() < 0.001, "{cost:?}");
        assert!((cost.gateway_bytes_per_day - 74_304_000.0).abs() < 1.0, "{cost:?}");
    }
}
