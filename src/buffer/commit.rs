//! Where durable becomes true.
//!
//! One transaction holds everything that is queued: settlements, events, QoS 2 packet ids, and the books that follow
//! from them. After its COMMIT has returned (which syncs the log), and nowhere else, a [`Durable`] is made.
//!
//! What is true after a failure:
//! * [`WriteError::Full`]: rolled back. The disk holds what it held before; the batch waits.
//! * any other error: the outcome is unknown. Nothing is acknowledged. The writer opens the database again, and
//!   `Batch::found_on_disk` acknowledges only when the books read back are those of this very transaction.
//!
//! ```compile_fail
//! // An early acknowledgement does not compile: the proof cannot be made outside of the commit.
//! fn forge(receipt: u32) -> tidegate::proofs::Durable<u32> { tidegate::proofs::Durable(receipt) }
//! ```
//! ```
//! // It can only be received, and used up.
//! fn answer(proof: tidegate::proofs::Durable<u32>) -> u32 { proof.into_receipt() }
//! ```
//! ```compile_fail
//! // Nor can one proof answer twice.
//! fn twice(proof: &tidegate::proofs::Durable<u32>) -> tidegate::proofs::Durable<u32> { proof.clone() }
//! ```

use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::mpsc::UnboundedSender;

use super::books::Books;
use super::copies::Tools;
use super::envelope::Sealer;
use super::error::{WriteError, is_full, row_id};
use super::sessions::{self, IdChange, SessionChange};
use super::settle::{Part, Pending};
use super::space::pages_in_use;
use super::statements::Statements;
use crate::event::{Event, Qos, RouteId, Sequence, Stored};
use crate::planted::{Bug, planted};

/// The proof that what came with this receipt is on disk: the synced commit has returned.
#[derive(Debug)]
#[must_use = "the sender waits for its acknowledgement"]
pub struct Durable<R>(R);

impl<R> Durable<R> {
    /// Takes the right to answer out; the proof is used up.
    pub fn into_receipt(self) -> R {
        self.0
    }
}

/// One socket read's worth of work from one connection. Everything in it becomes durable in one commit.
///
/// `R` is the right to answer, which the buffer does not look at: it comes back inside a [`Durable`].
#[derive(Debug)]
pub(crate) struct Arrivals<R> {
    /// In arrival order.
    pub events: Vec<Event>,
    /// QoS 2 packet ids, in the same transaction as the events.
    pub sessions: Vec<SessionChange>,
    /// What the sender may answer once this is durable.
    pub receipt: R,
    /// Where the answer goes. Unbounded in count, bounded by the bytes of `room`.
    pub reply: UnboundedSender<Durable<R>>,
    /// The memory this occupies, given back after the commit. `None` for work without events.
    pub room: Option<Room>,
    /// The sender most likely stands still until this is answered: no commit waits for others with it.
    pub waits: bool,
}

