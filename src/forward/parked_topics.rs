//! Sends the queues of parked topics: one topic at a time, with a sender of its own, so that a refusal does not touch the
//! others.
//!
//! The first event of a queue is the question whether the topic is open: rights show only when something is produced. If
//! Kafka takes it, twice as many follow, and so on. A group that is small means that the queue has caught up with its inflow:
//! then it closes (`parking.rs`).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::config::ClientConfig;
use rdkafka::types::RDKafkaErrorCode as Code;

use super::bisection::Bisection;
use super::clients::Call;
use super::custody::Custody;
use super::delivery::Delivery;
use super::feed::Feed;
use super::judge::Renewal;
use super::options;
use super::parking::Opened;
use super::producer::Producer;
use super::queue::{Queue, QueueProgress, Refused};
use super::sender::{Happened, Place, Sender};
use super::topic_state::{Answers, Found};
use super::transactional::Transactional;
use super::wire::Wire;
use crate::buffer::ReadError;

/// A try without any progress ends after this time, or after that of a transaction or a request; another topic may be
/// luckier. Longer than librdkafka needs to find a new leader; only one topic is tried at a time.
const NO_PROGRESS: Duration = Duration::from_secs(30);

/// How often an empty queue is looked at while it closes: the buffer commits every few milliseconds to 200 ms.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// A topic that had too few replicas in sync is not sent to before it has more, or this time has passed: somebody may have
/// lowered what it wants. With transactions each try that is refused costs one of the producer's names.
const OUTNUMBERED: Duration = Duration::from_secs(300);

/// A queue that is worked off gives way after this time, between two groups, if another topic is due.
const TURN: Duration = Duration::from_secs(10);

/// See the documentation of the module.
pub(super) struct ParkedTopics {
    sender: Sender,
    active: Option<Probe>,
    /// Topics that had too few replicas in sync: how many, and when that was.
    outnumbered: HashMap<Arc<str>, (usize, Instant)>,
    /// Where tries that ended left off, by Kafka topic; forgotten when the topic is direct again.
    progress: HashMap<Arc<str>, QueueProgress>,
}

/// One topic being tried.
struct Probe {
    queue: Queue,
    began: Instant,
    look_at: Instant,
    /// Whether the topic has leaders; brokers are asked before anything is sent, because a transaction with a partition
    /// that has none cannot be ended.
    leaders: Leaders,
    /// In-sync replicas when it was asked, and those without which nothing is sent.
    in_sync: usize,
    enough: usize,
}

/// See there.
#[derive(Debug, Default)]
enum Leaders {
    #[default]
    Unknown,
    Asked(Call<Answers>),
    There,
}

/// How a try ends.
enum End {
    /// The topic is direct again.
    Opened(Opened),
    /// Not now.
    Refused(Refused),
    /// Another topic's turn.
    GivesWay,
    /// Nothing has come into the queue.
    NothingYet,
}

impl ParkedTopics {
    /// Uses the stream's configuration, but finds out sooner that a topic is missing.
    pub(super) fn new(mut config: ClientConfig, delivery: Delivery) -> Self {
        options::for_lanes(&mut config);
        let sender = Sender::new(config, delivery);
        Self { sender, active: None, outnumbered: HashMap::new(), progress: HashMap::new() }
    }

    /// A topic is being tried.
    pub(super) fn is_busy(&self) -> bool {
        self.active.is_some()
    }

    /// librdkafka is to say something, which nobody but a poll hears.
    pub(super) fn awaits_word(&self) -> bool {
        self.active.is_some() && self.sender.awaits_word()
    }

    /// When there is something to do for the topic that is tried, whatever happens.
    pub(super) fn next_wake(&self, now: Instant) -> Option<Instant> {
        let active = self.active.as_ref()?;
        let looks = (!active.queue.has_group()).then_some(active.look_at);
        let sends = (active.queue.has_group() || self.sender.producer().is_some())
            .then(|| self.sender.next_wake(None, now))
            .flatten();
        [looks, sends].into_iter().flatten().min()
    }

    /// Where it is. When that has changed there may be more to do at once.
    pub(super) fn place(&self) -> Option<(Place, bool, bool)> {
        let active = self.active.as_ref()?;
        Some((self.sender.place(), active.queue.has_group(), active.queue.is_open))
    }

    /// Does what can be done now without waiting.
    pub(super) fn step(&mut self, custody: &mut Custody, wire: &mut Wire, now: Instant) -> Result<(), ReadError> {
        if self.active.is_none() && !self.begins(custody, wire, now) {
            return Ok(());
        }
        let Some(end) = self.go_on(custody, wire, now)? else { return Ok(()) };
        let Some(active) = &self.active else { return Ok(()) };
        let topic = Arc::clone(&active.queue.topic);
        match end {
            End::Opened(opened) => self.opened(&topic, &opened, custody, wire, now),
            End::NothingYet => self.end(custody, wire, now),
            End::GivesWay => {
                custody.parking.gives_way(&topic, now);
                self.end(custody, wire, now);
            }
            End::Refused(Refused { reason, outnumbered }) => {
                if outnumbered {
                    self.outnumbered.insert(Arc::clone(&topic), (active.in_sync, now));
                }
                custody.changed = true;
                tracing::debug!(topic = &*topic, ?reason, "kafka: the agent tried a parked topic, and it stays parked");
                let (reason, remedy) = (reason.map(|(reason, _)| reason), reason.map_or("", |(_, remedy)| remedy));
                if custody.parking.refused(&topic, reason, now) {
                    custody.say_parked(&topic, reason.unwrap_or_default(), remedy, now);
                }
                self.end(custody, wire, now);
            }
        }
        Ok(())
    }

