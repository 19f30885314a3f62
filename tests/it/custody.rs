//! Nothing that was acknowledged is ever lost: the agent is killed with -9 at random instants under load, and Kafka
//! must hold all that publishers were acknowledged, in order, with every repeat recognisable.
//!
//! `TIDEGATE_KILLS=10000` makes the two campaigns as long as that; 30 kills each otherwise.

use std::time::Duration;

use crate::support::agent::{Build, Gateway};
use crate::support::client::{Connection, keep};
use crate::support::kafka::{self, Kafka};
use crate::support::mosquitto;
use crate::support::publisher::{Plan, Publisher};
use crate::support::reader::{Reader, Record};
use crate::support::settle::{settle, wait_while_anything_comes};
use crate::support::wire::{Message, Packet, Version};
use crate::support::{Outcome, PATIENCE, Trouble, Verdict, trouble};

/// How readings reach the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Straight.
    Listener,
    /// Through mosquitto.
    Broker,
}

/// Kills after which a campaign is settled and a new one begins on a new buffer, so that books stay small.
const KILLS_A_CAMPAIGN: u32 = 50;

/// Each publisher; low enough that two cores keep up while half of the time is spent starting.
const READINGS_A_SECOND: u32 = 2_000;

fn kills() -> u32 {
    std::env::var("TIDEGATE_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(30)
}

#[test]
fn no_acknowledged_reading_is_lost_when_the_agent_behind_its_listener_is_killed() -> Outcome<()> {
    kill_campaigns(Way::Listener)
}

#[test]
fn no_acknowledged_reading_is_lost_when_the_agent_behind_a_broker_is_killed() -> Outcome<()> {
    kill_campaigns(Way::Broker)
}

fn kill_campaigns(way: Way) -> Outcome<()> {
    let mut left = kills();
    while left > 0 {
        let now = left.min(KILLS_A_CAMPAIGN);
        kill_at_random(Build::Real, way, now)??;
        left -= now;
    }
    Ok(())
}

/// A QoS 1 and a QoS 2 publisher, MQTT 5 and 3.1.1, and an agent that lives for 50 to 800 ms at a time.
pub fn kill_at_random(build: Build, way: Way, kills: u32) -> Outcome<Verdict> {
    let kafka = kafka::shared()?;
    let topics = [kafka.topic("kill-1")?, kafka.topic("kill-2")?];
    let (gateway, address) = gateway(build, way, kafka, &topics)?;
    let mut agent = gateway.start()?;
    if way == Way::Broker {
        agent.wait_subscribed(1)?;
    }
    let publisher = |qos: u8, version, topic: &str| {
        let topics = (0..5).map(|n| format!("{}/{qos}/{n}", topics[0])).collect();
        Publisher::start(address, Plan::new(topic, "", qos).topics(topics).version(version).rate(READINGS_A_SECOND))
    };
    let publishers = [publisher(1, Version::V5, &topics[0]), publisher(2, Version::V311, &topics[1])];
    for _ in 0..kills {
        std::thread::sleep(Duration::from_millis(fastrand::u64(50..800)));
        agent.kill();
        agent = gateway.start()?;
    }
    let logs = publishers.into_iter().map(|publisher| publisher.stop(PATIENCE)).collect::<Outcome<Vec<_>>>()?;
    if logs.iter().any(|log| log.acknowledged_count() < u64::from(kills)) {
        return trouble!("hardly anything was acknowledged: {logs:?}");
    }
    let first = settle(&agent, &kafka.brokers(), &[&topics[0]], logs.get(..1).unwrap_or_default())?;
    let second = settle(&agent, &kafka.brokers(), &[&topics[1]], logs.get(1..).unwrap_or_default())?;
    eprintln!("{way:?}, {kills} kills\n  QoS 1: {first}  QoS 2: {second}");
    Ok(first.at_least_once().and(second.once_into_the_buffer()))
}

fn gateway(build: Build, way: Way, kafka: &Kafka, topics: &[String; 2]) -> Outcome<(Gateway, std::net::SocketAddr)> {
    let mut gateway = Gateway::new(build, &kafka.brokers())?;
    let root = &topics[0];
    for (qos, topic) in (1..).zip(topics) {
        gateway.route(&format!("{root}/{qos}/#"), topic);
    }
    let address = match way {
        Way::Listener => gateway.listen("").listener(),
        Way::Broker => {
            let broker = mosquitto::shared()?;
            gateway.subscribe("plant", &broker.url(), &format!("{root}/#"), 2, mosquitto::WIDE);
            broker.address()
        }
    };
    Ok((gateway, address))
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
