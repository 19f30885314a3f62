//! The loop: one thread, one owner of the producers. It sleeps until something happens, and lets the senders do what can be
//! done.
//!
//! [`Relay::select`] waits and names what happened; [`Relay::apply`] does not wait. What ends the wait: readings that were
//! committed, an answer from beside the loop (`clients.rs`), a settlement that is on disk while somebody waits for it, each by a
//! call at the reader ([`Waker`](crate::buffer::Waker)); or the time at which something is due.
//!
//! librdkafka calls nobody: rdkafka does not give its "queue is not empty any more". A thread that waits for it in librdkafka
//! was tried: it wakes for each line of the log, 25 of them a transaction. So while
//! librdkafka has something to say, and only then, it is polled, ever more seldom, and no more often than the link answers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::clients::Call;
use super::custody::{Custody, unix_ms};
use super::error::ForwardError;
use super::link::{self, Link};
use super::parked_topics::ParkedTopics;
use super::relocation::Relocation;
use super::sender::Place;
use super::status::{ForwardStatus, Reason};
use super::stream_sender::StreamSender;
use super::topic_state::{Answers, Found};
use super::waiting::{self, Obstacle, Watch};
use super::wire::Wire;
use crate::buffer::{Awaited, ReadError};
use crate::clock;
use crate::event::Stored;
use crate::log_throttle::LogThrottle;
use crate::observe::pulse::Pulse;
use crate::planted::{Bug, planted};
use crate::stop::Stop;

/// After a stop was asked for, how long to wait for reports. The whole process has 10 s.
const STOP_WAIT: Duration = Duration::from_secs(4);

/// ... and then for librdkafka's clients to end, which takes milliseconds unless they look names up. A process had better
/// not end under their hands.
const LAST_CLIENTS: Duration = Duration::from_millis(500);

/// While librdkafka is to say something it is polled, at first after the short time, then ever more seldom.
const SHORTEST_POLL: Duration = Duration::from_millis(1);
const LONGEST_POLL: Duration = Duration::from_millis(20);

/// On a long link so many times in the time that the quickest reading took, but at least so often.
const POLLS_A_READING: u32 = 16;
const SELDOMEST_POLL: Duration = Duration::from_millis(100);

/// With nothing that happens: a stop is heard, the pulse beats, and what is looked at now and then is looked at, so often.
const IDLE: Duration = Duration::from_millis(250);

/// Before the first contact: librdkafka does not say when it has met a broker.
const MEETING: Duration = Duration::from_millis(100);

/// Lanes are brought in line with the configuration some chunks at a time, with so long between for everything else; and so
/// long a stop waits for the next report.
const MOMENT: Duration = Duration::from_millis(5);

/// The status is published at most so often.
const PUBLISH: Duration = Duration::from_millis(250);

/// After a failed read of the buffer.
const READ_AGAIN: Duration = Duration::from_millis(500);

/// What has ended the wait.
#[derive(Debug)]
enum Event {
    /// Readings, in order.
    Readings(Vec<Stored>),
    /// Readings that cannot be read.
    Unreadable(ReadError),
    /// Something has called, or is due.
    Woken,
    /// A stop is asked for.
    Stop,
}

pub(super) struct Relay {
    custody: Custody,
    wire: Wire,
    relocation: Relocation,
    stream: StreamSender,
    parked_topics: ParkedTopics,
    link: Link,
    /// A question that shows whether somebody answers.
    asking: Option<Call<Answers>>,
    read_errors: LogThrottle,
    /// Why nothing can be sent.
    unusable_lines: LogThrottle,
    /// Whether readings flow.
    watch: Watch,
    /// ... is looked at then.
    flow_after: Instant,
    read_after: Instant,
    /// The present wait between two polls of librdkafka.
    quiet: Duration,
    /// The last turn has changed something: there may be more to do at once.
    goes_on: bool,
    started: Instant,
    publish_after: Instant,
    published: watch::Sender<ForwardStatus>,
    pulse: Pulse,
    stop: Stop,
}

