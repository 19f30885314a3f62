//! Whatever the gateway's clock says, no reading is lost by it: Kafka takes each with its own time, keeps it for the whole
//! retention, and when it arrived stands beside it. The agent has another wall clock; the time since boot stays as it is.

use std::path::PathBuf;
use std::process::Command;
use std::sync::LazyLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};

use crate::refusals::Mode;
use crate::support::agent::{Agent, Build, Gateway};
use crate::support::kafka::{self, Kafka, unique_topic};
use crate::support::process::Folder;
use crate::support::proxy::Weather;
use crate::support::publisher::{Plan, Publisher};
use crate::support::reader::{Reader, Record};
use crate::support::stage::{Stage, no_holes, once, watermark_topic, with_log};
use crate::support::topics::produce_at;
use crate::support::{Outcome, PATIENCE, Trouble, Verdict, trouble, wait_until};

const MINUTE_MS: i64 = 60_000;
const HOUR_MS: i64 = 60 * MINUTE_MS;
const DAY_MS: i64 = 24 * HOUR_MS;
const YEAR_MS: i64 = 365 * DAY_MS;

/// The wall clock of an agent: off by so much, from now on. Compiled once, from `support/clock.c`.
struct WallClock(PathBuf);

impl WallClock {
    fn of(gateway: &mut Gateway, off_ms: i64) -> Outcome<Self> {
        static LIBRARY: LazyLock<Outcome<(Folder, PathBuf)>> = LazyLock::new(|| {
            let folder = Folder::new("clock")?;
            let (source, library) = (folder.path().join("clock.c"), folder.path().join("clock.so"));
            std::fs::write(&source, include_str!("support/clock.c"))?;
            let mut gcc = Command::new("gcc");
            let output = gcc.args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(&source).arg("-ldl").output()?;
            if output.status.success() {
                return Ok((folder, library));
            }
            trouble!("clock.c: {}", String::from_utf8_lossy(&output.stderr))
        });
        let (_, library) = LIBRARY.as_ref().map_err(|error| Trouble::new(format!("{error:?}")))?;
        let clock = Self(gateway.path().join("clock"));
        clock.is_off_by(off_ms)?;
        gateway.environment("LD_PRELOAD", &library.to_string_lossy());
        gateway.environment("TEST_CLOCK_FILE", &clock.0.to_string_lossy());
        Ok(clock)
    }

    fn is_off_by(&self, off_ms: i64) -> Outcome<()> {
        let next = self.0.with_extension("new");
        std::fs::write(&next, off_ms.to_string())?;
        Ok(std::fs::rename(next, &self.0)?)
    }
}

fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}

fn number(record: &Record, header: &str) -> Outcome<i64> {
    Ok(record.text(header).parse()?)
}

fn gateway(kafka: &Kafka, build: Build, mode: Mode, brokers: &str) -> Outcome<Gateway> {
    let mut gateway = Gateway::new(build, brokers)?;
    let watermarks = watermark_topic(kafka)?;
    match mode {
        Mode::ExactlyOnce => gateway.exactly_once(&watermarks),
        Mode::AtLeastOnce => gateway.kafka(&format!("watermark_topic = \"{watermarks}\"\n")),
    };
    gateway.listen("");
    Ok(gateway)
}

/// Readings arrive by a clock that says this, and go to a Kafka as it comes.
pub fn wrong_clock(build: Build, mode: Mode, off_ms: i64) -> Outcome<Verdict> {
    // With the planted bug each costs a transaction, or a producer.
    let readings = if build == Build::Real { 300 } else { 20 };
    let kafka = kafka::shared()?;
    let stage = Stage::new(kafka, "wrong-clock")?;
    let mut gateway = gateway(kafka, build, mode, &kafka.brokers())?;
    gateway.route("#", &stage.topic);
    let _clock = WallClock::of(&mut gateway, off_ms)?;
    let (topic, begin) = (stage.topic.clone(), now_ms());
    let agent = gateway.start()?;
    let topics = (0..3).map(|n| format!("t/{n}")).collect();
    let log =
        Publisher::start(gateway.listener(), Plan::new("p", "", 1).topics(topics).count(readings)).finish(PATIENCE)?;
    let settled = || agent.book("delivered").unwrap_or(0) + agent.book("dead_lettered").unwrap_or(0) == readings;
    wait_until("all readings to leave", PATIENCE * 2, settled)?;
    let dead = agent.book("dead_lettered")?;
    if dead > 0 {
        return Ok(trouble!("{mode:?}, {off_ms} ms off: {dead} dead letters"));
    }
    let seen = stage.settle(&agent, &[log])?;
    let mut reader = Reader::committed(&kafka.brokers(), &[&topic])?;
    let records = reader.read_all()?.to_vec();
    let verdict = once(&seen).and(no_holes(&[&seen])).and(stamped(&records, begin));
    // A guess costs some batches; with Kafka's word it is one at most.
    let spent = agent.metric("tidegate_kafka_producers_total")?;
    let verdict = verdict.and(if spent <= 2.0 { Ok(()) } else { trouble!("{spent} producers") });
    eprintln!("{mode:?}, {off_ms} ms off: {spent} producers, {}", seen.books[1]);
    Ok(with_log(verdict, &agent))
}

