//! MQTT 5 reason codes that are named in this crate.

/// Success, and a normal DISCONNECT.
pub(crate) const SUCCESS: u8 = 0x00;
/// UNSUBACK: there was none.
pub(crate) const NO_SUBSCRIPTION_EXISTED: u8 = 0x11;
/// None of the others.
pub(crate) const UNSPECIFIED_ERROR: u8 = 0x80;
/// Bytes that are no packet.
pub(crate) const MALFORMED_PACKET: u8 = 0x81;
/// A packet in the wrong place or with forbidden contents.
pub(crate) const PROTOCOL_ERROR: u8 = 0x82;
/// Valid, but not for us.
const IMPLEMENTATION_SPECIFIC_ERROR: u8 = 0x83;
/// Of CONNECT.
pub(crate) const UNSUPPORTED_PROTOCOL_VERSION: u8 = 0x84;
/// Of CONNECT.
pub(crate) const CLIENT_IDENTIFIER_NOT_VALID: u8 = 0x85;
/// Of CONNECT.
pub(crate) const BAD_USER_NAME_OR_PASSWORD: u8 = 0x86;
/// No right to that.
pub(crate) const NOT_AUTHORIZED: u8 = 0x87;
/// Not now.
pub(crate) const SERVER_UNAVAILABLE: u8 = 0x88;
/// Try later.
pub(crate) const SERVER_BUSY: u8 = 0x89;
/// We go.
pub(crate) const SERVER_SHUTTING_DOWN: u8 = 0x8B;
/// Extended authentication is not spoken.
pub(crate) const BAD_AUTHENTICATION_METHOD: u8 = 0x8C;
/// Nothing heard for 1.5 times the keepalive.
pub(crate) const KEEP_ALIVE_TIMEOUT: u8 = 0x8D;
/// The same client id connected again.
pub(crate) const SESSION_TAKEN_OVER: u8 = 0x8E;
/// Of a SUBSCRIBE.
pub(crate) const TOPIC_FILTER_INVALID: u8 = 0x8F;
/// Of a PUBLISH.
pub(crate) const TOPIC_NAME_INVALID: u8 = 0x90;
/// PUBCOMP to an id we do not know.
const PACKET_IDENTIFIER_NOT_FOUND: u8 = 0x92;
/// More unacknowledged messages than allowed.
const RECEIVE_MAXIMUM_EXCEEDED: u8 = 0x93;
/// Alias 0, or above the maximum.
pub(crate) const TOPIC_ALIAS_INVALID: u8 = 0x94;
/// Above the announced maximum.
pub(crate) const PACKET_TOO_LARGE: u8 = 0x95;
/// A limit of ours.
pub(crate) const QUOTA_EXCEEDED: u8 = 0x97;

/// The peer's own words beside a code, for logs.
#[must_use]
pub(crate) fn words(words: Option<&str>) -> String {
    words.map(|words| format!(": {words:?}")).unwrap_or_default()
}

/// What a code means, for logs. `0x01` to `0x05` are read as MQTT 3.1.1 CONNACK codes.
#[must_use]
pub(crate) fn text(code: u8) -> &'static str {
    match code {
        SUCCESS => "success",
        0x01 | UNSUPPORTED_PROTOCOL_VERSION => "protocol version not supported",
        0x02 | CLIENT_IDENTIFIER_NOT_VALID => "client id not accepted",
        0x03 | SERVER_UNAVAILABLE => "server unavailable",
        0x04 | BAD_USER_NAME_OR_PASSWORD => "bad user name or password",
        0x05 | NOT_AUTHORIZED => "not authorized",
        NO_SUBSCRIPTION_EXISTED => "no subscription existed",
        UNSPECIFIED_ERROR => "unspecified error",
        MALFORMED_PACKET => "malformed packet",
        PROTOCOL_ERROR => "protocol error",
        IMPLEMENTATION_SPECIFIC_ERROR => "implementation specific error",
        SERVER_BUSY => "server busy",
        0x8A => "banned",
        SERVER_SHUTTING_DOWN => "server shutting down",
        BAD_AUTHENTICATION_METHOD => "bad authentication method",
        KEEP_ALIVE_TIMEOUT => "keepalive timeout",
        SESSION_TAKEN_OVER => "session taken over: another client uses the same client id",
        TOPIC_FILTER_INVALID => "topic filter not valid",
        TOPIC_NAME_INVALID => "topic name not valid",
        0x91 => "packet identifier in use",
        PACKET_IDENTIFIER_NOT_FOUND => "packet identifier not found",
        RECEIVE_MAXIMUM_EXCEEDED => "receive maximum exceeded",
        TOPIC_ALIAS_INVALID => "topic alias not valid",
        PACKET_TOO_LARGE => "packet too large",
        0x96 => "message rate too high",
        QUOTA_EXCEEDED => "quota exceeded",
        0x98 => "administrative action",
        0x99 => "payload format not valid",
        0x9A => "retain not supported",
        0x9B => "QoS not supported",
        0x9C => "use another server",
        0x9D => "server moved",
        0x9E => "shared subscriptions not supported",
        0x9F => "connection rate exceeded",
        0xA0 => "maximum connect time",
        0xA1 => "subscription identifiers not supported",
        0xA2 => "wildcard subscriptions not supported",
        _ => "unknown reason",
    }
}
