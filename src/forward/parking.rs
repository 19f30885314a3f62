//! Kafka topics that are missing or forbidden: their events wait in lanes of their own, in order, while all others flow.
//!
//! ```text
//!            refused: wait 1 s, 2 s, … 30 s
//!           ┌───────────────────┬──────────────────────────┐
//!           ▼                   │                          │
//!   ──▶ Waiting ──due──▶ Trying ┴──lane looks empty, ──▶ Closing ──empty for certain──▶ direct
//!  park     ▲               │      or has caught up
//!           └──another's turn
//! ```
//!
//! While a topic is here, every new event for it goes behind the parked ones. Under a steady inflow a lane would never
//! be empty, because what is parked shows up in the lane only after the buffer's next commit. So at the end, in
//! *Closing*, the main lane is held at the first event for this topic until all that was parked is on disk and sent:
//! one commit and a round trip or two. Then the topic is direct again, and order was kept all the way.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::status::ParkedTopic;
use crate::buffer::Ticket;

/// A parked topic rests so long before it is tried: whoever creates it wants to see it flow.
const FIRST_REST: Duration = Duration::from_secs(1);

/// ... and no longer than this: what a person is willing to stand by for. A try costs a connection and a few small requests.
const LONGEST_REST: Duration = Duration::from_secs(30);

/// With many parked topics the longest wait is longer, so that all of them together are tried no more than once in this
/// time: 1,000 missing topics cost a thin link 10 kB/s, and each is tried every 17 minutes.
const EACH: Duration = Duration::from_secs(1);

/// Why a topic is parked that nobody has asked Kafka for.
pub(super) const UNASKED: &str = "new: Kafka has not been asked for it yet";

/// All parked topics. Bounded by what the buffer holds: a topic is here only while events wait for it.
#[derive(Debug, Default)]
pub(super) struct Parking {
    topics: HashMap<Arc<str>, Parked>,
}

#[derive(Debug)]
struct Parked {
    reason: String,
    since: Instant,
    since_ms: i64,
    stage: Stage,
    wait: Duration,
    /// Kafka was asked.
    tried: bool,
    /// Events parked in this process and not yet handed to the buffer.
    unhanded: bool,
    /// The newest settlement that touched this lane.
    ticket: Ticket,
    /// Events that were sent from the lane.
    sent: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Until then.
    Waiting(Instant),
    /// The lane is being sent, one event first.
    Trying,
    /// The lane looked empty.
    Closing,
    /// Never tried: what waits here has no topic that it may go to.
    Shut,
    /// As `Trying`, but events go past the lane: only when that bug is planted.
    OpenAtOnce,
}

/// What to do with an event for a Kafka topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Gate {
    /// Send it.
    Direct,
    /// Park it behind the others.
    Park,
    /// Not now: the lane is closing.
    Hold,
}

/// A topic that is direct again.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Opened {
    /// How long it was parked.
    pub(super) parked_for: Duration,
    /// Events that had waited.
    pub(super) events: u64,
}

impl Parking {
    /// Parks a topic; false when it was parked already.
    pub(super) fn park(&mut self, topic: &str, reason: &str, now: Instant, now_ms: i64) -> bool {
        if self.topics.contains_key(topic) {
            return false;
        }
        self.enter(Arc::from(topic), reason, now, now_ms, FIRST_REST);
        true
    }

    /// A lane that the buffer still held at start: tried at once.
    pub(super) fn recovered(&mut self, topic: Arc<str>, now: Instant, now_ms: i64) {
        self.enter(topic, "it was parked before the agent started", now, now_ms, Duration::ZERO);
    }

    fn enter(&mut self, topic: Arc<str>, reason: &str, now: Instant, now_ms: i64, wait: Duration) {
        let parked = Parked {
            reason: reason.to_owned(),
            since: now,
            since_ms: now_ms,
            stage: Stage::Waiting(later(now, wait)),
            wait: FIRST_REST,
            tried: false,
            unhanded: false,
            ticket: 0,
            sent: 0,
        };
        self.topics.insert(topic, parked);
    }

