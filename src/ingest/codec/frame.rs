//! The outside of a packet: type, flags, length. All limits are applied here, before a body is looked at.

use bytes::{Buf, Bytes, BytesMut};

use super::error::DecodeError;

pub(super) const CONNECT: u8 = 1;
pub(super) const CONNACK: u8 = 2;
pub(super) const PUBLISH: u8 = 3;
pub(super) const PUBACK: u8 = 4;
pub(super) const PUBREC: u8 = 5;
pub(super) const PUBREL: u8 = 6;
pub(super) const PUBCOMP: u8 = 7;
pub(super) const SUBSCRIBE: u8 = 8;
pub(super) const SUBACK: u8 = 9;
pub(super) const UNSUBSCRIBE: u8 = 10;
pub(super) const UNSUBACK: u8 = 11;
pub(super) const PINGREQ: u8 = 12;
pub(super) const PINGRESP: u8 = 13;
pub(super) const DISCONNECT: u8 = 14;

/// A complete packet, its fixed header taken off.
#[derive(Debug, Clone)]
pub(super) struct Frame {
    first: u8,
    pub(super) body: Bytes,
}

impl Frame {
    /// The next packet, when all its bytes are there.
    pub(super) fn take(buffer: &mut BytesMut, max_bytes: u32) -> Result<Option<Self>, DecodeError> {
        let Some((&first, rest)) = buffer.split_first() else { return Ok(None) };
        check_flags(first)?;
        let Some((remaining, length_bytes)) = remaining_length(rest)? else { return Ok(None) };
        let header = length_bytes + 1;
        let total = header + remaining;
        if u32::try_from(total).map_or(true, |total| total > max_bytes) {
            return Err(DecodeError::TooLarge { bytes: total, max: max_bytes });
        }
        if buffer.len() < total {
            return Ok(None);
        }
        let mut body = buffer.split_to(total).freeze();
        body.advance(header);
        Ok(Some(Self { first, body }))
    }

    pub(super) fn kind(&self) -> u8 {
        self.first >> 4
    }

    /// The lower four bits of the first byte.
    pub(super) fn flags(&self) -> u8 {
        self.first & 0x0f
    }
}

fn check_flags(first: u8) -> Result<(), DecodeError> {
    let wanted = match first >> 4 {
        0 => return Err(DecodeError::Malformed("packet type 0")),
        PUBLISH => return check_publish_flags(first),
        PUBREL | SUBSCRIBE | UNSUBSCRIBE => 0b0010,
        _ => 0,
    };
    if first & 0x0f == wanted { Ok(()) } else { Err(DecodeError::Malformed("reserved flags of the fixed header")) }
}

fn check_publish_flags(first: u8) -> Result<(), DecodeError> {
    match (first & 0b0110, first & 0b1000) {
        (0b0110, _) => Err(DecodeError::Malformed("QoS 3")),
        (0, 0b1000) => Err(DecodeError::Malformed("DUP with QoS 0")),
        _ => Ok(()),
    }
}

/// The beginning of a PUBLISH that is too large to be held: as much of it as is there, and how many bytes are missing.
pub(super) fn beginning_of_publish(bytes: &[u8]) -> Option<(Frame, usize)> {
    let (&first, rest) = bytes.split_first()?;
    let (remaining, length_bytes) = remaining_length(rest).ok()??;
    let there = rest.get(length_bytes..).filter(|_| first >> 4 == PUBLISH)?;
    let missing = remaining.saturating_sub(there.len());
    Some((Frame { first, body: Bytes::copy_from_slice(there) }, missing))
}

/// Length of the packet that begins these bytes, fixed header included, as far as they tell.
pub(super) fn announced(bytes: &[u8]) -> Option<usize> {
    let (_, rest) = bytes.split_first()?;
    let (remaining, length_bytes) = remaining_length(rest).ok()??;
    Some(remaining + length_bytes + 1)
}

/// The variable byte integer and how many bytes it takes; `None` when it is not complete.
fn remaining_length(bytes: &[u8]) -> Result<Option<(usize, usize)>, DecodeError> {
    let mut value = 0_usize;
    for (position, byte) in bytes.iter().take(4).enumerate() {
        // At most 28 bits: position is 0 to 3.
        value |= usize::from(byte & 0x7f) << (position * 7);
        if byte & 0x80 == 0 {
            return Ok(Some((value, position + 1)));
        }
    }
    if bytes.len() >= 4 { Err(DecodeError::Malformed("remaining length of more than 4 bytes")) } else { Ok(None) }
}
