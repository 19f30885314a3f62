//! What the watermark topic holds: how far each buffer is delivered, what waits, and which holes are declared.
//!
//! Written by the forwarder, inside the transactions that carry the readings; read by the forwarder after a start, and by
//! `tidegate audit`. The topic is compacted, so of each key the last record stays for ever. Keys are UTF-8, values are JSON
//! objects:
//!
//! | key | value | says |
//! |---|---|---|
//! | `<buffer id>` | `{"v":1,"instance":"<32 hex>","delivered":N,"commit":C,"unread":[[A,B],…],"at":T}` | each event of the main lane with a sequence ≤ N was delivered by this or an earlier transaction, or its other fate (dead letter, parked, dropped, purged, lost) was durable in the buffer before; **but not those from A to B**: the buffer holds them and could not read them when their turn came. `unread` is absent when there are none |
//! | `<buffer id>/lane/<kafka topic>` | `{"v":1,"instance":"<32 hex>","delivered":N,"waiting":{"first":A,"last":B,"events":C},"holes":H,"at":T}` | parked events of that Kafka topic up to N are delivered; what still waits, absent when nothing does; of the events up to N so many ranges are holes that a reader must know of, and they are declared behind this record in the same transaction; absent when they are declared before it |
//! | `<buffer id>/hole/<first>` | `{"v":1,"first":A,"last":B,"fate":"dead-lettered","reason":"…","kafka_topic":"…","at":T}` | these sequences will never come; the fate is `dead-lettered`, `dropped`, `purged` or `lost`; the Kafka topic is absent when they were meant for several |
//! | `<buffer id>/identity` | `{"v":1,"was":"<old buffer id>","last":L,"at":T}` | this buffer was another one (a clone, or a restored copy that took a new identity); its events up to L carry the header `tidegate-was: <old id>:<sequence>` |
//! | `<buffer id>/topic/<kafka topic>` | `{"v":1}` | readings of this buffer went to that Kafka topic; `*` for more topics than are named. Said once a start, so that an audit knows whose numbers to look for in the topics it reads |
//!
//! `<buffer id>/clock` without a value asks for the time, and says nothing.
//!
//! `at` is the gateway's wall clock in milliseconds since 1970, for people; nothing is decided by it. `instance` is the
//! number a process draws at its start: an instance that a buffer does not know is another agent with its identity. `commit`
//! is the last one of that start by which its buffer moved events aside, to dead letters or lanes; absent when it moved none.
//! A buffer that does not have that commit cannot believe the word: what it passes may lie in another's lanes.
//!
//! Rules:
//!
//! * **One partition holds everything of a buffer** ([`partition`]): the forwarder reads one partition after a start, and
//!   what one transaction says is read in its order. It is the partition to which a Java client sends the key
//!   `<buffer id>`; records with longer keys must be sent there by number.
//! * **A hole's key is made of its first sequence**, so that declaring it twice is harmless.
//! * **Unknown fields are ignored.** A `v` above 1 or a key of an unknown kind is a record of a newer Tidegate
//!   ([`Read::Newer`]): no fault of the data, but what it says is not known here. All else is [`Read::Foreign`].

use std::fmt::{self, Write as _};

use serde::Deserialize;
use serde_json::json;
use uuid::Uuid;

use crate::event::Sequence;

/// The topic's name, unless the operator gives it another.
pub(crate) const TOPIC: &str = "tidegate.watermarks";

/// Its settings, each with the reason. Small segments that are compacted soon, so that who reads it after a start reads
/// little; besides the last record of each key there is only what the last minutes have brought.
pub(crate) const TOPIC_SETTINGS: &[(&str, &str, &str)] = &[
    (
        "cleanup.policy",
        "compact",
        "the last record of each key stays for ever; without it watermarks expire in an outage",
    ),
    ("segment.bytes", "1048576", "only a closed segment is compacted; 1 MiB is 4,000 transactions"),
    ("segment.ms", "600000", "a quiet partition closes its segment after 10 minutes"),
    ("min.cleanable.dirty.ratio", "0.1", "compacted when a tenth is new"),
    ("delete.retention.ms", "3600000", "marks of transactions, half of what is read, go after an hour"),
    (
        "message.timestamp.type",
        "LogAppendTime",
        "each record says what time it is at Kafka: gateways have no good clock",
    ),
];