impl Relay {
    /// Of these parts.
    pub(super) fn new(
        (custody, wire): (Custody, Wire),
        relocation: Relocation,
        stream: StreamSender,
        parked_topics: ParkedTopics,
        published: watch::Sender<ForwardStatus>,
        pulse: Pulse,
        stop: Stop,
    ) -> Self {
        let now = Instant::now();
        Self {
            custody,
            wire,
            relocation,
            stream,
            parked_topics,
            link: Link::default(),
            asking: None,
            read_errors: LogThrottle::default(),
            unusable_lines: LogThrottle::default(),
            watch: Watch::default(),
            flow_after: now,
            read_after: now,
            quiet: SHORTEST_POLL,
            goes_on: true,
            started: now,
            publish_after: now,
            published,
            pulse,
            stop,
        }
    }

    /// Until a stop, or until it cannot go on.
    pub(super) fn run(mut self) -> Result<(), ForwardError> {
        loop {
            let event = self.select();
            if matches!(event, Event::Stop) {
                return self.finish();
            }
            self.apply(event, Instant::now())?;
            while planted(Bug::StuckForward) && self.started.elapsed() > Duration::from_secs(2) {
                std::thread::park();
            }
        }
    }

    /// Waits for the next thing that happens.
    fn select(&mut self) -> Event {
        let now = Instant::now();
        let reads = self.read_after <= now && self.stream.wants_events(now);
        if !self.goes_on {
            // Whoever has no room now has it when something is on disk.
            self.custody.fates_have_room();
            let awaited = Awaited { events: reads, settled: self.custody.moves.are_under_way() };
            self.custody.reader.wait(awaited, self.next_due(now).saturating_duration_since(now));
        }
        self.pulse.beat();
        if self.stop.requested() {
            return Event::Stop;
        }
        if !reads {
            return Event::Woken;
        }
        match self.custody.reader.next(Duration::ZERO) {
            Ok(events) if events.is_empty() => Event::Woken,
            Ok(events) => Event::Readings(events),
            Err(error) => Event::Unreadable(error),
        }
    }

    /// When there is something to do, whatever happens.
    fn next_due(&self, now: Instant) -> Instant {
        let after = |wait| now.checked_add(wait).unwrap_or(now);
        let idle = after(if self.link.never_met() { MEETING } else { IDLE });
        let moves = self.relocation.is_under_way().then(|| after(MOMENT));
        // One topic is tried at a time: while that lasts, another that is due has to wait. None before the time is known.
        let must_wait = self.parked_topics.is_busy() || self.relocation.is_under_way() || self.wire.times.is_pending();
        let next_try = if must_wait { None } else { self.custody.parking.next_wake() };
        let parked = self.parked_topics.next_wake(now);
        let polls = (self.stream.sender.awaits_word() || self.parked_topics.awaits_word()).then(|| after(self.quiet));
        let publishes = self.custody.changed.then_some(self.publish_after);
        let dues =
            [self.stream.next_wake(now), self.custody.settlement.due(), next_try, parked, moves, polls, publishes];
        dues.into_iter().flatten().fold(idle, Instant::min)
    }

    /// Something has come or gone: librdkafka is listened to closely again, as closely as the link answers.
    fn listen(&mut self) {
        self.quiet = self.shortest_poll();
    }

    fn shortest_poll(&self) -> Duration {
        let quickest = self.stream.sender.window.quickest().unwrap_or_default();
        quickest.checked_div(POLLS_A_READING).unwrap_or_default().clamp(SHORTEST_POLL, SELDOMEST_POLL)
    }

    /// Does everything that can be done, without waiting.
    fn apply(&mut self, event: Event, now: Instant) -> Result<(), ForwardError> {
        let before = self.place();
        self.quiet = (self.quiet * 2).min(LONGEST_POLL.max(self.shortest_poll()));
        match event {
            Event::Readings(events) => {
                self.listen();
                self.stream.take_events(events, now);
            }
            Event::Unreadable(error) => {
                if let ReadError::Damaged { first, last, .. } = &error {
                    self.stream.unread(*first, *last, &mut self.custody);
                }
                self.read_failed(&error, now)?;
            }
            Event::Woken | Event::Stop => {}
        }
        self.wire.times.tick(clock::now());
        if self.stream.collect(&mut self.custody, &mut self.wire, now) {
            self.answered(now);
        }
        self.watch_link(now);
        self.stream.turn(self.link.connected(), &mut self.custody, &mut self.wire, now);
        if let Some(fault) = self.stream.fault() {
            return Err(fault);
        }
        let parked = if self.relocation.is_under_way() {
            self.relocation.hears(&mut self.stream.found_lanes);
            self.relocation.step(&mut self.custody, now)
        } else {
            self.parked_topics.step(&mut self.custody, &mut self.wire, now)
        };
        if let Err(error) = parked {
            if matches!(error, ReadError::Disk(_)) {
                self.parked_topics.end(&mut self.custody, &mut self.wire, now);
            }
            self.read_failed(&error, now)?;
        }
        if self.custody.settlement.due().is_some_and(|due| due <= now) {
            self.custody.settle()?;
        }
        self.watch_flow(now);
        self.publish(now);
        self.goes_on = self.place() != before;
        if self.goes_on {
            self.listen();
        }
        Ok(())
    }

