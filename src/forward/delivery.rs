//! How readings are delivered. The only type that knows the mode: everybody else asks it what may be done next.

use std::sync::Arc;
use std::time::Instant;

use rdkafka::types::RDKafkaErrorCode as Code;

use super::next::Hand;
use super::producer::{Failure, Producer};
use super::session::Step;
use super::time::Times;
use super::time_request::{Answer, TimeRequest};
use super::timeouts::Timeouts;
use super::transaction::State;
use super::transactional::{Cost, MOST_IN_FLIGHT, MOST_IN_FLIGHT_BYTES, Refused, Transactional};

/// See the documentation of the module.
pub(super) enum Delivery {
    /// Each report is final. No commit tells Kafka's time: who is to ask for it has the question.
    AtLeastOnce(Option<TimeRequest>),
    /// A batch is a transaction.
    ExactlyOnce(Box<Transactional>),
}

impl Delivery {
    /// The transactions, if there are any: for what only they have.
    pub(super) fn transactions(&self) -> Option<&Transactional> {
        match self {
            Self::AtLeastOnce(_) => None,
            Self::ExactlyOnce(own) => Some(own),
        }
    }

    /// The same to change.
    pub(super) fn transactions_mut(&mut self) -> Option<&mut Transactional> {
        match self {
            Self::AtLeastOnce(_) => None,
            Self::ExactlyOnce(own) => Some(own),
        }
    }

    /// Goes on with a transaction. Without any, records may always be sent.
    pub(super) fn step(&mut self, producer: &Producer, now: Instant) -> Step {
        match self {
            Self::AtLeastOnce(_) => Step::Send,
            Self::ExactlyOnce(own) => own.step(producer, now),
        }
    }

    /// Data records may be in flight.
    pub(super) fn sends_records(&self) -> bool {
        match self {
            Self::AtLeastOnce(_) => true,
            Self::ExactlyOnce(own) => matches!(own.state(), Some(State::Filling | State::Closing)),
        }
    }

    /// No transaction is open.
    pub(super) fn is_idle(&self) -> bool {
        match self {
            Self::AtLeastOnce(_) => true,
            Self::ExactlyOnce(own) => own.state() == Some(State::Idle),
        }
    }

    /// Where the transaction is, if there are any.
    pub(super) fn state(&self) -> Option<State> {
        self.transactions().and_then(Transactional::state)
    }

    /// librdkafka is to say something beside what it says of readings.
    pub(super) fn awaits_word(&self) -> bool {
        match self {
            Self::AtLeastOnce(time_request) => time_request.as_ref().is_some_and(TimeRequest::is_on_its_way),
            Self::ExactlyOnce(own) => {
                matches!(own.state(), Some(State::Sealing | State::Proving | State::Aborting))
            }
        }
    }

    /// When there is something to do, whatever comes.
    pub(super) fn next_wake(&self, gathers_until: Option<Instant>, now: Instant) -> Option<Instant> {
        match self {
            Self::AtLeastOnce(_) => gathers_until,
            Self::ExactlyOnce(own) => own.next_wake(gathers_until, now),
        }
    }

    /// Is a request too slow by itself? A transaction says so when its time is over.
    pub(super) fn times_each_request(&self) -> bool {
        matches!(self, Self::AtLeastOnce(_))
    }

    /// What is settled when a stop ends it: what a transaction carries, once that is committed.
    pub(super) fn commits(&self) -> bool {
        matches!(self, Self::ExactlyOnce(_))
    }

    /// Events and bytes that may be in flight.
    pub(super) fn bounds(&self) -> (usize, usize) {
        match self {
            Self::AtLeastOnce(_) => (MOST_IN_FLIGHT, MOST_IN_FLIGHT_BYTES),
            Self::ExactlyOnce(own) => own.bounds(),
        }
    }

    /// Events that nobody knows yet whether Kafka takes them for good; `in_flight` of them have no report.
    pub(super) fn unproven(&self, producer: &Producer, in_flight: usize) -> usize {
        match self {
            Self::AtLeastOnce(_) => in_flight,
            // A group is judged when it is committed.
            Self::ExactlyOnce(_) => producer.uncommitted(),
        }
    }

    /// May a record go now? Opens a transaction if it takes one.
    pub(super) fn may_send(
        &mut self,
        producer: &Producer,
        was_due: Option<Instant>,
        now: Instant,
    ) -> Result<bool, Code> {
        match self {
            Self::AtLeastOnce(_) => Ok(true),
            Self::ExactlyOnce(own) => own.may_send(producer, was_due, now),
        }
    }

    /// Before anything is sent, where Kafka's time is to be known first.
    pub(super) fn ask_the_time(
        &mut self,
        producer: &Producer,
        is_ready: bool,
        times: &mut Times,
        now: Instant,
    ) -> Result<Answer, Code> {
        match self {
            Self::AtLeastOnce(None) => Ok(Answer::Known),
            Self::AtLeastOnce(Some(_)) if !is_ready && !times.is_pending() => Ok(Answer::Known),
            Self::AtLeastOnce(Some(time_request)) => Ok(time_request.ask_the_time(producer, times, now)),
            Self::ExactlyOnce(own) => own.ask_the_time(producer, is_ready, times, now),
        }
    }

    /// Everything was sent that could be: is the transaction to be closed, or one to be opened for what else there is to say?
    /// `held_up`: the bisection waits for what was sent.
    pub(super) fn after_sending(
        &mut self,
        producer: &Producer,
        hand: Hand,
        held_up: bool,
        timeouts: &Timeouts,
        now: Instant,
    ) -> Result<(), Code> {
        match self {
            Self::AtLeastOnce(_) => Ok(()),
            Self::ExactlyOnce(own) => own.after_sending(producer, hand, held_up, timeouts, now),
        }
    }

    /// Records came back without confirmation.
    pub(super) fn refused(&mut self, producer: &Producer, failures: &[Failure], now: Instant) -> Refused {
        match self {
            Self::AtLeastOnce(_) => Refused::Drain,
            Self::ExactlyOnce(own) => own.refused(producer, failures, now),
        }
    }

    /// A new producer begins.
    pub(super) fn begins(&mut self, asks_about: Vec<Arc<str>>, timeouts: &Timeouts, now: Instant) {
        if let Some(own) = self.transactions_mut() {
            own.begins(asks_about, timeouts.timeout(), now);
        }
    }

    /// The producer is over.
    pub(super) fn ends(&mut self) {
        if let Self::AtLeastOnce(Some(time_request)) = self {
            time_request.forget();
        }
    }

    /// ... and no other follows for now.
    pub(super) fn rests(&mut self) {
        self.ends();
        if let Self::ExactlyOnce(own) = self {
            own.rests();
        }
    }

    /// No transaction is open, and the next one may take another time than this producer was made for.
    pub(super) fn needs_other_times(&self, timeouts: &Timeouts) -> bool {
        self.transactions().is_some_and(|own| own.needs_other_times(timeouts))
    }

    /// The transaction is committed.
    pub(super) fn committed(&mut self, now: Instant) -> Cost {
        self.transactions_mut().map(|own| own.committed(now)).unwrap_or_default()
    }

    /// A stop: no more records go out that a commit would be needed for. True when nothing is open.
    pub(super) fn wind_down(&mut self, in_flight: usize, now: Instant) -> bool {
        match self {
            Self::AtLeastOnce(_) => in_flight == 0,
            Self::ExactlyOnce(own) => own.wind_down(now),
        }
    }
}