/// The key under which a gateway asks for Kafka's time, without a value.
#[must_use]
pub(crate) fn clock_key(buffer: Uuid) -> String {
    format!("{buffer}/clock")
}

/// Partitions for so many gateways: about one each. A gateway reads its partition after a start, in which others that
/// share it make it wait (an open transaction) and read more; beyond 1,000 the cluster would pay more than they gain.
#[must_use]
pub(crate) fn partitions_for(gateways: u32) -> i32 {
    i32::try_from(gateways.clamp(1, 1000)).unwrap_or(1000)
}

/// The version written.
const VERSION: u64 = 1;

/// In place of a Kafka topic: further ones, which are not named. No topic can be called so.
pub(crate) const MORE_TOPICS: &str = "*";

/// The longest reason that is written: a sentence with Kafka's words in it. What is longer is cut.
const MAX_REASON_BYTES: usize = 512;

/// A number that a process draws at its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Instance(pub u128);

impl Instance {
    /// As a reading bears it, in the header `tidegate-instance`: the last 16 of the 32 digits, 62 random bits. That two
    /// starts of a fleet that makes a hundred million of them share these is one chance in 900.
    #[must_use]
    pub fn short(self) -> String {
        format!("{:016x}", self.0 & u128::from(u64::MAX))
    }
}

impl fmt::Display for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl Instance {
    /// Reads one; one spelling only.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let number = u128::from_str_radix(text, 16).ok().map(Self)?;
        // One spelling only: no sign, no capitals, all 32 digits.
        (number.to_string() == text).then_some(number)
    }
}

/// Why events of a declared hole will never come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Fate {
    /// Kafka refuses them for good; they are in the gateway's dead letters.
    DeadLettered,
    /// The overflow policy dropped them.
    Dropped,
    /// An operator purged them.
    Purged,
    /// Damage to the gateway's file has taken them, or their numbers were never given to a reading.
    Lost,
}

impl Fate {
    /// As it is written.
    #[must_use]
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::DeadLettered => "dead-lettered",
            Self::Dropped => "dropped",
            Self::Purged => "purged",
            Self::Lost => "lost",
        }
    }
}

/// Parked events that are still held for one Kafka topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(crate) struct Waiting {
    /// Lowest sequence that waits.
    pub first: Sequence,
    /// Highest sequence that waits.
    pub last: Sequence,
    /// How many wait; sequences between that are not among them went elsewhere.
    pub events: u64,
}

/// One record: what is said of a buffer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Record {
    /// How far the main lane is delivered.
    Main {
        /// Who delivered it.
        instance: Instance,
        /// Everything up to here.
        delivered: Sequence,
        /// The last commit of that start that moved events aside; 0 when there was none.
        commit: u64,
        /// ... but these, first and last of each span, which could not be read and are held.
        unread: Vec<(Sequence, Sequence)>,
        /// Wall clock, milliseconds since 1970.
        at_ms: i64,
    },
    /// How far the lane of a parked Kafka topic is delivered.
    Lane {
        /// Which Kafka topic.
        kafka_topic: String,
        /// Who delivered it.
        instance: Instance,
        /// Everything of this lane up to here; 0 when nothing yet.
        delivered: Sequence,
        /// What is still held.
        waiting: Option<Waiting>,
        /// So many holes of the lane that its buffer may not know of follow in the same transaction; `None`: they lie
        /// before it.
        holes: Option<u64>,
        /// Wall clock, milliseconds since 1970.
        at_ms: i64,
    },
    /// Sequences that will never come.
    Hole {
        /// The first of them.
        first: Sequence,
        /// The last of them.
        last: Sequence,
        /// What became of them.
        fate: Fate,
        /// Why, for a person.
        reason: String,
        /// Where they should have gone; `None` when to several.
        kafka_topic: Option<String>,
        /// Wall clock, milliseconds since 1970.
        at_ms: i64,
    },
    /// Readings went to this Kafka topic.
    Topic {
        /// Which; [`MORE_TOPICS`] for all that are not named.
        kafka_topic: String,
    },
    /// This buffer was another one.
    Identity {
        /// Its old id.
        was: Uuid,
        /// The last event that has an id from then.
        last: Sequence,
        /// Wall clock, milliseconds since 1970.
        at_ms: i64,
    },
}

