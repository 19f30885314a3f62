//! Narrow and long links: a backlog leaves over them, nothing that was sent is sent again, and a start costs little. What
//! is judged is bytes and counts; how long it takes is said, and nothing is asked of it.
//!
//! `TIDEGATE_LINKS=all` tries the corners that take minutes as well.

use std::time::{Duration, Instant};

use crate::support::agent::{Agent, Build, Gateway};
use crate::support::kafka::{self, unique_topic};
use crate::support::proxy::Weather;
use crate::support::publisher::{Plan, Publisher};
use crate::support::stage::{Stage, no_holes, once, once_from_the_buffer_on, watermark_topic, with_log};
use crate::support::stream::{Hand, delivered};
use crate::support::{Outcome, PATIENCE, Verdict, trouble, wait_until};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Delivery {
    ExactlyOnce,
    AtLeastOnce,
}

#[derive(Debug, Clone, Copy)]
struct Case {
    delivery: Delivery,
    bits_a_second: u64,
    round_trip: Duration,
    readings: u64,
    payload_bytes: usize,
}

/// Only a link that does not work takes so long for one case.
const MOST: Duration = Duration::from_secs(900);

/// A backlog over such a link: each reading arrives once, no transaction is lost, and most of what goes over the link are
/// readings.
fn drain(build: Build, case: Case) -> Outcome<Verdict> {
    let kafka = kafka::shared()?;
    let stage = Stage::new(kafka, "narrow")?;
    let link = kafka.lease()?;
    let mut gateway = Gateway::new(build, &link.brokers()?)?;
    if case.delivery == Delivery::ExactlyOnce {
        gateway.exactly_once(&watermark_topic(kafka)?);
    }
    gateway.listen("receive_maximum = 2000\n").route("#", &stage.topic);
    link.set(Weather::Cut)?;
    let agent = gateway.start()?;
    let topics = (0..5).map(|n| format!("t/{n}")).collect();
    let plan = Plan::new("narrow", "", 1).topics(topics).window(500).noise(case.payload_bytes).count(case.readings);
    let log = Publisher::start(gateway.listener(), plan).finish(PATIENCE * 2)?;
    agent.wait_book("held", case.readings)?;
    let proxy = link.proxy()?;
    proxy.narrow(case.bits_a_second);
    proxy.delay(case.round_trip / 2);
    let (up, down) = (proxy.bytes_up(), proxy.bytes_down());
    let returned = Instant::now();
    link.set(Weather::Fair)?;
    let verdict = judge(case, &agent, || (proxy.bytes_up() - up, proxy.bytes_down() - down), returned);
    proxy.narrow(0);
    proxy.delay(Duration::ZERO);
    let verdict = match verdict? {
        Ok(()) => {
            let seen = stage.settle(&agent, &[log])?;
            match case.delivery {
                Delivery::ExactlyOnce => once(&seen).and(no_holes(&[&seen])),
                Delivery::AtLeastOnce => once_from_the_buffer_on(&seen),
            }
        }
        Err(found) => Err(found),
    };
    Ok(with_log(verdict, &agent))
}

fn judge(case: Case, agent: &Agent, bytes: impl Fn() -> (u64, u64), returned: Instant) -> Outcome<Verdict> {
    let is_there = |count| move || agent.book("delivered").is_ok_and(|delivered| delivered >= count);
    // What is lost goes again: with three times the bytes in vain the link is not used for readings.
    let wire = case.readings * case.payload_bytes as u64 * 3 / 4;
    let is_wasted = || bytes().0 > 3 * wire + 100_000;
    wait_until("the first delivery", MOST, || is_there(1)() || is_wasted())?;
    let (start, first) = (bytes(), returned.elapsed());
    wait_until("the last delivery", MOST, || is_there(case.readings)() || is_wasted())?;
    let ((up, down), took) = (bytes(), returned.elapsed());
    let share = wire as f64 / up as f64;
    eprintln!(
        "{case:?}: start {:.1} s, {} B up, {} B down; {:.1} s, {up} B up, {down} B down; {:.0} % of what went up are \
         payloads, {:.0} % of the time was used",
        first.as_secs_f64(),
        start.0,
        start.1,
        took.as_secs_f64(),
        share * 100.0,
        (up - start.0) as f64 * 800.0 / case.bits_a_second as f64 / took.saturating_sub(first).as_secs_f64(),
    );
    if is_wasted() || share < LEAST_SHARE {
        return Ok(trouble!("{up} bytes went up for {wire} bytes of readings"));
    }
    if case.delivery == Delivery::ExactlyOnce {
        let aborted = agent.metric("tidegate_kafka_transactions_aborted_total")?;
        let again = agent.log_lines("WARN").iter().filter(|line| line.contains("makes a new one")).count();
        if aborted > 0.0 || again > 0 {
            return Ok(trouble!("{aborted} transactions were aborted, {again} producers given up"));
        }
    }
    Ok(Ok(()))
}

