//! The codec against rumqttc as a second opinion, against a list of wrong packets, and against noise.

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;
use rumqttc::mqttbytes::{self as r4, v4 as r4p};
use rumqttc::v5::mqttbytes::{self as r5, v5 as r5p};

use super::encode::{self, AckKind, Grants, Hello};
use super::*;
use crate::event::Qos;
use crate::settings::{Secret, Subscription};

const MAX: u32 = 1 << 20;
const BOTH: [MqttVersion; 2] = [MqttVersion::V311, MqttVersion::V5];

fn read(version: MqttVersion, bytes: &[u8]) -> Result<Option<Packet>, DecodeError> {
    decode(version, &mut BytesMut::from(bytes), MAX)
}

fn whole(version: MqttVersion, bytes: &[u8]) -> Packet {
    let mut buffer = BytesMut::from(bytes);
    buffer.extend_from_slice(b"next");
    let packet = decode(version, &mut buffer, MAX).expect("a good packet").expect("a whole packet");
    assert_eq!(&buffer[..], b"next", "exactly the packet is taken");
    packet
}

fn by_rumqttc4(packet: &r4p::Packet) -> BytesMut {
    let mut out = BytesMut::new();
    packet.write(&mut out, usize::MAX).unwrap();
    out
}

fn by_rumqttc5(packet: &r5p::Packet) -> BytesMut {
    let mut out = BytesMut::new();
    packet.write(&mut out, None).unwrap();
    out
}

fn publish4(topic: &str, qos: r4::QoS, packet_id: u16, payload: &[u8]) -> BytesMut {
    let mut publish = r4p::Publish::new(topic, qos, payload);
    publish.pkid = packet_id;
    by_rumqttc4(&r4p::Packet::Publish(publish))
}

fn publish5(topic: &str, qos: r5::QoS, packet_id: u16, payload: &[u8], properties: r5p::PublishProperties) -> BytesMut {
    let mut publish = r5p::Publish::new(topic, qos, Bytes::copy_from_slice(payload), Some(properties));
    publish.pkid = packet_id;
    by_rumqttc5(&r5p::Packet::Publish(publish))
}

fn message(packet: Packet) -> Publish {
    let Packet::Publish(publish) = packet else { panic!("{packet:?}") };
    publish
}

fn connect5() -> BytesMut {
    let connect = r5p::Connect {
        keep_alive: 60,
        client_id: "press-07".to_owned(),
        clean_start: false,
        properties: Some(r5p::ConnectProperties {
            session_expiry_interval: Some(3600),
            receive_maximum: Some(10),
            max_packet_size: Some(9999),
            user_properties: vec![("a".to_owned(), "b".to_owned())],
            ..r5p::ConnectProperties::new()
        }),
    };
    let will = r5p::LastWill {
        topic: Bytes::from_static(b"gone/press-07"),
        message: Bytes::from_static(b"\xff"),
        qos: r5::QoS::ExactlyOnce,
        retain: true,
        properties: Some(r5p::LastWillProperties {
            delay_interval: Some(5),
            payload_format_indicator: None,
            message_expiry_interval: None,
            content_type: Some("text/plain".to_owned()),
            response_topic: None,
            correlation_data: Some(Bytes::from_static(b"c")),
            user_properties: vec![("w".to_owned(), "x".to_owned())],
        }),
    };
    by_rumqttc5(&r5p::Packet::Connect(connect, Some(will), Some(r5p::Login::new("user", "hunter2"))))
}

