//! Saying a repeating trouble once.
//!
//! What is down fails the same way every few seconds for days, and a gateway's journal is small. So whoever logs such a
//! thing asks here first: what is new is said at once; what was said is counted, and said again with its count when a
//! minute has gone by. The clock is the caller's.

use std::time::{Duration, Instant};

/// Different texts that are each counted for themselves; so many are said in a minute, whatever their number.
const TEXTS: usize = 8;

/// What goes on is said again, with its count, so often.
const SAY_AGAIN: Duration = Duration::from_secs(60);

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
    at: Instant,
    unsaid: u64,
}

impl LogThrottle {
    /// Shall it be said now? With the number of times it was not.
    pub(crate) fn again(&mut self, text: &str, now: Instant) -> Option<u64> {
        let is_due = |said: &Said| now.saturating_duration_since(said.at) >= SAY_AGAIN;
        if let Some(said) = self.texts.iter_mut().find(|said| said.text == text) {
            if !is_due(said) {
                said.unsaid = said.unsaid.saturating_add(1);
                return None;
            }
            said.at = now;
            return Some(std::mem::take(&mut said.unsaid).saturating_add(std::mem::take(&mut self.unsaid)));
        }
        if self.texts.len() >= TEXTS {
            let oldest = self.texts.iter().enumerate().min_by_key(|(_, said)| said.at).filter(|(_, said)| is_due(said));
            let Some((oldest, _)) = oldest else {
                self.unsaid = self.unsaid.saturating_add(1);
                return None;
            };
            self.unsaid = self.unsaid.saturating_add(self.texts.remove(oldest).unsaid);
        }
        self.texts.push(Said { text: text.to_owned(), at: now, unsaid: 0 });
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
