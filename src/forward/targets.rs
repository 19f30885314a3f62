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
//! the first batch together; nothing after that. Where templates ask for the sender, it is so for each of its topics.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use crate::event::{Event, RouteId, Sender, Sequence};
use crate::route::{NoTarget, Routes, Target};

/// Memory for topics of one age: 4 MiB are 13,000 ordinary ones. When they are used up, what is young becomes old, and
/// what was old and not asked for since is forgotten; so no more than twice as much is remembered. A topic whose first
/// event is on its way is not forgotten: what may be in flight is less than this.
const AGE_BYTES: usize = 4 << 20;

/// Charged for a topic beside its names: its place in the map, its target, the counters of what is shared.
const OVERHEAD_BYTES: usize = 200;

/// Number of a producer in this process, drawn anew when it starts again after failures.
pub(super) type Generation = u64;

/// The routes and what was found out with them.
#[derive(Debug)]
pub(super) struct Targets {
    routes: Arc<Routes>,
    /// The templates ask who has published; otherwise one place an MQTT topic is enough.
    by_sender: bool,
    present: Ages<(Arc<str>, Option<Arc<Sender>>)>,
    /// What no present route matches: by the route that it was taken in under.
    former: Ages<(Arc<str>, Option<Arc<Sender>>, RouteId)>,
}

/// What is remembered, by age.
#[derive(Debug)]
struct Ages<K> {
    young: HashMap<K, Known>,
    young_bytes: usize,
    old: HashMap<K, Known>,
}

/// What is known of an MQTT topic.
#[derive(Debug)]
pub(super) struct Known {
    /// Where it goes.
    pub(super) target: Arc<Target>,
    proof: Proof,
    /// Memory.
    cost: usize,
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
        Self { by_sender: routes.name_the_sender(), routes, present: Ages::new(), former: Ages::new() }
    }

    /// What the operator has written.
    pub(super) fn routes(&self) -> &Routes {
        &self.routes
    }

    /// Where an event goes: by the present routes, else by the one that it was taken in under.
    pub(super) fn find(&mut self, event: &Event) -> Result<&mut Known, NoTarget> {
        let sender = event.sender.as_ref().filter(|_| self.by_sender);
        let place = (Arc::clone(&event.topic), sender.cloned());
        if self.present.knows(&place) {
            return self.present.get(&place);
        }
        let former = (Arc::clone(&event.topic), sender.cloned(), event.route);
        if self.former.knows(&former) {
            return self.former.get(&former);
        }
        let by = sender.map(|sender| &**sender);
        match self.routes.target(&event.topic, by) {
            Err(NoTarget::NoRoute) => {
                let target = self.routes.former_target(&event.topic, by, event.route)?;
                self.former.remember(former.clone(), event, target);
                self.former.get(&former)
            }
            found => {
                self.present.remember(place.clone(), event, found?);
                self.present.get(&place)
            }
        }
    }

    /// That producer has sent its first event of that place.
    pub(super) fn sent(&mut self, event: &Event, producer: Generation, first: Sequence) {
        if let Ok(known) = self.find(event) {
            known.proof = Proof::Asked(producer, first);
        }
    }
}

impl<K: Eq + Hash> Ages<K> {
    fn new() -> Self {
        Self { young: HashMap::new(), young_bytes: 0, old: HashMap::new() }
    }

    /// Is it remembered? Then it is young again.
    fn knows(&mut self, place: &K) -> bool {
        if self.young.contains_key(place) {
            return true;
        }
        let Some((place, known)) = self.old.remove_entry(place) else { return false };
        self.put(place, known);
        true
    }

    /// What is known of it; it was put there before.
    fn get(&mut self, place: &K) -> Result<&mut Known, NoTarget> {
        self.young.get_mut(place).ok_or(NoTarget::NoRoute)
    }

    fn remember(&mut self, place: K, event: &Event, mut target: Target) {
        if target.key == event.topic {
            target.key = Arc::clone(&event.topic); // mostly; so it is in memory once
        }
        let user = |by: &Arc<Sender>| by.user.as_ref().map_or(0, |user| user.len());
        let sender = event.sender.as_ref().map_or(0, |by| by.client.len() + user(by));
        let names = [event.topic.len(), target.key.len(), target.topic.len(), sender];
        let cost = OVERHEAD_BYTES + names.into_iter().sum::<usize>();
        self.put(place, Known { target: Arc::new(target), proof: Proof::None, cost });
    }

