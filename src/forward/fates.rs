//! What was given a fate and is not on disk yet.
//!
//! Dead letters and parked events are copied within the buffer's file, in one transaction for each settlement. Whatever
//! becomes of a backlog, no more of them than [`MOST`] and [`MOST_BYTES`] are under way: the forwarder's memory and the
//! buffer's transactions are bounded by that, and the reader waits.

use std::collections::VecDeque;

use crate::buffer::Ticket;

/// As many as one settlement takes; a commit each 100 ms makes 40,000 a second of them.
const MOST: usize = 4_096;

/// ... of so many bytes, or one: an eighth of the room that the file keeps for copies.
const MOST_BYTES: usize = 1 << 20;

/// See the documentation of the module.
#[derive(Debug, Default)]
pub(super) struct Fates {
    /// Handed over, with the settlement they are in.
    handed: VecDeque<(Ticket, Load)>,
    /// In the settlement being made.
    making: Load,
    all: Load,
}

#[derive(Debug, Clone, Copy, Default)]
struct Load {
    events: usize,
    bytes: usize,
}

impl Fates {
    /// One more.
    pub(super) fn add(&mut self, bytes: usize) {
        self.making.add(Load { events: 1, bytes });
        self.all.add(Load { events: 1, bytes });
    }

    /// The settlement being made was handed to the buffer.
    pub(super) fn handed_over(&mut self, ticket: Ticket) {
        let load = std::mem::take(&mut self.making);
        if load.events > 0 {
            self.handed.push_back((ticket, load));
        }
    }

    /// Some are with the buffer, and perhaps not on disk.
    pub(super) fn are_under_way(&self) -> bool {
        !self.handed.is_empty()
    }

    /// The newest settlement with any, if one is under way.
    pub(super) fn newest(&self) -> Option<Ticket> {
        self.handed.back().map(|(ticket, _)| *ticket)
    }

    /// May one more be given? Settlements up to `applied` are on disk.
    pub(super) fn have_room(&mut self, applied: Ticket) -> bool {
        while let Some((ticket, load)) = self.handed.front().copied()
            && ticket <= applied
        {
            self.handed.pop_front();
            self.all.events -= load.events;
            self.all.bytes -= load.bytes;
        }
        self.all.events < MOST && self.all.bytes < MOST_BYTES
    }
}

impl Load {
    fn add(&mut self, more: Self) {
        self.events += more.events;
        self.bytes += more.bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_room_again_when_the_buffer_has_what_was_handed_over() {
        let mut fates = Fates::default();
        for _ in 0..MOST {
            assert!(fates.have_room(0));
            fates.add(1);
        }
        assert!(!fates.have_room(0));
        fates.handed_over(7);
        assert!(!fates.have_room(6));
        assert!(fates.have_room(7));
        fates.add(MOST_BYTES);
        assert!(!fates.have_room(7));
    }
}
