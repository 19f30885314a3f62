//! PUBLISH: the hot path. A packet is a reference to the read buffer while it is looked at; what is kept of it is its own.

use std::sync::Arc;

use bytes::{Buf, Bytes};

use super::error::DecodeError;
use super::frame::Frame;
use super::properties::{self, Place, Property};
use super::reader::Reader;
use crate::event::{MAX_USER_PROPERTIES, Properties, Qos};
use crate::ingest::limits::OWN_BUFFER_BYTES;
use crate::planted::{Bug, planted};
use crate::settings::MqttVersion;

/// A message as received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Publish {
    /// The sender says that it may have sent this before.
    pub dup: bool,
    /// Of this hop.
    pub qos: Qos,
    /// Retained at the broker, or to be retained.
    pub retain: bool,
    /// 0 with QoS 0, never 0 otherwise.
    pub packet_id: u16,
    /// What travels on, if there is any.
    pub properties: Option<Box<Properties>>,
    /// MQTT 5: a number for the topic. The topic may be empty beside it; whoever grants aliases knows what it stands for.
    pub alias: Option<u16>,
    /// The length of the whole application message, where only its first bytes are here.
    pub whole_bytes: Option<u32>,
    /// The topic that an alias stood for.
    renamed: Option<Arc<str>>,
    /// User properties above [`MAX_USER_PROPERTIES`], which `properties` does not hold. What to do about it is for the
    /// session to say: a broker would only send the packet again.
    pub properties_cut: usize,
    /// From the topic on; the payload is at its end.
    bytes: Bytes,
    topic_len: u16,
    payload_at: usize,
}

impl Publish {
    /// The topic name: no wildcards, no NUL, and not empty unless there is an alias for it.
    #[must_use]
    pub(crate) fn topic(&self) -> &str {
        if let Some(name) = &self.renamed {
            return name;
        }
        // Checked when it was decoded.
        let name = self.bytes.get(..usize::from(self.topic_len)).unwrap_or_default();
        std::str::from_utf8(name).unwrap_or_default()
    }

    /// Why it can only be a dead letter, if so. Its size in powers of two: each reason is a line of the log, and there may be
    /// no more of these than a person reads.
    #[must_use]
    pub(crate) fn flaw(&self) -> Option<Box<str>> {
        let kib = self.whole_bytes?.div_ceil(1024).next_power_of_two();
        Some(
            format!(
                "larger than max_packet_bytes: the payload has up to {kib} KiB, and the agent keeps only its beginning"
            )
            .into(),
        )
    }

    /// Keeps the first bytes of the payload, of which `missing` are not here.
    pub(super) fn keep(&mut self, most: usize, missing: usize) {
        self.whole_bytes = u32::try_from(self.payload_len() + missing).ok();
        self.bytes.truncate(self.payload_at + most);
    }

    /// The topic that its alias stands for.
    pub(crate) fn rename(&mut self, topic: Arc<str>) {
        self.renamed = Some(topic);
    }

    /// Length of the application message.
    #[must_use]
    pub(crate) fn payload_len(&self) -> usize {
        self.bytes.len() - self.payload_at
    }

    /// Of topic and payload: tells one message from another under the same packet id. What else is in the packet may
    /// differ in a repeat (the message expiry of MQTT 5 counts down).
    #[must_use]
    pub(crate) fn digest(&self) -> u32 {
        let topic = self.topic();
        let payload = self.bytes.get(self.payload_at..).unwrap_or_default();
        // MQTT writes the length in two bytes.
        let digest = crc32c::crc32c(&u16::try_from(topic.len()).unwrap_or(u16::MAX).to_be_bytes());
        crc32c::crc32c_append(crc32c::crc32c_append(digest, topic.as_bytes()), payload)
    }

    /// The application message. Memory is bounded by what events are charged with, so a small one must not keep a large
    /// read buffer alive: it is copied, which for 100 bytes is nothing beside the commit that follows. A large one is most
    /// of its buffer, and stays a slice of it (custody rule 5).
    #[must_use]
    pub(crate) fn into_payload(mut self) -> Bytes {
        self.bytes.advance(self.payload_at.min(self.bytes.len()));
        if self.bytes.len() < OWN_BUFFER_BYTES && !planted(Bug::PinnedReads) {
            return Bytes::copy_from_slice(&self.bytes);
        }
        self.bytes
    }

