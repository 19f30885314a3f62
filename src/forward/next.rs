//! What a feed tells its sender: what to do with the reading in front, and what is in hand.

use std::sync::Arc;

use super::targets::Turn;
use crate::route::Target;

/// What is next.
pub(super) enum Next {
    /// The one in front is to be sent there. `turn`: whether the order of its MQTT topic is safe yet.
    Send(Arc<Target>, Turn),
    /// The one in front was settled without being sent: ask again.
    Settled,
    /// Nothing, or nothing now.
    Nothing,
}

/// What is in hand after sending, as far as a transaction's end depends on it.
#[derive(Debug, Clone, Copy)]
#[expect(clippy::struct_excessive_bools, reason = "four questions, each asked in its own place")]
pub(super) struct Hand {
    /// Readings are in hand.
    pub(super) any: bool,
    /// ... and wait for others.
    pub(super) gathers: bool,
    /// There is something to say without any reading.
    pub(super) declares: bool,
    /// ... so much that one transaction takes no more.
    pub(super) is_full: bool,
}
