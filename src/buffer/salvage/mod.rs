//! A database that SQLite cannot work with: all that can be read of it goes into a new one, under the same identity.
//!
//! ```text
//!   buffer.db (damaged) ──copy──▶ buffer.db.new ──complete, synced──▶ buffer.db.salvaged
//!        │                                                                 │
//!        └──────────▶ buffer.db.set-aside-<ms> (kept)        buffer.db ◀───┘
//! ```
//! * A kill anywhere is harmless: an unfinished copy is begun anew, a finished one takes its place at the next start.
//! * Tables that SQLite can read are copied through it. The rows of the others are looked for page by page
//!   ([`pages`], [`rows`]), where neither a garbage page above them nor a missing head of the file is in the way. What is
//!   found so is believed when it fits its table and, if it is a chunk or the books, has its right checksum.
//! * What the books expect and nobody found is booked and declared as lost ([`mend::book_losses`]).
//! * The damaged file is kept as it was (custody rule 6). The copy needs room for what is held beside it.
//!
//! Damage that is met at work is written down in a file of its own, so that the next start knows of it; the agent then
//! begins anew in the same process.

mod pages;
mod rows;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension as _};
use uuid::Uuid;

use self::pages::Pages;
use self::rows::Row;
use super::books::{Books, StateRead};
use super::chunk::ChunkReader;
use super::error::{LoadError, OpenError, row_id, sequence};
use super::identity::{Marks, Place};
use super::schema::Database;
use super::{clock, directory, mend};
use crate::observe::systemd::still_starting;

/// Every table, those first that are few rows; `chunk` and its like are the bulk.
const TABLES: [&str; 14] = [
    "identity",
    "state",
    "route",
    "lane",
    "session",
    "life",
    "former",
    "hole",
    "unread",
    "admitted",
    "in_line",
    "dead_letter",
    "lane_chunk",
    "chunk",
];

/// What was found in the damaged file.
#[derive(Debug)]
pub(super) struct Found {
    /// Under another name now.
    pub(super) kept: Option<PathBuf>,
    pub(super) buffer_id: Uuid,
    /// Chunks of the main lane and of parked ones.
    pub(super) chunks: i64,
    pub(super) losses: mend::Losses,
}