    /// Begins with the topic whose turn it is; false when it is nobody's.
    fn begins(&mut self, custody: &mut Custody, wire: &mut Wire, now: Instant) -> bool {
        let is_due = custody.parking.next_wake().is_some_and(|due| due <= now);
        if is_due && !wire.times.is_settled() {
            return false;
        }
        let Some(topic) = custody.parking.next_due(now) else { return false };
        let progress = self.progress.remove(&topic).unwrap_or_default();
        let outnumbered =
            self.outnumbered.get(&topic).filter(|(_, at)| now.saturating_duration_since(*at) < OUTNUMBERED);
        let enough = outnumbered.map_or(0, |(in_sync, _)| in_sync.saturating_add(1));
        let (queue, leaders) = (Queue::new(topic, progress), Leaders::default());
        self.active = Some(Probe { queue, began: now, look_at: now, leaders, in_sync: 0, enough });
        self.sender.begins_anew(Bisection::probing(), now);
        true
    }

    /// The topic takes all that waited for it.
    fn opened(&mut self, topic: &Arc<str>, opened: &Opened, custody: &mut Custody, wire: &mut Wire, now: Instant) {
        custody.changed = true;
        custody.admission.is_direct(topic);
        custody.say_opened(topic, opened, now);
        self.progress.remove(topic);
        self.outnumbered.remove(topic);
        if let Some(mut active) = self.active.take() {
            self.sender.retire(&mut Feed::queue(&mut active.queue, custody), wire, now);
        }
    }

    /// A stop: begins nothing, sends on what was begun of a group. True when nothing is left in between.
    pub(super) fn wind_down(&mut self, custody: &mut Custody, wire: &mut Wire, now: Instant) -> bool {
        let Some(active) = &mut self.active else { return true };
        if active.queue.is_untouched() && self.sender.in_flight() == 0 {
            return true; // nothing of the group is in Kafka: nothing would be repeated
        }
        self.sender.collect(&mut Feed::queue(&mut active.queue, custody), wire, now);
        let is_done = self.sender.delivery.commits() && self.sender.wind_down(now);
        if is_done || !self.sender.failures.is_empty() || !self.sender.flows() {
            return true;
        }
        let refusal = self.turn(custody, wire, now);
        let Some(active) = &mut self.active else { return true };
        active.queue.settle_group(custody, now);
        refusal.is_some() || !self.sender.delivery.commits() && !active.queue.has_group()
    }

    /// Ends the try; what was confirmed until the last moment is kept.
    pub(super) fn end(&mut self, custody: &mut Custody, wire: &mut Wire, now: Instant) {
        let Some(mut active) = self.active.take() else { return };
        self.sender.retire(&mut Feed::queue(&mut active.queue, custody), wire, now);
        active.queue.settle_group(custody, now);
        let Queue { topic, progress, .. } = active.queue;
        custody.parking.put_back(&topic, now);
        if progress.is_of_use() {
            self.progress.insert(topic, progress);
        }
    }

    /// One step of the try; how it ends, if it does.
    fn go_on(&mut self, custody: &mut Custody, wire: &mut Wire, now: Instant) -> Result<Option<End>, ReadError> {
        let Some(active) = &mut self.active else { return Ok(None) };
        self.sender.collect(&mut Feed::queue(&mut active.queue, custody), wire, now);
        if self.sender.failures.is_empty() {
            active.queue.settle_group(custody, now);
            if !active.queue.has_group() {
                if let Some(end) = active.read_on(custody, now)? {
                    return Ok(Some(end));
                }
                self.sender.moved = now;
            }
        }
        if (active.queue.has_group() || self.sender.producer().is_some())
            && let Some(refused) = self.turn(custody, wire, now)
        {
            return Ok(Some(End::Refused(refused)));
        }
        let gets_nowhere = now.saturating_duration_since(self.sender.moved) > NO_PROGRESS.max(wire.timeouts.timeout());
        let nothing_new = Refused { reason: None, outnumbered: false };
        Ok(gets_nowhere.then_some(End::Refused(nothing_new)))
    }

