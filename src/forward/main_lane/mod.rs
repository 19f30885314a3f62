//! The main lane: everything that is not parked.
//!
//! ```text
//!            ┌──────────────── judged, nothing fatal ───────────────┐
//!            ▼                                                       │
//!   ──▶ Flowing ──a report without confirmation──▶ Draining ──judged, new producer──▶ Pausing
//!            ▲                                                                           │
//!            └───────────────────────── after the wait ──────────────────────────────────┘
//! ```
//!
//! *Flowing* sends. *Draining* sends nothing and waits for the reports of what is in flight, for a few seconds at most;
//! then every failure gets its verdict, and reading starts again at the oldest unsettled event. *Pausing* has no
//! producer.
//!
//! With transactions, *Flowing* has states of its own (`transaction.rs`), and an abort takes the place of *Draining*:
//! see `transactions.rs`.

mod transactions;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::config::ClientConfig;
use rdkafka::types::RDKafkaErrorCode as Code;

use self::transactions::Transacting;
use super::link::Repeats;
use super::options;
use super::outstanding::{Restart, Skips};
use super::pace::{Finding, Pace, Permit};
use super::parking::Gate;
use super::producer::{Failure, Producer, Reports};
use super::relay::ForwardError;
use super::shared::{Shared, add};
use super::targets::{Generation, Turn};
use super::verdict::{Verdict, dead_letter_reason, is_an_answer, send_verdict, verdict};
use crate::buffer::DeadLetter;
use crate::event::{Sequence, Stored};
#[cfg(feature = "planted")]
use crate::planted::{Bug, planted};
use crate::retry::Backoff;

/// Events in librdkafka's hands. Measured on loopback, with the buffer in front: 327,000 a second drained with 2,500,
/// 337,000 with 5,000, which take 2 MB more. At a round trip of 300 ms it is 8,300 a second, about 1 Mbit/s.
const MOST_IN_FLIGHT: usize = 2_500;

/// ... and their memory, librdkafka's overhead included: a part of the 20 MB that the agent may take at its peak.
const MOST_IN_FLIGHT_BYTES: usize = 2 << 20;

/// A batch that waits for company is sent at once when it has so many events: 15.6 bytes each on the wire, against
/// 15.3 for larger ones.
const FULL_EVENTS: usize = 1_000;

/// ... or so many bytes.
const FULL_BYTES: usize = 128 << 10;

/// In `Draining`, how long to wait for reports. What is still in flight then may be sent twice.
const DRAIN: Duration = Duration::from_secs(5);

/// The main lane's state.
pub(super) struct MainLane {
    config: ClientConfig,
    linger: Duration,
    phase: Phase,
    /// Of the present producer.
    generation: Generation,
    failures: Vec<Failure>,
    pending: Pending,
    skips: Skips,
    pace: Pace,
    backoff: Backoff,
    said: Repeats,
    /// A Kafka topic that took something, to ask brokers about.
    pub(super) known_topic: Option<Arc<str>>,
    /// With transactions.
    transacting: Option<Transacting>,
    /// Why the agent cannot go on.
    fault: Option<ForwardError>,
}

/// See the drawing above.
enum Phase {
    Flowing(Producer),
    Draining(Producer, Instant),
    Pausing(Instant),
}

/// Read from the buffer and not sent yet.
#[derive(Debug, Default)]
struct Pending {
    events: VecDeque<Stored>,
    bytes: usize,
    /// They wait for company until then.
    gather_until: Option<Instant>,
    /// When the first of them came.
    since: Option<Instant>,
}

/// Why a new producer.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Renewal {
    /// It is known what to do differently now.
    AtOnce,
    /// For reasons outside: wait first.
    AfterWait(Code, String),
}

