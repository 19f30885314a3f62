//! The starts of the agent on this buffer: each draws a random number, its instance, which every watermark bears.
//!
//! A watermark of an instance that is not in the table, or that reaches further than that instance can have sent, was
//! written by somebody else with this buffer's identity: a cloned card, or a copy that was restored from a backup. What
//! it says is not true of the events that are held here. So a number is durable before it is used, and when a start ends
//! the last sequence it can have sent is written beside it, by the next one.

use rusqlite::Connection;
use uuid::Uuid;

use super::books::Books;
use super::error::{row_id, sequence};
use super::{Lives, clock};
use crate::event::Sequence;
use crate::watermark::Instance;

/// Starts that are remembered: 700 KB, and one a day for 27 years. A watermark of an older one would be taken for somebody
/// else's, which repeats events and loses none.
const MOST: i64 = 10_000;

/// Draws a number for this start and writes it down. A disk that cannot take it is no reason not to deliver, which is
/// what makes room: then the next start may take this one for somebody else, and repeat.
pub(super) fn begin(connection: &Connection, books: &Books) -> Lives {
    let present = Instance(Uuid::new_v4().as_u128());
    let last = books.next.saturating_sub(1);
    let (earlier, former) = enter(connection, present, last).unwrap_or_else(|error| {
        tracing::error!(%error, "buffer: this start could not be written down; after it, readings may come twice");
        (read_earlier(connection, last).unwrap_or_default(), read_former(connection).unwrap_or_default())
    });
    Lives { present, earlier, watermark: books.watermark, former }
}

type Earlier = Vec<(Instance, Sequence)>;
type Former = Vec<(Uuid, Sequence)>;

fn enter(connection: &Connection, present: Instance, last: Sequence) -> rusqlite::Result<(Earlier, Former)> {
    let tx = connection.unchecked_transaction()?;
    tx.execute("UPDATE life SET last = ?1 WHERE last IS NULL", [row_id(last)])?;
    let earlier = read_earlier(&tx, last)?;
    let former = read_former(&tx)?;
    tx.execute("INSERT INTO life (instance, started_ms) VALUES (?1, ?2)", (present.0.to_be_bytes(), clock::now_ms()))?;
    tx.execute("DELETE FROM life WHERE id <= (SELECT max(id) FROM life) - ?1", [MOST])?;
    tx.commit()?;
    Ok((earlier, former))
}

fn read_earlier(connection: &Connection, last: Sequence) -> rusqlite::Result<Earlier> {
    let mut lives = connection.prepare("SELECT instance, last FROM life")?;
    let rows = lives.query_map([], |row| {
        let known: Option<i64> = row.get(1)?;
        Ok((Instance(u128::from_be_bytes(row.get(0)?)), known.map_or(last, sequence)))
    })?;
    rows.collect()
}

fn read_former(connection: &Connection) -> rusqlite::Result<Former> {
    let mut former = connection.prepare("SELECT buffer_id, last FROM former ORDER BY id")?;
    let rows = former.query_map([], |row| Ok((Uuid::from_bytes(row.get(0)?), sequence(row.get(1)?))))?;
    rows.collect()
}
