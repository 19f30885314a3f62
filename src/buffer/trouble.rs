//! A repeating failure is said once, then summed up.

use std::fmt::Display;
use std::time::Instant;

use crate::log_throttle::SAY_AGAIN;

/// A failing disk, from its first failure to the first commit that works again.
#[derive(Debug, Default)]
pub(super) struct Trouble {
    current: Option<Current>,
}

#[derive(Debug)]
struct Current {
    text: String,
    said: Instant,
    failures: u64,
}

impl Trouble {
    /// It failed.
    pub(super) fn failed(&mut self, error: &impl Display) {
        let (text, now) = (error.to_string(), Instant::now());
        match &mut self.current {
            Some(current) if current.text == text && now.saturating_duration_since(current.said) < SAY_AGAIN => {
                current.failures += 1;
            }
            other => {
                let failures = other.as_ref().map_or(1, |current| current.failures + 1);
                tracing::error!(
                    error = text,
                    failures,
                    "buffer: a write failed; the agent acknowledges nothing until writes work again"
                );
                *other = Some(Current { text, said: now, failures });
            }
        }
    }

    /// A commit worked.
    pub(super) fn over(&mut self) {
        if let Some(Current { failures, .. }) = self.current.take() {
            tracing::info!(failures, "buffer: writes work again");
        }
    }

    /// What failed last.
    pub(super) fn text(&self) -> String {
        self.current.as_ref().map(|current| current.text.clone()).unwrap_or_default()
    }
}
