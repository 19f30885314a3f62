//! Files that the product has made, read with nothing but the specification at the top of `buffer/mod.rs`: SQLite, CBOR and
//! CRC-32C by the book, names and offsets from its text. What is written otherwise, or described otherwise, is red here.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use rusqlite::Connection;

use super::*;
use crate::event::{Properties, Sender};

const SPECIFICATION: &str = include_str!("../mod.rs");

/// The lines of a section, without what makes them a comment.
fn section(title: &str) -> Vec<&'static str> {
    let lines = SPECIFICATION
        .lines()
        .map_while(|line| line.strip_prefix("//!"))
        .map(|line| line.strip_prefix(' ').unwrap_or(""));
    let found: Vec<&str> =
        lines.skip_while(|line| *line != title).skip(1).take_while(|line| !line.starts_with("# ")).collect();
    assert!(!found.is_empty(), "{title}");
    found
}

/// What stands between backquotes.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// The parts of an array, as the line says that begins with it.
fn array(title: &str, name: &str) -> Vec<&'static str> {
    let lines = section(title);
    let line = lines.iter().find_map(|line| line.strip_prefix(name)?.trim_start().strip_prefix('[')).unwrap();
    line.split(']').next().unwrap().split(", ").map(|part| part.trim_end_matches(['²', '⁴'])).collect()
}

#[derive(Debug, Clone, PartialEq)]
enum Cbor {
    Number(i128),
    Bytes(Vec<u8>),
    Text(String),
    Array(Vec<Self>),
    Map(Vec<(Self, Self)>),
    Truth(bool),
    Null,
}

impl Cbor {
    /// One item from the front of the bytes (RFC 8949), of definite length and as short as it goes.
    fn read(bytes: &mut &[u8]) -> Self {
        let (head, rest) = bytes.split_first().unwrap();
        *bytes = rest;
        let (major, short) = (head >> 5, head & 31);
        if major == 7 {
            return match short {
                20 => Self::Truth(false),
                21 => Self::Truth(true),
                22 => Self::Null,
                other => panic!("simple value {other}"),
            };
        }
        let number = if short < 24 {
            u64::from(short)
        } else {
            let length = 1 << (short - 24);
            let number = take(bytes, length).iter().fold(0, |number, byte| number << 8 | u64::from(*byte));
            let least = if length == 1 { 24 } else { 1 << (4 * length) };
            assert!(number >= least, "{number} in {length} bytes");
            number
        };
        let length = usize::try_from(number).unwrap_or(usize::MAX);
        match major {
            0 => Self::Number(number.into()),
            1 => Self::Number(-1 - i128::from(number)),
            2 => Self::Bytes(take(bytes, length).to_vec()),
            3 => Self::Text(String::from_utf8(take(bytes, length).to_vec()).unwrap()),
            4 => Self::Array((0..length).map(|_| Self::read(bytes)).collect()),
            5 => Self::Map((0..length).map(|_| (Self::read(bytes), Self::read(bytes))).collect()),
            other => panic!("major type {other}"),
        }
    }

    fn number(&self) -> u64 {
        match self {
            Self::Number(number) => u64::try_from(*number).unwrap(),
            other => panic!("no number: {other:?}"),
        }
    }

    fn array(&self) -> &[Self] {
        match self {
            Self::Array(items) => items,
            other => panic!("no array: {other:?}"),
        }
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Self::Bytes(bytes) => bytes,
            other => panic!("no bytes: {other:?}"),
        }
    }

    fn text(text: &str) -> Self {
        Self::Text(text.to_owned())
    }

    /// By the names that the specification gives its parts.
    fn named<'a>(&'a self, names: &[&'static str]) -> BTreeMap<&'static str, &'a Self> {
        assert_eq!(self.array().len(), names.len(), "{names:?} {self:?}");
        names.iter().copied().zip(self.array()).collect()
    }
}

fn take<'a>(bytes: &mut &'a [u8], length: usize) -> &'a [u8] {
    let (taken, rest) = bytes.split_at(length);
    *bytes = rest;
    taken
}

/// Castagnoli's polynomial, reflected, a bit at a time.
fn crc32c<'a>(bytes: impl IntoIterator<Item = &'a u8>) -> u32 {
    let step = |crc: u32, _| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
    !bytes.into_iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), step))
}

