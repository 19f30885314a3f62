//! The auditor without Kafka: records in, findings out.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use uuid::Uuid;

use super::auditor::{Auditor, Limits, Place, Seen};
use super::buffer::Edges;
use super::findings::{BufferFindings, Missing};
use crate::watermark::{Fate, Instance, Record, Waiting};

const ONE: Uuid = Uuid::from_u128(1);
const TWO: Uuid = Uuid::from_u128(2);

fn auditor() -> Auditor {
    Auditor::new(BTreeSet::new(), Limits::default())
}

fn see(auditor: &mut Auditor, id: &str, topic: &str, was: Option<&str>, at_ms: i64) {
    see_of(auditor, None, id, topic, was, at_ms);
}

/// Stored by that start.
fn see_of(auditor: &mut Auditor, instance: Option<&str>, id: &str, topic: &str, was: Option<&str>, at_ms: i64) {
    auditor.see(&Seen {
        id: Some(id.as_bytes()),
        instance: instance.map(str::as_bytes),
        was: was.into_iter().flat_map(|was| was.split(' ')).map(str::as_bytes).collect(),
        mqtt_topic: Some(topic.as_bytes()),
        at_ms: Some(at_ms),
        by_arrival: false,
        place: Place { topic: "k", ..Place::default() },
    });
}

fn events(auditor: &mut Auditor, buffer: Uuid, sequences: impl IntoIterator<Item = u64>) {
    for sequence in sequences {
        see(auditor, &format!("{buffer}:{sequence}"), "t", None, 0);
    }
}

fn hear(auditor: &mut Auditor, buffer: Uuid, record: &Record) {
    auditor.hear(record.key(buffer).as_bytes(), Some(record.value().as_bytes()));
}

fn delivered(sequence: u64) -> Record {
    Record::Main { instance: Instance(1), delivered: sequence, commit: 0, unread: Vec::new(), at_ms: 0 }
}

fn hole(first: u64, last: u64, fate: Fate) -> Record {
    Record::Hole { first, last, fate, reason: "r".into(), kafka_topic: None, at_ms: 0 }
}

fn lane(topic: &str, first: u64, last: u64, events: u64) -> Record {
    let waiting = Some(Waiting { first, last, events });
    Record::Lane { kafka_topic: topic.into(), instance: Instance(1), delivered: 0, waiting, holes: None, at_ms: 0 }
}

fn finding(auditor: &Auditor, buffer: Uuid) -> BufferFindings {
    auditor.findings().into_iter().find(|found| found.buffer == buffer).expect("seen")
}

#[test]
fn a_whole_stream_is_explained_with_and_without_a_watermark() {
    let mut auditor = auditor();
    hear(&mut auditor, ONE, &delivered(1000));
    events(&mut auditor, ONE, 1..=1000);
    events(&mut auditor, TWO, 1..=10);
    for (buffer, last) in [(ONE, 1000), (TWO, 10)] {
        let found = finding(&auditor, buffer);
        assert!(found.explained, "{found:?}");
        assert_eq!((found.judged, found.events, found.missing), (Some((1, last)), last, Missing::default()));
    }
}

#[test]
fn a_gap_at_the_beginning_in_the_middle_and_at_the_end_is_found() {
    let mut auditor = auditor();
    hear(&mut auditor, ONE, &delivered(30));
    events(&mut auditor, ONE, (3..=9).chain(15..=20));
    let found = finding(&auditor, ONE);
    assert!(!found.explained);
    assert_eq!(found.gaps, [(1, 2), (10, 14), (21, 30)]);
    assert_eq!((found.gap_count, found.missing.unexplained), (3, 17));
}

#[test]
fn a_buffer_of_which_only_the_watermark_is_known_misses_everything() {
    let mut auditor = auditor();
    hear(&mut auditor, ONE, &delivered(30));
    assert_eq!(finding(&auditor, ONE).gaps, [(1, 30)]);
}

