//! The transactions of one sender: when one begins, and when it is closed.
//!
//! # When one is closed
//!
//! A transaction costs three to five round trips, whatever it carries. So it stays open for as long as its ends cost
//! (the bisection aside), and grows with the load and with the link:
//!
//! * it begins with the first record, `linger` behind the one before, or at once after a pause, or when there is a batch that
//!   is worth it;
//! * it is closed when all its reports are there and nothing more is in hand, but one that began early not before
//!   [`OPEN_EARLY`] is over, or what was left of `linger`; or when it has been open for twice as long as the last ends took;
//!   with more waiting than the link takes, for sixteen times as long, so that
//!   the link carries readings nine tenths of the time ([`Timeouts`]); or at [`MOST_EVENTS`]; or when nothing more may go
//!   before it is committed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::types::RDKafkaErrorCode as Code;

use super::librdkafka_log::RegistrationProblem;
use super::next::Hand;
use super::producer::{Failure, Producer};
use super::session::{Session, Step, TransactionContext};
use super::status::Reason;
use super::time::Times;
use super::time_request::Answer;
use super::timeouts::Timeouts;
use super::transaction::State;
use super::verdict::code_of;
use super::waiting::Obstacle;
use super::watermark_reader::Trouble;
use super::watermark_topic::Partitions;
use crate::planted::{self, Bug};
use crate::watermark::Record;

/// Events in librdkafka's hands, if the link takes so many ([`Window`](super::window::Window)). Measured on loopback, with the
/// buffer in front: 327,000 a second drained with 2,500, 337,000 with 5,000, which take 2 MB more. At a round trip of
/// 300 ms it is 8,300 a second, about 1 Mbit/s.
pub(super) const MOST_IN_FLIGHT: usize = 2_500;

/// ... and their memory, librdkafka's overhead included: a part of the 20 MB that the agent may take at its peak.
pub(super) const MOST_IN_FLIGHT_BYTES: usize = 2 << 20;

/// Events of a transaction: at 300 ms round trip 50,000 of them take 6 s, against 1 s for its ends. What is remembered of
/// each until the commit is 72 bytes.
const MOST_EVENTS: usize = 50_000;

/// At full speed a batch is worth sending long before `linger` is over, and the next one follows: a transaction stays open for
/// so long, ends cost a tenth of it, and what is remembered of its events stays below 1 MB at 130,000 a second.
const OPEN_EARLY: Duration = Duration::from_millis(100);

/// Ends that take longer than this tell of a long link.
const FAR: Duration = Duration::from_millis(200);

/// There, twice as much is in librdkafka's hands: while one request is on its way, the next one gathers. It costs 3 MB,
/// and only there.
const FAR_IN_FLIGHT: usize = 6_000;
const FAR_IN_FLIGHT_BYTES: usize = 5 << 20;

/// A transaction is not kept open longer when nothing waits behind it, however slow the link is: readers wait for it.
const LONGEST: Duration = Duration::from_secs(4);

/// `init_transactions` and `commit_transaction` wait in slices; between two of them nothing else ends the wait.
const BETWEEN_SLICES: Duration = Duration::from_millis(10);

/// A watermark of a start that the buffer does not know later would be a stranger's.
const UNWRITTEN: &str = "the buffer's disk is full or fails, so the agent cannot write the record of this start to \
     it; make room on the disk";

/// See the documentation of the module.
pub(super) struct Transactional {
    context: Arc<TransactionContext>,
    /// Of the present producer, or the last one.
    session: Option<Session>,
    /// For the next session: nothing is in doubt.
    known: Option<Partitions>,
    /// When the present transaction was begun, and until when it stays open for more, whatever else.
    begun: Instant,
    open_until: Instant,
    /// How long the ends of the last transactions took: no reading is on its way then.
    ends: Duration,
    /// When the watermark of the present one was sent.
    sealed_at: Instant,
    /// Since when more was in hand than the link took.
    waiting_since: Option<Instant>,
    may_begin: bool,
    /// When the present one is closed at the latest, or may be.
    closes_at: Option<Instant>,
}

