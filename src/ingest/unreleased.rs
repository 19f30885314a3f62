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

use std::collections::BTreeSet;

use crate::buffer::IdChange;

/// Packet ids of one session.
#[derive(Debug, Default)]
pub struct Unreleased {
    ids: BTreeSet<u16>,
    /// Ids of an earlier process that the peer has not mentioned yet.
    inherited: BTreeSet<u16>,
}

/// What a QoS 2 PUBLISH is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// Not seen: store it.
    New,
    /// Seen: answer, and store nothing.
    Repeat,
}

impl Unreleased {
    /// The ids that the buffer has kept, in a session that is the same for both sides beyond doubt.
    #[must_use]
    pub fn resumed(ids: BTreeSet<u16>) -> Self {
        Self { ids, inherited: BTreeSet::new() }
    }

    /// The ids that the buffer has kept, in a session that lives at the peer. Whether it is still the same one is not
    /// quite certain: if the broker lost it and this process died between the CONNACK that said so and the commit that
    /// forgets the ids, the next CONNACK says "session present", and means the new one. So a PUBLISH under such an id
    /// counts as a repeat only with DUP set, which the standard demands of every repeat (MQTT-3.3.1-1); without it the
    /// id is in use for a new message, which must not be swallowed.
    ///
    /// What is left of this hole: all of the above, and then a message under one of these ids whose first copy (without
    /// DUP) did not reach the disk because the link or the process broke once more. Closing it needs a broker that says
    /// which session it resumes, or a digest of the message beside each stored id.
    #[must_use]
    pub fn inherited(ids: BTreeSet<u16>) -> Self {
        Self { inherited: ids.clone(), ids }
    }

    /// The same ids for the next connection of a session, under the rule of [`Unreleased::inherited`].
    #[must_use]
    pub fn carried_over(self) -> Self {
        Self::inherited(self.ids)
    }

    /// A QoS 2 PUBLISH came. [`Delivery::New`] asks for an [`IdChange::Add`] in the event's own transaction.
    pub fn publish(&mut self, packet_id: u16, dup: bool) -> Delivery {
        let inherited = !self.inherited.is_empty() && self.inherited.remove(&packet_id);
        if self.ids.insert(packet_id) || (inherited && !dup) { Delivery::New } else { Delivery::Repeat }
    }

    /// A PUBREL came. True asks for an [`IdChange::Remove`]; false: it is forgotten already, and PUBCOMP is the answer
    /// all the same (a lost PUBCOMP, or an id of a session that we lost): anything else would make the peer ask for ever.
    pub fn release(&mut self, packet_id: u16) -> bool {
        self.inherited.remove(&packet_id);
        self.ids.remove(&packet_id)
    }

    /// The peer has a new session.
    pub fn clear(&mut self) {
        self.ids.clear();
        self.inherited.clear();
    }

    /// Takes back changes that were never handed to the buffer.
    pub fn revert(&mut self, changes: &[IdChange]) {
        for change in changes.iter().rev() {
            match *change {
                IdChange::Add(id) => {
                    self.ids.remove(&id);
                }
                IdChange::Remove(id) => {
                    self.ids.insert(id);
                }
                IdChange::Keep(_) | IdChange::Forget => {}
            }
        }
    }

    /// Is that id unreleased?
    #[must_use]
    pub fn contains(&self, packet_id: u16) -> bool {
        self.ids.contains(&packet_id)
    }

    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// None.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_a_repeat_until_it_is_released_and_new_after() {
        let mut ids = Unreleased::default();
        assert_eq!(ids.publish(7, false), Delivery::New);
        assert_eq!(ids.publish(7, true), Delivery::Repeat);
        assert_eq!(ids.publish(7, false), Delivery::Repeat, "within a connection the id alone decides");
        assert!(ids.release(7));
        assert!(!ids.release(7), "released already");
        assert_eq!(ids.publish(7, false), Delivery::New);
    }

    #[test]
    fn an_inherited_id_without_dup_is_a_new_message() {
        let mut ids = Unreleased::inherited(BTreeSet::from([5, 6]));
        assert_eq!(ids.publish(5, true), Delivery::Repeat);
        assert_eq!(ids.publish(5, false), Delivery::Repeat, "5 was confirmed by the repeat");
        assert_eq!(ids.publish(6, false), Delivery::New);
        assert_eq!(ids.publish(6, true), Delivery::Repeat, "6 is ours now");
        assert!(ids.release(5) && ids.release(6));
    }

    #[test]
    fn a_resumed_id_is_a_repeat_without_dup_as_well() {
        assert_eq!(Unreleased::resumed(BTreeSet::from([5])).publish(5, false), Delivery::Repeat);
    }

    #[test]
    fn reverting_changes_restores_the_set_before_them() {
        let mut ids = Unreleased::resumed(BTreeSet::from([1, 2]));
        assert!(ids.release(1));
        assert_eq!(ids.publish(1, false), Delivery::New);
        assert!(ids.release(1));
        assert_eq!(ids.publish(9, false), Delivery::New);
        ids.revert(&[IdChange::Remove(1), IdChange::Add(1), IdChange::Remove(1), IdChange::Add(9)]);
        assert!(ids.contains(1) && ids.contains(2) && !ids.contains(9));
        assert_eq!(ids.len(), 2);
    }
}
