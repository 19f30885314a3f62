//! What a client may send and gets: sizes, limits, subscriptions, topic aliases, and every way to break the rules.

use proptest::collection::vec;
use proptest::prelude::*;

use super::super::handshake::{Handshake, Progress};
use super::super::remarks::Remark;
use super::client::{
    Connect, V5, V311, connect, disconnect, packet, packets, pingreq, publish, publish_to, pubrel, subscribe,
    unsubscribe,
};
use super::{Bench, MAX_PACKET, RECEIVE_MAXIMUM, ack, disconnect_reason, nothing, policy};
use crate::ingest::close::{Close, Kind};
use crate::ingest::codec::{Ack, Packet};
use crate::ingest::limits::{BEGINNING_BYTES, KEPT_OF_OVERSIZED_BYTES};

#[test]
fn a_packet_says_how_long_it_will_be() {
    let mut bench = Bench::open(&connect(V5, "press"));
    let packet = publish(V5, 1, false, 1, &"x".repeat(3000));
    bench.feed(&packet[..1]);
    assert_eq!(bench.session.announced_bytes(), 1, "nothing is known yet");
    bench.feed(&packet[1..10]);
    assert_eq!((bench.session.unfinished_bytes(), bench.session.announced_bytes()), (10, packet.len()));
    bench.feed(&packet[10..]);
    assert_eq!((bench.session.unfinished_bytes(), bench.session.announced_bytes()), (0, 0));
}

#[test]
fn mqtt_5_is_told_what_it_gets() {
    let asking = Connect { keepalive: 0, expiry: Some(u32::MAX), ..connect(V5, "") };
    let mut bench = Bench::enter(&asking, nothing());
    bench.commit();
    let bytes = bench.session.output.split();
    let [Packet::ConnAck(ack)] = &packets(V5, &bytes)[..] else { panic!() };
    assert_eq!((ack.server_keepalive_s, ack.session_expiry_s), (Some(600), Some(86_400)));
    assert_eq!(ack.max_packet_bytes, Some(MAX_PACKET));
    let receive_maximum = [33, 0, u8::try_from(RECEIVE_MAXIMUM).unwrap()];
    assert!(bytes.windows(3).any(|window| window == receive_maximum));
    assert!(bytes.windows(8).any(|window| window == b"\x12\x00\x25auto-"), "the assigned client id");
}

#[test]
fn subscriptions_are_refused_filter_by_filter_and_the_connection_goes_on() {
    for (version, code) in [(V311, 0x80), (V5, 0x87)] {
        let mut bench = Bench::open(&connect(version, "press"));
        bench.feed(&subscribe(version, &["a", "b/#", "$share/g/c"]));
        assert_eq!(bench.said(), [Packet::SubAck { packet_id: 9, codes: vec![code; 3] }]);
        assert_eq!(bench.session.take_remarks(), [(Remark::SubscribeRefused, 3)]);
        assert_eq!(bench.session.take_remarks(), []);
        bench.feed(&unsubscribe(version, &["a", "b"]));
        let bytes = bench.session.output.split();
        match version {
            V311 => assert_eq!(&bytes[..], [0xb0, 2, 0, 9]),
            V5 => assert_eq!(&bytes[..], [0xb0, 5, 0, 9, 0, 0x11, 0x11]),
        }
        bench.feed(&pingreq());
        assert_eq!(bench.said(), [Packet::PingResp]);
    }
}

#[test]
fn whoever_breaks_the_rules_is_told_why_and_what_came_before_is_kept() {
    let alias = packet(0x32, b"\x00\x01t\x00\x01\x03\x23\x01\x00x");
    let too_large = packet(0x82, &[0; 8000]);
    let mut properties = b"\x00\x01t\x00\x01\x85\x0a".to_vec();
    properties.extend(b"\x26\x00\x00\x00\x00".repeat(257));
    let cases: [(&str, Vec<u8>, u8); 14] = [
        ("too many user properties", packet(0x32, &properties), 0x97),
        ("topic alias", alias, 0x94),
        ("too large", too_large[..5].to_vec(), 0x95),
        ("wildcard", publish_to(V5, "a/+", 1, false, 1, b""), 0x90),
        ("NUL in the topic", publish_to(V5, "a\0b", 1, false, 1, b""), 0x81),
        ("packet id 0", publish(V5, 1, false, 0, ""), 0x81),
        ("QoS 3", packet(0x36, b"\x00\x01t\x00\x01\x00"), 0x81),
        ("reserved flags", vec![0xc1, 0], 0x81),
        ("packet type 0", vec![0, 0], 0x81),
        ("AUTH", vec![0xf0, 0], 0x82),
        ("second CONNECT", connect(V5, "press").bytes(), 0x82),
        ("PUBACK to nothing", vec![0x40, 2, 0, 1], 0x82),
        ("PINGRESP", vec![0xd0, 0], 0x82),
        ("expiry out of nothing", disconnect(0, Some(60)), 0x82),
    ];
    for (what, bytes, reason) in cases {
        let mut bench = Bench::open(&connect(V5, "press").with_will(0));
        bench.feed(&[publish(V5, 0, false, 0, "before"), bytes, publish(V5, 0, false, 0, "after")].concat());
        assert_eq!(disconnect_reason(&mut bench), Some(reason), "{what}");
        assert_eq!(bench.ended().end.kind(), Kind::Broke, "{what}");
        assert_eq!(bench.payloads(), ["before", "offline"], "{what}");
    }
}

