//! What an audit found; as `--json` prints it.
//!
//! One JSON object a line: one for each buffer (`"buffer"` is its id), then one with the key `"summary"`. Sequences are
//! numbers; times are milliseconds since 1970. Lists of examples hold the first few; the counts count all.

use serde::Serialize;
use uuid::Uuid;

use crate::event::Sequence;

/// Examples kept of each kind of trouble, a buffer.
pub(super) const EXAMPLES: usize = 5;

/// One buffer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct BufferFindings {
    /// Its id.
    pub(super) buffer: Uuid,
    /// Nothing missing without a reason, nothing twice, no id on two readings, nothing out of order.
    pub(super) explained: bool,
    /// Lowest sequence seen.
    pub(super) first: Option<Sequence>,
    /// Highest sequence seen.
    pub(super) last: Option<Sequence>,
    /// Different events seen.
    pub(super) events: u64,
    /// What the buffer says it has delivered; null when the watermark topic says nothing.
    pub(super) watermark: Option<Sequence>,
    /// Between these two nothing may be missing; null when there is nothing to judge.
    pub(super) judged: Option<(Sequence, Sequence)>,
    /// What is missing there, by reason.
    pub(super) missing: Missing,
    /// Gaps without an explanation, first and last of each.
    pub(super) gaps: Vec<(Sequence, Sequence)>,
    /// How many gaps without an explanation there are.
    pub(super) gap_count: u64,
    /// Events that came again under the same id.
    pub(super) repeats: Spots,
    /// Other events under an id that was given before: of two buffers that had one identity, or after a loss.
    pub(super) reused: Spots,
    /// Events that came again after a clone took an identity of its own, and say so (`tidegate-was`).
    pub(super) declared_repeats: u64,
    /// Events behind a later one of their MQTT topic.
    pub(super) order_breaks: Spots,
    /// A topic that is not audited and that its readings went to as well; null when there is none.
    pub(super) elsewhere: Option<String>,
    /// The buffer that it was before.
    pub(super) was: Option<Uuid>,
    /// Sequences up to here were too scattered for the memory; 0 when none.
    pub(super) not_judged_up_to: Sequence,
    /// Events whose order could not be watched.
    pub(super) order_not_watched: u64,
    /// Records about it in the watermark topic that a newer Tidegate wrote.
    pub(super) newer_records: u64,
}

/// Sequences that did not come, by reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub(super) struct Missing {
    /// Declared: Kafka refused them, they are in the gateway's dead letters.
    pub(super) dead_lettered: u64,
    /// Declared: the overflow policy dropped them.
    pub(super) dropped: u64,
    /// Declared: an operator purged them.
    pub(super) purged: u64,
    /// Declared: damage to the gateway's file has taken them, or their numbers were never used.
    pub(super) lost: u64,
    /// Declared: the gateway holds them and cannot read them.
    pub(super) unread: u64,
    /// Declared: they wait for a Kafka topic that is missing or forbidden.
    pub(super) waiting: u64,
    /// They came under the new id of a clone, with `tidegate-was`.
    pub(super) under_new_id: u64,
    /// Above the watermark: on their way.
    pub(super) not_yet_delivered: u64,
    /// They may have gone to topics of this buffer that are not audited.
    pub(super) elsewhere: u64,
    /// Nothing explains them.
    pub(super) unexplained: u64,
    /// Of these, so many lie where parked events wait, and more are missing there than wait.
    pub(super) unexplained_beside_waiting: u64,
}

/// Places where something was wrong.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub(super) struct Spots {
    /// All.
    pub(super) count: u64,
    /// The first few.
    pub(super) examples: Vec<Spot>,
}

/// A record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Spot {
    /// Its sequence.
    pub(super) sequence: Sequence,
    /// The sequence that should have come later, if it is about order.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) after: Option<Sequence>,
    /// Its MQTT topic.
    pub(super) mqtt_topic: String,
    /// Its Kafka topic.
    pub(super) topic: String,
    /// Its partition.
    pub(super) partition: i32,
    /// Its offset.
    pub(super) offset: i64,
}

impl Spots {
    /// One more.
    pub(super) fn add(&mut self, spot: impl FnOnce() -> Spot) {
        self.count += 1;
        if self.examples.len() < EXAMPLES {
            self.examples.push(spot());
        }
    }
}

/// All buffers together.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Summary {
    /// `explained`, `unexplained` or `incomplete`.
    pub(super) verdict: Verdict,
    /// Why it is not `explained`, and what else a reader should know.
    pub(super) notes: Vec<String>,
    /// The Kafka topics that were read.
    pub(super) topics: Vec<String>,
    /// Buffers seen, or spoken of in the watermark topic.
    pub(super) buffers: usize,
    /// Buffers in the watermark topic that have nothing to do with these topics.
    pub(super) other_buffers: usize,
    /// Records read.
    pub(super) records: u64,
    /// Different events among them.
    pub(super) events: u64,
    /// What is missing, by reason.
    pub(super) missing: Missing,
    /// Events that came again under the same id.
    pub(super) repeats: u64,
    /// Other events under an id that was given before.
    pub(super) reused: u64,
    /// Events that came again under a new id, and say so.
    pub(super) declared_repeats: u64,
    /// Events behind a later one of their MQTT topic.
    pub(super) order_breaks: u64,
    /// Records without a `tidegate-id`: of somebody else.
    pub(super) foreign: u64,
    /// Records with a `tidegate-id` that is none.
    pub(super) broken: u64,
    /// Events without the header `mqtt-topic`.
    pub(super) without_mqtt_topic: u64,
    /// Time it took.
    pub(super) seconds: f64,
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Verdict {
    /// Everything that is missing has a declared reason; nothing came twice or out of order.
    Explained,
    /// Something is missing without a reason, came twice, or out of order.
    Unexplained,
    /// Not everything could be looked at.
    Incomplete,
}

impl Missing {
    /// All of it.
    pub(super) fn total(&self) -> u64 {
        let Self {
            dead_lettered,
            dropped,
            purged,
            lost,
            unread,
            waiting,
            under_new_id,
            not_yet_delivered,
            elsewhere,
            unexplained,
            unexplained_beside_waiting: _,
        } = *self;
        [dead_lettered, dropped, purged, lost, unread, waiting, under_new_id, not_yet_delivered, elsewhere, unexplained]
            .into_iter()
            .fold(0, u64::saturating_add)
    }

    /// The same for a buffer that has written other topics too.
    pub(super) fn unexplained_is_elsewhere(self) -> Self {
        Self { elsewhere: self.unexplained, unexplained: 0, unexplained_beside_waiting: 0, ..self }
    }

    /// Both together.
    pub(super) fn plus(&self, other: &Self) -> Self {
        let add = u64::saturating_add;
        Self {
            dead_lettered: add(self.dead_lettered, other.dead_lettered),
            dropped: add(self.dropped, other.dropped),
            purged: add(self.purged, other.purged),
            lost: add(self.lost, other.lost),
            unread: add(self.unread, other.unread),
            waiting: add(self.waiting, other.waiting),
            under_new_id: add(self.under_new_id, other.under_new_id),
            not_yet_delivered: add(self.not_yet_delivered, other.not_yet_delivered),
            elsewhere: add(self.elsewhere, other.elsewhere),
            unexplained: add(self.unexplained, other.unexplained),
            unexplained_beside_waiting: add(self.unexplained_beside_waiting, other.unexplained_beside_waiting),
        }
    }
}
