//! How long to wait before the next try: one policy for every link that can fail.

use std::time::Duration;

/// First wait after a failure. Short enough that a broker restart is hardly noticed.
const FIRST_WAIT: Duration = Duration::from_millis(250);

/// Longest wait. 5,000 gateways at 30 s are 170 connection attempts a second at the centre, which a broker bears.
pub(crate) const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// Exponential back-off with jitter: each wait is drawn from the upper half of a window that doubles from
/// [`FIRST_WAIT`] to [`LONGEST_WAIT`], so that a fleet does not come back in one wave.
#[derive(Debug)]
pub(crate) struct Backoff {
    window: Duration,
}

impl Backoff {
    /// Starts at [`FIRST_WAIT`].
    #[must_use]
    pub(crate) fn new() -> Self {
        Self { window: FIRST_WAIT }
    }

    /// The wait before the next try; the one after it will be longer.
    pub(crate) fn next_wait(&mut self) -> Duration {
        let window = self.window;
        self.window = (window * 2).min(LONGEST_WAIT);
        window.mul_f64(0.5 + fastrand::f64() / 2.0)
    }

    /// The link has proven itself (not merely connected): start from the first wait again.
    pub(crate) fn reset(&mut self) {
        self.window = FIRST_WAIT;
    }
}

impl Default for Backoff {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_with_jitter_and_stop_at_the_longest() {
        let mut backoff = Backoff::new();
        let mut window = FIRST_WAIT;
        for _ in 0..12 {
            let wait = backoff.next_wait();
            assert!(wait >= window / 2 && wait <= window, "{wait:?} outside of {window:?}");
            window = (window * 2).min(LONGEST_WAIT);
        }
        assert_eq!(window, LONGEST_WAIT);
        backoff.reset();
        assert!(backoff.next_wait() <= FIRST_WAIT);
    }
}
