//! The protocol of the listener, fed with bytes and time: no socket, no clock, no buffer.

mod client;
mod handshake;
mod registry;
mod rules;
mod session;
mod tcp;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::client::{Connect, packets};
use super::handshake::{Admission, Handshake, Progress};
use super::memory::Memory;
use super::policy::ListenerPolicy;
use super::registry::{Lease, Now};
use super::session::{Last, Session, event};
use crate::buffer::IdChange;
use crate::clock::Clock;
use crate::event::Event;
use crate::ingest::close::Close;
use crate::ingest::codec::{Ack, Packet, Will};
use crate::ingest::receipt::Receipts;
use crate::ingest::topics::Topics;
use crate::settings::MqttVersion;

const MAX_PACKET: u32 = 4000;
const RECEIVE_MAXIMUM: u16 = 4;

fn ack(id: u16) -> Ack {
    Ack { packet_id: id, reason: 0 }
}

/// The reason of the DISCONNECT that was said last, if any.
fn disconnect_reason(bench: &mut Bench) -> Option<u8> {
    match bench.said().pop() {
        Some(Packet::Disconnect(disconnect)) => Some(disconnect.reason),
        _ => None,
    }
}

fn policy() -> ListenerPolicy {
    ListenerPolicy {
        credentials: false,
        max_packet_bytes: MAX_PACKET,
        receive_maximum: RECEIVE_MAXIMUM,
        subscriptions: false,
        max_keepalive_s: 600,
        max_session_expiry_s: 86_400,
    }
}

fn admitted(connect: &Connect, policy: &ListenerPolicy) -> Admission {
    match Handshake::new().received(&connect.bytes(), policy) {
        Progress::Admit(admission) => *admission,
        other => panic!("{other:?}"),
    }
}

/// A client's session with a disk of its own, and the bytes that left it.
struct Bench {
    session: Session,
    version: MqttVersion,
    now: Now,
    /// Packet ids as the buffer would hold them; `None`: it knows no such session.
    disk: Option<BTreeSet<u16>>,
    expiry_s: u32,
    events: Vec<Event>,
}

impl Bench {
    /// CONNECT was accepted; nothing is durable yet.
    fn enter(connect: &Connect, lease: Lease) -> Self {
        let policy = policy();
        let admission = admitted(connect, &policy);
        let version = admission.version;
        let now = Now { instant: Instant::now(), unix_ms: 1_800_000_000_000, clock: Clock::default() };
        let disk = lease.memory.on_disk.then(BTreeSet::new);
        let session = Session::enter(admission, lease, Arc::new(policy), Topics::unrouted(), now);
        Self { session, version, now, disk, expiry_s: 0, events: Vec::new() }
    }

    /// Connected with a new session, CONNACK taken.
    fn open(connect: &Connect) -> Self {
        let mut bench = Self::enter(connect, nothing());
        bench.commit();
        let said = bench.said();
        assert!(matches!(said[..], [Packet::ConnAck(_)]), "{said:?}");
        bench
    }

    fn feed(&mut self, bytes: &[u8]) {
        self.session.append(bytes);
        self.session.received(bytes.len(), self.now);
    }

    /// Hands what was read to the buffer; it is not committed yet.
    fn store(&mut self) -> Receipts {
        let batch = std::mem::take(&mut self.session.batch);
        self.write(&batch.changes);
        self.events.extend(batch.events);
        batch.receipts
    }

    /// Stores and commits.
    fn commit(&mut self) {
        let receipts = self.store();
        self.session.durable_unproven(receipts, self.now);
    }

    /// Everything said since the last call.
    fn said(&mut self) -> Vec<Packet> {
        packets(self.version, &self.session.output.split())
    }

    fn ended(&mut self) -> Last {
        assert!(self.session.is_over(), "the session goes on");
        self.last()
    }

    /// Ends it from outside.
    fn finish(&mut self, end: Close) -> Last {
        self.session.finish(end);
        self.last()
    }

    fn last(&mut self) -> Last {
        self.store();
        let admission = admitted(&client::connect(self.version, "unused"), &policy());
        let unused = Session::enter(admission, nothing(), Arc::new(policy()), Topics::unrouted(), self.now);
        let mut last = std::mem::replace(&mut self.session, unused).into_last();
        self.write(&std::mem::take(&mut last.changes));
        // As the listener publishes it.
        if let Some((will, _)) = last.will.take_if(|(_, delay)| delay.is_zero()) {
            self.events.push(event(will, &mut Topics::unrouted(), self.now));
        }
        last
    }

    fn payloads(&self) -> Vec<String> {
        self.events.iter().map(|event| String::from_utf8_lossy(&event.payload).into_owned()).collect()
    }

    fn wait(&mut self, seconds: u64) {
        self.now.instant += Duration::from_secs(seconds);
        self.session.timed_out(self.now.instant);
    }

    fn write(&mut self, changes: &[IdChange]) {
        for change in changes {
            match *change {
                IdChange::Add(id, _) => assert!(self.disk.get_or_insert_default().insert(id), "{id} added twice"),
                IdChange::Remove(id) => {
                    assert!(self.disk.get_or_insert_default().remove(&id), "{id} removed, but not there");
                }
                IdChange::Keep(expiry_s) => {
                    self.disk.get_or_insert_default();
                    self.expiry_s = expiry_s;
                }
                IdChange::Forget => self.disk = None,
            }
        }
    }
}

fn nothing() -> Lease {
    Lease { memory: Memory::default(), present: false }
}

fn kept(ids: &[u16]) -> Lease {
    let memory = Memory::stored(ids.iter().map(|id| (*id, None)).collect());
    Lease { memory, present: true }
}

fn will(topic: &str) -> Will {
    Will {
        topic: topic.to_owned(),
        payload: "offline".into(),
        qos: crate::event::Qos::AtLeastOnce,
        retain: false,
        delay_s: 0,
        properties: None,
        sender: None,
    }
}