/// What records that came back without confirmation lead to.
pub(super) enum Refused {
    /// The reports of the others are waited for.
    Drain,
    /// The transaction is being aborted.
    Aborting,
    /// It is aborted.
    Aborted,
    /// This producer can do nothing more.
    Over(Code, String),
}

/// What a transaction cost that is committed.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Cost {
    /// How long the ends of transactions take now.
    pub(super) ends: Duration,
    /// How long this one took in all.
    pub(super) all: Duration,
    /// More was in hand than the link took.
    pub(super) was_waiting: bool,
}

impl Transactional {
    /// No producer yet.
    pub(super) fn new(context: Arc<TransactionContext>) -> Self {
        let now = Instant::now();
        Self {
            context,
            session: None,
            known: None,
            begun: now,
            open_until: now,
            ends: Duration::ZERO,
            sealed_at: now,
            waiting_since: None,
            may_begin: false,
            closes_at: None,
        }
    }

    /// With a new producer.
    pub(super) fn begins(&mut self, asks_about: Vec<Arc<str>>, timeout: Duration, now: Instant) {
        let (context, known) = (Arc::clone(&self.context), self.known.take());
        self.session = Some(Session::new(context, asks_about, known, timeout, now));
    }

    /// The producer is gone, and no other follows for now.
    pub(super) fn rests(&mut self) {
        self.session = None;
    }

    pub(super) fn context(&self) -> &Arc<TransactionContext> {
        &self.context
    }

    pub(super) fn state(&self) -> Option<State> {
        self.session.as_ref().map(Session::state)
    }

    pub(super) fn closed(&self) -> Option<Instant> {
        self.session.as_ref().map(Session::closed)
    }

    /// When there is something to do, whatever comes. `gathers_until`: what waits for others goes then.
    pub(super) fn next_wake(&self, gathers_until: Option<Instant>, now: Instant) -> Option<Instant> {
        match self.state()? {
            State::Starting | State::Committing => now.checked_add(BETWEEN_SLICES),
            State::Idle => gathers_until,
            State::Filling => [gathers_until, self.closes_at].into_iter().flatten().min(),
            // A report, an answer, a line of the log.
            State::Recovering | State::Closing | State::Sealing | State::Proving | State::Aborting | State::Over => {
                None
            }
        }
    }

    pub(super) fn nothing_is_in_doubt(&mut self, known: Option<Partitions>) {
        self.known = known;
    }

    pub(super) fn keeps_partitions(&mut self) {
        self.known = self.session.as_ref().and_then(Session::partitions);
    }

    pub(super) fn may_begin(&mut self, may_begin: bool) {
        self.may_begin = may_begin;
    }

    /// Without an answering broker none is begun, nor before the present start is on disk.
    fn can_begin(&self) -> bool {
        self.may_begin && self.context.may_speak()
    }

    pub(super) fn step(&mut self, producer: &Producer, now: Instant) -> Step {
        self.session.as_mut().map_or(Step::Wait, |session| session.step(producer, now))
    }

    pub(super) fn needs_other_times(&self, timeouts: &Timeouts) -> bool {
        let other = |session: &Session| session.timeout() != timeouts.timeout();
        self.state() == Some(State::Idle) && self.session.as_ref().is_some_and(other)
    }

    pub(super) fn bounds(&self) -> (usize, usize) {
        if self.ends > FAR { (FAR_IN_FLIGHT, FAR_IN_FLIGHT_BYTES) } else { (MOST_IN_FLIGHT, MOST_IN_FLIGHT_BYTES) }
    }

    /// Is a transaction open, or can one be?
    pub(super) fn may_send(
        &mut self,
        producer: &Producer,
        was_due: Option<Instant>,
        now: Instant,
    ) -> Result<bool, Code> {
        if self.state() == Some(State::Filling) {
            return Ok(producer.uncommitted() < MOST_EVENTS);
        }
        if !self.can_begin() {
            return Ok(false);
        }
        self.begin(producer, was_due, now).map(|()| true)
    }

