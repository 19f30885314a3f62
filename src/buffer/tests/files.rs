//! What the files may look like at start.

use std::fs;
use std::io;

use super::*;
use crate::buffer::envelope::{Opener, Sealer};
use crate::buffer::identity::{Marks, Place};
use crate::buffer::ledger::LedgerRow;
use crate::buffer::limits::RESERVE_LEAST;
use crate::buffer::schema::FORMAT_VERSION;
use crate::buffer::wal_tail;
use crate::cbor;

fn with_five_events() -> (tempfile::TempDir, uuid::Uuid) {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = open(dir.path());
    bench.store(1..=5);
    let id = bench.recovered.buffer_id;
    bench.close();
    (dir, id)
}

/// A new buffer with a new id, and the old files under other names.
fn assert_made_anew(dir: &Path, old: uuid::Uuid, kept: &[&str]) {
    let mut bench = open(dir);
    assert_ne!(bench.recovered.buffer_id, old);
    assert_eq!(bench.read_all(), []);
    bench.store(1..=3);
    let id = bench.recovered.buffer_id;
    bench.close();
    let names = files(dir);
    for start in kept {
        assert!(names.iter().any(|name| name.starts_with(&format!("{start}.set-aside-"))), "{start}: {names:?}");
    }
    let mut again = open(dir);
    assert_eq!(again.recovered.buffer_id, id);
    assert_eq!(again.read_all().len(), 3);
    assert_eq!(
        files(dir).len(),
        names.len() + usize::from(!names.contains(&"buffer.db-wal".to_owned())) * 2,
        "{names:?}"
    );
}

#[test]
fn a_deleted_database_is_a_reported_loss_and_a_new_identity() {
    let (dir, old) = with_five_events();
    fs::remove_file(dir.path().join("buffer.db")).unwrap();
    assert_made_anew(dir.path(), old, &["identity"]);
}

#[test]
fn an_empty_database_is_set_aside_together_with_its_log() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = open(dir.path());
    bench.store(1..=5);
    let copy = copy(dir.path());
    fs::write(copy.path().join("buffer.db"), b"").unwrap();
    let log = fs::read(copy.path().join("buffer.db-wal")).unwrap();
    assert!(!log.is_empty());
    let mut after = open(copy.path());
    // What the log has is looked through.
    assert_eq!(after.recovered.buffer_id, bench.recovered.buffer_id);
    assert_eq!(sequences(&after.read_all()), [1, 2, 3, 4, 5]);
    let kept =
        files(copy.path()).into_iter().find(|name| name.contains("set-aside") && name.ends_with("-wal")).unwrap();
    assert_eq!(fs::read(copy.path().join(kept)).unwrap(), log);
}

#[test]
fn garbage_and_other_programs_databases_are_set_aside() {
    let (dir, old) = with_five_events();
    fs::write(dir.path().join("buffer.db"), vec![0x5a; 10_000]).unwrap();
    assert_made_anew(dir.path(), old, &["buffer.db", "identity"]);

    let (dir, old) = with_five_events();
    fs::remove_file(dir.path().join("buffer.db")).unwrap();
    let other = rusqlite::Connection::open(dir.path().join("buffer.db")).unwrap();
    other.execute_batch("CREATE TABLE t (a); INSERT INTO t VALUES (1)").unwrap();
    drop(other);
    assert_made_anew(dir.path(), old, &["buffer.db", "identity"]);
}

#[test]
fn a_database_behind_its_side_file_goes_on_behind_the_reserved_mark() {
    let (dir, id) = with_five_events();
    let early = copy(dir.path());
    let mut bench = open(dir.path());
    bench.store(6..=9);
    bench.close();
    fs::copy(dir.path().join("identity"), early.path().join("identity")).unwrap();
    let mut bench = open(early.path());
    assert_eq!(bench.recovered.buffer_id, id, "the same buffer");
    assert_eq!(sequences(&bench.read_all()), (1..=5).collect::<Vec<_>>());
    let next = 1 + 9 + RESERVE_LEAST;
    assert_eq!(bench.recovered.settled, [6..=next - 1], "lost sequences are not waited for");
    bench.store(next..=next + 1);
    assert_eq!(sequences(&bench.read_all()), [next, next + 1]);
    bench.deliver([1, 2, 3, 4, 5]);
    bench.totals(|status| status.released == next - 1);
    bench.close();
    let bench = open(early.path());
    assert_eq!((bench.recovered.released, bench.recovered.settled.len()), (next - 1, 0));
}

