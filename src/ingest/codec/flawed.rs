//! A PUBLISH whose frame is sound and whose contents are not: what can be said of it all the same.

use bytes::Bytes;

use super::frame::Frame;
use super::reader::Reader;
use crate::event::Qos;

/// A message that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Flawed {
    /// Of this hop.
    pub qos: Qos,
    /// For the answer; 0 with QoS 0.
    pub packet_id: u16,
    /// Its topic as far as it can be read.
    pub topic: String,
    /// All that is behind the fixed header.
    pub bytes: Bytes,
}

impl Flawed {
    /// `None`: not even the packet id can be found.
    pub(super) fn look(frame: &Frame) -> Option<Self> {
        let qos = Qos::from_level((frame.flags() >> 1) & 3)?;
        let mut reader = Reader::new(&frame.body);
        let topic = String::from_utf8_lossy(reader.binary().ok()?).replace('\0', "\u{fffd}");
        let packet_id = if qos == Qos::AtMostOnce { 0 } else { reader.packet_id().ok()? };
        Some(Self { qos, packet_id, topic, bytes: frame.body.clone() })
    }

    /// Tells it from others, though it may come again under another packet id.
    #[must_use]
    pub(crate) fn digest(&self) -> u32 {
        let id = if self.qos == Qos::AtMostOnce { 0 } else { size_of::<u16>() };
        let behind_topic = self.topic_end();
        let (front, rest) = self.bytes.split_at_checked(behind_topic).unwrap_or_default();
        crc32c::crc32c_append(crc32c::crc32c(front), rest.get(id..).unwrap_or_default())
    }

    fn topic_end(&self) -> usize {
        let length = self.bytes.first_chunk().map_or(0, |bytes| u16::from_be_bytes(*bytes));
        usize::from(length) + size_of::<u16>()
    }
}
