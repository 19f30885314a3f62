//! Opening: what is on the disk decides what happens.
//!
//! | database | side file | then |
//! |---|---|---|
//! | readable | fits | go on |
//! | readable | none | go on, write a new one |
//! | readable | of another buffer, or damaged | go on; the side file is set aside, ERROR |
//! | readable, behind the committed mark | fits | ERROR with the numbers; go on behind the reserved mark |
//! | missing or empty | none | a new buffer |
//! | missing or empty | there | ERROR: what was held is gone; what is there is set aside; a new buffer, a new id |
//! | unreadable | any | ERROR; all of it is set aside under another name; a new buffer, a new id |
//! | of a newer version | any | refuse: Halt |
//!
//! custody rule 6: nothing is ever deleted here. One agent a directory: a lock file is held until the thread ends.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use rusqlite::{Connection, OptionalExtension};
use uuid::Uuid;

use super::books::Books;
use super::envelope::Sealer;
use super::error::{LoadError, OpenError, is_unreadable, sequence};
use super::identity::{self, Marks, ReadFault};
use super::limits::{LOCK_STEP, LOCK_WAIT};
use super::schema::{APPLICATION_ID, Database, FORMAT_VERSION};
use super::{OVERFLOW, Recovered, clock, life};
use crate::config;
use crate::event::{RouteId, Sequence};
use crate::route::Definition;

/// An open buffer whose thread does not run yet.
pub struct Buffer {
    pub(super) settings: config::Buffer,
    pub(super) data_dir: PathBuf,
    pub(super) database: Database,
    pub(super) lock: File,
    pub(super) connection: Connection,
    pub(super) reader: Connection,
    pub(super) marks: Marks,
    pub(super) books: Books,
    pub(super) route_names: BTreeMap<RouteId, Arc<str>>,
}

impl Buffer {
    /// Opens the buffer in that directory, or makes one. `routes` are the `[[route]]` tables in their order; each has a
    /// ledger line by its `from`, and one that was there before keeps its id.
    ///
    /// # Errors
    /// See [`OpenError::next_step`]. Nothing was deleted.
    pub fn open(
        settings: config::Buffer,
        data_dir: &Path,
        routes: &[Definition],
    ) -> Result<(Self, Recovered), OpenError> {
        fs::create_dir_all(data_dir).map_err(OpenError::files("create the data directory", data_dir))?;
        let lock = lock(data_dir)?;
        let database = Database::new(data_dir, &settings);
        let marks = read_marks(data_dir)?;
        let (connection, mut books, buffer_id) = open_or_create(&database, data_dir, marks.as_ref())?;
        let marks = reconcile(marks, buffer_id, &mut books, &connection, data_dir)?;
        let Assigned { ids: routes, names: route_names, gone } = assign_routes(&connection, routes, &mut books)?;
        let (admitted, in_line_with) =
            admitted(&connection, &books).map_err(OpenError::disk("read the admitted topics"))?;
        let lives = life::begin(&connection, &books);
        let reader = database.open_reader().map_err(OpenError::disk("open the database for reading"))?;
        if !books.ledger.balanced() {
            tracing::error!("buffer: the ledger does not balance");
        }
        let recovered = Recovered {
            buffer_id,
            routes,
            gone,
            sessions: books.sessions.clone(),
            settled: books.settled.ranges(),
            released: books.settled.released(),
            lanes: books.lanes.iter().map(|(id, lane)| (*id, Arc::clone(&lane.kafka_topic))).collect(),
            admitted,
            in_line_with,
            lives,
        };
        let (next, released, lanes) = (books.next, books.settled.released(), books.lanes.len());
        tracing::info!(%buffer_id, next, released, lanes, path = %database.path().display(), "buffer: open");
        let data_dir = data_dir.to_owned();
        let buffer = Self { settings, data_dir, database, lock, connection, reader, marks, books, route_names };
        Ok((buffer, recovered))
    }
}

/// One agent a directory. A process that was killed a moment ago may still be on its way out: its lock goes with it.
pub(super) fn lock(data_dir: &Path) -> Result<File, OpenError> {
    let path = data_dir.join("lock");
    let open = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
    let file = open.map_err(OpenError::files("open", &path))?;
    let since = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if since.elapsed() < LOCK_WAIT => thread::sleep(LOCK_STEP),
            Err(TryLockError::WouldBlock) => return Err(OpenError::InUse { path }),
            Err(TryLockError::Error(source)) => return Err(OpenError::Files { operation: "lock", path, source }),
        }
    }
}