/// Memory that was granted; dropping it gives it back.
#[derive(Debug)]
pub(crate) struct Room(#[expect(dead_code, reason = "held for its Drop")] pub(super) OwnedSemaphorePermit);

/// Arrivals that share the next transaction, in the order they came.
pub(super) struct Batch<R> {
    events: Vec<Stored>,
    raw_bytes: usize,
    sessions: Vec<SessionChange>,
    answers: Vec<Answer<R>>,
    /// A sender of something in it stands still.
    waits: bool,
}

struct Answer<R> {
    receipt: R,
    reply: UnboundedSender<Durable<R>>,
    room: Option<Room>,
}

impl<R> Batch<R> {
    pub(super) fn new() -> Self {
        Self { events: Vec::new(), raw_bytes: 0, sessions: Vec::new(), answers: Vec::new(), waits: false }
    }

    /// Adds one; its events get their sequences, counting from `next` for the first of the batch.
    pub(super) fn add(&mut self, arrivals: Arrivals<R>, next: Sequence) {
        let Arrivals { events, sessions, receipt, reply, room, waits } = arrivals;
        self.waits |= waits;
        let first = self.events.last().map_or(next, |last| last.sequence + 1);
        self.events.reserve(events.len());
        for (sequence, event) in (first..).zip(events) {
            self.raw_bytes += event.topic.len() + event.payload.len();
            self.events.push(Stored { sequence, event });
        }
        self.sessions.extend(sessions);
        self.answers.push(Answer { receipt, reply, room });
    }

    pub(super) fn is_empty(&self) -> bool {
        self.answers.is_empty()
    }

    pub(super) fn events(&self) -> usize {
        self.events.len()
    }

    /// Its events that nobody waits for an answer to, one by one.
    pub(super) fn unanswered(&self) -> impl Iterator<Item = (RouteId, u64)> {
        self.events.iter().filter(|stored| stored.event.qos == Qos::AtMostOnce).map(|stored| (stored.event.route, 1))
    }

    /// Gives up its events, the packet ids that came with them, and their answers. What is left, and takes hardly any
    /// room, is that sessions are forgotten or kept: an old packet id that comes back would swallow a new message.
    pub(super) fn give_up_events(&mut self) {
        self.events.clear();
        self.raw_bytes = 0;
        self.answers.clear();
        for SessionChange { changes, .. } in &mut self.sessions {
            changes.retain(|change| matches!(change, IdChange::Forget | IdChange::Keep(_)));
        }
        self.sessions.retain(|session| !session.changes.is_empty());
    }

    /// Does a sender of something in it stand still?
    pub(super) fn waits(&self) -> bool {
        self.waits
    }

    /// Topics and payloads.
    pub(super) fn raw_bytes(&self) -> usize {
        self.raw_bytes
    }

    /// The highest sequence in it.
    pub(super) fn last(&self) -> Option<Sequence> {
        self.events.last().map(|event| event.sequence)
    }

    /// The transaction. When it returns well, everything in `self` and `settlements` is on disk, acknowledged, and the
    /// events are handed over for the forwarder. Otherwise `books` must be read again, and nothing else has changed.
    pub(super) fn commit(
        &mut self,
        settlements: Option<(&Pending, Part)>,
        books: &mut Books,
        tx: &mut Statements<'_>,
        tools: &mut Tools,
        scratch: &mut Scratch,
    ) -> Result<Vec<Stored>, WriteError> {
        if planted(Bug::AckBeforeCommit) {
            self.answer();
            std::thread::sleep(Duration::from_millis(300));
        }
        tx.begin.execute([])?;
        if let Err(error) = self.write(settlements, books, tx, tools, scratch) {
            return Err(roll_back(error, tx));
        }
        // custody rule 1: with synchronous=FULL this returns when the log is synced.
        // custody rule 6: when it does not return well, its outcome is unknown.
        tx.commit.execute([]).map_err(WriteError::Doubt)?;
        Ok(self.acknowledge())
    }

    /// After a commit in doubt: the books, read again from a log that was written back and synced, are those that
    /// this batch made. So it is durable.
    pub(super) fn found_on_disk(&mut self, on_disk: &Books) -> Vec<Stored> {
        match self.last() {
            // Cannot be, because the transaction's number was the attempted one. Better unanswered than wrong.
            Some(last) if on_disk.next != last + 1 => Vec::new(),
            _ => self.acknowledge(),
        }
    }

    fn write(
        &self,
        settlements: Option<(&Pending, Part)>,
        books: &mut Books,
        tx: &mut Statements<'_>,
        tools: &mut Tools,
        scratch: &mut Scratch,
    ) -> Result<(), WriteError> {
        // Settlements first: the pages they free are there for the events.
        if let Some((pending, part)) = settlements {
            pending.apply(part, tx, books, tools)?;
        }
        self.write_events(books, tx, tools)?;
        sessions::apply(&self.sessions, &mut books.sessions, tx, &mut scratch.raw, &mut scratch.sealer)?;
        books.transaction += 1;
        let body = books.seal(&mut scratch.raw, &mut scratch.sealer)?;
        tx.update_state.execute([body])?;
        // Here and not after the commit, where it would want a lock of its own.
        scratch.pages = pages_in_use(tx)?;
        Ok(())
    }

    fn write_events(&self, books: &mut Books, tx: &mut Statements<'_>, tools: &mut Tools) -> Result<(), WriteError> {
        let mut run: Option<(RouteId, u64)> = None;
        tools.writer.discard();
        for stored in &self.events {
            if tools.writer.push(stored)? {
                insert_chunk(tx, tools)?;
            }
            let route = stored.event.route;
            run = match run {
                Some((same, events)) if same == route => Some((same, events + 1)),
                ended => {
                    book(ended, books);
                    Some((route, 1))
                }
            };
        }
        insert_chunk(tx, tools)?;
        book(run, books);
        if let Some(last) = self.last() {
            books.next = last + 1;
        }
        Ok(())
    }

    /// Called after COMMIT only: answers, and hands the events on.
    fn acknowledge(&mut self) -> Vec<Stored> {
        self.answer();
        self.waits = false;
        self.sessions.clear();
        self.raw_bytes = 0;
        std::mem::take(&mut self.events)
    }

    /// The proofs are made here.
    fn answer(&mut self) {
        for Answer { receipt, reply, room } in self.answers.drain(..) {
            // Who hung up does not need the answer; the event is stored either way, and a repeat is the sender's right.
            if reply.send(Durable(receipt)).is_err() {
                tracing::trace!("the sender of a stored event is gone");
            }
            drop(room);
        }
    }
}

/// Memory for the small blobs of a transaction, used again.
#[derive(Default)]
pub(super) struct Scratch {
    raw: Vec<u8>,
    sealer: Sealer,
    /// That the database uses with it.
    pub(super) pages: u64,
}

fn book(run: Option<(RouteId, u64)>, books: &mut Books) {
    if let Some((route, events)) = run {
        books.ledger.stored(route, events);
    }
}

fn insert_chunk(tx: &mut Statements<'_>, tools: &mut Tools) -> Result<(), WriteError> {
    if let Some((extent, body)) = tools.writer.take()? {
        tx.insert_chunk.execute((row_id(extent.first), row_id(extent.last), extent.oldest_ms, body))?;
    }
    Ok(())
}

/// "No room" before COMMIT leaves nothing in doubt, if the way back worked. All else does.
fn roll_back(error: WriteError, tx: &Statements<'_>) -> WriteError {
    let undone = tx.connection.is_autocommit() || tx.connection.execute_batch("ROLLBACK").is_ok();
    if let WriteError::Doubt(source) = error {
        return if undone && is_full(&source) { WriteError::Full(source) } else { WriteError::Doubt(source) };
    }
    error
}
