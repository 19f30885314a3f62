//! One librdkafka producer with what is outstanding on it. Owned and polled by one thread.
//!
//! The delivery callback runs inside [`Producer::poll`], on the caller's thread. It turns a report into a
//! [`Delivered`] proof by way of the ring of outstanding events, which belongs to this producer alone. A transactional
//! producer's reports give [`Acked`] only; they gather here in a [`Batch`] until `session.rs` commits it.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::message::{DeliveryResult, Message, OwnedHeaders, Timestamp};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _, ProducerContext, PurgeConfig};
use rdkafka::types::RDKafkaErrorCode as Code;

use super::clients::{Call, ClientSlot, Clients, Wake};
use super::end_txn::EndTxn;
use super::librdkafka_log::{self, LibrdkafkaLog, RegistrationProblem};
use super::link::Remarks;
use super::outstanding::{self, Outstanding, Restart};
use super::topic_state::{self, Answers, Found};
use super::verdict::code_of;
use crate::clock;
use crate::delivered::{Acked, Batch, Delivered};
use crate::event::{RouteId, Sequence};
use crate::planted::{Bug, planted};
use crate::route::Target;

/// What librdkafka needs for one message beside its contents: the message struct, its place in queues and in the
/// request being built, its headers (each an allocation). Measured with 100-byte readings: 800 bytes a message.
pub(super) const MESSAGE_OVERHEAD_BYTES: usize = 600;

/// See the documentation of the module.
pub(super) struct Producer {
    /// Before `_ending`: so the last hand on it is never ours.
    native: Arc<Native>,
    _ending: Ending,
    context: Arc<Context>,
    wake: Wake,
}

/// librdkafka's own.
struct Native {
    /// Destroyed before its slot is given to another one.
    producer: BaseProducer<Context>,
    _slot: ClientSlot,
}

/// Has the producer destroyed elsewhere: that may take minutes (`clients.rs`).
struct Ending {
    native: Option<Arc<Native>>,
    clients: Clients,
}

impl Drop for Ending {
    fn drop(&mut self) {
        let Some(native) = self.native.take() else { return };
        if planted(Bug::EndOnTheLoop) {
            // Calls beside the loop may have a hand on it as well.
            while Arc::strong_count(&native) > 1 {
                std::thread::sleep(Duration::from_millis(1));
            }
            drop(native);
        } else {
            self.clients.end(Box::new(native));
        }
    }
}

/// What the callbacks write down.
#[derive(Debug, Default)]
struct Context {
    transactional: bool,
    desk: Mutex<Desk>,
    remarks: Mutex<Remarks>,
    end_txn: Mutex<EndTxn>,
    /// A request with readings was on its way for longer than it may be.
    overdue: AtomicBool,
    librdkafka_log: Mutex<LibrdkafkaLog>,
    /// Calls of the callbacks until now.
    heard: AtomicUsize,
}

/// Outstanding events and reports about them. Locked by one thread only: the callbacks run inside `poll`.
#[derive(Debug, Default)]
struct Desk {
    outstanding: Outstanding,
    reports: Reports,
    /// What was acknowledged in the open transaction.
    batch: Batch,
    seals: Seals,
}

/// Records of the watermark topic in the open transaction. They are sent only when no data record is in flight (rule
/// A), so while there are any, all reports are theirs.
#[derive(Debug, Default)]
struct Seals {
    in_flight: usize,
    failure: Option<Code>,
    /// Kafka's time when it wrote one, and the time since boot when that was heard.
    told: Option<(i64, i64)>,
}

/// What came back.
#[derive(Debug, Default)]
pub(super) struct Reports {
    /// Confirmed by Kafka.
    pub(super) confirmed: Vec<Delivered>,
    /// Acknowledged in the open transaction: how many.
    pub(super) acked: usize,
    /// Not confirmed; each still held.
    pub(super) failures: Vec<Failure>,
}

/// One report without confirmation.
#[derive(Debug)]
pub(super) struct Failure {
    /// Which event.
    pub(super) sequence: Sequence,
    /// Its ledger line.
    pub(super) route: RouteId,
    /// The Kafka topic.
    pub(super) topic: String,
    /// Why.
    pub(super) code: Code,
}

/// One record, ready to go.
#[derive(Debug)]
pub(super) struct Outgoing<'a> {
    pub(super) sequence: Sequence,
    pub(super) route: RouteId,
    pub(super) target: &'a Target,
    pub(super) headers: OwnedHeaders,
    pub(super) value: &'a [u8],
    pub(super) timestamp_ms: i64,
    /// Memory it is charged with while in flight.
    pub(super) cost_bytes: usize,
}

