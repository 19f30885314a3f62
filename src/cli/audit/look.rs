//! One audit from end to end: which topics, what the gateways said, what Kafka holds.
//!
//! The order matters. First the watermark topic is read to its end, then the ends of the data topics are taken: so what a
//! watermark covers lies below these ends. A transaction's mark may come later in one partition than in the other,
//! therefore a `read-committed` reader goes on until nothing open is left below.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant, SystemTime};

use rdkafka::config::ClientConfig;
use rdkafka::message::{BorrowedMessage, Message};
use regex_lite::Regex;
use uuid::Uuid;

use super::auditor::{Auditor, Counts, Limits, Place, Seen};
use super::buffer::Edges;
use super::findings::{BufferFindings, Missing, Summary, Verdict};
use super::headers;
use super::reader::{Far, Flow, Isolation, LookError, PATIENCE, Reader, Span};
use crate::route::KAFKAS_OWN;

/// What to audit.
#[derive(Debug)]
pub(super) struct Plan {
    /// How to get to Kafka.
    pub(super) way: ClientConfig,
    /// These topics, by name.
    pub(super) names: BTreeSet<String>,
    /// And all whose name is of one of these.
    pub(super) patterns: Vec<Regex>,
    /// Where the gateways say what they delivered.
    pub(super) watermark_topic: String,
    /// Only records of this time.
    pub(super) from_ms: Option<i64>,
    pub(super) to_ms: Option<i64>,
    /// Only these buffers, if any.
    pub(super) buffers: BTreeSet<Uuid>,
    pub(super) isolation: Isolation,
}

/// Everything found.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) buffers: Vec<BufferFindings>,
    pub(super) summary: Summary,
}

/// Nothing to look at.
#[derive(Debug, thiserror::Error)]
pub(super) enum AuditError {
    #[error(transparent)]
    Look(#[from] LookError),
    #[error("Kafka has no topic {0:?}, or this client may not see it (Describe)")]
    NoTopic(String),
    #[error("no topic in Kafka matches: {0}")]
    NoTopics(String),
}

/// Looks at everything; `far` hears what is read and how far it is.
pub(super) fn audit(plan: &Plan, mut far: impl FnMut(&str, Far)) -> Result<Found, AuditError> {
    let started = Instant::now();
    let all = Reader::new(&plan.way, Isolation::Uncommitted)?;
    let committed = Reader::new(&plan.way, Isolation::Committed)?;
    let known = all.topics()?;
    let topics = plan.topics(&known)?;
    let mut notes = Notes::default();
    let audited = topics.iter().map(|(name, _)| name.clone()).collect();
    let mut auditor = Auditor::new(plan.buffers.clone(), Limits::default()).of(audited);

    let watermarks = match known.get_key_value(&plan.watermark_topic) {
        Some((topic, partitions)) => all.spans(&[(topic.clone(), *partitions)], None)?,
        None => Vec::new(),
    };
    let mut told = 0_u64;
    let hear = |_: usize, message: &BorrowedMessage<'_>| {
        told += 1;
        auditor.hear(message.key().unwrap_or_default(), message.payload());
        Flow::GoOn
    };
    let left = committed.read(&watermarks, hear, |now| far("watermarks", now))?;
    notes.not_read(&watermarks, &left);
    if told == 0 {
        notes.say(format!(
            "the watermark topic {:?} holds nothing, so no gap can be explained: {SILENT}",
            plan.watermark_topic
        ));
    }

    let spans = all.spans(&topics, plan.from_ms)?;
    let from_ms = beginning(&all, &spans, plan.from_ms, &mut notes)?;
    auditor.cut(Edges { from_ms, to_ms: plan.to_ms });
    let reader = match plan.isolation {
        Isolation::Committed => &committed,
        Isolation::Uncommitted => &all,
    };
    let see = |index: usize, message: &BorrowedMessage<'_>| {
        auditor.see(&seen(index, message, &spans));
        Flow::GoOn
    };
    let left = reader.read(&spans, see, |now| far("records", now))?;
    notes.not_read(&spans, &left);
    notes.retention(auditor.counts().by_arrival, &spans);
    Ok(close(&auditor, notes, topics, started))
}

const SILENT: &str = "gateways with delivery = \"at-least-once\" write nothing to it";