    /// One turn of the sender, and what it means for the try. `Some`: Kafka does not take it now.
    fn turn(&mut self, custody: &mut Custody, wire: &mut Wire, now: Instant) -> Option<Refused> {
        let Probe { queue, .. } = self.active.as_mut()?;
        let own = &mut self.sender;
        // The stream's producer sees the same brokers and says what is to be said; these must only not pile up.
        let has_producer = own.producer().map(|producer| drop(producer.remarks())).is_some();
        if let Some(transactions) = own.delivery.transactions_mut() {
            transactions.may_begin(wire.partitions.is_some());
            if !has_producer {
                // Where the queue stands is known unless a transaction of it is in doubt, or this is the first since the start.
                let known = wire.partitions.filter(|_| custody.lanes_delivered.contains_key(&queue.topic));
                transactions.nothing_is_in_doubt(known);
            }
        }
        let happened = own.turn(&mut Feed::queue(queue, custody), wire, now);
        self.apply(happened, custody, wire, now);
        let active = self.active.as_mut()?;
        if let Some(producer) = self.sender.producer() {
            active.ask_for_leaders(producer);
        }
        active.queue.take_refusal()
    }

    fn apply(&mut self, happened: Happened, custody: &mut Custody, wire: &mut Wire, now: Instant) {
        let Some(Probe { queue, .. }) = &mut self.active else { return };
        match happened {
            Happened::Nothing | Happened::NewProducer | Happened::Ended(Renewal::AtOnce) => {}
            Happened::NoProducer(_) => queue.refused(None),
            Happened::WatermarksFound(found) => {
                let context = self.sender.delivery.transactions().map(Transactional::context);
                if !context.is_some_and(|context| queue.recovered(found, context, custody)) {
                    queue.refused(None);
                }
            }
            Happened::WatermarkDue => self.write_watermark(custody, wire, now),
            Happened::Committed(proofs, ending, _) => {
                queue.committed(custody);
                custody.note_committed(ending);
                queue.confirmed(proofs, custody);
            }
            Happened::Ended(Renewal::AfterWait(code, detail)) => {
                tracing::debug!(topic = &*queue.topic, %code, detail, "kafka: a parked topic's producer failed; the \
                     agent makes a new one");
                if !queue.is_refused() {
                    queue.refused(None);
                }
            }
        }
    }

    /// A chunk that could not be read is behind all that this watermark vouches for; and dead letters of the groups before
    /// are on disk: its holes are all that a reader must know.
    fn write_watermark(&mut self, custody: &mut Custody, wire: &mut Wire, now: Instant) {
        let Some(Probe { queue, .. }) = &mut self.active else { return };
        // custody rule 3: of two records with one key the later one is found.
        if custody.declarations.is_under_way(&queue.topic) {
            return;
        }
        match custody.moves_are_durable() {
            Ok(true) => {}
            Ok(false) => return,
            Err(_stopped) => return queue.refused(None),
        }
        let own = &mut self.sender;
        let uncommitted = own.producer().map_or(0, Producer::uncommitted);
        let instance = own.delivery.transactions().map(|own| own.context().instances.present);
        let Some(instance) = instance else { return };
        let records = queue.watermark(instance, uncommitted, custody);
        let written = records.map(|records| own.write_watermark(&records, wire.times.now_ms(), now));
        if !matches!(written, Some(Ok(()))) {
            queue.refused(None);
        }
    }
}

impl Probe {
    /// Reads the next group; how the try ends if there is none, or if it is another topic's turn.
    fn read_on(&mut self, custody: &mut Custody, now: Instant) -> Result<Option<End>, ReadError> {
        let topic = &self.queue.topic;
        if now < self.look_at {
            return Ok(None);
        }
        if now.saturating_duration_since(self.began) > TURN && custody.parking.others_wait(topic, now) {
            return Ok(Some(End::GivesWay));
        }
        // What was on disk before the queue is read is seen by the reading; so this comes first.
        let applied = custody.settler.applied();
        if self.queue.load(custody)? {
            return Ok(None);
        }
        self.look_at = now.checked_add(LOOK_AGAIN).unwrap_or(now);
        let topic = &self.queue.topic;
        if let Some(opened) = custody.parking.seen_empty(topic, applied, now) {
            return Ok(Some(End::Opened(opened)));
        }
        Ok(custody.parking.waits(topic).then_some(End::NothingYet))
    }

    /// Whether the topic may be sent to.
    fn ask_for_leaders(&mut self, producer: &Producer) {
        match &self.leaders {
            Leaders::There => {}
            Leaders::Asked(call) => {
                let Some(answer) = call.answer() else { return };
                match answer.first() {
                    Some((_, Found::Leaderless { .. })) => return self.queue.refused(Some(Code::LeaderNotAvailable)),
                    Some((_, Found::Led { in_sync, .. })) if *in_sync < self.enough => {
                        // No more than when it was found: then is what counts.
                        return self.queue.refused_again(Code::NotEnoughReplicas);
                    }
                    Some((_, Found::Led { in_sync, .. })) => self.in_sync = *in_sync,
                    Some((_, Found::Missing | Found::Forbidden | Found::Silent(_))) | None => {}
                }
                self.leaders = Leaders::There;
                self.queue.is_open = true;
            }
            Leaders::Unknown => match producer.look(vec![Arc::clone(&self.queue.topic)]) {
                Ok(call) => self.leaders = Leaders::Asked(call),
                Err(_no_thread) => self.queue.refused(None),
            },
        }
    }
}
