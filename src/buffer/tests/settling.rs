//! Every way out of the buffer.

use super::*;
use crate::buffer::limits::SWEEP_SEQUENCES;

fn rows(dir: &Path, table: &str) -> i64 {
    let connection = rusqlite::Connection::open(dir.join("buffer.db")).unwrap();
    connection.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).unwrap()
}

#[test]
fn delivered_chunks_leave_the_disk_and_the_rest_is_known_exactly() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = open(dir.path());
    for commit in 0..10 {
        bench.store(commit * 10 + 1..=commit * 10 + 10);
    }
    bench.deliver((1..=35).chain(41..=50).chain([97]));
    let books = bench.totals(|status| status.released == 35);
    assert_eq!((books.received, books.delivered, books.held), (100, 46, 54));
    assert_eq!(rows(dir.path(), "chunk"), 7, "three whole chunks below the cursor are gone");
    bench.close();
    let mut bench = open(dir.path());
    assert_eq!((bench.recovered.released, &bench.recovered.settled), (35, &vec![41..=50, 97..=97]));
    assert_eq!(sequences(&bench.read_all()), (36..=100).collect::<Vec<_>>(), "settled ones are forward's to skip");
    bench.settle_alone(Settlement { delivered: delivered((36..=40).chain(51..=100)), ..Settlement::default() });
    let books = bench.totals(|status| status.released == 100);
    assert_eq!((books.delivered, books.held), (100, 0));
    assert_eq!(rows(dir.path(), "chunk"), 0);
    assert_eq!(bench.status().oldest_ms, None);
}

#[test]
fn settling_twice_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = open(dir.path());
    bench.store(1..=10);
    bench.deliver([2, 3, 2]);
    bench.settle(Settlement {
        delivered: delivered([3, 4]),
        dead: vec![dead(2), dead(4), dead(5)],
        ..Settlement::default()
    });
    bench.park([5, 6], "k");
    bench.deliver([6, 11, 0, u64::MAX]);
    let books = bench.totals(|status| status.commits >= 5);
    assert_eq!((books.received, books.delivered, books.dead_lettered, books.held), (10, 3, 1, 6));
    assert_eq!(rows(dir.path(), "dead_letter"), 1);
}

#[test]
fn dead_letters_are_copied_with_their_reason() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = open(dir.path());
    bench.store(1..=9);
    bench.settle(Settlement {
        dead: vec![dead(4), dead(7)],
        delivered: delivered([1, 2, 3, 5, 6, 8, 9]),
        ..Settlement::default()
    });
    let books = bench.totals(|status| status.released == 9);
    assert_eq!((books.delivered, books.dead_lettered, books.held), (7, 2, 0));
    let connection = rusqlite::Connection::open(dir.path().join("buffer.db")).unwrap();
    let row = |sequence: i64| {
        let sql = "SELECT kafka_topic, route, reason, body FROM dead_letter WHERE sequence = ?1";
        connection
            .query_row(sql, [sequence], |row| {
                Ok((
                    row.get::<_, String>(0)?,
                    row.get::<_, u16>(1)?,
                    row.get::<_, String>(2)?,
                    row.get::<_, Vec<u8>>(3)?,
                ))
            })
            .unwrap()
    };
    let (topic, route, reason, body) = row(7);
    assert_eq!((topic.as_str(), RouteId(route), reason.as_str()), ("k", route_of(7), "too large"));
    let events = chunk::ChunkReader::default().read(&body, 7, 7).unwrap();
    assert_eq!(events[0].event, event(7));
}

#[test]
fn dead_letters_with_one_reason_take_one_row_and_no_more_room_than_their_chunk() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = open(dir.path());
    bench.store(1..=4_000);
    let letters = (1..=4_000).filter(|n| n % 2 == 1).map(dead).collect();
    bench.settle(Settlement { dead: letters, ..Settlement::default() });
    let books = bench.totals(|status| total(status).dead_lettered > 0);
    assert_eq!((books.dead_lettered, books.held), (2_000, 2_000));
    assert_eq!(rows(dir.path(), "dead_letter"), 1);
    let connection = rusqlite::Connection::open(dir.path().join("buffer.db")).unwrap();
    let bytes = |sql: &str| connection.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap();
    let (chunks, letters) =
        (bytes("SELECT sum(length(body)) FROM chunk"), bytes("SELECT length(body) FROM dead_letter"));
    assert!(letters < chunks, "{letters} bytes of letters, {chunks} of all");
    // Each is found again, for those who declare them.
    let reader = &mut bench.running.reader;
    let found = reader.dead_letters(3_000, i64::MAX, 10_000).unwrap();
    assert_eq!(
        found.iter().map(|(letter, _)| letter.clone()).collect::<Vec<_>>(),
        (1..=3_999).step_by(2).map(dead).collect::<Vec<_>>()
    );
    assert_eq!(reader.dead_letters(4_000, i64::MAX, 10_000).unwrap().len(), 0);
    assert_eq!(reader.dead_letters(4_000, 0, 10_000).unwrap().len(), 2_000);
}

