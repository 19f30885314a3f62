//! Kafka topics that are missing or forbidden wait in order while all others flow; records that Kafka will never take
//! become dead letters, alone.

use std::time::Duration;

use crate::support::agent::{Agent, Build, Gateway};
use crate::support::books::Books;
use crate::support::client::{Connection, clean};
use crate::support::kafka::{self, unique_topic};
use crate::support::publisher::{Plan, Publisher, publish_all};
use crate::support::reader::Reader;
use crate::support::settle::settle;
use crate::support::wire::{Message, Version};
use crate::support::{Outcome, PATIENCE, Trouble, Verdict, wait_until};

/// What closes a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Closed {
    /// It does not exist; it is created later.
    Missing,
    /// The right to write is taken away and given back later.
    Forbidden,
}

/// How long fresh readings come for a topic that is open again, at most.
const MOST_FRESH: Duration = Duration::from_secs(20);

/// Two topics, one closed. Readings come before it is parked, while it is, and while it is opened again.
pub fn one_of_two_topics_closed(build: Build, closed: Closed) -> Outcome<Verdict> {
    let kafka = kafka::shared()?;
    let open = kafka.topic("open")?;
    let shut = unique_topic("shut");
    if closed == Closed::Forbidden {
        kafka.create_topic(&shut, 1, &[])?;
        kafka.forbid_writing(&shut, true)?;
    }
    let mut gateway = Gateway::new(build, &kafka.brokers())?;
    gateway.listen("").route("open/#", &open).route("shut/#", &shut);
    let agent = gateway.start()?;
    // So much waits at last that the parked ones take a while to leave, with fresh ones coming all the time.
    let plan = |name: &str, rate, payload_bytes| Plan {
        payload_bytes,
        ..Plan::new(name, "", 1).topics((0..3).map(|n| format!("{name}/{n}")).collect()).rate(rate).window(100)
    };
    let publishers = [
        Publisher::start(gateway.listener(), plan("open", 500, 100)),
        Publisher::start(gateway.listener(), plan("shut", 3_000, 500)),
    ];
    publishers[1].wait_acknowledged(500)?;
    let parks =
        wait_until("the topic to be parked", PATIENCE, || agent.parked().is_ok_and(|parked| parked.contains(&shut)));
    if parks.is_err() && build == Build::Real {
        return Ok(Err(Trouble(format!("not parked; log:\n{}", agent.log()))));
    }
    // The other one flows meanwhile.
    let mut reader = Reader::open(&kafka.brokers(), &[&open])?;
    let so_far = reader.read_all()?.len();
    reader.read_count(so_far + 1_000, PATIENCE)?;
    match closed {
        Closed::Missing => kafka.create_topic(&shut, 1, &[])?,
        Closed::Forbidden => kafka.forbid_writing(&shut, false)?,
    }
    // Fresh readings go on while the parked ones leave: that is where order could break. On a machine that has better
    // to do they come as fast as the others leave: they end after a while, and the rest leaves alone.
    let is_open = || agent.parked().is_ok_and(|parked| !parked.contains(&shut));
    let _may_be_open = wait_until("the topic to be opened again", MOST_FRESH, is_open);
    let [open_log, shut_log] = publishers.map(|publisher| publisher.stop(PATIENCE));
    wait_until("the topic to be opened again", PATIENCE * 2, is_open)?;
    let books = [
        settle(&agent, &kafka.brokers(), &[&open], &[open_log?])?,
        settle(&agent, &kafka.brokers(), &[&shut], &[shut_log?])?,
    ];
    eprintln!("{closed:?}: open {}  shut {}", books[0], books[1]);
    Ok(judge(&agent, build, &shut, &books))
}

fn judge(agent: &Agent, build: Build, shut: &str, books: &[Books; 2]) -> Verdict {
    books[0].once_into_the_buffer()?;
    books[1].once_into_the_buffer()?;
    if agent.book("dead_lettered")? != 0 {
        return Err(Trouble::new("a parked reading became a dead letter"));
    }
    let log = agent.log();
    let lines: Vec<&str> = log.lines().filter(|line| line.contains(shut)).collect();
    let (begin, end): (Vec<&str>, Vec<&str>) = lines.iter().partition(|line| line.contains("\"level\":\"WARN\""));
    if build == Build::Real && (begin.len() != 1 || end.len() != 1) {
        return Err(Trouble(format!("one line at the beginning and one at the end, not:\n{}", lines.join("\n"))));
    }
    Ok(())
}