impl MainLane {
    /// Begins with that producer.
    pub(super) fn new(config: ClientConfig, producer: Producer, linger: Duration, skips: Skips) -> Self {
        Self {
            config,
            linger,
            phase: Phase::Flowing(producer),
            generation: 0,
            failures: Vec::new(),
            pending: Pending::default(),
            skips,
            pace: Pace::default(),
            backoff: Backoff::new(),
            said: Repeats::default(),
            known_topic: None,
            transacting: None,
            fault: None,
        }
    }

    /// Why the agent cannot go on, if it cannot.
    pub(super) fn fault(&mut self) -> Option<ForwardError> {
        self.fault.take()
    }

    /// The present producer, if there is one.
    pub(super) fn producer(&self) -> Option<&Producer> {
        match &self.phase {
            Phase::Flowing(producer) | Phase::Draining(producer, _) => Some(producer),
            Phase::Pausing(_) => None,
        }
    }

    /// Events in flight.
    pub(super) fn in_flight(&self) -> usize {
        self.producer().map_or(0, |producer| producer.in_flight().0)
    }

    /// More events are of use now.
    pub(super) fn wants_events(&self, now: Instant) -> bool {
        match self.phase {
            Phase::Flowing(_) => !self.is_ready(now),
            Phase::Draining(..) | Phase::Pausing(_) => false,
        }
    }

    /// When the phase changes or a batch is due, whatever happens.
    pub(super) fn next_wake(&self) -> Option<Instant> {
        match self.phase {
            Phase::Flowing(_) => self.pending.gather_until,
            Phase::Draining(_, until) | Phase::Pausing(until) => Some(until),
        }
    }

    /// Takes what the outlet gave.
    pub(super) fn take_events(&mut self, events: Vec<Stored>, now: Instant) {
        if events.is_empty() {
            return;
        }
        if self.pending.events.is_empty() {
            self.pending.gather_until = now.checked_add(self.linger);
            self.pending.since = Some(now);
        }
        self.pending.bytes =
            events.iter().fold(self.pending.bytes, |sum, stored| sum.saturating_add(stored.event.cost_bytes()));
        if self.pending.events.is_empty() {
            self.pending.events = events.into();
        } else {
            self.pending.events.extend(events);
        }
    }

    /// Polls and books what came back; true when a broker has answered.
    pub(super) fn collect(&mut self, shared: &mut Shared, now: Instant) -> bool {
        let Some(producer) = self.producer() else { return false };
        producer.poll(Duration::ZERO);
        let reports = producer.reports();
        let answered = !reports.confirmed.is_empty()
            || reports.acked > 0
            || reports.failures.iter().any(|failure| is_an_answer(failure.code));
        if !reports.confirmed.is_empty() {
            self.backoff.reset();
        }
        self.book(reports, shared, now);
        answered
    }

    /// Does what the phase asks for, without waiting.
    pub(super) fn turn(&mut self, shared: &mut Shared, now: Instant) {
        self.phase = match std::mem::replace(&mut self.phase, Phase::Pausing(now)) {
            Phase::Flowing(producer) if self.transacting.is_some() => self.transact(producer, shared, now),
            Phase::Flowing(producer) if self.failures.is_empty() => self.flow(producer, shared, now),
            Phase::Flowing(producer) => Phase::Draining(producer, now.checked_add(DRAIN).unwrap_or(now)),
            Phase::Draining(producer, until) => self.drain(producer, until, shared, now),
            Phase::Pausing(until) if until <= now => self.renew(shared, now),
            Phase::Pausing(until) => Phase::Pausing(until),
        };
    }

    /// A stop: what is in flight comes back, as far as it has.
    pub(super) fn retire(&mut self, shared: &mut Shared, now: Instant) {
        match std::mem::replace(&mut self.phase, Phase::Pausing(now)) {
            Phase::Flowing(producer) | Phase::Draining(producer, _) => {
                let (reports, _restart) = producer.retire();
                self.book(reports, shared, now);
            }
            Phase::Pausing(_) => {}
        }
    }

