//! The right to answer deliveries: once, on the connection they came on.
//!
//! A [`Receipt`] is made only by the sessions of `ingest`, when they have taken a packet off the wire. It travels with
//! the events through the buffer and comes back inside a [`Durable`](crate::buffer::Durable), which only the buffer's
//! commit makes. The [`Acker`](super::acker::Acker) takes nothing else.
//!
//! ```compile_fail
//! // No one else can make one, so none can be made early or twice.
//! use tidegate::proofs::{Answer, Epoch, Receipt};
//! let forged = Receipt::new(Epoch::next(), 7, Answer::PubAck);
//! ```
//! ```compile_fail
//! // It cannot be copied.
//! fn twice(receipt: &tidegate::proofs::Receipt) -> tidegate::proofs::Receipt { receipt.clone() }
//! ```
//! ```
//! // It can be looked at and moved.
//! fn once(receipt: tidegate::proofs::Receipt) -> tidegate::proofs::Receipt { receipt }
//! ```

use std::sync::atomic::{AtomicU64, Ordering};

/// What the buffer carries for one socket read.
pub type Receipts = Vec<Receipt>;

/// The right to acknowledge one delivery. Not `Clone`; used up by the acker, which wants it inside a
/// [`Durable`](crate::buffer::Durable).
#[derive(Debug, PartialEq, Eq)]
#[must_use = "the sender waits for its acknowledgement"]
pub struct Receipt {
    epoch: Epoch,
    packet_id: u16,
    answer: Answer,
}

/// What may be done once the work is durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// PUBACK to a QoS 1 PUBLISH.
    PubAck,
    /// PUBREC to a QoS 2 PUBLISH.
    PubRec,
    /// PUBACK with that MQTT 5 reason: the message was not taken.
    NoPubAck(u8),
    /// PUBREC with that MQTT 5 reason: the message was not taken.
    NoPubRec(u8),
    /// PUBCOMP to a PUBREL, once the packet id is durably forgotten.
    PubComp,
    /// No packet: a change of the session itself is on disk, and the connection may take its next step
    /// (a broker session: SUBSCRIBE; a listener: CONNACK).
    Proceed,
}

/// One connection. Never the same twice in a process, so that an answer that was earned on one connection can be told
/// from the next one's, where the packet id may mean another message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Epoch(u64);

impl Epoch {
    /// A new connection.
    #[must_use]
    pub fn next() -> Self {
        static LAST: AtomicU64 = AtomicU64::new(0);
        Self(LAST.fetch_add(1, Ordering::Relaxed))
    }
}

impl Receipt {
    /// A packet was taken off the wire of that connection.
    pub(in crate::ingest) fn new(epoch: Epoch, packet_id: u16, answer: Answer) -> Self {
        Self { epoch, packet_id, answer }
    }

    pub(in crate::ingest) fn epoch(&self) -> Epoch {
        self.epoch
    }

    pub(in crate::ingest) fn packet_id(&self) -> u16 {
        self.packet_id
    }

    pub(in crate::ingest) fn answer(&self) -> Answer {
        self.answer
    }
}
