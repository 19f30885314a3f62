//! Why bytes are not a packet.

use super::reason;
use crate::event::MAX_USER_PROPERTIES;

/// Bytes that are not a packet we accept. The connection ends; nothing of the packet was used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DecodeError {
    /// Longer than the limit.
    #[error("a packet of {bytes} bytes; at most {max} are allowed")]
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
    #[error("a PUBLISH to a topic with a wildcard")]
    TopicName,
    /// Number 0, or one from a broker, to which we never grant any.
    #[error("a topic alias that was not granted")]
    TopicAlias,
    /// Only of a will: a PUBLISH says how many ([`Publish::properties_cut`]).
    #[error("a will with more than {MAX_USER_PROPERTIES} user properties")]
    TooManyProperties,
    /// CONNECT of another version than 3.1, 3.1.1 and 5.
    #[error("a CONNECT with protocol level {0}; the agent speaks 3 (MQTT 3.1), 4 (3.1.1) and 5")]
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
