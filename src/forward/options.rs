//! The properties of librdkafka: those that Tidegate fixes because a promise rests on them, those it sets and an
//! operator may override, and the check of `[kafka.options]` by librdkafka itself, offline.

use std::collections::BTreeMap;

use rdkafka::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::KafkaError;
use rdkafka::producer::{BaseProducer, DefaultProducerContext};

use super::timeouts::BATCH_BYTES;
use super::timeouts::Timeouts;
use crate::settings::{Delivery, Kafka, Secret};

/// Properties that `[kafka.options]` may not set, each with the reason. Aliases stand beside their property.
pub(super) const REFUSED: &[(&str, &str)] = &[
    ("acks", ACKS),
    ("request.required.acks", ACKS),
    ("enable.idempotence", "without it librdkafka repeats and reorders readings when it tries again"),
    ("enable.gapless.guarantee", GAPLESS),
    ("max.in.flight", IN_FLIGHT),
    ("max.in.flight.requests.per.connection", IN_FLIGHT),
    ("retries", RETRIES),
    ("message.send.max.retries", RETRIES),
    ("message.timeout.ms", TIMEOUT),
    ("delivery.timeout.ms", TIMEOUT),
    ("transactional.id", "[kafka] delivery decides about transactions"),
    ("transaction.timeout.ms", "[kafka] delivery decides about transactions"),
    ("queuing.strategy", "any other order than first in, first out sends readings out of order"),
    ("delivery.report.only.error", "the agent needs each confirmation: a reading leaves the buffer only by it"),
    ("dr_cb", CALLBACK),
    ("dr_msg_cb", CALLBACK),
    ("error_cb", CALLBACK),
    ("log_cb", CALLBACK),
    ("stats_cb", CALLBACK),
    ("log.queue", CALLBACK),
    ("enabled_events", CALLBACK),
    ("opaque", CALLBACK),
    ("statistics.interval.ms", "nothing reads librdkafka's statistics; the agent's metrics are at [http] listen"),
    ("linger.ms", LINGER),
    ("queue.buffering.max.ms", LINGER),
    ("bootstrap.servers", BROKERS),
    ("metadata.broker.list", BROKERS),
    ("partitioner_cb", PARTITIONER_CALLBACK),
    ("test.mock.num.brokers", "a mock Kafka inside the agent would confirm readings, and they would be lost"),
    ("test.mock.broker.rtt", "it is for librdkafka's mock Kafka only"),
    ("plugin.library.paths", "a plugin inside the agent could lose readings"),
    ("builtin.features", "it is read-only"),
];

const ACKS: &str = "acks=all: a reading leaves the buffer only when all in-sync replicas have it";
const GAPLESS: &str = "without it later readings overtake a refused batch";
const IN_FLIGHT: &str = "with more than one request in flight, a batch that Kafka does not have can count as \
     delivered";
const RETRIES: &str = "the agent never gives up a reading: it stays until Kafka confirms it";
const TIMEOUT: &str = "an outage may last weeks, so no time-out may end the wait for a confirmation";
const LINGER: &str = "[kafka] linger says how long a batch waits for more readings";
const BROKERS: &str = "[kafka] brokers says where Kafka is";
const CALLBACK: &str = "the agent itself uses it to work with librdkafka";
const PARTITIONER_CALLBACK: &str = "it cannot be given as text; partitioner chooses one by name";

/// The value of `client.dns.lookup` that is refused.
const CANONICAL: &str = "resolve_canonical_bootstrap_servers_only";

/// Values of `partitioner` that send one key to several partitions.
const RANDOM_PARTITIONERS: &[&str] = &["random", "consistent_random", "murmur2_random", "fnv1a_random"];

