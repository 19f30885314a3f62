//! What a sensor publishes, and how.

use std::time::Duration;

use crate::client::keep;
use crate::wire::{Connect, Message, Version};

/// What to publish, and how. Reading `n` is the same bytes whenever and wherever it is made, so that the books need not
/// keep payloads.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Client id, and the beginning of every payload. Without `/`.
    pub name: String,
    /// Reading `n` goes to topic `n` modulo their number.
    pub topics: Vec<String>,
    /// Readings are filled up to this.
    pub payload_bytes: usize,
    /// Payloads that cannot be compressed by more than a quarter.
    pub noisy: bool,
    /// 0, 1 or 2.
    pub qos: u8,
    /// MQTT version.
    pub version: Version,
    /// Unanswered readings at a time; less if the other side bears less (it can say so in MQTT 5).
    pub window: usize,
    /// How fast; `None` = as fast as they are answered.
    pub pace: Option<Pace>,
    /// How many in all; `None` = until it is stopped.
    pub count: Option<u64>,
    /// Remember when each reading was written and answered, for figures.
    pub stamped: bool,
    /// Credentials and the like; the client id is set from `name`.
    pub connect: Connect,
}

impl Plan {
    /// 100-byte readings to one topic, MQTT 5, a window of 20.
    pub fn new(name: &str, topic: &str, qos: u8) -> Self {
        Self {
            name: name.to_owned(),
            topics: vec![topic.to_owned()],
            payload_bytes: 100,
            noisy: false,
            qos,
            version: Version::V5,
            // MQTT 3.1.1 cannot say what it bears; mosquitto bears 20 by default and mixes up the order beyond.
            window: 20,
            pace: None,
            count: None,
            stamped: false,
            connect: keep(name),
        }
    }

    /// That many and no more.
    #[must_use]
    pub fn count(mut self, count: u64) -> Self {
        self.count = Some(count);
        self
    }

    /// So many a second.
    #[must_use]
    pub fn rate(self, per_second: u32) -> Self {
        self.share(Pace { per_second: u64::from(per_second), index: 0, publishers: 1 })
    }

    /// A share of what several publish together.
    #[must_use]
    pub fn share(mut self, pace: Pace) -> Self {
        self.pace = Some(pace);
        self
    }

    /// To several topics in turn.
    #[must_use]
    pub fn topics(mut self, topics: Vec<String>) -> Self {
        self.topics = topics;
        self
    }

    /// Payloads of that size of which each byte takes six bits on the wire.
    #[must_use]
    pub fn noise(mut self, payload_bytes: usize) -> Self {
        self.payload_bytes = payload_bytes;
        self.noisy = true;
        self
    }

    /// That many unanswered.
    #[must_use]
    pub fn window(mut self, window: usize) -> Self {
        self.window = window;
        self
    }

    /// In that version.
    #[must_use]
    pub fn version(mut self, version: Version) -> Self {
        self.version = version;
        self
    }

    /// Topic of reading `n`.
    pub fn topic(&self, n: u64) -> &str {
        let index = n as usize % self.topics.len().max(1);
        self.topics.get(index).map_or("", String::as_str)
    }

    /// Payload of reading `n`: `name/n` and then JSON that differs from reading to reading.
    pub fn payload(&self, n: u64) -> Vec<u8> {
        let value = n.wrapping_mul(2_654_435_761) % 100_000;
        let mut text = format!(
            "{}/{n} {{\"t\":{},\"v\":{}.{:02},\"u\":\"C\"",
            self.name,
            1_700_000_000 + n,
            value / 100,
            value % 100
        );
        let mut noise = fastrand::Rng::with_seed(n);
        while text.len() + 1 < self.payload_bytes {
            text.push(if self.noisy {
                char::from(b'0' + noise.u8(..64))
            } else {
                char::from(b'a' + (text.len() as u64 ^ n) as u8 % 16)
            });
        }
        text.push('}');
        text.into_bytes()
    }

    /// The publisher and number that a payload claims to be.
    pub fn name_and_number(payload: &[u8]) -> Option<(&str, u64)> {
        let end = payload.iter().position(|byte| *byte == b' ')?;
        let (name, number) = std::str::from_utf8(payload.get(..end)?).ok()?.split_once('/')?;
        Some((name, number.parse().ok()?))
    }

    /// Reading `n`.
    pub fn message(&self, n: u64) -> Message {
        Message { topic: self.topic(n).to_owned(), payload: self.payload(n), qos: self.qos, ..Message::default() }
    }
}

/// How fast several publishers are together, and which of them this one is: their readings come evenly.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    pub per_second: u64,
    pub index: u64,
    pub publishers: u64,
}

impl Pace {
    /// How many readings this one should have published by now.
    pub fn due(&self, elapsed: Duration) -> u64 {
        let of_all = u128::from(self.per_second) * elapsed.as_micros() / 1_000_000;
        let rounded_up_for_the_first = u128::from(self.publishers - (self.index + 1));
        let due = (of_all + rounded_up_for_the_first) / u128::from(self.publishers);
        u64::try_from(due).unwrap_or(u64::MAX)
    }

    /// When this one's reading `n` is due.
    pub fn time_of(&self, n: u64) -> Duration {
        let of_all = n * self.publishers + self.index + 1;
        Duration::from_micros((of_all * 1_000_000).div_ceil(self.per_second.max(1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_say_who_they_are_and_differ() {
        let plan = Plan::new("p", "t", 1);
        assert_eq!(plan.payload(12).len(), 100);
        assert_eq!(Plan::name_and_number(&plan.payload(12)), Some(("p", 12)));
        assert_eq!(Plan::name_and_number(b"\xff\xfe "), None);
        let all: std::collections::BTreeSet<Vec<u8>> = (0..1_000).map(|n| plan.payload(n)).collect();
        assert_eq!(all.len(), 1_000);
    }

    #[test]
    fn the_fleet_publishes_what_is_due_evenly_and_no_more() {
        let due = |elapsed| [0, 1, 2, 3].map(|index| Pace { per_second: 10, index, publishers: 4 }.due(elapsed));
        assert_eq!(due(Duration::ZERO), [0, 0, 0, 0]);
        assert_eq!(due(Duration::from_secs(1)), [3, 3, 2, 2]);
        assert_eq!(due(Duration::from_secs(2)), [5, 5, 5, 5]);
        let third = Pace { per_second: 7, index: 2, publishers: 4 };
        let time = third.time_of(5);
        assert_eq!((third.due(time), third.due(time.mul_f64(0.999))), (6, 5));
    }
}
