//! Nothing that was acknowledged is ever lost: the agent is killed with -9 at random instants under load, and Kafka
//! must hold all that publishers were acknowledged, in order, with every repeat recognisable.
//!
//! `TIDEGATE_KILLS=10000` makes the two campaigns as long as that; 30 kills each otherwise.

use crate::support::agent::{Build, Gateway};
use crate::support::client::{Connection, clean, keep};
use crate::support::kafka::{self, unique_topic};
use crate::support::kills::{self, Campaign, Way};
use crate::support::process::free_port;
use crate::support::reader::{Reader, Record};
use crate::support::settle::{settle, wait_while_anything_comes};
use crate::support::stage::with_log;
use crate::support::wire::{Message, Packet, Version};
use crate::support::{Outcome, PATIENCE, Trouble, Verdict, trouble};

/// Kills after which a campaign is settled and a new one begins on a new buffer, so that books stay small.
const KILLS_A_CAMPAIGN: u32 = 50;

#[test]
fn no_acknowledged_reading_is_lost_when_the_agent_behind_its_listener_is_killed() -> Outcome<()> {
    kills::in_parts(KILLS_A_CAMPAIGN, |kills| kill_at_random(Build::Real, Way::Listener, kills)?)
}

#[test]
fn no_acknowledged_reading_is_lost_when_the_agent_behind_a_broker_is_killed() -> Outcome<()> {
    kills::in_parts(KILLS_A_CAMPAIGN, |kills| kill_at_random(Build::Real, Way::Broker, kills)?)
}

/// An agent that lives for 50 to 800 ms at a time.
pub fn kill_at_random(build: Build, way: Way, kills: u32) -> Outcome<Verdict> {
    let kafka = kafka::shared()?;
    let topics = [kafka.topic("kill-1")?, kafka.topic("kill-2")?];
    let mut gateway = Gateway::new(build, &kafka.brokers())?;
    let campaign = Campaign { way, kills, lives_ms: 50..800, rate: 2_000 };
    let (agent, [first, second]) = campaign.run(&mut gateway, [&topics[0], &topics[1]])?;
    let first = settle(&agent, &kafka.brokers(), &[&topics[0]], &[first])?;
    let second = settle(&agent, &kafka.brokers(), &[&topics[1]], &[second])?;
    eprintln!("{way:?}, {kills} kills\n  QoS 1: {first}  QoS 2: {second}");
    Ok(with_log(first.at_least_once().and(second.once_into_the_buffer()), &agent))
}

/// The control of custody rule 1: readings come so slowly that a kill finds the last ones acknowledged a moment ago.
pub fn killed_right_after_an_acknowledgement(build: Build) -> Outcome<Verdict> {
    let kafka = kafka::shared()?;
    let topic = kafka.topic("instant")?;
    let mut gateway = Gateway::new(build, &kafka.brokers())?;
    gateway.listen("").route("#", &topic);
    let mut acknowledged = Vec::new();
    for round in 0..5u8 {
        let agent = gateway.start()?;
        let (mut sensor, _) = Connection::open(gateway.listener(), Version::V5, keep("s"))?;
        let payload = vec![b'r', round];
        sensor.publish(&Message { topic: "t".into(), payload: payload.clone(), qos: 1, ..Message::default() }, 1)?;
        agent.kill();
        acknowledged.push(payload);
    }
    let agent = gateway.start()?;
    let mut reader = Reader::open(&kafka.brokers(), &[&topic])?;
    let missing = |records: &[Record]| {
        let there = |payload: &Vec<u8>| records.iter().any(|record| record.payload == *payload);
        acknowledged.iter().filter(|payload| !there(payload)).count()
    };
    wait_while_anything_comes(&agent, &mut reader, |records| missing(records) == 0)?;
    let lost = missing(reader.records());
    Ok(if lost == 0 { Ok(()) } else { Err(Trouble(format!("{lost} of 5 acknowledged readings lost"))) })
}

#[test]
fn an_acknowledgement_means_that_the_reading_survives_the_kill_in_the_same_instant() -> Outcome<()> {
    killed_right_after_an_acknowledgement(Build::Real)?
}

/// Custody rule 3 at the listener: PUBLISH, PUBREC, kill -9, the same PUBLISH again, PUBREL. One reading.
pub fn qos_2_across_a_kill(build: Build, version: Version) -> Outcome<Verdict> {
    let kafka = kafka::shared()?;
    let topic = kafka.topic("resume")?;
    let mut gateway = Gateway::new(build, &kafka.brokers())?;
    gateway.listen("").route("#", &topic);
    let agent = gateway.start()?;
    let message = Message { topic: "t".into(), payload: b"once".to_vec(), qos: 2, ..Message::default() };
    let (mut sensor, _) = Connection::open(gateway.listener(), version, keep("s"))?;
    sensor.send(&Packet::Publish { message: message.clone(), id: 7, dup: false })?;
    sensor.expect("PUBREC", |packet| matches!(packet, Packet::PubRec { id: 7, .. }))?;
    agent.kill();
    let agent = gateway.start()?;
    let (mut sensor, present) = Connection::open(gateway.listener(), version, keep("s"))?;
    sensor.send(&Packet::Publish { message: message.clone(), id: 7, dup: true })?;
    sensor.expect("PUBREC", |packet| matches!(packet, Packet::PubRec { id: 7, .. }))?;
    sensor.send(&Packet::PubRel { id: 7, reason: 0 })?;
    sensor.expect("PUBCOMP", |packet| matches!(packet, Packet::PubComp { id: 7, .. }))?;
    // Released: the id is free, and the next message under it is a new one, across a kill as well.
    agent.kill();
    let _agent = gateway.start()?;
    let (mut sensor, _) = Connection::open(gateway.listener(), version, keep("s"))?;
    sensor.publish(&Message { payload: b"next".to_vec(), ..message }, 7)?;
    let mut reader = Reader::open(&kafka.brokers(), &[&topic])?;
    reader.read_until("the next", PATIENCE, |records| records.iter().any(|record| record.payload == b"next"))?;
    let records = reader.records();
    let mut once: Vec<Option<(String, u64)>> =
        records.iter().filter(|record| record.payload == b"once").map(Record::id).collect();
    // At least once to Kafka: the same id again is a repeat of delivery, and recognisable.
    once.dedup();
    let next = records.iter().filter(|record| record.payload == b"next").count();
    Ok(match (present, once.len(), next) {
        (true, 1, 1..) => Ok(()),
        (present, ids, next) => Err(Trouble(format!("session present {present}, {ids} ids, {next} of the next"))),
    })
}

