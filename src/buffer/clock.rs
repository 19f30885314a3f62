//! The wall clock, for people and for expiry. Nothing is ordered by it: a device without a clock battery lies.

use crate::clock;

/// Milliseconds since 1970; 0 when the clock stands before that.
pub(super) fn now_ms() -> i64 {
    clock::wall_ms().max(0)
}