#[test]
fn sequences_are_reserved_before_they_are_used() {
    let (dir, _) = with_five_events();
    let marks = Marks::read(dir.path()).unwrap().unwrap();
    assert_eq!((marks.committed, marks.reserved, marks.closed), (5, 5 + RESERVE_LEAST, true));
    let last = 5 + RESERVE_LEAST;
    let mut bench = open(dir.path());
    let opened = |dir: &Path| Marks::read(dir).unwrap().unwrap().opened.map(|opened| opened.instance);
    assert_ne!(opened(dir.path()), Some(bench.recovered.instances.present), "it has given out nothing yet");
    bench.store(6..=6);
    let marks = Marks::read(dir.path()).unwrap().unwrap();
    assert_eq!((marks.committed, marks.reserved, marks.closed), (5, last + 1, false));
    assert_eq!(opened(dir.path()), Some(bench.recovered.instances.present));
    bench.store(7..=last + 1);
    assert_eq!(Marks::read(dir.path()).unwrap().unwrap().reserved, last + 1);
    bench.store(last + 2..=last + 2);
    let marks = Marks::read(dir.path()).unwrap().unwrap();
    assert_eq!(marks.committed, last + 1);
    assert!(marks.reserved > last + 2 + RESERVE_LEAST, "more came at once than was reserved: {marks:?}");
}

/// What a killed process leaves after these many commits of one event each.
fn killed_after(commits: u64) -> (tempfile::TempDir, uuid::Uuid) {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = open(dir.path());
    for n in 1..=commits {
        bench.store(n..=n);
    }
    (copy(dir.path()), bench.recovered.buffer_id)
}

fn holes(dir: &Path) -> Vec<(u64, u64)> {
    let connection = rusqlite::Connection::open(dir.join("buffer.db")).unwrap();
    let mut holes = connection.prepare("SELECT first, last FROM hole ORDER BY first").unwrap();
    let rows = holes
        .query_map([], |row| Ok((row.get::<_, i64>(0)?.cast_unsigned(), row.get::<_, i64>(1)?.cast_unsigned())))
        .unwrap();
    rows.map(Result::unwrap).collect()
}

#[test]
fn a_killed_process_has_lost_nothing_and_no_sequence_is_left_out() {
    let (dir, _) = killed_after(20);
    for _ in 0..2 {
        let bench = open(dir.path());
        assert_eq!((bench.status().next_sequence, holes(dir.path())), (21, vec![]));
        // Dies again, before it has given out a sequence.
        drop(copy(dir.path()));
    }
}

#[test]
fn a_log_that_has_lost_its_end_makes_no_id_stand_on_two_readings() {
    const FRAME: u64 = 24 + 4096;
    for (case, lost) in [("cut", 5), ("a bad bit", 5), ("all of it", 20)] {
        let (dir, id) = killed_after(20);
        let log = dir.path().join("buffer.db-wal");
        let frames = u64::from(wal_tail::committed_frames(&log));
        let at = 32 + FRAME * (frames - lost * 2) + 700; // a commit is two pages
        match case {
            "cut" => fs::OpenOptions::new().write(true).open(&log).unwrap().set_len(at).unwrap(),
            "a bad bit" => {
                let mut bytes = fs::read(&log).unwrap();
                bytes[usize::try_from(at).unwrap()] ^= 1;
                fs::write(&log, bytes).unwrap();
            }
            _ => {
                // The tables go with it: the database is of an earlier moment.
                let earlier = tempfile::tempdir().unwrap();
                open(earlier.path()).close();
                let connection = rusqlite::Connection::open(earlier.path().join("buffer.db")).unwrap();
                connection.execute("UPDATE identity SET buffer_id = ?1", [id.as_bytes()]).unwrap();
                connection.close().unwrap();
                fs::copy(earlier.path().join("buffer.db"), dir.path().join("buffer.db")).unwrap();
                fs::remove_file(&log).unwrap();
            }
        }
        let marks = Marks::read(dir.path()).unwrap().unwrap();
        assert_eq!(marks.committed, 0, "the mark knows nothing of them yet");
        let mut bench = open(dir.path());
        let left = 20 - lost;
        assert_eq!((bench.recovered.buffer_id, bench.read_all().len() as u64), (id, left), "{case}");
        let next = marks.reserved + 1;
        bench.store(next..=next);
        assert_eq!(sequences(&bench.read_all()), [next], "{case}");
        assert_eq!(holes(dir.path()), [(left + 1, marks.reserved)], "{case}");
        // What was lost can have been sent, with a watermark: by a start of ours.
        let before = bench.recovered.instances.earlier.last().copied().unwrap();
        assert_eq!((Some(before.instance), before.last), (marks.opened.map(|o| o.instance), marks.reserved), "{case}");
        let kept = copy(dir.path());
        bench.close();
        let again = open(kept.path());
        assert_eq!(again.status().next_sequence, next + 1, "{case}: left out once");
    }
}