/// Keys, headers, requests, transactions and the start take the rest; small backlogs are mostly start.
const LEAST_SHARE: f64 = 0.6;

#[test]
fn exactly_once_carries_a_backlog_over_128_kbit_a_second() -> Outcome<()> {
    drain(
        Build::Real,
        Case {
            delivery: Delivery::ExactlyOnce,
            bits_a_second: 128_000,
            round_trip: Duration::from_millis(60),
            readings: 500,
            payload_bytes: 1_000,
        },
    )?
}

#[test]
fn exactly_once_carries_a_backlog_over_40_kbit_a_second() -> Outcome<()> {
    drain(Build::Real, NARROW)?
}

/// Seconds of it are more than a transaction of 15 s carries.
const NARROW: Case = Case {
    delivery: Delivery::ExactlyOnce,
    bits_a_second: 40_000,
    round_trip: Duration::from_millis(100),
    readings: 150,
    payload_bytes: 1_000,
};

#[test]
fn at_least_once_carries_a_backlog_over_40_kbit_a_second() -> Outcome<()> {
    drain(Build::Real, Case { delivery: Delivery::AtLeastOnce, readings: 100, ..NARROW })?
}

#[test]
fn exactly_once_carries_readings_over_9_600_bit_a_second_and_a_round_trip_of_2_s() -> Outcome<()> {
    drain(Build::Real, Case { bits_a_second: 9_600, round_trip: Duration::from_secs(2), readings: 30, ..NARROW })?
}

#[test]
fn the_corners_that_take_minutes() -> Outcome<()> {
    if std::env::var("TIDEGATE_LINKS").as_deref() != Ok("all") {
        return Ok(());
    }
    for delivery in [Delivery::ExactlyOnce, Delivery::AtLeastOnce] {
        for (bits_a_second, readings) in [(9_600, 150), (1_000_000, 4_000), (100_000_000, 20_000)] {
            for round_trip in [2, 2_000].map(Duration::from_millis) {
                drain(Build::Real, Case { delivery, bits_a_second, round_trip, readings, payload_bytes: 1_000 })??;
            }
        }
    }
    Ok(())
}

/// One reading alone takes longer than a transaction usually may.
#[test]
fn a_reading_that_is_larger_than_15_s_of_the_link_gets_through_and_so_do_those_behind_it() -> Outcome<()> {
    if std::env::var("TIDEGATE_LINKS").as_deref() != Ok("all") {
        return Ok(());
    }
    let kafka = kafka::shared()?;
    for exactly_once in [true, false] {
        let stage = Stage::new(kafka, "large")?;
        let link = kafka.lease()?;
        let mut gateway = Gateway::new(Build::Real, &link.brokers()?)?;
        if exactly_once {
            gateway.exactly_once(&watermark_topic(kafka)?);
        }
        gateway.listen("receive_maximum = 2000\n").route("#", &stage.topic);
        link.set(Weather::Cut)?;
        let agent = gateway.start()?;
        let publish = |name: &str, bytes, count| {
            Publisher::start(gateway.listener(), Plan::new(name, name, 1).noise(bytes).count(count)).finish(PATIENCE)
        };
        // 75 kB of the wire at 1.2 kB a second.
        let logs = [publish("before", 200, 20)?, publish("large", 100_000, 1)?, publish("behind", 200, 20)?];
        link.proxy()?.narrow(9_600);
        link.set(Weather::Fair)?;
        let began = Instant::now();
        wait_until("all", MOST, || agent.book("delivered").is_ok_and(|delivered| delivered == 41))?;
        eprintln!(
            "exactly once: {exactly_once}, {:.0} s, {} B up",
            began.elapsed().as_secs_f64(),
            link.proxy()?.bytes_up()
        );
        link.proxy()?.narrow(0);
        let seen = stage.settle(&agent, &logs)?;
        with_log(once_from_the_buffer_on(&seen), &agent)?;
    }
    Ok(())
}

