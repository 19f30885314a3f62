//! A chunk: the events of one commit as one blob. Its layout stands in the [specification](super).
//!
//! A chunk is read back into memory that its events share: their payloads are slices of it.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::envelope::{Damage, Opener, Sealer};
use super::limits::{CHUNK_RAW_BYTES, LONGEST_NAME_KEPT, NAME_OVERHEAD_BYTES, NAMES_KEPT_BYTES};
use crate::cbor::{self, Blob};
use crate::clock::Clock;
use crate::event::{Event, Properties, Qos, RouteId, Sender, Sequence, Stored};

#[derive(Debug, Serialize, Deserialize)]
struct Line<'a>(
    Sequence,
    i64,
    u8,
    u16,
    &'a str,
    #[serde(borrow)] Blob<'a>,
    #[serde(borrow)] Option<Headers<'a>>,
    #[serde(borrow, default)] Option<Facts<'a>>,
);

#[derive(Debug, Serialize, Deserialize)]
struct Headers<'a>(
    #[serde(borrow)] Option<&'a str>,
    #[serde(borrow)] Option<Blob<'a>>,
    #[serde(borrow)] Vec<(&'a str, &'a str)>,
);

/// A map and not an array, so that a fact can be added without a new layout.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct Facts<'a> {
    #[serde(rename = "c", default, skip_serializing_if = "Option::is_none")]
    client: Option<&'a str>,
    #[serde(rename = "u", default, skip_serializing_if = "Option::is_none")]
    user: Option<&'a str>,
    #[serde(rename = "r", default, skip_serializing_if = "Option::is_none")]
    response_topic: Option<&'a str>,
    #[serde(rename = "f", default, skip_serializing_if = "Option::is_none")]
    payload_format: Option<u8>,
    #[serde(rename = "e", default, skip_serializing_if = "Option::is_none")]
    expiry_s: Option<u32>,
    #[serde(rename = "t", default, skip_serializing_if = "Option::is_none")]
    clock: Option<ClockFact>,
    #[serde(rename = "x", default, skip_serializing_if = "Option::is_none")]
    flaw: Option<&'a str>,
}

/// [`Clock`], by its fields.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct ClockFact(u32, i64, bool);

const QOS_BITS: u8 = 0b0011;
const RETAIN_BIT: u8 = 0b0100;
const DUP_BIT: u8 = 0b1000;

impl<'a> Line<'a> {
    /// `before` is the clock of the event before it in the chunk.
    fn of(stored: &'a Stored, before: Clock) -> Self {
        let Stored { sequence, event } = stored;
        let headers = event.properties.as_deref().map(|p| {
            let user = p.user.iter().map(|(k, v)| (&**k, &**v)).collect();
            Headers(p.content_type.as_deref(), p.correlation_data.as_deref().map(Blob), user)
        });
        let retain = if event.retain { RETAIN_BIT } else { 0 };
        let dup = if event.dup { DUP_BIT } else { 0 };
        let flags = event.qos.level() | retain | dup;
        let payload = Blob(&event.payload);
        Self(
            *sequence,
            event.arrived_ms,
            flags,
            event.route.0,
            &event.topic,
            payload,
            headers,
            Facts::of(event, before),
        )
    }
}

impl<'a> Facts<'a> {
    fn of(event: &'a Event, before: Clock) -> Option<Self> {
        let Clock { boot, booted_ms, synchronised } = event.clock;
        let (sender, properties) = (event.sender.as_deref(), event.properties.as_deref());
        let facts = Self {
            client: sender.map(|sender| &*sender.client),
            user: sender.and_then(|sender| sender.user.as_deref()),
            response_topic: properties.and_then(|p| p.response_topic.as_deref()),
            payload_format: properties.and_then(|p| p.payload_format),
            expiry_s: properties.and_then(|p| p.expiry_s),
            clock: (event.clock != before).then_some(ClockFact(boot, booted_ms, synchronised)),
            flaw: properties.and_then(|p| p.flaw.as_deref()),
        };
        (facts != Self::default()).then_some(facts)
    }
}

/// Builds chunks, one after the other, in memory that is used again.
pub(super) struct ChunkWriter {
    compress: bool,
    raw: Vec<u8>,
    sealer: Sealer,
    open: Option<Extent>,
    /// Of the last event of the open chunk.
    clock: Clock,
}

/// What a chunk holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) first: Sequence,
    pub(super) last: Sequence,
    pub(super) count: u32,
    /// Smallest arrival time in it.
    pub(super) oldest_ms: i64,
}

