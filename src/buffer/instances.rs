//! The starts of the agent on this buffer: each draws a random number, its instance. Every watermark bears that of the
//! start that wrote it, and every reading that of the start that stored it.
//!
//! **Readings.** One start gives out a sequence once. So instance and sequence together are a reading's own, whoever sends
//! it: the buffer that was copied, the copy, or both, and under whatever buffer id. Two copies of a buffer go on with the
//! same sequences and with different instances: what they have in common is told from what each has taken in by itself.
//!
//! **Watermarks.** One of an instance that is not in the table, or that reaches further than that instance can have sent,
//! was written by somebody else with this buffer's identity: a cloned card, or a copy that was restored from a backup. What
//! it says is not true of the events that are held here. So is one that rests on a commit which is not on this disk: a
//! reading that it passes may lie in the other's dead letters or lanes. Therefore
//!
//! * custody rule 3: an instance is durable before it is used ([`enter`]); while the disk does not take it, nothing is stored, and no
//!   watermark is written;
//! * when a start ends, the next one writes beside it the last sequence that it can have sent and its last commit.
//!
//! Where somebody else is found, this buffer becomes another one ([`take_new_identity`]): what it holds may be new
//! readings under numbers that the other one has used for its own, so to go on from the other's watermark would drop them.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rusqlite::Connection;
use uuid::Uuid;

use super::books::{Books, seal_packet_ids};
use super::directory::{self, SIDE_FILE};
use super::envelope::Sealer;
use super::error::{LoadError, OpenError, row_id, sequence};
use super::identity::{Marks, Opened, Place};
use super::schema::Database;
use super::{Instances, PastInstance, clock};
use crate::event::Sequence;
use crate::settings;
use crate::watermark::Instance;

/// Starts that are remembered: 900 KB, and one a day for 27 years. Beyond, those go that nobody needs: whose readings are
/// all settled, and whose watermark is not the last one.
const MOST: i64 = 10_000;

/// This start, on its way to the disk.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) instance: Instance,
    /// The first sequence that it can give out.
    first: Sequence,
    /// The last commit of the one before that is on disk.
    commit: u64,
    is_written: Arc<AtomicBool>,
}

impl Entry {
    /// Is it on disk?
    pub(super) fn is_written(&self) -> bool {
        self.is_written.load(Ordering::Acquire)
    }

    /// Writes it down, synced whatever `sync` says: a power cut must not make a stranger of a start whose watermark is in
    /// Kafka.
    pub(super) fn write(&self, connection: &Connection) -> rusqlite::Result<()> {
        synced(connection, || enter(connection, self))?;
        self.is_written.store(true, Ordering::Release);
        Ok(())
    }
}

/// Runs a transaction that is on disk when it returns.
fn synced<T>(connection: &Connection, transaction: impl FnOnce() -> rusqlite::Result<T>) -> rusqlite::Result<T> {
    let usual: i64 = connection.pragma_query_value(None, "synchronous", |row| row.get(0))?;
    sync_commits(connection, true)?;
    let done = transaction();
    connection.pragma_update(None, "synchronous", usual)?;
    done
}

/// Between transactions: is each on disk when its COMMIT returns?
pub(super) fn sync_commits(connection: &Connection, each: bool) -> rusqlite::Result<()> {
    connection.pragma_update(None, "synchronous", if each { 2 } else { 1 })
}

/// Draws a number for this start and writes it down, or leaves that to the writer when the disk has no room. `commit` is
/// the last one before this start that is on disk.
pub(super) fn begin(connection: &Connection, books: &Books, commit: u64) -> Result<(Instances, Entry), OpenError> {
    let read = |connection: &Connection| Ok((read_earlier(connection, books, commit)?, read_former(connection)?));
    let (earlier, former) = read(connection).map_err(OpenError::disk("read the earlier starts"))?;
    let is_written = Arc::new(AtomicBool::new(false));
    let present = Instance(Uuid::new_v4().as_u128());
    let entry = Entry { instance: present, first: books.next, commit, is_written: Arc::clone(&is_written) };
    if let Err(error) = entry.write(connection) {
        tracing::error!(%error, "buffer: the disk does not take the record of this start; until it does, the agent \
             stores nothing, and with exactly-once it sends nothing: make room on the disk");
    }
    Ok((Instances { present, first: books.next, earlier, watermark: books.watermark, former, is_written }, entry))
}

