//! Damage costs what is damaged and no more: flipped bits, garbage pages, missing parts, at open and at work.

use std::collections::BTreeSet;
use std::fs;

use super::*;
use crate::buffer::identity::Marks;
use crate::buffer::limits::RESERVE_LEAST;

const PAGE: usize = 4096;

/// Events of the main lane that wait, in 40 commits; before them 100 that are delivered.
const DELIVERED: u64 = 100;
const LAST: u64 = 2_100;

/// Besides: two dead letters, a parked lane with three events, two sessions, a large event on pages of its own.
const DEAD: [u64; 2] = [150, 700];
const PARKED: [u64; 3] = [160, 161, 800];

fn session(name: &str) -> SessionChange {
    let changes = vec![IdChange::Keep(3600), IdChange::Add(7, 70), IdChange::Add(8, 80)];
    SessionChange { session: name.into(), changes }
}

fn large() -> Event {
    // Bytes that zstd cannot shrink.
    let mut noise = 1_u32;
    let payload: Vec<u8> = std::iter::repeat_with(|| {
        noise = noise.wrapping_mul(1_103_515_245).wrapping_add(12_345);
        noise.to_be_bytes()[0]
    })
    .take(30_000)
    .collect();
    Event { payload: payload.into(), ..event(LAST + 1) }
}

/// A buffer with something in every table, closed.
fn full_buffer() -> (tempfile::TempDir, uuid::Uuid) {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = open(dir.path());
    let id = bench.recovered.buffer_id;
    bench.store(1..=DELIVERED);
    for commit in 0..40 {
        bench.store(DELIVERED + commit * 50 + 1..=DELIVERED + commit * 50 + 50);
    }
    bench.send_with(vec![large()], vec![session("broker:a"), session("broker:b")], 1);
    bench.acknowledged();
    bench.settle(Settlement {
        delivered: delivered(1..=DELIVERED),
        dead: DEAD.map(dead).into(),
        ..Settlement::default()
    });
    bench.park(PARKED, "closed");
    bench.close();
    (dir, id)
}

fn waiting() -> BTreeSet<u64> {
    (DELIVERED + 1..=LAST + 1).filter(|n| !DEAD.contains(n) && !PARKED.contains(n)).collect()
}

fn garble(dir: &Path, page: usize) {
    let path = dir.join("buffer.db");
    let mut bytes = fs::read(&path).unwrap();
    bytes[page * PAGE..(page + 1) * PAGE].fill(0x5a);
    fs::write(path, bytes).unwrap();
}

fn pages(dir: &Path) -> usize {
    fs::read(dir.join("buffer.db")).unwrap().len() / PAGE
}

/// What a forwarder gets out of it, over as many starts as it takes, everything delivered as it comes.
struct Drained {
    read: BTreeSet<u64>,
    parked: BTreeSet<u64>,
    starts: u32,
    id: uuid::Uuid,
    books: LedgerLine,
    sessions: usize,
    holes: Vec<Hole>,
    next: u64,
}

fn drain(dir: &Path) -> Drained {
    let (mut read, mut parked) = (BTreeSet::new(), BTreeSet::new());
    for starts in 1..=5 {
        let mut bench = open(dir);
        let sessions = bench.recovered.sessions.len();
        let damaged = drain_once(&mut bench, &mut read, &mut parked).is_err();
        if !damaged {
            // The intake goes on, and so does what is stored.
            let next = bench.status().next_sequence;
            bench.send(vec![event(next)], next);
            assert_eq!(bench.acknowledged(), next);
            assert_eq!(sequences(&bench.read_all()), [next]);
            bench.deliver([next]);
            let books = last_totals(&bench);
            let (id, holes) = (bench.recovered.buffer_id, bench.recovered.holes.clone());
            bench.close();
            return Drained { read, parked, starts, id, books, sessions, holes, next };
        }
        let Running { intake, reader, settler, status, thread } = bench.running;
        wait_for("the end of the thread", || thread.is_finished());
        assert!(matches!(thread.join(), Err(CloseError::Damaged { .. })));
        drop((intake, reader, settler, status));
    }
    panic!("damaged again and again: {:?}", files(dir));
}

