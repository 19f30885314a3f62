//! What a broker sends: stored once, answered after its commit, whatever is repeated, cut or malformed.

use std::collections::BTreeSet;

use super::super::session::Session;
use super::{Bench, V5, V311, connack, puback, pubcomp, publish, pubrec, pubrel, settings};
use crate::buffer::{PacketIds, StoredSession};
use crate::event::MAX_USER_PROPERTIES;
use crate::ingest::close::{Close, Peer};
use crate::ingest::codec::{DecodeError, reason};
use crate::ingest::topics::Topics;
use crate::settings::Broker;

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
fn what_came_before_a_packet_we_cannot_take_is_kept() {
    for version in [V311, V5] {
        let mut bench = Bench::online(version);
        let oversized = [0x32, 0x80, 0x80, 0x01];
        let ended = bench.feed(&[&publish(version, 1, false, 1, "good")[..], &oversized].concat()).unwrap_err();
        assert!(matches!(ended, Close::Undecodable { error: DecodeError::TooLarge { .. }, .. }), "{ended}");
        assert_eq!(ended.reason(Peer::Broker), Some(reason::PACKET_TOO_LARGE));
        assert!(ended.remedy().unwrap().contains("max_packet_bytes"));
        bench.session.close(bench.now);
        assert_eq!(bench.commit(), [puback(1)]);
        bench.session.disconnect(reason::PACKET_TOO_LARGE);
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
        assert!(matches!(bench.feed(bytes), Err(Close::Unexpected { .. })), "{bytes:02x?} before CONNACK");
        let mut bench = Bench::online(V311);
        let ended = bench.feed(bytes).unwrap_err();
        assert_eq!(ended.reason(Peer::Broker), Some(reason::PROTOCOL_ERROR), "{bytes:02x?}: {ended}");
    }
    for early in [publish(V5, 0, false, 0, "x"), pubrel(1), vec![0xd0, 0], vec![0xe0, 0]] {
        let mut bench = Bench::new(V5);
        bench.connect();
        assert!(matches!(bench.feed(&early), Err(Close::Unexpected { .. })), "{early:02x?} before CONNACK");
    }
    let mut bench = Bench::online(V5);
    assert!(matches!(bench.feed(&connack(V5, true, 0)), Err(Close::Unexpected { .. })), "a second CONNACK");
    let mut bench = Bench::online(V5);
    assert!(matches!(bench.feed(&[0xe0, 1, 0x8e]), Err(Close::Disconnected { code: reason::SESSION_TAKEN_OVER, .. })));
    let mut bench = Bench::online(V311);
    assert!(matches!(bench.feed(&[0xe0, 0]), Err(Close::Unexpected { .. })), "a server of 3.1.1 cannot disconnect");
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

/// Topic and id are there, the property block is longer than the packet.
fn unreadable(qos: u8, packet_id: u16) -> Vec<u8> {
    let mut body = b"\0\x01t".to_vec();
    if qos > 0 {
        body.extend(packet_id.to_be_bytes());
    }
    body.extend(b"\x7fpoison");
    let mut bytes = vec![0x30 | qos << 1, u8::try_from(body.len()).unwrap()];
    bytes.extend(body);
    bytes
}

#[test]
fn a_message_that_cannot_be_read_is_put_aside_when_it_comes_for_the_third_time() {
    for (qos, answer) in [(1, vec![puback(9), puback(10)]), (2, vec![pubrec(9), puback(10)])] {
        let mut bench = Bench::online(V5);
        for id in [7, 8] {
            assert!(matches!(bench.feed(&unreadable(qos, id)), Err(Close::Undecodable { .. })));
            bench.reconnect(true);
        }
        bench.feed(&[unreadable(qos, 9), publish(V5, 1, false, 10, "behind")].concat()).unwrap();
        assert_eq!(bench.commit(), answer);
        assert_eq!(bench.payloads()[1], "behind");
        let poison = &bench.events[0];
        assert_eq!(&*poison.topic, "t");
        assert!(poison.flaw().is_some_and(|flaw| flaw.contains("malformed")), "{:?}", poison.flaw());
        assert!(poison.payload.ends_with(b"poison") && bench.events[1].flaw().is_none());
        assert!(bench.feed(&unreadable(qos, 9)).is_err(), "the next one has its tries again");
    }
}