impl Plan {
    fn topics(&self, known: &BTreeMap<String, i32>) -> Result<Vec<(String, i32)>, AuditError> {
        if let Some(missing) = self.names.iter().find(|name| !known.contains_key(*name)) {
            return Err(AuditError::NoTopic(missing.clone()));
        }
        let wanted = |name: &str| {
            self.names.contains(name)
                || (name != self.watermark_topic
                    && !name.starts_with(KAFKAS_OWN)
                    && self.patterns.iter().any(|pattern| pattern.is_match(name)))
        };
        let topics: Vec<_> =
            known.iter().filter(|(name, _)| wanted(name)).map(|(name, count)| (name.clone(), *count)).collect();
        if topics.is_empty() {
            let patterns: Vec<&str> = self.patterns.iter().map(Regex::as_str).collect();
            return Err(AuditError::NoTopics(patterns.join(", ")));
        }
        Ok(topics)
    }
}

fn seen<'m>(index: usize, message: &'m BorrowedMessage<'_>, spans: &'m [Span]) -> Seen<'m> {
    let own = headers::own(message);
    Seen {
        id: own.id,
        instance: own.instance,
        was: own.was,
        mqtt_topic: own.mqtt_topic,
        at_ms: message.timestamp().to_millis(),
        by_arrival: own.sent.is_some(),
        place: Place {
            index,
            topic: spans.get(index).map_or("", |span| &span.topic),
            partition: message.partition(),
            offset: message.offset(),
        },
    }
}

/// From when on nothing is missing because it was not read: `--from`, or the youngest of the oldest records that Kafka
/// still holds in partitions whose beginning it has removed. `None` when everything is there from the beginning.
fn beginning(
    reader: &Reader,
    spans: &[Span],
    from_ms: Option<i64>,
    notes: &mut Notes,
) -> Result<Option<i64>, LookError> {
    let removed: Vec<Span> =
        spans.iter().filter(|span| span.earliest > 0 && span.start <= span.earliest).cloned().collect();
    let mut oldest = None;
    let look = |_: usize, message: &BorrowedMessage<'_>| {
        oldest = oldest.max(message.timestamp().to_millis());
        Flow::Enough
    };
    reader.read(&removed, look, |_| {})?;
    if let Some(oldest) = oldest.filter(|oldest| from_ms.is_none_or(|from| *oldest > from)) {
        notes.say(format!(
            "Kafka has removed the oldest records of {} partitions; the audit judges nothing before {}",
            removed.len(),
            time(oldest)
        ));
    }
    for span in removed.iter().filter(|span| span.end <= span.earliest) {
        notes.say(format!(
            "topic {} partition {} is empty and has held {} records: retention.ms may have removed what is missing",
            span.topic, span.partition, span.end
        ));
    }
    Ok(oldest.max(from_ms))
}

/// RFC 3339.
pub(super) fn time(ms: i64) -> String {
    // A stranger may write microseconds; from the year 10000 on there is no such text.
    let since = Duration::from_millis(u64::try_from(ms).unwrap_or(0)).min(Duration::from_secs(253_402_300_799));
    humantime::format_rfc3339_seconds(SystemTime::UNIX_EPOCH.checked_add(since).unwrap_or(SystemTime::UNIX_EPOCH))
        .to_string()
}

/// What a reader should know besides the figures.
#[derive(Debug, Default)]
struct Notes {
    said: Vec<String>,
    /// Something could not be looked at.
    incomplete: bool,
}

impl Notes {
    fn say(&mut self, note: String) {
        self.said.push(note);
    }

    fn incomplete(&mut self, note: String) {
        self.incomplete = true;
        self.said.push(note);
    }

    fn incomplete_if(&mut self, count: u64, note: impl FnOnce(u64) -> String) {
        if count > 0 {
            self.incomplete(note(count));
        }
    }

    fn not_read(&mut self, spans: &[Span], left: &[(usize, i64)]) {
        for (index, next) in left {
            let Some(span) = spans.get(*index) else { continue };
            self.incomplete(format!(
                "topic {} partition {}: read up to offset {next} of {}, then nothing came for {} s: Kafka is away, or a \
                 transaction is open there (kafka-transactions.sh find-hanging)",
                span.topic,
                span.partition,
                span.end,
                PATIENCE.as_secs()
            ));
        }
    }

