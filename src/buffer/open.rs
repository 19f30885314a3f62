//! Opening: what is on the disk decides what happens.
//!
//! | database | side file | then |
//! |---|---|---|
//! | readable | fits | go on |
//! | readable | none | go on, write a new one |
//! | readable | of another buffer, or damaged | go on; the side file is set aside, ERROR |
//! | readable, behind the committed mark | fits | ERROR with the numbers; go on behind the reserved mark |
//! | readable, the log's end may be missing | fits | WARN; go on behind the reserved mark |
//! | readable but for single rows | any | ERROR; these are made anew ([`mend`](super::mend)) |
//! | missing or empty | none | a new buffer |
//! | unreadable, missing or empty | any | ERROR; what can be read of it goes into a new database, under the same id; the damaged file is kept ([`salvage`](super::salvage)) |
//! | ... and nothing of ours is in it | any | ERROR: what was held is gone; what is there is set aside; a new buffer, a new id |
//! | of a newer version | any | refuse: Halt |
//!
//! custody rule 6: nothing is ever deleted here. One agent a directory: a lock file is held until the thread ends.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension};
use uuid::Uuid;

use super::books::{Books, StateRead};
use super::envelope::Sealer;
use super::error::{LoadError, OpenError, is_damage, is_full, is_unreadable, row_id, sequence};
use super::identity::{self, Marks, Place, ReadFault};
use super::schema::{self, APPLICATION_ID, Database, FORMAT_VERSION};
use super::wal_tail::{self, Tail};
use super::{Hole, OVERFLOW, Recovered, clock, directory, instances, late, mend, salvage};
use crate::event::{RouteId, Sequence};
use crate::planted::{Bug, planted};
use crate::route::Definition;
use crate::settings;

/// Lost spans that a log line names; all of them are in the database and in the watermark topic.
const SPANS_SAID: usize = 8;

/// Holes that are declared again after each start, the newest first: 150 bytes each.
const HOLES_SAID: u32 = 1_000;

/// An open buffer whose thread does not run yet.
pub(crate) struct Buffer {
    pub(super) settings: settings::Buffer,
    pub(super) data_dir: PathBuf,
    pub(super) database: Database,
    pub(super) lock: File,
    pub(super) connection: Connection,
    pub(super) reader: Connection,
    pub(super) marks: Marks,
    pub(super) books: Books,
    pub(super) route_names: BTreeMap<RouteId, Arc<str>>,
    pub(super) life: instances::Entry,
}

impl Buffer {
    /// Opens the buffer in that directory, or makes one. `routes` are the `[[route]]` tables in their order; each has a
    /// ledger line by its `from`, and one that was there before keeps its id.
    ///
    /// # Errors
    /// See [`OpenError::next_step`]. Nothing was deleted.
    pub(crate) fn open(
        settings: settings::Buffer,
        data_dir: &Path,
        routes: &[Definition],
    ) -> Result<(Self, Recovered), OpenError> {
        directory::directory(data_dir).map_err(OpenError::files("create the data directory", data_dir))?;
        let lock = directory::lock(data_dir)?;
        let database = Database::new(data_dir, &settings);
        match Self::open_locked(settings.clone(), data_dir, routes, lock.try_clone()) {
            // A page that only writing comes by.
            Err(OpenError::Disk { source, .. }) if is_damage(&source) => {
                let files = OpenError::files("write a file beside", database.path());
                salvage::ask_for(database.path(), &source.to_string()).map_err(files)?;
                Self::open_locked(settings, data_dir, routes, Ok(lock))
            }
            opened => opened,
        }
    }

