//! The main lane with transactions: when one begins, how large it grows, what its watermark says, and what a lost one
//! means for the events.
//!
//! # When one is closed
//!
//! A transaction costs three to five round trips, whatever it carries. So it stays open for as long as its ends cost
//! ([`Pace`](super::super::pace) aside), and grows with the load and with the link:
//!
//! * it begins with the first record, when the records in hand have waited for company as `linger` asks;
//! * it is closed when `linger` is over, all its reports are there and nothing more is in hand; or when it has been open
//!   for twice as long as the last end took; or at [`MOST_EVENTS`]; or when nothing more may go before it is committed.
//!
//! # What the watermark says
//!
//! The last sequence that this lane has passed: sent in this transaction or earlier, or settled otherwise. **Dead letters
//! and parked events that it passes are on disk before it is sealed**: so after a crash, all that is held up to the
//! watermark and not settled otherwise was delivered, by Kafka's own word, and is released with the proof from it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::types::RDKafkaErrorCode as Code;

use super::{MOST_IN_FLIGHT, MOST_IN_FLIGHT_BYTES, MainLane, Phase, Renewal, Sent};
use crate::delivered::{Delivered, Word};
use crate::event::{RouteId, Sequence};
use crate::forward::producer::Producer;
use crate::forward::recall::{Recalled, Trouble};
use crate::forward::relay::ForwardError;
use crate::forward::session::{Session, Step, Terms};
use crate::forward::shared::{Shared, add, unix_ms};
use crate::forward::status::Transactions;
use crate::forward::transaction::State;
use crate::forward::verdict::{Verdict, code_of, verdict};
use crate::forward::watermark_topic::Partitions;
use crate::planted::{self, Bug};
use crate::watermark::{Record, Waiting};

/// Events of a transaction: at 300 ms round trip 20,000 of them take 4 s, far below `transaction.timeout.ms`. What is
/// remembered of each until the commit is 40 bytes.
const MOST_EVENTS: usize = 20_000;

/// Ends that take longer than this tell of a long link.
const FAR: Duration = Duration::from_millis(200);

/// There, twice as much is in librdkafka's hands: while one request is on its way, the next one gathers. It costs 3 MB,
/// and only there.
const FAR_IN_FLIGHT: usize = 6_000;
const FAR_IN_FLIGHT_BYTES: usize = 5 << 20;

/// A transaction is not kept open longer, however slow the link is: readers of its partitions wait for it.
const LONGEST: Duration = Duration::from_secs(4);

/// Fates that must be on disk before the watermark are there within a few 100 ms. After this time the disk fails, and
/// the transaction is given up before Kafka does so.
const FATES: Duration = Duration::from_secs(5);

/// So many times within so long, and a person should look: a link that is away ends one transaction in 15 s at most.
const MOST_FENCINGS: usize = 5;
const FENCING: Duration = Duration::from_secs(600);

/// Dead letters that are younger than the last watermark, less this, are declared again after a start: the clock of the
/// record is that of the same gateway, a moment earlier.
const SLACK_MS: i64 = 60_000;

/// ... at most so many: 1.5 MB on the wire once.
const MOST_DECLARED_AGAIN: u32 = 10_000;

/// The main lane's part that only transactions need.
pub(super) struct Transacting {
    terms: Arc<Terms>,
    session: Session,
    /// For the next session: nothing is in doubt.
    known: Option<Partitions>,
    /// Kafka's word about what was in doubt.
    word: Option<Word>,
    /// Everything up to here was sent or is settled.
    passed: Sequence,
    /// Everything up to here is covered by a committed watermark.
    committed: Sequence,
    /// The watermark of the transaction that is being sealed or committed.
    sealed: Sequence,
    /// When the first event of the present transaction came into our hands, and when it was begun.
    since: Instant,
    begun: Instant,
    /// How long the last transaction took from being closed to its end.
    ending: Duration,
    /// A broker answers, by the link's last word.
    link_is_up: bool,
    behind_was_said: bool,
    /// Holes of earlier starts were declared again.
    declared_again: bool,
    /// When this producer was fenced, the last few times.
    fenced: VecDeque<Instant>,
}

