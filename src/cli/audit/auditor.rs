//! The heart: records in, findings out. It knows neither Kafka nor a clock.

use std::collections::{BTreeSet, HashMap};

use uuid::Uuid;

use super::buffer::{Buffer, Edges, Instance};
use super::findings::{BufferFindings, Spot};
use super::judge::judge;
use super::order::{InOrder, Order};
use super::sequences::MOST;
use crate::event::Sequence;
use crate::watermark;

/// What may take memory. Together with the order (9 MB) and a process that has read ahead what it may (27 to 35 MB) it
/// stays below 64 MB.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Blocks and ranges of sequences, of all buffers: 130 bytes each, 10 MB. So many blocks hold 40 million events of
    /// partitions that are read ahead of others.
    pub(super) entries: usize,
    /// Declared holes and lanes, of all buffers: 24 bytes each in a vector that doubles, 5 MB.
    pub(super) declared: usize,
    /// Buffers: about 500 bytes each, 5 MB; twice the largest fleet.
    pub(super) buffers: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { entries: 80_000, declared: 100_000, buffers: 10_000 }
    }
}

/// A record of a data topic.
#[derive(Debug, Clone, Default)]
pub(super) struct Seen<'a> {
    /// The header `tidegate-id`.
    pub(super) id: Option<&'a [u8]>,
    /// The header `tidegate-instance`.
    pub(super) instance: Option<&'a [u8]>,
    /// The headers `tidegate-was`.
    pub(super) was: Vec<&'a [u8]>,
    /// The header `mqtt-topic`.
    pub(super) mqtt_topic: Option<&'a [u8]>,
    /// The record's time stamp.
    pub(super) at_ms: Option<i64>,
    /// It is the time of arrival: that of delivery stands in `tidegate-sent`.
    pub(super) by_arrival: bool,
    /// Where it lies.
    pub(super) place: Place<'a>,
}

/// Where a record lies.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Place<'a> {
    /// A number that stands for topic and partition.
    pub(super) index: usize,
    /// Kafka topic.
    pub(super) topic: &'a str,
    /// Partition.
    pub(super) partition: i32,
    /// Offset.
    pub(super) offset: i64,
}

/// Takes records, keeps what must be known of them.
#[derive(Debug)]
pub(super) struct Auditor {
    edges: Edges,
    /// Only these; empty for all.
    wanted: BTreeSet<Uuid>,
    /// The Kafka topics whose records are shown; empty when that is not known.
    topics: BTreeSet<String>,
    limits: Limits,
    buffers: Vec<Buffer>,
    index: HashMap<Uuid, usize>,
    /// Most records are of the same buffer as the one before.
    latest: Option<(Uuid, usize)>,
    order: Order,
    entries: usize,
    declared: usize,
    counts: Counts,
}

/// What is counted for all buffers together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// Records of data topics.
    pub(super) records: u64,
    /// Without a `tidegate-id`.
    pub(super) foreign: u64,
    /// With a `tidegate-id`, `tidegate-was` or `tidegate-instance` that is none.
    pub(super) broken: u64,
    /// Events without `mqtt-topic`.
    pub(super) without_mqtt_topic: u64,
    /// Events whose records bear the time of arrival.
    pub(super) by_arrival: u64,
    /// Records of the watermark topic that are nothing of Tidegate's.
    pub(super) foreign_watermarks: u64,
    /// Events of buffers beyond the limit.
    pub(super) buffers_beyond_limit: u64,
    /// Declared holes and lanes beyond the limit.
    pub(super) declared_beyond_limit: u64,
}

impl Auditor {
    /// For these buffers, or for all when there are none.
    pub(super) fn new(wanted: BTreeSet<Uuid>, limits: Limits) -> Self {
        Self {
            edges: Edges::default(),
            wanted,
            topics: BTreeSet::new(),
            limits,
            buffers: Vec::new(),
            index: HashMap::new(),
            latest: None,
            order: Order::default(),
            entries: 0,
            declared: 0,
            counts: Counts::default(),
        }
    }

    /// Which Kafka topics are audited: what gateways sent elsewhere is not looked for here.
    pub(super) fn of(self, topics: BTreeSet<String>) -> Self {
        Self { topics, ..self }
    }

