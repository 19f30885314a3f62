//! `tidegate kafka-setup`: what the centre must have for a fleet of gateways; prints it, compares it with what is there,
//! and with `--apply` makes it.
//!
//! * **The watermark topic** ([`crate::watermark`]): compacted, with partitions for the fleet and copies for the cluster.
//!   What is missing is created and what is set wrong is set right; its number of partitions is never changed, for a
//!   gateway finds its watermark by that number.
//! * **The rights of an edge principal**: transactions under its own prefix, writing the topics of its routes, reading and
//!   writing the watermark topic. As `kafka-acls.sh` lines only: librdkafka's administration of rights is not in rdkafka
//!   0.39.
//! * **What such a fleet costs** at the `linger` of the configuration.
//!
//! Doing it twice does no more than doing it once. Exit code 0 when the topic is as it should be, 1 when not or when it
//! could not be looked at, 78 when the configuration is wrong.
//!
//! `plan.rs` says what should be, `judge.rs` compares, `cluster.rs` asks and tells Kafka.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "this is the command line")]

mod cluster;
mod judge;
mod plan;

use std::process::ExitCode;
use std::time::Duration;

use self::cluster::{Cluster, ClusterError};
use self::judge::{Finding, Weight, altered, judge};
use self::plan::{Right, TopicPlan, cost, rights};
use super::{ConfigFile, EXIT_CONFIG, EXIT_FAILED};
use crate::config::{self, Config};
use crate::route::template::TopicTemplate;
use crate::{forward, watermark};

/// Gateways, unless said otherwise. A topic has its number of partitions for good: rather some too many.
const USUAL_GATEWAYS: u32 = 50;

/// Brokers, when they cannot be asked.
const USUAL_BROKERS: usize = 3;

/// A transaction each `linger` of a gateway should cost no more; beyond it a longer one is proposed.
const FAIR_CORES: f64 = 1.0;

/// `tidegate kafka-setup`
#[derive(Debug, clap::Args)]
#[command(after_help = "Exit code: 0 the topic is as it should be, 1 not or Kafka is away, 78 wrong configuration")]
pub struct Options {
    #[command(flatten)]
    config: ConfigFile,
    /// How many gateways there will be
    #[arg(long, value_name = "N", default_value_t = USUAL_GATEWAYS, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    gateways: u32,
    /// Create the topic, or set it right
    #[arg(long)]
    apply: bool,
    /// As whom the gateways come to Kafka
    #[arg(long, value_name = "NAME", default_value = "User:tidegate")]
    principal: String,
    /// Where the gateways say what they delivered [default: that of the configuration]
    #[arg(long, value_name = "TOPIC")]
    watermark_topic: Option<String>,
}

/// Exit code 0 when the topic is as it should be.
#[must_use]
pub fn kafka_setup(options: &Options) -> ExitCode {
    let config = match config::load(&options.config.config) {
        Ok(config) => config,
        Err(problems) => {
            eprintln!("{problems}");
            return ExitCode::from(EXIT_CONFIG);
        }
    };
    let bootstrap = config.kafka.brokers.join(",");
    let cluster = Cluster::new(&forward::way_to_kafka(&config.kafka));
    let overview = cluster
        .as_ref()
        .map_err(ToString::to_string)
        .and_then(|cluster| cluster.overview().map_err(|error| error.to_string()));
    let brokers = overview.as_ref().map_or(USUAL_BROKERS, |overview| overview.brokers);
    let watermark_topic = options.watermark_topic.as_deref().unwrap_or(&config.kafka.watermark_topic);
    let plan = TopicPlan::new(watermark_topic, options.gateways, brokers);

    say_topic(&plan, &bootstrap);
    say_rights(&rights(&config.routes, watermark_topic), &bootstrap, options);
    say_cost(options.gateways, config.kafka.linger);
    println!("\n# What is there");
    let good = match (cluster, overview) {
        (Ok(cluster), Ok(overview)) => {
            say_missing_topics(&config, &overview.topics);
            look(&cluster, &plan, options.apply).unwrap_or_else(|error| {
                println!("{error}");
                false
            })
        }
        (_, Err(error)) => {
            println!("{error}; three brokers are assumed above");
            false
        }
        (Err(error), Ok(_)) => {
            println!("{error}");
            false
        }
    };
    if good { ExitCode::SUCCESS } else { ExitCode::from(EXIT_FAILED) }
}

