//! Storing and reading back.

use super::*;
use crate::buffer::limits::{INTAKE_BYTES, TAIL_CACHE_BYTES};

#[test]
fn events_are_read_as_they_were_stored_from_memory_and_after_reopen_from_disk() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = open(dir.path());
    let id = bench.recovered.buffer_id;
    assert_eq!(bench.recovered.routes, [RouteId(1), RouteId(2)]);
    bench.store(1..=1);
    bench.store(2..=500);
    let live = bench.read_all();
    let expected: Vec<Stored> = (1..=500).map(|sequence| Stored { sequence, event: event(sequence) }).collect();
    assert_eq!(live, expected);
    bench.running.reader.rewind(0);
    assert_eq!(bench.read_all(), expected, "after a rewind");
    bench.close();
    let mut bench = open(dir.path());
    assert_eq!(bench.recovered.buffer_id, id);
    assert_eq!(bench.read_all(), expected, "after a restart");
    bench.store(501..=510);
    assert_eq!(sequences(&bench.read_all()), (501..=510).collect::<Vec<_>>());
    bench.running.reader.rewind(250);
    assert_eq!(sequences(&bench.read_all()), (251..=510).collect::<Vec<_>>(), "from the middle of a chunk");
}

#[test]
fn a_live_window_that_overflows_leads_to_the_disk_without_gap_or_repeat() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = open(dir.path());
    let large = |n: u64| Event { payload: vec![b'x'; 20_000].into(), ..event(n) };
    let commits = 4 * TAIL_CACHE_BYTES as u64 / 20_000 / 3;
    for commit in 0..commits {
        bench.send((0..3).map(|i| large(commit * 3 + i + 1)).collect(), commit);
        assert_eq!(bench.acknowledged(), commit);
    }
    assert_eq!(sequences(&bench.read_all()), (1..=commits * 3).collect::<Vec<_>>());
    bench.store(commits * 3 + 1..=commits * 3 + 5);
    assert_eq!(sequences(&bench.read_all()).len(), 5);
}

#[test]
fn one_call_returns_a_piece_of_a_large_backlog() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = open(dir.path());
    let big = |n: u64| Event { payload: vec![b'x'; 100_000].into(), ..event(n) };
    bench.send((1..=30).map(big).collect(), 1);
    bench.acknowledged();
    let first = bench.running.reader.next(PATIENCE).unwrap();
    assert!(first.len() < 8, "{} events at once", first.len());
    assert_eq!(first.len() + bench.read_all().len(), 30);
}

#[test]
fn an_event_larger_than_a_chunk_is_stored() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = open(dir.path());
    let payload: Vec<u8> = (0..3_000_000).map(|_| fastrand::u8(..)).collect();
    bench.send(vec![event(1), Event { payload: payload.clone().into(), ..event(2) }, event(3)], 1);
    bench.acknowledged();
    let read = bench.read_all();
    assert_eq!(sequences(&read), [1, 2, 3]);
    assert_eq!(read[1].event.payload, payload);
}

#[test]
fn the_outlet_waits_for_new_events() {
    let dir = tempfile::tempdir().unwrap();
    let Bench { running, reply, .. } = open(dir.path());
    let Running { intake, mut reader, settler, .. } = running;
    let reader = std::thread::spawn(move || {
        let events = reader.next(PATIENCE).unwrap();
        (reader, sequences(&events))
    });
    let arrivals = Arrivals { events: vec![event(1)], sessions: vec![], receipt: 0, reply, room: None, waits: true };
    intake.store(arrivals).unwrap();
    let (mut reader, read) = reader.join().unwrap();
    assert_eq!(read, [1]);
    drop((intake, settler));
    assert!(matches!(reader.next(PATIENCE), Err(ReadError::Stopped)));
}

#[test]
fn everything_queued_is_committed_before_the_thread_ends() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = open(dir.path());
    for n in 1..=50 {
        bench.send(vec![event(n)], n);
    }
    let Running { intake, settler, thread, reader, .. } = bench.running;
    let ticket = settler.settle(Settlement::default()).unwrap();
    drop((intake, reader));
    wait_for("the last settlement", || settler.applied() >= ticket);
    drop(settler);
    thread.join().unwrap();
    for n in 1..=50 {
        assert_eq!(bench.durable.try_recv().unwrap().into_receipt(), n, "in order");
    }
    assert_eq!(
        std::fs::metadata(dir.path().join("buffer.db-wal")).map_or(0, |m| m.len()),
        0,
        "the log is written back"
    );
    assert_eq!(open(dir.path()).read_all().len(), 50);
}

#[test]
fn the_intake_is_bounded_in_bytes_and_room_comes_back_after_the_commit() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = open(dir.path());
    let intake = bench.running.intake.clone();
    let most = intake.try_reserve(INTAKE_BYTES * 10).unwrap();
    assert!(intake.try_reserve(1).is_none());
    let arrivals = Arrivals { room: Some(most), ..bench.arrivals(vec![event(1)], 1) };
    intake.store(arrivals).unwrap();
    bench.acknowledged();
    wait_for("room", || intake.try_reserve(INTAKE_BYTES).is_some());
}

#[test]
fn a_door_of_a_stopped_buffer_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let bench = open(dir.path());
    let room = bench.running.intake.room();
    bench.close();
    assert!(room.is_closed());
}

