//! When a commit is due: the group-commit delay.
//!
//! A commit writes two pages at least and syncs, whatever it carries; an SD card wears out by that. So commits are a
//! budget, four a second, and a few at once after a pause:
//!
//! ```text
//!   arrival ──▶ is one due? ── yes ──▶ commit at once               a reading that comes alone
//!                   │ no
//!                   └──▶ wait until one is, with all that arrives   ≤ 250 ms, and ≤ half of `linger`
//!                           ends early: a sender stands still       (it waits for its acknowledgement)
//!                                       there is enough             (a chunk that is worth its pages)
//!                                       nobody can send any more
//! ```
//! Who stands still is seen by its connection, which knows what it was answered and when
//! ([`Arrivals::waits`](super::Arrivals)). Where that says nothing, as with a sensor that connects anew for each reading, a wait
//! that brought nobody else is not repeated for the next 2, 4, … 64 commits.
//!
//! At thousands of events a second there is enough long before one is due. There a commit waits in small steps until some of
//! them brought nothing, so that the publishers who are answered together are stored together again.

use std::time::{Duration, Instant};

use super::limits::{COMMIT_BURST, COMMIT_INTERVAL, GATHER_EVENTS, GATHER_FUTILE, GATHER_SPACING, LINGER_SHARE};

/// What the last commits looked like, and what the next ones may cost.
#[derive(Debug)]
pub(super) struct Pace {
    /// Between two commits of the budget.
    interval: Duration,
    /// With `commit_delay`: each waits so long, budget or not.
    fixed: Option<Duration>,
    /// When the budget of all commits until now is used up.
    spent_until: Option<Instant>,
    last_commit: Option<(Instant, usize)>,
    futile: u32,
    skip: u32,
}

impl Pace {
    /// As the configuration has it.
    pub(super) fn new(commit_delay: Option<Duration>, linger: Duration) -> Self {
        Self {
            interval: COMMIT_INTERVAL.min(linger / LINGER_SHARE),
            fixed: commit_delay,
            spent_until: None,
            last_commit: None,
            futile: 0,
            skip: 0,
        }
    }

    /// Is the wait what the configuration asks for?
    pub(super) fn is_fixed(&self) -> bool {
        self.fixed.is_some()
    }

    /// How long the next commit waits for others, if nothing ends the wait. Asked once before each commit.
    pub(super) fn delay(&mut self, now: Instant) -> Duration {
        if let Some(fixed) = self.fixed {
            return fixed;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return Duration::ZERO;
        }
        let credit = self.interval * (COMMIT_BURST - 1);
        self.spent_until.map_or(Duration::ZERO, |spent| spent.saturating_duration_since(now).saturating_sub(credit))
    }

    /// Is more likely to come in a moment? Asked once before each commit.
    pub(super) fn is_under_load(&self, now: Instant) -> bool {
        self.skip == 0
            && self.fixed.is_none_or(|fixed| fixed.is_zero())
            && self.last_commit.is_some_and(|(at, events)| {
                let close = GATHER_SPACING * u32::try_from(events).unwrap_or(u32::MAX);
                events >= GATHER_EVENTS && now.saturating_duration_since(at) <= close
            })
    }

    /// A wait is over: it brought others, or was in vain.
    pub(super) fn waited(&mut self, in_vain: bool) {
        if in_vain {
            self.futile = (self.futile + 1).min(GATHER_FUTILE);
            self.skip = 1_u32.checked_shl(self.futile).unwrap_or(1);
        } else {
            self.futile = 0;
        }
    }

    /// A commit with so many events begins.
    pub(super) fn commits(&mut self, now: Instant, events: usize) {
        self.last_commit = Some((now, events));
        // Those that could not wait put the next one off by no more than its interval.
        let most = now + self.interval * (COMMIT_BURST - 1);
        let spent = self.spent_until.map_or(now, |spent| spent.clamp(now, most));
        self.spent_until = Some(spent + self.interval);
    }
}

