//! The loop: one thread, one owner of the producers. It waits, and lets the lanes do what can be done.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::admission::Admission;
use super::aside::{Call, Clients};
use super::asking::Asking;
use super::blocked_topics::BlockedTopics;
use super::declarations::Declarations;
use super::delivery::Delivery as Mode;
use super::end_txn;
use super::fates::Fates;
use super::link::{self, Link, Repeats};
use super::options;
use super::outcome::Outcome;
use super::outstanding::Skips;
use super::parking::Parking;
use super::patience::Patience;
use super::producer::Producer;
use super::record::Records;
use super::relocation::Relocation;
use super::retention;
use super::sender::Sender;
use super::session::Terms;
use super::shared::{Crowd, Shared, unix_ms};
use super::status::{ForwardStatus, Reason, Transactions};
use super::stream::Stream;
use super::stream::watermark::StreamWatermark;
use super::stream_sender::StreamSender;
use super::targets::Targets;
use super::time::Times;
use super::topic_state::{Answers, Found};
use super::transactional::Transactional;
use super::waiting::{self, Obstacle, Watch};
use crate::buffer::{Hole, LaneId, Lives, OVERFLOW, Outlet, ReadError, Recovered, Settler, Stopped};
use crate::clock;
use crate::config::{self, Delivery, Timestamp};
use crate::event::{RouteId, Sequence};
use crate::observe::pulse::Pulse;
use crate::planted::{Bug, planted};
use crate::route::{Definition, Route, Routes};
use crate::stop::Stop;

/// After a stop was asked for, how long to wait for reports. The whole process has 10 s.
const STOP_WAIT: Duration = Duration::from_secs(4);

/// ... and then for librdkafka's clients to end, which takes milliseconds unless they look names up. A process had better
/// not end under their hands.
const LAST_CLIENTS: Duration = Duration::from_millis(500);

/// With something in flight librdkafka is polled, at first after the short time, then ever more seldom.
const SHORTEST_POLL: Duration = Duration::from_millis(1);
const LONGEST_POLL: Duration = Duration::from_millis(20);
/// ... without a link.
const LONGEST_POLL_UNLINKED: Duration = Duration::from_millis(100);

/// With nothing in flight: a stop is heard, and the pulse beats, at least so often.
const IDLE: Duration = Duration::from_millis(250);

/// The status is published at most so often.
const PUBLISH: Duration = Duration::from_millis(250);

/// After a failed read of the buffer.
const READ_AGAIN: Duration = Duration::from_millis(500);

/// What the forwarder takes over from the last run.
#[derive(Debug, Clone)]
pub struct Recovery {
    /// Identity of the buffer.
    pub buffer_id: uuid::Uuid,
    /// Sequences of the main lane that are settled although older ones are not.
    pub settled: Vec<std::ops::RangeInclusive<Sequence>>,
    /// Sequences that will never come and that no dead letter speaks of.
    pub holes: Vec<Hole>,
    /// Lanes that hold events, with their Kafka topic.
    pub lanes: Vec<(LaneId, Arc<str>)>,
    /// Everything up to here is settled.
    pub released: Sequence,
    /// Routes that the configuration has no more, as they were written, by the ledger line of what they took in.
    pub gone: BTreeMap<RouteId, Definition>,
    /// Kafka topics that were admitted, while something waits beyond [`config::Kafka::max_topics`].
    pub admitted: Vec<Arc<str>>,
    /// The mark of the configuration that the lanes were last brought in line with.
    pub in_line_with: Option<u64>,
    /// Who has written watermarks for this buffer, and who will.
    pub lives: Lives,
}

impl From<&Recovered> for Recovery {
    fn from(recovered: &Recovered) -> Self {
        let Recovered { buffer_id, settled, holes, lanes, released, gone, admitted, in_line_with, lives, .. } =
            recovered;
        Self {
            buffer_id: *buffer_id,
            settled: settled.clone(),
            holes: holes.clone(),
            lanes: lanes.clone(),
            released: *released,
            gone: gone.clone(),
            admitted: admitted.clone(),
            in_line_with: *in_line_with,
            lives: lives.clone(),
        }
    }
}

