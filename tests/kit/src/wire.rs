//! MQTT packets, both versions, written for the tests alone: the agent uses another codec, so that a fault in one of
//! them shows. It is no stricter than the tests need: it must be able to write what the standard forbids.

mod read;

use crate::{Outcome, trouble};

/// Protocol version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// 3.1.1
    V311,
    /// 5.0
    V5,
}

impl Version {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V311, Self::V5];

    /// As the configuration writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::V311 => "3.1.1",
            Self::V5 => "5",
        }
    }
}

/// One MQTT 5 property: its number and value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Property {
    /// One byte.
    Byte(u8, u8),
    /// Two bytes.
    Two(u8, u16),
    /// Four bytes.
    Four(u8, u32),
    /// A variable byte integer.
    Variable(u8, u32),
    /// Text or bytes.
    Bytes(u8, Vec<u8>),
    /// A user property.
    User(String, String),
}

/// Property numbers that the tests name.
pub mod property {
    pub const CONTENT_TYPE: u8 = 3;
    pub const RESPONSE_TOPIC: u8 = 8;
    pub const CORRELATION_DATA: u8 = 9;
    pub const SESSION_EXPIRY: u8 = 17;
    pub const SERVER_KEEP_ALIVE: u8 = 19;
    pub const RECEIVE_MAXIMUM: u8 = 33;
    pub const TOPIC_ALIAS: u8 = 35;
    pub const MAXIMUM_PACKET_SIZE: u8 = 39;
}

/// An application message.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Message {
    pub topic: String,
    pub payload: Vec<u8>,
    pub qos: u8,
    pub retain: bool,
    /// Left out in 3.1.1.
    pub properties: Vec<Property>,
}

/// CONNECT.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Connect {
    pub client_id: String,
    /// Clean session or clean start.
    pub clean: bool,
    pub keep_alive: u16,
    pub username: Option<String>,
    pub password: Option<String>,
    pub will: Option<Message>,
    pub properties: Vec<Property>,
}

/// Any packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Packet {
    Connect(Connect),
    ConnAck { session_present: bool, code: u8, properties: Vec<Property> },
    Publish { message: Message, id: u16, dup: bool },
    PubAck { id: u16, reason: u8 },
    PubRec { id: u16, reason: u8 },
    PubRel { id: u16, reason: u8 },
    PubComp { id: u16, reason: u8 },
    Subscribe { id: u16, filters: Vec<(String, u8)> },
    SubAck { id: u16, codes: Vec<u8> },
    Unsubscribe { id: u16, filters: Vec<String> },
    UnsubAck { id: u16, codes: Vec<u8> },
    PingReq,
    PingResp,
    Disconnect { reason: u8 },
}

impl Packet {
    /// Appends the bytes.
    pub fn write(&self, version: Version, out: &mut Vec<u8>) {
        match self {
            Self::Publish { message, id, dup } => write_publish(message, *id, *dup, version, out),
            Self::PubAck { id, reason } => write_answer(0x40, *id, *reason, version, out),
            Self::PubRec { id, reason } => write_answer(0x50, *id, *reason, version, out),
            Self::PubRel { id, reason } => write_answer(0x62, *id, *reason, version, out),
            Self::PubComp { id, reason } => write_answer(0x70, *id, *reason, version, out),
            Self::PingReq => out.extend([0xc0, 0]),
            Self::PingResp => out.extend([0xd0, 0]),
            Self::Disconnect { reason } => match (version, reason) {
                (Version::V311, _) | (Version::V5, 0) => out.extend([0xe0, 0]),
                (Version::V5, reason) => out.extend([0xe0, 1, *reason]),
            },
            Self::Connect(connect) => write_frame(0x10, &connect_body(connect, version), out),
            Self::ConnAck { session_present, code, properties } => {
                let mut body = vec![u8::from(*session_present), *code];
                write_properties(properties, version, &mut body);
                write_frame(0x20, &body, out);
            }
            Self::Subscribe { id, filters } => {
                let mut body = id.to_be_bytes().to_vec();
                write_properties(&[], version, &mut body);
                for (filter, qos) in filters {
                    write_bytes(filter.as_bytes(), &mut body);
                    body.push(*qos);
                }
                write_frame(0x82, &body, out);
            }
            Self::Unsubscribe { id, filters } => {
                let mut body = id.to_be_bytes().to_vec();
                write_properties(&[], version, &mut body);
                for filter in filters {
                    write_bytes(filter.as_bytes(), &mut body);
                }
                write_frame(0xa2, &body, out);
            }
            Self::SubAck { id, codes } => {
                let mut body = id.to_be_bytes().to_vec();
                write_properties(&[], version, &mut body);
                body.extend(codes);
                write_frame(0x90, &body, out);
            }
            Self::UnsubAck { id, codes } => {
                let mut body = id.to_be_bytes().to_vec();
                write_properties(&[], version, &mut body);
                if version == Version::V5 {
                    body.extend(codes);
                }
                write_frame(0xb0, &body, out);
            }
        }
    }