#[test]
fn a_copy_is_told_from_the_original_and_a_buffer_that_was_moved_in_its_file_system_is_not() {
    let (dir, _) = with_five_events();
    let (here, copied) = (tempfile::tempdir().unwrap(), copy(dir.path()));
    let moved = |dir: &Path| {
        let bench = open(dir);
        let found = bench.recovered.moved;
        bench.close();
        found
    };
    assert_eq!(moved(dir.path()), None);
    for name in files(dir.path()) {
        fs::rename(dir.path().join(&name), here.path().join(&name)).unwrap();
    }
    assert_eq!(moved(here.path()), None);
    assert!(moved(copied.path()).is_some_and(|how| how.contains("copy")));
    let (id, _) = take_new_identity(&settings(), copied.path()).unwrap();
    let bench = open(copied.path());
    assert_eq!((bench.recovered.buffer_id, bench.recovered.moved), (id, None));
}

#[test]
fn ten_thousand_starts_push_out_nobody_whose_word_or_readings_are_needed() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = open(dir.path());
    let spoke = bench.recovered.instances.present;
    bench.store(1..=3);
    bench.settle(Settlement { delivered: delivered(1..=3), heard: Some(spoke), ..Settlement::default() });
    bench.close();
    let mut bench = open(dir.path());
    let stored = bench.recovered.instances.present;
    bench.store(4..=5);
    bench.close();
    let connection = rusqlite::Connection::open(dir.path().join("buffer.db")).unwrap();
    connection
        .execute_batch(
            "UPDATE life SET last = 5 WHERE last IS NULL; \
             WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 10500) \
             INSERT INTO life (instance, started_ms, first, last) SELECT randomblob(16), i, 6, 5 FROM n",
        )
        .unwrap();
    drop(connection);
    open(dir.path()).close();
    let instances = open(dir.path()).recovered.instances;
    assert!(instances.earlier.len() < 10_010, "{}", instances.earlier.len());
    let first: Vec<_> = instances.earlier.iter().take(2).map(|life| (life.instance, life.first, life.last)).collect();
    assert_eq!(first, [(spoke, 1, 3), (stored, 4, 5)]);
    assert_eq!(instances.of(5).map(|(instance, _)| instance), Some(stored));
}

#[test]
fn a_missing_damaged_or_foreign_side_file_is_made_anew() {
    for case in ["missing", "damaged", "foreign"] {
        let (dir, id) = with_five_events();
        let path = dir.path().join("identity");
        match case {
            "missing" => fs::remove_file(&path).unwrap(),
            "damaged" => fs::write(&path, "tidegate-identity 1\nbuffer x").unwrap(),
            _ => Marks::new(uuid::Uuid::new_v4(), 7, Place::default()).write(dir.path()).unwrap(),
        }
        let mut bench = open(dir.path());
        assert_eq!(bench.recovered.buffer_id, id, "{case}");
        assert_eq!(bench.read_all().len(), 5, "{case}");
        let marks = Marks::read(dir.path()).unwrap().unwrap();
        assert_eq!((marks.buffer_id, marks.committed, marks.reserved), (id, 5, 5), "{case}");
        let aside = files(dir.path()).iter().any(|name| name.starts_with("identity.set-aside-"));
        assert_eq!(aside, case != "missing", "{case}");
    }
}

#[test]
fn a_start_that_was_cut_off_is_just_started_again() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("buffer.db"), b"").unwrap();
    let mut bench = open(dir.path());
    bench.store(1..=2);
    bench.close();
    // After the settings, before the tables.
    let dir = tempfile::tempdir().unwrap();
    let connection = rusqlite::Connection::open(dir.path().join("buffer.db")).unwrap();
    connection.execute_batch("PRAGMA journal_mode = WAL").unwrap();
    drop(connection);
    open(dir.path()).store(1..=2);
}