impl Record {
    /// The record's key, when `buffer` says it.
    #[must_use]
    pub(crate) fn key(&self, buffer: Uuid) -> String {
        let mut key = buffer.to_string();
        // Writing to a String cannot fail.
        match self {
            Self::Main { .. } => Ok(()),
            Self::Lane { kafka_topic, .. } => write!(key, "/lane/{kafka_topic}"),
            Self::Hole { first, .. } => write!(key, "/hole/{first}"),
            Self::Topic { kafka_topic } => write!(key, "/topic/{kafka_topic}"),
            Self::Identity { .. } => write!(key, "/identity"),
        }
        .unwrap_or_default();
        key
    }

    /// The record's value.
    #[must_use]
    pub(crate) fn value(&self) -> String {
        let mut value = match self {
            Self::Main { instance, delivered, commit, unread, at_ms } => json!({
                "v": VERSION, "instance": instance.to_string(), "delivered": delivered, "at": at_ms,
                "commit": (*commit > 0).then_some(commit), "unread": (!unread.is_empty()).then_some(unread),
            }),
            Self::Lane { kafka_topic: _, instance, delivered, waiting, holes, at_ms } => json!({
                "v": VERSION, "instance": instance.to_string(), "delivered": delivered, "at": at_ms, "holes": holes,
                "waiting": waiting.map(|Waiting { first, last, events }| json!({"first": first, "last": last, "events": events})),
            }),
            Self::Hole { first, last, fate, reason, kafka_topic, at_ms } => json!({
                "v": VERSION, "first": first, "last": last, "fate": fate.as_str(), "at": at_ms,
                "reason": cut(reason), "kafka_topic": kafka_topic,
            }),
            Self::Topic { kafka_topic: _ } => json!({"v": VERSION}),
            Self::Identity { was, last, at_ms } => {
                json!({"v": VERSION, "was": was.to_string(), "last": last, "at": at_ms})
            }
        };
        if let Some(fields) = value.as_object_mut() {
            fields.retain(|_, field| !field.is_null());
        }
        value.to_string()
    }
}

/// As much of a reason as is written.
fn cut(reason: &str) -> &str {
    (0..=reason.len().min(MAX_REASON_BYTES)).rev().find_map(|end| reason.get(..end)).unwrap_or_default()
}

/// What a record of the watermark topic turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Read {
    /// Something said of a buffer.
    Said(Uuid, Record),
    /// Something said of a buffer by a newer Tidegate, in words not known here.
    Newer(Uuid),
    /// The key was of this buffer, but the value is gone (a tombstone).
    Deleted(Uuid),
    /// Nothing of Tidegate's, or damaged.
    Foreign,
}

/// Reads a record.
#[must_use]
pub(crate) fn read(key: &[u8], value: Option<&[u8]>) -> Read {
    let Some((buffer, kind)) = read_key(key) else { return Read::Foreign };
    let Some(value) = value else { return Read::Deleted(buffer) };
    let Some(version) = serde_json::from_slice::<Versioned>(value).ok().map(|value| value.v) else {
        return Read::Foreign;
    };
    match (version, kind) {
        (0, _) => Read::Foreign,
        (VERSION, Kind::Main | Kind::Lane(_) | Kind::Hole(_) | Kind::Topic(_) | Kind::Identity) => {
            read_value(kind, value).map_or(Read::Foreign, |record| Read::Said(buffer, record))
        }
        (_, _) => Read::Newer(buffer),
    }
}