impl MainLane {
    /// From now on with transactions. The present producer is a transactional one.
    pub(in crate::forward) fn with_transactions(mut self, terms: Arc<Terms>, released: Sequence) -> Self {
        let now = Instant::now();
        let session = Session::new(Arc::clone(&terms), Vec::new(), None, now);
        self.known_topic = Some(Arc::clone(&terms.topic));
        self.transacting = Some(Transacting {
            session,
            known: None,
            word: None,
            passed: released,
            committed: terms.lives.watermark,
            terms,
            sealed: 0,
            since: now,
            begun: now,
            ending: Duration::ZERO,
            link_is_up: true,
            behind_was_said: false,
            declared_again: false,
            fenced: VecDeque::new(),
        });
        self
    }

    /// What the link says.
    pub(in crate::forward) fn link(&mut self, is_up: bool) {
        if let Some(transacting) = &mut self.transacting {
            transacting.link_is_up = is_up;
        }
    }

    /// A transaction is on its way, or a start.
    pub(in crate::forward) fn is_busy(&self) -> bool {
        let busy = |transacting: &Transacting| !matches!(transacting.session.state(), State::Idle | State::Over);
        self.producer().is_some() && (self.is_asking() || self.transacting.as_ref().is_some_and(busy))
    }

    /// What is in the way of a start.
    pub(in crate::forward) fn trouble(&self) -> Trouble {
        self.transacting.as_ref().map(|transacting| transacting.session.trouble()).unwrap_or_default()
    }

    /// A stop: the open transaction is closed and committed. True when none is left.
    pub(in crate::forward) fn wind_down(&mut self, shared: &mut Shared, now: Instant) -> bool {
        let Some(transacting) = &mut self.transacting else { return self.in_flight() == 0 };
        if transacting.session.state() == State::Filling {
            transacting.session.close(now);
        }
        if !transacting.session.state().is_open() {
            return true;
        }
        self.turn(shared, now);
        false
    }

    /// The producer is over for that reason. Being fenced once is what a transaction of ours gets that Kafka ended because it
    /// was open for too long; again and again, somebody else has our name.
    pub(super) fn note_fencing(&mut self, code: Code, now: Instant) {
        let Some(transacting) = &mut self.transacting else { return };
        if ![Code::Fenced, Code::ProducerFenced, Code::InvalidProducerEpoch].contains(&code) {
            return;
        }
        transacting.fenced.retain(|at| now.saturating_duration_since(*at) < FENCING);
        transacting.fenced.push_back(now);
        if transacting.fenced.len() >= MOST_FENCINGS {
            transacting.fenced.clear();
            tracing::error!(
                transactional_id = format!("tidegate-{}", transacting.terms.buffer_id),
                "kafka: this producer is shut out again and again: does another agent run with this buffer's identity?"
            );
        }
    }

    /// With a new producer.
    pub(super) fn open_session(&mut self, now: Instant) {
        if let Some(transacting) = &mut self.transacting {
            let (terms, known) = (Arc::clone(&transacting.terms), transacting.known.take());
            transacting.session = Session::new(terms, Vec::new(), known, now);
        }
    }

    /// This lane has dealt with that event.
    pub(super) fn passed(&mut self, sequence: Sequence) {
        if let Some(transacting) = &mut self.transacting {
            transacting.passed = sequence;
        }
    }

    /// Reading starts again behind that sequence.
    pub(super) fn gone_back(&mut self, after: Sequence) {
        self.passed(after);
    }

    /// One turn of *Flowing*.
    pub(super) fn transact(&mut self, producer: Producer, shared: &mut Shared, now: Instant) -> Phase {
        if !self.failures.is_empty() {
            return self.refused(producer, shared, now);
        }
        let Some(transacting) = &mut self.transacting else { return Phase::Flowing(producer) };
        match transacting.session.step(&producer, now) {
            Step::Wait => Phase::Flowing(producer),
            Step::Known(recalled) => {
                self.recalled(recalled, shared);
                Phase::Flowing(producer)
            }
            Step::Send => self.fill(producer, shared, now),
            Step::Seal => self.seal(producer, shared, now),
            Step::Committed(proofs, ending) => {
                shared.times.heard(producer.told());
                self.committed(proofs, ending, shared, now);
                Phase::Flowing(producer)
            }
            Step::Aborted => self.aborted(producer, shared, now),
            Step::Retried => {
                transacting.known = transacting.session.partitions();
                if let Some(status) = shared.transactions() {
                    add(&mut status.end_txn_retried, 1);
                }
                self.end(producer, Renewal::AtOnce, shared, now)
            }
            // Of the watermark: those of readings are judged.
            Step::Lost(Code::InvalidTimestamp, _) => {
                shared.times.refused_watermark();
                self.end(producer, Renewal::AtOnce, shared, now)
            }
            Step::Lost(code, detail) => self.end(producer, Renewal::AfterWait(code, detail), shared, now),
        }
    }

