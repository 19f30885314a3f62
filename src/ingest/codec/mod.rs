//! MQTT on the wire: one vocabulary of packets for versions 3.1.1 and 5, for both directions.
//!
//! [`decode`] takes the next packet off the front of a read buffer, the functions of [`encode`] append one to a write buffer.
//! Nothing here knows about sockets or sessions.
//!
//! # What comes from rumqttc, and what does not
//!
//! The packets we *send* that have any size (CONNECT, SUBSCRIBE, CONNACK) are written by rumqttc's codecs. What we
//! *receive* is read here, because a peer may be hostile and rumqttc 0.25.1 reads too trustfully. Found in its source,
//! and each kept away by a test below or in `codec/tests.rs`:
//! * MQTT 5 DISCONNECT without properties is refused when read (`E0 00`) and written with a wrong length (`E0 01 82 00`);
//! * two subscription identifiers in a PUBLISH shift the end of the properties: property bytes turn up in the payload;
//! * a property block may run past its announced length, and single properties may come twice;
//! * a packet that ends inside a variable byte integer reports "more bytes needed" after it has been consumed;
//! * reserved flags, packet id 0, NUL and wildcards in topic names and bytes behind the end are not looked at;
//! * a password that is not UTF-8 (legal) is refused, and an empty user name is taken for none;
//! * CONNECT is written to an absolute offset of the buffer, so it must go to an empty one.
//!
//! # Limits
//!
//! A packet above the given maximum is refused as soon as its length is known, before its bytes arrive. Decoding
//! allocates only what the packet itself carries; a PUBLISH is a slice of the read buffer until its payload is taken.

pub(crate) mod encode;
mod flawed;
mod frame;
mod packets;
mod properties;
mod publish;
mod reader;
#[cfg(test)]
#[expect(clippy::wildcard_enum_match_arm, reason = "a test may panic")]
mod tests;

use bytes::BytesMut;

pub(crate) use self::flawed::Flawed;
use self::frame::Frame;
pub(crate) use self::packets::{Ack, ConnAck, Connect, Disconnect, Subscribe, SubscribeFilter, Unsubscribe, Will};
pub(crate) use self::publish::Publish;
use crate::event::MAX_USER_PROPERTIES;
use crate::settings::MqttVersion;

/// A packet as received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Packet {
    /// First packet of a client.
    Connect(Box<Connect>),
    /// Its answer.
    ConnAck(ConnAck),
    /// A message.
    Publish(Publish),
    /// Answer to QoS 1.
    PubAck(Ack),
    /// First answer to QoS 2.
    PubRec(Ack),
    /// The sender has forgotten the message and releases its packet id.
    PubRel(Ack),
    /// Last answer to QoS 2.
    PubComp(Ack),
    /// Filters wanted.
    Subscribe(Subscribe),
    /// One code a filter.
    SubAck {
        /// Of the SUBSCRIBE.
        packet_id: u16,
        /// Granted QoS, or 0x80 and above for a refusal.
        codes: Vec<u8>,
    },
    /// Filters no longer wanted.
    Unsubscribe(Unsubscribe),
    /// Its answer; the codes (MQTT 5) are of no use to us.
    UnsubAck {
        /// Of the UNSUBSCRIBE.
        packet_id: u16,
    },
    /// Are you there?
    PingReq,
    /// Yes.
    PingResp,
    /// A goodbye.
    Disconnect(Disconnect),
}

impl Packet {
    /// Its name in the standard.
    #[must_use]
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Connect(_) => "CONNECT",
            Self::ConnAck(_) => "CONNACK",
            Self::Publish(_) => "PUBLISH",
            Self::PubAck(_) => "PUBACK",
            Self::PubRec(_) => "PUBREC",
            Self::PubRel(_) => "PUBREL",
            Self::PubComp(_) => "PUBCOMP",
            Self::Subscribe(_) => "SUBSCRIBE",
            Self::SubAck { .. } => "SUBACK",
            Self::Unsubscribe(_) => "UNSUBSCRIBE",
            Self::UnsubAck { .. } => "UNSUBACK",
            Self::PingReq => "PINGREQ",
            Self::PingResp => "PINGRESP",
            Self::Disconnect(_) => "DISCONNECT",
        }
    }
}