/// Why the forwarder cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    /// librdkafka refuses the configuration. Usage: exit 78.
    #[error("kafka: create the producer: {0}")]
    Options(String),
    /// The operating system gives no thread. Retry.
    #[error("kafka: start a thread: {0}")]
    System(#[from] std::io::Error),
    /// The buffer has stopped before the forwarder. Halt: the buffer's own error says why.
    #[error("kafka: the buffer has stopped")]
    BufferStopped,
    /// Another agent has this buffer's identity: a cloned card, or a copy that was restored. `run.rs` starts again with a
    /// new one.
    #[error(
        "kafka: the watermark topic has a word for buffer {buffer_id} up to {through} that this buffer has not given: \
         another agent has the same identity (a cloned card, or a restored copy)"
    )]
    Twin {
        /// The identity.
        buffer_id: uuid::Uuid,
        /// What the other one has delivered.
        through: Sequence,
    },
}

impl ForwardError {
    /// Would the next start end the same way, until a person has done something?
    pub(crate) fn wants_a_person(&self) -> bool {
        match self {
            Self::Options(_) => true,
            Self::System(_) | Self::BufferStopped | Self::Twin { .. } => false,
        }
    }
}

impl From<Stopped> for ForwardError {
    fn from(_: Stopped) -> Self {
        Self::BufferStopped
    }
}

/// Forwards until told to stop. Blocks; runs on a thread of its own.
///
/// # Errors
/// When the configuration makes no producer, or when the buffer has stopped first.
#[expect(clippy::too_many_arguments, reason = "each is a part of its own, handed over once by run.rs")]
pub fn run(
    settings: &config::Kafka,
    agent_id: &str,
    routes: Arc<Routes>,
    outlet: Outlet,
    settler: Settler,
    recovery: Recovery,
    status: watch::Sender<ForwardStatus>,
    pulse: Pulse,
    stop: Stop,
) -> Result<(), ForwardError> {
    let plain = options::client_config(settings, agent_id);
    let exactly_once = settings.delivery == Delivery::ExactlyOnce;
    let name = format!("tidegate-{}", recovery.buffer_id);
    let (mut config, lane_config) = if exactly_once {
        let parked = options::transactional(plain.clone(), &format!("{name}-parked"));
        (options::transactional(plain, &name), parked)
    } else {
        (plain.clone(), plain)
    };
    let clients = Clients::new()?;
    let terms = exactly_once.then(|| {
        Arc::new(Terms {
            clients: clients.clone(),
            reader: options::reader_config(settings, agent_id),
            topic: Arc::from(settings.watermark_topic.as_str()),
            buffer_id: recovery.buffer_id,
            lives: recovery.lives.clone(),
            topic_is_right: Arc::default(),
        })
    });
    let patience = Patience::new(&config);
    patience.apply(&mut config);
    let place = clients.place().ok_or_else(|| ForwardError::Options("no place for it".to_owned()))?;
    let producer =
        Producer::new(&config, &clients, place).map_err(|error| ForwardError::Options(options::cause(&error)))?;
    let now = Instant::now();
    let routes = Arc::unwrap_or_clone(routes).with_gone(former_routes(recovery.gone));
    let lanes = recovered_lanes(&recovery.lanes, recovery.admitted, recovery.in_line_with, &routes, settings);
    let former = recovery.lives.former.last().copied();
    let mut declarations = Declarations::default();
    if let (true, Some((was, last))) = (exactly_once, former) {
        declarations.was(was, last, unix_ms());
    }
    if exactly_once {
        for hole in &recovery.holes {
            declarations.lost(hole);
        }
    }
    let (committed, own, of_queues) = match &terms {
        Some(terms) => (terms.lives.watermark, exactly_once_by(terms), exactly_once_by(terms)),
        None => {
            let asking = Asking::new(&settings.watermark_topic, recovery.buffer_id);
            (0, Mode::AtLeastOnce(Some(asking)), Mode::AtLeastOnce(None))
        }
    };
    let watermark = StreamWatermark::new(recovery.released, committed);
    let mut stream = Stream::new(settings.linger, Skips::new(recovery.settled), watermark);
    stream.asks_about = lanes.asked_for;
    stream.known_topic = terms.as_ref().map(|terms| Arc::clone(&terms.topic));
    let transactions = exactly_once.then(|| Transactions { timeout: patience.timeout(), ..Transactions::default() });
    if exactly_once {
        warn_of_an_untested_library();
    }
    if settings.timestamp == Timestamp::Arrival {
        retention::watch(options::reader_config(settings, agent_id), Arc::new(routes.clone()), stop.clone());
    }
    let mut relay = Relay {
        blocked_topics: BlockedTopics::new(lane_config, of_queues),
        relocation: lanes.relocation,
        stream: StreamSender::new(Sender::new(config, own), stream),
        shared: Shared {
            outlet,
            settler,
            parking: lanes.parking,
            patience,
            outcome: Outcome::default(),
            targets: Targets::new(Arc::new(routes)),
            records: Records::new(recovery.buffer_id, recovery.lives, settings.headers),
            times: Times::new(settings.timestamp),
            status: ForwardStatus { producers: 1, transactions, ..ForwardStatus::default() },
            changed: true,
            dead_letters: Repeats::default(),
            parked_lines: Crowd::default(),
            opened_lines: Crowd::default(),
            admission: lanes.admission,
            is_on_hold: lanes.is_on_hold,
            recalled_lanes: None,
            generation: 0,
            clients,
            terms,
            declarations,
            lanes_delivered: HashMap::new(),
            partitions: None,
            is_itself: false,
            fates: Fates::default(),
        },
        link: Link::default(),
        asking: None,
        read_errors: Repeats::default(),
        unusable_lines: Repeats::default(),
        watch: Watch::default(),
        flow_after: now,
        read_after: now,
        quiet: SHORTEST_POLL,
        publish_after: now,
        published: status,
        pulse,
        stop,
    };
    if recovery.lanes.iter().any(|(_, topic)| &**topic == OVERFLOW) {
        relay.shared.shut_overflow(now);
    }
    relay.stream.begins_with(producer, &mut relay.shared);
    relay.run()
}

