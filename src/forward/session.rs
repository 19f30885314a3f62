//! The transactions of one producer: does what `transaction.rs` allows, one short step at a time.
//!
//! A lane owns its session as it owns its producer, one for one. It asks [`Session::step`] what to do next at every turn
//! of the loop; no step blocks for longer than [`SLICE`], so that the loop beats its pulse and hears a stop.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::types::RDKafkaErrorCode as Code;
use uuid::Uuid;

use super::clients::{Call, Clients};
use super::librdkafka_log::RegistrationProblem;
use super::producer::Producer;
use super::transaction::{Move, State};
use super::verdict::{Verdict, code_of, verdict};
use super::watermark_reader::{FoundWatermarks, Question, Trouble, WatermarkReader};
use super::watermark_topic::Partitions;
use crate::buffer::Instances;
use crate::delivered::{Batch, CommittedWatermark, Delivered};
use crate::event::Sequence;
use crate::planted::{self, Bug, planted};
use crate::watermark::{self, Record};

/// One call of `init_transactions`, `commit_transaction` or `abort_transaction` blocks the loop no longer.
const SLICE: Duration = Duration::from_millis(100);

/// For the last log line of a commit, which is there within a millisecond. Without it the retry is taken as given.
const LAST_LINE: Duration = Duration::from_secs(1);

/// What a session waits for, all of it in proportion to the producer's `transaction.timeout.ms`.
#[derive(Debug, Clone, Copy)]
struct Waits {
    /// `transaction.timeout.ms`.
    transaction: Duration,
    /// An abort that is not through after this time is left to the next producer's `init_transactions`.
    abort: Duration,
    /// After a transaction is closed, its reports must be there in this time: `message.timeout.ms` ends them before.
    reports: Duration,
    /// A commit in doubt is asked for so long: Kafka has decided by then.
    commit: Duration,
}

impl Waits {
    fn of(transaction: Duration) -> Self {
        let times = |factor| transaction.mul_f64(factor);
        Self { transaction, abort: times(0.33), reports: times(1.33), commit: times(2.0) }
    }
}

/// Kafka ends a transaction within a second or two, unless one of its partitions takes nothing: then it may be days, and
/// another name is taken (`options.rs`).
const STILL_OPEN: Duration = Duration::from_secs(8);

/// What all sessions of this process have in common.
#[derive(Debug)]
pub(super) struct TransactionContext {
    /// For consumers.
    pub(super) reader: ClientConfig,
    /// The watermark topic.
    pub(super) topic: Arc<str>,
    /// Whose watermarks.
    pub(super) buffer_id: Uuid,
    /// Who writes them, and who has.
    pub(super) instances: Instances,
    /// The watermark topic was found to be compacted.
    pub(super) topic_is_right: Arc<AtomicBool>,
    /// Of this process.
    pub(super) clients: Clients,
}

impl TransactionContext {
    /// May a watermark bear the present start's instance? Not before that is on disk: after the next start it would be
    /// somebody else's.
    pub(super) fn may_speak(&self) -> bool {
        self.instances.is_written() || planted(Bug::SpeakUnwritten)
    }

    /// Was it written by a start of this agent on this buffer, can it have been, and is all on this disk that it rests on?
    /// `most` is what the present start can have said.
    pub(super) fn is_ours(&self, watermark: &CommittedWatermark, most: Sequence) -> bool {
        if watermark.instance() == self.instances.present {
            return watermark.through() <= most;
        }
        let of_it = self.instances.earlier.iter().find(|life| life.instance == watermark.instance());
        of_it.is_some_and(|life| watermark.through() <= life.last && watermark.commit() <= life.commit)
    }
}

/// See the documentation of the module.
pub(super) struct Session {
    context: Arc<TransactionContext>,
    state: State,
    lanes: Vec<Arc<str>>,
    watermark_reader: Option<WatermarkReader>,
    /// An abort that is under way.
    aborting: Option<Call<KafkaResult<()>>>,
    /// Known when no watermark needs to be read.
    partitions: Option<Partitions>,
    batch: Option<Batch>,
    /// When the present transaction was closed.
    closed: Instant,
    waits: Waits,
    /// What the present state waits for comes until then, or never.
    until: Instant,
}

