//! What the log says of a link that fails again and again: what is new at once, and, while it goes on, a line a minute that
//! sums up: since when, how often, the last reason, what to do.
//!
//! It begins with the first failure and ends with the connection that has proven itself. Both clocks are the caller's.

use std::time::{Duration, Instant, UNIX_EPOCH};

use crate::ingest::close::Close;
use crate::ingest::limits::{LINK_LOG_INTERVAL, MAX_LOGGED_REASONS};
use crate::log_throttle::Repeats;

/// The trouble of one link, if it has any.
#[derive(Debug, Default)]
pub(super) struct FailureLog {
    trouble: Option<Trouble>,
}

#[derive(Debug)]
struct Trouble {
    since: Instant,
    /// Since the trouble began.
    failures: u64,
    repeats: Repeats,
    /// Reasons that stood in a line.
    known: Vec<String>,
    last: Reason,
}

/// Why a connection ended.
#[derive(Debug)]
struct Reason {
    text: String,
    remedy: Option<&'static str>,
    look_at: &'static str,
}

/// What to write now.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) text: String,
    /// What to do: of a first failure only where trying again will not help.
    pub(super) remedy: Option<&'static str>,
    /// Trying again will not help.
    pub(super) grave: bool,
    /// Since the trouble began.
    pub(super) failures: u64,
}

impl FailureLog {
    /// A connection failed. A reason that was not named yet is said at once.
    pub(super) fn about(&mut self, failure: &Close, now: Instant, wall_ms: i64) -> Option<Line> {
        let reason = Reason { text: failure.to_string(), remedy: failure.remedy(), look_at: failure.look_at() };
        let Some(trouble) = &mut self.trouble else {
            let text = format!("{}; the agent tries again", reason.text);
            let line = Line { text, remedy: reason.remedy, grave: reason.remedy.is_some(), failures: 1 };
            let known = vec![reason.text.clone()];
            self.trouble = Some(Trouble { since: now, failures: 1, repeats: Repeats::said(now), known, last: reason });
            return Some(line);
        };
        trouble.failures += 1;
        trouble.repeats.count();
        let new = !trouble.known.contains(&reason.text) && trouble.known.len() < MAX_LOGGED_REASONS;
        if new {
            trouble.known.push(reason.text.clone());
        }
        trouble.last = reason;
        if new { Some(trouble.sum_up(now, wall_ms)) } else { self.look(now, wall_ms) }
    }

    /// Time has passed. Call it at least every [`TICK`](crate::ingest::limits::TICK).
    pub(super) fn look(&mut self, now: Instant, wall_ms: i64) -> Option<Line> {
        let trouble = self.trouble.as_mut()?;
        let due = trouble.repeats.unsaid() > 0 && trouble.repeats.is_due(now, LINK_LOG_INTERVAL);
        due.then(|| trouble.sum_up(now, wall_ms))
    }

    /// Connections that have failed since the link was well.
    pub(super) fn failures(&self) -> u64 {
        self.trouble.as_ref().map_or(0, |trouble| trouble.failures)
    }
}

impl Trouble {
    fn sum_up(&mut self, now: Instant, wall_ms: i64) -> Line {
        self.repeats.say(now);
        let Reason { text, remedy, look_at } = &self.last;
        let lasted = now.saturating_duration_since(self.since);
        let text = format!(
            "{} connections have failed since {}, {} s ago; the last error: {text}; the agent tries again",
            self.failures,
            began(wall_ms, lasted),
            lasted.as_secs()
        );
        Line { text, remedy: Some(remedy.unwrap_or(look_at)), grave: remedy.is_some(), failures: self.failures }
    }
}

