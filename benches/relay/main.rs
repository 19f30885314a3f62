//! The whole relay, all parts real: publisher → (mosquitto →) Tidegate → Apache Kafka, on one machine.
//!
//! ```sh
//! cargo bench --bench relay                 # the table of docs/figures.md, about five minutes
//! cargo bench --bench relay -- listen 1 100 # one line: listen|mosquitto, QoS, payload bytes
//! cargo bench --bench relay -- drain        # the backlog only
//! cargo bench --bench relay -- everyday     # 10, 100 and 2,000 readings a second, ten minutes
//! cargo bench --bench relay -- everyday 100 listen    # one rate: fluent-bit|listen|mosquitto
//! ```
//!
//! `TIDEGATE_BENCH_EVENTS` changes how many events a line takes. It needs what `tests/run` installs. CPU is that of the agent
//! alone, user and system, from `/proc/<pid>/stat`; it is the figure that the other programs on the machine disturb least.
//! Bytes written are `write_bytes` of `/proc/<pid>/io`: what the agent caused the block layer to write.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    clippy::map_err_ignore,
    clippy::wildcard_enum_match_arm,
    reason = "a benchmark stops at the first surprise and prints figures"
)]
#![allow(missing_docs, unreachable_pub, reason = "a benchmark has no interface")]

mod everyday;
mod load;
mod peer;
mod usage;
#[path = "../../tests/it/support/mod.rs"]
#[allow(dead_code, unused_imports, reason = "the benchmark uses a part of the tests' support")]
mod support;

use std::time::{Duration, Instant};

use everyday::Who;
use load::{Load, Published};
use rdkafka::consumer::{BaseConsumer, Consumer};
use support::agent::{Build, Gateway};
use support::{Outcome, kafka, mosquitto, trouble};
use usage::{Usage, machine};

fn main() -> Outcome<()> {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    println!("{}", machine());
    match args[..] {
        [] => {
            idle()?;
            header();
            for path in ["mosquitto", "listen"] {
                for bytes in [100, 1024] {
                    for qos in 0..=2 {
                        line(path, qos, bytes)?;
                    }
                }
            }
            drain()?;
        }
        ["idle"] => idle()?,
        ["everyday"] => everyday::run(&[10.0, 100.0, 2_000.0], &[Who::FluentBit, Who::Listen, Who::Mosquitto])?,
        ["everyday", rate, ref paths @ ..] => {
            let whos: Option<Vec<Who>> = paths.iter().map(|path| Who::named(path)).collect();
            let Some(whos) = whos else { return trouble!("paths: listen, mosquitto, fluent-bit") };
            everyday::run(&[rate.parse()?], &whos)?;
        }
        ["drain"] => drain()?,
        [path, qos, bytes] => {
            header();
            line(path, qos.parse()?, bytes.parse()?)?;
        }
        _ => return trouble!("nothing, or: idle, drain, or: listen|mosquitto QOS BYTES"),
    }
    Ok(())
}

fn header() {
    println!(
        "{:<10} {:>3} {:>6} {:>9} {:>9} {:>8} {:>8} {:>9} {:>8} {:>8}  {:>8} {:>8}",
        "path",
        "QoS",
        "bytes",
        "events",
        "events/s",
        "µs CPU",
        "MB peak",
        "B/B",
        "p50 ms",
        "p99 ms",
        "p50 ms*",
        "p99 ms*"
    );
    println!("{:>59}{:>51}", "written a payload byte ^", "acknowledged at full rate; * = at 500/s");
}

/// One line of the table.
fn line(path: &str, qos: u8, bytes: usize) -> Outcome<()> {
    let default = if bytes > 500 { 150_000 } else { 400_000 };
    let events = count().unwrap_or(if path == "mosquitto" { default / 2 } else { default });
    let kafka = kafka::shared()?;
    let topic = kafka.topic(&kafka::unique_topic(&format!("bench-{path}-{qos}-{bytes}")))?;
    let mut gateway = Gateway::new(Build::Real, &kafka.brokers())?;
    gateway.route("bench/{line}/{sensor}", &topic);
    let to = if path == "mosquitto" {
        let broker = mosquitto::shared()?;
        gateway.subscribe("plant", &broker.url(), "bench/#", qos, "");
        broker.address()
    } else {
        gateway.listen("");
        gateway.listener()
    };
    let mut agent = gateway.start()?;
    if path == "mosquitto" {
        support::wait_until("the subscription", support::PATIENCE, || {
            agent.metric("tidegate_mqtt_connected{link=\"plant\",kind=\"broker\"}").is_ok_and(|n| n > 0.0)
        })?;
        std::thread::sleep(Duration::from_secs(1));
    }
    // mosquitto takes 20 QoS 2 messages of a 3.1.1 client at a time; what goes beyond waits for its timer.
    let window = if path == "mosquitto" && qos == 2 { 20 } else { 250 };
    let load = Load { qos, payload_bytes: bytes, window, ..Load::full(to, events) };
    let warm = load_of(Load { events: 8_000, ..load })?;
    wait_for_kafka(&kafka.brokers(), &topic, warm.events)?;
    let before = Usage::of(&agent)?;
    let start = Instant::now();
    let published = load_of(load)?;
    let arrived = wait_for_kafka(&kafka.brokers(), &topic, warm.events + published.events)? - warm.events;
    let seconds = start.elapsed().as_secs_f64();
    support::wait_until("settlement", support::PATIENCE, || {
        qos == 0 || agent.metric("tidegate_events_held{route=\"bench/{line}/{sensor}\"}").is_ok_and(|n| n == 0.0)
    })?;
    let used = Usage::of(&agent)?.since(&before);
    let peak = agent.memory_kib("VmHWM")?;
    let calm = load_of(Load { events: 2_000, connections: 1, window: window.min(50), rate: Some(500.0), ..load })?;
    println!(
        "{:<10} {:>3} {:>6} {:>9} {:>9.0} {:>8.2} {:>8.1} {:>9.2} {:>8.2} {:>8.2}  {:>8.2} {:>8.2}",
        path,
        qos,
        bytes,
        arrived,
        arrived as f64 / seconds,
        used.cpu_s * 1e6 / arrived as f64,
        peak as f64 / 1024.0,
        used.written_bytes as f64 / (arrived * bytes) as f64,
        published.latency_ms(0.5),
        published.latency_ms(0.99),
        calm.latency_ms(0.5),
        calm.latency_ms(0.99),
    );
    let status = agent.stop(Duration::from_secs(20))?;
    if !status.success() {
        return trouble!("the agent ended with {status}");
    }
    Ok(())
}

