//! A sender: one producer at a time, what is in flight on it, and the way back after a failure.
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
//! producer. With transactions, *Flowing* has states of its own (`transaction.rs`), and an abort takes the place of
//! *Draining*.
//!
//! There are two: one for the stream, one for the parked topics, whose turn comes one after the other. Both are this type;
//! what they send comes from a [`Feed`]. [`Sender::turn`] does what can be done without waiting, and names what happened;
//! what that means for the readings is the owner's (`stream_sender.rs`, `parked_topics.rs`).

use std::mem::{self, Discriminant};
use std::time::{Duration, Instant};

use rdkafka::config::ClientConfig;
use rdkafka::types::RDKafkaErrorCode as Code;

use super::bisection::Bisection;
use super::clients::Call;
use super::delivery::Delivery;
use super::feed::Feed;
use super::judge::{Judged, Renewal};
use super::options::{self, Names};
use super::outstanding::Restart;
use super::producer::{Failure, Producer, Reports};
use super::session::Step;
use super::stalls::Stalls;
use super::targets::Generation;
use super::time_request::Answer;
use super::transaction::State;
use super::transactional::{Cost, Refused};
use super::verdict::is_an_answer;
use super::watermark_reader::FoundWatermarks;
use super::window::Window;
use super::wire::Wire;
use crate::delivered::Delivered;
use crate::watermark::Record;

/// In `Draining`, how long to wait for the next report: so long, or twice as long as a reading takes over this link. What
/// is still in flight then may be sent twice.
const DRAIN: Duration = Duration::from_secs(5);

/// While former producers are still being ended, and there are too many of them: look again so often.
const NO_PLACE: Duration = Duration::from_millis(500);

/// A producer that had to go on under another name ([`Names`]) goes back to its first one after this time: a clone of this
/// gateway has the first one as well, and is told by it. When that is not free yet, it costs some seconds.
const AWAY: Duration = Duration::from_secs(600);

/// Topics that are missing or forbidden are found one after the other. When no other one was for so long, the producer goes:
/// librdkafka asks brokers for each topic without partitions that it has met, once a second as long as it lives. That is
/// 190 bytes, 16 MB a day, and on a link of 300 ms ten round trips between two batches in which none goes.
const ALL_CLOSED: Duration = Duration::from_secs(5);

/// How sending went.
#[derive(Debug, Clone, Copy)]
pub(super) enum Sent {
    /// All, or what there was room for.
    Done,
    /// The bisection wants to hear about this group first.
    GroupDone,
    /// No transaction could be begun.
    NotBegun(Code),
    /// librdkafka refused one: to be judged.
    Failed,
    /// The bisection has ended, and it was the size of batches.
    BatchesTooLarge,
}

/// See the documentation of the module.
pub(super) struct Sender {
    config: ClientConfig,
    names: Names,
    /// When it went on under another name.
    away_since: Option<Instant>,
    phase: Phase,
    /// Of the present producer.
    pub(super) generation: Generation,
    pub(super) failures: Vec<Failure>,
    pub(super) bisection: Bisection,
    pub(super) window: Window,
    /// Kafka topics that do not confirm.
    stalls: Stalls,
    /// What is in flight to such a topic was given up: this producer has it still, and must go.
    abandoned: bool,
    /// When a topic was closed to this producer, the last time: librdkafka goes on looking for it.
    closed: Option<Instant>,
    /// When something was sent with nothing else in flight, or came back.
    pub(super) moved: Instant,
    pub(super) delivery: Delivery,
    /// How long a round trip takes is being measured, before anything is sent.
    pub(super) measuring: Option<Call<Option<Duration>>>,
}

/// See the drawing above.
enum Phase {
    Flowing(Producer),
    Draining(Producer, Instant),
    Pausing(Instant),
}