fn samples() -> Vec<(MqttVersion, BytesMut)> {
    let mut samples = Vec::new();
    for version in BOTH {
        let mut one = |write: &dyn Fn(&mut BytesMut)| {
            let mut out = BytesMut::new();
            write(&mut out);
            samples.push((version, out));
        };
        for kind in [AckKind::PubAck, AckKind::PubRec, AckKind::PubComp] {
            one(&|out| encode::ack(out, kind, 0x1234));
            one(&|out| encode::ack_with_reason(out, version, kind, 7, reason::NOT_AUTHORIZED));
        }
        one(&|out| encode::pingreq(out));
        one(&|out| encode::pingresp(out));
        one(&|out| encode::disconnect(out, version, reason::PROTOCOL_ERROR));
        one(&|out| encode::suback(out, version, 9, &[0, 1, 2, 0x87]));
        one(&|out| encode::unsuback(out, version, 9, 3, 0x11));
        one(&|out| encode::refuse(out, version, reason::NOT_AUTHORIZED));
        one(&|out| encode::accept(out, version, true, grants()).unwrap());
        one(&|out| encode::connect(out, version, &hello()).unwrap());
        one(&|out| encode::subscribe(out, version, 3, subscriptions().iter()).unwrap());
        one(&|out| out.extend_from_slice(&[0x62, 2, 0, 5]));
    }
    samples.push((MqttVersion::V311, publish4("a/b", r4::QoS::ExactlyOnce, 77, b"payload")));
    samples.push((MqttVersion::V311, publish4("a/b", r4::QoS::AtMostOnce, 0, &[7; 300])));
    samples.push((MqttVersion::V5, publish5("ä/b", r5::QoS::AtLeastOnce, 77, b"payload", travelling())));
    samples.push((MqttVersion::V5, connect5()));
    samples
}

fn hello() -> Hello<'static> {
    Hello {
        client_id: "tidegate-x",
        keepalive_s: 30,
        session_expiry_s: u32::MAX,
        receive_maximum: 1000,
        max_packet_bytes: 12345,
        username: Some("u"),
        password: None,
    }
}

fn grants() -> Grants {
    Grants {
        assigned_client_id: Some("auto-1".to_owned()),
        session_expiry_s: Some(60),
        server_keepalive_s: Some(30),
        receive_maximum: 100,
        max_packet_bytes: 4096,
        subscriptions: false,
    }
}

fn subscriptions() -> Vec<Subscription> {
    vec![
        Subscription { filter: "sensors/#".to_owned(), qos: Qos::ExactlyOnce },
        Subscription { filter: "$share/g/x/+".to_owned(), qos: Qos::AtMostOnce },
    ]
}

fn travelling() -> r5p::PublishProperties {
    r5p::PublishProperties {
        payload_format_indicator: Some(1),
        message_expiry_interval: Some(60),
        topic_alias: None,
        response_topic: Some("answer/here".to_owned()),
        correlation_data: Some(Bytes::from_static(b"\x00\xff")),
        user_properties: vec![("k".to_owned(), "1".to_owned()), ("k".to_owned(), "2".to_owned())],
        subscription_identifiers: vec![],
        content_type: Some("application/json".to_owned()),
    }
}

#[test]
fn a_message_of_3_1_1_is_read_as_rumqttc_wrote_it() {
    for (qos, level, packet_id) in
        [(r4::QoS::AtMostOnce, 0, 0), (r4::QoS::AtLeastOnce, 1, 5), (r4::QoS::ExactlyOnce, 2, 65535)]
    {
        for payload in [&b""[..], b"\xff\x00", &[9; 200]] {
            let publish = message(whole(MqttVersion::V311, &publish4("a/b c/ü", qos, packet_id, payload)));
            assert_eq!((publish.topic(), publish.qos.level(), publish.packet_id), ("a/b c/ü", level, packet_id));
            assert_eq!(publish.payload_len(), payload.len());
            assert!(publish.properties.is_none() && !publish.retain && !publish.dup);
            assert_eq!(&publish.into_payload()[..], payload);
        }
    }
}

