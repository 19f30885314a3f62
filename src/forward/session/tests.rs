//! What the session decides, row by row of the recovery table: librdkafka's own answers, to what an imitation of Kafka
//! is made to say. Time-outs are passed by telling the session a later time.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use rdkafka::message::OwnedHeaders;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use rdkafka::types::{RDKafkaApiKey as Api, RDKafkaErrorCode as Code, RDKafkaRespErr as Resp};
use uuid::Uuid;

use super::{LAST_LINE, Session, Step, TransactionContext, Waits};
use crate::buffer::{Instances, PastInstance};
use crate::clock;
use crate::delivered::CommittedWatermark;
use crate::event::RouteId;
use crate::forward::clients::{Clients, Wake};
use crate::forward::end_txn::EndTxn;
use crate::forward::options;
use crate::forward::producer::{Outgoing, Producer};
use crate::forward::transaction::State;
use crate::forward::watermark_topic::Partitions;
use crate::route::{Target, ValueFormat};
use crate::settings;
use crate::settings::kafka::KafkaKeys;
use crate::watermark::{Instance, Record};

/// Only a failing test waits so long.
const PATIENCE: Duration = Duration::from_secs(60);

/// `transaction.timeout.ms`.
const TRANSACTION: Duration = Duration::from_secs(15);

/// Beyond a time-out.
const MOMENT: Duration = Duration::from_millis(1);

const PRESENT: Instance = Instance(1);

/// Of a buffer whose earlier starts are 2 and 3.
pub(in crate::forward) fn context(reader: rdkafka::ClientConfig) -> TransactionContext {
    let life = |instance, first, last, commit| PastInstance { instance: Instance(instance), first, last, commit };
    let instances = Instances::invented(PRESENT, 31, vec![life(2, 1, 20, 7), life(3, 21, 30, 9)]);
    let topic_is_right = Arc::new(AtomicBool::new(true));
    let clients = Clients::new(Wake::default()).unwrap();
    TransactionContext {
        reader,
        topic: "watermarks".into(),
        buffer_id: Uuid::from_u128(7),
        instances,
        topic_is_right,
        clients,
    }
}

/// A session with its producer, in front of an imitation of Kafka.
struct Bench {
    mock: MockCluster<'static, DefaultProducerContext>,
    producer: Producer,
    session: Session,
    /// How far the session's clock is ahead.
    ahead: Duration,
    next: u64,
}

impl Bench {
    /// Nothing was done yet, and nothing is in doubt.
    fn new() -> Self {
        let mock = MockCluster::new(1).unwrap();
        mock.create_topic("t", 1, 1).unwrap();
        mock.create_topic("watermarks", 1, 1).unwrap();
        let kafka = settings::Kafka {
            brokers: vec![mock.bootstrap_servers()],
            watermark_topic: "watermarks".to_owned(),
            linger: Duration::ZERO,
            compression: settings::Codec::Zstd,
            ..settings::example(KafkaKeys::TABLE, KafkaKeys::read).complete(1_000_000).unwrap()
        };
        let config = options::transactional(options::client_config(&kafka, "test"), "tidegate-test");
        let known = Some(Partitions { count: 1 });
        let context = context(config.clone());
        let producer = Producer::new(&config, &context.clients, context.clients.slot().unwrap()).unwrap();
        let session = Session::new(Arc::new(context), Vec::new(), known, TRANSACTION, Instant::now());
        Self { mock, producer, session, ahead: Duration::ZERO, next: 1 }
    }

    /// Registered: a transaction may begin.
    fn idle() -> Self {
        let mut bench = Self::new();
        bench.until("a start", |step| matches!(step, Step::Send));
        bench
    }

    /// With one record of an open transaction acknowledged.
    fn acked() -> Self {
        let mut bench = Self::idle();
        bench.fill(1);
        let begin = Instant::now();
        while bench.producer.in_flight().0 > 0 {
            assert!(begin.elapsed() < PATIENCE, "no report");
            bench.producer.poll(Duration::from_millis(2));
        }
        bench
    }

    fn refuse(&mut self) {
        assert!(self.refused(&[Code::InvalidRecord]));
        assert_eq!(self.session.state(), State::Aborting);
    }

    fn refused(&mut self, codes: &[Code]) -> bool {
        let now = self.now();
        self.session.refuse(&self.producer, codes.iter().copied(), now)
    }

    fn now(&self) -> Instant {
        Instant::now() + self.ahead
    }

    fn step(&mut self) -> Step {
        self.producer.poll(Duration::from_millis(2));
        self.session.step(&self.producer, self.now())
    }

