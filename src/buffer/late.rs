//! Events that could not be read when their turn came and can be read now get new numbers, behind all others.
//!
//! Under their old ones they would come to Kafka behind later readings of their topic, where readers that go by the highest
//! number take them for repeats and drop them. So the old numbers are declared as holes, and the events go out as if they
//! came now, with the time at which they arrived. Nothing of them was delivered: what was passed by is written down before
//! a watermark passes it.

use std::path::Path;
use std::time::Duration;

use rusqlite::Connection;

use super::books::Books;
use super::chunk::{ChunkReader, ChunkWriter};
use super::clock;
use super::directory;
use super::error::{LoadError, OpenError, row_id, sequence};
use super::identity::{self, Marks, Opened};
use super::schema::Database;
use super::spans::Spans;
use crate::event::{Sequence, Stored};
use crate::settings::{self, Compression};
use crate::watermark::Instance;

/// Why the old numbers will never come, for a person at the centre.
const REASON: &str = "the gateway could not read it in time; it was sent later, under a later number";

/// Gives new numbers to what can be read now, chunk by chunk, each in a transaction of its own. They are numbers of this
/// start, which is on disk.
pub(super) fn renumber(
    connection: &Connection,
    books: &mut Books,
    mut marks: Marks,
    instance: Instance,
    database: &Database,
    data_dir: &Path,
    settings: &settings::Buffer,
) -> Result<Marks, OpenError> {
    let disk = OpenError::disk("read what could not be read before");
    let compress = settings.compression == Compression::Zstd;
    let (mut writer, mut reader) = (ChunkWriter::new(compress), ChunkReader::default());
    for (first, last) in spans(connection).map_err(&disk)? {
        let Some(events) = readable(connection, &mut reader, books, first, last).map_err(&disk)? else { continue };
        let count = u64::try_from(events.len()).unwrap_or(u64::MAX);
        let (next, newest) = (books.next, books.next - 1 + count);
        // No sequence is given out before the side file says so.
        let opened = Some(Opened { instance, boot: identity::boot(), lazy: database.is_lazy() });
        marks = Marks { opened, closed: false, ..marks }.reserving(newest, count, Duration::ZERO);
        marks.write(data_dir).map_err(OpenError::files("write", &data_dir.join(directory::SIDE_FILE)))?;
        move_behind(connection, books, &mut writer, events, (first, last)).map_err(|error| match error {
            LoadError::Sqlite(source) => OpenError::Disk { operation: "give late readings new numbers", source },
            LoadError::Damaged { .. } => {
                OpenError::Disk { operation: "give late readings new numbers", source: rusqlite::Error::InvalidQuery }
            }
        })?;
        tracing::warn!(
            first,
            last,
            events = count,
            next,
            "buffer: readings that could not be read before can be read now; the agent sends them to Kafka under new \
             numbers"
        );
    }
    Ok(marks)
}

fn spans(connection: &Connection) -> rusqlite::Result<Vec<(Sequence, Sequence)>> {
    let mut unread = connection.prepare("SELECT first, last FROM unread ORDER BY first")?;
    let rows = unread.query_map([], |row| Ok((sequence(row.get(0)?), sequence(row.get(1)?))))?;
    rows.collect()
}

/// The events of a span that are not settled; `None` while one of its chunks cannot be read.
fn readable(
    connection: &Connection,
    reader: &mut ChunkReader,
    books: &Books,
    first: Sequence,
    last: Sequence,
) -> rusqlite::Result<Option<Vec<Stored>>> {
    let mut chunks = connection.prepare(
        "SELECT first, last, body FROM chunk WHERE first <= ?2 AND last >= ?1 AND first >= \
         coalesce((SELECT max(first) FROM chunk WHERE first <= ?1), ?1) ORDER BY first",
    )?;
    let mut rows = chunks.query((row_id(first), row_id(last)))?;
    let mut events = Vec::new();
    while let Some(row) = rows.next()? {
        let body = row.get_ref(2)?.as_blob().map_err(rusqlite::Error::from)?;
        let Ok(read) = reader.read(body, sequence(row.get(0)?), sequence(row.get(1)?)) else { return Ok(None) };
        let is_held =
            |stored: &Stored| (first..=last).contains(&stored.sequence) && !books.settled.contains(stored.sequence);
        events.extend(read.into_iter().filter(is_held));
    }
    Ok(Some(events))
}

fn move_behind(
    connection: &Connection,
    books: &mut Books,
    writer: &mut ChunkWriter,
    events: Vec<Stored>,
    (first, last): (Sequence, Sequence),
) -> Result<(), LoadError> {
    let damaged = |cause: super::envelope::Damage| LoadError::Damaged { what: "chunk", cause: cause.to_string() };
    let tx = connection.unchecked_transaction()?;
    writer.discard();
    let (now_ms, mut holes) = (clock::now_ms(), Spans::default());
    let insert = |writer: &mut ChunkWriter| -> Result<(), LoadError> {
        if let Some((extent, body)) = writer.take().map_err(damaged)? {
            tx.execute(
                "INSERT INTO chunk (first, last, oldest_ms, body) VALUES (?1, ?2, ?3, ?4)",
                (row_id(extent.first), row_id(extent.last), extent.oldest_ms, body),
            )?;
        }
        Ok(())
    };
    for Stored { sequence: old, event } in events {
        let stored = Stored { sequence: books.next, event };
        books.next += 1;
        books.settled.insert_span(old, old);
        holes.insert(old);
        if writer.push(&stored).map_err(damaged)? {
            insert(writer)?;
        }
    }
    insert(writer)?;
    for (from, to) in holes.iter() {
        tx.execute(
            "INSERT INTO hole (first, last, reason, at_ms) VALUES (?1, ?2, ?3, ?4) ON CONFLICT (first) DO NOTHING",
            (row_id(from), row_id(to), REASON, now_ms),
        )?;
    }
    tx.execute("DELETE FROM unread WHERE first = ?1", [row_id(first)])?;
    tx.execute("DELETE FROM chunk WHERE first BETWEEN ?1 AND ?2 AND last <= ?2", (row_id(first), row_id(last)))?;
    books.transaction += 1;
    books.write(&tx)?;
    tx.commit()?;
    Ok(())
}