fn exactly_once_by(terms: &Arc<Terms>) -> Mode {
    Mode::ExactlyOnce(Box::new(Transactional::new(Arc::clone(terms))))
}

/// What is made of the lanes that the buffer held at the start.
struct RecoveredLanes {
    parking: Parking,
    admission: Admission,
    relocation: Relocation,
    /// They are brought in line with the configuration first.
    is_on_hold: bool,
    /// Kafka's word about these is asked for.
    asked_for: Vec<Arc<str>>,
}

fn recovered_lanes(
    held: &[(LaneId, Arc<str>)],
    admitted: Vec<Arc<str>>,
    in_line_with: Option<u64>,
    routes: &Routes,
    settings: &config::Kafka,
) -> RecoveredLanes {
    let now = Instant::now();
    let waits_beyond = held.iter().any(|(_, topic)| &**topic == OVERFLOW);
    let mark = routes.mark().wrapping_shl(16) ^ u64::try_from(settings.max_topics).unwrap_or_default();
    let is_on_hold = !held.is_empty() && in_line_with != Some(mark);
    let mut admission = Admission::new(settings.max_topics, admitted, !waits_beyond || is_on_hold);
    let relocation = if is_on_hold {
        Relocation::new(held, mark, settings.delivery == Delivery::ExactlyOnce)
    } else {
        Relocation::none()
    };
    let (mut parking, mut lines) = (Parking::default(), Crowd::default());
    for (_, topic) in held.iter().filter(|(_, topic)| &**topic != OVERFLOW) {
        admission.recovered(topic);
        if lines.may_say(now).is_some() {
            let all = held.len();
            tracing::info!(topic = &**topic, all, "kafka: topic was parked when the agent stopped; trying it again");
        }
        parking.recovered(Arc::clone(topic), now, unix_ms());
    }
    let asked_for = if is_on_hold { held.iter().map(|(_, topic)| Arc::clone(topic)).collect() } else { Vec::new() };
    RecoveredLanes { parking, admission, relocation, is_on_hold, asked_for }
}

