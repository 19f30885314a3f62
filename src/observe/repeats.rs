//! Saying a repeating error once.
//!
//! A link that is down fails the same way every few seconds for days, and a gateway's journal is small. So the owner
//! of the link asks here before it logs: what is new is said at once; what was said is counted, and the count is said
//! when a minute has gone by and when the trouble ends. The clock is the caller's.
//!
//! ```
//! # use std::time::Instant;
//! # use tidegate::observe::repeats::Repeats;
//! # let mut repeats = Repeats::default();
//! # let cause = "connection refused";
//! for line in repeats.saw(cause, Instant::now()) {
//!     tracing::warn!(link = "plant", "{line}");
//! }
//! // … and when it works again:
//! for line in repeats.ended(Instant::now()) {
//!     tracing::info!(link = "plant", "{line}");
//! }
//! ```

use std::time::{Duration, Instant};

/// A text that goes on is said again, with its count, no more often than this.
pub(crate) const SAY_AGAIN: Duration = Duration::from_secs(60);

/// Different texts remembered: trouble that alternates between a few causes is still one trouble. The one that was
/// seen longest ago makes room.
pub(crate) const REMEMBERED: usize = 8;

/// What one link or stage has said. Owned by it.
#[derive(Debug, Default)]
pub(crate) struct Repeats {
    causes: Vec<Cause>,
}

#[derive(Debug)]
struct Cause {
    text: String,
    /// When it last stood in the log.
    said_at: Instant,
    seen_at: Instant,
    /// Seen since then.
    unsaid: u64,
}

impl Repeats {
    /// Takes down that this happened; gives what to log now: nothing, or this text, or its count, or also the count of
    /// one that is forgotten.
    #[must_use = "these lines belong into the log"]
    pub(crate) fn saw(&mut self, text: &str, now: Instant) -> Vec<String> {
        if let Some(cause) = self.causes.iter_mut().find(|cause| cause.text == text) {
            cause.seen_at = now;
            cause.unsaid = cause.unsaid.saturating_add(1);
            let due = now.saturating_duration_since(cause.said_at) >= SAY_AGAIN;
            return if due { cause.sum_up(now).into_iter().collect() } else { Vec::new() };
        }
        let mut lines = Vec::new();
        if self.causes.len() >= REMEMBERED
            && let Some((oldest, _)) = self.causes.iter().enumerate().min_by_key(|(_, cause)| cause.seen_at)
        {
            lines.extend(self.causes.remove(oldest).sum_up(now));
        }
        lines.push(text.to_owned());
        self.causes.push(Cause { text: text.to_owned(), said_at: now, seen_at: now, unsaid: 0 });
        lines
    }
}

impl Cause {
    fn sum_up(&mut self, now: Instant) -> Option<String> {
        let seconds = now.saturating_duration_since(self.said_at).as_secs();
        let times = std::mem::take(&mut self.unsaid);
        self.said_at = now;
        (times > 0).then(|| format!("{} (repeated {times} times in {seconds} s)", self.text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: [&str; 0] = [];

    #[test]
    fn the_same_text_is_said_once_and_then_counted() {
        let (mut repeats, start) = (Repeats::default(), Instant::now());
        assert_eq!(repeats.saw("refused", start), ["refused"]);
        for second in 1..60 {
            assert_eq!(repeats.saw("refused", start + Duration::from_secs(second)), NOTHING);
        }
        let minute = start + SAY_AGAIN;
        assert_eq!(repeats.saw("refused", minute), ["refused (repeated 60 times in 60 s)"]);
        assert_eq!(repeats.saw("refused", minute + Duration::from_secs(5)), NOTHING);
        assert_eq!(repeats.saw("refused", minute + SAY_AGAIN), ["refused (repeated 2 times in 60 s)"]);
    }

    #[test]
    fn causes_that_alternate_are_each_said_once() {
        let (mut repeats, now) = (Repeats::default(), Instant::now());
        let lines: Vec<String> = (0..100).flat_map(|i| repeats.saw(["a", "b", "c"][i % 3], now)).collect();
        assert_eq!(lines, ["a", "b", "c"]);
    }

    #[test]
    fn memory_is_bounded_and_what_is_forgotten_is_summed_up() {
        let (mut repeats, start) = (Repeats::default(), Instant::now());
        assert_eq!(repeats.saw("first", start), ["first"]);
        assert_eq!(repeats.saw("first", start), NOTHING);
        let mut lines = Vec::new();
        for number in 1..=1000 {
            lines.extend(repeats.saw(&format!("cause {number}"), start + Duration::from_secs(number)));
        }
        assert_eq!(lines.iter().filter(|line| line.contains("repeated")).count(), 1);
        assert!(lines.contains(&"first (repeated 1 times in 8 s)".to_owned()), "{:?}", &lines[..10]);
        assert_eq!(repeats.causes.len(), REMEMBERED);
    }
}