    /// The first step that is wanted; until then there is nothing to do but wait.
    fn until(&mut self, what: &str, wanted: impl Fn(&Step) -> bool) -> Step {
        let begin = Instant::now();
        loop {
            let step = self.step();
            if wanted(&step) {
                return step;
            }
            assert!(matches!(step, Step::Wait), "{step:?} in place of {what}");
            assert!(begin.elapsed() < PATIENCE, "no {what}, but {:?}", self.session.state());
        }
    }

    /// It waits, for some turns.
    fn waits(&mut self, state: State) {
        for _ in 0..5 {
            let step = self.step();
            assert!(matches!(step, Step::Wait), "{step:?}");
            assert_eq!(self.session.state(), state);
        }
    }

    /// Why this producer is over. It stays so.
    fn lost(&mut self) -> Code {
        let Step::Lost(code, _) = self.until("the end of this producer", |step| matches!(step, Step::Lost(..))) else {
            unreachable!()
        };
        assert_eq!(self.session.state(), State::Over);
        assert!(matches!(self.step(), Step::Lost(Code::State, _)));
        code
    }

    /// Opens a transaction with so many records.
    fn fill(&mut self, records: u64) {
        self.session.begin(&self.producer).unwrap();
        let target = Target { topic: "t".into(), key: "k".into(), value: ValueFormat::Payload, is_fixed: true };
        for _ in 0..records {
            let outgoing = Outgoing {
                sequence: self.next,
                route: RouteId(1),
                target: &target,
                headers: OwnedHeaders::new(),
                value: b"v",
                timestamp_ms: 1,
                cost_bytes: 1,
            };
            self.producer.send(outgoing).unwrap();
            self.next += 1;
        }
    }

    /// ... up to the watermark, whose report is not there yet.
    fn seal(&mut self) {
        let now = self.now();
        self.session.close(now);
        self.until("all reports", |step| matches!(step, Step::Seal));
        let failures = self.producer.reports().failures;
        assert!(failures.is_empty(), "{failures:?}");
        let record =
            Record::Main { instance: PRESENT, delivered: self.next - 1, commit: 0, unread: Vec::new(), at_ms: 1 };
        self.session.seal(&self.producer, &[record], clock::wall_ms(), now).unwrap();
        assert_eq!(self.session.state(), State::Sealing);
    }

    /// ... whose report is there.
    fn reported(&mut self) {
        self.seal();
        let begin = Instant::now();
        while self.producer.sealed() == Ok(false) {
            assert!(begin.elapsed() < PATIENCE, "no report of the watermark");
            self.producer.poll(Duration::from_millis(2));
        }
    }

    /// The sequences that are proven.
    fn committed(&mut self) -> Vec<u64> {
        let Step::Committed(proofs, _) = self.until("a commit", |step| matches!(step, Step::Committed(..))) else {
            unreachable!()
        };
        assert_eq!(self.session.state(), State::Proving);
        proofs.iter().map(crate::delivered::Delivered::sequence).collect()
    }

    /// Waits until librdkafka has said all about the last end, and makes it say this instead.
    fn heard(&mut self, heard: EndTxn) {
        let begin = Instant::now();
        while !self.producer.end_txn().complete {
            assert!(begin.elapsed() < PATIENCE, "the log does not tell of the end");
            self.producer.poll(Duration::from_millis(2));
        }
        *self.producer.end_txn() = heard;
    }
}

#[test]
fn a_transaction_proves_what_it_carried_and_the_next_one_goes_by_the_same_producer() {
    let mut bench = Bench::idle();
    for sequences in [vec![1, 2, 3], vec![4, 5, 6]] {
        bench.fill(3);
        bench.seal();
        assert_eq!(bench.committed(), sequences);
        bench.until("the next", |step| matches!(step, Step::Send));
        assert_eq!(bench.session.state(), State::Idle);
    }
}

#[test]
fn a_start_waits_for_a_broker_and_for_a_coordinator_that_is_loading() {
    let mut bench = Bench::new();
    bench.mock.broker_down(-1).unwrap();
    bench.waits(State::Starting);
    let loading = Resp::RD_KAFKA_RESP_ERR_COORDINATOR_LOAD_IN_PROGRESS;
    bench.mock.request_errors(Api::InitProducerId, &[loading, loading]);
    bench.mock.broker_up(-1).unwrap();
    bench.until("a start", |step| matches!(step, Step::Send));
    assert_eq!(bench.session.state(), State::Idle);
}

#[test]
fn a_start_that_kafka_will_never_allow_ends_this_producer_with_kafkas_reason() {
    for (error, code) in [
        (Resp::RD_KAFKA_RESP_ERR_TRANSACTIONAL_ID_AUTHORIZATION_FAILED, Code::TransactionalIdAuthorizationFailed),
        (Resp::RD_KAFKA_RESP_ERR_INVALID_TRANSACTION_TIMEOUT, Code::InvalidTransactionTimeout),
    ] {
        let mut bench = Bench::new();
        bench.mock.request_errors(Api::InitProducerId, &[error; 20]);
        assert_eq!(bench.lost(), code);
    }
}

