//! Memory is bounded in bytes, whatever Kafka, the disk or a publisher does.

use std::time::{Duration, Instant};

use crate::support::agent::{Build, Gateway};
use crate::support::client::{Connection, clean};
use crate::support::kafka;
use crate::support::proxy::Weather;
use crate::support::publisher::{Plan, Publisher};
use crate::support::settle::settle;
use crate::support::wire::{Message, Packet, Version, write_publish};
use crate::support::{Outcome, PATIENCE, Trouble, Verdict, asked, trouble, wait_until};

/// Resident while readings pile up; measured: 18,100 to 18,800.
const AWAY_KIB: u64 = 20_000;

/// Resident at the peak of a drain at full speed; measured: 23,700 to 25,000. The aim is 20,000: librdkafka's full queue
/// of 1 MiB alone costs 8,000, and the binary's own pages are counted, too.
const DRAIN_KIB: u64 = 28_000;

/// How many pile up: 200,000, or `TIDEGATE_BACKLOG`.
fn backlog() -> Outcome<u64> {
    asked("TIDEGATE_BACKLOG", 200_000)
}

#[test]
fn memory_is_bounded_while_kafka_is_away_and_200_000_readings_pile_up_and_drain() -> Outcome<()> {
    let kafka = kafka::shared()?;
    let all = backlog()?;
    let topic = kafka.topic("pile")?;
    let link = kafka.lease()?;
    let mut gateway = Gateway::new(Build::Real, &link.brokers()?)?;
    gateway.listen("receive_maximum = 1000\n").route("#", &topic);
    let agent = gateway.start()?;
    link.set(Weather::Cut)?;
    let plan = |name: &str| Plan::new(name, "", 1).topics((0..10).map(|n| format!("{name}/{n}")).collect()).window(500);
    let publishers: Vec<Publisher> =
        ["a", "b"].map(|name| Publisher::start(gateway.listener(), plan(name).count(all / 2))).into_iter().collect();
    let logs = publishers.into_iter().map(|publisher| publisher.finish(PATIENCE * 4)).collect::<Outcome<Vec<_>>>()?;
    agent.wait_book("held", all / 2 * 2)?;
    let (resident, peak) = (agent.memory_kib("VmRSS")?, agent.memory_kib("VmHWM")?);
    link.set(Weather::Fair)?;
    let begin = Instant::now();
    let books = settle(&agent, &kafka.brokers(), &[&topic], &logs)?;
    let drained = agent.memory_kib("VmHWM")?;
    let (own, file) = (agent.memory_kib("RssAnon")?, agent.memory_kib("RssFile")?);
    eprintln!(
        "{all} held: {resident} KiB resident, peak {peak}; after the drain ({:.1} s) peak {drained}, \
         then {own} of its own and {file} of files; {books}",
        begin.elapsed().as_secs_f64()
    );
    books.exactly_once()?;
    assert!(peak <= AWAY_KIB && drained <= DRAIN_KIB, "peak {peak} KiB while away, {drained} KiB in all");
    Ok(())
}

/// What a flood may cost besides: one packet of 64 KiB in the making for each of its eight connections, and the
/// allocator's leavings.
const FLOOD_KIB: u64 = 40_000;