#[test]
fn a_missing_topic_waits_in_order_while_the_other_flows_and_drains_when_it_appears() -> Outcome<()> {
    one_of_two_topics_closed(Build::Real, Closed::Missing)?
}

#[test]
fn a_forbidden_topic_waits_in_order_while_the_other_flows_and_drains_when_it_is_allowed() -> Outcome<()> {
    one_of_two_topics_closed(Build::Real, Closed::Forbidden)?
}

#[test]
fn parked_readings_survive_a_kill() -> Outcome<()> {
    let kafka = kafka::shared()?;
    let shut = unique_topic("shut-kill");
    let mut gateway = Gateway::new(Build::Real, &kafka.brokers())?;
    gateway.listen("").route("#", &shut);
    let mut agent = gateway.start()?;
    let mut logs = Vec::new();
    for life in 0..3 {
        logs.push(publish_all(gateway.listener(), Plan::new(&format!("p{life}"), "t", 1).count(500))?);
        wait_until("the topic to be parked", PATIENCE, || agent.parked().is_ok_and(|parked| parked.contains(&shut)))?;
        agent.kill();
        agent = gateway.start()?;
    }
    agent.wait_book("held", 1_500)?;
    kafka.create_topic(&shut, 1, &[])?;
    settle(&agent, &kafka.brokers(), &[&shut], &logs)?.exactly_once()
}

/// One record over the topic's limit between good ones.
pub fn one_record_too_large(build: Build) -> Outcome<Verdict> {
    let kafka = kafka::shared()?;
    let topic = unique_topic("small");
    // Kafka counts what is compressed; what cannot be compressed stays large.
    kafka.create_topic(&topic, 1, &[("max.message.bytes", "5000")])?;
    let mut gateway = Gateway::new(build, &kafka.brokers())?;
    gateway.listen("").route("#", &topic);
    let agent = gateway.start()?;
    let (mut sensor, _) = Connection::open(gateway.listener(), Version::V5, clean("s"))?;
    let noise = |bytes: usize| (0..bytes).map(|_| fastrand::u8(..)).collect::<Vec<u8>>();
    for id in 1..=21 {
        let payload = if id == 11 { noise(20_000) } else { vec![id as u8] };
        sensor.publish(&Message { topic: "t".into(), payload, qos: 1, ..Message::default() }, id)?;
    }
    agent.wait_book("received", 21)?;
    agent.wait_book("held", 0)?;
    let mut reader = Reader::open(&kafka.brokers(), &[&topic])?;
    let payloads: Vec<u8> = reader.read_all()?.iter().filter_map(|record| record.payload.first().copied()).collect();
    let wanted: Vec<u8> = (1..=21).filter(|n| *n != 11).collect();
    let books = (agent.book("received")?, agent.book("delivered")?, agent.book("dead_lettered")?);
    let said = agent.log().lines().filter(|line| line.contains("dead letter")).count();
    Ok(if payloads == wanted && books == (21, 20, 1) && said >= 1 {
        Ok(())
    } else {
        Err(Trouble(format!("{payloads:?}; received, delivered, dead {books:?}; said {said}\n{}", agent.log())))
    })
}

#[test]
fn a_record_that_is_too_large_is_a_dead_letter_and_its_neighbours_are_delivered() -> Outcome<()> {
    one_record_too_large(Build::Real)?
}

#[test]
fn small_records_that_are_too_large_together_are_all_delivered() -> Outcome<()> {
    let kafka = kafka::shared()?;
    let topic = unique_topic("tight");
    kafka.create_topic(&topic, 1, &[("max.message.bytes", "2000")])?;
    let mut gateway = Gateway::new(Build::Real, &kafka.brokers())?;
    gateway.listen("").route("#", &topic).kafka("linger = \"200ms\"\n");
    let agent = gateway.start()?;
    let (mut sensor, _) = Connection::open(gateway.listener(), Version::V5, clean("s"))?;
    // Random bytes do not compress: three of them do not fit.
    for id in 1..=60 {
        let payload = (0..700).map(|_| fastrand::u8(..)).collect();
        sensor.publish(&Message { topic: "t".into(), payload, qos: 1, ..Message::default() }, id)?;
    }
    agent.wait_book("received", 60)?;
    agent.wait_book("held", 0)?;
    assert_eq!((agent.book("delivered")?, agent.book("dead_lettered")?), (60, 0), "{}", agent.log());
    let ids: Vec<_> =
        Reader::open(&kafka.brokers(), &[&topic])?.read_all()?.iter().map(crate::support::reader::Record::id).collect();
    assert_eq!(ids.len(), 60);
    assert!(ids.is_sorted(), "order: {ids:?}");
    Ok(())
}