/// What happened, for the owner to act upon.
#[derive(Debug)]
pub(super) enum Happened {
    /// Nothing that the owner has to know.
    Nothing,
    /// There is a new producer.
    NewProducer,
    /// librdkafka makes none, for that reason. The owner says when it is tried again, or it is at the next turn.
    NoProducer(String),
    /// Kafka's last watermark is known.
    WatermarksFound(FoundWatermarks),
    /// All records of the transaction are confirmed: the owner is to write the watermark.
    WatermarkDue,
    /// The transaction is committed, with these; how long it took from the last record's being sent, and what it cost.
    Committed(Vec<Delivered>, Duration, Cost),
    /// The producer is over. Before the next one begins, the owner may have it wait.
    Ended(Renewal),
}

/// What came back from Kafka.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Collected {
    /// A broker has answered.
    pub(super) answered: bool,
    /// Something was confirmed for good.
    pub(super) confirmed: bool,
}

/// Where a sender is: phase, producer, transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    phase: Discriminant<Phase>,
    generation: Generation,
    state: Option<State>,
}

/// Where the sender is after a turn, and what happened.
type Turned = (Phase, Happened);

impl Sender {
    /// Without a producer: it makes one at its first turn.
    pub(super) fn new(config: ClientConfig, delivery: Delivery) -> Self {
        let now = Instant::now();
        Self {
            names: Names::new(&config),
            away_since: None,
            config,
            phase: Phase::Pausing(now),
            generation: 0,
            failures: Vec::new(),
            bisection: Bisection::default(),
            window: Window::new(),
            stalls: Stalls::default(),
            abandoned: false,
            closed: None,
            moved: now,
            delivery,
            measuring: None,
        }
    }

    /// The first producer, at once, so that a configuration that makes none ends the start.
    pub(super) fn begins_with(&mut self, producer: Producer, feed: &Feed<'_>, wire: &mut Wire) {
        self.phase = self.opened(producer, feed, wire, Instant::now());
    }

    /// For another queue: nothing that was found out about the last one holds.
    pub(super) fn begins_anew(&mut self, bisection: Bisection, now: Instant) {
        self.bisection = bisection;
        self.window = Window::new();
        self.stalls = Stalls::default();
        self.closed = None;
        self.failures = Vec::new();
        self.moved = now;
        self.phase = Phase::Pausing(now);
    }

    /// Of the present producer, or the next one.
    pub(super) fn config(&self) -> &ClientConfig {
        &self.config
    }

    /// The present producer, if there is one.
    pub(super) fn producer(&self) -> Option<&Producer> {
        match &self.phase {
            Phase::Flowing(producer) | Phase::Draining(producer, _) => Some(producer),
            Phase::Pausing(_) => None,
        }
    }

    /// Records may go out, as far as the phase is concerned.
    pub(super) fn flows(&self) -> bool {
        matches!(self.phase, Phase::Flowing(_))
    }

    /// Events in flight.
    pub(super) fn in_flight(&self) -> usize {
        self.producer().map_or(0, |producer| producer.in_flight().0)
    }

    /// When there is something to do, whatever happens: `gathers_until` is when what waits for others goes.
    pub(super) fn next_wake(&self, gathers_until: Option<Instant>, now: Instant) -> Option<Instant> {
        match self.phase {
            Phase::Flowing(_) => self.delivery.next_wake(gathers_until, now),
            Phase::Draining(_, until) | Phase::Pausing(until) => Some(until),
        }
    }

    /// librdkafka is to say something, which nobody but a poll hears.
    pub(super) fn awaits_word(&self) -> bool {
        self.in_flight() > 0 || self.producer().is_some() && self.delivery.awaits_word()
    }

    /// Where it is. When that has changed there may be more to do at once.
    pub(super) fn place(&self) -> Place {
        Place { phase: mem::discriminant(&self.phase), generation: self.generation, state: self.delivery.state() }
    }

    /// The next producer is not made before that.
    pub(super) fn pause_until(&mut self, until: Instant) {
        if matches!(self.phase, Phase::Pausing(_)) {
            self.phase = Phase::Pausing(until);
        }
    }