/// An agent with nothing to do.
fn idle() -> Outcome<()> {
    let kafka = kafka::shared()?;
    let topic = kafka.topic(&kafka::unique_topic("bench-idle"))?;
    let broker = mosquitto::shared()?;
    let mut gateway = Gateway::new(Build::Real, &kafka.brokers())?;
    gateway.listen("").subscribe("plant", &broker.url(), "nothing/#", 1, "").route("#", &topic);
    let mut agent = gateway.start()?;
    std::thread::sleep(Duration::from_secs(5));
    let before = Usage::of(&agent)?;
    std::thread::sleep(Duration::from_secs(10));
    let used = Usage::of(&agent)?.since(&before);
    println!(
        "idle: {:.1} MB resident, {:.1} MB peak, {:.2} % of a core, {} B written in 10 s",
        agent.memory_kib("VmRSS")? as f64 / 1024.0,
        agent.memory_kib("VmHWM")? as f64 / 1024.0,
        used.cpu_s * 10.0,
        used.written_bytes
    );
    agent.stop(Duration::from_secs(20))?;
    Ok(())
}

/// A backlog that an outage left: taken in while Kafka is out of reach, then let out by a fresh process.
fn drain() -> Outcome<()> {
    let events = count().unwrap_or(1_000_000);
    let kafka = kafka::shared()?;
    let lease = kafka.lease()?;
    let topic = kafka.topic(&kafka::unique_topic("bench-drain"))?;
    let mut away = Gateway::new(Build::Real, "127.0.0.1:1")?;
    away.listen("").route("bench/{line}/{sensor}", &topic);
    drop(lease);
    let mut agent = away.start()?;
    let load = Load::full(away.listener(), events);
    let published = load_of(load)?;
    let held_peak = agent.memory_kib("VmHWM")?;
    agent.stop(Duration::from_secs(20))?;
    let disk =
        std::fs::read_dir(away.data_dir())?.filter_map(|e| e.ok()?.metadata().ok()).map(|m| m.len()).sum::<u64>();
    away.kafka_at(&kafka.brokers());
    let mut agent = away.start()?;
    let before = Usage::of(&agent)?;
    let first = wait_for_kafka(&kafka.brokers(), &topic, 1)?;
    let start = Instant::now();
    let arrived = wait_for_kafka(&kafka.brokers(), &topic, published.events)?;
    let seconds = start.elapsed().as_secs_f64();
    let used = Usage::of(&agent)?.since(&before);
    println!(
        "drain: {arrived} events, {:.0} events/s, {:.2} µs CPU an event, {:.1} MB peak (taking in: {:.1}), {:.1} MB on disk before",
        (arrived - first) as f64 / seconds,
        used.cpu_s * 1e6 / arrived as f64,
        agent.memory_kib("VmHWM")? as f64 / 1024.0,
        held_peak as f64 / 1024.0,
        disk as f64 / 1e6,
    );
    agent.stop(Duration::from_secs(20))?;
    Ok(())
}

fn load_of(load: Load) -> Outcome<Published> {
    Ok(load.run()?)
}

/// Waits until the topic holds that many records; with QoS 0 until no more come.
fn wait_for_kafka(brokers: &str, topic: &str, events: usize) -> Outcome<usize> {
    let consumer: BaseConsumer = rdkafka::ClientConfig::new().set("bootstrap.servers", brokers).create()?;
    let mut held = 0;
    let mut changed = Instant::now();
    while held < events && changed.elapsed() < Duration::from_secs(15) {
        let (low, high) = consumer.fetch_watermarks(topic, 0, Duration::from_secs(10))?;
        let now = usize::try_from(high - low).unwrap_or(0);
        if now != held {
            (held, changed) = (now, Instant::now());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(held)
}

fn count() -> Option<usize> {
    std::env::var("TIDEGATE_BENCH_EVENTS").ok()?.parse().ok()
}
