//! Rows that can be made anew from what is held: damage costs what is damaged and no more.
//!
//! * A session's row: the session is forgotten. Its sender repeats what it has no answer to, and a QoS 2 message that was
//!   half way comes twice; nothing is lost.
//! * A parked lane's row: its events lie in rows of their own and are counted again. Where the name of the Kafka topic is
//!   gone, the lane gets a name that says so, and waits for a person under it.
//! * The books: what is settled is what no chunk holds any more ([`books_anew`]). What was delivered before is not known
//!   then, and the ledger begins with what is held.
//!
//! After a [salvage](super::salvage) the books know what should be there: what is not there is lost, and they say so
//! ([`book_losses`], custody rule 7).

use std::collections::BTreeMap;
use std::sync::Arc;

use rusqlite::Connection;
use uuid::Uuid;

use super::LaneId;
use super::books::{Books, Flaws, Lane, seal_packet_ids};
use super::chunk::ChunkReader;
use super::clock;
use super::envelope::Sealer;
use super::error::{LoadError, row_id, sequence};
use super::identity::Marks;
use super::limits::RESERVE_MOST;
use super::spans::{Settled, Spans};
use crate::event::{RouteId, Sequence, Stored};
use crate::observe::systemd::still_starting;

/// Why sequences are declared lost, for a person at the centre.
const LOST_REASON: &str = "their part of the gateway's file was damaged";

/// What went with the damaged part of a file.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Losses {
    /// Events, parked ones included.
    pub(super) events: u64,
    /// Sequences of the main lane: first and last of each span.
    pub(super) spans: Vec<(Sequence, Sequence)>,
}

/// Puts right what [`Books::load`] has left out, in one transaction.
pub(super) fn rows(connection: &Connection, books: &mut Books, flaws: &Flaws) -> Result<(), LoadError> {
    let orphans = orphaned_lanes(connection, books)?;
    if flaws.sessions.is_empty() && flaws.lanes.is_empty() && orphans.is_empty() {
        return Ok(());
    }
    let tx = connection.unchecked_transaction()?;
    if !flaws.sessions.is_empty() {
        tracing::error!(
            sessions = flaws.sessions.len(),
            first = flaws.sessions.first().map(String::as_str),
            "buffer: rows of MQTT sessions are damaged, and these sessions are forgotten: a QoS 2 message that was \
             not complete may arrive twice"
        );
        write_sessions(&tx, books)?;
    }
    if !flaws.lanes.is_empty() || !orphans.is_empty() {
        let held = walk(&tx, &books.settled)?.lanes;
        tracing::error!(
            lanes = orphans.len(),
            first = flaws.lanes.first().map(String::as_str),
            "buffer: rows with the names of parked Kafka topics are damaged; their readings are held under the names \
             unreadable-name-1, -2, …"
        );
        write_lanes(&tx, books, &held)?;
    }
    tx.commit()?;
    Ok(())
}

/// Whose it is. A bit that has flipped in the id makes no new buffer: the side file, which has a checksum, knows better.
pub(super) fn identity(connection: &Connection, marks: Option<&Marks>) -> Result<Uuid, LoadError> {
    /// Two buffers' ids differ in about sixty of their bits.
    const FLIPPED_BITS: u32 = 8;
    let id: [u8; 16] = connection.query_row("SELECT buffer_id FROM identity WHERE id = 1", [], |row| row.get(0))?;
    let found = Uuid::from_bytes(id);
    let Some(known) = marks.map(|marks| marks.buffer_id) else { return Ok(found) };
    if found == known || (found.as_u128() ^ known.as_u128()).count_ones() > FLIPPED_BITS {
        return Ok(found);
    }
    tracing::error!(%found, %known, "buffer: the buffer's id in the database is damaged; it is taken from the side \
         file");
    connection.execute("UPDATE identity SET buffer_id = ?1", [known.as_bytes()])?;
    Ok(known)
}

