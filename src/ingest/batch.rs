//! What one socket read brings: the events, QoS 2 ids and receipts of all its packets, gathered to be stored at once.
//!
//! Pure: no clock, no channel. The [`SessionIntake`](super::session_intake::SessionIntake) takes a batch to the buffer.

use bytes::Bytes;

use crate::buffer::IdChange;
use crate::clock::Moment;
use crate::event::{Event, Properties, Qos, RouteId};
use crate::ingest::codec::{Flawed, Publish};
use crate::ingest::limits::{BATCH_COST_BYTES, RECEIPT_COST_BYTES};
use crate::ingest::receipt::{Answer, Epoch, Receipt, Receipts};
use crate::ingest::topics::Topics;
use crate::ingest::unreleased::{Delivery, Unreleased};
use crate::planted::{Bug, planted};

/// Work of one socket read, in arrival order.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub(super) events: Vec<Event>,
    pub(super) changes: Vec<IdChange>,
    pub(super) receipts: Receipts,
    cost_bytes: usize,
    /// PUBLISH packets, repeats included.
    pub(super) messages: u64,
    pub(super) payload_bytes: u64,
    pub(super) repeats: u64,
}

impl Batch {
    /// A PUBLISH came on that connection.
    pub(crate) fn publish(
        &mut self,
        epoch: Epoch,
        publish: Publish,
        arrived: Moment,
        topics: &mut Topics,
        unreleased: &mut Unreleased,
    ) {
        self.messages += 1;
        let payload_bytes = u64::try_from(publish.payload_len()).unwrap_or(u64::MAX);
        self.payload_bytes += payload_bytes;
        let packet_id = publish.packet_id;
        match publish.qos {
            Qos::AtMostOnce => {}
            Qos::AtLeastOnce => self.answer(Receipt::new(epoch, packet_id, Answer::PubAck)),
            Qos::ExactlyOnce => {
                self.answer(Receipt::new(epoch, packet_id, Answer::PubRec));
                let digest = publish.digest();
                if unreleased.publish(packet_id, publish.dup, digest) == Delivery::Repeat {
                    self.repeats += 1;
                    return;
                }
                self.id_change(IdChange::Add(packet_id, digest));
            }
        }
        let (topic, route) = topics.resolve(publish.topic());
        let (qos, retain, dup) = (publish.qos, publish.retain, publish.dup);
        let mut publish = publish;
        let (sender, mut properties) = (topics.sender(), publish.properties.take());
        if let Some(flaw) = publish.flaw() {
            properties.get_or_insert_default().flaw = Some(flaw);
        }
        let payload = publish.into_payload();
        let Moment { wall_ms: arrived_ms, clock } = arrived;
        self.event(Event { topic, payload, qos, retain, dup, arrived_ms, clock, route, sender, properties });
    }

    /// A PUBLISH came that cannot be read, and would come for ever: it is answered, and its bytes are put where they can be
    /// looked at.
    pub(crate) fn flawed(&mut self, epoch: Epoch, flawed: Flawed, why: &str, arrived: Moment, topics: &mut Topics) {
        self.messages += 1;
        let Flawed { qos, packet_id, topic, bytes } = flawed;
        match qos {
            Qos::AtMostOnce => {}
            Qos::AtLeastOnce => self.answer(Receipt::new(epoch, packet_id, Answer::PubAck)),
            Qos::ExactlyOnce => self.answer(Receipt::new(epoch, packet_id, Answer::PubRec)),
        }
        if planted(Bug::DropFlawed) {
            return;
        }
        let (topic, route) = topics.resolve(&topic);
        let properties = Properties { flaw: Some(why.into()), ..Properties::default() };
        let Moment { wall_ms: arrived_ms, clock } = arrived;
        self.event(Event {
            topic,
            // Its own memory, as every payload: the read that brought it is larger.
            payload: Bytes::copy_from_slice(&bytes),
            qos,
            retain: false,
            dup: false,
            arrived_ms,
            clock,
            route,
            sender: topics.sender(),
            properties: Some(Box::new(properties)),
        });
    }

    /// A PUBLISH came that is not taken: it is answered in its turn, and nothing of it is stored.
    pub(crate) fn refuse(&mut self, epoch: Epoch, publish: &Publish, reason: u8) {
        self.messages += 1;
        match publish.qos {
            Qos::AtMostOnce => {}
            Qos::AtLeastOnce => self.answer(Receipt::new(epoch, publish.packet_id, Answer::NoPubAck(reason))),
            Qos::ExactlyOnce => self.answer(Receipt::new(epoch, publish.packet_id, Answer::NoPubRec(reason))),
        }
    }

    /// A PUBREL came: PUBCOMP follows when the id is durably forgotten (custody rule 3).
    pub(crate) fn release(&mut self, epoch: Epoch, packet_id: u16, unreleased: &mut Unreleased) {
        if unreleased.release(packet_id) {
            self.id_change(IdChange::Remove(packet_id));
        }
        self.answer(Receipt::new(epoch, packet_id, Answer::PubComp));
    }

    /// An event that no PUBLISH brought: a will.
    pub(crate) fn event(&mut self, event: Event) {
        self.cost_bytes += event.cost_bytes();
        self.events.push(event);
    }

    /// A change of the whole session; [`Answer::Proceed`] comes back when it is durable.
    pub(crate) fn session(&mut self, epoch: Epoch, changes: impl IntoIterator<Item = IdChange>) {
        self.changes.extend(changes);
        self.answer(Receipt::new(epoch, 0, Answer::Proceed));
    }

    /// Nothing in it.
    #[must_use]
    pub(crate) fn is_empty(&self) -> bool {
        self.events.is_empty() && self.changes.is_empty() && self.receipts.is_empty()
    }

    /// Memory it will occupy until it is committed.
    #[must_use]
    pub(crate) fn cost_bytes(&self) -> usize {
        self.cost_bytes + BATCH_COST_BYTES
    }

    /// Takes the events out that nobody waits for an answer to, and says how many there were of each route.
    pub(crate) fn drop_unanswered(&mut self) -> Vec<(RouteId, u64)> {
        let mut dropped = Vec::new();
        let mut freed = 0_usize;
        self.events.retain(|event| {
            if event.qos != Qos::AtMostOnce {
                return true;
            }
            freed += event.cost_bytes();
            count(&mut dropped, event.route, 1);
            false
        });
        self.cost_bytes -= freed;
        dropped
    }

    /// The connection has ended and this was not handed to the buffer: the peer will send it again.
    pub(crate) fn abandon(&mut self, unreleased: &mut Unreleased) {
        unreleased.revert(&self.changes);
        *self = Self::default();
    }

    fn id_change(&mut self, change: IdChange) {
        if !planted(Bug::ForgetPacketIds) {
            self.changes.push(change);
        }
    }

    fn answer(&mut self, receipt: Receipt) {
        self.cost_bytes += RECEIPT_COST_BYTES;
        self.receipts.push(receipt);
    }
}

/// Adds to a count by route. Few routes: a list is searched faster than a map.
pub(super) fn count(counts: &mut Vec<(RouteId, u64)>, route: RouteId, more: u64) {
    match counts.iter_mut().find(|(counted, _)| *counted == route) {
        Some((_, n)) => *n += more,
        None => counts.push((route, more)),
    }
}
