//! Why a connection ends, in both roles: what the peer is told, what becomes of its will, and what the operator reads.
//!
//! | ends because | a broker is told | a client is told | the client's will |
//! |---|---|---|---|
//! | we stop | DISCONNECT 0x00 | DISCONNECT 0x8B | kept back: it is not the client that failed |
//! | the buffer has stopped | nothing | DISCONNECT 0x8B | kept back |
//! | the peer says DISCONNECT | nothing | nothing | void, or published if it asks for that |
//! | the peer is gone | nothing | nothing | published |
//! | the peer is silent | nothing | DISCONNECT 0x8D | published |
//! | the peer breaks the rules | DISCONNECT, the fault's code | the same | published |
//! | it never began ([`BrokerFault`], [`Close::refused`]) | nothing | CONNACK, if it has a code | has none |
//!
//! A client of 3.1.1 is told nothing once it is in: its version has no word for it. At a broker the next step is the same
//! each time: back off and connect again. Nothing is ever deleted.

use std::borrow::Cow;
use std::io;
use std::time::Duration;

use super::broker::fault::{BrokerFault, NO_ANSWER};
use super::codec::encode::EncodeError;
use super::codec::{DecodeError, reason};
use super::limits::{FAULT_TIMEOUT, STOP_TIMEOUT};
use crate::planted::{Bug, planted};
use crate::settings::MqttVersion;

/// Why a connection ends.
#[derive(Debug, thiserror::Error)]
pub(super) enum Close {
    #[error("the agent stops")]
    Stopping,
    #[error("the buffer has stopped")]
    BufferStopped,
    /// The peer's DISCONNECT.
    #[error("the peer disconnected: {} (code {code:#04x}){}", reason::text(*code), reason::words(words.as_deref()))]
    Disconnected { code: u8, words: Option<String> },
    /// Without a DISCONNECT.
    #[error("the peer closed the connection without DISCONNECT")]
    Closed,
    #[error("the connection broke: {0}")]
    Broke(io::Error),
    #[error("the peer sent nothing for 1.5 times the keepalive")]
    Silent,
    #[error("{error}")]
    Undecodable { error: DecodeError, version: MqttVersion },
    #[error("{packet} while {state}")]
    Unexpected { packet: &'static str, state: &'static str },
    #[error(transparent)]
    Unsendable(#[from] EncodeError),
    /// Only on a link to a broker.
    #[error(transparent)]
    Broker(#[from] BrokerFault),
    /// Only on a connection of a client's.
    #[error("{}: {}", .0.cause, .0.detail)]
    Client(ClientFault),
}

/// What only a client can bring on itself, or the place that it has at the listener.
#[derive(Debug)]
pub(super) struct ClientFault {
    kind: Kind,
    cause: &'static str,
    detail: Cow<'static, str>,
    reason: Option<u8>,
}

/// Who is at the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Peer {
    Broker,
    Client,
}

/// Sorted by what happens next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// The client said goodbye: its will is void. Not worth a word.
    Goodbye,
    /// The client has gone, or its place was taken by itself: its will is published. Everyday life in the field.
    Gone,
    /// It was never let in.
    Refused,
    /// It broke the rules: its will is published, and the operator hears of it.
    Broke,
    /// We go: its will is kept back, because it is not the client that failed.
    Stopped,
}

/// The ends that only a client meets.
impl Close {
    /// Another connection of the same client.
    pub(super) fn taken_over() -> Self {
        Self::of_client(
            Kind::Gone,
            Some(reason::SESSION_TAKEN_OVER),
            "the client connected again: the agent closed its older connection",
            "",
        )
    }

    /// It looked whether the port is open.
    pub(super) fn nothing_said() -> Self {
        Self::of_client(Kind::Goodbye, None, "the client connected and sent nothing", "")
    }

    pub(super) fn gone_before_connect(detail: impl Into<Cow<'static, str>>) -> Self {
        Self::of_client(Kind::Gone, None, GONE, detail)
    }

    /// Not let in yet, and all sockets are taken.
    pub(super) fn displaced_stranger() -> Self {
        Self::refused(None, "all sockets are in use: a connection without a CONNECT yet was closed for a newer one", "")
    }

