//! `delivery = "exactly-once"`: what a consumer with `isolation.level=read_committed` sees, while the agent is killed in
//! every phase of its transactions. Real Kafka, real mosquitto. A reader looks on all the time, another one at the end.
//!
//! `TIDEGATE_KILLS=1000` makes the campaigns as long as that; 30 kills each otherwise.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::support::agent::{Agent, Build, Gateway};
use crate::support::books::{Books, Missing};
use crate::support::client::{Connection, clean};
use crate::support::kafka::{self, Kafka, unique_topic};
use crate::support::mosquitto;
use crate::support::proxy::Weather;
use crate::support::publisher::{Log, Plan, Publisher};
use crate::support::reader::{OpenTransaction, Reader, Record, delete_topic, policy, set_policy};
use crate::support::wire::{Message, Version};
use crate::support::{Outcome, PATIENCE, Trouble, Verdict, trouble, wait_until};

/// How many kills a campaign has.
fn kills() -> u32 {
    std::env::var("TIDEGATE_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(30)
}

/// A compacted topic of one's own with one partition: a killed transaction in it holds up nobody else.
pub fn watermark_topic(kafka: &Kafka) -> Outcome<String> {
    let topic = unique_topic("watermarks");
    kafka.create_topic(&topic, 1, &[("cleanup.policy", "compact")])?;
    Ok(topic)
}

/// A consumer that reads from the start of a scenario to its end.
struct Onlooker {
    enough: Arc<AtomicBool>,
    thread: JoinHandle<Outcome<Vec<Record>>>,
}

impl Onlooker {
    fn start(brokers: &str, topic: &str) -> Outcome<Self> {
        let enough = Arc::new(AtomicBool::new(false));
        let mut reader = Reader::committed(brokers, &[topic])?;
        let stop = Arc::clone(&enough);
        let thread = std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                reader.read_all()?;
            }
            Ok(reader.read_all()?.to_vec())
        });
        Ok(Self { enough, thread })
    }

    fn end(self) -> Outcome<Vec<Record>> {
        self.enough.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_panicked| Trouble::new("the onlooker panicked"))?
    }
}

/// A Kafka topic with its onlooker.
pub struct Stage {
    brokers: String,
    pub topic: String,
    onlooker: Onlooker,
}

impl Stage {
    fn new(kafka: &Kafka, claim: &str) -> Outcome<Self> {
        Self::on(kafka.brokers(), kafka.topic(claim)?)
    }

    /// With a topic that is there.
    pub fn on(brokers: String, topic: String) -> Outcome<Self> {
        let onlooker = Onlooker::start(&brokers, &topic)?;
        Ok(Self { brokers, topic, onlooker })
    }