/// What earlier configurations said of readings that may be held.
fn former_routes(gone: BTreeMap<RouteId, Definition>) -> BTreeMap<RouteId, Route> {
    if planted(Bug::RouteIsVerdict) {
        return BTreeMap::new();
    }
    let parse = |(id, definition): (RouteId, Definition)| match Route::parse(&definition) {
        Ok(route) => Some((id, route)),
        Err(why) => {
            let from = &*definition.from;
            tracing::warn!(from, why, "kafka: a route of an earlier configuration cannot be read any more");
            None
        }
    };
    gone.into_iter().filter_map(parse).collect()
}

/// Rule B reads librdkafka's log, which is no interface.
fn warn_of_an_untested_library() {
    let (_, version) = rdkafka::util::get_rdkafka_version();
    if version != end_txn::TESTED {
        tracing::warn!(
            version,
            tested = end_txn::TESTED,
            "kafka: exactly-once was not tested with this version of librdkafka"
        );
    }
}

struct Relay {
    shared: Shared,
    relocation: Relocation,
    stream: StreamSender,
    blocked_topics: BlockedTopics,
    link: Link,
    /// A question that shows whether somebody answers.
    asking: Option<Call<Answers>>,
    read_errors: Repeats,
    /// Why nothing can be sent.
    unusable_lines: Repeats,
    /// Whether readings flow.
    watch: Watch,
    /// ... is looked at then.
    flow_after: Instant,
    read_after: Instant,
    /// The present wait between two polls.
    quiet: Duration,
    publish_after: Instant,
    published: watch::Sender<ForwardStatus>,
    pulse: Pulse,
    stop: Stop,
}

impl Relay {
    fn run(mut self) -> Result<(), ForwardError> {
        let started = Instant::now();
        loop {
            self.pulse.beat();
            while planted(Bug::StuckForward) && started.elapsed() > Duration::from_secs(2) {
                std::thread::park();
            }
            if self.stop.requested() {
                return self.finish();
            }
            let now = Instant::now();
            self.shared.times.tick(clock::now());
            if self.stream.collect(&mut self.shared, now) {
                self.answered(now);
            }
            self.stream.turn(self.link.connected(), &mut self.shared, now);
            if let Some(fault) = self.stream.fault() {
                return Err(fault);
            }
            let blocked = if self.relocation.is_under_way() {
                self.relocation.step(&mut self.shared, now)
            } else {
                self.blocked_topics.step(&mut self.shared, now)
            };
            if let Err(error) = blocked {
                if matches!(error, ReadError::Disk(_)) {
                    self.blocked_topics.end(&mut self.shared, now);
                }
                self.read_failed(&error, now)?;
            }
            if self.shared.outcome.due().is_some_and(|due| due <= now) {
                self.shared.settle()?;
            }
            self.watch_link(now);
            self.watch_flow(now);
            self.publish(now);
            self.wait(now)?;
        }
    }

    /// Waits for new events or for librdkafka, whichever is of use, until the next thing is due.
    fn wait(&mut self, now: Instant) -> Result<(), ForwardError> {
        let moves = self.relocation.is_under_way() || !self.shared.fates_have_room();
        let busy = self.stream.sender.in_flight() > 0
            || self.stream.sender.is_busy()
            || self.blocked_topics.is_busy()
            || moves;
        // One topic is tried at a time: while that lasts, another that is due has to wait. None before the time is known.
        let must_wait =
            self.blocked_topics.is_busy() || self.relocation.is_under_way() || self.shared.times.is_pending();
        let next_try = if must_wait { None } else { self.shared.parking.next_wake() };
        let wakes = [self.stream.next_wake(), self.shared.outcome.due(), next_try];
        let wait = wakes
            .into_iter()
            .flatten()
            .map(|due| due.saturating_duration_since(now))
            .fold(if busy { self.quiet } else { IDLE }, Duration::min);
        let longest = if self.link.connected() { LONGEST_POLL } else { LONGEST_POLL_UNLINKED };
        self.quiet = self.quiet.saturating_mul(2).min(longest);
        if self.read_after <= now && self.stream.wants_events(now) {
            match self.shared.outlet.next(wait) {
                Ok(events) => {
                    if !events.is_empty() {
                        self.quiet = SHORTEST_POLL;
                    }
                    self.stream.take_events(events, Instant::now());
                }
                Err(error) => {
                    if let ReadError::Damaged { first, last, .. } = &error {
                        self.stream.unread(*first, *last, &mut self.shared);
                    }
                    self.read_failed(&error, now)?;
                }
            }
        } else if let Some(producer) = self.stream.sender.producer() {
            producer.poll(wait);
        } else {
            std::thread::sleep(wait);
        }
        Ok(())
    }

