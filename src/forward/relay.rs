//! The loop: one thread, one owner of the producers. It waits, and lets the lanes do what can be done.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::declarations::Declarations;
use super::end_txn;
use super::lane::LaneSender;
use super::link::{self, Link, Repeats};
use super::main_lane::MainLane;
use super::options;
use super::outcome::Outcome;
use super::outstanding::Skips;
use super::parking::Parking;
use super::producer::Producer;
use super::record::Records;
use super::retention;
use super::session::Terms;
use super::shared::{Shared, unix_ms};
use super::status::{ForwardStatus, Transactions};
use super::targets::Targets;
use super::time::Times;
use crate::buffer::{LaneId, Lives, Outlet, ReadError, Recovered, Settler, Stopped};
use crate::clock;
use crate::config::{self, Delivery, Timestamp};
use crate::event::Sequence;
use crate::observe::pulse::Pulse;
use crate::planted::{Bug, planted};
use crate::route::Routes;
use crate::stop::Stop;

/// After a stop was asked for, how long to wait for reports. The whole process has 10 s.
const STOP_WAIT: Duration = Duration::from_secs(4);

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
    /// Lanes that hold events, with their Kafka topic.
    pub lanes: Vec<(LaneId, Arc<str>)>,
    /// Everything up to here is settled.
    pub released: Sequence,
    /// Who has written watermarks for this buffer, and who will.
    pub lives: Lives,
}

impl From<&Recovered> for Recovery {
    fn from(recovered: &Recovered) -> Self {
        let Recovered { buffer_id, settled, lanes, released, lives, .. } = recovered;
        let (settled, lanes, lives) = (settled.clone(), lanes.clone(), lives.clone());
        Self { buffer_id: *buffer_id, settled, lanes, released: *released, lives }
    }
}