#[test]
fn a_message_of_5_is_read_with_what_travels_on() {
    let publish = message(whole(MqttVersion::V5, &publish5("t", r5::QoS::AtLeastOnce, 5, b"{}", travelling())));
    let properties = publish.properties.clone().expect("properties");
    assert_eq!(properties.content_type.as_deref(), Some("application/json"));
    assert_eq!(properties.correlation_data.as_deref(), Some(&b"\x00\xff"[..]));
    assert_eq!(properties.response_topic.as_deref(), Some("answer/here"));
    assert_eq!((properties.payload_format, properties.expiry_s), (Some(1), Some(60)));
    assert_eq!(
        properties.user,
        [("k".into(), "1".into()), ("k".into(), "2".into())],
        "repeated names keep their order"
    );
    assert_eq!(&publish.into_payload()[..], b"{}");
}

#[test]
fn dup_and_retain_are_read() {
    let mut bytes = publish4("t", r4::QoS::AtLeastOnce, 1, b"x");
    bytes[0] |= 0b1001;
    let publish = message(whole(MqttVersion::V311, &bytes));
    assert!(publish.dup && publish.retain);
}

#[test]
fn several_subscription_identifiers_do_not_shift_the_payload() {
    let bytes = [0x30, 11, 0, 1, b't', 6, 11, 1, 11, 2, 11, 3, b'P'];
    let publish = message(whole(MqttVersion::V5, &bytes));
    assert_eq!(&publish.into_payload()[..], b"P");
}

#[test]
fn a_connect_is_read_whole_and_its_password_is_not_shown() {
    let Packet::Connect(connect) = whole(MqttVersion::V311, &connect5()) else { panic!("no CONNECT") };
    assert_eq!(connect.version, MqttVersion::V5, "the packet itself says the version");
    assert_eq!((connect.client_id.as_str(), connect.keepalive_s, connect.clean_start), ("press-07", 60, false));
    assert_eq!(
        (connect.session_expiry_s, connect.receive_maximum, connect.max_packet_bytes),
        (Some(3600), Some(10), Some(9999))
    );
    assert_eq!(connect.username.as_deref(), Some("user"));
    assert_eq!(connect.password.as_deref(), Some(&b"hunter2"[..]));
    assert!(!format!("{connect:?}").contains("hunter2"), "{connect:?}");
    let will = connect.will.expect("a will");
    assert_eq!(
        (will.topic.as_str(), &will.payload[..], will.qos, will.retain),
        ("gone/press-07", &b"\xff"[..], Qos::ExactlyOnce, true)
    );
    assert_eq!(will.delay_s, 5);
    assert_eq!(will.properties.expect("properties").user, [("w".into(), "x".into())]);

    let mut old = r4p::Connect::new("old");
    old.set_login("u", "p");
    let mut buffer = by_rumqttc4(&r4p::Packet::Connect(old));
    let connect = decode_connect(&mut buffer, MAX).unwrap().unwrap();
    assert_eq!((connect.version, connect.clean_start, connect.session_expiry_s), (MqttVersion::V311, true, None));
}

#[test]
fn a_binary_password_and_an_empty_user_name_are_what_they_are() {
    let bytes = b"\x10\x13\x00\x04MQTT\x04\xc2\x00\x3c\x00\x01c\x00\x00\x00\x02\xff\xfe";
    let Packet::Connect(connect) = whole(MqttVersion::V311, bytes) else { panic!("no CONNECT") };
    assert_eq!((connect.username.as_deref(), connect.password.as_deref()), (Some(""), Some(&b"\xff\xfe"[..])));
}

