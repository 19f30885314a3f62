//! A link in both modes at 0, 1, 100 and 10,000 events a second: bytes on the wire, and how long a reading takes from its
//! PUBACK until a `read_committed` consumer sees it.
//!
//! Bytes are those of TCP's payload in both directions, everything included, requests of Kafka's protocol that carry no
//! reading as well; IP and TCP headers come on top (40 to 52 bytes a packet). Readings are JSON of 100 bytes from 20
//! sensors; with them go the key, the time and two headers, about 95 bytes.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::load::Load;
use crate::support::agent::{Agent, Gateway};
use crate::support::kafka::{Kafka, Lease};
use crate::support::{Outcome, Trouble};
use crate::watch::Onlooker;
use crate::{Both, Mode, Samples, Table, scaled};

/// How often an idle agent asks for the cluster's metadata here; librdkafka's default is 5 minutes.
const REFRESH: Duration = Duration::from_secs(10);

/// A gateway and what it is given.
#[derive(Debug, Clone, Copy)]
struct Case {
    rate: f64,
    linger: &'static str,
    seconds: usize,
    /// How many of them at a time, to have samples enough.
    copies: usize,
}

/// Slow ones go at the same time: they hardly disturb each other.
const SLOW: [Case; 5] = [
    Case { rate: 0.0, linger: "100ms", seconds: 60, copies: 1 },
    Case { rate: 1.0, linger: "100ms", seconds: 60, copies: 4 },
    Case { rate: 1.0, linger: "1s", seconds: 60, copies: 1 },
    Case { rate: 1.0, linger: "10s", seconds: 60, copies: 1 },
    Case { rate: 100.0, linger: "100ms", seconds: 60, copies: 1 },
];

const FAST: Case = Case { rate: 10_000.0, linger: "100ms", seconds: 20, copies: 1 };

/// What was found out about a case in one mode.
#[derive(Debug, Default)]
struct Found {
    /// Since the start, before the first reading.
    start_bytes: Samples,
    up: Samples,
    down: Samples,
    visible_ms: Samples,
    commit_ms: [f64; 2],
    readings_a_transaction: f64,
}

pub fn run(table: &mut Table) -> Outcome<()> {
    let links = SLOW.iter().map(|case| case.copies).sum::<usize>() * 2;
    let kafka = Kafka::start(links)?;
    let slow: Vec<(Case, Both<Found>)> = {
        let found: Vec<(Case, Mode, Outcome<Found>)> = std::thread::scope(|scope| {
            let kafka = &kafka;
            let cases = SLOW.into_iter().flat_map(|case| Mode::BOTH.map(|mode| (case, mode)));
            let threads: Vec<_> =
                cases.map(|(case, mode)| (case, mode, scope.spawn(move || measure(kafka, case, mode)))).collect();
            let join = |thread: std::thread::ScopedJoinHandle<'_, Outcome<Found>>| {
                thread.join().unwrap_or_else(|_| Err(Trouble::new("a case died")))
            };
            threads.into_iter().map(|(case, mode, thread)| (case, mode, join(thread))).collect()
        });
        let mut pairs: Vec<(Case, Both<Found>)> = Vec::new();
        for (case, mode, found) in found {
            if mode == Mode::ExactlyOnce {
                pairs.push((case, Both::default()));
            }
            *pairs.last_mut().unwrap().1.of(mode) = found?;
        }
        pairs
    };
    let mut fast: Both<Found> = Both::default();
    for mode in Mode::BOTH {
        *fast.of(mode) = measure(&kafka, FAST, mode)?;
    }
    for (case, found) in slow.iter().chain([&(FAST, fast)]) {
        rows(table, *case, found);
    }
    Ok(())
}