#[test]
fn a_client_of_3_1_1_that_breaks_the_rules_is_just_closed() {
    for bytes in [publish_to(V311, "a/#", 1, false, 1, b""), vec![0xf0, 0], packet(0x30, &[0; 8000])] {
        let mut bench = Bench::open(&connect(V311, "press"));
        bench.feed(&bytes);
        assert!(bench.session.output.is_empty());
        assert_eq!(bench.ended().end.kind(), Kind::Broke);
    }
}

#[test]
fn more_in_flight_than_granted_is_taken_as_it_comes() {
    for version in [V311, V5] {
        let mut bench = Bench::open(&connect(version, "press"));
        let many = RECEIVE_MAXIMUM * 50;
        for id in 1..=many {
            bench.feed(&publish(version, if id % 2 == 0 { 1 } else { 2 }, false, id, "x"));
        }
        bench.commit();
        assert_eq!(bench.said().len(), usize::from(many));
        for id in (1..=many).step_by(2) {
            bench.feed(&pubrel(id));
        }
        bench.commit();
        assert_eq!(bench.said().len(), usize::from(many) / 2);
        assert_eq!(bench.payloads().len(), usize::from(many));
    }
}

#[test]
fn a_message_that_is_too_large_is_passed_over_and_what_is_behind_it_comes() {
    let payload = vec![b'x'; 20_000];
    for (version, qos, cut) in
        [(V311, 0, 1), (V311, 1, 9_000), (V311, 2, 8_191), (V5, 0, 20_000), (V5, 1, 2), (V5, 2, 5)]
    {
        let mut bench = Bench::open(&connect(version, "press"));
        let large = publish_to(version, "hall/7", qos, false, 7, &payload);
        let bytes = [large, publish(version, 1, false, 8, "behind")].concat();
        for piece in bytes.chunks(cut.max(700)) {
            bench.feed(piece);
            assert!(bench.session.unfinished_bytes() <= BEGINNING_BYTES, "it is not kept");
        }
        bench.commit();
        let said: Vec<_> = bench.said();
        let refused = version == V5 && qos > 0;
        let answer = Ack { packet_id: 7, reason: if refused { 0x97 } else { 0 } };
        let first = [None, Some(Packet::PubAck(answer)), Some(Packet::PubRec(answer))][usize::from(qos)].clone();
        assert_eq!(said, first.into_iter().chain([Packet::PubAck(ack(8))]).collect::<Vec<_>>());
        assert_eq!(bench.session.take_remarks(), [(Remark::TooLarge, 1)]);
        let [head @ .., behind] = &bench.events[..] else { panic!("nothing came") };
        assert_eq!((head.len(), &behind.payload[..]), (usize::from(!refused), &b"behind"[..]));
        for head in head {
            assert_eq!((&*head.topic, &head.payload[..]), ("hall/7", &payload[..KEPT_OF_OVERSIZED_BYTES]));
            assert!(head.flaw().unwrap().contains("up to 32 KiB"), "{:?}", head.flaw());
        }
        assert!(behind.flaw().is_none());
    }
}

#[test]
fn what_goes_to_a_topic_of_the_server_is_answered_in_its_turn_and_not_stored() {
    for (version, reason) in [(V311, 0), (V5, 0x87)] {
        let mut bench = Bench::open(&connect(version, "bridge"));
        bench.feed(&publish(version, 1, false, 1, "before"));
        for (qos, id) in [(0, 0), (1, 2), (2, 3)] {
            bench.feed(&publish_to(version, "$SYS/broker/connection/x/state", qos, false, id, b"1"));
        }
        bench.feed(&publish(version, 1, false, 4, "behind"));
        bench.commit();
        let refused = |packet_id| Ack { packet_id, reason };
        let said =
            [Packet::PubAck(ack(1)), Packet::PubAck(refused(2)), Packet::PubRec(refused(3)), Packet::PubAck(ack(4))];
        assert_eq!(bench.said(), said);
        bench.feed(&pubrel(3));
        bench.commit();
        assert_eq!(bench.said(), [Packet::PubComp(ack(3))]);
        assert_eq!((bench.payloads(), bench.disk.clone()), (vec!["before".to_owned(), "behind".to_owned()], None));
        assert_eq!(bench.session.take_remarks(), [(Remark::ServerTopic, 3)]);
    }
}

