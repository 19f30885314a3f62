//! Kafka out: batches of held events to their topics; what Kafka confirms is released, nothing else.
//!
//! # How an event goes
//!
//! One thread owns all of this (`relay.rs`; `start.rs` makes its parts). It sleeps until something happens, names what that
//! was, and then does all that can be done without waiting. It reads held events from the buffer's [`BufferReader`](crate::buffer::BufferReader) into the
//! stream (`stream.rs`), finds their Kafka topic and key (`targets.rs`), makes a record (`record.rs`), hands it to librdkafka
//! (`producer.rs`), polls for reports, and gives what became of the events to the buffer (`settlement_builder.rs`) as a
//! [`Settlement`](crate::buffer::Settlement). An event leaves the stream in three ways: with a
//! [`Delivered`](crate::delivered::Delivered) proof made from Kafka's own report, as a dead letter with its reason, or
//! into the queue of a parked Kafka topic (`parking.rs`, `queue.rs`), which the buffer keeps as a *lane*.
//!
//! # One machine
//!
//! ```text
//!   stream ───────────────┐ Feed             ┌─ Delivery: at least once, or a transaction
//!                         ├────▶ Sender ─────┼─ bisection, window, stalls
//!   a parked topic's  ───┘      (turn)      └─ producer
//!   queue                           │
//!                                   └─ Happened ──▶ the owner: StreamSender, ParkedTopics
//! ```
//!
//! Nothing is passed around that knows everything. A sender works with the *wire* (`wire.rs`: clients, how long Kafka may take,
//! what makes a record); which topics take readings and what becomes of each is *custody* (`custody.rs`), which the stream, the
//! queues and their owners see, and which a feed brings along.
//!
//! Whatever is sent goes through one send loop (`sending.rs`), and what is refused is judged in one place (`judge.rs`). A
//! [`Sender`](sender::Sender) does what can be done without waiting and names what [`Happened`](sender::Happened); what that means
//! for the readings is the owner's. Only [`Delivery`](delivery::Delivery) knows whether there are transactions. There are two
//! senders, one for the stream and one for the parked topics, one topic at a time, so that a refusal does not touch the
//! others.
//!
//! # What holds, whatever fails
//!
//! * **Nothing is released without a report** (custody rule 2). Time-outs, full queues, dead producers, lost links:
//!   the event stays in the buffer and is sent again. `verdict.rs` sorts every error code; an unknown one means
//!   "new producer, wait, again".
//! * **Order** (custody rule 4). Everything is handed over in sequence order, and nothing overtakes a refused batch:
//!   librdkafka stops sending then (`enable.gapless.guarantee`), and Kafka refuses what was under way, once it knows the
//!   producer, which `targets.rs` makes sure of.
//!   There is one way back after any failure (`sender.rs`): stop sending, wait for the reports of what is in flight,
//!   judge the failures, then read again from the oldest unsettled event and leave out what is settled (`outstanding.rs`).
//! * **A bad record does not take its neighbours along.** A refused batch is sent again in smaller groups until the bad
//!   record stands alone (`bisection.rs`); only then it is a dead letter.
//! * **A topic that is missing, forbidden or confirms nothing does not hold up the others.** Its events move to a queue
//!   of their own and come back in order (`parking.rs`, `stalls.rs`, `parked_topics.rs`). When the configuration has changed, they go where it
//!   says now (`relocation.rs`).
//! * **Nothing is final, and no wait is silent.** What librdkafka may take minutes for is done beside the loop (`clients.rs`);
//!   each state in which it would never try again ends with a new producer; what is in the way is said (`waiting.rs`).
//! * **Repeats** happen only where Kafka's answer was lost: a crash, a stop without a link, a producer given up with
//!   requests in flight. `tidegate-id` makes them recognisable. With exactly-once delivery a `read_committed` reader sees
//!   none of them.
//!
//! # Bounds
//!
//! | what | bound | where |
//! |---|---|---|
//! | events in flight | what the link takes in a few seconds | `window.rs` |
//! | ... and at most | 2,500 and 2 MiB with librdkafka's overhead; 6,000 and 5 MiB in transactions on a long link | `delivery.rs`, `transactional.rs` |
//! | events of a transaction | 50,000, 72 bytes each | `transactional.rs` |
//! | time of a transaction, a record, a request | 15 s, and longer where the link asks for it | `timeouts.rs` |
//! | events read and not sent | one reading of the reader (256 KiB) and one batch | `stream.rs` |
//! | requests in flight | 1 a broker, 256 KiB before compression, 1 MB where a round trip is long | `options.rs`, `timeouts.rs` |
//! | producers at a time | 2: the stream's, and one for the parked topic whose turn it is | `parked_topics.rs` |
//! | librdkafka clients, with those that are being ended | 6, of which a reader of the watermark counts as one | `clients.rs` |
//! | MQTT topics remembered | 8 MiB | `targets.rs` |
//! | Kafka topics that sensors make | `max_topics` | `admission.rs` |
//! | dead letters and parked events on their way to the disk | 4,096 or 1 MiB | `moves.rs` |
//! | events with their fate behind one in flight | 65,536, 24 bytes each | `producer.rs` |
//! | holes and lanes declared in a transaction | 1,000 and 500 | `declarations.rs` |
//! | settlements | 50 ms or 4,096 events | `settlement_builder.rs` |
//!
//! # Exactly once
//!
//! With `delivery = "exactly-once"` a batch is a transaction. `transaction.rs` has its life as a drawing, `session.rs` does
//! what is legal in it, one short step at a time; `transactional.rs` says when one begins and ends, `stream/watermark.rs` and
//! `queue/watermark.rs` what its watermark says. A delivery report gives only an [`Acked`](crate::delivered::Acked) then; verdicts,
//! bisection, parking and settling stay as they are. Four rules, each measured on Apache Kafka and each with a test that is red
//! without it (`tests/it/exactly_once.rs`, `tests/it/watermarks.rs`):
//!
//! * **Rule A**: the watermark goes into the transaction only when all its records are confirmed (`transaction.rs`).
//! * **Rule B**: after an `EndTxn` that was sent twice, a new producer (`end_txn.rs`).
//! * **Stable read**: the watermark is read when the stable offset has reached the end of the partition (`watermark_reader.rs`).
//! * **Never back, and never by the watermark of a duplicate identity**: the cursor only rises, and a watermark of an instance that this buffer has
//!   never been means a clone or a restored copy, which takes a new identity (`stream_sender.rs`, `buffer/instances.rs`).
//!
//! And one that keeps the books whole: **moves before watermark**. Dead letters and parked events are on disk before a
//! watermark passes them. So after a crash everything that is held up to the watermark, and not settled otherwise, was
//! delivered, and is released with the proof that Kafka's own record gives ([`CommittedWatermark`](crate::delivered::CommittedWatermark)).

mod admission;
mod clients;
mod time_request;
mod parked_topics;
mod custody;
mod declarations;
mod delivery;
mod end_txn;
mod error;
mod moves;
mod feed;
mod judge;
mod link;
mod next;
mod options;
mod settlement_builder;
mod outstanding;
mod bisection;
mod parking;
mod timeouts;
mod producer;
mod queue;
mod watermark_reader;
mod record;
mod relay;
mod relocation;
mod retention;
mod sender;
mod sending;
mod session;
mod stalls;
mod start;
pub(crate) mod status;
mod stream;
mod stream_sender;
mod librdkafka_log;
mod targets;
mod time;
#[cfg(test)]
mod tests;
mod topic_state;
mod transaction;
mod transactional;
mod verdict;
mod waiting;
mod watermark_topic;
mod window;
mod wire;

pub(crate) use error::ForwardError;
pub(crate) use options::way_to_kafka;
pub(crate) use options::{check_each_option, check_options};
pub(crate) use start::{Recovery, run};
