//! Parked readings follow the configuration.
//!
//! What waits in a lane was parked for the Kafka topic that an earlier configuration has made. When that was mistyped, or
//! stays missing, the operator changes the route, or writes a `[[redirect]]`; then, at the next start, what waits goes
//! where it should: into the lane of its present topic, which is tried at once, or to the dead letters.
//!
//! * **In order.** All events of an MQTT topic are in one lane. While lanes are looked through nothing is sent, so no newer
//!   event of an MQTT topic can come before an older one that moves.
//! * **Once.** A lane may hold what Kafka has already: a crash came between the commit and the buffer's settlement. With
//!   transactions, what Kafka's watermark covers stays in its lane, where the next try settles it.
//! * **Bounded.** Events move chunk by chunk, each move one transaction, as many under way as there may be
//!   (`moves.rs`). A crash in between leaves some moved and some not; the next start goes on, because the mark of the
//!   configuration is written last.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use super::custody::{Custody, Stand};
use crate::buffer::{DeadLetter, LaneChunk, LaneId, LaneMove, OVERFLOW, Parked, ReadError};
use crate::delivered::CommittedWatermark;
use crate::event::{Sequence, Stored};
use crate::route::NoTarget;

/// Chunks looked through in one turn of the loop, 256 KiB each at most: a millisecond each.
const CHUNKS_A_TURN: usize = 16;

/// See the documentation of the module.
#[derive(Debug)]
pub(super) struct Relocation {
    lanes: VecDeque<(LaneId, Arc<str>)>,
    /// Of the configuration that they are brought in line with.
    mark: u64,
    /// With transactions: what Kafka has of them; `None` as long as that is not known.
    watermarks: Option<HashMap<String, CommittedWatermark>>,
    /// The lane in work.
    lane: Progress,
    is_over: bool,
}

/// How far a lane was looked through.
#[derive(Debug, Default)]
struct Progress {
    /// Kafka's watermark, and the chunk that holds the last event that it speaks of.
    vouched: Option<(i64, CommittedWatermark)>,
    /// It was looked for, at the lane's beginning.
    is_vouched_known: bool,
    after: i64,
    moved: u64,
    given_up: u64,
    stayed: u64,
}

/// What becomes of an event.
enum Place {
    Stays,
    Goes(Arc<str>),
    GivenUp(String),
}

impl Relocation {
    /// Of lanes that hold events. `ask`: Kafka's watermark about them comes first.
    pub(super) fn new(lanes: &[(LaneId, Arc<str>)], mark: u64, ask: bool) -> Self {
        let watermarks = (!ask).then(HashMap::new);
        Self { lanes: lanes.iter().cloned().collect(), mark, watermarks, lane: Progress::default(), is_over: false }
    }

    /// Nothing to do.
    pub(super) fn none() -> Self {
        Self { is_over: true, ..Self::new(&[], 0, false) }
    }

    /// Is nothing to be sent yet?
    pub(super) fn is_under_way(&self) -> bool {
        !self.is_over
    }

    /// What Kafka has of the lanes, once that is known.
    pub(super) fn hears(&mut self, watermarks: &mut Option<HashMap<String, CommittedWatermark>>) {
        if self.watermarks.is_none() {
            self.watermarks = watermarks.take();
        }
    }

