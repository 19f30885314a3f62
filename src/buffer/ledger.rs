//! The ledger: what became of every event, by route, since the buffer was made.
//!
//! custody rule 7: `received = delivered + dead_lettered + dropped + purged + lost + held` in every committed state. Each
//! method books both sides at once, so no caller can break it.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::LedgerLine;
use crate::event::RouteId;

/// The books of all routes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Ledger(BTreeMap<RouteId, Line>);

/// A line as the state row has it: its number, then received, delivered, dead lettered, dropped, purged, held, lost.
pub(super) type LedgerRow = (u16, u64, u64, u64, u64, u64, u64, u64);

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Line {
    received: u64,
    delivered: u64,
    dead_lettered: u64,
    dropped: u64,
    purged: u64,
    lost: u64,
    held: u64,
}

impl Ledger {
    /// Events taken in and held.
    pub(super) fn stored(&mut self, route: RouteId, events: u64) {
        let line = self.line(route);
        line.received += events;
        line.held += events;
    }

    /// Events that found no room.
    pub(super) fn dropped(&mut self, route: RouteId, events: u64) {
        let line = self.line(route);
        line.received += events;
        line.dropped += events;
    }

    /// Held events that Kafka has.
    pub(super) fn delivered(&mut self, route: RouteId, events: u64) {
        let line = self.line(route);
        let moved = events.min(line.held);
        debug_assert_eq!(moved, events, "more readings delivered than held");
        line.held -= moved;
        line.delivered += moved;
    }

    /// A held event that Kafka will never take.
    pub(super) fn dead_lettered(&mut self, route: RouteId) {
        let line = self.line(route);
        let moved = line.held.min(1);
        debug_assert_eq!(moved, 1, "more dead letters than readings held");
        line.held -= moved;
        line.dead_lettered += moved;
    }

    /// No event is held.
    pub(super) fn is_empty(&self) -> bool {
        self.0.values().all(|line| line.held == 0)
    }

    /// Held events of that route that damage to the file has taken; says how many of so many it could book.
    pub(super) fn lost(&mut self, route: RouteId, events: u64) -> u64 {
        let line = self.line(route);
        let moved = events.min(line.held);
        line.held -= moved;
        line.lost += moved;
        moved
    }

    /// What each line holds.
    pub(super) fn held(&self) -> Vec<(RouteId, u64)> {
        self.0.iter().map(|(route, line)| (*route, line.held)).collect()
    }

    /// The highest line.
    pub(super) fn last(&self) -> Option<RouteId> {
        self.0.last_key_value().map(|(route, _)| *route)
    }

    /// Opens the line of a route.
    pub(super) fn open(&mut self, route: RouteId) {
        self.line(route);
    }

    /// As status and metrics show it; `names` by route id.
    pub(super) fn lines(&self, names: &BTreeMap<RouteId, Arc<str>>) -> Vec<(RouteId, LedgerLine)> {
        let line = |(route, line): (&RouteId, &Line)| {
            let &Line { received, delivered, dead_lettered, dropped, purged, lost, held } = line;
            let name = names.get(route).cloned().unwrap_or_else(|| Arc::from(""));
            (*route, LedgerLine { route: name, received, delivered, dead_lettered, dropped, purged, lost, held })
        };
        self.0.iter().map(line).collect()
    }

    /// As the state row has it.
    pub(super) fn rows(&self) -> Vec<LedgerRow> {
        debug_assert!(self.balanced(), "{self:?}");
        let row = |(route, l): (&RouteId, &Line)| {
            (route.0, l.received, l.delivered, l.dead_lettered, l.dropped, l.purged, l.held, l.lost)
        };
        self.0.iter().map(row).collect()
    }

    pub(super) fn from_rows(rows: Vec<LedgerRow>) -> Self {
        let line = |(route, received, delivered, dead_lettered, dropped, purged, held, lost)| {
            (RouteId(route), Line { received, delivered, dead_lettered, dropped, purged, lost, held })
        };
        Self(rows.into_iter().map(line).collect())
    }

    /// Does every line add up?
    pub(super) fn balanced(&self) -> bool {
        self.0.values().all(|line| {
            let parts = [line.delivered, line.dead_lettered, line.dropped, line.purged, line.lost, line.held];
            parts.iter().sum::<u64>() == line.received
        })
    }

    fn line(&mut self, route: RouteId) -> &mut Line {
        self.0.entry(route).or_default()
    }
}
