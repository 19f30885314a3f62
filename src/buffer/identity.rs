//! The side file: who this buffer is and how far it came, outside of the database, so that after a loss no sequence is given out
//! twice and the loss is reported with numbers. Its lines stand in the [specification](super).
//!
//! What an open one may have lost, [`wal_tail`](super::wal_tail) finds out; where it is, [`Place`] says.

use std::fmt;
use std::fs;
use std::io::{self, Write};
use std::num::ParseIntError;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use uuid::Uuid;

use super::directory::{self, SIDE_FILE};
use super::limits::{MARK_EVERY, MAX_SEQUENCE, RESERVE_LEAST, RESERVE_MOST};
use crate::event::Sequence;
use crate::watermark::Instance;

const TITLE: &str = "tidegate-identity 2";
const TITLE_1: &str = "tidegate-identity 1";

/// Far above what it ever holds.
const MOST_BYTES: u64 = 4096;

/// What the side file says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Marks {
    pub(super) buffer_id: Uuid,
    pub(super) reserved: Sequence,
    pub(super) committed: Sequence,
    /// The last start that gave out sequences; `None` when none has.
    pub(super) opened: Option<Opened>,
    /// It was closed cleanly since.
    pub(super) closed: bool,
    pub(super) place: Place,
}

/// A start that gives out sequences.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Opened {
    pub(super) instance: Instance,
    /// Digest of the boot's id; `None` where the system does not tell it.
    pub(super) boot: Option<u32>,
    /// Commits are not synced one by one.
    pub(super) lazy: bool,
}

/// Where a buffer is: digests of what a copy of it, on another card or in another folder, does not share. What is not
/// known on one side says nothing.
///
/// | mark | what | tells |
/// |---|---|---|
/// | machine | `/etc/machine-id` | an image that was written to many cards, if it is prepared as images are |
/// | board | the board's serial number in the device tree | a card, or a copy of one, in another Raspberry Pi |
/// | file | the birth of the database's file | files that were copied, by backup and restore too |
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Place {
    machine: Option<u32>,
    board: Option<u32>,
    file: Option<u32>,
}

impl Place {
    /// Here.
    pub(super) fn of(database: &Path) -> Self {
        let told = |path: &str| fs::read(path).ok().filter(|id| id.iter().any(u8::is_ascii_alphanumeric));
        let machine = told("/etc/machine-id").filter(|id| !id.starts_with(b"uninitialized"));
        let born = fs::metadata(database).and_then(|metadata| metadata.created()).ok();
        let born = born.map(|born| born.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO));
        Self {
            machine: machine.map(|id| crc32c::crc32c(&id)),
            board: told("/sys/firmware/devicetree/base/serial-number").map(|serial| crc32c::crc32c(&serial)),
            file: born.map(|born| crc32c::crc32c(&born.as_nanos().to_be_bytes())),
        }
    }

    /// What tells that this is not where `before` was; `None` when nothing does.
    pub(super) fn differs_from(&self, before: &Self) -> Option<&'static str> {
        let differ = |now: Option<u32>, then: Option<u32>| now.zip(then).is_some_and(|(now, then)| now != then);
        [
            (differ(self.machine, before.machine), "/etc/machine-id has changed"),
            (differ(self.board, before.board), "the board's serial number has changed"),
            (differ(self.file, before.file), "the database is a copy of the file that this agent used before"),
        ]
        .into_iter()
        .find_map(|(differs, what)| differs.then_some(what))
    }
}