/// Opens an envelope: offsets and sizes as the table has them.
fn open_envelope(blob: &[u8]) -> Vec<u8> {
    let lines = section("# The envelope");
    let field = |name: &str| {
        let line = lines.iter().find(|line| line.split_whitespace().nth(2).is_some_and(|word| word.starts_with(name)));
        let mut words = line.unwrap().split_whitespace();
        let offset: usize = words.next().unwrap().parse().unwrap();
        let length = words.next().unwrap().parse().map_or(blob.len(), |length: usize| offset + length);
        &blob[offset..length]
    };
    let number = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().unwrap());
    assert_eq!(field("version"), [1]);
    let data = field("the");
    assert_eq!(number(field("CRC-32C")), crc32c(blob[..6].iter().chain(data)));
    let raw = match field("codec") {
        [0] => data.to_vec(),
        [1] => zstd::stream::decode_all(data).unwrap(),
        other => panic!("codec {other:?}"),
    };
    assert_eq!(raw.len(), number(field("raw")) as usize);
    raw
}

fn one_item(blob: &[u8]) -> Cbor {
    let raw = open_envelope(blob);
    let mut rest = &raw[..];
    let item = Cbor::read(&mut rest);
    assert!(rest.is_empty(), "{rest:?}");
    item
}

/// The events of a chunk, which are those of its row.
fn read_chunk(first: i64, last: i64, blob: &[u8]) -> Vec<Stored> {
    let (raw, names) = (open_envelope(blob), array("# A chunk", ""));
    let (mut rest, mut events, mut clock) = (&raw[..], Vec::new(), Clock::default());
    while !rest.is_empty() {
        let event = Cbor::read(&mut rest);
        events.push(read_event(&event.named(&names), &mut clock));
    }
    assert!(events.is_sorted_by(|a, b| a.sequence < b.sequence));
    let ends = [events.first(), events.last()].map(|event| event.unwrap().sequence);
    assert_eq!(ends, [first, last].map(|end| u64::try_from(end).unwrap()));
    events
}

fn read_event(event: &BTreeMap<&str, &Cbor>, clock: &mut Clock) -> Stored {
    let text = |item: &Cbor| match item {
        Cbor::Text(text) => Some(text.clone()),
        _ => None,
    };
    let facts = match event["facts"] {
        Cbor::Map(facts) => facts.clone(),
        _ => Vec::new(),
    };
    let fact = |letter: &str| facts.iter().find(|(key, _)| *key == Cbor::text(letter)).map(|(_, value)| value);
    if let Some(told) = fact("t") {
        let [boot, Cbor::Number(booted_ms), Cbor::Truth(synchronised)] = told.array() else { panic!("{told:?}") };
        let (boot, booted_ms) = (u32::try_from(boot.number()).unwrap(), i64::try_from(*booted_ms).unwrap());
        *clock = Clock { boot, booted_ms, synchronised: *synchronised };
    }
    let said = |letter| fact(letter).and_then(text).map(String::into_boxed_str);
    let properties = match event["headers"] {
        Cbor::Null => None,
        headers => {
            let [content_type, correlation, user] = headers.array() else { panic!("{headers:?}") };
            let pair = |pair: &Cbor| {
                let part = |at: usize| text(&pair.array()[at]).unwrap().into_boxed_str();
                (part(0), part(1))
            };
            Some(Box::new(Properties {
                content_type: text(content_type).map(String::into_boxed_str),
                correlation_data: (*correlation != Cbor::Null).then(|| correlation.bytes().to_vec().into()),
                response_topic: said("r"),
                payload_format: fact("f").map(|format| u8::try_from(format.number()).unwrap()),
                expiry_s: fact("e").map(|expiry| u32::try_from(expiry.number()).unwrap()),
                flaw: said("x"),
                user: user.array().iter().map(pair).collect(),
            }))
        }
    };
    let (number, flags) = (event["sequence"].number(), event["flags"].number());
    assert_eq!(flags >> 4, 0);
    let Cbor::Number(arrived_ms) = event["arrived_ms"] else { panic!("no time") };
    let event = Event {
        topic: text(event["topic"]).unwrap().into(),
        payload: event["payload"].bytes().to_vec().into(),
        qos: [Qos::AtMostOnce, Qos::AtLeastOnce, Qos::ExactlyOnce][(flags & 3) as usize],
        retain: flags & 4 != 0,
        dup: flags & 8 != 0,
        arrived_ms: i64::try_from(*arrived_ms).unwrap(),
        clock: *clock,
        route: RouteId(u16::try_from(event["route"].number()).unwrap()),
        sender: said("c")
            .map(|client| Arc::new(Sender { client: (&*client).into(), user: said("u").map(|user| (&*user).into()) })),
        properties,
    };
    Stored { sequence: number, event }
}

