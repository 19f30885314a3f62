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

mod cluster;
mod judge;
mod plan;

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use self::cluster::{Cluster, ClusterError, Overview};
use self::judge::{Finding, Weight, altered, judge, judge_data, judge_transactions};
use self::plan::{Right, TopicPlan, cost, rights};
use super::config_file::ConfigFile;
use super::exit::{EXIT_CONFIG, EXIT_FAILED};
use super::out::{self, complain};
use crate::config::{self, Central};
use crate::route::template::TopicTemplate;
use crate::settings::{Delivery, Kafka, Secret};
use crate::{forward, watermark};

/// Gateways, unless said otherwise. A topic has its number of partitions for good: rather some too many.
const USUAL_GATEWAYS: u32 = 50;

/// Brokers, when they cannot be asked.
const USUAL_BROKERS: usize = 3;

/// A transaction each `linger` of a gateway should cost no more; beyond it a longer one is proposed.
const FAIR_CORES: f64 = 1.0;

/// `tidegate kafka-setup`
#[derive(Debug, clap::Args)]
#[command(after_help = "Exit code: 0 the topic is as it should be, 1 it is not, or Kafka does not answer, 78 wrong \
     configuration")]
pub struct Options {
    #[command(flatten)]
    config: ConfigFile,
    /// The number of gateways that there will be
    #[arg(long, value_name = "N", default_value_t = USUAL_GATEWAYS, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    gateways: u32,
    /// Create the watermark topic, or correct its settings
    #[arg(long)]
    apply: bool,
    /// The Kafka principal of the gateways
    #[arg(long, value_name = "NAME", default_value = "User:tidegate")]
    principal: String,
    /// The watermark topic, to which the gateways write what they delivered [default: that of the configuration]
    #[arg(long, value_name = "TOPIC")]
    watermark_topic: Option<String>,
}

/// Exit code 0 when the topic is as it should be.
#[must_use]
pub fn kafka_setup(options: &Options) -> ExitCode {
    let config = match config::load_central(&options.config.config) {
        Ok(config) => config,
        Err(problems) => {
            complain(problems);
            return ExitCode::from(EXIT_CONFIG);
        }
    };
    match tell(options, &config, &mut out::stdout()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(EXIT_FAILED),
        Err(error) => {
            complain(format_args!("kafka-setup: {error}"));
            ExitCode::from(EXIT_FAILED)
        }
    }
}

/// What should be, what it costs, what is there; true when the topic is as it should be.
fn tell(options: &Options, config: &Central, out: &mut impl Write) -> io::Result<bool> {
    let bootstrap = config.kafka.brokers.join(",");
    let cluster = Cluster::new(&forward::way_to_kafka(&config.kafka));
    let overview = cluster
        .as_ref()
        .map_err(ToString::to_string)
        .and_then(|cluster| cluster.overview().map_err(|error| error.to_string()));
    let brokers = overview.as_ref().map_or(USUAL_BROKERS, |overview| overview.brokers);
    let watermark_topic = options.watermark_topic.as_deref().unwrap_or(&config.kafka.watermark_topic);
    let plan = TopicPlan::new(watermark_topic, options.gateways, brokers);

    say_topic(&plan, &bootstrap, out)?;
    say_rights(&rights(&config.routes, watermark_topic), &bootstrap, options, out)?;
    say_cost(options.gateways, config.kafka.linger, out)?;
    say_compression(&config.kafka, out)?;
    writeln!(out, "\n# What the cluster has")?;
    let trouble = match (cluster, overview) {
        (Ok(cluster), Ok(overview)) => {
            say_missing_topics(config, &overview.topics, out)?;
            say_data_topics(config, &cluster, &overview.topics, out)?;
            let exactly_once = config.kafka.delivery == Delivery::ExactlyOnce;
            let coordinates = !exactly_once || coordinates(&cluster, &overview, out)?;
            match look(&cluster, &plan, options.apply, out) {
                Ok(good) => return Ok(good && coordinates),
                Err(LookError::Kafka(error)) => error.to_string(),
                Err(LookError::Say(error)) => return Err(error),
            }
        }
        (_, Err(error)) => format!("{error}; the above assumes three brokers"),
        (Err(error), Ok(_)) => error.to_string(),
    };
    writeln!(out, "{trouble}")?;
    Ok(false)
}

/// Can it coordinate transactions? That it may not be looked at is said, and is no failure.
fn coordinates(cluster: &Cluster, overview: &Overview, out: &mut impl Write) -> io::Result<bool> {
    // All brokers of a cluster are set alike, as a rule.
    let found = match overview.ids.first().map(|broker| cluster.transaction_log(*broker)) {
        Some(Ok(found)) => found,
        Some(Err(_)) | None => None,
    };
    let is_made = overview.topics.iter().any(|topic| topic == "__transaction_state");
    let finding = judge_transactions(found, overview.brokers, is_made);
    finding.iter().try_for_each(|finding| say_finding(finding, out))?;
    Ok(finding.is_none_or(|finding| finding.weight != Weight::Wrong))
}