    /// Polls and books what came back.
    pub(super) fn collect(&mut self, feed: &mut Feed<'_>, wire: &mut Wire, now: Instant) -> Collected {
        let Some(producer) = self.producer() else { return Collected::default() };
        producer.poll(Duration::ZERO);
        let reports = producer.reports();
        let is_confirmed = self.window.watched().is_some_and(|watched| producer.has_come_back(watched));
        let confirmed = !reports.confirmed.is_empty();
        let taken = confirmed || reports.acked > 0;
        let answered = taken || reports.failures.iter().any(|failure| is_an_answer(failure.code));
        if is_confirmed {
            self.window.confirmed(wire.timeouts.flight(), now);
        }
        let drain = self.longest_drain(now);
        if let Phase::Draining(_, until) = &mut self.phase
            && (taken || !reports.failures.is_empty())
        {
            *until = drain;
        }
        if taken {
            self.moved = now;
        }
        feed.confirmed(reports.confirmed, now);
        self.failures.extend(reports.failures);
        Collected { answered, confirmed }
    }

    /// Does what can be done without waiting.
    pub(super) fn turn(&mut self, feed: &mut Feed<'_>, wire: &mut Wire, now: Instant) -> Happened {
        let (phase, happened) = match mem::replace(&mut self.phase, Phase::Pausing(now)) {
            Phase::Flowing(producer) => self.flow(producer, feed, wire, now),
            Phase::Draining(producer, until) => self.drain(producer, until, feed, wire, now),
            Phase::Pausing(until) if until <= now => self.renew(feed, wire, now),
            Phase::Pausing(until) => (Phase::Pausing(until), Happened::Nothing),
        };
        self.phase = phase;
        happened
    }

    /// Puts the watermark, and what else there is to say, into the transaction, whose records are all confirmed.
    pub(super) fn write_watermark(&mut self, records: &[Record], at_ms: i64, now: Instant) -> Result<(), Code> {
        match &self.phase {
            Phase::Flowing(producer) => {
                let own = self.delivery.transactions_mut();
                own.map_or(Err(Code::State), |own| own.write_watermark(producer, records, at_ms, now))
            }
            Phase::Draining(..) | Phase::Pausing(_) => Err(Code::State),
        }
    }

    /// This producer is over, for a reason that its owner has.
    pub(super) fn end_producer(
        &mut self,
        renewal: Renewal,
        feed: &mut Feed<'_>,
        wire: &mut Wire,
        now: Instant,
    ) -> Happened {
        match mem::replace(&mut self.phase, Phase::Pausing(now)) {
            Phase::Flowing(producer) | Phase::Draining(producer, _) => {
                let (phase, happened) = self.end(producer, renewal, feed, wire, now);
                self.phase = phase;
                happened
            }
            Phase::Pausing(_) => Happened::Ended(renewal),
        }
    }

    /// No producer for now: what is in flight comes back, as far as it has.
    pub(super) fn retire(&mut self, feed: &mut Feed<'_>, wire: &mut Wire, now: Instant) {
        if let Phase::Flowing(producer) | Phase::Draining(producer, _) =
            mem::replace(&mut self.phase, Phase::Pausing(now))
        {
            self.note_overdue(&producer, None, wire);
            self.takes_another_name(None, now);
            let (reports, _restart) = producer.retire();
            feed.confirmed(reports.confirmed, now);
            self.window.forget();
        }
        self.failures = Vec::new();
        self.delivery.rests();
    }

    /// A stop: what was begun is brought to an end. True when nothing is under way any more.
    pub(super) fn wind_down(&mut self, now: Instant) -> bool {
        let in_flight = self.in_flight();
        self.delivery.wind_down(in_flight, now)
    }