    /// Waits until the agent holds nothing and nothing that was acknowledged is missing, then closes the books as both
    /// readers see them.
    pub fn settle(self, agent: &Agent, logs: &[Log]) -> Outcome<Seen> {
        let mut reader = Reader::committed(&self.brokers, &[&self.topic])?;
        let mut missing = Missing::of(logs);
        let end = Instant::now() + PATIENCE * 2;
        let mut idle = 0;
        while Instant::now() < end && idle < 5 {
            let none_missing = missing.none(reader.read_all()?);
            let held = agent.book("held").ok();
            idle = if held == Some(0) { idle + 1 } else { 0 };
            if none_missing && held == Some(0) {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        agent.wait_book("held", 0)?;
        let last = Books::close(logs, reader.read_all()?);
        let sequences = reader.records().iter().filter_map(|record| Some(record.id()?.1)).collect();
        let onlookers = Books::close(logs, &self.onlooker.end()?);
        Ok(Seen { books: [onlookers, last], sequences })
    }
}

/// What both readers saw of a topic.
pub struct Seen {
    pub books: [Books; 2],
    sequences: BTreeSet<u64>,
}

/// No sequence between the first and the last is missing in all of them together, and none is in two.
pub fn no_holes(all: &[&Seen]) -> Verdict {
    let count: usize = all.iter().map(|seen| seen.sequences.len()).sum();
    let together: BTreeSet<u64> = all.iter().flat_map(|seen| &seen.sequences).copied().collect();
    let span = match (together.first(), together.last()) {
        (Some(first), Some(last)) => last - first + 1,
        _ => 0,
    };
    if span == together.len() as u64 && count == together.len() {
        return Ok(());
    }
    trouble!("{} sequences in a span of {span}, {count} in all topics", together.len())
}

/// What must hold of readings that came at QoS 2: each once, in order.
pub fn once(seen: &Seen) -> Verdict {
    seen.books.iter().try_for_each(|books| {
        books.once_into_the_buffer()?;
        if books.recognised == 0 { Ok(()) } else { Err(Trouble(books.to_string())) }
    })
}

/// What must hold of readings that came at QoS 1: whatever the buffer took goes to Kafka once. A publisher that did not
/// get its PUBACK sends again, and then it is another reading.
fn once_from_the_buffer_on(seen: &Seen) -> Verdict {
    seen.books.iter().try_for_each(|books| {
        books.at_least_once()?;
        if books.recognised == 0 { Ok(()) } else { Err(Trouble(books.to_string())) }
    })
}

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

/// How readings reach the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Straight.
    Listener,
    /// Through mosquitto.
    Broker,
}

/// Each publisher; low enough that two cores keep up while half of the time is spent starting.
const READINGS_A_SECOND: u32 = 1_000;

#[test]
fn a_read_committed_consumer_sees_each_reading_once_though_the_agent_behind_its_listener_is_killed() -> Outcome<()> {
    kill_at_random(Build::Real, Way::Listener, kills())?
}

#[test]
fn a_read_committed_consumer_sees_each_reading_once_though_the_agent_behind_a_broker_is_killed() -> Outcome<()> {
    kill_at_random(Build::Real, Way::Broker, kills())?
}

/// A QoS 1 and a QoS 2 publisher, and an agent that lives for 0.1 to 1.5 s at a time: starts, recoveries and commits are
/// all hit.
pub fn kill_at_random(build: Build, way: Way, kills: u32) -> Outcome<Verdict> {
    let kafka = kafka::shared()?;
    let stages = [Stage::new(kafka, "txn-kill-1")?, Stage::new(kafka, "txn-kill-2")?];
    let root = stages[0].topic.clone();
    let mut gateway = Gateway::new(build, &kafka.brokers())?;
    gateway.exactly_once(&watermark_topic(kafka)?);
    for (qos, stage) in (1..).zip(&stages) {
        gateway.route(&format!("{root}/{qos}/#"), &stage.topic);
    }
    let address = match way {
        Way::Listener => gateway.listen("").listener(),
        Way::Broker => {
            let broker = mosquitto::shared()?;
            gateway.subscribe("plant", &broker.url(), &format!("{root}/#"), 2, mosquitto::WIDE);
            broker.address()
        }
    };
    let mut agent = gateway.start()?;
    if way == Way::Broker {
        agent.wait_subscribed(1)?;
    }
    let publisher = |qos: u8, version, name: &str| {
        let topics = (0..5).map(|n| format!("{root}/{qos}/{n}")).collect();
        Publisher::start(address, Plan::new(name, "", qos).topics(topics).version(version).rate(READINGS_A_SECOND))
    };
    let publishers = [publisher(1, Version::V5, &stages[0].topic), publisher(2, Version::V311, &stages[1].topic)];
    for _ in 0..kills {
        std::thread::sleep(Duration::from_millis(fastrand::u64(100..1_500)));
        agent.kill();
        agent = gateway.start()?;
    }
    let logs = publishers.into_iter().map(|publisher| publisher.stop(PATIENCE)).collect::<Outcome<Vec<_>>>()?;
    if logs.iter().any(|log| log.acknowledged_count() < u64::from(kills)) {
        return trouble!("hardly anything was acknowledged: {logs:?}");
    }
    let [first, second] = stages;
    let first = first.settle(&agent, logs.get(..1).unwrap_or_default())?;
    let second = second.settle(&agent, logs.get(1..).unwrap_or_default())?;
    eprintln!("{way:?}, {kills} kills\n  QoS 1: {}  QoS 2: {}", first.books[1], second.books[1]);
    let verdict = once_from_the_buffer_on(&first).and(once(&second)).and(no_holes(&[&first, &second]));
    Ok(verdict.map_err(|Trouble(text)| Trouble(format!("{text}\nlog:\n{}", tail(&agent.log())))))
}

fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(200)..].join("\n")
}

