//! Writes packets to the end of a buffer.
//!
//! The acknowledgements are four bytes in both versions and written here; CONNECT, CONNACK and SUBSCRIBE, the packets
//! of some size, are written by rumqttc. Strings come from checked settings and are shorter than 65,536 bytes.

use bytes::{BufMut, BytesMut};
use rumqttc::mqttbytes::{self as v4, v4 as v4packets};
use rumqttc::v5::mqttbytes::{self as v5, v5 as v5packets};

use super::{frame, reason};
use crate::event::Qos;
use crate::settings::{MqttVersion, Secret, Subscription};

/// A packet could not be written: a string or the whole is longer than MQTT can say.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("write {packet}: {cause}")]
pub(crate) struct EncodeError {
    packet: &'static str,
    cause: String,
}

/// Which answer to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::enum_variant_names, reason = "MQTT's own names")]
pub(crate) enum AckKind {
    /// To QoS 1.
    PubAck,
    /// To QoS 2, first.
    PubRec,
    /// To PUBREL.
    PubComp,
}

/// An acknowledgement that says "done": four bytes in both versions.
pub(crate) fn ack(out: &mut BytesMut, kind: AckKind, packet_id: u16) {
    let [high, low] = packet_id.to_be_bytes();
    out.put_slice(&[ack_byte(kind), 2, high, low]);
}

/// An MQTT 5 acknowledgement with a reason; 3.1.1 has none, and gets the plain one.
pub(crate) fn ack_with_reason(out: &mut BytesMut, version: MqttVersion, kind: AckKind, packet_id: u16, reason: u8) {
    if version == MqttVersion::V311 || reason == reason::SUCCESS {
        return ack(out, kind, packet_id);
    }
    let [high, low] = packet_id.to_be_bytes();
    out.put_slice(&[ack_byte(kind), 3, high, low, reason]);
}

fn ack_byte(kind: AckKind) -> u8 {
    match kind {
        AckKind::PubAck => frame::PUBACK << 4,
        AckKind::PubRec => frame::PUBREC << 4,
        AckKind::PubComp => frame::PUBCOMP << 4,
    }
}

/// PINGREQ.
pub(crate) fn pingreq(out: &mut BytesMut) {
    out.put_slice(&[frame::PINGREQ << 4, 0]);
}

/// PINGRESP.
pub(crate) fn pingresp(out: &mut BytesMut) {
    out.put_slice(&[frame::PINGRESP << 4, 0]);
}

/// DISCONNECT; the reason goes out on MQTT 5 only.
pub(crate) fn disconnect(out: &mut BytesMut, version: MqttVersion, reason: u8) {
    if version == MqttVersion::V311 || reason == reason::SUCCESS {
        out.put_slice(&[frame::DISCONNECT << 4, 0]);
    } else {
        out.put_slice(&[frame::DISCONNECT << 4, 1, reason]);
    }
}

/// What our CONNECT to a broker says. The session is always a persistent one.
#[derive(Debug, Clone)]
pub(crate) struct Hello<'a> {
    /// Fixed.
    pub client_id: &'a str,
    /// Seconds, 0 = off.
    pub keepalive_s: u16,
    /// MQTT 5: seconds, `u32::MAX` = never. 3.1.1 knows only "never".
    pub session_expiry_s: u32,
    /// MQTT 5.
    pub receive_maximum: u16,
    /// MQTT 5.
    pub max_packet_bytes: u32,
    /// If the broker wants one.
    pub username: Option<&'a str>,
    /// With it.
    pub password: Option<&'a Secret>,
}