    /// Takes one packet from the front, if it is there as a whole.
    pub fn read(version: Version, bytes: &mut Vec<u8>) -> Outcome<Option<Self>> {
        let Some((packet, length)) = Self::peek(version, bytes)? else { return Ok(None) };
        bytes.drain(..length);
        Ok(Some(packet))
    }

    /// The packet at the front and its length, if it is there as a whole.
    pub fn peek(version: Version, bytes: &[u8]) -> Outcome<Option<(Self, usize)>> {
        let Some((header, length)) = frame(bytes)? else { return Ok(None) };
        let (Some(first), Some(body)) = (bytes.first(), bytes.get(header..header + length)) else { return Ok(None) };
        Ok(Some((read::packet(*first, body, version)?, header + length)))
    }
}

/// The version that a CONNECT asks for, once it is there as a whole.
pub fn version_asked(bytes: &[u8]) -> Outcome<Option<Version>> {
    let Some((header, length)) = frame(bytes)? else { return Ok(None) };
    if bytes.len() < header + length {
        return Ok(None);
    }
    match (bytes.first(), bytes.get(header + 6)) {
        (Some(0x10), Some(4)) => Ok(Some(Version::V311)),
        (Some(0x10), Some(5)) => Ok(Some(Version::V5)),
        _ => trouble!("not a CONNECT: {bytes:02x?}"),
    }
}

/// The PUBLISH as bytes; for senders of many.
pub fn write_publish(message: &Message, id: u16, dup: bool, version: Version, out: &mut Vec<u8>) {
    let mut properties = Vec::new();
    write_properties(&message.properties, version, &mut properties);
    let id_bytes = if message.qos > 0 { 2 } else { 0 };
    let length = 2 + message.topic.len() + id_bytes + properties.len() + message.payload.len();
    out.push(0x30 | u8::from(dup) << 3 | message.qos << 1 | u8::from(message.retain));
    write_length(length, out);
    write_bytes(message.topic.as_bytes(), out);
    if message.qos > 0 {
        out.extend(id.to_be_bytes());
    }
    out.extend(properties);
    out.extend_from_slice(&message.payload);
}

/// Fixed header (its length) and the length of what follows.
fn frame(bytes: &[u8]) -> Outcome<Option<(usize, usize)>> {
    let mut length = 0usize;
    for position in 0..4 {
        let Some(byte) = bytes.get(position + 1) else { return Ok(None) };
        length |= usize::from(byte & 0x7f) << (7 * position);
        if byte & 0x80 == 0 {
            return Ok(Some((position + 2, length)));
        }
    }
    trouble!("remaining length of more than four bytes")
}

fn write_frame(first: u8, body: &[u8], out: &mut Vec<u8>) {
    out.push(first);
    write_length(body.len(), out);
    out.extend_from_slice(body);
}

fn write_length(mut length: usize, out: &mut Vec<u8>) {
    loop {
        let low = (length & 0x7f) as u8;
        length >>= 7;
        out.push(if length > 0 { low | 0x80 } else { low });
        if length == 0 {
            return;
        }
    }
}

fn write_answer(first: u8, id: u16, reason: u8, version: Version, out: &mut Vec<u8>) {
    let [high, low] = id.to_be_bytes();
    if version == Version::V5 && reason != 0 {
        out.extend([first, 3, high, low, reason]);
    } else {
        out.extend([first, 2, high, low]);
    }
}

fn write_bytes(bytes: &[u8], out: &mut Vec<u8>) {
    out.extend((bytes.len() as u16).to_be_bytes());
    out.extend_from_slice(bytes);
}

fn write_properties(properties: &[Property], version: Version, out: &mut Vec<u8>) {
    if version == Version::V311 {
        return;
    }
    let mut body = Vec::new();
    for property in properties {
        match property {
            Property::Byte(number, value) => body.extend([*number, *value]),
            Property::Two(number, value) => {
                body.push(*number);
                body.extend(value.to_be_bytes());
            }
            Property::Four(number, value) => {
                body.push(*number);
                body.extend(value.to_be_bytes());
            }
            Property::Variable(number, value) => {
                body.push(*number);
                write_length(*value as usize, &mut body);
            }
            Property::Bytes(number, value) => {
                body.push(*number);
                write_bytes(value, &mut body);
            }
            Property::User(name, value) => {
                body.push(38);
                write_bytes(name.as_bytes(), &mut body);
                write_bytes(value.as_bytes(), &mut body);
            }
        }
    }
    write_length(body.len(), out);
    out.extend(body);
}

