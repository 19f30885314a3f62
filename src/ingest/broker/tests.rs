//! The session at a broker, fed with bytes and time: no socket, no clock, no buffer.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use bytes::BytesMut;

use super::ended::Ended;
use super::session::{Session, State};
use crate::buffer::{IdChange, PacketIds, StoredSession};
use crate::config::{Broker, MqttVersion, Subscription};
use crate::event::{Event, MAX_USER_PROPERTIES, Qos};
use crate::ingest::codec::{self, DecodeError, Packet, reason};
use crate::ingest::receipt::Receipts;
use crate::ingest::topics::Topics;

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
        self.session.lost(self.now, &Ended::Closed);
    }

    fn feed(&mut self, bytes: &[u8]) -> Result<(), Ended> {
        self.inbox.extend_from_slice(bytes);
        self.session.received(self.now, 0, &mut self.inbox)
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

    fn pass(&mut self, time: Duration) -> Result<(), Ended> {
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
        host: "localhost".to_owned(),
        port: 1883,
        tls: None,
        version,
        client_id: "tidegate-x-plant".to_owned(),
        username: None,
        password: None,
        subscribe: vec![
            Subscription { filter: "sensors/#".to_owned(), qos: Qos::ExactlyOnce },
            Subscription { filter: "$share/g/other/+".to_owned(), qos: Qos::AtLeastOnce },
        ],
        session_expiry: Duration::from_secs(3600),
        keepalive: Duration::from_secs(60),
        max_packet_bytes: MAX_PACKET,
        receive_maximum: 1000,
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

#[test]
fn the_first_connect_asks_for_a_session_that_stays() {
    for version in [V311, V5] {
        let mut bench = Bench::new(version);
        bench.session.connected(bench.now).unwrap();
        let Some(Packet::Connect(connect)) = bench.sent().pop() else { panic!("no CONNECT") };
        assert_eq!(
            (connect.version, connect.clean_start, connect.client_id.as_str()),
            (version, false, "tidegate-x-plant")
        );
        let of_5 = |value| if version == V5 { Some(value) } else { None };
        assert_eq!(connect.session_expiry_s, of_5(3600));
        assert_eq!(connect.max_packet_bytes, of_5(MAX_PACKET));
        assert_eq!(connect.receive_maximum.map(u32::from), of_5(1000));
    }
}

#[test]
fn every_qos_is_taken_and_answered_only_after_its_commit() {
    for version in [V311, V5] {
        let mut bench = Bench::online(version);
        bench
            .feed(
                &[
                    publish(version, 0, false, 0, "a"),
                    publish(version, 1, false, 9, "b"),
                    publish(version, 2, false, 4, "c"),
                ]
                .concat(),
            )
            .unwrap();
        assert!(bench.session.out.is_empty(), "nothing leaves before the commit");
        assert_eq!(bench.commit(), [puback(9), pubrec(4)]);
        assert_eq!(bench.payloads(), ["a", "b", "c"]);
        assert_eq!(bench.disk, BTreeSet::from([4]));
        bench.feed(&pubrel(4)).unwrap();
        assert!(bench.session.out.is_empty(), "PUBCOMP waits until the id is durably forgotten");
        assert_eq!(bench.commit(), [pubcomp(4)]);
        assert!(bench.disk.is_empty());
    }
}

#[test]
fn answers_of_a_lost_connection_do_not_leave_on_the_next() {
    for version in [V311, V5] {
        let mut bench = Bench::online(version);
        bench.feed(&publish(version, 1, false, 5, "old")).unwrap();
        let late = bench.store();
        bench.reconnect(true);
        bench.feed(&publish(version, 1, false, 5, "another")).unwrap();
        bench.session.durable_unproven(bench.now, late).unwrap();
        assert_eq!(bench.sent(), [], "5 means another message now");
        assert_eq!(bench.commit(), [puback(5)]);
        assert_eq!(bench.payloads(), ["old", "another"]);
    }
}

#[test]
fn a_repeat_of_qos_2_is_stored_once_and_answered_each_time() {
    for version in [V311, V5] {
        let mut bench = Bench::online(version);
        bench.feed(&publish(version, 2, false, 7, "x")).unwrap();
        bench.feed(&publish(version, 2, true, 7, "x")).unwrap();
        assert_eq!(bench.commit(), [pubrec(7), pubrec(7)]);
        bench.reconnect(true);
        bench.feed(&publish(version, 2, true, 7, "x")).unwrap();
        assert_eq!(bench.commit(), [pubrec(7)]);
        bench.feed(&[pubrel(7), pubrel(7)].concat()).unwrap();
        assert_eq!(bench.commit(), [pubcomp(7), pubcomp(7)]);
        assert_eq!(bench.payloads(), ["x"]);
    }
}

#[test]
fn a_repeat_of_qos_1_is_a_new_event() {
    let mut bench = Bench::online(V5);
    bench.feed(&[publish(V5, 1, false, 7, "x"), publish(V5, 1, true, 7, "x")].concat()).unwrap();
    assert_eq!(bench.commit(), [puback(7), puback(7)]);
    assert_eq!(bench.payloads(), ["x", "x"]);
}

#[test]
fn a_released_id_is_free_for_another_message() {
    let mut bench = Bench::online(V311);
    let all = [publish(V311, 2, false, 7, "x"), pubrel(7), publish(V311, 2, false, 7, "y"), pubrel(7)].concat();
    bench.feed(&all).unwrap();
    assert_eq!(bench.commit(), [pubrec(7), pubcomp(7), pubrec(7), pubcomp(7)]);
    assert_eq!(bench.payloads(), ["x", "y"]);
    assert!(bench.disk.is_empty());
}

#[test]
fn qos_2_goes_on_after_a_restart_of_the_process() {
    for version in [V311, V5] {
        let mut bench = Bench::with_ids(version, &[3, 8]);
        bench.connect();
        // The broker resends before it knows whether we subscribe again.
        let resent = [connack(version, true, 0), pubrel(3), publish(version, 2, true, 8, "seen"), pubrel(999)].concat();
        bench.feed(&resent).unwrap();
        assert_eq!(bench.grant(&[2, 1]), ["sensors/#", "$share/g/other/+"], "a new process subscribes");
        assert_eq!(bench.commit(), [pubcomp(3), pubrec(8), pubcomp(999)], "an unknown id is answered, not fought");
        assert_eq!(bench.payloads(), [""; 0]);
        assert_eq!(bench.disk, BTreeSet::from([8]));
    }
}

#[test]
fn a_new_message_under_an_id_of_the_last_process_is_not_swallowed() {
    let mut bench = Bench::with_ids(V5, &[1]);
    bench.connect();
    bench.feed(&connack(V5, true, 0)).unwrap();
    bench.grant(&[2, 1]);
    bench.disk.clear();
    bench.feed(&publish(V5, 2, false, 1, "new")).unwrap();
    assert_eq!(bench.commit(), [pubrec(1)]);
    assert_eq!(bench.payloads(), ["new"]);
}

#[test]
fn a_lost_session_is_durably_forgotten_before_subscribing() {
    for version in [V311, V5] {
        let mut bench = Bench::with_ids(version, &[5]);
        bench.connect();
        bench.feed(&connack(version, false, 0)).unwrap();
        assert_eq!(bench.session.state(), State::Forgetting);
        assert!(bench.session.out.is_empty(), "no SUBSCRIBE before the old ids are gone");
        bench.commit();
        assert!(bench.disk.is_empty());
        assert_eq!(bench.grant(&[2, 1]).len(), 2);
        assert!(bench.session.is_online());
        bench.feed(&publish(version, 2, true, 5, "of the new session")).unwrap();
        assert_eq!(bench.commit(), [pubrec(5)]);
        assert_eq!(bench.payloads(), ["of the new session"]);
    }
}

#[test]
fn forgetting_survives_a_connection_that_ends_too_early() {
    let mut bench = Bench::with_ids(V5, &[5]);
    bench.connect();
    bench.feed(&connack(V5, false, 0)).unwrap();
    // The broker has a new session now and calls it present.
    bench.reconnect(true);
    assert_eq!(bench.session.state(), State::Forgetting);
    bench.commit();
    assert!(bench.disk.is_empty());
    assert_eq!(bench.grant(&[2, 1]).len(), 2);
}

#[test]
fn a_session_that_was_kept_is_not_subscribed_again() {
    for version in [V311, V5] {
        let mut bench = Bench::online(version);
        bench.reconnect(true);
        assert!(bench.session.is_online());
        assert_eq!(bench.sent(), []);
        bench.reconnect(false);
        bench.commit();
        assert_eq!(bench.grant(&[2, 1]).len(), 2, "a lost one is");
    }
}

#[test]
fn a_suback_that_never_came_is_asked_for_on_the_next_connection() {
    let mut bench = Bench::new(V5);
    bench.connect();
    bench.feed(&connack(V5, false, 0)).unwrap();
    bench.commit();
    assert!(matches!(bench.pass(Duration::from_secs(31)), Err(Ended::NoSubAck(30))));
    bench.sent();
    bench.reconnect(true);
    assert_eq!(bench.grant(&[2, 1]).len(), 2);
}

#[test]
fn a_refused_filter_is_asked_for_again_slowly() {
    let mut bench = Bench::new(V5);
    bench.connect();
    bench.feed(&connack(V5, false, 0)).unwrap();
    bench.commit();
    bench.grant(&[2, reason::NOT_AUTHORIZED]);
    assert!(bench.session.is_online());
    assert_eq!(bench.session.take_counts().refusals, 1);
    let mut asked = Vec::new();
    for _ in 0..130 {
        bench.pass(Duration::from_secs(10)).unwrap();
        asked.extend(bench.sent().into_iter().filter(|packet| matches!(packet, Packet::Subscribe(_))));
        bench.feed(&[0xd0, 0]).unwrap();
        bench.session.sent(bench.now);
    }
    assert_eq!(asked.len(), 1, "once in ten minutes, and not while the first is open: {asked:?}");
}

#[test]
fn a_broker_without_5_gets_3_1_1() {
    for refusal in [&[0x20, 2, 0, 1][..], &[0x20, 3, 0, 0x84, 0]] {
        let mut bench = Bench::new(V5);
        bench.connect();
        let ended = bench.feed(refusal).unwrap_err();
        assert!(matches!(ended, Ended::OtherVersion { refused: V5, next: V311 }), "{ended}");
        bench.session.lost(bench.now, &ended);
        bench.session.connected(bench.now).unwrap();
        let Some(Packet::Connect(connect)) = bench.sent().pop() else { panic!("no CONNECT") };
        assert_eq!(connect.version, V311);
        bench.feed(&connack(V311, false, 0)).unwrap();
        bench.commit();
        bench.grant(&[2, 1]);
        assert!(bench.session.is_online());
    }
}

#[test]
fn a_refusal_says_why_and_what_to_do() {
    for (version, code) in [(V5, reason::BAD_USER_NAME_OR_PASSWORD), (V311, 4)] {
        let mut bench = Bench::new(version);
        bench.connect();
        let ended = bench.feed(&connack(version, false, code)).unwrap_err();
        assert!(ended.to_string().contains("bad user name or password"), "{ended}");
        assert!(ended.remedy().unwrap().contains("password_file"));
        assert_eq!(ended.farewell(), None);
    }
}

#[test]
fn what_came_before_a_packet_we_cannot_take_is_kept() {
    for version in [V311, V5] {
        let mut bench = Bench::online(version);
        let oversized = [0x32, 0x80, 0x80, 0x01];
        let ended = bench.feed(&[&publish(version, 1, false, 1, "good")[..], &oversized].concat()).unwrap_err();
        assert!(matches!(ended, Ended::Undecodable { error: DecodeError::TooLarge { .. }, .. }), "{ended}");
        assert_eq!(ended.farewell(), Some(reason::PACKET_TOO_LARGE));
        assert!(ended.remedy().unwrap().contains("max_packet_bytes"));
        bench.session.close(bench.now);
        assert_eq!(bench.commit(), [puback(1)]);
        bench.session.farewell(reason::PACKET_TOO_LARGE);
        let goodbye = bench.sent();
        assert_eq!(goodbye.len(), usize::from(version == V5), "3.1.1 has no way to say it: {goodbye:?}");
        assert_eq!(bench.payloads(), ["good"]);
    }
}

#[test]
fn what_was_not_handed_over_comes_again_as_new() {
    let mut bench = Bench::online(V5);
    bench.feed(&publish(V5, 2, false, 6, "x")).unwrap();
    // No room in the buffer, and the connection breaks.
    bench.reconnect(true);
    bench.feed(&publish(V5, 2, true, 6, "x")).unwrap();
    assert_eq!(bench.commit(), [pubrec(6)]);
    assert_eq!(bench.payloads(), ["x"], "neither lost nor twice");
}

#[test]
fn packets_may_be_cut_anywhere() {
    for version in [V311, V5] {
        let bytes = [
            publish(version, 2, false, 1, "one"),
            pubrel(1),
            vec![0xd0, 0],
            publish(version, 1, false, 2, ""),
            publish(version, 0, false, 0, "three"),
        ]
        .concat();
        for cut in 0..=bytes.len() {
            let mut bench = Bench::online(version);
            bench.feed(&bytes[..cut]).unwrap();
            let mut sent = bench.commit();
            bench.feed(&bytes[cut..]).unwrap();
            sent.extend(bench.commit());
            assert_eq!(sent, [pubrec(1), pubcomp(1), puback(2)], "cut at {cut}");
            assert_eq!(bench.payloads(), ["one", "", "three"], "cut at {cut}");
        }
    }
}

#[test]
fn unexpected_packets_end_the_connection_in_every_state() {
    let wrong: [&[u8]; 8] = [
        &[0x40, 2, 0, 1],
        &[0x50, 2, 0, 1],
        &[0x70, 2, 0, 1],
        &[0xc0, 0],
        &[0x82, 6, 0, 1, 0, 1, b'a', 0],
        &[0xa2, 5, 0, 1, 0, 1, b'a'],
        &[0xb0, 2, 0, 1],
        &[0x90, 3, 0, 99, 0],
    ];
    for bytes in wrong {
        let mut bench = Bench::new(V311);
        bench.connect();
        assert!(matches!(bench.feed(bytes), Err(Ended::Unexpected { .. })), "{bytes:02x?} before CONNACK");
        let mut bench = Bench::online(V311);
        let ended = bench.feed(bytes).unwrap_err();
        assert_eq!(ended.farewell(), Some(reason::PROTOCOL_ERROR), "{bytes:02x?}: {ended}");
    }
    for early in [publish(V5, 0, false, 0, "x"), pubrel(1), vec![0xd0, 0], vec![0xe0, 0]] {
        let mut bench = Bench::new(V5);
        bench.connect();
        assert!(matches!(bench.feed(&early), Err(Ended::Unexpected { .. })), "{early:02x?} before CONNACK");
    }
    let mut bench = Bench::online(V5);
    assert!(matches!(bench.feed(&connack(V5, true, 0)), Err(Ended::Unexpected { .. })), "a second CONNACK");
    let mut bench = Bench::online(V5);
    assert!(matches!(bench.feed(&[0xe0, 1, 0x8e]), Err(Ended::Told { code: reason::SESSION_TAKEN_OVER, .. })));
    let mut bench = Bench::online(V311);
    assert!(matches!(bench.feed(&[0xe0, 0]), Err(Ended::Unexpected { .. })), "a server of 3.1.1 cannot disconnect");
}

#[test]
fn a_broker_that_never_answers_connect_is_given_up() {
    let mut bench = Bench::new(V5);
    bench.connect();
    bench.pass(Duration::from_secs(9)).unwrap();
    assert!(matches!(bench.pass(Duration::from_secs(2)), Err(Ended::NoConnAck(10))));
}

#[test]
fn silence_is_answered_by_a_ping_and_then_by_the_end() {
    let mut bench = Bench::online(V311);
    bench.pass(Duration::from_secs(44)).unwrap();
    assert_eq!(bench.sent(), []);
    bench.pass(Duration::from_secs(2)).unwrap();
    assert_eq!(bench.sent(), [Packet::PingReq]);
    bench.feed(&[0xd0, 0]).unwrap();
    bench.pass(Duration::from_secs(89)).unwrap();
    assert!(bench.sent().contains(&Packet::PingReq));
    assert!(matches!(bench.pass(Duration::from_secs(2)), Err(Ended::Silent)));
}

#[test]
fn time_without_reading_is_not_the_brokers_silence() {
    let mut bench = Bench::online(V5);
    bench.session.reading(bench.now, false);
    bench.pass(Duration::from_secs(600)).unwrap();
    let pings = bench.sent();
    assert!(pings.len() >= 13 && pings.iter().all(|packet| *packet == Packet::PingReq), "{pings:?}");
    bench.session.reading(bench.now, true);
    bench.pass(Duration::from_secs(89)).unwrap();
    assert!(matches!(bench.pass(Duration::from_secs(2)), Err(Ended::Silent)));
}

#[test]
fn the_servers_keepalive_is_in_force() {
    for (seconds, pings) in [(0, 0), (4, 3)] {
        let mut bench = Bench::new(V5);
        bench.connect();
        bench.feed(&[0x20, 6, 1, 0, 3, 19, 0, seconds]).unwrap();
        bench.commit();
        bench.grant(&[2, 1]);
        let mut sent = 0;
        for _ in 0..9 {
            bench.pass(Duration::from_secs(1)).unwrap();
            sent += bench.sent().len();
            if seconds > 0 {
                bench.feed(&[0xd0, 0]).unwrap();
            }
        }
        assert_eq!(sent, pings, "server keepalive {seconds} s");
        if seconds == 0 {
            bench.pass(Duration::from_secs(1000)).unwrap();
        }
    }
}

#[test]
fn a_link_has_proven_itself_after_ten_seconds_online_and_not_by_traffic() {
    let mut bench = Bench::online(V5);
    for id in 1..100 {
        bench.feed(&publish(V5, 1, false, id, "x")).unwrap();
        bench.commit();
    }
    assert!(!bench.session.proven(bench.now));
    bench.pass(Duration::from_secs(10)).unwrap();
    assert!(bench.session.proven(bench.now));
    bench.reconnect(true);
    assert!(!bench.session.proven(bench.now));
}

#[test]
fn a_stop_answers_what_is_under_way_and_says_goodbye() {
    for version in [V311, V5] {
        let mut bench = Bench::online(version);
        bench.feed(&publish(version, 1, false, 3, "x")).unwrap();
        bench.session.close(bench.now);
        assert_eq!(bench.commit(), [puback(3)]);
        bench.session.farewell(reason::SUCCESS);
        assert_eq!(bench.sent(), [Packet::Disconnect(codec::Disconnect::default())]);
    }
}

#[test]
fn half_a_packet_of_one_connection_is_not_the_start_of_the_next() {
    let mut bench = Bench::online(V5);
    let message = publish(V5, 1, false, 3, "x");
    bench.feed(&message[..4]).unwrap();
    bench.reconnect(true);
    bench.feed(&message).unwrap();
    assert_eq!(bench.commit(), [puback(3)]);
}

#[test]
fn a_message_with_too_many_user_properties_is_kept_with_the_first_of_them() {
    let mut bench = Bench::new(V5);
    let settings = Broker { max_packet_bytes: 4000, ..settings(V5) };
    let stored = StoredSession { packet_ids: PacketIds::new(), used_ms: 0, expiry_s: u32::MAX };
    bench.session = Session::new(settings, stored, Topics::unrouted(), bench.now);
    bench.connect();
    bench.feed(&connack(V5, false, 0)).unwrap();
    bench.commit();
    // 300 user properties of 5 bytes each.
    let mut bytes = b"\x32\xe4\x0b\x00\x01t\x00\x01\xdc\x0b".to_vec();
    bytes.extend(b"\x26\x00\x00\x00\x00".repeat(300));
    bytes.push(b'x');
    bench.feed(&bytes).unwrap();
    bench.store();
    assert_eq!(bench.payloads(), ["x"]);
    assert_eq!(bench.events[0].properties.as_ref().unwrap().user.len(), MAX_USER_PROPERTIES);
}