#[test]
fn reports_that_do_not_come_end_the_producer_before_anything_is_sealed() {
    let mut bench = Bench::idle();
    bench.fill(1);
    bench.mock.broker_down(-1).unwrap();
    let now = bench.now();
    bench.session.close(now);
    bench.waits(State::Closing);
    bench.ahead = Waits::of(TRANSACTION).reports + MOMENT;
    assert_eq!(bench.lost(), Code::RequestTimedOut);
}

#[test]
fn a_watermark_that_is_refused_or_not_answered_is_never_committed() {
    let mut bench = Bench::idle();
    bench.fill(1);
    let now = bench.now();
    bench.session.close(now);
    bench.until("all reports", |step| matches!(step, Step::Seal));
    bench.mock.request_errors(Api::Produce, &[Resp::RD_KAFKA_RESP_ERR_INVALID_RECORD]);
    let record = Record::Main { instance: PRESENT, delivered: 1, commit: 0, unread: Vec::new(), at_ms: 1 };
    bench.session.seal(&bench.producer, &[record], clock::wall_ms(), now).unwrap();
    assert_eq!(bench.lost(), Code::InvalidRecord);

    let mut bench = Bench::idle();
    bench.fill(1);
    let now = bench.now();
    bench.session.close(now);
    bench.until("all reports", |step| matches!(step, Step::Seal));
    bench.mock.broker_down(-1).unwrap();
    let record = Record::Main { instance: PRESENT, delivered: 1, commit: 0, unread: Vec::new(), at_ms: 1 };
    bench.session.seal(&bench.producer, &[record], clock::wall_ms(), now).unwrap();
    bench.waits(State::Sealing);
    bench.ahead = Waits::of(TRANSACTION).reports + MOMENT;
    assert_eq!(bench.lost(), Code::RequestTimedOut);
}

#[test]
fn an_end_of_transaction_that_had_to_be_sent_again_is_a_commit_and_the_end_of_this_producer() {
    for error in [
        Resp::RD_KAFKA_RESP_ERR_CONCURRENT_TRANSACTIONS,
        Resp::RD_KAFKA_RESP_ERR_COORDINATOR_LOAD_IN_PROGRESS,
        Resp::RD_KAFKA_RESP_ERR_NOT_COORDINATOR,
    ] {
        let mut bench = Bench::idle();
        bench.fill(2);
        bench.reported();
        bench.mock.request_errors(Api::EndTxn, &[error]);
        assert_eq!(bench.committed(), [1, 2], "{error:?}");
        bench.until("a new producer", |step| matches!(step, Step::Retried));
        assert_eq!(bench.session.state(), State::Over, "{error:?}");
    }
}

#[test]
fn a_commit_that_kafka_refuses_proves_nothing_and_ends_this_producer() {
    for (error, code) in [
        (Resp::RD_KAFKA_RESP_ERR_INVALID_PRODUCER_EPOCH, Code::Fenced),
        (Resp::RD_KAFKA_RESP_ERR_PRODUCER_FENCED, Code::Fenced),
        (Resp::RD_KAFKA_RESP_ERR_TRANSACTIONAL_ID_AUTHORIZATION_FAILED, Code::TransactionalIdAuthorizationFailed),
        (Resp::RD_KAFKA_RESP_ERR_INVALID_TXN_STATE, Code::InvalidTransactionalState),
    ] {
        let mut bench = Bench::idle();
        bench.fill(1);
        bench.reported();
        bench.mock.request_errors(Api::EndTxn, &[error; 20]);
        assert_eq!(bench.lost(), code, "{error:?}");
    }
}

#[test]
fn a_commit_without_a_link_is_asked_for_until_kafka_answers() {
    let mut bench = Bench::idle();
    bench.fill(2);
    bench.reported();
    bench.mock.broker_down(-1).unwrap();
    bench.waits(State::Committing);
    bench.ahead = Waits::of(TRANSACTION).commit / 2;
    bench.waits(State::Committing);
    bench.mock.broker_up(-1).unwrap();
    assert_eq!(bench.committed(), [1, 2]);
}

#[test]
fn a_commit_that_stays_in_doubt_until_kafka_has_decided_proves_nothing() {
    let mut bench = Bench::idle();
    bench.fill(2);
    bench.reported();
    bench.mock.broker_down(-1).unwrap();
    bench.waits(State::Committing);
    bench.ahead = Waits::of(TRANSACTION).commit + MOMENT;
    assert_eq!(bench.lost(), Code::OperationTimedOut);
}

