//! What cannot be promised, stated as tests: QoS 1 may bring a reading twice, and a gateway that dies in a transaction
//! holds up the readers of its partitions for as long as Kafka waits for it.

use crate::support::agent::{Build, Gateway};
use crate::support::client::{Connection, keep};
use crate::support::kafka;
use crate::support::mosquitto::Mosquitto;
use crate::support::publisher::{Log, Plan, Publisher, publish_all};
use crate::support::reader::{Reader, Record};
use crate::support::stage::{Stage, no_holes, once, watermark_topic};
use crate::support::stream::{Hand, Planted};
use crate::support::wire::{Message, Packet, Version};
use crate::support::{Outcome, PATIENCE, trouble};

/// A sensor whose connection ends before the answer comes has to publish again. At QoS 1 nothing tells the gateway that
/// it is the same reading: another one, with another `tidegate-id`. At QoS 2 the packet id tells.
#[test]
fn a_reading_whose_answer_is_lost_comes_twice_at_qos_1_under_two_ids_and_once_at_qos_2() -> Outcome<()> {
    let kafka = kafka::shared()?;
    let topic = kafka.topic("twice")?;
    let mut gateway = Gateway::new(Build::Real, &kafka.brokers())?;
    gateway.exactly_once(&watermark_topic(kafka)?).listen("").route("#", &topic);
    let agent = gateway.start()?;
    for (qos, received) in [(1, 1), (2, 3)] {
        let message = Message { topic: "t".into(), payload: vec![qos], qos, ..Message::default() };
        let (mut sensor, _) = Connection::open(gateway.listener(), Version::V5, keep("s"))?;
        sensor.send(&Packet::Publish { message: message.clone(), id: 7, dup: false })?;
        agent.wait_book("received", received)?;
        drop(sensor); // the answer, on its way by now, is never read
        let (mut sensor, _) = Connection::open(gateway.listener(), Version::V5, keep("s"))?;
        sensor.send(&Packet::Publish { message, id: 7, dup: true })?;
        if qos == 1 {
            sensor.expect("PUBACK", |packet| matches!(packet, Packet::PubAck { id: 7, .. }))?;
        } else {
            sensor.expect("PUBREC", |packet| matches!(packet, Packet::PubRec { id: 7, .. }))?;
            sensor.send(&Packet::PubRel { id: 7, reason: 0 })?;
            sensor.expect("PUBCOMP", |packet| matches!(packet, Packet::PubComp { id: 7, .. }))?;
        }
    }
    agent.wait_book("held", 0)?;
    let mut reader = Reader::committed(&kafka.brokers(), &[&topic])?;
    let records = reader.read_count(3, PATIENCE)?;
    let of = |qos: u8| records.iter().filter(move |record| record.payload == [qos]);
    let mut ids: Vec<_> = of(1).map(Record::id).collect();
    ids.dedup();
    match (of(1).count(), ids.len(), of(2).count()) {
        (2, 2, 1) => Ok(()),
        (one, ids, two) => trouble!("{one} records of QoS 1 under {ids} ids, {two} of QoS 2"),
    }
}

/// While the agent is away it is mosquitto that holds the readings, which it has acknowledged.
#[test]
fn mosquitto_throws_readings_away_as_debian_ships_it_and_none_with_the_lines_of_the_example() -> Outcome<()> {
    const READINGS: u64 = 3_000;
    let example = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/config/mosquitto.conf.example"))?;
    for (settings, expected) in [("", 1_000..1_100), (&*example, READINGS..READINGS + 1)] {
        let kafka = kafka::shared()?;
        let topic = kafka.topic("queue")?;
        let broker = Mosquitto::as_debian_ships_it(settings)?;
        let mut gateway = Gateway::new(Build::Real, &kafka.brokers())?;
        gateway.subscribe("plant", &broker.url(), "t/#", 1, "").route("#", &topic);
        let mut agent = gateway.start()?;
        agent.wait_log(&["mosquitto keeps 1000 by default"])?;
        agent.stop(PATIENCE)?;
        publish_all(broker.address(), Plan::new("p", "t/1", 1).count(READINGS))?;
        let agent = gateway.start()?;
        agent.wait_subscribed(2)?;
        // Behind all that waited.
        let last = Message { topic: "t/last".into(), qos: 1, ..Message::default() };
        Connection::open(broker.address(), Version::V5, keep("last"))?.0.publish(&last, 1)?;
        let mut reader = Reader::open(&kafka.brokers(), &[&topic])?;
        let is_last = |records: &[Record]| records.iter().any(|record| record.payload.is_empty());
        let arrived = reader.read_until("the last one", PATIENCE, is_last)?.len() as u64 - 1;
        eprintln!("{arrived} of {READINGS} arrive with {settings:?}");
        if !expected.contains(&arrived) {
            return trouble!("{arrived} of {READINGS} with {settings:?}");
        }
    }
    Ok(())
}