/// Fixed: a promise rests on each. All of them are in [`REFUSED`].
const FIXED: &[(&str, &str)] = &[
    ("enable.idempotence", "true"),
    ("acks", "all"),
    ("enable.gapless.guarantee", "true"),
    // Kafka takes any first sequence number from a producer it does not know on a partition. When it refused the very
    // first batch for now (too few replicas) and takes the second, librdkafka concludes from that confirmation that
    // the first one has arrived, and reports it delivered. With one request in flight it takes the second one back.
    ("max.in.flight.requests.per.connection", "1"),
    ("message.timeout.ms", "0"), // infinite
    ("linger.ms", "0"),          // Tidegate makes the batches; librdkafka sends what is there
];

/// Set unless `[kafka.options]` says otherwise: property, value, other names of the property.
const DEFAULTS: &[(&str, &str, &[&str])] = &[
    // A batch of one reading each of a few thousand sensors; memory is bounded by it twice (raw and compressed).
    ("batch.size", BATCH_BYTES, &[]),
    // 5,000 gateways at 2 s are 2,500 attempts a second at worst, and the link is used within 2 s of its return.
    ("reconnect.backoff.max.ms", "2000", &[]),
    // How long a topic may be unknown before its readings are parked: all others wait meanwhile. Where brokers create
    // topics by themselves it is there sooner, or parked for a moment.
    ("topic.metadata.propagation.max.ms", "2000", &[]),
    // The partition of a key is the one that Java clients choose, and a key never moves.
    ("partitioner", "murmur2", &[]),
    // Mobile networks forget idle connections without a word.
    ("socket.keepalive.enable", "true", &[]),
    // The vendored OpenSSL has no certificates of its own: look where the distributions keep theirs.
    ("ssl.ca.location", "probe", &["ssl.ca.pem", "ssl.ca.certificate.stores"]),
];

/// What the producer of a parked lane does otherwise: it asks often, so a missing topic shall be known soon.
const LANE: &[(&str, &str)] = &[("topic.metadata.propagation.max.ms", "1000")];

/// A group of a lane may end as 2,000 dead letters, each declared with the lane's watermark in 500 bytes or more.
const LANE_QUEUE_KIB: u64 = 4096;

/// The configuration of a parked lane's producer.
pub(super) fn for_lanes(config: &mut ClientConfig) {
    for (name, value) in LANE {
        config.set(*name, *value);
    }
    let queue = config.get(QUEUE_KIB).and_then(|kib| kib.parse::<u64>().ok()).unwrap_or_default();
    config.set(QUEUE_KIB, queue.max(LANE_QUEUE_KIB).to_string());
}

/// The configuration of a producer.
pub(super) fn client_config(kafka: &Kafka, agent_id: &str) -> ClientConfig {
    let mut config = base(&kafka.options, kafka.largest_record_bytes);
    if !["compression.type", "compression.codec"].iter().any(|name| kafka.options.contains_key(*name)) {
        config.set("compression.type", kafka.compression.name());
        if let (Some(level), false) = (kafka.compression.level(), kafka.options.contains_key("compression.level")) {
            config.set("compression.level", level);
        }
    }
    if !kafka.options.contains_key("client.id") {
        config.set("client.id", format!("tidegate-{agent_id}"));
    }
    config.set("bootstrap.servers", kafka.brokers.join(","));
    // Two lines a request: what brokers answer to a batch that librdkafka sends again by itself.
    listen(&mut config, "msg");
    config
}

/// What a transactional producer has otherwise, and why. How long it waits for Kafka is `timeouts.rs`'s.
const TRANSACTIONAL: &[(&str, &str)] = &[
    // A refused record ends the transaction, not the producer: nothing overtakes it, because nothing is committed.
    ("enable.gapless.guarantee", "false"),
    // On a long link one request a round trip carries what it can.
    ("batch.size", "1000000"),
];

/// The same for a producer with transactions under that name.
pub(super) fn transactional(mut config: ClientConfig, id: &str) -> ClientConfig {
    for (name, value) in TRANSACTIONAL {
        config.set(*name, *value);
    }
    config.set("transactional.id", id);
    // Rule B stands on these lines, see `end_txn.rs`.
    listen(&mut config, "eos");
    config
}

