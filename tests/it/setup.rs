//! `tidegate kafka-setup` on a real Kafka: what it prints works as printed, what it applies is found right, and the rights
//! that it gives are enough for a gateway and no more.

use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use crate::support::agent::{Build, Gateway};
use crate::support::client::{Connection, clean};
use crate::support::kafka::{self, Kafka, unique_topic};
use crate::support::reader::Reader;
use crate::support::stream::{Hand, Planted, delivered};
use crate::support::topics::produce;
use crate::support::wire::{Message as Publish, Version};
use crate::support::{Outcome, PATIENCE, trouble, wait_for};

/// A gateway's configuration, and what `kafka-setup` says of it.
fn setup(gateway: &Gateway, topic: &str, more: &[&str]) -> Outcome<(Option<i32>, String)> {
    let output = gateway.command(&[&["kafka-setup", "--watermark-topic", topic], more].concat())?;
    Ok((output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()))
}

fn line<'a>(said: &'a str, beginning: &str) -> Outcome<&'a str> {
    match said.lines().find(|line| line.starts_with(beginning)) {
        Some(line) => Ok(line),
        None => trouble!("no line begins with {beginning:?} in:\n{said}"),
    }
}

/// The settings of a topic by Kafka's own tool.
fn described(kafka: &Kafka, topic: &str) -> Outcome<String> {
    kafka.shell(&format!("kafka-topics.sh --bootstrap-server {} --describe --topic {topic}", kafka.brokers()))
}

fn gateway(brokers: &str) -> Outcome<Gateway> {
    let mut gateway = Gateway::new(Build::Real, brokers)?;
    gateway.listen("").route("#", "any");
    Ok(gateway)
}

#[test]
fn the_topic_is_made_by_the_line_printed_or_by_apply_and_found_right_afterwards() -> Outcome<()> {
    let kafka = kafka::shared()?;
    let gateway = gateway(&kafka.brokers())?;
    let by_hand = unique_topic("watermarks");
    let (code, said) = setup(&gateway, &by_hand, &["--gateways", "7"])?;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains(&format!("topic {by_hand} is not there")), "{said}");
    kafka.shell(line(&said, "kafka-topics.sh")?)?;
    let (code, said) = setup(&gateway, &by_hand, &["--gateways", "7"])?;
    assert_eq!(code, Some(0), "{said}");

    let applied = unique_topic("watermarks");
    for round in ["created with 7 partitions", "is there: 7 partitions"] {
        let (code, said) = setup(&gateway, &applied, &["--gateways", "7", "--apply"])?;
        assert_eq!(code, Some(0), "{said}");
        assert!(
            said.contains(&format!("{applied}: {round}")) || said.contains(&format!("{applied} {round}")),
            "{said}"
        );
    }
    let same = |topic: &str| described(kafka, topic).map(|said| said.lines().next().map(|l| l.replace(topic, "T")));
    let without_id = |text: Option<String>| {
        text.map(|text| text.split('\t').filter(|part| !part.starts_with("TopicId")).collect::<Vec<_>>().join(" "))
    };
    assert_eq!(without_id(same(&by_hand)?), without_id(same(&applied)?));
    Ok(())
}

#[test]
fn a_topic_that_is_wrong_is_told_and_set_right_without_losing_its_other_settings() -> Outcome<()> {
    let kafka = kafka::shared()?;
    let gateway = gateway(&kafka.brokers())?;
    let topic = unique_topic("watermarks");
    kafka.create_topic(&topic, 3, &[("cleanup.policy", "delete"), ("max.message.bytes", "54321")])?;
    let (code, said) = setup(&gateway, &topic, &["--gateways", "7"])?;
    assert_eq!(code, Some(1), "{said}");
    for part in ["WRONG", "cleanup.policy=delete", "segment.bytes", "has 3 partitions; 7 fit", "--apply corrects it"] {
        assert!(said.contains(part), "no {part:?} in {said}");
    }
    let (code, said) = setup(&gateway, &topic, &["--gateways", "7", "--apply"])?;
    assert_eq!(code, Some(0), "{said}");
    let settled = wait_for("the settings", PATIENCE, || {
        let said = setup(&gateway, &topic, &["--gateways", "7"]).ok()?.1;
        (!said.contains("WRONG")).then_some(said)
    })?;
    // Partitions are not changed under running gateways.
    assert!(settled.contains("costly: ") && settled.contains("has 3 partitions"), "{settled}");
    let described = described(kafka, &topic)?;
    for part in ["cleanup.policy=compact", "max.message.bytes=54321", "segment.bytes=1048576"] {
        assert!(described.contains(part), "no {part:?} in {described}");
    }
    Ok(())
}

