//! The stream and its sender: what is done about what happens to it. How long a lost producer's successor waits, what the
//! watermark of the stream says and when, what a recovered one means.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::types::RDKafkaErrorCode as Code;

use super::custody::{Custody, add, unix_ms};
use super::error::ForwardError;
use super::feed::Feed;
use super::judge::Renewal;
use super::producer::Producer;
use super::sender::{Collected, Happened, Sender};
use super::session::TransactionContext;
use super::stalls::OVERDUE;
use super::status::Reason;
use super::stream::Stream;
use super::transactional::{Cost, Transactional};
use super::waiting::Obstacle;
use super::watermark_reader::{FoundWatermarks, Trouble};
use super::wire::Wire;
use crate::delivered::{CommittedWatermark, Delivered};
use crate::event::{Sequence, Stored};
use crate::log_throttle::LogThrottle;
use crate::planted::{self, Bug};
use crate::retry::Backoff;
use crate::watermark::Instance;

/// Moves that must be on disk before the watermark are there within a few 100 ms. After this time the disk fails, and
/// the transaction is given up before Kafka does so.
const MOVES: Duration = Duration::from_secs(5);

/// So many times within so long, and a person should look: a link that is away ends one transaction in 15 s at most.
const MOST_FENCINGS: usize = 5;
const FENCING: Duration = Duration::from_secs(600);

/// Dead letters that are younger than the last watermark, less this, are declared again after a start: the clock of the
/// record is that of the same gateway, a moment earlier.
const SLACK_MS: i64 = 60_000;

/// ... at most so many: 1.5 MB on the wire once.
const MOST_DECLARED_AGAIN: u32 = 10_000;

/// See the documentation of the module.
pub(super) struct StreamSender {
    pub(super) sender: Sender,
    stream: Stream,
    backoff: Backoff,
    said: LogThrottle,
    /// Why the last producer was ended.
    cause: String,
    /// When its producers were fenced, the last few times.
    fenced: VecDeque<Instant>,
    behind_was_said: bool,
    /// Holes of earlier starts were declared again.
    declared_again: bool,
    /// Whose Kafka's last watermark is, until the buffer hears of it.
    heard: Option<(Instance, Arc<TransactionContext>)>,
    /// What Kafka has of the lanes that were asked for at the start.
    pub(super) found_lanes: Option<HashMap<String, CommittedWatermark>>,
    /// Why the agent cannot go on.
    fault: Option<ForwardError>,
}

impl StreamSender {
    /// That sender sends that stream. Before it has a producer.
    pub(super) fn new(sender: Sender, stream: Stream) -> Self {
        Self {
            sender,
            stream,
            backoff: Backoff::new(),
            said: LogThrottle::default(),
            cause: String::new(),
            fenced: VecDeque::new(),
            behind_was_said: false,
            declared_again: false,
            heard: None,
            found_lanes: None,
            fault: None,
        }
    }

    /// With the first producer.
    pub(super) fn begins_with(&mut self, producer: Producer, custody: &mut Custody, wire: &mut Wire) {
        self.sender.begins_with(producer, &Feed::stream(&mut self.stream, custody), wire);
    }

    /// Why the agent cannot go on, if it cannot.
    pub(super) fn fault(&mut self) -> Option<ForwardError> {
        self.fault.take()
    }

    /// A Kafka topic that took something.
    pub(super) fn known_topic(&self) -> Option<&Arc<str>> {
        self.stream.known_topic.as_ref()
    }

    /// More events are of use now.
    pub(super) fn wants_events(&self, now: Instant) -> bool {
        self.sender.flows() && !self.stream.is_ready(now)
    }

    /// When there is something to do, whatever happens.
    pub(super) fn next_wake(&self, now: Instant) -> Option<Instant> {
        self.sender.next_wake(self.stream.gathers_until(), now)
    }

    /// Takes what the reader gave.
    pub(super) fn take_events(&mut self, events: Vec<Stored>, now: Instant) {
        self.stream.take(events, now);
    }

