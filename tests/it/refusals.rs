//! Whatever Kafka answers to a batch, nothing is lost, the order is kept, and no reading is blamed for its neighbours.
//! Real Kafka; the link in front of it answers some batches in Kafka's place, as a broker does that refuses them.

use crate::support::agent::{Build, Gateway};
use crate::support::client::{Connection, clean};
use crate::support::kafka::{self, unique_topic};
use crate::support::proxy::{Proxy, Refusal};
use crate::support::publisher::{Plan, Publisher};
use crate::support::stage::{Seen, Stage, no_holes, once, watermark_topic, with_log};
use crate::support::wire::{Message, Version};
use crate::support::{Outcome, PATIENCE, Verdict, trouble, wait_for, wait_until};

/// `[kafka] delivery`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    AtLeastOnce,
    ExactlyOnce,
}

const BOTH: [Mode; 2] = [Mode::AtLeastOnce, Mode::ExactlyOnce];

/// A code of Kafka's protocol with its name there.
pub type Answer = (i16, &'static str);

/// Nobody's fault, and it will pass.
const PASSING: &[Answer] = &[
    (2, "CORRUPT_MESSAGE"),
    (5, "LEADER_NOT_AVAILABLE"),
    (6, "NOT_LEADER_OR_FOLLOWER"),
    (7, "REQUEST_TIMED_OUT"),
    (19, "NOT_ENOUGH_REPLICAS"),
    (20, "NOT_ENOUGH_REPLICAS_AFTER_APPEND"),
    (56, "KAFKA_STORAGE_ERROR"),
];

/// Final for the batch, and the end of the producer.
pub const FINAL: &[Answer] = &[
    (-1, "UNKNOWN_SERVER_ERROR"),
    (1, "OFFSET_OUT_OF_RANGE"),
    (13, "NETWORK_EXCEPTION"),
    (31, "CLUSTER_AUTHORIZATION_FAILED"),
    (35, "UNSUPPORTED_VERSION"),
    (42, "INVALID_REQUEST"),
    (45, "OUT_OF_ORDER_SEQUENCE_NUMBER"),
    (47, "INVALID_PRODUCER_EPOCH"),
    (59, "UNKNOWN_PRODUCER_ID"),
    (74, "FENCED_LEADER_EPOCH"),
    (76, "UNSUPPORTED_COMPRESSION_TYPE"),
    (89, "THROTTLING_QUOTA_EXCEEDED"),
    (90, "PRODUCER_FENCED"),
];

/// Some record of the batch may have caused it.
pub const BLAMING: &[Answer] = &[(10, "MESSAGE_TOO_LARGE"), (32, "INVALID_TIMESTAMP"), (87, "INVALID_RECORD")];

/// The topic waits for somebody.
const PARKING: &[Answer] = &[(29, "TOPIC_AUTHORIZATION_FAILED")];

/// Each time the topic is parked, and batches of its lane are refused on its way back.
const ON_THE_WAY_BACK: &[Answer] = &[
    (29, "TOPIC_AUTHORIZATION_FAILED"),
    (-1, "UNKNOWN_SERVER_ERROR"),
    (29, "TOPIC_AUTHORIZATION_FAILED"),
    (45, "OUT_OF_ORDER_SEQUENCE_NUMBER"),
    (29, "TOPIC_AUTHORIZATION_FAILED"),
    (87, "INVALID_RECORD"),
    (29, "TOPIC_AUTHORIZATION_FAILED"),
    (47, "INVALID_PRODUCER_EPOCH"),
];

/// What brokers answer to a batch that they may have stored.
const IN_DOUBT: &[Answer] = &[
    (7, "REQUEST_TIMED_OUT"),
    (20, "NOT_ENOUGH_REPLICAS_AFTER_APPEND"),
    (-1, "UNKNOWN_SERVER_ERROR"),
    (13, "NETWORK_EXCEPTION"),
];

/// Which batches are refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// Of readings; Kafka never sees them.
    Readings,
    /// Of readings, after Kafka has stored them.
    StoredReadings,
    /// Of the watermark topic.
    Watermarks,
}