fn rows(table: &mut Table, case: Case, found: &Both<Found>) {
    let Both { exactly_once, at_least_once } = found;
    let bytes = |found: &Found| {
        let (up, down) = (found.up.quantile(0.5), found.down.quantile(0.5));
        format!("{:.1} ({up:.1} up, {down:.1} down)", up + down)
    };
    if case.rate == 0.0 {
        let start = |found: &Found| format!("{:.0}", found.start_bytes.quantile(0.5));
        table.row("bytes on the wire, a start without a reading", &start(exactly_once), &start(at_least_once), "");
        let refresh = |found: &Found| {
            let one = (found.up.quantile(0.5) + found.down.quantile(0.5)) * REFRESH.as_secs_f64()
                / scaled(case.seconds) as f64;
            format!("{one:.0} every 5 minutes")
        };
        let what = "bytes on the wire, idle (librdkafka asks for the cluster's metadata)";
        table.row(what, &refresh(exactly_once), &refresh(at_least_once), "");
        return;
    }
    let at = format!("{} events/s, linger {}", case.rate, case.linger);
    let aim = if case.rate > 1_000.0 { "≤ 20" } else { "" };
    let together =
        |found: &Found| format!("{}; {:.0} readings a transaction", bytes(found), found.readings_a_transaction);
    table.row(&format!("bytes on the wire a reading, {at}"), &together(exactly_once), &bytes(at_least_once), aim);
    let visible = |found: &Found| {
        let [half, most] = [0.5, 0.99].map(|quantile| found.visible_ms.quantile(quantile));
        format!("{half:.0} / {most:.0} of {}", found.visible_ms.len())
    };
    let what = format!("ms from PUBACK to a read_committed consumer, p50 / p99, {at}");
    table.row(&what, &visible(exactly_once), &visible(at_least_once), "");
    let [half, most] = exactly_once.commit_ms;
    table.row(&format!("ms to commit, p50 / p99, {at}"), &format!("{half:.1} / {most:.1}"), "–", "p50 ≤ 15");
}

/// Everything of a case in one mode.
fn measure(kafka: &Kafka, case: Case, mode: Mode) -> Outcome<Found> {
    let mut stages = (0..case.copies).map(|_| Stage::start(kafka, case, mode)).collect::<Outcome<Vec<_>>>()?;
    // Connected, recovered, and what comes once has come.
    std::thread::sleep(Duration::from_secs(5));
    let mut found = Found::default();
    for stage in &stages {
        found
            .start_bytes
            .push((stage.link.proxy()?.bytes_up() + stage.link.proxy()?.bytes_down()) as f64 - stage.before);
    }
    let loads: Vec<Load> = stages.iter().map(|stage| stage.load(case)).collect();
    let warm = loads.iter().map(|load| Load { events: load.connections * 2, rate: None, stamp: false, ..*load }.run());
    let warm: usize = warm.map(|published| Ok(published?.events)).sum::<Outcome<usize>>()? / case.copies;
    for stage in &stages {
        stage.agent.wait_book("delivered", warm as u64)?;
    }
    std::thread::sleep(Duration::from_secs(1));
    for stage in &stages {
        stage.seen.lock().unwrap().clear();
    }
    let before = stages.iter().map(Stage::bytes).collect::<Outcome<Vec<_>>>()?;
    let seconds = scaled(case.seconds);
    let published = std::thread::scope(|scope| {
        let threads: Vec<_> = loads.iter().map(|load| scope.spawn(|| load.run())).collect();
        std::thread::sleep(Duration::from_secs(seconds as u64));
        threads.into_iter().map(|thread| Ok(thread.join().map_err(|_| Trouble::new("a publisher died"))??)).collect()
    });
    let published: Vec<crate::load::Published> = Outcome::<Vec<_>>::from(published)?;
    for ((stage, before), published) in stages.iter_mut().zip(before).zip(&published) {
        stage.agent.wait_book("delivered", (warm + published.events) as u64)?;
        let after = stage.bytes()?;
        std::thread::sleep(Duration::from_millis(300));
        let readings = if published.events == 0 { 1 } else { published.events } as f64;
        found.up.push((after.0 - before.0) / readings);
        found.down.push((after.1 - before.1) / readings);
        found.visible_ms.extend(stage.visible_ms(&published.stamps));
        if mode == Mode::ExactlyOnce && case.rate > 0.0 {
            let committed = stage.agent.metric("tidegate_kafka_transactions_committed_total")?;
            found.readings_a_transaction = (published.events + warm) as f64 / committed;
            found.commit_ms = [0.5, 0.99].map(|quantile| commit_ms(&stage.agent, quantile).unwrap_or(f64::NAN));
        }
        stage.agent.stop(Duration::from_secs(20))?;
    }
    for stage in stages {
        stage.onlooker.end()?;
    }
    Ok(found)
}

