//! Sends a parked lane: one topic at a time, with a producer of its own, so that a refusal does not touch the others.
//!
//! The first event of the lane is the question whether the topic is open: rights show only when something is produced.
//! If Kafka takes it, twice as many follow, and so on. While a topic is tried, its inflow goes on to the end of the lane
//! in small chunks, ten a second; so chunks are read and sent in groups, as many as fit into a round trip, else a long
//! link would never catch up. A group that is small means that it has: then the lane closes (`parking.rs`). Each chunk
//! is settled as a whole, in order. When a try ends in the middle of a group, its proofs are kept, so that the next
//! try sends only the rest.
//!
//! With transactions (`transactions.rs`) each group of the pace is one, and the lane has a watermark of its own.

mod transactions;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::config::ClientConfig;
use rdkafka::types::RDKafkaErrorCode as Code;

use self::transactions::Transacting;
use super::aside::Call;
use super::options::{self, Names};
use super::pace::{Finding, Pace, Permit};
use super::parking::Opened;
use super::producer::{Failure, MESSAGE_OVERHEAD_BYTES, Producer};
use super::session::Terms;
use super::shared::Shared;
use super::stalls::Stalls;
use super::targets::{Generation, Turn};
use super::time::Refusal;
use super::topic_state::{Answers, Found};
use super::verdict::{Verdict, dead_letter_reason, park_reason, send_verdict, verdict};
use super::window::Window;
use crate::buffer::{DeadLetter, LaneChunk, LaneId, ReadError};
use crate::delivered::Delivered;
use crate::event::{Sequence, Stored};
use crate::planted::{Bug, planted};
use crate::route::{Target, ValueFormat};

/// A try without any progress ends after this time, or after that of a transaction or a request; another topic may be
/// luckier. Longer than librdkafka needs to find a new leader; only one topic is tried at a time.
const NO_PROGRESS: Duration = Duration::from_secs(30);

/// How often an empty lane is looked at while it closes: the buffer commits every few milliseconds to 200 ms.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// At most so many events fly at a time, if the link takes so many, and about so many are read at a time; a chunk alone is at most 256 KiB.
const MOST_IN_FLIGHT: usize = 2_000;

/// Payload and topics of a group, beside which the last chunk read may add 256 KiB.
const GROUP_BYTES: usize = 256 * 1024;

/// A group below this size has caught up with the inflow: holding the main lane for the rest takes a round trip or two.
const CAUGHT_UP: usize = MOST_IN_FLIGHT / 2;

/// A topic that had too few replicas in sync is not sent to before it has more, or this time has passed: somebody may have
/// lowered what it wants. With transactions each try that is refused costs one of the producer's names.
const OUTNUMBERED: Duration = Duration::from_secs(300);

/// A lane that is worked off gives way after this time, between two groups, if another topic is due.
const TURN: Duration = Duration::from_secs(10);

/// The sender of parked lanes.
pub(super) struct LaneSender {
    config: ClientConfig,
    names: Names,
    /// With transactions.
    terms: Option<Arc<Terms>>,
    active: Option<Try>,
    /// Topics that had too few replicas in sync: how many, and when that was.
    outnumbered: HashMap<Arc<str>, (usize, Instant)>,
    /// Where tries that ended left off, by Kafka topic; forgotten when the topic is direct again.
    left_off: HashMap<Arc<str>, LeftOff>,
}

/// One topic being tried.
struct Try {
    topic: Arc<str>,
    place: LeftOff,
    group: Option<Group>,
    /// Index of the next event of the group.
    next: usize,
    began: Instant,
    /// Damage that was met behind a group; said when it is its turn.
    damaged: Option<ReadError>,
    producer: Option<Producer>,
    generation: Generation,
    pace: Pace,
    window: Window,
    failures: Vec<Failure>,
    last_progress: Instant,
    look_at: Instant,
    /// Whether the topic has leaders; brokers are asked before anything is sent, because a transaction with a partition
    /// that has none cannot be ended.
    leaders: Leaders,
    stalls: Stalls,
    /// In-sync replicas when it was asked, and those without which nothing is sent.
    in_sync: usize,
    enough: usize,
    /// With so many, nothing was taken.
    too_few: Option<usize>,
    /// The transaction that was open cannot be ended: the next one needs another name.
    is_stuck: bool,
    /// With transactions.
    transacting: Option<Transacting>,
}