    fn flow(&mut self, producer: Producer, feed: &mut Feed<'_>, wire: &mut Wire, now: Instant) -> Turned {
        if self.delivery.times_each_request() && producer.was_overdue() {
            // librdkafka sends the same request again: over this link it would be overdue for ever.
            let longer = wire.timeouts.overdue(self.window.is_least());
            if longer || wire.timeouts.is_overdue() {
                let why = "a request took longer than its time-out; the next ones are smaller".to_owned();
                return self.end(producer, Renewal::AfterWait(Code::RequestTimedOut, why), feed, wire, now);
            }
        }
        // Before a transaction goes on, whose watermark is due when nothing is in flight any more: what was given up has not
        // come back.
        if self.delivery.sends_records() {
            self.abandon_stalled(&producer, wire, now);
        }
        if !self.failures.is_empty() {
            return self.refused(producer, feed, wire, now);
        }
        let happened = match self.delivery.step(&producer, now) {
            Step::Send => return self.fill(producer, feed, wire, now),
            Step::Wait => Happened::Nothing,
            Step::Known(found) => Happened::WatermarksFound(found),
            Step::Seal => Happened::WatermarkDue,
            Step::Committed(proofs, ending) => {
                wire.times.heard(producer.told());
                Happened::Committed(proofs, ending, self.delivery.committed(now))
            }
            Step::Aborted => return self.aborted(producer, feed, wire, now),
            Step::Retried => {
                self.keeps_partitions();
                feed.retried();
                return self.end(producer, Renewal::AtOnce, feed, wire, now);
            }
            // Of the watermark: those of readings are judged.
            Step::Lost(Code::InvalidTimestamp, _) => {
                wire.times.refused_watermark();
                return self.end(producer, Renewal::AtOnce, feed, wire, now);
            }
            Step::Lost(code, detail) => {
                return self.end(producer, Renewal::AfterWait(code, detail), feed, wire, now);
            }
        };
        (Phase::Flowing(producer), happened)
    }

    /// Nothing is in the way of sending but what is sent.
    fn fill(&mut self, producer: Producer, feed: &mut Feed<'_>, wire: &mut Wire, now: Instant) -> Turned {
        // Between two transactions nothing is in doubt, and a producer with other times costs no repeat.
        if self.delivery.needs_other_times(&wire.timeouts) {
            self.keeps_partitions();
            return self.end(producer, Renewal::AtOnce, feed, wire, now);
        }
        if self.wants_home(now) {
            self.names.home(&mut self.config);
            return self.end(producer, Renewal::AtOnce, feed, wire, now);
        }
        if let Some(long) = self.window.finds_long() {
            wire.timeouts.link_is(long);
        }
        let all_closed = self.closed.is_some_and(|closed| now.saturating_duration_since(closed) >= ALL_CLOSED);
        if self.delivery.is_idle() && (all_closed || !wire.timeouts.suits(&self.config)) {
            if producer.in_flight().0 > 0 {
                return (Phase::Flowing(producer), Happened::Nothing);
            }
            self.keeps_partitions();
            return self.end(producer, Renewal::AtOnce, feed, wire, now);
        }
        let is_ready = feed.is_ready(now);
        if is_ready {
            feed.begins_to_send(now);
        }
        let not_begun = |code| Renewal::AfterWait(code, "a transaction cannot be begun".to_owned());
        let sent = match self.delivery.ask_the_time(&producer, is_ready, &mut wire.times, now) {
            Ok(Answer::Known) if is_ready => self.send(&producer, feed, wire, now),
            Ok(Answer::Known) => Sent::Done,
            Ok(Answer::NotYet) => return (Phase::Flowing(producer), Happened::Nothing),
            // Its report would be taken for a reading's; nothing else is in flight.
            Ok(Answer::Never) => return self.end(producer, Renewal::AtOnce, feed, wire, now),
            Err(code) => Sent::NotBegun(code),
        };
        match sent {
            Sent::Done | Sent::GroupDone => {}
            Sent::Failed => return self.refused(producer, feed, wire, now),
            Sent::BatchesTooLarge => return self.shrink(producer, feed, now),
            Sent::NotBegun(code) => return self.end(producer, not_begun(code), feed, wire, now),
        }
        let (hand, held_up) = (feed.hand(), matches!(sent, Sent::GroupDone));
        match self.delivery.after_sending(&producer, hand, held_up, &wire.timeouts, now) {
            Ok(()) => (Phase::Flowing(producer), Happened::Nothing),
            Err(code) => self.end(producer, not_begun(code), feed, wire, now),
        }
    }

