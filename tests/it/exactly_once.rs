//! `delivery = "exactly-once"`: what a consumer with `isolation.level=read_committed` sees, while the agent is killed in
//! every phase of its transactions. Real Kafka, real mosquitto. A reader looks on all the time, another one at the end.
//!
//! `TIDEGATE_KILLS=1000` makes the campaigns as long as that; 30 kills each otherwise.
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::support::agent::{Build, Gateway};
use crate::support::client::{Connection, clean};
use crate::support::kafka::{self, unique_topic};
use crate::support::kills::{self, Campaign, Way};
use crate::support::proxy::Weather;
use crate::support::publisher::{Plan, Publisher};
use crate::support::reader::Reader;
use crate::support::stage::{Stage, no_holes, once, once_from_the_buffer_on, watermark_topic, with_log};
use crate::support::wire::{Message, Version};
use crate::support::{Outcome, PATIENCE, Trouble, Verdict, trouble, wait_until};

#[test]
fn a_quiet_run_is_seen_once_by_a_read_committed_consumer() -> Outcome<()> {
    let kafka = kafka::shared()?;
    let stage = Stage::new(kafka, "once")?;
    let mut gateway = Gateway::new(Build::Real, &kafka.brokers())?;
    gateway.exactly_once(&watermark_topic(kafka)?).listen("").route("#", &stage.topic);
    let mut agent = gateway.start()?;
    let mut logs = Vec::new();
    for (name, qos) in [("one", 1), ("two", 2)] {
        let plan = Plan::new(name, &format!("t/{name}"), qos).count(3_000).rate(2_000);
        logs.push(Publisher::start(gateway.listener(), plan).finish(PATIENCE)?);
    }
    let seen = stage.settle(&agent, &logs)?;
    eprintln!("{}{}", seen.books[0], seen.books[1]);
    once(&seen)?;
    no_holes(&[&seen])?;
    agent.stop(Duration::from_secs(10))?;
    let noise = [agent.log_lines("WARN"), agent.log_lines("ERROR")].concat();
    if noise.is_empty() { Ok(()) } else { trouble!("{noise:?}") }
}

#[test]
fn a_read_committed_consumer_sees_each_reading_once_though_the_agent_behind_its_listener_is_killed() -> Outcome<()> {
    kills::in_parts(KILLS_A_CAMPAIGN, |kills| kill_at_random(Way::Listener, kills))
}

#[test]
fn a_read_committed_consumer_sees_each_reading_once_though_the_agent_behind_a_broker_is_killed() -> Outcome<()> {
    kills::in_parts(KILLS_A_CAMPAIGN, |kills| kill_at_random(Way::Broker, kills))
}

/// Kills after which a campaign is settled and a new one begins on a new buffer: readers look at all that was aborted, too.
const KILLS_A_CAMPAIGN: u32 = 250;

/// An agent that lives for 0.1 to 1.5 s at a time: starts, recoveries and commits are all hit.
fn kill_at_random(way: Way, kills: u32) -> Outcome<()> {
    let kafka = kafka::shared()?;
    let stages = [Stage::new(kafka, "txn-kill-1")?, Stage::new(kafka, "txn-kill-2")?];
    let mut gateway = Gateway::new(Build::Real, &kafka.brokers())?;
    gateway.exactly_once(&watermark_topic(kafka)?);
    let campaign = Campaign { way, kills, lives_ms: 100..1_500, rate: 1_000 };
    let (agent, [first_log, second_log]) = campaign.run(&mut gateway, [&stages[0].topic, &stages[1].topic])?;
    let [first, second] = stages;
    let first = first.settle(&agent, &[first_log])?;
    let second = second.settle(&agent, &[second_log])?;
    eprintln!("{way:?}, {kills} kills\n  QoS 1: {}  QoS 2: {}", first.books[1], second.books[1]);
    with_log(once_from_the_buffer_on(&first).and(once(&second)).and(no_holes(&[&first, &second])), &agent)
}