    /// Does what can be done now without waiting.
    pub(super) fn step(&mut self, custody: &mut Custody, now: Instant) -> Result<(), ReadError> {
        if self.is_over || self.watermarks.is_none() {
            return Ok(());
        }
        for _ in 0..CHUNKS_A_TURN {
            let Some((lane, topic)) = self.lanes.front().cloned() else { return self.finish(custody, now) };
            if !custody.fates_have_room() {
                return Ok(());
            }
            let last = self.vouched(lane, &topic, custody)?;
            match custody.reader.parked(lane, self.lane.after) {
                Ok(Some(chunk)) => self.look_through(lane, &topic, chunk, last, custody, now),
                Ok(None) => self.lane_done(&topic, custody),
                Err(error @ ReadError::Damaged { .. }) => {
                    self.lane.stayed += 1;
                    return Err(error);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Up to which sequence in up to which chunk Kafka has this lane; nothing of another's watermark.
    fn vouched(
        &mut self,
        lane: LaneId,
        topic: &Arc<str>,
        custody: &mut Custody,
    ) -> Result<Option<(i64, Sequence)>, ReadError> {
        if !self.lane.is_vouched_known {
            let watermark = self.watermarks.as_mut().and_then(|watermarks| watermarks.remove(&**topic));
            let chunk = watermark
                .as_ref()
                .map(|watermark| custody.reader.parked_at(lane, watermark.through()))
                .transpose()?
                .flatten();
            self.lane.vouched = chunk.zip(watermark);
            self.lane.is_vouched_known = true;
        }
        Ok(self.lane.vouched.as_ref().map(|(chunk, watermark)| (*chunk, watermark.through())))
    }

    fn look_through(
        &mut self,
        lane: LaneId,
        topic: &Arc<str>,
        LaneChunk { id, events }: LaneChunk,
        vouched: Option<(i64, Sequence)>,
        custody: &mut Custody,
        now: Instant,
    ) {
        self.lane.after = id;
        let is_vouched =
            |stored: &Stored| vouched.is_some_and(|(last, through)| id <= last && stored.sequence <= through);
        let mut moved = LaneMove { lane, chunk: id, parked: Vec::new(), dead: Vec::new() };
        for stored in &events {
            let place = if is_vouched(stored) { Place::Stays } else { place(topic, stored, custody) };
            let (sequence, route, bytes) = (stored.sequence, stored.event.route, stored.event.cost_bytes());
            match place {
                Place::Stays => {
                    self.lane.stayed += 1;
                    continue;
                }
                Place::Goes(kafka_topic) => {
                    if &*kafka_topic == OVERFLOW {
                        custody.shut_overflow(now);
                    } else {
                        custody.park_quietly(&kafka_topic, "its readings were parked for another topic before", now);
                    }
                    custody.parking.parked_one(&kafka_topic);
                    custody.declare_lane(&kafka_topic);
                    moved.parked.push(Parked { sequence, kafka_topic });
                }
                Place::GivenUp(reason) => {
                    let letter = DeadLetter { sequence, route, kafka_topic: Arc::clone(topic), reason };
                    custody.count_dead(&letter, &stored.event.topic, now);
                    custody.declare_dead(&letter);
                    moved.dead.push(letter);
                }
            }
            custody.moves.add(bytes);
        }
        let (parked, dead) = (moved.parked.len(), moved.dead.len());
        if parked + dead > 0 {
            self.lane.moved += u64::try_from(parked).unwrap_or(u64::MAX);
            self.lane.given_up += u64::try_from(dead).unwrap_or(u64::MAX);
            custody.declare_lane(topic);
            custody.settlement.admitted(custody.admission.take_fresh(), now);
            custody.settlement.lane_move(moved, now);
        }
    }

    fn lane_done(&mut self, topic: &Arc<str>, custody: &mut Custody) {
        self.lanes.pop_front();
        let Progress { moved, given_up, stayed, vouched, .. } = std::mem::take(&mut self.lane);
        if moved + given_up > 0 {
            tracing::info!(
                topic = &**topic,
                moved,
                given_up,
                stayed,
                "kafka: the new configuration sends readings that waited for this topic elsewhere"
            );
        }
        if stayed == 0 {
            // So that the watermark topic hears that nothing waits there any more.
            let through = vouched.map_or(0, |(_, watermark)| watermark.through());
            let stand = Stand { delivered: through, has_holes: false };
            custody.lanes_delivered.insert(Arc::clone(topic), stand);
            custody.parking.forget(topic);
            custody.changed = true;
        }
    }

    /// All moves are on disk before anything is sent: what is sent next may be newer.
    fn finish(&mut self, custody: &mut Custody, now: Instant) -> Result<(), ReadError> {
        if custody.moves_are_durable().map_err(|_stopped| ReadError::Stopped)? {
            custody.settlement.lanes_are_in_line(self.mark, now);
            custody.is_on_hold = false;
            // What still waits beyond the limit must not be overtaken.
            let waits = custody.settler.lane(OVERFLOW).is_some();
            custody.admission.open(!waits);
            self.is_over = true;
        }
        Ok(())
    }
}

/// Where the configuration wants an event that waits for `topic`.
fn place(topic: &Arc<str>, stored: &Stored, custody: &mut Custody) -> Place {
    let found = match custody.targets.find(&stored.event) {
        Ok(known) => Ok((Arc::clone(&known.target.topic), known.target.is_fixed)),
        Err(given_up @ NoTarget::GivenUp(_)) => Err(given_up),
        Err(NoTarget::NoRoute | NoTarget::IllegalTopic(_) | NoTarget::Reserved) if &**topic == OVERFLOW => {
            return Place::Stays;
        }
        // No verdict over what is held: it goes on waiting for the topic that it was parked for.
        Err(NoTarget::NoRoute | NoTarget::IllegalTopic(_) | NoTarget::Reserved) => {
            custody.targets.routes().redirected(topic).map(|topic| (topic, true))
        }
    };
    match found {
        Ok((wanted, _)) if wanted == *topic => Place::Stays,
        Ok((wanted, is_fixed)) if is_fixed || custody.admission.admits(&wanted) => Place::Goes(wanted),
        Ok(_) if &**topic == OVERFLOW => Place::Stays,
        Ok(_) => Place::Goes(Arc::from(OVERFLOW)),
        Err(given_up) => Place::GivenUp(given_up.to_string()),
    }
}