/// Why the forwarder cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    /// librdkafka refuses the configuration. Usage: exit 78.
    #[error("kafka: create the producer: {0}")]
    Options(String),
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
    let (config, lane_config) = if exactly_once {
        let parked = options::transactional(plain.clone(), &format!("{name}-parked"));
        (options::transactional(plain, &name), parked)
    } else {
        (plain.clone(), plain)
    };
    let terms = exactly_once.then(|| {
        Arc::new(Terms {
            reader: options::reader_config(settings, agent_id),
            topic: Arc::from(settings.watermark_topic.as_str()),
            buffer_id: recovery.buffer_id,
            lives: recovery.lives.clone(),
            topic_is_right: Arc::default(),
        })
    });
    let producer = Producer::new(&config).map_err(|error| ForwardError::Options(options::cause(&error)))?;
    let now = Instant::now();
    let mut parking = Parking::default();
    for (_, topic) in recovery.lanes {
        tracing::info!(topic = &*topic, "kafka: topic was parked when the agent stopped; trying it again");
        parking.recovered(topic, now, unix_ms());
    }
    let former = recovery.lives.former.last().copied();
    let mut declarations = Declarations::default();
    if let (true, Some((was, last))) = (exactly_once, former) {
        declarations.was(was, last, unix_ms());
    }
    let main = MainLane::new(config, producer, settings.linger, Skips::new(recovery.settled));
    let main = match &terms {
        Some(terms) => main.with_transactions(Arc::clone(terms), recovery.released),
        None => main.asking_the_time(&settings.watermark_topic, recovery.buffer_id),
    };
    let transactions = exactly_once.then(Transactions::default);
    if exactly_once {
        warn_of_an_untested_library();
    }
    if settings.timestamp == Timestamp::Arrival {
        retention::watch(options::reader_config(settings, agent_id), Arc::clone(&routes), stop.clone());
    }
    let relay = Relay {
        lanes: LaneSender::new(lane_config, terms.clone()),
        main,
        shared: Shared {
            outlet,
            settler,
            parking,
            outcome: Outcome::default(),
            targets: Targets::new(routes),
            records: Records::new(recovery.buffer_id).formerly(former),
            times: Times::new(settings.timestamp),
            status: ForwardStatus { producers: 1, transactions, ..ForwardStatus::default() },
            changed: true,
            dead_letters: Repeats::default(),
            generation: 0,
            terms,
            declarations,
            lanes_delivered: HashMap::new(),
            partitions: None,
            is_itself: false,
            fates: 0,
        },
        link: Link::default(),
        read_errors: Repeats::default(),
        blocked: Repeats::default(),
        read_after: now,
        quiet: SHORTEST_POLL,
        publish_after: now,
        published: status,
        pulse,
        stop,
    };
    relay.run()
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
    main: MainLane,
    lanes: LaneSender,
    link: Link,
    read_errors: Repeats,
    /// Why nothing can be sent.
    blocked: Repeats,
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
            if self.main.collect(&mut self.shared, now) {
                self.answered(now);
            }
            self.main.link(self.link.connected());
            self.main.turn(&mut self.shared, now);
            if let Some(fault) = self.main.fault() {
                return Err(fault);
            }
            if let Err(error) = self.lanes.step(&mut self.shared, now) {
                if matches!(error, ReadError::Disk(_)) {
                    self.lanes.end(&mut self.shared, now);
                }
                self.read_failed(&error, now)?;
            }
            if self.shared.outcome.due().is_some_and(|due| due <= now) {
                self.shared.settle()?;
            }
            self.watch_link(now);
            self.publish(now);
            self.wait(now)?;
        }
    }

    /// Waits for new events or for librdkafka, whichever is of use, until the next thing is due.
    fn wait(&mut self, now: Instant) -> Result<(), ForwardError> {
        let busy = self.main.in_flight() > 0 || self.main.is_busy() || self.lanes.is_busy();
        // One topic is tried at a time: while that lasts, another that is due has to wait. None before the time is known.
        let must_wait = self.lanes.is_busy() || self.shared.times.is_pending();
        let next_try = if must_wait { None } else { self.shared.parking.next_wake() };
        let wakes = [self.main.next_wake(), self.shared.outcome.due(), next_try];
        let wait = wakes
            .into_iter()
            .flatten()
            .map(|due| due.saturating_duration_since(now))
            .fold(if busy { self.quiet } else { IDLE }, Duration::min);
        let longest = if self.link.connected() { LONGEST_POLL } else { LONGEST_POLL_UNLINKED };
        self.quiet = self.quiet.saturating_mul(2).min(longest);
        if self.read_after <= now && self.main.wants_events(now) {
            match self.shared.outlet.next(wait) {
                Ok(events) => {
                    if !events.is_empty() {
                        self.quiet = SHORTEST_POLL;
                    }
                    self.main.take_events(events, Instant::now());
                }
                Err(error) => self.read_failed(&error, now)?,
            }
        } else if let Some(producer) = self.main.producer() {
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
        let Some(producer) = self.main.producer() else { return };
        let remarks = producer.remarks();
        if !remarks.is_empty() {
            self.shared.changed = true;
            if let Some(line) = self.link.heard(remarks, now) {
                link::say(line);
            }
        }
        // With something in flight, its confirmation is the answer. Otherwise somebody has to ask.
        let answer = if self.link.never_met() {
            producer.has_met_a_broker()
        } else {
            let topic = self.main.known_topic.as_deref();
            producer.in_flight().0 == 0 && self.link.wants_to_ask(now) && topic.is_some_and(|t| producer.ask(t))
        };
        if answer && let Some(line) = self.link.answered(now) {
            link::say(line);
        }
        if let Some(line) = self.link.tick(now) {
            link::say(line);
        }
    }

    /// A damaged chunk is passed by; a failing disk is tried again after a while.
    fn read_failed(&mut self, error: &ReadError, now: Instant) -> Result<(), ForwardError> {
        match error {
            ReadError::Stopped => return Err(ForwardError::BufferStopped),
            ReadError::Damaged { .. } => {
                tracing::error!(%error, "kafka: readings that cannot be read stay in the file");
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
        let in_flight = u64::try_from(self.main.in_flight()).unwrap_or(u64::MAX);
        let connected = self.link.connected();
        let status = &mut self.shared.status;
        let trouble = self.main.trouble();
        if let Some(transactions) = &mut status.transactions
            && transactions.blocked != trouble.why
        {
            self.shared.changed = true;
            if !trouble.why.is_empty()
                && let Some(more) = self.blocked.again(&trouble.why, now)
            {
                tracing::warn!(why = trouble.why, more, "kafka: nothing can be sent yet");
            }
            transactions.blocked = trouble.why;
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
            self.main.collect(&mut self.shared, now);
            let lane_done = self.lanes.finish_chunk(&mut self.shared, now);
            self.watch_link(now);
            let main_done = self.main.wind_down(&mut self.shared, now);
            // Without a link no answer will come in time.
            if main_done && lane_done || !self.link.connected() {
                break;
            }
            match self.main.producer() {
                Some(producer) => producer.poll(SHORTEST_POLL),
                None => std::thread::sleep(SHORTEST_POLL),
            }
        }
        let now = Instant::now();
        self.main.retire(&mut self.shared, now);
        self.lanes.end(&mut self.shared, now);
        self.shared.settle()?;
        self.publish_after = now;
        self.shared.changed = true;
        self.publish(now);
        Ok(())
    }
}
