//! A broker that keeps to the standard, a process that may die at any instant, links that break, sessions that get
//! lost: whatever the order, no QoS 2 message is stored twice and none is lost, and no QoS 1 message is lost.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use proptest::prelude::*;

use super::session::Session;
use super::tests::{connack, publish, pubrel, settings};
use crate::buffer::{IdChange, StoredSession};
use crate::clock::Moment;
use crate::ingest::batch::Batch;
use crate::ingest::close::Close;
use crate::ingest::codec::{self, Packet};
use crate::ingest::topics::Topics;
use crate::settings::MqttVersion;

#[derive(Debug, Clone, Copy)]
enum Step {
    /// A sensor publishes, with that QoS.
    Publish(u8),
    /// What was read goes to the buffer's queue. Without this it is lost when the link breaks, as when there is no room.
    Store,
    /// The oldest queued work is committed.
    Commit,
    /// The link breaks and comes back.
    Break,
    /// Half a message of the broker's arrives, and then the link breaks.
    BreakInPacket,
    /// A message of QoS 2 leaves the broker, and the link breaks before it arrives.
    BreakBeforePacket,
    /// The process dies and starts again.
    Crash,
    /// The broker loses its session, and what it held in it, with the link.
    LoseSession,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Waiting,
    Sent,
    Released,
}

/// A message that the broker holds for us.
#[derive(Debug, Clone, Copy)]
struct Held {
    id: u16,
    number: u32,
    qos: u8,
    phase: Phase,
}

struct World {
    version: MqttVersion,
    now: Instant,
    session: Session,
    inbox: BytesMut,
    /// With the session of the broker's that it came in.
    queue: VecDeque<(Batch, u32)>,
    /// With the session of the broker's that they belong to, and the digest of the message.
    disk_ids: BTreeMap<u16, (u32, u32)>,
    /// How often each message is on disk.
    disk: BTreeMap<u32, u32>,
    next: u32,
    held: Vec<Held>,
    broker_has_session: bool,
    broker_session: u32,
    subscribed: bool,
    /// Messages that the broker lost, or may lose us.
    lost: BTreeSet<u32>,
    qos_of: BTreeMap<u32, u8>,
}