/// The records' own time is the test's, and when they arrived can be mended with the clock they came by.
fn stamped(records: &[Record], begin: i64) -> Verdict {
    for record in records {
        let (stamp, end) = (record.timestamp_ms.unwrap_or_default(), now_ms());
        if !(begin - MINUTE_MS..=end + MINUTE_MS).contains(&stamp) {
            return trouble!("a record of {begin} to {end} bears {stamp}");
        }
        let clock = record.text("tidegate-clock");
        let parts: Vec<&str> = clock.split(':').collect();
        let [state, boot, booted_ms] = parts[..] else { return trouble!("tidegate-clock: {clock:?}") };
        if !["s", "u"].contains(&state) || boot.len() != 8 {
            return trouble!("tidegate-clock: {clock:?}");
        }
        // By a clock that is right the machine was booted at another time: so much was this one wrong.
        let uptime_s: f64 = std::fs::read_to_string("/proc/uptime")?.split(' ').next().unwrap_or_default().parse()?;
        let right_booted_ms = end - (uptime_s * 1000.0) as i64;
        let mended = number(record, "tidegate-arrived")? - booted_ms.parse::<i64>()? + right_booted_ms;
        if !(begin - MINUTE_MS..=end + MINUTE_MS).contains(&mended) {
            return trouble!("arrived {mended}, mended by {clock}; it was {begin} to {end}");
        }
    }
    Ok(())
}

#[test]
fn a_wrong_clock_makes_no_dead_letters_and_records_bear_kafkas_time() -> Outcome<()> {
    for mode in [Mode::ExactlyOnce, Mode::AtLeastOnce] {
        for off_ms in [2 * HOUR_MS, 50 * YEAR_MS, -10 * YEAR_MS, 10_000 - now_ms()] {
            wrong_clock(Build::Real, mode, off_ms)??;
        }
    }
    Ok(())
}

/// Nobody tells the time: the watermark topic is missing, or bears the senders' time.
#[test]
fn without_anybody_to_tell_the_time_a_clock_that_is_ahead_costs_a_few_batches_and_no_reading() -> Outcome<()> {
    let kafka = kafka::shared()?;
    for mode in [Mode::AtLeastOnce, Mode::ExactlyOnce] {
        let stage = Stage::new(kafka, "nobody-tells")?;
        let mut gateway = Gateway::new(Build::Real, &kafka.brokers())?;
        if mode == Mode::ExactlyOnce {
            let topic = unique_topic("senders-time");
            kafka.create_topic(&topic, 1, &[("cleanup.policy", "compact")])?;
            gateway.exactly_once(&topic);
        }
        gateway.listen("").route("#", &stage.topic);
        let _clock = WallClock::of(&mut gateway, 30 * HOUR_MS)?;
        let agent = gateway.start()?;
        let log = Publisher::start(gateway.listener(), Plan::new("p", "t", 1).count(500)).finish(PATIENCE)?;
        agent.wait_book("delivered", 500)?;
        let topic = stage.topic.clone();
        let seen = stage.settle(&agent, &[log])?;
        once(&seen).and(no_holes(&[&seen]))?;
        let mut reader = Reader::committed(&kafka.brokers(), &[&topic])?;
        let oldest = reader.read_all()?.iter().filter_map(|record| record.timestamp_ms).min().unwrap_or_default();
        let producers = agent.metric("tidegate_kafka_producers_total")?;
        eprintln!("{mode:?}: {producers} producers, stamped {} min back", (now_ms() - oldest) / MINUTE_MS);
        // 30 hours ahead are found between 32 and 16 hours: the error is less than what the clock was off.
        if agent.book("dead_lettered")? > 0 || producers > 8.0 || now_ms() - oldest > 30 * HOUR_MS {
            return with_log(trouble!("{producers} producers, oldest {oldest}"), &agent);
        }
    }
    Ok(())
}

/// The first offset that is still there.
fn first_kept(brokers: &str, topic: &str) -> Outcome<i64> {
    let consumer: BaseConsumer = ClientConfig::new().set("bootstrap.servers", brokers).create()?;
    Ok(consumer.fetch_watermarks(topic, 0, Duration::from_secs(10))?.0)
}

