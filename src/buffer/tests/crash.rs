//! What a killed process leaves behind: a copy of the files, taken at any moment, holds all that was acknowledged.

use super::*;

#[test]
fn everything_acknowledged_is_in_the_files_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = open(dir.path());
    let mut stored = 0;
    for commit in 1..=25 {
        bench.store(stored + 1..=stored + commit);
        stored += commit;
        let left = copy(dir.path());
        let mut after = open(left.path());
        assert_eq!(after.recovered.buffer_id, bench.recovered.buffer_id);
        let expected: Vec<Stored> = (1..=stored).map(|sequence| Stored { sequence, event: event(sequence) }).collect();
        assert_eq!(after.read_all(), expected);
        let books = after.totals(|status| status.next_sequence > 0);
        assert_eq!((books.received, books.held), (stored, stored));
        after.store(stored + 1..=stored + 1);
    }
}

#[test]
fn a_settlement_is_in_the_files_when_its_ticket_is_applied() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = open(dir.path());
    bench.store(1..=60);
    for round in 0..10 {
        let first = round * 6 + 1;
        bench.settle(Settlement {
            delivered: delivered([first, first + 2]),
            dead: vec![dead(first + 1)],
            parked: vec![Parked { sequence: first + 4, kafka_topic: "k".into() }],
            ..Settlement::default()
        });
        let left = copy(dir.path());
        let mut after = open(left.path());
        let settled: Vec<u64> = after.recovered.settled.iter().cloned().flatten().collect();
        let settled_here = |s: u64| s <= first + 4 && [0, 1, 2, 4].contains(&((s - 1) % 6));
        let expected: Vec<u64> = (1..=60).filter(|s| settled_here(*s)).collect();
        assert_eq!((1..=after.recovered.released).chain(settled).collect::<Vec<_>>(), expected);
        let books = after.totals(|status| status.next_sequence > 0);
        let rounds = round + 1;
        assert_eq!((books.delivered, books.dead_lettered, books.held), (rounds * 2, rounds, 60 - rounds * 3));
        let lane = after.running.settler.lane("k").unwrap();
        let parked: Vec<u64> = after.lane(lane).iter().flat_map(|chunk| sequences(&chunk.events)).collect();
        assert_eq!(parked, (0..rounds).map(|r| r * 6 + 5).collect::<Vec<_>>());
    }
}

#[test]
fn files_copied_in_the_middle_of_writing_open_with_all_that_was_acknowledged_before() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = open(dir.path());
    for n in 1..=2000 {
        bench.send(vec![event(n)], n);
    }
    let mut acknowledged = 0;
    while acknowledged < 2000 {
        acknowledged = bench.acknowledged();
        while let Ok(durable) = bench.durable.try_recv() {
            acknowledged = durable.into_receipt();
        }
        let left = copy(dir.path());
        let read = open(left.path()).read_all();
        assert!(read.len() as u64 >= acknowledged, "{} of {acknowledged}", read.len());
        assert_eq!(sequences(&read), (1..=read.len() as u64).collect::<Vec<_>>());
    }
}
