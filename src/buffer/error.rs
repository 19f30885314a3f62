//! What can go wrong with the buffer, sorted by what happens next. SQLite's codes become ours here and nowhere else.

use std::io;
use std::path::{Path, PathBuf};

use rusqlite::ErrorCode;

use super::envelope::Damage;
use crate::event::Sequence;

/// What the caller of a failed [`Buffer::open`](super::Buffer::open) does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NextStep {
    /// The configuration or the installation is wrong: exit 78, a restart does not help.
    Usage,
    /// It may be different in a moment: back off and try again. Nothing was deleted.
    Retry,
    /// Stop and keep the file; the message says what a person has to do.
    Halt,
}

/// The buffer has stopped; nothing is accepted any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the buffer has stopped")]
pub(crate) struct Stopped;

/// The buffer could not be opened. Nothing was deleted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    /// The data directory is not usable.
    #[error("buffer: {operation} {}: {source}", path.display())]
    Files {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another agent works in this directory.
    #[error("buffer: {} is in use by another tidegate process; stop it, or give this one a data_dir of its own", path.display())]
    InUse {
        /// The lock file.
        path: PathBuf,
    },
    /// A newer version wrote it.
    #[error("buffer: {} has format {found}, made by a newer Tidegate; this one reads up to {known}: install the newer version again", path.display())]
    Newer {
        /// The database.
        path: PathBuf,
        /// Its format.
        found: i64,
        /// Ours.
        known: i64,
    },
    /// SQLite did not take a setting that the promises rest on.
    #[error("buffer: SQLite's {name} is {found} instead of {wanted}; the buffer does not work without it")]
    Setting {
        /// The PRAGMA.
        name: &'static str,
        /// What it should be.
        wanted: String,
        /// What it is.
        found: String,
    },
    /// More routes over the life of this buffer than the ledger has lines.
    #[error(
        "buffer: this buffer has had {limit} different routes, and its books have room for no more; start with a \
         new data_dir"
    )]
    TooManyRoutes {
        /// The limit.
        limit: u16,
    },
    /// The disk or SQLite failed.
    #[error("buffer: {operation}: {source}")]
    Disk {
        /// What was tried.
        operation: &'static str,
        /// What SQLite said.
        source: rusqlite::Error,
    },
}

impl OpenError {
    /// What to do about it.
    #[must_use]
    pub(crate) fn next_step(&self) -> NextStep {
        match self {
            Self::Files { source, .. } if is_misplaced(source) => NextStep::Usage,
            Self::TooManyRoutes { .. } => NextStep::Usage,
            Self::Files { .. } | Self::InUse { .. } | Self::Disk { .. } => NextStep::Retry,
            Self::Newer { .. } | Self::Setting { .. } => NextStep::Halt,
        }
    }

    pub(super) fn disk(operation: &'static str) -> impl Fn(rusqlite::Error) -> Self {
        move |source| Self::Disk { operation, source }
    }

    pub(super) fn files(operation: &'static str, path: &Path) -> impl Fn(io::Error) -> Self {
        move |source| Self::Files { operation, path: path.to_owned(), source }
    }
}

/// A path that a person has to correct: it goes through a file. Rights can be granted, and a file system that is mounted
/// read-only (what ext4 does to itself after an error of the card) or not at all can be mounted again, while nobody
/// thinks of starting the agent: these are tried again.
fn is_misplaced(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::AlreadyExists | io::ErrorKind::NotADirectory)
}

/// The buffer thread ended with less than it should have done. What was not committed was never acknowledged.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CloseError {
    /// The disk failed until the end.
    #[error(
        "buffer: closed with {events} readings not stored, because the disk failed: {cause}; they were not \
         acknowledged, so the broker or the sensors send them again"
    )]
    Unwritten {
        /// How many.
        events: usize,
        /// The last failure.
        cause: String,
    },
    /// Everything is stored, but the file could not be tidied up; the next start does that.
    #[error("buffer: close: {0}")]
    Untidy(String),
    /// The file is damaged where work cannot go on; the next start rebuilds it.
    #[error("buffer: the database is damaged ({cause}); the next start rebuilds it")]
    Damaged {
        /// What SQLite said.
        cause: String,
    },
    /// A bug.
    #[error("buffer: the thread panicked, which is a bug")]
    Panicked,
}

