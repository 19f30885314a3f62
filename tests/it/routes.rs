//! Routes change while readings wait, and sensors abuse templates: nothing is lost, nothing is wedged, and what is honest
//! flows.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::support::agent::{Agent, Build, Gateway};
use crate::support::books::Books;
use crate::support::client::{Connection, clean};
use crate::support::kafka::{self, Kafka, unique_topic};
use crate::support::proxy::Weather;
use crate::support::publisher::{Log, Plan, Publisher, publish_all};
use crate::support::reader::Reader;
use crate::support::settle::settle;
use crate::support::stage::{watermark_topic, with_log};
use crate::support::wire::{Message, Packet, Version, write_publish};
use crate::support::{Outcome, PATIENCE, Trouble, Verdict, asked, wait_until};

/// A file of the smallest size that is nearly full: of readings that wait for a topic that is missing.
const NEARLY_FULL: &str = "max_bytes = \"16MiB\"\n";

/// So many held or dead readings: as rows of one each they would be 12 MB.
const MANY: u64 = 50_000;

/// Fills the file up to 2 MiB with what cannot be compressed; it is parked.
fn fill(gateway: &Gateway, agent: &Agent) -> Outcome<u64> {
    let (mut sensor, _) = Connection::open(gateway.listener(), Version::V5, clean("noise"))?;
    let mut sent = 0;
    while agent.status()?["buffer"]["used_bytes"].as_u64().unwrap_or(0) < 14 << 20 && sent < 60 {
        let payload = (0..300_000).map(|_| fastrand::u8(..)).collect();
        sent += 1;
        sensor.publish(&Message { topic: "noise".into(), payload, qos: 1, ..Message::default() }, sent)?;
        // Their copies are on disk, and what they were copied from is gone.
        let parked = || agent.status().is_ok_and(|s| s["kafka"]["parked"][0]["held"] == u64::from(sent));
        wait_until("noise to be parked", PATIENCE, parked)?;
    }
    Ok(u64::from(sent))
}

fn small(name: &str, topic: &str, count: u64) -> Plan {
    Plan { payload_bytes: 20, ..Plan::new(name, topic, 1).window(500).count(count) }
}

/// A backlog waits for Kafka in a nearly full file; the route that took it in gets another `from`.
pub fn renamed_with_a_backlog(build: Build) -> Outcome<Verdict> {
    let kafka = kafka::shared()?;
    let (topic, missing) = (kafka.topic("renamed")?, unique_topic("missing"));
    let link = kafka.lease()?;
    let mut gateway = Gateway::new(build, &link.brokers()?)?;
    gateway.exactly_once(&watermark_topic(kafka)?).buffer(NEARLY_FULL);
    gateway.listen("receive_maximum = 1000\n").route("noise", &missing).route("a/#", &topic);
    let mut agent = gateway.start()?;
    let noise = fill(&gateway, &agent)?;
    link.set(Weather::Cut)?;
    let log = publish_all(gateway.listener(), small("p", "a/1", MANY))?;
    agent.stop(PATIENCE)?;
    gateway.without_routes().route("noise", &missing).route("b/#", &topic);
    let agent = gateway.start()?;
    let said = gateway.status()?;
    let gone = said["routes"].as_array().and_then(|routes| routes.iter().find(|route| route["route"] == "a/#"));
    if gone.is_none_or(|route| route["gone_to"] != topic.as_str() || route["held"] != MANY) {
        return Ok(Err(Trouble(format!("status does not say what becomes of what is held: {said}"))));
    }
    let fresh = publish_all(gateway.listener(), small("q", "b/1", 1_000))?;
    link.set(Weather::Fair)?;
    let out = wait_until("the backlog to leave", PATIENCE * 2, || agent.book("held").ok() == Some(noise));
    let books = (agent.book("delivered")?, agent.book("dead_lettered")?);
    if out.is_err() || books != (MANY + 1_000, 0) {
        return Ok(with_log(Err(Trouble(format!("delivered and dead: {books:?}, {out:?}"))), &agent));
    }
    let mut reader = Reader::committed(&kafka.brokers(), &[&topic])?;
    reader.read_count((MANY + 1_000) as usize, PATIENCE)?;
    let books = Books::close(&[log, fresh], reader.read_all()?);
    Ok(books.exactly_once())
}

