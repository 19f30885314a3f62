//! The session at a broker, fed with bytes and time: no socket, no clock, no buffer.

mod connection;
mod readings;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use bytes::BytesMut;

use super::session::{Session, State};
use crate::buffer::{IdChange, StoredSession};
use crate::clock::Moment;
use crate::event::{Event, Qos};
use crate::ingest::close::Close;
use crate::ingest::codec::{self, Packet};
use crate::ingest::receipt::Receipts;
use crate::ingest::topics::Topics;
use crate::settings::links::BrokerKeys;
use crate::settings::{self, Broker, MqttVersion, Subscription};

const V5: MqttVersion = MqttVersion::V5;
const V311: MqttVersion = MqttVersion::V311;
const MAX_PACKET: u32 = 1000;

/// A session with a disk of its own, and the bytes that left it.
struct Bench {
    session: Session,
    now: Instant,
    inbox: BytesMut,
    /// Packet ids as the buffer would hold them.
    disk: BTreeSet<u16>,
    events: Vec<Event>,
}

impl Bench {
    fn new(version: MqttVersion) -> Self {
        Self::with_ids(version, &[])
    }

    fn with_ids(version: MqttVersion, ids: &[u16]) -> Self {
        let disk = ids.iter().copied().collect::<BTreeSet<_>>();
        let stored =
            StoredSession { packet_ids: ids.iter().map(|id| (*id, None)).collect(), used_ms: 0, expiry_s: u32::MAX };
        let now = Instant::now();
        let session = Session::new(settings(version), stored, Topics::unrouted(), now);
        Self { session, now, inbox: BytesMut::new(), disk, events: Vec::new() }
    }

    /// Connected, subscribed, online.
    fn online(version: MqttVersion) -> Self {
        let mut bench = Self::new(version);
        bench.connect();
        bench.feed(&connack(version, false, 0)).unwrap();
        bench.commit();
        bench.grant(&[2, 1]);
        bench
    }

    fn connect(&mut self) {
        self.session.connected(self.now).unwrap();
        let sent = self.sent();
        assert!(matches!(sent[..], [Packet::Connect(_)]), "{sent:?}");
    }

    fn reconnect(&mut self, session_present: bool) {
        self.lose();
        self.connect();
        let version = self.session.version();
        self.feed(&connack(version, session_present, 0)).unwrap();
    }

    fn lose(&mut self) {
        self.inbox.clear();
        self.session.lost(self.now, &Close::Closed);
    }

    fn feed(&mut self, bytes: &[u8]) -> Result<(), Close> {
        self.inbox.extend_from_slice(bytes);
        self.session.received(self.now, Moment::default(), &mut self.inbox)
    }

    /// Hands what was read to the buffer; it is not committed yet.
    fn store(&mut self) -> Receipts {
        let batch = std::mem::take(&mut self.session.batch);
        self.events.extend(batch.events);
        for change in batch.changes {
            match change {
                IdChange::Add(id, _) => assert!(self.disk.insert(id), "{id} added twice"),
                IdChange::Remove(id) => assert!(self.disk.remove(&id), "{id} removed, but not there"),
                IdChange::Keep(expiry_s) => assert_eq!(expiry_s, u32::MAX, "the broker decides when a session ends"),
                IdChange::Forget => self.disk.clear(),
            }
        }
        batch.receipts
    }

    /// Stores and commits; returns what the session sent then.
    fn commit(&mut self) -> Vec<Packet> {
        let receipts = self.store();
        self.session.durable_unproven(self.now, receipts).unwrap();
        // SUBSCRIBE stays in the buffer for `grant`.
        if self.session.state() == State::Subscribing { Vec::new() } else { self.sent() }
    }

    /// Answers all SUBSCRIBEs, which must be for `codes.len()` filters in all.
    fn grant(&mut self, codes: &[u8]) -> Vec<String> {
        let mut codes = codes.to_vec();
        let mut filters = Vec::new();
        for packet in self.sent() {
            let Packet::Subscribe(subscribe) = packet else { panic!("{packet:?}") };
            let answers: Vec<u8> = codes.drain(..subscribe.filters.len()).collect();
            filters.extend(subscribe.filters.into_iter().map(|filter| filter.filter));
            let mut out = BytesMut::new();
            codec::encode::suback(&mut out, self.session.version(), subscribe.packet_id, &answers);
            self.feed(&out).unwrap();
        }
        assert!(codes.is_empty(), "no one asked for these");
        filters
    }

    /// Everything that left the session since the last call.
    fn sent(&mut self) -> Vec<Packet> {
        let mut out = self.session.out.split();
        let mut packets = Vec::new();
        while let Some(packet) = codec::decode(self.session.version(), &mut out, 10_000).expect("what we send is good")
        {
            packets.push(packet);
        }
        assert!(out.is_empty());
        packets
    }

    fn payloads(&self) -> Vec<String> {
        self.events.iter().map(|event| String::from_utf8_lossy(&event.payload).into_owned()).collect()
    }

    fn pass(&mut self, time: Duration) -> Result<(), Close> {
        let end = self.now + time;
        while self.now < end {
            self.now += Duration::from_millis(500);
            self.session.tick(self.now)?;
        }
        Ok(())
    }
}

pub(super) fn settings(version: MqttVersion) -> Broker {
    Broker {
        name: "plant".to_owned(),
        version,
        client_id: "tidegate-x-plant".to_owned(),
        subscribe: vec![
            Subscription { filter: "sensors/#".to_owned(), qos: Qos::ExactlyOnce },
            Subscription { filter: "$share/g/other/+".to_owned(), qos: Qos::AtLeastOnce },
        ],
        session_expiry: Duration::from_secs(3600),
        keepalive: Duration::from_secs(60),
        max_packet_bytes: MAX_PACKET,
        ..settings::example(BrokerKeys::TABLE, BrokerKeys::read).complete().unwrap()
    }
}

pub(super) fn connack(version: MqttVersion, session_present: bool, code: u8) -> Vec<u8> {
    match version {
        V311 => vec![0x20, 2, u8::from(session_present), code],
        V5 => vec![0x20, 3, u8::from(session_present), code, 0],
    }
}

pub(super) fn publish(version: MqttVersion, qos: u8, dup: bool, packet_id: u16, payload: &str) -> Vec<u8> {
    let mut body = vec![0, 1, b't'];
    if qos > 0 {
        body.extend(packet_id.to_be_bytes());
    }
    if version == V5 {
        body.push(0);
    }
    body.extend(payload.as_bytes());
    let mut bytes = vec![0x30 | (qos << 1) | (u8::from(dup) << 3), u8::try_from(body.len()).unwrap()];
    bytes.extend(body);
    bytes
}

pub(super) fn pubrel(packet_id: u16) -> Vec<u8> {
    let [high, low] = packet_id.to_be_bytes();
    vec![0x62, 2, high, low]
}

fn puback(packet_id: u16) -> Packet {
    Packet::PubAck(codec::Ack { packet_id, reason: 0 })
}

fn pubrec(packet_id: u16) -> Packet {
    Packet::PubRec(codec::Ack { packet_id, reason: 0 })
}

fn pubcomp(packet_id: u16) -> Packet {
    Packet::PubComp(codec::Ack { packet_id, reason: 0 })
}
