//! What is known of one buffer: which of its events were seen, and what its gateway said.

use std::collections::HashMap;

use uuid::Uuid;

use super::findings::Spots;
use super::said::Said;
use super::sequences::Sequences;
use crate::event::Sequence;

/// The start of an agent that stored an event, as the header `tidegate-instance` names it; 0 where there is none.
pub(super) type Instance = u64;

/// Which ends of the stream were cut off.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Edges {
    /// Events that arrived before this were not all read.
    pub(super) from_ms: Option<i64>,
    /// Events that arrived from this on are not asked for.
    pub(super) to_ms: Option<i64>,
}

/// What is known of a buffer.
#[derive(Debug)]
pub(super) struct Buffer {
    pub(super) id: Uuid,
    pub(super) seen: Sequences,
    /// The same, by who stored them: sequence and instance are an event's own, so one sequence of two instances is two
    /// events.
    pub(super) stored_by: HashMap<Instance, Sequences>,
    /// Events with an id of this buffer that came under the id of a clone, by who stored them.
    pub(super) moved: HashMap<Instance, Sequences>,
    pub(super) said: Said,
    /// Lowest sequence that arrived after the beginning was cut off.
    pub(super) first_after_from: Option<Sequence>,
    /// Highest sequence that arrived before the end asked for.
    pub(super) last_before_to: Option<Sequence>,
    pub(super) repeats: Spots,
    pub(super) reused: Spots,
    pub(super) declared_repeats: u64,
    pub(super) order_breaks: Spots,
    pub(super) order_not_watched: u64,
    /// Sequences up to here are not known any more.
    pub(super) forgotten: Sequence,
}

impl Buffer {
    pub(super) fn new(id: Uuid) -> Self {
        Self {
            id,
            seen: Sequences::default(),
            stored_by: HashMap::new(),
            moved: HashMap::new(),
            said: Said::default(),
            first_after_from: None,
            last_before_to: None,
            repeats: Spots::default(),
            reused: Spots::default(),
            declared_repeats: 0,
            order_breaks: Spots::default(),
            order_not_watched: 0,
            forgotten: 0,
        }
    }

    /// Moves the edges by the time stamp of an event.
    pub(super) fn time(&mut self, sequence: Sequence, at_ms: Option<i64>, edges: Edges) {
        if let (Some(at), Some(from)) = (at_ms, edges.from_ms)
            && at >= from
        {
            self.first_after_from = Some(self.first_after_from.map_or(sequence, |first| first.min(sequence)));
        }
        if let (Some(at), Some(to)) = (at_ms, edges.to_ms)
            && at < to
        {
            self.last_before_to = self.last_before_to.max(Some(sequence));
        }
    }

    /// What of this gap did not come under the id of a clone. Between two events of one start only that start's are
    /// missing; what a clone has taken in under the same numbers is something else.
    pub(super) fn not_moved(&self, first: Sequence, last: Sequence) -> Vec<(Sequence, Sequence)> {
        let mut left = vec![(first, last)];
        if self.moved.is_empty() {
            return left;
        }
        let before = self.instance_of(first.saturating_sub(1));
        let only = before.filter(|_| before == self.instance_of(last.saturating_add(1)));
        for (_, moved) in self.moved.iter().filter(|(instance, _)| only.is_none_or(|only| only == **instance)) {
            let mut rest = Vec::new();
            for (first, last) in left {
                moved.gaps(first..=last, |first, last| rest.push((first, last)));
            }
            left = rest;
        }
        left
    }

    fn instance_of(&self, sequence: Sequence) -> Option<Instance> {
        let stored = self.stored_by.iter().find(|(_, stored)| stored.contains(sequence));
        stored.map(|(instance, _)| *instance)
    }

    pub(super) fn entries(&self) -> usize {
        let sets = self.stored_by.values().chain(self.moved.values());
        self.seen.entries() + sets.map(Sequences::entries).sum::<usize>()
    }

    /// As far as an event of that start can change it.
    pub(super) fn entries_for(&self, instance: Instance) -> usize {
        let sets = [self.stored_by.get(&instance), self.moved.get(&instance)];
        self.seen.entries() + sets.into_iter().flatten().map(Sequences::entries).sum::<usize>()
    }
}
