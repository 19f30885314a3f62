//! From the first byte to an acceptable CONNECT. Bytes in, an [`Admission`] or an end out; no clock, no socket.
//!
//! Refused here, with the code of the client's own version where it can be told: other versions than 3.1, 3.1.1 and 5,
//! enhanced authentication, client ids that are too long or hold control characters, an empty client id that is to
//! keep a session (3.1.1), and a missing user name. A first packet that is no CONNECT gets no answer; TLS and HTTP are
//! called by their names in the log.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::policy::ListenerPolicy;
use crate::ingest::close::{Close, Peer};
use crate::ingest::codec::encode::{self, Grants};
use crate::ingest::codec::{self, Connect, DecodeError, Will, reason};
use crate::ingest::limits::{MAX_CLIENT_ID_BYTES, MAX_CONNECT_BYTES};
use crate::settings::MqttVersion;

/// A connection that has not said who it is.
#[derive(Debug)]
pub(super) struct Handshake {
    input: BytesMut,
}

/// What bytes have led to.
#[derive(Debug)]
pub(super) enum Progress {
    /// CONNECT is not complete.
    ReadOn,
    /// A CONNECT to be accepted, if name and password are right and there is room.
    Admit(Box<Admission>),
    /// The answer, if there is one, and the end.
    Refuse(Bytes, Close),
}

/// What a client asked for, cut down to what it gets.
#[derive(Debug)]
pub(super) struct Admission {
    pub(super) version: MqttVersion,
    pub(super) client: Arc<str>,
    /// To be checked; empty when nobody asks.
    pub(super) credentials: Option<(String, Bytes)>,
    /// The user whose password was right; whoever checks enters it.
    pub(super) user: Option<Arc<str>>,
    pub(super) resume: bool,
    /// 0: the session ends with the connection.
    pub(super) expiry_s: u32,
    /// Never 0.
    pub(super) keepalive_s: u16,
    pub(super) will: Option<Will>,
    /// Its will was for a topic of the server's: it has none.
    pub(super) will_set_aside: bool,
    pub(super) grants: Grants,
    /// What came behind CONNECT.
    pub(super) input: BytesMut,
}

impl Handshake {
    pub(super) fn new() -> Self {
        Self { input: BytesMut::new() }
    }

    /// Nothing was said: most likely somebody only looked whether the port is open.
    pub(super) fn is_silent(&self) -> bool {
        self.input.is_empty()
    }

    pub(super) fn received(&mut self, bytes: &[u8], policy: &ListenerPolicy) -> Progress {
        self.input.extend_from_slice(bytes);
        if let Some(end) = another_protocol(&self.input) {
            return Progress::Refuse(Bytes::new(), end);
        }
        // Decoding takes the packet away, also when it is bad.
        let version = spoken_version(&self.input);
        let max_bytes = MAX_CONNECT_BYTES.min(policy.max_packet_bytes);
        match codec::decode_connect(&mut self.input, max_bytes) {
            Ok(None) => Progress::ReadOn,
            Ok(Some(connect)) => {
                let version = connect.version;
                match admit(connect, policy) {
                    Ok(admission) => {
                        let input = std::mem::take(&mut self.input);
                        Progress::Admit(Box::new(Admission { input, ..admission }))
                    }
                    Err(end) => Progress::Refuse(refusal(version, &end), end),
                }
            }
            Err(DecodeError::UnsupportedVersion(level)) => {
                let version = if level > 5 { MqttVersion::V5 } else { MqttVersion::V311 };
                let end = Close::refused(
                    Some(reason::UNSUPPORTED_PROTOCOL_VERSION),
                    "the client speaks an unsupported MQTT version",
                    format!("protocol level {level}; the agent speaks 3 (MQTT 3.1), 4 (3.1.1) and 5"),
                );
                Progress::Refuse(refusal(version, &end), end)
            }
            Err(error) => {
                let told = (version == Some(MqttVersion::V5)).then(|| error.reason());
                let end = Close::refused(told, "the client did not begin with a right CONNECT", error.to_string());
                Progress::Refuse(refusal(MqttVersion::V5, &end), end)
            }
        }
    }
}

/// The CONNACK for an end that came before the session, if it has a code.
pub(super) fn refusal(version: MqttVersion, end: &Close) -> Bytes {
    let mut out = BytesMut::new();
    write_refusal(&mut out, version, end);
    out.freeze()
}

/// The same, appended.
pub(super) fn write_refusal(out: &mut BytesMut, version: MqttVersion, end: &Close) {
    match end.reason(Peer::Client) {
        None => {}
        // Reasons of DISCONNECT that CONNACK does not have.
        Some(reason::SESSION_TAKEN_OVER | reason::SERVER_SHUTTING_DOWN | reason::KEEP_ALIVE_TIMEOUT) => {
            encode::refuse(out, version, reason::SERVER_UNAVAILABLE);
        }
        Some(code) => encode::refuse(out, version, code),
    }
}