#[test]
fn a_backlog_whose_route_is_renamed_goes_where_it_was_sent_from_a_nearly_full_file() -> Outcome<()> {
    renamed_with_a_backlog(Build::Real)?
}

/// Readings that no route matches, by the ten thousand, into a nearly full file.
pub fn dead_letters_by_the_thousand(build: Build) -> Outcome<Verdict> {
    let kafka = kafka::shared()?;
    let (topic, missing) = (kafka.topic("alive")?, unique_topic("missing"));
    let mut gateway = Gateway::new(build, &kafka.brokers())?;
    gateway.exactly_once(&watermark_topic(kafka)?).buffer(NEARLY_FULL);
    gateway.listen("receive_maximum = 1000\n").route("noise", &missing).route("a/#", &topic);
    let agent = gateway.start()?;
    let noise = fill(&gateway, &agent)?;
    let publisher = Publisher::start(gateway.listener(), small("p", "nobody/asked", MANY));
    let is_full = || agent.status().is_ok_and(|status| status["buffer"]["full"] == true);
    let done = || agent.book("dead_lettered").ok() == Some(MANY);
    let in_time = wait_until("dead letters", PATIENCE, || done() || is_full()).is_ok();
    if !in_time || is_full() {
        return Ok(Err(Trouble(format!(
            "{} dead letters of {MANY}: {}",
            agent.book("dead_lettered")?,
            agent.status()?
        ))));
    }
    publisher.finish(PATIENCE)?;
    let log = publish_all(gateway.listener(), small("q", "a/1", 500))?;
    wait_until("the others to flow", PATIENCE, || agent.book("held").ok() == Some(noise))?;
    let lines = agent.log().lines().filter(|line| line.contains("dead letter")).count();
    if lines > 5 {
        return Ok(Err(Trouble(format!("{lines} lines for one reason"))));
    }
    Reader::committed(&kafka.brokers(), &[&topic])?.read_count(log.published as usize, PATIENCE)?;
    Ok(Ok(()))
}

#[test]
fn dead_letters_fit_where_their_readings_were_and_are_said_once() -> Outcome<()> {
    dead_letters_by_the_thousand(Build::Real)?
}

/// One QoS 1 reading for each of these topics, as fast as they are taken.
fn flood(gateway: &Gateway, name: &str, topics: impl Iterator<Item = String>) -> Outcome<u64> {
    let (mut sensor, _) = Connection::open(gateway.listener(), Version::V5, clean(name))?;
    let (mut out, mut sent, mut acknowledged) = (Vec::new(), 0_u64, 0_u64);
    for topic in topics {
        let message = Message { topic, payload: b"x".to_vec(), qos: 1, ..Message::default() };
        write_publish(&message, (sent % 50_000) as u16 + 1, false, Version::V5, &mut out);
        sent += 1;
        while !out.is_empty() {
            sensor.send_some(&mut out, Duration::from_millis(20))?;
        }
        while sent - acknowledged >= 90 {
            sensor.expect("PUBACK", |packet| matches!(packet, Packet::PubAck { .. }))?;
            acknowledged += 1;
        }
    }
    while acknowledged < sent {
        sensor.expect("PUBACK", |packet| matches!(packet, Packet::PubAck { .. }))?;
        acknowledged += 1;
    }
    Ok(sent)
}

/// What an agent may take, whatever sensors do.
const RESIDENT_KIB: u64 = 64 * 1024;