    /// What to do with an event for that topic.
    pub(super) fn gate(&self, topic: &str) -> Gate {
        if self.topics.is_empty() {
            return Gate::Direct;
        }
        match self.topics.get(topic).map(|parked| parked.stage) {
            None | Some(Stage::OpenAtOnce) => Gate::Direct,
            Some(Stage::Waiting(_) | Stage::Trying | Stage::Shut) => Gate::Park,
            Some(Stage::Closing) => Gate::Hold,
        }
    }

    /// An event of that topic goes into the next settlement.
    pub(super) fn parked_one(&mut self, topic: &str) {
        if let Some(parked) = self.topics.get_mut(topic) {
            parked.unhanded = true;
        }
    }

    /// The settlement with all that was parked until now was handed to the buffer.
    pub(super) fn handed_over(&mut self, ticket: Ticket) {
        for parked in self.topics.values_mut().filter(|parked| parked.unhanded) {
            parked.unhanded = false;
            parked.ticket = ticket;
        }
    }

    /// A chunk of the lane was settled.
    pub(super) fn lane_settled(&mut self, topic: &str, events: u64) {
        if let Some(parked) = self.topics.get_mut(topic) {
            parked.unhanded = true; // its settlement, too, must be on disk before the topic is direct again
            parked.sent += events;
        }
    }

    /// The topic whose turn it is to be tried: the one that is due longest. It is in `Trying` then.
    pub(super) fn next_due(&mut self, now: Instant) -> Option<Arc<str>> {
        let (topic, parked) = self
            .topics
            .iter_mut()
            .filter_map(|(topic, parked)| match parked.stage {
                Stage::Waiting(until) if until <= now => Some(((parked.tried, until), topic, parked)),
                Stage::Waiting(_) | Stage::Trying | Stage::Closing | Stage::Shut | Stage::OpenAtOnce => None,
            })
            // A new topic does not stand in line behind a thousand that were missing the last time.
            .min_by_key(|(turn, ..)| *turn)
            .map(|(_, topic, parked)| (topic, parked))?;
        parked.stage = Stage::Trying;
        parked.tried = true;
        Some(Arc::clone(topic))
    }

    /// When the next topic is due.
    pub(super) fn next_wake(&self) -> Option<Instant> {
        self.topics
            .values()
            .filter_map(|parked| match parked.stage {
                Stage::Waiting(until) => Some(until),
                Stage::Trying | Stage::Closing | Stage::Shut | Stage::OpenAtOnce => None,
            })
            .min()
    }

    /// Still refused, or the try came to nothing: wait longer. True when Kafka had not been asked for it before.
    pub(super) fn refused(&mut self, topic: &str, reason: Option<&str>, now: Instant) -> bool {
        let longest = (EACH * u32::try_from(self.topics.len()).unwrap_or(u32::MAX)).max(LONGEST_REST);
        let Some(parked) = self.topics.get_mut(topic) else { return false };
        let was_unasked = parked.reason == UNASKED && reason.is_some();
        if let Some(reason) = reason {
            reason.clone_into(&mut parked.reason);
        }
        parked.stage = Stage::Waiting(later(now, parked.wait));
        parked.wait = (parked.wait * 2).min(longest);
        was_unasked
    }

    /// A lane that is never sent.
    pub(super) fn shut(&mut self, topic: &str, reason: &str, now: Instant, now_ms: i64) {
        if !self.topics.contains_key(topic) {
            self.enter(Arc::from(topic), reason, now, now_ms, FIRST_REST);
        }
        if let Some(parked) = self.topics.get_mut(topic) {
            parked.stage = Stage::Shut;
        }
    }

    /// All that waited there went elsewhere.
    pub(super) fn forget(&mut self, topic: &str) {
        self.topics.remove(topic);
    }

    /// A try has ended without a word: as after a refusal, unless it is waiting already.
    pub(super) fn put_back(&mut self, topic: &str, now: Instant) {
        if let Some(parked) = self.topics.get(topic)
            && !matches!(parked.stage, Stage::Waiting(_))
        {
            let _asked_before = self.refused(topic, None, now);
        }
    }

    /// Kafka took something: the next waits are short again.
    pub(super) fn accepted(&mut self, topic: &str) {
        if let Some(parked) = self.topics.get_mut(topic) {
            parked.wait = FIRST_REST;
        }
    }

