//! Tests of the buffer as a whole, on real files.

mod crash;
mod damage;
mod doubt;
mod faults;
mod files;
#[expect(clippy::wildcard_enum_match_arm, reason = "what should not stand in a file fails the test")]
mod format;
mod limit;
mod model;
mod settling;
mod storing;

use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::start::Running;
use super::*;
use crate::clock::Clock;
use crate::delivered::Delivered;
use crate::event::{Event, Qos, Stored};
use crate::observe::pulse::Pulse;
use crate::settings;
use crate::settings::machine::BufferKeys;

/// Long enough for any machine; nothing waits for it when all is well.
const PATIENCE: Duration = Duration::from_secs(60);

pub(super) fn settings() -> settings::Buffer {
    settings::example(BufferKeys::TABLE, BufferKeys::read).complete(Duration::ZERO).unwrap()
}

/// A buffer that runs, with the other ends of its doors.
struct Bench {
    running: Running<u64>,
    recovered: Recovered,
    reply: mpsc::UnboundedSender<Durable<u64>>,
    durable: mpsc::UnboundedReceiver<Durable<u64>>,
    /// Nothing was sent since the last look.
    seen: std::cell::Cell<bool>,
}

fn route(from: &str) -> Definition {
    Definition { from: from.into(), to: "all".into(), key: "{topic}".into(), value: "payload".into() }
}

fn names() -> [Definition; 2] {
    ["sensors/#", "other/#"].map(route)
}

fn open(dir: &Path) -> Bench {
    open_with(dir, settings())
}

fn open_with(dir: &Path, settings: settings::Buffer) -> Bench {
    let (buffer, recovered) = Buffer::open(settings, dir, &names()).unwrap();
    let running = buffer.start(Pulse::new()).unwrap();
    let (reply, durable) = mpsc::unbounded_channel();
    Bench { running, recovered, reply, durable, seen: true.into() }
}

