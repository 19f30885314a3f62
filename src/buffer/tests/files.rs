//! What the files may look like at start.

use std::fs;
use std::io;

use super::*;
use crate::buffer::books::LedgerRow;
use crate::buffer::envelope::{Opener, Sealer};
use crate::buffer::identity::Marks;
use crate::buffer::limits::RESERVE_SEQUENCES;
use crate::buffer::schema::FORMAT_VERSION;
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
    assert_made_anew(copy.path(), bench.recovered.buffer_id, &["buffer.db", "identity"]);
    let kept =
        files(copy.path()).into_iter().find(|name| name.contains("set-aside") && name.ends_with("-wal")).unwrap();
    assert_eq!(fs::read(copy.path().join(kept)).unwrap(), log);
}

#[test]
fn a_truncated_database_is_set_aside() {
    let (dir, old) = with_five_events();
    let path = dir.path().join("buffer.db");
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(3 * 4096).unwrap();
    assert_made_anew(dir.path(), old, &["buffer.db", "identity"]);
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
fn any_page_of_garbage_is_survived_at_open() {
    let (dir, _) = with_five_events();
    let good = fs::read(dir.path().join("buffer.db")).unwrap();
    for page in 0..good.len() / 4096 {
        let to = copy(dir.path());
        let mut bad = good.clone();
        bad[page * 4096..(page + 1) * 4096].fill(0x5a);
        fs::write(to.path().join("buffer.db"), bad).unwrap();
        let mut bench = open(to.path());
        let next = bench.running.outlet.next(Duration::ZERO);
        let next_sequence = bench.recovered.released + 1;
        assert!(next_sequence >= 1, "page {page}: {next:?}");
        bench.send(vec![event(1)], 1);
        if let Ok(events) = next {
            let intact: Vec<Stored> =
                (1..).zip(&events).map(|(n, _)| Stored { sequence: n, event: event(n) }).collect();
            assert_eq!(events, intact, "page {page}");
        }
    }
}

#[test]
fn a_damaged_state_row_sets_the_database_aside() {
    let (dir, old) = with_five_events();
    let connection = rusqlite::Connection::open(dir.path().join("buffer.db")).unwrap();
    connection.execute("UPDATE state SET body = x'0100000000'", []).unwrap();
    drop(connection);
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
    let next = 1 + RESERVE_SEQUENCES;
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
    assert_eq!((marks.committed, marks.reserved), (5, RESERVE_SEQUENCES));
    Marks { reserved: 6, ..marks }.write(dir.path()).unwrap();
    let mut bench = open(dir.path());
    bench.store(6..=6);
    assert_eq!(Marks::read(dir.path()).unwrap().unwrap().reserved, 6);
    bench.store(7..=8);
    let marks = Marks::read(dir.path()).unwrap().unwrap();
    assert_eq!((marks.committed, marks.reserved), (6, 8 + RESERVE_SEQUENCES));
}

#[test]
fn a_missing_damaged_or_foreign_side_file_is_made_anew() {
    for case in ["missing", "damaged", "foreign"] {
        let (dir, id) = with_five_events();
        let path = dir.path().join("identity");
        match case {
            "missing" => fs::remove_file(&path).unwrap(),
            "damaged" => fs::write(&path, "tidegate-identity 1\nbuffer x").unwrap(),
            _ => Marks { buffer_id: uuid::Uuid::new_v4(), reserved: 7, committed: 7 }.write(dir.path()).unwrap(),
        }
        let mut bench = open(dir.path());
        assert_eq!(bench.recovered.buffer_id, id, "{case}");
        assert_eq!(bench.read_all().len(), 5, "{case}");
        let marks = Marks::read(dir.path()).unwrap().unwrap();
        assert_eq!((marks.buffer_id, marks.committed, marks.reserved), (id, 5, 5 + RESERVE_SEQUENCES), "{case}");
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

type State2 = (u64, u64, u64, Vec<(u64, u64)>, Vec<LedgerRow>, u64);
type State1 = (u64, u64, u64, Vec<(u64, u64)>, Vec<LedgerRow>);

/// Without what came with version 3.
const NOT_OF_VERSION_2: &str = "DROP TABLE admitted; DROP TABLE in_line; DROP INDEX dead_letter_by_last; \
    DROP INDEX dead_letter_by_time; ALTER TABLE dead_letter DROP COLUMN last; ALTER TABLE route DROP COLUMN kafka_topic; \
    ALTER TABLE route DROP COLUMN record_key; ALTER TABLE route DROP COLUMN value; PRAGMA user_version = 2";

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
    let letters = bench.running.outlet.dead_letters(0, 0, 9).unwrap();
    assert_eq!(letters.iter().map(|(letter, _)| letter.sequence).collect::<Vec<_>>(), [2, 3, 5]);
}

/// As version 1 left it: without the tables and the field that came with version 2.
fn make_version_1(dir: &Path) {
    let connection = rusqlite::Connection::open(dir.join("buffer.db")).unwrap();
    let body: Vec<u8> = connection.query_row("SELECT body FROM state", [], |row| row.get(0)).unwrap();
    let raw = Opener::default().open(&body).unwrap();
    let state: State2 = cbor::read(&raw).unwrap();
    let (row, mut raw, mut sealer): (State1, _, _) =
        ((state.0, state.1, state.2, state.3, state.4), Vec::new(), Sealer::default());
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
    assert_eq!((bench.recovered.buffer_id, bench.recovered.lives.watermark), (id, 0));
    assert_eq!(bench.recovered.lives.earlier, []);
    assert_eq!(sequences(&bench.read_all()), [1, 2, 3, 4, 5]);
    bench.store(6..=7);
    bench.settle(Settlement { delivered: delivered(1..=3), watermark: Some(3), ..Settlement::default() });
    let present = bench.recovered.lives.present;
    bench.close();
    let bench = open(dir.path());
    assert_eq!((bench.recovered.released, bench.recovered.lives.watermark), (3, 3));
    assert_eq!(bench.recovered.lives.earlier, [(present, 7)]);
    let connection = rusqlite::Connection::open(dir.path().join("buffer.db")).unwrap();
    let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap();
    assert_eq!(version, FORMAT_VERSION);
}

#[test]
fn every_start_is_another_instance_and_is_remembered_with_the_last_sequence_it_can_have_sent() {
    let dir = tempfile::tempdir().unwrap();
    let mut lives = Vec::new();
    for start in 0..3 {
        let mut bench = open(dir.path());
        assert_eq!(bench.recovered.lives.earlier, lives);
        bench.store(start * 10 + 1..=start * 10 + 10);
        lives.push((bench.recovered.lives.present, start * 10 + 10));
        // A start that was killed is written down by the next one.
        bench.close();
    }
    let distinct: std::collections::HashSet<_> = lives.iter().map(|(instance, _)| instance.0).collect();
    assert_eq!(distinct.len(), 3);
}

#[test]
fn a_new_identity_keeps_what_is_held_and_forgets_packet_ids_and_earlier_starts() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = open(dir.path());
    let half_way = vec![IdChange::Keep(60), IdChange::Add(3, 100), IdChange::Add(4, 100)];
    let session = SessionChange { session: "broker:a".into(), changes: half_way };
    bench.send_with((1..=5).map(event).collect(), vec![session], 1);
    bench.acknowledged();
    let old = bench.recovered.buffer_id;
    bench.close();
    let (new, forgotten) = take_new_identity(&settings(), dir.path()).unwrap();
    assert_ne!(new, old);
    assert_eq!(forgotten, 2);
    let mut bench = open(dir.path());
    assert_eq!(bench.recovered.buffer_id, new);
    assert_eq!(bench.recovered.lives.former, [(old, 5)]);
    assert_eq!((bench.recovered.lives.earlier.len(), bench.recovered.lives.watermark), (0, 0));
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
    let denied = OpenError::files("open", &file)(io::ErrorKind::PermissionDenied.into());
    assert_eq!(denied.next_step(), NextStep::Usage);
}