/// The side file; a damaged one is set aside.
fn read_marks(data_dir: &Path) -> Result<Option<Marks>, OpenError> {
    let path = data_dir.join(identity::FILE_NAME);
    match Marks::read(data_dir) {
        Ok(marks) => Ok(marks),
        Err(ReadFault::Io(source)) => Err(OpenError::Files { operation: "read", path, source }),
        Err(ReadFault::Damaged) => {
            let kept = set_aside(&path)?;
            tracing::error!(kept = %shown(kept.as_ref()), "buffer: the side file is damaged; it is made anew from the database");
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
        Err(source) => return Err(OpenError::Files { operation: "look at", path: path.to_owned(), source }),
    };
    // SQLite must not see an empty file: it takes it for a new database and deletes the log beside it.
    let cause = if bytes > 0 {
        match open_existing(database)? {
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
    let kept = set_aside(path)?;
    let kept_marks = if marks.is_some() { set_aside(&data_dir.join(identity::FILE_NAME))? } else { None };
    if let Some(cause) = cause {
        let old = marks.map_or_else(|| "unknown".to_owned(), |marks| marks.buffer_id.to_string());
        let committed = marks.map_or(0, |marks| marks.committed);
        let (kept, side_file) = (shown(kept.as_ref()), shown(kept_marks.as_ref()));
        tracing::error!(cause, buffer_id = old, committed, %kept, %side_file,
            "buffer: the database cannot be used; events it held up to that sequence are not delivered unless the \
             file that was kept can be repaired; starting a new buffer with a new id");
    }
    create(database)
}

enum Existing {
    Readable(Box<(Connection, Books, Uuid)>),
    Unreadable(String),
    Empty,
}

fn open_existing(database: &Database) -> Result<Existing, OpenError> {
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
        return Ok(Existing::Unreadable(format!("it is another program's (application id {application:#x})")));
    }
    if version > FORMAT_VERSION {
        let path = database.path().to_owned();
        return Err(OpenError::Newer { path, found: version, known: FORMAT_VERSION });
    }
    match database.apply(&connection) {
        Err(OpenError::Disk { source, .. }) if is_unreadable(&source) => return unreadable(source.into()),
        applied => applied?,
    }
    if let Err(error) = Database::upgrade(&connection, version) {
        return unreadable(error.into());
    }
    match load(&connection) {
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

fn load(connection: &Connection) -> Result<(Books, Uuid), LoadError> {
    let buffer_id: [u8; 16] =
        connection.query_row("SELECT buffer_id FROM identity WHERE id = 1", [], |row| row.get(0))?;
    let books = Books::load(connection)?;
    let last: Option<i64> = connection.query_row(
        "SELECT max(last) FROM chunk WHERE first = (SELECT max(first) FROM chunk)",
        [],
        |row| row.get(0),
    )?;
    if last.is_some_and(|last| sequence(last) >= books.next) {
        let cause = format!("holds events up to {last:?}, but the next sequence is {}", books.next);
        return Err(LoadError::Damaged { what: "state", cause });
    }
    // What lies in the other tables is read later, or hardly ever; that they can be read shows now, while the file
    // can still be set aside.
    for table in ["route", "lane_chunk", "dead_letter", "admitted", "in_line"] {
        connection.query_row(&format!("SELECT count(*) FROM (SELECT * FROM {table} LIMIT 1)"), [], |_| Ok(()))?;
    }
    Ok((books, Uuid::from_bytes(buffer_id)))
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
        identity::sync_dir(dir).map_err(OpenError::files("sync", dir))?;
    }
    tracing::info!(%buffer_id, path = %database.path().display(), "buffer: made");
    Ok((connection, books, buffer_id))
}

/// Compares what the database says with what the side file remembers; the marks that hold from now on.
fn reconcile(
    marks: Option<Marks>,
    buffer_id: Uuid,
    books: &mut Books,
    connection: &Connection,
    data_dir: &Path,
) -> Result<Marks, OpenError> {
    let side_file = data_dir.join(identity::FILE_NAME);
    let committed = books.next.saturating_sub(1);
    let marks = match marks {
        Some(marks) if marks.buffer_id == buffer_id => Some(marks),
        // It was set aside together with its database.
        Some(_) if !side_file.exists() => None,
        Some(other) => {
            let kept = set_aside(&side_file)?;
            tracing::error!(database = %buffer_id, side_file = %other.buffer_id, kept = %shown(kept.as_ref()),
                "buffer: the side file belongs to another buffer; it is made anew from the database");
            None
        }
        None => {
            if books.next > 1 {
                tracing::warn!(%buffer_id, "buffer: there is no side file; it is made anew from the database");
            }
            None
        }
    };
    let lost = marks.filter(|marks| marks.committed > committed);
    if let Some(Marks { committed: was, reserved, .. }) = lost {
        tracing::error!(%buffer_id, first_lost = books.next, last_known = was, next = reserved.saturating_add(1),
            "buffer: the database has lost its newest events, which were committed; \
             their sequences are not used again");
        skip_to(reserved.saturating_add(1), books, connection)?;
    }
    let committed = books.next.saturating_sub(1);
    let old = marks.unwrap_or(Marks { buffer_id, reserved: 0, committed });
    let new = Marks { committed, ..old }.reserving(committed);
    // Written when something is wrong with the old one; else the writer does it in its time.
    if marks.is_none() || lost.is_some() {
        new.write(data_dir).map_err(OpenError::files("write", &side_file))?;
        return Ok(new);
    }
    Ok(old)
}

/// Leaves the sequences from `books.next` to `next` out for ever: they count as settled.
fn skip_to(next: Sequence, books: &mut Books, connection: &Connection) -> Result<(), OpenError> {
    books.settled.insert_span(books.next, next.saturating_sub(1));
    books.next = next;
    books.transaction = books.transaction.saturating_add(1);
    let (mut raw, mut sealer) = (Vec::new(), Sealer::default());
    let body = books.seal(&mut raw, &mut sealer).map(<[u8]>::to_vec).unwrap_or_default();
    let update = connection.execute("UPDATE state SET body = ?1 WHERE id = 1", [body]);
    update.map(|_| ()).map_err(OpenError::disk("write the state"))
}

/// Ledger lines and what stands for them in the configuration.
struct Assigned {
    /// Of the present routes, in their order.
    ids: Vec<RouteId>,
    names: BTreeMap<RouteId, Arc<str>>,
    /// Routes that the configuration has no more.
    gone: BTreeMap<RouteId, Definition>,
}

/// Ids for the routes: known ones keep theirs, new ones get the next. What each says is kept: when it is gone from the
/// configuration, what was taken in under it still has a way out.
fn assign_routes(connection: &Connection, wanted: &[Definition], books: &mut Books) -> Result<Assigned, OpenError> {
    let assign = || -> rusqlite::Result<Option<Assigned>> {
        let tx = connection.unchecked_transaction()?;
        let (mut names, mut gone) = (BTreeMap::new(), BTreeMap::new());
        {
            let mut known = tx.prepare("SELECT id, name, kafka_topic, record_key, value FROM route")?;
            let mut rows = known.query([])?;
            while let Some(row) = rows.next()? {
                let (id, from) = (RouteId(row.get(0)?), Arc::<str>::from(row.get::<_, String>(1)?));
                let text = |column| row.get::<_, Option<String>>(column).map(|text| text.map(Arc::<str>::from));
                // A version before the third did not write them down.
                if let (Some(to), Some(key), Some(value)) = (text(2)?, text(3)?, text(4)?) {
                    gone.insert(id, Definition { from: Arc::clone(&from), to, key, value });
                }
                names.insert(id, from);
            }
        }
        let mut ids = Vec::with_capacity(wanted.len());
        for route in wanted {
            let Definition { from, to, key, value } = route;
            let known = names.iter().find(|(_, known)| *known == from).map(|(id, _)| *id);
            let last = names.last_key_value().map_or(0, |(id, _)| id.0);
            let Some(id) = known.or_else(|| last.checked_add(1).map(RouteId)) else { return Ok(None) };
            if known.is_none() || gone.get(&id) != Some(route) {
                tx.execute(
                    "INSERT INTO route (id, name, kafka_topic, record_key, value) VALUES (?1, ?2, ?3, ?4, ?5) \
                     ON CONFLICT (id) DO UPDATE SET kafka_topic = ?3, record_key = ?4, value = ?5",
                    (id.0, &**from, &**to, &**key, &**value),
                )?;
                names.insert(id, Arc::clone(from));
            }
            gone.remove(&id);
            ids.push(id);
        }
        tx.commit()?;
        Ok(Some(Assigned { ids, names, gone }))
    };
    let assigned = assign().map_err(OpenError::disk("give routes their ledger lines"))?;
    let assigned = assigned.ok_or(OpenError::TooManyRoutes { limit: u16::MAX })?;
    for id in &assigned.ids {
        books.ledger.open(*id);
    }
    Ok(assigned)
}

/// The Kafka topics that were admitted, forgotten when nothing waits beyond them; and the lanes' mark.
fn admitted(connection: &Connection, books: &Books) -> rusqlite::Result<(Vec<Arc<str>>, Option<u64>)> {
    if !books.lanes.values().any(|lane| &*lane.kafka_topic == OVERFLOW) {
        connection.execute("DELETE FROM admitted", [])?;
    }
    let mut topics = connection.prepare("SELECT kafka_topic FROM admitted")?;
    let topics = topics.query_map([], |row| row.get::<_, String>(0))?;
    let topics = topics.map(|topic| topic.map(Arc::from)).collect::<rusqlite::Result<_>>()?;
    let mark = connection.query_row("SELECT mark FROM in_line WHERE id = 1", [], |row| row.get(0)).optional()?;
    Ok((topics, mark.map(sequence)))
}

fn set_aside(path: &Path) -> Result<Option<PathBuf>, OpenError> {
    identity::set_aside(path, clock::now_ms()).map_err(OpenError::files("set aside", path))
}

fn shown(path: Option<&PathBuf>) -> String {
    path.map_or_else(|| "nothing".to_owned(), |path| path.display().to_string())
}
