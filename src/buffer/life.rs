//! The starts of the agent on this buffer: each draws a random number, its instance, which every watermark bears.
//!
//! A watermark of an instance that is not in the table, or that reaches further than that instance can have sent, was
//! written by somebody else with this buffer's identity: a cloned card, or a copy that was restored from a backup. What
//! it says is not true of the events that are held here. So a number is durable before it is used, and when a start ends
//! the last sequence it can have sent is written beside it, by the next one.
//!
//! Where somebody else is found, this buffer becomes another one ([`take_new_identity`]): what it holds may be new
//! readings under numbers that the other one has used for its own, so to go on from the other's watermark would drop them.

use std::path::Path;

use rusqlite::Connection;
use uuid::Uuid;

use super::books::{Books, seal_packet_ids};
use super::envelope::Sealer;
use super::error::{LoadError, OpenError, row_id, sequence};
use super::identity::{FILE_NAME, Marks};
use super::schema::Database;
use super::{Lives, clock};
use crate::config;
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

/// Gives a closed buffer a new identity, and says which. What it holds stays, with its sequences; the QoS 2 packet ids
/// are forgotten, because brokers and sensors have used them again with the other one: how many is said as well.
///
/// The database first, then the side file: a crash between them is found at the next start, which believes the database.
///
/// # Errors
/// When the buffer cannot be opened or written; then nothing has changed.
pub fn take_new_identity(settings: &config::Buffer, data_dir: &Path) -> Result<(Uuid, usize), OpenError> {
    let _lock = super::open::lock(data_dir)?;
    let database = Database::new(data_dir, settings);
    let connection = database.open_existing().map_err(OpenError::disk("open the database"))?;
    database.apply(&connection)?;
    let (new, books) = rename(&connection).map_err(|error| match error {
        LoadError::Sqlite(source) => OpenError::Disk { operation: "take a new identity", source },
        LoadError::Damaged { what, cause } => {
            tracing::error!(what, cause, "buffer: a new identity cannot be taken");
            OpenError::Disk { operation: "take a new identity", source: rusqlite::Error::InvalidQuery }
        }
    })?;
    let committed = books.next.saturating_sub(1);
    let reserved = Marks::read(data_dir).ok().flatten().map_or(0, |marks| marks.reserved);
    let marks = Marks { buffer_id: new, reserved, committed }.reserving(committed);
    marks.write(data_dir).map_err(OpenError::files("write", &data_dir.join(FILE_NAME)))?;
    let forgotten = books.sessions.values().map(|session| session.packet_ids.len()).sum();
    Ok((new, forgotten))
}

fn rename(connection: &Connection) -> Result<(Uuid, Books), LoadError> {
    let (mut books, _said_at_the_next_start) = Books::load(connection)?;
    // Of the other one's watermarks nothing is true here.
    books.watermark = 0;
    books.transaction = books.transaction.saturating_add(1);
    let (mut raw, mut sealer) = (Vec::new(), Sealer::default());
    let damaged = |cause: super::envelope::Damage| LoadError::Damaged { what: "state", cause: cause.to_string() };
    let state = books.seal(&mut raw, &mut sealer).map_err(damaged)?.to_vec();
    let no_ids = seal_packet_ids(&super::PacketIds::new(), &mut raw, &mut sealer).map_err(damaged)?;
    let new = Uuid::new_v4();
    let tx = connection.unchecked_transaction()?;
    tx.execute(
        "INSERT INTO former (buffer_id, last, ended_ms) SELECT buffer_id, ?1, ?2 FROM identity",
        (row_id(books.next.saturating_sub(1)), clock::now_ms()),
    )?;
    tx.execute("UPDATE identity SET buffer_id = ?1", [new.as_bytes()])?;
    tx.execute("UPDATE session SET packet_ids = ?1", [no_ids])?;
    tx.execute("DELETE FROM life", [])?;
    tx.execute("UPDATE state SET body = ?1 WHERE id = 1", [state])?;
    tx.commit()?;
    Ok((new, books))
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