    /// Records came back without confirmation, or librdkafka did not take one.
    fn refused(&mut self, producer: Producer, feed: &mut Feed<'_>, wire: &mut Wire, now: Instant) -> Turned {
        match self.delivery.refused(&producer, &self.failures, now) {
            Refused::Drain => (Phase::Draining(producer, self.longest_drain(now)), Happened::Nothing),
            Refused::Aborting => (Phase::Flowing(producer), Happened::Nothing),
            Refused::Aborted => self.aborted(producer, feed, wire, now),
            Refused::Over(code, detail) => {
                // The failures are judged all the same: what is known of them stays known.
                let or_else = if self.abandoned { Renewal::AtOnce } else { Renewal::AfterWait(code, detail) };
                let judged = Judged::of(mem::take(&mut self.failures), &mut self.bisection);
                let renewal = judged.renewal(producer.fatal()).unwrap_or(or_else);
                feed.judged(judged, &producer, &mut wire.times, now);
                self.end(producer, renewal, feed, wire, now)
            }
        }
    }

    fn drain(
        &mut self,
        producer: Producer,
        until: Instant,
        feed: &mut Feed<'_>,
        wire: &mut Wire,
        now: Instant,
    ) -> Turned {
        let in_flight = producer.in_flight().0;
        if in_flight > 0 && now < until {
            if producer.fatal().is_some() {
                // After a fatal error nothing queued is sent any more, and nothing of it is reported until asked for.
                producer.purge_queue();
            }
            return (Phase::Draining(producer, until), Happened::Nothing);
        }
        let judged = Judged::of(mem::take(&mut self.failures), &mut self.bisection);
        let renewal = if in_flight > 0 {
            Some(Renewal::AfterWait(Code::RequestTimedOut, "Kafka did not answer in time".to_owned()))
        } else {
            judged.renewal(producer.fatal())
        };
        self.after(judged, renewal, producer, feed, wire, now)
    }

    /// All reports are there, nothing of the transaction is in Kafka for a reader to see.
    fn aborted(&mut self, producer: Producer, feed: &mut Feed<'_>, wire: &mut Wire, now: Instant) -> Turned {
        let reports = producer.reports();
        feed.confirmed(reports.confirmed, now);
        self.failures.extend(reports.failures);
        feed.aborted();
        let judged = Judged::of(mem::take(&mut self.failures), &mut self.bisection);
        let fatal = producer.fatal();
        let renewal = if self.abandoned { judged.renewal(fatal) } else { judged.renewal_after_abort(fatal) };
        self.after(judged, renewal, producer, feed, wire, now)
    }

    /// Nothing is in flight, or nothing more is waited for, and what came back is judged.
    fn after(
        &mut self,
        judged: Judged,
        renewal: Option<Renewal>,
        producer: Producer,
        feed: &mut Feed<'_>,
        wire: &mut Wire,
        now: Instant,
    ) -> Turned {
        if !judged.closed.is_empty() {
            self.closed = Some(now);
        }
        feed.judged(judged, &producer, &mut wire.times, now);
        if let Some(renewal) = renewal.or_else(|| self.abandoned.then_some(Renewal::AtOnce)) {
            return self.end(producer, renewal, feed, wire, now);
        }
        let restart = producer.give_up();
        self.generation = wire.next_generation();
        self.goes_back(restart, feed);
        (Phase::Flowing(producer), Happened::Nothing)
    }