/// See there.
#[derive(Debug, Default)]
enum Leaders {
    #[default]
    Unknown,
    Asked(Call<Answers>),
    There,
}

/// Chunks of a lane that are sent together, in order.
struct Group {
    lane: LaneId,
    /// Row id of each chunk, and where its events end.
    chunks: Vec<(i64, usize)>,
    events: Vec<Stored>,
}

/// How far a lane has been sent.
#[derive(Debug, Default)]
struct LeftOff {
    /// The last chunk that was settled.
    after: i64,
    /// The first chunk of the group in work, and what became of the group's events.
    first: i64,
    confirmed: Vec<Delivered>,
    dead: Vec<DeadLetter>,
    done: BTreeSet<Sequence>,
}

/// How a step of a try ends.
enum Step {
    /// Go on at the next turn.
    On,
    /// The topic is direct again.
    Opened(Opened),
    /// Not now; with a new reason and what to do, if there is one.
    Refused(Option<(&'static str, &'static str)>),
    /// Another topic's turn.
    GivesWay,
    /// Nothing has come into the lane.
    NothingYet,
}

impl LaneSender {
    /// Uses the main producer's configuration, but finds out sooner that a topic is missing.
    pub(super) fn new(mut config: ClientConfig, terms: Option<Arc<Terms>>) -> Self {
        options::for_lanes(&mut config);
        Self {
            names: Names::new(&config),
            config,
            terms,
            active: None,
            outnumbered: HashMap::new(),
            left_off: HashMap::new(),
        }
    }

    /// Something is under way that needs polling.
    pub(super) fn is_busy(&self) -> bool {
        self.active.is_some()
    }

    /// Does what can be done now without waiting.
    pub(super) fn step(&mut self, shared: &mut Shared, now: Instant) -> Result<(), ReadError> {
        if self.active.is_none() {
            let is_due = shared.parking.next_wake().is_some_and(|due| due <= now);
            if is_due && !shared.times.is_settled() {
                return Ok(());
            }
            let Some(topic) = shared.parking.next_due(now) else { return Ok(()) };
            let place = self.left_off.remove(&topic).unwrap_or_default();
            let transacting = self.terms.clone().map(Transacting::new);
            let outnumbered =
                self.outnumbered.get(&topic).filter(|(_, at)| now.saturating_duration_since(*at) < OUTNUMBERED);
            let enough = outnumbered.map_or(0, |(in_sync, _)| in_sync.saturating_add(1));
            self.active = Some(Try { enough, ..Try::new(topic, place, transacting, now) });
        }
        let Some(active) = &mut self.active else { return Ok(()) };
        let step = active.step(&self.config, shared, now)?;
        if std::mem::take(&mut active.is_stuck) {
            self.names.next(&mut self.config);
        }
        if let Some(in_sync) = active.too_few.take() {
            self.outnumbered.insert(Arc::clone(&active.topic), (in_sync, now));
        }
        match step {
            Step::On => {}
            Step::Opened(opened) => {
                shared.changed = true;
                shared.admission.is_direct(&active.topic);
                if let Some(more) = shared.opened_lines.may_say(now) {
                    tracing::info!(
                        topic = &*active.topic,
                        parked_s = opened.parked_for.as_secs_f64(),
                        events = opened.events,
                        more,
                        "kafka: topic is open again; its readings flow"
                    );
                }
                self.left_off.remove(&active.topic);
                self.outnumbered.remove(&active.topic);
                self.active = None;
            }
            Step::NothingYet => self.end(shared, now),
            Step::GivesWay => {
                shared.parking.gives_way(&active.topic, now);
                self.end(shared, now);
            }
            Step::Refused(reason) => {
                shared.changed = true;
                tracing::debug!(topic = &*active.topic, ?reason, "kafka: parked topic was tried, and stays parked");
                let remedy = reason.map_or("", |(_, remedy)| remedy);
                let reason = reason.map(|(reason, _)| reason);
                if shared.parking.refused(&active.topic, reason, now) {
                    shared.say_parked(&active.topic, reason.unwrap_or_default(), remedy, now);
                }
                self.end(shared, now);
            }
        }
        Ok(())
    }

