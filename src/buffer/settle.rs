//! Applying settlements: the only code that takes events out of the main lane or out of a parked one.
//!
//! custody rule 2. An event leaves the main lane in three ways, each in one transaction with its bookings: delivered
//! (for a [`Delivered`], Kafka's own word), dead (copied to `dead_letter` with its reason), parked (copied to the lane
//! of its Kafka topic, still held). Its sequence joins the settled set; the chunk row goes when all of it is settled.
//! An event leaves a parked lane together with its whole chunk, when confirmations and dead letters cover that chunk
//! exactly, or by the operator's word about its Kafka topic, into another lane or the dead letters. An event whose chunk is damaged cannot be copied; it is not settled then and stays where it is, held.
//!
//! What waits to be applied is kept small whatever happens: confirmations become spans and counts at once, so a disk
//! that cannot be written does not let a queue grow while Kafka goes on confirming.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rusqlite::OptionalExtension;

use super::books::Books;
use super::copies::{self, Tools};
use super::error::{WriteError, row_id, sequence};
use super::limits::{SETTLE_BEFORE_REPEATS, SETTLE_DELAY, SETTLE_SOON, SWEEP_SEQUENCES};
use super::settlement::{DeadLetter, LaneMove, Parked, Settlement, Ticket};
use super::spans::Spans;
use super::statements::Statements;
use super::{LaneId, instances};
use crate::delivered::Delivered;
use crate::event::{RouteId, Sequence};
use crate::planted::{Bug, planted};
use crate::watermark::Instance;

/// Settlements that wait for the next transaction. Applying them changes nothing here, so that they can be applied
/// again when the transaction fails.
#[derive(Debug, Default)]
pub(super) struct Pending {
    /// The newest; 0 when there is none.
    ticket: Ticket,
    since: Option<Instant>,
    spans: Spans,
    delivered: BTreeMap<RouteId, u64>,
    dead: Vec<DeadLetter>,
    parked: Vec<Parked>,
    lane_chunks: Vec<LaneChunkSettled>,
    lane_unread: Vec<(LaneId, i64)>,
    lane_moves: Vec<LaneMove>,
    admitted: Vec<Arc<str>>,
    in_line_with: Option<u64>,
    unread: Vec<(Sequence, Sequence)>,
    /// QoS 0 events that found no room: not settled, for they were never held, but the books must say so.
    dropped: BTreeMap<RouteId, u64>,
    watermark: Sequence,
    heard: Option<Instance>,
}

/// What of it a transaction takes. Copies want room before they free any; without room they must not hold up what only
/// frees some.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Part {
    /// Confirmations, and chunks of lanes that are confirmed as a whole.
    Releases,
    /// All.
    #[default]
    All,
}

#[derive(Debug)]
struct LaneChunkSettled {
    lane: LaneId,
    chunk: i64,
    delivered: Vec<Delivered>,
    dead: Vec<DeadLetter>,
}

impl Pending {
    /// Takes one in. `books` are those of the last commit, `doubtful` is in a transaction whose outcome is unknown.
    pub(super) fn add(&mut self, ticket: Ticket, settlement: Settlement, books: &Books, doubtful: Option<&Self>) {
        self.ticket = self.ticket.max(ticket);
        self.since.get_or_insert_with(Instant::now);
        let first = |spans: &mut Spans, sequence| first_time(spans, sequence, books, doubtful);
        let Settlement {
            delivered,
            dead,
            parked,
            lane_chunks,
            lane_unread,
            unread,
            lane_moves,
            admitted,
            in_line_with,
            watermark,
            heard,
        } = settlement;
        self.unread.extend(unread);
        self.lane_unread.extend(lane_unread);
        self.watermark = self.watermark.max(watermark.unwrap_or(0));
        self.heard = heard.or(self.heard);
        for proof in delivered {
            if first(&mut self.spans, proof.sequence()) {
                let count = self.delivered.entry(proof.route()).or_default();
                *count += 1;
            }
        }
        for letter in dead {
            if first(&mut self.spans, letter.sequence) {
                self.dead.push(letter);
            }
        }
        for parked in parked {
            if first(&mut self.spans, parked.sequence) {
                self.parked.push(parked);
            }
        }
        self.lane_moves.extend(lane_moves);
        self.admitted.extend(admitted);
        self.in_line_with = in_line_with.or(self.in_line_with);
        for (lane, chunk, delivered, dead) in lane_chunks {
            let waiting = self.lane_chunks.iter().chain(doubtful.iter().flat_map(|pending| &pending.lane_chunks));
            if waiting.into_iter().any(|known| known.chunk == chunk) {
                tracing::debug!(chunk, "buffer: this chunk of a parked topic was released before");
            } else {
                self.lane_chunks.push(LaneChunkSettled { lane, chunk, delivered, dead });
            }
        }
    }

