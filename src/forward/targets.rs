//! Where each MQTT topic goes, remembered: a sensor repeats its topic all day. And whether its order is safe yet.
//!
//! # Proof of order
//!
//! Nothing may overtake a refused batch. librdkafka stops building requests then (`enable.gapless.guarantee`), and
//! Kafka refuses those that were built already, because a sequence number is missing before them. But Kafka can do so
//! only when it knows this producer on that partition: of an unknown one it takes any first number. Measured, with the
//! first batch of a producer refused: later ones were stored in 20 of 20 rounds with five requests in flight, and in
//! 8 of 100 with one, because librdkafka builds one ahead.
//!
//! So for each MQTT topic the first event that a producer sends must be confirmed before the second goes: then Kafka
//! knows the producer where this topic's events are. It costs about one round trip after a start, for all topics of
//! the first batch together; nothing after that.

use std::collections::HashMap;
use std::sync::Arc;

use crate::event::Sequence;
use crate::route::{NoTarget, Routes, Target};

/// Topics remembered. At 10,000 the map holds about 2.5 MB; with more topics than that it starts afresh now and then,
/// which costs a match of the routes for each.
const MOST: usize = 10_000;

/// Number of a producer in this process, drawn anew when it starts again after failures.
pub(super) type Generation = u64;

/// The routes and what was found out with them.
#[derive(Debug)]
pub(super) struct Targets {
    routes: Arc<Routes>,
    places: HashMap<Arc<str>, usize>,
    known: Vec<Known>,
}

/// What is known of an MQTT topic.
#[derive(Debug)]
pub(super) struct Known {
    /// Where it goes.
    pub(super) target: Arc<Target>,
    proof: Proof,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Proof {
    /// Nothing of it was sent.
    None,
    /// This is the first that the producer has sent.
    Asked(Generation, Sequence),
    /// The producer has had one confirmed.
    Proven(Generation),
}

impl Targets {
    /// Knows nothing yet.
    pub(super) fn new(routes: Arc<Routes>) -> Self {
        Self { routes, places: HashMap::new(), known: Vec::new() }
    }

    /// Where an event of that MQTT topic goes.
    pub(super) fn find(&mut self, mqtt_topic: &Arc<str>) -> Result<&mut Known, NoTarget> {
        let place = match self.places.get(mqtt_topic) {
            Some(place) => *place,
            None => self.learn(mqtt_topic)?,
        };
        self.known.get_mut(place).ok_or_else(|| NoTarget::NoRoute(mqtt_topic.to_string()))
    }

    /// That producer has sent its first event of that MQTT topic.
    pub(super) fn sent(&mut self, mqtt_topic: &Arc<str>, producer: Generation, first: Sequence) {
        if let Some(known) = self.places.get(mqtt_topic).and_then(|place| self.known.get_mut(*place)) {
            known.proof = Proof::Asked(producer, first);
        }
    }

    fn learn(&mut self, mqtt_topic: &Arc<str>) -> Result<usize, NoTarget> {
        let target = Arc::new(self.routes.target(mqtt_topic)?);
        if self.known.len() >= MOST {
            self.places.clear();
            self.known.clear();
        }
        let place = self.known.len();
        self.known.push(Known { target, proof: Proof::None });
        self.places.insert(Arc::clone(mqtt_topic), place);
        Ok(place)
    }
}

/// May an event of an MQTT topic go?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// Yes.
    Go,
    /// Yes, and it is this producer's first: to be noted with [`Targets::sent`].
    First,
    /// Not before the first one has come back.
    NotYet,
}

impl Known {
    /// May this producer send one now? `is_settled` says whether an event that it sent has come back.
    pub(super) fn turn(&mut self, producer: Generation, is_settled: impl FnOnce(Sequence) -> bool) -> Turn {
        match self.proof {
            Proof::Proven(generation) if generation == producer => Turn::Go,
            Proof::Asked(generation, first) if generation == producer => {
                if !is_settled(first) {
                    return Turn::NotYet;
                }
                self.proof = Proof::Proven(producer);
                Turn::Go
            }
            Proof::None | Proof::Proven(_) | Proof::Asked(..) => Turn::First,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::ValueFormat;

    #[test]
    fn the_second_event_of_a_topic_waits_for_the_first_of_each_producer() {
        let target = Target { topic: "t".into(), key: "k".into(), value: ValueFormat::Payload };
        let mut known = Known { target: Arc::new(target), proof: Proof::None };
        for producer in [1, 2] {
            assert_eq!(known.turn(producer, |_| false), Turn::First);
            known.proof = Proof::Asked(producer, 10);
            assert_eq!(known.turn(producer, |first| first != 10), Turn::NotYet);
            assert_eq!(known.turn(producer, |first| first == 10), Turn::Go);
            assert_eq!(known.turn(producer, |_| false), Turn::Go);
        }
    }
}
