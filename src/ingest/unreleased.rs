//! The receiver's half of QoS 2: which packet ids have arrived and were not released yet. Used by the sessions at
//! brokers and by those of the listeners.
//!
//! ```text
//!                    PUBLISH: event + Add in one commit            PUBREL: Remove in a commit
//!     (unknown) ─────────────────────────────────────▶ unreleased ───────────────────────────▶ (unknown)
//!                    PUBREC when that is durable           │  ▲     PUBCOMP when that is durable
//!                                                          └──┘
//!                                             PUBLISH again: no event, PUBREC
//! ```
//!
//! The set in memory runs ahead of the disk by what is queued. That is safe, because the buffer commits in the order in
//! which it was given work, and every answer, also to a repeat, comes back through it: it cannot overtake the commit
//! that it depends on.
//!
//! An id that is in use must not come with another message (MQTT-2.2.1-3). It does: mosquitto 2.0.11 counts ids upwards and
//! does not look whether the next one is free, so that a session in which more than 65,535 messages wait has some ids
//! twice. To take the second message for a repeat would lose it, so each id keeps the digest of its message, and another
//! one is new. Such a broker confuses its own books with it, and may send either message again.

use std::collections::BTreeSet;

use crate::buffer::{IdChange, PacketIds};
use crate::planted::{Bug, planted};

/// Packet ids of one session.
#[derive(Debug, Default)]
pub(crate) struct Unreleased {
    ids: PacketIds,
    /// Ids of an earlier connection or process that the peer has not mentioned yet.
    inherited: BTreeSet<u16>,
}

/// What a QoS 2 PUBLISH is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Delivery {
    /// Not seen: store it.
    New,
    /// Seen: answer, and store nothing.
    Repeat,
}

impl Unreleased {
    /// The ids of a session that is ours to keep: of a listener, whose CONNACK says whether it goes on. A PUBLISH under such an
    /// id with the same message is a repeat, with DUP or without: mqtt.js and rumqttc never set it (13 readings of 2,049
    /// were stored twice in five kills). A sensor that has lost its memory and says under an old id what it had said
    /// under it is taken for one that repeats itself.
    #[must_use]
    pub(crate) fn resumed(ids: PacketIds) -> Self {
        if planted(Bug::WantDup) {
            return Self::inherited(ids);
        }
        Self { ids, inherited: BTreeSet::new() }
    }

    /// The ids of a session that lives at the peer: at a broker. Whether it is still the same one is not
    /// quite certain: if the broker lost it and this process died between the CONNACK that said so and the commit that
    /// forgets the ids, the next CONNACK says "session present", and means the new one. So a PUBLISH under such an id
    /// counts as a repeat only
    /// * with DUP set, which the standard demands of every repeat (MQTT-3.3.1-1): without it the id is in use for a new
    ///   message, which must not be swallowed;
    /// * and with the digest of the message that is stored under the id, for the first copy of a new message may get
    ///   lost, and the second one has DUP as well. (Ids that a version before the digests wrote count without it.)
    ///
    /// Left is a new message that says the same as the old one on the same topic, and all of the above; or whose digest
    /// happens to be the same, one in 4,294,967,296.
    #[must_use]
    pub(crate) fn inherited(ids: PacketIds) -> Self {
        Self { inherited: ids.keys().copied().collect(), ids }
    }

    /// A QoS 2 PUBLISH came, with that [digest](crate::ingest::codec::Publish::digest). [`Delivery::New`] asks for an
    /// [`IdChange::Add`] in the event's own transaction.
    pub(crate) fn publish(&mut self, packet_id: u16, dup: bool, digest: u32) -> Delivery {
        let inherited = !self.inherited.is_empty() && self.inherited.remove(&packet_id);
        if let Some(known) = self.ids.get(&packet_id) {
            let other = known.is_some_and(|known| known != digest);
            if !other && (dup || !inherited) {
                return Delivery::Repeat;
            }
        }
        self.ids.insert(packet_id, Some(digest));
        Delivery::New
    }

    /// A PUBREL came. True asks for an [`IdChange::Remove`]; false: it is forgotten already, and PUBCOMP is the answer
    /// all the same (a lost PUBCOMP, or an id of a session that we lost): anything else would make the peer ask for ever.
    pub(crate) fn release(&mut self, packet_id: u16) -> bool {
        self.inherited.remove(&packet_id);
        self.ids.remove(&packet_id).is_some()
    }