#[test]
fn without_kafka_the_lines_are_printed_all_the_same_and_a_wrong_configuration_is_exit_78() -> Outcome<()> {
    let away = gateway("127.0.0.1:1")?;
    let (code, said) = setup(&away, "w", &["--gateways", "5000", "--principal", "plants"])?;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("--partitions 1000 --replication-factor 3"), "{said}");
    assert!(said.contains("--allow-principal User:plants"), "{said}");
    assert!(said.contains("broker cores"), "{said}");
    let mut wrong = gateway("127.0.0.1:1")?;
    wrong.kafka("nonsense = 1\n");
    assert_eq!(setup(&wrong, "w", &[])?.0, Some(78));
    Ok(())
}

/// How `user` logs in.
fn login(user: &str) -> [(&str, &str); 4] {
    [
        ("security.protocol", "sasl_plaintext"),
        ("sasl.mechanism", "PLAIN"),
        ("sasl.username", user),
        ("sasl.password", user),
    ]
}

/// A transaction of a gateway: a reading, and the watermark.
fn transaction(brokers: &str, user: &str, id: &str, topic: &str, watermarks: &str) -> Outcome<()> {
    let properties = [("transactional.id", id), ("transaction.timeout.ms", "20000"), ("message.timeout.ms", "5000")];
    let hand = Hand::new(brokers, &[&login(user)[..], &properties].concat())?;
    hand.begin()?;
    let planted = Planted {
        topic,
        partition: 0,
        id: "11111111-1111-4111-8111-111111111111:1".into(),
        instance: "",
        was: None,
        mqtt_topic: "s",
        at_ms: 1,
    };
    hand.event(&planted)?;
    hand.say(watermarks, "11111111-1111-4111-8111-111111111111", &delivered(1))?;
    hand.commit()
}

/// The first record of a topic, as `user` reads it.
fn first_record(brokers: &str, user: &str, topic: &str) -> Outcome<Vec<u8>> {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers).set("group.id", "tidegate-x").set("isolation.level", "read_committed");
    config.set("enable.auto.commit", "false").set("log_level", "0");
    for (name, value) in login(user) {
        config.set(name, value);
    }
    let consumer: BaseConsumer = config.create()?;
    let mut assignment = TopicPartitionList::new();
    assignment.add_partition_offset(topic, 0, Offset::Offset(0))?;
    consumer.assign(&assignment)?;
    consumer.fetch_watermarks(topic, 0, Duration::from_secs(10))?;
    let mut said = Vec::new();
    let record = wait_for("a record", Duration::from_secs(15), || match consumer.poll(Duration::from_millis(100)) {
        Some(Ok(record)) => Some(record.key().unwrap_or_default().to_vec()),
        Some(Err(error)) => {
            said.push(error.to_string());
            None
        }
        None => None,
    });
    record.map_err(|error| crate::support::Trouble::new(format!("{error:?}: {said:?}")))
}

/// What Kafka answers when `user` makes a topic and removes records of one; and changes its settings, if it may.
fn administer(brokers: &str, user: &str, topic: &str) -> Outcome<[RDKafkaErrorCode; 2]> {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers);
    for (name, value) in login(user) {
        config.set(name, value);
    }
    let admin: AdminClient<DefaultClientContext> = config.create()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let options = AdminOptions::new();
    let code = |error: KafkaError| error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Unknown);

    let new = format!("{topic}.new");
    let new = NewTopic::new(&new, 1, TopicReplication::Fixed(1));
    let created = runtime.block_on(admin.create_topics([&new], &options))?.remove(0);
    let mut offsets = TopicPartitionList::new();
    offsets.add_partition_offset(topic, 0, Offset::Offset(1))?;
    let deleted = match runtime.block_on(admin.delete_records(&offsets, &options)) {
        Ok(deleted) => deleted.elements()[0].error().err(),
        Err(error) => Some(error),
    };
    let setting = AlterConfig::new(ResourceSpecifier::Topic(topic)).set("retention.ms", "1");
    runtime.block_on(admin.alter_configs([&setting], &options))?;
    Ok([
        created.err().map_or(RDKafkaErrorCode::NoError, |(_, code)| code),
        deleted.map_or(RDKafkaErrorCode::NoError, code),
    ])
}

