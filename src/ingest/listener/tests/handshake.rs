//! The first packet: what is let in, and what is told to the rest.

use bytes::Bytes;

use super::super::handshake::{Handshake, Progress};
use super::super::policy::ListenerPolicy;
use super::client::{Connect, V5, V311, connect, packet, packets, pingreq, publish};
use super::{admitted, policy};
use crate::ingest::close::{Close, Kind};
use crate::ingest::codec::Packet;
use crate::ingest::limits::{MAX_CLIENT_ID_BYTES, MAX_CONNECT_BYTES};
use crate::settings::MqttVersion;

fn refused(bytes: &[u8], policy: &ListenerPolicy) -> (Bytes, Close) {
    match Handshake::new().received(bytes, policy) {
        Progress::Refuse(answer, end) => (answer, end),
        other => panic!("{other:?}"),
    }
}

/// The code of the CONNACK that a CONNECT gets.
fn code(version: MqttVersion, connect: &Connect, policy: &ListenerPolicy) -> u8 {
    let (answer, end) = refused(&connect.bytes(), policy);
    assert_eq!(end.kind(), Kind::Refused);
    match &packets(version, &answer)[..] {
        [Packet::ConnAck(ack)] => ack.reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_connect_cut_anywhere_is_the_same_connect() {
    for version in [V311, V5] {
        let bytes = [connect(version, "press").with_will(0).bytes(), pingreq()].concat();
        let whole = bytes.len() - 2;
        for cut in 1..whole {
            let mut handshake = Handshake::new();
            assert!(matches!(handshake.received(&bytes[..cut], &policy()), Progress::ReadOn), "cut at {cut}");
            match handshake.received(&bytes[cut..], &policy()) {
                Progress::Admit(admission) => {
                    assert_eq!(&*admission.client, "press");
                    assert_eq!(&admission.input[..], [0xc0, 0], "what came behind CONNECT is kept");
                }
                other => panic!("cut at {cut}: {other:?}"),
            }
        }
    }
}

#[test]
fn other_versions_are_told_which_ones_are_spoken() {
    for (level, name) in [(3, "MQTT"), (6, "MQTT"), (4, "MQIsdp")] {
        let other = Connect { level, name, ..connect(V311, "press") };
        assert_eq!(code(if level > 5 { V5 } else { V311 }, &other, &policy()), if level > 5 { 0x84 } else { 1 });
    }
}

#[test]
fn mqtt_3_1_and_a_bridge_are_spoken_to_as_3_1_1() {
    for (level, name) in [(3, "MQIsdp"), (0x83, "MQIsdp"), (0x84, "MQTT")] {
        let admission = admitted(&Connect { level, name, ..connect(V311, "press").kept() }, &policy());
        assert_eq!((admission.version, admission.resume), (V311, true), "level {level}");
    }
    // The wrong password is called so, not a wrong version: Paho's Java client asks in 3.1 when 3.1.1 was refused.
    let strict = ListenerPolicy { credentials: true, ..policy() };
    assert_eq!(code(V311, &Connect { level: 3, name: "MQIsdp", ..connect(V311, "press") }, &strict), 5);
}

#[test]
fn tls_and_http_are_called_by_their_names() {
    for (bytes, word) in [(&b"GET /mqtt HTTP/1.1\r\n"[..], "WebSocket"), (&[0x16, 3, 1, 2, 0, 1], "TLS")] {
        let (answer, end) = refused(bytes, &policy());
        assert!(answer.is_empty() && end.cause().contains(word), "{end:?}");
    }
}

#[test]
fn what_is_no_connect_gets_no_answer() {
    for bytes in [b"GET / HTTP/1.1\r\n".to_vec(), publish(V311, 0, false, 0, "x"), pingreq(), vec![0x16, 3, 1, 2, 0]] {
        let (answer, end) = refused(&bytes, &policy());
        assert!(answer.is_empty(), "{bytes:?}");
        assert_eq!(end.kind(), Kind::Refused);
    }
}

#[test]
fn a_connect_that_is_too_large_is_refused_before_it_arrives() {
    let first_bytes = [0x10, 0xff, 0xff, 0xff, 0x7f, 0, 4, b'M', b'Q', b'T', b'T', 5];
    let (answer, _) = refused(&first_bytes, &ListenerPolicy { max_packet_bytes: 1 << 28, ..policy() });
    assert_eq!(packets(V5, &answer).len(), 1, "an MQTT 5 client is told");
    let just_above = usize::try_from(MAX_CONNECT_BYTES).unwrap();
    refused(&packet(0x10, &vec![0; just_above]), &ListenerPolicy { max_packet_bytes: 1 << 28, ..policy() });
}

#[test]
fn client_ids_are_bounded_and_free_of_control_characters() {
    for (version, wanted) in [(V311, 2), (V5, 0x85)] {
        for id in ["a\u{1}b".to_owned(), "a\nb".to_owned(), "x".repeat(MAX_CLIENT_ID_BYTES + 1)] {
            assert_eq!(code(version, &connect(version, &id), &policy()), wanted, "{id:?}");
        }
        admitted(&connect(version, &"x".repeat(MAX_CLIENT_ID_BYTES)), &policy());
        admitted(&connect(version, "press 7/ä:#+"), &policy());
    }
}

#[test]
fn an_empty_client_id_is_given_one_unless_it_is_to_be_remembered_on_3_1_1() {
    assert_eq!(code(V311, &connect(V311, "").kept(), &policy()), 2);
    let unnamed = admitted(&connect(V311, ""), &policy());
    assert!(!unnamed.client.is_empty());
    let one = admitted(&connect(V5, "").kept(), &policy());
    let two = admitted(&connect(V5, "").kept(), &policy());
    assert_ne!(one.client, two.client);
    assert_eq!(one.grants.assigned_client_id.as_deref(), Some(&*one.client));
    assert_eq!(admitted(&connect(V5, "press"), &policy()).grants.assigned_client_id, None);
}

#[test]
fn credentials_are_asked_for_only_with_a_users_file() {
    let strict = ListenerPolicy { credentials: true, ..policy() };
    for (version, wanted) in [(V311, 5), (V5, 0x87)] {
        let anonymous = connect(version, "press");
        assert_eq!(code(version, &anonymous, &strict), wanted);
        let named = Connect { username: Some("bob"), password: Some(b"\xff\x00x"), ..anonymous };
        let admission = admitted(&named, &strict);
        assert_eq!(admission.credentials, Some(("bob".to_owned(), Bytes::from_static(b"\xff\x00x"))));
        assert_eq!(admitted(&named, &policy()).credentials, None);
        let without_password = Connect { password: None, ..named };
        assert_eq!(admitted(&without_password, &strict).credentials, Some(("bob".to_owned(), Bytes::new())));
    }
}

#[test]
fn an_authentication_method_is_refused() {
    let mut asking = connect(V5, "press");
    asking.properties = b"\x15\x00\x05SCRAM".to_vec();
    assert_eq!(code(V5, &asking, &policy()), 0x8c);
}

#[test]
fn a_will_with_a_wildcard_is_refused_and_one_for_a_topic_of_the_server_is_set_aside() {
    let mut bridge = connect(V311, "bridge").with_will(0);
    bridge.will.as_mut().unwrap().topic = "$SYS/broker/connection/x/state";
    let admission = admitted(&bridge, &policy());
    assert!(admission.will.is_none() && admission.will_set_aside);
    for (version, wanted) in [(V311, None), (V5, Some(0x90))] {
        let mut bad = connect(version, "press").with_will(0);
        bad.will.as_mut().unwrap().topic = "a/+";
        let (answer, _) = refused(&bad.bytes(), &policy());
        let told = packets(version, &answer).first().map(|packet| match packet {
            Packet::ConnAck(ack) => ack.reason,
            other => panic!("{other:?}"),
        });
        assert_eq!(told, wanted);
    }
}

#[test]
fn expiry_and_keepalive_are_capped_and_mqtt_5_is_told() {
    let long = Connect { keepalive: 3600, expiry: Some(u32::MAX), ..connect(V5, "press").kept() };
    let long = admitted(&Connect { expiry: Some(u32::MAX), ..long }, &policy());
    assert_eq!((long.expiry_s, long.grants.session_expiry_s), (86_400, Some(86_400)));
    assert_eq!((long.keepalive_s, long.grants.server_keepalive_s), (600, Some(600)));
    let none = admitted(&Connect { keepalive: 0, ..connect(V5, "press") }, &policy());
    assert_eq!((none.keepalive_s, none.grants.server_keepalive_s), (600, Some(600)));
    let modest = admitted(&Connect { keepalive: 30, expiry: Some(60), ..connect(V5, "press") }, &policy());
    assert_eq!((modest.expiry_s, modest.grants.session_expiry_s), (60, None));
    assert_eq!((modest.keepalive_s, modest.grants.server_keepalive_s), (30, None));
    let untold = admitted(&Connect { keepalive: 3600, ..connect(V311, "press") }, &policy());
    assert_eq!(untold.keepalive_s, 600, "a client of 3.1.1 cannot be told, and its dead connection ends all the same");
    assert_eq!(admitted(&Connect { keepalive: 0, ..connect(V311, "press") }, &policy()).keepalive_s, 600);
}

#[test]
fn a_session_of_3_1_1_is_kept_when_it_is_not_clean() {
    let clean = admitted(&connect(V311, "press"), &policy());
    assert_eq!((clean.resume, clean.expiry_s), (false, 0));
    let kept = admitted(&connect(V311, "press").kept(), &policy());
    assert_eq!((kept.resume, kept.expiry_s), (true, 86_400));
    let no_expiry = admitted(&Connect { clean: false, ..connect(V5, "press") }, &policy());
    assert_eq!((no_expiry.resume, no_expiry.expiry_s), (true, 0));
}