/// CONNECT.
///
/// # Errors
/// When it would be longer than MQTT can say.
pub(crate) fn connect(out: &mut BytesMut, version: MqttVersion, hello: &Hello<'_>) -> Result<(), EncodeError> {
    let username = hello.username.unwrap_or_default().to_owned();
    let password = hello.password.map(Secret::reveal).unwrap_or_default().to_owned();
    let login = hello.username.is_some() || hello.password.is_some();
    // rumqttc writes the flags at an absolute offset: it needs a buffer of its own.
    let mut own = BytesMut::with_capacity(128);
    match version {
        MqttVersion::V311 => v4packets::Connect {
            protocol: v4::Protocol::V4,
            keep_alive: hello.keepalive_s,
            client_id: hello.client_id.to_owned(),
            clean_session: false,
            last_will: None,
            login: login.then_some(v4packets::Login { username, password }),
        }
        .write(&mut own)
        .map_err(|e| EncodeError { packet: "CONNECT", cause: e.to_string() })?,
        MqttVersion::V5 => v5packets::Connect {
            keep_alive: hello.keepalive_s,
            client_id: hello.client_id.to_owned(),
            clean_start: false,
            properties: Some(v5packets::ConnectProperties {
                session_expiry_interval: Some(hello.session_expiry_s),
                receive_maximum: Some(hello.receive_maximum),
                max_packet_size: Some(hello.max_packet_bytes),
                // No topic aliases: left out means 0.
                ..v5packets::ConnectProperties::new()
            }),
        }
        .write(&None, &login.then_some(v5packets::Login { username, password }), &mut own)
        .map_err(|e| EncodeError { packet: "CONNECT", cause: e.to_string() })?,
    };
    out.extend_from_slice(&own);
    Ok(())
}

/// SUBSCRIBE. On MQTT 5 with retain handling 1: retained messages come for a subscription that is new at the broker,
/// not for one that it still has.
///
/// # Errors
/// When it would be longer than MQTT can say.
pub(crate) fn subscribe<'a>(
    out: &mut BytesMut,
    version: MqttVersion,
    packet_id: u16,
    filters: impl Iterator<Item = &'a Subscription>,
) -> Result<(), EncodeError> {
    match version {
        MqttVersion::V311 => v4packets::Subscribe {
            pkid: packet_id,
            filters: filters.map(|s| v4packets::SubscribeFilter::new(s.filter.clone(), v4_qos(s.qos))).collect(),
        }
        .write(out)
        .map_err(|e| EncodeError { packet: "SUBSCRIBE", cause: e.to_string() })?,
        MqttVersion::V5 => v5packets::Subscribe {
            pkid: packet_id,
            filters: filters
                .map(|s| v5packets::Filter {
                    path: s.filter.clone(),
                    qos: v5_qos(s.qos),
                    nolocal: false,
                    // As published: else every live message would come with its retain flag cleared.
                    preserve_retain: true,
                    retain_forward_rule: v5packets::RetainForwardRule::OnNewSubscribe,
                })
                .collect(),
            properties: None,
        }
        .write(out)
        .map_err(|e| EncodeError { packet: "SUBSCRIBE", cause: e.to_string() })?,
    };
    Ok(())
}

/// UNSUBSCRIBE.
pub(crate) fn unsubscribe<'a>(
    out: &mut BytesMut,
    version: MqttVersion,
    packet_id: u16,
    filters: impl Iterator<Item = &'a str>,
) {
    let mut body = BytesMut::new();
    body.put_u16(packet_id);
    if version == MqttVersion::V5 {
        body.put_u8(0);
    }
    for filter in filters {
        // Longer than MQTT can say is none that a broker ever granted.
        let Ok(length) = u16::try_from(filter.len()) else { continue };
        body.put_u16(length);
        body.put_slice(filter.as_bytes());
    }
    out.put_u8(frame::UNSUBSCRIBE << 4 | 0b0010);
    put_length(out, body.len());
    out.extend_from_slice(&body);
}

fn v4_qos(qos: Qos) -> v4::QoS {
    match qos {
        Qos::AtMostOnce => v4::QoS::AtMostOnce,
        Qos::AtLeastOnce => v4::QoS::AtLeastOnce,
        Qos::ExactlyOnce => v4::QoS::ExactlyOnce,
    }
}

fn v5_qos(qos: Qos) -> v5::QoS {
    match qos {
        Qos::AtMostOnce => v5::QoS::AtMostOnce,
        Qos::AtLeastOnce => v5::QoS::AtLeastOnce,
        Qos::ExactlyOnce => v5::QoS::ExactlyOnce,
    }
}

/// What our CONNACK to a client grants on MQTT 5. 3.1.1 has no place for it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Grants {
    /// When the client gave none.
    pub assigned_client_id: Option<String>,
    /// When it differs from what was asked.
    pub session_expiry_s: Option<u32>,
    /// When it differs from what was asked.
    pub server_keepalive_s: Option<u16>,
    /// In flight.
    pub receive_maximum: u16,
    /// Largest packet.
    pub max_packet_bytes: u32,
    /// Subscriptions of every kind; else wildcard, shared and identified ones are declared away.
    pub subscriptions: bool,
}