    /// A stop: begins nothing, sends on what was begun of a group. True when nothing is left in between.
    pub(super) fn finish_chunk(&mut self, shared: &mut Shared, now: Instant) -> bool {
        let Some(active) = &mut self.active else { return true };
        if active.place.done.is_empty() && active.in_flight() == 0 {
            return true; // nothing of the group is in Kafka: nothing would be repeated
        }
        active.poll(shared, now);
        if active.transacting.is_some() {
            return active.wind_down(shared, now);
        }
        if active.failures.is_empty() {
            active.send_group(shared, now);
            active.settle_group(shared, now);
        }
        active.group.is_none() || !active.failures.is_empty()
    }

    /// Ends the try; what was confirmed until the last moment is kept.
    pub(super) fn end(&mut self, shared: &mut Shared, now: Instant) {
        let Some(mut active) = self.active.take() else { return };
        active.retire(shared, now);
        active.settle_group(shared, now);
        shared.parking.put_back(&active.topic, now);
        if active.place.after > 0 || !active.place.done.is_empty() {
            self.left_off.insert(active.topic, active.place);
        }
    }
}

impl Try {
    fn new(topic: Arc<str>, place: LeftOff, transacting: Option<Transacting>, now: Instant) -> Self {
        Self {
            topic,
            place,
            group: None,
            next: 0,
            began: now,
            damaged: None,
            producer: None,
            generation: 0,
            pace: Pace::probing(),
            window: Window::new(),
            failures: Vec::new(),
            last_progress: now,
            look_at: now,
            leaders: Leaders::default(),
            stalls: Stalls::default(),
            in_sync: 0,
            enough: 0,
            too_few: None,
            is_stuck: false,
            transacting,
        }
    }

    fn step(&mut self, config: &ClientConfig, shared: &mut Shared, now: Instant) -> Result<Step, ReadError> {
        self.poll(shared, now);
        if !self.failures.is_empty() {
            return Ok(self.judge(shared, now));
        }
        if let Some(step) = self.stalled(now) {
            return Ok(step);
        }
        if let Some(step) = self.transact(shared, now) {
            return Ok(step);
        }
        self.settle_group(shared, now);
        if self.group.is_none() {
            if now < self.look_at {
                return Ok(Step::On);
            }
            if now.saturating_duration_since(self.began) > TURN && shared.parking.others_wait(&self.topic, now) {
                return Ok(Step::GivesWay);
            }
            // What was on disk before the lane is read is seen by the reading; so this comes first.
            let applied = shared.settler.applied();
            if !self.load(shared)? {
                self.look_at = now.checked_add(LOOK_AGAIN).unwrap_or(now);
                let opened = shared.parking.seen_empty(&self.topic, applied, now);
                let or_else = if shared.parking.waits(&self.topic) { Step::NothingYet } else { Step::On };
                return Ok(opened.map_or(or_else, Step::Opened));
            }
            self.last_progress = now;
            if self.group.as_ref().is_some_and(|group| group.events.len() < CAUGHT_UP) {
                shared.parking.caught_up(&self.topic);
            }
        }
        if self.producer.is_none() {
            let Some(place) = shared.clients.place() else { return Ok(Step::Refused(None)) };
            let mut config = config.clone();
            shared.patience.apply(&mut config);
            match Producer::new(&config, &shared.clients, place) {
                Ok(producer) => {
                    self.producer = Some(producer);
                    self.generation = shared.next_generation();
                    self.window.begin_anew();
                    self.open_session(shared, now);
                }
                Err(_) => return Ok(Step::Refused(None)),
            }
        }
        if let Some(step) = self.ask_for_leaders() {
            return Ok(step);
        }
        if self.may_send(shared) {
            self.send_group(shared, now);
            self.close_group(shared, now);
        }
        if self.gets_nowhere(shared, now) {
            return Ok(Step::Refused(None));
        }
        Ok(Step::On)
    }

