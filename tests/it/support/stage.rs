//! A scenario with transactions: a Kafka topic, a `read_committed` consumer that looks on from the start to the end,
//! another one at the end, and what both must have seen.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::agent::Agent;
use super::books::{Books, Missing};
use super::kafka::{Kafka, unique_topic};
use super::publisher::Log;
use super::reader::{Feed, Isolation, Onlooker, Reader, Record};
use super::{Outcome, PATIENCE, Trouble, Verdict, trouble};

/// A compacted topic of one's own with one partition: a killed transaction in it holds up nobody else.
pub fn watermark_topic(kafka: &Kafka) -> Outcome<String> {
    let topic = unique_topic("watermarks");
    kafka.create_topic(&topic, 1, &[("cleanup.policy", "compact"), ("message.timestamp.type", "LogAppendTime")])?;
    Ok(topic)
}

/// A Kafka topic with its onlooker.
pub struct Stage {
    brokers: String,
    pub topic: String,
    onlooker: Onlooker<Vec<Record>>,
}

impl Stage {
    /// With a new topic.
    pub fn new(kafka: &Kafka, claim: &str) -> Outcome<Self> {
        Self::on(kafka.brokers(), kafka.topic(claim)?)
    }

    /// With a topic that is there.
    pub fn on(brokers: String, topic: String) -> Outcome<Self> {
        let feed = Feed::open(&brokers, &[&topic], Isolation::Committed, &[])?;
        let onlooker = Onlooker::start(feed, Vec::new(), Vec::push);
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
    pub sequences: BTreeSet<u64>,
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
pub fn once_from_the_buffer_on(seen: &Seen) -> Verdict {
    seen.books.iter().try_for_each(|books| {
        books.at_least_once()?;
        if books.recognised == 0 { Ok(()) } else { Err(Trouble(books.to_string())) }
    })
}

/// The verdict with the end of the agent's log.
pub fn with_log(verdict: Verdict, agent: &Agent) -> Verdict {
    verdict.map_err(|Trouble(text)| {
        let log = agent.log();
        let lines: Vec<&str> = log.lines().collect();
        let last = lines.get(lines.len().saturating_sub(200)..).unwrap_or_default();
        Trouble(format!("{text}\nlog:\n{}", last.join("\n")))
    })
}
