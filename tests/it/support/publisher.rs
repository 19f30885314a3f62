//! A sensor that remembers exactly what was acknowledged.
//!
//! It publishes numbered readings with a window of unanswered ones, keeps its session, comes back after every end of a
//! connection, and repeats what was not answered, in order, as the standard says. Reading `n` of a publisher is the
//! same bytes whenever and wherever it is made, so that the books need not keep payloads.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::client::{Connection, keep};
use super::wire::{self, Connect, Message, Packet, Version};
use super::{Outcome, PATIENCE, Trouble, trouble, wait_until};

/// What to publish, and how.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Client id, and the beginning of every payload. Without `/`.
    pub name: String,
    /// Reading `n` goes to topic `n` modulo their number.
    pub topics: Vec<String>,
    /// Readings are filled up to this.
    pub payload_bytes: usize,
    /// Payloads that cannot be compressed by more than a quarter.
    pub noisy: bool,
    /// 0, 1 or 2.
    pub qos: u8,
    /// MQTT version.
    pub version: Version,
    /// Unanswered readings at a time; less if the other side bears less (it can say so in MQTT 5).
    pub window: usize,
    /// Readings a second; `None` = as fast as they are answered.
    pub rate: Option<u32>,
    /// How many in all; `None` = until it is stopped.
    pub count: Option<u64>,
    /// Credentials and the like; the client id is set from `name`.
    pub connect: Connect,
}

impl Plan {
    /// 100-byte readings to one topic, MQTT 5, a window of 20.
    pub fn new(name: &str, topic: &str, qos: u8) -> Self {
        Self {
            name: name.to_owned(),
            topics: vec![topic.to_owned()],
            payload_bytes: 100,
            noisy: false,
            qos,
            version: Version::V5,
            // MQTT 3.1.1 cannot say what it bears; mosquitto bears 20 by default and mixes up the order beyond.
            window: 20,
            rate: None,
            count: None,
            connect: keep(name),
        }
    }

    /// That many and no more.
    #[must_use]
    pub fn count(mut self, count: u64) -> Self {
        self.count = Some(count);
        self
    }

    /// So many a second.
    #[must_use]
    pub fn rate(mut self, rate: u32) -> Self {
        self.rate = Some(rate);
        self
    }

    /// To several topics in turn.
    #[must_use]
    pub fn topics(mut self, topics: Vec<String>) -> Self {
        self.topics = topics;
        self
    }

    /// Payloads of that size of which each byte takes six bits on the wire.
    #[must_use]
    pub fn noise(mut self, payload_bytes: usize) -> Self {
        self.payload_bytes = payload_bytes;
        self.noisy = true;
        self
    }

    /// That many unanswered.
    #[must_use]
    pub fn window(mut self, window: usize) -> Self {
        self.window = window;
        self
    }

    /// In that version.
    #[must_use]
    pub fn version(mut self, version: Version) -> Self {
        self.version = version;
        self
    }

    /// Topic of reading `n`.
    pub fn topic(&self, n: u64) -> &str {
        let index = n as usize % self.topics.len().max(1);
        self.topics.get(index).map_or("", String::as_str)
    }

    /// Payload of reading `n`: `name/n` and then JSON that differs from reading to reading.
    pub fn payload(&self, n: u64) -> Vec<u8> {
        let value = n.wrapping_mul(2_654_435_761) % 100_000;
        let mut text = format!(
            "{}/{n} {{\"t\":{},\"v\":{}.{:02},\"u\":\"C\"",
            self.name,
            1_700_000_000 + n,
            value / 100,
            value % 100
        );
        let mut noise = fastrand::Rng::with_seed(n);
        while text.len() + 1 < self.payload_bytes {
            text.push(if self.noisy {
                char::from(b'0' + noise.u8(..64))
            } else {
                char::from(b'a' + (text.len() as u64 ^ n) as u8 % 16)
            });
        }
        text.push('}');
        text.into_bytes()
    }

    /// The publisher and number that a payload claims to be.
    pub fn name_and_number(payload: &[u8]) -> Option<(&str, u64)> {
        let end = payload.iter().position(|byte| *byte == b' ')?;
        let (name, number) = std::str::from_utf8(payload.get(..end)?).ok()?.split_once('/')?;
        Some((name, number.parse().ok()?))
    }
}