#[test]
fn events_leave_a_lane_for_another_and_for_the_dead_letters_and_the_rest_stays_in_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = open(dir.path());
    bench.store(1..=20);
    bench.park(1..=10, "wrong");
    bench.park(11..=20, "wrong");
    let wrong = bench.running.settler.lane("wrong").unwrap();
    let chunks: Vec<i64> = bench.lane(wrong).iter().map(|chunk| chunk.id).collect();
    let to = |topic: &str, all: &[u64]| -> Vec<Parked> {
        all.iter().map(|sequence| Parked { sequence: *sequence, kafka_topic: topic.into() }).collect()
    };
    let moves = || {
        vec![
            LaneMove { lane: wrong, chunk: chunks[0], parked: to("right", &[2, 4]), dead: vec![dead(5)] },
            LaneMove {
                lane: wrong,
                chunk: chunks[1],
                parked: to("right", &(11..=20).collect::<Vec<_>>()),
                dead: vec![],
            },
        ]
    };
    // Twice is as good as once: the next start does again what was under way at a crash.
    for _ in 0..2 {
        bench.settle(Settlement { lane_moves: moves(), ..Settlement::default() });
    }
    let lane = |bench: &mut Bench, topic: &str| -> Vec<u64> {
        let lane = bench.running.settler.lane(topic).unwrap();
        bench.lane(lane).iter().flat_map(|chunk| sequences(&chunk.events)).collect()
    };
    assert_eq!(lane(&mut bench, "wrong"), [1, 3, 6, 7, 8, 9, 10]);
    assert_eq!(bench.lane(wrong)[0].id, chunks[0]);
    assert_eq!(lane(&mut bench, "right"), [vec![2, 4], (11..=20).collect()].concat());
    let books = bench.totals(|status| total(status).dead_lettered > 0);
    assert_eq!((books.held, books.dead_lettered), (19, 1));
    bench.close();
    let bench = open(dir.path());
    let held: Vec<u64> = bench.status().lanes.iter().map(|(_, _, held)| *held).collect();
    assert_eq!(held, [7, 12]);
}

#[test]
fn what_frees_room_does_not_wait_for_what_wants_some() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = open(dir.path());
    bench.store(1..=10);
    bench.close();
    let (buffer, _) = Buffer::open(settings(), dir.path(), &names()).unwrap();
    let (mut writer, connection, _doors) = buffer.assemble::<u64>(Pulse::new());
    let parked = vec![Parked { sequence: 5, kafka_topic: "t".into() }];
    let settlement =
        Settlement { delivered: delivered([1, 2, 4]), dead: vec![dead(3)], parked, ..Settlement::default() };
    let mut pending = settle::Pending::default();
    pending.add(1, settlement, &writer.books, None);
    assert!(pending.has_both());
    let mut tx = statements::Statements::prepare(&connection).unwrap();
    let mut commit = |pending: &settle::Pending, part, books: &mut books::Books| {
        let settlements = Some((pending, part));
        let (tools, scratch) = (&mut writer.tools, &mut commit::Scratch::default());
        commit::Batch::<u64>::new().commit(settlements, books, &mut tx, tools, scratch).unwrap();
    };
    commit(&pending, settle::Part::Releases, &mut writer.books);
    let settled = |books: &books::Books| (1..=10).filter(|n| books.settled.contains(*n)).collect::<Vec<u64>>();
    assert_eq!(settled(&writer.books), [1, 2, 4]);
    pending.forget_releases();
    assert!(!pending.has_both());
    commit(&pending, settle::Part::All, &mut writer.books);
    assert_eq!(settled(&writer.books), [1, 2, 3, 4, 5]);
    drop(tx);
    drop((connection, writer));
    let books = open(dir.path()).totals(|_| true);
    assert_eq!((books.delivered, books.dead_lettered, books.held), (3, 1, 6));
}