#[test]
fn a_repeat_is_named_and_is_no_break_of_order() {
    let mut auditor = auditor();
    events(&mut auditor, ONE, [1, 2, 3, 2, 3, 4]);
    let found = finding(&auditor, ONE);
    assert!(!found.explained);
    assert_eq!(found.repeats.count, 2);
    assert_eq!(found.repeats.examples[0].sequence, 2);
    assert_eq!((found.order_breaks.count, found.missing.unexplained, found.events), (0, 0, 4));
}

#[test]
fn a_break_of_order_is_named_with_what_it_should_have_come_before() {
    let mut auditor = auditor();
    events(&mut auditor, ONE, [1, 3, 2, 4]);
    let found = finding(&auditor, ONE);
    assert!(!found.explained);
    assert_eq!(found.order_breaks.count, 1);
    let spot = &found.order_breaks.examples[0];
    assert_eq!((spot.sequence, spot.after, &*spot.mqtt_topic), (2, Some(3), "t"));
}

#[test]
fn other_mqtt_topics_and_partitions_may_overtake() {
    let mut auditor = auditor();
    for (sequence, topic) in [(2, "a"), (1, "b"), (4, "a"), (3, "b")] {
        see(&mut auditor, &format!("{ONE}:{sequence}"), topic, None, 0);
    }
    for (sequence, index) in [(6, 7), (5, 8)] {
        let id = format!("{ONE}:{sequence}");
        let place = Place { index, ..Place::default() };
        auditor.see(&Seen { id: Some(id.as_bytes()), mqtt_topic: Some(b"a"), place, ..Seen::default() });
    }
    assert!(finding(&auditor, ONE).explained);
}

#[test]
fn each_declared_reason_explains_what_it_covers_and_no_more() {
    let mut auditor = auditor();
    for record in [
        delivered(100),
        hole(2, 3, Fate::DeadLettered),
        hole(5, 7, Fate::Dropped),
        hole(8, 8, Fate::Purged),
        lane("x", 20, 29, 4),
    ] {
        hear(&mut auditor, ONE, &record);
    }
    // Missing: 2..=9 (9 is not declared), 20..=23 (waiting), 101 and 102 (to come).
    events(&mut auditor, ONE, (1..=1).chain(10..=19).chain(24..=100).chain([103]));
    let found = finding(&auditor, ONE);
    assert_eq!(
        found.missing,
        Missing {
            dead_lettered: 2,
            dropped: 3,
            purged: 1,
            waiting: 4,
            not_yet_delivered: 2,
            unexplained: 2,
            ..Missing::default()
        }
    );
    assert_eq!(found.gaps, [(4, 4), (9, 9)]);
}

#[test]
fn more_missing_than_waits_in_a_lane_is_not_explained_by_it() {
    let mut auditor = auditor();
    hear(&mut auditor, ONE, &delivered(10));
    hear(&mut auditor, ONE, &lane("x", 2, 9, 3));
    events(&mut auditor, ONE, [1, 2, 3, 4, 10]);
    let found = finding(&auditor, ONE);
    assert!(!found.explained);
    assert_eq!((found.missing.waiting, found.missing.unexplained_beside_waiting, found.missing.unexplained), (3, 2, 2));
}

#[test]
fn what_came_under_the_new_id_of_a_clone_is_not_missing_and_what_came_under_both_is_a_declared_repeat() {
    let mut auditor = auditor();
    hear(&mut auditor, ONE, &delivered(6));
    hear(&mut auditor, TWO, &Record::Identity { was: ONE, last: 6, at_ms: 0 });
    events(&mut auditor, ONE, [1, 2, 3]);
    for sequence in 3..=6 {
        see(&mut auditor, &format!("{TWO}:{sequence}"), "t", Some(&format!("{ONE}:{sequence}")), 0);
    }
    events(&mut auditor, TWO, [7]);
    let (one, two) = (finding(&auditor, ONE), finding(&auditor, TWO));
    assert!(one.explained && two.explained, "{one:?} {two:?}");
    assert_eq!((one.missing.under_new_id, one.declared_repeats), (3, 1));
    // The clone's sequences go on where the old ones were.
    assert_eq!((two.judged, two.was), (Some((3, 7)), Some(ONE)));
}

