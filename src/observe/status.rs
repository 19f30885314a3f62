//! One snapshot of the whole agent. `/status`, `tidegate status`, `/metrics` and systemd's status line are all made
//! from it, so that they cannot disagree.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use uuid::Uuid;

use super::pulse::Pulse;
use crate::buffer::{BufferStatus, LedgerLine};
use crate::clock;
use crate::event::RouteId;
use crate::forward::status::{CommitTimes, ForwardStatus, Transactions, Waiting};
use crate::ingest::status::LinkStatus;

/// Where the snapshot is taken from. Every stage publishes; nobody is asked, so that looking never disturbs.
#[derive(Debug)]
pub(crate) struct Sources {
    /// `[agent] id`.
    pub agent: String,
    /// Identity of the buffer.
    pub buffer_id: Uuid,
    /// When the agent started.
    pub started: Instant,
    /// The buffer's own words.
    pub buffer: watch::Receiver<Arc<BufferStatus>>,
    /// The forwarder's own words.
    pub forward: watch::Receiver<ForwardStatus>,
    /// One for each `[[mqtt]]` and `[[listen]]`.
    pub links: Vec<Arc<LinkStatus>>,
    /// Where routes that the configuration has no more have sent their readings, by ledger line.
    pub gone: BTreeMap<RouteId, Arc<str>>,
    /// Signs of life by stage.
    pub pulses: Vec<(String, Pulse)>,
    /// How often the wall clock was set since start.
    pub clock_jumps: AtomicU64,
    /// Set between READY and the first sign of stopping.
    pub serving: AtomicBool,
}

/// The snapshot. Keys are part of the interface; they are only ever added to.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Status {
    /// Version of the agent.
    pub version: String,
    /// `[agent] id`.
    pub agent: String,
    /// Identity of the buffer.
    pub buffer_id: String,
    /// Seconds since start.
    pub uptime_s: u64,
    /// Totals over all routes.
    #[serde(flatten)]
    pub total: Books,
    /// received = delivered + dead-lettered + dropped + purged + lost + held, for every route.
    pub balanced: bool,
    /// The books by route.
    pub routes: Vec<RouteBooks>,
    /// The buffer.
    pub buffer: BufferPart,
    /// Brokers and listeners.
    pub links: Vec<LinkPart>,
    /// The Kafka side.
    pub kafka: KafkaPart,
    /// The wall clock.
    #[serde(default)]
    pub clock: ClockPart,
}

/// The wall clock.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct ClockPart {
    /// It follows a time server.
    pub synchronised: bool,
    /// It does not, or it stands before this program was made.
    pub doubtful: bool,
    /// What it says, milliseconds since 1970.
    pub wall_ms: i64,
    /// How often it was set since start.
    pub jumps: u64,
    /// How far it is ahead of Kafka's; null until Kafka has said its time.
    pub ahead_of_kafka_s: Option<f64>,
}

/// A line of the ledger, or their sum.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Books {
    /// Events taken in.
    pub received: u64,
    /// Confirmed by Kafka.
    pub delivered: u64,
    /// Moved to the dead letters.
    pub dead_lettered: u64,
    /// Dropped by a declared policy.
    pub dropped: u64,
    /// Purged by an operator.
    pub purged: u64,
    /// Gone with a part of the file that could not be read any more.
    #[serde(default)]
    pub lost: u64,
    /// Still in the buffer.
    pub held: u64,
}

/// The books of one route.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct RouteBooks {
    /// Its `from`; empty for events that no route matched.
    pub route: String,
    /// The configuration has it no more; what it holds, and no present route matches, goes to its `to` all the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gone_to: Option<String>,
    /// Its line.
    #[serde(flatten)]
    pub books: Books,
}

/// The buffer's part.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct BufferPart {
    /// Disk in use.
    pub used_bytes: u64,
    /// The limit, `[buffer] max_bytes`.
    pub max_bytes: u64,
    /// The limit stops the intake.
    pub full: bool,
    /// Age of the oldest event held, by the wall clock.
    pub oldest_age_s: Option<f64>,
    /// Arrival of the oldest event held.
    pub oldest_ms: Option<i64>,
    /// The next sequence to be given out.
    pub next_sequence: u64,
    /// Everything up to here is settled.
    pub released: u64,
    /// Synced commits since start.
    pub commits: u64,
    /// Seconds they took together.
    pub commit_seconds: f64,
    /// Seconds they waited for more readings, together.
    pub commit_wait_seconds: f64,
    /// Failed writes since start.
    pub write_failures: u64,
}