/// The status is published ten times a second: what was settled last is in it a moment later. What is held all the same has
/// lost its chunk.
fn last_totals(bench: &Bench) -> LedgerLine {
    let since = Instant::now();
    while total(&bench.status()).held > 0 && since.elapsed() < Duration::from_secs(1) {
        std::thread::sleep(Duration::from_millis(10));
    }
    total(&bench.status())
}

/// Err: the file is to be rebuilt.
fn drain_once(bench: &mut Bench, read: &mut BTreeSet<u64>, parked: &mut BTreeSet<u64>) -> Result<(), ()> {
    let settle = |bench: &Bench, settlement| {
        let ticket = bench.running.settler.settle(settlement).unwrap();
        wait_for("a settlement or the end", || {
            bench.running.settler.applied() >= ticket || bench.running.thread.is_finished()
        });
        if bench.running.settler.applied() >= ticket { Ok(()) } else { Err(()) }
    };
    let settled: BTreeSet<u64> = bench.recovered.settled.iter().cloned().flatten().collect();
    loop {
        let events = match bench.running.reader.next(Duration::ZERO) {
            Ok(events) if events.is_empty() => break,
            Ok(events) => events,
            Err(ReadError::Damaged { .. }) => continue,
            Err(ReadError::Disk(_) | ReadError::Stopped) => return Err(()),
        };
        let new: Vec<&Stored> = events.iter().filter(|event| !settled.contains(&event.sequence)).collect();
        for stored in &new {
            let expected = if stored.sequence == LAST + 1 { large() } else { event(stored.sequence) };
            assert_eq!(stored.event, expected, "{}", stored.sequence);
            read.insert(stored.sequence);
        }
        let delivered = delivered(new.iter().map(|event| event.sequence));
        settle(bench, Settlement { delivered, ..Settlement::default() })?;
    }
    for (lane, _) in bench.recovered.lanes.clone() {
        let mut after = 0;
        loop {
            let chunk = match bench.running.reader.parked(lane, after) {
                Ok(Some(chunk)) => chunk,
                Ok(None) => break,
                Err(ReadError::Damaged { .. }) => continue,
                Err(ReadError::Disk(_) | ReadError::Stopped) => return Err(()),
            };
            after = chunk.id;
            parked.extend(sequences(&chunk.events));
            let proofs = delivered(sequences(&chunk.events));
            settle(bench, Settlement { lane_chunks: vec![(lane, chunk.id, proofs, vec![])], ..Settlement::default() })?;
        }
    }
    Ok(())
}

impl Drained {
    /// Everything is accounted for, under the old identity; `most` may be lost.
    fn check(&self, id: uuid::Uuid, most: usize, what: &str) {
        assert_eq!(self.id, id, "{what}");
        assert!(self.next > LAST + 1, "{what}: no sequence is given out twice");
        let lost: BTreeSet<u64> = waiting().difference(&self.read).copied().collect();
        assert!(lost.len() <= most, "{what}: {} lost: {:?}", lost.len(), lost.iter().take(9));
        let repeated: Vec<_> = self.read.difference(&waiting()).filter(|n| **n <= LAST).copied().collect();
        assert_eq!(repeated, Vec::<u64>::new(), "{what}: settled before");
        for sequence in &lost {
            let declared = self.holes.iter().any(|hole| (hole.first..=hole.last).contains(sequence));
            let held = self.books.held > 0;
            assert!(declared || held, "{what}: {sequence} is gone without a word: {:?} {:?}", self.holes, self.books);
        }
    }
}

#[test]
fn a_flipped_bit_in_a_sessions_row_costs_that_session() {
    let (dir, id) = full_buffer();
    let connection = rusqlite::Connection::open(dir.path().join("buffer.db")).unwrap();
    let ids: Vec<u8> =
        connection.query_row("SELECT packet_ids FROM session WHERE name = 'broker:a'", [], |row| row.get(0)).unwrap();
    let mut flipped = ids;
    flipped[12] ^= 4;
    connection.execute("UPDATE session SET packet_ids = ?1 WHERE name = 'broker:a'", [flipped]).unwrap();
    drop(connection);
    let drained = drain(dir.path());
    drained.check(id, 0, "session");
    assert_eq!((drained.sessions, drained.starts, drained.parked.len()), (1, 1, 3));
    assert!(!files(dir.path()).iter().any(|name| name.contains("set-aside")), "{:?}", files(dir.path()));
    let connection = rusqlite::Connection::open(dir.path().join("buffer.db")).unwrap();
    let left: i64 = connection.query_row("SELECT count(*) FROM session", [], |row| row.get(0)).unwrap();
    assert_eq!(left, 1, "the damaged row is gone");
}