/// So many batches in a row.
const TIMES: u64 = 2;

fn refuse(link: &Proxy, refusal: Refusal, name: &str) -> Outcome<()> {
    let (so_far, times) = (link.refused()?, refusal.times);
    link.refuse(Some(refusal))?;
    wait_for(&format!("{times} batches to be refused with {name}"), PATIENCE, || match link.refused() {
        Ok(count) if count < so_far + times => None,
        other => Some(other),
    })?
    .map(|_count| ())
}

/// Each of these answers twice in a row, under load, to batches of several readings: so that none of them is judged
/// alone, and none may be blamed.
pub fn refused(build: Build, mode: Mode, which: Refused, answers: &[Answer]) -> Outcome<Verdict> {
    let kafka = kafka::shared()?;
    let topic = unique_topic("refused");
    kafka.create_topic(&topic, 2, &[])?;
    let stage = Stage::on(kafka.brokers(), topic)?;
    let watermarks = watermark_topic(kafka)?;
    let link = kafka.lease()?;
    let mut gateway = Gateway::new(build, &link.brokers()?)?;
    if mode == Mode::ExactlyOnce {
        gateway.exactly_once(&watermarks);
    }
    gateway.listen("").route("#", &stage.topic).kafka("linger = \"50ms\"\n");
    let agent = gateway.start()?;
    let topics = (0..6).map(|n| format!("t/{n}")).collect();
    let publisher = Publisher::start(gateway.listener(), Plan::new("p", "", 2).topics(topics).rate(1_000));
    publisher.wait_acknowledged(200)?;
    for (error, name) in answers {
        let (topic, least_records) = match which {
            Refused::Readings | Refused::StoredReadings => (&stage.topic, 2),
            Refused::Watermarks => (&watermarks, 1),
        };
        let refusal = Refusal {
            topic: topic.clone(),
            error: *error,
            times: TIMES,
            least_records,
            holding: Vec::new(),
            stored: which == Refused::StoredReadings,
        };
        refuse(link.proxy()?, refusal, name)?;
        let delivered = agent.book("delivered")?;
        wait_until(&format!("delivery to go on after {name}"), PATIENCE, || {
            agent.book("delivered").is_ok_and(|now| now > delivered)
        })?;
    }
    let dead = agent.book("dead_lettered")?;
    let producers = agent.metric("tidegate_kafka_producers_total")?;
    let log = publisher.stop(PATIENCE)?;
    let seen = stage.settle(&agent, &[log])?;
    eprintln!("{mode:?}, {which:?}, {} answers, {producers} producers: {}", answers.len(), seen.books[1]);
    let verdict = judge(mode, which, &seen).and(no_holes(&[&seen]));
    let verdict = verdict.and(if dead == 0 { Ok(()) } else { trouble!("{dead} good readings are dead letters") });
    Ok(with_log(verdict, &agent))
}

fn judge(mode: Mode, which: Refused, seen: &Seen) -> Verdict {
    match (mode, which) {
        // Kafka had them, and said that it had not: a new producer repeats them, under their ids.
        (Mode::AtLeastOnce, Refused::StoredReadings) => {
            seen.books.iter().try_for_each(crate::support::books::Books::once_into_the_buffer)
        }
        (Mode::AtLeastOnce | Mode::ExactlyOnce, _) => once(seen),
    }
}

fn in_both_modes(which: Refused, answers: &[Answer]) -> Outcome<()> {
    BOTH.into_iter().try_for_each(|mode| refused(Build::Real, mode, which, answers)?)
}

#[test]
fn batches_that_kafka_refuses_for_now_are_sent_again_once_and_in_order() -> Outcome<()> {
    in_both_modes(Refused::Readings, PASSING)
}

#[test]
fn batches_that_kafka_refuses_for_good_are_sent_again_once_and_in_order() -> Outcome<()> {
    in_both_modes(Refused::Readings, FINAL)
}