    fn book(&mut self, reports: Reports, shared: &mut Shared, now: Instant) {
        shared.count_delivered(reports.confirmed.len());
        shared.outcome.delivered(reports.confirmed, now);
        self.failures.extend(reports.failures);
    }

    fn is_ready(&self, now: Instant) -> bool {
        let pending = &self.pending;
        !pending.events.is_empty()
            && (pending.gather_until.is_none_or(|until| until <= now)
                || pending.events.len() >= FULL_EVENTS
                || pending.bytes >= FULL_BYTES)
    }

    fn flow(&mut self, producer: Producer, shared: &mut Shared, now: Instant) -> Phase {
        if !self.is_ready(now) {
            return Phase::Flowing(producer);
        }
        // The rest of a batch that did not fit into the window waits for room, not for company.
        self.pending.gather_until = None;
        match self.send_pending(&producer, shared, now) {
            Sent::Done | Sent::GroupDone | Sent::NotBegun(_) => Phase::Flowing(producer),
            Sent::Failed => Phase::Draining(producer, now.checked_add(DRAIN).unwrap_or(now)),
            Sent::BatchesTooLarge => self.shrink(producer, shared, now),
        }
    }

    /// Nothing is in flight here: a new producer costs no repeat.
    fn shrink(&mut self, producer: Producer, shared: &mut Shared, now: Instant) -> Phase {
        if let Some(bytes) = options::shrink_batches(&mut self.config) {
            tracing::info!(bytes, "kafka: batches are too large for a topic; smaller ones from now on");
        }
        let (_, restart) = producer.retire();
        self.restart(restart, shared);
        Phase::Pausing(now)
    }

    /// The first pending one is settled without being sent.
    fn pass(&mut self, producer: &Producer, sequence: Sequence) {
        self.passed(sequence);
        self.pending.pop(producer);
    }

    fn send_pending(&mut self, producer: &Producer, shared: &mut Shared, now: Instant) -> Sent {
        while let Some(stored) = self.pending.events.front() {
            let (sequence, route) = (stored.sequence, stored.event.route);
            if self.skips.take(sequence) {
                self.pass(producer, sequence);
                continue;
            }
            if let Some(proof) = self.transacting.as_mut().and_then(|own| own.vouched(sequence, route)) {
                shared.count_delivered(1);
                shared.outcome.delivered(vec![proof], now);
                self.pass(producer, sequence);
                continue;
            }
            if let Some(reason) = stored.event.flaw().map(str::to_owned) {
                shared.dead(DeadLetter { sequence, route, kafka_topic: Arc::from(""), reason }, now);
                self.pass(producer, sequence);
                continue;
            }
            let known = match shared.targets.find(&stored.event.topic) {
                Ok(known) => known,
                Err(no_target) => {
                    let kafka_topic = Arc::from("");
                    shared.dead(DeadLetter { sequence, route, kafka_topic, reason: no_target.to_string() }, now);
                    self.pass(producer, sequence);
                    continue;
                }
            };
            let target = Arc::clone(&known.target);
            match shared.parking.gate(&target.topic) {
                Gate::Direct => {}
                Gate::Hold => return Sent::Done,
                Gate::Park => {
                    shared.park_one(sequence, route, &target.topic, now);
                    self.pass(producer, sequence);
                    continue;
                }
            }
            // custody rule 4, see `targets.rs`.
            let turn = known.turn(self.generation, |first| producer.has_come_back(first));
            let (in_flight, bytes) = producer.in_flight();
            let (most, most_bytes) =
                self.transacting.as_ref().map_or((MOST_IN_FLIGHT, MOST_IN_FLIGHT_BYTES), Transacting::window);
            if turn == Turn::NotYet || in_flight >= most || bytes >= most_bytes {
                return Sent::Done;
            }
            // With transactions a group is judged when it is committed.
            let unproven = if self.transacting.is_some() { producer.uncommitted() } else { in_flight };
            match self.pace.permit(sequence, unproven) {
                Permit::Go => {}
                Permit::NotYet => return Sent::GroupDone,
                Permit::GoSmaller => return Sent::BatchesTooLarge,
            }
            let since = self.pending.since;
            let begun = self.transacting.as_mut().map_or(Ok(true), |own| own.may_send(producer, since, now));
            match begun {
                Ok(true) => {}
                Ok(false) => return Sent::Done,
                Err(code) => return Sent::NotBegun(code),
            }
            match shared.send(producer, stored, &target) {
                Ok(()) => {
                    #[cfg(feature = "planted")]
                    if planted(Bug::ReleaseBeforeDelivery) {
                        shared.outcome.release_at_send(sequence, route, now);
                    }
                    if turn == Turn::First {
                        shared.targets.sent(&stored.event.topic, self.generation, sequence);
                    }
                    self.pace.sent();
                    self.passed(sequence);
                    self.pending.pop_sent();
                    if !self.known_topic.as_ref().is_some_and(|known| Arc::ptr_eq(known, &target.topic)) {
                        self.known_topic = Some(Arc::clone(&target.topic));
                    }
                }
                Err(code) => match send_verdict(code) {
                    // The queue is full of others; when it is empty, this one alone is too large for it.
                    Verdict::Wait if in_flight > 0 => return Sent::Done,
                    Verdict::Wait => {
                        let reason = "larger than queue.buffering.max.kbytes in [kafka.options]".to_owned();
                        let kafka_topic = Arc::clone(&target.topic);
                        shared.dead(DeadLetter { sequence, route, kafka_topic, reason }, now);
                        self.pass(producer, sequence);
                    }
                    Verdict::DeadLetter => {
                        let (kafka_topic, reason) = (Arc::clone(&target.topic), dead_letter_reason(code));
                        shared.dead(DeadLetter { sequence, route, kafka_topic, reason }, now);
                        self.pass(producer, sequence);
                    }
                    Verdict::Resend | Verdict::NewProducer | Verdict::Alone | Verdict::ParkTopic => {
                        // Others of the topic may be in flight; they come first, so this waits for their reports.
                        self.failures.push(Failure { sequence, route, topic: target.topic.to_string(), code });
                        return Sent::Failed;
                    }
                },
            }
        }
        Sent::Done
    }