/// The phases of a transaction in which the agent can be made to kill itself, by the names of `src/planted.rs`.
const PHASES: &[&str] = &["die-recovering", "die-filling", "die-sealing", "die-committing", "die-committed"];

/// The agent dies in that phase, comes back as the product, and dies again; what both leave behind is seen once.
pub fn die_in(phase: &'static str, at: u32) -> Outcome<Verdict> {
    let kafka = kafka::shared()?;
    let stage = Stage::new(kafka, "die")?;
    let mut gateway = Gateway::new(Build::Planted(phase), &kafka.brokers())?;
    gateway.exactly_once(&watermark_topic(kafka)?).listen("").route("#", &stage.topic);
    gateway.environment("TIDEGATE_PLANT_AT", &at.to_string());
    let plan = Plan::new("p", "", 2).topics((0..3).map(|n| format!("t/{n}")).collect()).rate(2_000);
    let mut agent = gateway.launch()?;
    let publisher = Publisher::start(gateway.listener(), plan);
    for _ in 0..2 {
        agent.wait(PATIENCE)?; // by its own hand
        agent = gateway.launch()?;
    }
    agent.kill();
    let mut agent = gateway.build(Build::Real).start()?;
    let log = publisher.stop(PATIENCE * 2)?;
    let seen = stage.settle(&agent, &[log])?;
    eprintln!("{phase} at {at}: {}", seen.books[1]);
    agent.stop(Duration::from_secs(10))?;
    let verdict = once(&seen).and(no_holes(&[&seen]));
    Ok(with_log(verdict.map_err(|Trouble(text)| Trouble(format!("{phase}: {text}"))), &agent))
}

#[test]
fn a_death_in_any_phase_of_a_transaction_is_not_seen_by_readers() -> Outcome<()> {
    for phase in PHASES {
        // A start comes by once a life.
        let times: &[u32] = if *phase == "die-recovering" { &[1] } else { &[1, 5] };
        for at in times {
            die_in(phase, *at)??;
        }
    }
    Ok(())
}

/// `EndTxn` arrives late over another connection, 60 times: it would commit a part of a later transaction of the same
/// epoch. Rule A makes of that repeats, rule B nothing at all. The control leaves rule B out.
pub fn late_end_txn(build: Build, rounds: u64) -> Outcome<Verdict> {
    let kafka = kafka::shared()?;
    let topic = unique_topic("late");
    kafka.create_topic(&topic, 12, &[])?;
    let stage = Stage::on(kafka.brokers(), topic)?;
    let link = kafka.lease()?;
    let mut gateway = Gateway::new(build, &link.brokers()?)?;
    gateway.exactly_once(&watermark_topic(kafka)?).listen("receive_maximum = 2000\n").route("#", &stage.topic);
    // Many small requests a transaction, so that it is open for long.
    gateway.kafka("linger = \"20ms\"\n").kafka_options("\"batch.num.messages\" = \"40\"\n");
    let agent = gateway.start()?;
    link.proxy()?.delay(Duration::from_millis(3));
    let topics = (0..60).map(|n| format!("t/{n}")).collect();
    let publisher =
        Publisher::start(gateway.listener(), Plan::new("late", "", 2).topics(topics).rate(3_000).window(1_000));
    publisher.wait_acknowledged(1_000)?;
    let end = Instant::now() + PATIENCE * 4;
    let before = link.proxy()?.late();
    while link.proxy()?.late() < before + rounds && Instant::now() < end {
        let so_far = link.proxy()?.late();
        link.set(Weather::EndTxnLate)?;
        wait_until("an EndTxn", PATIENCE, || link.proxy().is_ok_and(|proxy| proxy.late() > so_far))?;
        link.set(Weather::Fair)?;
        std::thread::sleep(Duration::from_millis(fastrand::u64(300..900)));
    }
    link.proxy()?.delay(Duration::ZERO);
    let log = publisher.stop(PATIENCE)?;
    // The last of them may still be on its way.
    std::thread::sleep(Duration::from_secs(2));
    let retried = agent.metric("tidegate_kafka_end_txn_retried_total")?;
    let producers = agent.metric("tidegate_kafka_producers_total")?;
    let late = link.proxy()?.late() - before;
    let seen = stage.settle(&agent, &[log])?;
    eprintln!("{late} late EndTxn, {retried} seen in the log, {producers} producers: {}", seen.books[1]);
    if build == Build::Real && retried * 2.0 < f64::from(late as u32) {
        return trouble!("{late} ends of transactions were asked for twice, and librdkafka's log told of {retried}");
    }
    Ok(once(&seen).and(no_holes(&[&seen])))
}