fn admit(mut connect: Connect, policy: &ListenerPolicy) -> Result<Admission, Close> {
    let refuse = |code, cause, detail: String| Err(Close::refused(Some(code), cause, detail));
    if connect.wants_authentication_method {
        let detail = "Tidegate does not have enhanced authentication".to_owned();
        return refuse(reason::BAD_AUTHENTICATION_METHOD, "the client wants an authentication method", detail);
    }
    if let Err(detail) = check_client_id(&connect) {
        return refuse(reason::CLIENT_IDENTIFIER_NOT_VALID, "the client id is not allowed", detail);
    }
    // mosquitto's bridges have one.
    let will_set_aside = connect.will.take_if(|will| will.topic.starts_with('$')).is_some();
    let credentials = match (policy.credentials, connect.username.take()) {
        (false, _) => None,
        (true, Some(name)) => Some((name, connect.password.take().unwrap_or_default())),
        (true, None) => {
            let detail = format!("client id {:?}", connect.client_id);
            return refuse(reason::NOT_AUTHORIZED, "the client gave no user name", detail);
        }
    };
    let assigned = connect.client_id.is_empty().then(|| format!("auto-{}", uuid::Uuid::new_v4().simple()));
    let client = assigned.as_deref().unwrap_or(&connect.client_id).into();
    let asked_expiry_s = match connect.version {
        MqttVersion::V5 => connect.session_expiry_s.unwrap_or(0),
        // Such a session has no end at all, as far as the standard goes; ours have.
        MqttVersion::V311 if connect.clean_start => 0,
        MqttVersion::V311 => u32::MAX,
    };
    let expiry_s = asked_expiry_s.min(policy.max_session_expiry_s);
    let keepalive_s = keepalive(&connect, policy);
    Ok(Admission {
        version: connect.version,
        client,
        credentials,
        user: None,
        resume: !connect.clean_start,
        expiry_s,
        keepalive_s,
        will: connect.will,
        will_set_aside,
        grants: Grants {
            assigned_client_id: assigned,
            session_expiry_s: (expiry_s != asked_expiry_s).then_some(expiry_s),
            server_keepalive_s: (keepalive_s != connect.keepalive_s).then_some(keepalive_s),
            receive_maximum: policy.receive_maximum,
            max_packet_bytes: policy.max_packet_bytes,
            subscriptions: policy.subscriptions,
        },
        input: BytesMut::new(),
    })
}

/// MQTT 5 clients are told when theirs is longer than granted. A 3.1.1 client cannot be told, and gets ours all the same:
/// a connection that is dead for 27 hours (one and a half times the longest that MQTT can say) holds a place.
fn keepalive(connect: &Connect, policy: &ListenerPolicy) -> u16 {
    match connect.keepalive_s {
        0 => policy.max_keepalive_s,
        asked => asked.min(policy.max_keepalive_s),
    }
}

fn check_client_id(connect: &Connect) -> Result<(), String> {
    let id = &connect.client_id;
    if id.len() > MAX_CLIENT_ID_BYTES {
        return Err(format!("it has {} bytes; allowed: at most {MAX_CLIENT_ID_BYTES}", id.len()));
    }
    if id.contains(char::is_control) {
        return Err(format!("{id:?} has a control character"));
    }
    if id.is_empty() && connect.version == MqttVersion::V311 && !connect.clean_start {
        return Err("it is empty, and the session is to be kept".to_owned());
    }
    Ok(())
}

/// What people send to an MQTT port by mistake.
fn another_protocol(input: &[u8]) -> Option<Close> {
    let (cause, detail) = match input {
        // A TLS record: handshake, and the version's first number.
        [0x16, 3, ..] => (
            "the client speaks TLS to a port without TLS",
            "this listener has no TLS: configure the client without TLS (mqtt://), or put a TLS proxy in front",
        ),
        [b'G', b'E', b'T', b' ', ..] => (
            "the client speaks WebSocket or HTTP to an MQTT port",
            "this listener speaks MQTT over plain TCP: configure the client for mqtt://, not ws:// or http://",
        ),
        _ => return None,
    };
    Some(Close::refused(None, cause, detail))
}

/// The version of a CONNECT that may be damaged further on, so that its client can be told. No more than a glance.
fn spoken_version(input: &[u8]) -> Option<MqttVersion> {
    let (_, rest) = input.split_first()?;
    let length_bytes = rest.iter().take(4).take_while(|byte| **byte & 0x80 != 0).count() + 1;
    match rest.get(length_bytes..)? {
        [0, 4, b'M', b'Q', b'T', b'T', 5, ..] => Some(MqttVersion::V5),
        [0, 4, b'M', b'Q', b'T', b'T', 4, ..] | [0, 6, b'M', b'Q', b'I', b's', b'd', b'p', 3, ..] => {
            Some(MqttVersion::V311)
        }
        _ => None,
    }
}