    fn open_locked(
        settings: settings::Buffer,
        data_dir: &Path,
        routes: &[Definition],
        lock: io::Result<File>,
    ) -> Result<(Self, Recovered), OpenError> {
        let lock = lock.map_err(OpenError::files("hold the lock of", data_dir))?;
        let database = Database::new(data_dir, &settings);
        let mut marks = read_marks(data_dir)?;
        if let Some(kept) = salvage::finish(database.path(), marks.as_ref())? {
            tracing::warn!(kept = %kept.display(), "buffer: the rebuilt database replaces the damaged one, which is \
                 kept under another name");
            marks = read_marks(data_dir)?;
        }
        let tail = tail_of(&database, marks.as_ref())?;
        // As it was found: a database that is made here, in place of a damaged one, is no copy.
        let found = Place::of(database.path());
        let (connection, mut books, buffer_id) = open_or_create(&database, data_dir, marks.as_ref())?;
        let known = marks.filter(|marks| marks.buffer_id == buffer_id);
        let moved = known.and_then(|marks| found.differs_from(&marks.place));
        // What a rebuild has changed in it is read again.
        let marks = read_marks(data_dir)?;
        let commit = books.transaction;
        let place = Place::of(database.path());
        let mut marks = reconcile(marks, buffer_id, place, &tail, &mut books, &connection, data_dir)?;
        let Assigned { ids: routes, names: route_names, gone } = assign_routes(&connection, routes, &mut books)?;
        let (admitted, in_line_with) =
            admitted(&connection, &books).map_err(OpenError::disk("read the admitted topics"))?;
        let (instances, life) = instances::begin(&connection, &books, commit)?;
        if life.is_written() {
            marks = late::renumber(&connection, &mut books, marks, life.instance, &database, data_dir, &settings)?;
        }
        let reader = database.open_reader().map_err(OpenError::disk("open the database for reading"))?;
        if !books.ledger.balanced() {
            tracing::error!(
                "buffer: the books do not balance: received is not delivered + held + dead letters + \
                 dropped + purged + lost"
            );
        }
        let recovered = Recovered {
            buffer_id,
            routes,
            gone,
            sessions: books.sessions.clone(),
            settled: books.settled.ranges(),
            released: books.settled.released(),
            holes: read_holes(&connection).map_err(OpenError::disk("read the lost sequences"))?,
            lanes: books.lanes.iter().map(|(id, lane)| (*id, Arc::clone(&lane.kafka_topic))).collect(),
            admitted,
            in_line_with,
            instances,
            moved,
            is_empty: books.ledger.is_empty(),
        };
        let (next, released, lanes) = (books.next, books.settled.released(), books.lanes.len());
        tracing::info!(%buffer_id, next, released, lanes, path = %database.path().display(), "buffer: open");
        let data_dir = data_dir.to_owned();
        let buffer = Self { settings, data_dir, database, lock, connection, reader, marks, books, route_names, life };
        Ok((buffer, recovered))
    }
}

/// The side file; a damaged one is set aside.
fn read_marks(data_dir: &Path) -> Result<Option<Marks>, OpenError> {
    let path = data_dir.join(directory::SIDE_FILE);
    match Marks::read(data_dir) {
        Ok(marks) => Ok(marks),
        Err(ReadFault::Io(source)) => Err(OpenError::Files { operation: "read", path, source }),
        Err(ReadFault::Damaged) => {
            let kept = set_aside(&path)?;
            tracing::error!(kept = %shown(kept.as_ref()), "buffer: the side file is damaged; a new one is made from \
                 the database");
            Ok(None)
        }
    }
}

/// The database as the table at the top says, and whose it is.
fn open_or_create(
    database: &Database,
    data_dir: &Path,
    marks: Option<&Marks>,
) -> Result<(Connection, Books, Uuid), OpenError> {
    let path = database.path();
    let bytes = match fs::metadata(path) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        Err(source) => return Err(OpenError::Files { operation: "read the size of", path: path.to_owned(), source }),
    };
    // SQLite must not see an empty file: it takes it for a new database and deletes the log beside it.
    let met = salvage::asked_for(path).map_err(OpenError::files("look for files beside", path))?;
    let cause = if let Some(cause) = met {
        Some(cause)
    } else if bytes > 0 {
        match open_existing(database, marks)? {
            Existing::Readable(opened) => return Ok(*opened),
            Existing::Unreadable(cause) => Some(cause),
            // A first start that was cut off before its first transaction.
            Existing::Empty if marks.is_none() => None,
            Existing::Empty => Some("it is empty".to_owned()),
        }
    } else if marks.is_some() || database.wal_path().exists() {
        Some("it is missing or empty".to_owned())
    } else {
        None
    };
    if let Some(cause) = &cause
        && let Some(opened) = rebuilt(database, marks, cause)?
    {
        return Ok(opened);
    }
    let kept = set_aside(path)?;
    let kept_marks = if marks.is_some() { set_aside(&data_dir.join(directory::SIDE_FILE))? } else { None };
    if let Some(cause) = cause {
        let old = marks.map_or_else(|| "unknown".to_owned(), |marks| marks.buffer_id.to_string());
        let committed = marks.map_or(0, |marks| marks.committed);
        let (kept, side_file) = (shown(kept.as_ref()), shown(kept_marks.as_ref()));
        tracing::error!(cause, buffer_id = old, committed, %kept, %side_file,
            "buffer: the database cannot be used, and nothing in it can be read; the readings that it held, up to \
             the sequence committed, are not delivered; a new buffer with a new id is made");
    }
    create(database)
}