/// Does the last chunk reach beyond what was given out? A row that only says so is put right.
pub(super) fn ends_behind(connection: &Connection, books: &Books) -> Result<bool, LoadError> {
    let row = connection.query_row(
        "SELECT first, last, body FROM chunk WHERE first = (SELECT max(first) FROM chunk)",
        [],
        |row| Ok((row.get::<_, i64>(0)?, sequence(row.get(1)?), row.get::<_, Vec<u8>>(2)?)),
    );
    let (first, last, body) = match row {
        Err(rusqlite::Error::QueryReturnedNoRows) => return Ok(false),
        row => row?,
    };
    if last < books.next {
        return Ok(false);
    }
    let Ok((_, right)) = ChunkReader::default().extent(&body) else { return Ok(true) };
    if right >= books.next {
        return Ok(true);
    }
    tracing::error!(first, last = right, "buffer: the row of a chunk is damaged and was repaired");
    connection.execute("UPDATE chunk SET last = ?2 WHERE first = ?1", (first, row_id(right)))?;
    Ok(false)
}

/// The books from the chunks: for when the state row cannot be read. Nothing is given out twice: what may have been
/// given out is passed over.
pub(super) fn books_anew(connection: &Connection, marks: Option<&Marks>) -> Result<Books, LoadError> {
    let mut books = Books { transaction: 1, ..Books::empty() };
    let flaws = books.load_rows(connection)?;
    let mut last_seen: Sequence = 0;
    {
        let mut chunks = connection.prepare("SELECT first, last FROM chunk ORDER BY first")?;
        let mut rows = chunks.query([])?;
        while let Some(row) = rows.next()? {
            let (first, last) = (sequence(row.get(0)?), sequence(row.get(1)?));
            // Every event that is not settled is in a chunk.
            books.settled.insert_span(last_seen.saturating_add(1), first.saturating_sub(1));
            last_seen = last_seen.max(last);
        }
    }
    {
        let mut dead = connection.prepare("SELECT sequence, last, route, body FROM dead_letter")?;
        let (mut rows, mut reader) = (dead.query([])?, ChunkReader::default());
        while let Some(row) = rows.next()? {
            still_starting();
            // A row of one event says so in its numbers alone; which several are, its body says.
            let (first, last) = (sequence(row.get(0)?), sequence(row.get(1)?).max(sequence(row.get(0)?)));
            let body = row.get_ref(3)?.as_blob().map_err(rusqlite::Error::from)?;
            let events = if last == first { Vec::new() } else { reader.read(body, first, last).unwrap_or_default() };
            let route = RouteId(row.get(2)?);
            for letter in events.iter().map(|stored| stored.sequence).chain(events.is_empty().then_some(first)) {
                books.settled.insert_span(letter, letter);
                books.ledger.stored(route, 1);
                books.ledger.dead_lettered(route);
                last_seen = last_seen.max(letter);
            }
        }
    }
    each_lane_chunk(connection, |_, events| {
        for stored in events {
            books.settled.insert_span(stored.sequence, stored.sequence);
            last_seen = last_seen.max(stored.sequence);
        }
    })?;
    let given_out = marks.map_or(last_seen.saturating_add(RESERVE_MOST), |marks| marks.reserved.max(last_seen));
    // A buffer that never gave anything out begins at the beginning.
    let given_out = if last_seen == 0 && marks.is_none() { 0 } else { given_out };
    books.settled.insert_span(last_seen.saturating_add(1), given_out);
    books.next = given_out.saturating_add(1);
    let stock = walk(connection, &books.settled)?;
    for (route, events) in &stock.held {
        books.ledger.stored(*route, *events);
    }
    // Nobody knows whose they are, but they are held.
    books.ledger.stored(RouteId::UNROUTED, stock.unreadable);
    let tx = connection.unchecked_transaction()?;
    if !flaws.sessions.is_empty() {
        write_sessions(&tx, &books)?;
    }
    write_lanes(&tx, &mut books, &stock.lanes)?;
    books.write(&tx)?;
    tx.commit()?;
    let held = books.ledger.held().iter().map(|(_, events)| events).sum::<u64>();
    tracing::error!(
        held,
        next = books.next,
        "buffer: the books were damaged and are made again from what is held; how much was received and delivered \
         before is not known any more, and Kafka may get some readings twice"
    );
    Ok(books)
}

