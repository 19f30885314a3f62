//! Signs of life. Each stage beats in its real loop; the watchdog is fed only while all of them do.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A stage that is silent for longer is stuck. SD cards stall for seconds while they erase, hence not less.
pub(crate) const STUCK_AFTER: Duration = Duration::from_secs(20);

/// Held by a stage.
#[derive(Debug, Clone)]
pub(crate) struct Pulse {
    start: Instant,
    last_ms: Arc<AtomicU64>,
}

impl Pulse {
    /// Counts as beating from now.
    #[must_use]
    pub(crate) fn new() -> Self {
        Self { start: Instant::now(), last_ms: Arc::new(AtomicU64::new(0)) }
    }

    /// "My loop went round."
    pub(crate) fn beat(&self) {
        self.last_ms.store(self.now_ms(), Ordering::Relaxed);
    }

    /// Time since the last beat.
    #[must_use]
    pub(crate) fn silence(&self) -> Duration {
        Duration::from_millis(self.now_ms().saturating_sub(self.last_ms.load(Ordering::Relaxed)))
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

impl Default for Pulse {
    fn default() -> Self {
        Self::new()
    }
}