    /// `None`: it may be sent to.
    fn ask_for_leaders(&mut self) -> Option<Step> {
        let producer = self.producer.as_ref()?;
        match &self.leaders {
            Leaders::There => return None,
            Leaders::Asked(call) => {
                let Some(answer) = call.answer() else { return Some(Step::On) };
                match answer.first() {
                    Some((_, Found::Leaderless { .. })) => {
                        return Some(Step::Refused(Some(park_reason(Code::LeaderNotAvailable))));
                    }
                    Some((_, Found::Led { in_sync, .. })) if *in_sync < self.enough => {
                        return Some(Step::Refused(Some(park_reason(Code::NotEnoughReplicas))));
                    }
                    Some((_, Found::Led { in_sync, .. })) => self.in_sync = *in_sync,
                    Some((_, Found::Missing | Found::Forbidden | Found::Silent(_))) | None => {}
                }
                self.leaders = Leaders::There;
                return None;
            }
            Leaders::Unknown => {}
        }
        self.leaders = match producer.look(vec![Arc::clone(&self.topic)]) {
            Ok(call) => Leaders::Asked(call),
            Err(_) => return Some(Step::Refused(None)),
        };
        Some(Step::On)
    }

    /// The topic has taken nothing for long, and brokers say why.
    fn stalled(&mut self, now: Instant) -> Option<Step> {
        let (_, code) = self.stalls.look(self.producer.as_ref()?, now).pop()?;
        self.is_stuck = self.transacting.is_some();
        self.too_few = (code == Code::NotEnoughReplicas).then_some(self.in_sync);
        Some(Step::Refused(Some(park_reason(code))))
    }

    /// Reads the next chunks; false when there are none.
    fn load(&mut self, shared: &mut Shared) -> Result<bool, ReadError> {
        if let Some(damaged) = self.damaged.take() {
            return Err(damaged);
        }
        let now = Instant::now();
        // Asked each time: a lane that was empty for a moment comes back under another id.
        let Some(lane) = shared.settler.lane(&self.topic) else { return Ok(false) };
        let mut group = Group { lane, chunks: Vec::new(), events: Vec::new() };
        let (mut after, mut bytes) = (self.place.after, 0_usize);
        while group.events.len() < MOST_IN_FLIGHT && bytes < GROUP_BYTES {
            match shared.outlet.parked(lane, after) {
                Ok(Some(LaneChunk { id, events })) => {
                    after = id;
                    bytes = events.iter().fold(bytes, |sum, stored| sum.saturating_add(stored.event.cost_bytes()));
                    group.events.extend(events);
                    group.chunks.push((id, group.events.len()));
                }
                Ok(None) => break,
                Err(error @ ReadError::Damaged { parked: Some(chunk), .. }) => {
                    // Durable before the lane's next watermark, whatever that passes.
                    shared.outcome.lane_unread(lane, chunk, now);
                    if group.chunks.is_empty() {
                        return Err(error);
                    }
                    self.damaged = Some(error);
                    break;
                }
                Err(error) if group.chunks.is_empty() => return Err(error),
                Err(error) => {
                    self.damaged = Some(error);
                    break;
                }
            }
        }
        let Some((first, _)) = group.chunks.first() else { return Ok(false) };
        if self.place.first != *first {
            self.place = LeftOff { after: self.place.after, first: *first, ..LeftOff::default() };
        }
        self.next = 0;
        self.group = Some(group);
        self.vouch();
        Ok(true)
    }