/// Bytes that are not a packet we accept. The connection ends; nothing of the packet was used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DecodeError {
    /// Longer than the limit.
    #[error("packet of {bytes} bytes; at most {max} are accepted")]
    TooLarge {
        /// Its length, fixed header included.
        bytes: usize,
        /// The limit.
        max: u32,
    },
    /// Not MQTT.
    #[error("malformed packet: {0}")]
    Malformed(&'static str),
    /// Well formed, and forbidden.
    #[error("protocol error: {0}")]
    Protocol(&'static str),
    /// A topic name with a wildcard.
    #[error("topic name with a wildcard in a PUBLISH")]
    TopicName,
    /// Number 0, or one from a broker, to which we never grant any.
    #[error("topic alias that was not granted")]
    TopicAlias,
    /// Only of a will: a PUBLISH says how many ([`Publish::properties_cut`]).
    #[error("a will with more than {MAX_USER_PROPERTIES} user properties")]
    TooManyProperties,
    /// CONNECT of another version than 3.1, 3.1.1 and 5.
    #[error("CONNECT with protocol level {0}; 3 (MQTT 3.1), 4 (3.1.1) and 5 are spoken")]
    UnsupportedVersion(u8),
}

impl DecodeError {
    /// The MQTT 5 reason code that tells the peer.
    #[must_use]
    pub(crate) fn reason(&self) -> u8 {
        match self {
            Self::TooLarge { .. } => reason::PACKET_TOO_LARGE,
            Self::Malformed(_) => reason::MALFORMED_PACKET,
            Self::Protocol(_) => reason::PROTOCOL_ERROR,
            Self::TopicName => reason::TOPIC_NAME_INVALID,
            Self::TooManyProperties => reason::QUOTA_EXCEEDED,
            Self::TopicAlias => reason::TOPIC_ALIAS_INVALID,
            Self::UnsupportedVersion(_) => reason::UNSUPPORTED_PROTOCOL_VERSION,
        }
    }
}

/// MQTT 5 reason codes that are named in this crate.
pub(crate) mod reason {
    /// Success, and a normal DISCONNECT.
    pub(crate) const SUCCESS: u8 = 0x00;
    /// UNSUBACK: there was none.
    pub(crate) const NO_SUBSCRIPTION_EXISTED: u8 = 0x11;
    /// None of the others.
    pub(crate) const UNSPECIFIED_ERROR: u8 = 0x80;
    /// Bytes that are no packet.
    pub(crate) const MALFORMED_PACKET: u8 = 0x81;
    /// A packet in the wrong place or with forbidden contents.
    pub(crate) const PROTOCOL_ERROR: u8 = 0x82;
    /// Valid, but not for us.
    pub(crate) const IMPLEMENTATION_SPECIFIC_ERROR: u8 = 0x83;
    /// Of CONNECT.
    pub(crate) const UNSUPPORTED_PROTOCOL_VERSION: u8 = 0x84;
    /// Of CONNECT.
    pub(crate) const CLIENT_IDENTIFIER_NOT_VALID: u8 = 0x85;
    /// Of CONNECT.
    pub(crate) const BAD_USER_NAME_OR_PASSWORD: u8 = 0x86;
    /// No right to that.
    pub(crate) const NOT_AUTHORIZED: u8 = 0x87;
    /// Not now.
    pub(crate) const SERVER_UNAVAILABLE: u8 = 0x88;
    /// Try later.
    pub(crate) const SERVER_BUSY: u8 = 0x89;
    /// We go.
    pub(crate) const SERVER_SHUTTING_DOWN: u8 = 0x8B;
    /// Extended authentication is not spoken.
    pub(crate) const BAD_AUTHENTICATION_METHOD: u8 = 0x8C;
    /// Nothing heard for 1.5 times the keepalive.
    pub(crate) const KEEP_ALIVE_TIMEOUT: u8 = 0x8D;
    /// The same client id connected again.
    pub(crate) const SESSION_TAKEN_OVER: u8 = 0x8E;
    /// Of a SUBSCRIBE.
    pub(crate) const TOPIC_FILTER_INVALID: u8 = 0x8F;
    /// Of a PUBLISH.
    pub(crate) const TOPIC_NAME_INVALID: u8 = 0x90;
    /// PUBCOMP to an id we do not know.
    pub(crate) const PACKET_IDENTIFIER_NOT_FOUND: u8 = 0x92;
    /// More unacknowledged messages than allowed.
    pub(crate) const RECEIVE_MAXIMUM_EXCEEDED: u8 = 0x93;
    /// Alias 0, or above the maximum.
    pub(crate) const TOPIC_ALIAS_INVALID: u8 = 0x94;
    /// Above the announced maximum.
    pub(crate) const PACKET_TOO_LARGE: u8 = 0x95;
    /// A limit of ours.
    pub(crate) const QUOTA_EXCEEDED: u8 = 0x97;

    /// The peer's own words beside a code, for logs.
    #[must_use]
    pub(crate) fn words(words: Option<&str>) -> String {
        words.map(|words| format!(": {words:?}")).unwrap_or_default()
    }

    /// What a code means, for logs. `0x01` to `0x05` are read as MQTT 3.1.1 CONNACK codes.
    #[must_use]
    pub(crate) fn text(code: u8) -> &'static str {
        match code {
            SUCCESS => "success",
            0x01 | UNSUPPORTED_PROTOCOL_VERSION => "protocol version not supported",
            0x02 | CLIENT_IDENTIFIER_NOT_VALID => "client id not accepted",
            0x03 | SERVER_UNAVAILABLE => "server unavailable",
            0x04 | BAD_USER_NAME_OR_PASSWORD => "bad user name or password",
            0x05 | NOT_AUTHORIZED => "not authorized",
            NO_SUBSCRIPTION_EXISTED => "no subscription existed",
            UNSPECIFIED_ERROR => "unspecified error",
            MALFORMED_PACKET => "malformed packet",
            PROTOCOL_ERROR => "protocol error",
            IMPLEMENTATION_SPECIFIC_ERROR => "implementation specific error",
            SERVER_BUSY => "server busy",
            0x8A => "banned",
            SERVER_SHUTTING_DOWN => "server shutting down",
            BAD_AUTHENTICATION_METHOD => "bad authentication method",
            KEEP_ALIVE_TIMEOUT => "keepalive timeout",
            SESSION_TAKEN_OVER => "session taken over: another client uses the same client id",
            TOPIC_FILTER_INVALID => "topic filter not valid",
            TOPIC_NAME_INVALID => "topic name not valid",
            0x91 => "packet identifier in use",
            PACKET_IDENTIFIER_NOT_FOUND => "packet identifier not found",
            RECEIVE_MAXIMUM_EXCEEDED => "receive maximum exceeded",
            TOPIC_ALIAS_INVALID => "topic alias not valid",
            PACKET_TOO_LARGE => "packet too large",
            0x96 => "message rate too high",
            QUOTA_EXCEEDED => "quota exceeded",
            0x98 => "administrative action",
            0x99 => "payload format not valid",
            0x9A => "retain not supported",
            0x9B => "QoS not supported",
            0x9C => "use another server",
            0x9D => "server moved",
            0x9E => "shared subscriptions not supported",
            0x9F => "connection rate exceeded",
            0xA0 => "maximum connect time",
            0xA1 => "subscription identifiers not supported",
            0xA2 => "wildcard subscriptions not supported",
            _ => "unknown reason",
        }
    }
}