#[test]
fn an_end_of_transaction_that_comes_late_tears_nothing() -> Outcome<()> {
    late_end_txn(Build::Real, if kills::asked()? > 100 { 60 } else { 20 })?
}

/// A topic that is closed at first and opens while the agent is killed again and again: both topics get each reading
/// once, in order.
#[test]
fn a_parked_topic_arrives_once_and_in_order_through_kills() -> Outcome<()> {
    let kafka = kafka::shared()?;
    let open = Stage::new(kafka, "txn-open")?;
    let shut = unique_topic("txn-shut");
    let mut gateway = Gateway::new(Build::Real, &kafka.brokers())?;
    gateway.exactly_once(&watermark_topic(kafka)?).listen("");
    gateway.route("open/#", &open.topic).route("shut/#", &shut);
    let mut agent = gateway.start()?;
    let plan = |name: &str| Plan::new(name, "", 2).topics((0..3).map(|n| format!("{name}/{n}")).collect()).rate(1_000);
    let publishers = [plan("open"), plan("shut")].map(|plan| Publisher::start(gateway.listener(), plan));
    publishers[1].wait_acknowledged(500)?;
    wait_until("the topic to be parked", PATIENCE, || agent.parked().is_ok_and(|parked| parked.contains(&shut)))?;
    for _ in 0..3 {
        std::thread::sleep(Duration::from_millis(fastrand::u64(300..1_500)));
        agent.kill();
        agent = gateway.start()?;
    }
    kafka.create_topic(&shut, 1, &[])?;
    let shut = Stage::on(kafka.brokers(), shut)?;
    for _ in 0..kills::asked()? / 3 {
        std::thread::sleep(Duration::from_millis(fastrand::u64(300..2_500)));
        agent.kill();
        agent = gateway.start()?;
    }
    let [open_log, shut_log] = publishers.map(|publisher| publisher.stop(PATIENCE));
    let open = open.settle(&agent, &[open_log?])?;
    let shut = shut.settle(&agent, &[shut_log?])?;
    eprintln!("open {}  shut {}", open.books[1], shut.books[1]);
    with_log(once(&open).and(once(&shut)).and(no_holes(&[&open, &shut])), &agent)
}