#[test]
fn a_refused_transaction_is_aborted_without_proof_and_another_one_may_begin() {
    let mut bench = Bench::idle();
    bench.mock.request_errors(Api::Produce, &[Resp::RD_KAFKA_RESP_ERR_INVALID_RECORD]);
    bench.fill(1);
    let begin = Instant::now();
    while bench.producer.reports().failures.is_empty() {
        assert!(begin.elapsed() < PATIENCE, "no refusal");
        bench.producer.poll(Duration::from_millis(2));
    }
    bench.refuse();
    bench.until("the abort", |step| matches!(step, Step::Aborted));
    bench.until("the next", |step| matches!(step, Step::Send));
    assert_eq!(bench.session.state(), State::Idle);
}

/// The imitation does not take a producer's new epoch, so that what is aborted here was not refused record by record.
#[test]
fn what_was_acknowledged_in_an_aborted_transaction_is_not_proven_by_the_next_one() {
    let mut bench = Bench::acked();
    bench.refuse();
    bench.until("the abort", |step| matches!(step, Step::Aborted));
    bench.until("the next", |step| matches!(step, Step::Send));
    bench.producer.give_up();
    bench.fill(1);
    bench.seal();
    assert_eq!(bench.committed(), [2]);
}

#[test]
fn only_an_open_transaction_is_aborted_and_only_when_every_refusal_is_understood() {
    let mut bench = Bench::idle();
    assert!(!bench.refused(&[Code::InvalidRecord]), "none is open");
    bench.fill(1);
    assert!(!bench.refused(&[Code::InvalidRecord, Code::InvalidProducerEpoch]), "the producer may be fenced");
    assert!(!bench.refused(&[Code::MessageTimedOut]), "what timed out may be in Kafka");
    assert_eq!(bench.session.state(), State::Filling);
    bench.seal();
    assert!(!bench.refused(&[Code::InvalidRecord]), "its watermark is on its way");
    bench.committed();
    assert!(!bench.refused(&[Code::InvalidRecord]), "it is committed");
    assert_eq!(bench.session.state(), State::Proving);
}

#[test]
fn an_abort_that_kafka_refuses_or_does_not_answer_ends_this_producer() {
    let mut bench = Bench::acked();
    bench.mock.request_errors(Api::EndTxn, &[Resp::RD_KAFKA_RESP_ERR_INVALID_PRODUCER_EPOCH; 20]);
    bench.refuse();
    assert_eq!(bench.lost(), Code::Fenced);

    let mut bench = Bench::acked();
    bench.mock.broker_down(-1).unwrap();
    bench.refuse();
    bench.waits(State::Aborting);
    bench.ahead = Waits::of(TRANSACTION).abort + MOMENT;
    assert_eq!(bench.lost(), Code::OperationTimedOut);
}

#[test]
fn what_the_log_says_of_an_end_decides_whether_the_producer_goes_on() {
    let after_a_commit = |heard| {
        let mut bench = Bench::idle();
        bench.fill(1);
        bench.seal();
        bench.committed();
        bench.heard(heard);
        bench
    };
    let mut bench = after_a_commit(EndTxn { retried: false, complete: true });
    assert!(matches!(bench.step(), Step::Send));
    assert_eq!(bench.session.state(), State::Idle);

    let mut bench = after_a_commit(EndTxn { retried: true, complete: true });
    assert!(matches!(bench.step(), Step::Retried));
    assert_eq!(bench.session.state(), State::Over);

    // Not all was heard: the line that tells of a retry may still come. When none comes, it is taken as given.
    let mut bench = after_a_commit(EndTxn::default());
    bench.waits(State::Proving);
    bench.ahead = LAST_LINE + MOMENT;
    assert!(matches!(bench.step(), Step::Retried));
    assert_eq!(bench.session.state(), State::Over);
}

#[test]
fn a_watermark_is_ours_only_from_a_start_of_ours_and_no_higher_than_that_start_can_have_said() {
    let context = context(rdkafka::ClientConfig::new());
    let ours = |instance, through, commit| {
        context.is_ours(&CommittedWatermark::forged(through, Instance(instance)).resting_on(commit), 10)
    };
    let cases = [
        ((1, 10, 11), true),
        ((1, 11, 0), false), // the present start has not said so much: a copy of this very process's memory
        ((2, 20, 7), true),
        ((2, 21, 0), false), // an earlier start that went on elsewhere: a restored copy
        ((2, 19, 8), false), // it has put something aside since, and that is not on this disk
        ((3, 21, 8), true),
        ((4, 1, 0), false), // nobody we know: a duplicate identity
    ];
    for ((instance, through, commit), expected) in cases {
        assert_eq!(ours(instance, through, commit), expected, "{through} of {instance}, resting on {commit}");
    }
}