    /// Before the first record of a data topic: which ends are cut off.
    pub(super) fn cut(&mut self, edges: Edges) {
        self.edges = edges;
    }

    /// A record of the watermark topic, in the order of its partition.
    pub(super) fn hear(&mut self, key: &[u8], value: Option<&[u8]>) {
        let (id, record) = match watermark::read(key, value) {
            watermark::Read::Said(id, record) => (id, Some(record)),
            watermark::Read::Newer(id) => (id, None),
            watermark::Read::Deleted(_) => return,
            watermark::Read::Foreign => return add(&mut self.counts.foreign_watermarks),
        };
        if self.declared >= self.limits.declared {
            return add(&mut self.counts.declared_beyond_limit);
        }
        let Some(buffer) = self.buffer(id).and_then(|index| self.buffers.get_mut(index)) else { return };
        let audited = |topic: &str| self.topics.is_empty() || self.topics.contains(topic);
        match record {
            Some(record) => self.declared = self.declared.saturating_add(buffer.said.hear(record, audited).into()),
            None => add(&mut buffer.said.newer),
        }
    }

    /// A record of a data topic, in the order of its partition.
    pub(super) fn see(&mut self, record: &Seen<'_>) {
        add(&mut self.counts.records);
        let Some(id) = record.id else { return add(&mut self.counts.foreign) };
        let Some((id, sequence)) = event_id(id) else { return add(&mut self.counts.broken) };
        let Some(instance) = record.instance.map_or(Some(0), instance) else { return add(&mut self.counts.broken) };
        self.counts.by_arrival += u64::from(record.by_arrival);
        let new = self.see_event(id, sequence, instance, record);
        for was in &record.was {
            match event_id(was) {
                Some((old, sequence)) if new => self.see_moved(old, sequence, instance),
                Some(_) => {}
                None => add(&mut self.counts.broken),
            }
        }
    }

    /// True unless it is a repeat.
    fn see_event(&mut self, id: Uuid, sequence: Sequence, instance: Instance, record: &Seen<'_>) -> bool {
        let Some(index) = self.buffer(id) else { return true };
        let Some(buffer) = self.buffers.get_mut(index) else { return true };
        buffer.time(sequence, record.at_ms, self.edges);
        if sequence <= buffer.forgotten {
            return true;
        }
        let spot = |after| Spot {
            sequence,
            after,
            mqtt_topic: String::from_utf8_lossy(record.mqtt_topic.unwrap_or_default()).into_owned(),
            topic: record.place.topic.to_owned(),
            partition: record.place.partition,
            offset: record.place.offset,
        };
        let before = buffer.entries_for(instance);
        if !buffer.stored_by.entry(instance).or_default().insert(sequence) {
            // Its place in the order it had when it came first.
            buffer.repeats.add(|| spot(None));
            return false;
        }
        let is_first_of_its_id = buffer.seen.insert(sequence);
        let after = buffer.entries_for(instance);
        if buffer.moved.get(&instance).is_some_and(|moved| moved.contains(sequence)) {
            add(&mut buffer.declared_repeats);
        }
        if !is_first_of_its_id {
            // Of the order of two that have one id nothing can be said.
            buffer.reused.add(|| spot(None));
            self.weigh(before, after);
            return true;
        }
        match self.order.next(index, record.place.index, record.mqtt_topic.unwrap_or_default(), sequence) {
            InOrder::Yes => {}
            InOrder::No(later) => buffer.order_breaks.add(|| spot(Some(later))),
            InOrder::Unknown => add(&mut buffer.order_not_watched),
        }
        if record.mqtt_topic.is_none() {
            add(&mut self.counts.without_mqtt_topic);
        }
        self.weigh(before, after);
        true
    }

    /// An event came under the id of a clone.
    fn see_moved(&mut self, old: Uuid, sequence: Sequence, instance: Instance) {
        let Some(buffer) = self.buffer(old).and_then(|index| self.buffers.get_mut(index)) else { return };
        let before = buffer.entries_for(instance);
        let new = buffer.moved.entry(instance).or_default().insert(sequence);
        let after = buffer.entries_for(instance);
        if !new || buffer.stored_by.get(&instance).is_some_and(|stored| stored.contains(sequence)) {
            add(&mut buffer.declared_repeats);
        }
        self.weigh(before, after);
    }