/// Digest of the id that the system draws at each boot. systemd hides it from a service that sees only its own
/// processes; the unit hands it over.
pub(super) fn boot() -> Option<u32> {
    let told =
        fs::read_to_string("/proc/sys/kernel/random/boot_id").ok().or_else(|| std::env::var("TIDEGATE_BOOT").ok());
    // One spelling: systemd writes it without hyphens.
    let id: String = told?.chars().filter(char::is_ascii_alphanumeric).collect();
    (!id.is_empty()).then(|| crc32c::crc32c(id.as_bytes()))
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
    /// Of a buffer that has given out nothing since.
    pub(super) fn new(buffer_id: Uuid, committed: Sequence, place: Place) -> Self {
        Self { buffer_id, reserved: committed, committed, opened: None, closed: true, place }
    }

    /// What is in the directory; `None` when there is no side file.
    pub(super) fn read(dir: &Path) -> Result<Option<Self>, ReadFault> {
        let path = dir.join(SIDE_FILE);
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
        let temporary = dir.join(format!("{SIDE_FILE}.new"));
        let mut file = directory::create(&temporary)?;
        file.set_len(0)?;
        file.write_all(self.text().as_bytes())?;
        file.sync_all()?;
        drop(file);
        fs::rename(&temporary, dir.join(SIDE_FILE))?;
        directory::sync_dir(dir)
    }

    /// The same with room for `last` and for what may come until the next mark, when `lately` came in the time `since`
    /// the last one: what is reserved and not used is left out after a loss, so it is no more than need be.
    pub(super) fn reserving(mut self, last: Sequence, lately: u64, since: Duration) -> Self {
        let marks_in = since.as_secs().clamp(1, MARK_EVERY.as_secs());
        let until_next =
            lately.saturating_mul(2).saturating_mul(MARK_EVERY.as_secs()).checked_div(marks_in).unwrap_or(0);
        self.reserved = self.reserved.max(last.saturating_add(until_next.clamp(RESERVE_LEAST, RESERVE_MOST)));
        self
    }

    fn text(&self) -> String {
        let Self { buffer_id, reserved, committed, opened, closed, place } = self;
        let Place { machine, board, file } = place;
        let instance = opened.map_or_else(|| "-".to_owned(), |opened| opened.instance.to_string());
        let state = if *closed { "closed" } else { "open" };
        let boot = Digest(opened.and_then(|opened| opened.boot));
        let sync = if opened.is_some_and(|opened| opened.lazy) { "normal" } else { "full" };
        let (machine, board, file) = (Digest(*machine), Digest(*board), Digest(*file));
        with_sum(&format!(
            "{TITLE}\nbuffer {buffer_id}\nreserved {reserved}\ncommitted {committed}\ninstance {instance}\nstate {state}\n\
             boot {boot}\nsync {sync}\nplace machine={machine} board={board} file={file}\n"
        ))
    }
}

fn with_sum(head: &str) -> String {
    let sum = crc32c::crc32c(head.as_bytes());
    format!("{head}crc32c {sum:08x}\n")
}

/// Eight digits, or a dash for what is not known.
struct Digest(Option<u32>);

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(digest) => write!(f, "{digest:08x}"),
            None => f.write_str("-"),
        }
    }
}

fn digest(text: &str) -> Result<Option<u32>, ParseIntError> {
    if text == "-" { Ok(None) } else { u32::from_str_radix(text, 16).map(Some) }
}

