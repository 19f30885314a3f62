//! The packets that are not messages, read strictly.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use super::error::DecodeError;
use super::frame::Frame;
use super::properties::{self, Place, Property};
use super::reader::Reader;
use super::reason;
use crate::event::{MAX_USER_PROPERTIES, Properties, Qos, Sender};
use crate::settings::{MqttVersion, Secret};

/// CONNECT.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Connect {
    /// Decided by this packet for the whole connection.
    pub version: MqttVersion,
    /// May be empty: the server gives one out (MQTT 5) or the session is a clean one (3.1.1).
    pub client_id: String,
    /// Forget what there was.
    pub clean_start: bool,
    /// Seconds, 0 = off.
    pub keepalive_s: u16,
    /// MQTT 5: seconds. `None` on 3.1.1, where a session that is not clean has no end.
    pub session_expiry_s: Option<u32>,
    /// MQTT 5: what the client takes in flight.
    pub receive_maximum: Option<u16>,
    /// MQTT 5: the largest packet the client takes.
    pub max_packet_bytes: Option<u32>,
    /// MQTT 5: the client wants extended authentication, which is not spoken here.
    pub wants_authentication_method: bool,
    /// The client's last message.
    pub will: Option<Will>,
    /// `Some("")` is a name as well.
    pub username: Option<String>,
    /// Any bytes.
    pub password: Option<Bytes>,
}

impl fmt::Debug for Connect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The password stays out, and so does the will's payload.
        f.debug_struct("Connect")
            .field("version", &self.version)
            .field("client_id", &self.client_id)
            .field("clean_start", &self.clean_start)
            .field("keepalive_s", &self.keepalive_s)
            .field("session_expiry_s", &self.session_expiry_s)
            .field("username", &self.username)
            .field("password", &self.password.as_ref().map(|_| Secret::new(String::new())))
            .finish_non_exhaustive()
    }
}

/// The will of a CONNECT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Will {
    /// A topic name, checked.
    pub topic: String,
    /// Opaque.
    pub payload: Bytes,
    /// To be published with.
    pub qos: Qos,
    /// To be published with.
    pub retain: bool,
    /// MQTT 5: wait so long after the connection has ended.
    pub delay_s: u32,
    /// MQTT 5: what travels on.
    pub properties: Option<Box<Properties>>,
    /// Whose it is; the packet alone does not prove it.
    pub sender: Option<Arc<Sender>>,
}

impl Will {
    /// Memory it occupies while it waits.
    #[must_use]
    pub(crate) fn cost_bytes(&self) -> usize {
        // Itself twice: it stands in a map, which doubles.
        let fixed = size_of::<Self>() * 2 + self.topic.len() + self.payload.len();
        fixed + self.properties.as_ref().map_or(0, |properties| properties.cost_bytes())
    }
}

const CLEAN_START: u8 = 0b0000_0010;
const WILL: u8 = 0b0000_0100;
const WILL_QOS_AND_RETAIN: u8 = 0b0011_1000;
const WILL_RETAIN: u8 = 0b0010_0000;
const PASSWORD: u8 = 0b0100_0000;
const USERNAME: u8 = 0b1000_0000;

/// In the protocol level: the client is a bridge, and asks for messages as another broker would. mosquitto's bridges set it
/// by default, and try the same again for ever when they are refused. It changes nothing for one who publishes.
const BRIDGE: u8 = 0b1000_0000;

impl Connect {
    pub(super) fn decode(frame: Frame) -> Result<Self, DecodeError> {
        let body = frame.body;
        let mut reader = Reader::new(&body);
        let version = protocol(&mut reader)?;
        let flags = reader.u8()?;
        check_connect_flags(version, flags)?;
        let mut connect = Self {
            version,
            client_id: String::new(),
            clean_start: flags & CLEAN_START != 0,
            keepalive_s: reader.u16()?,
            session_expiry_s: None,
            receive_maximum: None,
            max_packet_bytes: None,
            wants_authentication_method: false,
            will: None,
            username: None,
            password: None,
        };
        if version == MqttVersion::V5 {
            connect.read_properties(&mut reader)?;
        }
        reader.string()?.clone_into(&mut connect.client_id);
        if flags & WILL != 0 {
            connect.will = Some(Will::read(version, flags, &mut reader)?);
        }
        if flags & USERNAME != 0 {
            connect.username = Some(reader.string()?.to_owned());
        }
        if flags & PASSWORD != 0 {
            connect.password = Some(Bytes::copy_from_slice(reader.binary()?));
        }
        reader.end()?;
        Ok(connect)
    }