    fn send_group(&mut self, shared: &mut Shared, now: Instant) {
        let (Some(group), Some(producer)) = (&self.group, &self.producer) else { return };
        while let Some(stored) = group.events.get(self.next) {
            if self.place.done.contains(&stored.sequence) {
                self.next = self.next.saturating_add(1);
                continue;
            }
            let (in_flight, bytes) = producer.in_flight();
            // With transactions a group is judged when it is committed.
            let unproven = if self.transacting.is_some() { producer.uncommitted() } else { in_flight };
            let cost = stored.event.cost_bytes().saturating_add(MESSAGE_OVERHEAD_BYTES);
            if in_flight >= MOST_IN_FLIGHT || !self.window.takes(bytes, cost, shared.patience.flight(), now) {
                return;
            }
            if self.pace.permit(stored.sequence, unproven) == Permit::NotYet {
                self.hold_group();
                return;
            }
            let (target, turn) = self.target(shared, producer, stored);
            if turn == Turn::NotYet {
                return;
            }
            if let Some(code) = self.transacting.as_mut().and_then(|own| own.begin(producer, now).err()) {
                let (sequence, route) = (stored.sequence, stored.event.route);
                self.failures.push(Failure { sequence, route, topic: self.topic.to_string(), code });
                return;
            }
            match shared.send(producer, stored, &target) {
                Ok(()) => {
                    if turn == Turn::First {
                        shared.targets.sent(&stored.event, self.generation, stored.sequence);
                    }
                    self.pace.sent();
                    self.window.sent(stored.sequence, now);
                    self.next = self.next.saturating_add(1);
                    if in_flight == 0 {
                        self.last_progress = now;
                    }
                }
                Err(code) => {
                    match send_verdict(code) {
                        Verdict::Wait if in_flight > 0 => {}
                        // Too large for librdkafka's queue even when that is empty, or refused for itself.
                        Verdict::Wait | Verdict::DeadLetter => {
                            let letter = dead_letter(&self.topic, stored, dead_letter_reason(code));
                            self.place.done.insert(letter.sequence);
                            shared.count_dead(&letter, &stored.event.topic, now);
                            shared.declare_dead(&letter);
                            self.place.dead.push(letter);
                            continue;
                        }
                        Verdict::Resend
                        | Verdict::NewProducer
                        | Verdict::Alone
                        | Verdict::Retime
                        | Verdict::ParkTopic => {
                            let (sequence, route) = (stored.sequence, stored.event.route);
                            let topic = self.topic.to_string();
                            self.failures.push(Failure { sequence, route, topic, code });
                        }
                    }
                    return;
                }
            }
        }
    }

    /// The lane's own topic: whatever the configuration wants elsewhere has left the lane before (`relocation.rs`).
    fn target(&self, shared: &mut Shared, producer: &Producer, stored: &Stored) -> (Arc<Target>, Turn) {
        let topic = Arc::clone(&self.topic);
        match shared.targets.find(&stored.event) {
            Ok(known) => {
                let turn = known.turn(self.generation, |first| producer.has_come_back(first));
                let target = Arc::clone(&known.target);
                let target =
                    if target.topic == topic { target } else { Arc::new(Target { topic, ..(*target).clone() }) };
                (target, turn)
            }
            Err(_no_route_any_more) => {
                let key = Arc::clone(&stored.event.topic);
                (Arc::new(Target { topic, key, value: ValueFormat::Payload, is_fixed: true }), Turn::Go)
            }
        }
    }

    fn poll(&mut self, shared: &mut Shared, now: Instant) {
        let Some(producer) = &self.producer else { return };
        producer.poll(Duration::ZERO);
        // The main producer sees the same brokers and says what is to be said; these must only not pile up.
        drop(producer.remarks());
        let reports = producer.reports();
        if self.window.watched().is_some_and(|watched| producer.has_come_back(watched)) {
            self.window.confirmed(shared.patience.flight(), now);
        }
        self.failures.extend(reports.failures);
        if reports.acked > 0 {
            self.last_progress = now;
        }
        self.confirmed(reports.confirmed, shared, now);
    }

    fn confirmed(&mut self, proofs: Vec<Delivered>, shared: &mut Shared, now: Instant) {
        if proofs.is_empty() {
            return;
        }
        self.last_progress = now;
        self.place.done.extend(proofs.iter().map(Delivered::sequence));
        self.place.confirmed.extend(proofs);
        shared.parking.accepted(&self.topic);
        if planted(Bug::ParkedOutOfOrder) {
            shared.parking.open_at_once(&self.topic);
        }
    }