    fn put(&mut self, place: K, known: Known) {
        self.young_bytes += known.cost;
        if self.young_bytes > AGE_BYTES {
            self.old = std::mem::take(&mut self.young);
            self.young_bytes = known.cost;
        }
        self.young.insert(place, known);
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
    use bytes::Bytes;

    use super::*;
    use crate::event::{Clock, Qos};
    use crate::route::filter::Filter;
    use crate::route::template::{KeyTemplate, TopicTemplate};
    use crate::route::{Route, ValueFormat};

    fn routes() -> Routes {
        let from = Filter::parse("s/#").unwrap();
        let to = TopicTemplate::parse("s.{rest}", &from).unwrap();
        let key = KeyTemplate::parse("{topic}", &from).unwrap();
        Routes::new(vec![Route { name: "s/#".into(), from, to, key, value: ValueFormat::Payload }])
    }

    fn event(topic: &str, route: u16, client: Option<&str>) -> Event {
        Event {
            topic: topic.into(),
            payload: Bytes::new(),
            qos: Qos::AtLeastOnce,
            retain: false,
            dup: false,
            arrived_ms: 0,
            clock: Clock::default(),
            route: RouteId(route),
            sender: client.map(|client| Arc::new(Sender { client: client.into(), user: None })),
            properties: None,
        }
    }

    #[test]
    fn what_is_remembered_is_bounded_in_bytes_and_what_is_in_use_stays() {
        let mut targets = Targets::new(Arc::new(routes()));
        let busy = event("s/busy", 1, None);
        targets.find(&busy).unwrap();
        targets.sent(&busy, 1, 7);
        for n in 0..100_000 {
            targets.find(&event(&format!("s/{n}"), 1, None)).unwrap();
            if n % 5_000 == 0 {
                assert_eq!(targets.find(&busy).unwrap().turn(1, |_| false), Turn::NotYet, "after {n}");
            }
        }
        let all = targets.present.young.values().chain(targets.present.old.values());
        let bytes: usize = all.map(|known| known.cost).sum();
        assert!(bytes <= 2 * AGE_BYTES, "{bytes}");
    }

    #[test]
    fn events_without_a_present_route_go_by_the_one_that_they_were_taken_in_under() {
        let from = Filter::parse("old/#").unwrap();
        let to = TopicTemplate::parse("old", &from).unwrap();
        let key = KeyTemplate::parse("{topic}", &from).unwrap();
        let gone = Route { name: "old/#".into(), from, to, key, value: ValueFormat::Payload };
        let mut targets = Targets::new(Arc::new(routes().with_gone([(RouteId(9), gone)].into())));
        assert_eq!(&*targets.find(&event("old/1", 9, None)).unwrap().target.topic, "old");
        assert_eq!(targets.find(&event("old/1", 1, None)).map(|_| ()), Err(NoTarget::NoRoute));
        assert_eq!(&*targets.find(&event("s/1", 9, None)).unwrap().target.topic, "s.1");
    }

    #[test]
    fn senders_are_told_apart_where_templates_ask_for_them() {
        let from = Filter::parse("s/#").unwrap();
        let to = TopicTemplate::parse("s.{client}", &from).unwrap();
        let key = KeyTemplate::parse("{topic}", &from).unwrap();
        let route = Route { name: "s/#".into(), from, to, key, value: ValueFormat::Payload };
        let mut targets = Targets::new(Arc::new(Routes::new(vec![route])));
        let (one, other) = (event("s/1", 1, Some("a")), event("s/1", 1, Some("b")));
        assert_eq!(&*targets.find(&one).unwrap().target.topic, "s.a");
        targets.sent(&one, 1, 7);
        assert_eq!(&*targets.find(&other).unwrap().target.topic, "s.b");
        assert_eq!(targets.find(&other).unwrap().turn(1, |_| false), Turn::First, "it waits for nobody else's first");
        assert_eq!(targets.find(&one).unwrap().turn(1, |_| false), Turn::NotYet);
        let mut targets = Targets::new(Arc::new(routes()));
        for event in [one, other] {
            targets.find(&event).unwrap();
        }
        assert_eq!(targets.present.young.len(), 1, "one place a topic where nobody asks");
    }

    #[test]
    fn the_second_event_of_a_topic_waits_for_the_first_of_each_producer() {
        let target = Target { topic: "t".into(), key: "k".into(), value: ValueFormat::Payload, is_fixed: true };
        let mut known = Known { target: Arc::new(target), proof: Proof::None, cost: 0 };
        for producer in [1, 2] {
            assert_eq!(known.turn(producer, |_| false), Turn::First);
            known.proof = Proof::Asked(producer, 10);
            assert_eq!(known.turn(producer, |first| first != 10), Turn::NotYet);
            assert_eq!(known.turn(producer, |first| first == 10), Turn::Go);
            assert_eq!(known.turn(producer, |_| false), Turn::Go);
        }
    }
}