#[test]
fn a_newer_format_is_refused_and_untouched() {
    let (dir, _) = with_five_events();
    let connection = rusqlite::Connection::open(dir.path().join("buffer.db")).unwrap();
    connection.pragma_update(None, "user_version", FORMAT_VERSION + 1).unwrap();
    drop(connection);
    let before = fs::read(dir.path().join("buffer.db")).unwrap();
    let error = Buffer::open(settings(), dir.path(), &names()).map(|_| ()).unwrap_err();
    assert!(
        matches!(error, OpenError::Newer { found, known: FORMAT_VERSION, .. } if found == FORMAT_VERSION + 1),
        "{error}"
    );
    assert_eq!(error.next_step(), NextStep::Halt);
    assert!(error.to_string().contains("newer Tidegate"), "{error}");
    assert_eq!(fs::read(dir.path().join("buffer.db")).unwrap(), before);
}

type State3 = (u64, u64, u64, Vec<(u64, u64)>, Vec<LedgerRow>, u64);
type State1 = (u64, u64, u64, Vec<(u64, u64)>, Vec<(u16, u64, u64, u64, u64, u64, u64)>);

/// Without what came after version 2.
const NOT_OF_VERSION_2: &str = "DROP TABLE admitted; DROP TABLE in_line; DROP TABLE unread; DROP TABLE hole; \
    DROP INDEX dead_letter_by_last; DROP INDEX dead_letter_by_time; ALTER TABLE dead_letter DROP COLUMN last; \
    ALTER TABLE route DROP COLUMN kafka_topic; ALTER TABLE route DROP COLUMN record_key; \
    ALTER TABLE route DROP COLUMN value; ALTER TABLE life DROP COLUMN first; ALTER TABLE life DROP COLUMN ended_by; \
    ALTER TABLE life DROP COLUMN word; PRAGMA user_version = 2";

#[test]
fn a_buffer_of_version_2_is_taken_over_with_its_dead_letters() {
    let (dir, id) = with_five_events();
    let bench = open(dir.path());
    bench.settle(Settlement { dead: vec![dead(2)], ..Settlement::default() });
    bench.close();
    rusqlite::Connection::open(dir.path().join("buffer.db")).unwrap().execute_batch(NOT_OF_VERSION_2).unwrap();
    let mut bench = open(dir.path());
    assert_eq!((bench.recovered.buffer_id, bench.recovered.gone.len()), (id, 0));
    bench.settle(Settlement { dead: vec![dead(3), dead(5)], ..Settlement::default() });
    let letters = bench.running.reader.dead_letters(0, 0, 9).unwrap();
    assert_eq!(letters.iter().map(|(letter, _)| letter.sequence).collect::<Vec<_>>(), [2, 3, 5]);
}

/// As version 1 left it: without the tables and the field that came with version 2.
fn make_version_1(dir: &Path) {
    let connection = rusqlite::Connection::open(dir.join("buffer.db")).unwrap();
    let body: Vec<u8> = connection.query_row("SELECT body FROM state", [], |row| row.get(0)).unwrap();
    let raw = Opener::default().open(&body).unwrap();
    let state: State3 = cbor::read(&raw).unwrap();
    let ledger = state.4.iter().map(|&(route, a, b, c, d, e, held, _lost)| (route, a, b, c, d, e, held)).collect();
    let (row, mut raw, mut sealer): (State1, _, _) =
        ((state.0, state.1, state.2, state.3, ledger), Vec::new(), Sealer::default());
    cbor::append(&row, &mut raw).unwrap();
    let body = sealer.seal(&raw, false).unwrap();
    connection.execute("UPDATE state SET body = ?1", [body]).unwrap();
    connection.execute_batch(NOT_OF_VERSION_2).unwrap();
    connection.execute_batch("DROP TABLE life; DROP TABLE former; PRAGMA user_version = 1").unwrap();
}

#[test]
fn a_buffer_of_version_1_is_taken_over_with_all_it_holds() {
    let (dir, id) = with_five_events();
    make_version_1(dir.path());
    let mut bench = open(dir.path());
    assert_eq!((bench.recovered.buffer_id, bench.recovered.instances.watermark), (id, 0));
    assert_eq!(ranges(&bench), []);
    assert_eq!(sequences(&bench.read_all()), [1, 2, 3, 4, 5]);
    bench.store(6..=7);
    bench.settle(Settlement { delivered: delivered(1..=3), watermark: Some(3), ..Settlement::default() });
    let present = bench.recovered.instances.present;
    bench.close();
    let bench = open(dir.path());
    assert_eq!((bench.recovered.released, bench.recovered.instances.watermark), (3, 3));
    assert_eq!(ranges(&bench), [(present, 6, 7)]);
    let connection = rusqlite::Connection::open(dir.path().join("buffer.db")).unwrap();
    let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap();
    assert_eq!(version, FORMAT_VERSION);
}