/// What became of it.
#[derive(Debug, Clone)]
pub struct Log {
    /// What was to do.
    pub plan: Plan,
    /// Readings 0 to `published` (without it) were written to a socket at least once.
    pub published: u64,
    /// By number: has the other side taken custody (PUBACK; at QoS 2 PUBREC with success, which PUBCOMP confirms)?
    pub acknowledged: Vec<bool>,
    /// Connections that were accepted.
    pub connects: u64,
    /// Connections after the first whose session was gone.
    pub sessions_lost: u64,
    /// Answers with a reason code of refusal.
    pub refused: u64,
    /// Answers to packet ids that nothing was waiting for.
    pub stray_answers: u64,
    /// From the first writing to the acknowledgement, microseconds.
    pub latencies_us: Vec<u32>,
}

impl Log {
    /// Of a publisher that had no trouble.
    pub fn all_acknowledged(plan: Plan, count: u64) -> Self {
        Self {
            plan,
            published: count,
            acknowledged: vec![true; count as usize],
            connects: 1,
            sessions_lost: 0,
            refused: 0,
            stray_answers: 0,
            latencies_us: Vec::new(),
        }
    }

    /// Number of acknowledged readings.
    pub fn acknowledged_count(&self) -> u64 {
        self.acknowledged.iter().filter(|yes| **yes).count() as u64
    }
}

/// A publisher at work.
#[derive(Debug)]
pub struct Publisher {
    orders: Arc<Orders>,
    thread: JoinHandle<Log>,
}

#[derive(Debug, Default)]
struct Orders {
    /// No new readings.
    stop: AtomicBool,
    /// Leave at once, answered or not.
    leave: AtomicBool,
    acknowledged: AtomicU64,
    published: AtomicU64,
}

impl Publisher {
    /// Begins; waits for nothing.
    pub fn start(address: SocketAddr, plan: Plan) -> Self {
        let orders = Arc::new(Orders::default());
        let work = Work::new(address, plan, Arc::clone(&orders));
        Self { orders, thread: std::thread::spawn(move || work.run()) }
    }

    /// Acknowledged until now.
    pub fn acknowledged(&self) -> u64 {
        self.orders.acknowledged.load(Ordering::Relaxed)
    }

    /// Published until now, answered or not.
    pub fn published(&self) -> u64 {
        self.orders.published.load(Ordering::Relaxed)
    }

    /// Waits until that many were acknowledged.
    pub fn wait_acknowledged(&self, count: u64) -> Outcome<()> {
        wait_until(&format!("{count} acknowledgements"), PATIENCE * 2, || self.acknowledged() >= count)
            .map_err(|error| Trouble::new(format!("{error:?} ({} came)", self.acknowledged())))
    }

    /// Waits until everything planned was answered, or `limit` is over; the log says which.
    pub fn finish(self, limit: Duration) -> Outcome<Log> {
        let end = Instant::now() + limit;
        while !self.thread.is_finished() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(5));
        }
        self.leave()
    }

    /// No new readings; waits until all are answered, at most `limit`.
    pub fn stop(self, limit: Duration) -> Outcome<Log> {
        self.orders.stop.store(true, Ordering::Relaxed);
        self.finish(limit)
    }

    /// Leaves at once.
    pub fn leave(self) -> Outcome<Log> {
        self.orders.leave.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_panic| Trouble::new("the publisher panicked"))
    }
}

/// Publishes all of a plan and expects every reading to be acknowledged.
pub fn publish_all(address: SocketAddr, plan: Plan) -> Outcome<Log> {
    let count = plan.count.unwrap_or(1);
    let log = Publisher::start(address, plan).finish(PATIENCE * 2)?;
    if log.published < count || (log.plan.qos > 0 && log.acknowledged_count() < count) {
        return trouble!("{}: {} of {count} acknowledged", log.plan.name, log.acknowledged_count());
    }
    Ok(log)
}

/// A reading on its way.
#[derive(Debug, Clone, Copy)]
struct Flight {
    id: u16,
    n: u64,
    /// PUBREC has come: PUBREL is what is repeated from now on.
    released: bool,
    since: Instant,
}

struct Work {
    address: SocketAddr,
    orders: Arc<Orders>,
    log: Log,
    flights: VecDeque<Flight>,
    /// By packet id: is it in use?
    busy: Vec<bool>,
    next_id: u16,
    /// The plan's, or what the other side bears.
    window: usize,
    begin: Instant,
}

/// How long a socket is waited for before the orders are looked at.
const BEAT: Duration = Duration::from_millis(20);