/// Looks at the topic, sets it right if asked to; true when it is as it should be.
fn look(cluster: &Cluster, plan: &TopicPlan, apply: bool) -> Result<bool, ClusterError> {
    let name = &plan.name;
    let Some(found) = cluster.topic(name)? else {
        if !apply {
            println!("topic {name} is not there, or we may not see it; --apply creates it");
            return Ok(false);
        }
        cluster.create(plan)?;
        println!("topic {name}: created with {} partitions, {} replicas", plan.partitions, plan.replicas);
        return Ok(true);
    };
    let findings = judge(plan, &found);
    findings.iter().for_each(say_finding);
    if !findings.iter().any(|finding| finding.weight == Weight::Wrong) {
        println!("topic {name} is there: {} partitions, {} replicas", found.partitions, found.replicas);
        return Ok(!findings.iter().any(|finding| finding.weight == Weight::Unknown));
    }
    if !apply {
        println!("--apply sets it right");
        return Ok(false);
    }
    cluster.alter(name, &altered(plan, &found))?;
    let taken = taken(cluster, plan)?;
    println!(
        "topic {name}: {}",
        if taken { "set right" } else { "Kafka did not take the settings; AlterConfigs is needed" }
    );
    Ok(taken)
}

/// Settings are in force a moment later; not at all when Kafka refused them.
fn taken(cluster: &Cluster, plan: &TopicPlan) -> Result<bool, ClusterError> {
    for _ in 0..LOOKS {
        let found = cluster.topic(&plan.name)?;
        if found.is_some_and(|found| judge(plan, &found).iter().all(|finding| finding.weight != Weight::Wrong)) {
            return Ok(true);
        }
        std::thread::sleep(BETWEEN_LOOKS);
    }
    Ok(false)
}

/// Ten seconds.
const LOOKS: u32 = 50;
const BETWEEN_LOOKS: Duration = Duration::from_millis(200);

fn say_finding(finding: &Finding) {
    let word = match finding.weight {
        Weight::Wrong => "WRONG",
        Weight::Costly => "costly",
        Weight::Unknown => "unknown",
    };
    println!("{word}: {}", finding.text);
}

fn say_topic(plan: &TopicPlan, bootstrap: &str) {
    println!("# The watermark topic: how far each gateway has delivered");
    for (name, value, why) in watermark::TOPIC_SETTINGS {
        println!("#   {name}={value}: {why}");
    }
    println!("{}", plan.create_line(bootstrap));
    println!("# If it is there already and set otherwise:");
    println!("# {}", plan.alter_line(bootstrap));
}

fn say_rights(rights: &[Right], bootstrap: &str, options: &Options) {
    println!("\n# The rights of a gateway, and nothing more");
    if options.apply {
        println!("# (--apply does not give them: please run these lines)");
    }
    for right in rights {
        if right.is_everything() {
            println!(
                "# A route's topic begins with a name, so it can be any topic; a fixed beginning would bound this:"
            );
        }
        println!("{}", right.line(bootstrap, &options.principal));
    }
}

fn say_cost(gateways: u32, linger: Duration) {
    println!(
        "\n# What {gateways} gateways cost with delivery = \"exactly-once\", if each always has something to send"
    );
    let say = |linger: Duration| {
        let cost = cost(gateways, linger);
        println!(
            "# linger = {:?}: {:.0} transactions/s, {:.1} broker cores before replication, {:.1} MB a day and gateway \
             besides the readings",
            linger,
            cost.transactions_per_second,
            cost.broker_cores,
            cost.gateway_bytes_per_day / 1e6
        );
    };
    say(linger);
    if cost(gateways, linger).broker_cores > FAIR_CORES {
        let proposals = [1, 10, 60].map(Duration::from_secs).into_iter().filter(|longer| *longer > linger);
        proposals.for_each(say);
        println!("# A longer linger, or delivery = \"at-least-once\" (a third of the broker's work), costs less.");
    }
}

/// Readings for a topic that is not there wait at the gateway until it is.
fn say_missing_topics(config: &Config, known: &[String]) {
    let mut said = Vec::new();
    for (name, _) in config.routes.topics().map(TopicTemplate::prefix).filter(|(_, whole)| *whole) {
        if !known.iter().any(|known| known == name) && !said.contains(&name) {
            println!(
                "topic {name} of a route is not there, or we may not see it: its readings would wait at the gateways"
            );
            said.push(name);
        }
    }
}
