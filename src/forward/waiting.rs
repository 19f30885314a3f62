//! No silent wait: when readings wait and nothing flows, why that is, what may be done, and since when. The status and a
//! metric show it, and one line of the log says it.

use std::time::{Duration, Instant};

use super::status::{Reason, Waiting};

/// A wait that is shorter is a round trip, a commit, or an election.
const SHOWN: Duration = Duration::from_secs(5);

/// One that lasts is said; within 15 s of its beginning.
const SAID: Duration = Duration::from_secs(10);

/// The same reason is said again after this time: a week without Kafka is some lines.
const AGAIN: Duration = Duration::from_secs(3_600);

/// What is in the way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Obstacle {
    pub(super) reason: Reason,
    /// In words: subject, verb, object.
    pub(super) why: String,
}

impl Obstacle {
    pub(super) fn new(reason: Reason, why: impl Into<String>) -> Self {
        Self { reason, why: why.into() }
    }
}

/// A line for the log.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// WARN
    Waits(Waiting),
    /// INFO, after so long.
    Flows(Duration),
}

/// Watches over it.
#[derive(Debug, Default)]
pub(super) struct Watch {
    /// Records delivered when it was looked at last.
    delivered: u64,
    since: Option<(Instant, i64)>,
    said: Vec<(Reason, Instant)>,
    /// This wait was said.
    this_one: bool,
}

impl Watch {
    /// Looks: does anything wait, how much has been delivered until now, and what is in the way?
    pub(super) fn look(
        &mut self,
        waits: bool,
        delivered: u64,
        obstacle: impl FnOnce() -> Option<Obstacle>,
        (now, now_ms): (Instant, i64),
    ) -> (Option<Waiting>, Option<Line>) {
        let flows = std::mem::replace(&mut self.delivered, delivered) != delivered;
        if flows || !waits {
            let since = self.since.take();
            let was_said = std::mem::take(&mut self.this_one);
            let line = since.filter(|_| was_said).map(|(at, _)| Line::Flows(now.saturating_duration_since(at)));
            return (None, line);
        }
        let (since, since_ms) = *self.since.get_or_insert((now, now_ms));
        let waited = now.saturating_duration_since(since);
        if waited < SHOWN {
            return (None, None);
        }
        let Some(Obstacle { reason, why }) = obstacle() else { return (None, None) };
        let waiting = Waiting { reason, why, since_ms };
        let line = (waited >= SAID && self.is_news(reason, now)).then(|| {
            self.this_one = true;
            Line::Waits(waiting.clone())
        });
        (Some(waiting), line)
    }

    fn is_news(&mut self, reason: Reason, now: Instant) -> bool {
        // What the link says of itself has its own line (`link.rs`).
        if matches!(reason, Reason::NoBroker | Reason::NameNotResolved | Reason::Refused) {
            return false;
        }
        self.said.retain(|(_, at)| now.saturating_duration_since(*at) < AGAIN);
        let known = self.said.iter().any(|(said, _)| *said == reason);
        if !known {
            self.said.push((reason, now));
        }
        !known
    }
}

/// Writes the line.
pub(super) fn say(line: Line) {
    match line {
        Line::Waits(Waiting { reason, why, .. }) => {
            tracing::warn!(reason = reason.name(), why, remedy = reason.remedy(), "kafka: readings wait in the buffer");
        }
        Line::Flows(waited) => tracing::info!(waited_s = waited.as_secs_f64(), "kafka: readings flow again"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Bench {
        watch: Watch,
        start: Instant,
    }

    impl Bench {
        fn at(&mut self, second: u64, delivered: u64, reason: Option<Reason>) -> (Option<Reason>, Option<Line>) {
            let now = self.start + Duration::from_secs(second);
            let obstacle = || reason.map(|reason| Obstacle::new(reason, "why"));
            let (waiting, line) = self.watch.look(true, delivered, obstacle, (now, 7));
            (waiting.map(|waiting| waiting.reason), line)
        }
    }

    fn bench() -> Bench {
        Bench { watch: Watch::default(), start: Instant::now() }
    }

    fn waits(reason: Reason) -> Line {
        Line::Waits(Waiting { reason, why: "why".into(), since_ms: 7 })
    }

    #[test]
    fn a_wait_is_shown_and_then_said_within_15_seconds_and_its_end_as_well() {
        let (mut bench, reason) = (bench(), Reason::NoCoordinator);
        assert_eq!(bench.at(0, 0, Some(reason)), (None, None));
        assert_eq!(bench.at(5, 0, Some(reason)), (Some(reason), None));
        assert_eq!(bench.at(10, 0, Some(reason)), (Some(reason), Some(waits(reason))));
        for second in 11..3_600 {
            assert_eq!(bench.at(second, 0, Some(reason)), (Some(reason), None));
        }
        assert_eq!(bench.at(3_610, 0, Some(reason)).1, Some(waits(reason)));
        assert_eq!(bench.at(3_611, 1, None), (None, Some(Line::Flows(Duration::from_secs(3_611)))));
    }

    #[test]
    fn another_reason_is_another_line_and_two_in_turn_are_two_lines() {
        let mut bench = bench();
        let lines: Vec<Line> = (0..600)
            .filter_map(|second| {
                let reason = if second % 2 == 0 { Reason::NoCoordinator } else { Reason::StartingAgain };
                bench.at(second, 0, Some(reason)).1
            })
            .collect();
        assert_eq!(lines, [waits(Reason::NoCoordinator), waits(Reason::StartingAgain)]);
    }

    #[test]
    fn what_flows_waits_for_nothing_and_a_link_that_is_down_has_its_own_line() {
        let mut bench = bench();
        for second in 0..100 {
            assert_eq!(bench.at(second, second + 1, Some(Reason::Sending)), (None, None));
        }
        for second in 110..200 {
            assert_eq!(bench.at(second, 100, Some(Reason::NoBroker)).1, None);
        }
        assert_eq!(bench.at(200, 100, Some(Reason::NoBroker)).0, Some(Reason::NoBroker));
    }
}
