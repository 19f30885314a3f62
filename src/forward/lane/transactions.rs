//! Parked lanes with transactions: what one says, and what a lost one means.
//!
//! All lanes share one transactional id, because one is sent at a time. Each lane has its own watermark record. It says
//! up to which event *in the lane's order* the lane is delivered, and what still waits. After a restart that event is
//! looked for in the lane: if it is there, it and all before it were delivered, and only the buffer did not hear of it;
//! if it is not, the buffer did. Dead letters among them are told by their holes, which every transaction of a group
//! declares again until the group is settled.

use std::sync::Arc;
use std::time::Instant;

use rdkafka::types::RDKafkaErrorCode as Code;

use super::{Group, Step, Try, dead_letter};
use crate::delivered::DeclaredHole;
use crate::delivered::Word;
use crate::event::Sequence;
use crate::forward::producer::Producer;
use crate::forward::recall::Recalled;
use crate::forward::session::{self, Session, Terms};
use crate::forward::shared::{Shared, Stand, add, unix_ms};
use crate::forward::transaction::State;
use crate::forward::verdict::code_of;
use crate::watermark::{Fate, Record, Waiting};

/// A lane's part that only transactions need.
pub(super) struct Transacting {
    terms: Arc<Terms>,
    session: Option<Session>,
    /// The pace wants this group committed before it goes on.
    held: bool,
    /// When the open transaction was begun.
    begun: Option<Instant>,
    /// The watermark of the transaction that is being sealed or committed.
    sealed: Sequence,
    /// What Kafka has of the lane and the buffer does not know.
    word: Option<Vouched>,
}

/// See the module's words.
struct Vouched {
    word: Word,
    /// The chunk that holds the last delivered event.
    chunk: i64,
    holes: Vec<DeclaredHole>,
}

impl Transacting {
    pub(super) fn new(terms: Arc<Terms>) -> Self {
        Self { terms, session: None, held: false, begun: None, sealed: 0, word: None }
    }

    fn state(&self) -> Option<State> {
        self.session.as_ref().map(Session::state)
    }

    /// Opens a transaction unless one is open.
    pub(super) fn begin(&mut self, producer: &Producer, now: Instant) -> Result<(), Code> {
        if self.state() == Some(State::Idle) {
            self.begun = Some(now);
        }
        self.session.as_mut().map_or(Ok(()), |session| session.begin(producer).map_err(|error| code_of(&error)))
    }
}

impl Try {
    /// With a new producer.
    pub(super) fn open_session(&mut self, shared: &Shared, now: Instant) {
        let Some(transacting) = &mut self.transacting else { return };
        // Where the lane stands is known unless a transaction of it is in doubt, or this is the first since the start.
        let known = shared.partitions.filter(|_| shared.lanes_delivered.contains_key(&self.topic));
        let lanes = vec![Arc::clone(&self.topic)];
        let timeout = shared.patience.timeout();
        transacting.session = Some(Session::new(Arc::clone(&transacting.terms), lanes, known, timeout, now));
        transacting.held = false;
    }

    /// The producer is gone.
    pub(super) fn end_session(&mut self) {
        if let Some(transacting) = &mut self.transacting {
            transacting.session = None;
        }
    }

    /// Records may go out.
    pub(super) fn may_send(&self, shared: &Shared) -> bool {
        let Some(transacting) = &self.transacting else { return true };
        let may_begin = shared.is_itself && transacting.terms.may_speak();
        may_begin && matches!(transacting.state(), Some(State::Idle | State::Filling)) && !transacting.held
    }

    /// The pace waits for what was sent.
    pub(super) fn hold_group(&mut self) {
        if let Some(transacting) = &mut self.transacting {
            transacting.held = true;
        }
    }

    /// No more of this group, or of this part of it, is to be sent before it is committed.
    pub(super) fn close_group(&mut self, shared: &Shared, now: Instant) {
        if let Some(own) = &mut self.transacting
            && own.begun.is_some_and(|begun| now.saturating_duration_since(begun) >= shared.patience.filling())
        {
            own.held = true; // the link takes no more of the group in the time of one
        }
        let all_sent = self.group.as_ref().is_none_or(|group| self.next >= group.events.len());
        if let Some(transacting) = &mut self.transacting
            && let Some(session) = &mut transacting.session
            && session.state() == State::Filling
            && (all_sent || transacting.held)
            && self.failures.is_empty()
        {
            session.close(now);
        }
        if let Some(transacting) = &mut self.transacting
            && transacting.state() == Some(State::Idle)
        {
            transacting.held = false; // nothing was sent, so nothing is to be waited for
        }
    }

