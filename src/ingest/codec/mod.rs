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
mod error;
mod flawed;
mod frame;
mod packets;
mod properties;
mod publish;
mod reader;
pub(crate) mod reason;
#[cfg(test)]
#[expect(clippy::wildcard_enum_match_arm, reason = "a test may panic")]
mod tests;

use bytes::BytesMut;

pub(crate) use self::error::DecodeError;
pub(crate) use self::flawed::Flawed;
use self::frame::Frame;
pub(crate) use self::packets::{Ack, ConnAck, Connect, Disconnect, Subscribe, SubscribeFilter, Unsubscribe, Will};
pub(crate) use self::publish::Publish;
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
        frame::SUBACK => {
            let (packet_id, codes) = packets::suback(version, &frame)?;
            Packet::SubAck { packet_id, codes }
        }
        frame::UNSUBSCRIBE => Packet::Unsubscribe(Unsubscribe::decode(version, &frame)?),
        frame::UNSUBACK => Packet::UnsubAck { packet_id: packets::unsuback(version, &frame)? },
        frame::PINGREQ => packets::empty(&frame).map(|()| Packet::PingReq)?,
        frame::PINGRESP => packets::empty(&frame).map(|()| Packet::PingResp)?,
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