/// How many names a transactional producer may have, one after the other. Kafka forgets each after a week without use.
const MOST_NAMES: u8 = 8;

/// The names of one transactional producer.
///
/// Kafka ends a transaction by writing into each of its partitions, and until all have it the next one of that name must
/// wait. A partition without a leader, or with too few replicas, takes nothing: that may last for days. Then the producer
/// goes on under another name. Nothing is given away by it: no commit is under way that the watermark's stable read does
/// not wait for, because a commit is asked for only when the watermark has been confirmed.
#[derive(Debug, Clone)]
pub(super) struct Names {
    first: Option<String>,
    number: u8,
}

impl Names {
    /// Of the producer with that configuration. Without transactions it has none.
    pub(super) fn new(config: &ClientConfig) -> Self {
        Self { first: config.get("transactional.id").map(str::to_owned), number: 1 }
    }

    /// Goes on under the next one.
    pub(super) fn next(&mut self, config: &mut ClientConfig) {
        self.number = if self.number >= MOST_NAMES { 1 } else { self.number + 1 };
        self.enter(config);
    }

    /// Goes back to the first one, by which a clone of this gateway is told.
    pub(super) fn home(&mut self, config: &mut ClientConfig) {
        self.number = 1;
        self.enter(config);
    }

    /// Is it another one than the first?
    pub(super) fn is_away(&self) -> bool {
        self.number > 1
    }

    fn enter(&self, config: &mut ClientConfig) {
        let Some(first) = &self.first else { return };
        let name = if self.number == 1 { first.clone() } else { format!("{first}-{}", self.number) };
        config.set("transactional.id", name);
    }
}

/// Has librdkafka say in its log what it says nowhere else (`end_txn.rs`, `librdkafka_log.rs`).
fn listen(config: &mut ClientConfig, to: &str) {
    let debug = config.get("debug").map_or_else(|| to.to_owned(), |asked| format!("{asked},{to}"));
    config.set("debug", debug).set_log_level(RDKafkaLogLevel::Debug);
}

/// The configuration of a consumer of the watermark topic.
pub(super) fn reader_config(kafka: &Kafka, agent_id: &str) -> ClientConfig {
    let mut config = way_to_kafka(kafka);
    // What goes wrong is told once, by who asked.
    config.set_log_level(RDKafkaLogLevel::Emerg);
    if !kafka.options.contains_key("client.id") {
        config.set("client.id", format!("tidegate-{agent_id}"));
    }
    config
}

fn base(options: &BTreeMap<String, Secret>, largest_record_bytes: u64) -> ClientConfig {
    let mut config = ClientConfig::new();
    // librdkafka's own lines are for the debug level (see the log callback); it thins them out at this level.
    config.set_log_level(if options.contains_key("debug") { RDKafkaLogLevel::Debug } else { RDKafkaLogLevel::Info });
    for (name, value, aliases) in DEFAULTS {
        let given = |name: &str| options.contains_key(name);
        if !given(name) && !aliases.iter().any(|alias| given(alias)) {
            config.set(*name, *value);
        }
    }
    for (name, value) in options {
        if refusal(name).is_none() {
            config.set(name, value.reveal());
        }
    }
    for (name, value) in FIXED {
        config.set(*name, *value);
    }
    if !options.contains_key(MESSAGE_BYTES) {
        config.set(MESSAGE_BYTES, largest_record_bytes.clamp(USUAL_MESSAGE_BYTES, MOST_MESSAGE_BYTES).to_string());
    }
    if !options.contains_key(QUEUE_KIB) {
        config.set(QUEUE_KIB, least_queue_kib(&config).max(USUAL_QUEUE_KIB).to_string());
    }
    config
}

/// What librdkafka itself refuses. Unless it is set by the operator, it is what the largest packet can become, so that
/// only Kafka, which counts compressed bytes, finds a record too large that was acknowledged.
const MESSAGE_BYTES: &str = "message.max.bytes";

/// librdkafka's own limit for it.
const MOST_MESSAGE_BYTES: u64 = 1_000_000_000;