/// The phases of a transaction in which the agent can be made to kill itself, by the names of `src/planted.rs`.
const PHASES: &[&str] = &["die-recalling", "die-filling", "die-sealing", "die-committing", "die-committed"];

/// The agent dies in that phase, comes back as the product, and dies again; what both leave behind is seen once.
pub fn die_in(phase: &'static str, at: u32) -> Outcome<Verdict> {
    let kafka = kafka::shared()?;
    let stage = Stage::new(kafka, "die")?;
    let mut gateway = Gateway::new(Build::Planted(phase), &kafka.brokers())?;
    gateway.exactly_once(&watermark_topic(kafka)?).listen("").route("#", &stage.topic);
    gateway.environment("TIDEGATE_PLANT_AT", &at.to_string());
    let plan = Plan::new("p", "", 2).topics((0..3).map(|n| format!("t/{n}")).collect()).rate(2_000).count(6_000);
    let mut agent = gateway.launch()?;
    let publisher = Publisher::start(gateway.listener(), plan);
    for _ in 0..2 {
        agent.wait(PATIENCE)?; // by its own hand
        agent = gateway.launch()?;
    }
    agent.kill();
    let mut agent = gateway.build(Build::Real).start()?;
    let log = publisher.finish(PATIENCE * 2)?;
    let seen = stage.settle(&agent, &[log])?;
    eprintln!("{phase} at {at}: {}", seen.books[1]);
    agent.stop(Duration::from_secs(10))?;
    let verdict = once(&seen).and(no_holes(&[&seen]));
    Ok(verdict.map_err(|Trouble(text)| Trouble(format!("{phase}: {text}\nlog:\n{}", tail(&agent.log())))))
}

#[test]
fn a_death_in_any_phase_of_a_transaction_is_not_seen_by_readers() -> Outcome<()> {
    for phase in PHASES {
        // A start comes by once a life.
        let times: &[u32] = if *phase == "die-recalling" { &[1] } else { &[1, 5] };
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
    let onlooker = Onlooker::start(&kafka.brokers(), &topic)?;
    let stage = Stage { brokers: kafka.brokers(), topic, onlooker };
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
    late_end_txn(Build::Real, if kills() > 100 { 60 } else { 20 })?
}

/// Copies a buffer that nobody uses now.
fn copy_buffer(from: &Gateway, to: &std::path::Path) -> Outcome<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from.data_dir())? {
        let entry = entry?;
        std::fs::copy(entry.path(), to.join(entry.file_name()))?;
    }
    Ok(())
}