#[test]
fn a_damaged_state_row_is_made_anew_from_the_chunks() {
    for sql in ["UPDATE state SET body = x'0100000000'", "DELETE FROM state"] {
        let (dir, id) = full_buffer();
        rusqlite::Connection::open(dir.path().join("buffer.db")).unwrap().execute(sql, []).unwrap();
        let drained = drain(dir.path());
        drained.check(id, 0, sql);
        assert_eq!((drained.starts, drained.sessions, drained.parked), (1, 2, PARKED.into()));
        assert!(drained.next > RESERVE_LEAST, "what may have been given out is passed over: {}", drained.next);
        // Without what was delivered before: that is not known any more.
        let (taken, dead) = (LAST + 2 - DELIVERED, DEAD.len() as u64);
        assert_eq!((drained.books.received, drained.books.dead_lettered, drained.books.held), (taken, dead, 0));
        assert!(!files(dir.path()).iter().any(|name| name.contains("set-aside")));
    }
}

#[test]
fn a_lane_without_its_row_is_held_under_another_name() {
    let (dir, id) = full_buffer();
    rusqlite::Connection::open(dir.path().join("buffer.db")).unwrap().execute("DELETE FROM lane", []).unwrap();
    let bench = open(dir.path());
    assert_eq!(&*bench.recovered.lanes[0].1, "unreadable-name-1");
    bench.close();
    let drained = drain(dir.path());
    drained.check(id, 0, "lane");
    assert_eq!((drained.parked, drained.books.held), (PARKED.into(), 0));
}

#[test]
fn a_bit_in_the_id_makes_no_new_buffer() {
    let (dir, id) = full_buffer();
    let flipped = uuid::Uuid::from_u128(id.as_u128() ^ 1 << 77);
    let connection = rusqlite::Connection::open(dir.path().join("buffer.db")).unwrap();
    connection.execute("UPDATE identity SET buffer_id = ?1", [flipped.as_bytes()]).unwrap();
    drop(connection);
    drain(dir.path()).check(id, 0, "id");
}

#[test]
fn each_page_of_garbage_costs_what_was_on_it() {
    let (dir, id) = full_buffer();
    let (mut rebuilt, mut met_at_work) = (0, 0);
    for page in 0..pages(dir.path()) {
        let damaged = copy(dir.path());
        garble(damaged.path(), page);
        let drained = drain(damaged.path());
        // Six or seven commits of 50 share a page.
        drained.check(id, 400, &format!("page {page}"));
        rebuilt += u32::from(files(damaged.path()).iter().any(|name| name.starts_with("buffer.db.set-aside-")));
        assert!(drained.starts <= 2, "page {page}: {} starts", drained.starts);
        met_at_work += u32::from(drained.starts == 2);
        let again = open(damaged.path());
        // A chunk of the main lane that cannot be read holds the cursor; one of a parked lane is held and does not.
        let released = again.recovered.released;
        let holds_the_cursor = drained.books.held > 0 && released == LAST;
        assert_eq!(again.recovered.buffer_id, id, "page {page}");
        assert!(holds_the_cursor || released == drained.next, "page {page}: {released}, {}", drained.next);
    }
    assert!(rebuilt > 10 && met_at_work > 3, "{rebuilt} rebuilt, {met_at_work} met at work");
}