/// A broker or a listener.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct LinkPart {
    /// The table's name.
    pub name: String,
    /// `broker` or `listener`.
    pub kind: String,
    /// Sessions connected now.
    pub connected: u64,
    /// PUBLISH packets received since start.
    pub messages: u64,
    /// Their payload.
    pub payload_bytes: u64,
    /// Acknowledgements sent.
    pub acknowledgements: u64,
    /// QoS 0 that found no room.
    pub dropped: u64,
    /// QoS 2 repeats recognised.
    pub repeats: u64,
    /// QoS 2 messages half way when their session was lost: each may come again as a new reading.
    #[serde(default)]
    pub unreleased_lost: u64,
    /// Connections made.
    pub connects: u64,
    /// Connections ended by an error.
    pub failures: u64,
    /// Connections or subscriptions refused.
    pub refusals: u64,
    /// Filters that a listener granted, though nothing will be sent.
    #[serde(default)]
    pub subscriptions: u64,
    /// Messages and wills to topics that begin with `$`, which a listener does not forward.
    #[serde(default)]
    pub set_aside: u64,
    /// What went wrong last.
    pub last_error: String,
}

/// The Kafka side.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct KafkaPart {
    /// A broker answers.
    pub connected: bool,
    /// Sent and not yet reported.
    pub in_flight: u64,
    /// Confirmed since start.
    pub delivered: u64,
    /// Failed and to be sent again, since start.
    pub retried: u64,
    /// In chunks that could not be read since start, at most: held, and tried again at the next start.
    #[serde(default)]
    pub unread: u64,
    /// Producers made since start.
    pub producers: u64,
    /// Last confirmation.
    pub last_delivered_ms: Option<i64>,
    /// Topics that are parked.
    pub parked: Vec<ParkedPart>,
    /// Why readings wait, when nothing flows besides parked topics.
    #[serde(default)]
    pub waiting: Option<WaitingPart>,
    /// The last error, empty when it is over.
    pub last_error: String,
    /// `exactly-once` or `at-least-once`.
    #[serde(default)]
    pub delivery: String,
    /// With exactly-once delivery.
    #[serde(default)]
    pub transactions: Option<TransactionsPart>,
}

/// Readings wait, and nothing flows.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct WaitingPart {
    /// The kind of cause, as `tidegate_kafka_waiting` has it.
    pub reason: String,
    /// The cause, in words.
    pub why: String,
    /// What a person may do.
    pub remedy: String,
    /// Since when.
    pub since_ms: i64,
}

/// What exactly-once delivery has done since start.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct TransactionsPart {
    /// Every sequence up to here is delivered or otherwise settled, by a committed watermark.
    pub watermark: u64,
    /// Transactions committed.
    pub committed: u64,
    /// Transactions aborted.
    pub aborted: u64,
    /// Ends that had to be asked for twice; each cost a new producer.
    pub end_txn_retried: u64,
    /// How long one may take at most, and how long readers wait if the gateway dies in one.
    pub timeout_s: u64,
    /// From the last record's being sent to the commit's end, all together.
    pub commit_seconds: f64,
    /// The same by classes, for `/metrics`.
    #[serde(skip)]
    pub commits: CommitTimes,
    /// Why nothing can be sent; empty when something can.
    pub blocked: String,
}

/// A parked Kafka topic.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ParkedPart {
    /// Kafka topic.
    pub topic: String,
    /// Why.
    pub reason: String,
    /// Since when.
    pub since_ms: i64,
    /// Events that wait for it.
    pub held: u64,
}