    fn drain(&mut self, producer: Producer, until: Instant, shared: &mut Shared, now: Instant) -> Phase {
        let in_flight = producer.in_flight().0;
        if in_flight > 0 && now < until {
            if producer.fatal().is_some() {
                // After a fatal error nothing queued is sent any more, and nothing of it is reported until asked for.
                producer.purge_queue();
            }
            return Phase::Draining(producer, until);
        }
        let renewal = self.judge(&producer, shared, now);
        if in_flight > 0 {
            self.end(
                producer,
                Renewal::AfterWait(Code::RequestTimedOut, "no answer to what was sent".into()),
                shared,
                now,
            )
        } else if let Some(renewal) = renewal {
            self.end(producer, renewal, shared, now)
        } else {
            let restart = producer.give_up();
            self.generation = shared.next_generation();
            self.restart(restart, shared);
            Phase::Flowing(producer)
        }
    }

    /// Gives every failure its verdict. Nothing is in flight any more, or nothing more is waited for.
    fn judge(&mut self, producer: &Producer, shared: &mut Shared, now: Instant) -> Option<Renewal> {
        let failures = std::mem::take(&mut self.failures);
        add(&mut shared.status.retried, failures.len());
        shared.changed = true;
        let (mut suspects, mut understood, mut wait) = (Vec::new(), false, None);
        for failure in failures {
            match verdict(failure.code) {
                Verdict::Wait | Verdict::Resend => {}
                Verdict::NewProducer => wait = Some(failure.code),
                Verdict::Alone => suspects.push(failure),
                Verdict::ParkTopic => {
                    understood = true;
                    shared.park_topic(&failure.topic, failure.code, now);
                }
                Verdict::DeadLetter => {
                    understood = true;
                    bury(failure, producer, shared, now);
                }
            }
        }
        if let Some(newest) = suspects.iter().map(|suspect| suspect.sequence).max() {
            understood = true;
            if self.pace.refused(suspects.len(), newest) == Finding::Guilty
                && let Some(guilty) = suspects.pop()
            {
                bury(guilty, producer, shared, now);
            }
        }
        match (wait, producer.fatal()) {
            (None, None) => None,
            // A refusal within a batch is fatal by our own wish (gapless); it was judged above.
            (_, Some(_)) if understood => Some(Renewal::AtOnce),
            (_, Some((code, detail))) => Some(Renewal::AfterWait(code, detail)),
            (Some(code), None) => Some(Renewal::AfterWait(code, String::new())),
        }
    }