impl Work {
    fn new(address: SocketAddr, plan: Plan, orders: Arc<Orders>) -> Self {
        let window = plan.window;
        let log = Log {
            plan,
            published: 0,
            acknowledged: Vec::new(),
            connects: 0,
            sessions_lost: 0,
            refused: 0,
            stray_answers: 0,
            latencies_us: Vec::new(),
        };
        let busy = vec![false; 65_536];
        Self { address, orders, log, flights: VecDeque::new(), busy, next_id: 1, window, begin: Instant::now() }
    }

    fn run(mut self) -> Log {
        while !self.is_over() {
            if self.one_connection().is_err() {
                std::thread::sleep(BEAT);
            }
        }
        self.log
    }

    fn is_over(&self) -> bool {
        let nothing_more = self.orders.stop.load(Ordering::Relaxed) || self.log.plan.count == Some(self.log.published);
        self.orders.leave.load(Ordering::Relaxed) || nothing_more && self.flights.is_empty()
    }

    fn one_connection(&mut self) -> Outcome<()> {
        let connect = Connect { client_id: self.log.plan.name.clone(), ..self.log.plan.connect.clone() };
        let (mut link, present) = Connection::open(self.address, self.log.plan.version, connect)?;
        self.window = self.log.plan.window.min(usize::from(link.receive_maximum));
        self.log.connects += 1;
        if self.log.connects > 1 && !present {
            self.log.sessions_lost += 1;
        }
        let mut out = Vec::new();
        self.repeat(present, &mut out);
        while !self.is_over() {
            self.publish_new(&mut out);
            link.send_some(&mut out, BEAT)?;
            if let Some(packet) = link.next(self.patience(out.is_empty()))? {
                self.answered(&packet, &mut out)?;
                while let Some(packet) = link.next(Duration::ZERO)? {
                    self.answered(&packet, &mut out)?;
                }
            }
        }
        link.send_some(&mut out, PATIENCE)?;
        link.send(&Packet::Disconnect { reason: 0 })
    }

    /// What was not answered on the last connection, in order. A session that is gone knows no releases.
    fn repeat(&mut self, present: bool, out: &mut Vec<u8>) {
        for flight in &mut self.flights {
            if flight.released && present {
                Packet::PubRel { id: flight.id, reason: 0 }.write(self.log.plan.version, out);
            } else {
                flight.released = false;
                wire::write_publish(&message(&self.log.plan, flight.n), flight.id, present, self.log.plan.version, out);
            }
        }
    }

    fn publish_new(&mut self, out: &mut Vec<u8>) {
        let due = self.log.plan.rate.map_or(u64::MAX, |rate| {
            (self.begin.elapsed().as_micros() as u64).saturating_mul(u64::from(rate)) / 1_000_000
        });
        let until = self.log.plan.count.unwrap_or(u64::MAX).min(due);
        while self.log.published < until
            && self.flights.len() < self.window
            && out.len() < 64 * 1024
            && !self.orders.stop.load(Ordering::Relaxed)
        {
            let n = self.log.published;
            let id = if self.log.plan.qos > 0 { self.free_id() } else { 0 };
            wire::write_publish(&message(&self.log.plan, n), id, false, self.log.plan.version, out);
            if self.log.plan.qos > 0 {
                self.flights.push_back(Flight { id, n, released: false, since: Instant::now() });
            }
            self.log.published += 1;
            self.log.acknowledged.push(false);
            self.orders.published.store(self.log.published, Ordering::Relaxed);
        }
    }

    fn free_id(&mut self) -> u16 {
        loop {
            let id = self.next_id;
            self.next_id = self.next_id.checked_add(1).unwrap_or(1);
            if let Some(busy) = self.busy.get_mut(usize::from(id)).filter(|busy| !**busy) {
                *busy = true;
                return id;
            }
        }
    }

    fn answered(&mut self, packet: &Packet, out: &mut Vec<u8>) -> Outcome<()> {
        match *packet {
            Packet::PubAck { id, reason } => self.settle(id, reason, true),
            Packet::PubRec { id, reason } if reason < 0x80 => {
                let Some(flight) = self.flights.iter_mut().find(|flight| flight.id == id) else {
                    self.log.stray_answers += 1;
                    return Ok(());
                };
                flight.released = true;
                let n = flight.n;
                self.custody(n);
                Packet::PubRel { id, reason: 0 }.write(self.log.plan.version, out);
            }
            Packet::PubRec { id, reason } => self.settle(id, reason, false),
            Packet::PubComp { id, .. } => self.settle(id, 0, true),
            Packet::Disconnect { reason } => return trouble!("DISCONNECT {reason:#x}"),
            _ => {}
        }
        Ok(())
    }

