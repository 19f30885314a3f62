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
//!   for twice as long as the last ends took; with more waiting than the link takes, for sixteen times as long, so that
//!   the link carries readings nine tenths of the time ([`Patience`](crate::forward::patience::Patience)); or at
//!   [`MOST_EVENTS`]; or when nothing more may go before it is committed.
//!
//! # What the watermark says
//!
//! The last sequence that this lane has passed: sent in this transaction or earlier, or settled otherwise. **Dead letters
//! and parked events that it passes are on disk before it is sealed**: so after a crash, all that is held up to the
//! watermark and not settled otherwise was delivered, by Kafka's own word, and is released with the proof from it. What could
//! not be read when its turn came is passed as well, and named as left out (`unread.rs`).

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::types::RDKafkaErrorCode as Code;

use super::unread::Unread;
use super::{MOST_IN_FLIGHT, MOST_IN_FLIGHT_BYTES, MainLane, Phase, Renewal, Sent};
use crate::delivered::{Delivered, Word};
use crate::event::{RouteId, Sequence};
use crate::forward::producer::Producer;
use crate::forward::recall::{Recalled, Trouble};
use crate::forward::relay::ForwardError;
use crate::forward::session::{Session, Step, Terms};
use crate::forward::shared::{Shared, add, unix_ms};
use crate::forward::status::{Reason, Transactions};
use crate::forward::talk::Snag;
use crate::forward::transaction::State;
use crate::forward::verdict::{Verdict, code_of, verdict};
use crate::forward::waiting::Obstacle;
use crate::forward::watermark_topic::Partitions;
use crate::planted::{self, Bug};
use crate::watermark::{Instance, Record, Waiting};

/// Events of a transaction: at 300 ms round trip 50,000 of them take 6 s, against 1 s for its ends. What is remembered of
/// each until the commit is 72 bytes.
const MOST_EVENTS: usize = 50_000;

/// Ends that take longer than this tell of a long link.
const FAR: Duration = Duration::from_millis(200);

/// There, twice as much is in librdkafka's hands: while one request is on its way, the next one gathers. It costs 3 MB,
/// and only there.
const FAR_IN_FLIGHT: usize = 6_000;
const FAR_IN_FLIGHT_BYTES: usize = 5 << 20;

/// A transaction is not kept open longer when nothing waits behind it, however slow the link is: readers wait for it.
const LONGEST: Duration = Duration::from_secs(4);

/// Fates that must be on disk before the watermark are there within a few 100 ms. After this time the disk fails, and
/// the transaction is given up before Kafka does so.
const FATES: Duration = Duration::from_secs(5);

/// A watermark of a start that the buffer does not know later would be a stranger's.
const UNWRITTEN: &str = "this start cannot be written to the buffer's disk, which is full or fails; make room on it";

/// A producer that had to go on under another name (`Names`) goes back to its first one after this time: a clone of this
/// gateway has the first one as well, and is told by it. When that is not free yet, it costs some seconds.
const AWAY: Duration = Duration::from_secs(600);

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
    /// What the watermark passes without vouching for it.
    unread: Unread,
    /// When the first event of the present transaction came into our hands, and when it was begun.
    since: Instant,
    begun: Instant,
    /// How long the ends of the last transactions took: no reading is on its way then.
    ends: Duration,
    /// When the watermark of the present one was sent.
    sealed_at: Instant,
    /// Since when more was in hand than the link took.
    waiting_since: Option<Instant>,
    /// A broker answers, by the link's last word.
    link_is_up: bool,
    behind_was_said: bool,
    /// Holes of earlier starts were declared again.
    declared_again: bool,
    /// Whose Kafka's last watermark is, until the buffer hears of it.
    heard: Option<Instance>,
    /// When this producer was fenced, the last few times.
    fenced: VecDeque<Instant>,
}