#[test]
fn batches_that_kafka_refuses_for_something_in_them_are_sent_again_and_no_good_reading_is_blamed() -> Outcome<()> {
    in_both_modes(Refused::Readings, BLAMING)
}

#[test]
fn batches_that_kafka_refuses_for_want_of_rights_wait_and_come_in_order() -> Outcome<()> {
    in_both_modes(Refused::Readings, PARKING)
}

#[test]
fn a_parked_topic_whose_batches_are_refused_on_its_way_back_comes_once_and_in_order() -> Outcome<()> {
    in_both_modes(Refused::Readings, ON_THE_WAY_BACK)
}

#[test]
fn batches_that_kafka_has_stored_and_refused_are_repeated_only_without_transactions_and_recognisably() -> Outcome<()> {
    in_both_modes(Refused::StoredReadings, IN_DOUBT)
}

#[test]
fn a_watermark_that_kafka_refuses_commits_nothing_and_all_is_sent_again_once() -> Outcome<()> {
    let answers = [PASSING, FINAL, BLAMING, PARKING].concat();
    refused(Build::Real, Mode::ExactlyOnce, Refused::Watermarks, &answers)?
}

/// Kafka refuses whatever batch has one of these in it.
const POISON: &[u8] = b"poison";

/// How many there are.
const POISONED: u64 = 5;

/// A topic that refuses certain records, among good ones: these alone are dead letters, and with transactions their holes
/// are the only ones.
pub fn poisoned(build: Build, mode: Mode, (error, name): Answer) -> Outcome<Verdict> {
    let kafka = kafka::shared()?;
    let stage = Stage::new(kafka, "poisoned")?;
    let link = kafka.lease()?;
    let mut gateway = Gateway::new(build, &link.brokers()?)?;
    if mode == Mode::ExactlyOnce {
        gateway.exactly_once(&watermark_topic(kafka)?);
    }
    gateway.listen("").route("#", &stage.topic).kafka("linger = \"50ms\"\n");
    // The link must find it in the batch.
    gateway.kafka_options("\"compression.type\" = \"none\"\n");
    let agent = gateway.start()?;
    let (topic, holding) = (stage.topic.clone(), POISON.to_vec());
    let refusal = Refusal { topic, error, times: u64::MAX, least_records: 1, holding, stored: false };
    link.proxy()?.refuse(Some(refusal))?;
    let publisher = Publisher::start(gateway.listener(), Plan::new("good", "t/good", 2).rate(300));
    let (mut sensor, _) = Connection::open(gateway.listener(), Version::V5, clean("bad"))?;
    for id in 1..=POISONED as u16 {
        publisher.wait_acknowledged(u64::from(id) * 100)?;
        sensor.publish(&Message { topic: "t/bad".into(), payload: POISON.into(), qos: 1, ..Message::default() }, id)?;
    }
    let log = publisher.stop(PATIENCE)?;
    let seen = stage.settle(&agent, &[log])?;
    let (dead, refused) = (agent.book("dead_lettered")?, link.proxy()?.refused()?);
    let missing = match (seen.sequences.first(), seen.sequences.last()) {
        (Some(first), Some(last)) => last - first + 1 - seen.sequences.len() as u64,
        _ => 0,
    };
    eprintln!("{mode:?}, {name}: {refused} batches refused, {dead} dead letters: {}", seen.books[1]);
    // The last of them may be the very last reading.
    let right = dead == POISONED && (POISONED - 1..=POISONED).contains(&missing);
    let right = if right { Ok(()) } else { trouble!("{POISONED} poisoned, {dead} dead letters, {missing} missing") };
    Ok(with_log(once(&seen).and(right), &agent))
}

#[test]
fn records_that_kafka_refuses_are_dead_letters_and_their_neighbours_arrive_once_and_in_order() -> Outcome<()> {
    for mode in BOTH {
        for answer in [BLAMING[0], BLAMING[2]] {
            poisoned(Build::Real, mode, answer)??;
        }
    }
    Ok(())
}
