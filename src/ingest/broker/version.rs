//! Which MQTT version to speak. 5 is better for us: its Receive Maximum lifts the broker's window (mosquitto's default
//! of 20 caps the throughput at 20 messages a commit), and it lets us announce our packet limit.
//!
//! `version = "5"` falls back to 3.1.1 when the broker says that it does not know 5, and tries 3.1.1 once when it has
//! closed three connections in a row without a word. What worked is kept for a day, so that a broker that is merely
//! restarting does not make us change back and forth, and an upgraded one is noticed. `version = "3.1.1"` never tries 5.

use std::time::Instant;

use crate::ingest::limits::{FALLBACK_TIME, MAX_WORDLESS_CLOSES};
use crate::settings::MqttVersion;

/// The choice for one broker.
#[derive(Debug)]
pub(super) struct Version {
    wanted: MqttVersion,
    current: MqttVersion,
    wordless: u8,
    /// The current version was accepted then.
    accepted: Option<Instant>,
}

impl Version {
    pub(super) fn new(wanted: MqttVersion) -> Self {
        Self { wanted, current: wanted, wordless: 0, accepted: None }
    }

    /// The one in force.
    pub(super) fn current(&self) -> MqttVersion {
        self.current
    }

    /// The one to speak on a new connection.
    pub(super) fn for_connection(&mut self, now: Instant) -> MqttVersion {
        if self.current != self.wanted
            && self.accepted.is_some_and(|then| now.saturating_duration_since(then) >= FALLBACK_TIME)
        {
            self.current = self.wanted;
            self.accepted = None;
        }
        self.current
    }

    /// The broker accepted it.
    pub(super) fn accepted(&mut self, now: Instant) {
        self.wordless = 0;
        self.accepted.get_or_insert(now);
    }

    /// The broker said that it does not speak it. True when another one is tried next.
    pub(super) fn refused(&mut self) -> bool {
        if self.wanted == MqttVersion::V311 {
            return false;
        }
        self.change();
        true
    }

    /// The broker closed the connection instead of answering CONNECT.
    pub(super) fn closed_without_a_word(&mut self) {
        if self.wanted == MqttVersion::V311 || self.accepted.is_some() {
            return;
        }
        // From the bound on it is as good as for ever.
        self.wordless = self.wordless.saturating_add(1);
        if self.current == MqttVersion::V311 || self.wordless >= MAX_WORDLESS_CLOSES {
            self.change();
        }
    }

    fn change(&mut self) {
        self.wordless = 0;
        self.accepted = None;
        self.current = match self.current {
            MqttVersion::V5 => MqttVersion::V311,
            MqttVersion::V311 => MqttVersion::V5,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_of_5_falls_back_and_stays_there_for_a_day() {
        let now = Instant::now();
        let mut version = Version::new(MqttVersion::V5);
        assert_eq!(version.for_connection(now), MqttVersion::V5);
        assert!(version.refused());
        assert_eq!(version.for_connection(now), MqttVersion::V311);
        version.accepted(now);
        for _ in 0..10 {
            version.closed_without_a_word();
        }
        assert_eq!(
            version.for_connection(now + FALLBACK_TIME / 2),
            MqttVersion::V311,
            "closes do not change what worked"
        );
        assert_eq!(version.for_connection(now + FALLBACK_TIME), MqttVersion::V5, "a day later 5 is tried again");
        assert!(version.refused());
        assert_eq!(version.current(), MqttVersion::V311);
    }

    #[test]
    fn three_wordless_closes_give_3_1_1_one_try() {
        let now = Instant::now();
        let mut version = Version::new(MqttVersion::V5);
        let mut spoken = Vec::new();
        for _ in 0..8 {
            spoken.push(version.for_connection(now) == MqttVersion::V5);
            version.closed_without_a_word();
        }
        assert_eq!(spoken, [true, true, true, false, true, true, true, false]);
    }

    #[test]
    fn wordless_closes_of_a_broker_that_has_accepted_5_change_nothing() {
        let now = Instant::now();
        let mut version = Version::new(MqttVersion::V5);
        version.accepted(now);
        for _ in 0..10 {
            version.closed_without_a_word();
        }
        assert_eq!(version.for_connection(now + FALLBACK_TIME * 2), MqttVersion::V5);
    }

    #[test]
    fn a_configured_3_1_1_never_speaks_5() {
        let mut version = Version::new(MqttVersion::V311);
        assert!(!version.refused());
        for _ in 0..10 {
            version.closed_without_a_word();
        }
        assert_eq!(version.for_connection(Instant::now()), MqttVersion::V311);
    }
}