    fn fill(&mut self, producer: Producer, shared: &mut Shared, now: Instant) -> Phase {
        let mut held_up = false;
        let asks = self.asks_the_time(shared, now);
        if asks {
            self.pending.gather_until = None;
        }
        if !asks && self.is_ready(now) {
            self.pending.gather_until = None;
            match self.send_pending(&producer, shared, now) {
                Sent::Done => {}
                Sent::GroupDone => held_up = true,
                Sent::Failed => return Phase::Flowing(producer),
                Sent::BatchesTooLarge => return self.shrink(producer, shared, now),
                Sent::NotBegun(code) => {
                    return self.end(producer, Renewal::AfterWait(code, "begin a transaction".into()), shared, now);
                }
            }
        }
        let Some(transacting) = &mut self.transacting else { return Phase::Flowing(producer) };
        let in_hand = !self.pending.events.is_empty();
        if transacting.session.state() == State::Filling {
            planted::die(Bug::DieFilling);
            let all_back = producer.in_flight().0 == 0;
            let lingered = now.saturating_duration_since(transacting.since) >= self.linger;
            let open = now.saturating_duration_since(transacting.begun);
            let worth = transacting.ending.saturating_mul(2).max(self.linger).min(LONGEST);
            if held_up
                || all_back && (in_hand && self.pending.gather_until.is_none() || lingered)
                || open >= worth && lingered
                || producer.uncommitted() >= MOST_EVENTS
                || shared.declarations.is_full()
            {
                transacting.session.close(now);
            }
        } else if (asks || !in_hand && shared.declarations.any()) && transacting.link_is_up {
            // There is something to say, and no reading that would take it along; or Kafka's time is to be known first.
            if asks {
                shared.times.asked();
            }
            if let Err(error) = transacting.begin(&producer, None, now) {
                let renewal = Renewal::AfterWait(code_of(&error), "begin a transaction".into());
                return self.end(producer, renewal, shared, now);
            }
            transacting.session.close(now);
        }
        Phase::Flowing(producer)
    }

    /// A transaction with nothing but the watermark comes first, to hear Kafka's time.
    fn asks_the_time(&self, shared: &Shared, now: Instant) -> bool {
        let is_idle = self.transacting.as_ref().is_some_and(|own| own.session.state() == State::Idle);
        is_idle && shared.times.wants_to_ask() && (self.is_ready(now) || shared.times.is_urgent())
    }

    fn seal(&mut self, producer: Producer, shared: &mut Shared, now: Instant) -> Phase {
        match shared.fates_are_durable() {
            Ok(true) => {}
            Ok(false) => {
                let Some(transacting) = &self.transacting else { return Phase::Flowing(producer) };
                if now.saturating_duration_since(transacting.session.closed()) < FATES {
                    return Phase::Flowing(producer);
                }
                let why = "the buffer does not store what became of other readings".to_owned();
                return self.end(producer, Renewal::AfterWait(Code::Fail, why), shared, now);
            }
            Err(stopped) => {
                self.fault = Some(stopped.into());
                return Phase::Flowing(producer);
            }
        }
        planted::die(Bug::DieSealing);
        #[cfg(feature = "planted")]
        if planted::planted(Bug::CursorBeforeCommit) {
            let proofs = producer.take_batch().forge();
            shared.outcome.delivered(proofs, now);
            shared.settle().unwrap_or_default();
            std::thread::sleep(Duration::from_millis(500));
        }
        let Some(transacting) = &mut self.transacting else { return Phase::Flowing(producer) };
        // Never back: what a watermark has covered stays covered.
        transacting.sealed = transacting.passed.max(transacting.committed);
        let (instance, at_ms) = (transacting.terms.lives.present, unix_ms());
        let mut records = vec![Record::Main { instance, delivered: transacting.sealed, at_ms }];
        records.extend(shared.lane_records(instance, at_ms));
        records.extend(shared.declarations.seal());
        match transacting.session.seal(&producer, &records, shared.times.now_ms(), now) {
            Ok(()) => Phase::Flowing(producer),
            Err(code) => {
                let why = "send the watermark".to_owned();
                self.end(producer, Renewal::AfterWait(code, why), shared, now)
            }
        }
    }

