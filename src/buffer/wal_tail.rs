//! Has the write-ahead log lost its end? Looked at before SQLite opens it, because SQLite takes a log up to its first bad
//! frame for all there is, without a word.
//!
//! A process that was killed has lost nothing: what it wrote is in the system's memory. So after a kill in the same boot
//! the log must end where its index (`-shm`, which SQLite leaves behind) says that it ends. After a power cut the index
//! may be older than the log, and only this tells: frames of the log's present generation, ended by a commit, behind a bad
//! one; or an index that knows more frames than there are. With `sync = "normal"` a power cut may take the end and leave no
//! trace, so there it is always in doubt.
//!
//! The layout is SQLite's own ("WAL-mode file format", "database file format"): big-endian, but for the index, which is
//! in the machine's order.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

use super::identity::Opened;
use super::limits::PAGE_BYTES;

/// What a start finds that follows an unclean end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Tail {
    /// All that was committed is there.
    Whole,
    /// Its end may be missing, for that reason.
    Doubtful(&'static str),
}

/// Looks at log and index. `opened` is the start that may have written to them, `boot` the present boot.
pub(super) fn look(log: &Path, index: &Path, opened: &Opened, boot: Option<u32>) -> io::Result<Tail> {
    let found = Log::read(log)?;
    if found.is_broken {
        return Ok(Tail::Doubtful("the write-ahead log is damaged"));
    }
    let same_boot = opened.boot.zip(boot).is_some_and(|(then, now)| then == now);
    Ok(match Index::read(index)? {
        Some(index) if index.frames == 0 && same_boot => Tail::Whole,
        Some(index) if Some(index.salts) == found.salts && index.frames > found.committed => {
            Tail::Doubtful("the write-ahead log is shorter than it was")
        }
        Some(index) if Some(index.salts) == found.salts && same_boot => Tail::Whole,
        _ if same_boot => Tail::Doubtful("the write-ahead log or its index is not the one of the last start"),
        _ if opened.lazy => Tail::Doubtful(
            "the machine was started again, and with sync = \"normal\" the last commits may not be on disk",
        ),
        _ => Tail::Whole,
    })
}

/// What is in the log.
#[derive(Debug, Default, PartialEq, Eq)]
struct Log {
    /// The present generation.
    salts: Option<[u8; 8]>,
    /// Frames up to the last sound commit.
    committed: u32,
    /// There is a commit behind a bad frame, or the head is bad.
    is_broken: bool,
}

const HEAD_BYTES: usize = 32;
const FRAME_HEAD_BYTES: usize = 24;

/// The last bit says in which order the words of a checksum are read.
const MAGIC: u32 = 0x377f_0682;

impl Log {
    fn read(path: &Path) -> io::Result<Self> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(error),
        };
        let mut file = BufReader::new(file);
        let mut head = [0; HEAD_BYTES];
        if !fill(&mut file, &mut head)? || head == [0; HEAD_BYTES] {
            return Ok(Self::default()); // SQLite writes the head first and whole: no frame has followed
        }
        let [magic, _, page, _, _, _, sum0, sum1] = words(&head);
        let mut sum = Sum { big: magic == MAGIC | 1, s0: 0, s1: 0 };
        sum.add(head.get(..24).unwrap_or_default());
        if magic & !1 != MAGIC || u64::from(page) != PAGE_BYTES || (sum.s0, sum.s1) != (sum0, sum1) {
            return Ok(Self { is_broken: true, ..Self::default() });
        }
        let salts: [u8; 8] = head.get(16..24).and_then(|salts| salts.try_into().ok()).unwrap_or_default();
        let mut found = Self { salts: Some(salts), ..Self::default() };
        let (mut frames, mut sound) = (0_u32, true);
        let (mut head, mut page) = ([0; FRAME_HEAD_BYTES], vec![0; usize::try_from(PAGE_BYTES).unwrap_or_default()]);
        while fill(&mut file, &mut head)? && fill(&mut file, &mut page)? {
            frames += 1;
            let [_, commit, _, _, sum0, sum1] = words(&head);
            let is_ours = head.get(8..16) == Some(&salts[..]);
            if sound {
                sum.add(head.get(..8).unwrap_or_default());
                sum.add(&page);
                sound = is_ours && (sum.s0, sum.s1) == (sum0, sum1);
            }
            if is_ours && commit != 0 {
                if !sound {
                    found.is_broken = true;
                    break;
                }
                found.committed = frames;
            }
        }
        Ok(found)
    }
}

/// What the index says of the log.
#[derive(Debug, PartialEq, Eq)]
struct Index {
    salts: [u8; 8],
    /// Frames up to the last commit.
    frames: u32,
}

const INDEX_HEAD_BYTES: usize = 48;

impl Index {
    /// `None` when there is none, or one that says nothing.
    fn read(path: &Path) -> io::Result<Option<Self>> {
        let mut file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let (mut head, mut again) = ([0; INDEX_HEAD_BYTES], [0; INDEX_HEAD_BYTES]);
        let both = fill(&mut file, &mut head)? && fill(&mut file, &mut again)?;
        let is_initialised = head.get(12) == Some(&1);
        if !both || head != again || !is_initialised {
            return Ok(None);
        }
        let frames = head.get(16..20).and_then(|frames| frames.try_into().ok()).map(u32::from_ne_bytes);
        let salts = head.get(32..40).and_then(|salts| salts.try_into().ok());
        Ok(frames.zip(salts).map(|(frames, salts)| Self { salts, frames }))
    }
}