    /// Goes on with the transaction; `None`: the lane may go on.
    pub(super) fn transact(&mut self, shared: &mut Shared, now: Instant) -> Option<Step> {
        let (Some(transacting), Some(producer)) = (&mut self.transacting, &self.producer) else { return None };
        match transacting.session.as_mut()?.step(producer, now) {
            session::Step::Send => None,
            session::Step::Wait => Some(if self.gets_nowhere(shared, now) { Step::Refused(None) } else { Step::On }),
            session::Step::Known(recalled) => Some(self.recalled(recalled, shared)),
            session::Step::Seal => Some(self.seal(shared, now)),
            session::Step::Committed(proofs, ending) => {
                transacting.held = false;
                transacting.begun = None;
                let stand = Stand { delivered: transacting.sealed, has_holes: !self.place.dead.is_empty() };
                shared.lanes_delivered.insert(Arc::clone(&self.topic), stand);
                if let Some(status) = shared.transactions() {
                    add(&mut status.committed, 1);
                    status.commits.note(ending);
                }
                self.confirmed(proofs, shared, now);
                None
            }
            session::Step::Aborted => Some(Step::On),
            session::Step::Retried => {
                if let Some(status) = shared.transactions() {
                    add(&mut status.end_txn_retried, 1);
                }
                self.renew(shared, now);
                Some(Step::On)
            }
            session::Step::Lost(code, detail) => {
                self.is_stuck = code == Code::ConcurrentTransactions;
                if code == Code::InvalidTransactionTimeout {
                    shared.patience.refused();
                }
                tracing::debug!(topic = &*self.topic, %code, detail, "kafka: a parked topic's producer is over");
                self.renew(shared, now);
                Some(Step::Refused(None))
            }
        }
    }

    /// Kafka refused records. True while the transaction is being aborted; then they are judged.
    pub(super) fn is_aborting(&mut self, now: Instant) -> bool {
        let Some(producer) = &self.producer else { return false };
        let Some(session) = self.transacting.as_mut().and_then(|own| own.session.as_mut()) else { return false };
        if session.refuse(producer, self.failures.iter().map(|failure| failure.code), now) {
            return true;
        }
        if session.state() != State::Aborting {
            return false;
        }
        let waits = matches!(session.step(producer, now), session::Step::Wait);
        if !waits {
            self.failures.extend(producer.reports().failures);
        }
        waits
    }

    /// A stop: what was begun is committed. True when nothing is open any more.
    pub(super) fn wind_down(&mut self, shared: &mut Shared, now: Instant) -> bool {
        let state = self.transacting.as_ref().and_then(Transacting::state);
        if !state.is_some_and(State::is_open) || !self.failures.is_empty() {
            return true;
        }
        if state == Some(State::Filling) {
            self.hold_group();
            self.close_group(shared, now);
        }
        self.transact(shared, now).is_some_and(|step| !matches!(step, Step::On))
    }

    /// What the word vouches for of the group that was just read counts as sent.
    pub(super) fn vouch(&mut self) {
        let (Some(transacting), Some(group)) = (&mut self.transacting, &self.group) else { return };
        let Some(Vouched { word, chunk: last, holes }) = &transacting.word else { return };
        let mut from = 0_usize;
        let mut beyond = false;
        for (chunk, end) in &group.chunks {
            beyond |= chunk > last;
            let events = group.events.get(from..*end).unwrap_or_default();
            from = *end;
            for stored in events.iter().filter(|_| chunk <= last) {
                let hole = holes.iter().find(|hole| (hole.first..=hole.last).contains(&stored.sequence));
                let Some(proof) = word.delivered(stored.sequence, stored.event.route) else { continue };
                if !self.place.done.insert(stored.sequence) {
                    continue;
                }
                match hole {
                    Some(hole) => self.place.dead.push(dead_letter(&self.topic, stored, hole.reason.clone())),
                    None => self.place.confirmed.push(proof),
                }
            }
        }
        if beyond {
            transacting.word = None;
        }
    }