const QUEUE_KIB: &str = "queue.buffering.max.kbytes";

/// 1 MiB of payloads in librdkafka's hands; more buys no throughput, only memory.
const USUAL_QUEUE_KIB: u64 = 1024;

/// librdkafka's default of `message.max.bytes`.
const USUAL_MESSAGE_BYTES: u64 = 1_000_000;

/// A queue that is smaller than the largest record would be "full" for it for ever, and nothing behind it would go.
fn least_queue_kib(config: &ClientConfig) -> u64 {
    let largest = config.get(MESSAGE_BYTES).and_then(|bytes| bytes.parse().ok()).unwrap_or(USUAL_MESSAGE_BYTES);
    largest.div_ceil(1024) + 1
}

fn queue_problem(options: &BTreeMap<String, Secret>, largest_record_bytes: u64) -> Option<(String, String)> {
    let given: u64 = options.get(QUEUE_KIB)?.reveal().parse().ok()?;
    let least = least_queue_kib(&base(options, largest_record_bytes));
    (given < least).then(|| {
        let why = "smaller than the largest record (message.max.bytes), which would never find room";
        (QUEUE_KIB.to_owned(), format!("found {given}; allowed: {least} or more. It is {why}"))
    })
}

/// Smallest `batch.size` that batches shrink to by themselves.
const SMALLEST_BATCH_BYTES: u32 = 16 << 10;

/// Halves `batch.size` for the producers made from now on; the new size, or `None` when it is small enough.
pub(super) fn shrink_batches(config: &mut ClientConfig) -> Option<u32> {
    let bytes: u32 = config.get("batch.size")?.parse().ok()?;
    if bytes <= SMALLEST_BATCH_BYTES {
        return None;
    }
    let half = (bytes / 2).max(SMALLEST_BATCH_BYTES);
    config.set("batch.size", half.to_string());
    Some(half)
}

/// Those of [`DEFAULTS`] that concern the way to Kafka and not the producing.
const OF_THE_WAY: &[&str] = &["reconnect.backoff.max.ms", "socket.keepalive.enable", "ssl.ca.location"];

/// The configuration of a client that is no producer (a consumer, an administrator): where Kafka is, and how to get in.
pub(crate) fn way_to_kafka(kafka: &Kafka) -> ClientConfig {
    let mut config = ClientConfig::new();
    for (name, value, aliases) in DEFAULTS.iter().filter(|(name, _, _)| OF_THE_WAY.contains(name)) {
        if !aliases.iter().any(|alias| kafka.options.contains_key(*alias)) {
            config.set(*name, *value);
        }
    }
    for (name, value) in kafka.options.iter().filter(|(name, _)| refusal(name).is_none()) {
        config.set(name, value.reveal());
    }
    config.set("bootstrap.servers", kafka.brokers.join(","));
    config
}

/// Checks `[kafka.options]` without a network, names and values alike: what is wrong, by property.
/// `largest_record_bytes` is what readings can become.
///
/// No value is repeated in the answer: it may be a secret. A problem that only shows when all properties stand
/// together (a missing certificate file, a contradiction) comes under the empty name.
#[must_use]
pub(crate) fn check_options(
    options: &BTreeMap<String, Secret>,
    delivery: Delivery,
    largest_record_bytes: u64,
) -> Vec<(String, String)> {
    let mut problems = check_each_option(options, largest_record_bytes);
    if problems.is_empty() {
        // Without brokers a producer connects nowhere, but reads certificates and compares properties.
        let mut config = match delivery {
            Delivery::AtLeastOnce => base(options, largest_record_bytes),
            Delivery::ExactlyOnce => transactional(base(options, largest_record_bytes), "check"),
        };
        // As a start has them: with transactions a longer socket.timeout.ms is cut to what librdkafka takes.
        Timeouts::new(&config).apply(&mut config);
        let made: Result<BaseProducer<DefaultProducerContext>, KafkaError> =
            config.set_log_level(RDKafkaLogLevel::Emerg).create_with_context(DefaultProducerContext);
        if let Err(error) = made {
            problems.push((String::new(), without_values(&cause(&error), options)));
        }
    }
    problems
}