    /// Something came back from Kafka.
    fn answered(&mut self, now: Instant) {
        self.quiet = SHORTEST_POLL;
        if let Some(line) = self.link.answered(now) {
            link::say(line);
        }
    }

    fn watch_link(&mut self, now: Instant) {
        let Some(producer) = self.stream.sender.producer() else { return };
        let remarks = producer.remarks();
        if !remarks.is_empty() {
            self.shared.changed = true;
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
        let waits = self.stream.has_events() || self.shared.outlet.has_more();
        let delivered = self.shared.status.delivered;
        let mut watch = std::mem::take(&mut self.watch);
        let (waiting, line) = watch.look(waits, delivered, || self.obstacle(now), (now, unix_ms()));
        self.watch = watch;
        if let Some(line) = line {
            waiting::say(line);
        }
        if waiting != self.shared.status.waiting {
            self.shared.changed = true;
            self.shared.status.waiting = waiting;
        }
    }

    /// What is in the way of the main lane.
    fn obstacle(&self, now: Instant) -> Option<Obstacle> {
        if now < self.read_after {
            return Some(Obstacle::new(Reason::Buffer, "the buffer's file cannot be read"));
        }
        if self.link.connected() {
            let obstacle = self.stream.obstacle(&self.shared, now)?;
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
                self.shared.status.unread = self.shared.status.unread.saturating_add(unread);
                self.shared.changed = true;
                tracing::error!(%error, "kafka: readings that cannot be read stay in the file; they are tried again at the next start");
            }
            ReadError::Disk(_) => {
                self.read_after = now.checked_add(READ_AGAIN).unwrap_or(now);
                if let Some(more) = self.read_errors.again(&error.to_string(), now) {
                    tracing::error!(%error, more, "kafka: the buffer cannot be read; trying again");
                }
            }
        }
        Ok(())
    }

    fn publish(&mut self, now: Instant) {
        let in_flight = u64::try_from(self.stream.sender.in_flight()).unwrap_or(u64::MAX);
        let connected = self.link.connected();
        let status = &mut self.shared.status;
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
                    "kafka: nothing can be sent"
                );
            }
            let blocked = match &status.waiting {
                Some(waiting) => &waiting.why,
                None if trouble.topic_unusable => &trouble.why,
                None => "",
            };
            if transactions.blocked != *blocked {
                self.shared.changed = true;
                blocked.clone_into(&mut transactions.blocked);
            }
            transactions.topic_unusable = trouble.topic_unusable;
        }
        let clock_ahead_ms = self.shared.times.ahead_ms();
        self.shared.changed |= in_flight != status.in_flight
            || clock_ahead_ms.is_some() != status.clock_ahead_ms.is_some()
            || connected != status.connected
            || self.link.last_error() != status.last_error;
        if !self.shared.changed || now < self.publish_after {
            return;
        }
        self.shared.changed = false;
        self.publish_after = now.checked_add(PUBLISH).unwrap_or(now);
        status.in_flight = in_flight;
        status.clock_ahead_ms = clock_ahead_ms;
        status.connected = connected;
        status.parked = self.shared.parking.status();
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
            self.stream.collect(&mut self.shared, now);
            let lane_done = self.blocked_topics.wind_down(&mut self.shared, now);
            self.watch_link(now);
            let main_done = self.stream.wind_down(self.link.connected(), &mut self.shared, now);
            // Without a link no answer will come in time.
            if main_done && lane_done || !self.link.connected() {
                break;
            }
            match self.stream.sender.producer() {
                Some(producer) => producer.poll(SHORTEST_POLL),
                None => std::thread::sleep(SHORTEST_POLL),
            }
        }
        let now = Instant::now();
        self.stream.retire(&mut self.shared, now);
        self.blocked_topics.end(&mut self.shared, now);
        self.shared.clients.wait_for_the_end(LAST_CLIENTS);
        self.shared.settle()?;
        self.publish_after = now;
        self.shared.changed = true;
        self.publish(now);
        Ok(())
    }
}
