//! What a listener grants its clients: its settings in the units of the protocol.

use std::time::Duration;

use crate::settings::Listener;

/// The same for all clients of a listener.
#[derive(Debug, Clone)]
pub(super) struct ListenerPolicy {
    /// Name and password are asked for.
    pub(super) credentials: bool,
    pub(super) max_packet_bytes: u32,
    pub(super) receive_maximum: u16,
    /// Granted, though nothing will be sent.
    pub(super) subscriptions: bool,
    /// Never 0.
    pub(super) max_keepalive_s: u16,
    pub(super) max_session_expiry_s: u32,
}

impl From<&Listener> for ListenerPolicy {
    fn from(settings: &Listener) -> Self {
        Self {
            credentials: settings.users_file.is_some(),
            max_packet_bytes: settings.max_packet_bytes,
            receive_maximum: settings.receive_maximum.max(1),
            subscriptions: settings.subscriptions,
            max_keepalive_s: u16::try_from(settings.max_keepalive.as_secs()).unwrap_or(u16::MAX).max(1),
            max_session_expiry_s: u32::try_from(settings.max_session_expiry.as_secs()).unwrap_or(u32::MAX),
        }
    }
}

/// The standard allows a client one and a half times its keepalive of silence.
pub(super) fn most_silence(keepalive_s: u16) -> Duration {
    Duration::from_millis(u64::from(keepalive_s) * 1500)
}