/// An event with everything that one can have.
fn adorned(n: u64) -> Event {
    let properties = Properties {
        content_type: Some("text/plain".into()),
        correlation_data: Some(vec![0, 1, 255].into()),
        response_topic: Some("answers".into()),
        payload_format: Some(1),
        expiry_s: Some(70_000),
        flaw: None,
        user: vec![("a".into(), "b".into()), ("a".into(), String::new().into())],
    };
    let sender = Sender { client: "c-1".into(), user: Some("u".into()) };
    let noise = (0..2_000_u32).map(|at| at.wrapping_mul(2_654_435_761).to_le_bytes()[3]);
    Event {
        payload: noise.collect::<Vec<u8>>().into(),
        qos: Qos::ExactlyOnce,
        arrived_ms: -5,
        sender: Some(sender.into()),
        properties: Some(properties.into()),
        ..event(n)
    }
}

/// Of everything something: 12 events, of which 1 and 2 are delivered, 4 is too, 5 is a dead letter, 6 and 9 are parked.
fn buffer_with_everything() -> (tempfile::TempDir, Recovered) {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = open(dir.path());
    bench.store(1..=3);
    let ids = [(3, 30), (4, 0xdead_beef), (5, 50), (70, 7)].map(|(id, digest)| IdChange::Add(id, digest));
    let sessions =
        vec![SessionChange { session: "broker:a".into(), changes: [&ids[..], &[IdChange::Keep(60)]].concat() }];
    bench.send_with(vec![event(4), event(5), event(6), adorned(7)], sessions, 7);
    assert_eq!(bench.acknowledged(), 7);
    bench.store(8..=12);
    let settlement = Settlement {
        delivered: delivered([1, 2, 4]),
        dead: vec![dead(5)],
        watermark: Some(2),
        ..Settlement::default()
    };
    bench.settle(settlement);
    bench.park([6, 9], "closed");
    let Bench { running, recovered, .. } = bench;
    let Running { intake, reader, settler, status, thread } = running;
    drop((intake, reader, settler, status));
    thread.join().unwrap();
    (dir, recovered)
}

fn plain(dir: &Path) -> Connection {
    Connection::open_with_flags(dir.join("buffer.db"), rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap()
}

#[test]
fn a_stranger_reads_what_is_held_with_nothing_but_the_specification() {
    let (dir, _) = buffer_with_everything();
    let connection = plain(dir.path());
    let state: Vec<u8> = connection.query_row("SELECT body FROM state WHERE id = 1", [], |row| row.get(0)).unwrap();
    let state = one_item(&state);
    let state = state.named(&array("# The other blobs", "state.body"));
    assert_eq!((state["next"].number(), state["released"].number(), state["watermark"].number()), (13, 2, 2));
    let mut end = state["released"].number();
    let mut settled: BTreeSet<u64> = (1..=end).collect();
    for span in state["spans"].array() {
        let [gap, length] = span.array() else { panic!("{span:?}") };
        let first = end + gap.number();
        end = first + length.number();
        settled.extend(first..=end);
    }
    assert_eq!(settled.iter().copied().collect::<Vec<_>>(), [1, 2, 4, 5, 6, 9]);

    let chunks = |sql| -> Vec<Stored> {
        let mut rows = connection.prepare(sql).unwrap();
        let rows = rows.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get::<_, Vec<u8>>(2)?))).unwrap();
        rows.map(Result::unwrap).flat_map(|(first, last, body)| read_chunk(first, last, &body)).collect()
    };
    let mut main = chunks("SELECT first, last, body FROM chunk ORDER BY first");
    main.retain(|stored| !settled.contains(&stored.sequence));
    let expected = |n| Stored { sequence: n, event: if n == 7 { adorned(n) } else { event(n) } };
    assert_eq!(main, [3, 7, 8, 10, 11, 12].map(expected));
    assert_eq!(chunks("SELECT first, last, body FROM lane_chunk ORDER BY id"), [6, 9].map(expected));
    assert_eq!(chunks("SELECT sequence, last, body FROM dead_letter"), [5].map(expected));

    let sums = state["ledger"].array().iter().fold([0_u64; 8], |mut sums, line| {
        let names = ["route", "received", "delivered", "dead_lettered", "dropped", "purged", "held", "lost"];
        let line = line.named(&names);
        let [received, rest @ ..] = ["received", "delivered", "dead_lettered", "dropped", "purged", "held", "lost"];
        assert_eq!(line[received].number(), rest.iter().map(|name| line[name].number()).sum::<u64>());
        for (sum, name) in sums.iter_mut().zip(names) {
            *sum += line[name].number();
        }
        sums
    });
    assert_eq!(sums[1..], [12, 3, 1, 0, 0, 8, 0]);
    let text = section("# The other blobs").join("\n");
    assert!(text.contains("[[route, received, delivered, dead_lettered, dropped, purged, held, lost⁴], …]"));
}