/// Readings that came ten days ago go to a topic that keeps them for seven.
pub fn waited_for_longer_than_the_retention(build: Build) -> Outcome<Verdict> {
    const READINGS: u64 = 5_000;
    const KEEPS: [(&str, &str); 1] = [("retention.ms", "604800000")];
    let kafka = kafka::shared()?;
    let (topic, witness) = (unique_topic("late"), unique_topic("late-witness"));
    kafka.create_topic(&topic, 1, &KEEPS)?;
    kafka.create_topic(&witness, 1, &KEEPS)?;
    let link = kafka.lease()?;
    link.set(Weather::Cut)?;
    let mut gateway = gateway(kafka, build, Mode::AtLeastOnce, &link.brokers()?)?;
    gateway.route("#", &topic);
    let clock = WallClock::of(&mut gateway, -10 * DAY_MS)?;
    let mut agent = gateway.start()?;
    let plan = Plan::new("p", "t", 1).window(1_000).count(READINGS);
    Publisher::start(gateway.listener(), plan).finish(PATIENCE)?;
    agent.stop(Duration::from_secs(20))?;
    link.set(Weather::Fair)?;
    clock.is_off_by(0)?;
    let agent = gateway.start()?;
    agent.wait_book("delivered", READINGS)?;
    // Kafka deletes what is as old as they are: a record of ten days ago goes.
    produce_at(&kafka.brokers(), &witness, now_ms() - 10 * DAY_MS)?;
    let gone = || first_kept(&kafka.brokers(), &witness).is_ok_and(|first| first > 0);
    wait_until("Kafka to delete what is too old", PATIENCE, gone)?;
    let first = first_kept(&kafka.brokers(), &topic)?;
    if first > 0 {
        return Ok(trouble!("{READINGS} were delivered, and Kafka has deleted those before offset {first}"));
    }
    let kept = Reader::open(&kafka.brokers(), &[&topic])?.read_all()?.to_vec();
    if kept.len() as u64 != READINGS {
        return Ok(trouble!("{READINGS} were delivered, and Kafka holds {}", kept.len()));
    }
    let ten_days = 10 * DAY_MS - HOUR_MS..10 * DAY_MS + HOUR_MS;
    for record in &kept {
        let waited = record.timestamp_ms.unwrap_or_default() - number(record, "tidegate-arrived")?;
        if !ten_days.contains(&waited) {
            return Ok(trouble!("waited {waited} ms, by its headers"));
        }
    }
    Ok(Ok(()))
}

#[test]
fn readings_that_waited_for_longer_than_the_retention_stay_in_kafka() -> Outcome<()> {
    waited_for_longer_than_the_retention(Build::Real)?
}

/// An hour back each second, while readings come and go: nothing that counts is timed or ordered by the wall clock.
#[test]
fn a_clock_that_goes_back_an_hour_each_second_disturbs_nothing() -> Outcome<()> {
    let kafka = kafka::shared()?;
    let stage = Stage::new(kafka, "back")?;
    let link = kafka.lease()?;
    let mut gateway = gateway(kafka, Build::Real, Mode::ExactlyOnce, &link.brokers()?)?;
    gateway.route("#", &stage.topic);
    let clock = WallClock::of(&mut gateway, 0)?;
    let (topic, begin) = (stage.topic.clone(), now_ms());
    let agent = gateway.start()?;
    let topics = (0..3).map(|n| format!("t/{n}")).collect();
    let publisher = Publisher::start(gateway.listener(), Plan::new("p", "", 2).topics(topics).rate(300));
    let started = Instant::now();
    for hour in 1..=10 {
        clock.is_off_by(-(hour as i64) * HOUR_MS)?;
        // An outage in between: its back-off goes by another clock.
        link.set(if (4..6).contains(&hour) { Weather::Cut } else { Weather::Fair })?;
        assert_eq!(agent.get("/healthz")?.status, 200);
        std::thread::sleep(Duration::from_secs(hour).saturating_sub(started.elapsed()));
    }
    let log = publisher.stop(PATIENCE)?;
    let seen = stage.settle(&agent, &[log])?;
    let mut reader = Reader::committed(&kafka.brokers(), &[&topic])?;
    let records = reader.read_all()?.to_vec();
    let verdict = once(&seen).and(no_holes(&[&seen])).and(stamped(&records, begin)).and(said_once(&agent));
    with_log(verdict, &agent)
}

/// Every jump counts, and the log has a line a minute.
fn said_once(agent: &Agent) -> Verdict {
    let lines = agent.log_lines("WARN").iter().filter(|line| line.contains("the wall clock was set")).count();
    let jumps = agent.metric("tidegate_clock_jumps_total")?;
    let ahead_s = agent.metric("tidegate_clock_ahead_of_kafka_seconds")?;
    if lines == 1 && jumps >= 5.0 && ahead_s < -5.0 * 3600.0 {
        return Ok(());
    }
    trouble!("{jumps} jumps in {lines} lines, {ahead_s} s ahead of Kafka")
}