    /// These cannot be read and are passed by.
    pub(super) fn unread(&mut self, first: Sequence, last: Sequence, custody: &mut Custody) {
        if let Some((first, last)) = self.stream.watermark.unread(first, last) {
            custody.settlement.unread(first, last, Instant::now());
        }
    }

    /// Is anything here that waits to be confirmed, or to be sent?
    pub(super) fn has_events(&self) -> bool {
        let uncommitted = || self.sender.producer().map_or(0, Producer::uncommitted);
        !self.stream.is_empty() || self.sender.in_flight() > 0 || uncommitted() > 0
    }

    /// Polls and books what came back; true when a broker has answered.
    pub(super) fn collect(&mut self, custody: &mut Custody, wire: &mut Wire, now: Instant) -> bool {
        let Collected { answered, confirmed } =
            self.sender.collect(&mut Feed::stream(&mut self.stream, custody), wire, now);
        if confirmed {
            self.backoff.reset();
            wire.timeouts.confirmed();
        }
        answered
    }

    /// Does what can be done without waiting. `link_is_up`: a broker answers, by the link's last word.
    pub(super) fn turn(&mut self, link_is_up: bool, custody: &mut Custody, wire: &mut Wire, now: Instant) {
        if let Some(own) = self.sender.delivery.transactions_mut() {
            own.may_begin(link_is_up);
        }
        if let Some((of, _)) = self.heard.take_if(|(_, context)| context.may_speak())
            && !planted::planted(Bug::SpeakUnwritten)
        {
            custody.settlement.heard(of, now);
        }
        let happened = self.sender.turn(&mut Feed::stream(&mut self.stream, custody), wire, now);
        self.apply(happened, custody, wire, now);
    }

    /// A stop: what was begun is brought to an end. True when nothing is under way any more.
    pub(super) fn wind_down(&mut self, link_is_up: bool, custody: &mut Custody, wire: &mut Wire, now: Instant) -> bool {
        let is_done = self.sender.wind_down(now);
        if !is_done && self.sender.delivery.commits() {
            self.turn(link_is_up, custody, wire, now);
        }
        is_done
    }

    /// The end of a stop: what is in flight comes back, as far as it has.
    pub(super) fn retire(&mut self, custody: &mut Custody, wire: &mut Wire, now: Instant) {
        self.sender.retire(&mut Feed::stream(&mut self.stream, custody), wire, now);
    }

    fn apply(&mut self, happened: Happened, custody: &mut Custody, wire: &mut Wire, now: Instant) {
        match happened {
            Happened::Nothing => {}
            Happened::NewProducer => {
                add(&mut custody.status.producers, 1);
                custody.changed = true;
                let timeout = wire.timeouts.timeout();
                if let Some(status) = custody.transactions() {
                    status.timeout = timeout;
                }
            }
            Happened::NoProducer(cause) => {
                let wait = self.backoff.next_wait();
                if let Some(more) = self.said.again(&cause, now) {
                    tracing::warn!(
                        cause,
                        wait_s = wait.as_secs_f64(),
                        more,
                        "kafka: a new producer cannot be made; the agent tries again"
                    );
                }
                self.cause = cause;
                self.sender.pause_until(now.checked_add(wait).unwrap_or(now));
            }
            Happened::WatermarksFound(found) => self.watermarks_found(found, custody, wire),
            Happened::WatermarkDue => self.write_watermark(custody, wire, now),
            Happened::Committed(proofs, ending, cost) => self.committed(proofs, ending, cost, custody, wire, now),
            Happened::Ended(renewal) => self.ended(renewal, wire, now),
        }
    }

