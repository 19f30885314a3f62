//! How a connection to a broker ends. What happens next is the same each time: back off and connect again; nothing is
//! deleted. The cases differ in what is said to the broker and to the operator.

use super::distrust::Distrust;
use super::trust::Unusable;
use crate::config::MqttVersion;
use crate::ingest::codec::encode::EncodeError;
use crate::ingest::codec::{DecodeError, reason};

/// Why it ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum Ended {
    #[error("stop was asked for")]
    Asked,
    #[error("the buffer has stopped")]
    BufferStopped,
    #[error("cannot connect: {0}")]
    Unreachable(std::io::Error),
    #[error("no TCP connection within {0} s")]
    DialTimeout(u64),
    #[error("no TLS handshake within {0} s")]
    HandshakeTimeout(u64),
    #[error(transparent)]
    Distrust(Distrust),
    #[error(transparent)]
    Files(#[from] Unusable),
    #[error("no CONNACK within {0} s")]
    NoConnAck(u64),
    #[error("the broker closed the connection")]
    Closed,
    #[error("the connection broke: {0}")]
    Broke(std::io::Error),
    #[error("nothing heard for 1.5 times the keepalive")]
    Silent,
    #[error("CONNECT refused: {} (code {code:#04x}){}", reason::text(*code), in_words(words.as_deref()))]
    Refused { code: u8, words: Option<String> },
    #[error("the broker does not speak MQTT {refused:?}; {next:?} is next")]
    OtherVersion { refused: MqttVersion, next: MqttVersion },
    #[error("the broker disconnected us: {} (code {code:#04x}){}", reason::text(*code), in_words(words.as_deref()))]
    Told { code: u8, words: Option<String> },
    #[error("{error}")]
    Undecodable { error: DecodeError, version: MqttVersion },
    #[error("{packet} while {state}")]
    Unexpected { packet: &'static str, state: &'static str },
    #[error("no SUBACK within {0} s")]
    NoSubAck(u64),
    #[error("SUBACK that fits no SUBSCRIBE of ours")]
    StraySubAck,
    #[error(transparent)]
    Unsendable(#[from] EncodeError),
}

fn in_words(words: Option<&str>) -> String {
    words.map(|words| format!(": {words:?}")).unwrap_or_default()
}

impl Ended {
    /// The reason of the DISCONNECT that goes out before closing, while there is a connection to send it on.
    pub(super) fn farewell(&self) -> Option<u8> {
        match self {
            Self::Asked => Some(reason::SUCCESS),
            Self::Undecodable { error, .. } => Some(error.reason()),
            Self::Unexpected { .. } | Self::StraySubAck => Some(reason::PROTOCOL_ERROR),
            Self::NoSubAck(_) => Some(reason::UNSPECIFIED_ERROR),
            Self::BufferStopped
            | Self::Unreachable(_)
            | Self::DialTimeout(_)
            | Self::HandshakeTimeout(_)
            | Self::Distrust(_)
            | Self::Files(_)
            | Self::NoConnAck(_)
            | Self::Closed
            | Self::Broke(_)
            | Self::Silent
            | Self::Refused { .. }
            | Self::OtherVersion { .. }
            | Self::Told { .. }
            | Self::Unsendable(_) => None,
        }
    }

    /// What the operator can do, where trying again will not help. Decides between WARN and ERROR.
    pub(super) fn remedy(&self) -> Option<&'static str> {
        match self {
            Self::Undecodable { error: DecodeError::TooLarge { .. }, version: MqttVersion::V311 } => Some(
                "raise max_packet_bytes of this [[mqtt]] table: MQTT 3.1.1 cannot tell the broker our limit, so it \
                 sends this message again at every connection, and nothing behind it arrives",
            ),
            Self::Undecodable { error: DecodeError::TooLarge { .. }, version: MqttVersion::V5 } => Some(
                "raise max_packet_bytes of this [[mqtt]] table: the broker was told the limit, and does not keep it",
            ),
            Self::Undecodable { .. } => Some(
                "the broker sends what is not MQTT; a message that comes so three times is put aside; if it goes on, look for \
                 a proxy between",
            ),
            Self::Refused { code, .. } => match *code {
                2 | reason::CLIENT_IDENTIFIER_NOT_VALID => Some("choose another client_id"),
                4 | reason::BAD_USER_NAME_OR_PASSWORD => Some("check username and password_file"),
                5 | reason::NOT_AUTHORIZED => Some("check username and password_file, and the rights at the broker"),
                0x8A => Some("the broker's administrator has banned this client"),
                reason::BAD_AUTHENTICATION_METHOD => Some("the broker wants extended authentication: not spoken here"),
                _ => None,
            },
            Self::Told { code: reason::SESSION_TAKEN_OVER, .. } => {
                Some("give this gateway a client_id of its own: another client connects with the same one")
            }
            Self::Distrust(distrust) => distrust.remedy,
            Self::Files(Unusable::File { .. }) => Some("mend the file; it is read again at the next try"),
            Self::Files(Unusable::NoBundle(_)) => {
                Some("install the system's CA certificates (package ca-certificates), or set tls.ca_file")
            }
            Self::Unsendable(_) => Some("shorten client_id, username, password or the filters"),
            Self::Files(Unusable::Library(_))
            | Self::Told { .. }
            | Self::OtherVersion { .. }
            | Self::Asked
            | Self::BufferStopped
            | Self::Unreachable(_)
            | Self::DialTimeout(_)
            | Self::HandshakeTimeout(_)
            | Self::NoConnAck(_)
            | Self::Closed
            | Self::Broke(_)
            | Self::Silent
            | Self::Unexpected { .. }
            | Self::NoSubAck(_)
            | Self::StraySubAck => None,
        }
    }

    /// Where to look while it goes on for minutes and there is no remedy.
    pub(super) fn look_at(&self) -> &'static str {
        match self {
            Self::Unreachable(_) | Self::DialTimeout(_) => {
                "see whether the broker runs, and whether host and port of url are right and open to this gateway"
            }
            Self::HandshakeTimeout(_) | Self::NoConnAck(_) | Self::NoSubAck(_) | Self::Silent => {
                "the broker takes connections and does not answer: look at its load, its log, and what is between"
            }
            Self::Asked
            | Self::BufferStopped
            | Self::Distrust(_)
            | Self::Files(_)
            | Self::Closed
            | Self::Broke(_)
            | Self::Refused { .. }
            | Self::OtherVersion { .. }
            | Self::Told { .. }
            | Self::Undecodable { .. }
            | Self::Unexpected { .. }
            | Self::StraySubAck
            | Self::Unsendable(_) => {
                "look into the broker's log: it says why it ends the connections of this client_id"
            }
        }
    }
}