/// A new database with all that could be read of the damaged one; `None` when that is nothing.
fn rebuilt(
    database: &Database,
    marks: Option<&Marks>,
    cause: &str,
) -> Result<Option<(Connection, Books, Uuid)>, OpenError> {
    if planted(Bug::RowDamageSetsAside) {
        return Ok(None);
    }
    tracing::error!(cause, path = %database.path().display(),
        "buffer: the database is damaged; what can be read of it is copied into a new one with the same id");
    let Some(found) = salvage::rebuild(database, marks)? else { return Ok(None) };
    let mend::Losses { events, spans } = &found.losses;
    let lost_spans: Vec<String> = spans.iter().take(SPANS_SAID).map(|(a, b)| format!("{a} to {b}")).collect();
    tracing::error!(
        buffer_id = %found.buffer_id, chunks = found.chunks, lost = events, lost_spans = lost_spans.join(", "),
        more_spans = spans.len().saturating_sub(SPANS_SAID), kept = %shown(found.kept.as_ref()),
        "buffer: the damaged database is rebuilt; the books count what is gone as lost, and the agent will declare \
         it in Kafka; the damaged file is kept only for people to look at: you may remove it"
    );
    match open_existing(database, marks)? {
        Existing::Readable(opened) => Ok(Some(*opened)),
        Existing::Unreadable(cause) => {
            tracing::error!(cause, "buffer: the rebuilt database cannot be read");
            Err(OpenError::Disk { operation: "open the rebuilt database", source: rusqlite::Error::InvalidQuery })
        }
        Existing::Empty => Ok(None),
    }
}

enum Existing {
    Readable(Box<(Connection, Books, Uuid)>),
    Unreadable(String),
    Empty,
}

fn open_existing(database: &Database, marks: Option<&Marks>) -> Result<Existing, OpenError> {
    let looked = database.open_existing().map_err(LoadError::from).and_then(|connection| {
        let pragma = |name| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
        let (application, version) = (pragma("application_id")?, pragma("user_version")?);
        let tables: i64 = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
        Ok((connection, application, version, tables))
    });
    let (connection, application, version, tables) = match looked {
        Ok(looked) => looked,
        Err(error) => return unreadable(error),
    };
    if application == 0 && tables == 0 {
        return Ok(Existing::Empty);
    }
    if application != APPLICATION_ID {
        // Whose it really is, its contents say.
        return Ok(Existing::Unreadable(format!("it is another program's (application id {application:#x})")));
    }
    if version > FORMAT_VERSION {
        let path = database.path().to_owned();
        return Err(OpenError::Newer { path, found: version, known: FORMAT_VERSION });
    }
    match database.apply(&connection) {
        Err(OpenError::Disk { source, .. }) if is_unreadable(&source) => return unreadable(source.into()),
        // What is fixed when a file is made is not changed by settings: its head is damaged.
        Err(error @ OpenError::Setting { name: "page_size" | "auto_vacuum", .. }) => {
            return Ok(Existing::Unreadable(error.to_string()));
        }
        applied => applied?,
    }
    if let Err(error) = Database::upgrade(&connection, version) {
        return unreadable(error.into());
    }
    match load(&connection, marks) {
        Ok((books, buffer_id)) => Ok(Existing::Readable(Box::new((connection, books, buffer_id)))),
        Err(error) => unreadable(error),
    }
}

fn unreadable(error: LoadError) -> Result<Existing, OpenError> {
    if let LoadError::Sqlite(source) = error {
        if !is_unreadable(&source) {
            return Err(OpenError::Disk { operation: "read the database", source });
        }
        return Ok(Existing::Unreadable(source.to_string()));
    }
    Ok(Existing::Unreadable(error.to_string()))
}