#[test]
fn a_restored_older_copy_takes_a_new_identity_and_loses_no_new_reading() -> Outcome<()> {
    let kafka = kafka::shared()?;
    let stage = Stage::new(kafka, "restored")?;
    let link = kafka.lease()?;
    let mut gateway = Gateway::new(Build::Real, &link.brokers()?)?;
    gateway.exactly_once(&watermark_topic(kafka)?).listen("").route("#", &stage.topic);
    let publish = |name: &str, count| {
        Publisher::start(gateway.listener(), Plan::new(name, name, 2).count(count)).finish(PATIENCE)
    };
    let backup = gateway.path().join("backup");
    let mut agent = gateway.start()?;
    let mut logs = vec![publish("first", 500)?];
    agent.wait_book("delivered", 500)?;
    agent.stop(Duration::from_secs(10))?;
    copy_buffer(&gateway, &backup)?;
    let mut agent = gateway.start()?;
    let old_id = agent.status()?["buffer_id"].to_string();
    logs.push(publish("second", 500)?);
    agent.wait_book("delivered", 1_000)?;
    agent.stop(Duration::from_secs(10))?;
    // The copy comes back, and takes new readings under the same sequences before it sees Kafka.
    std::fs::remove_dir_all(gateway.data_dir())?;
    std::fs::rename(&backup, gateway.data_dir())?;
    link.set(Weather::Cut)?;
    let mut agent = gateway.start()?;
    logs.push(publish("third", 800)?);
    link.set(Weather::Fair)?;
    agent.wait_log(&["ERROR", "taken a new identity"])?;
    // It begins anew behind that line, its page included.
    agent.wait_ready()?;
    let new_id = agent.status()?["buffer_id"].to_string();
    if new_id == old_id {
        return trouble!("the copy kept its identity {old_id}");
    }
    logs.push(publish("fourth", 100)?);
    agent.wait_book("delivered", 500 + 800 + 100)?;
    let mut reader = Reader::committed(&kafka.brokers(), &[&stage.topic])?;
    let was = |records: &[Record]| records.iter().filter(|record| record.header("tidegate-was").is_some()).count();
    let with_old_id = was(reader.read_until("all", PATIENCE, |records| records.len() >= 1_900)?);
    let seen = stage.settle(&agent, &logs)?;
    eprintln!("{with_old_id} records bear the old id as well: {}", seen.books[1]);
    seen.books[1].once_into_the_buffer()?;
    if with_old_id == 800 { Ok(()) } else { trouble!("{with_old_id} of 800 records bear the old id") }
}

#[test]
fn a_cloned_buffer_that_runs_twice_loses_nothing_and_ends_up_with_two_identities() -> Outcome<()> {
    let kafka = kafka::shared()?;
    let stage = Stage::new(kafka, "cloned")?;
    let watermarks = watermark_topic(kafka)?;
    let gateways = ["a", "b"].map(|_| -> Outcome<Gateway> {
        let mut gateway = Gateway::new(Build::Real, &kafka.brokers())?;
        gateway.exactly_once(&watermarks).listen("").route("#", &stage.topic);
        Ok(gateway)
    });
    let [first, second] = gateways;
    let (first, second) = (first?, second?);
    let mut agent = first.start()?;
    let publish = |gateway: &Gateway, name: &str, count| {
        Publisher::start(gateway.listener(), Plan::new(name, name, 2).count(count).rate(500))
    };
    let mut logs = vec![publish(&first, "before", 200).finish(PATIENCE)?];
    agent.wait_book("delivered", 200)?;
    agent.stop(Duration::from_secs(10))?;
    copy_buffer(&first, &second.data_dir())?;
    let agents = [first.start()?, second.start()?];
    let publishers = [publish(&first, "one", 3_000), publish(&second, "two", 3_000)];
    for publisher in publishers {
        logs.push(publisher.finish(PATIENCE)?);
    }
    for agent in &agents {
        agent.wait_book("delivered", 200 + 3_000)?;
    }
    let ids = [agents[0].status()?["buffer_id"].to_string(), agents[1].status()?["buffer_id"].to_string()];
    let renamed = agents.iter().filter(|agent| agent.log().contains("taken a new identity")).count();
    let seen = stage.settle(&agents[0], &logs)?;
    eprintln!("{ids:?}, {renamed} renamed: {}", seen.books[1]);
    if ids[0] == ids[1] || renamed != 1 {
        return trouble!(
            "{ids:?}, {renamed} took a new identity\n{}\n{}",
            tail(&agents[0].log()),
            tail(&agents[1].log())
        );
    }
    let books = &seen.books[1];
    if books.lost + books.foreign + books.misdirected == 0 { Ok(()) } else { trouble!("{books}") }
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
    let onlooker = Onlooker::start(&kafka.brokers(), &shut)?;
    for _ in 0..kills() / 3 {
        std::thread::sleep(Duration::from_millis(fastrand::u64(300..2_500)));
        agent.kill();
        agent = gateway.start()?;
    }
    let [open_log, shut_log] = publishers.map(|publisher| publisher.stop(PATIENCE));
    let shut = Stage { brokers: kafka.brokers(), topic: shut, onlooker };
    let open = open.settle(&agent, &[open_log?])?;
    let shut = shut.settle(&agent, &[shut_log?])?;
    eprintln!("open {}  shut {}", open.books[1], shut.books[1]);
    let verdict = once(&open).and(once(&shut)).and(no_holes(&[&open, &shut]));
    verdict.map_err(|Trouble(text)| Trouble(format!("{text}\nlog:\n{}", tail(&agent.log()))))
}