    /// All places are taken, and its address has the most.
    pub(super) fn gave_way() -> Self {
        Self::broke(
            reason::SERVER_BUSY,
            "max_connections reached: the client was closed for one of another address, \
             because its own address has the most connections",
            "",
        )
    }

    /// CONNECT was fine, and there is no room to write the session down.
    pub(super) fn no_room() -> Self {
        Self::refused(
            Some(reason::SERVER_UNAVAILABLE),
            "the buffer has no room, so the client was refused; it must connect again",
            "",
        )
    }

    /// A large packet that holds memory.
    pub(super) fn too_slow(arrived: usize, announced: usize) -> Self {
        let detail = format!("{arrived} of {announced} bytes arrived");
        Self::broke(reason::QUOTA_EXCEEDED, "the client sent a large packet too slowly", detail)
    }

    pub(super) fn refused(reason: Option<u8>, cause: &'static str, detail: impl Into<Cow<'static, str>>) -> Self {
        Self::of_client(Kind::Refused, reason, cause, detail)
    }

    pub(super) fn broke(reason: u8, cause: &'static str, detail: impl Into<Cow<'static, str>>) -> Self {
        Self::of_client(Kind::Broke, Some(reason), cause, detail)
    }

    fn of_client(kind: Kind, reason: Option<u8>, cause: &'static str, detail: impl Into<Cow<'static, str>>) -> Self {
        Self::Client(ClientFault { kind, cause, detail: detail.into(), reason })
    }
}

const GONE: &str = "the client closed the connection without DISCONNECT";
const BROKE_PROTOCOL: &str = "the client broke the MQTT protocol";

impl Close {
    /// What happens next.
    pub(super) fn kind(&self) -> Kind {
        match self {
            Self::Stopping | Self::BufferStopped => Kind::Stopped,
            Self::Disconnected { code: reason::SUCCESS, .. } => Kind::Goodbye,
            Self::Disconnected { .. } | Self::Closed | Self::Broke(_) | Self::Silent | Self::Broker(_) => Kind::Gone,
            Self::Undecodable { .. } | Self::Unexpected { .. } | Self::Unsendable(_) => Kind::Broke,
            Self::Client(fault) => fault.kind,
        }
    }

    /// The code that the peer is told, in DISCONNECT or (a client that is not in yet) CONNACK; `None`: it is told nothing.
    pub(super) fn reason(&self, to: Peer) -> Option<u8> {
        match (self, to) {
            (Self::Stopping, Peer::Broker) => Some(reason::SUCCESS),
            (Self::Stopping | Self::BufferStopped, Peer::Client) => Some(reason::SERVER_SHUTTING_DOWN),
            (Self::Silent, Peer::Client) => Some(reason::KEEP_ALIVE_TIMEOUT),
            (Self::Undecodable { error, .. }, _) => Some(error.reason()),
            (Self::Unexpected { .. }, _) => Some(reason::PROTOCOL_ERROR),
            (Self::Unsendable(_), Peer::Client) => Some(reason::UNSPECIFIED_ERROR),
            (Self::Broker(fault), _) => fault.reason(),
            (Self::Client(fault), _) => fault.reason,
            (Self::BufferStopped | Self::Silent | Self::Unsendable(_), Peer::Broker)
            | (Self::Disconnected { .. } | Self::Closed | Self::Broke(_), _) => None,
        }
    }

    /// How long commits under way may still be answered before the connection is closed. Nothing may follow what a client is
    /// told; a broker is told last.
    pub(super) fn time_for_answers(&self, to: Peer) -> Duration {
        match (self, to) {
            (Self::Stopping, _) if planted(Bug::CarelessStop) => Duration::ZERO,
            (Self::Stopping, _) => STOP_TIMEOUT,
            (_, Peer::Broker) if self.reason(to).is_some() => FAULT_TIMEOUT,
            (_, Peer::Broker | Peer::Client) => Duration::ZERO,
        }
    }

    /// Is there anybody to hear a goodbye? A client that is taken over is none: its next connection shall not wait for this.
    pub(super) fn is_heard(&self, by: Peer) -> bool {
        match by {
            Peer::Broker => self.reason(by).is_some(),
            Peer::Client => matches!(self.kind(), Kind::Refused | Kind::Broke | Kind::Stopped),
        }
    }