fn connect_body(connect: &Connect, version: Version) -> Vec<u8> {
    let mut body = Vec::new();
    write_bytes(b"MQTT", &mut body);
    body.push(if version == Version::V5 { 5 } else { 4 });
    let mut flags = u8::from(connect.clean) << 1;
    if let Some(will) = &connect.will {
        flags |= 0x04 | will.qos << 3 | u8::from(will.retain) << 5;
    }
    flags |= u8::from(connect.password.is_some()) << 6 | u8::from(connect.username.is_some()) << 7;
    body.push(flags);
    body.extend(connect.keep_alive.to_be_bytes());
    write_properties(&connect.properties, version, &mut body);
    write_bytes(connect.client_id.as_bytes(), &mut body);
    if let Some(will) = &connect.will {
        write_properties(&will.properties, version, &mut body);
        write_bytes(will.topic.as_bytes(), &mut body);
        write_bytes(&will.payload, &mut body);
    }
    for text in [&connect.username, &connect.password].into_iter().flatten() {
        write_bytes(text.as_bytes(), &mut body);
    }
    body
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples() -> Vec<Packet> {
        let message = Message { topic: "a/b".into(), payload: vec![0xff, 0], qos: 2, retain: true, properties: vec![] };
        let connect = Connect {
            client_id: "c".into(),
            clean: true,
            keep_alive: 30,
            username: Some("u".into()),
            password: Some("p".into()),
            will: Some(message.clone()),
            properties: vec![],
        };
        vec![
            Packet::Connect(connect),
            Packet::ConnAck { session_present: true, code: 0, properties: vec![] },
            Packet::Publish { message: message.clone(), id: 7, dup: true },
            Packet::Publish { message: Message { payload: vec![1; 70_000], ..message }, id: 65_535, dup: false },
            Packet::PubAck { id: 1, reason: 0 },
            Packet::PubRec { id: 2, reason: 0 },
            Packet::PubRel { id: 3, reason: 0 },
            Packet::PubComp { id: 4, reason: 0 },
            Packet::Subscribe { id: 5, filters: vec![("#".into(), 1), ("$share/g/x".into(), 2)] },
            Packet::SubAck { id: 5, codes: vec![1, 128] },
            Packet::Unsubscribe { id: 6, filters: vec!["#".into()] },
            Packet::PingReq,
            Packet::PingResp,
            Packet::Disconnect { reason: 0 },
        ]
    }

    #[test]
    fn every_packet_reads_back_as_it_was_written_in_both_versions_byte_by_byte() {
        for version in Version::ALL {
            for packet in samples() {
                let mut bytes = Vec::new();
                packet.write(version, &mut bytes);
                let short = bytes.len() - 1;
                let mut part: Vec<u8> = bytes[..short].to_vec();
                assert_eq!(Packet::read(version, &mut part).unwrap(), None, "{packet:?}");
                part.push(bytes[short]);
                assert_eq!(Packet::read(version, &mut part).unwrap(), Some(packet));
                assert!(part.is_empty());
            }
        }
    }

    #[test]
    fn properties_and_reasons_travel_in_mqtt_5() {
        let message = Message {
            topic: "t".into(),
            qos: 1,
            properties: vec![
                Property::Bytes(property::CONTENT_TYPE, b"text/plain".to_vec()),
                Property::Bytes(property::CORRELATION_DATA, vec![0, 255]),
                Property::User("k".into(), "v".into()),
                Property::Variable(11, 300),
                Property::Two(property::TOPIC_ALIAS, 4),
                Property::Four(2, 9),
                Property::Byte(1, 1),
            ],
            ..Message::default()
        };
        for packet in [
            Packet::Publish { message, id: 3, dup: false },
            Packet::PubAck { id: 9, reason: 0x87 },
            Packet::Disconnect { reason: 0x8e },
        ] {
            let mut bytes = Vec::new();
            packet.write(Version::V5, &mut bytes);
            assert_eq!(Packet::read(Version::V5, &mut bytes).unwrap(), Some(packet));
        }
    }

    #[test]
    fn the_bytes_are_those_of_the_standard() {
        let mut bytes = Vec::new();
        let message = Message { topic: "a/b".into(), payload: b"x".to_vec(), qos: 1, ..Message::default() };
        write_publish(&message, 10, false, Version::V311, &mut bytes);
        assert_eq!(bytes, [0x32, 8, 0, 3, b'a', b'/', b'b', 0, 10, b'x']);
    }
}