/// Length of the packet that begins a read buffer, fixed header included, when its first bytes tell.
#[must_use]
pub(crate) fn announced(buffer: &[u8]) -> Option<usize> {
    frame::announced(buffer)
}

/// Takes the next packet off the front of `buffer`. `None`: it is not complete yet, read on.
///
/// # Errors
/// The bytes are not an acceptable packet. The connection cannot go on: the buffer may be in the middle of it.
pub(crate) fn decode(
    version: MqttVersion,
    buffer: &mut BytesMut,
    max_packet_bytes: u32,
) -> Result<Option<Packet>, DecodeError> {
    match Frame::take(buffer, max_packet_bytes)? {
        Some(frame) => packet(version, frame).map(Some),
        None => Ok(None),
    }
}

/// The same, and what can be said of a PUBLISH that was taken off the buffer and is not acceptable.
///
/// # Errors
/// As [`decode`].
pub(crate) fn decode_or_look(
    version: MqttVersion,
    buffer: &mut BytesMut,
    max_packet_bytes: u32,
) -> Result<Option<Packet>, (DecodeError, Option<Flawed>)> {
    let Some(frame) = Frame::take(buffer, max_packet_bytes).map_err(|error| (error, None))? else { return Ok(None) };
    let message = (frame.kind() == frame::PUBLISH).then(|| frame.clone());
    packet(version, frame).map(Some).map_err(|error| (error, message.as_ref().and_then(Flawed::look)))
}

