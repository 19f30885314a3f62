//! The proof that Kafka has an event. The buffer releases an event to Kafka for this value and for nothing else.
//!
//! It stands in a leaf file of its own: the fields are private, there is no `Clone`, and it is made in three ways only,
//! each from a type that nobody but rdkafka can make:
//!
//! | delivery | a [`Delivered`] is made from |
//! |---|---|
//! | at least once | a delivery report that says Ok ([`Delivered::confirmed`]) |
//! | exactly once | a report that says Ok gives only an [`Acked`]: the transaction may still be aborted. A [`Batch`] of them becomes proofs when `commit_transaction` of rdkafka's producer has returned Ok ([`Batch::commit`]) |
//! | exactly once, after a crash or an unknown outcome | a watermark record that a [`CommittedReader`] read, which is a `read_committed` consumer and nothing else ([`CommittedWatermark::delivered`]) |
//!
//! ```compile_fail
//! // A span cannot be declared delivered by hand.
//! let forged = tidegate::proofs::Delivered { sequence: 7, route: tidegate::proofs::RouteId(1) };
//! ```
//! ```
//! // It can only be looked at.
//! fn look(proof: &tidegate::proofs::Delivered) -> u64 { proof.sequence() }
//! ```
//! ```compile_fail
//! // What is acknowledged inside a transaction is not delivered.
//! fn early(acked: tidegate::proofs::Acked) -> tidegate::proofs::Delivered { acked }
//! ```
//! ```
//! // It joins the batch, which is proven as a whole.
//! fn in_time(acked: tidegate::proofs::Acked, batch: &mut tidegate::proofs::Batch) { batch.push(acked) }
//! ```
//! ```compile_fail
//! // Nor can a watermark be made up.
//! let watermark = tidegate::proofs::CommittedWatermark { delivered: 7, instance: tidegate::proofs::Instance(1), commit: 0, at_ms: 0 };
//! ```

use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::consumer::BaseConsumer;
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::message::{DeliveryResult, Message as _};
use rdkafka::producer::{BaseProducer, Producer as _, ProducerContext};
use uuid::Uuid;

use crate::event::{RouteId, Sequence};
use crate::watermark::{self, Instance, Read, Record};

/// Kafka confirmed this one event (acks=all), for good.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a confirmed event stays in the buffer until this is handed to it"]
pub struct Delivered {
    sequence: Sequence,
    route: RouteId,
}

impl Delivered {
    /// Reads a delivery report of librdkafka for the event with that sequence. Not inside a transaction: see [`Acked`].
    ///
    /// # Errors
    /// The report's own error when it does not confirm; the event then stays where it is.
    pub fn confirmed(report: &DeliveryResult<'_>, sequence: Sequence, route: RouteId) -> Result<Self, KafkaError> {
        match report {
            Ok(_) => Ok(Self { sequence, route }),
            Err((error, _)) => Err(error.clone()),
        }
    }

    /// A proof of nothing, for planted bugs and for unit tests, where nobody is Kafka; no release has this function.
    #[cfg(any(test, feature = "planted"))]
    pub(crate) fn forged(sequence: Sequence, route: RouteId) -> Self {
        Self { sequence, route }
    }

    /// Which event.
    #[must_use]
    pub fn sequence(&self) -> Sequence {
        self.sequence
    }

    /// The line of the ledger it is booked to.
    #[must_use]
    pub fn route(&self) -> RouteId {
        self.route
    }
}

/// Kafka has this event inside a transaction that is still open.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "without its batch it is never delivered"]
pub struct Acked {
    sequence: Sequence,
    route: RouteId,
}

impl Acked {
    /// Reads a delivery report of librdkafka for the event with that sequence.
    ///
    /// # Errors
    /// The report's own error when it does not confirm.
    pub fn reported(report: &DeliveryResult<'_>, sequence: Sequence, route: RouteId) -> Result<Self, KafkaError> {
        match report {
            Ok(_) => Ok(Self { sequence, route }),
            Err((error, _)) => Err(error.clone()),
        }
    }
}

/// What one transaction carries, as far as it was acknowledged. Dropped when the transaction is: nothing is delivered then.
#[derive(Debug, Default)]
#[must_use = "it becomes proofs when it is committed"]
pub struct Batch(Vec<Acked>);

impl Batch {
    /// One more.
    pub fn push(&mut self, acked: Acked) {
        self.0.push(acked);
    }

    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Nothing was acknowledged.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Commits the producer's transaction, or goes on committing it after a call that ran out of time.
    ///
    /// # Errors
    /// What rdkafka answers, with the batch, unproven. After an error that can be retried the commit goes on in the
    /// background and only this call is allowed; after any other the outcome is unknown.
    pub fn commit<C: ProducerContext>(
        self,
        producer: &BaseProducer<C>,
        wait: Duration,
    ) -> Result<Vec<Delivered>, (Self, KafkaError)> {
        match producer.commit_transaction(wait) {
            // custody rule 2: here, and nowhere else, an acknowledged event of a transaction becomes a delivered one.
            Ok(()) => Ok(self.0.into_iter().map(|Acked { sequence, route }| Delivered { sequence, route }).collect()),
            Err(error) => Err((self, error)),
        }
    }

    /// The planted bug: the cursor moves before the commit.
    #[cfg(feature = "planted")]
    pub(crate) fn forge(&mut self) -> Vec<Delivered> {
        self.0.drain(..).map(|Acked { sequence, route }| Delivered { sequence, route }).collect()
    }
}