/// Eight senders of 64 KiB messages, far faster than the disk takes them: commits come twice a second.
pub fn flood(build: Build, qos: u8) -> Outcome<Verdict> {
    let kafka = kafka::shared()?;
    let topic = kafka.topic("flood")?;
    let link = kafka.lease()?;
    link.set(Weather::Cut)?;
    let mut gateway = Gateway::new(build, &link.brokers()?)?;
    gateway.listen("receive_maximum = 10000\n").route("#", &topic).buffer("commit_delay = \"500ms\"\n");
    let agent = gateway.start()?;
    let address = gateway.listener();
    let end = Instant::now() + Duration::from_secs(6);
    let senders: Vec<_> = (0..8).map(|n| std::thread::spawn(move || pour(address, n, qos, end))).collect();
    let mut peak = 0;
    while !senders.iter().all(std::thread::JoinHandle::is_finished) {
        peak = peak.max(agent.memory_kib("VmRSS")?);
        if peak > FLOOD_KIB {
            return Ok(Err(Trouble(format!("{peak} KiB resident in a QoS {qos} flood"))));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut poured = 0;
    for sender in senders {
        poured += sender.join().unwrap_or_else(|_| trouble!("a sender panicked"))?;
    }
    eprintln!("QoS {qos} flood: {poured} messages of 64 KiB poured, {peak} KiB resident at most");
    // What the senders left in the sockets is still read, and a status is one moment: the books are looked at until
    // they balance. What is missing from them never comes.
    let mut last = String::new();
    let balanced = wait_until("the books to balance", PATIENCE, || {
        let Ok(status) = agent.status() else { return false };
        let book = |key: &str| status.get(key).and_then(serde_json::Value::as_u64).unwrap_or_default();
        last = format!("{} = {} + {}?", book("received"), book("held"), book("dropped"));
        book("received") >= 1 && book("received") == book("held") + book("dropped")
    });
    Ok(balanced.map_err(|_in_vain| Trouble(last)))
}

fn pour(address: std::net::SocketAddr, n: u32, qos: u8, end: Instant) -> Outcome<u64> {
    let (mut sensor, _) = Connection::open(address, Version::V5, clean(&format!("flood-{n}")))?;
    // Random, so that neither side can make it smaller.
    let payload: Vec<u8> = (0..65_536).map(|_| fastrand::u8(..)).collect();
    let message = Message { topic: "t".into(), payload, qos, ..Message::default() };
    let mut out = Vec::new();
    let (mut poured, mut id) = (0, 0u16);
    while Instant::now() < end {
        if out.is_empty() {
            id = id % 10_000 + 1;
            write_publish(&message, id, false, Version::V5, &mut out);
            poured += 1;
        }
        sensor.send_some(&mut out, Duration::from_millis(20))?;
        while sensor.next(Duration::ZERO)?.is_some() {}
    }
    Ok(poured)
}

#[test]
fn a_flood_of_qos_0_is_bounded_in_bytes_and_what_finds_no_room_is_counted() -> Outcome<()> {
    flood(Build::Real, 0)?
}

#[test]
fn a_flood_of_qos_1_waits_in_the_sockets() -> Outcome<()> {
    flood(Build::Real, 1)?
}

/// A small reading arrives with a large message that needs no room, because it is a repeat; a thousand times while one
/// commit is waited for. What the readings are charged with is 300 KB.
pub fn small_beside_large(build: Build) -> Outcome<Verdict> {
    let kafka = kafka::shared()?;
    let mut gateway = Gateway::new(build, &kafka.brokers())?;
    gateway.listen("receive_maximum = 10000\n").route("#", &kafka.topic("pinned")?).buffer("commit_delay = \"5s\"\n");
    let agent = gateway.start()?;
    let (mut sensor, _) = Connection::open(gateway.listener(), Version::V311, clean("pinning"))?;
    let large = Message { topic: "large".into(), payload: vec![b'x'; 60_000], qos: 2, ..Message::default() };
    let small = Message { topic: "small".into(), payload: b"21.5".to_vec(), qos: 1, ..Message::default() };
    let mut bytes = Vec::new();
    for id in 2..1_002 {
        write_publish(&large, 1, id > 2, Version::V311, &mut bytes);
        write_publish(&small, id, false, Version::V311, &mut bytes);
    }
    sensor.send_raw(&bytes)?;
    sensor.expect("the last PUBACK", |packet| *packet == Packet::PubAck { id: 1_001, reason: 0 })?;
    let peak = agent.memory_kib("VmHWM")?;
    eprintln!("a thousand small readings beside 60 MB of repeats: {peak} KiB resident at most");
    agent.wait_book("received", 1_001)?;
    Ok(if peak <= FLOOD_KIB { Ok(()) } else { Err(Trouble(format!("{peak} KiB resident for 300 KB of readings"))) })
}

#[test]
fn small_readings_do_not_keep_the_large_reads_that_brought_them() -> Outcome<()> {
    small_beside_large(Build::Real)?
}