#[test]
fn sessions_are_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = open(dir.path());
    let change =
        |session: &str, changes: &[IdChange]| SessionChange { session: session.into(), changes: changes.into() };
    let sessions = vec![
        change("broker:a", &[IdChange::Add(3, 100), IdChange::Add(4, 100), IdChange::Add(9, 100), IdChange::Remove(4)]),
        change("listen:b:c", &[IdChange::Keep(3600), IdChange::Add(1, 100)]),
        change("gone", &[IdChange::Add(1, 100)]),
    ];
    let arrivals = Arrivals { sessions, ..bench.arrivals(vec![event(1)], 1) };
    bench.running.intake.store(arrivals).unwrap();
    bench.acknowledged();
    let sessions = vec![change("gone", &[IdChange::Forget]), change("listen:b:c", &[IdChange::Remove(1)])];
    let arrivals = Arrivals { sessions, ..bench.arrivals(vec![], 2) };
    bench.running.intake.store(arrivals).unwrap();
    bench.acknowledged();
    let crashed = open(copy(dir.path()).path());
    bench.close();
    for recovered in [crashed.recovered, open(dir.path()).recovered] {
        let sessions = recovered.sessions;
        assert_eq!(sessions.len(), 2);
        assert_eq!(sessions["broker:a"].packet_ids, [(3, Some(100)), (9, Some(100))].into());
        assert_eq!(sessions["broker:a"].expiry_s, u32::MAX);
        assert_eq!((sessions["listen:b:c"].expiry_s, sessions["listen:b:c"].packet_ids.len()), (3600, 0));
        assert!(sessions["listen:b:c"].used_ms > 0);
    }
}

#[test]
fn dropped_events_are_on_the_books() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = open(dir.path());
    bench.running.intake.dropped(RouteId(1), 5);
    bench.running.intake.dropped(RouteId::UNROUTED, 2);
    bench.store(1..=1);
    wait_for("the drops in the books", || bench.totals(|_| true).dropped == 7);
    bench.close();
    let bench = open(dir.path());
    let books = bench.totals(|_| true);
    assert_eq!((books.received, books.dropped, books.held), (8, 7, 1));
}

#[test]
fn routes_keep_their_ids_whatever_their_order() {
    let dir = tempfile::tempdir().unwrap();
    drop(Buffer::open(settings(), dir.path(), &names()).unwrap());
    let other = ["new", "other/#", "new"].map(route);
    let (buffer, recovered) = Buffer::open(settings(), dir.path(), &other).unwrap();
    assert_eq!(recovered.routes, [RouteId(3), RouteId(2), RouteId(3)]);
    drop(buffer);
    let (_, recovered) = Buffer::open(settings(), dir.path(), &names()).unwrap();
    assert_eq!(recovered.routes, [RouteId(1), RouteId(2)]);
}

#[test]
fn what_a_route_says_is_kept_when_it_is_gone_from_the_configuration() {
    let dir = tempfile::tempdir().unwrap();
    drop(Buffer::open(settings(), dir.path(), &names()).unwrap());
    let (_, recovered) = Buffer::open(settings(), dir.path(), &[route("other/#")]).unwrap();
    assert_eq!(recovered.gone, [(RouteId(1), route("sensors/#"))].into());
    let mended = Definition { to: "elsewhere".into(), ..route("sensors/#") };
    let (_, recovered) = Buffer::open(settings(), dir.path(), std::slice::from_ref(&mended)).unwrap();
    assert_eq!((recovered.routes, recovered.gone), (vec![RouteId(1)], [(RouteId(2), route("other/#"))].into()));
    let (_, recovered) = Buffer::open(settings(), dir.path(), &[]).unwrap();
    assert_eq!(recovered.gone.get(&RouteId(1)), Some(&mended), "as it was written last");
}

#[test]
fn the_names_of_admitted_topics_are_kept_while_something_waits_beyond_them() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = open(dir.path());
    bench.store(1..=2);
    let admitted = || vec!["a".into(), "b".into()];
    bench.settle(Settlement { admitted: admitted(), in_line_with: Some(7), ..Settlement::default() });
    bench.park([1], OVERFLOW);
    bench.close();
    let bench = open(dir.path());
    assert_eq!((bench.recovered.admitted.clone(), bench.recovered.in_line_with), (admitted(), Some(7)));
    let lane = bench.running.settler.lane(OVERFLOW).unwrap();
    let gone = vec![LaneMove { lane, chunk: 1, parked: vec![], dead: vec![dead(1)] }];
    bench.settle(Settlement { lane_moves: gone, ..Settlement::default() });
    bench.close();
    let bench = open(dir.path());
    assert_eq!((bench.recovered.admitted.len(), bench.recovered.in_line_with), (0, Some(7)));
}

#[test]
fn a_commit_delay_brings_arrivals_into_one_commit() {
    let dir = tempfile::tempdir().unwrap();
    let mut slow = settings();
    slow.commit_delay = Some(Duration::from_millis(500));
    let mut bench = open_with(dir.path(), slow);
    for n in 1..=20 {
        bench.send(vec![event(n)], n);
    }
    for n in 1..=20 {
        assert_eq!(bench.acknowledged(), n);
    }
    bench.totals(|status| status.next_sequence == 21);
    assert!(bench.status().commits <= 2, "{} commits", bench.status().commits);
}

/// SQLite without `HAVE_FDATASYNC` syncs with fsync, which also writes the file's times: twice the bytes a small commit.
/// The build flag is seen by every rustc that cargo starts, so it was there when SQLite was compiled.
#[test]
fn sqlite_was_built_with_fdatasync() {
    assert_eq!(option_env!("LIBSQLITE3_FLAGS"), Some("-DHAVE_FDATASYNC=1"));
}