    fn read_properties(&mut self, reader: &mut Reader<'_>) -> Result<(), DecodeError> {
        properties::walk(reader, Place::Connect, |property| match property {
            Property::SessionExpiryInterval(seconds) => self.session_expiry_s = Some(seconds),
            Property::ReceiveMaximum(maximum) => self.receive_maximum = Some(maximum),
            Property::MaximumPacketSize(maximum) => self.max_packet_bytes = Some(maximum),
            Property::AuthenticationMethod => self.wants_authentication_method = true,
            Property::PayloadFormat(_)
            | Property::MessageExpiry(_)
            | Property::ResponseTopic(_)
            | Property::ContentType(_)
            | Property::CorrelationData(_)
            | Property::ServerKeepAlive(_)
            | Property::WillDelayInterval(_)
            | Property::ReasonString(_)
            | Property::TopicAlias(_)
            | Property::User(..)
            | Property::Other => {}
        })
    }
}

fn protocol(reader: &mut Reader<'_>) -> Result<MqttVersion, DecodeError> {
    let name = reader.binary()?;
    let level = reader.u8()?;
    match (name, level & !BRIDGE) {
        // MQTT 3.1 has a name and number of its own, and differs from 3.1.1 in nothing that a publisher says.
        (b"MQTT", 4) | (b"MQIsdp", 3) => Ok(MqttVersion::V311),
        (b"MQTT", 5) => Ok(MqttVersion::V5),
        (b"MQTT" | b"MQIsdp", _) => Err(DecodeError::UnsupportedVersion(level)),
        _ => Err(DecodeError::Malformed("CONNECT of another protocol than MQTT")),
    }
}

fn check_connect_flags(version: MqttVersion, flags: u8) -> Result<(), DecodeError> {
    if flags & 1 != 0 {
        return Err(DecodeError::Malformed("reserved flag of CONNECT"));
    }
    if flags & WILL == 0 && flags & WILL_QOS_AND_RETAIN != 0 {
        return Err(DecodeError::Malformed("flags of a will, but no will"));
    }
    if version == MqttVersion::V311 && flags & PASSWORD != 0 && flags & USERNAME == 0 {
        return Err(DecodeError::Malformed("a password, but no user name"));
    }
    Ok(())
}

impl Will {
    fn read(version: MqttVersion, flags: u8, reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let Some(qos) = Qos::from_level((flags >> 3) & 3) else { return Err(DecodeError::Malformed("QoS 3")) };
        let mut delay_s = 0;
        let mut cut = false;
        let mut travelling: Option<Box<Properties>> = None;
        if version == MqttVersion::V5 {
            properties::walk(reader, Place::Will, |property| match property {
                Property::WillDelayInterval(seconds) => delay_s = seconds,
                Property::PayloadFormat(format) => travelling.get_or_insert_default().payload_format = Some(format),
                Property::MessageExpiry(seconds) => travelling.get_or_insert_default().expiry_s = Some(seconds),
                Property::ResponseTopic(topic) => {
                    travelling.get_or_insert_default().response_topic = Some(topic.into());
                }
                Property::ContentType(name) => travelling.get_or_insert_default().content_type = Some(name.into()),
                Property::CorrelationData(data) => {
                    travelling.get_or_insert_default().correlation_data = Some(Bytes::copy_from_slice(data));
                }
                Property::User(name, value) => {
                    let user = &mut travelling.get_or_insert_default().user;
                    if user.len() < MAX_USER_PROPERTIES {
                        user.push((name.into(), value.into()));
                    } else {
                        cut = true;
                    }
                }
                Property::SessionExpiryInterval(_)
                | Property::ServerKeepAlive(_)
                | Property::ReasonString(_)
                | Property::ReceiveMaximum(_)
                | Property::TopicAlias(_)
                | Property::MaximumPacketSize(_)
                | Property::AuthenticationMethod
                | Property::Other => {}
            })?;
        }
        if cut {
            return Err(DecodeError::TooManyProperties);
        }
        let topic = reader.string()?.to_owned();
        if topic.is_empty() {
            return Err(DecodeError::Malformed("will without a topic"));
        }
        if topic.contains(['+', '#']) {
            return Err(DecodeError::TopicName);
        }
        let payload = Bytes::copy_from_slice(reader.binary()?);
        Ok(Self {
            topic,
            payload,
            qos,
            retain: flags & WILL_RETAIN != 0,
            delay_s,
            properties: travelling,
            sender: None,
        })
    }
}