    /// Settles the group's chunks, one by one, when all its events are done with.
    fn settle_group(&mut self, shared: &mut Shared, now: Instant) {
        let all_done = |group: &mut Group| group.events.iter().all(|s| self.place.done.contains(&s.sequence));
        let Some(group) = self.group.take_if(all_done) else { return };
        let LeftOff { confirmed, dead, done, .. } = std::mem::take(&mut self.place);
        shared.count_delivered(confirmed.len());
        let mut confirmed: BTreeMap<Sequence, Delivered> =
            confirmed.into_iter().map(|proof| (proof.sequence(), proof)).collect();
        let mut dead: BTreeMap<Sequence, DeadLetter> =
            dead.into_iter().map(|letter| (letter.sequence, letter)).collect();
        let mut events = group.events.iter();
        let mut from = 0_usize;
        for (id, end) in group.chunks {
            let of_chunk = events.by_ref().take(end.saturating_sub(from)).map(|stored| stored.sequence);
            let (mut proofs, mut letters) = (Vec::new(), Vec::new());
            for sequence in of_chunk {
                proofs.extend(confirmed.remove(&sequence));
                letters.extend(dead.remove(&sequence));
            }
            shared.outcome.lane_chunk(group.lane, id, proofs, letters, now);
            self.place.after = id;
            from = end;
        }
        if let Some(stand) = shared.lanes_delivered.get_mut(&self.topic) {
            stand.has_holes = false; // no watermark is sealed before that is on disk
        }
        shared.parking.lane_settled(&self.topic, u64::try_from(done.len()).unwrap_or(u64::MAX));
    }

    fn in_flight(&self) -> usize {
        self.producer.as_ref().map_or(0, |producer| producer.in_flight().0)
    }

    /// Failures came back. Waits for the rest of what is in flight, then decides.
    fn judge(&mut self, shared: &mut Shared, now: Instant) -> Step {
        if self.is_aborting(now) {
            return Step::On;
        }
        if self.transacting.is_none()
            && let Some(producer) = &self.producer
            && producer.in_flight().0 > 0
            && !self.gets_nowhere(shared, now)
        {
            if producer.fatal().is_some() {
                producer.purge_queue();
            }
            return Step::On;
        }
        let failures = std::mem::take(&mut self.failures);
        let mut step = Step::On;
        let (mut suspects, mut mistimed) = (Vec::new(), None);
        for failure in failures {
            match verdict(failure.code) {
                Verdict::Resend | Verdict::Wait => {}
                Verdict::Alone => suspects.push(failure),
                Verdict::DeadLetter => self.dead(&failure, shared, now),
                Verdict::ParkTopic => step = Step::Refused(Some(park_reason(failure.code))),
                Verdict::Retime => mistimed = Some(failure.code),
                Verdict::NewProducer => {
                    if matches!(step, Step::On) {
                        step = Step::Refused(None);
                    }
                }
            }
        }
        if let Some(code) = mistimed {
            // Where Kafka's time is to be asked for, the main lane does it; the next try has it.
            let again = shared.times.refused(&self.topic) == Refusal::Again;
            step = Step::Refused((!again).then(|| park_reason(code)));
        }
        if let Some(newest) = suspects.iter().map(|suspect| suspect.sequence).max()
            && self.pace.refused(suspects.len(), newest) == Finding::Guilty
            && let Some(guilty) = suspects.pop()
        {
            self.dead(&guilty, shared, now);
        }
        self.retire(shared, now);
        self.next = 0; // what is done is left out
        self.pace.restart();
        step
    }

    fn dead(&mut self, failure: &Failure, shared: &mut Shared, now: Instant) {
        let letter = DeadLetter {
            sequence: failure.sequence,
            route: failure.route,
            kafka_topic: Arc::clone(&self.topic),
            reason: dead_letter_reason(failure.code),
        };
        shared.count_dead(&letter, "", now);
        shared.declare_dead(&letter);
        self.place.done.insert(letter.sequence);
        self.place.dead.push(letter);
    }

    /// Nothing has moved for longer than anything may take.
    fn gets_nowhere(&self, shared: &Shared, now: Instant) -> bool {
        now.saturating_duration_since(self.last_progress) > NO_PROGRESS.max(shared.patience.timeout())
    }

    fn retire(&mut self, shared: &mut Shared, now: Instant) {
        if let Some(producer) = self.producer.take() {
            if producer.was_overdue() {
                shared.patience.overdue(self.window.is_least());
            }
            self.window.forget();
            let (reports, _restart) = producer.retire();
            self.confirmed(reports.confirmed, shared, now);
        }
        self.end_session();
    }
}

fn dead_letter(topic: &Arc<str>, stored: &Stored, reason: String) -> DeadLetter {
    DeadLetter { sequence: stored.sequence, route: stored.event.route, kafka_topic: Arc::clone(topic), reason }
}