#[test]
fn a_stranger_reads_sessions_and_the_side_file_with_nothing_but_the_specification() {
    let (dir, recovered) = buffer_with_everything();
    let (name, expiry, ids): (String, u32, Vec<u8>) = plain(dir.path())
        .query_row("SELECT name, expiry_s, packet_ids FROM session", [], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?))
        })
        .unwrap();
    let ids = one_item(&ids);
    let ids = ids.named(&array("# The other blobs", "session.packet_ids"));
    let runs = |name: &str| -> Vec<u64> {
        let runs = ids[name].array().iter().map(Cbor::array);
        runs.flat_map(|run| run[0].number()..=run[0].number() + run[1].number()).collect()
    };
    assert_eq!((&*name, expiry, runs("plain"), runs("digested")), ("broker:a", 60, vec![], vec![3, 4, 5, 70]));
    let digests: Vec<u32> = ids["digests"].bytes().as_chunks().0.iter().map(|four| u32::from_le_bytes(*four)).collect();
    assert_eq!(digests, [30, 0xdead_beef, 50, 7]);

    let text = fs::read_to_string(dir.path().join("identity")).unwrap();
    let (body, sum) = text.split_at(text.rfind("crc32c ").unwrap());
    assert_eq!(sum, format!("crc32c {:08x}\n", crc32c(body.as_bytes())));
    let lines = section("# The side file");
    let sample = lines
        .iter()
        .skip_while(|line| !line.starts_with("```text"))
        .skip(1)
        .take_while(|line| !line.starts_with("```"));
    let names = |line: &str| line.split([' ', '=']).next().unwrap().to_owned();
    assert_eq!(text.lines().map(names).collect::<Vec<_>>(), sample.map(|line| names(line)).collect::<Vec<_>>());
    let value =
        |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')).unwrap().to_owned();
    assert_eq!(value("tidegate-identity"), "2");
    assert_eq!(value("buffer"), recovered.buffer_id.to_string());
    assert!(value("reserved").parse::<u64>().unwrap() >= 12);
    assert_eq!((value("committed"), value("state"), value("sync")), ("12".into(), "closed".into(), "full".into()));
    let instance: Vec<u8> =
        plain(dir.path()).query_row("SELECT instance FROM life ORDER BY id DESC", [], |row| row.get(0)).unwrap();
    assert_eq!(value("instance"), uuid::Uuid::from_slice(&instance).unwrap().simple().to_string());
}

#[test]
fn the_specification_names_every_table_and_column_and_no_other() {
    let (dir, recovered) = buffer_with_everything();
    let connection = plain(dir.path());
    let told: BTreeMap<&str, BTreeSet<&str>> = section("# The tables")
        .into_iter()
        .filter_map(|line| line.strip_prefix("| `"))
        .map(|line| {
            let mut cells = line.split(" | ");
            let table = cells.next().unwrap().split('`').next().unwrap();
            (table, quoted(cells.next().unwrap()).collect())
        })
        .collect();
    let mut made: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut columns = connection
        .prepare(
            "SELECT m.name, c.name FROM sqlite_schema m JOIN pragma_table_info(m.name) c \
             WHERE m.type = 'table' AND m.name NOT LIKE 'sqlite_%'",
        )
        .unwrap();
    for row in columns.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap() {
        let (table, column) = row.unwrap();
        made.entry(table).or_default().insert(column);
    }
    let told: BTreeMap<String, BTreeSet<String>> = told
        .into_iter()
        .map(|(table, columns)| (table.to_owned(), columns.into_iter().map(str::to_owned).collect()))
        .collect();
    assert_eq!(made, told);

    let files = section("# The files").join("\n");
    let pragma = |name: &str| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0)).unwrap();
    for said in [
        format!("pages of {} bytes", pragma("page_size")),
        format!("`application_id` {:#x}", pragma("application_id")),
        format!("`user_version` {} |", pragma("user_version")),
    ] {
        assert!(files.contains(&said), "{said}");
    }
    for name in fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()) {
        assert!(files.contains(&format!("`{name}`")), "{name}");
    }
    let id: rusqlite::Result<Vec<u8>> =
        connection.query_row("SELECT buffer_id FROM identity WHERE id = 1", [], |row| row.get(0));
    assert_eq!(id.unwrap(), recovered.buffer_id.as_bytes());
}