impl Sources {
    /// Takes the snapshot.
    #[must_use]
    pub(crate) fn snapshot(&self) -> Status {
        let buffer = self.buffer.borrow().clone();
        let routes: Vec<RouteBooks> = buffer
            .ledger
            .iter()
            .map(|(id, line)| RouteBooks {
                gone_to: self.gone.get(id).map(ToString::to_string),
                ..RouteBooks::from(line)
            })
            .collect();
        let total = routes.iter().fold(Books::default(), |sum, route| sum.plus(route.books));
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            agent: self.agent.clone(),
            buffer_id: self.buffer_id.to_string(),
            uptime_s: self.started.elapsed().as_secs(),
            total,
            balanced: routes.iter().all(|route| route.books.balanced()),
            routes,
            buffer: BufferPart::from(buffer.as_ref()),
            links: self.links.iter().map(|link| LinkPart::from(link.as_ref())).collect(),
            kafka: self.kafka(&buffer, total),
            clock: self.clock(),
        }
    }

    /// The first stage that has been silent for longer than that, if any.
    #[must_use]
    pub(crate) fn stuck(&self, limit: std::time::Duration) -> Option<&str> {
        self.pulses.iter().find(|(_, pulse)| pulse.silence() > limit).map(|(stage, _)| stage.as_str())
    }

    /// Why the agent cannot take readings right now; `None` when it can. Kafka being away is no reason.
    #[must_use]
    pub(crate) fn not_ready(&self) -> Option<&'static str> {
        if !self.serving.load(Ordering::Relaxed) {
            Some("the agent is starting or stopping")
        } else if self.buffer.borrow().full {
            Some("the buffer is full: the agent takes no readings")
        } else if self.buffer.borrow().failing {
            Some("the disk fails: the agent can store nothing and acknowledges nothing; see the log")
        } else if self.forward.borrow().transactions.as_ref().is_some_and(|own| own.topic_unusable) {
            Some("the watermark topic cannot be used: the agent sends nothing to Kafka; see the log")
        } else {
            None
        }
    }

    fn clock(&self) -> ClockPart {
        let now = clock::now();
        #[expect(clippy::cast_precision_loss, reason = "shown in seconds")]
        let seconds = |ms: i64| ms as f64 / 1000.0;
        ClockPart {
            synchronised: now.clock.synchronised,
            doubtful: now.is_doubtful(),
            wall_ms: now.wall_ms,
            jumps: self.clock_jumps.load(Ordering::Relaxed),
            ahead_of_kafka_s: self.forward.borrow().clock_ahead_ms.map(seconds),
        }
    }

    fn kafka(&self, buffer: &BufferStatus, total: Books) -> KafkaPart {
        let forward = self.forward.borrow();
        let held = |topic: &str| buffer.lanes.iter().find(|(_, t, _)| &**t == topic).map_or(0, |(_, _, n)| *n);
        KafkaPart {
            connected: forward.connected,
            in_flight: forward.in_flight,
            delivered: forward.delivered,
            retried: forward.retried,
            unread: forward.unread,
            producers: forward.producers,
            last_delivered_ms: forward.last_delivered_ms,
            parked: forward
                .parked
                .iter()
                .map(|p| ParkedPart {
                    topic: p.topic.to_string(),
                    reason: p.reason.clone(),
                    since_ms: p.since_ms,
                    held: held(&p.topic),
                })
                .collect(),
            waiting: forward.waiting.as_ref().filter(|_| total.held > 0).map(WaitingPart::from),
            last_error: forward.last_error.clone(),
            delivery: if forward.transactions.is_some() { "exactly-once" } else { "at-least-once" }.to_owned(),
            transactions: forward.transactions.as_ref().map(TransactionsPart::from),
        }
    }
}

impl Books {
    fn plus(self, other: Self) -> Self {
        Self {
            received: self.received + other.received,
            delivered: self.delivered + other.delivered,
            dead_lettered: self.dead_lettered + other.dead_lettered,
            dropped: self.dropped + other.dropped,
            purged: self.purged + other.purged,
            lost: self.lost + other.lost,
            held: self.held + other.held,
        }
    }

    /// Custody rule 7 for this line.
    #[must_use]
    pub(crate) fn balanced(self) -> bool {
        let accounted = [self.delivered, self.dead_lettered, self.dropped, self.purged, self.lost, self.held];
        self.received == accounted.into_iter().sum::<u64>()
    }
}

impl From<&LedgerLine> for RouteBooks {
    fn from(line: &LedgerLine) -> Self {
        Self {
            route: line.route.to_string(),
            gone_to: None,
            books: Books {
                received: line.received,
                delivered: line.delivered,
                dead_lettered: line.dead_lettered,
                dropped: line.dropped,
                purged: line.purged,
                lost: line.lost,
                held: line.held,
            },
        }
    }
}

impl From<&Waiting> for WaitingPart {
    fn from(waiting: &Waiting) -> Self {
        let Waiting { reason, why, since_ms } = waiting;
        Self {
            reason: reason.name().to_owned(),
            why: why.clone(),
            remedy: reason.remedy().to_owned(),
            since_ms: *since_ms,
        }
    }
}