/// A start reads what it needs, over a narrow link, of a topic that has become long, and that others write to.
#[test]
fn a_start_reads_little_of_a_long_watermark_topic() -> Outcome<()> {
    const BEFORE: usize = 2_000;
    const BEHIND: usize = 40;
    let kafka = kafka::shared()?;
    let stage = Stage::new(kafka, "long-topic")?;
    let watermarks = unique_topic("long-watermarks");
    kafka.create_topic(&watermarks, 1, &[("cleanup.policy", "compact")])?;
    // A record a batch, as transactions write them.
    let hand =
        Hand::new(&kafka.brokers(), &[("batch.num.messages", "1"), ("compression.type", "none"), ("linger.ms", "0")])?;
    let others = |count: usize| -> Outcome<()> {
        for n in 0..count {
            hand.say(&watermarks, &format!("{n:08x}-1111-4111-8111-111111111111"), &delivered(n as u64))?;
        }
        hand.flush()
    };
    others(BEFORE)?;
    let link = kafka.lease()?;
    let mut gateway = Gateway::new(Build::Real, &link.brokers()?)?;
    gateway.exactly_once(&watermarks).listen("").route("#", &stage.topic);
    let publish =
        |name: &str| Publisher::start(gateway.listener(), Plan::new(name, name, 1).count(20)).finish(PATIENCE);
    let mut agent = gateway.start()?;
    let mut logs = vec![publish("a")?];
    agent.wait_book("delivered", 20)?;
    agent.stop(Duration::from_secs(10))?;
    others(BEHIND)?;
    let proxy = link.proxy()?;
    proxy.narrow_down(40_000);
    let (down, began) = (proxy.bytes_down(), Instant::now());
    let agent = gateway.launch()?;
    logs.push(publish("b")?);
    let is_there = || agent.book("delivered").is_ok_and(|delivered| delivered == 40);
    let end = wait_until("the second delivery", PATIENCE * 2, || is_there() || proxy.bytes_down() - down > 200_000);
    let read = proxy.bytes_down() - down;
    eprintln!("a start over 40 kbit/s: {read} B down, {:.1} s", began.elapsed().as_secs_f64());
    proxy.narrow(0);
    if end.is_err() || read > 80_000 {
        return with_log(trouble!("a start took {read} bytes"), &agent);
    }
    let seen = stage.settle(&agent, &logs)?;
    with_log(once_from_the_buffer_on(&seen).and(no_holes(&[&seen])), &agent)
}

/// librdkafka looks for a topic that it has met and that has no partitions once a second, as long as the producer lives.
#[test]
fn nobody_goes_on_looking_for_a_topic_that_is_missing() -> Outcome<()> {
    let kafka = kafka::shared()?;
    let (open, shut) = (kafka.topic("quiet")?, unique_topic("missing"));
    let link = kafka.lease()?;
    let mut gateway = Gateway::new(Build::Real, &link.brokers()?)?;
    // Without transactions it is asked whether there is a watermark topic, which would tell the time.
    gateway.kafka(&format!("watermark_topic = \"{}\"\n", unique_topic("nowhere")));
    gateway.listen("").route("open", &open).route("shut", &shut);
    let agent = gateway.start()?;
    let reading = |topic: &str| Plan::new(topic, "", 1).topics(vec![topic.to_owned()]).count(1);
    Publisher::start(gateway.listener(), reading("open")).finish(PATIENCE)?;
    agent.wait_book("delivered", 1)?;
    let bytes = || link.proxy().map(|proxy| proxy.bytes_up() + proxy.bytes_down());
    let before = bytes()?;
    std::thread::sleep(Duration::from_secs(5));
    let idle = bytes()? - before;
    eprintln!("{idle} bytes in 5 s with nothing to send");
    // Five questions and answers are 935.
    if idle > 400 {
        return trouble!("{idle} bytes in 5 s with nothing to send; log:\n{}", agent.log());
    }
    let producers = || agent.status().ok().and_then(|status| status["kafka"]["producers"].as_u64()).unwrap_or(0);
    let made = producers();
    Publisher::start(gateway.listener(), reading("shut")).finish(PATIENCE)?;
    wait_until("the topic to be parked", PATIENCE, || agent.parked().is_ok_and(|parked| parked.contains(&shut)))?;
    wait_until("a producer that does not know it", PATIENCE, || producers() > made)?;
    Publisher::start(gateway.listener(), reading("open")).finish(PATIENCE)?;
    agent.wait_book("delivered", 2)?;
    Ok(())
}