    fn recalled(&mut self, mut recalled: Recalled, shared: &mut Shared) -> Step {
        let word = recalled.lanes.remove(&*self.topic);
        let through = word.as_ref().map_or(0, Word::through);
        let Some(transacting) = &mut self.transacting else { return Step::On };
        // What a twin says is not true of this lane. The main lane will find it out as well, and end this life.
        let words = [recalled.main.as_ref(), word.as_ref()];
        if words.into_iter().flatten().any(|word| !transacting.terms.is_ours(word, Sequence::MAX)) {
            return Step::Refused(None);
        }
        let stand = Stand { delivered: through, has_holes: !recalled.holes.is_empty() };
        shared.lanes_delivered.insert(Arc::clone(&self.topic), stand);
        let Some((word, lane)) = word.zip(shared.settler.lane(&self.topic)) else { return Step::On };
        match shared.outlet.parked_at(lane, through) {
            Ok(Some(chunk)) => {
                let holes = recalled.holes.into();
                transacting.word = Some(Vouched { word, chunk, holes });
                self.vouch();
                Step::On
            }
            Ok(None) => Step::On,
            Err(error) => {
                tracing::warn!(%error, topic = &*self.topic, "kafka: the lane of a parked topic cannot be read");
                shared.lanes_delivered.remove(&self.topic);
                Step::Refused(None)
            }
        }
    }

    fn seal(&mut self, shared: &mut Shared, now: Instant) -> Step {
        // A chunk that could not be read is behind all that this watermark vouches for; and dead letters of the groups
        // before are on disk: this word's holes are all that a reader must know.
        match shared.fates_are_durable() {
            Ok(true) => {}
            Ok(false) if !self.gets_nowhere(shared, now) => return Step::On,
            Ok(false) | Err(_) => return Step::Refused(None),
        }
        let (Some(group), Some(producer)) = (&self.group, &self.producer) else { return Step::Refused(None) };
        let Some(last) = self.next.checked_sub(1).and_then(|at| group.events.get(at)) else {
            return Step::Refused(None);
        };
        let sealed = last.sequence;
        let unsettled = self.place.done.len().saturating_add(producer.uncommitted());
        let waiting = waiting(group, self.next, unsettled, shared);
        let Some(transacting) = &mut self.transacting else { return Step::Refused(None) };
        let (at_ms, kafka_ms) = (unix_ms(), shared.times.now_ms());
        let kafka_topic = self.topic.to_string();
        let instance = transacting.terms.lives.present;
        let holes = u64::try_from(self.place.dead.len()).ok();
        let mut records = vec![Record::Lane { kafka_topic, instance, delivered: sealed, waiting, holes, at_ms }];
        records.extend(self.place.dead.iter().map(|letter| Record::Hole {
            first: letter.sequence,
            last: letter.sequence,
            fate: Fate::DeadLettered,
            reason: letter.reason.clone(),
            kafka_topic: Some(letter.kafka_topic.to_string()),
            at_ms,
        }));
        transacting.sealed = sealed;
        // Until it is committed nobody knows where the lane stands.
        shared.lanes_delivered.remove(&self.topic);
        let sealed = transacting.session.as_mut().map(|session| session.seal(producer, &records, kafka_ms, now));
        if matches!(sealed, Some(Ok(()))) { Step::On } else { Step::Refused(None) }
    }

    fn renew(&mut self, shared: &mut Shared, now: Instant) {
        self.retire(shared, now);
        self.next = 0; // what is done is left out
        self.pace.restart();
    }
}