/// The start that a buffer and its copy have in common, and those that each had by itself.
const BOTH: Option<&str> = Some("00000000000000aa");
const OURS: Option<&str> = Some("00000000000000bb");
const COPYS: Option<&str> = Some("00000000000000cc");

/// A copy from when 100 were stored. The original goes on to 200; the copy takes in 50 of its own before it sees Kafka,
/// and sends those and the last 10 of what both have under its new id.
fn original_and_copy(auditor: &mut Auditor, of_the_original: impl IntoIterator<Item = u64>) {
    hear(auditor, ONE, &delivered(200));
    hear(auditor, TWO, &Record::Identity { was: ONE, last: 150, at_ms: 0 });
    for sequence in of_the_original {
        let stored_by = if sequence <= 100 { BOTH } else { OURS };
        see_of(auditor, stored_by, &format!("{ONE}:{sequence}"), "t", None, 0);
    }
    for sequence in 91..=150 {
        let stored_by = if sequence <= 100 { BOTH } else { COPYS };
        see_of(auditor, stored_by, &format!("{TWO}:{sequence}"), "t", Some(&format!("{ONE}:{sequence}")), 0);
    }
}

#[test]
fn new_readings_of_a_copy_under_numbers_that_the_original_has_used_are_no_repeats() {
    let mut auditor = auditor();
    original_and_copy(&mut auditor, 1..=200);
    let (one, two) = (finding(&auditor, ONE), finding(&auditor, TWO));
    assert!(one.explained && two.explained, "{one:?} {two:?}");
    assert_eq!((one.events, two.events, one.declared_repeats, one.missing), (200, 60, 10, Missing::default()));
}

#[test]
fn a_reading_that_is_missing_is_not_explained_by_what_a_copy_took_in_under_its_number() {
    let mut auditor = auditor();
    original_and_copy(&mut auditor, (1..=94).chain(96..=119).chain(121..=200));
    let one = finding(&auditor, ONE);
    assert!(!one.explained);
    // 95 was stored before the copy was made, 120 behind it.
    assert_eq!((one.missing.under_new_id, one.gaps), (1, vec![(120, 120)]));
}

#[test]
fn another_reading_under_an_id_that_was_given_before_is_named_and_is_no_repeat() {
    let mut auditor = auditor();
    for (stored_by, sequences) in [(OURS, 1..=5), (COPYS, 4..=7), (OURS, 5..=5)] {
        for sequence in sequences {
            see_of(&mut auditor, stored_by, &format!("{ONE}:{sequence}"), "t", None, 0);
        }
    }
    let found = finding(&auditor, ONE);
    assert!(!found.explained);
    assert_eq!((found.reused.count, found.repeats.count, found.order_breaks.count, found.events), (2, 1, 0, 7));
    assert_eq!(found.reused.examples[0].sequence, 4);
}

#[test]
fn all_former_ids_of_a_reading_count() {
    let mut auditor = auditor();
    let three = Uuid::from_u128(3);
    hear(&mut auditor, ONE, &delivered(2));
    see_of(&mut auditor, BOTH, &format!("{TWO}:1"), "t", Some(&format!("{ONE}:1")), 0);
    for sequence in 1..=2 {
        let was = format!("{ONE}:{sequence} {TWO}:{sequence}");
        see_of(&mut auditor, BOTH, &format!("{three}:{sequence}"), "t", Some(&was), 0);
    }
    assert_eq!(finding(&auditor, ONE).missing, Missing { under_new_id: 2, ..Missing::default() });
    assert_eq!(finding(&auditor, TWO).declared_repeats, 1);
}