impl ChunkWriter {
    pub(super) fn new(compress: bool) -> Self {
        Self { compress, raw: Vec::new(), sealer: Sealer::default(), open: None, clock: Clock::default() }
    }

    /// Appends; true when the chunk has its size and must be taken.
    pub(super) fn push(&mut self, stored: &Stored) -> Result<bool, Damage> {
        let (sequence, at) = (stored.sequence, stored.event.arrived_ms);
        let before = if self.open.is_some() { self.clock } else { Clock::default() };
        cbor::append(&Line::of(stored, before), &mut self.raw)?;
        self.clock = stored.event.clock;
        let extent = self.open.get_or_insert(Extent { first: sequence, last: sequence, count: 0, oldest_ms: at });
        extent.last = sequence;
        extent.count += 1;
        extent.oldest_ms = extent.oldest_ms.min(at);
        Ok(self.raw.len() >= CHUNK_RAW_BYTES)
    }

    /// Closes the chunk and hands it over; `None` when nothing was pushed since.
    pub(super) fn take(&mut self) -> Result<Option<(Extent, &[u8])>, Damage> {
        let Some(extent) = self.open.take() else { return Ok(None) };
        let len = u64::try_from(self.raw.len()).unwrap_or(u64::MAX);
        let body = self.sealer.seal(&self.raw, self.compress);
        self.raw.clear();
        self.raw.shrink_to(CHUNK_RAW_BYTES * 2);
        body.map(|body| Some((extent, body))).ok_or(Damage::TooLong(len))
    }

    /// Forgets what was pushed.
    pub(super) fn discard(&mut self) {
        self.raw.clear();
        self.open = None;
    }
}

/// Reads chunks; equal topics and names of senders share memory across them.
#[derive(Default)]
pub(super) struct ChunkReader {
    opener: Opener,
    /// Topics, client ids and users.
    names: HashSet<Arc<str>>,
    /// What these cost.
    names_bytes: usize,
}