/// What a key says of its value.
#[derive(Clone, Copy)]
enum Kind<'a> {
    Main,
    Lane(&'a str),
    Hole(Sequence),
    Topic(&'a str),
    Identity,
    Unknown,
}

fn read_key(key: &[u8]) -> Option<(Uuid, Kind<'_>)> {
    let key = std::str::from_utf8(key).ok()?;
    let (id, rest) = key.split_once('/').map_or((key, None), |(id, rest)| (id, Some(rest)));
    let buffer = buffer_id(id)?;
    let kind = match rest.map(|rest| rest.split_once('/').unwrap_or((rest, ""))) {
        None => Kind::Main,
        Some(("identity", "")) => Kind::Identity,
        Some(("lane", topic)) if !topic.is_empty() => Kind::Lane(topic),
        Some(("topic", topic)) if !topic.is_empty() => Kind::Topic(topic),
        Some(("hole", first)) => Kind::Hole(first.parse().ok()?),
        Some(_) => Kind::Unknown,
    };
    Some((buffer, kind))
}

fn read_value(kind: Kind<'_>, value: &[u8]) -> Option<Record> {
    let fields: Fields = serde_json::from_slice(value).ok()?;
    let at_ms = fields.at.unwrap_or_default();
    let instance = || Instance::parse(fields.instance.as_deref()?);
    Some(match kind {
        Kind::Main => {
            let (commit, unread) = (fields.commit.unwrap_or_default(), fields.unread.unwrap_or_default());
            Record::Main { instance: instance()?, delivered: fields.delivered?, commit, unread, at_ms }
        }
        Kind::Lane(topic) => Record::Lane {
            kafka_topic: topic.to_owned(),
            instance: instance()?,
            delivered: fields.delivered?,
            waiting: fields.waiting,
            holes: fields.holes,
            at_ms,
        },
        Kind::Hole(first) => {
            let last = fields.last?;
            if fields.first != Some(first) || last < first {
                return None;
            }
            let reason = fields.reason.unwrap_or_default();
            Record::Hole { first, last, fate: fields.fate?, reason, kafka_topic: fields.kafka_topic, at_ms }
        }
        Kind::Topic(topic) => Record::Topic { kafka_topic: topic.to_owned() },
        Kind::Identity => Record::Identity { was: buffer_id(&fields.was?)?, last: fields.last?, at_ms },
        Kind::Unknown => return None,
    })
}

#[derive(Deserialize)]
struct Versioned {
    v: u64,
}

/// The fields of all kinds; which must be there, the kind says.
#[derive(Deserialize)]
struct Fields {
    at: Option<i64>,
    instance: Option<String>,
    delivered: Option<Sequence>,
    commit: Option<u64>,
    unread: Option<Vec<(Sequence, Sequence)>>,
    waiting: Option<Waiting>,
    holes: Option<u64>,
    first: Option<Sequence>,
    last: Option<Sequence>,
    fate: Option<Fate>,
    reason: Option<String>,
    kafka_topic: Option<String>,
    was: Option<String>,
}

/// A buffer id in its one spelling: lower case, with hyphens.
#[must_use]
pub(crate) fn buffer_id(text: &str) -> Option<Uuid> {
    let id = Uuid::try_parse(text).ok()?;
    (id.hyphenated().encode_lower(&mut Uuid::encode_buffer()) == text).then_some(id)
}

/// The partition of the watermark topic that holds everything of this buffer: where a Java client sends the buffer id as
/// a key (murmur2, made positive, modulo).
#[must_use]
pub(crate) fn partition(buffer: Uuid, partitions: u32) -> i32 {
    let mut text = Uuid::encode_buffer();
    let hash = murmur2(buffer.hyphenated().encode_lower(&mut text).as_bytes()) & 0x7fff_ffff;
    // A topic without partitions does not exist; a remainder below 2^31 is an i32.
    hash.checked_rem(partitions).and_then(|number| i32::try_from(number).ok()).unwrap_or(0)
}

/// Murmur2 with the seed of Kafka's Java client.
fn murmur2(data: &[u8]) -> u32 {
    const SEED: u32 = 0x9747_b28c;
    const M: u32 = 0x5bd1_e995;
    // The length is mixed in as a Java int.
    let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
    let (words, rest) = data.as_chunks::<4>();
    let mut hash = SEED ^ length;
    for word in words {
        let word = u32::from_le_bytes(*word).wrapping_mul(M);
        hash = hash.wrapping_mul(M) ^ (word ^ (word >> 24)).wrapping_mul(M);
    }
    if !rest.is_empty() {
        let tail = rest.iter().rev().fold(0, |tail, byte| (tail << 8) | u32::from(*byte));
        hash = (hash ^ tail).wrapping_mul(M);
    }
    hash = (hash ^ (hash >> 13)).wrapping_mul(M);
    hash ^ (hash >> 15)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ID: &str = "0b5b9f9e-6e0f-4c6e-b3a3-5a53b3c3a2a1";

    fn id() -> Uuid {
        ID.parse().unwrap()
    }

    fn records() -> impl Strategy<Value = Record> {
        let waiting =
            proptest::option::of((1..u64::MAX, 1..u64::MAX, 1..u64::MAX).prop_map(|(first, last, events)| Waiting {
                first,
                last,
                events,
            }));
        let fate = prop_oneof![Just(Fate::DeadLettered), Just(Fate::Dropped), Just(Fate::Purged)];
        prop_oneof![
            (any::<u128>(), any::<[u64; 2]>(), proptest::collection::vec(any::<(u64, u64)>(), 0..3), any::<i64>())
                .prop_map(|(instance, [delivered, commit], unread, at_ms)| Record::Main {
                    instance: Instance(instance),
                    delivered,
                    commit,
                    unread,
                    at_ms
                }),
            ("[a-zA-Z0-9._-]{1,60}", any::<u128>(), any::<u64>(), waiting, any::<Option<u64>>(), any::<i64>())
                .prop_map(|(kafka_topic, instance, delivered, waiting, holes, at_ms)| Record::Lane {
                    kafka_topic,
                    instance: Instance(instance),
                    delivered,
                    waiting,
                    holes,
                    at_ms
                }),
            (any::<u64>(), any::<u32>(), fate, ".{0,80}", proptest::option::of("[a-z]{1,9}"), any::<i64>()).prop_map(
                |(first, more, fate, reason, kafka_topic, at_ms)| Record::Hole {
                    first,
                    last: first.saturating_add(u64::from(more)),
                    fate,
                    reason,
                    kafka_topic,
                    at_ms
                }
            ),
            (any::<u128>(), any::<u64>(), any::<i64>()).prop_map(|(was, last, at_ms)| Record::Identity {
                was: Uuid::from_u128(was),
                last,
                at_ms
            }),
        ]
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(buffer: u128, record in records()) {
            let buffer = Uuid::from_u128(buffer);
            let (key, value) = (record.key(buffer), record.value());
            prop_assert!(!value.contains("null"));
            prop_assert_eq!(read(key.as_bytes(), Some(value.as_bytes())), Read::Said(buffer, record));
        }

        #[test]
        fn any_bytes_are_survived(key: Vec<u8>, tail in "(/[a-z]{0,8}){0,3}", value: Vec<u8>) {
            prop_assert_eq!(read(&key, Some(&value)), Read::Foreign);
            let key = format!("{ID}{tail}");
            prop_assert!(!matches!(read(key.as_bytes(), Some(&value)), Read::Said(..)));
        }
    }

    #[test]
    fn the_format_is_the_one_documented() {
        let main = |unread| Record::Main { instance: Instance(0xab), delivered: 7, commit: 0, unread, at_ms: 5 };
        let record = main(vec![(2, 3)]);
        assert!(record.value().contains(r#""unread":[[2,3]]"#), "{}", record.value());
        let record = main(vec![]);
        assert_eq!(record.key(id()), ID);
        assert_eq!(record.value(), r#"{"at":5,"delivered":7,"instance":"000000000000000000000000000000ab","v":1}"#);
        let lane = |waiting| Record::Lane {
            kafka_topic: "a.b".into(),
            instance: Instance(1),
            delivered: 0,
            waiting,
            holes: None,
            at_ms: 5,
        };
        let waiting = Waiting { first: 3, last: 9, events: 4 };
        assert_eq!(lane(None).key(id()), format!("{ID}/lane/a.b"));
        assert!(!lane(None).value().contains("waiting"));
        assert!(lane(Some(waiting)).value().contains(r#""waiting":{"events":4,"first":3,"last":9}"#));
        let hole = Record::Hole {
            first: 3,
            last: 4,
            fate: Fate::DeadLettered,
            reason: "too \"large\"".into(),
            kafka_topic: None,
            at_ms: 5,
        };
        assert_eq!(hole.key(id()), format!("{ID}/hole/3"));
        assert_eq!(
            hole.value(),
            r#"{"at":5,"fate":"dead-lettered","first":3,"last":4,"reason":"too \"large\"","v":1}"#
        );
        assert_eq!(Record::Identity { was: id(), last: 9, at_ms: 5 }.key(id()), format!("{ID}/identity"));
    }

    #[test]
    fn unknown_fields_are_ignored_and_newer_versions_and_kinds_are_told_apart_from_damage() {
        let read = |key: &str, value: &str| read(key.as_bytes(), Some(value.as_bytes()));
        let delivered = r#"{"v":1,"instance":"000000000000000000000000000000ab","delivered":7,"at":5,"colour":[{}]}"#;
        assert_eq!(
            read(ID, delivered),
            Read::Said(
                id(),
                Record::Main { instance: Instance(0xab), delivered: 7, commit: 0, unread: vec![], at_ms: 5 }
            )
        );
        assert_eq!(read(ID, r#"{"v":2,"delivered":{"a":1}}"#), Read::Newer(id()));
        assert_eq!(read(&format!("{ID}/colour/blue"), r#"{"v":1}"#), Read::Newer(id()));
        for (key, value) in [
            (ID, "{}"),
            (ID, r#"{"v":0,"delivered":7}"#),
            (ID, r#"{"v":1,"delivered":7}"#),
            (ID, r#"{"v":1,"instance":"AB","delivered":7}"#),
            (ID, r#"{"v":1,"instance":"000000000000000000000000000000ab","delivered":-7}"#),
            (ID, "[1]"),
            (&ID.to_uppercase(), delivered),
            (&ID.replace('-', ""), delivered),
            ("", delivered),
            (&format!("{ID}/lane/"), "7"),
            (&format!("{ID}/hole/x"), r#"{"v":1}"#),
            // A hole whose value is not of its key, or ends before it begins.
            (&format!("{ID}/hole/3"), r#"{"v":1,"first":4,"last":5,"fate":"purged"}"#),
            (&format!("{ID}/hole/3"), r#"{"v":1,"first":3,"last":2,"fate":"purged"}"#),
            (&format!("{ID}/hole/3"), r#"{"v":1,"first":3,"last":3,"fate":"eaten"}"#),
        ] {
            assert_eq!(read(key, value), Read::Foreign, "{key} {value}");
        }
        assert_eq!(super::read(ID.as_bytes(), None), Read::Deleted(id()));
    }

    #[test]
    fn a_long_reason_is_cut_between_characters() {
        let reason = "é".repeat(MAX_REASON_BYTES);
        let hole = Record::Hole { first: 1, last: 1, fate: Fate::Purged, reason, kafka_topic: None, at_ms: 0 };
        let Read::Said(_, Record::Hole { reason, .. }) = read(hole.key(id()).as_bytes(), Some(hole.value().as_bytes()))
        else {
            panic!("not a hole")
        };
        assert_eq!(reason, "é".repeat(MAX_REASON_BYTES / 2));
    }

    #[test]
    fn the_hash_is_that_of_kafkas_java_client() {
        // The vectors of org.apache.kafka.common.utils.UtilsTest.
        for (text, hash) in [
            ("21", -973_932_308_i32),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            ("abc", 479_470_107),
        ] {
            assert_eq!(murmur2(text.as_bytes()).cast_signed(), hash, "{text}");
        }
    }

    #[test]
    fn a_partition_is_one_of_the_topics() {
        for number in 0..1000 {
            let buffer = Uuid::from_u128(number);
            for partitions in [1_i32, 2, 50, 1000] {
                assert!((0..partitions).contains(&partition(buffer, partitions.cast_unsigned())));
            }
            assert_eq!(partition(buffer, 0), 0);
        }
    }
}
