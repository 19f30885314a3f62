//! A sensor that remembers exactly what was acknowledged.
//!
//! It publishes numbered readings with a window of unanswered ones, keeps its session, comes back after every end of a
//! connection, and repeats what was not answered, in order, as the standard says.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::client::Connection;
pub use crate::plan::{Pace, Plan};
use crate::session::Session;
use crate::wire::{Connect, Packet};
use crate::{Outcome, PATIENCE, Trouble, trouble, wait_until};

/// What became of it.
#[derive(Debug, Clone)]
pub struct Log {
    /// What was to do.
    pub plan: Plan,
    /// Readings 0 to `published` (without it) were written to a socket at least once.
    pub published: u64,
    /// By number: has the other side taken custody (PUBACK; at QoS 2 PUBREC with success, which PUBCOMP confirms)?
    pub acknowledged: Vec<bool>,
    /// Numbers of readings that were published more than once, because no answer had come before the connection broke.
    pub sent_again: BTreeSet<u64>,
    /// Connections that were accepted.
    pub connects: u64,
    /// Connections after the first whose session was gone.
    pub sessions_lost: u64,
    /// Answers with a reason code of refusal.
    pub refused: u64,
    /// Answers to packet ids that nothing was waiting for, or that do not fit the QoS.
    pub stray_answers: u64,
    /// Of each answered reading, if the plan asks for it.
    pub stamps: Vec<Stamp>,
}

/// When a reading was written first, and when it was answered to the end.
#[derive(Debug, Clone, Copy)]
pub struct Stamp {
    pub n: u64,
    pub written: Instant,
    pub answered: Instant,
}

impl Log {
    pub(crate) fn new(plan: Plan) -> Self {
        Self {
            plan,
            published: 0,
            acknowledged: Vec::new(),
            sent_again: BTreeSet::new(),
            connects: 0,
            sessions_lost: 0,
            refused: 0,
            stray_answers: 0,
            stamps: Vec::new(),
        }
    }

    /// Of a publisher that had no trouble.
    pub fn all_acknowledged(plan: Plan, count: u64) -> Self {
        Self { published: count, acknowledged: vec![true; count as usize], connects: 1, ..Self::new(plan) }
    }

    /// Number of acknowledged readings.
    pub fn acknowledged_count(&self) -> u64 {
        self.acknowledged.iter().filter(|yes| **yes).count() as u64
    }

    /// Was this reading acknowledged?
    pub fn is_acknowledged(&self, n: u64) -> bool {
        self.acknowledged.get(n as usize) == Some(&true)
    }

    pub(crate) fn custody(&mut self, n: u64) {
        if let Some(acknowledged) = self.acknowledged.get_mut(n as usize) {
            *acknowledged = true;
        }
    }
}

/// A publisher at work.
#[derive(Debug)]
pub struct Publisher {
    orders: Arc<Orders>,
    thread: JoinHandle<Log>,
}

/// What is told to the thread, and what it tells.
#[derive(Debug, Default)]
struct Orders {
    /// No new readings.
    stop: AtomicBool,
    /// Leave at once, answered or not.
    leave: AtomicBool,
    acknowledged: AtomicU64,
    published: AtomicU64,
    resumed: AtomicU64,
}

impl Publisher {
    /// Begins; waits for nothing.
    pub fn start(address: SocketAddr, plan: Plan) -> Self {
        let orders = Arc::new(Orders::default());
        let work = Work::new(address, plan, Arc::clone(&orders));
        Self { orders, thread: std::thread::spawn(move || work.run()) }
    }

    /// Acknowledged until now, at QoS 2 to the end.
    pub fn acknowledged(&self) -> u64 {
        self.orders.acknowledged.load(Ordering::Relaxed)
    }

    /// Published until now, answered or not.
    pub fn published(&self) -> u64 {
        self.orders.published.load(Ordering::Relaxed)
    }

    /// Connections until now that found their session again.
    pub fn resumed(&self) -> u64 {
        self.orders.resumed.load(Ordering::Relaxed)
    }