    /// `was_due`: it begins early, and would have waited for others until then.
    fn begin(&mut self, producer: &Producer, was_due: Option<Instant>, now: Instant) -> Result<(), Code> {
        let Some(session) = &mut self.session else { return Err(Code::State) };
        session.begin(producer).map_err(|error| code_of(&error))?;
        self.begun = now;
        self.open_until = was_due.unwrap_or(now).min(now.checked_add(OPEN_EARLY).unwrap_or(now));
        self.waiting_since = None;
        Ok(())
    }

    fn close(&mut self, now: Instant) {
        if let Some(session) = &mut self.session {
            session.close(now);
        }
    }

    /// A transaction with nothing but the watermark comes first, to hear Kafka's time.
    pub(super) fn ask_the_time(
        &mut self,
        producer: &Producer,
        is_ready: bool,
        times: &mut Times,
        now: Instant,
    ) -> Result<Answer, Code> {
        let asks = self.state() == Some(State::Idle) && times.wants_to_ask() && (is_ready || times.is_urgent());
        if !asks {
            return Ok(Answer::Known);
        }
        if self.can_begin() {
            times.asked();
            self.begin(producer, None, now)?;
            self.close(now);
        }
        Ok(Answer::NotYet)
    }

    pub(super) fn after_sending(
        &mut self,
        producer: &Producer,
        hand: Hand,
        held_up: bool,
        timeouts: &Timeouts,
        now: Instant,
    ) -> Result<(), Code> {
        if self.state() == Some(State::Filling) {
            planted::die(Bug::DieFilling);
            if self.is_to_be_closed(producer, hand, held_up, timeouts, now) {
                self.close(now);
            }
        } else if !hand.any && hand.declares && self.can_begin() {
            // There is something to say, and no reading that would take it along.
            self.begin(producer, None, now)?;
            self.close(now);
        }
        Ok(())
    }

    /// See the documentation of the module.
    fn is_to_be_closed(
        &mut self,
        producer: &Producer,
        hand: Hand,
        held_up: bool,
        timeouts: &Timeouts,
        now: Instant,
    ) -> bool {
        let all_back = producer.in_flight().0 == 0;
        let waits = hand.any && !hand.gathers;
        if waits && !all_back {
            self.waiting_since.get_or_insert(now);
        }
        let lingered = now >= self.open_until;
        let open = now.saturating_duration_since(self.begun);
        let worth = self.worth(timeouts).max(self.open_until.saturating_duration_since(self.begun));
        let next = if lingered { self.begun.checked_add(worth) } else { Some(self.open_until) };
        self.closes_at = next.filter(|at| *at > now);
        held_up
            || all_back && (waits || lingered)
            || open >= worth && lingered
            || producer.uncommitted() >= MOST_EVENTS
            || hand.is_full
    }

    /// How long the present transaction stays open.
    fn worth(&self, timeouts: &Timeouts) -> Duration {
        match self.waiting_since {
            Some(_) => timeouts.worth(self.ends),
            None => (self.ends * 2).min(LONGEST),
        }
    }

    pub(super) fn refused(&mut self, producer: &Producer, failures: &[Failure], now: Instant) -> Refused {
        let cause = failures.first().map_or(Code::Fail, |failure| failure.code);
        let Some(session) = &mut self.session else { return Refused::Over(cause, String::new()) };
        if session.refuse(producer, failures.iter().map(|failure| failure.code), now) {
            return Refused::Aborting;
        }
        if session.state() != State::Aborting {
            return Refused::Over(cause, String::new());
        }
        match session.step(producer, now) {
            Step::Aborted => Refused::Aborted,
            Step::Lost(code, detail) => Refused::Over(code, detail),
            // Only a wait is possible here.
            Step::Wait | Step::Known(_) | Step::Send | Step::Seal | Step::Committed(..) | Step::Retried => {
                Refused::Aborting
            }
        }
    }