#[test]
fn what_we_write_is_what_rumqttc_reads() {
    let mut out = BytesMut::from(&b"already here"[..]);
    encode::connect(&mut out, MqttVersion::V5, &hello()).unwrap();
    let mut rest = out.split_off(12);
    let Ok(r5p::Packet::Connect(connect, None, Some(login))) = r5p::Packet::read(&mut rest, None) else {
        panic!("no CONNECT")
    };
    let properties = connect.properties.unwrap();
    assert_eq!((connect.keep_alive, connect.clean_start, connect.client_id.as_str()), (30, false, "tidegate-x"));
    assert_eq!(
        (properties.session_expiry_interval, properties.receive_maximum, properties.max_packet_size),
        (Some(u32::MAX), Some(1000), Some(12345))
    );
    assert_eq!(properties.topic_alias_max, None);
    assert_eq!((login.username.as_str(), login.password.as_str()), ("u", ""));

    let mut out = BytesMut::new();
    let password = Secret::new("pw".to_owned());
    encode::connect(&mut out, MqttVersion::V311, &Hello { password: Some(&password), ..hello() }).unwrap();
    let Ok(r4p::Packet::Connect(connect)) = r4p::Packet::read(&mut out, 1000) else { panic!("no CONNECT") };
    assert!(!connect.clean_session);
    assert_eq!(connect.login, Some(r4p::Login::new("u", "pw")));

    encode::subscribe(&mut out, MqttVersion::V5, 3, subscriptions().iter()).unwrap();
    let Ok(r5p::Packet::Subscribe(subscribe)) = r5p::Packet::read(&mut out, None) else { panic!("no SUBSCRIBE") };
    assert_eq!(
        (subscribe.pkid, subscribe.filters[0].path.as_str(), subscribe.filters[0].qos),
        (3, "sensors/#", r5::QoS::ExactlyOnce)
    );
    assert_eq!(subscribe.filters[1].retain_forward_rule, r5p::RetainForwardRule::OnNewSubscribe);

    encode::accept(&mut out, MqttVersion::V5, true, grants()).unwrap();
    let Ok(r5p::Packet::ConnAck(ack)) = r5p::Packet::read(&mut out, None) else { panic!("no CONNACK") };
    let properties = ack.properties.unwrap();
    assert_eq!(properties.topic_alias_max, None, "Paho Java loops when its connection is lost while it uses one");
    assert!(ack.session_present);
    assert_eq!((properties.server_keep_alive, properties.shared_subscription_available), (Some(30), Some(0)));

    encode::suback(&mut out, MqttVersion::V5, 9, &[2, 0x87]);
    let Ok(r5p::Packet::SubAck(ack)) = r5p::Packet::read(&mut out, None) else { panic!("no SUBACK") };
    assert_eq!(
        ack.return_codes,
        [r5p::SubscribeReasonCode::Success(r5::QoS::ExactlyOnce), r5p::SubscribeReasonCode::NotAuthorized]
    );

    encode::suback(&mut out, MqttVersion::V311, 9, &[0x8f; 200]);
    let Ok(r4p::Packet::SubAck(ack)) = r4p::Packet::read(&mut out, 1000) else { panic!("no SUBACK") };
    assert_eq!(ack.return_codes, vec![r4p::SubscribeReasonCode::Failure; 200]);

    encode::refuse(&mut out, MqttVersion::V311, reason::BAD_USER_NAME_OR_PASSWORD);
    let Ok(r4p::Packet::ConnAck(ack)) = r4p::Packet::read(&mut out, 1000) else { panic!("no CONNACK") };
    assert_eq!(ack.code, r4p::ConnectReturnCode::BadUserNamePassword);
    assert!(out.is_empty());
}

#[test]
fn a_server_that_only_knows_3_1_1_refuses_5_in_its_own_way() {
    let refusal = Packet::ConnAck(ConnAck { reason: 1, ..ConnAck::default() });
    assert_eq!(whole(MqttVersion::V5, &[0x20, 2, 0, 1]), refusal);
    assert!(read(MqttVersion::V5, &[0x20, 2, 0, 0]).is_err(), "but it cannot accept so");
}

#[test]
fn a_disconnect_is_read_in_each_of_its_lengths() {
    let told = |bytes: &[u8]| match whole(MqttVersion::V5, bytes) {
        Packet::Disconnect(told) => told,
        other => panic!("{other:?}"),
    };
    assert_eq!(told(&[0xe0, 0]).reason, 0);
    assert_eq!(told(&[0xe0, 1, 0x8e]).reason, 0x8e);
    assert_eq!(told(&[0xe0, 2, 0x8e, 0]).reason, 0x8e);
    assert_eq!(told(&[0xe0, 6, 0x97, 4, 31, 0, 1, b'!']).reason_string.as_deref(), Some("!"));
    assert_eq!(told(&[0xe0, 7, 0, 5, 17, 0, 0, 1, 0]).session_expiry_s, Some(256));
}

