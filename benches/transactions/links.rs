//! A backlog over links of any width and length: how much of the link readings use that stay delivered, what a reading
//! costs on the wire, and what a start costs.
//!
//! Readings are 200 bytes that compress by a quarter at most, from five sensors. The share is the time that the bytes towards
//! Kafka need at the link's rate, of the time from the first delivery to the last one; nothing of them is in vain as long
//! as no transaction is aborted, which is counted. What a reading costs stands beside it: in batches of a few dozen it
//! is a tenth more than in the largest ones, which are measured once, without a bound.

use std::time::{Duration, Instant};

use crate::support::kafka::{Kafka, Lease};
use crate::support::proxy::Weather;
use crate::support::publisher::{Plan, Publisher};
use crate::support::{Outcome, PATIENCE, Trouble, wait_until};
use crate::{Mode, Table, scaled};

const BITS_A_SECOND: [u64; 6] = [9_600, 40_000, 128_000, 1_000_000, 10_000_000, 1_000_000_000];
const ROUND_TRIPS_MS: [u64; 3] = [2, 300, 2_000];

/// Wider links are measured one after the other: they take the machine's time as well.
const NARROW: u64 = 1_000_000;

/// What a backlog takes at the full rate of a narrow link. The first minutes belong to it: how fast a link is has to be
/// found out.
const SECONDS: usize = 300;

const PAYLOAD_BYTES: usize = 200;

#[derive(Debug, Clone, Copy)]
struct Case {
    mode: Mode,
    bits_a_second: u64,
    round_trip_ms: u64,
    readings: u64,
}

#[derive(Debug)]
struct Found {
    start_bytes: u64,
    start_s: f64,
    bytes: u64,
    bytes_up: u64,
    seconds: f64,
    readings: u64,
    timeout_s: u64,
    aborted: f64,
}

/// `TIDEGATE_BENCH_LINKS=1000000x300,9600x2` measures these alone: bits a second and milliseconds of round trip.
fn is_asked_for(bits_a_second: u64, round_trip_ms: u64) -> bool {
    let asked = std::env::var("TIDEGATE_BENCH_LINKS").unwrap_or_default();
    asked.is_empty() || asked.split(',').any(|link| link == format!("{bits_a_second}x{round_trip_ms}"))
}

pub fn run(table: &mut Table) -> Outcome<()> {
    let links = NARROW_CASES * 2;
    let kafka = Kafka::start(links)?;
    let reference = measure(
        &kafka,
        Case { mode: Mode::AtLeastOnce, bits_a_second: 0, round_trip_ms: 2, readings: scaled(50_000) as u64 },
    )?;
    let wire = reference.bytes as f64 / reference.readings as f64;
    table.row("wire bytes a reading of 200 noisy bytes, largest batches", &format!("{wire:.0}"), "", "");
    let cases = |mode, is_narrow: bool| {
        BITS_A_SECOND.into_iter().filter(move |bits| (*bits <= NARROW) == is_narrow).flat_map(move |bits_a_second| {
            let round_trips = ROUND_TRIPS_MS.into_iter().filter(move |ms| is_asked_for(bits_a_second, *ms));
            round_trips.map(move |round_trip_ms| {
                let seconds = if is_narrow { scaled(SECONDS) as f64 } else { 10.0 };
                let readings = (bits_a_second as f64 / 8.0 * seconds / wire).clamp(50.0, 150_000.0) as u64;
                Case { mode, bits_a_second, round_trip_ms, readings }
            })
        })
    };
    let narrow: Vec<Case> = Mode::BOTH.into_iter().flat_map(|mode| cases(mode, true)).collect();
    let mut found: Vec<(Case, Outcome<Found>)> = std::thread::scope(|scope| {
        let kafka = &kafka;
        let threads: Vec<_> = narrow.iter().map(|case| (*case, scope.spawn(move || measure(kafka, *case)))).collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, Outcome<Found>>| {
            thread.join().unwrap_or_else(|_| Err(Trouble::new("a case died")))
        };
        threads.into_iter().map(|(case, thread)| (case, join(thread))).collect()
    });
    for case in Mode::BOTH.into_iter().flat_map(|mode| cases(mode, false)) {
        found.push((case, measure(&kafka, case)));
    }
    let of = |mode, bits, round_trip| {
        let is_it = |case: &Case| case.mode == mode && case.bits_a_second == bits && case.round_trip_ms == round_trip;
        found.iter().find(|(case, _)| is_it(case)).map(|(case, found)| say(*case, found)).unwrap_or_default()
    };
    for bits in BITS_A_SECOND {
        for round_trip in ROUND_TRIPS_MS.into_iter().filter(|ms| is_asked_for(bits, *ms)) {
            let what = format!("{} kbit/s, round trip {round_trip} ms", bits as f64 / 1000.0);
            table.row(
                &what,
                &of(Mode::ExactlyOnce, bits, round_trip),
                &of(Mode::AtLeastOnce, bits, round_trip),
                "≥ 90 %",
            );
        }
    }
    Ok(())
}