/// What is to be done next.
#[derive(Debug)]
pub(super) enum Step {
    /// Nothing but wait.
    Wait,
    /// The watermark is known.
    Known(FoundWatermarks),
    /// Records may be sent.
    Send,
    /// All reports of data records are Ok: give it the watermark with [`Session::seal`].
    Seal,
    /// Committed; how long it took from the last data record's being sent.
    Committed(Vec<Delivered>, Duration),
    /// Aborted: what was sent goes again.
    Aborted,
    /// `EndTxn` was sent twice: nothing is in doubt, but the next transaction needs a new producer.
    Retried,
    /// This producer is over; what it had sent and not committed goes again, after the watermark was read.
    Lost(Code, String),
}

impl Session {
    /// Of a new producer. With `known`, nothing is in doubt: the last producer's last transaction was committed or
    /// aborted for certain. `lanes` are the Kafka topics whose lanes hold events, as far as they are of interest.
    /// `timeout` is the producer's `transaction.timeout.ms`.
    pub(super) fn new(
        context: Arc<TransactionContext>,
        lanes: Vec<Arc<str>>,
        known: Option<Partitions>,
        timeout: Duration,
        now: Instant,
    ) -> Self {
        let (state, waits) = (State::Starting, Waits::of(timeout));
        Self {
            context,
            state,
            lanes,
            watermark_reader: None,
            aborting: None,
            partitions: known,
            batch: None,
            closed: now,
            waits,
            until: now,
        }
    }

    /// Where it is.
    pub(super) fn state(&self) -> State {
        self.state
    }

    /// When the present transaction was closed.
    pub(super) fn closed(&self) -> Instant {
        self.closed
    }

    /// `transaction.timeout.ms` of its producer.
    pub(super) fn timeout(&self) -> Duration {
        self.waits.transaction
    }

    /// What is in the way of a start.
    pub(super) fn trouble(&self) -> Trouble {
        self.watermark_reader.as_ref().map(WatermarkReader::trouble).unwrap_or_default()
    }

    /// Known once the watermark topic was read.
    pub(super) fn partitions(&self) -> Option<Partitions> {
        self.partitions
    }

    /// Does what can be done, and says what the lane has to do.
    pub(super) fn step(&mut self, producer: &Producer, now: Instant) -> Step {
        match self.state {
            State::Starting => self.register(producer, now),
            State::Recovering => self.watermarks_found(),
            State::Idle | State::Filling => Step::Send,
            State::Closing if producer.in_flight().0 == 0 => Step::Seal,
            State::Closing => self.wait_for("reports", now),
            State::Sealing => match producer.sealed() {
                Ok(false) => self.wait_for("the watermark's report", now),
                Ok(true) => {
                    self.went(Move::Reported);
                    *producer.end_txn() = super::end_txn::EndTxn::default();
                    let batch = producer.take_batch();
                    // The planted bug has taken them already.
                    let carries_readings = !batch.is_empty() || planted(Bug::CursorBeforeCommit);
                    self.batch = Some(batch);
                    self.until = later(now, self.waits.commit);
                    if carries_readings {
                        planted::die(Bug::DieCommitting);
                    }
                    self.commit(producer, now)
                }
                Err(code) => self.lost(code, "the watermark was refused".to_owned()),
            },
            State::Committing => self.commit(producer, now),
            State::Proving => self.prove(producer, now),
            State::Aborting => self.abort(producer, now),
            State::Over => Step::Lost(Code::State, "the producer failed".to_owned()),
        }
    }

    /// Opens a transaction unless one is open.
    pub(super) fn begin(&mut self, producer: &Producer) -> Result<(), KafkaError> {
        if self.state == State::Idle {
            producer.begin()?;
            self.went(Move::Begun);
        }
        Ok(())
    }

