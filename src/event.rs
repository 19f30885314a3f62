//! The words all stages share: what an event is and how it is named.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

/// One reading as it arrived, before the buffer has given it a sequence.
///
/// The payload is opaque: empty and non-UTF-8 payloads are ordinary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Event {
    /// The MQTT topic it was published to; shared, because a sensor repeats its topic all day.
    pub topic: Arc<str>,
    /// The application message, byte for byte.
    pub payload: Bytes,
    /// The QoS of the hop that brought it here.
    pub qos: Qos,
    /// The MQTT retain flag as received.
    pub retain: bool,
    /// The sender's mark that it may have sent this before (MQTT's DUP).
    pub dup: bool,
    /// Wall clock at arrival, milliseconds since 1970 (may be wrong on a device without a clock battery: order is by sequence).
    pub arrived_ms: i64,
    /// Which clock that was, so that a wrong one can be mended at the centre.
    pub clock: Clock,
    /// The line of the ledger that answers for it.
    pub route: RouteId,
    /// Who published it straight to Tidegate. `None` behind a broker, which does not tell.
    pub sender: Option<Arc<Sender>>,
    /// MQTT 5 properties that travel on; `None` for most readings.
    pub properties: Option<Box<Properties>>,
}

/// A client of ours; shared by all that its connection brings.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Sender {
    /// Its client id, by its own word.
    pub client: Arc<str>,
    /// The user whose password it gave; `None` where nobody is asked for one.
    pub user: Option<Arc<str>>,
}

impl Event {
    /// Why this is not what was published, and can only be a dead letter.
    #[must_use]
    pub(crate) fn flaw(&self) -> Option<&str> {
        self.properties.as_ref()?.flaw.as_deref()
    }

    /// Bytes this event is charged with wherever memory is bounded: its contents plus the structs around them.
    #[must_use]
    pub(crate) fn cost_bytes(&self) -> usize {
        let properties = self.properties.as_ref().map_or(0, |p| p.cost_bytes());
        self.topic.len() + self.payload.len() + properties + EVENT_OVERHEAD_BYTES
    }
}

/// `Event` itself (about 120 bytes), its slot in a receipt list and in the chunk being built.
const EVENT_OVERHEAD_BYTES: usize = 160;

/// A user property beside its text: its place in a `Vec` that doubles (two fat pointers, 32 bytes, so up to 64), two
/// allocations of at least 16 bytes each, and a header of librdkafka, which exists when most others do not. On the wire
/// an empty one is 5 bytes.
const USER_PROPERTY_OVERHEAD_BYTES: usize = 120;

/// User properties an event may have. They say where a reading comes from and how to read it: a handful, 30 with a
/// trace context. With the overhead of each, 256 are 30 KB; a packet of 1 MiB could carry 209,000.
pub(crate) const MAX_USER_PROPERTIES: usize = 256;

/// MQTT 5 properties that travel to Kafka as headers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Properties {
    /// MIME type of the payload, by the publisher's word.
    pub content_type: Option<Box<str>>,
    /// Correlation data, opaque.
    pub correlation_data: Option<Bytes>,
    /// Where an answer is expected.
    pub response_topic: Option<Box<str>>,
    /// 1: the payload is UTF-8 text; 0: nothing is said of it.
    pub payload_format: Option<u8>,
    /// Seconds that the message was good for when it came here.
    pub expiry_s: Option<u32>,
    /// Not a property of MQTT: why this is not what was published, and can only be a dead letter.
    pub flaw: Option<Box<str>>,
    /// User properties, in order, repeated names kept.
    pub user: Vec<(Box<str>, Box<str>)>,
}

impl Properties {
    /// Memory they occupy.
    #[must_use]
    pub(crate) fn cost_bytes(&self) -> usize {
        let texts = [&self.content_type, &self.response_topic, &self.flaw];
        let texts = texts.into_iter().flatten().map(|text| text.len()).sum::<usize>();
        let correlation_data = self.correlation_data.as_ref().map_or(0, Bytes::len);
        let user = self.user.iter().map(|(name, value)| name.len() + value.len() + USER_PROPERTY_OVERHEAD_BYTES);
        size_of::<Self>() + texts + correlation_data + user.sum::<usize>()
    }
}

/// Which wall clock: how it stood to the time since boot, and whether it followed a time server.
///
/// As the header `tidegate-clock`: `s` (synchronised) or `u`, the boot, and when that was by this clock:
/// `u:9f1c22ab:1767225600123`. It stays the same until the clock is set, so it compresses to next to nothing, and two
/// records of one boot tell how far the one's clock was from the other's: the difference of their last numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Clock {
    /// The same as long as the machine is not started anew; 0: unknown.
    pub boot: u32,
    /// When the machine was booted, by this clock, in milliseconds since 1970.
    pub booted_ms: i64,
    /// It followed a time server.
    pub synchronised: bool,
}

impl fmt::Display for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { boot, booted_ms, synchronised } = self;
        write!(f, "{}:{boot:08x}:{booted_ms}", if *synchronised { 's' } else { 'u' })
    }
}

/// MQTT quality of service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(clippy::enum_variant_names, reason = "MQTT's own names")]
pub(crate) enum Qos {
    /// At most once: nobody repeats it.
    AtMostOnce,
    /// At least once: PUBACK.
    AtLeastOnce,
    /// Exactly once: PUBREC, PUBREL, PUBCOMP.
    ExactlyOnce,
}

impl Qos {
    /// The number on the wire: 0, 1 or 2.
    #[must_use]
    pub(crate) fn level(self) -> u8 {
        match self {
            Self::AtMostOnce => 0,
            Self::AtLeastOnce => 1,
            Self::ExactlyOnce => 2,
        }
    }

    /// The QoS with that number, if there is one.
    #[must_use]
    pub(crate) fn from_level(level: u8) -> Option<Self> {
        match level {
            0 => Some(Self::AtMostOnce),
            1 => Some(Self::AtLeastOnce),
            2 => Some(Self::ExactlyOnce),
            _ => None,
        }
    }
}

/// Position of an event in its buffer: strictly increasing from 1, contiguous, never reused.
///
/// `buffer id:sequence` is the event's id for ever, in the Kafka header `tidegate-id`.
pub(crate) type Sequence = u64;

/// A line of the ledger. Ids are given out by the buffer and stay the same as long as the buffer lives,
/// whatever happens to the order of `[[route]]` tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RouteId(pub u16);

impl RouteId {
    /// Events that no `[[route]]` matched when they arrived.
    pub const UNROUTED: Self = Self(0);
}

impl fmt::Display for RouteId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// An event that the buffer holds, under the sequence it has for ever.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stored {
    /// Its place in the buffer.
    pub sequence: Sequence,
    /// What arrived.
    pub event: Event,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_property_is_charged_with_the_memory_it_takes_and_not_with_its_bytes_on_the_wire() {
        let event = |properties| Event {
            topic: "t".into(),
            payload: Bytes::new(),
            qos: Qos::AtMostOnce,
            retain: false,
            dup: false,
            arrived_ms: 0,
            clock: Clock::default(),
            route: RouteId::UNROUTED,
            sender: None,
            properties: Some(Box::new(Properties {
                user: vec![("".into(), "".into()); properties],
                ..Properties::default()
            })),
        };
        let one = event(2).cost_bytes() - event(1).cost_bytes();
        // The slot twice, because the vector doubles, and two small allocations.
        assert!(one >= 2 * size_of::<(Box<str>, Box<str>)>() + 2 * 16, "{one}");
    }
}