fn beside(database: &Path, suffix: &str) -> PathBuf {
    let mut name = database.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// The next start shall rebuild the database.
pub(super) fn ask_for(database: &Path, cause: &str) -> io::Result<()> {
    let path = beside(database, ".damaged");
    let file = directory::create(&path)?;
    fs::write(&path, cause)?;
    file.sync_all()?;
    path.parent().map_or(Ok(()), directory::sync_dir)
}

/// Why it shall, if it shall.
pub(super) fn asked_for(database: &Path) -> io::Result<Option<String>> {
    match fs::read(beside(database, ".damaged")) {
        Ok(cause) => Ok(Some(String::from_utf8_lossy(&cause).into_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Puts a complete copy into the place of the damaged file, which gets another name. It is another file, but no copy that
/// somebody has made: the side file says so before.
pub(super) fn finish(database: &Path, marks: Option<&Marks>) -> Result<Option<PathBuf>, OpenError> {
    let salvaged = beside(database, ".salvaged");
    if !salvaged.exists() {
        return Ok(None);
    }
    let files = OpenError::files("replace with the rebuilt database:", database);
    if let (Some(marks), Some(dir)) = (marks, database.parent())
        && Place::of(database).differs_from(&marks.place).is_none()
    {
        Marks { place: Place::of(&salvaged), ..*marks }.write(dir).map_err(&files)?;
    }
    remove(&beside(database, ".damaged")).map_err(&files)?;
    let kept = directory::set_aside(database, clock::now_ms()).map_err(&files)?;
    fs::rename(&salvaged, database).map_err(&files)?;
    database.parent().map_or(Ok(()), directory::sync_dir).map_err(&files)?;
    Ok(kept)
}

/// Rebuilds the database beside itself and puts the new one into its place. `None`: nothing of ours was found in it, and
/// nothing has changed.
pub(super) fn rebuild(database: &Database, marks: Option<&Marks>) -> Result<Option<Found>, OpenError> {
    let path = database.path();
    let copy = beside(path, ".new");
    let files = OpenError::files("rebuild the damaged database beside", path);
    clear(&copy).map_err(&files)?;
    directory::create(&copy).map_err(&files)?;
    let copied = copy_all(database, &copy, marks);
    let found = match copied {
        Ok(Some(found)) => found,
        Ok(None) => {
            clear(&copy).map_err(&files)?;
            return Ok(None);
        }
        Err(error) => {
            // Its room is needed, and it holds nothing but copies.
            clear(&copy).map_err(&files)?;
            return Err(no_room_or(error));
        }
    };
    File::open(&copy).and_then(|file| file.sync_all()).map_err(&files)?;
    fs::rename(&copy, beside(path, ".salvaged")).map_err(&files)?;
    path.parent().map_or(Ok(()), directory::sync_dir).map_err(&files)?;
    let kept = finish(path, marks)?;
    Ok(Some(Found { kept, ..found }))
}

fn no_room_or(error: LoadError) -> OpenError {
    match error {
        LoadError::Sqlite(source) if super::error::is_full(&source) => OpenError::Disk {
            operation: "the database is damaged, and the disk has no room for a rebuilt copy; free as much room as \
                 the database takes (you may remove files with .set-aside- in their names: they are kept only for \
                 people to look at)",
            source,
        },
        LoadError::Sqlite(source) => OpenError::Disk { operation: "rebuild the damaged database", source },
        LoadError::Damaged { what, cause } => {
            tracing::error!(what, cause, "buffer: the rebuilt database is damaged as well");
            OpenError::Disk { operation: "rebuild the damaged database", source: rusqlite::Error::InvalidQuery }
        }
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// An unfinished copy goes.
fn clear(copy: &Path) -> io::Result<()> {
    ["", "-journal", "-wal", "-shm"].iter().try_for_each(|suffix| remove(&beside(copy, suffix)))
}

fn copy_all(database: &Database, copy: &Path, marks: Option<&Marks>) -> Result<Option<Found>, LoadError> {
    let to = Connection::open(copy)?;
    // One file without a log, synced as a whole at the end: until then nobody counts on it.
    to.execute_batch("PRAGMA page_size = 4096; PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; BEGIN")?;
    Database::create_tables(&to)?;
    let unread = through_sqlite(database, &to);
    if !unread.is_empty() {
        tracing::warn!(tables = ?unread, "buffer: SQLite cannot read these tables to their end; the agent reads the \
             file page by page");
        page_by_page(database, &to, &unread)?;
    }
    let chunks: i64 =
        to.query_row("SELECT (SELECT count(*) FROM chunk) + (SELECT count(*) FROM lane_chunk)", [], |row| row.get(0))?;
    let id: Option<[u8; 16]> =
        to.query_row("SELECT buffer_id FROM identity WHERE id = 1", [], |row| row.get(0)).optional()?;
    let state = Books::read_state_row(&to)?;
    if id.is_none() && matches!(state, StateRead::Damaged(_)) && chunks == 0 {
        return Ok(None);
    }
    let id = id.map(Uuid::from_bytes).or(marks.map(|marks| marks.buffer_id));
    let buffer_id = id.unwrap_or_else(|| {
        tracing::error!("buffer: the buffer's id cannot be read any more; its readings go to Kafka under a new id");
        Uuid::new_v4()
    });
    to.execute(
        "INSERT OR REPLACE INTO identity (id, buffer_id, created_ms) VALUES (1, ?1, \
         coalesce((SELECT created_ms FROM identity WHERE id = 1), ?2))",
        (buffer_id.as_bytes(), clock::now_ms()),
    )?;
    to.execute_batch("COMMIT")?;
    straighten(&to)?;
    let losses = if let StateRead::Sound(mut books) = state {
        let flaws = books.load_rows(&to)?;
        to.execute_batch("BEGIN")?;
        let losses = mend::book_losses(&to, &mut books)?;
        to.execute_batch("COMMIT")?;
        mend::rows(&to, &mut books, &flaws)?;
        losses
    } else {
        mend::books_anew(&to, marks)?;
        mend::Losses::default()
    };
    to.close().map_err(|(_, error)| error)?;
    Ok(Some(Found { kept: None, buffer_id, chunks, losses }))
}

/// Table by table through SQLite; those it could not read to the end are given back.
fn through_sqlite(database: &Database, to: &Connection) -> BTreeSet<&'static str> {
    // SQLite takes an empty file for a new database, and deletes the log beside it.
    let is_empty = fs::metadata(database.path()).is_ok_and(|metadata| metadata.len() == 0);
    let Some(from) = (!is_empty).then(|| database.open_damaged().ok()).flatten() else { return TABLES.into() };
    let failed = |table: &&str| {
        let copied = copy_table(&from, to, table);
        if let Err(error) = &copied {
            tracing::warn!(table, %error, "buffer: SQLite cannot read a table of the damaged database to its end");
        }
        copied.is_err()
    };
    TABLES.into_iter().filter(failed).collect()
}

fn copy_table(from: &Connection, to: &Connection, table: &str) -> rusqlite::Result<()> {
    let mut select = from.prepare(&format!("SELECT * FROM {table}"))?;
    let names = select.column_names().collect::<Vec<_>>().join(", ");
    let count = select.column_count();
    let places = vec!["?"; count].join(", ");
    let mut insert = to.prepare(&format!("INSERT OR IGNORE INTO {table} ({names}) VALUES ({places})"))?;
    let mut rows = select.query([])?;
    let mut row_is_bad = None;
    while let Some(row) = rows.next()? {
        still_starting();
        let values = (0..count).map(|at| row.get::<_, Value>(at)).collect::<rusqlite::Result<Vec<_>>>();
        // A row that does not fit its table is left out; its neighbours are not to blame.
        if let Err(error) = values.and_then(|values| insert.execute(rusqlite::params_from_iter(values))) {
            if super::error::is_full(&error) {
                return Err(error);
            }
            row_is_bad.get_or_insert(error);
        }
    }
    row_is_bad.map_or(Ok(()), Err)
}

/// Looks at each page for rows of these tables.
fn page_by_page(database: &Database, to: &Connection, tables: &BTreeSet<&str>) -> Result<(), LoadError> {
    let Ok(pages) = Pages::open(database.path(), &database.wal_path()) else { return Ok(()) };
    let free = pages.free();
    let shapes = tables.iter().map(|table| Shape::of(table, to)).collect::<rusqlite::Result<Vec<_>>>()?;
    for number in (1..=pages.count()).filter(|number| !free.contains(number)) {
        still_starting();
        let Some(page) = pages.read(number) else { continue };
        for row in rows::rows(number, &page, &pages) {
            if let Some(shape) = shapes.iter().find(|shape| shape.fits(&row)) {
                shape.insert(row, to)?;
            }
        }
    }
    Ok(())
}

/// What a row of a table looks like.
struct Shape {
    table: String,
    columns: Vec<Column>,
    /// The first column is the row's id and stands beside the row, not in it.
    has_id: bool,
}

struct Column {
    kind: String,
    may_be_null: bool,
}

impl Shape {
    fn of(table: &str, connection: &Connection) -> rusqlite::Result<Self> {
        let mut info = connection.prepare("SELECT type, \"notnull\" FROM pragma_table_info(?1) ORDER BY cid")?;
        let columns =
            info.query_map([table], |row| Ok(Column { kind: row.get(0)?, may_be_null: row.get::<_, i64>(1)? == 0 }))?;
        let columns = columns.collect::<rusqlite::Result<Vec<_>>>()?;
        Ok(Self { table: table.to_owned(), columns, has_id: !["session", "admitted"].contains(&table) })
    }

    fn fits(&self, row: &Row) -> bool {
        let mut pairs = self.columns.iter().zip(&row.columns);
        let begins_right = match (row.id, self.has_id) {
            (Some(_), true) => pairs.next().is_some_and(|(_, value)| *value == Value::Null),
            (None, false) => true,
            (Some(_), false) | (None, true) => false,
        };
        let fits = |(column, value): (&Column, &Value)| match value {
            Value::Null => column.may_be_null,
            Value::Integer(_) => column.kind == "INTEGER",
            Value::Text(_) => column.kind == "TEXT",
            Value::Blob(_) => column.kind == "BLOB",
            Value::Real(_) => false,
        };
        begins_right && self.columns.len() == row.columns.len() && pairs.all(fits) && self.is_sensible(row)
    }

    /// Two tables have rows of one form: the start of a life has the time in the first number, a former identity in the
    /// second. In doubt it is a life, of which one too many does no harm.
    fn is_sensible(&self, row: &Row) -> bool {
        /// In milliseconds 1973; as a sequence, more readings than a gateway sees.
        const TIME: i64 = 100_000_000_000;
        const LONGEST_SPAN: i64 = 1 << 24;
        let is_former = matches!(row.columns.as_slice(),
            [_, Value::Blob(_), Value::Integer(last), Value::Integer(ended_ms)] if *last < TIME && *ended_ms >= TIME);
        // A span of events is as long as a chunk; the mark of a configuration is any number.
        let is_span = matches!((row.id, row.columns.as_slice()),
            (Some(first), [_, Value::Integer(last)]) if (0..LONGEST_SPAN).contains(&last.saturating_sub(first)));
        match self.table.as_str() {
            "life" => !is_former,
            "former" => is_former,
            "unread" => is_span,
            "in_line" => !is_span,
            "chunk" | "lane_chunk" => row.columns.last().is_some_and(|body| extent(body).is_some()),
            _ => true,
        }
    }

    fn insert(&self, row: Row, to: &Connection) -> rusqlite::Result<()> {
        let Row { id, mut columns } = row;
        if let (Some(id), Some(first)) = (id, columns.first_mut()) {
            *first = Value::Integer(id);
        }
        let places = vec!["?"; columns.len()].join(", ");
        let mut insert = to.prepare(&format!("INSERT OR IGNORE INTO {} VALUES ({places})", self.table))?;
        match insert.execute(rusqlite::params_from_iter(columns)) {
            Err(error) if super::error::is_full(&error) => Err(error),
            Ok(_) | Err(_) => Ok(()),
        }
    }
}

/// First and last sequence of a chunk that is what was written.
fn extent(body: &Value) -> Option<(u64, u64)> {
    let Value::Blob(body) = body else { return None };
    ChunkReader::default().extent(body).ok()
}

/// A chunk's row says what the chunk says; where the chunk cannot be read, the row reaches no further than the next one.
fn straighten(to: &Connection) -> Result<(), LoadError> {
    let mut reader = ChunkReader::default();
    let mut wrong = Vec::new();
    {
        let mut chunks = to.prepare("SELECT first, last, body FROM chunk ORDER BY first DESC")?;
        let mut rows = chunks.query([])?;
        let mut behind = i64::MAX;
        while let Some(row) = rows.next()? {
            still_starting();
            let (first, last) = (row.get::<_, i64>(0)?, row.get::<_, i64>(1)?);
            let body = row.get_ref(2)?.as_blob().map_err(rusqlite::Error::from)?;
            let (right_first, right_last) = match reader.extent(body) {
                Ok((first, last)) => (row_id(first), row_id(last)),
                Err(_) if behind == i64::MAX => (first, first),
                Err(_) => (first, last.clamp(first, behind.saturating_sub(1).max(first))),
            };
            if (first, last) != (right_first, right_last) {
                wrong.push((first, right_first, right_last));
            }
            behind = right_first;
        }
    }
    for (row, first, last) in wrong {
        tracing::warn!(first, last = sequence(last), "buffer: the row of a chunk is damaged and was repaired");
        to.execute("UPDATE OR REPLACE chunk SET first = ?2, last = ?3 WHERE first = ?1", (row, first, last))?;
    }
    Ok(())
}
