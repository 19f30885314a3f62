//! Acknowledgements: the only place that writes PUBACK, PUBREC and PUBCOMP.
//!
//! It takes [`Durable`] receipts by value, so an acknowledgement cannot leave before the commit that holds its event
//! (custody rule 1), and not twice. Receipts of another connection are dropped: there the packet id may belong to
//! another message by now. One commit's answers go to one buffer in arrival order, to leave in one write.
//!
//! ```compile_fail
//! // What is not durable cannot be acknowledged.
//! use tidegate::proofs::{Acker, Receipts};
//! fn early(acker: &Acker, receipts: Receipts, out: &mut bytes::BytesMut) {
//!     acker.acknowledge(receipts, out);
//! }
//! ```
//! ```compile_fail
//! // And it cannot be declared durable by hand.
//! use tidegate::proofs::{Durable, Receipts};
//! fn forge(receipts: Receipts) -> Durable<Receipts> {
//!     Durable(receipts)
//! }
//! ```
//! ```
//! // The buffer's proof is what it takes.
//! use tidegate::proofs::{Acker, Durable, Receipts};
//! fn in_time(acker: &Acker, receipts: Durable<Receipts>, out: &mut bytes::BytesMut) {
//!     acker.acknowledge(receipts, out);
//! }
//! ```

use bytes::BytesMut;

use super::codec::encode::{self, AckKind};
use super::codec::reason;
use super::receipt::{Answer, Epoch, Receipts};
use crate::buffer::Durable;
use crate::planted::{Bug, planted};
use crate::settings::MqttVersion;

/// Writes the acknowledgements of one connection.
#[derive(Debug)]
pub struct Acker {
    epoch: Epoch,
    version: MqttVersion,
}

/// What one commit allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[must_use]
pub struct Acknowledged {
    /// PUBACK, PUBREC and PUBCOMP written.
    pub packets: u64,
    /// [`Answer::Proceed`] of this connection was among it.
    pub proceed: bool,
}

impl Acker {
    /// For that connection.
    #[must_use]
    pub fn new(epoch: Epoch, version: MqttVersion) -> Self {
        Self { epoch, version }
    }

    /// The connection whose receipts are answered.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Uses up the receipts of one commit and appends their answers.
    pub fn acknowledge(&self, durable: Durable<Receipts>, out: &mut BytesMut) -> Acknowledged {
        self.answer(durable.into_receipt(), out)
    }

    fn answer(&self, receipts: Receipts, out: &mut BytesMut) -> Acknowledged {
        out.reserve(receipts.len() * ACK_BYTES);
        let mut done = Acknowledged::default();
        for receipt in receipts {
            if receipt.epoch() != self.epoch && !planted(Bug::NoConnectionEpoch) {
                continue;
            }
            let (kind, reason) = match receipt.answer() {
                Answer::PubAck => (AckKind::PubAck, reason::SUCCESS),
                Answer::PubRec => (AckKind::PubRec, reason::SUCCESS),
                Answer::PubComp => (AckKind::PubComp, reason::SUCCESS),
                // In its turn among the others, as the standard wants it.
                Answer::NoPubAck(reason) => (AckKind::PubAck, reason),
                Answer::NoPubRec(reason) => (AckKind::PubRec, reason),
                Answer::Proceed => {
                    done.proceed = true;
                    continue;
                }
            };
            encode::ack_with_reason(out, self.version, kind, receipt.packet_id(), reason);
            done.packets += 1;
        }
        done
    }
}

/// Length of an acknowledgement without a reason, in both versions.
const ACK_BYTES: usize = 4;

#[cfg(test)]
impl Acker {
    /// Tests of the sessions have no buffer to prove anything.
    pub(in crate::ingest) fn acknowledge_unproven(&self, receipts: Receipts, out: &mut BytesMut) -> Acknowledged {
        self.answer(receipts, out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ingest::receipt::Receipt;

    #[test]
    fn answers_leave_in_arrival_order() {
        let acker = Acker::new(Epoch::next(), MqttVersion::V311);
        let receipt = |id, answer| Receipt::new(acker.epoch(), id, answer);
        let receipts = vec![
            receipt(2, Answer::PubAck),
            receipt(1, Answer::PubRec),
            receipt(0, Answer::Proceed),
            receipt(0x0103, Answer::PubComp),
        ];
        let mut out = BytesMut::from(&b"x"[..]);
        assert_eq!(acker.answer(receipts, &mut out), Acknowledged { packets: 3, proceed: true });
        assert_eq!(&out[..], b"x\x40\x02\x00\x02\x50\x02\x00\x01\x70\x02\x01\x03");
    }

    #[test]
    fn a_refusal_has_its_place_among_the_answers_and_its_reason_on_mqtt_5() {
        for (version, refusal) in
            [(MqttVersion::V5, &b"\x40\x03\0\x07\x87"[..]), (MqttVersion::V311, b"\x40\x02\0\x07")]
        {
            let acker = Acker::new(Epoch::next(), version);
            let receipts = [(6, Answer::PubAck), (7, Answer::NoPubAck(0x87)), (8, Answer::PubRec)];
            let receipts = receipts.map(|(id, answer)| Receipt::new(acker.epoch(), id, answer));
            let mut out = BytesMut::new();
            assert_eq!(acker.answer(receipts.into(), &mut out).packets, 3);
            assert_eq!(&out[..], [b"\x40\x02\0\x06", refusal, b"\x50\x02\0\x08"].concat());
        }
    }

    #[test]
    fn receipts_of_another_connection_are_dropped() {
        let (before, now) = (Epoch::next(), Epoch::next());
        let receipts = vec![
            Receipt::new(before, 1, Answer::PubAck),
            Receipt::new(now, 2, Answer::PubAck),
            Receipt::new(before, 0, Answer::Proceed),
        ];
        let mut out = BytesMut::new();
        assert_eq!(
            Acker::new(now, MqttVersion::V5).answer(receipts, &mut out),
            Acknowledged { packets: 1, proceed: false }
        );
        assert_eq!(&out[..], b"\x40\x02\x00\x02");
    }
}