#[test]
fn a_length_above_the_limit_fails_before_its_bytes_arrive() {
    for version in BOTH {
        let mut buffer = BytesMut::from(&[0x30, 0xff, 0xff, 0xff, 0x7f][..]);
        assert_eq!(decode(version, &mut buffer, MAX), Err(DecodeError::TooLarge { bytes: 268_435_460, max: MAX }));
        assert!(buffer.capacity() < 100);
        let exact = publish4("t", r4::QoS::AtMostOnce, 0, &[0; 95]);
        assert_eq!(exact.len(), 100);
        if version == MqttVersion::V311 {
            assert!(decode(version, &mut exact.clone(), 100).unwrap().is_some(), "the limit itself is allowed");
        }
        assert_eq!(decode(version, &mut exact.clone(), 99), Err(DecodeError::TooLarge { bytes: 100, max: 99 }));
    }
}

#[test]
fn a_packet_cut_anywhere_waits_for_the_rest() {
    for (version, bytes) in samples() {
        for cut in 0..bytes.len() {
            assert_eq!(read(version, &bytes[..cut]), Ok(None), "{bytes:02x?} cut at {cut}");
        }
        assert!(read(version, &bytes).unwrap().is_some(), "{bytes:02x?}");
    }
}

#[test]
fn wrong_packets_are_refused_each_for_its_own_reason() {
    use MqttVersion::{V5, V311};
    let wrong: &[(MqttVersion, &[u8], u8, &str)] = &[
        (V311, &[0x00, 0], 0x81, "type 0"),
        (V311, &[0xf0, 0], 0x82, "AUTH"),
        (V5, &[0x30, 0x80, 0x80, 0x80, 0x80, 0x01], 0x81, "length of five bytes"),
        (V311, &[0x36, 0], 0x81, "QoS 3"),
        (V311, &[0x38, 0], 0x81, "DUP with QoS 0"),
        (V311, &[0x60, 2, 0, 1], 0x81, "PUBREL flags"),
        (V311, &[0x63, 2, 0, 1], 0x81, "PUBREL flags"),
        (V311, &[0x41, 2, 0, 1], 0x81, "PUBACK flags"),
        (V311, &[0x80, 6, 0, 1, 0, 1, b'a', 0], 0x81, "SUBSCRIBE flags"),
        (V311, &[0x30, 2, 0, 0], 0x81, "no topic"),
        (V5, &[0x30, 3, 0, 0, 0], 0x82, "no topic, no alias"),
        (V5, &[0x30, 6, 0, 0, 3, 35, 0, 0], 0x94, "alias 0 instead of a topic"),
        (V5, &[0x30, 7, 0, 1, b'a', 3, 35, 0, 0], 0x94, "alias 0 beside a topic"),
        (V311, &[0x30, 3, 0, 1, b'+'], 0x90, "wildcard"),
        (V311, &[0x30, 4, 0, 2, b'a', b'#'], 0x90, "wildcard"),
        (V311, &[0x30, 3, 0, 1, 0], 0x81, "NUL in a topic"),
        (V311, &[0x30, 3, 0, 1, 0xff], 0x81, "topic not UTF-8"),
        (V311, &[0x30, 5, 0, 3, 0xed, 0xa0, 0x80], 0x81, "surrogate in a topic"),
        (V311, &[0x30, 3, 0, 9, b'a'], 0x81, "topic beyond the end"),
        (V311, &[0x30, 1, 0], 0x81, "half a length"),
        (V311, &[0x30, 0], 0x81, "empty PUBLISH"),
        (V311, &[0x32, 5, 0, 1, b'a', 0, 0], 0x81, "packet id 0"),
        (V311, &[0x32, 3, 0, 1, b'a'], 0x81, "no packet id"),
        (V5, &[0x30, 3, 0, 1, b'a'], 0x81, "no property length"),
        (V5, &[0x30, 4, 0, 1, b'a', 9], 0x81, "properties beyond the end"),
        (V5, &[0x30, 4, 0, 1, b'a', 0x80], 0x81, "property length that does not end"),
        (V5, &[0x30, 6, 0, 1, b'a', 1, 1, 0], 0x81, "property beyond its block"),
        (V5, &[0x30, 8, 0, 1, b'a', 4, 1, 0, 1, 0], 0x82, "property twice"),
        (V5, &[0x30, 6, 0, 1, b'a', 2, 1, 2], 0x82, "payload format 2"),
        (V5, &[0x30, 6, 0, 1, b'a', 2, 11, 0], 0x82, "subscription identifier 0"),
        (V5, &[0x30, 6, 0, 1, b'a', 2, 36, 0], 0x81, "a property of CONNACK"),
        (V5, &[0x30, 6, 0, 1, b'a', 2, 99, 0], 0x81, "no such property"),
        (V5, &[0x30, 10, 0, 1, b'a', 6, 38, 0, 1, 0xff, 0, 0], 0x81, "user property not UTF-8"),
        (V311, &[0x62, 2, 0, 0], 0x81, "PUBREL of packet id 0"),
        (V311, &[0x62, 3, 0, 1, 0], 0x81, "PUBREL with a reason on 3.1.1"),
        (V5, &[0x62, 5, 0, 1, 0, 0, 0], 0x81, "bytes behind PUBREL"),
        (V311, &[0x82, 2, 0, 1], 0x82, "SUBSCRIBE of nothing"),
        (V311, &[0x82, 6, 0, 1, 0, 1, b'a', 4], 0x81, "option of 5 on 3.1.1"),
        (V311, &[0x82, 6, 0, 1, 0, 1, b'a', 3], 0x81, "QoS 3"),
        (V5, &[0x82, 7, 0, 1, 0, 0, 1, b'a', 0x30], 0x81, "retain handling 3"),
        (V5, &[0x82, 7, 0, 1, 0, 0, 1, b'a', 0x40], 0x81, "reserved option"),
        (V311, &[0xa2, 2, 0, 1], 0x82, "UNSUBSCRIBE of nothing"),
        (V311, &[0x90, 2, 0, 1], 0x81, "SUBACK of nothing"),
        (V311, &[0x90, 3, 0, 1, 3], 0x81, "SUBACK of QoS 3"),
        (V311, &[0xc0, 1, 0], 0x81, "PINGREQ with a body"),
        (V311, &[0xe0, 1, 0], 0x81, "DISCONNECT with a reason on 3.1.1"),
        (V311, &[0x20, 2, 2, 0], 0x81, "CONNACK flags"),
        (V311, &[0x20, 2, 1, 5], 0x82, "refusal with a session"),
        (V5, &[0x20, 6, 0, 0, 3, 33, 0, 0], 0x82, "receive maximum 0"),
        (V311, b"\x10\x0d\x00\x04MQTT\x04\x03\x00\x00\x00\x01c", 0x81, "reserved flag of CONNECT"),
        (V311, b"\x10\x0d\x00\x04MQTT\x04\x08\x00\x00\x00\x01c", 0x81, "will QoS without a will"),
        (V311, b"\x10\x0f\x00\x04MQTT\x04\x40\x00\x00\x00\x01c\x00\x00", 0x81, "password without a user name"),
        (V311, b"\x10\x12\x00\x04MQTT\x04\x1c\x00\x00\x00\x01c\x00\x01w\x00\x00", 0x81, "will of QoS 3"),
        (V311, b"\x10\x12\x00\x04MQTT\x04\x04\x00\x00\x00\x01c\x00\x01#\x00\x00", 0x90, "will with a wildcard"),
        (V311, b"\x10\x0d\x00\x04MQTT\x03\x02\x00\x00\x00\x01c", 0x84, "level 3"),
        (V311, b"\x10\x0d\x00\x04HTTP\x04\x02\x00\x00\x00\x01c", 0x81, "another protocol"),
        (V311, b"\x10\x0e\x00\x04MQTT\x04\x02\x00\x00\x00\x01c!", 0x81, "bytes behind CONNECT"),
    ];
    for (version, bytes, code, what) in wrong {
        match read(*version, bytes) {
            Err(error) => assert_eq!(error.reason(), *code, "{what}: {error}"),
            Ok(packet) => panic!("{what} was taken: {packet:?}"),
        }
    }
}