/// A consumer of the watermark topic that sees what is committed and nothing else.
pub(crate) struct CommittedReader(BaseConsumer);

impl CommittedReader {
    /// Makes one; the isolation is set here.
    ///
    /// # Errors
    /// When librdkafka does not take the configuration.
    pub(crate) fn new(mut config: ClientConfig) -> KafkaResult<Self> {
        #[cfg(feature = "planted")]
        let isolation = if crate::planted::planted(crate::planted::Bug::NoReadCommitted) {
            "read_uncommitted"
        } else {
            "read_committed"
        };
        #[cfg(not(feature = "planted"))]
        let isolation = "read_committed";
        config.set("isolation.level", isolation);
        config.create().map(Self)
    }

    /// For placing it and for asking about offsets.
    #[must_use]
    pub(crate) fn consumer(&self) -> &BaseConsumer {
        &self.0
    }

    /// The next record, waiting for it, and what it says of `buffer`.
    #[must_use]
    pub(crate) fn next(&self, buffer: Uuid, wait: Duration) -> Option<KafkaResult<FoundRecord>> {
        let message = match self.0.poll(wait)? {
            Ok(message) => message,
            Err(error) => return Some(Err(error)),
        };
        let offset = message.offset();
        let record = match watermark::read(message.key().unwrap_or_default(), message.payload()) {
            Read::Said(of, Record::Main { instance, delivered, commit, unread, at_ms }) if of == buffer => {
                CommittedRecord::Main(CommittedWatermark { delivered, unread, instance, commit, at_ms })
            }
            Read::Said(of, Record::Lane { kafka_topic, instance, delivered, at_ms, holes, waiting: _ })
                if of == buffer =>
            {
                let watermark = CommittedWatermark { delivered, unread: Vec::new(), instance, commit: 0, at_ms };
                CommittedRecord::Lane { kafka_topic, watermark, is_whole: holes.is_some() }
            }
            Read::Said(of, Record::Hole { first, last, reason, kafka_topic, .. }) if of == buffer => {
                CommittedRecord::Hole(DeclaredHole { first, last, reason, kafka_topic })
            }
            Read::Newer(of) if of == buffer => CommittedRecord::Newer,
            Read::Said(..) | Read::Newer(_) | Read::Deleted(_) | Read::Foreign => CommittedRecord::Nothing,
        };
        Some(Ok(FoundRecord { offset, record }))
    }
}

/// One record of the watermark topic.
#[derive(Debug)]
pub(crate) struct FoundRecord {
    /// Where it lies.
    pub offset: i64,
    /// What it says of the buffer that was asked for.
    pub record: CommittedRecord,
}

/// What a record of the watermark topic says of one buffer.
#[derive(Debug)]
pub(crate) enum CommittedRecord {
    /// About its main lane.
    Main(CommittedWatermark),
    /// About the lane of a Kafka topic.
    Lane {
        /// Which.
        kafka_topic: String,
        /// How far.
        watermark: CommittedWatermark,
        /// All holes that its buffer may not know of lie behind it.
        is_whole: bool,
    },
    /// Events that will never come.
    Hole(DeclaredHole),
    /// Something that only a newer Tidegate understands.
    Newer,
    /// Nothing that matters here.
    Nothing,
}

/// Events that were declared never to come: what is vouched for up to a watermark does not include them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DeclaredHole {
    /// The first.
    pub first: Sequence,
    /// The last.
    pub last: Sequence,
    /// Why.
    pub reason: String,
    /// Where they should have gone.
    pub kafka_topic: Option<String>,
}

/// A watermark in a committed transaction: Kafka has it that a lane is delivered up to a sequence.
#[derive(Debug, PartialEq, Eq)]
pub struct CommittedWatermark {
    delivered: Sequence,
    unread: Vec<(Sequence, Sequence)>,
    instance: Instance,
    commit: u64,
    at_ms: i64,
}

impl CommittedWatermark {
    /// Nobody's watermark, for unit tests.
    #[cfg(test)]
    pub(crate) fn forged(delivered: Sequence, instance: Instance) -> Self {
        Self { delivered, unread: Vec::new(), instance, commit: 0, at_ms: 0 }
    }

    /// The same, resting on that commit.
    #[cfg(test)]
    pub(crate) fn resting_on(self, commit: u64) -> Self {
        Self { commit, ..self }
    }

    /// Spans that it does not vouch for although it reaches beyond them: they could not be read.
    #[must_use]
    pub fn unread(&self) -> &[(Sequence, Sequence)] {
        &self.unread
    }

    /// Everything up to here was delivered, or its other fate was durable before; but for what is unread.
    #[must_use]
    pub fn through(&self) -> Sequence {
        self.delivered
    }

    /// Who wrote it.
    #[must_use]
    pub fn instance(&self) -> Instance {
        self.instance
    }

    /// The commit of that start by which events that it passes were moved aside; 0 when none were.
    #[must_use]
    pub fn commit(&self) -> u64 {
        self.commit
    }

    /// When, by the clock of the gateway.
    #[must_use]
    pub fn at_ms(&self) -> i64 {
        self.at_ms
    }

    /// The proof for an event of this lane that is still held, if the watermark reaches so far and does not leave it out.
    #[must_use]
    pub fn delivered(&self, sequence: Sequence, route: RouteId) -> Option<Delivered> {
        let is_unread = self.unread.iter().any(|(first, last)| (*first..=*last).contains(&sequence));
        (sequence <= self.delivered && !is_unread).then_some(Delivered { sequence, route })
    }
}