impl World {
    fn new(version: MqttVersion) -> Self {
        let now = Instant::now();
        let mut world = Self {
            version,
            now,
            session: Session::new(settings(version), StoredSession::default(), Topics::unrouted(), now),
            inbox: BytesMut::new(),
            queue: VecDeque::new(),
            disk_ids: BTreeMap::new(),
            disk: BTreeMap::new(),
            next: 0,
            held: Vec::new(),
            broker_has_session: false,
            broker_session: 0,
            subscribed: false,
            lost: BTreeSet::new(),
            qos_of: BTreeMap::new(),
        };
        world.link();
        world
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Publish(qos) => self.publish(qos),
            Step::Store => self.store(),
            Step::Commit => self.commit(),
            Step::Break => self.relink(),
            Step::BreakInPacket => {
                let bytes = publish(self.version, 1, false, 60_000, "half");
                self.feed(&bytes[..bytes.len() - 2]);
                self.relink();
            }
            Step::BreakBeforePacket => {
                if let Some(id) = self.hold(2) {
                    let sent = self.held.iter_mut().find(|held| held.id == id);
                    sent.expect("held just now").phase = Phase::Sent;
                }
                self.relink();
            }
            Step::Crash => {
                self.queue.clear();
                self.inbox.clear();
                let stored = StoredSession {
                    packet_ids: self.disk_ids.iter().map(|(id, (_, digest))| (*id, Some(*digest))).collect(),
                    used_ms: 0,
                    expiry_s: u32::MAX,
                };
                self.session = Session::new(settings(self.version), stored, Topics::unrouted(), self.now);
                self.link();
            }
            Step::LoseSession => {
                self.lost.extend(self.held.drain(..).map(|held| held.number));
                self.broker_has_session = false;
                self.broker_session += 1;
                self.subscribed = false;
                self.relink();
            }
        }
    }

    fn publish(&mut self, qos: u8) {
        if self.hold(qos).is_some() {
            self.send_waiting();
        }
    }

    /// The broker takes a message for us, if we are subscribed.
    fn hold(&mut self, qos: u8) -> Option<u16> {
        if !self.subscribed {
            return None;
        }
        let used: BTreeSet<u16> = self.held.iter().map(|held| held.id).collect();
        // The lowest free id: reuse as early as the standard allows.
        let id = (1..=u16::MAX).find(|id| !used.contains(id))?;
        let number = self.next;
        self.held.push(Held { id, number, qos, phase: Phase::Waiting });
        self.qos_of.insert(number, qos);
        self.next += 1;
        Some(id)
    }

    fn send_waiting(&mut self) {
        let mut bytes = Vec::new();
        for held in self.held.iter_mut().filter(|held| held.phase == Phase::Waiting) {
            held.phase = Phase::Sent;
            bytes.extend(publish(self.version, held.qos, false, held.id, &held.number.to_string()));
        }
        self.feed(&bytes);
    }

    fn feed(&mut self, bytes: &[u8]) {
        self.inbox.extend_from_slice(bytes);
        self.session
            .received(self.now, Moment::default(), &mut self.inbox)
            .expect("a broker that keeps to the standard");
        self.listen();
    }

    /// The broker reads what we sent.
    fn listen(&mut self) {
        let mut out = self.session.out.split();
        while let Some(packet) = codec::decode(self.version, &mut out, 10_000).expect("what we send is good") {
            match packet {
                Packet::Subscribe(subscribe) => {
                    self.subscribed = true;
                    let mut answer = BytesMut::new();
                    codec::encode::suback(&mut answer, self.version, subscribe.packet_id, &[2, 1]);
                    self.feed(&answer);
                }
                Packet::PubAck(ack) => {
                    let held = self.take(ack.packet_id, 1, Phase::Sent);
                    self.check_on_disk(held.number);
                }
                Packet::PubRec(ack) => {
                    let mut held = self.take_any(ack.packet_id, 2);
                    self.check_on_disk(held.number);
                    held.phase = Phase::Released;
                    self.held.push(held);
                    self.feed(&pubrel(held.id));
                }
                // A second one, to a PUBREL that was repeated, finds nothing.
                Packet::PubComp(ack) => {
                    self.held.retain(|held| held.id != ack.packet_id || held.phase != Phase::Released);
                }
                other => panic!("{other:?}"),
            }
        }
    }

    fn check_on_disk(&self, number: u32) {
        assert!(
            self.disk.contains_key(&number) || self.lost.contains(&number),
            "{number} is acknowledged, and not on disk"
        );
    }

    fn take(&mut self, id: u16, qos: u8, phase: Phase) -> Held {
        let held = self.take_any(id, qos);
        assert_eq!(held.phase, phase);
        held
    }

    fn take_any(&mut self, id: u16, qos: u8) -> Held {
        let position = self.held.iter().position(|held| held.id == id && held.qos == qos);
        self.held.remove(position.unwrap_or_else(|| panic!("an answer to {id}, which is not in flight")))
    }

    fn relink(&mut self) {
        self.session.lost(self.now, &Close::Closed);
        self.inbox.clear();
        self.link();
    }

    fn link(&mut self) {
        self.now += Duration::from_secs(1);
        self.session.connected(self.now).unwrap();
        assert!(self.session.out.split().len() > 10);
        let present = std::mem::replace(&mut self.broker_has_session, true);
        let mut bytes = connack(self.version, present, 0);
        for held in &self.held {
            match held.phase {
                Phase::Waiting => {}
                Phase::Sent => bytes.extend(publish(self.version, held.qos, true, held.id, &held.number.to_string())),
                Phase::Released => bytes.extend(pubrel(held.id)),
            }
        }
        self.feed(&bytes);
        self.send_waiting();
    }

    fn store(&mut self) {
        let batch = std::mem::take(&mut self.session.batch);
        if !batch.is_empty() {
            self.queue.push_back((batch, self.broker_session));
        }
    }

    fn commit(&mut self) {
        let Some((batch, session)) = self.queue.pop_front() else { return };
        for event in batch.events {
            let number = std::str::from_utf8(&event.payload).unwrap().parse().unwrap();
            *self.disk.entry(number).or_default() += 1;
        }
        for change in batch.changes {
            match change {
                IdChange::Add(id, digest) => {
                    self.disk_ids.insert(id, (session, digest));
                }
                IdChange::Remove(id) => {
                    self.disk_ids.remove(&id);
                }
                IdChange::Forget => self.disk_ids.clear(),
                IdChange::Keep(_) => {}
            }
        }
        self.session.durable_unproven(self.now, batch.receipts).unwrap();
        self.listen();
    }

    fn settle(&mut self) {
        self.relink();
        for _ in 0..10 {
            self.store();
            while !self.queue.is_empty() {
                self.commit();
            }
        }
        assert!(self.held.is_empty(), "the broker still waits: {:?}", self.held);
        let left: Vec<u16> =
            self.disk_ids.iter().filter(|(_, (s, _))| *s == self.broker_session).map(|(id, _)| *id).collect();
        assert!(left.is_empty(), "ids left: {left:?}");
        for (number, qos) in &self.qos_of {
            let times = self.disk.get(number).copied().unwrap_or_default();
            assert!(times > 0 || self.lost.contains(number), "message {number}, QoS {qos}, is lost");
            assert!(times <= 1 || *qos == 1, "message {number} of QoS 2 was stored {times} times");
        }
    }
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => Just(Step::Publish(2)),
        2 => Just(Step::Publish(1)),
        5 => Just(Step::Store),
        5 => Just(Step::Commit),
        2 => Just(Step::Break),
        1 => Just(Step::BreakInPacket),
        1 => Just(Step::BreakBeforePacket),
        2 => Just(Step::Crash),
        1 => Just(Step::LoseSession),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_order_of_faults_loses_a_message_or_stores_qos_2_twice(
        five in any::<bool>(),
        steps in prop::collection::vec(any_step(), 1..80),
    ) {
        let mut world = World::new(if five { MqttVersion::V5 } else { MqttVersion::V311 });
        for step in steps {
            world.step(step);
        }
        world.settle();
    }
}