#[test]
fn a_declared_repeat_is_seen_whichever_comes_first() {
    let mut auditor = auditor();
    see(&mut auditor, &format!("{TWO}:1"), "t", Some(&format!("{ONE}:1")), 0);
    events(&mut auditor, ONE, [1]);
    assert_eq!(finding(&auditor, ONE).declared_repeats, 1);
}

#[test]
fn with_a_beginning_cut_off_what_is_before_is_not_missing_and_what_is_behind_is() {
    let mut auditor = auditor();
    auditor.cut(Edges { from_ms: Some(1000), to_ms: None });
    hear(&mut auditor, ONE, &delivered(20));
    // 5 arrived before and was read all the same; 12 is missing behind the edge.
    for (sequence, at) in [(5, 900), (10, 1000), (11, 1001), (13, 1002), (20, 2000)] {
        see(&mut auditor, &format!("{ONE}:{sequence}"), "t", None, at);
    }
    let found = finding(&auditor, ONE);
    assert_eq!((found.judged, found.gaps), (Some((10, 20)), vec![(12, 12), (14, 19)]));
}

#[test]
fn with_an_end_cut_off_what_is_behind_is_not_judged() {
    let mut auditor = auditor();
    auditor.cut(Edges { from_ms: None, to_ms: Some(1000) });
    hear(&mut auditor, ONE, &delivered(20));
    for (sequence, at) in [(1, 900), (2, 999), (4, 1000)] {
        see(&mut auditor, &format!("{ONE}:{sequence}"), "t", None, at);
    }
    let found = finding(&auditor, ONE);
    assert!(found.explained);
    assert_eq!(found.judged, Some((1, 2)));
}

#[test]
fn a_buffer_that_was_silent_in_the_time_asked_for_is_not_judged() {
    let mut auditor = auditor();
    auditor.cut(Edges { from_ms: Some(1000), to_ms: None });
    hear(&mut auditor, ONE, &delivered(20));
    let found = finding(&auditor, ONE);
    assert!(found.explained && found.judged.is_none());
}

#[test]
fn strangers_records_are_counted_and_ids_that_are_none_are_told_apart() {
    let mut auditor = auditor();
    auditor.see(&Seen { mqtt_topic: Some(b"x"), ..Seen::default() });
    let broken = [
        String::new(),
        format!("{ONE}"),
        format!("{ONE}:"),
        format!("{ONE}:0"),
        format!("{ONE}:01"),
        format!("{ONE}:+1"),
        format!("{ONE}: 1"),
        format!("{ONE}:9223372036854775808"),
        format!("{ONE}:18446744073709551616"),
        format!("{}:1", Uuid::from_u128(0xab << 64).to_string().to_uppercase()),
        format!("{}:1", ONE.simple()),
        "é".repeat(20),
    ];
    for id in &broken {
        see(&mut auditor, id, "t", None, 0);
    }
    see(&mut auditor, &format!("{ONE}:9223372036854775807"), "t", Some("x"), 0);
    for instance in ["", "0", "00000000000000AA", "+0000000000000aa", "00000000000000000"] {
        see_of(&mut auditor, Some(instance), &format!("{ONE}:7"), "t", None, 0);
    }
    let counts = auditor.counts();
    assert_eq!((counts.foreign, counts.broken), (1, broken.len() as u64 + 6));
    assert_eq!(auditor.findings().len(), 1);
    assert_eq!(finding(&auditor, ONE).last, Some(i64::MAX as u64));
}

#[test]
fn only_the_buffers_asked_for_are_looked_at() {
    let mut auditor = Auditor::new(BTreeSet::from([ONE]), Limits::default());
    hear(&mut auditor, TWO, &delivered(5));
    events(&mut auditor, TWO, [1, 7]);
    events(&mut auditor, ONE, [1]);
    assert_eq!(auditor.findings().len(), 1);
}

