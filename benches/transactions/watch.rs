//! What a consumer sees, and when.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};

use crate::support::agent::Agent;
use crate::support::{Outcome, PATIENCE, Trouble, wait_until};

/// A `read_committed` consumer that does not wait for company and comes back at once.
pub fn consumer(brokers: &str) -> Outcome<BaseConsumer> {
    Ok(ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", "onlooker")
        .set("enable.auto.commit", "false")
        .set("auto.offset.reset", "earliest")
        .set("isolation.level", "read_committed")
        .set("fetch.wait.max.ms", "10")
        .set("fetch.error.backoff.ms", "20")
        .set("reconnect.backoff.ms", "10")
        .set("reconnect.backoff.max.ms", "20")
        .set("log_level", "0")
        .create()?)
}

/// Reads topics with one partition from their beginnings, on a thread of its own, and gives each record away.
pub struct Onlooker {
    enough: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Onlooker {
    pub fn start(
        brokers: &str,
        topics: &[String],
        mut seen: impl FnMut(&str, &[u8], Instant) + Send + 'static,
    ) -> Outcome<Self> {
        let consumer = consumer(brokers)?;
        let mut assignment = TopicPartitionList::new();
        for topic in topics {
            assignment.add_partition_offset(topic, 0, Offset::Beginning)?;
        }
        consumer.assign(&assignment)?;
        let enough = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&enough);
        let thread = std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                // While the broker is away there are errors; it comes back by itself.
                if let Some(Ok(message)) = consumer.poll(Duration::from_millis(100)) {
                    seen(message.topic(), message.payload().unwrap_or_default(), Instant::now());
                }
            }
        });
        Ok(Self { enough, thread })
    }

    pub fn end(self) -> Outcome<()> {
        self.enough.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| Trouble::new("the onlooker died"))
    }
}

/// The first record of each topic since it was last asked.
#[derive(Debug, Default, Clone)]
pub struct Firsts(Arc<Mutex<HashMap<String, Instant>>>);

impl Firsts {
    pub fn note(&self, topic: &str, at: Instant) {
        self.0.lock().unwrap().entry(topic.to_owned()).or_insert(at);
    }

    pub fn forget(&self) {
        self.0.lock().unwrap().clear();
    }

    pub fn of(&self, topic: &str) -> Option<Instant> {
        self.0.lock().unwrap().get(topic).copied()
    }

    pub fn wait_for(&self, topics: &[String], limit: Duration) -> Outcome<()> {
        wait_until("a record of each topic", limit, || topics.iter().all(|topic| self.of(topic).is_some()))
    }
}

/// Waits until all that was published is delivered and settled; when the last of it became visible.
pub fn settled(agent: &Agent, brokers: &str, topic: &str, delivered: u64) -> Outcome<Instant> {
    let consumer = consumer(brokers)?;
    let (mut end, mut changed, mut asked) = (0, Instant::now(), Instant::now());
    let limit = Instant::now() + PATIENCE * 2;
    while Instant::now() < limit {
        let (_, stable) = consumer.fetch_watermarks(topic, 0, Duration::from_secs(10))?;
        if stable != end {
            (end, changed) = (stable, Instant::now());
        }
        if asked.elapsed() > Duration::from_millis(200) {
            asked = Instant::now();
            if agent.book("delivered")? >= delivered {
                return Ok(changed);
            }
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Err(Trouble::new(format!("{:?} of {delivered} delivered; log:\n{}", agent.book("delivered"), agent.log())))
}
