//! The pages of a damaged database, read without SQLite: from its file and from the write-ahead log beside it.
//!
//! Of each page the newest version that a commit has made counts. No checksum of the log is asked for: what is taken
//! from a page has one of its own, and so a bad frame costs its page and not all that comes after it.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// `PAGE_BYTES`, as a length in memory.
pub(super) const PAGE: usize = 4096;
const PAGE_OFFSET: u64 = 4096;

const MAGIC: &[u8] = b"SQLite format 3\0";
const FIRST_TRUNK_AT: usize = 32;
const LOG_HEAD: u64 = 32;
const FRAME_HEAD: u64 = 24;
const SALTS_AT: std::ops::Range<usize> = 16..24;
const FRAME_SALTS_AT: std::ops::Range<usize> = 8..16;

/// Page numbers begin at 1.
pub(super) type Number = u32;

/// See the documentation of the module.
pub(super) struct Pages {
    file: Option<File>,
    log: Option<File>,
    /// Where in the log the newest version of a page lies.
    newest: HashMap<Number, u64>,
    count: Number,
}

impl Pages {
    /// Of that database and its log; either may be missing.
    pub(super) fn open(database: &Path, log: &Path) -> io::Result<Self> {
        let (file, log) = (if_there(database)?, if_there(log)?);
        let bytes = file.as_ref().map_or(Ok(0), |file| file.metadata().map(|metadata| metadata.len()))?;
        let newest = log.as_ref().map_or(Ok(HashMap::new()), frames)?;
        let in_file = Number::try_from(bytes / PAGE_OFFSET).unwrap_or(Number::MAX);
        let count = newest.keys().copied().max().unwrap_or(0).max(in_file);
        Ok(Self { file, log, newest, count })
    }

    /// The highest number.
    pub(super) fn count(&self) -> Number {
        self.count
    }

    /// One page; `None` where there is nothing, or the disk does not give it.
    pub(super) fn read(&self, number: Number) -> Option<[u8; PAGE]> {
        let mut page = [0; PAGE];
        let (file, offset) = match self.newest.get(&number) {
            Some(offset) => (self.log.as_ref()?, *offset),
            None => (self.file.as_ref()?, u64::from(number.checked_sub(1)?).checked_mul(PAGE_OFFSET)?),
        };
        file.read_exact_at(&mut page, offset).ok()?;
        Some(page)
    }

    /// Pages that hold nothing any more, as far as the list of them can be read: what was deleted may still stand there.
    pub(super) fn free(&self) -> HashSet<Number> {
        let mut free = HashSet::new();
        let Some(head) = self.read(1).filter(|page| page.starts_with(MAGIC)) else { return free };
        let mut trunk = number_at(&head, FIRST_TRUNK_AT).unwrap_or(0);
        // A list that bites its own tail ends there.
        while trunk != 0 && trunk <= self.count && free.insert(trunk) {
            let Some(page) = self.read(trunk) else { break };
            let leaves = number_at(&page, 4).and_then(|leaves| usize::try_from(leaves).ok()).unwrap_or(0);
            let listed = page.get(8..).unwrap_or_default().as_chunks::<4>().0;
            free.extend(listed.iter().take(leaves).map(|number| Number::from_be_bytes(*number)));
            trunk = number_at(&page, 0).unwrap_or(0);
        }
        free
    }
}

/// Four bytes as a number.
pub(super) fn number_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk::<4>().map(|four| u32::from_be_bytes(*four))
}

fn if_there(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The newest committed version of each page in the log.
fn frames(log: &File) -> io::Result<HashMap<Number, u64>> {
    let (mut newest, mut open) = (HashMap::new(), Vec::new());
    let bytes = log.metadata()?.len();
    let mut head = [0; 32];
    if log.read_exact_at(&mut head, 0).is_err() {
        return Ok(newest);
    }
    let mut at = LOG_HEAD;
    let frame_bytes = FRAME_HEAD + PAGE_OFFSET;
    while at + frame_bytes <= bytes {
        let mut frame = [0; 24];
        if log.read_exact_at(&mut frame, at).is_ok() && frame.get(FRAME_SALTS_AT) == head.get(SALTS_AT) {
            let number = number_at(&frame, 0).unwrap_or(0);
            open.push((number, at + FRAME_HEAD));
            // The last frame of a transaction says how large the database is after it.
            if number_at(&frame, 4).is_some_and(|pages| pages > 0) {
                newest.extend(open.drain(..));
            }
        }
        at += frame_bytes;
    }
    Ok(newest)
}
