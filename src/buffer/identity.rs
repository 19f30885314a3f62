//! The side file: who this buffer is and how far it came, outside of the database.
//!
//! A truncated database opens as an empty one, and a damaged write-ahead log silently loses its tail. This small file
//! is the second witness: after such a loss no sequence is given out twice, and the loss is reported with numbers.
//!
//! * `reserved`: sequences up to here may have been given out. Written, synced and renamed *before* the first sequence
//!   above the old mark is used.
//! * `committed`: sequences up to here were on disk once. At most 30 s old, exact after a clean stop.
//!
//! The file is replaced as a whole (temporary file, sync, rename, sync of the directory), so it is either the old or
//! the new one. It is text, so that a person can read it:
//!
//! ```text
//! tidegate-identity 1
//! buffer 0b5b9f9e-6e0f-4c6e-b3a3-5a53b3c3a2a1
//! reserved 1000000
//! committed 4711
//! crc32c 1a2b3c4d
//! ```

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::limits::RESERVE_SEQUENCES;
use super::private;
use crate::event::Sequence;

/// Its name in the data directory.
pub(super) const FILE_NAME: &str = "identity";

const TITLE: &str = "tidegate-identity 1";

/// Far above what it ever holds.
const MOST_BYTES: u64 = 4096;

/// What the side file says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Marks {
    pub(super) buffer_id: Uuid,
    pub(super) reserved: Sequence,
    pub(super) committed: Sequence,
}

/// The side file could not be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadFault {
    #[error("{0}")]
    Io(#[from] io::Error),
    /// It is not what was written.
    #[error("it is damaged")]
    Damaged,
}

impl Marks {
    /// What is in the directory; `None` when there is no side file.
    pub(super) fn read(dir: &Path) -> Result<Option<Self>, ReadFault> {
        let path = dir.join(FILE_NAME);
        match fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
            Ok(metadata) if metadata.len() > MOST_BYTES => return Err(ReadFault::Damaged),
            Ok(_) => {}
        }
        let bytes = fs::read(&path)?;
        std::str::from_utf8(&bytes).ok().and_then(parse).map(Some).ok_or(ReadFault::Damaged)
    }

    /// Puts these marks in place of the old ones; durable when it returns.
    pub(super) fn write(&self, dir: &Path) -> io::Result<()> {
        let temporary = dir.join(format!("{FILE_NAME}.new"));
        let mut file = private::create(&temporary)?;
        file.set_len(0)?;
        file.write_all(self.text().as_bytes())?;
        file.sync_all()?;
        drop(file);
        fs::rename(&temporary, dir.join(FILE_NAME))?;
        sync_dir(dir)
    }

    /// The same with room for `last` and a block more.
    pub(super) fn reserving(mut self, last: Sequence) -> Self {
        self.reserved = self.reserved.max(last.saturating_add(RESERVE_SEQUENCES));
        self
    }

    fn text(&self) -> String {
        let Self { buffer_id, reserved, committed } = self;
        let head = format!("{TITLE}\nbuffer {buffer_id}\nreserved {reserved}\ncommitted {committed}\n");
        let sum = crc32c::crc32c(head.as_bytes());
        format!("{head}crc32c {sum:08x}\n")
    }
}

fn parse(text: &str) -> Option<Marks> {
    let mut lines = text.lines().skip(1);
    let mut value = |name: &str| lines.next()?.strip_prefix(name)?.strip_prefix(' ');
    let marks = Marks {
        buffer_id: value("buffer")?.parse().ok()?,
        reserved: value("reserved")?.parse().ok()?,
        committed: value("committed")?.parse().ok()?,
    };
    // Writing it again must give the same bytes: title, checksum and every space.
    (marks.text() == text).then_some(marks)
}

/// Makes renames in it durable.
pub(super) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Gives a file that cannot be used another name, never deletes it: `name.set-aside-<ms>`, with `-wal` and `-shm` of a
/// database behind it, so that `sqlite3` finds them. `None` when there was nothing to set aside.
pub(super) fn set_aside(path: &Path, now_ms: i64) -> io::Result<Option<PathBuf>> {
    let with = |suffix: &str, of: &Path| {
        let mut name = of.as_os_str().to_owned();
        name.push(suffix);
        PathBuf::from(name)
    };
    let mut target = with(&format!(".set-aside-{now_ms}"), path);
    let mut more = 1_u32;
    while target.exists() || with("-wal", &target).exists() {
        target = with(&format!(".set-aside-{now_ms}-{more}"), path);
        more = more.saturating_add(1);
    }
    let mut any = false;
    // The log first: while the database has its name, the next start comes here again.
    for suffix in ["-wal", "-shm", ""] {
        match fs::rename(with(suffix, path), with(suffix, &target)) {
            Ok(()) => any = true,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    if let Some(dir) = path.parent() {
        sync_dir(dir)?;
    }
    Ok(any.then_some(target))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marks() -> Marks {
        Marks { buffer_id: Uuid::new_v4(), reserved: 2_000_000, committed: 1_234_567 }
    }

    #[test]
    fn what_was_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Marks::read(dir.path()).unwrap(), None);
        let marks = marks();
        marks.write(dir.path()).unwrap();
        assert_eq!(Marks::read(dir.path()).unwrap(), Some(marks));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn every_changed_bit_and_every_cut_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let good = marks().text().into_bytes();
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            fs::write(dir.path().join(FILE_NAME), &bad).unwrap();
            assert!(matches!(Marks::read(dir.path()), Err(ReadFault::Damaged)), "bit {bit}");
        }
        for len in 0..good.len() {
            fs::write(dir.path().join(FILE_NAME), &good[..len]).unwrap();
            assert!(matches!(Marks::read(dir.path()), Err(ReadFault::Damaged)), "cut to {len}");
        }
    }

    #[test]
    fn setting_aside_deletes_nothing_and_overwrites_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let db = dir.path().join("buffer.db");
        for round in ["one", "two", "three"] {
            fs::write(&db, round).unwrap();
            fs::write(dir.path().join("buffer.db-wal"), round).unwrap();
            let target = set_aside(&db, 7).unwrap().unwrap();
            assert_eq!(fs::read_to_string(&target).unwrap(), round);
            let wal = format!("{}-wal", target.display());
            assert_eq!(fs::read_to_string(wal).unwrap(), round);
        }
        assert_eq!(set_aside(&db, 7).unwrap(), None);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 6);
    }
}