#[test]
fn a_qos_2_reading_is_taken_once_though_the_agent_is_killed_between_pubrec_and_pubrel() -> Outcome<()> {
    Version::ALL.into_iter().try_for_each(|version| qos_2_across_a_kill(Build::Real, version)?)
}

/// Of a buffer that is old: the next sequence it gives out.
const LATE: u64 = (1 << 32) - 3;

/// As if so many readings had passed through it: the side file says so, and a database that knows less leaves them out.
fn age(gateway: &Gateway) -> Outcome<()> {
    let file = gateway.data_dir().join("identity");
    let text = std::fs::read_to_string(&file)?;
    let Some((marks, _sum)) = text.rsplit_once("crc32c ") else { return trouble!("no marks in {text}") };
    let aged = |line: &str| match line.split_once(' ') {
        Some((mark @ ("reserved" | "committed"), _)) => format!("{mark} {}\n", LATE - 1),
        _ => format!("{line}\n"),
    };
    let aged: String = marks.lines().map(aged).collect();
    let sum = crc32c::crc32c(aged.as_bytes());
    Ok(std::fs::write(file, format!("{aged}crc32c {sum:08x}\n"))?)
}

/// The numbers from `first` to `last`, each acknowledged.
fn publish_numbers(address: std::net::SocketAddr, first: u16, last: u16) -> Outcome<()> {
    let (mut sensor, _) = Connection::open(address, Version::V5, clean("s"))?;
    for n in first..=last {
        let message = Message { topic: "t".into(), payload: n.to_string().into(), qos: 1, ..Message::default() };
        sensor.publish(&message, n)?;
    }
    Ok(())
}

/// A buffer counts beyond 2^32, where a machine word may have 32 bits: on its disk, in its memory, in Kafka's records and,
/// with transactions, in the watermark. It is killed with readings of both sides held, and again behind it.
fn counting_beyond_2_32(watermark_topic: Option<&str>) -> Outcome<()> {
    let kafka = kafka::shared()?;
    let topic = kafka.topic("late")?;
    let mut gateway = Gateway::new(Build::Real, &kafka.brokers())?;
    gateway.listen("").route("#", &topic).kafka_at(&format!("127.0.0.1:{}", free_port()?));
    let sensors = gateway.listener();
    gateway.start()?.stop(PATIENCE)?;
    age(&gateway)?;

    let agent = gateway.start()?;
    publish_numbers(sensors, 1, 6)?;
    agent.wait_book("held", 6)?;
    agent.kill();
    gateway.kafka_at(&kafka.brokers());
    if let Some(watermark_topic) = watermark_topic {
        gateway.exactly_once(watermark_topic);
    }
    let agent = gateway.start()?;
    publish_numbers(sensors, 7, 9)?;
    agent.wait_book("delivered", 9)?;
    agent.kill();
    let agent = gateway.start()?;
    publish_numbers(sensors, 10, 10)?;
    agent.wait_book("delivered", 10)?;
    agent.wait_book("held", 0)?;

    let mut reader = Reader::committed(&kafka.brokers(), &[&topic])?;
    let mut found: Vec<(Vec<u8>, Option<u64>)> =
        reader.read_all()?.iter().map(|r| (r.payload.clone(), r.id().map(|(_, sequence)| sequence))).collect();
    if watermark_topic.is_none() {
        // What was delivered right before the kill may come again, under its id.
        let mut ids = std::collections::BTreeSet::new();
        found.retain(|(_, sequence)| ids.insert(*sequence));
    }
    let wanted: Vec<_> = (1..=10).map(|n: u64| (n.to_string().into_bytes(), Some(LATE + n - 1))).collect();
    assert_eq!(found, wanted);
    Ok(())
}

#[test]
fn a_buffer_counts_beyond_2_32_and_is_killed_before_and_after_it() -> Outcome<()> {
    counting_beyond_2_32(None)
}

#[test]
fn a_buffer_counts_beyond_2_32_in_transactions_and_is_killed_before_and_after_it() -> Outcome<()> {
    let watermark_topic = unique_topic("late-watermarks");
    kafka::shared()?.create_topic(&watermark_topic, 1, &[("cleanup.policy", "compact")])?;
    counting_beyond_2_32(Some(&watermark_topic))
}
