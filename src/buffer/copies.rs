//! Copies: events that move within the file, out of a chunk into the dead letters or into the lane of a Kafka topic.
//!
//! A copy takes room before its source goes, so it is kept as small as the source: what moves together is written as
//! chunks, not as rows of one event each (a reading of 10 compressed bytes was a row of 130). How much moves in one
//! transaction is the forwarder's bound (`forward/settlement_builder.rs`): what a transaction moves is in memory meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use rusqlite::OptionalExtension;

use super::books::{Books, Lane};
use super::chunk::{ChunkReader, ChunkWriter, Extent};
use super::error::{WriteError, is_unreadable, row_id, sequence};
use super::settlement::{DeadLetter, LaneMove, Parked};
use super::statements::Statements;
use super::{LaneId, clock};
use crate::event::{RouteId, Sequence, Stored};
#[cfg(feature = "planted")]
use crate::planted::{Bug, planted};

/// What transactions need beside the database; kept, because its memory is used again.
pub(super) struct Tools {
    pub(super) writer: ChunkWriter,
    pub(super) reader: ChunkReader,
    /// What should have been copied and could not be read: it is held, and forward is told once that is on disk.
    pub(super) unread: BTreeSet<Sequence>,
}

/// Copies events of the main lane; their chunks stay where they are. Returns those that could not be read.
pub(super) fn out_of_main_lane(
    dead: &[DeadLetter],
    parked: &[Parked],
    tx: &mut Statements<'_>,
    books: &mut Books,
    tools: &mut Tools,
) -> Result<BTreeSet<Sequence>, WriteError> {
    let wanted: BTreeSet<Sequence> =
        dead.iter().map(|letter| letter.sequence).chain(parked.iter().map(|parked| parked.sequence)).collect();
    let mut chunks = Chunks::default();
    let mut events = Vec::with_capacity(wanted.len());
    // Once through the chunks, in their order, whatever the order of what is wanted.
    for sequence in wanted {
        if let Some(event) = chunks.event(sequence, tx, tools)? {
            events.push(by_itself(event));
        }
    }
    to_dead_letters(dead, &events, tx, books, tools)?;
    to_lanes(parked, &events, tx, books, tools)?;
    Ok(chunks.unread)
}

/// Moves events out of a chunk of a lane. What is not named stays, in its place.
pub(super) fn out_of_lane(
    moved: &LaneMove,
    tx: &mut Statements<'_>,
    books: &mut Books,
    tools: &mut Tools,
) -> Result<(), WriteError> {
    let LaneMove { lane, chunk, parked, dead } = moved;
    let row = tx.find_lane_chunk.query_row((chunk, lane.0), |row| {
        Ok((sequence(row.get(0)?), sequence(row.get(1)?), row.get::<_, Vec<u8>>(2)?))
    });
    let Some((first, last, body)) = row.optional()? else {
        tracing::debug!(lane = lane.0, chunk, "buffer: this chunk of a parked topic was removed before");
        return Ok(());
    };
    let events = match tools.reader.read(&body, first, last) {
        Ok(events) => events,
        Err(damage) => {
            tracing::error!(chunk, %damage, "buffer: a chunk of a parked topic is damaged; its readings stay in the \
                 file and are not sent");
            return Ok(());
        }
    };
    let leaving: BTreeSet<Sequence> =
        dead.iter().map(|letter| letter.sequence).chain(parked.iter().map(|parked| parked.sequence)).collect();
    let (leaving, staying): (Vec<Stored>, Vec<Stored>) =
        events.into_iter().partition(|event| leaving.contains(&event.sequence));
    // The source goes first, so that its pages are there for the copies.
    tools.writer.discard();
    for event in &staying {
        tools.writer.push(event)?;
    }
    match tools.writer.take()? {
        Some((Extent { first, last, oldest_ms, .. }, body)) => {
            tx.update_lane_chunk.execute((chunk, row_id(first), row_id(last), oldest_ms, body))?;
        }
        None => {
            tx.delete_lane_chunk.execute([chunk])?;
        }
    }
    let gone = u64::try_from(leaving.len()).unwrap_or(u64::MAX);
    let held = books.lanes.get(lane).map_or(0, |lane| lane.held).saturating_sub(gone);
    set_lane_held(*lane, held, tx, books)?;
    to_dead_letters(dead, &leaving, tx, books, tools)?;
    to_lanes(parked, &leaving, tx, books, tools)
}

/// Writes those of `events`, which are in order, that became dead letters: what has one topic, one route and one reason
/// together.
pub(super) fn to_dead_letters(
    dead: &[DeadLetter],
    events: &[Stored],
    tx: &mut Statements<'_>,
    books: &mut Books,
    tools: &mut Tools,
) -> Result<(), WriteError> {
    let mut alike: BTreeMap<(&str, RouteId, &str), BTreeSet<Sequence>> = BTreeMap::new();
    for DeadLetter { sequence, route, kafka_topic, reason } in dead {
        alike.entry((kafka_topic, *route, reason)).or_default().insert(*sequence);
    }
    let at_ms = clock::now_ms();
    for ((kafka_topic, route, reason), sequences) in alike {
        let write = |tx: &mut Statements<'_>, tools: &mut Tools| -> Result<(), WriteError> {
            if let Some((Extent { first, last, .. }, body)) = tools.writer.take()? {
                let ends = (row_id(first), row_id(last));
                tx.insert_dead_letter.execute((ends.0, ends.1, at_ms, kafka_topic, route.0, reason, body))?;
            }
            Ok(())
        };
        tools.writer.discard();
        for event in sequences.into_iter().filter_map(|sequence| find(events, sequence)) {
            books.ledger.dead_lettered(route);
            let full = tools.writer.push(event)?;
            #[cfg(feature = "planted")]
            let full = full || planted(Bug::RowADeadLetter);
            if full {
                write(tx, tools)?;
            }
        }
        write(tx, tools)?;
    }
    Ok(())
}