/// A Kafka topic with two partitions, and a gateway that has died with a transaction open in one of them.
struct Orphan {
    gateway: Gateway,
    stage: Stage,
    publisher: Publisher,
    /// Where its transaction is open.
    partition: i32,
    hand: Hand,
}

/// What others send to that topic bears this.
const OTHERS: &str = "others";

impl Orphan {
    fn new() -> Outcome<Self> {
        let kafka = kafka::shared()?;
        let topic = kafka::unique_topic("orphan");
        kafka.create_topic(&topic, 2, &[])?;
        let stage = Stage::on(kafka.brokers(), topic)?;
        // Dies with all its records and its watermark in Kafka, before it asks for the commit.
        let mut gateway = Gateway::new(Build::Planted("die-committing"), &kafka.brokers())?;
        gateway.exactly_once(&watermark_topic(kafka)?).listen("").route("#", &stage.topic);
        gateway.environment("TIDEGATE_PLANT_AT", "1");
        let mut agent = gateway.start()?;
        let publisher = Publisher::start(gateway.listener(), Plan::new("p", "t", 2).count(500));
        agent.wait(PATIENCE)?;
        let mut reader = Reader::uncommitted(&kafka.brokers(), &[&stage.topic])?;
        let partition = reader.read_count(1, PATIENCE)?[0].partition;
        let hand = Hand::plain(&kafka.brokers())?;
        Ok(Self { gateway, stage, publisher, partition, hand })
    }

    /// Somebody else writes to that partition.
    fn another_writes(&self, partition: i32) -> Outcome<()> {
        let (topic, id) = (&*self.stage.topic, String::new());
        self.hand.event(&Planted { topic, partition, id, instance: "", was: None, mqtt_topic: OTHERS, at_ms: 1 })?;
        self.hand.flush()
    }

    /// The gateway is there again; all of its readings come, once.
    fn comes_back(mut self) -> Outcome<()> {
        let agent = self.gateway.build(Build::Real).start()?;
        let log: Log = self.publisher.finish(PATIENCE)?;
        agent.wait_book("held", 0)?;
        let mut seen = self.stage.settle(&agent, &[log])?;
        // What others wrote is no reading of ours.
        for books in &mut seen.books {
            books.foreign = books.foreign.saturating_sub(2);
        }
        once(&seen).and(no_holes(&[&seen]))
    }
}

fn of_others(records: &[Record], partition: i32) -> bool {
    records.iter().any(|record| record.partition == partition && record.key.as_deref() == Some(OTHERS.as_bytes()))
}

/// What the open transaction hides, and what it does not.
fn held_up(orphan: &Orphan) -> Outcome<Reader> {
    let brokers = kafka::shared()?.brokers();
    let (own, free) = (orphan.partition, 1 - orphan.partition);
    orphan.another_writes(own)?;
    orphan.another_writes(free)?;
    let mut everyone = Reader::uncommitted(&brokers, &[&orphan.stage.topic])?;
    everyone.read_until("what another wrote", PATIENCE, |records| of_others(records, own))?;
    let mut committed = Reader::committed(&brokers, &[&orphan.stage.topic])?;
    let records = committed.read_until("the other partition", PATIENCE, |records| of_others(records, free))?;
    match records.iter().filter(|record| record.partition == own).count() {
        0 => Ok(committed),
        count => trouble!("{count} records are seen behind the beginning of an open transaction"),
    }
}

#[test]
fn a_dead_gateways_open_transaction_hides_what_others_write_behind_it_until_the_gateway_is_back() -> Outcome<()> {
    let orphan = Orphan::new()?;
    let mut reader = held_up(&orphan)?;
    let partition = orphan.partition;
    orphan.comes_back()?;
    reader.read_until("what another wrote", PATIENCE, |records| of_others(records, partition)).map(|_records| ())
}

#[test]
fn a_dead_gateways_open_transaction_hides_what_others_write_behind_it_until_kafka_ends_it() -> Outcome<()> {
    let orphan = Orphan::new()?;
    let mut reader = held_up(&orphan)?;
    let partition = orphan.partition;
    // transaction.timeout.ms, and the 10 s after which Kafka looks.
    reader.read_until("what another wrote", PATIENCE, |records| of_others(records, partition))?;
    orphan.comes_back()
}