#[test]
fn what_does_not_fit_into_the_memory_is_said_and_the_rest_is_judged() {
    let mut auditor = Auditor::new(BTreeSet::new(), Limits { entries: 100, declared: 2, buffers: 2 });
    events(&mut auditor, TWO, 1..=600);
    // One in a thousand: an entry each.
    events(&mut auditor, ONE, (0..500).map(|n| n * 1000 + 1));
    let (one, two) = (finding(&auditor, ONE), finding(&auditor, TWO));
    assert!(two.explained && two.not_judged_up_to == 0);
    assert!(one.not_judged_up_to > 0 && one.gap_count < 100, "{one:?}");
    assert_eq!(one.judged, Some((one.not_judged_up_to + 1, 499_001)));
    // A late one below is not taken for a repeat.
    events(&mut auditor, ONE, [1]);
    assert_eq!(finding(&auditor, ONE).repeats.count, 0);

    events(&mut auditor, Uuid::from_u128(3), [1]);
    for sequence in [1, 3, 5] {
        hear(&mut auditor, ONE, &hole(sequence, sequence, Fate::Purged));
    }
    let counts = auditor.counts();
    assert_eq!((counts.buffers_beyond_limit, counts.declared_beyond_limit), (1, 1));
}

#[test]
fn what_a_newer_tidegate_and_a_stranger_say_is_counted() {
    let mut auditor = auditor();
    auditor.hear(ONE.to_string().as_bytes(), Some(br#"{"v":2}"#));
    auditor.hear(ONE.to_string().as_bytes(), None);
    auditor.hear(b"hello", Some(b"{}"));
    let found = finding(&auditor, ONE);
    assert_eq!((found.newer_records, found.watermark), (1, None));
    assert_eq!(auditor.counts().foreign_watermarks, 1);
}

/// What happened to a sequence in the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fortune {
    Delivered,
    Twice,
    Lost,
    Declared(Fate),
}

fn fortunes() -> impl Strategy<Value = Fortune> {
    prop_oneof![
        20 => Just(Fortune::Delivered),
        1 => Just(Fortune::Twice),
        1 => Just(Fortune::Lost),
        1 => Just(Fortune::Declared(Fate::DeadLettered)),
        1 => Just(Fortune::Declared(Fate::Dropped)),
        1 => Just(Fortune::Declared(Fate::Purged)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn every_fault_is_found_and_nothing_else_however_the_partitions_interleave(
        fortunes in prop::collection::vec(fortunes(), 1..1500),
        above in 0..20_u64,
        interleaving in prop::collection::vec(0..3_usize, 0..1500),
    ) {
        let mut auditor = auditor();
        let last = fortunes.len() as u64;
        let watermark = last.saturating_sub(above);
        hear(&mut auditor, ONE, &delivered(watermark));
        let mut expected: BTreeMap<&str, u64> = BTreeMap::new();
        let mut partitions: [Vec<u64>; 3] = Default::default();
        let mut highest = 0;
        for (sequence, fortune) in (1..).zip(&fortunes) {
            let partition = &mut partitions[usize::try_from(sequence % 3).unwrap()];
            match fortune {
                Fortune::Delivered => partition.push(sequence),
                Fortune::Twice => {
                    partition.extend([sequence, sequence]);
                    *expected.entry("repeats").or_default() += 1;
                }
                Fortune::Lost => {}
                Fortune::Declared(fate) => {
                    hear(&mut auditor, ONE, &hole(sequence, sequence, *fate));
                    // Declared twice is declared once.
                    hear(&mut auditor, ONE, &hole(sequence, sequence, *fate));
                }
            }
            if matches!(fortune, Fortune::Delivered | Fortune::Twice) {
                highest = sequence;
            }
        }
        let judged = highest.max(watermark);
        for (sequence, fortune) in (1..=judged).zip(&fortunes) {
            let entry = match fortune {
                Fortune::Delivered | Fortune::Twice => continue,
                Fortune::Lost if sequence > watermark => "coming",
                Fortune::Lost => "lost",
                Fortune::Declared(fate) => fate.as_str(),
            };
            *expected.entry(entry).or_default() += 1;
        }
        // The partitions are read in any order, each in its own.
        let mut positions = [0; 3];
        for partition in interleaving.into_iter().chain((0..3).flat_map(|p| std::iter::repeat_n(p, fortunes.len() * 2))) {
            if let Some(sequence) = partitions[partition].get(positions[partition]) {
                positions[partition] += 1;
                let id = format!("{ONE}:{sequence}");
                let place = Place { index: partition, ..Place::default() };
                auditor.see(&Seen { id: Some(id.as_bytes()), mqtt_topic: Some(b"t"), place, ..Seen::default() });
            }
        }
        let found = finding(&auditor, ONE);
        let of = |name: &str| expected.get(name).copied().unwrap_or_default();
        prop_assert_eq!(found.repeats.count, of("repeats"));
        prop_assert_eq!(found.order_breaks.count, 0);
        prop_assert_eq!(found.missing, Missing {
            dead_lettered: of("dead-lettered"),
            dropped: of("dropped"),
            purged: of("purged"),
            not_yet_delivered: of("coming"),
            unexplained: of("lost"),
            ..Missing::default()
        });
        prop_assert_eq!(found.explained, of("lost") + of("repeats") == 0);
    }
}

#[test]
fn a_fleet_shares_the_watermark_topic_and_only_those_who_write_here_are_judged() {
    let three = Uuid::from_u128(3);
    let (four, five) = (Uuid::from_u128(4), Uuid::from_u128(5));
    let wrote = |topic: &str| Record::Topic { kafka_topic: topic.into() };
    let mut auditor = auditor().of(BTreeSet::from(["here".to_owned()]));
    for (buffer, topics) in [(ONE, &["here"][..]), (TWO, &["there"]), (three, &["here"]), (four, &["there", "here"])] {
        hear(&mut auditor, buffer, &delivered(30));
        for topic in topics {
            hear(&mut auditor, buffer, &wrote(topic));
        }
    }
    // Of an older version, which does not say where it wrote.
    hear(&mut auditor, five, &delivered(30));
    events(&mut auditor, ONE, 1..=30);
    events(&mut auditor, four, (1..=10).chain(20..=30));
    let judged: Vec<(Uuid, bool, u64, u64)> = auditor
        .findings()
        .iter()
        .map(|found| (found.buffer, found.explained, found.missing.unexplained, found.missing.elsewhere))
        .collect();
    // Two is of no concern here. Three was to come here, and nothing is there. Four may have nine of its readings elsewhere.
    assert_eq!(judged, [(ONE, true, 0, 0), (three, false, 30, 0), (four, true, 0, 9)]);
    assert_eq!(auditor.others(), (2, 1));
    // A dead letter meant for elsewhere, and a lane that only waits there, excuse nothing.
    let letter = Record::Hole {
        first: 1,
        last: 1,
        fate: Fate::DeadLettered,
        reason: "r".into(),
        kafka_topic: Some("there".into()),
        at_ms: 0,
    };
    hear(&mut auditor, three, &letter);
    hear(&mut auditor, three, &lane("there", 2, 3, 2));
    let found = finding(&auditor, three);
    assert_eq!((found.explained, found.missing.unexplained, found.missing.elsewhere), (false, 27, 0));
    let asked = Auditor::new(BTreeSet::from([five]), Limits::default()).of(BTreeSet::from(["here".to_owned()]));
    let mut asked = asked;
    hear(&mut asked, five, &delivered(30));
    assert_eq!(finding(&asked, five).missing.unexplained, 30, "who is asked for is judged");
}
