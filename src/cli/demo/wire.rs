//! The few packets a publisher needs, in both versions of MQTT, on rumqttc's codecs.

use bytes::{Bytes, BytesMut};
use rumqttc::mqttbytes::{self as bytes4, v4};
use rumqttc::v5::mqttbytes::{self as bytes5, v5};

use crate::event::Qos;
use crate::settings::MqttVersion;

/// Silence that both sides allow; the sensor pings at a third of it.
pub(super) const KEEPALIVE_S: u16 = 60;

/// How long the relay shall keep a session: longer than any demo.
const SESSION_EXPIRY_S: u32 = 3600;

/// Nothing that the relay sends to a publisher comes near this.
const MAX_PACKET_BYTES: u16 = 4096;

/// What a sensor says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outgoing<'a> {
    /// Opens or resumes the session of that client.
    Connect { client_id: &'a str },
    /// A reading.
    Publish { packet_id: u16, qos: Qos, topic: &'a str, payload: String, again: bool },
    /// QoS 2, second half: PUBREL.
    Release { packet_id: u16 },
    /// I am still here.
    Ping,
    /// Good bye.
    Disconnect,
}

/// What a sensor hears.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Incoming {
    /// CONNACK. `receive_maximum`: how many unacknowledged readings the relay takes.
    Connected { session_present: bool, receive_maximum: Option<u16> },
    /// PUBACK.
    Acknowledged { packet_id: u16, accepted: bool },
    /// PUBREC.
    Received { packet_id: u16, accepted: bool },
    /// PUBCOMP.
    Completed { packet_id: u16 },
    /// PINGRESP.
    Pong,
}

/// The connection is of no more use.
#[derive(Debug, thiserror::Error)]
pub(super) enum WireError {
    /// CONNACK with a refusal, or DISCONNECT.
    #[error("the relay closed the connection: {0}")]
    Ended(String),
    /// Bytes that are no packet, or a packet that no publisher expects.
    #[error("the relay sent what is not MQTT: {0}")]
    NotUnderstood(String),
}

/// Appends the packet.
pub(super) fn encode(version: MqttVersion, packet: Outgoing<'_>, out: &mut BytesMut) -> Result<(), WireError> {
    match version {
        MqttVersion::V5 => packet_5(packet).write(out, None).map_err(|e| not_understood(&e)),
        MqttVersion::V311 => packet_4(packet).write(out, usize::MAX).map_err(|e| not_understood(&e)),
    }
    .map(|_bytes| ())
}

/// Takes the next packet off the front; `None` when it is not whole yet.
pub(super) fn decode(version: MqttVersion, input: &mut BytesMut) -> Result<Option<Incoming>, WireError> {
    match version {
        MqttVersion::V5 => match v5::Packet::read(input, Some(u32::from(MAX_PACKET_BYTES))) {
            Ok(packet) => heard_5(packet).map(Some),
            Err(bytes5::Error::InsufficientBytes(_)) => Ok(None),
            Err(error) => Err(not_understood(&error)),
        },
        MqttVersion::V311 => match v4::Packet::read(input, usize::from(MAX_PACKET_BYTES)) {
            Ok(packet) => heard_4(packet).map(Some),
            Err(bytes4::Error::InsufficientBytes(_)) => Ok(None),
            Err(error) => Err(not_understood(&error)),
        },
    }
}

fn packet_5(packet: Outgoing<'_>) -> v5::Packet {
    match packet {
        Outgoing::Connect { client_id } => {
            let mut properties = v5::ConnectProperties::new();
            properties.session_expiry_interval = Some(SESSION_EXPIRY_S);
            let connect = v5::Connect {
                keep_alive: KEEPALIVE_S,
                client_id: client_id.to_owned(),
                clean_start: false,
                properties: Some(properties),
            };
            v5::Packet::Connect(connect, None, None)
        }
        Outgoing::Publish { packet_id, qos, topic, payload, again } => v5::Packet::Publish(v5::Publish {
            dup: again,
            qos: match qos {
                Qos::AtMostOnce => bytes5::QoS::AtMostOnce,
                Qos::AtLeastOnce => bytes5::QoS::AtLeastOnce,
                Qos::ExactlyOnce => bytes5::QoS::ExactlyOnce,
            },
            retain: false,
            topic: Bytes::copy_from_slice(topic.as_bytes()),
            pkid: packet_id,
            payload: Bytes::from(payload),
            properties: None,
        }),
        Outgoing::Release { packet_id } => v5::Packet::PubRel(v5::PubRel::new(packet_id, None)),
        Outgoing::Ping => v5::Packet::PingReq(v5::PingReq),
        Outgoing::Disconnect => {
            v5::Packet::Disconnect(v5::Disconnect::new(v5::DisconnectReasonCode::NormalDisconnection))
        }
    }
}

fn packet_4(packet: Outgoing<'_>) -> v4::Packet {
    match packet {
        Outgoing::Connect { client_id } => {
            let mut connect = v4::Connect::new(client_id);
            connect.keep_alive = KEEPALIVE_S;
            connect.clean_session = false;
            v4::Packet::Connect(connect)
        }
        Outgoing::Publish { packet_id, qos, topic, payload, again } => v4::Packet::Publish(v4::Publish {
            dup: again,
            qos: match qos {
                Qos::AtMostOnce => bytes4::QoS::AtMostOnce,
                Qos::AtLeastOnce => bytes4::QoS::AtLeastOnce,
                Qos::ExactlyOnce => bytes4::QoS::ExactlyOnce,
            },
            retain: false,
            topic: topic.to_owned(),
            pkid: packet_id,
            payload: Bytes::from(payload),
        }),
        Outgoing::Release { packet_id } => v4::Packet::PubRel(v4::PubRel::new(packet_id)),
        Outgoing::Ping => v4::Packet::PingReq,
        Outgoing::Disconnect => v4::Packet::Disconnect,
    }
}