/// CONNACK.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct ConnAck {
    /// The server has kept the session.
    pub session_present: bool,
    /// 0 = accepted; else an MQTT 5 reason code, or a 3.1.1 return code (1 to 5).
    pub reason: u8,
    /// MQTT 5: this keepalive is in force, whatever was asked.
    pub server_keepalive_s: Option<u16>,
    /// MQTT 5: the server keeps the session only so long.
    pub session_expiry_s: Option<u32>,
    /// MQTT 5: the largest packet the server takes.
    pub max_packet_bytes: Option<u32>,
    /// MQTT 5: the reason in words.
    pub reason_string: Option<String>,
}

impl ConnAck {
    pub(super) fn decode(version: MqttVersion, frame: &Frame) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(&frame.body);
        let flags = reader.u8()?;
        let mut ack = Self { session_present: flags & 1 != 0, reason: reader.u8()?, ..Self::default() };
        // A server that only knows 3.1.1 answers an MQTT 5 CONNECT in its own way: two bytes, return code 1.
        if version == MqttVersion::V5 && !reader.is_empty() {
            properties::walk(&mut reader, Place::ConnAck, |property| match property {
                Property::ServerKeepAlive(seconds) => ack.server_keepalive_s = Some(seconds),
                Property::SessionExpiryInterval(seconds) => ack.session_expiry_s = Some(seconds),
                Property::MaximumPacketSize(maximum) => ack.max_packet_bytes = Some(maximum),
                Property::ReasonString(text) => ack.reason_string = Some(text.to_owned()),
                Property::PayloadFormat(_)
                | Property::MessageExpiry(_)
                | Property::ResponseTopic(_)
                | Property::ContentType(_)
                | Property::CorrelationData(_)
                | Property::WillDelayInterval(_)
                | Property::ReceiveMaximum(_)
                | Property::TopicAlias(_)
                | Property::User(..)
                | Property::AuthenticationMethod
                | Property::Other => {}
            })?;
        } else if version == MqttVersion::V5 && ack.reason == reason::SUCCESS {
            return Err(DecodeError::Malformed("CONNACK without properties"));
        }
        reader.end()?;
        if flags > 1 {
            return Err(DecodeError::Malformed("reserved flags of CONNACK"));
        }
        if ack.session_present && ack.reason != reason::SUCCESS {
            return Err(DecodeError::Protocol("CONNACK that refuses, and has a session"));
        }
        Ok(ack)
    }
}

/// PUBACK, PUBREC, PUBREL or PUBCOMP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ack {
    /// Of the message.
    pub packet_id: u16,
    /// MQTT 5; 0 otherwise.
    pub reason: u8,
}

impl Ack {
    pub(super) fn decode(version: MqttVersion, frame: &Frame) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(&frame.body);
        let mut ack = Self { packet_id: reader.packet_id()?, reason: reason::SUCCESS };
        if version == MqttVersion::V5 && !reader.is_empty() {
            ack.reason = reader.u8()?;
            if !reader.is_empty() {
                properties::skip(&mut reader, Place::Answer)?;
            }
        }
        reader.end()?;
        Ok(ack)
    }
}

/// SUBSCRIBE.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Subscribe {
    /// For the SUBACK.
    pub packet_id: u16,
    /// At least one.
    pub filters: Vec<SubscribeFilter>,
}

/// One filter of a SUBSCRIBE. The other options of MQTT 5 are checked for form and of no use here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SubscribeFilter {
    /// As sent; not checked beyond being a string.
    pub filter: String,
    /// Asked for.
    pub qos: Qos,
}