    /// Takes in what found no room.
    pub(super) fn drop_events(&mut self, dropped: impl Iterator<Item = (RouteId, u64)>) {
        for (route, events) in dropped {
            self.since.get_or_insert_with(Instant::now);
            let count = self.dropped.entry(route).or_default();
            *count += events;
        }
    }

    /// A ticket counts as well: an empty settlement must come to an end.
    pub(super) fn is_empty(&self) -> bool {
        self.ticket == 0 && self.dropped.is_empty()
    }

    /// Have they waited long enough for each other?
    pub(super) fn is_due(&self, urgent: bool) -> bool {
        !self.is_empty() && (urgent || self.left().is_zero())
    }

    /// Until then.
    pub(super) fn left(&self) -> Duration {
        let longest = if self.is_waited_for() || planted(Bug::ReleaseBeforeDelivery) {
            SETTLE_SOON
        } else if self.watermark > 0 {
            SETTLE_DELAY
        } else {
            SETTLE_BEFORE_REPEATS
        };
        self.since.map_or(Duration::ZERO, |since| longest.saturating_sub(since.elapsed()))
    }

    /// Does forward go on when it is on disk? It does not wait for what was only confirmed.
    fn is_waited_for(&self) -> bool {
        self.must_stay() || !self.lane_chunks.is_empty() || !self.admitted.is_empty() || self.in_line_with.is_some()
    }

    pub(super) fn ticket(&self) -> Ticket {
        self.ticket
    }

    /// Does it make or remove lanes?
    pub(super) fn touches_lanes(&self) -> bool {
        !self.parked.is_empty() || !self.lane_chunks.is_empty() || !self.lane_moves.is_empty()
    }

    /// The transaction that `self` was in did not happen: `later` goes into the next one with it.
    pub(super) fn absorb(&mut self, later: Self) {
        self.ticket = self.ticket.max(later.ticket);
        for (first, last) in later.spans.iter() {
            self.spans.insert_span(first, last);
        }
        for (route, events) in later.delivered {
            let count = self.delivered.entry(route).or_default();
            *count += events;
        }
        self.drop_events(later.dropped.into_iter());
        self.dead.extend(later.dead);
        self.parked.extend(later.parked);
        self.lane_chunks.extend(later.lane_chunks);
        self.lane_unread.extend(later.lane_unread);
        self.lane_moves.extend(later.lane_moves);
        self.admitted.extend(later.admitted);
        self.in_line_with = later.in_line_with.or(self.in_line_with);
        self.unread.extend(later.unread);
        self.watermark = self.watermark.max(later.watermark);
        self.heard = later.heard.or(self.heard);
    }

    /// Does it put events aside? A watermark that passes these rests on it.
    pub(super) fn has_fates(&self) -> bool {
        let dead_in_lanes = self.lane_chunks.iter().any(|chunk| !chunk.dead.is_empty());
        let unread = !self.unread.is_empty() || !self.lane_unread.is_empty();
        !self.dead.is_empty() || !self.parked.is_empty() || !self.lane_moves.is_empty() || dead_in_lanes || unread
    }