fn load(connection: &Connection, marks: Option<&Marks>) -> Result<(Books, Uuid), LoadError> {
    let buffer_id = mend::identity(connection, marks)?;
    let mut books = match Books::read_state_row(connection)? {
        StateRead::Sound(mut books) => {
            let flaws = books.load_rows(connection)?;
            mend::rows(connection, &mut books, &flaws)?;
            books
        }
        StateRead::Damaged(cause) if planted(Bug::RowDamageSetsAside) => {
            return Err(LoadError::Damaged { what: "state", cause });
        }
        StateRead::Damaged(cause) => {
            tracing::error!(cause, "buffer: the row with the books is damaged");
            mend::books_anew(connection, marks)?
        }
    };
    if mend::ends_behind(connection, &books)? {
        tracing::error!(next = books.next, "buffer: the row with the books is older than the last chunk");
        books = mend::books_anew(connection, marks)?;
    }
    // What lies in the other tables is read later, or hardly ever; that they can be read shows now, while the file
    // can still be rebuilt. Those that have few rows are looked at as a whole, with their indexes.
    for table in ["lane_chunk", "dead_letter", "admitted", "in_line"] {
        connection.query_row(&format!("SELECT count(*) FROM (SELECT * FROM {table} LIMIT 1)"), [], |_| Ok(()))?;
    }
    for table in ["route", "lane", "life", "former", "hole", "unread"] {
        let sql = format!("PRAGMA integrity_check({table})");
        let found: String = connection.query_row(&sql, [], |row| row.get(0))?;
        if found != "ok" {
            return Err(LoadError::Damaged { what: table, cause: found });
        }
    }
    Ok((books, buffer_id))
}

fn read_holes(connection: &Connection) -> rusqlite::Result<Vec<Hole>> {
    let mut holes =
        connection.prepare("SELECT first, last, reason, at_ms FROM hole ORDER BY at_ms DESC, first DESC LIMIT ?1")?;
    let rows = holes.query_map([HOLES_SAID], |row| {
        let (first, last) = (sequence(row.get(0)?), sequence(row.get(1)?));
        Ok(Hole { first, last, reason: row.get(2)?, at_ms: row.get(3)? })
    })?;
    rows.collect()
}

/// A new buffer: tables and first rows in one transaction.
fn create(database: &Database) -> Result<(Connection, Books, Uuid), OpenError> {
    let mut connection = database.create()?;
    let (books, buffer_id) = (Books::empty(), Uuid::new_v4());
    let (mut raw, mut sealer) = (Vec::new(), Sealer::default());
    let state = books.seal(&mut raw, &mut sealer).map(<[u8]>::to_vec).unwrap_or_default();
    let fill = |connection: &mut Connection| {
        let tx = connection.transaction()?;
        Database::create_tables(&tx)?;
        tx.execute("INSERT INTO identity VALUES (1, ?1, ?2)", (buffer_id.as_bytes(), clock::now_ms()))?;
        tx.execute("INSERT INTO state VALUES (1, ?1)", [&state])?;
        tx.execute("INSERT INTO route (id, name) VALUES (0, '')", [])?;
        tx.commit()
    };
    fill(&mut connection).map_err(OpenError::disk("create the tables"))?;
    if let Some(dir) = database.path().parent() {
        directory::sync_dir(dir).map_err(OpenError::files("sync", dir))?;
    }
    tracing::info!(%buffer_id, path = %database.path().display(), "buffer: created");
    Ok((connection, books, buffer_id))
}

/// Whether the end of the log is there, before SQLite opens it and believes what it finds.
fn tail_of(database: &Database, marks: Option<&Marks>) -> Result<Tail, OpenError> {
    let Some(opened) = marks.filter(|marks| !marks.closed).and_then(|marks| marks.opened) else {
        return Ok(Tail::Whole);
    };
    let log = database.wal_path();
    wal_tail::look(&log, &database.index_path(), &opened, identity::boot()).map_err(OpenError::files("read", &log))
}

/// Compares what the database says with what the side file remembers; the marks that hold from now on.
fn reconcile(
    marks: Option<Marks>,
    buffer_id: Uuid,
    place: Place,
    tail: &Tail,
    books: &mut Books,
    connection: &Connection,
    data_dir: &Path,
) -> Result<Marks, OpenError> {
    let side_file = data_dir.join(directory::SIDE_FILE);
    let marks = match marks {
        Some(marks) if marks.buffer_id == buffer_id => Some(marks),
        // It was set aside together with its database.
        Some(_) if !side_file.exists() => None,
        Some(other) => {
            let kept = set_aside(&side_file)?;
            tracing::error!(database = %buffer_id, side_file = %other.buffer_id, kept = %shown(kept.as_ref()),
                "buffer: the side file belongs to another buffer; a new one is made from the database");
            None
        }
        None => {
            if books.next > 1 {
                tracing::warn!(%buffer_id, "buffer: the side file is missing; a new one is made from the database");
            }
            None
        }
    };
    let Some(marks) = marks else {
        let new = Marks::new(buffer_id, books.next - 1, place);
        new.write(data_dir).map_err(OpenError::files("write", &side_file))?;
        return Ok(new);
    };
    let new = Marks { place, ..marks };
    let is_lost = marks.committed >= books.next;
    if is_lost || *tail != Tail::Whole && !planted(Bug::GiveOutTwice) {
        leave_out(&marks, tail, books, connection)?;
    } else if marks.closed {
        return Ok(new); // the writer brings it up to date in its time
    }
    // What the last start has left is looked through: whatever becomes of this one before it gives out a sequence, the
    // next one need not look again.
    let new = Marks { committed: books.next - 1, closed: true, ..new };
    match new.write(data_dir) {
        Ok(()) => Ok(new),
        Err(error) if is_lost => Err(OpenError::files("write", &side_file)(error)),
        Err(error) => {
            tracing::warn!(%error, "buffer: the side file cannot be written");
            Ok(Marks { place, ..marks })
        }
    }
}