impl Producer {
    /// Makes one in that slot. It connects by itself; no broker needs to be there.
    pub(super) fn new(config: &ClientConfig, clients: &Clients, slot: ClientSlot) -> KafkaResult<Self> {
        // A transactional one is one that has a transactional.id.
        let transactional = config.get("transactional.id").is_some();
        let producer: BaseProducer<Context> =
            config.create_with_context(Context { transactional, ..Context::default() })?;
        let context = Arc::clone(producer.client().context());
        let native = Arc::new(Native { producer, _slot: slot });
        let ending = Ending { native: Some(Arc::clone(&native)), clients: clients.clone() };
        Ok(Self { native, _ending: ending, context, wake: clients.wake().clone() })
    }

    /// Hands a record over. On an error librdkafka did not take it.
    pub(super) fn send(&self, record: Outgoing<'_>) -> Result<(), Code> {
        let slot =
            self.desk().outstanding.enter(record.sequence, record.route, &record.target.topic, record.cost_bytes);
        let message = BaseRecord::with_opaque_to(&record.target.topic, usize::try_from(slot).unwrap_or(usize::MAX))
            .key(&*record.target.key)
            .payload(record.value)
            // librdkafka takes 0 for "now".
            .timestamp(record.timestamp_ms.max(1))
            .headers(record.headers);
        match self.native.producer.send(message) {
            Ok(()) => Ok(()),
            Err((error, _record)) => {
                self.desk().outstanding.withdraw();
                Err(code_of(&error))
            }
        }
    }

    /// Enters an event that is settled without being sent, so that a restart leaves it out.
    pub(super) fn pass(&self, sequence: Sequence, route: RouteId) {
        self.desk().outstanding.enter_settled(sequence, route);
    }

    /// Works off what librdkafka has to say: all that is there, then whatever comes within `wait`.
    pub(super) fn poll(&self, wait: Duration) {
        self.desk().outstanding.tick(Instant::now());
        if !wait.is_zero() {
            // Not in librdkafka, which waits by the wall clock: set back by an hour, it would wait for an hour more. It would
            // take all of `wait` as well.
            std::thread::sleep(wait);
        }
        // One call takes one event of librdkafka's, which may hold the reports of many messages, or a line of its log. With
        // transactions there are 25 lines for each, and what comes behind them counts: reports that an abort waits for,
        // and the line that proves a commit. One line a turn of the loop made half a second of each transaction.
        for _ in 0..MOST_EVENTS_A_POLL {
            let before = self.context.heard.load(Ordering::Relaxed);
            self.native.producer.poll(Duration::ZERO);
            if self.context.heard.load(Ordering::Relaxed) == before {
                break;
            }
        }
    }

    /// What came back since the last call.
    pub(super) fn reports(&self) -> Reports {
        std::mem::take(&mut self.desk().reports)
    }

    /// Since the last call a request with readings was on its way to a broker for longer than it may be.
    pub(super) fn was_overdue(&self) -> bool {
        self.context.overdue.swap(false, Ordering::Relaxed)
    }