    /// Where everything is that moves in steps.
    fn place(&self) -> (Place, Option<(Place, bool, bool)>, bool, bool) {
        let moves = self.relocation.is_under_way();
        (self.stream.sender.place(), self.parked_topics.place(), self.link.connected(), moves)
    }

    /// Something came back from Kafka.
    fn answered(&mut self, now: Instant) {
        self.listen();
        if let Some(line) = self.link.answered(now) {
            link::say(line);
        }
    }

    fn watch_link(&mut self, now: Instant) {
        let Some(producer) = self.stream.sender.producer() else { return };
        let remarks = producer.remarks();
        if !remarks.is_empty() {
            self.custody.changed = true;
            if let Some(line) = self.link.heard(remarks, now) {
                link::say(line);
            }
        }
        // With something in flight, its confirmation is the answer. Otherwise somebody has to ask.
        let met = self.link.never_met() && producer.has_met_a_broker();
        let answer = met || !self.link.never_met() && self.asked(now);
        if answer && let Some(line) = self.link.answered(now) {
            link::say(line);
        }
        if let Some(line) = self.link.tick(now) {
            link::say(line);
        }
    }

    /// Has somebody answered who was asked? Asks, when it is time and nothing in flight will tell.
    fn asked(&mut self, now: Instant) -> bool {
        if let Some(asking) = &self.asking {
            let Some(answer) = asking.answer() else { return false };
            self.asking = None;
            return answer.iter().any(|(_, found)| !matches!(found, Found::Silent(_)));
        }
        let (Some(producer), Some(topic)) = (self.stream.sender.producer(), self.stream.known_topic()) else {
            return false;
        };
        if producer.in_flight().0 == 0 && self.link.wants_to_ask(now) {
            // Without a thread it is asked again a little later.
            self.asking = producer.look(vec![Arc::clone(topic)]).ok();
        }
        false
    }

    /// When something waits and nothing flows, the reason is shown, and said.
    fn watch_flow(&mut self, now: Instant) {
        if now < self.flow_after {
            return;
        }
        self.flow_after = now.checked_add(PUBLISH).unwrap_or(now);
        let waits = self.stream.has_events() || self.custody.reader.has_more();
        let delivered = self.custody.status.delivered;
        let mut watch = std::mem::take(&mut self.watch);
        let (waiting, line) = watch.look(waits, delivered, || self.obstacle(now), (now, unix_ms()));
        self.watch = watch;
        if let Some(line) = line {
            waiting::say(line);
        }
        if waiting != self.custody.status.waiting {
            self.custody.changed = true;
            self.custody.status.waiting = waiting;
        }
    }

    /// What is in the way of the main lane.
    fn obstacle(&self, now: Instant) -> Option<Obstacle> {
        if now < self.read_after {
            return Some(Obstacle::new(Reason::Buffer, "the buffer's database cannot be read"));
        }
        if self.link.connected() {
            let obstacle = self.stream.obstacle(&self.wire, now)?;
            // One broker of several refuses: whatever waits for that one waits for this reason.
            let refused = self.link.refused_lately(now).filter(|_| obstacle.reason.may_come_of_a_refusal());
            return Some(refused.map_or(obstacle, |why| Obstacle::new(Reason::Refused, why)));
        }
        let why = match self.link.last_error() {
            "" => "no broker has answered yet",
            error => error,
        };
        let reason = if self.link.refusing().is_some() {
            Reason::Refused
        } else if why.contains("Failed to resolve") {
            Reason::NameNotResolved
        } else {
            Reason::NoBroker
        };
        Some(Obstacle::new(reason, why))
    }