/// Something that was committed is lost, or may be: leaves out all that may have been given out, so that no id stands on
/// two readings, and says so (custody rule 7).
fn leave_out(marks: &Marks, tail: &Tail, books: &mut Books, connection: &Connection) -> Result<(), OpenError> {
    let (first, last) = (books.next, marks.reserved.max(marks.committed));
    let (buffer_id, left_out) = (marks.buffer_id, last.saturating_add(1).saturating_sub(first));
    let missed = marks.committed.saturating_add(1).saturating_sub(first);
    let commit = books.transaction;
    let why = match tail {
        Tail::Doubtful(why) => why,
        Tail::Whole => "the database is older than the side file",
    };
    if missed > 0 {
        tracing::error!(%buffer_id, why, lost = missed, first_lost = first, left_out, next = last.saturating_add(1),
            "buffer: the database has lost its newest readings, though they were committed: at least as many as lost \
             says; Kafka has those that were delivered before; their sequences are not used again, so that no id is \
             used twice");
    } else {
        tracing::warn!(%buffer_id, why, left_out, next = last.saturating_add(1),
            "buffer: the newest readings may be lost; the sequences that they may have had are not used again, so \
             that no id is used twice");
    }
    skip(first, last, why, books, connection).map_err(OpenError::disk("skip sequences"))?;
    if let Some(opened) = &marks.opened {
        instances::remember(connection, opened, (first, last), commit)
            .map_err(OpenError::disk("write the record of a start"))?;
    }
    // What lies behind a bad frame must not be found again.
    schema::checkpoint(connection).map(|_written| ()).map_err(OpenError::disk("write the write-ahead log back"))
}

/// Leaves these out for ever: they count as settled, and are declared.
fn skip(
    first: Sequence,
    last: Sequence,
    why: &str,
    books: &mut Books,
    connection: &Connection,
) -> rusqlite::Result<()> {
    if last < first {
        return Ok(());
    }
    books.settled.insert_span(first, last);
    books.next = last.saturating_add(1);
    books.transaction += 1;
    let tx = connection.unchecked_transaction()?;
    books.write(&tx).map_err(|error| match error {
        LoadError::Sqlite(source) => source,
        LoadError::Damaged { .. } => rusqlite::Error::InvalidQuery,
    })?;
    tx.execute(
        "INSERT OR REPLACE INTO hole (first, last, reason, at_ms) VALUES (?1, ?2, ?3, ?4)",
        (row_id(first), row_id(last), why, clock::now_ms()),
    )?;
    tx.commit()
}

/// Ledger lines and what stands for them in the configuration.
struct Assigned {
    /// Of the present routes, in their order.
    ids: Vec<RouteId>,
    names: BTreeMap<RouteId, Arc<str>>,
    /// Routes that the configuration has no more.
    gone: BTreeMap<RouteId, Definition>,
}

/// A ledger line with what its route says.
const WRITE_ROUTE: &str = "INSERT INTO route (id, name, kafka_topic, record_key, value) VALUES (?1, ?2, ?3, ?4, ?5) \
    ON CONFLICT (id) DO UPDATE SET kafka_topic = ?3, record_key = ?4, value = ?5";

