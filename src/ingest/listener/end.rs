//! Why a connection ends, what the client is told, and what becomes of its will.

use std::borrow::Cow;

use crate::ingest::codec::{DecodeError, reason};

/// The end of one connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct End {
    pub(super) kind: Kind,
    /// What repeats are counted by.
    pub(super) cause: &'static str,
    /// This one in particular.
    pub(super) detail: Cow<'static, str>,
    /// Told to an MQTT 5 client in CONNACK or DISCONNECT, and to a 3.1.1 client in CONNACK.
    pub(super) reason: Option<u8>,
}

/// Sorted by what happens next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// The client said goodbye: its will is void. Not worth a word.
    Bye,
    /// The client has gone, or its place was taken by itself: its will is published. Everyday life in the field.
    Gone,
    /// It was never let in.
    Refused,
    /// It broke the rules: its will is published, and the operator hears of it.
    Broke,
    /// We go: its will is kept back, because it is not the client that failed.
    Stopped,
}

impl End {
    pub(super) fn bye() -> Self {
        Self { kind: Kind::Bye, cause: "client disconnected", detail: "".into(), reason: None }
    }

    /// DISCONNECT with a reason that asks for the will.
    pub(super) fn bye_with_will(code: u8) -> Self {
        let detail = format!("reason {code:#04x}, {}", reason::text(code));
        Self {
            kind: Kind::Gone,
            cause: "client disconnected and wants its will published",
            detail: detail.into(),
            reason: None,
        }
    }

    pub(super) fn lost(detail: impl Into<Cow<'static, str>>) -> Self {
        Self { kind: Kind::Gone, cause: "client has gone without a goodbye", detail: detail.into(), reason: None }
    }

    pub(super) fn silent() -> Self {
        Self {
            kind: Kind::Gone,
            cause: "client was silent for one and a half times its keepalive",
            detail: "".into(),
            reason: Some(reason::KEEP_ALIVE_TIMEOUT),
        }
    }

    pub(super) fn taken_over() -> Self {
        Self {
            kind: Kind::Gone,
            cause: "client connected again: the older connection ends",
            detail: "".into(),
            reason: Some(reason::SESSION_TAKEN_OVER),
        }
    }

    /// Not let in yet, and all sockets are taken.
    pub(super) fn displaced_stranger() -> Self {
        Self::refused(None, "sockets are scarce: a connection that was not let in yet was closed for a newer one", "")
    }

    /// All places are taken, and its address has the most.
    pub(super) fn gave_way() -> Self {
        Self::broke(reason::SERVER_BUSY, "max_connections reached: client gave way to one of another address", "")
    }

    /// CONNECT was fine, and there is no room to write the session down.
    pub(super) fn no_room() -> Self {
        Self::refused(Some(reason::SERVER_UNAVAILABLE), "the buffer has no room: the client must come again", "")
    }

    /// A large packet that holds memory.
    pub(super) fn too_slow(arrived: usize, announced: usize) -> Self {
        let detail = format!("{arrived} of {announced} bytes arrived");
        Self::broke(reason::QUOTA_EXCEEDED, "client sent a large packet too slowly", detail)
    }

    pub(super) fn refused(reason: Option<u8>, cause: &'static str, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { kind: Kind::Refused, cause, detail: detail.into(), reason }
    }

    pub(super) fn broke(reason: u8, cause: &'static str, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { kind: Kind::Broke, cause, detail: detail.into(), reason: Some(reason) }
    }

    pub(super) fn stopped() -> Self {
        Self {
            kind: Kind::Stopped,
            cause: "the agent stops",
            detail: "".into(),
            reason: Some(reason::SERVER_SHUTTING_DOWN),
        }
    }

    /// Is the client's will published?
    pub(super) fn wants_will(&self) -> bool {
        match self.kind {
            Kind::Gone | Kind::Broke => true,
            Kind::Bye | Kind::Refused | Kind::Stopped => false,
        }
    }
}

impl From<DecodeError> for End {
    fn from(error: DecodeError) -> Self {
        let cause = match &error {
            DecodeError::TooLarge { .. } => "client sent too large a packet",
            DecodeError::Malformed(_) => "client sent a malformed packet",
            DecodeError::Protocol(_) => "client broke the protocol",
            DecodeError::TopicName => "client published to a topic with a wildcard",
            DecodeError::TooManyProperties => "client sent too many user properties",
            DecodeError::TopicAlias => "client used a topic alias that was not granted",
            DecodeError::UnsupportedVersion(_) => "client speaks an unsupported MQTT version",
        };
        Self::broke(error.reason(), cause, error.to_string())
    }
}