/// What is left of a wait that began at `start`.
pub(super) fn left(start: Instant, longest: Duration, now: Instant) -> Duration {
    longest.saturating_sub(now.saturating_duration_since(start))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn auto() -> Pace {
        Pace::new(None, Duration::from_millis(500))
    }

    /// Commits of one event every `each` for ten seconds, as the budget lets them; how many, and the longest delay.
    fn ten_seconds(pace: &mut Pace, each: Duration) -> (u32, Duration) {
        let start = Instant::now();
        let (mut now, mut commits, mut longest) = (start, 0, Duration::ZERO);
        while now < start + Duration::from_secs(10) {
            let delay = pace.delay(now);
            longest = longest.max(delay);
            let at = now + delay;
            pace.commits(at, 1);
            commits += 1;
            now = at.max(now + each);
        }
        (commits, longest)
    }

    #[test]
    fn a_reading_that_comes_alone_never_waits() {
        for each in [1_000, 300, 250] {
            assert_eq!(ten_seconds(&mut auto(), each * MS).1, Duration::ZERO, "one every {each} ms");
        }
    }

    #[test]
    fn a_busy_line_shares_four_commits_a_second_and_none_waits_longer_than_250_ms() {
        let (commits, longest) = ten_seconds(&mut auto(), MS);
        assert!((40..=44).contains(&commits), "{commits} in 10 s");
        assert_eq!(longest, 250 * MS);
    }

    #[test]
    fn after_a_pause_a_few_go_at_once() {
        let mut pace = auto();
        let now = Instant::now();
        for _ in 0..COMMIT_BURST {
            assert_eq!(pace.delay(now), Duration::ZERO);
            pace.commits(now, 1);
        }
        assert_eq!(pace.delay(now), 250 * MS);
    }

    #[test]
    fn commits_that_cannot_wait_do_not_make_later_ones_wait_longer() {
        let mut pace = auto();
        let now = Instant::now();
        for _ in 0..1_000 {
            pace.commits(now, 1);
        }
        assert_eq!(pace.delay(now), 250 * MS);
        assert_eq!(pace.delay(now + 250 * MS), Duration::ZERO);
    }

    #[test]
    fn linger_bounds_the_wait_and_a_fixed_delay_is_the_delay() {
        let now = Instant::now();
        for (linger, most) in [(100, 50), (0, 0), (60_000, 250)] {
            let mut pace = Pace::new(None, linger * MS);
            (0..100).for_each(|_| pace.commits(now, 1));
            assert_eq!(pace.delay(now), most * MS, "linger = {linger} ms");
        }
        let mut pace = Pace::new(Some(2_000 * MS), 500 * MS);
        assert_eq!(pace.delay(now), 2_000 * MS, "also for the first");
        let mut pace = Pace::new(Some(Duration::ZERO), 500 * MS);
        (0..100).for_each(|_| pace.commits(now, 1));
        assert_eq!(pace.delay(now), Duration::ZERO);
    }

    #[test]
    fn only_a_busy_line_is_waited_for_in_steps() {
        let mut pace = auto();
        let start = Instant::now();
        assert!(!pace.is_under_load(start));
        pace.commits(start, 1);
        assert!(!pace.is_under_load(start), "a lone event does not make the next one wait");
        pace.commits(start, 100);
        assert!(pace.is_under_load(start + 25 * MS), "4,000 events/s");
        assert!(!pace.is_under_load(start + 26 * MS));
    }

    #[test]
    fn waits_in_vain_become_rare() {
        let mut pace = auto();
        let now = Instant::now();
        let mut waits = 0;
        for _ in 0..1_000 {
            if !pace.delay(now).is_zero() {
                waits += 1;
                pace.waited(true);
            }
            pace.commits(now, 1);
        }
        assert!((1..=20).contains(&waits), "{waits} waits in vain in 1,000 commits");
        while pace.delay(now).is_zero() {}
        pace.waited(false);
        assert_eq!(pace.delay(now), 250 * MS, "one wait that paid is enough");
    }
}