    /// What librdkafka remarked since the last call.
    pub(super) fn remarks(&self) -> Remarks {
        std::mem::take(&mut *self.context.remarks.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Events and bytes in flight.
    pub(super) fn in_flight(&self) -> (usize, usize) {
        let desk = self.desk();
        (desk.outstanding.in_flight(), desk.outstanding.in_flight_bytes())
    }

    /// The Kafka topic of the event that has been in flight longest, and for how long.
    pub(super) fn oldest(&self, now: Instant) -> Option<(Duration, Arc<str>)> {
        self.desk().outstanding.oldest(now).map(|(age, topic)| (age, Arc::clone(topic)))
    }

    /// Kafka topics that have not confirmed for so long; at most so many.
    pub(super) fn overdue(&self, limit: Duration, most: usize, now: Instant) -> Vec<Arc<str>> {
        self.desk().outstanding.overdue(limit, most, now)
    }

    /// Gives up waiting for what is in flight to that topic: a failure with that code. librdkafka has it still: this
    /// producer must be retired, or abort.
    pub(super) fn fail(&self, topic: &Arc<str>, code: Code) -> Option<Failure> {
        let (sequence, route) = self.desk().outstanding.fail(topic)?;
        Some(Failure { sequence, route, topic: topic.to_string(), code })
    }

    /// What brokers have answered to the last batch for that topic, if it was not taken: in librdkafka's words, and how
    /// often in a row.
    pub(super) fn refusal(&self, topic: &str) -> Option<(String, u32)> {
        self.context.librdkafka_log().refusal(topic)
    }

    /// When a connection of this producer last failed.
    pub(super) fn last_remark(&self) -> Option<Instant> {
        self.context.librdkafka_log().remarked()
    }

    /// What is in the way of the registration, since when.
    pub(super) fn registration_problem(&self) -> Option<(RegistrationProblem, Instant)> {
        self.context.librdkafka_log().registration_problem()
    }

    /// Events of the open transaction.
    pub(super) fn uncommitted(&self) -> usize {
        self.desk().outstanding.uncommitted()
    }

    /// Events that came behind the oldest one in flight, and have their fate, are remembered, so that a restart leaves
    /// them out. With so many of them the reader has to wait for that one.
    pub(super) fn remembers_too_much(&self) -> bool {
        self.desk().outstanding.remembered() >= MOST_REMEMBERED
    }

    /// Has that event, sent by this producer, come back?
    pub(super) fn has_come_back(&self, sequence: Sequence) -> bool {
        self.desk().outstanding.has_come_back(sequence)
    }

    /// A failed event got its fate.
    pub(super) fn settle_failed(&self, sequence: Sequence) {
        self.desk().outstanding.settle_failed(sequence);
    }

    /// Gives up what is not settled and says where sending starts again; the producer itself goes on.
    pub(super) fn give_up(&self) -> Restart {
        self.desk().outstanding.give_up()
    }

    /// A fatal error was raised: this producer sends no more.
    pub(super) fn fatal(&self) -> Option<(Code, String)> {
        self.native.producer.client().fatal_error()
    }

    /// Hands back what is queued and not sent, as failures; they come with the next poll.
    pub(super) fn purge_queue(&self) {
        self.native.producer.purge(PurgeConfig::default().queue().non_blocking());
    }

    /// Cluster metadata has been received since this producer was made. Does not ask and does not wait.
    pub(super) fn has_met_a_broker(&self) -> bool {
        self.native.producer.client().fetch_cluster_id(Duration::ZERO).is_some()
    }

    /// Asks the brokers what these topics are like, beside the loop.
    pub(super) fn look(&self, topics: Vec<Arc<str>>) -> std::io::Result<Call<Answers>> {
        let native = Arc::clone(&self.native);
        Call::begin("kafka look", &self.wake, move || {
            let client = native.producer.client();
            topics.into_iter().map(|topic| (Arc::clone(&topic), topic_state::look(client, &topic, ASK_WAIT))).collect()
        })
    }

    /// How long a broker takes to answer, beside the loop; it is not waited for longer than for any answer. `None`: there is
    /// none yet.
    pub(super) fn round_trip(&self, topic: &Arc<str>) -> std::io::Result<Call<Option<Duration>>> {
        let (native, topic, met) = (Arc::clone(&self.native), Arc::clone(topic), self.has_met_a_broker());
        Call::begin("kafka link", &self.wake, move || {
            let look = || topic_state::look(native.producer.client(), &topic, ASK_WAIT);
            // The first answer takes a connection along.
            (met || !matches!(look(), Found::Silent(_))).then(|| {
                let asked = Instant::now();
                look();
                asked.elapsed()
            })
        })
    }

    /// Ends it. What is in flight comes back as reports (it may be in Kafka all the same). Nothing more of what is queued
    /// is sent; the rest of the end is done elsewhere.
    pub(super) fn retire(self) -> (Reports, Restart) {
        self.native.producer.purge(PurgeConfig::default().queue().inflight().non_blocking());
        let until = Instant::now().checked_add(GIVE_BACK);
        self.poll(Duration::ZERO);
        while self.in_flight().0 > 0 && until.is_some_and(|until| Instant::now() < until) {
            self.poll(Duration::from_millis(1));
        }
        let mut desk = self.desk();
        (std::mem::take(&mut desk.reports), desk.outstanding.give_up())
    }

    /// `init_transactions`, for so long; goes on where the last call left off.
    pub(super) fn register(&self, wait: Duration) -> KafkaResult<()> {
        self.native.producer.init_transactions(wait)
    }

    /// `begin_transaction`.
    pub(super) fn begin(&self) -> KafkaResult<()> {
        self.forget_transaction();
        self.native.producer.begin_transaction()
    }

    /// A record for the watermark topic, into the open transaction. All data records' reports are there.
    pub(super) fn seal(
        &self,
        topic: &str,
        partition: i32,
        key: &str,
        value: &str,
        timestamp_ms: i64,
    ) -> Result<(), Code> {
        let record = BaseRecord::with_opaque_to(topic, 0).partition(partition).key(key).payload(value);
        self.send_seal(record.timestamp(timestamp_ms.max(1)))
    }

    /// Asks for Kafka's time: a record without a value for the watermark topic, which compaction takes away again. Not in
    /// a transaction, and with nothing in flight; [`Producer::sealed`] says when [`Producer::told`] has the answer.
    pub(super) fn ask_the_time(&self, topic: &str, key: &str, timestamp_ms: i64) -> Result<(), Code> {
        self.desk().seals = Seals::default();
        let record: BaseRecord<'_, str, str, usize> = BaseRecord::with_opaque_to(topic, 0).key(key);
        self.send_seal(record.timestamp(timestamp_ms.max(1)))
    }

    fn send_seal(&self, record: BaseRecord<'_, str, str, usize>) -> Result<(), Code> {
        {
            let mut desk = self.desk();
            desk.seals.in_flight += 1;
        }
        self.native.producer.send(record).map_err(|(error, _record)| {
            self.desk().seals.in_flight = 0;
            code_of(&error)
        })
    }

    /// What Kafka's clock said when it wrote the last record of the watermark topic, and the time since boot when that was
    /// heard; `None`: the topic's records bear the sender's time.
    pub(super) fn told(&self) -> Option<(i64, i64)> {
        self.desk().seals.told
    }

    /// Are the seals' reports there? `Err`: one of them was not taken.
    pub(super) fn sealed(&self) -> Result<bool, Code> {
        let desk = self.desk();
        desk.seals.failure.map_or(Ok(desk.seals.in_flight == 0), Err)
    }

    /// What was acknowledged in the open transaction; it is to be committed now.
    pub(super) fn take_batch(&self) -> Batch {
        std::mem::take(&mut self.desk().batch)
    }

    /// Commits for so long; goes on where the last call left off.
    pub(super) fn commit(&self, batch: Batch, wait: Duration) -> Result<Vec<Delivered>, (Batch, KafkaError)> {
        let proofs = batch.commit(&self.native.producer, wait)?;
        self.desk().outstanding.committed();
        Ok(proofs)
    }

    /// What librdkafka's log has said about the last commit.
    pub(super) fn end_txn(&self) -> MutexGuard<'_, EndTxn> {
        self.context.end_txn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `abort_transaction`, for so long, beside the loop: it waits for every broker's thread. What was acknowledged is
    /// forgotten. The reports that it waits for come by [`Producer::poll`].
    pub(super) fn abort(&self, wait: Duration) -> std::io::Result<Call<KafkaResult<()>>> {
        self.forget_transaction();
        let native = Arc::clone(&self.native);
        Call::begin("kafka abort", &self.wake, move || native.producer.abort_transaction(wait))
    }

    fn forget_transaction(&self) {
        let mut desk = self.desk();
        desk.batch = Batch::default();
        desk.seals = Seals::default();
        drop(desk);
    }

    fn desk(&self) -> MutexGuard<'_, Desk> {
        self.context.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Longest wait for a broker's answer to "are you there?" and "what is that topic like?", a connection included.
const ASK_WAIT: Duration = Duration::from_secs(5);

/// What librdkafka gives back of a producer that ends is there after a millisecond; from a broker whose name is being
/// looked up it may come much later, and is not waited for.
const GIVE_BACK: Duration = Duration::from_millis(100);

/// 65,536 entries of 24 bytes are 1.5 MB; a transaction has at most 20,000.
const MOST_REMEMBERED: usize = 1 << 16;

/// One poll does not keep the loop from its other work for ever.
const MOST_EVENTS_A_POLL: usize = 1_000;

/// Does that line of librdkafka's log say that a request with readings was sent, wholly or in part, and not answered in
/// time? The delivery report says only that time is over, and that is so as well where a partition has no leader.
fn is_overdue(facility: &str, line: &str) -> bool {
    let in_part = || line.ends_with(" partially-sent requests") && !line.ends_with(" 0 partially-sent requests");
    facility == "REQTMOUT" && (line.contains("Timed out ProduceRequest in flight") || in_part())
}

impl Context {
    fn librdkafka_log(&self) -> MutexGuard<'_, LibrdkafkaLog> {
        self.librdkafka_log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        self.heard.fetch_add(1, Ordering::Relaxed);
        if is_overdue(facility, line) {
            self.overdue.store(true, Ordering::Relaxed);
        }
        if self.transactional {
            self.end_txn.lock().unwrap_or_else(PoisonError::into_inner).hear(facility, line);
            if let Some(topic) = librdkafka_log::forbidden_topic(facility, line) {
                self.desk.lock().unwrap_or_else(PoisonError::into_inner).forbidden(topic);
            }
        }
        self.librdkafka_log().hear(facility, line, Instant::now());
        // librdkafka has a line for each attempt at each broker. What matters comes through `error`.
        tracing::debug!(target: "librdkafka", ?level, facility, line);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.heard.fetch_add(1, Ordering::Relaxed);
        // A request that is too long for the link is no sign that a broker cannot be reached.
        if !reason.contains("request(s) timed out") {
            self.librdkafka_log().remark(Instant::now());
        }
        self.remarks.lock().unwrap_or_else(PoisonError::into_inner).hear(code_of(&error), reason);
    }

    fn stats_raw(&self, _statistics: &[u8]) {}
}

impl ProducerContext for Context {
    type DeliveryOpaque = usize;

    fn delivery(&self, report: &DeliveryResult<'_>, slot: usize) {
        self.heard.fetch_add(1, Ordering::Relaxed);
        let mut desk = self.desk.lock().unwrap_or_else(PoisonError::into_inner);
        if desk.seals.in_flight > 0 {
            desk.seals.in_flight -= 1;
            match report {
                Ok(message) => {
                    if let Timestamp::LogAppendTime(told_ms) = message.timestamp() {
                        desk.seals.told = Some((told_ms, clock::uptime_ms()));
                    }
                }
                Err((error, _)) => drop(desk.seals.failure.get_or_insert(code_of(error))),
            }
            return;
        }
        let Ok(slot) = u32::try_from(slot) else { return };
        let Some((sequence, route)) = desk.outstanding.event(slot) else { return };
        if let Ok(message) = report {
            self.librdkafka_log().taken(message.topic());
        }
        if self.transactional {
            match Acked::reported(report, sequence, route) {
                Ok(acked) => {
                    desk.outstanding.report(slot, outstanding::Verdict::Acked);
                    desk.reports.acked += 1;
                    desk.batch.push(acked);
                }
                Err(error) => desk.failed(slot, report, (sequence, route), &error),
            }
            return;
        }
        // custody rule 2: the proof is made from Kafka's own report and from nothing else.
        match Delivered::confirmed(report, sequence, route) {
            Ok(proof) => {
                desk.outstanding.report(slot, outstanding::Verdict::Confirmed);
                desk.reports.confirmed.push(proof);
            }
            Err(error) => desk.failed(slot, report, (sequence, route), &error),
        }
    }
}

impl Desk {
    /// A topic that may not be written in a transaction. The reports of its records say only that they were purged.
    fn forbidden(&mut self, topic: &str) {
        if self.seals.in_flight == 0 {
            let (sequence, route, topic) = (0, RouteId::UNROUTED, topic.to_owned());
            self.reports.failures.push(Failure { sequence, route, topic, code: Code::TopicAuthorizationFailed });
        }
    }

    fn failed(
        &mut self,
        slot: u32,
        report: &DeliveryResult<'_>,
        (sequence, route): (Sequence, RouteId),
        error: &KafkaError,
    ) {
        self.outstanding.report(slot, outstanding::Verdict::Failed);
        let (Ok(message) | Err((_, message))) = report;
        let topic = message.topic().to_owned();
        self.reports.failures.push(Failure { sequence, route, topic, code: code_of(error) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_sent_is_overdue() {
        let sent = "[thrd:x]: x/1: Timed out ProduceRequest in flight (after 14900ms, timeout #0)";
        let parts =
            |parts| format!("Timed out 0 in-flight, 0 retry-queued, 1 out-queue, {parts} partially-sent requests");
        assert!(is_overdue("REQTMOUT", sent) && is_overdue("REQTMOUT", &parts(1)));
        assert!(!is_overdue("REQTMOUT", &parts(0)) && !is_overdue("FAIL", sent));
        assert!(!is_overdue("REQTMOUT", "x/1: Timed out MetadataRequest in flight (after 60000ms, timeout #0)"));
    }

    #[test]
    fn one_poll_takes_all_that_librdkafka_has_to_say() {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", "127.0.0.1:1").set("transactional.id", "t");
        config.set("debug", "eos").set_log_level(RDKafkaLogLevel::Debug);
        let clients = Clients::new(Wake::default()).unwrap();
        let producer = Producer::new(&config, &clients, clients.slot().unwrap()).unwrap();
        // Each call leaves at least two lines in the log.
        for _ in 0..10 {
            producer.register(Duration::from_millis(1)).unwrap_err();
        }
        producer.poll(Duration::ZERO);
        let heard = producer.context.heard.load(Ordering::Relaxed);
        assert!(heard >= 20, "one poll took {heard} events");
    }
}
