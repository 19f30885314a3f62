//! `[[mqtt]]`: a subscriber at a broker.
//!
//! [`session`] is the protocol, without sockets and clocks: bytes and time in, bytes, batches and verdicts out.
//! [`task`] is the thin loop that feeds it, from a [`stream`] with TLS or without. [`tls_config`] reads certificates and keys,
//! [`tls_error`] says why TLS failed. [`subscriptions`] keeps what the broker granted, [`version`] which MQTT
//! version to speak, [`fault`] what goes wrong only with brokers (the rest is in [`close`](super::close)), [`failure_log`] how often
//! that is said.
//!
//! # Rules
//!
//! * The session at the broker is persistent and has a fixed client id, so what is published while we are away waits
//!   there. We subscribe at the first connection of a process (filters may have changed; on MQTT 5 the broker does not
//!   resend retained messages for a subscription that it has, on 3.1.1 it does), and whenever the broker has lost the
//!   session. A filter that was taken out of the configuration is unsubscribed; what the broker had queued for it comes.
//! * When the broker has lost the session, the packet ids we hold are forgotten, and that is durable before the first
//!   SUBSCRIBE goes out: else a crash could leave ids that swallow new messages.
//! * Answers go out in arrival order, on the connection that earned them, one write a commit (`acker`).
//! * While the buffer has no room, the socket is not read, but answers, PINGREQ and timers go on; that time does not
//!   count as the broker's silence.
//! * Every failure waits for [`Backoff`](crate::retry::Backoff), which starts afresh only after a connection has been
//!   well for 10 s. So a packet that we cannot take, and that the broker sends again for ever, costs a connection
//!   every 30 s and no more. What came before it on the connection is committed and acknowledged first.
//! * A message that cannot be read although its frame is sound, and that has ended two connections, is acknowledged at
//!   the third and becomes a dead letter with its bytes.
//! * A link that fails is said at once, and once a minute while it goes on.
//! * A stop: no more reading, wait for the commits under way, send their acknowledgements, DISCONNECT.

mod failure_log;
mod tls_error;
pub(super) mod fault;
mod link;
mod session;
mod subscriptions;
mod task;
mod tls_config;
mod version;

#[cfg(test)]
#[expect(clippy::wildcard_enum_match_arm, reason = "a test may panic")]
mod model_tests;
#[cfg(test)]
mod tests;

pub(crate) use self::task::{Kept, run};
pub(crate) use self::tls_config::{TlsConfigError, check as check_tls};