    fn end(
        &mut self,
        producer: Producer,
        renewal: Renewal,
        feed: &mut Feed<'_>,
        wire: &mut Wire,
        now: Instant,
    ) -> Turned {
        let code = match &renewal {
            Renewal::AtOnce => None,
            Renewal::AfterWait(code, _) => Some(*code),
        };
        if code.is_some() {
            self.note_overdue(&producer, code, wire);
        }
        self.delivery.ends();
        let (Reports { confirmed, .. }, restart) = producer.retire();
        // The failures among the reports are unsettled, and go again from the restart on.
        feed.confirmed(confirmed, now);
        self.goes_back(restart, feed);
        self.stalls = Stalls::default();
        self.closed = None;
        self.takes_another_name(code, now);
        (Phase::Pausing(now), Happened::Ended(renewal))
    }

    /// What has just been decided for certain stays known to the next producer.
    fn keeps_partitions(&mut self) {
        if let Some(own) = self.delivery.transactions_mut() {
            own.keeps_partitions();
        }
    }

    /// What was given up may keep Kafka from ending the transaction that it was in.
    fn takes_another_name(&mut self, code: Option<Code>, now: Instant) {
        if mem::take(&mut self.abandoned) || code == Some(Code::ConcurrentTransactions) {
            self.names.next(&mut self.config);
            self.away_since = Some(now);
        }
    }

    /// Under another name for long enough, and between two transactions?
    fn wants_home(&mut self, now: Instant) -> bool {
        let long = self.away_since.is_some_and(|since| now.saturating_duration_since(since) > AWAY);
        if long && self.delivery.is_idle() {
            self.away_since = None;
            return self.names.is_away();
        }
        false
    }

    /// Why this one ended may be that the link is slower than was thought.
    fn note_overdue(&self, producer: &Producer, code: Option<Code>, wire: &mut Wire) {
        if code == Some(Code::InvalidTransactionTimeout) {
            wire.timeouts.refused();
        } else if !self.delivery.times_each_request() && producer.was_overdue() {
            wire.timeouts.overdue(self.window.is_least());
        }
    }

    /// Reads again from the oldest unsettled event.
    fn goes_back(&mut self, restart: Restart, feed: &mut Feed<'_>) {
        self.bisection.restart();
        self.window.forget();
        feed.goes_back(restart);
    }

    /// Nothing is in flight here: a new producer costs no repeat.
    fn shrink(&mut self, producer: Producer, feed: &mut Feed<'_>, now: Instant) -> Turned {
        if let Some(bytes) = options::shrink_batches(&mut self.config) {
            tracing::info!(bytes, "kafka: batches are too large for a topic; the agent makes smaller ones");
        }
        let (_, restart) = producer.retire();
        self.goes_back(restart, feed);
        (Phase::Pausing(now), Happened::Nothing)
    }

    fn renew(&mut self, feed: &Feed<'_>, wire: &mut Wire, now: Instant) -> Turned {
        let Some(slot) = wire.clients.slot() else {
            return (Phase::Pausing(now.checked_add(NO_PLACE).unwrap_or(now)), Happened::Nothing);
        };
        wire.timeouts.apply(&mut self.config);
        match Producer::new(&self.config, &wire.clients, slot) {
            Ok(producer) => (self.opened(producer, feed, wire, now), Happened::NewProducer),
            Err(error) => (Phase::Pausing(now), Happened::NoProducer(options::cause(&error))),
        }
    }

    fn opened(&mut self, producer: Producer, feed: &Feed<'_>, wire: &mut Wire, now: Instant) -> Phase {
        self.window.begin_anew();
        self.delivery.begins(feed.asks_about(), &wire.timeouts, now);
        self.generation = wire.next_generation();
        Phase::Flowing(producer)
    }

    /// Topics that do not confirm although brokers answer shall wait alone; their records count as failed.
    fn abandon_stalled(&mut self, producer: &Producer, wire: &Wire, now: Instant) {
        let late = self.window.is_late_after(wire.timeouts.flight());
        for (topic, code) in self.stalls.look(producer, late, now) {
            self.abandoned = true;
            self.failures.extend(producer.fail(&topic, code));
        }
    }

    /// Until when the next report is waited for.
    fn longest_drain(&self, now: Instant) -> Instant {
        now.checked_add(DRAIN.max(self.window.latest().saturating_mul(2))).unwrap_or(now)
    }
}