impl MainLane {
    /// From now on with transactions. The present producer is a transactional one.
    /// What Kafka has of `lanes` is asked for as well, once.
    pub(in crate::forward) fn with_transactions(
        mut self,
        terms: Arc<Terms>,
        released: Sequence,
        lanes: Vec<Arc<str>>,
        timeout: Duration,
    ) -> Self {
        let now = Instant::now();
        let session = Session::new(Arc::clone(&terms), lanes.clone(), None, timeout, now);
        self.lanes_asked_for = lanes;
        self.known_topic = Some(Arc::clone(&terms.topic));
        self.transacting = Some(Transacting {
            session,
            known: None,
            word: None,
            passed: released,
            committed: terms.lives.watermark,
            terms,
            sealed: 0,
            unread: Unread::default(),
            since: now,
            begun: now,
            ends: Duration::ZERO,
            sealed_at: now,
            waiting_since: None,
            link_is_up: true,
            behind_was_said: false,
            declared_again: false,
            heard: None,
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

    pub(super) fn is_transactional(&self) -> bool {
        self.transacting.is_some()
    }

    fn state(&self) -> Option<State> {
        self.transacting.as_ref().map(|transacting| transacting.session.state())
    }

    /// Under another name for long enough, and between two transactions?
    fn wants_home(&mut self, now: Instant) -> bool {
        let long = self.away_since.is_some_and(|since| now.saturating_duration_since(since) > AWAY);
        if long && self.state() == Some(State::Idle) {
            self.away_since = None;
            return self.names.is_away();
        }
        false
    }

    /// What is in the way, as far as transactions know.
    pub(super) fn session_obstacle(&self, producer: &Producer, now: Instant) -> Option<Obstacle> {
        let transacting = self.transacting.as_ref()?;
        if !transacting.terms.may_speak() {
            return Some(Obstacle::new(Reason::Buffer, UNWRITTEN.to_owned()));
        }
        let topic = &transacting.terms.topic;
        let (reason, why) = match transacting.session.state() {
            State::Starting => return Some(registering(producer)),
            State::Recalling => {
                let Trouble { why, topic_unusable, another_gateway } = transacting.session.trouble();
                if another_gateway {
                    (Reason::OtherTransaction, why)
                } else if topic_unusable || why.contains("has no leader") {
                    (Reason::WatermarkTopic, why)
                } else if why.is_empty() {
                    (Reason::ReadingWatermark, format!("the watermark is being read from topic {topic}"))
                } else {
                    (Reason::ReadingWatermark, why)
                }
            }
            State::Sealing => {
                (Reason::WatermarkTopic, format!("topic {topic} has not confirmed this gateway's watermark yet"))
            }
            State::Committing | State::Aborting | State::Proving => {
                (Reason::EndingTransaction, "Kafka has not confirmed the end of a transaction yet".to_owned())
            }
            State::Closing if producer.oldest(now).is_none() => {
                (Reason::Buffer, "what became of other readings is not on disk yet".to_owned())
            }
            State::Idle | State::Filling | State::Closing | State::Over => return None,
        };
        Some(Obstacle::new(reason, why))
    }

    /// What is in the way of a start.
    pub(in crate::forward) fn trouble(&self) -> Trouble {
        let Some(transacting) = &self.transacting else { return Trouble::default() };
        if !transacting.terms.may_speak() {
            return Trouble { why: UNWRITTEN.to_owned(), ..Trouble::default() };
        }
        transacting.session.trouble()
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
    pub(super) fn open_session(&mut self, shared: &mut Shared, now: Instant) {
        let timeout = shared.patience.timeout();
        if let Some(transacting) = &mut self.transacting {
            let (terms, known) = (Arc::clone(&transacting.terms), transacting.known.take());
            transacting.session = Session::new(terms, self.lanes_asked_for.clone(), known, timeout, now);
        }
        if let Some(status) = shared.transactions() {
            status.timeout = timeout;
        }
    }

    /// This lane has dealt with that event.
    pub(super) fn passed(&mut self, sequence: Sequence) {
        if let Some(transacting) = &mut self.transacting {
            transacting.passed = sequence;
            transacting.unread.dealt_with(sequence);
        }
    }

    /// Reading starts again behind that sequence.
    pub(super) fn gone_back(&mut self, after: Sequence) {
        if let Some(transacting) = &mut self.transacting {
            transacting.passed = after;
            transacting.unread.gone_back(after);
        }
    }

    /// These cannot be read and are passed by. What a committed watermark covers was delivered, or is on its list already.
    pub(in crate::forward) fn unread(&mut self, first: Sequence, last: Sequence, shared: &mut Shared) {
        let mut first = first;
        if let Some(transacting) = &mut self.transacting {
            first = first.max(transacting.committed.saturating_add(1));
            transacting.unread.add(first, last);
        }
        if first <= last {
            shared.outcome.unread(first, last, Instant::now());
        }
    }

    /// One turn of *Flowing*.
    pub(super) fn transact(&mut self, producer: Producer, shared: &mut Shared, now: Instant) -> Phase {
        // Before the step, which seals when nothing is in flight any more: what was given up has not come back.
        if self.state().is_some_and(|state| matches!(state, State::Filling | State::Closing)) {
            self.abandon_stalled(&producer, shared, now);
        }
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
            Step::Seal => self.seal(producer, shared, now),
            Step::Committed(proofs, ending) => {
                shared.times.heard(producer.told());
                self.committed(proofs, ending, shared, now);
                Phase::Flowing(producer)
            }
            Step::Aborted => self.aborted(producer, shared, now),
            // Between two transactions nothing is in doubt, and a producer with other times costs no repeat.
            Step::Send if transacting.needs_other_times(shared) => {
                transacting.known = transacting.session.partitions();
                self.end(producer, Renewal::AtOnce, shared, now)
            }
            Step::Send => self.fill(producer, shared, now),
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
        if self.wants_home(now) {
            self.names.home(&mut self.config);
            return self.end(producer, Renewal::AtOnce, shared, now);
        }
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
        if transacting.terms.may_speak()
            && let Some(of) = transacting.heard.take()
            && !planted::planted(Bug::SpeakUnwritten)
        {
            shared.outcome.heard(of, now);
        }
        let in_hand = !self.pending.events.is_empty();
        if transacting.session.state() == State::Filling {
            planted::die(Bug::DieFilling);
            let all_back = producer.in_flight().0 == 0;
            let lingered = now.saturating_duration_since(transacting.since) >= self.linger;
            if in_hand && !all_back && self.pending.gather_until.is_none() {
                transacting.waiting_since.get_or_insert(now);
            }
            let open = now.saturating_duration_since(transacting.begun);
            let worth = transacting.worth(shared).max(self.linger);
            if held_up
                || all_back && (in_hand && self.pending.gather_until.is_none() || lingered)
                || open >= worth && lingered
                || producer.uncommitted() >= MOST_EVENTS
                || shared.declarations.is_full()
            {
                transacting.session.close(now);
            }
        } else if (asks || !in_hand && shared.declarations.any())
            && transacting.link_is_up
            && transacting.terms.may_speak()
        {
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
        if producer.uncommitted() > 0 {
            planted::die(Bug::DieSealing);
        }
        #[cfg(feature = "planted")]
        if planted::planted(Bug::CursorBeforeCommit) {
            let proofs = producer.take_batch().forge();
            shared.outcome.delivered(proofs, now);
            shared.settle().unwrap_or_default();
            std::thread::sleep(Duration::from_millis(500));
        }
        let Some(transacting) = &mut self.transacting else { return Phase::Flowing(producer) };
        transacting.sealed_at = now;
        // Dead letters and parked events whose chunk could not be read when they were to be copied: they are held.
        for (first, last) in shared.settler.take_unread() {
            transacting.unread.add(first, last);
        }
        // Never back: what a watermark has covered stays covered.
        transacting.sealed = transacting.passed.max(transacting.committed);
        let (instance, at_ms) = (transacting.terms.lives.present, unix_ms());
        let (delivered, commit) = (transacting.sealed, shared.settler.rests_on());
        let unread = transacting.unread.seal();
        let mut records = vec![Record::Main { instance, delivered, commit, unread, at_ms }];
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
        transacting.unread.committed();
        // Registering the first partitions is a round trip as well, of four.
        let ends = now.saturating_duration_since(transacting.sealed_at).mul_f64(4.0 / 3.0);
        // The mean of the last few: one slow commit makes no habit.
        transacting.ends = match transacting.ends {
            Duration::ZERO => ends,
            before => before.mul_f64(0.75).saturating_add(ends.mul_f64(0.25)),
        };
        let all = now.saturating_duration_since(transacting.begun);
        shared.patience.committed(transacting.ends, all, transacting.waiting_since.is_some(), now);
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
        let or_else = if self.abandoned { Renewal::AtOnce } else { Renewal::AfterWait(cause.0, cause.1) };
        let renewal = self.judge(&producer, shared, now).unwrap_or(or_else);
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
            None if self.abandoned => self.end(producer, Renewal::AtOnce, shared, now),
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
        transacting.heard = Some(recalled.main.as_ref().map_or(transacting.terms.lives.present, Word::instance));
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
        shared.patience.began(recalled.round_trip);
        self.lanes_asked_for = Vec::new();
        shared.recalled_lanes.get_or_insert(recalled.lanes);
        shared.partitions = Some(recalled.partitions);
        shared.is_itself = true;
        transacting.committed = transacting.committed.max(through);
        if let Some(word) = &recalled.main {
            transacting.unread.recalled(word.unread(), through == transacting.sealed);
        }
        transacting.word = recalled.main;
        shared.changed = true;
        if let Some(status) = shared.transactions() {
            status.watermark = transacting.committed;
        }
        tracing::debug!(watermark = through, "kafka: watermark known");
    }
}

/// What is in the way of `init_transactions`.
fn registering(producer: &Producer) -> Obstacle {
    match producer.snag().map(|(snag, _)| snag) {
        Some(Snag::NoCoordinator(words)) => {
            Obstacle::new(Reason::NoCoordinator, format!("Kafka names no coordinator for transactions: {words}"))
        }
        Some(Snag::StillOpen) => Obstacle::new(
            Reason::LastTransaction,
            "Kafka has not ended this gateway's last transaction on all its partitions",
        ),
        Some(Snag::Other(words)) => {
            Obstacle::new(Reason::Registering, format!("Kafka does not let this gateway begin transactions: {words}"))
        }
        None => Obstacle::new(
            Reason::Registering,
            "the broker that coordinates this gateway's transactions has not answered yet",
        ),
    }
}

impl Transacting {
    /// Events and bytes that may be in flight.
    pub(super) fn window(&self) -> (usize, usize) {
        if self.ends > FAR { (FAR_IN_FLIGHT, FAR_IN_FLIGHT_BYTES) } else { (MOST_IN_FLIGHT, MOST_IN_FLIGHT_BYTES) }
    }

    /// How long the present transaction stays open.
    fn worth(&self, shared: &Shared) -> Duration {
        match self.waiting_since {
            Some(_) => shared.patience.worth(self.ends),
            None => self.ends.saturating_mul(2).min(LONGEST),
        }
    }

    /// No transaction is open, and the next one may take another time than this producer was made for.
    fn needs_other_times(&self, shared: &Shared) -> bool {
        self.session.state() == State::Idle && self.session.timeout() != shared.patience.timeout()
    }

    /// The proof for an event that this process did not see committed, if Kafka's word reaches so far.
    pub(super) fn vouched(&mut self, sequence: Sequence, route: RouteId) -> Option<Delivered> {
        let word = self.word.as_ref()?;
        let (proof, is_behind) = (word.delivered(sequence, route), sequence > word.through());
        if is_behind {
            self.word = None; // for good
        }
        proof
    }

    /// Is a transaction open, or can one be? Without an answering broker none is begun.
    pub(super) fn may_send(&mut self, producer: &Producer, since: Option<Instant>, now: Instant) -> Result<bool, Code> {
        if self.session.state() == State::Filling {
            return Ok(producer.uncommitted() < MOST_EVENTS);
        }
        if !self.link_is_up || !self.terms.may_speak() {
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
        self.waiting_since = None;
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
    fn lane_records(&mut self, instance: Instance, at_ms: i64) -> Vec<Record> {
        let topics = self.declarations.seal_lanes();
        let mut records = Vec::new();
        for topic in topics {
            let waiting = self.settler.lane(&topic).and_then(|lane| self.outlet.waiting(lane, 0).ok().flatten());
            let Some(stand) = self.lanes_delivered.get(&topic).copied() else { continue };
            let (delivered, holes) = (stand.delivered, (!stand.has_holes).then_some(0));
            let waiting = waiting.map(|(first, last, events)| Waiting { first, last, events });
            records.push(Record::Lane { kafka_topic: topic.to_string(), instance, delivered, waiting, holes, at_ms });
        }
        records
    }
}