/// Records that the topic refuses among good ones, and kills: the good ones arrive once, the bad ones are dead letters,
/// and every hole is declared in the watermark topic.
#[test]
fn poison_is_a_declared_hole_and_its_neighbours_arrive_once_through_kills() -> Outcome<()> {
    let kafka = kafka::shared()?;
    let topic = unique_topic("txn-poison");
    kafka.create_topic(&topic, 1, &[("max.message.bytes", "5000")])?;
    let watermarks = watermark_topic(kafka)?;
    let stage = Stage::on(kafka.brokers(), topic)?;
    let mut gateway = Gateway::new(Build::Real, &kafka.brokers())?;
    gateway.exactly_once(&watermarks).listen("").route("#", &stage.topic);
    let mut agent = gateway.start()?;
    let publisher = Publisher::start(gateway.listener(), Plan::new("good", "t/good", 2).rate(500));
    let poisoned = 6;
    for n in 0..poisoned {
        let (mut sensor, _) = Connection::open(gateway.listener(), Version::V5, clean("bad"))?;
        let payload = (0..20_000).map(|_| fastrand::u8(..)).collect();
        sensor.publish(&Message { topic: "t/bad".into(), payload, qos: 1, ..Message::default() }, 1)?;
        std::thread::sleep(Duration::from_millis(fastrand::u64(100..1_500)));
        if n % 2 == 1 {
            agent.kill();
            agent = gateway.start()?;
        }
    }
    agent.wait_book("dead_lettered", poisoned)?;
    let log = publisher.stop(PATIENCE)?;
    let seen = stage.settle(&agent, &[log])?;
    eprintln!("{}", seen.books[1]);
    once(&seen)?;
    let (first, last) = (seen.sequences.first().copied().unwrap_or(0), seen.sequences.last().copied().unwrap_or(0));
    let missing: BTreeSet<u64> = (first..=last).filter(|n| !seen.sequences.contains(n)).collect();
    let mut declared = BTreeSet::new();
    let mut reader = Reader::committed(&kafka.brokers(), &[&watermarks])?;
    for record in reader.read_all()? {
        if record.key.as_deref().is_some_and(|key| key.windows(6).any(|part| part == b"/hole/")) {
            let hole: serde_json::Value = serde_json::from_slice(&record.payload)?;
            if let (Some(first), Some(last)) = (hole["first"].as_u64(), hole["last"].as_u64()) {
                declared.extend(first..=last);
            }
        }
    }
    if missing.is_subset(&declared) && declared.len() == poisoned as usize {
        return Ok(());
    }
    with_log(trouble!("holes {missing:?}, declared {declared:?}"), &agent)
}

/// A transaction costs several round trips: it must grow with them. Says how fast a backlog leaves; nothing is asked of
/// the time, because the machine may be busy.
#[test]
fn a_backlog_leaves_once_over_a_link_with_a_round_trip_of_300_ms() -> Outcome<()> {
    const READINGS: u64 = 60_000;
    let kafka = kafka::shared()?;
    let stage = Stage::new(kafka, "far")?;
    let link = kafka.lease()?;
    link.set(Weather::Cut)?;
    let mut gateway = Gateway::new(Build::Real, &link.brokers()?)?;
    gateway.exactly_once(&watermark_topic(kafka)?).listen("receive_maximum = 2000\n").route("#", &stage.topic);
    let agent = gateway.start()?;
    let topics = (0..10).map(|n| format!("t/{n}")).collect();
    let plan = Plan::new("far", "", 1).topics(topics).window(1_000).count(READINGS);
    let log = Publisher::start(gateway.listener(), plan).finish(PATIENCE * 2)?;
    agent.wait_book("held", READINGS)?;
    link.proxy()?.delay(Duration::from_millis(150));
    link.set(Weather::Fair)?;
    let delivered = || agent.book("delivered").unwrap_or(0);
    let returned = Instant::now();
    wait_until("the first commit", PATIENCE, || delivered() > 0)?;
    let (began, first) = (Instant::now(), delivered());
    wait_until("the last commit", PATIENCE * 2, || delivered() == READINGS)?;
    let rate = (READINGS - first) as f64 / began.elapsed().as_secs_f64();
    let transactions = agent.metric("tidegate_kafka_transactions_committed_total")?;
    eprintln!(
        "300 ms: first commit after {:.1} s, then {rate:.0} events/s in {transactions} transactions, {:.1} MB peak",
        (began - returned).as_secs_f64(),
        agent.memory_kib("VmHWM")? as f64 / 1024.0
    );
    link.proxy()?.delay(Duration::ZERO);
    let seen = stage.settle(&agent, &[log])?;
    once(&seen).and(no_holes(&[&seen]))
}
