//! Saying a repeating trouble once.
//!
//! What is down fails the same way every few seconds for days, and a gateway's journal is small. So whoever logs such a
//! thing asks here first: what is new is said at once; what was said is counted, and said again with its count when a
//! minute has gone by. The clock is the caller's.
//!
//! [`Repeats`] is the rule for one thing, [`LogThrottle`] the same for a few texts. Who sums up with words of his own (a
//! broker link its trouble, a listener its clients) keeps [`Repeats`] beside them.

use std::time::{Duration, Instant};

/// Different texts that are each counted for themselves; so many are said in a minute, whatever their number.
const TEXTS: usize = 8;

/// What goes on is said again, with its count, so often.
pub(crate) const SAY_AGAIN: Duration = Duration::from_secs(60);

/// One thing that repeats: when it was said last, and how often it was not since then.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Repeats {
    said: Instant,
    unsaid: u64,
}

impl Repeats {
    /// It is said for the first time.
    pub(crate) fn said(now: Instant) -> Self {
        Self { said: now, unsaid: 0 }
    }

    /// It has come again.
    pub(crate) fn count(&mut self) {
        self.unsaid += 1;
    }

    /// How often it was not said.
    pub(crate) fn unsaid(&self) -> u64 {
        self.unsaid
    }

    /// Is it that long since it was said?
    pub(crate) fn is_due(&self, now: Instant, interval: Duration) -> bool {
        now.saturating_duration_since(self.said) >= interval
    }

    /// It is said again now, with the number of times it was not.
    pub(crate) fn say(&mut self, now: Instant) -> u64 {
        self.said = now;
        std::mem::take(&mut self.unsaid)
    }
}

/// The same trouble again and again: said once, then once a minute with a count.
#[derive(Debug, Default)]
pub(crate) struct LogThrottle {
    texts: Vec<Said>,
    /// Of texts for which there was no place.
    unsaid: u64,
}

#[derive(Debug)]
struct Said {
    text: String,
    repeats: Repeats,
}

impl LogThrottle {
    /// Shall it be said now? With the number of times it was not.
    pub(crate) fn again(&mut self, text: &str, now: Instant) -> Option<u64> {
        if let Some(Said { repeats, .. }) = self.texts.iter_mut().find(|said| said.text == text) {
            if !repeats.is_due(now, SAY_AGAIN) {
                repeats.count();
                return None;
            }
            return Some(repeats.say(now) + std::mem::take(&mut self.unsaid));
        }
        if self.texts.len() >= TEXTS {
            let oldest = self.texts.iter().enumerate().min_by_key(|(_, said)| said.repeats.said);
            let Some((oldest, _)) = oldest.filter(|(_, said)| said.repeats.is_due(now, SAY_AGAIN)) else {
                self.unsaid += 1;
                return None;
            };
            self.unsaid += self.texts.remove(oldest).repeats.unsaid;
        }
        self.texts.push(Said { text: text.to_owned(), repeats: Repeats::said(now) });
        Some(std::mem::take(&mut self.unsaid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_that_alternate_are_each_said_once_and_any_number_of_them_eight_times_a_minute() {
        let (mut throttle, start) = (LogThrottle::default(), Instant::now());
        let said = |throttle: &mut LogThrottle, at, kinds: u64| {
            (0..1000).filter_map(|n| throttle.again(&format!("{}", n % kinds), at)).collect::<Vec<u64>>()
        };
        assert_eq!(said(&mut throttle, start, 3), [0, 0, 0]);
        assert_eq!(said(&mut throttle, start, 500).len(), 5);
        let later = said(&mut throttle, start + SAY_AGAIN, 500);
        assert!(later.len() <= 8 && later.iter().sum::<u64>() > 1_500, "{later:?}");
    }
}