/// The side file knows of a start that the database has lost. Nothing of what it stored is here, but its watermark may be
/// in Kafka.
pub(super) fn remember(
    connection: &Connection,
    opened: &Opened,
    lost: (Sequence, Sequence),
    commit: u64,
) -> rusqlite::Result<()> {
    let known: i64 = connection.query_row(
        "SELECT count(*) FROM life WHERE instance = ?1",
        [opened.instance.0.to_be_bytes()],
        |row| row.get(0),
    )?;
    if known > 0 {
        return Ok(());
    }
    let tx = connection.unchecked_transaction()?;
    close(&tx, opened.instance, lost.0.saturating_sub(1), commit)?;
    tx.execute(
        "INSERT INTO life (instance, started_ms, first, last, ended_by, word) VALUES (?1, ?2, ?3, ?4, ?5, 1)",
        (opened.instance.0.to_be_bytes(), clock::now_ms(), row_id(lost.0), row_id(lost.1), row_id(commit)),
    )?;
    tx.commit()
}

/// Gives a closed buffer a new identity, and says which. What it holds stays, with its sequences and instances; the QoS 2
/// packet ids are forgotten, because brokers and sensors have used them again with the other one: how many is said as well.
///
/// The database first, then the side file: a crash between them is found at the next start, which believes the database.
///
/// # Errors
/// When the buffer cannot be opened or written; then nothing has changed.
pub(crate) fn take_new_identity(settings: &settings::Buffer, data_dir: &Path) -> Result<(Uuid, usize), OpenError> {
    let _lock = directory::lock(data_dir)?;
    let database = Database::new(data_dir, settings);
    let connection = database.open_existing().map_err(OpenError::disk("open the database"))?;
    database.apply(&connection)?;
    let (new, books) = rename(&connection).map_err(|error| match error {
        LoadError::Sqlite(source) => OpenError::Disk { operation: "take a new identity", source },
        LoadError::Damaged { what, cause } => {
            tracing::error!(what, cause, "buffer: the buffer cannot get a new id, because its database is damaged");
            OpenError::Disk { operation: "take a new identity", source: rusqlite::Error::InvalidQuery }
        }
    })?;
    // A new id: nothing was given out under it.
    let marks = Marks::new(new, books.next - 1, Place::of(database.path()));
    marks.write(data_dir).map_err(OpenError::files("write", &data_dir.join(SIDE_FILE)))?;
    let forgotten = books.sessions.values().map(|session| session.packet_ids.len()).sum();
    Ok((new, forgotten))
}

fn rename(connection: &Connection) -> Result<(Uuid, Books), LoadError> {
    let (mut books, _said_at_the_next_start) = Books::load(connection)?;
    // Of the other one's watermarks nothing is true here.
    books.watermark = 0;
    books.transaction += 1;
    let (mut raw, mut sealer) = (Vec::new(), Sealer::default());
    let damaged = |cause: super::envelope::Damage| LoadError::Damaged { what: "state", cause: cause.to_string() };
    let state = books.seal(&mut raw, &mut sealer).map_err(damaged)?.to_vec();
    let no_ids = seal_packet_ids(&super::PacketIds::new(), &mut raw, &mut sealer).map_err(damaged)?;
    let new = Uuid::new_v4();
    let tx = connection.unchecked_transaction()?;
    tx.execute(
        "INSERT INTO former (buffer_id, last, ended_ms) SELECT buffer_id, ?1, ?2 FROM identity",
        (row_id(books.next - 1), clock::now_ms()),
    )?;
    tx.execute("UPDATE identity SET buffer_id = ?1", [new.as_bytes()])?;
    tx.execute("UPDATE session SET packet_ids = ?1", [no_ids])?;
    // They have stored what is held. Under the new id none of them has said anything.
    tx.execute("UPDATE life SET word = 0", [])?;
    tx.execute("UPDATE state SET body = ?1 WHERE id = 1", [state])?;
    tx.commit()?;
    Ok((new, books))
}