    /// The producer is over.
    fn ended(&mut self, renewal: Renewal, wire: &mut Wire, now: Instant) {
        // Whoever was to answer it is gone.
        wire.times.unanswered();
        let Renewal::AfterWait(code, detail) = renewal else { return };
        self.cause = if detail.is_empty() { code.to_string() } else { format!("{code}: {detail}") };
        self.note_fencing(code, now);
        let (cause, wait) = (code.to_string(), self.backoff.next_wait());
        if let Some(more) = self.said.again(&cause, now) {
            let wait_s = wait.as_secs_f64();
            tracing::warn!(cause, detail, wait_s, more, "kafka: the producer failed; the agent makes a new one");
        }
        self.sender.pause_until(now.checked_add(wait).unwrap_or(now));
    }

    /// This producer is over, for a reason of the stream's.
    fn end_producer(&mut self, code: Code, why: &str, custody: &mut Custody, wire: &mut Wire, now: Instant) {
        let renewal = Renewal::AfterWait(code, why.to_owned());
        let happened = self.sender.end_producer(renewal, &mut Feed::stream(&mut self.stream, custody), wire, now);
        self.apply(happened, custody, wire, now);
    }

    /// What transactions have in common, if there are any.
    fn context(&self) -> Option<&Arc<TransactionContext>> {
        self.sender.delivery.transactions().map(Transactional::context)
    }

    /// Being fenced once is what a transaction of ours gets that Kafka ended because it was open for too long; again and
    /// again, somebody else has our name.
    fn note_fencing(&mut self, code: Code, now: Instant) {
        let Some(context) = self.context().cloned() else { return };
        if ![Code::Fenced, Code::ProducerFenced, Code::InvalidProducerEpoch].contains(&code) {
            return;
        }
        self.fenced.retain(|at| now.saturating_duration_since(*at) < FENCING);
        self.fenced.push_back(now);
        if self.fenced.len() >= MOST_FENCINGS {
            self.fenced.clear();
            tracing::error!(
                transactional_id = format!("tidegate-{}", context.buffer_id),
                "kafka: Kafka fences this producer again and again: another agent may run with a copy of this \
                 buffer; stop one of the two"
            );
        }
    }

    /// The watermark is known: never back, and never by the watermark of a duplicate identity.
    fn watermarks_found(&mut self, found: FoundWatermarks, custody: &mut Custody, wire: &mut Wire) {
        let Some(context) = self.context().cloned() else { return };
        let through = found.main.as_ref().map_or(0, CommittedWatermark::through);
        let (committed, highest) = (self.stream.watermark.through(), self.stream.watermark.highest());
        if found.main.as_ref().is_some_and(|watermark| !context.is_ours(watermark, highest)) {
            self.fault = Some(ForwardError::DuplicateIdentity { buffer_id: context.buffer_id, through });
            return;
        }
        let of = found.main.as_ref().map_or(context.instances.present, CommittedWatermark::instance);
        if through < committed && !std::mem::replace(&mut self.behind_was_said, true) {
            tracing::error!(
                topic = &*context.topic,
                found = through,
                expected = committed,
                "kafka: the watermark topic has lost this buffer's watermark: the record was deleted, or this is \
                 another cluster; the agent goes on from what the buffer knows, and Kafka may get the last readings \
                 twice"
            );
        }
        self.heard = Some((of, context));
        if found.newer {
            tracing::warn!(
                "kafka: a newer version of Tidegate has written this buffer's watermark; this version \
                 ignores what it does not know in it"
            );
        }
        if !std::mem::replace(&mut self.declared_again, true) {
            let since_ms = found.main.as_ref().map_or(i64::MIN, |watermark| watermark.at_ms().saturating_sub(SLACK_MS));
            custody.declare_again(through, since_ms, MOST_DECLARED_AGAIN);
        }
        let waiting = self.has_events() || custody.reader.has_more();
        wire.timeouts.began(found.round_trip, waiting);
        self.stream.asks_about = Vec::new();
        self.found_lanes.get_or_insert(found.lanes);
        wire.partitions = Some(found.partitions);
        self.stream.watermark.recovered(found.main);
        custody.changed = true;
        let watermark = self.stream.watermark.through();
        if let Some(status) = custody.transactions() {
            status.watermark = watermark;
        }
        tracing::debug!(watermark = through, "kafka: watermark known");
    }