    pub(super) fn write_watermark(
        &mut self,
        producer: &Producer,
        records: &[Record],
        at_ms: i64,
        now: Instant,
    ) -> Result<(), Code> {
        self.sealed_at = now;
        self.session.as_mut().map_or(Err(Code::State), |session| session.seal(producer, records, at_ms, now))
    }

    /// The transaction is committed.
    pub(super) fn committed(&mut self, now: Instant) -> Cost {
        // Registering the first partitions is a round trip as well, of four.
        let ends = now.saturating_duration_since(self.sealed_at).mul_f64(4.0 / 3.0);
        // The mean of the last few: one slow commit makes no habit.
        self.ends = match self.ends {
            Duration::ZERO => ends,
            before => before.mul_f64(0.75) + ends.mul_f64(0.25),
        };
        let all = now.saturating_duration_since(self.begun);
        Cost { ends: self.ends, all, was_waiting: self.waiting_since.is_some() }
    }

    pub(super) fn wind_down(&mut self, now: Instant) -> bool {
        if self.state() == Some(State::Filling) {
            self.close(now);
        }
        !self.state().is_some_and(State::is_open)
    }

    pub(super) fn trouble(&self) -> Trouble {
        if !self.context.may_speak() {
            return Trouble { why: UNWRITTEN.to_owned(), ..Trouble::default() };
        }
        self.session.as_ref().map(Session::trouble).unwrap_or_default()
    }

    pub(super) fn obstacle(&self, producer: &Producer, now: Instant) -> Option<Obstacle> {
        if !self.context.may_speak() {
            return Some(Obstacle::new(Reason::Buffer, UNWRITTEN.to_owned()));
        }
        let topic = &self.context.topic;
        let (reason, why) = match self.state()? {
            State::Starting => return Some(registering(producer)),
            State::Recovering => return Some(reading_the_watermark(self.trouble(), topic)),
            State::Sealing => {
                (Reason::WatermarkTopic, format!("topic {topic} has not confirmed this gateway's watermark yet"))
            }
            State::Committing | State::Aborting | State::Proving => {
                (Reason::EndingTransaction, "Kafka has not confirmed the end of a transaction yet".to_owned())
            }
            State::Closing if producer.oldest(now).is_none() => {
                (Reason::Buffer, "the buffer has not written yet what became of earlier readings".to_owned())
            }
            State::Idle | State::Filling | State::Closing | State::Over => return None,
        };
        Some(Obstacle::new(reason, why))
    }
}

fn reading_the_watermark(trouble: Trouble, topic: &str) -> Obstacle {
    let Trouble { why, topic_unusable, another_gateway } = trouble;
    if another_gateway {
        Obstacle::new(Reason::OtherTransaction, why)
    } else if topic_unusable || why.contains("has no leader") {
        Obstacle::new(Reason::WatermarkTopic, why)
    } else if why.is_empty() {
        Obstacle::new(Reason::ReadingWatermark, format!("the agent is reading its watermark from topic {topic}"))
    } else {
        Obstacle::new(Reason::ReadingWatermark, why)
    }
}

/// What is in the way of `init_transactions`.
fn registering(producer: &Producer) -> Obstacle {
    match producer.registration_problem().map(|(registration_problem, _)| registration_problem) {
        Some(RegistrationProblem::NoCoordinator(words)) => {
            Obstacle::new(Reason::NoCoordinator, format!("Kafka names no coordinator for transactions: {words}"))
        }
        Some(RegistrationProblem::StillOpen) => Obstacle::new(
            Reason::LastTransaction,
            "Kafka has not ended this gateway's last transaction on all its partitions",
        ),
        Some(RegistrationProblem::Other(words)) => {
            Obstacle::new(Reason::Registering, format!("Kafka does not let this gateway begin transactions: {words}"))
        }
        None => Obstacle::new(
            Reason::Registering,
            "the broker that coordinates this gateway's transactions has not answered yet",
        ),
    }
}
