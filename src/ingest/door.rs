//! The way from a connection into the buffer, one batch a socket read.
//!
//! Rules:
//! * A batch is stored as a whole or waits as a whole; while one waits, its connection reads nothing more. That bounds
//!   memory by bytes, whatever number of messages a peer has in flight.
//! * Room is asked for before anything is queued. When there is none, QoS 0 events are dropped and counted (custody
//!   rule 7: the count goes into the ledger with the next batch, or with [`Door::report_dropped`]); the rest waits.
//! * The buffer answers every batch it was given exactly once, in order; [`Door::outstanding`] counts the open ones.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use tokio::sync::mpsc;

use super::batch::{self, Batch};
use super::receipt::Receipts;
use super::status::LinkStatus;
use super::topics::Topics;
use crate::buffer::{Arrivals, Durable, Intake, Room, SessionChange, Stopped};
use crate::event::{Event, RouteId};
use crate::route::Routes;

/// What all connections are given to make their doors of.
#[derive(Debug, Clone)]
pub struct Entrance {
    /// To the buffer.
    pub intake: Intake<Receipts>,
    /// The `[[route]]` tables.
    pub routes: Arc<Routes>,
    /// The ledger line of each route, in their order.
    pub route_ids: Arc<[RouteId]>,
}

impl Entrance {
    /// A topic cache for one connection.
    #[must_use]
    pub fn topics(&self, max_bytes: usize) -> Topics {
        Topics::new(Arc::clone(&self.routes), Arc::clone(&self.route_ids), max_bytes)
    }
}

/// One session's way into the buffer.
#[derive(Debug)]
pub struct Door {
    intake: Intake<Receipts>,
    session: Arc<str>,
    status: Arc<LinkStatus>,
    reply: mpsc::UnboundedSender<Durable<Receipts>>,
    dropped: Vec<(RouteId, u64)>,
    outstanding: usize,
}

/// Where the answers of the buffer arrive. Tell the door of each one ([`Door::answered`]).
pub type Replies = mpsc::UnboundedReceiver<Durable<Receipts>>;

/// What became of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Submitted {
    /// It is queued; the batch is empty now.
    Stored,
    /// No room. Wait for [`Door::room`], and do not read the socket until then.
    Wait,
}

impl Door {
    /// `session` is the key of the persistent session: `broker:<name>` or `listen:<name>:<client id>`.
    #[must_use]
    pub fn new(entrance: &Entrance, session: Arc<str>, status: Arc<LinkStatus>) -> (Self, Replies) {
        let (reply, replies) = mpsc::unbounded_channel();
        let intake = entrance.intake.clone();
        (Self { intake, session, status, reply, dropped: Vec::new(), outstanding: 0 }, replies)
    }

    /// Hands the batch over if there is room.
    ///
    /// # Errors
    /// When the buffer has stopped.
    pub fn submit(&mut self, batch: &mut Batch) -> Result<Submitted, Stopped> {
        if batch.is_empty() {
            self.count(batch);
            return Ok(Submitted::Stored);
        }
        if let Some(room) = self.intake.try_reserve(batch.cost_bytes()) {
            return self.store(batch, room).map(|()| Submitted::Stored);
        }
        for (route, events) in batch.drop_unanswered() {
            LinkStatus::add(&self.status.dropped, events);
            batch::count(&mut self.dropped, route, events);
        }
        if batch.is_empty() {
            self.count(batch);
            return Ok(Submitted::Stored);
        }
        Ok(Submitted::Wait)
    }

    /// Room for that batch. The future owns what it needs: keep it beside the door and poll it with the rest.
    ///
    /// # Errors
    /// When the buffer has stopped.
    pub fn room(&self, batch: &Batch) -> impl Future<Output = Result<Room, Stopped>> + Send + use<> {
        let intake = self.intake.clone();
        let bytes = batch.cost_bytes();
        async move { intake.reserve(bytes).await }
    }

    /// Hands the batch over into the room that was waited for.
    ///
    /// # Errors
    /// When the buffer has stopped.
    pub fn store(&mut self, batch: &mut Batch, room: Room) -> Result<(), Stopped> {
        self.count(batch);
        let Batch { events, changes, receipts, .. } = std::mem::take(batch);
        let sessions = if changes.is_empty() {
            Vec::new()
        } else {
            vec![SessionChange { session: Arc::clone(&self.session), changes }]
        };
        self.send(events, sessions, receipts, Some(room))
    }

    /// Tells the ledger of QoS 0 events that were dropped, if no batch has done so. Call it about once a second: at
    /// most one such report is on its way at a time.
    ///
    /// # Errors
    /// When the buffer has stopped.
    pub fn report_dropped(&mut self) -> Result<(), Stopped> {
        if self.dropped.is_empty() || self.outstanding > 0 {
            return Ok(());
        }
        self.send(Vec::new(), Vec::new(), Vec::new(), None)
    }

    /// QoS 0 events were dropped of which the ledger was not told. Whoever closes the door tells it first.
    #[must_use]
    pub fn owes_report(&self) -> bool {
        !self.dropped.is_empty()
    }

    /// The buffer has answered a batch.
    pub fn answered(&mut self) {
        self.outstanding = self.outstanding.saturating_sub(1);
    }

    /// Batches that the buffer has not answered yet.
    #[must_use]
    pub fn outstanding(&self) -> usize {
        self.outstanding
    }

    /// Counters of this link.
    #[must_use]
    pub fn status(&self) -> &Arc<LinkStatus> {
        &self.status
    }

    fn send(
        &mut self,
        events: Vec<Event>,
        sessions: Vec<SessionChange>,
        receipt: Receipts,
        room: Option<Room>,
    ) -> Result<(), Stopped> {
        let dropped = std::mem::take(&mut self.dropped);
        self.intake.store(Arrivals { events, sessions, dropped, receipt, reply: self.reply.clone(), room })?;
        self.outstanding = self.outstanding.saturating_add(1);
        Ok(())
    }

    fn count(&self, batch: &mut Batch) {
        add(&self.status.messages, &mut batch.messages);
        add(&self.status.payload_bytes, &mut batch.payload_bytes);
        add(&self.status.repeats, &mut batch.repeats);
    }
}

/// Moves a count of a batch to the link's counter.
fn add(total: &AtomicU64, counted: &mut u64) {
    if *counted > 0 {
        LinkStatus::add(total, std::mem::take(counted));
    }
}