#[test]
fn subscriptions_are_granted_when_the_listener_is_told_to() {
    for version in [V311, V5] {
        let mut bench = Bench::open(&connect(version, "press"));
        bench.session.grant_subscriptions();
        bench.feed(&subscribe(version, &["a", "b/+/#", "$share/g/c", "a#", "#/b", ""]));
        let bad = if version == V5 { 0x8f } else { 0x80 };
        assert_eq!(bench.said(), [Packet::SubAck { packet_id: 9, codes: vec![1, 1, 1, bad, bad, bad] }]);
        assert_eq!(bench.session.take_remarks(), [(Remark::Subscribed, 6)]);
        bench.feed(&unsubscribe(version, &["a"]));
        let bytes = bench.session.output.split();
        assert_eq!(&bytes[..], if version == V5 { &[0xb0, 4, 0, 9, 0, 0][..] } else { &[0xb0, 2, 0, 9] });
    }
}

fn aliased(topic: &str, alias: u16, id: u16) -> Vec<u8> {
    let mut body = vec![0, u8::try_from(topic.len()).unwrap()];
    body.extend(topic.bytes());
    body.extend(id.to_be_bytes());
    body.extend([3, 35]);
    body.extend(alias.to_be_bytes());
    body.extend(b"x");
    packet(0x32, &body)
}

#[test]
fn a_topic_alias_stands_for_its_topic_on_its_connection() {
    let mut bench = Bench::open(&connect(V5, "press"));
    for bytes in [aliased("a", 1, 1), aliased("", 1, 2), aliased("b", 1, 3), aliased("c", 32, 4), aliased("", 1, 5)] {
        bench.feed(&bytes);
    }
    bench.commit();
    let topics: Vec<_> = bench.events.iter().map(|event| &*event.topic).collect();
    assert_eq!(topics, ["a", "a", "b", "c", "b"]);
    for (bytes, reason) in [(aliased("", 2, 6), 0x82), (aliased("d", 33, 6), 0x94), (aliased("d", 0, 6), 0x94)] {
        let mut bench = Bench::open(&connect(V5, "press"));
        bench.feed(&aliased("a", 1, 1));
        bench.feed(&bytes);
        assert_eq!(disconnect_reason(&mut bench), Some(reason));
    }
    let mut bench = Bench::open(&connect(V5, "press"));
    for alias in 1..=32 {
        bench.feed(&aliased(&"x".repeat(127), alias, alias));
    }
    assert!(!bench.session.is_over());
    bench.feed(&aliased(&"y".repeat(255), 1, 40));
    assert_eq!(disconnect_reason(&mut bench), Some(0x97), "they are bounded in bytes");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn no_bytes_make_it_panic(five: bool, bytes in vec(any::<u8>(), 0..400), cut in 0_usize..400) {
        let version = if five { V5 } else { V311 };
        let mut bench = Bench::open(&connect(version, "press").kept());
        let cut = cut.min(bytes.len());
        bench.feed(&bytes[..cut]);
        bench.commit();
        bench.feed(&bytes[cut..]);
        bench.finish(Close::Closed);
    }

    #[test]
    fn no_first_bytes_make_it_panic(bytes in vec(any::<u8>(), 0..400)) {
        let mut connect_first = vec![0x10];
        connect_first.extend(&bytes);
        for bytes in [bytes, connect_first] {
            let mut handshake = Handshake::new();
            handshake.received(&bytes, &policy());
        }
    }

    /// Good packets with single bytes changed come further than noise.
    #[test]
    fn no_damage_makes_it_panic(five: bool, at in 0_usize..200, byte: u8, steps in vec(0_u8..6, 1..8)) {
        let version = if five { V5 } else { V311 };
        let mut bytes = connect(version, "press").kept().with_will(3).bytes();
        let mut id = 0;
        for step in steps {
            id += 1;
            bytes.extend(match step {
                0 => publish(version, 1, false, id, "one"),
                1 => publish(version, 2, true, id, "two"),
                2 => pubrel(id),
                3 => subscribe(version, &["a/#", "b"]),
                4 => unsubscribe(version, &["a/#"]),
                _ => pingreq(),
            });
        }
        let at = at % bytes.len();
        bytes[at] = byte;
        let mut handshake = Handshake::new();
        if let Progress::Admit(admission) = handshake.received(&bytes, &policy()) {
            let mut bench = Bench::enter(&connect(admission.version, "press").kept(), nothing());
            bench.feed(&admission.input);
            bench.commit();
            bench.finish(Close::Closed);
        }
    }
}
