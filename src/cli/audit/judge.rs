//! Judges a buffer: what is missing, and what the gateway said of it.

use super::buffer::{Buffer, Edges};
use super::findings::{BufferFindings, EXAMPLES, Missing};
use super::said::Hole;
use crate::event::Sequence;
use crate::watermark::Fate;

/// Everything about one buffer.
pub(super) fn judge(buffer: &Buffer, edges: Edges) -> BufferFindings {
    let judged = judged(buffer, edges);
    let mut accounts = Accounts::of(buffer);
    if let Some((first, last)) = judged {
        buffer.seen.gaps(first..=last, |first, last| accounts.gap(first, last));
    }
    let Accounts { missing, gaps, gap_count, .. } = accounts.closed(buffer.said.events_waiting());
    let (missing, gaps, gap_count) = match &buffer.said.elsewhere {
        // Numbers run over all topics of a buffer: what is not here may be there.
        Some(_) => (missing.unexplained_is_elsewhere(), Vec::new(), 0),
        None => (missing, gaps, gap_count),
    };
    BufferFindings {
        buffer: buffer.id,
        explained: missing.unexplained == 0
            && buffer.repeats.count == 0
            && buffer.reused.count == 0
            && buffer.order_breaks.count == 0,
        first: buffer.seen.first(),
        last: buffer.seen.last(),
        events: buffer.seen.count(),
        watermark: buffer.said.delivered,
        judged,
        missing,
        gaps,
        gap_count,
        repeats: buffer.repeats.clone(),
        reused: buffer.reused.clone(),
        declared_repeats: buffer.declared_repeats,
        order_breaks: buffer.order_breaks.clone(),
        elsewhere: buffer.said.elsewhere.as_deref().map(str::to_owned),
        was: buffer.said.was,
        not_judged_up_to: buffer.forgotten,
        order_not_watched: buffer.order_not_watched,
        newer_records: buffer.said.newer,
    }
}

/// Between which sequences nothing may be missing.
///
/// Sequences begin with 1, or, when the buffer was another one, with the first that is seen. Where the beginning is cut
/// off (`--from`, or Kafka has removed old records), it is the lowest sequence whose event arrived after the cut: those
/// before may be among what was not read. The end is what the buffer says it has delivered, or the last event seen;
/// with `--to`, the last one before.
fn judged(buffer: &Buffer, edges: Edges) -> Option<(Sequence, Sequence)> {
    let first = match (edges.from_ms, buffer.said.was) {
        (Some(_), _) => buffer.first_after_from?,
        (None, Some(_)) => buffer.seen.first()?,
        (None, None) => 1,
    };
    let last = match edges.to_ms {
        Some(_) => buffer.last_before_to?,
        None => buffer.seen.last().max(buffer.said.delivered)?,
    };
    let first = first.max(buffer.forgotten.saturating_add(1));
    (first <= last).then_some((first, last))
}

/// Where the missing sequences are entered.
struct Accounts<'a> {
    holes: Vec<Hole>,
    /// Where parked events wait.
    waiting: Vec<(Sequence, Sequence)>,
    delivered: Option<Sequence>,
    /// Held by the gateway, which cannot read them; in order.
    unread: Vec<(Sequence, Sequence)>,
    buffer: &'a Buffer,
    missing: Missing,
    gaps: Vec<(Sequence, Sequence)>,
    gap_count: u64,
}

impl<'a> Accounts<'a> {
    fn of(buffer: &'a Buffer) -> Self {
        let said = &buffer.said;
        Self {
            holes: said.holes(),
            waiting: said.waiting(),
            unread: said.unread(),
            delivered: said.delivered,
            buffer,
            missing: Missing::default(),
            gaps: Vec::new(),
            gap_count: 0,
        }
    }