/// SQLite's checksum, which goes on from frame to frame.
struct Sum {
    big: bool,
    s0: u32,
    s1: u32,
}

impl Sum {
    fn add(&mut self, bytes: &[u8]) {
        let read = if self.big { u32::from_be_bytes } else { u32::from_le_bytes };
        let mut words = bytes.as_chunks::<4>().0.iter().map(|word| read(*word));
        while let (Some(first), Some(second)) = (words.next(), words.next()) {
            self.s0 = self.s0.wrapping_add(first).wrapping_add(self.s1);
            self.s1 = self.s1.wrapping_add(second).wrapping_add(self.s0);
        }
    }
}

/// The first words.
fn words<const N: usize>(bytes: &[u8]) -> [u32; N] {
    let mut words = [0; N];
    for (word, bytes) in words.iter_mut().zip(bytes.as_chunks::<4>().0) {
        *word = u32::from_be_bytes(*bytes);
    }
    words
}

/// False at the end.
fn fill(file: &mut impl Read, bytes: &mut [u8]) -> io::Result<bool> {
    match file.read_exact(bytes) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

/// A file as it lies there, for the tests of other modules.
#[cfg(test)]
pub(super) fn committed_frames(log: &Path) -> u32 {
    Log::read(log).unwrap().committed
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rusqlite::Connection;

    use super::*;
    use crate::watermark::Instance;

    const FRAME: u64 = FRAME_HEAD_BYTES as u64 + PAGE_BYTES;

    /// A database with `commits` commits in its log, as a killed process leaves it.
    fn left(commits: u32) -> (tempfile::TempDir, std::path::PathBuf, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let connection = Connection::open(dir.path().join("a")).unwrap();
        connection.execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE t (a)").unwrap();
        for n in 0..commits {
            connection.execute("INSERT INTO t VALUES (?1)", [n]).unwrap();
        }
        let copy = tempfile::tempdir().unwrap();
        for name in ["a-shm", "a-wal", "a"] {
            fs::copy(dir.path().join(name), copy.path().join(name)).unwrap();
        }
        let (log, index) = (copy.path().join("a-wal"), copy.path().join("a-shm"));
        (copy, log, index)
    }

    fn after(log: &Path, index: &Path, same_boot: bool, lazy: bool) -> Tail {
        let opened = Opened { instance: Instance(1), boot: Some(1), lazy };
        look(log, index, &opened, Some(if same_boot { 1 } else { 2 })).unwrap()
    }

    #[test]
    fn what_a_killed_process_leaves_is_whole_and_a_power_cut_is_in_doubt_only_without_sync() {
        let (_dir, log, index) = left(7);
        assert!(committed_frames(&log) >= 7);
        for (same_boot, lazy, whole) in
            [(true, false, true), (true, true, true), (false, false, true), (false, true, false)]
        {
            assert_eq!(after(&log, &index, same_boot, lazy) == Tail::Whole, whole, "{same_boot} {lazy}");
        }
    }

    #[test]
    fn a_log_that_was_cut_is_seen_by_its_index_and_without_one_in_the_same_boot() {
        let (_dir, log, index) = left(7);
        let file = fs::OpenOptions::new().write(true).open(&log).unwrap();
        file.set_len(32 + FRAME * 5).unwrap();
        assert!(matches!(after(&log, &index, true, false), Tail::Doubtful(why) if why.contains("shorter")));
        assert!(matches!(after(&log, &index, false, false), Tail::Doubtful(why) if why.contains("shorter")));
        fs::remove_file(&index).unwrap();
        assert!(matches!(after(&log, &index, true, false), Tail::Doubtful(why) if why.contains("index")));
        assert_eq!(after(&log, &index, false, false), Tail::Whole, "a power cut takes the index, and nothing else");
    }

    #[test]
    fn a_bad_bit_anywhere_before_the_last_commit_is_seen() {
        let (_dir, log, index) = left(4);
        let good = fs::read(&log).unwrap();
        let used = 32 + usize::try_from(FRAME).unwrap() * usize::try_from(committed_frames(&log)).unwrap();
        // Three numbers of the head say nothing of the frames, and are in its checksum all the same.
        for byte in (0..used).step_by(211).chain(0..32) {
            let mut bad = good.clone();
            bad[byte] ^= 4;
            fs::write(&log, &bad).unwrap();
            assert_ne!(after(&log, &index, false, false), Tail::Whole, "byte {byte}");
        }
    }

    #[test]
    fn a_frame_that_was_never_committed_is_no_loss() {
        let (_dir, log, index) = left(4);
        let mut torn = fs::read(&log).unwrap();
        let frames = usize::try_from(committed_frames(&log)).unwrap();
        let frame = usize::try_from(FRAME).unwrap();
        torn.truncate(32 + frame * frames);
        let mut head = torn[32 + frame * (frames - 1)..][..FRAME_HEAD_BYTES].to_vec();
        head[4..8].fill(0); // no commit
        torn.extend(head);
        torn.extend([0x5a; 4096]);
        fs::write(&log, &torn).unwrap();
        assert_eq!(after(&log, &index, true, false), Tail::Whole);
    }

    #[test]
    fn no_log_is_whole_unless_its_index_knows_of_one() {
        let (_dir, log, index) = left(2);
        fs::remove_file(&log).unwrap();
        assert_ne!(after(&log, &index, true, false), Tail::Whole);
        fs::remove_file(&index).unwrap();
        assert_eq!(after(&log, &index, false, false), Tail::Whole);
    }
}