/// CONNACK that accepts.
///
/// # Errors
/// When it would be longer than MQTT can say.
pub(crate) fn accept(
    out: &mut BytesMut,
    version: MqttVersion,
    session_present: bool,
    grants: Grants,
) -> Result<(), EncodeError> {
    match version {
        MqttVersion::V311 => out.put_slice(&[frame::CONNACK << 4, 2, u8::from(session_present), 0]),
        MqttVersion::V5 => {
            // Left out means available.
            let available = if grants.subscriptions { None } else { Some(0) };
            v5packets::ConnAck {
                session_present,
                code: v5packets::ConnectReturnCode::Success,
                properties: Some(v5packets::ConnAckProperties {
                    session_expiry_interval: grants.session_expiry_s,
                    receive_max: Some(grants.receive_maximum),
                    max_qos: None,
                    retain_available: None,
                    max_packet_size: Some(grants.max_packet_bytes),
                    assigned_client_identifier: grants.assigned_client_id,
                    // Left out means none: Paho Java 1.2.5 says again on the next connection what it had said under an
                    // alias of the one before, is refused, and so on for ever. Who uses them unasked is understood.
                    topic_alias_max: None,
                    reason_string: None,
                    user_properties: Vec::new(),
                    wildcard_subscription_available: available,
                    subscription_identifiers_available: available,
                    shared_subscription_available: available,
                    server_keep_alive: grants.server_keepalive_s,
                    response_information: None,
                    server_reference: None,
                    authentication_method: None,
                    authentication_data: None,
                }),
            }
            .write(out)
            .map_err(|e| EncodeError { packet: "CONNACK", cause: e.to_string() })?;
        }
    }
    Ok(())
}

/// CONNACK that refuses, with an MQTT 5 reason code, which 3.1.1 gets as the nearest of its five.
pub(crate) fn refuse(out: &mut BytesMut, version: MqttVersion, code: u8) {
    match version {
        MqttVersion::V5 => out.put_slice(&[frame::CONNACK << 4, 3, 0, code, 0]),
        MqttVersion::V311 => out.put_slice(&[frame::CONNACK << 4, 2, 0, v4_return_code(code)]),
    }
}

fn v4_return_code(code: u8) -> u8 {
    match code {
        reason::UNSUPPORTED_PROTOCOL_VERSION => 1,
        reason::CLIENT_IDENTIFIER_NOT_VALID => 2,
        reason::BAD_USER_NAME_OR_PASSWORD => 4,
        reason::NOT_AUTHORIZED | reason::BAD_AUTHENTICATION_METHOD => 5,
        _ => 3,
    }
}

/// SUBACK, one code a filter. 3.1.1 knows one refusal only.
pub(crate) fn suback(out: &mut BytesMut, version: MqttVersion, packet_id: u16, codes: &[u8]) {
    out.put_u8(frame::SUBACK << 4);
    match version {
        MqttVersion::V311 => {
            put_length(out, codes.len() + 2);
            out.put_u16(packet_id);
            out.extend(codes.iter().map(|code| if *code < 0x80 { *code } else { 0x80 }));
        }
        MqttVersion::V5 => {
            put_length(out, codes.len() + 3);
            out.put_u16(packet_id);
            out.put_u8(0);
            out.extend_from_slice(codes);
        }
    }
}

/// UNSUBACK for that many filters, all with the same code.
pub(crate) fn unsuback(out: &mut BytesMut, version: MqttVersion, packet_id: u16, filters: usize, code: u8) {
    out.put_u8(frame::UNSUBACK << 4);
    match version {
        MqttVersion::V311 => {
            put_length(out, 2);
            out.put_u16(packet_id);
        }
        MqttVersion::V5 => {
            put_length(out, filters + 3);
            out.put_u16(packet_id);
            out.put_u8(0);
            out.put_bytes(code, filters);
        }
    }
}

/// A variable byte integer. What is written here is answers to packets whose own length was less.
fn put_length(out: &mut BytesMut, length: usize) {
    let mut rest = length;
    loop {
        let low = u8::try_from(rest & 0x7f).unwrap_or(0x7f);
        rest >>= 7;
        if rest == 0 {
            return out.put_u8(low);
        }
        out.put_u8(low | 0x80);
    }
}
