//! What one broker connection or one listener has done since start; read by metrics and status.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counters of one `[[mqtt]]` or `[[listen]]` table. Written by its tasks, read by anyone.
#[derive(Debug)]
pub(crate) struct LinkStatus {
    /// The table's `name`.
    pub name: String,
    /// `broker` or `listener`.
    pub kind: &'static str,
    /// Sessions that are connected now (a broker: 0 or 1).
    pub connected: AtomicU64,
    /// PUBLISH packets received.
    pub messages: AtomicU64,
    /// Payload bytes received.
    pub payload_bytes: AtomicU64,
    /// PUBACK, PUBREC and PUBCOMP sent.
    pub acknowledgements: AtomicU64,
    /// QoS 0 events that found no room.
    pub dropped: AtomicU64,
    /// QoS 2 repeats recognised by their packet id.
    pub repeats: AtomicU64,
    /// QoS 2 messages that were stored and not released when their session was lost or ended. The protocol cannot save
    /// these: a sender that still has one sends it in a new session, and it is stored again.
    pub unreleased_lost: AtomicU64,
    /// Connections made (a broker: connects; a listener: accepts that passed CONNECT).
    pub connects: AtomicU64,
    /// Connections ended by an error of any kind.
    pub failures: AtomicU64,
    /// Connections or subscriptions refused (credentials, limits, SUBACK).
    pub refusals: AtomicU64,
    /// SUBSCRIBE filters that a listener granted, though nothing will be sent.
    pub subscriptions: AtomicU64,
    /// Messages and wills to topics of the server's (`$…`), which a listener does not forward.
    pub set_aside: AtomicU64,
    last_error: Mutex<String>,
}

impl LinkStatus {
    /// All zero.
    #[must_use]
    pub(crate) fn new(name: &str, kind: &'static str) -> Self {
        Self {
            name: name.to_owned(),
            kind,
            connected: AtomicU64::new(0),
            messages: AtomicU64::new(0),
            payload_bytes: AtomicU64::new(0),
            acknowledgements: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            repeats: AtomicU64::new(0),
            unreleased_lost: AtomicU64::new(0),
            connects: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            refusals: AtomicU64::new(0),
            subscriptions: AtomicU64::new(0),
            set_aside: AtomicU64::new(0),
            last_error: Mutex::new(String::new()),
        }
    }

    /// Adds to one of the counters above.
    pub(crate) fn add(counter: &AtomicU64, n: u64) {
        counter.fetch_add(n, Ordering::Relaxed);
    }

    /// Remembers what went wrong last, for `status`. Counted by the caller.
    pub(crate) fn failed(&self, error: &str) {
        if let Ok(mut last) = self.last_error.lock() {
            error.clone_into(&mut last);
        }
    }

    /// What went wrong last; empty when nothing did.
    #[must_use]
    pub(crate) fn last_error(&self) -> String {
        self.last_error.lock().map(|last| last.clone()).unwrap_or_default()
    }
}