/// By the wall clock as it stands now: it may have been set since then.
fn began(wall_ms: i64, lasted: Duration) -> String {
    let since_1970 = Duration::from_millis(u64::try_from(wall_ms).unwrap_or(0)).saturating_sub(lasted);
    // Behind the year 9999 there is no text.
    let time = UNIX_EPOCH.checked_add(since_1970.min(Duration::from_secs(253_402_300_799))).unwrap_or(UNIX_EPOCH);
    humantime::format_rfc3339_seconds(time).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ingest::broker::fault::BrokerFault;
    use crate::ingest::limits::{DISCONNECT_TIMEOUT, FAULT_TIMEOUT, TICK};
    use crate::retry::Backoff;

    /// 2026-11-21T19:00:00Z.
    const WALL_MS: i64 = 1_795_287_600_000;

    fn wall(start: Instant, now: Instant) -> i64 {
        WALL_MS + i64::try_from((now - start).as_millis()).unwrap()
    }

    /// A broker that drops each reconnect for ten minutes, with the real back-off: the lines, with their times.
    fn ten_minutes(mut why: impl FnMut(u64) -> Close) -> Vec<(Duration, Line)> {
        let start = Instant::now();
        let (mut failure_log, mut backoff, mut lines) = (FailureLog::default(), Backoff::new(), Vec::new());
        let (mut now, mut next, mut failures) = (start, start, 0);
        while now - start < Duration::from_secs(600) {
            let line = if now >= next {
                next = now + backoff.next_wait();
                failures += 1;
                failure_log.about(&why(failures), now, wall(start, now))
            } else {
                failure_log.look(now, wall(start, now))
            };
            lines.extend(line.map(|line| (now - start, line)));
            now += TICK;
        }
        assert_eq!(failure_log.failures(), failures);
        lines
    }

    #[test]
    fn while_a_broker_drops_each_reconnect_a_line_a_minute_says_so_from_the_first_minute_on() {
        for _ in 0..50 {
            let lines = ten_minutes(|_| Close::Closed);
            assert_eq!(lines[0].1.text, "the peer closed the connection without DISCONNECT; the agent tries again");
            assert_eq!((lines[0].1.remedy, lines[0].1.failures), (None, 1));
            // Beside the tick the loop may be busy with a goodbye.
            let late = FAULT_TIMEOUT + DISCONNECT_TIMEOUT;
            for pair in lines.windows(2) {
                let apart = pair[1].0.saturating_sub(pair[0].0);
                assert!(apart + late <= Duration::from_secs(60), "{apart:?} apart: {lines:#?}");
                assert!(apart >= LINK_LOG_INTERVAL, "{apart:?} apart: {lines:#?}");
            }
            assert!(lines.len() >= 10, "{lines:#?}");
            let (_, second) = &lines[1];
            assert!(second.text.starts_with(&format!("{} connections have failed since ", second.failures)));
            assert!(second.text.contains("2026-11-21T19:00:00Z, 55 s ago; the last error: the peer closed"));
            assert!(second.remedy.is_some_and(|remedy| remedy.contains("broker's log")) && !second.grave);
        }
    }

    #[test]
    fn a_new_reason_is_said_at_once_and_many_of_them_are_no_flood() {
        let two = ten_minutes(|n| if n % 2 == 0 { Close::Closed } else { Close::Silent });
        assert!(two[1].0 < Duration::from_secs(1) && two[1].1.text.contains("closed the connection"), "{two:#?}");
        assert!(two.len() <= 13, "the two, and one a minute: {two:#?}");
        let many = ten_minutes(|n| BrokerFault::DialTimeout(n).into());
        assert!(many.len() <= MAX_LOGGED_REASONS + 11, "{many:#?}");
    }

    #[test]
    fn what_stands_says_what_to_do_and_nothing_is_said_twice() {
        let start = Instant::now();
        let mut failure_log = FailureLog::default();
        let refused = BrokerFault::Refused { code: 5, words: None }.into();
        let first = failure_log.about(&refused, start, WALL_MS).unwrap();
        assert!(first.grave && first.remedy.is_some_and(|remedy| remedy.contains("password_file")));
        // No failure since then: nothing to say, however long it takes.
        assert_eq!(failure_log.look(start + LINK_LOG_INTERVAL * 3, WALL_MS), None);
        assert!(failure_log.about(&refused, start + LINK_LOG_INTERVAL * 3, WALL_MS).is_some(), "long due");
        assert_eq!(failure_log.about(&refused, start + LINK_LOG_INTERVAL * 3, WALL_MS), None);
    }

    #[test]
    fn a_wall_clock_before_1970_or_behind_9999_has_a_text_all_the_same() {
        assert_eq!(began(-5, Duration::from_secs(9)), "1970-01-01T00:00:00Z");
        assert_eq!(began(i64::MAX, Duration::ZERO), "9999-12-31T23:59:59Z");
    }
}
