//! MQTT 5 property blocks: walked strictly. A block must end exactly where its length says, hold only what its packet
//! allows, and repeat nothing but user properties (and subscription identifiers in a PUBLISH).

use super::error::DecodeError;
use super::reader::Reader;

/// A property, its name as in the standard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Property<'a> {
    PayloadFormat(u8),
    MessageExpiry(u32),
    ContentType(&'a str),
    ResponseTopic(&'a str),
    CorrelationData(&'a [u8]),
    SessionExpiryInterval(u32),
    ServerKeepAlive(u16),
    WillDelayInterval(u32),
    ReasonString(&'a str),
    ReceiveMaximum(u16),
    TopicAlias(u16),
    User(&'a str, &'a str),
    MaximumPacketSize(u32),
    AuthenticationMethod,
    /// Checked for form, of no use to us.
    Other,
}

/// Where a block stands decides what may be in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Connect,
    Will,
    ConnAck,
    Publish,
    /// PUBACK, PUBREC, PUBREL, PUBCOMP, SUBACK, UNSUBACK.
    Answer,
    Subscribe,
    Unsubscribe,
    Disconnect,
}

const fn set(ids: &[u8]) -> u64 {
    let mut bits = 0;
    let mut rest = ids;
    while let [id, others @ ..] = rest {
        bits |= 1 << *id;
        rest = others;
    }
    bits
}

impl Place {
    /// One bit for each property identifier that may stand here (table 2-4 of the standard).
    const fn allowed(self) -> u64 {
        match self {
            Self::Connect => const { set(&[17, 21, 22, 23, 25, 33, 34, 38, 39]) },
            Self::Will => const { set(&[1, 2, 3, 8, 9, 24, 38]) },
            Self::ConnAck => const { set(&[17, 18, 19, 21, 22, 26, 28, 31, 33, 34, 36, 37, 38, 39, 40, 41, 42]) },
            Self::Publish => const { set(&[1, 2, 3, 8, 9, 11, 35, 38]) },
            Self::Answer => const { set(&[31, 38]) },
            Self::Subscribe => const { set(&[11, 38]) },
            Self::Unsubscribe => const { set(&[38]) },
            Self::Disconnect => const { set(&[17, 28, 31, 38]) },
        }
    }

    const fn may_repeat(self, id: u8) -> bool {
        id == 38 || (id == 11 && matches!(self, Self::Publish))
    }
}

/// Reads the block at the front of `reader` and shows each property to `visit`.
pub(super) fn walk<'a>(
    reader: &mut Reader<'a>,
    place: Place,
    mut visit: impl FnMut(Property<'a>),
) -> Result<(), DecodeError> {
    let Ok(length) = usize::try_from(reader.variable_integer()?) else {
        return Err(DecodeError::Malformed("property length"));
    };
    let mut block = Reader::new(reader.take(length)?);
    let mut seen = 0_u64;
    while !block.is_empty() {
        let id = block.u8()?;
        // Identifiers end at 42; anything above has no bit.
        let bit = 1_u64.checked_shl(u32::from(id)).unwrap_or(0);
        if place.allowed() & bit == 0 {
            return Err(DecodeError::Malformed("property that may not stand there"));
        }
        if seen & bit != 0 && !place.may_repeat(id) {
            return Err(DecodeError::Protocol("property given twice"));
        }
        seen |= bit;
        visit(one(&mut block, id)?);
    }
    Ok(())
}

/// The same for a block of which nothing is of use: it is still checked.
pub(super) fn skip(reader: &mut Reader<'_>, place: Place) -> Result<(), DecodeError> {
    walk(reader, place, |_| ())
}

fn one<'a>(block: &mut Reader<'a>, id: u8) -> Result<Property<'a>, DecodeError> {
    Ok(match id {
        // payload format; request problem information, request response information, maximum QoS, retain available,
        // wildcard, subscription identifier and shared subscription available: all 0 or 1
        1 | 23 | 25 | 36 | 37 | 40 | 41 | 42 => match block.u8()? {
            format @ 0..=1 if id == 1 => Property::PayloadFormat(format),
            0..=1 => Property::Other,
            _ => return Err(DecodeError::Protocol("property that is neither 0 nor 1")),
        },
        2 => Property::MessageExpiry(block.u32()?),
        3 => Property::ContentType(block.string()?),
        8 => Property::ResponseTopic(block.string()?),
        18 | 26 | 28 => block.string().map(|_| Property::Other)?,
        9 => Property::CorrelationData(block.binary()?),
        11 => match block.variable_integer()? {
            0 => return Err(DecodeError::Protocol("subscription identifier 0")),
            _ => Property::Other,
        },
        17 => Property::SessionExpiryInterval(block.u32()?),
        19 => Property::ServerKeepAlive(block.u16()?),
        21 => block.string().map(|_| Property::AuthenticationMethod)?,
        22 => block.binary().map(|_| Property::Other)?,
        24 => Property::WillDelayInterval(block.u32()?),
        31 => Property::ReasonString(block.string()?),
        33 => match block.u16()? {
            0 => return Err(DecodeError::Protocol("receive maximum 0")),
            maximum => Property::ReceiveMaximum(maximum),
        },
        34 => block.u16().map(|_| Property::Other)?,
        35 => Property::TopicAlias(block.u16()?),
        38 => Property::User(block.string()?, block.string()?),
        39 => match block.u32()? {
            0 => return Err(DecodeError::Protocol("maximum packet size 0")),
            maximum => Property::MaximumPacketSize(maximum),
        },
        _ => return Err(DecodeError::Malformed("unknown property")),
    })
}
