//! Packets out of bytes.

use super::{Connect, Message, Packet, Property, Version};
use crate::{Outcome, trouble};

/// The packet with that first byte and what follows its length.
pub(super) fn packet(first: u8, body: &[u8], version: Version) -> Outcome<Packet> {
    let body = &mut Reader { rest: body };
    Ok(match first >> 4 {
        1 => Packet::Connect(parse_connect(body, version)?),
        2 => {
            let session_present = body.byte()? & 1 == 1;
            let code = body.byte()?;
            Packet::ConnAck { session_present, code, properties: body.properties(version)? }
        }
        3 => {
            let qos = first >> 1 & 3;
            let topic = body.text()?;
            let id = if qos > 0 { body.two()? } else { 0 };
            let properties = body.properties(version)?;
            let message = Message { topic, payload: body.rest.to_vec(), qos, retain: first & 1 == 1, properties };
            Packet::Publish { message, id, dup: first & 8 == 8 }
        }
        4 => Packet::PubAck { id: body.two()?, reason: body.last_byte() },
        5 => Packet::PubRec { id: body.two()?, reason: body.last_byte() },
        6 => Packet::PubRel { id: body.two()?, reason: body.last_byte() },
        7 => Packet::PubComp { id: body.two()?, reason: body.last_byte() },
        8 => {
            let id = body.two()?;
            body.properties(version)?;
            let mut filters = Vec::new();
            while !body.rest.is_empty() {
                filters.push((body.text()?, body.byte()?));
            }
            Packet::Subscribe { id, filters }
        }
        9 => {
            let id = body.two()?;
            body.properties(version)?;
            Packet::SubAck { id, codes: body.rest.to_vec() }
        }
        10 => {
            let id = body.two()?;
            body.properties(version)?;
            let mut filters = Vec::new();
            while !body.rest.is_empty() {
                filters.push(body.text()?);
            }
            Packet::Unsubscribe { id, filters }
        }
        11 => {
            let id = body.two()?;
            body.properties(version)?;
            Packet::UnsubAck { id, codes: body.rest.to_vec() }
        }
        12 => Packet::PingReq,
        13 => Packet::PingResp,
        14 => Packet::Disconnect { reason: body.last_byte() },
        _ => return trouble!("packet of type {}", first >> 4),
    })
}

fn parse_connect(body: &mut Reader<'_>, version: Version) -> Outcome<Connect> {
    body.bytes()?; // "MQTT"
    body.byte()?; // the version, known
    let flags = body.byte()?;
    let keep_alive = body.two()?;
    let properties = body.properties(version)?;
    let client_id = body.text()?;
    let will = if flags & 4 == 4 {
        let properties = body.properties(version)?;
        let (topic, payload) = (body.text()?, body.bytes()?.to_vec());
        Some(Message { topic, payload, qos: flags >> 3 & 3, retain: flags & 0x20 != 0, properties })
    } else {
        None
    };
    let username = if flags & 0x80 != 0 { Some(body.text()?) } else { None };
    let password = if flags & 0x40 != 0 { Some(body.text()?) } else { None };
    Ok(Connect { client_id, clean: flags & 2 == 2, keep_alive, username, password, will, properties })
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Outcome<&'a [u8]> {
        match self.rest.split_at_checked(count) {
            Some((taken, rest)) => {
                self.rest = rest;
                Ok(taken)
            }
            None => trouble!("packet too short"),
        }
    }

    fn byte(&mut self) -> Outcome<u8> {
        Ok(self.take(1)?.iter().fold(0, |_, byte| *byte))
    }

    fn two(&mut self) -> Outcome<u16> {
        Ok(self.take(2)?.iter().fold(0, |value, byte| value << 8 | u16::from(*byte)))
    }

    fn four(&mut self) -> Outcome<u32> {
        Ok(self.take(4)?.iter().fold(0, |value, byte| value << 8 | u32::from(*byte)))
    }

    fn variable(&mut self) -> Outcome<u32> {
        let mut value = 0;
        for position in 0..4 {
            let byte = self.byte()?;
            value |= u32::from(byte & 0x7f) << (7 * position);
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        trouble!("variable byte integer of more than four bytes")
    }

    fn bytes(&mut self) -> Outcome<&'a [u8]> {
        let length = self.two()?;
        self.take(usize::from(length))
    }

    fn text(&mut self) -> Outcome<String> {
        Ok(String::from_utf8_lossy(self.bytes()?).into_owned())
    }

    /// The reason code of an answer: absent means 0.
    fn last_byte(&self) -> u8 {
        self.rest.first().copied().unwrap_or_default()
    }

    fn properties(&mut self, version: Version) -> Outcome<Vec<Property>> {
        if version == Version::V311 {
            return Ok(Vec::new());
        }
        let length = self.variable()?;
        let mut block = Reader { rest: self.take(length as usize)? };
        let mut properties = Vec::new();
        while !block.rest.is_empty() {
            let number = block.byte()?;
            properties.push(match number {
                1 | 23 | 25 | 36 | 37 | 40 | 41 | 42 => Property::Byte(number, block.byte()?),
                19 | 33 | 34 | 35 => Property::Two(number, block.two()?),
                2 | 17 | 24 | 39 => Property::Four(number, block.four()?),
                11 => Property::Variable(number, block.variable()?),
                38 => Property::User(block.text()?, block.text()?),
                3 | 8 | 9 | 18 | 21 | 22 | 26 | 28 | 31 => Property::Bytes(number, block.bytes()?.to_vec()),
                _ => return trouble!("property {number}"),
            });
        }
        Ok(properties)
    }
}