#[test]
fn the_starts_of_a_buffer_of_version_2_keep_what_they_stored() {
    let dir = tempfile::tempdir().unwrap();
    let mut stored = Vec::new();
    for start in 0..3 {
        let mut bench = open(dir.path());
        bench.store(start * 10 + 1..=start * 10 + 10);
        stored.push((bench.recovered.instances.present, start * 10 + 1, start * 10 + 10));
        bench.close();
    }
    let connection = rusqlite::Connection::open(dir.path().join("buffer.db")).unwrap();
    connection.execute_batch(NOT_OF_VERSION_2).unwrap();
    drop(connection);
    assert_eq!(ranges(&open(dir.path())), stored);
}

/// Earlier starts, with what they gave out.
fn ranges(bench: &Bench) -> Vec<(Instance, u64, u64)> {
    bench.recovered.instances.earlier.iter().map(|life| (life.instance, life.first, life.last)).collect()
}

#[test]
fn every_start_is_another_instance_and_is_remembered_with_the_last_sequence_it_can_have_sent() {
    let dir = tempfile::tempdir().unwrap();
    let mut instances = Vec::new();
    for start in 0..3 {
        let mut bench = open(dir.path());
        assert_eq!(ranges(&bench), instances);
        bench.store(start * 10 + 1..=start * 10 + 10);
        instances.push((bench.recovered.instances.present, start * 10 + 1, start * 10 + 10));
        // A start that was killed is written down by the next one.
        bench.close();
    }
    let distinct: std::collections::HashSet<_> = instances.iter().map(|(instance, ..)| instance.0).collect();
    assert_eq!(distinct.len(), 3);
}

#[test]
fn a_new_identity_keeps_what_is_held_and_who_stored_it_and_forgets_packet_ids() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = open(dir.path());
    let half_way = vec![IdChange::Keep(60), IdChange::Add(3, 100), IdChange::Add(4, 100)];
    let session = SessionChange { session: "broker:a".into(), changes: half_way };
    bench.send_with((1..=5).map(event).collect(), vec![session], 1);
    bench.acknowledged();
    let (old, by) = (bench.recovered.buffer_id, bench.recovered.instances.present);
    bench.close();
    let (new, forgotten) = take_new_identity(&settings(), dir.path()).unwrap();
    assert_ne!(new, old);
    assert_eq!(forgotten, 2);
    let mut bench = open(dir.path());
    assert_eq!(bench.recovered.buffer_id, new);
    assert_eq!(bench.recovered.instances.former, [(old, 5)]);
    assert_eq!((ranges(&bench), bench.recovered.instances.watermark), (vec![(by, 1, 5)], 0));
    assert_eq!(sequences(&bench.read_all()), [1, 2, 3, 4, 5]);
    assert!(bench.recovered.sessions.values().all(|session| session.packet_ids.is_empty()));
    bench.store(6..=6);
    bench.close();
    assert_eq!(Marks::read(dir.path()).unwrap().unwrap().buffer_id, new);
    assert_eq!(files(dir.path()).iter().filter(|name| name.contains("set-aside")).count(), 0);
}

#[test]
fn two_agents_cannot_share_a_directory() {
    let dir = tempfile::tempdir().unwrap();
    let bench = open(dir.path());
    let error = Buffer::open(settings(), dir.path(), &names()).map(|_| ()).unwrap_err();
    assert!(matches!(error, OpenError::InUse { .. }), "{error}");
    assert_eq!(error.next_step(), NextStep::Retry);
    bench.close();
    open(dir.path()).close();
}

#[test]
fn a_data_directory_that_is_a_file_is_a_usage_error() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    let error = Buffer::open(settings(), &file.join("sub"), &names()).map(|_| ()).unwrap_err();
    assert_eq!(error.next_step(), NextStep::Usage);
    assert!(error.to_string().contains("file/sub"), "{error}");
    for mendable in [io::ErrorKind::PermissionDenied, io::ErrorKind::ReadOnlyFilesystem, io::ErrorKind::Other] {
        assert_eq!(OpenError::files("open", &file)(mendable.into()).next_step(), NextStep::Retry, "{mendable}");
    }
}
