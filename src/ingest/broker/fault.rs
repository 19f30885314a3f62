//! What can go wrong only with a link to a broker, most of it before the connection stands, and what to do about it.

use std::io;

use super::tls_config::TlsConfigError;
use super::tls_error::TlsError;
use crate::ingest::codec::reason;
use crate::settings::MqttVersion;

/// Why a link to a broker failed.
#[derive(Debug, thiserror::Error)]
pub(in crate::ingest) enum BrokerFault {
    #[error("cannot connect: {0}")]
    Unreachable(io::Error),
    #[error("no TCP connection within {0} s")]
    DialTimeout(u64),
    #[error("no TLS handshake within {0} s")]
    TlsTimeout(u64),
    #[error(transparent)]
    TlsError(TlsError),
    #[error(transparent)]
    Files(#[from] TlsConfigError),
    #[error("no CONNACK within {0} s")]
    NoConnAck(u64),
    #[error("CONNECT refused: {} (code {code:#04x}){}", reason::text(*code), reason::words(words.as_deref()))]
    Refused { code: u8, words: Option<String> },
    #[error("the broker does not speak MQTT {refused:?}; the agent tries {next:?}")]
    OtherVersion { refused: MqttVersion, next: MqttVersion },
    #[error("no SUBACK within {0} s")]
    NoSubAck(u64),
    #[error("the broker sent a SUBACK that belongs to no SUBSCRIBE of this gateway")]
    StraySubAck,
}

impl BrokerFault {
    /// The reason of the DISCONNECT that goes out before closing, where there is an MQTT connection to send it on.
    pub(in crate::ingest) fn reason(&self) -> Option<u8> {
        match self {
            Self::StraySubAck => Some(reason::PROTOCOL_ERROR),
            Self::NoSubAck(_) => Some(reason::UNSPECIFIED_ERROR),
            Self::Unreachable(_)
            | Self::DialTimeout(_)
            | Self::TlsTimeout(_)
            | Self::TlsError(_)
            | Self::Files(_)
            | Self::NoConnAck(_)
            | Self::Refused { .. }
            | Self::OtherVersion { .. } => None,
        }
    }

    /// What the operator can do, where trying again will not help.
    pub(in crate::ingest) fn remedy(&self) -> Option<&'static str> {
        match self {
            Self::Refused { code, .. } => match *code {
                2 | reason::CLIENT_IDENTIFIER_NOT_VALID => Some("set another client_id"),
                4 | reason::BAD_USER_NAME_OR_PASSWORD => Some("check username and password_file"),
                5 | reason::NOT_AUTHORIZED => Some("check username and password_file, and the rights at the broker"),
                0x8A => Some("ask the broker's administrator, who has banned this client"),
                reason::BAD_AUTHENTICATION_METHOD => Some(
                    "the broker wants enhanced authentication, which Tidegate \
                     does not have: give this client a user name and password there",
                ),
                _ => None,
            },
            Self::TlsError(tls_error) => tls_error.remedy,
            Self::Files(TlsConfigError::File { .. }) => Some("correct the file; it is read again at the next try"),
            Self::Files(TlsConfigError::NoBundle(_)) => {
                Some("install the system's CA certificates (package ca-certificates), or set tls.ca_file")
            }
            Self::Files(TlsConfigError::Library(_))
            | Self::OtherVersion { .. }
            | Self::Unreachable(_)
            | Self::DialTimeout(_)
            | Self::TlsTimeout(_)
            | Self::NoConnAck(_)
            | Self::NoSubAck(_)
            | Self::StraySubAck => None,
        }
    }

    /// Where to look while it goes on for minutes and there is no remedy, if that is not the broker's log.
    pub(in crate::ingest) fn look_at(&self) -> Option<&'static str> {
        match self {
            Self::Unreachable(_) | Self::DialTimeout(_) => Some(
                "check that the broker runs, that host and port in url are right, and that no firewall blocks \
                     this gateway",
            ),
            Self::TlsTimeout(_) | Self::NoConnAck(_) | Self::NoSubAck(_) => Some(NO_ANSWER),
            Self::TlsError(_)
            | Self::Files(_)
            | Self::Refused { .. }
            | Self::OtherVersion { .. }
            | Self::StraySubAck => None,
        }
    }
}

/// Where to look when a broker falls silent.
pub(in crate::ingest) const NO_ANSWER: &str =
    "the broker accepts connections and does not answer: check its load, its log, and the network between";
