//! Nothing that was acknowledged is ever lost: the agent is killed with -9 at random instants under load, and Kafka
//! must hold all that publishers were acknowledged, in order, with every repeat recognisable.
//!
//! `TIDEGATE_KILLS=10000` makes the two campaigns as long as that; 30 kills each otherwise.

use crate::support::agent::{Build, Gateway};
use crate::support::client::{Connection, keep};
use crate::support::kafka;
use crate::support::kills::{self, Campaign, Way};
use crate::support::reader::{Reader, Record};
use crate::support::settle::{settle, wait_while_anything_comes};
use crate::support::wire::{Message, Packet, Version};
use crate::support::{Outcome, PATIENCE, Trouble, Verdict};

/// Kills after which a campaign is settled and a new one begins on a new buffer, so that books stay small.
const KILLS_A_CAMPAIGN: u32 = 50;

#[test]
fn no_acknowledged_reading_is_lost_when_the_agent_behind_its_listener_is_killed() -> Outcome<()> {
    kill_campaigns(Way::Listener)
}

#[test]
fn no_acknowledged_reading_is_lost_when_the_agent_behind_a_broker_is_killed() -> Outcome<()> {
    kill_campaigns(Way::Broker)
}

fn kill_campaigns(way: Way) -> Outcome<()> {
    let mut left = kills::asked()?;
    while left > 0 {
        let now = left.min(KILLS_A_CAMPAIGN);
        kill_at_random(Build::Real, way, now)??;
        left -= now;
    }
    Ok(())
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
    Ok(first.at_least_once().and(second.once_into_the_buffer()))
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