/// After a salvage: what the books say is held and is not there is lost.
pub(super) fn book_losses(connection: &Connection, books: &mut Books) -> Result<Losses, LoadError> {
    let stock = walk(connection, &books.settled)?;
    // A log that ends in the middle: what came after is here, and was never given up.
    books.next = books.next.max(stock.last.saturating_add(1));
    let mut known = books.settled.clone();
    for (first, last) in stock.present.iter() {
        known.insert_span(first, last);
    }
    let mut losses = Losses::default();
    let mut from = known.released().saturating_add(1);
    for (first, last) in known.above().chain([(books.next, books.next)]) {
        if from < first {
            losses.spans.push((from, first.saturating_sub(1)));
        }
        from = last.saturating_add(1);
    }
    let missing: Vec<_> = books
        .ledger
        .held()
        .into_iter()
        .map(|(route, held)| (route, held.saturating_sub(stock.held.get(&route).copied().unwrap_or(0))))
        .collect();
    // Whose the unreadable ones are nobody knows: they are held all the same.
    let mut still_held = stock.unreadable;
    for (route, events) in missing {
        let kept = events.min(still_held);
        still_held = still_held.saturating_sub(kept);
        losses.events = losses.events.saturating_add(books.ledger.lost(route, events.saturating_sub(kept)));
    }
    let now_ms = clock::now_ms();
    for (first, last) in &losses.spans {
        books.settled.insert_span(*first, *last);
        connection.execute(
            "INSERT OR REPLACE INTO hole (first, last, reason, at_ms) VALUES (?1, ?2, ?3, ?4)",
            (row_id(*first), row_id(*last), LOST_REASON, now_ms),
        )?;
    }
    for first in stock.stale {
        connection.execute("DELETE FROM chunk WHERE first = ?1", [first])?;
    }
    write_lanes(connection, books, &stock.lanes)?;
    books.transaction += 1;
    books.write(connection)?;
    Ok(losses)
}

/// What lies in the chunks.
#[derive(Debug, Default)]
struct Stock {
    /// Of the main lane.
    present: Spans,
    /// The highest sequence of these.
    last: Sequence,
    /// Row ids of chunks that are settled as a whole: an older copy of a page had them.
    stale: Vec<i64>,
    /// Events that are not settled, by route, parked ones included.
    held: BTreeMap<RouteId, u64>,
    /// Events that are not settled and whose chunk cannot be read.
    unreadable: u64,
    /// Events by lane.
    lanes: BTreeMap<LaneId, u64>,
}

fn walk(connection: &Connection, settled: &Settled) -> Result<Stock, LoadError> {
    let (mut stock, mut reader) = (Stock::default(), ChunkReader::default());
    let mut chunks = connection.prepare("SELECT first, last, body FROM chunk ORDER BY first")?;
    let mut rows = chunks.query([])?;
    while let Some(row) = rows.next()? {
        still_starting();
        let (first, last) = (sequence(row.get(0)?), sequence(row.get(1)?));
        let whole = last <= settled.released() || settled.span_of(first).is_some_and(|(_, end)| end >= last);
        if whole {
            stock.stale.push(row.get(0)?);
            continue;
        }
        stock.present.insert_span(first, last);
        stock.last = stock.last.max(last);
        let body = row.get_ref(2)?.as_blob().map_err(rusqlite::Error::from)?;
        match reader.read(body, first, last) {
            Ok(events) => {
                for stored in events.iter().filter(|stored| !settled.contains(stored.sequence)) {
                    let held = stock.held.entry(stored.event.route).or_default();
                    *held += 1;
                }
            }
            Err(_damage) => {
                // A chunk has far fewer; a damaged row may claim anything.
                let waiting = (first..=last).take(1 << 24).filter(|sequence| !settled.contains(*sequence)).count();
                stock.unreadable += u64::try_from(waiting).unwrap_or(u64::MAX);
            }
        }
    }
    each_lane_chunk(connection, |lane, events| {
        let count = stock.lanes.entry(lane).or_default();
        *count += u64::try_from(events.len()).unwrap_or(u64::MAX);
        for stored in events {
            let held = stock.held.entry(stored.event.route).or_default();
            *held += 1;
        }
    })?;
    Ok(stock)
}

