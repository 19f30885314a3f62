//! What goes wrong with clients is said once for each cause, then summed up: a sensor that fails every second must
//! not fill the disk with words.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use crate::log_throttle::{Repeats, SAY_AGAIN};

/// The log of one listener about its clients.
#[derive(Debug)]
pub(super) struct ClientLog {
    listener: Arc<str>,
    /// Causes are constants of this crate: a dozen.
    causes: HashMap<&'static str, Said>,
}

/// How it is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tone {
    /// A sensor that goes without a goodbye.
    Everyday,
    /// Somebody should look at that client.
    Odd,
}

/// Whom it is about.
#[derive(Debug, Clone, Copy)]
pub(super) struct About<'a> {
    pub(super) peer: SocketAddr,
    /// Client id; empty when it is not known.
    pub(super) client: &'a str,
    pub(super) detail: &'a str,
}

#[derive(Debug)]
struct Said {
    tone: Tone,
    repeats: Repeats,
    last: String,
}

impl ClientLog {
    pub(super) fn new(listener: Arc<str>) -> Self {
        Self { listener, causes: HashMap::new() }
    }

    /// Something about one client; nothing was lost. `cause` is what repeats are counted by.
    pub(super) fn add(&mut self, now: Instant, tone: Tone, cause: &'static str, about: &About<'_>) {
        let About { peer, client, detail } = *about;
        let last = format!("{peer} {client:?} {detail}");
        if let Some(said) = self.causes.get_mut(cause) {
            said.repeats.count();
            said.last = last;
            return;
        }
        match tone {
            Tone::Everyday => tracing::info!(listener = %self.listener, %peer, client, detail, "{cause}"),
            Tone::Odd => tracing::warn!(listener = %self.listener, %peer, client, detail, "{cause}"),
        }
        self.causes.insert(cause, Said { tone, repeats: Repeats::said(now), last });
    }

    /// Sums up what has repeated and forgets what has stopped. Called about once a second.
    pub(super) fn sum_up(&mut self, now: Instant) {
        let listener = &self.listener;
        self.causes.retain(|cause, said| {
            if !said.repeats.is_due(now, SAY_AGAIN) {
                return true;
            }
            let repeats = said.repeats.say(now);
            if repeats > 0 {
                match said.tone {
                    Tone::Everyday => tracing::info!(%listener, repeats, last = said.last, "again: {cause}"),
                    Tone::Odd => tracing::warn!(%listener, repeats, last = said.last, "again: {cause}"),
                }
            }
            repeats > 0
        });
    }

    #[cfg(test)]
    fn counted(&self, cause: &str) -> Option<u64> {
        self.causes.get(cause).map(|said| said.repeats.unsaid())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeats_are_counted_and_a_cause_that_stops_is_forgotten() {
        let start = Instant::now();
        let peer = SocketAddr::from(([192, 0, 2, 1], 50000));
        let mut client_log = ClientLog::new("floor".into());
        for _ in 0..100_000 {
            client_log.add(start, Tone::Odd, "wrong password", &About { peer, client: "press-07", detail: "" });
        }
        assert_eq!(client_log.counted("wrong password"), Some(99_999));
        client_log.sum_up(start + SAY_AGAIN / 2);
        assert_eq!(client_log.counted("wrong password"), Some(99_999), "said again too early");
        client_log.sum_up(start + SAY_AGAIN);
        assert_eq!(client_log.counted("wrong password"), Some(0));
        client_log.sum_up(start + SAY_AGAIN * 2);
        assert_eq!(client_log.counted("wrong password"), None, "said once more after it has stopped");
    }
}