    /// Must a power cut not take it, also where it may take others? What Kafka is told next goes from it.
    pub(super) fn must_stay(&self) -> bool {
        self.has_fates() || self.heard.is_some()
    }

    /// Writes it inside the running transaction, or that part of it. Events that move to the dead letters or to a lane
    /// are copied before their chunk goes: the headroom above the limit is there for that.
    pub(super) fn apply(
        &self,
        part: Part,
        tx: &mut Statements<'_>,
        books: &mut Books,
        tools: &mut Tools,
    ) -> Result<(), WriteError> {
        let mut unread = BTreeSet::new();
        if part == Part::All {
            for topic in &self.admitted {
                tx.insert_topic.execute([&**topic])?;
            }
            unread = copies::out_of_main_lane(&self.dead, &self.parked, tx, books, tools)?;
        }
        for (route, events) in &self.delivered {
            books.ledger.delivered(*route, *events);
        }
        for (route, events) in &self.dropped {
            books.ledger.dropped(*route, *events);
        }
        books.watermark = books.watermark.max(self.watermark);
        if let Some(of) = self.heard {
            instances::heard(tx.connection, of)?;
        }
        if part == Part::All {
            release(&self.spans, tx, books, &unread)?;
        } else {
            release(&self.spans_without_copies(), tx, books, &unread)?;
        }
        for settled in self.lane_chunks.iter().filter(|settled| part == Part::All || settled.dead.is_empty()) {
            settled.apply(tx, books, tools)?;
        }
        for moved in self.lane_moves.iter().filter(|_| part == Part::All) {
            copies::out_of_lane(moved, tx, books, tools)?;
        }
        for (first, last) in &self.unread {
            tx.insert_unread.execute((row_id(*first), row_id(*last)))?;
        }
        for (lane, chunk) in self.lane_unread.iter().filter(|_| part == Part::All) {
            if tx.copy_lane_chunk.execute((*chunk, lane.0))? > 0 {
                tx.delete_lane_chunk.execute([*chunk])?;
            }
        }
        tools.unread.append(&mut unread);
        if let Some(mark) = self.in_line_with.filter(|_| part == Part::All) {
            tx.set_in_line.execute([row_id(mark)])?;
        }
        Ok(())
    }

    /// Is there something that frees room without taking any, beside what takes some?
    pub(super) fn has_both(&self) -> bool {
        let copies = !self.dead.is_empty() || !self.parked.is_empty() || !self.lane_moves.is_empty();
        let releases = !self.delivered.is_empty() || self.lane_chunks.iter().any(|settled| settled.dead.is_empty());
        releases && (copies || self.lane_chunks.iter().any(|settled| !settled.dead.is_empty()))
    }

    /// [`Part::Releases`] is on disk: what is left wants room.
    pub(super) fn forget_releases(&mut self) {
        self.spans = self.copies().collect();
        self.delivered.clear();
        self.dropped.clear();
        self.lane_chunks.retain(|settled| !settled.dead.is_empty());
    }

    fn copies(&self) -> impl Iterator<Item = Sequence> {
        self.dead.iter().map(|letter| letter.sequence).chain(self.parked.iter().map(|parked| parked.sequence))
    }

    fn spans_without_copies(&self) -> Spans {
        let mut copies: Vec<Sequence> = self.copies().collect();
        copies.sort_unstable();
        let mut copies = copies.into_iter().peekable();
        let mut spans = Spans::default();
        for (mut first, last) in self.spans.iter() {
            while let Some(copy) = copies.next_if(|copy| *copy <= last) {
                spans.insert_span(first, copy.saturating_sub(1));
                first = copy.saturating_add(1);
            }
            spans.insert_span(first, last);
        }
        spans
    }
}