    fn settle(&mut self, id: u16, reason: u8, custody: bool) {
        let Some(position) = self.flights.iter().position(|flight| flight.id == id) else {
            self.log.stray_answers += 1;
            return;
        };
        if let Some(busy) = self.busy.get_mut(usize::from(id)) {
            *busy = false;
        }
        if let Some(flight) = self.flights.remove(position) {
            if reason >= 0x80 {
                self.log.refused += 1;
            } else if custody {
                self.custody(flight.n);
                self.log.latencies_us.push(u32::try_from(flight.since.elapsed().as_micros()).unwrap_or(u32::MAX));
                self.orders.acknowledged.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn custody(&mut self, n: u64) {
        if let Some(acknowledged) = self.log.acknowledged.get_mut(n as usize) {
            *acknowledged = true;
        }
    }

    /// How long to wait for an answer before there may be something to send.
    fn patience(&self, all_sent: bool) -> Duration {
        let full = self.flights.len() >= self.window;
        match self.log.plan.rate {
            _ if !all_sent => Duration::from_millis(1),
            None if full => BEAT,
            None if self.log.plan.count == Some(self.log.published) => BEAT,
            None => Duration::ZERO,
            Some(_) => Duration::from_millis(2),
        }
    }
}

fn message(plan: &Plan, n: u64) -> Message {
    Message { topic: plan.topic(n).to_owned(), payload: plan.payload(n), qos: plan.qos, ..Message::default() }
}

#[cfg(test)]
mod tests {
    use super::super::scripted::ScriptedBroker;
    use super::*;

    #[test]
    fn payloads_say_who_they_are_and_differ() {
        let plan = Plan::new("p", "t", 1);
        assert_eq!(plan.payload(12).len(), 100);
        assert_eq!(Plan::name_and_number(&plan.payload(12)), Some(("p", 12)));
        assert_eq!(Plan::name_and_number(b"\xff\xfe "), None);
    }

    #[test]
    fn only_what_was_answered_counts_as_acknowledged() {
        let broker = ScriptedBroker::start().unwrap();
        let publisher = Publisher::start(broker.address(), Plan::new("p", "t", 1).count(3));
        let mut peer = broker.accept().unwrap();
        peer.welcome(false).unwrap();
        peer.link.expect("the third", |packet| matches!(packet, Packet::Publish { id: 3, .. })).unwrap();
        peer.link.send(&Packet::PubAck { id: 2, reason: 0 }).unwrap();
        publisher.wait_acknowledged(1).unwrap();
        let log = publisher.leave().unwrap();
        assert_eq!((log.published, log.acknowledged), (3, vec![false, true, false]));
    }

    #[test]
    fn after_a_cut_qos_2_repeats_the_release_and_the_unanswered_publish() {
        let broker = ScriptedBroker::start().unwrap();
        let publisher = Publisher::start(broker.address(), Plan::new("p", "t", 2).count(2));
        let mut peer = broker.accept().unwrap();
        peer.welcome(false).unwrap();
        peer.link.expect("the second", |packet| matches!(packet, Packet::Publish { id: 2, .. })).unwrap();
        peer.link.send(&Packet::PubRec { id: 1, reason: 0 }).unwrap();
        peer.link.expect("PUBREL", |packet| matches!(packet, Packet::PubRel { id: 1, .. })).unwrap();
        drop(peer);
        let mut peer = broker.accept().unwrap();
        peer.welcome(true).unwrap();
        assert_eq!(peer.link.next(PATIENCE).unwrap(), Some(Packet::PubRel { id: 1, reason: 0 }));
        let again = peer.link.next(PATIENCE).unwrap();
        assert!(matches!(again, Some(Packet::Publish { id: 2, dup: true, .. })), "{again:?}");
        peer.link.send(&Packet::PubComp { id: 1, reason: 0 }).unwrap();
        peer.link.send(&Packet::PubRec { id: 2, reason: 0 }).unwrap();
        peer.link.send(&Packet::PubComp { id: 2, reason: 0 }).unwrap();
        let log = publisher.finish(PATIENCE).unwrap();
        assert_eq!((log.acknowledged_count(), log.connects, log.sessions_lost), (2, 2, 0));
    }
}
