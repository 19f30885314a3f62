//! The right to answer deliveries: once, on the connection they came on.

/// The right to acknowledge one delivery. Not `Clone`; used up by the acker, which wants it inside a
/// [`Durable`](crate::buffer::Durable).
#[derive(Debug, PartialEq, Eq)]
#[must_use = "the sender waits for its acknowledgement"]
pub struct Receipt {
    epoch: u64,
    packet_id: u16,
    answer: Answer,
}

/// Which packet the answer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// To a QoS 1 PUBLISH.
    PubAck,
    /// To a QoS 2 PUBLISH.
    PubRec,
    /// To a PUBREL, once the packet id is durably forgotten.
    PubComp,
}
