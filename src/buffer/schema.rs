//! The database: its tables, its settings, and how a connection is made. What a row is stands in the [specification](super).

use std::path::{Path, PathBuf};

use rusqlite::types::Value;
use rusqlite::{Connection, OpenFlags};

use super::directory;
use super::error::OpenError;
use super::limits::{BUSY_WAIT, CACHE_KIB, HEADROOM_BYTES, HEADROOM_DIVISOR, PAGE_BYTES, WAL_PAGES, WAL_PAGES_LEAST};
use crate::settings::{self, SyncMode};

/// `TdGt`.
pub(super) const APPLICATION_ID: i64 = 0x5464_4774;

/// Goes up when an older Tidegate could not read what a newer one writes.
pub(super) const FORMAT_VERSION: i64 = 4;

/// SQLite's own limit.
const MOST_PAGES: u64 = 4_294_967_294;

const TABLES: &str = "
    CREATE TABLE identity (
        id INTEGER PRIMARY KEY CHECK (id = 1), buffer_id BLOB NOT NULL, created_ms INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE state (id INTEGER PRIMARY KEY CHECK (id = 1), body BLOB NOT NULL) STRICT;
    CREATE TABLE chunk (
        first INTEGER PRIMARY KEY, last INTEGER NOT NULL, oldest_ms INTEGER NOT NULL, body BLOB NOT NULL
    ) STRICT;
    CREATE TABLE lane (
        id INTEGER PRIMARY KEY AUTOINCREMENT, kafka_topic TEXT NOT NULL UNIQUE, held INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE lane_chunk (
        id INTEGER PRIMARY KEY AUTOINCREMENT, lane INTEGER NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL,
        oldest_ms INTEGER NOT NULL, body BLOB NOT NULL
    ) STRICT;
    CREATE INDEX lane_chunk_by_lane ON lane_chunk (lane);
    CREATE TABLE dead_letter (
        sequence INTEGER PRIMARY KEY, at_ms INTEGER NOT NULL, kafka_topic TEXT NOT NULL, route INTEGER NOT NULL,
        reason TEXT NOT NULL, body BLOB NOT NULL
    ) STRICT;
    CREATE TABLE session (
        name TEXT PRIMARY KEY, used_ms INTEGER NOT NULL, expiry_s INTEGER NOT NULL, packet_ids BLOB NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE route (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE) STRICT;
";

/// What version 2 added.
const TABLES_2: &str = "
    CREATE TABLE life (
        id INTEGER PRIMARY KEY AUTOINCREMENT, instance BLOB NOT NULL UNIQUE, started_ms INTEGER NOT NULL, last INTEGER
    ) STRICT;
    CREATE TABLE former (
        id INTEGER PRIMARY KEY AUTOINCREMENT, buffer_id BLOB NOT NULL, last INTEGER NOT NULL, ended_ms INTEGER NOT NULL
    ) STRICT;
";

/// What version 4 added. Of a start before it nobody knows whether it wrote the last watermark. Dead letters are looked for
/// by their time at each start (`BufferReader::dead_letters`); their `last` is 0 where the row is
/// of an older version, and holds `sequence` alone.
const TABLES_4: &str = "
    ALTER TABLE life ADD COLUMN first INTEGER NOT NULL DEFAULT 1;
    ALTER TABLE life ADD COLUMN ended_by INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE life ADD COLUMN word INTEGER NOT NULL DEFAULT 0;
    CREATE TABLE hole (
        first INTEGER PRIMARY KEY, last INTEGER NOT NULL, reason TEXT NOT NULL, at_ms INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE unread (first INTEGER PRIMARY KEY, last INTEGER NOT NULL) STRICT;
    CREATE INDEX dead_letter_by_time ON dead_letter (at_ms);
    UPDATE life SET word = 1, ended_by = 9223372036854775807,
        first = coalesce((SELECT max(before.last) FROM life AS before WHERE before.id < life.id), 0) + 1;
    ALTER TABLE route ADD COLUMN kafka_topic TEXT;
    ALTER TABLE route ADD COLUMN record_key TEXT;
    ALTER TABLE route ADD COLUMN value TEXT;
    ALTER TABLE dead_letter ADD COLUMN last INTEGER NOT NULL DEFAULT 0;
    CREATE INDEX dead_letter_by_last ON dead_letter (last);
    CREATE TABLE admitted (kafka_topic TEXT PRIMARY KEY) STRICT, WITHOUT ROWID;
    CREATE TABLE in_line (id INTEGER PRIMARY KEY CHECK (id = 1), mark INTEGER NOT NULL) STRICT;
";

/// Where the database is and how it is to be set.
#[derive(Debug, Clone)]
pub(super) struct Database {
    path: PathBuf,
    sync: SyncMode,
    max_pages: u64,
    wal_pages: u64,
}

impl Database {
    pub(super) fn new(data_dir: &Path, settings: &settings::Buffer) -> Self {
        let headroom = HEADROOM_BYTES + settings.max_bytes / HEADROOM_DIVISOR;
        Self {
            path: data_dir.join(directory::DATABASE),
            sync: settings.sync,
            max_pages: (settings.max_bytes + headroom).div_ceil(PAGE_BYTES).min(MOST_PAGES),
            wal_pages: (settings.max_bytes / PAGE_BYTES / 4).clamp(WAL_PAGES_LEAST, WAL_PAGES),
        }
    }

    /// Commits are not synced one by one.
    pub(super) fn is_lazy(&self) -> bool {
        self.sync == SyncMode::Normal
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The write-ahead log beside it.
    pub(super) fn wal_path(&self) -> PathBuf {
        self.beside("-wal")
    }

    /// The log's index, which SQLite leaves behind when the process dies.
    pub(super) fn index_path(&self) -> PathBuf {
        self.beside("-shm")
    }

    fn beside(&self, suffix: &str) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(suffix);
        PathBuf::from(name)
    }

    /// Makes the file and its tables. What exists is not touched: the caller has looked.
    pub(super) fn create(&self) -> Result<Connection, OpenError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE;
        // SQLite takes an empty file for a new database, and gives the files beside it the same rights.
        directory::create(&self.path).map_err(OpenError::files("create", &self.path))?;
        let connection = self.connect(flags).map_err(OpenError::disk("create the database"))?;
        // The page size is fixed by the first write, and with it the journal mode.
        set(&connection, "page_size", &int(PAGE_BYTES))?;
        self.apply(&connection)?;
        Ok(connection)
    }

    /// All tables, as part of the transaction that also makes the first rows.
    pub(super) fn create_tables(connection: &Connection) -> rusqlite::Result<()> {
        connection.execute_batch(TABLES)?;
        connection.execute_batch(TABLES_2)?;
        connection.execute_batch(TABLES_4)?;
        connection.pragma_update(None, "application_id", APPLICATION_ID)?;
        connection.pragma_update(None, "user_version", FORMAT_VERSION)
    }

    /// From an older version to the present one, in one transaction. What was there stays as it was.
    pub(super) fn upgrade(connection: &Connection, version: i64) -> rusqlite::Result<()> {
        if version >= FORMAT_VERSION {
            return Ok(());
        }
        let tx = connection.unchecked_transaction()?;
        if version < 2 {
            tx.execute_batch(TABLES_2)?;
        }
        // Version 3 has the same tables: the events in chunks have facts, which older ones cannot read.
        tx.execute_batch(TABLES_4)?;
        tx.pragma_update(None, "user_version", FORMAT_VERSION)?;
        tx.commit()
    }

    /// Opens what exists, unset.
    pub(super) fn open_existing(&self) -> rusqlite::Result<Connection> {
        self.connect(OpenFlags::SQLITE_OPEN_READ_WRITE)
    }

    /// A connection that only reads, to a file that is not to be changed any more: its log is not written back.
    pub(super) fn open_damaged(&self) -> rusqlite::Result<Connection> {
        let connection = self.connect(OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        // What the head of the file says is not believed where it need not be.
        connection.pragma_update(None, "cell_size_check", true)?;
        Ok(connection)
    }

    /// A connection that reads beside the writer.
    pub(super) fn open_reader(&self) -> rusqlite::Result<Connection> {
        let connection = self.connect(OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        connection.pragma_update(None, "cache_size", cache_size())?;
        connection.pragma_update(None, "query_only", true)?;
        Ok(connection)
    }

    /// The one place that names flags and VFS.
    fn connect(&self, flags: OpenFlags) -> rusqlite::Result<Connection> {
        // One thread a connection: SQLite needs no mutexes of its own.
        let connection = Connection::open_with_flags(&self.path, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
        connection.busy_timeout(BUSY_WAIT)?;
        Ok(connection)
    }

    /// Sets everything and reads it back: a setting that SQLite does not take is an error, not a hope.
    pub(super) fn apply(&self, connection: &Connection) -> Result<(), OpenError> {
        expect(connection, "page_size", &int(PAGE_BYTES))?;
        set(connection, "journal_mode", &Value::Text("wal".to_owned()))?;
        // custody rule 1: a commit returns after its sync.
        set(connection, "synchronous", &int(if self.sync == SyncMode::Full { 2 } else { 1 }))?;
        set(connection, "wal_autocheckpoint", &int(self.wal_pages))?;
        // Never shrink the log: growing it again costs the file system's journal at every commit (measured: 1.4 to 3 ×).
        set(connection, "journal_size_limit", &Value::Integer(-1))?;
        set(connection, "temp_store", &int(2))?;
        set(connection, "cache_size", &Value::Integer(cache_size()))?;
        set(connection, "secure_delete", &int(0))?;
        set(connection, "mmap_size", &int(0))?;
        expect(connection, "auto_vacuum", &int(0))?;
        self.apply_max_pages(connection)
    }

    /// custody rule 5: the file is bounded by SQLite itself, whatever our own arithmetic says. SQLite does not go
    /// below what the file has already.
    fn apply_max_pages(&self, connection: &Connection) -> Result<(), OpenError> {
        let pages = read(connection, "page_count")?;
        let wanted = int(self.max_pages);
        let sql = format!("PRAGMA max_page_count = {}", self.max_pages);
        let got: Value = connection.query_row(&sql, [], |row| row.get(0)).map_err(OpenError::disk("max_page_count"))?;
        if got == wanted || got == pages {
            return Ok(());
        }
        Err(OpenError::Setting { name: "max_page_count", wanted: text(&wanted), found: text(&got) })
    }
}

/// Writes the whole write-ahead log back into the database, syncs it and begins a new log. False when a reader or
/// another process is in the way.
pub(super) fn checkpoint(connection: &Connection) -> rusqlite::Result<bool> {
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, i64>(0)).map(|busy| busy == 0)
}

fn cache_size() -> i64 {
    -CACHE_KIB
}

fn int(number: u64) -> Value {
    Value::Integer(i64::try_from(number).unwrap_or(i64::MAX))
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => "nothing".to_owned(),
        Value::Integer(i) => i.to_string(),
        Value::Real(r) => r.to_string(),
        Value::Text(t) => t.clone(),
        Value::Blob(_) => "bytes".to_owned(),
    }
}

fn read(connection: &Connection, name: &'static str) -> Result<Value, OpenError> {
    connection.pragma_query_value(None, name, |row| row.get(0)).map_err(OpenError::disk(name))
}

fn set(connection: &Connection, name: &'static str, value: &Value) -> Result<(), OpenError> {
    // Some of them answer with a row, some do not.
    connection.pragma(None, name, value, |_| Ok(())).map_err(OpenError::disk(name))?;
    expect(connection, name, value)
}

fn expect(connection: &Connection, name: &'static str, wanted: &Value) -> Result<(), OpenError> {
    let found = read(connection, name)?;
    // An mmap_size of 0 and a build without mmap (no row) are the same.
    if found == *wanted {
        return Ok(());
    }
    Err(OpenError::Setting { name, wanted: text(wanted), found: text(&found) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffer::tests::settings;

    fn pragma(connection: &Connection, name: &str) -> Value {
        connection.pragma_query_value(None, name, |row| row.get(0)).unwrap()
    }

    #[test]
    fn the_settings_are_in_force_after_create_and_after_reopen() {
        let dir = tempfile::tempdir().unwrap();
        let database = Database::new(dir.path(), &settings());
        let created = database.create().unwrap();
        Database::create_tables(&created).unwrap();
        created.close().unwrap();
        let connection = database.open_existing().unwrap();
        database.apply(&connection).unwrap();
        assert_eq!(pragma(&connection, "journal_mode"), Value::Text("wal".into()));
        assert_eq!(pragma(&connection, "synchronous"), Value::Integer(2));
        assert_eq!(pragma(&connection, "page_size"), Value::Integer(4096));
        assert_eq!(pragma(&connection, "wal_autocheckpoint"), Value::Integer(4000));
        assert_eq!(pragma(&connection, "journal_size_limit"), Value::Integer(-1));
        assert_eq!(pragma(&connection, "auto_vacuum"), Value::Integer(0));
        assert_eq!(pragma(&connection, "application_id"), Value::Integer(APPLICATION_ID));
        let mut normal = settings();
        normal.sync = SyncMode::Normal;
        Database::new(dir.path(), &normal).apply(&connection).unwrap();
        assert_eq!(pragma(&connection, "synchronous"), Value::Integer(1));
    }

    #[test]
    fn a_setting_that_sqlite_does_not_take_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let database = Database::new(dir.path(), &settings());
        let connection = database.open_existing().err().map_or_else(
            || unreachable!(),
            |_| {
                let connection = Connection::open(database.path()).unwrap();
                connection.execute_batch("PRAGMA page_size=8192; PRAGMA journal_mode=WAL; CREATE TABLE t(a)").unwrap();
                connection
            },
        );
        let error = database.apply(&connection).unwrap_err();
        assert!(error.to_string().contains("page_size"), "{error}");
    }

    #[test]
    fn the_file_is_bounded_by_sqlite_itself() {
        let dir = tempfile::tempdir().unwrap();
        let mut small = settings();
        small.max_bytes = 1024 * 1024;
        let connection = Database::new(dir.path(), &small).create().unwrap();
        assert_eq!(
            pragma(&connection, "max_page_count"),
            Value::Integer((1024 * 1024 * 33 / 32 + 8 * 1024 * 1024) / 4096)
        );
    }
}