/// Sensors that make as many Kafka topics as they like, none of which exists; an honest one beside them.
fn abused_template(topics: u64, max_topics: Option<u64>) -> Outcome<()> {
    let kafka = kafka::shared()?;
    let good = kafka.topic("good")?;
    let mut gateway = Gateway::new(Build::Real, &kafka.brokers())?;
    gateway.exactly_once(&watermark_topic(kafka)?);
    if let Some(most) = max_topics {
        gateway.kafka(&format!("max_topics = {most}\n"));
    }
    let prefix = unique_topic("made");
    gateway.listen("").route("good/#", &good).route("made/{x}", &format!("{prefix}.{{x}}"));
    let agent = gateway.start()?;
    let honest = Publisher::start(gateway.listener(), Plan::new("honest", "good/1", 1).rate(200));
    honest.wait_acknowledged(100)?;
    flood(&gateway, "hostile", (0..topics).map(|n| format!("made/{n}")))?;
    let held = || {
        agent.status().is_ok_and(|status| {
            let parked = status["kafka"]["parked"]
                .as_array()
                .map_or(0, |all| all.iter().filter_map(|p| p["held"].as_u64()).sum());
            parked == topics
        })
    };
    wait_until("all of them to wait", PATIENCE * 2, held)?;
    let log = honest.stop(PATIENCE)?;
    let mut reader = Reader::committed(&kafka.brokers(), &[&good])?;
    reader.read_count(log.published as usize, PATIENCE)?;
    let parked = agent.status()?["kafka"]["parked"].as_array().map_or(0, Vec::len) as u64;
    let (peak, lines) = (agent.memory_kib("VmHWM")?, agent.log().lines().count());
    eprintln!("{topics} topics: {parked} lanes, {peak} KiB at most, {lines} lines, {} honest readings", log.published);
    assert!(parked <= max_topics.unwrap_or(1_000) + 1, "{parked} lanes");
    assert!(lines <= 100, "{lines} lines:\n{}", agent.log());
    if max_topics.is_none() {
        assert!(peak <= RESIDENT_KIB, "{peak} KiB");
    }
    assert_eq!(agent.book("dead_lettered")?, 0);
    Ok(())
}

#[test]
fn sensors_that_make_25_000_topics_hold_up_nobody() -> Outcome<()> {
    abused_template(asked("TIDEGATE_TOPICS", 25_000)?, None)
}

#[test]
fn six_thousand_topics_parked_at_once_are_declared_a_few_at_a_time() -> Outcome<()> {
    abused_template(6_000, Some(10_000))
}

/// Readings that wait for a larger number.
fn beyond(agent: &Agent) -> Option<u64> {
    let status = agent.status().ok()?;
    let parked =
        status["kafka"]["parked"].as_array()?.iter().find(|parked| parked["topic"] == "(beyond max_topics)")?;
    parked["held"].as_u64()
}

#[test]
fn what_is_beyond_the_limit_flows_in_order_when_the_limit_is_raised() -> Outcome<()> {
    let kafka = kafka::shared()?;
    let prefix = unique_topic("made");
    let mut gateway = Gateway::new(Build::Real, &kafka.brokers())?;
    gateway.exactly_once(&watermark_topic(kafka)?).kafka("max_topics = 2\n");
    gateway.listen("").route("made/{x}", &format!("{prefix}.{{x}}"));
    let topics: Vec<String> = (0..6).map(|n| format!("{prefix}.{n}")).collect();
    topics.iter().try_for_each(|topic| kafka.create_topic(topic, 1, &[]))?;
    let names: Vec<&str> = topics.iter().map(String::as_str).collect();
    let plan = |name: &str| Plan::new(name, "", 1).topics((0..6).map(|n| format!("made/{n}")).collect()).count(600);
    let mut logs = Vec::new();
    let mut agent = gateway.start()?;
    // A kill in between changes nothing: what waits is not overtaken.
    for name in ["p", "q"] {
        logs.push(publish_all(gateway.listener(), plan(name))?);
        wait_until("four of six to wait", PATIENCE, || beyond(&agent) == Some(400 * logs.len() as u64))?;
        agent.kill();
        agent = gateway.start()?;
        wait_until("them to wait again", PATIENCE, || beyond(&agent) == Some(400 * logs.len() as u64))?;
    }
    agent.kill();
    gateway.kafka_instead("max_topics = 2\n", "max_topics = 20\n");
    let agent = gateway.start()?;
    logs.push(publish_all(gateway.listener(), plan("r"))?);
    let mut reader = Reader::committed(&kafka.brokers(), &names)?;
    agent.wait_book("held", 0)?;
    reader.read_count(1_800, PATIENCE)?;
    with_log(Books::close(&logs, reader.read_all()?).exactly_once(), &agent)
}