    /// The buffer with this id; `None` when it is not asked for, or one too many.
    fn buffer(&mut self, id: Uuid) -> Option<usize> {
        if let Some((_, index)) = self.latest.filter(|(latest, _)| *latest == id) {
            return Some(index);
        }
        if !self.wanted.is_empty() && !self.wanted.contains(&id) {
            return None;
        }
        let index = match self.index.get(&id) {
            Some(index) => *index,
            None if self.buffers.len() >= self.limits.buffers => {
                add(&mut self.counts.buffers_beyond_limit);
                return None;
            }
            None => {
                let index = self.buffers.len();
                self.buffers.push(Buffer::new(id));
                self.index.insert(id, index);
                index
            }
        };
        self.latest = Some((id, index));
        Some(index)
    }

    /// Keeps the books of what takes memory. Too much: whoever takes more than the mean forgets its lower half.
    fn weigh(&mut self, before: usize, after: usize) {
        self.entries = self.entries + after - before;
        if self.entries <= self.limits.entries {
            return;
        }
        let mean = self.entries.checked_div(self.buffers.len()).unwrap_or(0);
        for buffer in self.buffers.iter_mut().filter(|buffer| buffer.entries() > mean) {
            buffer.forgotten = buffer.forgotten.max(buffer.seen.forget_half());
            let floor = buffer.forgotten;
            for sequences in buffer.stored_by.values_mut().chain(buffer.moved.values_mut()) {
                sequences.forget_up_to(floor);
            }
        }
        self.entries = self.buffers.iter().map(Buffer::entries).sum();
    }

    /// What is counted for all buffers together.
    pub(super) fn counts(&self) -> Counts {
        self.counts
    }

    /// The findings, by buffer id.
    pub(super) fn findings(&self) -> Vec<BufferFindings> {
        let judged = self.buffers.iter().filter(|buffer| self.concerns(buffer));
        let mut findings: Vec<_> = judged.map(|buffer| judge(buffer, self.edges)).collect();
        findings.sort_by_key(|buffer| buffer.buffer);
        findings
    }
}

impl Auditor {
    /// Has it to do with the topics that are audited? A fleet shares one watermark topic, and a gateway that wrote only to
    /// other topics is no gap in these. One whose readings were to come here, and of which nothing is there, is one.
    fn concerns(&self, buffer: &Buffer) -> bool {
        !self.wanted.is_empty()
            || self.topics.is_empty()
            || buffer.said.here
            || buffer.seen.first().is_some()
            || !buffer.moved.is_empty()
    }

    /// Buffers that have nothing to do with these topics; and those of them that do not say where they wrote.
    pub(super) fn others(&self) -> (usize, usize) {
        let others = self.buffers.iter().filter(|buffer| !self.concerns(buffer));
        let silent = others.clone().filter(|buffer| buffer.said.elsewhere.is_none() && buffer.said.delivered > Some(0));
        (others.count(), silent.count())
    }
}

/// 16 digits, in their one spelling.
fn instance(text: &[u8]) -> Option<Instance> {
    let is_digit = |digit: &u8| digit.is_ascii_digit() || (b'a'..=b'f').contains(digit);
    let text = std::str::from_utf8(text).ok().filter(|text| text.len() == 16 && text.bytes().all(|b| is_digit(&b)))?;
    Instance::from_str_radix(text, 16).ok()
}

/// `<buffer id>:<sequence>`, in its one spelling.
fn event_id(text: &[u8]) -> Option<(Uuid, Sequence)> {
    let (id, rest) = text.split_at_checked(36)?;
    let digits = rest.strip_prefix(b":")?;
    if id.iter().any(u8::is_ascii_uppercase) || matches!(digits.first(), None | Some(b'0')) {
        return None;
    }
    let sequence = digits.iter().try_fold(0_u64, |number, digit| {
        let digit = digit.checked_sub(b'0').filter(|digit| *digit <= 9)?;
        number.checked_mul(10)?.checked_add(digit.into())
    })?;
    (sequence <= MOST).then_some((Uuid::try_parse_ascii(id).ok()?, sequence))
}

fn add(count: &mut u64) {
    *count += 1;
}
