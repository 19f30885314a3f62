//! What waits for the buffer thread: arrivals from ingest, settlements from forward.

use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::Arrivals;
use super::books::Books;
use super::commit::Batch;
use super::intake::{Drops, Nap};
use super::settle::Pending;
use super::settlement::{Settlement, Ticket};

/// The thread's ends of both queues, and what was taken from them for the next transaction.
pub(super) struct Inbox<R> {
    arrivals: Receiver<Arrivals<R>>,
    settlements: Receiver<(Ticket, Settlement)>,
    doors: Weak<()>,
    settler_gone: bool,
    pub(super) batch: Batch<R>,
    pub(super) pending: Pending,
    drops: Arc<Drops>,
    nap: Arc<Nap>,
    /// Settlements in a transaction whose outcome is unknown. While there are some, the batch does not grow either:
    /// what is found on disk later must be exactly what was attempted.
    doubtful: Option<Pending>,
}

impl<R> Inbox<R> {
    pub(super) fn new(
        arrivals: Receiver<Arrivals<R>>,
        doors: Weak<()>,
        settlements: Receiver<(Ticket, Settlement)>,
        (drops, nap): (Arc<Drops>, Arc<Nap>),
    ) -> Self {
        Self {
            arrivals,
            settlements,
            doors,
            settler_gone: false,
            batch: Batch::new(),
            pending: Pending::default(),
            drops,
            nap,
            doubtful: None,
        }
    }

    /// Waits that long for something to do, unless there is something. True when nothing came.
    pub(super) fn wait(&mut self, wait: Duration, full: bool, books: &Books) -> bool {
        let mut quiet = false;
        if full || self.ingest_gone() {
            quiet = !self.wait_for_settlement(wait, books);
        } else if self.batch.is_empty() {
            match self.arrivals.recv_timeout(wait) {
                Ok(arrivals) => self.batch.add(arrivals, books.next),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => quiet = true,
            }
        }
        let arrived = self.take_arrivals(books);
        self.take_settlements(books);
        self.pending.drop_events(self.drops.take());
        quiet && arrived == 0
    }

    /// The end, and no room for what is left: it was never acknowledged. Whoever waits for an answer will send it
    /// again; QoS 0 is booked as dropped. What was said of whole sessions stays in the batch.
    pub(super) fn give_up_events(&mut self) {
        let events = self.batch.events();
        if events > 0 {
            tracing::warn!(
                events,
                "buffer: it was full when the agent stopped; these readings are not stored, and \
                 they were not acknowledged"
            );
        }
        self.pending.drop_events(self.batch.unanswered());
        self.batch.give_up_events();
    }

    /// Takes what has arrived; how many.
    pub(super) fn take_arrivals(&mut self, books: &Books) -> usize {
        let mut taken = 0_usize;
        while let Ok(arrivals) = self.arrivals.try_recv() {
            self.batch.add(arrivals, books.next);
            taken += 1;
        }
        taken
    }

    /// Is there something that a commit does not wait longer with? `for_all`: also for senders that stand still.
    pub(super) fn ends_a_wait(&self, enough: usize, for_all: bool) -> bool {
        !for_all && self.batch.waits() || self.batch.raw_bytes() >= enough || self.ingest_gone()
    }

    /// Lets the batch grow for so long; ends early when one of its senders stands still, when there is enough, or when nobody can
    /// send any more. How many joined it.
    pub(super) fn gather(&mut self, longest: Duration, enough: usize, for_all: bool, books: &Books) -> usize {
        let start = Instant::now();
        self.nap.begin();
        let mut joined = self.take_arrivals(books);
        loop {
            let left = longest.saturating_sub(start.elapsed());
            if left.is_zero() || self.ends_a_wait(enough, for_all) {
                break;
            }
            self.nap.sleep(left);
            self.nap.begin();
            joined += self.take_arrivals(books);
        }
        self.nap.end();
        joined
    }

    /// Waits for a settlement without touching the arrivals; true when one came.
    pub(super) fn wait_for_settlement(&mut self, wait: Duration, books: &Books) -> bool {
        if self.settler_gone {
            std::thread::sleep(wait);
            return false;
        }
        match self.settlements.recv_timeout(wait) {
            Ok((ticket, settlement)) => {
                self.pending.add(ticket, settlement, books, self.doubtful.as_ref());
                self.take_settlements(books);
                true
            }
            Err(RecvTimeoutError::Timeout) => false,
            Err(RecvTimeoutError::Disconnected) => {
                self.settler_gone = true;
                false
            }
        }
    }

    /// A transaction of batch and pending settlements failed, and nobody knows how.
    pub(super) fn doubt(&mut self) {
        self.doubtful = Some(std::mem::take(&mut self.pending));
    }

    /// It did not happen.
    pub(super) fn undone(&mut self) {
        if let Some(mut doubtful) = self.doubtful.take() {
            doubtful.absorb(std::mem::take(&mut self.pending));
            self.pending = doubtful;
        }
    }

    /// It did happen, and only what frees room was in it.
    pub(super) fn half_done(&mut self) {
        if let Some(doubtful) = &mut self.doubtful {
            doubtful.forget_releases();
        }
        self.undone();
    }

    /// It did happen: what was in it.
    pub(super) fn done(&mut self) -> Pending {
        self.doubtful.take().unwrap_or_default()
    }

    /// Nobody can send arrivals any more, and all that were sent are in the batch.
    pub(super) fn ingest_gone(&self) -> bool {
        self.doors.strong_count() == 0
    }

    /// Nobody can send anything any more.
    pub(super) fn closed(&self) -> bool {
        self.ingest_gone() && self.settler_gone
    }

    fn take_settlements(&mut self, books: &Books) {
        loop {
            match self.settlements.try_recv() {
                Ok((ticket, settlement)) => self.pending.add(ticket, settlement, books, self.doubtful.as_ref()),
                Err(TryRecvError::Empty) => return,
                Err(TryRecvError::Disconnected) => {
                    self.settler_gone = true;
                    return;
                }
            }
        }
    }
}