fn parse(text: &str) -> Option<Marks> {
    let mut lines = text.lines();
    let title = lines.next()?;
    let mut value = |name: &str| lines.next()?.strip_prefix(name)?.strip_prefix(' ');
    let mut marks = Marks::new(value("buffer")?.parse().ok()?, 0, Place::default());
    marks.reserved = value("reserved")?.parse().ok()?;
    marks.committed = value("committed")?.parse().ok()?;
    if marks.reserved.max(marks.committed) > MAX_SEQUENCE {
        return None;
    }
    if title == TITLE_1 {
        let Marks { buffer_id, reserved, committed, .. } = marks;
        let head = format!("{TITLE_1}\nbuffer {buffer_id}\nreserved {reserved}\ncommitted {committed}\n");
        return (with_sum(&head) == text).then_some(marks);
    }
    let instance = match value("instance")? {
        "-" => None,
        instance => Some(Instance::parse(instance)?),
    };
    marks.closed = value("state")? == "closed";
    let boot = digest(value("boot")?).ok()?;
    let lazy = value("sync")? == "normal";
    marks.opened = instance.map(|instance| Opened { instance, boot, lazy });
    let mut place = value("place")?.split(' ');
    let mut mark = |name: &str| digest(place.next()?.strip_prefix(name)?.strip_prefix('=')?).ok();
    marks.place = Place { machine: mark("machine")?, board: mark("board")?, file: mark("file")? };
    // Writing it again must give the same bytes: title, checksum and every space.
    (marks.text() == text).then_some(marks)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marks() -> Marks {
        let opened = Opened { instance: Instance(0xabc << 64), boot: Some(7), lazy: true };
        let place = Place { machine: Some(1), board: None, file: Some(u32::MAX) };
        let (reserved, committed) = (2_000_000, 1_234_567);
        Marks { buffer_id: Uuid::new_v4(), reserved, committed, opened: Some(opened), closed: false, place }
    }

    #[test]
    fn what_was_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Marks::read(dir.path()).unwrap(), None);
        for marks in [marks(), Marks { opened: None, closed: true, place: Place::default(), ..marks() }] {
            marks.write(dir.path()).unwrap();
            assert_eq!(Marks::read(dir.path()).unwrap(), Some(marks));
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_number_that_no_sequence_reaches_is_damage() {
        assert_eq!(parse(&Marks { reserved: u64::MAX, ..marks() }.text()), None);
    }

    #[test]
    fn the_first_version_is_read_as_a_closed_one_of_an_unknown_place() {
        let dir = tempfile::tempdir().unwrap();
        let id = Uuid::new_v4();
        let text = with_sum(&format!("{TITLE_1}\nbuffer {id}\nreserved 1000000\ncommitted 7\n"));
        fs::write(dir.path().join(SIDE_FILE), text).unwrap();
        let marks = Marks { reserved: 1_000_000, ..Marks::new(id, 7, Place::default()) };
        assert_eq!(Marks::read(dir.path()).unwrap(), Some(marks));
    }

    #[test]
    fn a_place_differs_only_by_what_both_sides_know() {
        let here = Place { machine: Some(1), board: None, file: Some(3) };
        assert_eq!(here.differs_from(&Place::default()), None);
        assert_eq!(here.differs_from(&Place { board: Some(9), ..here }), None);
        assert!(here.differs_from(&Place { file: Some(4), ..here }).is_some_and(|what| what.contains("copy")));
        assert!(here.differs_from(&Place { machine: Some(2), ..here }).is_some_and(|what| what.contains("machine-id")));
    }

    #[test]
    fn a_copied_file_is_in_another_place_and_a_renamed_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two, three) = (dir.path().join("1"), dir.path().join("2"), dir.path().join("3"));
        fs::write(&one, "x").unwrap();
        let place = Place::of(&one);
        std::thread::sleep(Duration::from_millis(20)); // the file system's clock ticks
        fs::copy(&one, &two).unwrap();
        fs::rename(&one, &three).unwrap();
        assert_eq!(Place::of(&three).differs_from(&place), None);
        assert_eq!(Place::of(&two).differs_from(&place).is_some(), place.file.is_some());
    }

    #[test]
    fn what_is_reserved_follows_the_rate() {
        let block = |lately, since| {
            let marks = Marks::new(Uuid::nil(), 0, Place::default());
            marks.reserving(100, lately, Duration::from_secs(since)).reserved - 100
        };
        assert_eq!(block(0, 30), RESERVE_LEAST);
        assert_eq!(block(30 * 1000, 30), 60 * 1000);
        assert_eq!(block(1000, 1), 60 * 1000);
        assert_eq!(block(1_000_000, 0), RESERVE_MOST);
    }

    #[test]
    fn every_changed_bit_and_every_cut_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let good = marks().text().into_bytes();
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            fs::write(dir.path().join(SIDE_FILE), &bad).unwrap();
            assert!(matches!(Marks::read(dir.path()), Err(ReadFault::Damaged)), "bit {bit}");
        }
        for len in 0..good.len() {
            fs::write(dir.path().join(SIDE_FILE), &good[..len]).unwrap();
            assert!(matches!(Marks::read(dir.path()), Err(ReadFault::Damaged)), "cut to {len}");
        }
    }
}
