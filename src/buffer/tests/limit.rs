//! The limit on disk.

use super::*;

const MIB: u64 = 1024 * 1024;

fn noise(n: u64) -> Event {
    Event { payload: (0..50_000).map(|_| fastrand::u8(..)).collect::<Vec<u8>>().into(), ..event(n) }
}

#[test]
fn a_full_buffer_acknowledges_nothing_settles_on_and_opens_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut small = settings();
    small.max_bytes = 2 * MIB;
    let mut bench = open_with(dir.path(), small.clone());
    let (mut stored, mut acknowledged) = (0, 0);
    while !bench.status().full {
        stored += 1;
        bench.send(vec![noise(stored)], stored);
        // One at a time: no room was reserved here that would bound a batch.
        wait_for("an acknowledgement, or the limit", || !bench.durable.is_empty() || bench.status().full);
        if let Ok(durable) = bench.durable.try_recv() {
            acknowledged = durable.into_receipt();
        }
    }
    let status = bench.status();
    // One batch above the limit, and it counts twice while it is in the log as well.
    assert!(status.used_bytes >= 2 * MIB && status.used_bytes < 10 * MIB, "{status:?}");
    bench.send(vec![noise(stored + 1)], stored + 1);
    bench.send(vec![event(stored + 2)], stored + 2);
    std::thread::sleep(Duration::from_millis(500));
    while let Ok(durable) = bench.durable.try_recv() {
        acknowledged = durable.into_receipt();
    }
    assert!(acknowledged <= stored, "stored although full");
    let held = bench.read_all().len() as u64;
    assert_eq!(held, acknowledged);

    bench.deliver(1..=held);
    for waiting in acknowledged + 1..=stored + 2 {
        assert_eq!(bench.acknowledged(), waiting);
    }
    assert_eq!(sequences(&bench.read_all()), (acknowledged + 1..=stored + 2).collect::<Vec<_>>());
    bench.deliver(acknowledged + 1..=stored + 2);
    wait_for("room", || !bench.status().full);
    let bytes = std::fs::metadata(dir.path().join("buffer.db")).unwrap().len();
    assert!(bytes <= 2 * MIB + 2 * MIB / 32 + 8 * MIB);
    bench.close();

    // Full at the start, and stopped while full: nothing hangs, nothing unacknowledged is kept.
    let mut bench = open_with(dir.path(), small.clone());
    let old = |session: &str| SessionChange { session: session.into(), changes: vec![IdChange::Add(7, 100)] };
    bench.send_with((1..=45).map(noise).collect(), vec![old("over"), old("anew")], 1);
    bench.acknowledged();
    wait_for("the limit", || bench.status().full);
    bench.close();
    let bench = open_with(dir.path(), small);
    wait_for("the limit", || bench.status().full);
    // QoS 0 that finds no room is on the books while the buffer is full, and so is what is given up at the end.
    bench.running.intake.dropped(RouteId::UNROUTED, 41);
    wait_for("the drops in the books", || bench.totals(|_| true).dropped == 41);
    bench.send(vec![Event { qos: Qos::AtMostOnce, ..event(1) }, event(2)], 9);
    // The id came with an event that is given up; that a session is over must be on disk all the same.
    let change =
        |session: &str, changes: &[IdChange]| SessionChange { session: session.into(), changes: changes.into() };
    let sessions = vec![
        change("over", &[IdChange::Forget]),
        change("anew", &[IdChange::Forget, IdChange::Keep(60), IdChange::Add(8, 100)]),
        change("other", &[IdChange::Add(9, 100)]),
    ];
    bench.send_with(vec![event(3)], sessions, 10);
    let Bench { running, mut durable, reply, .. } = bench;
    let Running { intake, settler, thread, .. } = running;
    drop((intake, settler, reply));
    thread.join().unwrap();
    assert!(durable.blocking_recv().is_none());
    let mut small = settings();
    small.max_bytes = 2 * MIB;
    let bench = open_with(dir.path(), small);
    assert_eq!(bench.totals(|_| true).dropped, 42);
    let sessions = &bench.recovered.sessions;
    assert!(!sessions.contains_key("over") && !sessions.contains_key("other"));
    assert_eq!((sessions["anew"].expiry_s, sessions["anew"].packet_ids.len()), (60, 0));
}

#[test]
fn sqlites_own_limit_keeps_the_batch_and_stores_it_when_there_is_room() {
    let dir = tempfile::tempdir().unwrap();
    let mut small = settings();
    small.max_bytes = 2 * MIB;
    let mut bench = open_with(dir.path(), small);
    bench.send((1..=30).map(noise).collect(), 1);
    assert_eq!(bench.acknowledged(), 1);
    // 1.5 and 9.3 MB do not fit into 10 MiB; the limit itself is not reached before.
    let huge = Event { payload: (0..9_300_000).map(|_| fastrand::u8(..)).collect::<Vec<u8>>().into(), ..event(31) };
    bench.send(vec![huge], 2);
    wait_for("no room", || bench.status().full);
    assert!(bench.durable.is_empty());
    assert_eq!(bench.status().write_failures, 0, "nothing is in doubt");
    assert_eq!(bench.status().next_sequence, 31);
    bench.deliver(1..=30);
    assert_eq!(bench.acknowledged(), 2);
    assert_eq!(sequences(&bench.read_all()), [31]);
}