/// Records that the topic refuses among good ones, and kills: the good ones arrive once, the bad ones are dead letters,
/// and every hole is declared in the watermark topic.
#[test]
fn poison_is_a_declared_hole_and_its_neighbours_arrive_once_through_kills() -> Outcome<()> {
    let kafka = kafka::shared()?;
    let topic = unique_topic("txn-poison");
    kafka.create_topic(&topic, 1, &[("max.message.bytes", "5000")])?;
    let watermarks = watermark_topic(kafka)?;
    let onlooker = Onlooker::start(&kafka.brokers(), &topic)?;
    let mut gateway = Gateway::new(Build::Real, &kafka.brokers())?;
    gateway.exactly_once(&watermarks).listen("").route("#", &topic);
    let mut agent = gateway.start()?;
    let stage = Stage { brokers: kafka.brokers(), topic, onlooker };
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
    trouble!("holes {missing:?}, declared {declared:?}\n{}", tail(&agent.log()))
}

/// Another gateway holds a transaction open in our partition of the watermark topic, before our last watermark: a
/// `read_committed` reader does not see that one. The agent, killed after that commit, must wait and not send again.
pub fn stalled_partition(build: Build) -> Outcome<Verdict> {
    let kafka = kafka::shared()?;
    let stage = Stage::new(kafka, "stalled")?;
    let watermarks = watermark_topic(kafka)?;
    let mut gateway = Gateway::new(Build::Real, &kafka.brokers())?;
    gateway.exactly_once(&watermarks).listen("").route("#", &stage.topic).environment("TIDEGATE_PLANT_AT", "1");
    let address = gateway.listener();
    let publish = |name: &str| Publisher::start(address, Plan::new(name, name, 2).count(200));
    let wait_watermark = |agent: &Agent| {
        wait_until("the watermark", PATIENCE, || {
            agent.status().is_ok_and(|status| status["kafka"]["transactions"]["watermark"] == 200)
        })
    };
    let mut agent = gateway.start()?;
    let mut logs = vec![publish("a").finish(PATIENCE)?];
    wait_watermark(&agent)?;
    agent.stop(Duration::from_secs(10))?;
    let mut agent = gateway.build(Build::Planted("die-committed")).start()?;
    wait_watermark(&agent)?;
    let other = OpenTransaction::begin(&kafka.brokers(), &watermarks)?;
    let publisher = publish("b");
    agent.wait(PATIENCE)?; // by its own hand, after a commit
    let agent = gateway.build(build).start()?;
    std::thread::sleep(Duration::from_secs(3));
    if build == Build::Real {
        agent.wait_log(&["another gateway's transaction is open"])?;
    }
    other.abort()?;
    logs.push(publisher.finish(PATIENCE)?);
    let seen = stage.settle(&agent, &logs)?;
    eprintln!("{}", seen.books[1]);
    Ok(once(&seen).and(no_holes(&[&seen])))
}

#[test]
fn a_transaction_that_another_gateway_holds_open_is_waited_for() -> Outcome<()> {
    stalled_partition(Build::Real)?
}

#[test]
fn a_watermark_topic_that_is_not_compacted_stops_the_sending_and_says_so_and_nothing_is_lost() -> Outcome<()> {
    let kafka = kafka::shared()?;
    let stage = Stage::new(kafka, "crooked")?;
    let watermarks = unique_topic("crooked-watermarks");
    kafka.create_topic(&watermarks, 1, &[])?;
    let mut gateway = Gateway::new(Build::Real, &kafka.brokers())?;
    gateway.exactly_once(&watermarks).listen("").route("#", &stage.topic);
    let agent = gateway.launch()?;
    agent.wait_log(&["WARN", "cleanup.policy", "set it to compact"])?;
    let log = Publisher::start(gateway.listener(), Plan::new("p", "p", 2).count(100)).finish(PATIENCE)?;
    agent.wait_book("held", 100)?;
    let ready = agent.get("/readyz")?;
    if ready.status == 200 || !ready.body.contains("watermark topic") {
        return trouble!("/readyz: {} {}", ready.status, ready.body);
    }
    set_policy(&kafka.brokers(), &watermarks, "compact")?;
    let seen = stage.settle(&agent, &[log])?;
    once(&seen).and(no_holes(&[&seen]))
}

