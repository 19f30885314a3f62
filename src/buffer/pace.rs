//! How long a commit waits for company.
//!
//! A lone event is committed at once. Under load, batches grow by themselves while the commit before is being synced;
//! on a fast disk that is not enough, and small commits write up to 50 times more to the card than large ones. So
//! while events follow each other closely, the next commit waits in small steps, until some steps brought nothing, or
//! there is enough, or a few milliseconds are over. Publishers that stop at a window (Receive Maximum, mosquitto's 20)
//! fall silent while they wait for us: a wait that ended in silence is not repeated for the next 2, 4, … 64 commits.

use std::time::{Duration, Instant};

use super::limits::{GATHER_EVENTS, GATHER_FUTILE, GATHER_SPACING};

/// What the last commits looked like.
#[derive(Debug)]
pub(super) struct Pace {
    last_commit: Option<(Instant, usize)>,
    futile: u32,
    skip: u32,
}

impl Pace {
    pub(super) fn new() -> Self {
        Self { last_commit: None, futile: 0, skip: 0 }
    }

    /// Is company likely? Asked once before each commit.
    pub(super) fn expects_company(&mut self, now: Instant) -> bool {
        if self.skip > 0 {
            self.skip -= 1;
            return false;
        }
        self.last_commit.is_some_and(|(at, events)| {
            let close = GATHER_SPACING * u32::try_from(events).unwrap_or(u32::MAX);
            events >= GATHER_EVENTS && now.saturating_duration_since(at) <= close
        })
    }

    /// The wait is over: events kept coming, or it ended in silence.
    pub(super) fn waited(&mut self, silence: bool) {
        if silence {
            self.futile = (self.futile + 1).min(GATHER_FUTILE);
            self.skip = 1_u32.checked_shl(self.futile).unwrap_or(1);
        } else {
            self.futile = 0;
        }
    }

    /// A commit with so many events begins.
    pub(super) fn commits(&mut self, now: Instant, events: usize) {
        self.last_commit = Some((now, events));
    }
}

/// What is left of a wait that began at `start`.
pub(super) fn left(start: Instant, longest: Duration, now: Instant) -> Duration {
    longest.saturating_sub(now.saturating_duration_since(start))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quiet_line_never_waits_and_a_busy_one_does() {
        let mut pace = Pace::new();
        let start = Instant::now();
        assert!(!pace.expects_company(start));
        pace.commits(start, 1);
        assert!(!pace.expects_company(start), "a lone event does not make the next one wait");
        pace.commits(start, 100);
        assert!(pace.expects_company(start + Duration::from_millis(25)), "4,000 events/s");
        assert!(!pace.expects_company(start + Duration::from_millis(26)));
    }

    #[test]
    fn waits_that_end_in_silence_become_rare() {
        let mut pace = Pace::new();
        let now = Instant::now();
        let mut waits = 0;
        for _ in 0..1000 {
            pace.commits(now, 100);
            if pace.expects_company(now) {
                waits += 1;
                pace.waited(true);
            }
        }
        assert!(waits <= 20, "{waits} futile waits in 1,000 commits");
        while !pace.expects_company(now) {}
        pace.waited(false);
        assert!(pace.expects_company(now), "one wait that paid is enough");
    }
}
