//! Does the order hold? Within one Kafka partition the sequences of one MQTT topic must rise.
//!
//! Of each MQTT topic of a buffer in a partition the last sequence is kept, under a 64-bit hash of the three. Two of a
//! million of them share a hash once in forty million audits; and when they do, what is seen is a break that is none,
//! never the other way round.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

use crate::event::Sequence;

/// Entries: 10,000 sensors at 45 gateways. With 17 bytes each, in a table of 2^19 places of which 7/8 may be taken, they
/// take 9 MB and, while it grows, 13.
const MOST: usize = 450_000;

/// The last sequence of each MQTT topic.
#[derive(Debug)]
pub(super) struct Order {
    last: HashMap<u64, Sequence>,
    hasher: RandomState,
    most: usize,
}

/// What an event says of the order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum InOrder {
    /// It comes after the last one.
    Yes,
    /// It comes after this one, which is above it.
    No(Sequence),
    /// There is no room to know.
    Unknown,
}

impl Default for Order {
    fn default() -> Self {
        Self { last: HashMap::new(), hasher: RandomState::new(), most: MOST }
    }
}

impl Order {
    /// The next event of this MQTT topic; the numbers stand for the buffer and for the partition.
    pub(super) fn next(&mut self, buffer: usize, partition: usize, mqtt_topic: &[u8], sequence: Sequence) -> InOrder {
        let key = self.hasher.hash_one((buffer, partition, mqtt_topic));
        if let Some(last) = self.last.get_mut(&key) {
            if sequence < *last {
                return InOrder::No(*last);
            }
            *last = sequence;
            return InOrder::Yes;
        }
        if self.last.len() >= self.most {
            return InOrder::Unknown;
        }
        self.last.insert(key, sequence);
        InOrder::Yes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_topic_of_each_buffer_has_an_order_of_its_own_in_each_partition() {
        let mut order = Order::default();
        assert_eq!(order.next(0, 0, b"a", 5), InOrder::Yes);
        for (buffer, partition, topic) in [(1, 0, "a"), (0, 1, "a"), (0, 0, "b"), (0, 0, "")] {
            assert_eq!(order.next(buffer, partition, topic.as_bytes(), 3), InOrder::Yes);
        }
        assert_eq!(order.next(0, 0, b"a", 4), InOrder::No(5));
        assert_eq!(order.next(0, 0, b"a", 6), InOrder::Yes);
    }

    #[test]
    fn beyond_the_bound_known_topics_are_still_watched() {
        let mut order = Order { most: 1, ..Order::default() };
        assert_eq!(order.next(0, 0, b"a", 5), InOrder::Yes);
        assert_eq!(order.next(0, 0, b"b", 5), InOrder::Unknown);
        assert_eq!(order.next(0, 0, b"a", 4), InOrder::No(5));
    }
}