fn event(n: u64) -> Event {
    Event {
        topic: format!("sensors/{}", n % 7).into(),
        payload: format!(r#"{{"n":{n},"temperature":{}}}"#, n % 31).into_bytes().into(),
        qos: Qos::AtLeastOnce,
        retain: n.is_multiple_of(5),
        dup: n.is_multiple_of(3),
        arrived_ms: 1_700_000_000_000 + i64::try_from(n).unwrap(),
        clock: Clock { boot: 7, booted_ms: i64::try_from(n / 3).unwrap(), synchronised: n.is_multiple_of(2) },
        route: route_of(n),
        sender: None,
        properties: None,
    }
}

fn route_of(sequence: u64) -> RouteId {
    RouteId(1 + u16::try_from(sequence % 2).unwrap())
}

/// Proofs for events made with `event(sequence)`.
fn delivered(sequences: impl IntoIterator<Item = u64>) -> Vec<Delivered> {
    sequences.into_iter().map(|sequence| Delivered::forged(sequence, route_of(sequence))).collect()
}

fn dead(sequence: u64) -> DeadLetter {
    DeadLetter { sequence, route: route_of(sequence), kafka_topic: "k".into(), reason: "too large".into() }
}

fn sequences(events: &[Stored]) -> Vec<u64> {
    events.iter().map(|event| event.sequence).collect()
}

impl Bench {
    fn arrivals(&self, events: Vec<Event>, receipt: u64) -> Arrivals<u64> {
        self.seen.set(false);
        let reply = self.reply.clone();
        Arrivals { events, sessions: Vec::new(), receipt, reply, room: None, waits: true }
    }

    /// Queues these and returns at once.
    fn send(&self, events: Vec<Event>, receipt: u64) {
        self.running.intake.store(self.arrivals(events, receipt)).unwrap();
    }

    fn send_with(&self, events: Vec<Event>, sessions: Vec<SessionChange>, receipt: u64) {
        let arrivals = Arrivals { sessions, ..self.arrivals(events, receipt) };
        self.running.intake.store(arrivals).unwrap();
    }

    fn acknowledged(&mut self) -> u64 {
        self.seen.set(false);
        self.durable.blocking_recv().unwrap().into_receipt()
    }

    /// Stores `event(n)` for each n, which must be the sequences they get, and waits until they are durable.
    fn store(&mut self, numbers: RangeInclusive<u64>) {
        let receipt = *numbers.end();
        self.send(numbers.map(event).collect(), receipt);
        assert_eq!(self.acknowledged(), receipt);
    }

    /// Settles, and sends an empty arrival with it, so that nobody waits for the buffer to look by itself.
    fn settle(&self, settlement: Settlement) {
        let ticket = self.running.settler.settle(settlement).unwrap();
        let reply = mpsc::unbounded_channel().0;
        let nothing = Arrivals { reply, ..self.arrivals(Vec::new(), 0) };
        self.running.intake.store(nothing).unwrap();
        wait_for("the settlement", || self.running.settler.applied() >= ticket);
    }

    fn settle_alone(&self, settlement: Settlement) {
        let ticket = self.running.settler.settle(settlement).unwrap();
        wait_for("the settlement", || self.running.settler.applied() >= ticket);
    }

    fn deliver(&self, sequences: impl IntoIterator<Item = u64>) {
        self.settle(Settlement { delivered: delivered(sequences), ..Settlement::default() });
    }

    fn park(&self, sequences: impl IntoIterator<Item = u64>, kafka_topic: &str) {
        let topic: Arc<str> = kafka_topic.into();
        let parked = sequences.into_iter().map(|sequence| Parked { sequence, kafka_topic: Arc::clone(&topic) });
        self.settle(Settlement { parked: parked.collect(), ..Settlement::default() });
    }

    /// Everything that can be read now, in order. An acknowledgement leaves before the reader is told; a settlement
    /// after it is applied after that.
    fn read_all(&mut self) -> Vec<Stored> {
        if !self.seen.replace(true) {
            self.settle(Settlement::default());
        }
        let mut all = Vec::new();
        loop {
            let events = self.running.reader.next(Duration::ZERO).unwrap();
            if events.is_empty() {
                return all;
            }
            all.extend(events);
        }
    }

    fn lane(&mut self, lane: LaneId) -> Vec<LaneChunk> {
        let (mut chunks, mut after) = (Vec::new(), 0);
        while let Some(chunk) = self.running.reader.parked(lane, after).unwrap() {
            after = chunk.id;
            chunks.push(chunk);
        }
        chunks
    }

    fn status(&self) -> Arc<BufferStatus> {
        self.running.status.borrow().clone()
    }

    /// The books, once they show this many received events settled or not.
    fn totals(&self, ready: impl Fn(&BufferStatus) -> bool) -> LedgerLine {
        wait_for("the status", || ready(&self.status()));
        total(&self.status())
    }

    /// Closes all doors and waits for the thread.
    fn close(self) {
        let Running { intake, reader, settler, status, thread } = self.running;
        drop((intake, reader, settler, status));
        thread.join().unwrap();
    }
}

fn total(status: &BufferStatus) -> LedgerLine {
    let mut sum = LedgerLine::default();
    for (_, line) in &status.ledger {
        assert_eq!(
            line.received,
            line.delivered + line.dead_lettered + line.dropped + line.purged + line.lost + line.held,
            "{line:?}"
        );
        sum.received += line.received;
        sum.delivered += line.delivered;
        sum.dead_lettered += line.dead_lettered;
        sum.dropped += line.dropped;
        sum.lost += line.lost;
        sum.held += line.held;
    }
    sum
}

fn wait_for(what: &str, ready: impl Fn() -> bool) {
    let start = Instant::now();
    while !ready() {
        assert!(start.elapsed() < PATIENCE, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A copy of the files as they are now, which is what a killed process leaves.
fn copy(dir: &Path) -> tempfile::TempDir {
    let to = tempfile::tempdir().unwrap();
    // The index before the log: it must not know of more than is copied.
    for name in ["buffer.db-shm", "buffer.db", "buffer.db-wal", "identity"] {
        if dir.join(name).exists() {
            std::fs::copy(dir.join(name), to.path().join(name)).unwrap();
        }
    }
    to
}

fn files(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