#[test]
fn topics_of_60_kb_do_not_pile_up_in_memory() -> Outcome<()> {
    let kafka = kafka::shared()?;
    let topic = kafka.topic("long")?;
    let mut gateway = Gateway::new(Build::Real, &kafka.brokers())?;
    gateway.listen("").route("#", &topic);
    let agent = gateway.start()?;
    let count = asked("TIDEGATE_LONG_TOPICS", 1_500)?;
    let tail = "x".repeat(60_000);
    flood(&gateway, "long", (0..count).map(|n| format!("{n}/{tail}")))?;
    agent.wait_book("delivered", count)?;
    let peak = agent.memory_kib("VmHWM")?;
    eprintln!("{count} topics of 60 kB: {peak} KiB at most");
    assert!(peak <= RESIDENT_KIB, "{peak} KiB");
    Ok(())
}

#[test]
fn no_template_writes_the_watermark_topic_or_one_of_kafkas_own() -> Outcome<()> {
    let kafka = kafka::shared()?;
    let (watermarks, honest) = (watermark_topic(kafka)?, kafka.topic("honest")?);
    let mut gateway = Gateway::new(Build::Real, &kafka.brokers())?;
    gateway.exactly_once(&watermarks).listen("").route("#", "{topic}");
    let agent = gateway.start()?;
    flood(&gateway, "hostile", [&*watermarks, "_consumer_offsets", &*honest].map(str::to_owned).into_iter())?;
    agent.wait_book("dead_lettered", 2)?;
    agent.wait_book("delivered", 1)?;
    let mut reader = Reader::committed(&kafka.brokers(), &[&watermarks])?;
    reader.read_count(1, PATIENCE)?;
    assert!(reader.read_all()?.iter().all(|record| record.payload != b"x"), "a reading is in the watermark topic");
    agent.wait_log(&["dead letter", "not for readings"])?;
    Ok(())
}

/// Kafka topics of the scenario of parked readings whose route was wrong.
struct Wrong {
    mistyped: String,
    right: String,
    closed: String,
    elsewhere: String,
    gone: String,
}

fn park_three_ways(kafka: &Kafka, gateway: &mut Gateway) -> Outcome<(Wrong, Vec<Log>)> {
    let wrong = Wrong {
        mistyped: unique_topic("mistyped"),
        right: kafka.topic("right")?,
        closed: unique_topic("closed"),
        elsewhere: kafka.topic("elsewhere")?,
        gone: unique_topic("gone"),
    };
    gateway.listen("").route("s/#", &wrong.mistyped).route("c/#", &wrong.closed).route("g/#", &wrong.gone);
    let agent = gateway.start()?;
    let plan = |name: &str| {
        let topics = (0..3).map(|n| format!("{name}/{n}")).collect();
        Plan::new(name, "", 1).topics(topics).window(50).count(2_000)
    };
    let logs = ["s", "c", "g"].map(|name| publish_all(gateway.listener(), plan(name)));
    let logs = logs.into_iter().collect::<Outcome<Vec<_>>>()?;
    let all = || {
        agent.status().is_ok_and(|status| {
            let parked = status["kafka"]["parked"].as_array().cloned().unwrap_or_default();
            parked.iter().filter(|parked| parked["held"] == 2_000).count() == 3
        })
    };
    wait_until("all to be parked", PATIENCE, all)?;
    agent.kill();
    Ok((wrong, logs))
}