/// Joins the settled set and deletes the chunks that are settled as a whole.
fn release(
    spans: &Spans,
    tx: &mut Statements<'_>,
    books: &mut Books,
    unread: &BTreeSet<Sequence>,
) -> Result<(), WriteError> {
    for (mut first, last) in spans.iter() {
        for hole in unread.range(first..=last) {
            books.settled.insert_span(first, hole.saturating_sub(1));
            first = hole.saturating_add(1);
        }
        books.settled.insert_span(first, last);
    }
    let Some((least, _)) = spans.iter().next() else { return Ok(()) };
    let released = books.settled.released();
    if least <= released {
        tx.delete_chunks.execute((0_i64, row_id(released)))?;
    }
    let mut swept = released;
    for (first, _) in spans.iter().filter(|(_, last)| *last > released) {
        if first > swept
            && let Some((start, end)) = books.settled.span_of(first)
            && end - start >= SWEEP_SEQUENCES
        {
            // A cursor that cannot move (a damaged chunk) must not keep everything behind it on disk.
            tx.delete_chunks.execute((row_id(start), row_id(end)))?;
            swept = end;
        }
    }
    Ok(())
}

/// Only what is held can be settled, and only once.
fn first_time(spans: &mut Spans, sequence: Sequence, books: &Books, doubtful: Option<&Pending>) -> bool {
    if sequence == 0 || sequence >= books.next {
        tracing::error!(
            sequence,
            next = books.next,
            "buffer: it was asked to release a reading that it never had, which is a bug; the request is ignored"
        );
        return false;
    }
    let before = books.settled.contains(sequence) || doubtful.is_some_and(|pending| pending.spans.contains(sequence));
    let first = !before && spans.insert(sequence);
    if !first {
        tracing::debug!(sequence, "buffer: this reading was released before");
    }
    first
}

impl LaneChunkSettled {
    fn apply(&self, tx: &mut Statements<'_>, books: &mut Books, tools: &mut Tools) -> Result<(), WriteError> {
        let row = tx.find_lane_chunk.query_row((self.chunk, self.lane.0), |row| {
            Ok((sequence(row.get(0)?), sequence(row.get(1)?), row.get::<_, Vec<u8>>(2)?))
        });
        let Some((first, last, body)) = row.optional()? else {
            tracing::debug!(
                lane = self.lane.0,
                chunk = self.chunk,
                "buffer: this chunk of a parked topic was removed before"
            );
            return Ok(());
        };
        let events = match tools.reader.read(&body, first, last) {
            Ok(events) => events,
            Err(damage) => {
                tracing::error!(chunk = self.chunk, %damage, "buffer: a chunk of a parked topic is damaged; its \
                     readings stay in the file and are not sent");
                return Ok(());
            }
        };
        // custody rule 2: only what is accounted for, one by one, goes.
        let settled: BTreeSet<Sequence> =
            self.delivered.iter().map(Delivered::sequence).chain(self.dead.iter().map(|d| d.sequence)).collect();
        let reports = self.delivered.len() + self.dead.len();
        if reports != events.len() || !events.iter().all(|event| settled.contains(&event.sequence)) {
            let held = events.len();
            tracing::error!(
                chunk = self.chunk,
                held,
                reports,
                "buffer: it was asked to release a chunk whose \
                 readings are not all confirmed, which is a bug; the chunk stays"
            );
            return Ok(());
        }
        tx.delete_lane_chunk.execute([self.chunk])?;
        copies::to_dead_letters(&self.dead, &events, tx, books, tools)?;
        for proof in &self.delivered {
            books.ledger.delivered(proof.route(), 1);
        }
        let gone = u64::try_from(events.len()).unwrap_or(u64::MAX);
        let held = books.lanes.get(&self.lane).map_or(0, |lane| lane.held).saturating_sub(gone);
        copies::set_lane_held(self.lane, held, tx, books)
    }
}