const NARROW_CASES: usize = 4 * ROUND_TRIPS_MS.len();

fn say(case: Case, found: &Outcome<Found>) -> String {
    match found {
        Ok(found) => format!(
            "{:.0} %; {:.0} B a reading; start {:.1} kB, {:.1} s; {} s, {:.0} aborted",
            found.bytes_up as f64 * 800.0 / case.bits_a_second as f64 / found.seconds,
            found.bytes as f64 / found.readings as f64,
            found.start_bytes as f64 / 1000.0,
            found.start_s,
            found.timeout_s,
            found.aborted,
        ),
        Err(error) => format!("{error:?}").lines().next().unwrap_or_default().to_owned(),
    }
}

fn measure(kafka: &Kafka, case: Case) -> Outcome<Found> {
    let link: Lease<'_> = kafka.lease()?;
    let topic = kafka.topic("bench-links")?;
    link.set(Weather::Cut)?;
    let mut gateway = case.mode.gateway(kafka, &link.brokers()?)?;
    gateway.route("#", &topic);
    let mut agent = gateway.start()?;
    let topics = (0..5).map(|n| format!("t/{n}")).collect();
    let plan = Plan::new("links", "", 1).topics(topics).window(20).noise(PAYLOAD_BYTES).count(case.readings);
    Publisher::start(gateway.listener(), plan).finish(PATIENCE * 5)?;
    let proxy = link.proxy()?;
    proxy.narrow(case.bits_a_second);
    proxy.delay(Duration::from_micros(case.round_trip_ms * 500));
    let bytes = || proxy.bytes_up() + proxy.bytes_down();
    let (before, returned) = (bytes(), Instant::now());
    link.set(Weather::Fair)?;
    let delivered = || agent.book("delivered").unwrap_or(0);
    wait_until("the first delivery", PATIENCE * 20, || delivered() > 0)?;
    let (first, start_s, start_bytes) = (delivered(), returned.elapsed().as_secs_f64(), bytes() - before);
    let up_before = proxy.bytes_up();
    let began = Instant::now();
    wait_until("the last delivery", PATIENCE * 40, || delivered() >= case.readings)?;
    let seconds = began.elapsed().as_secs_f64();
    let status = agent.status()?;
    let aborted = agent.metric("tidegate_kafka_transactions_aborted_total").unwrap_or(0.0);
    let found = Found {
        start_bytes,
        start_s,
        bytes: bytes() - before - start_bytes,
        bytes_up: proxy.bytes_up() - up_before,
        seconds,
        readings: case.readings - first,
        timeout_s: status.pointer("/kafka/transactions/timeout_s").and_then(serde_json::Value::as_u64).unwrap_or(0),
        aborted,
    };
    proxy.narrow(0);
    proxy.delay(Duration::ZERO);
    agent.stop(Duration::from_secs(20))?;
    eprintln!("{case:?}: {found:?}");
    Ok(found)
}