impl Subscribe {
    pub(super) fn decode(version: MqttVersion, frame: &Frame) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(&frame.body);
        let packet_id = reader.packet_id()?;
        let reserved = match version {
            MqttVersion::V311 => 0b1111_1100,
            MqttVersion::V5 => {
                properties::skip(&mut reader, Place::Subscribe)?;
                0b1100_0000
            }
        };
        let mut filters = Vec::new();
        while !reader.is_empty() {
            let filter = reader.string()?.to_owned();
            let options = reader.u8()?;
            if options & reserved != 0 || options & 0b0011_0000 == 0b0011_0000 {
                return Err(DecodeError::Malformed("subscription options"));
            }
            let Some(qos) = Qos::from_level(options & 3) else { return Err(DecodeError::Malformed("QoS 3")) };
            filters.push(SubscribeFilter { filter, qos });
        }
        if filters.is_empty() {
            return Err(DecodeError::Protocol("SUBSCRIBE without a filter"));
        }
        Ok(Self { packet_id, filters })
    }
}

/// UNSUBSCRIBE.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unsubscribe {
    /// For the UNSUBACK.
    pub packet_id: u16,
    /// How many; none of them exists here.
    pub filters: usize,
}

impl Unsubscribe {
    pub(super) fn decode(version: MqttVersion, frame: &Frame) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(&frame.body);
        let packet_id = reader.packet_id()?;
        if version == MqttVersion::V5 {
            properties::skip(&mut reader, Place::Unsubscribe)?;
        }
        let mut filters = 0_usize;
        while !reader.is_empty() {
            reader.string()?;
            filters += 1;
        }
        if filters == 0 {
            return Err(DecodeError::Protocol("UNSUBSCRIBE without a filter"));
        }
        Ok(Self { packet_id, filters })
    }
}

/// Packet id and codes of a SUBACK.
pub(super) fn suback(version: MqttVersion, frame: &Frame) -> Result<(u16, Vec<u8>), DecodeError> {
    let mut reader = Reader::new(&frame.body);
    let packet_id = reader.packet_id()?;
    if version == MqttVersion::V5 {
        properties::skip(&mut reader, Place::Answer)?;
    }
    let codes = reader.rest().to_vec();
    if codes.is_empty() {
        return Err(DecodeError::Malformed("SUBACK without a code"));
    }
    // 3 to 0x7f mean nothing.
    if codes.iter().any(|code| (3..0x80).contains(code)) {
        return Err(DecodeError::Malformed("SUBACK with a code that does not exist"));
    }
    Ok((packet_id, codes))
}

/// Packet id of an UNSUBACK.
pub(super) fn unsuback(version: MqttVersion, frame: &Frame) -> Result<u16, DecodeError> {
    let mut reader = Reader::new(&frame.body);
    let packet_id = reader.packet_id()?;
    match version {
        MqttVersion::V311 => reader.end()?,
        MqttVersion::V5 => properties::skip(&mut reader, Place::Answer)?,
    }
    Ok(packet_id)
}

/// A packet that is nothing but its type.
pub(super) fn empty(frame: &Frame) -> Result<(), DecodeError> {
    Reader::new(&frame.body).end()
}

/// DISCONNECT.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Disconnect {
    /// MQTT 5; 0 otherwise.
    pub reason: u8,
    /// MQTT 5: a client may change its mind.
    pub session_expiry_s: Option<u32>,
    /// MQTT 5: the reason in words.
    pub reason_string: Option<String>,
}

impl Disconnect {
    pub(super) fn decode(version: MqttVersion, frame: &Frame) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(&frame.body);
        let mut disconnect = Self::default();
        if version == MqttVersion::V5 && !reader.is_empty() {
            disconnect.reason = reader.u8()?;
            if !reader.is_empty() {
                properties::walk(&mut reader, Place::Disconnect, |property| match property {
                    Property::SessionExpiryInterval(seconds) => disconnect.session_expiry_s = Some(seconds),
                    Property::ReasonString(text) => disconnect.reason_string = Some(text.to_owned()),
                    Property::PayloadFormat(_)
                    | Property::MessageExpiry(_)
                    | Property::ResponseTopic(_)
                    | Property::ContentType(_)
                    | Property::CorrelationData(_)
                    | Property::ServerKeepAlive(_)
                    | Property::WillDelayInterval(_)
                    | Property::ReceiveMaximum(_)
                    | Property::TopicAlias(_)
                    | Property::User(..)
                    | Property::MaximumPacketSize(_)
                    | Property::AuthenticationMethod
                    | Property::Other => {}
                })?;
            }
        }
        reader.end()?;
        Ok(disconnect)
    }
}