fn heard_5(packet: v5::Packet) -> Result<Incoming, WireError> {
    Ok(match packet {
        v5::Packet::ConnAck(ack) if ack.code == v5::ConnectReturnCode::Success => Incoming::Connected {
            session_present: ack.session_present,
            receive_maximum: ack.properties.and_then(|properties| properties.receive_max),
        },
        v5::Packet::ConnAck(ack) => return Err(WireError::Ended(format!("{:?}", ack.code))),
        v5::Packet::Disconnect(end) => return Err(WireError::Ended(format!("{:?}", end.reason_code))),
        v5::Packet::PubAck(ack) => Incoming::Acknowledged {
            packet_id: ack.pkid,
            accepted: matches!(ack.reason, v5::PubAckReason::Success | v5::PubAckReason::NoMatchingSubscribers),
        },
        v5::Packet::PubRec(ack) => Incoming::Received {
            packet_id: ack.pkid,
            accepted: matches!(ack.reason, v5::PubRecReason::Success | v5::PubRecReason::NoMatchingSubscribers),
        },
        v5::Packet::PubComp(ack) => Incoming::Completed { packet_id: ack.pkid },
        v5::Packet::PingResp(_) => Incoming::Pong,
        other @ (v5::Packet::Auth(_)
        | v5::Packet::Connect(..)
        | v5::Packet::Publish(_)
        | v5::Packet::PingReq(_)
        | v5::Packet::Subscribe(_)
        | v5::Packet::SubAck(_)
        | v5::Packet::PubRel(_)
        | v5::Packet::Unsubscribe(_)
        | v5::Packet::UnsubAck(_)) => return Err(not_understood(&format!("{other:?}"))),
    })
}

fn heard_4(packet: v4::Packet) -> Result<Incoming, WireError> {
    Ok(match packet {
        v4::Packet::ConnAck(ack) if ack.code == v4::ConnectReturnCode::Success => {
            Incoming::Connected { session_present: ack.session_present, receive_maximum: None }
        }
        v4::Packet::ConnAck(ack) => return Err(WireError::Ended(format!("{:?}", ack.code))),
        v4::Packet::PubAck(ack) => Incoming::Acknowledged { packet_id: ack.pkid, accepted: true },
        v4::Packet::PubRec(ack) => Incoming::Received { packet_id: ack.pkid, accepted: true },
        v4::Packet::PubComp(ack) => Incoming::Completed { packet_id: ack.pkid },
        v4::Packet::PingResp => Incoming::Pong,
        other @ (v4::Packet::Connect(_)
        | v4::Packet::Publish(_)
        | v4::Packet::PubRel(_)
        | v4::Packet::Subscribe(_)
        | v4::Packet::SubAck(_)
        | v4::Packet::Unsubscribe(_)
        | v4::Packet::UnsubAck(_)
        | v4::Packet::PingReq
        | v4::Packet::Disconnect) => return Err(not_understood(&format!("{other:?}"))),
    })
}

fn not_understood(what: &impl ToString) -> WireError {
    WireError::NotUnderstood(what.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn publish(again: bool) -> Outgoing<'static> {
        Outgoing::Publish { packet_id: 9, qos: Qos::ExactlyOnce, topic: "a/b", payload: "{}".to_owned(), again }
    }

    #[test]
    fn a_publish_sent_again_differs_in_the_dup_flag_alone() {
        for version in [MqttVersion::V311, MqttVersion::V5] {
            let (mut first, mut again) = (BytesMut::new(), BytesMut::new());
            encode(version, publish(false), &mut first).unwrap();
            encode(version, publish(true), &mut again).unwrap();
            assert_eq!(again[0], first[0] | 0b1000);
            assert_eq!(again[1..], first[1..]);
        }
    }

    #[test]
    fn acknowledgements_are_heard_in_both_versions_whole_or_not_at_all() {
        for version in [MqttVersion::V311, MqttVersion::V5] {
            let bytes = [0x40_u8, 2, 0, 7, 0x50, 2, 0, 8, 0x70, 2, 0, 9, 0xD0, 0];
            let mut input = BytesMut::new();
            let mut heard = Vec::new();
            for byte in bytes {
                input.extend_from_slice(&[byte]);
                heard.extend(decode(version, &mut input).unwrap());
            }
            let expected = [
                Incoming::Acknowledged { packet_id: 7, accepted: true },
                Incoming::Received { packet_id: 8, accepted: true },
                Incoming::Completed { packet_id: 9 },
                Incoming::Pong,
            ];
            assert_eq!(heard, expected);
        }
    }

    #[test]
    fn a_refused_connection_is_an_error_that_says_why() {
        let mut input = BytesMut::from(&[0x20_u8, 2, 0, 5][..]);
        let error = decode(MqttVersion::V311, &mut input).unwrap_err();
        assert_eq!(error.to_string(), "the relay closed the connection: NotAuthorized");
    }
}