    fn committed(&mut self, proofs: Vec<Delivered>, ending: Duration, shared: &mut Shared, now: Instant) {
        let Some(transacting) = &mut self.transacting else { return };
        transacting.committed = transacting.sealed;
        // The mean of the last few: one slow commit makes no habit.
        transacting.ending = transacting.ending.mul_f64(0.75).saturating_add(ending.mul_f64(0.25));
        let watermark = transacting.committed;
        self.backoff.reset();
        shared.declarations.committed();
        shared.count_delivered(proofs.len());
        shared.changed = true;
        if let Some(status) = shared.transactions() {
            add(&mut status.committed, 1);
            status.watermark = watermark;
            status.commits.note(ending);
        }
        shared.outcome.delivered(proofs, now);
        shared.outcome.watermark(watermark, now);
    }

    /// Records came back without confirmation.
    fn refused(&mut self, producer: Producer, shared: &mut Shared, now: Instant) -> Phase {
        let Some(transacting) = &mut self.transacting else { return Phase::Flowing(producer) };
        if transacting.session.refuse(&producer, self.failures.iter().map(|failure| failure.code), now) {
            return Phase::Flowing(producer);
        }
        match transacting.session.state() {
            State::Aborting => match transacting.session.step(&producer, now) {
                Step::Aborted => self.aborted(producer, shared, now),
                Step::Lost(code, detail) => self.give_up(producer, (code, detail), shared, now),
                // Only a wait is possible here.
                Step::Wait | Step::Known(_) | Step::Send | Step::Seal | Step::Committed(..) | Step::Retried => {
                    Phase::Flowing(producer)
                }
            },
            State::Starting
            | State::Recalling
            | State::Idle
            | State::Filling
            | State::Closing
            | State::Sealing
            | State::Committing
            | State::Proving
            | State::Over => {
                let cause = self.failures.first().map_or(Code::Fail, |failure| failure.code);
                self.give_up(producer, (cause, String::new()), shared, now)
            }
        }
    }

    /// The failures are judged all the same: what is known of them stays known.
    fn give_up(&mut self, producer: Producer, cause: (Code, String), shared: &mut Shared, now: Instant) -> Phase {
        let renewal = self.judge(&producer, shared, now).unwrap_or(Renewal::AfterWait(cause.0, cause.1));
        self.end(producer, renewal, shared, now)
    }

    /// All reports are there, nothing of the transaction is in Kafka for a reader to see.
    fn aborted(&mut self, producer: Producer, shared: &mut Shared, now: Instant) -> Phase {
        self.book(producer.reports(), shared, now);
        if let Some(status) = shared.transactions() {
            add(&mut status.aborted, 1);
        }
        let cause = self.failures.first().map(|failure| failure.code);
        let is_understood =
            |verdict| matches!(verdict, Verdict::Alone | Verdict::DeadLetter | Verdict::Retime | Verdict::ParkTopic);
        let understood = self.failures.iter().any(|failure| is_understood(verdict(failure.code)));
        match self.judge(&producer, shared, now) {
            Some(renewal) => self.end(producer, renewal, shared, now),
            // Sent again at once it would come back at once.
            None if !understood => {
                let renewal = Renewal::AfterWait(cause.unwrap_or(Code::Fail), "a transaction came to nothing".into());
                self.end(producer, renewal, shared, now)
            }
            None => {
                let restart = producer.give_up();
                self.generation = shared.next_generation();
                self.restart(restart, shared);
                Phase::Flowing(producer)
            }
        }
    }