    /// The lane was read as empty, with that ticket on disk *before* it was read. Opens the topic when nothing can be
    /// on its way into the lane any more; otherwise it is closing.
    pub(super) fn seen_empty(&mut self, topic: &str, applied: Ticket, now: Instant) -> Option<Opened> {
        let parked = self.topics.get_mut(topic)?;
        if parked.unhanded || parked.ticket > applied {
            parked.stage = Stage::Closing;
            return None;
        }
        if parked.sent == 0 && parked.ticket == 0 {
            // Nothing has come into the lane yet, so Kafka was not asked either.
            parked.stage = Stage::Waiting(later(now, parked.wait));
            return None;
        }
        let opened = Opened { parked_for: now.saturating_duration_since(parked.since), events: parked.sent };
        self.topics.remove(topic);
        Some(opened)
    }

    /// What is left of the lane is about what came in during the last round trip. From now on nothing goes behind it.
    pub(super) fn caught_up(&mut self, topic: &str) {
        if let Some(parked) = self.topics.get_mut(topic)
            && parked.stage == Stage::Trying
            && parked.sent > 0
        {
            parked.stage = Stage::Closing;
        }
    }

    /// Is it not its turn?
    pub(super) fn waits(&self, topic: &str) -> bool {
        self.topics.get(topic).is_some_and(|parked| matches!(parked.stage, Stage::Waiting(_)))
    }

    /// Is another topic due?
    pub(super) fn others_wait(&self, topic: &str, now: Instant) -> bool {
        self.topics
            .iter()
            .any(|(other, parked)| &**other != topic && matches!(parked.stage, Stage::Waiting(until) if until <= now))
            && self.topics.get(topic).is_some_and(|parked| parked.stage == Stage::Trying)
    }

    /// It is not refused, only another's turn: due again at once, behind those that are due already.
    pub(super) fn gives_way(&mut self, topic: &str, now: Instant) {
        if let Some(parked) = self.topics.get_mut(topic) {
            parked.stage = Stage::Waiting(now);
        }
    }

    /// The planted bug: direct before the lane is empty.
    pub(super) fn open_at_once(&mut self, topic: &str) {
        if let Some(parked) = self.topics.get_mut(topic) {
            parked.stage = Stage::OpenAtOnce;
        }
    }

    /// For the status, by name.
    pub(super) fn status(&self) -> Vec<ParkedTopic> {
        let mut all: Vec<ParkedTopic> = self
            .topics
            .iter()
            .map(|(topic, parked)| ParkedTopic {
                topic: Arc::clone(topic),
                reason: parked.reason.clone(),
                since_ms: parked.since_ms,
            })
            .collect();
        all.sort_unstable_by(|a, b| a.topic.cmp(&b.topic));
        all
    }
}