fn packet(version: MqttVersion, frame: Frame) -> Result<Packet, DecodeError> {
    let packet = match frame.kind() {
        frame::CONNECT => Packet::Connect(Box::new(Connect::decode(frame)?)),
        frame::CONNACK => Packet::ConnAck(ConnAck::decode(version, &frame)?),
        frame::PUBLISH => Packet::Publish(Publish::decode(version, frame)?),
        frame::PUBACK => Packet::PubAck(Ack::decode(version, &frame)?),
        frame::PUBREC => Packet::PubRec(Ack::decode(version, &frame)?),
        frame::PUBREL => Packet::PubRel(Ack::decode(version, &frame)?),
        frame::PUBCOMP => Packet::PubComp(Ack::decode(version, &frame)?),
        frame::SUBSCRIBE => Packet::Subscribe(Subscribe::decode(version, &frame)?),
        frame::SUBACK => packets::suback(version, &frame)?,
        frame::UNSUBSCRIBE => Packet::Unsubscribe(Unsubscribe::decode(version, &frame)?),
        frame::UNSUBACK => packets::unsuback(version, &frame)?,
        frame::PINGREQ => packets::empty(&frame, Packet::PingReq)?,
        frame::PINGRESP => packets::empty(&frame, Packet::PingResp)?,
        frame::DISCONNECT => Packet::Disconnect(Disconnect::decode(version, &frame)?),
        _ => return Err(DecodeError::Protocol("AUTH, but no authentication method was agreed")),
    };
    Ok(packet)
}

/// The message of a PUBLISH that [`decode`] refuses for its length, of which the first bytes are there: with no more than
/// `kept` bytes of its payload, and [`Publish::whole_bytes`] to say how many there would be. Nothing is taken off the buffer.
///
/// # Errors
/// It is another packet, or topic and properties are not there as a whole, or not acceptable.
pub(crate) fn decode_beginning(version: MqttVersion, buffer: &[u8], kept: usize) -> Result<Publish, DecodeError> {
    let (frame, missing) =
        frame::beginning_of_publish(buffer).ok_or(DecodeError::Protocol("no beginning of a PUBLISH"))?;
    let mut publish = Publish::decode(version, frame)?;
    publish.keep(kept, missing);
    Ok(publish)
}

/// Is a PUBLISH coming?
#[must_use]
pub(crate) fn is_publish(buffer: &[u8]) -> bool {
    buffer.first().is_some_and(|first| first >> 4 == frame::PUBLISH)
}

/// Takes the first packet of a client off the front of `buffer`; it says which version follows.
///
/// # Errors
/// As [`decode`], and when the first packet is not a CONNECT.
pub(crate) fn decode_connect(buffer: &mut BytesMut, max_packet_bytes: u32) -> Result<Option<Connect>, DecodeError> {
    // A wrong first byte is refused at once: whoever speaks another protocol here need not send a whole "packet".
    if buffer.first().is_some_and(|first| first >> 4 != frame::CONNECT) {
        return Err(DecodeError::Protocol("the first packet is not a CONNECT"));
    }
    Frame::take(buffer, max_packet_bytes)?.map(Connect::decode).transpose()
}