#[test]
fn a_missing_watermark_topic_is_made_with_the_right_settings() -> Outcome<()> {
    let kafka = kafka::shared()?;
    let stage = Stage::new(kafka, "made")?;
    let watermarks = unique_topic("made-watermarks");
    let mut gateway = Gateway::new(Build::Real, &kafka.brokers())?;
    gateway.exactly_once(&watermarks).listen("").route("#", &stage.topic);
    let agent = gateway.start()?;
    let log = Publisher::start(gateway.listener(), Plan::new("p", "p", 2).count(100)).finish(PATIENCE)?;
    let seen = stage.settle(&agent, &[log])?;
    once(&seen)?;
    match policy(&kafka.brokers(), &watermarks)?.as_str() {
        "compact" => Ok(()),
        other => trouble!("cleanup.policy={other}"),
    }
}

/// The topic is deleted while the agent is away: the cursor of the buffer is kept, and somebody is told.
#[test]
fn a_deleted_watermark_topic_is_an_alarm_and_the_cursor_stays() -> Outcome<()> {
    let kafka = kafka::shared()?;
    let stage = Stage::new(kafka, "deleted")?;
    let watermarks = watermark_topic(kafka)?;
    let mut gateway = Gateway::new(Build::Real, &kafka.brokers())?;
    gateway.exactly_once(&watermarks).listen("").route("#", &stage.topic);
    let publish =
        |name: &str| Publisher::start(gateway.listener(), Plan::new(name, name, 2).count(300)).finish(PATIENCE);
    let mut agent = gateway.start()?;
    let mut logs = vec![publish("a")?];
    agent.wait_book("delivered", 300)?;
    agent.stop(Duration::from_secs(10))?;
    delete_topic(&kafka.brokers(), &watermarks)?;
    let agent = gateway.start()?;
    agent.wait_log(&["ERROR", "has lost this buffer's watermark"])?;
    logs.push(publish("b")?);
    let seen = stage.settle(&agent, &logs)?;
    once(&seen).and(no_holes(&[&seen]))
}

mod controls {
    use super::{Build, Outcome, Trouble, Verdict, die_in, late_end_txn, stalled_partition, trouble};

    fn red(bug: &str, verdict: Verdict) -> Outcome<()> {
        match verdict {
            Err(Trouble(found)) => {
                eprintln!("{bug} was found: {}", found.lines().next().unwrap_or_default());
                Ok(())
            }
            Ok(()) => trouble!("{bug} is planted and the scenario does not see it"),
        }
    }

    #[test]
    fn a_cursor_that_moves_before_the_commit_is_seen() -> Outcome<()> {
        red("cursor-before-commit", die_in("cursor-before-commit,die-committing", 3)?)
    }

    #[test]
    fn a_watermark_outside_the_transaction_is_seen() -> Outcome<()> {
        red("watermark-outside", die_in("watermark-outside,die-committing", 3)?)
    }

    #[test]
    fn a_watermark_that_is_read_before_it_is_committed_is_seen() -> Outcome<()> {
        red("no-read-committed", die_in("no-read-committed,die-committing", 3)?)
    }

    #[test]
    fn a_watermark_that_is_read_without_waiting_for_others_is_seen() -> Outcome<()> {
        red("no-stable-read", stalled_partition(Build::Planted("no-stable-read"))?)
    }

    #[test]
    fn a_producer_that_is_kept_after_a_retried_end_of_transaction_is_seen() -> Outcome<()> {
        red("keep-producer", late_end_txn(Build::Planted("keep-producer"), 40)?)
    }
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
