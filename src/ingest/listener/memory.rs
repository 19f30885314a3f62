//! What a session remembers beyond its connection: the QoS 2 packet ids that were not released, and whether the buffer
//! knows of the session at all.

use crate::buffer::PacketIds;
use crate::ingest::unreleased::Unreleased;

/// Of one session.
#[derive(Debug, Default)]
pub(super) struct Memory {
    /// The commit that writes them may still be running: it stands in the buffer's queue before all that comes later.
    pub(super) unreleased: Unreleased,
    /// The buffer may hold something under the session's key.
    pub(super) on_disk: bool,
    /// What it holds is of a session that is over, and it could not be told so far: the next connection must not go on
    /// with it, and forgets it first.
    pub(super) stale: bool,
}

impl Memory {
    /// As the buffer has kept it.
    pub(super) fn stored(packet_ids: PacketIds) -> Self {
        Self { unreleased: Unreleased::resumed(packet_ids), on_disk: true, stale: false }
    }

    /// For a session that begins anew; what the buffer holds must be forgotten first.
    pub(super) fn emptied(self) -> Self {
        Self { on_disk: self.on_disk, ..Self::default() }
    }

    /// No message is half way.
    pub(super) fn is_idle(&self) -> bool {
        self.unreleased.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ingest::unreleased::Delivery;

    #[test]
    fn a_session_that_lives_knows_the_same_message_without_dup_and_another_one_with_it() {
        let mut memory = Memory::stored(PacketIds::from([(1, Some(1)), (2, Some(2))]));
        assert_eq!(memory.unreleased.publish(1, true, 1), Delivery::Repeat);
        assert_eq!(memory.unreleased.publish(2, false, 2), Delivery::Repeat);
        assert_eq!(memory.unreleased.publish(2, true, 3), Delivery::New);
    }

    #[test]
    fn a_new_session_knows_no_id_and_still_has_something_to_forget() {
        let memory = Memory::stored(PacketIds::from([(1, None)])).emptied();
        assert!(memory.is_idle() && memory.on_disk);
    }
}