impl ChunkReader {
    /// The events, if they are what the row says: first and last sequence and, where it is known, their number.
    pub(super) fn read(&mut self, body: &[u8], first: Sequence, last: Sequence) -> Result<Vec<Stored>, Damage> {
        let raw = Bytes::from(self.opener.open(body)?);
        let mut events: Vec<Stored> = Vec::new();
        for line in cbor::read_sequence::<Line<'_>>(&raw) {
            let stored = self.stored(line?, &raw, events.last().map(|stored| &stored.event))?;
            if events.last().is_some_and(|before| before.sequence >= stored.sequence) {
                return Err(Damage::Content(format!("the sequence {} is not in order", stored.sequence)));
            }
            events.push(stored);
        }
        let found = (events.first().map(|e| e.sequence), events.last().map(|e| e.sequence));
        if found != (Some(first), Some(last)) {
            return Err(Damage::Content(format!("it holds the sequences {found:?} and should hold {first} to {last}")));
        }
        Ok(events)
    }

    /// The first and the last sequence of a sound chunk, whatever its row says.
    pub(super) fn extent(&mut self, body: &[u8]) -> Result<(Sequence, Sequence), Damage> {
        let raw = self.opener.open(body)?;
        let mut extent = None;
        for line in cbor::read_sequence::<Line<'_>>(&raw) {
            let Line(sequence, ..) = line?;
            extent = Some((extent.map_or(sequence, |(first, _)| first), sequence));
        }
        extent.ok_or_else(|| Damage::Content("it holds nothing".to_owned()))
    }

    fn stored(&mut self, line: Line<'_>, raw: &Bytes, last: Option<&Event>) -> Result<Stored, Damage> {
        let Line(sequence, arrived_ms, flags, route, topic, payload, headers, facts) = line;
        let facts = facts.unwrap_or_default();
        let qos = Qos::from_level(flags & QOS_BITS).filter(|_| flags & !(QOS_BITS | RETAIN_BIT | DUP_BIT) == 0);
        let qos = qos.ok_or_else(|| Damage::Content(format!("unknown flags {flags:#x} at sequence {sequence}")))?;
        // The slices are borrowed from `raw`, which is what slice_ref asks for.
        let properties = headers.map(|Headers(content_type, correlation_data, user)| {
            Box::new(Properties {
                content_type: content_type.map(Box::from),
                correlation_data: correlation_data.map(|data| raw.slice_ref(data.0)),
                response_topic: facts.response_topic.map(Box::from),
                payload_format: facts.payload_format,
                expiry_s: facts.expiry_s,
                flaw: facts.flaw.map(Box::from),
                user: user.into_iter().map(|(k, v)| (Box::from(k), Box::from(v))).collect(),
            })
        });
        let event = Event {
            topic: match last {
                Some(last) if &*last.topic == topic => Arc::clone(&last.topic),
                Some(_) | None => self.name(topic),
            },
            payload: raw.slice_ref(payload.0),
            qos,
            retain: flags & RETAIN_BIT != 0,
            dup: flags & DUP_BIT != 0,
            arrived_ms,
            clock: match facts.clock {
                Some(ClockFact(boot, booted_ms, synchronised)) => Clock { boot, booted_ms, synchronised },
                None => last.map(|last| last.clock).unwrap_or_default(),
            },
            route: RouteId(route),
            sender: facts.client.map(|client| self.sender(client, facts.user, last)),
            properties,
        };
        Ok(Stored { sequence, event })
    }

    fn sender(&mut self, client: &str, user: Option<&str>, last: Option<&Event>) -> Arc<Sender> {
        let same = |sender: &&Arc<Sender>| &*sender.client == client && sender.user.as_deref() == user;
        match last.and_then(|last| last.sender.as_ref()).filter(same) {
            Some(sender) => Arc::clone(sender),
            None => Arc::new(Sender { client: self.name(client), user: user.map(|user| self.name(user)) }),
        }
    }

    fn name(&mut self, name: &str) -> Arc<str> {
        if let Some(known) = self.names.get(name) {
            return Arc::clone(known);
        }
        let new: Arc<str> = Arc::from(name);
        if name.len() <= LONGEST_NAME_KEPT {
            let cost = name.len() + NAME_OVERHEAD_BYTES;
            self.names_bytes += cost;
            if self.names_bytes > NAMES_KEPT_BYTES {
                self.names = HashSet::new();
                self.names_bytes = cost;
            }
            self.names.insert(Arc::clone(&new));
        }
        new
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_event() -> impl Strategy<Value = Event> {
        let properties = (
            proptest::option::of("[a-z/]{0,12}"),
            proptest::option::of(proptest::collection::vec(any::<u8>(), 0..20)),
            proptest::collection::vec(("[a-zäß]{0,8}", "[a-z0-9]{0,8}"), 0..4),
            proptest::option::of("[a-z/]{0,12}"),
            proptest::option::of(0u8..2),
            proptest::option::of(any::<u32>()),
            proptest::option::of("[a-z ]{0,12}"),
        )
            .prop_map(|(content_type, correlation, user, response_topic, payload_format, expiry_s, flaw)| Properties {
                content_type: content_type.map(Into::into),
                correlation_data: correlation.map(Into::into),
                response_topic: response_topic.map(Into::into),
                payload_format,
                expiry_s,
                flaw: flaw.map(Into::into),
                user: user.into_iter().map(|(k, v)| (k.into(), v.into())).collect(),
            });
        let payload = prop_oneof![
            8 => proptest::collection::vec(any::<u8>(), 0..60),
            1 => (0usize..70_000).prop_map(|len| (0..len).map(|i| u8::try_from((i % 251) * (i % 251) % 251).unwrap()).collect()),
        ];
        let sender = ("[a-c]{1,2}", proptest::option::of("[a-c]{1,2}"))
            .prop_map(|(client, user)| Arc::new(Sender { client: client.into(), user: user.map(Into::into) }));
        let (sender, properties) = (proptest::option::of(sender), proptest::option::of(properties));
        let clock = (0u32..2, 0i64..2, any::<bool>());
        let clock = clock.prop_map(|(boot, booted_ms, synchronised)| Clock { boot, booted_ms, synchronised });
        let arrival = (any::<i64>(), clock);
        ("[a-cé/]{1,10}", payload, 0u8..3, any::<[bool; 2]>(), arrival, 0u16..3, sender, properties).prop_map(
            |(topic, payload, qos, [retain, dup], (arrived_ms, clock), route, sender, properties)| Event {
                topic: topic.into(),
                payload: payload.into(),
                qos: Qos::from_level(qos).unwrap(),
                retain,
                dup,
                arrived_ms,
                clock,
                route: RouteId(route),
                sender,
                properties: properties.map(Box::new),
            },
        )
    }

    fn chunk(events: &[Event], compress: bool) -> (Vec<Stored>, Extent, Vec<u8>) {
        let mut writer = ChunkWriter::new(compress);
        let stored: Vec<Stored> =
            (7..).zip(events).map(|(sequence, e)| Stored { sequence, event: e.clone() }).collect();
        for event in &stored {
            writer.push(event).unwrap();
        }
        let (extent, body) = writer.take().unwrap().unwrap();
        let body = body.to_vec();
        assert!(writer.take().unwrap().is_none());
        (stored, extent, body)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn events_come_back_as_they_went_in(
            events in proptest::collection::vec(any_event(), 1..20), compress in any::<bool>(),
        ) {
            let (stored, extent, body) = chunk(&events, compress);
            prop_assert_eq!(extent.count as usize, stored.len());
            let back = ChunkReader::default().read(&body, extent.first, extent.last).unwrap();
            prop_assert_eq!(back, stored);
            prop_assert!(ChunkReader::default().read(&body, extent.first + 1, extent.last + 1).is_err());
        }

        #[test]
        fn cbor_is_byte_for_byte_what_ciborium_writes(events in proptest::collection::vec(any_event(), 1..6)) {
            let (stored, extent, body) = chunk(&events, false);
            let raw = Opener::default().open(&body).unwrap();
            let mut theirs = Vec::new();
            let mut before = Clock::default();
            for stored in &stored {
                ciborium::into_writer(&Line::of(stored, before), &mut theirs).unwrap();
                before = stored.event.clock;
            }
            prop_assert_eq!(raw, theirs);
            prop_assert_eq!(extent.first, 7);
        }

        #[test]
        fn no_content_behind_a_right_checksum_makes_it_panic(
            events in proptest::collection::vec(any_event(), 1..3),
            flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
            cut in any::<prop::sample::Index>(),
        ) {
            let (_, extent, body) = chunk(&events, false);
            let mut raw = Opener::default().open(&body).unwrap();
            for (at, value) in flips {
                let at = at.index(raw.len());
                raw[at] = value;
            }
            raw.truncate(cut.index(raw.len() + 1));
            let mut sealer = Sealer::default();
            let forged = sealer.seal(&raw, true).unwrap();
            if let Ok(read) = ChunkReader::default().read(forged, extent.first, extent.last) {
                prop_assert!(read.windows(2).all(|pair| pair[0].sequence < pair[1].sequence));
            }
        }
    }

    #[test]
    fn equal_topics_share_memory() {
        let event = Event {
            topic: "a/b".into(),
            payload: Bytes::from_static(b"1"),
            qos: Qos::AtLeastOnce,
            retain: false,
            dup: false,
            arrived_ms: 0,
            clock: Clock::default(),
            route: RouteId(1),
            sender: None,
            properties: None,
        };
        let other = Event { topic: "c".into(), ..event.clone() };
        let (_, extent, body) = chunk(&[event.clone(), other, event], true);
        let back = ChunkReader::default().read(&body, extent.first, extent.last).unwrap();
        assert!(Arc::ptr_eq(&back[0].event.topic, &back[2].event.topic));
    }

    #[test]
    fn what_was_written_before_there_were_facts_is_read() {
        let properties = Headers(Some("text/plain"), None, vec![("k", "v")]);
        let mut raw = Vec::new();
        let line = (7_u64, 5_i64, 0b101_u8, 1_u16, "a/b", Blob(b"x"), Some(properties));
        cbor::append(&line, &mut raw).unwrap();
        let mut sealer = Sealer::default();
        let back = ChunkReader::default().read(sealer.seal(&raw, true).unwrap(), 7, 7).unwrap();
        let Event { topic, payload, qos, retain, dup, sender, clock, properties, .. } = &back[0].event;
        assert_eq!((&**topic, &payload[..], *qos, *retain, *dup), ("a/b", &b"x"[..], Qos::AtLeastOnce, true, false));
        assert!(sender.is_none() && *clock == Clock::default());
        assert_eq!(properties.as_deref().and_then(|p| p.content_type.as_deref()), Some("text/plain"));
    }

    #[test]
    fn remembered_names_are_bounded_in_bytes() {
        let mut reader = ChunkReader::default();
        for n in 0..10_000 {
            reader.name(&format!("{n}/{}", "x".repeat(n % 600)));
            let bytes: usize = reader.names.iter().map(|name| name.len() + NAME_OVERHEAD_BYTES).sum();
            assert_eq!(bytes, reader.names_bytes);
            assert!(bytes <= NAMES_KEPT_BYTES && reader.names.iter().all(|name| name.len() <= LONGEST_NAME_KEPT));
        }
    }
}