fn later(now: Instant, wait: Duration) -> Instant {
    now.checked_add(wait).unwrap_or(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn second(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    fn parked(now: Instant) -> Parking {
        let mut parking = Parking::default();
        assert!(parking.park("t", "missing", now, 5));
        parking
    }

    #[test]
    fn only_the_parked_topic_is_held_back() {
        let now = Instant::now();
        let mut parking = parked(now);
        assert!(!parking.park("t", "missing", now, 6));
        assert_eq!((parking.gate("t"), parking.gate("other")), (Gate::Park, Gate::Direct));
        assert_eq!(parking.status(), [ParkedTopic { topic: Arc::from("t"), reason: "missing".into(), since_ms: 5 }]);
    }

    #[test]
    fn tries_come_after_1_2_4_up_to_30_seconds_and_are_quick_again_after_a_success() {
        let mut now = Instant::now();
        let mut parking = parked(now);
        for wait in [1, 1, 2, 4, 8, 16, 30, 30] {
            assert_eq!(parking.next_wake(), Some(now + second(wait)));
            assert_eq!(parking.next_due(now), None);
            now += second(wait);
            assert_eq!(parking.next_due(now).as_deref(), Some("t"));
            assert!(!parking.refused("t", None, now));
        }
        now += second(30);
        parking.next_due(now);
        parking.accepted("t");
        assert!(!parking.refused("t", None, now));
        assert_eq!(parking.next_wake(), Some(now + second(1)));
    }

    #[test]
    fn a_new_topic_is_tried_before_those_that_were_refused_and_many_wait_longer() {
        let now = Instant::now();
        let mut parking = Parking::default();
        for n in 0..100 {
            parking.park(&format!("old{n}"), "missing", now, 0);
        }
        let mut at = now;
        for _ in 0..1_000 {
            at += second(2);
            if let Some(topic) = parking.next_due(at) {
                assert!(!parking.refused(&topic, Some("missing"), at));
            }
        }
        assert!(parking.topics.values().any(|parked| parked.wait == second(100)));
        parking.park("new", UNASKED, at, 0);
        assert_eq!(parking.next_due(at + second(2)).as_deref(), Some("new"));
        assert!(parking.refused("new", Some("missing"), at));
    }

    #[test]
    fn what_is_shut_is_never_tried() {
        let now = Instant::now();
        let mut parking = Parking::default();
        parking.shut("beyond", "more than the limit", now, 0);
        assert_eq!((parking.next_due(now + second(99)), parking.next_wake()), (None, None));
        assert_eq!(parking.gate("beyond"), Gate::Park);
        parking.forget("beyond");
        assert_eq!(parking.status(), []);
    }

    #[test]
    fn topics_are_tried_in_turn() {
        let now = Instant::now();
        let mut parking = parked(now);
        parking.recovered(Arc::from("old"), now, 0);
        let later = now + second(60);
        assert_eq!(parking.next_due(later).as_deref(), Some("old"));
        assert_eq!(parking.next_due(later).as_deref(), Some("t"));
        assert_eq!(parking.next_due(later), None);
    }

    #[test]
    fn a_topic_is_direct_only_when_all_that_was_parked_is_on_disk_and_sent() {
        let now = Instant::now();
        let mut parking = parked(now);
        parking.parked_one("t");
        parking.next_due(now + second(1));
        // Parked, but not even handed over: an empty lane means nothing.
        assert_eq!(parking.seen_empty("t", 99, now), None);
        assert_eq!(parking.gate("t"), Gate::Hold);
        parking.handed_over(100);
        assert_eq!(parking.seen_empty("t", 99, now), None);
        // Now it shows up in the lane, and is sent. Meanwhile nothing may go behind it, or there would be no end.
        assert_eq!(parking.gate("t"), Gate::Hold);
        parking.lane_settled("t", 1);
        assert_eq!(parking.seen_empty("t", 100, now), None);
        parking.handed_over(101);
        let opened = parking.seen_empty("t", 101, now + second(9));
        assert_eq!(opened, Some(Opened { parked_for: second(9), events: 1 }));
        assert_eq!(parking.gate("t"), Gate::Direct);
        assert_eq!(parking.status(), []);
    }

    #[test]
    fn a_lane_that_has_caught_up_closes_and_one_that_never_sent_anything_does_not_open() {
        let now = Instant::now();
        let mut parking = parked(now);
        parking.next_due(now + second(1));
        assert_eq!(parking.seen_empty("t", 0, now), None, "Kafka was not asked");
        assert!(parking.waits("t"));
        parking.parked_one("t");
        parking.next_due(now + second(9));
        parking.caught_up("t");
        assert_eq!(parking.gate("t"), Gate::Park, "nothing was taken yet");
        parking.lane_settled("t", 1);
        parking.caught_up("t");
        assert_eq!(parking.gate("t"), Gate::Hold);
    }

    #[test]
    fn a_lane_that_is_worked_off_gives_way_to_one_that_is_due() {
        let now = Instant::now();
        let mut parking = parked(now);
        parking.next_due(now + second(1));
        assert!(!parking.others_wait("t", now + second(5)));
        parking.park("other", "missing", now, 5);
        assert!(!parking.others_wait("t", now), "not due yet");
        let later = now + second(5);
        assert!(parking.others_wait("t", later));
        parking.gives_way("t", later);
        assert_eq!(parking.next_due(later).as_deref(), Some("other"));
    }

    #[test]
    fn a_refusal_while_closing_lets_the_main_lane_go_on() {
        let now = Instant::now();
        let mut parking = parked(now);
        parking.parked_one("t");
        parking.next_due(now + second(1));
        parking.seen_empty("t", 0, now);
        assert_eq!(parking.gate("t"), Gate::Hold);
        assert!(!parking.refused("t", Some("not authorized"), now));
        assert_eq!(parking.gate("t"), Gate::Park);
        assert_eq!(parking.status()[0].reason, "not authorized");
    }
}