    /// These did not come.
    fn gap(&mut self, first: Sequence, last: Sequence) {
        let holes = std::mem::take(&mut self.holes);
        let rest = within(
            &holes,
            first,
            last,
            |hole| (hole.first, hole.last),
            |hole, count| {
                let account = match hole.fate {
                    Fate::DeadLettered => &mut self.missing.dead_lettered,
                    Fate::Dropped => &mut self.missing.dropped,
                    Fate::Purged => &mut self.missing.purged,
                    Fate::Lost => &mut self.missing.lost,
                };
                *account = account.saturating_add(count);
            },
        );
        self.holes = holes;
        for (first, last) in rest {
            self.undeclared(first, last);
        }
    }

    /// These are in no declared hole.
    fn undeclared(&mut self, first: Sequence, last: Sequence) {
        let left = self.buffer.not_moved(first, last);
        let not_moved = left.iter().fold(0, |sum: u64, (first, last)| sum.saturating_add(count(*first, *last)));
        let under_new_id = count(first, last).saturating_sub(not_moved);
        self.missing.under_new_id = self.missing.under_new_id.saturating_add(under_new_id);
        for (first, last) in left {
            self.not_moved(first, last);
        }
    }

    /// These are nowhere. Up to the watermark they should be; above it they are on their way.
    fn not_moved(&mut self, first: Sequence, mut last: Sequence) {
        if let Some(delivered) = self.delivered
            && last > delivered
        {
            let coming = count(first.max(delivered.saturating_add(1)), last);
            self.missing.not_yet_delivered = self.missing.not_yet_delivered.saturating_add(coming);
            if first > delivered {
                return;
            }
            last = delivered;
        }
        let unread = std::mem::take(&mut self.unread);
        let rest = within(
            &unread,
            first,
            last,
            |span| *span,
            |_, count| {
                self.missing.unread = self.missing.unread.saturating_add(count);
            },
        );
        self.unread = unread;
        for (first, last) in rest {
            self.readable(first, last);
        }
    }

    /// These are nowhere, and the gateway could read them: they may be parked.
    fn readable(&mut self, first: Sequence, last: Sequence) {
        let waiting = std::mem::take(&mut self.waiting);
        let rest = within(
            &waiting,
            first,
            last,
            |span| *span,
            |_, count| {
                self.missing.waiting = self.missing.waiting.saturating_add(count);
            },
        );
        self.waiting = waiting;
        for (first, last) in rest {
            self.missing.unexplained = self.missing.unexplained.saturating_add(count(first, last));
            self.gap_count += 1;
            if self.gaps.len() < EXAMPLES {
                self.gaps.push((first, last));
            }
        }
    }

    /// No more can wait than the gateway says.
    fn closed(mut self, events_waiting: u64) -> Self {
        let beyond = self.missing.waiting.saturating_sub(events_waiting);
        self.missing.waiting = self.missing.waiting.saturating_sub(beyond);
        self.missing.unexplained = self.missing.unexplained.saturating_add(beyond);
        self.missing.unexplained_beside_waiting = beyond;
        self
    }
}

/// Splits a gap along spans that are in order: `covered` hears how much lies in each, the rest comes back.
fn within<S>(
    spans: &[S],
    first: Sequence,
    last: Sequence,
    ends: impl Fn(&S) -> (Sequence, Sequence),
    mut covered: impl FnMut(&S, u64),
) -> Vec<(Sequence, Sequence)> {
    let mut rest = Vec::new();
    let mut next = first;
    let begin = spans.partition_point(|span| ends(span).1 < first);
    for span in spans.iter().skip(begin) {
        let (from, to) = ends(span);
        if from > last || next > last {
            break;
        }
        if from > next {
            rest.push((next, from.saturating_sub(1)));
        }
        let (from, to) = (from.max(next), to.min(last));
        covered(span, count(from, to));
        next = to.saturating_add(1);
    }
    if next <= last {
        rest.push((next, last));
    }
    rest
}

fn count(first: Sequence, last: Sequence) -> u64 {
    last.saturating_sub(first).saturating_add(1)
}