    /// No more records go into the present transaction.
    pub(super) fn close(&mut self, now: Instant) {
        self.went(Move::Closed);
        self.closed = now;
        self.until = later(now, self.waits.reports);
    }

    /// Puts the watermark, and what else is to be said, into the transaction (rule A: only now, custody rule 3).
    /// `at_ms` is the time that they bear.
    pub(super) fn seal(
        &mut self,
        producer: &Producer,
        records: &[Record],
        at_ms: i64,
        now: Instant,
    ) -> Result<(), Code> {
        let TransactionContext { topic, buffer_id, .. } = &*self.context;
        let partition = watermark::partition(*buffer_id, self.partitions.unwrap_or_default().count);
        #[cfg(feature = "planted")]
        if planted(Bug::WatermarkOutside) {
            outside(&self.context, partition, records);
            self.went(Move::Sealed);
            return Ok(());
        }
        for record in records {
            producer.seal(topic, partition, &record.key(*buffer_id), &record.value(), at_ms)?;
        }
        self.went(Move::Sealed);
        self.until = later(now, self.waits.reports);
        Ok(())
    }

    /// Kafka refused records of the open transaction with these codes. False: none is open, or this producer can do
    /// nothing more, not even abort.
    pub(super) fn refuse(&mut self, producer: &Producer, mut codes: impl Iterator<Item = Code>, now: Instant) -> bool {
        let is_open = matches!(self.state, State::Filling | State::Closing);
        if !is_open || producer.fatal().is_some() || codes.any(|code| verdict(code) == Verdict::NewProducer) {
            return false;
        }
        self.went(Move::Refused);
        *producer.end_txn() = super::end_txn::EndTxn::default();
        self.until = later(now, self.waits.abort);
        true
    }

    fn register(&mut self, producer: &Producer, now: Instant) -> Step {
        // It connects meanwhile; before a broker was met that would be one more client that tries in vain.
        if self.partitions.is_none() && self.watermark_reader.is_none() && producer.has_met_a_broker() {
            self.watermark_reader = self.ask();
        }
        match producer.register(SLICE) {
            Ok(()) => {
                planted::die(Bug::DieRecovering);
                self.went(Move::Registered);
                if self.partitions.is_some() {
                    self.went(Move::Known);
                    return Step::Send;
                }
                Step::Wait
            }
            Err(error) if is_retriable(&error) => match producer.registration_problem() {
                Some((RegistrationProblem::StillOpen, since)) if now.saturating_duration_since(since) > STILL_OPEN => {
                    let why = "Kafka has not ended the last transaction; the agent goes on under another \
                         transactional.id"
                        .to_owned();
                    self.lost(Code::ConcurrentTransactions, why)
                }
                Some(_) | None => Step::Wait,
            },
            Err(error) => self.lost(code_of(&error), words(&error)),
        }
    }

    /// `None`: there is no slot for more clients now.
    fn ask(&self) -> Option<WatermarkReader> {
        let TransactionContext { reader, topic, buffer_id, topic_is_right, clients, .. } = &*self.context;
        let slot = clients.slot()?;
        let (config, topic, lanes) = (reader.clone(), Arc::clone(topic), self.lanes.clone());
        let topic_is_right = Arc::clone(topic_is_right);
        let question = Question { config, topic, buffer_id: *buffer_id, lanes, topic_is_right };
        Some(WatermarkReader::begin(question, slot, clients.wake().clone()))
    }

    fn watermarks_found(&mut self) -> Step {
        if self.watermark_reader.is_none() {
            self.watermark_reader = self.ask();
        }
        let Some(watermark_reader) = &self.watermark_reader else { return Step::Wait };
        watermark_reader.registered();
        let Some(found) = watermark_reader.answer() else { return Step::Wait };
        self.watermark_reader = None;
        self.partitions = Some(found.partitions);
        self.went(Move::Known);
        Step::Known(found)
    }