    /// What the watermark topic tells of topics that are not audited.
    fn elsewhere(&mut self, buffers: &[BufferFindings], (others, silent): (usize, usize)) {
        if others > silent {
            self.say(format!("{} buffers wrote only to other topics; the audit does not judge them", others - silent));
        }
        if silent > 0 {
            self.say(format!(
                "{silent} buffers have nothing in these topics and do not say to which topics they wrote (an older \
                 Tidegate); the audit does not judge them unless --buffer names them"
            ));
        }
        let mut also = buffers.iter().filter(|buffer| buffer.missing.elsewhere > 0).peekable();
        if let Some(example) = also.peek().and_then(|buffer| buffer.elsewhere.clone()) {
            self.say(format!(
                "{} buffers also wrote to topics outside this audit, for example {example:?}; what is missing may be \
                 there: audit all their topics together",
                also.count()
            ));
        }
    }

    /// What is deleted by its time of arrival was perhaps never to be seen.
    fn retention(&mut self, by_arrival: u64, spans: &[Span]) {
        let removed: BTreeSet<&str> = spans.iter().filter(|span| span.earliest > 0).map(|span| &*span.topic).collect();
        if by_arrival > 0 && !removed.is_empty() {
            let topics: Vec<&str> = removed.into_iter().collect();
            self.say(format!(
                "{by_arrival} records have the time of arrival as their time (timestamp = \"arrival\"), and Kafka \
                 has removed records of {}: it removed a reading as soon as it arrived, if the reading had waited at \
                 its gateway for longer than retention.ms",
                topics.join(", ")
            ));
        }
    }

    /// What did not fit into the memory.
    fn limits(&mut self, counts: Counts, buffers: &[BufferFindings]) {
        let scattered = buffers.iter().filter(|buffer| buffer.not_judged_up_to > 0).count();
        let not_watched = buffers.iter().map(|buffer| buffer.order_not_watched).sum::<u64>();
        self.incomplete_if(u64::try_from(scattered).unwrap_or(u64::MAX), |count| {
            format!(
                "the audit has not enough memory for the sequences of {count} buffers: these topics hold only a \
                 small part of their events, or their partitions are far apart in time; audit all topics together, \
                 or a shorter time (--from)"
            )
        });
        self.incomplete_if(not_watched, |count| {
            format!(
                "the audit did not check the order of {count} events, because there are too many MQTT topics; \
                 audit with --buffer"
            )
        });
        self.incomplete_if(counts.buffers_beyond_limit, |count| {
            format!("the audit has not enough memory for all buffers: {count} events are left out; audit with --buffer")
        });
        self.incomplete_if(counts.declared_beyond_limit, |count| {
            format!(
                "the audit has not enough memory for all declarations of the watermark topic: {count} are left \
                 out; audit with --buffer"
            )
        });
    }
}

fn close(auditor: &Auditor, mut notes: Notes, topics: Vec<(String, i32)>, started: Instant) -> Found {
    let (buffers, counts) = (auditor.findings(), auditor.counts());
    notes.limits(counts, &buffers);
    notes.elsewhere(&buffers, auditor.others());
    if counts.foreign_watermarks > 0 {
        notes.say(format!("{} records of the watermark topic are not Tidegate's", counts.foreign_watermarks));
    }
    let newer = buffers.iter().map(|buffer| buffer.newer_records).sum::<u64>();
    if newer > 0 {
        notes.say(format!(
            "a newer Tidegate wrote {newer} records of the watermark topic; use the audit of that version"
        ));
    }
    let sum = |count: fn(&BufferFindings) -> u64| buffers.iter().map(count).fold(0, u64::saturating_add);
    let verdict = match (notes.incomplete, counts.broken > 0 || buffers.iter().any(|buffer| !buffer.explained)) {
        (true, _) => Verdict::Incomplete,
        (false, true) => Verdict::Unexplained,
        (false, false) => Verdict::Explained,
    };
    let summary = Summary {
        verdict,
        notes: notes.said,
        topics: topics.into_iter().map(|(topic, _)| topic).collect(),
        buffers: buffers.len(),
        other_buffers: auditor.others().0,
        records: counts.records,
        events: sum(|buffer| buffer.events),
        missing: buffers.iter().fold(Missing::default(), |sum, buffer| sum.plus(&buffer.missing)),
        repeats: sum(|buffer| buffer.repeats.count),
        declared_repeats: sum(|buffer| buffer.declared_repeats),
        reused: sum(|buffer| buffer.reused.count),
        order_breaks: sum(|buffer| buffer.order_breaks.count),
        foreign: counts.foreign,
        broken: counts.broken,
        without_mqtt_topic: counts.without_mqtt_topic,
        seconds: started.elapsed().as_secs_f64(),
    };
    Found { buffers, summary }
}
