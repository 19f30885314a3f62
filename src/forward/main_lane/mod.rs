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

mod asking;
mod transactions;
mod unread;

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::config::ClientConfig;
use rdkafka::types::RDKafkaErrorCode as Code;

use self::asking::{Answer, Asking};
use self::transactions::Transacting;
use super::link::Repeats;
use super::options::{self, Names};
use super::outstanding::{Restart, Skips};
use super::pace::{Finding, Pace, Permit};
use super::producer::{Failure, MESSAGE_OVERHEAD_BYTES, Producer, Reports};
use super::relay::ForwardError;
use super::shared::{Shared, Way, add};
use super::stalls::{OVERDUE, Stalls};
use super::status::Reason;
use super::targets::{Generation, Turn};
use super::verdict::{Verdict, dead_letter_reason, is_an_answer, send_verdict, verdict};
use super::waiting::Obstacle;
use super::window::Window;
use crate::buffer::DeadLetter;
use crate::event::{Sequence, Stored};
#[cfg(feature = "planted")]
use crate::planted::{Bug, planted};
use crate::retry::Backoff;

/// Events in librdkafka's hands, if the link takes so many ([`Window`]). Measured on loopback, with the buffer in front: 327,000 a second drained with 2,500,
/// 337,000 with 5,000, which take 2 MB more. At a round trip of 300 ms it is 8,300 a second, about 1 Mbit/s.
const MOST_IN_FLIGHT: usize = 2_500;

/// ... and their memory, librdkafka's overhead included: a part of the 20 MB that the agent may take at its peak.
const MOST_IN_FLIGHT_BYTES: usize = 2 << 20;

/// A batch that waits for company is sent at once when it has so many events: 15.6 bytes each on the wire, against
/// 15.3 for larger ones.
const FULL_EVENTS: usize = 1_000;

/// ... or so many bytes.
const FULL_BYTES: usize = 128 << 10;

/// In `Draining`, how long to wait for the next report: so long, or twice as long as a reading takes over this link. What
/// is still in flight then may be sent twice.
const DRAIN: Duration = Duration::from_secs(5);