    /// A damaged chunk is passed by; a failing disk is tried again after a while.
    fn read_failed(&mut self, error: &ReadError, now: Instant) -> Result<(), ForwardError> {
        match error {
            ReadError::Stopped => return Err(ForwardError::BufferStopped),
            ReadError::Damaged { first, last, .. } => {
                let unread = last.saturating_sub(*first).saturating_add(1);
                self.custody.status.unread = self.custody.status.unread.saturating_add(unread);
                self.custody.changed = true;
                tracing::error!(%error, "kafka: the buffer cannot read some readings; they stay in its database, and \
                     the agent tries them again at the next start");
            }
            ReadError::Disk(_) => {
                self.read_after = now.checked_add(READ_AGAIN).unwrap_or(now);
                if let Some(more) = self.read_errors.again(&error.to_string(), now) {
                    tracing::error!(%error, more, "kafka: the buffer cannot be read; the agent tries again");
                }
            }
        }
        Ok(())
    }

    fn publish(&mut self, now: Instant) {
        let in_flight = u64::try_from(self.stream.sender.in_flight()).unwrap_or(u64::MAX);
        let connected = self.link.connected();
        let status = &mut self.custody.status;
        let trouble = self.stream.trouble();
        if let Some(transactions) = &mut status.transactions {
            // A person is needed: it is said at once. Anything else may be over in a moment; what lasts is said as a wait.
            if trouble.topic_unusable
                && transactions.blocked != trouble.why
                && let Some(more) = self.unusable_lines.again(&trouble.why, now)
            {
                tracing::warn!(
                    why = trouble.why,
                    remedy = Reason::WatermarkTopic.remedy(),
                    more,
                    "kafka: the agent can send nothing"
                );
            }
            let blocked = match &status.waiting {
                Some(waiting) => &waiting.why,
                None if trouble.topic_unusable => &trouble.why,
                None => "",
            };
            if transactions.blocked != *blocked {
                self.custody.changed = true;
                blocked.clone_into(&mut transactions.blocked);
            }
            transactions.topic_unusable = trouble.topic_unusable;
        }
        let clock_ahead_ms = self.wire.times.ahead_ms();
        self.custody.changed |= in_flight != status.in_flight
            || clock_ahead_ms.is_some() != status.clock_ahead_ms.is_some()
            || connected != status.connected
            || self.link.last_error() != status.last_error;
        if !self.custody.changed || now < self.publish_after {
            return;
        }
        self.custody.changed = false;
        self.publish_after = now.checked_add(PUBLISH).unwrap_or(now);
        status.in_flight = in_flight;
        status.clock_ahead_ms = clock_ahead_ms;
        status.connected = connected;
        status.parked = self.custody.parking.status();
        if self.link.last_error() != status.last_error {
            self.link.last_error().clone_into(&mut status.last_error);
        }
        self.published.send_replace(status.clone());
    }

    /// Waits for what is in flight, settles it, ends the producers. Nothing that is not settled is lost: it is held.
    fn finish(mut self) -> Result<(), ForwardError> {
        let deadline = Instant::now().checked_add(STOP_WAIT);
        while !planted(Bug::CarelessStop) && deadline.is_some_and(|deadline| Instant::now() < deadline) {
            self.pulse.beat();
            let now = Instant::now();
            self.stream.collect(&mut self.custody, &mut self.wire, now);
            let lane_done = self.parked_topics.wind_down(&mut self.custody, &mut self.wire, now);
            self.watch_link(now);
            let main_done = self.stream.wind_down(self.link.connected(), &mut self.custody, &mut self.wire, now);
            // Without a link no answer will come in time.
            if main_done && lane_done || !self.link.connected() {
                break;
            }
            self.custody.reader.wait(Awaited { events: false, settled: true }, MOMENT);
        }
        let now = Instant::now();
        self.stream.retire(&mut self.custody, &mut self.wire, now);
        self.parked_topics.end(&mut self.custody, &mut self.wire, now);
        self.wire.clients.wait_for_the_end(LAST_CLIENTS);
        self.custody.settle()?;
        self.publish_after = now;
        self.custody.changed = true;
        self.publish(now);
        Ok(())
    }
}
