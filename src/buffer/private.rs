//! Readings are nobody else's business: the data directory is its owner's alone (0700), and so is each file in it (0600).

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

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
    ["lock", super::identity::FILE_NAME, super::schema::FILE_NAME].iter().any(|ours| name.starts_with(ours))
}

fn narrow(path: &Path, mode: u32, wanted: u32) {
    if mode & OTHERS == 0 {
        return;
    }
    if let Err(error) = fs::set_permissions(path, Permissions::from_mode(wanted)) {
        tracing::warn!(path = %path.display(), %error, "buffer: others can read the buffer: chmod failed");
    }
}
