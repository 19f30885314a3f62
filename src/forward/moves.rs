//! Events that move within the buffer's file, to the dead letters or to a parked topic, until the move is on disk.
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
pub(super) struct Moves {
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

impl Moves {
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
        let mut moves = Moves::default();
        for _ in 0..MOST {
            assert!(moves.have_room(0));
            moves.add(1);
        }
        assert!(!moves.have_room(0));
        moves.handed_over(7);
        assert!(!moves.have_room(6));
        assert!(moves.have_room(7));
        moves.add(MOST_BYTES);
        assert!(!moves.have_room(7));
    }
}