/// What is still held of the lane when the first `next` events of the group, `gone` in all, are delivered.
fn waiting(group: &Group, next: usize, gone: usize, shared: &Shared) -> Option<Waiting> {
    let before = group.chunks.first().map_or(0, |(id, _)| id.saturating_sub(1));
    let behind = group.chunks.last().map_or(0, |(id, _)| *id);
    let (_, last, held) = shared.outlet.waiting(group.lane, before).ok().flatten()?;
    let events = held.saturating_sub(u64::try_from(gone).unwrap_or(u64::MAX));
    let first = match group.events.get(next) {
        Some(stored) => stored.sequence,
        None => shared.outlet.waiting(group.lane, behind).ok().flatten()?.0,
    };
    (events > 0).then_some(Waiting { first, last, events })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::buffer::LaneId;
    use crate::clock::Clock;
    use crate::event::{Event, Qos, RouteId, Stored};
    use crate::forward::lane::LeftOff;
    use crate::forward::session::tests::terms;
    use crate::watermark::Instance;

    fn stored(sequence: Sequence) -> Stored {
        let event = Event {
            topic: "m".into(),
            payload: Bytes::new(),
            qos: Qos::AtLeastOnce,
            retain: false,
            dup: false,
            arrived_ms: 1,
            clock: Clock::default(),
            route: RouteId(1),
            sender: None,
            properties: None,
        };
        Stored { sequence, event }
    }

    /// A lane whose chunks hold these events, with Kafka's word that one of the events is the last delivered.
    fn vouched(chunks: &[(i64, &[Sequence])], last: (Sequence, i64), holes: &[Sequence], place: LeftOff) -> Try {
        let mut transacting = Transacting::new(Arc::new(terms(rdkafka::ClientConfig::new())));
        let hole = |sequence: &Sequence| DeclaredHole {
            first: *sequence,
            last: *sequence,
            reason: "too large".to_owned(),
            kafka_topic: Some("late".to_owned()),
        };
        let (through, chunk) = last;
        let word = Word::forged(through, Instance(1));
        transacting.word = Some(Vouched { word, chunk, holes: holes.iter().map(hole).collect() });
        let mut own = Try::new(Arc::from("late"), place, Some(transacting), Instant::now());
        let mut group = Group { lane: LaneId(1), chunks: Vec::new(), events: Vec::new() };
        for (chunk, sequences) in chunks {
            group.events.extend(sequences.iter().copied().map(stored));
            group.chunks.push((*chunk, group.events.len()));
        }
        own.group = Some(group);
        own.vouch();
        own
    }

    /// Delivered, dead, and whether the word is still of use.
    fn fates(own: &Try) -> (Vec<Sequence>, Vec<Sequence>, bool) {
        let confirmed = own.place.confirmed.iter().map(crate::delivered::Delivered::sequence).collect();
        let dead = own.place.dead.iter().map(|letter| letter.sequence).collect();
        (confirmed, dead, own.transacting.as_ref().is_some_and(|own| own.word.is_some()))
    }

    #[test]
    fn what_kafka_has_of_a_lane_is_not_sent_again_up_to_its_last_event() {
        let own = vouched(&[(10, &[3, 7]), (11, &[9, 12])], (9, 11), &[], LeftOff::default());
        assert_eq!(fates(&own), (vec![3, 7, 9], vec![], true));
        assert_eq!(own.place.done.into_iter().collect::<Vec<_>>(), [3, 7, 9]);
    }

    #[test]
    fn a_word_ends_with_its_chunk_whatever_sequences_stand_behind() {
        // Parked again after a try: a lower sequence behind a higher one.
        let own = vouched(&[(10, &[3, 9]), (11, &[4, 5])], (9, 10), &[], LeftOff::default());
        assert_eq!(fates(&own), (vec![3, 9], vec![], false));
    }

    #[test]
    fn declared_holes_among_them_are_dead_letters_with_their_reason() {
        let own = vouched(&[(10, &[3, 7, 9])], (9, 10), &[7], LeftOff::default());
        assert_eq!(fates(&own), (vec![3, 9], vec![7], true));
        assert_eq!(own.place.dead.first().map(|letter| letter.reason.as_str()), Some("too large"));
    }

    #[test]
    fn what_was_settled_before_is_settled_once() {
        let place = LeftOff { done: [3, 7].into(), ..LeftOff::default() };
        let mut own = vouched(&[(10, &[3, 7, 9])], (9, 10), &[], place);
        own.vouch();
        assert_eq!(fates(&own), (vec![9], vec![], true));
    }
}