    /// Waits until that many were acknowledged.
    pub fn wait_acknowledged(&self, count: u64) -> Outcome<()> {
        wait_until(&format!("{count} acknowledgements"), PATIENCE * 2, || self.acknowledged() >= count)
            .map_err(|error| Trouble::new(format!("{error:?} ({} came)", self.acknowledged())))
    }

    /// Waits until everything planned was answered, or `limit` is over; the log says which.
    pub fn finish(self, limit: Duration) -> Outcome<Log> {
        let end = Instant::now() + limit;
        while !self.is_finished() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(5));
        }
        self.leave()
    }

    /// No new readings; waits until all are answered, at most `limit`.
    pub fn stop(self, limit: Duration) -> Outcome<Log> {
        self.publish_no_more();
        self.finish(limit)
    }

    /// No new readings; for who waits in a way of his own.
    pub fn publish_no_more(&self) {
        self.orders.stop.store(true, Ordering::Relaxed);
    }

    /// Is everything answered that is to be published?
    pub fn is_finished(&self) -> bool {
        self.thread.is_finished()
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

struct Work {
    address: SocketAddr,
    orders: Arc<Orders>,
    session: Session,
    begin: Instant,
    /// Before the next connection.
    pause: Duration,
    last_sent: Instant,
}

/// How long a socket is waited for before the orders are looked at.
const BEAT: Duration = Duration::from_millis(20);

/// Between two attempts at most; the first comes after a [`BEAT`], each next one after twice as long.
const LONGEST_PAUSE: Duration = Duration::from_millis(160);

/// More is not prepared before it is written.
const MAX_UNSENT_BYTES: usize = 64 * 1024;

impl Work {
    fn new(address: SocketAddr, plan: Plan, orders: Arc<Orders>) -> Self {
        let (begin, last_sent) = (Instant::now(), Instant::now());
        Self { address, orders, session: Session::new(plan), begin, pause: BEAT, last_sent }
    }

    fn run(mut self) -> Log {
        while !self.is_over() {
            if self.one_connection().is_err() {
                std::thread::sleep(self.pause);
                self.pause = (self.pause * 2).min(LONGEST_PAUSE);
            }
        }
        self.session.into_log()
    }

    fn is_over(&self) -> bool {
        let nothing_more = self.is_stopped() || self.session.plan().count == Some(self.session.published());
        self.orders.leave.load(Ordering::Relaxed) || nothing_more && self.session.nothing_in_flight()
    }

    fn is_stopped(&self) -> bool {
        self.orders.stop.load(Ordering::Relaxed)
    }

    fn one_connection(&mut self) -> Outcome<()> {
        let plan = self.session.plan();
        let connect = Connect { client_id: plan.name.clone(), ..plan.connect.clone() };
        let (mut link, present) = Connection::open(self.address, plan.version, connect)?;
        self.pause = BEAT;
        self.orders.resumed.fetch_add(u64::from(present), Ordering::Relaxed);
        let mut out = Vec::new();
        for say in self.session.resume(present, link.receive_maximum) {
            self.session.write(say, &mut out);
        }
        while !self.is_over() {
            self.publish_new(&mut out);
            self.ping(&mut out);
            link.send_some(&mut out, BEAT)?;
            if let Some(packet) = link.next(self.patience(out.is_empty()))? {
                self.answered(packet, &mut link, &mut out)?;
            }
        }
        link.send_some(&mut out, PATIENCE)?;
        link.send(&Packet::Disconnect { reason: 0 })
    }

    fn publish_new(&mut self, out: &mut Vec<u8>) {
        let plan = self.session.plan();
        let due = plan.pace.map_or(u64::MAX, |pace| pace.due(self.begin.elapsed()));
        let until = if self.is_stopped() { 0 } else { plan.count.unwrap_or(u64::MAX).min(due) };
        let now = Instant::now();
        while self.session.published() < until && out.len() < MAX_UNSENT_BYTES {
            let Some(say) = self.session.next(now) else { break };
            self.session.write(say, out);
        }
        self.orders.published.store(self.session.published(), Ordering::Relaxed);
    }

    /// A sensor that has nothing to say is still there.
    fn ping(&mut self, out: &mut Vec<u8>) {
        let keep_alive = Duration::from_secs(u64::from(self.session.plan().connect.keep_alive));
        if !out.is_empty() {
            self.last_sent = Instant::now();
        } else if !keep_alive.is_zero() && self.last_sent.elapsed() > keep_alive / 3 {
            Packet::PingReq.write(self.session.plan().version, out);
            self.last_sent = Instant::now();
        }
    }

    /// This packet and all that came with it.
    fn answered(&mut self, first: Packet, link: &mut Connection, out: &mut Vec<u8>) -> Outcome<()> {
        let (now, mut next) = (Instant::now(), Some(first));
        while let Some(packet) = next {
            if let Packet::Disconnect { reason } = packet {
                return trouble!("DISCONNECT {reason:#x}");
            }
            if let Some(say) = self.session.hear(&packet, now) {
                self.session.write(say, out);
            }
            next = link.next_that_came()?;
        }
        self.orders.acknowledged.store(self.session.completed(), Ordering::Relaxed);
        Ok(())
    }

    /// How long to wait for an answer before there may be something to send.
    fn patience(&self, all_sent: bool) -> Duration {
        let plan = self.session.plan();
        let nothing_due = self.session.is_full() || self.is_stopped() || plan.count == Some(self.session.published());
        match plan.pace {
            _ if !all_sent => Duration::from_millis(1),
            _ if nothing_due => BEAT,
            None => Duration::ZERO,
            Some(pace) => {
                let due = pace.time_of(self.session.published()).saturating_sub(self.begin.elapsed());
                due.clamp(Duration::from_millis(1), BEAT)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scripted::ScriptedBroker;
    use crate::wire::Version;

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
    fn an_answer_that_comes_late_is_read_when_all_is_published() {
        let broker = ScriptedBroker::start().unwrap();
        let publisher = Publisher::start(broker.address(), Plan::new("p", "t", 1).count(2).rate(1_000));
        let mut peer = broker.accept().unwrap();
        peer.welcome(false).unwrap();
        peer.link.expect("the second", |packet| matches!(packet, Packet::Publish { id: 2, .. })).unwrap();
        std::thread::sleep(Duration::from_millis(50));
        for id in [1, 2] {
            peer.link.send(&Packet::PubAck { id, reason: 0 }).unwrap();
        }
        assert_eq!(publisher.finish(PATIENCE).unwrap().acknowledged_count(), 2);
    }

    #[test]
    fn a_qos_1_sensor_sends_again_what_was_not_acknowledged_in_order_and_with_dup() {
        let broker = ScriptedBroker::start().unwrap();
        let publisher = Publisher::start(broker.address(), Plan::new("p", "t", 1).version(Version::V311).count(10));
        let mut peer = broker.accept().unwrap();
        assert!(!peer.connect.clean);
        peer.welcome(false).unwrap();
        peer.link.expect("the tenth", |packet| matches!(packet, Packet::Publish { id: 10, .. })).unwrap();
        for id in 1..=4 {
            peer.link.send(&Packet::PubAck { id, reason: 0 }).unwrap();
        }
        publisher.wait_acknowledged(4).unwrap();
        drop(peer);
        let mut peer = broker.accept().unwrap();
        peer.welcome(true).unwrap();
        for expected in 5..=10 {
            let again = peer.link.next(PATIENCE).unwrap();
            assert!(matches!(again, Some(Packet::Publish { id, dup: true, .. }) if id == expected), "{again:?}");
            peer.link.send(&Packet::PubAck { id: expected, reason: 0 }).unwrap();
        }
        let log = publisher.finish(PATIENCE).unwrap();
        assert_eq!((log.acknowledged_count(), log.refused, log.stray_answers), (10, 0, 0));
        assert_eq!(log.sent_again, (4..10).collect());
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
