//! The everyday case: 10, 100 and 2,000 readings a second, each path, few topics and many. What a reading costs the agent and
//! Kafka, and how long it takes to its acknowledgement and to a `read_committed` reader.
//!
//! Cost and freshness are taken one after the other: a reader that looks all the time costs Kafka more than the readings do.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};

use crate::load::{Load, Published};
use crate::peer::{self, Peer};
use crate::support::agent::{Agent, Build, Gateway};
use crate::support::{Outcome, Trouble, kafka, mosquitto, wait_until};
use crate::usage::{Usage, cpu_s};

/// Which program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// Sensors publish to the agent.
    Listen,
    /// ... to mosquitto, and the agent subscribes.
    Mosquitto,
    FluentBit,
}

impl Who {
    pub fn named(name: &str) -> Option<Self> {
        [Self::Listen, Self::Mosquitto, Self::FluentBit].into_iter().find(|who| who.name() == name)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Listen => "listen",
            Self::Mosquitto => "mosquitto",
            Self::FluentBit => "fluent-bit",
        }
    }
}

/// How the agent is configured besides; `TIDEGATE_BENCH_KAFKA` is added to `[kafka]`, `TIDEGATE_BENCH_BUFFER` to `[buffer]`.
fn more(table: &str) -> String {
    std::env::var(format!("TIDEGATE_BENCH_{table}")).map(|line| line + "\n").unwrap_or_default()
}

/// All lines.
pub fn run(rates: &[f64], whos: &[Who]) -> Outcome<()> {
    let seconds = Duration::from_secs(10);
    let kafka = kafka::shared()?;
    // Once warm.
    kafka.topic("bench-warm")?;
    std::thread::sleep(Duration::from_secs(5));
    let before = kafka_cpu_s()?;
    std::thread::sleep(seconds);
    let idle = (kafka_cpu_s()? - before) / seconds.as_secs_f64();
    println!("Kafka with nothing to do: {:.2} % of a core, which is taken off its figures", idle * 100.0);
    println!(
        "{:<10} {:>7} {:>6} {:>8} {:>9} {:>10} {:>8} {:>9} {:>8} {:>8} {:>8} {:>8}",
        "path",
        "rate",
        "topics",
        "µs CPU",
        "B written",
        "switches/s",
        "Kafka µs",
        "MB",
        "ack p50",
        "ack p99",
        "seen p50",
        "p99 ms"
    );
    for &rate in rates {
        for topics in [4, 200] {
            for &who in whos {
                if who != Who::FluentBit || peer::is_given() {
                    line(who, rate, topics, idle)?;
                }
            }
        }
    }
    Ok(())
}

/// What is measured: the agent, or a peer.
enum Subject {
    Agent(Box<(Gateway, Agent)>),
    Peer(Peer),
}

impl Subject {
    fn start(who: Who, brokers: &str, topic: &str) -> Outcome<(Self, std::net::SocketAddr)> {
        if who == Who::FluentBit {
            let peer = Peer::start(brokers, topic)?;
            let address = peer.address;
            return Ok((Self::Peer(peer), address));
        }
        let mut gateway = Gateway::new(Build::Real, brokers)?;
        gateway.default_delivery().route("bench/{line}/{sensor}", topic).kafka(&more("KAFKA")).buffer(&more("BUFFER"));
        let to = if who == Who::Mosquitto {
            let broker = mosquitto::shared()?;
            gateway.subscribe("plant", &broker.url(), "bench/#", 1, "");
            broker.address()
        } else {
            gateway.listen("");
            gateway.listener()
        };
        let agent = gateway.start()?;
        if who == Who::Mosquitto {
            agent.wait_subscribed(1)?;
        }
        Ok((Self::Agent(Box::new((gateway, agent))), to))
    }

    fn pid(&self) -> u32 {
        match self {
            Self::Agent(both) => both.1.pid(),
            Self::Peer(peer) => peer.process.pid(),
        }
    }

    fn end(self) -> Outcome<()> {
        match self {
            Self::Agent(mut both) => both.1.stop(Duration::from_secs(20)).map(drop),
            Self::Peer(peer) => peer.process.stop(),
        }
    }
}