    /// All records of the transaction are confirmed. What else became of readings that the watermark passes is on disk first.
    fn write_watermark(&mut self, custody: &mut Custody, wire: &mut Wire, now: Instant) {
        match custody.moves_are_durable() {
            Ok(true) => {}
            Ok(false) => {
                let closed = self.sender.delivery.transactions().and_then(Transactional::closed);
                if closed.is_some_and(|closed| now.saturating_duration_since(closed) >= MOVES) {
                    let why = "the buffer's disk does not take what became of earlier readings";
                    self.end_producer(Code::Fail, why, custody, wire, now);
                }
                return;
            }
            Err(stopped) => {
                self.fault = Some(stopped.into());
                return;
            }
        }
        let (Some(context), Some(producer)) = (self.context().cloned(), self.sender.producer()) else { return };
        if producer.uncommitted() > 0 {
            planted::die(Bug::DieSealing);
        }
        #[cfg(feature = "planted")]
        if planted::planted(Bug::CursorBeforeCommit) {
            let proofs = producer.take_batch().forge();
            custody.settlement.delivered(proofs, now);
            custody.settle().unwrap_or_default();
            std::thread::sleep(Duration::from_millis(500));
        }
        // Dead letters and parked events whose chunk could not be read when they were to be copied: they are held.
        self.stream.watermark.leaves_out(custody.settler.take_unread());
        let (instance, at_ms) = (context.instances.present, unix_ms());
        let mut records = vec![self.stream.watermark.record(instance, custody.settler.rests_on(), at_ms)];
        records.extend(custody.lane_records(instance, at_ms));
        records.extend(custody.declarations.seal());
        if let Err(code) = self.sender.write_watermark(&records, wire.times.now_ms(), now) {
            self.end_producer(code, "the watermark cannot be sent", custody, wire, now);
        }
    }

    fn committed(
        &mut self,
        proofs: Vec<Delivered>,
        ending: Duration,
        cost: Cost,
        custody: &mut Custody,
        wire: &mut Wire,
        now: Instant,
    ) {
        self.stream.watermark.committed();
        wire.timeouts.committed(cost.ends, cost.all, cost.was_waiting, now);
        self.backoff.reset();
        custody.declarations.committed();
        custody.count_delivered(proofs.len());
        custody.changed = true;
        let watermark = self.stream.watermark.through();
        custody.note_committed(ending);
        if let Some(status) = custody.transactions() {
            status.watermark = watermark;
        }
        custody.settlement.delivered(proofs, now);
        custody.settlement.watermark(watermark, now);
    }

    /// What keeps readings from being sent or confirmed, if anything does.
    pub(super) fn obstacle(&self, wire: &Wire, now: Instant) -> Option<Obstacle> {
        let Some(producer) = self.sender.producer() else {
            if wire.clients.is_full() {
                let why = "earlier clients of librdkafka have not ended: they wait for an answer of the name servers";
                return Some(Obstacle::new(Reason::EndingClients, why));
            }
            return Some(Obstacle::new(Reason::StartingAgain, self.cause.clone()));
        };
        let own = self.sender.delivery.transactions();
        if let Some(obstacle) = own.and_then(|own| own.obstacle(producer, now)) {
            return Some(obstacle);
        }
        let (age, topic) = producer.oldest(now).filter(|(age, _)| *age >= OVERDUE)?;
        let answer = producer.refusal(&topic).map_or("no answer yet".to_owned(), |(answer, _)| answer);
        let why = format!("Kafka has not confirmed records of topic {topic} for {} s: {answer}", age.as_secs());
        Some(Obstacle::new(Reason::Sending, why))
    }

    /// What is in the way of a start.
    pub(super) fn trouble(&self) -> Trouble {
        self.sender.delivery.transactions().map(Transactional::trouble).unwrap_or_default()
    }
}