    /// The watermark is known: never back, and never by a twin's word.
    fn recalled(&mut self, recalled: Recalled, shared: &mut Shared) {
        let Some(transacting) = &mut self.transacting else { return };
        let through = recalled.main.as_ref().map_or(0, Word::through);
        let most = transacting.sealed.max(transacting.committed);
        if let Some(word) = recalled.main.as_ref().filter(|word| !transacting.terms.is_ours(word, most)) {
            self.fault = Some(ForwardError::Twin { buffer_id: transacting.terms.buffer_id, through: word.through() });
            return;
        }
        if through < transacting.committed && !transacting.behind_was_said {
            transacting.behind_was_said = true;
            tracing::error!(
                topic = &*transacting.terms.topic,
                found = through,
                expected = transacting.committed,
                "kafka: the watermark topic has lost this buffer's watermark: deleted, expired, or another cluster? \
                 Going on from what the buffer knows; readings that were in doubt may come twice"
            );
        }
        if recalled.newer {
            tracing::warn!("kafka: a newer Tidegate has written to the watermark topic for this buffer");
        }
        if !std::mem::replace(&mut transacting.declared_again, true) {
            let since_ms = recalled.main.as_ref().map_or(i64::MIN, |word| word.at_ms().saturating_sub(SLACK_MS));
            shared.declare_again(through, since_ms);
        }
        shared.partitions = Some(recalled.partitions);
        shared.is_itself = true;
        transacting.committed = transacting.committed.max(through);
        transacting.word = recalled.main;
        shared.changed = true;
        if let Some(status) = shared.transactions() {
            status.watermark = transacting.committed;
        }
        tracing::debug!(watermark = through, "kafka: watermark known");
    }
}

impl Transacting {
    /// Events and bytes that may be in flight.
    pub(super) fn window(&self) -> (usize, usize) {
        if self.ending > FAR { (FAR_IN_FLIGHT, FAR_IN_FLIGHT_BYTES) } else { (MOST_IN_FLIGHT, MOST_IN_FLIGHT_BYTES) }
    }

    /// The proof for an event that this process did not see committed, if Kafka's word reaches so far.
    pub(super) fn vouched(&mut self, sequence: Sequence, route: RouteId) -> Option<Delivered> {
        let proof = self.word.as_ref()?.delivered(sequence, route);
        if proof.is_none() {
            self.word = None; // behind it for good
        }
        proof
    }

    /// Is a transaction open, or can one be? Without an answering broker none is begun.
    pub(super) fn may_send(&mut self, producer: &Producer, since: Option<Instant>, now: Instant) -> Result<bool, Code> {
        if self.session.state() == State::Filling {
            return Ok(producer.uncommitted() < MOST_EVENTS);
        }
        if !self.link_is_up {
            return Ok(false);
        }
        self.begin(producer, since, now).map_err(|error| code_of(&error)).map(|()| true)
    }

    fn begin(
        &mut self,
        producer: &Producer,
        since: Option<Instant>,
        now: Instant,
    ) -> Result<(), rdkafka::error::KafkaError> {
        self.session.begin(producer)?;
        self.since = since.unwrap_or(now);
        self.begun = now;
        Ok(())
    }
}

impl Shared {
    /// The counters of transactions.
    pub(in crate::forward) fn transactions(&mut self) -> Option<&mut Transactions> {
        self.status.transactions.as_mut()
    }

    /// Dead letters of earlier starts that the watermark topic may not know.
    fn declare_again(&mut self, after: Sequence, since_ms: i64) {
        match self.outlet.dead_letters(after, since_ms, MOST_DECLARED_AGAIN) {
            Ok(letters) => {
                for (letter, at_ms) in letters {
                    self.declarations.dead(letter.sequence, &letter.kafka_topic, &letter.reason, at_ms);
                }
            }
            Err(error) => tracing::warn!(%error, "kafka: dead letters cannot be declared again"),
        }
    }

    /// What is to be said about parked topics. All that was parked until now is on disk.
    fn lane_records(&mut self, instance: crate::watermark::Instance, at_ms: i64) -> Vec<Record> {
        let topics = self.declarations.seal_lanes();
        let mut records = Vec::new();
        for topic in topics {
            let waiting = self.settler.lane(&topic).and_then(|lane| self.outlet.waiting(lane, 0).ok().flatten());
            let Some(delivered) = self.lanes_delivered.get(&topic).copied() else { continue };
            let waiting = waiting.map(|(first, last, events)| Waiting { first, last, events });
            records.push(Record::Lane { kafka_topic: topic.to_string(), instance, delivered, waiting, at_ms });
        }
        records
    }
}