    /// The peer has a new session.
    pub(crate) fn clear(&mut self) {
        self.ids.clear();
        self.inherited.clear();
    }

    /// Takes back changes that were never handed to the buffer.
    pub(crate) fn revert(&mut self, changes: &[IdChange]) {
        for change in changes.iter().rev() {
            match *change {
                IdChange::Add(id, _) => {
                    self.ids.remove(&id);
                }
                // Its digest has gone with it: from here on the id alone counts.
                IdChange::Remove(id) => {
                    self.ids.insert(id, None);
                }
                IdChange::Keep(_) | IdChange::Forget => {}
            }
        }
    }

    #[cfg(test)]
    pub(super) fn contains(&self, packet_id: u16) -> bool {
        self.ids.contains_key(&packet_id)
    }

    /// How many.
    #[must_use]
    pub(crate) fn len(&self) -> usize {
        self.ids.len()
    }

    /// None.
    #[must_use]
    pub(crate) fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(ids: &[u16]) -> PacketIds {
        ids.iter().map(|id| (*id, Some(u32::from(*id)))).collect()
    }

    #[test]
    fn an_id_is_a_repeat_until_it_is_released_and_new_after() {
        let mut ids = Unreleased::default();
        assert_eq!(ids.publish(7, false, 1), Delivery::New);
        assert_eq!(ids.publish(7, true, 1), Delivery::Repeat);
        assert_eq!(ids.publish(7, false, 1), Delivery::Repeat, "not every sender sets DUP");
        assert!(ids.release(7));
        assert!(!ids.release(7), "released already");
        assert_eq!(ids.publish(7, false, 1), Delivery::New);
    }

    #[test]
    fn another_message_under_an_id_in_use_is_not_swallowed() {
        for dup in [false, true] {
            let mut ids = Unreleased::default();
            assert_eq!(ids.publish(7, false, 1), Delivery::New);
            assert_eq!(ids.publish(7, dup, 2), Delivery::New);
            assert_eq!(ids.publish(7, true, 2), Delivery::Repeat);
            assert!(ids.release(7));
        }
    }

    #[test]
    fn an_inherited_id_without_dup_is_a_new_message() {
        let mut ids = Unreleased::inherited(known(&[5, 6]));
        assert_eq!(ids.publish(5, true, 5), Delivery::Repeat);
        assert_eq!(ids.publish(5, false, 5), Delivery::Repeat, "5 was confirmed by the repeat");
        assert_eq!(ids.publish(6, false, 6), Delivery::New);
        assert_eq!(ids.publish(6, true, 6), Delivery::Repeat, "6 is ours now");
        assert!(ids.release(5) && ids.release(6));
    }

    #[test]
    fn an_inherited_id_with_another_message_is_a_new_one_although_it_has_dup() {
        let mut ids = Unreleased::inherited(known(&[5]));
        assert_eq!(ids.publish(5, true, 99), Delivery::New);
        assert_eq!(ids.publish(5, true, 99), Delivery::Repeat);
    }

    #[test]
    fn an_inherited_id_of_a_version_without_digests_is_a_repeat_with_any_message() {
        let mut ids = Unreleased::inherited(PacketIds::from([(5, None), (6, None)]));
        assert_eq!(ids.publish(5, true, 99), Delivery::Repeat);
        assert_eq!(ids.publish(6, false, 99), Delivery::New);
    }

    #[test]
    fn a_resumed_id_is_a_repeat_without_dup_as_well() {
        assert_eq!(Unreleased::resumed(known(&[5])).publish(5, false, 5), Delivery::Repeat);
        assert_eq!(Unreleased::resumed(known(&[5])).publish(5, false, 9), Delivery::New);
    }

    #[test]
    fn reverting_changes_restores_the_set_before_them() {
        let mut ids = Unreleased::resumed(known(&[1, 2]));
        assert!(ids.release(1));
        assert_eq!(ids.publish(1, false, 8), Delivery::New);
        assert!(ids.release(1));
        assert_eq!(ids.publish(9, false, 9), Delivery::New);
        ids.revert(&[IdChange::Remove(1), IdChange::Add(1, 8), IdChange::Remove(1), IdChange::Add(9, 9)]);
        assert!(ids.contains(1) && ids.contains(2) && !ids.contains(9));
        assert_eq!(ids.len(), 2);
    }
}