#[test]
fn a_file_without_its_head_or_its_end_is_looked_through() {
    let (dir, id) = full_buffer();
    let good = fs::read(dir.path().join("buffer.db")).unwrap();
    let all = good.len() / PAGE;
    for (what, bytes, most) in [
        ("no head", [vec![0; 100], good[100..].to_vec()].concat(), 0),
        ("no first page", [vec![0xff; PAGE], good[PAGE..].to_vec()].concat(), 0),
        ("not the last three pages", good[..(all - 3) * PAGE].to_vec(), 1_200),
        ("not the last page", good[..good.len() - PAGE].to_vec(), 400),
        (
            "a bit of the page size",
            {
                let mut bad = good.clone();
                bad[16] ^= 0x20;
                bad
            },
            0,
        ),
        (
            "a bit of the application",
            {
                let mut bad = good.clone();
                bad[70] ^= 1;
                bad
            },
            0,
        ),
    ] {
        let damaged = copy(dir.path());
        fs::write(damaged.path().join("buffer.db"), bytes).unwrap();
        let drained = drain(damaged.path());
        drained.check(id, most, what);
        assert!(!drained.read.is_empty(), "{what}");
        let kept = files(damaged.path()).iter().filter(|name| name.starts_with("buffer.db.set-aside-")).count();
        assert!(kept >= 1, "{what}: {:?}", files(damaged.path()));
    }
}

#[test]
fn a_log_without_its_database_is_looked_through() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = open(dir.path());
    for commit in 0..10 {
        bench.store(commit * 10 + 1..=commit * 10 + 10);
    }
    let left = copy(dir.path());
    fs::write(left.path().join("buffer.db"), b"").unwrap();
    let mut after = open(left.path());
    assert_eq!(after.recovered.buffer_id, bench.recovered.buffer_id);
    assert_eq!(sequences(&after.read_all()), (1..=100).collect::<Vec<_>>());
}

#[test]
fn a_rebuild_that_was_cut_off_is_begun_or_finished_at_the_next_start() {
    let (dir, id) = full_buffer();
    let damaged = copy(dir.path());
    garble(damaged.path(), 0);
    // A kill in the middle of the copy.
    let unfinished = copy(damaged.path());
    fs::write(unfinished.path().join("buffer.db.new"), vec![1; 3 * PAGE]).unwrap();
    drain(unfinished.path()).check(id, 0, "unfinished");
    assert!(!files(unfinished.path()).contains(&"buffer.db.new".to_owned()));
    // A kill between the copy and its taking the place.
    open(damaged.path()).close();
    let kept = files(damaged.path()).into_iter().find(|name| name.starts_with("buffer.db.set-aside-")).unwrap();
    for old_is_moved in [false, true] {
        let complete = copy(damaged.path());
        fs::rename(complete.path().join("buffer.db"), complete.path().join("buffer.db.salvaged")).unwrap();
        fs::write(complete.path().join("buffer.db.damaged"), "at work").unwrap();
        if !old_is_moved {
            fs::copy(damaged.path().join(&kept), complete.path().join("buffer.db")).unwrap();
            fs::write(complete.path().join("buffer.db-wal"), "a log that is not the new one's").unwrap();
        }
        let drained = drain(complete.path());
        drained.check(id, 0, "complete");
        assert_eq!(drained.starts, 1);
        let names = files(complete.path());
        assert!(!names.iter().any(|name| name.ends_with(".damaged") || name.ends_with(".salvaged")), "{names:?}");
        let aside = names.iter().filter(|name| name.contains("set-aside")).count();
        assert_eq!(aside, if old_is_moved { 0 } else { 2 }, "{names:?}");
    }
}

#[test]
fn a_rebuild_that_was_asked_for_keeps_everything() {
    let (dir, id) = full_buffer();
    let damaged = copy(dir.path());
    fs::write(damaged.path().join("buffer.db.damaged"), "somebody says so").unwrap();
    let drained = drain(damaged.path());
    drained.check(id, 0, "sound after all");
    assert_eq!((drained.sessions, drained.parked), (2, PARKED.into()));
}