    fn end(&mut self, producer: Producer, renewal: Renewal, shared: &mut Shared, now: Instant) -> Phase {
        let (reports, restart) = producer.retire();
        // The failures among them are unsettled, and go again from the restart on.
        self.book(Reports { failures: Vec::new(), ..reports }, shared, now);
        self.restart(restart, shared);
        match renewal {
            Renewal::AtOnce => Phase::Pausing(now),
            Renewal::AfterWait(code, detail) => {
                self.note_fencing(code, now);
                let (cause, wait) = (code.to_string(), self.backoff.next_wait());
                if let Some(more) = self.said.again(&cause, now) {
                    let wait_s = wait.as_secs_f64();
                    tracing::warn!(cause, detail, wait_s, more, "kafka: starting again with a new producer");
                }
                Phase::Pausing(now.checked_add(wait).unwrap_or(now))
            }
        }
    }

    /// Reads again from the oldest unsettled event.
    fn restart(&mut self, restart: Restart, shared: &mut Shared) {
        self.pace.restart();
        if let Some(after) = restart.after {
            self.pending = Pending::default();
            shared.outlet.rewind(after);
            self.skips.restart(restart.settled);
            self.gone_back(after);
        }
        shared.declarations.undone();
    }

    fn renew(&mut self, shared: &mut Shared, now: Instant) -> Phase {
        match Producer::new(&self.config) {
            Ok(producer) => {
                shared.changed = true;
                self.open_session(now);
                self.generation = shared.next_generation();
                add(&mut shared.status.producers, 1);
                Phase::Flowing(producer)
            }
            Err(error) => {
                let (cause, wait) = (options::cause(&error), self.backoff.next_wait());
                if let Some(more) = self.said.again(&cause, now) {
                    tracing::warn!(cause, wait_s = wait.as_secs_f64(), more, "kafka: make a new producer");
                }
                Phase::Pausing(now.checked_add(wait).unwrap_or(now))
            }
        }
    }
}

/// How sending went.
enum Sent {
    /// All, or what there was room for.
    Done,
    /// The careful pace wants to hear about this group first.
    GroupDone,
    /// With transactions: none could be begun.
    NotBegun(Code),
    /// librdkafka refused one: to be judged.
    Failed,
    /// The careful pace has ended, and it was the size of batches.
    BatchesTooLarge,
}

impl Pending {
    /// The first one is settled without being sent.
    fn pop(&mut self, producer: &Producer) {
        if let Some(stored) = self.events.front() {
            producer.pass(stored.sequence, stored.event.route);
        }
        self.pop_sent();
    }

    fn pop_sent(&mut self) {
        self.events.pop_front();
        if self.events.is_empty() {
            *self = Self::default(); // gives the memory of a large reading back
        }
    }
}

/// A failed record that is guilty by itself.
fn bury(failure: Failure, producer: &Producer, shared: &mut Shared, now: Instant) {
    producer.settle_failed(failure.sequence);
    let letter = DeadLetter {
        sequence: failure.sequence,
        route: failure.route,
        kafka_topic: Arc::from(failure.topic),
        reason: dead_letter_reason(failure.code),
    };
    shared.dead(letter, now);
}