/// The same for each by itself: where not all of their files may be read.
#[must_use]
pub(crate) fn check_each_option(
    options: &BTreeMap<String, Secret>,
    largest_record_bytes: u64,
) -> Vec<(String, String)> {
    let mut problems: Vec<(String, String)> =
        options.iter().filter_map(|(name, value)| Some((name.clone(), problem(name, value)?))).collect();
    problems.extend(queue_problem(options, largest_record_bytes));
    problems
}

fn problem(name: &str, value: &Secret) -> Option<String> {
    if let Some(reason) = refusal(name) {
        return Some(format!("cannot be set: {reason}"));
    }
    if name == "client.dns.lookup" && value.reveal() == CANONICAL {
        return Some(format!(
            "cannot be {CANONICAL}: every name look-up of librdkafka would stop all sending; write the canonical \
             names in [kafka] brokers"
        ));
    }
    if name == "partitioner" && RANDOM_PARTITIONERS.contains(&value.reveal()) {
        return Some(
            "cannot be random: readings of one sensor would be out of order; allowed: consistent, murmur2, fnv1a"
                .into(),
        );
    }
    let error = ClientConfig::new().set(name, value.reveal()).create_native_config().err()?;
    let options = BTreeMap::from([(name.to_owned(), value.clone())]);
    Some(without_values(&cause(&error), &options))
}

fn refusal(name: &str) -> Option<&'static str> {
    REFUSED.iter().find(|(refused, _)| *refused == name).map(|(_, reason)| *reason)
}

/// librdkafka's own words. Not rdkafka's `Display`, which repeats the value.
#[expect(clippy::wildcard_enum_match_arm, reason = "other errors have no text of librdkafka's")]
pub(super) fn cause(error: &KafkaError) -> String {
    match error {
        KafkaError::ClientConfig(_, text, _, _) | KafkaError::ClientCreation(text) => text.clone(),
        KafkaError::Nul(_) => "it contains a NUL character".into(),
        other => other.to_string(),
    }
}