/// Writes those of `events`, which are in order, that are parked, behind what their lanes hold.
fn to_lanes(
    parked: &[Parked],
    events: &[Stored],
    tx: &mut Statements<'_>,
    books: &mut Books,
    tools: &mut Tools,
) -> Result<(), WriteError> {
    let mut by_topic: BTreeMap<&Arc<str>, BTreeSet<Sequence>> = BTreeMap::new();
    for parked in parked {
        by_topic.entry(&parked.kafka_topic).or_default().insert(parked.sequence);
    }
    for (topic, sequences) in by_topic {
        let lane = lane_of(topic, tx, books)?;
        let mut moved = 0_u64;
        tools.writer.discard();
        for event in sequences.into_iter().filter_map(|sequence| find(events, sequence)) {
            moved += 1;
            if tools.writer.push(event)? {
                insert_lane_chunk(lane, tx, tools)?;
            }
        }
        insert_lane_chunk(lane, tx, tools)?;
        let held = books.lanes.get(&lane).map_or(0, |lane| lane.held).saturating_add(moved);
        set_lane_held(lane, held, tx, books)?;
    }
    Ok(())
}

fn find(events: &[Stored], wanted: Sequence) -> Option<&Stored> {
    events.binary_search_by_key(&wanted, |event| event.sequence).ok().and_then(|at| events.get(at))
}

/// A copy that does not keep the chunk in memory that it was read from.
fn by_itself(stored: &Stored) -> Stored {
    let mut copy = stored.clone();
    copy.event.payload = Bytes::copy_from_slice(&stored.event.payload);
    if let Some(data) = copy.event.properties.as_mut().and_then(|properties| properties.correlation_data.as_mut()) {
        *data = Bytes::copy_from_slice(data);
    }
    copy
}

/// Chunks of the main lane, for copying events out of them.
#[derive(Default)]
struct Chunks {
    /// The last one: neighbours move together.
    last: Option<ReadChunk>,
    /// What could not be read.
    unread: BTreeSet<Sequence>,
}

struct ReadChunk {
    first: Sequence,
    last: Sequence,
    /// Empty when it is damaged.
    events: Vec<Stored>,
}

impl Chunks {
    /// The event with that sequence; `None` when its chunk is damaged.
    fn event(
        &mut self,
        wanted: Sequence,
        tx: &mut Statements<'_>,
        tools: &mut Tools,
    ) -> Result<Option<&Stored>, WriteError> {
        let chunk = match self.last.take().filter(|chunk| chunk.first <= wanted && wanted <= chunk.last) {
            Some(chunk) => chunk,
            None => ReadChunk::read(tx, tools, wanted)?,
        };
        let events = &self.last.insert(chunk).events;
        let event = events.binary_search_by_key(&wanted, |event| event.sequence).ok().and_then(|at| events.get(at));
        if event.is_none() {
            self.unread.insert(wanted);
        }
        Ok(event)
    }
}

impl ReadChunk {
    fn read(tx: &mut Statements<'_>, tools: &mut Tools, wanted: Sequence) -> Result<Self, WriteError> {
        let missing = Self { first: wanted, last: wanted, events: Vec::new() };
        let row = tx.find_chunk.query_row([row_id(wanted)], |row| {
            Ok((sequence(row.get(0)?), sequence(row.get(1)?), row.get::<_, Vec<u8>>(2)?))
        });
        match row.optional() {
            Ok(Some((first, last, body))) if last >= wanted => {
                let events = tools.reader.read(&body, first, last).unwrap_or_else(|damage| {
                    tracing::error!(first, last, %damage, "buffer: a chunk is damaged; its readings cannot be moved \
                         within the file");
                    Vec::new()
                });
                Ok(Self { first, last, events })
            }
            Ok(_) => {
                tracing::error!(sequence = wanted, "buffer: a reading that should be held is in no chunk");
                Ok(missing)
            }
            Err(error) if is_unreadable(&error) => {
                tracing::error!(sequence = wanted, %error, "buffer: a chunk cannot be read; this reading cannot be \
                     moved within the file");
                Ok(missing)
            }
            Err(error) => Err(error.into()),
        }
    }
}

fn lane_of(topic: &Arc<str>, tx: &mut Statements<'_>, books: &mut Books) -> Result<LaneId, WriteError> {
    if let Some((id, _)) = books.lanes.iter().find(|(_, lane)| lane.kafka_topic == *topic) {
        return Ok(*id);
    }
    let id = LaneId(tx.insert_lane.insert([&**topic])?);
    books.lanes.insert(id, Lane { kafka_topic: Arc::clone(topic), held: 0 });
    Ok(id)
}

/// A lane without events goes.
pub(super) fn set_lane_held(
    id: LaneId,
    held: u64,
    tx: &mut Statements<'_>,
    books: &mut Books,
) -> Result<(), WriteError> {
    if held == 0 {
        books.lanes.remove(&id);
        tx.delete_lane.execute([id.0])?;
    } else {
        if let Some(lane) = books.lanes.get_mut(&id) {
            lane.held = held;
        }
        tx.update_lane.execute((id.0, row_id(held)))?;
    }
    Ok(())
}

fn insert_lane_chunk(lane: LaneId, tx: &mut Statements<'_>, tools: &mut Tools) -> Result<(), WriteError> {
    if let Some((Extent { first, last, oldest_ms, .. }, body)) = tools.writer.take()? {
        tx.insert_lane_chunk.execute((lane.0, row_id(first), row_id(last), oldest_ms, body))?;
    }
    Ok(())
}