impl From<&Transactions> for TransactionsPart {
    fn from(transactions: &Transactions) -> Self {
        let Transactions { watermark, committed, aborted, end_txn_retried, .. } = *transactions;
        let (commits, blocked) = (transactions.commits.clone(), transactions.blocked.clone());
        let (commit_seconds, timeout_s) = (commits.seconds, transactions.timeout.as_secs());
        Self { watermark, committed, aborted, end_txn_retried, timeout_s, commit_seconds, commits, blocked }
    }
}

impl From<&BufferStatus> for BufferPart {
    fn from(buffer: &BufferStatus) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "an age in seconds; 2^53 ms are 285,000 years")]
        let age_s = |arrived_ms: i64| clock::wall_ms().saturating_sub(arrived_ms).max(0) as f64 / 1000.0;
        Self {
            used_bytes: buffer.used_bytes,
            max_bytes: buffer.max_bytes,
            full: buffer.full,
            oldest_age_s: buffer.oldest_ms.map(age_s),
            oldest_ms: buffer.oldest_ms,
            next_sequence: buffer.next_sequence,
            released: buffer.released,
            commits: buffer.commits,
            commit_seconds: buffer.commit_seconds,
            commit_wait_seconds: buffer.commit_wait_seconds,
            write_failures: buffer.write_failures,
        }
    }
}

impl From<&LinkStatus> for LinkPart {
    fn from(link: &LinkStatus) -> Self {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Self {
            name: link.name.clone(),
            kind: link.kind.to_owned(),
            connected: read(&link.connected),
            messages: read(&link.messages),
            payload_bytes: read(&link.payload_bytes),
            acknowledgements: read(&link.acknowledgements),
            dropped: read(&link.dropped),
            repeats: read(&link.repeats),
            unreleased_lost: read(&link.unreleased_lost),
            connects: read(&link.connects),
            failures: read(&link.failures),
            refusals: read(&link.refusals),
            subscriptions: read(&link.subscriptions),
            set_aside: read(&link.set_aside),
            last_error: link.last_error(),
        }
    }
}

impl Status {
    /// One line for `systemctl status`.
    #[must_use]
    pub(crate) fn one_line(&self) -> String {
        let up = self.links.iter().filter(|link| link.kind == "listener" || link.connected > 0).count();
        let kafka = if self.kafka.connected { "connected" } else { "away" };
        let mut line = format!(
            "{up}/{} MQTT links up, Kafka {kafka}, {} delivered, {} held",
            self.links.len(),
            self.total.delivered,
            self.total.held
        );
        if self.buffer.full {
            line.push_str(", buffer FULL");
        }
        if let Some(waiting) = &self.kafka.waiting {
            // Writing to a String cannot fail.
            write!(line, ", WAITING ({})", waiting.reason).unwrap_or_default();
        }
        if !self.kafka.parked.is_empty() {
            let n = self.kafka.parked.len();
            // Writing to a String cannot fail.
            write!(line, ", {n} Kafka topic{} parked", if n == 1 { "" } else { "s" }).unwrap_or_default();
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn books_that_miss_an_event_do_not_balance() {
        let books = Books { received: 10, delivered: 4, dead_lettered: 1, dropped: 1, purged: 0, lost: 1, held: 3 };
        assert!(books.balanced());
        assert!(!Books { held: 2, ..books }.balanced());
        assert!(!Books { delivered: 5, ..books }.balanced());
    }

    #[test]
    fn json_has_the_totals_at_the_top_and_reads_back() {
        let status = Status {
            total: Books { received: 3, held: 3, ..Books::default() },
            balanced: true,
            routes: vec![RouteBooks {
                route: "sensors/#".into(),
                gone_to: None,
                books: Books { received: 3, held: 3, ..Books::default() },
            }],
            ..Status::default()
        };
        let json = serde_json::to_value(&status).unwrap();
        for key in ["received", "delivered", "dead_lettered", "dropped", "purged", "lost", "held", "balanced"] {
            assert!(json.get(key).is_some(), "{key} missing at the top");
        }
        assert_eq!(json["routes"][0]["held"], 3);
        let back: Status = serde_json::from_value(json).unwrap();
        assert_eq!(back.total, status.total);
    }
}