#[test]
fn another_protocol_is_refused_at_its_first_byte() {
    let mut buffer = BytesMut::from(&b"GET / HTTP/1.1\r\n"[..]);
    assert_eq!(decode_connect(&mut buffer, MAX).unwrap_err().reason(), reason::PROTOCOL_ERROR);
}

/// Takes all packets there are; the number is bounded by the bytes.
fn drain(version: MqttVersion, bytes: &[u8]) {
    let mut buffer = BytesMut::from(bytes);
    let mut before = buffer.len();
    while let Ok(Some(packet)) = decode(version, &mut buffer, MAX) {
        assert!(buffer.len() < before, "a packet takes bytes");
        before = buffer.len();
        if let Packet::Publish(publish) = packet {
            assert!(!publish.topic().is_empty());
            assert!(publish.payload_len() < bytes.len());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn noise_is_survived(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        for version in BOTH {
            drain(version, &bytes);
        }
        if let Ok(Some(connect)) = decode_connect(&mut BytesMut::from(&bytes[..]), MAX) {
            prop_assert!(connect.client_id.len() < bytes.len());
        }
    }

    #[test]
    fn flipped_bits_are_survived(which in any::<prop::sample::Index>(), flips in prop::collection::vec((any::<prop::sample::Index>(), 0_u8..8), 1..4)) {
        let samples = samples();
        let (version, bytes) = which.get(&samples);
        let mut bytes = bytes.to_vec();
        for (place, bit) in flips {
            let place = place.index(bytes.len());
            bytes[place] ^= 1 << bit;
        }
        drain(*version, &bytes);
        let mut buffer = BytesMut::from(&bytes[..]);
        let framed = decode_connect(&mut buffer, MAX);
        prop_assert!(framed.is_err() || buffer.len() <= bytes.len());
    }

    #[test]
    fn a_framed_noise_body_is_survived(first in any::<u8>(), body in prop::collection::vec(any::<u8>(), 0..120)) {
        let mut bytes = vec![first, u8::try_from(body.len()).unwrap()];
        bytes.extend(&body);
        for version in BOTH {
            drain(version, &bytes);
        }
    }

    #[test]
    fn any_message_comes_through_both_codecs_the_same(
        topic in "[a-z/ äÖ€]{1,40}",
        payload in prop::collection::vec(any::<u8>(), 0..400),
        packet_id in 1_u16..,
        user in prop::collection::vec(("[a-z]{0,9}", "[a-z€]{0,9}"), 0..4),
        content_type in prop::option::of("[a-z]{0,9}"),
    ) {
        let properties = r5p::PublishProperties {
            user_properties: user.clone(), content_type: content_type.clone(), ..r5p::PublishProperties::default()
        };
        let publish = message(whole(MqttVersion::V5, &publish5(&topic, r5::QoS::ExactlyOnce, packet_id, &payload, properties)));
        prop_assert_eq!(publish.topic(), topic);
        prop_assert_eq!(publish.packet_id, packet_id);
        let read = publish.properties.clone().unwrap_or_default();
        let user: Vec<(Box<str>, Box<str>)> = user.into_iter().map(|(k, v)| (k.into(), v.into())).collect();
        prop_assert_eq!(&read.user, &user);
        prop_assert_eq!(read.content_type.as_deref(), content_type.as_deref());
        prop_assert_eq!(publish.into_payload().to_vec(), payload);
    }
}