#[test]
fn parked_readings_follow_a_mended_route_and_a_redirect_in_order_and_once_through_kills() -> Outcome<()> {
    let kafka = kafka::shared()?;
    let mut gateway = Gateway::new(Build::Real, &kafka.brokers())?;
    gateway.exactly_once(&watermark_topic(kafka)?);
    let (wrong, mut logs) = park_three_ways(kafka, &mut gateway)?;
    let Wrong { right, closed, elsewhere, gone, .. } = &wrong;
    gateway.without_routes().route("s/#", right).route("c/#", closed).route("g/#", gone);
    gateway.redirect(&format!("from = \"{closed}\"\nto = \"{elsewhere}\"\n"));
    gateway.redirect(&format!("from = \"{gone}\"\ngive_up = true\n"));
    for _ in 0..4 {
        let agent = gateway.start()?;
        std::thread::sleep(Duration::from_millis(fastrand::u64(0..700)));
        agent.kill();
    }
    let agent = gateway.start()?;
    // Newer ones of the same MQTT topics, at once.
    let newer = |name: &str| {
        let topics = (0..3).map(|n| format!("{name}/{n}")).collect();
        Plan::new(&format!("{name}-newer"), "", 1).topics(topics).window(50).count(300)
    };
    logs.push(publish_all(gateway.listener(), newer("s"))?);
    logs.push(publish_all(gateway.listener(), newer("c"))?);
    agent.wait_book("held", 0)?;
    assert_eq!((agent.book("dead_lettered")?, agent.book("delivered")?), (2_000, 4_600), "{}", agent.log());
    let given_up = logs.remove(2);
    assert_eq!(given_up.acknowledged_count(), 2_000);
    for (topic, mine) in [(right, [0, 2]), (elsewhere, [1, 3])] {
        let mine: Vec<Log> = mine.iter().map(|index| logs[*index].clone()).collect();
        let mut reader = Reader::committed(&kafka.brokers(), &[topic])?;
        reader.read_count(2_300, PATIENCE)?;
        let records = reader.read_all()?;
        // Each topic has a part of the sequences; that none is in it twice shows in the numbers of records.
        let books = Books::close(&mine, records);
        with_log(books.once_into_the_buffer(), &agent)?;
        assert_eq!((books.recognised, books.records), (0, 2_300), "{books}");
        let mut newest = BTreeMap::new();
        for record in records {
            let sequence = record.id().map_or(0, |(_, sequence)| sequence);
            let before = newest.insert(record.mqtt_topic(), sequence);
            assert!(
                before.is_none_or(|before| before < sequence),
                "{} of {topic} is out of order",
                record.mqtt_topic()
            );
        }
    }
    wait_until("nothing to be parked", PATIENCE, || agent.parked().is_ok_and(|parked| parked.is_empty()))
}

#[test]
fn parked_readings_follow_a_mended_route_at_least_once() -> Outcome<()> {
    let kafka = kafka::shared()?;
    let mut gateway = Gateway::new(Build::Real, &kafka.brokers())?;
    let (wrong, logs) = park_three_ways(kafka, &mut gateway)?;
    gateway.without_routes().route("s/#", &wrong.right).route("c/#", &wrong.elsewhere).route("g/#", &wrong.elsewhere);
    let agent = gateway.start()?;
    settle(&agent, &kafka.brokers(), &[&wrong.right], &logs[..1])?.once_into_the_buffer()?;
    settle(&agent, &kafka.brokers(), &[&wrong.elsewhere], &logs[1..])?.once_into_the_buffer()?;
    assert_eq!(agent.book("dead_lettered")?, 0);
    wait_until("nothing to be parked", PATIENCE, || agent.parked().is_ok_and(|parked| parked.is_empty()))?;
    assert_ne!(wrong.mistyped, wrong.closed);
    Ok(())
}
