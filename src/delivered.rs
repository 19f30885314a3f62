//! The proof that Kafka has an event. The buffer releases an event to Kafka for this value and for nothing else.
//!
//! It stands in a leaf file of its own: the fields are private, there is no `Clone`, and the only constructor reads
//! rdkafka's own delivery report, a type that nobody but rdkafka can make.
//!
//! ```compile_fail
//! // A span cannot be declared delivered by hand.
//! let forged = tidegate::delivered::Delivered { sequence: 7, route: tidegate::event::RouteId(1) };
//! ```
//! ```
//! // It can only be looked at.
//! fn look(proof: &tidegate::delivered::Delivered) -> u64 { proof.sequence() }
//! ```

use rdkafka::error::KafkaError;
use rdkafka::message::DeliveryResult;

use crate::event::{RouteId, Sequence};

/// Kafka confirmed this one event (acks=all).
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a confirmed event stays in the buffer until this is handed to it"]
pub struct Delivered {
    sequence: Sequence,
    route: RouteId,
}

impl Delivered {
    /// Reads a delivery report of librdkafka for the event with that sequence.
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