/// While former producers are still being ended, and there are too many of them: look again so often.
const NO_PLACE: Duration = Duration::from_millis(500);

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
    window: Window,
    backoff: Backoff,
    said: Repeats,
    /// A Kafka topic that took something, to ask brokers about.
    pub(super) known_topic: Option<Arc<str>>,
    /// With transactions.
    transacting: Option<Transacting>,
    /// Kafka topics that do not confirm.
    stalls: Stalls,
    /// What is in flight to such a topic was given up: this producer has it still, and must go.
    abandoned: bool,
    names: Names,
    /// When it went on under another name.
    away_since: Option<Instant>,
    /// Why the last producer was ended.
    cause: String,
    /// Without transactions: how Kafka is asked for the time.
    asking: Option<Asking>,
    /// Why the agent cannot go on.
    fault: Option<ForwardError>,
    /// With transactions: lanes that Kafka's word is asked about together with this one's, once.
    lanes_asked_for: Vec<Arc<str>>,
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
            names: Names::new(&config),
            stalls: Stalls::default(),
            abandoned: false,
            away_since: None,
            cause: String::new(),
            config,
            linger,
            phase: Phase::Flowing(producer),
            generation: 0,
            failures: Vec::new(),
            pending: Pending::default(),
            skips,
            pace: Pace::default(),
            window: Window::new(),
            backoff: Backoff::new(),
            said: Repeats::default(),
            known_topic: None,
            transacting: None,
            asking: None,
            fault: None,
            lanes_asked_for: Vec::new(),
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
        let is_confirmed = self.window.watched().is_some_and(|watched| producer.has_come_back(watched));
        let moved = !reports.confirmed.is_empty() || reports.acked > 0 || !reports.failures.is_empty();
        if !reports.confirmed.is_empty() {
            self.backoff.reset();
            shared.patience.confirmed();
        }
        if is_confirmed {
            self.window.confirmed(shared.patience.flight(), now);
        }
        let drain = self.longest_drain(now);
        if let Phase::Draining(_, until) = &mut self.phase
            && moved
        {
            *until = drain;
        }
        self.book(reports, shared, now);
        answered
    }

    /// Until when the next report is waited for.
    fn longest_drain(&self, now: Instant) -> Instant {
        now.checked_add(DRAIN.max(self.window.latest().saturating_mul(2))).unwrap_or(now)
    }

    /// Is anything here that waits to be confirmed, or to be sent?
    pub(super) fn has_events(&self) -> bool {
        !self.pending.events.is_empty() || self.in_flight() > 0 || self.uncommitted() > 0
    }

    fn uncommitted(&self) -> usize {
        self.producer().map_or(0, Producer::uncommitted)
    }

    /// What keeps readings from being sent or confirmed, if anything does.
    pub(super) fn obstacle(&self, shared: &Shared, now: Instant) -> Option<Obstacle> {
        let Some(producer) = self.producer() else {
            if shared.clients.is_full() {
                let why = "former clients of librdkafka are still being ended: they wait for a name look-up";
                return Some(Obstacle::new(Reason::EndingClients, why));
            }
            return Some(Obstacle::new(Reason::StartingAgain, self.cause.clone()));
        };
        if let Some(obstacle) = self.session_obstacle(producer, now) {
            return Some(obstacle);
        }
        let (age, topic) = producer.oldest(now).filter(|(age, _)| *age >= OVERDUE)?;
        let answer = producer.refusal(&topic).map_or("no answer yet".to_owned(), |(answer, _)| answer);
        let why = format!("Kafka has not confirmed records of topic {topic} for {} s: {answer}", age.as_secs());
        Some(Obstacle::new(Reason::Sending, why))
    }

    /// Topics that do not confirm although brokers answer shall wait alone; their records count as failed.
    fn abandon_stalled(&mut self, producer: &Producer, shared: &mut Shared, now: Instant) {
        for (topic, code) in self.stalls.look(producer, now) {
            self.abandoned = true;
            self.failures.extend(producer.fail(&topic, code));
            shared.changed = true;
        }
    }

    /// Does what the phase asks for, without waiting.
    pub(super) fn turn(&mut self, shared: &mut Shared, now: Instant) {
        self.phase = match std::mem::replace(&mut self.phase, Phase::Pausing(now)) {
            Phase::Flowing(producer) if self.transacting.is_some() => self.transact(producer, shared, now),
            Phase::Flowing(producer) if self.failures.is_empty() => self.flow(producer, shared, now),
            Phase::Flowing(producer) => Phase::Draining(producer, self.longest_drain(now)),
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
        if producer.was_overdue() {
            // librdkafka sends the same request again: over this link it would be overdue for ever.
            let longer = shared.patience.overdue(self.window.is_least());
            if longer || shared.patience.is_overdue() {
                let why = "a request takes longer over this link than it may; smaller ones from now on".to_owned();
                return self.end(producer, Renewal::AfterWait(Code::RequestTimedOut, why), shared, now);
            }
        }
        self.abandon_stalled(&producer, shared, now);
        if !self.failures.is_empty() {
            return Phase::Draining(producer, self.longest_drain(now));
        }
        let is_ready = self.is_ready(now);
        if !is_ready && !shared.times.is_pending() {
            return Phase::Flowing(producer);
        }
        if is_ready {
            // The rest of a batch that did not fit into the window waits for room, not for company.
            self.pending.gather_until = None;
        }
        match self.ask_the_time(&producer, shared, now) {
            Answer::Known if is_ready => {}
            Answer::Known | Answer::NotYet => return Phase::Flowing(producer),
            // Its report would be taken for a reading's; nothing else is in flight.
            Answer::Never => return self.end(producer, Renewal::AtOnce, shared, now),
        }
        match self.send_pending(&producer, shared, now) {
            Sent::Done | Sent::GroupDone | Sent::NotBegun(_) => Phase::Flowing(producer),
            Sent::Failed => Phase::Draining(producer, self.longest_drain(now)),
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

    /// The first pending one becomes a dead letter.
    fn put_aside(
        &mut self,
        producer: &Producer,
        shared: &mut Shared,
        kafka_topic: Arc<str>,
        reason: String,
        now: Instant,
    ) {
        let Some(Stored { sequence, event }) = self.pending.events.front() else { return };
        let (sequence, route) = (*sequence, event.route);
        let letter = DeadLetter { sequence, route, kafka_topic, reason };
        shared.dead(letter, &event.topic, event.cost_bytes(), now);
        self.pass(producer, sequence);
    }

    fn send_pending(&mut self, producer: &Producer, shared: &mut Shared, now: Instant) -> Sent {
        if shared.is_on_hold {
            return Sent::Done;
        }
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
            // Whatever becomes of this one, it is remembered until the oldest one in flight has come back.
            if !shared.fates_have_room() || producer.remembers_too_much() {
                return Sent::Done;
            }
            if let Some(reason) = stored.event.flaw().map(str::to_owned) {
                self.put_aside(producer, shared, Arc::from(""), reason, now);
                continue;
            }
            let known = match shared.targets.find(&stored.event) {
                Ok(known) => known,
                Err(no_target) => {
                    self.put_aside(producer, shared, Arc::from(""), no_target.to_string(), now);
                    continue;
                }
            };
            // custody rule 4, see `targets.rs`.
            let turn = known.turn(self.generation, |first| producer.has_come_back(first));
            let target = Arc::clone(&known.target);
            match shared.way(&target, now) {
                Way::Direct => {}
                Way::Hold => return Sent::Done,
                Way::Lane(lane) => {
                    shared.park_one((sequence, route), &lane, stored.event.cost_bytes(), now);
                    self.pass(producer, sequence);
                    continue;
                }
            }
            let (in_flight, bytes) = producer.in_flight();
            let (most, most_bytes) =
                self.transacting.as_ref().map_or((MOST_IN_FLIGHT, MOST_IN_FLIGHT_BYTES), Transacting::window);
            if turn == Turn::NotYet || in_flight >= most || bytes >= most_bytes {
                return Sent::Done;
            }
            let cost = stored.event.cost_bytes().saturating_add(MESSAGE_OVERHEAD_BYTES);
            if !self.window.takes(bytes, cost, shared.patience.flight(), now) {
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
                        shared.targets.sent(&stored.event, self.generation, sequence);
                        shared.admission.is_direct(&target.topic);
                    }
                    self.pace.sent();
                    self.window.sent(sequence, now);
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
                        self.put_aside(producer, shared, Arc::clone(&target.topic), reason, now);
                    }
                    Verdict::DeadLetter => {
                        let topic = Arc::clone(&target.topic);
                        self.put_aside(producer, shared, topic, dead_letter_reason(code), now);
                    }
                    Verdict::Resend | Verdict::NewProducer | Verdict::Alone | Verdict::Retime | Verdict::ParkTopic => {
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
        let abandoned = self.abandoned.then_some(Renewal::AtOnce);
        let renewal = self.judge(&producer, shared, now).or(abandoned);
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
        let mut mistimed = BTreeSet::new();
        for failure in failures {
            match verdict(failure.code) {
                Verdict::Wait | Verdict::Resend => {}
                Verdict::NewProducer => wait = Some(failure.code),
                Verdict::Alone => suspects.push(failure),
                Verdict::Retime => {
                    understood = true;
                    mistimed.insert(Arc::<str>::from(failure.topic));
                }
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
        for topic in mistimed {
            shared.mistimed(&topic, now);
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
        if let Renewal::AfterWait(code, _) = &renewal {
            self.note_overdue(&producer, *code, shared);
        }
        self.forget_the_question(shared);
        let (reports, restart) = producer.retire();
        // The failures among them are unsettled, and go again from the restart on.
        self.book(Reports { failures: Vec::new(), ..reports }, shared, now);
        self.restart(restart, shared);
        self.stalls = Stalls::default();
        // What was given up may keep Kafka from ending the transaction that it was in.
        let is_stuck = matches!(&renewal, Renewal::AfterWait(Code::ConcurrentTransactions, _));
        if std::mem::take(&mut self.abandoned) && self.is_transactional() || is_stuck {
            self.names.next(&mut self.config);
            self.away_since = Some(now);
        }
        match renewal {
            Renewal::AtOnce => Phase::Pausing(now),
            Renewal::AfterWait(code, detail) => {
                self.cause = if detail.is_empty() { code.to_string() } else { format!("{code}: {detail}") };
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

    /// With transactions: why this one ended may be that the link is slower than was thought.
    fn note_overdue(&self, producer: &Producer, code: Code, shared: &mut Shared) {
        if code == Code::InvalidTransactionTimeout {
            shared.patience.refused();
        } else if self.transacting.is_some() && producer.was_overdue() {
            shared.patience.overdue(self.window.is_least());
        }
    }

    /// Reads again from the oldest unsettled event.
    fn restart(&mut self, restart: Restart, shared: &mut Shared) {
        self.pace.restart();
        self.window.forget();
        if let Some(after) = restart.after {
            self.pending = Pending::default();
            shared.outlet.rewind(after);
            self.skips.restart(restart.settled);
            self.gone_back(after);
        }
        shared.declarations.undone();
    }

    fn renew(&mut self, shared: &mut Shared, now: Instant) -> Phase {
        let Some(place) = shared.clients.place() else {
            return Phase::Pausing(now.checked_add(NO_PLACE).unwrap_or(now));
        };
        shared.patience.apply(&mut self.config);
        match Producer::new(&self.config, &shared.clients, place) {
            Ok(producer) => {
                shared.changed = true;
                self.window.begin_anew();
                self.open_session(shared, now);
                self.generation = shared.next_generation();
                add(&mut shared.status.producers, 1);
                Phase::Flowing(producer)
            }
            Err(error) => {
                let (cause, wait) = (options::cause(&error), self.backoff.next_wait());
                self.cause.clone_from(&cause);
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
    // It was in flight alone or among few: the bound on these is far above it.
    shared.dead(letter, "", MESSAGE_OVERHEAD_BYTES, now);
}