#[test]
fn what_could_not_be_read_and_can_be_read_again_gets_new_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = open(dir.path());
    for commit in 0..4 {
        bench.store(commit * 50 + 1..=commit * 50 + 50);
    }
    // The second chunk is passed by, and one of its events was settled before.
    bench.deliver((1..=50).chain([60]).chain(101..=200));
    bench.settle(Settlement { unread: vec![(51, 100)], ..Settlement::default() });
    bench.close();
    let database = || rusqlite::Connection::open(dir.path().join("buffer.db")).unwrap();
    let sound: Vec<u8> = database().query_row("SELECT body FROM chunk WHERE first = 51", [], |row| row.get(0)).unwrap();
    let mut bad = sound.clone();
    bad[20] ^= 1;
    database().execute("UPDATE chunk SET body = ?1 WHERE first = 51", [bad]).unwrap();
    let bench = open(dir.path());
    assert_eq!((bench.recovered.released, bench.recovered.holes.len()), (50, 0), "still unreadable");
    bench.close();
    database().execute("UPDATE chunk SET body = ?1 WHERE first = 51", [sound]).unwrap();
    for start in 0..2 {
        let mut bench = open(dir.path());
        let read = bench.read_all();
        assert_eq!(sequences(&read), (201..=249).collect::<Vec<_>>(), "start {start}");
        let old: Vec<u64> = (51..=100).filter(|old| *old != 60).collect();
        let expected: Vec<Event> = old.iter().map(|old| event(*old)).collect();
        assert_eq!(read.into_iter().map(|stored| stored.event).collect::<Vec<_>>(), expected);
        let mut holes: Vec<_> = bench.recovered.holes.iter().map(|hole| (hole.first, hole.last)).collect();
        holes.sort_unstable();
        assert_eq!((bench.recovered.released, holes), (200, vec![(51, 59), (61, 100)]));
        let books = bench.totals(|status| status.next_sequence == 250);
        assert_eq!((books.received, books.delivered, books.held), (200, 151, 49));
        bench.close();
    }
}

#[test]
fn a_chunk_row_that_reaches_too_far_hides_nothing_behind_it() {
    let (dir, id) = full_buffer();
    let connection = rusqlite::Connection::open(dir.path().join("buffer.db")).unwrap();
    connection.execute("UPDATE chunk SET last = last + 1048576 WHERE first = 301", []).unwrap();
    drop(connection);
    drain(dir.path()).check(id, 50, "last");
    // At the end of the table it would make the books look wrong.
    let (dir, id) = full_buffer();
    let connection = rusqlite::Connection::open(dir.path().join("buffer.db")).unwrap();
    connection.execute("UPDATE chunk SET last = last + 1048576 WHERE first = ?1", [2_101]).unwrap();
    drop(connection);
    let drained = drain(dir.path());
    drained.check(id, 0, "last of all");
    assert_eq!(drained.next, LAST + 2);
}

#[test]
fn dead_letters_are_found_by_an_index_however_many_there_are() {
    let (dir, _) = full_buffer();
    let mut bench = open(dir.path());
    let plan = bench.running.reader.plan_of_dead_letters();
    assert!(plan.contains("dead_letter_by_time"), "{plan}");
    assert!(!plan.contains("SCAN dead_letter;") && !plan.ends_with("SCAN dead_letter"), "{plan}");
    let mut found = |after, since| bench.running.reader.dead_letters(after, since, 10).unwrap().len();
    // Both stand in one row, because they have one reason.
    assert_eq!(
        (found(0, i64::MAX), found(DEAD[0], i64::MAX), found(DEAD[1], i64::MAX), found(u64::MAX >> 1, 0)),
        (2, 2, 0, 2)
    );
}

#[cfg(unix)]
#[test]
fn nobody_else_reads_the_buffer() {
    use std::os::unix::fs::PermissionsExt;
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("data");
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let check = || {
        assert_eq!(mode(&dir), 0o700);
        for name in files(&dir) {
            assert_eq!(mode(&dir.join(&name)), 0o600, "{name}");
        }
    };
    let mut bench = open(&dir);
    bench.store(1..=5);
    check();
    bench.close();
    // As an older version left it.
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
    for name in files(&dir) {
        fs::set_permissions(dir.join(name), fs::Permissions::from_mode(0o644)).unwrap();
    }
    let bench = open(&dir);
    check();
    bench.close();
    let marks = Marks::read(&dir).unwrap();
    assert!(marks.is_some());
}