    pub(super) fn decode(version: MqttVersion, frame: Frame) -> Result<Self, DecodeError> {
        let flags = frame.flags();
        let Some(qos) = Qos::from_level((flags >> 1) & 3) else { return Err(DecodeError::Malformed("QoS 3")) };
        let mut bytes = frame.body;
        let mut reader = Reader::new(&bytes);
        let topic_len = reader.u16()?;
        let from_topic = reader.remaining();
        check_topic(version, reader.take(usize::from(topic_len))?)?;
        let packet_id = if qos == Qos::AtMostOnce { 0 } else { reader.packet_id()? };
        let Read { travelling: properties, cut: properties_cut, alias } = match version {
            MqttVersion::V311 => Read::default(),
            MqttVersion::V5 => read_properties(&mut reader)?,
        };
        if topic_len == 0 && alias.is_none() {
            return Err(DecodeError::Protocol("PUBLISH without a topic"));
        }
        let payload_at = from_topic - reader.remaining();
        bytes.advance(2);
        Ok(Self {
            dup: flags & 0b1000 != 0,
            qos,
            retain: flags & 1 != 0,
            packet_id,
            properties,
            alias,
            whole_bytes: None,
            renamed: None,
            properties_cut,
            bytes,
            topic_len,
            payload_at,
        })
    }
}

fn check_topic(version: MqttVersion, name: &[u8]) -> Result<(), DecodeError> {
    if name.is_empty() && version == MqttVersion::V311 {
        return Err(DecodeError::Malformed("PUBLISH without a topic"));
    }
    if std::str::from_utf8(name).is_err() {
        return Err(DecodeError::Malformed("topic that is not UTF-8"));
    }
    for byte in name {
        match byte {
            0 => return Err(DecodeError::Malformed("topic with a NUL character")),
            b'+' | b'#' => return Err(DecodeError::TopicName),
            _ => {}
        }
    }
    Ok(())
}

/// The property block of a PUBLISH.
#[derive(Default)]
struct Read {
    travelling: Option<Box<Properties>>,
    /// User properties that are too many.
    cut: usize,
    alias: Option<u16>,
}

fn read_properties(reader: &mut Reader<'_>) -> Result<Read, DecodeError> {
    let Read { mut travelling, mut cut, mut alias } = Read::default();
    properties::walk(reader, Place::Publish, |property| match property {
        Property::PayloadFormat(format) => travelling.get_or_insert_default().payload_format = Some(format),
        Property::MessageExpiry(seconds) => travelling.get_or_insert_default().expiry_s = Some(seconds),
        Property::ResponseTopic(topic) => travelling.get_or_insert_default().response_topic = Some(topic.into()),
        Property::ContentType(name) => travelling.get_or_insert_default().content_type = Some(name.into()),
        // Copied: a slice would keep the read buffer alive for it, and few messages have any.
        Property::CorrelationData(data) => {
            travelling.get_or_insert_default().correlation_data = Some(Bytes::copy_from_slice(data));
        }
        Property::User(name, value) => {
            let user = &mut travelling.get_or_insert_default().user;
            if user.len() < MAX_USER_PROPERTIES {
                user.push((name.into(), value.into()));
            } else {
                cut += 1;
            }
        }
        Property::TopicAlias(number) => alias = Some(number),
        Property::SessionExpiryInterval(_)
        | Property::ServerKeepAlive(_)
        | Property::WillDelayInterval(_)
        | Property::ReasonString(_)
        | Property::ReceiveMaximum(_)
        | Property::MaximumPacketSize(_)
        | Property::AuthenticationMethod
        | Property::Other => {}
    })?;
    if alias == Some(0) { Err(DecodeError::TopicAlias) } else { Ok(Read { travelling, cut, alias }) }
}