#[test]
fn an_edge_principal_with_the_rights_printed_can_do_what_a_gateway_does_and_nothing_else() -> Outcome<()> {
    let (kafka, guarded) = Kafka::guarded()?;
    for topic in ["sensors.a", "plain", "secret"] {
        kafka.create_topic(topic, 1, &[])?;
    }
    kafka.create_topic("watermarks", 1, &[("cleanup.policy", "compact")])?;
    let mut gateway = Gateway::new(Build::Real, &kafka.brokers())?;
    gateway.listen("").route("s/{site}/#", "sensors.{site}").route("#", "plain");
    let (_, said) = setup(&gateway, "watermarks", &["--principal", "edge"])?;

    // Before, nothing is allowed.
    let refused = |outcome: Outcome<()>, word: &str| match outcome {
        Err(error) if format!("{error:?}").contains(word) => Ok(()),
        other => trouble!("wanted a refusal with {word:?}, got {other:?}"),
    };
    refused(transaction(&guarded, "edge", "tidegate-x", "sensors.a", "watermarks"), "uthorization")?;

    for line in said.lines().filter(|line| line.starts_with("kafka-acls.sh")) {
        kafka.shell(line)?;
    }
    wait_for("the rights", PATIENCE, || transaction(&guarded, "edge", "tidegate-x", "sensors.a", "watermarks").ok())?;
    transaction(&guarded, "edge", "tidegate-x-parked", "plain", "watermarks")?;
    assert_eq!(first_record(&guarded, "edge", "watermarks")?, b"11111111-1111-4111-8111-111111111111");

    // Nothing else, and nobody else.
    refused(transaction(&guarded, "edge", "other", "sensors.a", "watermarks"), "uthorization")?;
    for topic in ["secret", "plain2"] {
        assert!(transaction(&guarded, "edge", "tidegate-y", topic, "watermarks").is_err(), "{topic}");
    }
    refused(transaction(&guarded, "stranger", "tidegate-z", "sensors.a", "watermarks"), "uthorization")?;
    for topic in ["sensors.a", "plain", "secret"] {
        assert!(first_record(&guarded, "edge", topic).is_err(), "{topic} can be read");
    }
    assert_eq!(administer(&guarded, "edge", "sensors.a")?, [RDKafkaErrorCode::TopicAuthorizationFailed; 2]);
    // rdkafka keeps the refusal of new settings to itself.
    assert!(!described(&kafka, "sensors.a")?.contains("retention.ms=1"));
    let mut apply = Gateway::new(Build::Real, &guarded)?;
    apply.listen("").route("#", "plain");
    for (name, value) in login("edge") {
        apply.kafka_options(&format!("\"{name}\" = \"{value}\"\n"));
    }
    let (code, said) = setup(&apply, "watermarks", &["--apply"])?;
    // It was made with one setting only. The principal may see that, as the agent must that it is compacted, and not mend it.
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("WRONG: topic watermarks has segment.bytes="), "{said}");
    assert!(said.contains("AlterConfigs is needed") && !said.contains("cleanup.policy=delete"), "{said}");

    // The agent itself comes along with them.
    gateway.kafka_at(&guarded).exactly_once("watermarks");
    for (name, value) in login("edge") {
        gateway.kafka_options(&format!("\"{name}\" = \"{value}\"\n"));
    }
    let agent = gateway.start()?;
    let (mut sensor, _) = Connection::open(gateway.listener(), Version::V5, clean("sensor"))?;
    for (id, topic) in [(1, "s/a/1"), (2, "other")] {
        let reading = Publish { topic: topic.into(), payload: b"21.5".to_vec(), qos: 1, ..Publish::default() };
        sensor.publish(&reading, id)?;
    }
    agent.wait_book("delivered", 2)?;
    assert_eq!(agent.log_lines("ERROR"), Vec::<String>::new());
    // Ours, for the test's own sake: the topics are not empty because nobody could write.
    produce(&kafka.brokers(), "secret", &[(b"k", b"v")])?;
    assert_eq!(Reader::open(&kafka.brokers(), &["secret"])?.read_all()?.len(), 1);
    Ok(())
}