/// A transaction failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum WriteError {
    /// No room, found out before COMMIT: rolled back, nothing is in doubt.
    #[error("no room on the disk: {0}")]
    Full(rusqlite::Error),
    /// Anything else: what the disk holds is in doubt until it is read again.
    #[error("{0}")]
    Doubt(rusqlite::Error),
    /// The side file could not be written, so no sequence may be given out.
    #[error("side file: {0}")]
    SideFile(io::Error),
    /// A blob could not be made.
    #[error("encode: {0}")]
    Encode(Damage),
    /// Other settings than were written; see [`OpenError`].
    #[error("{0}")]
    Reopen(#[from] OpenError),
    /// The books could not be read again.
    #[error("{0}")]
    Load(#[from] LoadError),
    /// The reader has met damage that it cannot pass by.
    #[error("{0}")]
    Damaged(String),
    /// What was read back cannot be right.
    #[error("the database holds transaction {found} and should hold {expected}")]
    Strange { expected: u64, found: u64 },
    /// The log could not be written back completely.
    #[error("the write-ahead log is in use by another process")]
    LogInUse,
}

impl WriteError {
    /// Trying again will not help: the file itself is damaged.
    pub(super) fn damage(&self) -> Option<String> {
        match self {
            Self::Doubt(error)
            | Self::Load(LoadError::Sqlite(error))
            | Self::Reopen(OpenError::Disk { source: error, .. }) => is_damage(error).then(|| error.to_string()),
            Self::Load(error @ LoadError::Damaged { .. }) => Some(error.to_string()),
            Self::Damaged(cause) => Some(cause.clone()),
            Self::Full(_)
            | Self::SideFile(_)
            | Self::Encode(_)
            | Self::Reopen(_)
            | Self::Strange { .. }
            | Self::LogInUse => None,
        }
    }
}

impl From<rusqlite::Error> for WriteError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Doubt(error)
    }
}

impl From<Damage> for WriteError {
    fn from(damage: Damage) -> Self {
        Self::Encode(damage)
    }
}

/// The buffer's own rows cannot be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum LoadError {
    /// What is in them is damaged.
    #[error("{what}: {cause}")]
    Damaged { what: &'static str, cause: String },
    /// SQLite or the disk.
    #[error("{0}")]
    Sqlite(#[from] rusqlite::Error),
}

/// There is no room: `max_page_count`, or the disk itself.
pub(super) fn is_full(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(ErrorCode::DiskFull)
}

/// The file is not, or no longer, a database, or not all of it is.
pub(super) fn is_unreadable(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt))
        // A table or a column that ours has is missing, or holds another type: not our database any more.
        || error.sqlite_error_code() == Some(ErrorCode::Unknown)
        || is_about_the_row(error)
}

/// The same, of a file that was ours a moment ago: only what trying again cannot mend.
pub(super) fn is_damage(error: &rusqlite::Error) -> bool {
    match error.sqlite_error_code() {
        Some(ErrorCode::Unknown) => error.to_string().contains("no such"),
        _ => is_unreadable(error),
    }
}

/// The row is missing, or holds something else than was written.
pub(super) fn is_about_the_row(error: &rusqlite::Error) -> bool {
    matches!(
        error,
        rusqlite::Error::QueryReturnedNoRows
            | rusqlite::Error::InvalidColumnType(..)
            | rusqlite::Error::FromSqlConversionFailure(..)
            | rusqlite::Error::IntegralValueOutOfRange(..)
            | rusqlite::Error::Utf8Error(..)
    )
}

/// A sequence as SQLite's row id. Row ids end where the sequences of a million events a second end in 292,000 years.
pub(super) fn row_id(sequence: Sequence) -> i64 {
    i64::try_from(sequence).unwrap_or(i64::MAX)
}

/// A row id as a sequence; a negative one was never written.
pub(super) fn sequence(row_id: i64) -> Sequence {
    u64::try_from(row_id).unwrap_or(0)
}