/// Ids for the routes: known ones keep theirs, new ones get the next. What each says is kept: when it is gone from the
/// configuration, what was taken in under it still has a way out.
fn assign_routes(connection: &Connection, wanted: &[Definition], books: &mut Books) -> Result<Assigned, OpenError> {
    let assign = || -> rusqlite::Result<Option<Assigned>> {
        let tx = connection.unchecked_transaction()?;
        let mut names: BTreeMap<RouteId, Arc<str>> = BTreeMap::new();
        let mut gone: BTreeMap<RouteId, Definition> = BTreeMap::new();
        let mut damaged = 0_usize;
        {
            let mut known = tx.prepare("SELECT id, name, kafka_topic, record_key, value FROM route")?;
            let mut rows = known.query([])?;
            while let Some(row) = rows.next()? {
                match (row.get(0), row.get::<_, String>(1)) {
                    (Ok(id), Ok(name)) => {
                        let (id, from) = (RouteId(id), Arc::<str>::from(name));
                        let text = |column| row.get::<_, Option<String>>(column).ok().flatten().map(Arc::<str>::from);
                        // A version before the fourth did not write them down.
                        if let (Some(to), Some(key), Some(value)) = (text(2), text(3), text(4)) {
                            gone.insert(id, Definition { from: Arc::clone(&from), to, key, value });
                        }
                        names.insert(id, from);
                    }
                    (Err(error), _) | (_, Err(error)) if is_unreadable(&error) => damaged += 1,
                    (Err(error), _) | (_, Err(error)) => return Err(error),
                }
            }
        }
        if damaged > 0 {
            tracing::error!(damaged, "buffer: names of routes are damaged; the books of these routes start again at 0");
            tx.execute("DELETE FROM route", [])?;
            for (id, name) in &names {
                let of = gone.get(id);
                let (to, key, value) = (of.map(|of| &*of.to), of.map(|of| &*of.key), of.map(|of| &*of.value));
                tx.execute(WRITE_ROUTE, (id.0, &**name, to, key, value))?;
            }
        }
        let mut ids = Vec::with_capacity(wanted.len());
        for route in wanted {
            let Definition { from, to, key, value } = route;
            let known = names.iter().find(|(_, known)| *known == from).map(|(id, _)| *id);
            // A line whose name is gone keeps its number.
            let last = names.last_key_value().map_or(0, |(id, _)| id.0).max(books.ledger.last().map_or(0, |id| id.0));
            let Some(id) = known.or_else(|| last.checked_add(1).map(RouteId)) else { return Ok(None) };
            if known.is_none() || gone.get(&id) != Some(route) {
                tx.execute(WRITE_ROUTE, (id.0, &**from, &**to, &**key, &**value))?;
                names.insert(id, Arc::clone(from));
            }
            gone.remove(&id);
            ids.push(id);
        }
        tx.commit()?;
        Ok(Some(Assigned { ids, names, gone }))
    };
    let assigned = assign().map_err(OpenError::disk("give routes their lines in the books"))?;
    let assigned = assigned.ok_or(OpenError::TooManyRoutes { limit: u16::MAX })?;
    for id in &assigned.ids {
        books.ledger.open(*id);
    }
    Ok(assigned)
}

/// The Kafka topics that were admitted, forgotten when nothing waits beyond them; and the lanes' mark.
fn admitted(connection: &Connection, books: &Books) -> rusqlite::Result<(Vec<Arc<str>>, Option<u64>)> {
    if !books.lanes.values().any(|lane| &*lane.kafka_topic == OVERFLOW) {
        // Written only where there is something to write: a disk without room is not in the way of a start.
        let any: bool = connection.query_row("SELECT EXISTS (SELECT 1 FROM admitted)", [], |row| row.get(0))?;
        if any {
            match connection.execute("DELETE FROM admitted", []) {
                Err(error) if !is_full(&error) => return Err(error),
                Ok(_) | Err(_) => {}
            }
        }
        let mark = connection.query_row("SELECT mark FROM in_line WHERE id = 1", [], |row| row.get(0)).optional()?;
        return Ok((Vec::new(), mark.map(sequence)));
    }
    let mut topics = connection.prepare("SELECT kafka_topic FROM admitted")?;
    let topics = topics.query_map([], |row| row.get::<_, String>(0))?;
    let topics = topics.map(|topic| topic.map(Arc::from)).collect::<rusqlite::Result<_>>()?;
    let mark = connection.query_row("SELECT mark FROM in_line WHERE id = 1", [], |row| row.get(0)).optional()?;
    Ok((topics, mark.map(sequence)))
}

fn set_aside(path: &Path) -> Result<Option<PathBuf>, OpenError> {
    directory::set_aside(path, clock::now_ms()).map_err(OpenError::files("rename", path))
}

fn shown(path: Option<&PathBuf>) -> String {
    path.map_or_else(|| "nothing".to_owned(), |path| path.display().to_string())
}