fn without_values(text: &str, options: &BTreeMap<String, Secret>) -> String {
    let mut text = text.to_owned();
    for value in options.values().map(Secret::reveal) {
        // librdkafka quotes values; a value that is part of an ordinary word stays readable unless it is long.
        text = text.replace(&format!("\"{value}\""), "<value>");
        if value.len() >= 4 && value.parse::<u64>().is_err() {
            text = text.replace(value, "<value>");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(options: &[(&str, &str)]) -> Vec<(String, String)> {
        check_for(Delivery::AtLeastOnce, options)
    }

    fn check_for(delivery: Delivery, options: &[(&str, &str)]) -> Vec<(String, String)> {
        let options = options.iter().map(|(n, v)| ((*n).to_owned(), Secret::new((*v).to_owned()))).collect();
        check_options(&options, delivery, 0)
    }

    #[test]
    fn the_producer_of_the_configured_delivery_is_the_one_that_is_checked() {
        for delivery in [Delivery::AtLeastOnce, Delivery::ExactlyOnce] {
            // Longer than a transaction may take: cut at each start.
            assert_eq!(check_for(delivery, &[("socket.timeout.ms", "120000")]), []);
            let missing = [("security.protocol", "ssl"), ("ssl.ca.location", "/nowhere/ca.pem")];
            assert_eq!(check_for(delivery, &missing).len(), 1, "{delivery:?}");
            let canonical = [("client.dns.lookup", CANONICAL)];
            assert_eq!(check_for(delivery, &canonical).len(), 1, "{delivery:?}");
        }
    }

    #[test]
    fn a_producer_goes_through_its_names_and_back_to_the_first() {
        let mut config = ClientConfig::new();
        config.set("transactional.id", "t");
        let mut names = Names::new(&config);
        let mut seen = vec![];
        for _ in 0..=MOST_NAMES {
            seen.push(config.get("transactional.id").unwrap().to_owned());
            names.next(&mut config);
        }
        assert_eq!(seen, ["t", "t-2", "t-3", "t-4", "t-5", "t-6", "t-7", "t-8", "t"]);
        assert!(names.is_away());
        names.home(&mut config);
        assert_eq!((config.get("transactional.id"), names.is_away()), (Some("t"), false));
        // Without transactions there is nothing to name.
        let mut plain = ClientConfig::new();
        Names::new(&plain).next(&mut plain);
        assert_eq!(plain.get("transactional.id"), None);
    }

    #[test]
    fn ordinary_options_pass() {
        let options = [
            ("security.protocol", "SASL_SSL"),
            ("sasl.mechanisms", "SCRAM-SHA-512"),
            ("sasl.username", "gw"),
            ("sasl.password", "secret"),
            ("compression.codec", "lz4"),
            ("queue.buffering.max.kbytes", "4096"),
            ("client.id", "me"),
            ("partitioner", "consistent"),
        ];
        assert_eq!(check(&options), []);
        assert_eq!(check(&[]), []);
    }

    #[test]
    fn what_breaks_a_promise_is_refused_with_the_reason() {
        for (name, reason) in REFUSED {
            assert_eq!(check(&[(name, "1")]), [((*name).to_owned(), format!("cannot be set: {reason}"))]);
        }
        for value in RANDOM_PARTITIONERS {
            assert_eq!(check(&[("partitioner", value)]).len(), 1, "{value}");
        }
    }

    #[test]
    fn every_fixed_property_is_refused_under_all_its_names() {
        for (name, _) in FIXED {
            assert!(refusal(name).is_some(), "{name}");
        }
    }

    #[test]
    fn unknown_names_and_bad_values_are_found_by_librdkafka_all_at_once() {
        let problems = check(&[("socket.timeout.msec", "1"), ("socket.timeout.ms", "soon"), ("batch.size", "-5")]);
        let names: Vec<&str> = problems.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["batch.size", "socket.timeout.ms", "socket.timeout.msec"]);
    }

    #[test]
    fn no_answer_repeats_a_value() {
        let wrong = [
            ("sasl.passwort", "hunter2-secret"),
            ("socket.timeout.ms", "hunter2-secret"),
            ("security.protocol", "hunter2-secret"),
            ("ssl.key.pem", "hunter2-secret"),
            ("ssl.ca.location", "/hunter2-secret"),
        ];
        for (name, value) in wrong {
            let problems = check(&[(name, value), ("sasl.password", "nul\0hunter2-secret")]);
            assert!(!problems.is_empty(), "{name}");
            assert!(!format!("{problems:?}").contains("hunter2"), "{problems:?}");
        }
    }

    #[test]
    fn a_missing_certificate_file_is_found_offline() {
        let problems = check(&[("security.protocol", "ssl"), ("ssl.ca.location", "/nowhere/ca.pem")]);
        assert_eq!(problems.len(), 1, "{problems:?}");
    }

    #[test]
    fn options_override_defaults_under_any_of_their_names_and_never_what_is_fixed() {
        let options: BTreeMap<String, Secret> = [("compression.codec", "lz4"), ("acks", "0"), ("batch.size", "1000")]
            .map(|(name, value)| (name.to_owned(), Secret::new(value.to_owned())))
            .into();
        let config = base(&options, 3 << 20);
        // What was acknowledged is not refused by librdkafka, and fits into its queue.
        assert_eq!(config.get(MESSAGE_BYTES), Some("3145728"));
        assert_eq!(config.get(QUEUE_KIB), Some("3073"));
        assert_eq!(config.get("compression.type"), None);
        assert_eq!(config.get("compression.codec"), Some("lz4"));
        assert_eq!(config.get("acks"), Some("all"));
        assert_eq!(config.get("batch.size"), Some("1000"));
        for (name, value) in FIXED {
            assert_eq!(config.get(name), Some(*value), "{name}");
        }
    }
}