    fn commit(&mut self, producer: &Producer, now: Instant) -> Step {
        let Some(batch) = self.batch.take() else { return self.lost(Code::State, "nothing to commit".to_owned()) };
        match producer.commit(batch, SLICE) {
            Ok(proofs) => {
                if !proofs.is_empty() {
                    planted::die(Bug::DieCommitted);
                }
                self.went(Move::Committed);
                self.until = later(now, LAST_LINE);
                Step::Committed(proofs, self.closed.elapsed())
            }
            Err((batch, error)) if is_retriable(&error) && now < self.until => {
                self.batch = Some(batch);
                Step::Wait
            }
            // Whether it is committed, the watermark will say.
            Err((_unproven, error)) => self.lost(code_of(&error), words(&error)),
        }
    }

    /// Rule B (custody rule 3).
    fn prove(&mut self, producer: &Producer, now: Instant) -> Step {
        let heard = *producer.end_txn();
        if !heard.complete && now < self.until {
            return Step::Wait;
        }
        if (heard.retried || !heard.complete) && !planted(Bug::KeepProducer) {
            self.went(Move::Retried);
            return Step::Retried;
        }
        self.went(Move::FirstEndTxn);
        Step::Send
    }

    fn abort(&mut self, producer: &Producer, now: Instant) -> Step {
        let Some(call) = &self.aborting else {
            match producer.abort(self.waits.abort) {
                Ok(call) => self.aborting = Some(call),
                Err(error) => return self.lost(Code::Fail, format!("a thread cannot be started: {error}")),
            }
            return Step::Wait;
        };
        let Some(answer) = call.answer() else {
            if now < self.until {
                return Step::Wait;
            }
            return self.lost(Code::OperationTimedOut, "Kafka did not answer in time: abort".to_owned());
        };
        self.aborting = None;
        match answer {
            Ok(()) => {
                self.went(Move::Aborted);
                self.until = later(now, LAST_LINE);
                Step::Aborted
            }
            Err(error) if is_retriable(&error) && now < self.until => Step::Wait,
            Err(error) => self.lost(code_of(&error), words(&error)),
        }
    }

    fn wait_for(&mut self, what: &str, now: Instant) -> Step {
        if now < self.until {
            Step::Wait
        } else {
            self.lost(Code::RequestTimedOut, format!("Kafka did not answer in time: {what}"))
        }
    }

    fn lost(&mut self, code: Code, detail: String) -> Step {
        self.went(Move::Lost);
        Step::Lost(code, detail)
    }

    fn went(&mut self, happened: Move) {
        self.state = self.state.after(happened).unwrap_or_else(|| {
            // A fault of ours: better a new producer than a transaction nobody understands.
            tracing::error!(state = ?self.state, ?happened, "kafka: a transaction is in a state that is not \
                 possible, which is a bug; the agent makes a new producer");
            State::Over
        });
    }
}

fn later(now: Instant, wait: Duration) -> Instant {
    now.checked_add(wait).unwrap_or(now)
}

/// The same call goes on with it.
fn is_retriable(error: &KafkaError) -> bool {
    matches!(error, KafkaError::Transaction(error) if error.is_retriable() && !error.is_fatal())
}

fn words(error: &KafkaError) -> String {
    if let KafkaError::Transaction(error) = error { error.string() } else { error.to_string() }
}

/// The planted bug: not a part of the transaction.
#[cfg(feature = "planted")]
fn outside(context: &TransactionContext, partition: i32, records: &[Record]) {
    use rdkafka::producer::{BaseProducer, BaseRecord, DefaultProducerContext, Producer as _};
    let Ok(other) = context.reader.create_with_context::<_, BaseProducer<_>>(DefaultProducerContext) else { return };
    for record in records {
        let (key, value) = (record.key(context.buffer_id), record.value());
        if other.send(BaseRecord::to(&context.topic).partition(partition).key(&key).payload(&value)).is_err() {
            return;
        }
    }
    other.flush(Duration::from_secs(5)).unwrap_or_default();
}

#[cfg(test)]
pub(in crate::forward) mod tests;