fn line(who: Who, rate: f64, topics: usize, idle: f64) -> Outcome<()> {
    let kafka = kafka::shared()?;
    let topic = kafka.topic(&kafka::unique_topic("bench-everyday"))?;
    let (subject, to) = Subject::start(who, &kafka.brokers(), &topic)?;
    let connections = 4;
    let load = |seconds: f64| Load {
        connections,
        sensors: topics / connections,
        rate: Some(rate),
        events: (rate * seconds) as usize / connections * connections,
        ..Load::full(to, 0)
    };
    // Long enough that 10 a second are hundreds.
    let (cost_s, fresh_s) = if rate < 50.0 { (30.0, 20.0) } else { (15.0, 10.0) };
    let warm = load(3.0).run()?;
    wait_until("the warm-up", crate::support::PATIENCE, || held(&kafka.brokers(), &topic) >= warm.events)?;
    let threads_before = threads(subject.pid())?;
    let (before, kafka_before, start) = (Usage::of_pid(subject.pid())?, kafka_cpu_s()?, Instant::now());
    let cost: Published = load(cost_s).run()?;
    // What comes behind the last one belongs to it.
    std::thread::sleep(Duration::from_millis(1_500));
    let seconds = start.elapsed().as_secs_f64();
    let used = Usage::of_pid(subject.pid())?.since(&before);
    let kafka_used = kafka_cpu_s()? - kafka_before - idle * seconds;
    let threads = threads(subject.pid())?;
    let seen = Seen::start(&kafka.brokers(), &topic)?;
    let fresh = load(fresh_s).run()?;
    std::thread::sleep(Duration::from_millis(1_500));
    let mut seen = seen.end()?;
    seen.sort_unstable();
    let events = cost.events as f64;
    let quantile = |q: f64| seen.get(((seen.len().max(1) - 1) as f64 * q) as usize).copied().unwrap_or(i64::MAX);
    println!(
        "{:<10} {:>7} {:>6} {:>8.1} {:>9.0} {:>10.0} {:>8.1} {:>9.1} {:>8.1} {:>8.1} {:>8} {:>8}",
        who.name(),
        rate,
        topics,
        used.cpu_s * 1e6 / events,
        used.written_bytes as f64 / events,
        used.switches as f64 / seconds,
        kafka_used * 1e6 / events,
        used.resident_mb,
        fresh.latency_ms(0.5),
        fresh.latency_ms(0.99),
        quantile(0.5),
        quantile(0.99),
    );
    let each = threads.iter().map(|(name, spent)| {
        let spent = spent.saturating_sub(threads_before.get(name).copied().unwrap_or(0));
        format!("{name} {:.1}", spent as f64 / 1e3 / events)
    });
    println!("{:>10} µs an event by thread: {}", "", each.collect::<Vec<_>>().join(", "));
    if seen.len() < fresh.events {
        println!("{:>10} {} of {} readings were seen", "", seen.len(), fresh.events);
    }
    subject.end()
}

fn held(brokers: &str, topic: &str) -> usize {
    let count = || -> Outcome<usize> {
        let consumer: BaseConsumer = ClientConfig::new().set("bootstrap.servers", brokers).create()?;
        let (low, high) = consumer.fetch_watermarks(topic, 0, Duration::from_secs(10))?;
        Ok(usize::try_from(high - low)?)
    };
    count().unwrap_or(0)
}

/// Milliseconds from a reading's `t` until a `read_committed` reader had it.
struct Seen {
    enough: Arc<Mutex<bool>>,
    thread: std::thread::JoinHandle<Vec<i64>>,
}

impl Seen {
    fn start(brokers: &str, topic: &str) -> Outcome<Self> {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", brokers)
            .set("group.id", "everyday")
            .set("enable.auto.commit", "false")
            .set("isolation.level", "read_committed")
            .set("fetch.wait.max.ms", "100")
            .create()?;
        let mut assignment = TopicPartitionList::new();
        assignment.add_partition_offset(topic, 0, Offset::End)?;
        consumer.assign(&assignment)?;
        drop(consumer.poll(Duration::from_secs(1)));
        let enough = Arc::new(Mutex::new(false));
        let stop = Arc::clone(&enough);
        let thread = std::thread::spawn(move || {
            let mut seen = Vec::new();
            while !*stop.lock().unwrap() {
                if let Some(Ok(message)) = consumer.poll(Duration::from_millis(50)) {
                    seen.extend(message.payload().and_then(sent_ms).map(|at| unix_ms() - at));
                }
            }
            seen
        });
        Ok(Self { enough, thread })
    }

    fn end(self) -> Outcome<Vec<i64>> {
        *self.enough.lock().unwrap() = true;
        self.thread.join().map_err(|_| Trouble::new("the reader died"))
    }
}

fn unix_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}

fn sent_ms(payload: &[u8]) -> Option<i64> {
    let text = std::str::from_utf8(payload).ok()?;
    let (_, after) = text.split_once("\"t\":")?;
    after.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// Nanoseconds on a processor by the name of the thread; of those that run now.
fn threads(pid: u32) -> Outcome<BTreeMap<String, u64>> {
    let mut all = BTreeMap::new();
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let path = task?.path();
        let name = std::fs::read_to_string(path.join("comm")).unwrap_or_default().trim().to_owned();
        let spent = std::fs::read_to_string(path.join("schedstat")).unwrap_or_default();
        *all.entry(name).or_default() += spent.split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(0);
    }
    Ok(all)
}

/// CPU of the Kafka that this benchmark has started: its only child in Java.
fn kafka_cpu_s() -> Outcome<f64> {
    let mut all = 0.0;
    for entry in std::fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let parent = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1)?.parse().ok());
        if stat.contains("(java)") && parent == Some(std::process::id()) {
            all += cpu_s(pid)?;
        }
    }
    Ok(all)
}