/// The events of every chunk of every parked lane; none where it cannot be read.
fn each_lane_chunk(connection: &Connection, mut with: impl FnMut(LaneId, &[Stored])) -> Result<(), LoadError> {
    let mut reader = ChunkReader::default();
    let mut chunks = connection.prepare("SELECT lane, first, last, body FROM lane_chunk ORDER BY id")?;
    let mut rows = chunks.query([])?;
    while let Some(row) = rows.next()? {
        still_starting();
        let (first, last) = (sequence(row.get(1)?), sequence(row.get(2)?));
        let body = row.get_ref(3)?.as_blob().map_err(rusqlite::Error::from)?;
        let events = reader.read(body, first, last).unwrap_or_default();
        with(LaneId(row.get(0)?), &events);
    }
    Ok(())
}

/// Lanes that hold chunks and have no row.
fn orphaned_lanes(connection: &Connection, books: &Books) -> Result<Vec<LaneId>, LoadError> {
    // One step in the index for each lane, however many chunks it has.
    let mut next = connection.prepare("SELECT min(lane) FROM lane_chunk WHERE lane > ?1")?;
    let (mut orphans, mut lane) = (Vec::new(), i64::MIN);
    while let Some(found) = next.query_row([lane], |row| row.get::<_, Option<i64>>(0))? {
        if !books.lanes.contains_key(&LaneId(found)) {
            orphans.push(LaneId(found));
        }
        lane = found;
    }
    Ok(orphans)
}

/// All rows anew, so that no damaged key is in the way of finding one.
fn write_sessions(connection: &Connection, books: &Books) -> Result<(), LoadError> {
    let (mut raw, mut sealer) = (Vec::new(), Sealer::default());
    connection.execute("DELETE FROM session", [])?;
    let mut insert =
        connection.prepare("INSERT INTO session (name, used_ms, expiry_s, packet_ids) VALUES (?1, ?2, ?3, ?4)")?;
    for (name, session) in &books.sessions {
        let body = seal_packet_ids(&session.packet_ids, &mut raw, &mut sealer)
            .map_err(|cause| LoadError::Damaged { what: "session", cause: cause.to_string() })?;
        insert.execute((&**name, session.used_ms, session.expiry_s, body))?;
    }
    Ok(())
}

/// All rows anew, with what each lane holds.
fn write_lanes(connection: &Connection, books: &mut Books, held: &BTreeMap<LaneId, u64>) -> Result<(), LoadError> {
    books.lanes.retain(|id, _| held.contains_key(id));
    for (id, held) in held {
        let unknown = || Lane { kafka_topic: Arc::from(format!("unreadable-name-{}", id.0)), held: 0 };
        books.lanes.entry(*id).or_insert_with(unknown).held = *held;
    }
    connection.execute("DELETE FROM lane", [])?;
    let mut insert = connection.prepare("INSERT INTO lane (id, kafka_topic, held) VALUES (?1, ?2, ?3)")?;
    for (id, lane) in &books.lanes {
        insert.execute((id.0, &*lane.kafka_topic, row_id(lane.held)))?;
    }
    Ok(())
}
