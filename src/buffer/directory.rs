//! The data directory: what lies in it, whose it is, and what happens to a file that cannot be used.
//!
//! Readings are nobody else's business: the directory is its owner's alone (0700), and so is each file in it (0600).

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Instant;

use super::error::OpenError;
use super::limits::{LOCK_STEP, LOCK_WAIT};

/// SQLite's, with its log (`-wal`) and the log's index (`-shm`) beside it.
pub(super) const DATABASE: &str = "buffer.db";

/// The second witness of what was given out (`identity.rs`).
pub(super) const SIDE_FILE: &str = "identity";

/// Held locked by the agent that works here; empty.
const LOCK: &str = "lock";

const FOLDER: u32 = 0o700;
const FILE: u32 = 0o600;

/// Rights of the group and of everybody.
const OTHERS: u32 = 0o077;

/// `/tmp` and its like belong to everybody who may write there.
const SHARED: u32 = 0o1000;

/// The directory, made where it is missing. What an older version or another hand left open to others is narrowed, in it
/// as well; what is somebody else's stays as it is, and is said.
pub(super) fn directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(FOLDER).create(path)?;
    let folder = fs::metadata(path)?;
    if folder.mode() & SHARED == 0 {
        narrow(path, folder.mode(), FOLDER);
    }
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        // Not through a link: that file lies elsewhere and may be anybody's.
        let metadata = entry.metadata()?;
        if metadata.is_file() && is_ours(&entry.file_name().to_string_lossy()) {
            narrow(&entry.path(), metadata.mode(), FILE);
        }
    }
    Ok(())
}

/// A file that only we can read, empty if it was not there.
pub(super) fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).truncate(false).write(true).mode(FILE).open(path)
}

/// Our names in the directory, with all that stands behind them (`-wal`, `.set-aside-…`).
fn is_ours(name: &str) -> bool {
    [LOCK, SIDE_FILE, DATABASE].iter().any(|ours| name.starts_with(ours))
}

fn narrow(path: &Path, mode: u32, wanted: u32) {
    if mode & OTHERS == 0 {
        return;
    }
    if let Err(error) = fs::set_permissions(path, Permissions::from_mode(wanted)) {
        tracing::warn!(path = %path.display(), %error, "buffer: other users of this machine can read the buffer, \
             because chmod failed; change the mode of this file by hand");
    }
}

/// One agent a directory. A process that was killed a moment ago may still be on its way out: its lock goes with it.
pub(super) fn lock(data_dir: &Path) -> Result<File, OpenError> {
    let path = data_dir.join(LOCK);
    let file = create(&path).map_err(OpenError::files("open", &path))?;
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
        more += 1;
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