/// A gateway with its link and a consumer of its topic.
struct Stage<'a> {
    gateway: Gateway,
    agent: Agent,
    link: Lease<'a>,
    /// Bytes that a former user of the link has left on the counters.
    before: f64,
    onlooker: Onlooker,
    seen: Arc<Mutex<HashMap<(usize, usize), Instant>>>,
    sensors: usize,
}

impl<'a> Stage<'a> {
    fn start(kafka: &'a Kafka, case: Case, mode: Mode) -> Outcome<Self> {
        let topic = kafka.topic("bench-wire")?;
        let link = kafka.lease()?;
        let before = (link.proxy()?.bytes_up() + link.proxy()?.bytes_down()) as f64;
        let mut gateway = mode.gateway(kafka, &link.brokers()?)?;
        gateway.route("bench/{line}/{sensor}", &topic).kafka(&format!("linger = \"{}\"\n", case.linger));
        if case.rate == 0.0 {
            let refresh = format!("\"topic.metadata.refresh.interval.ms\" = \"{}\"\n", REFRESH.as_millis());
            gateway.kafka_options(&refresh);
        }
        let agent = gateway.start()?;
        let seen = Arc::<Mutex<HashMap<(usize, usize), Instant>>>::default();
        let theirs = Arc::clone(&seen);
        let onlooker = Onlooker::start(&kafka.brokers(), &[topic], move |_, payload, at| {
            if let Some(which) = which(payload) {
                theirs.lock().unwrap().insert(which, at);
            }
        })?;
        let connections = if case.rate > 1_000.0 { 4 } else { 1 };
        Ok(Self { gateway, agent, link, before, onlooker, seen, sensors: 20 / connections })
    }

    fn load(&self, case: Case) -> Load {
        Load {
            to: self.gateway.listener(),
            qos: 1,
            payload_bytes: 100,
            connections: 20 / self.sensors,
            sensors: self.sensors,
            events: (case.rate * scaled(case.seconds) as f64) as usize,
            window: 2_000,
            rate: (case.rate > 0.0).then_some(case.rate),
            stamp: true,
        }
    }

    fn bytes(&self) -> Outcome<(f64, f64)> {
        let proxy = self.link.proxy()?;
        Ok((proxy.bytes_up() as f64, proxy.bytes_down() as f64))
    }

    /// From the acknowledgement of each reading to its being seen.
    fn visible_ms(&self, stamps: &[(usize, usize, Instant)]) -> Vec<f64> {
        let seen = self.seen.lock().unwrap();
        let of = |(connection, event, acknowledged): &(usize, usize, Instant)| {
            let at = seen.get(&(connection * self.sensors + event % self.sensors, *event))?;
            // It can be seen before its PUBACK is read; that is no time then.
            Some(at.saturating_duration_since(*acknowledged).as_secs_f64() * 1e3)
        };
        stamps.iter().filter_map(of).collect()
    }
}

/// Sensor and number of a reading, see `load.rs`.
fn which(payload: &[u8]) -> Option<(usize, usize)> {
    let text = std::str::from_utf8(payload).ok()?;
    let (sensor, rest) = text.strip_prefix("{\"sensor\":\"s")?.split_once("\",\"n\":")?;
    Some((sensor.parse().ok()?, rest.split(',').next()?.parse().ok()?))
}

/// A quantile out of the agent's histogram, between two of its bounds in proportion.
fn commit_ms(agent: &Agent, quantile: f64) -> Outcome<f64> {
    let text = agent.get("/metrics")?.body;
    let bucket = |line: &str| {
        let rest = line.strip_prefix("tidegate_kafka_transaction_commit_seconds_bucket{le=\"")?;
        let (bound, count) = rest.split_once("\"} ")?;
        let bound = if bound == "+Inf" { f64::INFINITY } else { bound.parse().ok()? };
        Some((bound, count.split(' ').next()?.parse::<f64>().ok()?))
    };
    let buckets: Vec<(f64, f64)> = text.lines().filter_map(bucket).collect();
    let all = buckets.last().map_or(0.0, |(_, count)| *count);
    let mut below = (0.0, 0.0);
    for (bound, count) in buckets {
        if count >= all * quantile && count > below.1 {
            let share = (all * quantile - below.1) / (count - below.1);
            return Ok((below.0 + (bound - below.0) * share) * 1e3);
        }
        below = (bound, count);
    }
    Err(Trouble::new("no commit was measured"))
}