fn enter(connection: &Connection, entry: &Entry) -> rusqlite::Result<()> {
    let tx = connection.unchecked_transaction()?;
    close(&tx, entry.instance, entry.first.saturating_sub(1), entry.commit)?;
    // After a COMMIT of which nobody knows the outcome it may be there.
    tx.execute(
        "INSERT OR IGNORE INTO life (instance, started_ms, first) VALUES (?1, ?2, ?3)",
        (entry.instance.0.to_be_bytes(), clock::now_ms(), row_id(entry.first)),
    )?;
    let (least, most): (i64, i64) =
        tx.query_row("SELECT min(id), max(id) FROM life", [], |row| Ok((row.get(0)?, row.get(1)?)))?;
    if most.saturating_sub(least) >= MOST {
        tx.execute(
            "DELETE FROM life WHERE id <= ?1 AND word = 0 AND (last < first OR last < min(?2, \
                coalesce((SELECT min(first) FROM chunk), ?2), coalesce((SELECT min(first) FROM lane_chunk), ?2), \
                coalesce((SELECT min(sequence) FROM dead_letter), ?2)))",
            (most.saturating_sub(MOST), row_id(entry.first)),
        )?;
    }
    tx.commit()
}

/// The start before this one has ended.
fn close(connection: &Connection, present: Instance, last: Sequence, commit: u64) -> rusqlite::Result<()> {
    let ended = (row_id(last), row_id(commit), present.0.to_be_bytes());
    connection
        .execute("UPDATE life SET last = ?1, ended_by = ?2 WHERE last IS NULL AND instance <> ?3", ended)
        .map(|_rows| ())
}

/// Kafka's last watermark is that of one start, and the present one may write the next: the last words of all others are
/// written over.
pub(super) fn heard(connection: &Connection, of: Instance) -> rusqlite::Result<()> {
    connection.execute("UPDATE life SET word = (instance = ?1 OR last IS NULL)", [of.0.to_be_bytes()]).map(|_rows| ())
}

fn read_earlier(connection: &Connection, books: &Books, commit: u64) -> rusqlite::Result<Vec<PastInstance>> {
    let mut select = connection.prepare("SELECT instance, first, last, ended_by FROM life ORDER BY id")?;
    let rows = select.query_map([], |row| {
        let last: Option<i64> = row.get(2)?;
        Ok(PastInstance {
            instance: Instance(u128::from_be_bytes(row.get(0)?)),
            first: sequence(row.get(1)?),
            last: last.map_or(books.next - 1, sequence),
            commit: last.map_or(Ok(commit), |_| row.get(3).map(sequence))?,
        })
    })?;
    readable(rows)
}

fn read_former(connection: &Connection) -> rusqlite::Result<Vec<(Uuid, Sequence)>> {
    let mut former = connection.prepare("SELECT buffer_id, last FROM former ORDER BY id")?;
    let rows = former.query_map([], |row| Ok((Uuid::from_bytes(row.get(0)?), sequence(row.get(1)?))))?;
    readable(rows)
}

/// A row in which something else stands than was written costs no more than itself: its readings lack a header, or its
/// watermark is taken for a stranger's.
fn readable<T>(rows: impl Iterator<Item = rusqlite::Result<T>>) -> rusqlite::Result<Vec<T>> {
    use rusqlite::Error::{FromSqlConversionFailure, IntegralValueOutOfRange, InvalidColumnType};
    let mut read = Vec::new();
    for row in rows {
        match row {
            Ok(row) => read.push(row),
            Err(error @ (FromSqlConversionFailure(..) | IntegralValueOutOfRange(..) | InvalidColumnType(..))) => {
                tracing::error!(%error, "buffer: the record of an earlier start is damaged and is ignored");
            }
            Err(error) => return Err(error),
        }
    }
    Ok(read)
}