/// Why it could not be looked at, or not be said what there is.
#[derive(Debug, thiserror::Error)]
enum LookError {
    #[error(transparent)]
    Kafka(#[from] ClusterError),
    #[error(transparent)]
    Say(#[from] io::Error),
}

/// Looks at the topic, sets it right if asked to; true when it is as it should be.
fn look(cluster: &Cluster, plan: &TopicPlan, apply: bool, out: &mut impl Write) -> Result<bool, LookError> {
    let name = &plan.name;
    let Some(found) = cluster.topic(name)? else {
        if !apply {
            writeln!(out, "topic {name} is not there, or this client may not see it; --apply creates it")?;
            return Ok(false);
        }
        cluster.create(plan)?;
        writeln!(out, "topic {name}: created with {} partitions, {} replicas", plan.partitions, plan.replicas)?;
        return Ok(true);
    };
    let findings = judge(plan, &found);
    findings.iter().try_for_each(|finding| say_finding(finding, out))?;
    if !findings.iter().any(|finding| finding.weight == Weight::Wrong) {
        writeln!(out, "topic {name} is there: {} partitions, {} replicas", found.partitions, found.replicas)?;
        return Ok(!findings.iter().any(|finding| finding.weight == Weight::Unknown));
    }
    if !apply {
        writeln!(out, "--apply corrects it")?;
        return Ok(false);
    }
    cluster.alter(name, &altered(plan, &found))?;
    let taken = taken(cluster, plan)?;
    let outcome = if taken { "corrected" } else { "Kafka did not take the settings; AlterConfigs is needed" };
    writeln!(out, "topic {name}: {outcome}")?;
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

fn say_finding(finding: &Finding, out: &mut impl Write) -> io::Result<()> {
    let word = match finding.weight {
        Weight::Wrong => "WRONG",
        Weight::Costly => "costly",
        Weight::Unknown => "unknown",
    };
    writeln!(out, "{word}: {}", finding.text)
}

fn say_topic(plan: &TopicPlan, bootstrap: &str, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "# The watermark topic: it holds how far each gateway has delivered")?;
    for (name, value, why) in watermark::TOPIC_SETTINGS {
        writeln!(out, "#   {name}={value}: {why}")?;
    }
    writeln!(out, "{}", plan.create_line(bootstrap))?;
    writeln!(out, "# If the topic exists and is set otherwise:")?;
    writeln!(out, "# {}", plan.alter_line(bootstrap))
}

fn say_rights(rights: &[Right], bootstrap: &str, options: &Options, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "\n# The rights that a gateway needs")?;
    if options.apply {
        writeln!(out, "# (--apply does not give them: run these lines)")?;
    }
    for right in rights {
        if right.is_everything() {
            writeln!(
                out,
                "# A route's \"to\" begins with a name, so it can be any topic; with a fixed beginning this line \
                 names fewer topics:"
            )?;
        }
        writeln!(out, "{}", right.line(bootstrap, &options.principal))?;
    }
    Ok(())
}

fn say_cost(gateways: u32, linger: Duration, out: &mut impl Write) -> io::Result<()> {
    writeln!(
        out,
        "\n# What {gateways} gateways cost with delivery = \"exactly-once\", if each always has readings to send"
    )?;
    let mut say = |linger: Duration| {
        let cost = cost(gateways, linger);
        writeln!(
            out,
            "# linger = {:?}: {:.0} transactions/s, {:.1} broker cores without replication, {:.1} MB a day for each \
             gateway besides the readings",
            linger,
            cost.transactions_per_second,
            cost.broker_cores,
            cost.gateway_bytes_per_day / 1e6
        )
    };
    say(linger)?;
    if cost(gateways, linger).broker_cores > FAIR_CORES {
        let mut proposals = [1, 10, 60].map(Duration::from_secs).into_iter().filter(|longer| *longer > linger);
        proposals.try_for_each(say)?;
        writeln!(
            out,
            "# A longer linger costs less, and so does delivery = \"at-least-once\" (a third of the brokers' work)."
        )?;
    }
    Ok(())
}

/// Whoever reads must be able to.
fn say_compression(kafka: &Kafka, out: &mut impl Write) -> io::Result<()> {
    let given = ["compression.type", "compression.codec"].iter().find_map(|name| kafka.options.get(*name));
    let codec = given.map_or(kafka.compression.name(), Secret::reveal);
    let who = match codec {
        "gzip" | "none" => "every Kafka client can read it as it is installed",
        _ => {
            "kafkajs, kafka-python and aiokafka cannot read it as they are installed (kafkajs: a codec package; \
             kafka-python: lz4, python-snappy or zstandard; aiokafka: cramjam); the Java client, librdkafka and franz-go can"
        }
    };
    writeln!(out, "\n# Compression of what the gateways send: {codec}; {who}")
}

/// Readings for a topic that is not there wait at the gateway until it is.
fn say_missing_topics(config: &Central, known: &[String], out: &mut impl Write) -> io::Result<()> {
    let mut said = Vec::new();
    let routed = config.routes.topics().map(TopicTemplate::prefix).filter(|(_, whole)| *whole);
    for name in routed.map(|(name, _)| name).chain(config.routes.redirected_to()) {
        if !known.iter().any(|known| known == name) && !said.contains(&name) {
            writeln!(
                out,
                "topic {name} of a route is not there, or this client may not see it: its readings would wait at the \
                 gateways"
            )?;
            said.push(name);
        }
    }
    Ok(())
}

/// Topics of routes that are looked at: one question each.
const MOST_DATA_TOPICS: usize = 20;

/// How long they keep what they are given, and by which time. What cannot be asked is no trouble here.
fn say_data_topics(config: &Central, cluster: &Cluster, known: &[String], out: &mut impl Write) -> io::Result<()> {
    let whole = config.routes.topics().map(TopicTemplate::prefix).filter(|(_, whole)| *whole);
    let names: BTreeSet<&str> = whole.map(|(name, _)| name).filter(|name| known.iter().any(|k| k == name)).collect();
    for name in names.into_iter().take(MOST_DATA_TOPICS) {
        if let Ok(Some(found)) = cluster.topic(name) {
            judge_data(name, &found, config.kafka.timestamp).iter().try_for_each(|text| writeln!(out, "{text}"))?;
        }
    }
    Ok(())
}