#[test]
fn parked_events_wait_in_order_in_a_lane_of_their_topic() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = open(dir.path());
    bench.store(1..=20);
    assert_eq!(bench.running.settler.lane("a"), None);
    bench.park((1..=20).filter(|n| n % 2 == 0), "a");
    bench.park((1..=20).filter(|n| n % 2 == 1), "b");
    let books = bench.totals(|status| status.released == 20);
    assert_eq!((books.held, books.delivered), (20, 0));
    assert_eq!(rows(dir.path(), "chunk"), 0);
    let a = bench.running.settler.lane("a").unwrap();
    let status = bench.status();
    assert_eq!(
        status.lanes.iter().map(|(_, topic, held)| (&**topic, *held)).collect::<Vec<_>>(),
        [("a", 10), ("b", 10)]
    );
    bench.store(21..=22);
    bench.park([22, 21], "a");
    bench.close();
    let mut bench = open(dir.path());
    assert_eq!(bench.recovered.lanes.len(), 2);
    assert_eq!(bench.recovered.lanes[0], (a, "a".into()));
    assert_eq!(bench.running.settler.lane("a"), Some(a));
    let chunks = bench.lane(a);
    assert_eq!(
        chunks.iter().map(|chunk| sequences(&chunk.events)).collect::<Vec<_>>(),
        [(1..=20).filter(|n| n % 2 == 0).collect::<Vec<_>>(), vec![21, 22]]
    );
    assert_eq!(chunks[0].events[3].event, event(8));

    // As a whole, or not at all.
    let (first, second) = (chunks[0].id, chunks[1].id);
    let all_but_one = delivered((1..=19).filter(|n| n % 2 == 0));
    bench.settle(Settlement { lane_chunks: vec![(a, first, all_but_one, vec![])], ..Settlement::default() });
    assert_eq!(bench.lane(a).len(), 2);
    let rest = || delivered((1..=19).filter(|n| n % 2 == 0));
    let twice = vec![(a, first, rest(), vec![dead(20)]), (a, first, rest(), vec![dead(20)])];
    bench.settle(Settlement { lane_chunks: twice, ..Settlement::default() });
    bench.settle(Settlement { lane_chunks: vec![(a, first, rest(), vec![dead(20)])], ..Settlement::default() });
    let books = bench.totals(|status| total(status).delivered > 0);
    assert_eq!((books.received, books.delivered, books.dead_lettered, books.held), (22, 9, 1, 12));
    bench.settle(Settlement { lane_chunks: vec![(a, second, delivered([21, 22]), vec![])], ..Settlement::default() });
    let books = bench.totals(|status| status.lanes.len() == 1);
    assert_eq!((books.delivered, books.held), (11, 10));
    assert_eq!(bench.running.settler.lane("a"), None);

    // A lane that comes again is a new one.
    bench.store(23..=23);
    bench.park([23], "a");
    assert_ne!(bench.running.settler.lane("a"), Some(a));
}

#[test]
fn a_large_parked_batch_is_split_into_chunks() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = open(dir.path());
    bench.send((1..=40).map(|n| Event { payload: vec![b'x'; 20_000].into(), ..event(n) }).collect(), 1);
    bench.acknowledged();
    bench.park(1..=40, "a");
    let lane = bench.running.settler.lane("a").unwrap();
    let chunks = bench.lane(lane);
    assert!((3..=5).contains(&chunks.len()), "{} chunks", chunks.len());
    let all: Vec<u64> = chunks.iter().flat_map(|chunk| sequences(&chunk.events)).collect();
    assert_eq!(all, (1..=40).collect::<Vec<_>>());
}

/// Flips a bit in the middle of the body of a row.
pub(super) fn damage(dir: &Path, table: &str, first: u64) {
    let connection = rusqlite::Connection::open(dir.join("buffer.db")).unwrap();
    let first = i64::try_from(first).unwrap();
    let get = format!("SELECT body FROM {table} WHERE first = ?1");
    let mut body: Vec<u8> = connection.query_row(&get, [first], |row| row.get(0)).unwrap();
    let middle = body.len() / 2;
    body[middle] ^= 0x10;
    let set = format!("UPDATE {table} SET body = ?1 WHERE first = ?2");
    assert_eq!(connection.execute(&set, (body, first)).unwrap(), 1);
}

#[test]
fn a_damaged_chunk_is_reported_once_stays_and_holds_up_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = open(dir.path());
    bench.store(1..=10);
    bench.store(11..=20);
    let last = 20 + 2 * SWEEP_SEQUENCES;
    bench.store(21..=last);
    bench.close();
    damage(dir.path(), "chunk", 11);
    let mut bench = open(dir.path());
    assert_eq!(sequences(&bench.running.reader.next(Duration::ZERO).unwrap()), (1..=10).collect::<Vec<_>>());
    let error = bench.running.reader.next(Duration::ZERO).unwrap_err();
    assert!(matches!(error, ReadError::Damaged { first: 11, last: 20, .. }), "{error}");
    assert_eq!(bench.read_all().len() as u64, 2 * SWEEP_SEQUENCES);

    // What cannot be copied is not settled; what is behind it leaves the disk all the same.
    bench.settle(Settlement { dead: vec![dead(12)], ..Settlement::default() });
    bench.park([13], "k");
    bench.deliver((1..=10).chain(21..=last));
    let books = bench.totals(|status| status.released == 10);
    assert_eq!((books.held, books.dead_lettered), (10, 0));
    assert_eq!(rows(dir.path(), "chunk"), 1);
    assert_eq!(bench.status().lanes, []);
    bench.close();
    let bench = open(dir.path());
    assert_eq!((bench.recovered.released, bench.recovered.settled.clone()), (10, vec![21..=last]));
}

#[test]
fn a_damaged_chunk_of_a_lane_is_reported_once_and_passed() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = open(dir.path());
    for n in 1..=3 {
        bench.store(n..=n);
        bench.park([n], "a");
    }
    let lane = bench.running.settler.lane("a").unwrap();
    bench.close();
    damage(dir.path(), "lane_chunk", 2);
    let mut bench = open(dir.path());
    let first = bench.running.reader.parked(lane, 0).unwrap().unwrap();
    let error = bench.running.reader.parked(lane, first.id).unwrap_err();
    assert!(matches!(error, ReadError::Damaged { first: 2, last: 2, .. }), "{error}");
    let third = bench.running.reader.parked(lane, first.id).unwrap().unwrap();
    assert_eq!(sequences(&third.events), [3]);
}