    /// Is the client's will published?
    pub(super) fn wants_will(&self) -> bool {
        match self.kind() {
            Kind::Gone | Kind::Broke => true,
            Kind::Goodbye | Kind::Refused | Kind::Stopped => false,
        }
    }

    /// What repeats are counted by in the log of a listener.
    pub(super) fn cause(&self) -> &'static str {
        match self {
            Self::Stopping | Self::BufferStopped => "the agent stops",
            Self::Disconnected { code: reason::SUCCESS, .. } => "the client disconnected",
            Self::Disconnected { .. } => "the client disconnected and wants its will published",
            Self::Closed | Self::Broke(_) => GONE,
            Self::Silent => "the client sent nothing for 1.5 times its keepalive",
            Self::Undecodable { error, .. } => match error {
                DecodeError::TooLarge { .. } => "the client sent a packet that is too large",
                DecodeError::Malformed(_) => "the client sent a malformed packet",
                DecodeError::Protocol(_) => BROKE_PROTOCOL,
                DecodeError::TopicName => "the client published to a topic with a wildcard",
                DecodeError::TooManyProperties => "the client sent too many user properties",
                DecodeError::TopicAlias => "the client used a topic alias that was not granted",
                DecodeError::UnsupportedVersion(_) => "the client speaks an unsupported MQTT version",
            },
            Self::Unexpected { .. } => BROKE_PROTOCOL,
            Self::Unsendable(_) => "the CONNACK cannot be written",
            Self::Broker(_) => "the link to a broker failed",
            Self::Client(fault) => fault.cause,
        }
    }

    /// This one in particular, beside its cause.
    pub(super) fn detail(&self) -> Cow<'_, str> {
        match self {
            Self::Disconnected { code: reason::SUCCESS, .. } | Self::Stopping | Self::BufferStopped | Self::Silent => {
                "".into()
            }
            Self::Client(fault) => (&*fault.detail).into(),
            Self::Disconnected { .. }
            | Self::Closed
            | Self::Broke(_)
            | Self::Undecodable { .. }
            | Self::Unexpected { .. }
            | Self::Unsendable(_)
            | Self::Broker(_) => self.to_string().into(),
        }
    }

    /// What the operator of a broker link can do, where trying again will not help. Decides between WARN and ERROR.
    pub(super) fn remedy(&self) -> Option<&'static str> {
        match self {
            Self::Undecodable { error: DecodeError::TooLarge { .. }, version: MqttVersion::V311 } => Some(
                "raise max_packet_bytes of this [[mqtt]] table: MQTT 3.1.1 cannot tell the broker the limit, so it \
                 sends this message again at every connection, and nothing behind it arrives",
            ),
            Self::Undecodable { error: DecodeError::TooLarge { .. }, version: MqttVersion::V5 } => Some(
                "raise max_packet_bytes of this [[mqtt]] table: the broker does not keep the limit that it was told",
            ),
            Self::Undecodable { .. } => Some(
                "the broker sends what is not MQTT; the agent keeps a message that comes so three times as a dead \
                 letter; if it goes on, look for a proxy between this gateway and the broker",
            ),
            Self::Disconnected { code: reason::SESSION_TAKEN_OVER, .. } => {
                Some("give this gateway a client_id of its own: another client connects with the same one")
            }
            Self::Unsendable(_) => Some("shorten client_id, username, password or the filters"),
            Self::Broker(fault) => fault.remedy(),
            Self::Stopping
            | Self::BufferStopped
            | Self::Disconnected { .. }
            | Self::Closed
            | Self::Broke(_)
            | Self::Silent
            | Self::Unexpected { .. }
            | Self::Client(_) => None,
        }
    }

    /// Where to look while a broker link fails for minutes and there is no remedy.
    pub(super) fn look_at(&self) -> &'static str {
        let elsewhere = match self {
            Self::Silent => Some(NO_ANSWER),
            Self::Broker(fault) => fault.look_at(),
            Self::Stopping
            | Self::BufferStopped
            | Self::Disconnected { .. }
            | Self::Closed
            | Self::Broke(_)
            | Self::Undecodable { .. }
            | Self::Unexpected { .. }
            | Self::Unsendable(_)
            | Self::Client(_) => None,
        };
        elsewhere.unwrap_or("read the broker's log: it says why the broker ends the connections of this client_id")
    }
}
