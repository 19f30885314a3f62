//! The way from a connection into the buffer, one batch a socket read.
//!
//! Rules:
//! * A batch is stored as a whole or waits as a whole; while one waits, its connection reads nothing more. That bounds
//!   memory by bytes, whatever number of messages a peer has in flight (custody rule 5).
//! * Room is asked for before anything is queued. When there is none, QoS 0 events are dropped and counted (custody
//!   rule 7: the buffer takes the counts with its next transaction, whatever that is for); the rest waits.
//! * The buffer answers every batch it was given exactly once, in order; [`SessionIntake::outstanding`] counts the open ones.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use tokio::sync::mpsc;

use super::batch::Batch;
use super::receipt::{Answer, Receipts};
use super::standstill::Standstill;
use super::status::LinkStatus;
use super::topics::Topics;
use crate::buffer::{Arrivals, Durable, IdChange, Intake, Room, SessionChange, Stopped};
use crate::event::{Event, RouteId};
use crate::route::Routes;

/// What all connections are given to make their [`SessionIntake`] of.
#[derive(Debug, Clone)]
pub(crate) struct Destination {
    /// To the buffer.
    pub intake: Intake<Receipts>,
    /// The `[[route]]` tables.
    pub routes: Arc<Routes>,
    /// The ledger line of each route, in their order.
    pub route_ids: Arc<[RouteId]>,
}

impl Destination {
    /// A topic cache for one connection.
    #[must_use]
    pub(crate) fn topics(&self, max_bytes: usize) -> Topics {
        Topics::new(Arc::clone(&self.routes), Arc::clone(&self.route_ids), max_bytes)
    }
}

/// One session's way into the buffer.
#[derive(Debug)]
pub(crate) struct SessionIntake {
    intake: Intake<Receipts>,
    session: Arc<str>,
    status: Arc<LinkStatus>,
    reply: mpsc::UnboundedSender<Durable<Receipts>>,
    outstanding: usize,
    standstill: Standstill,
}

/// Where the answers of the buffer arrive. Tell the intake of each one ([`SessionIntake::answered`]).
pub(crate) type Replies = mpsc::UnboundedReceiver<Durable<Receipts>>;

/// What became of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(crate) enum Submitted {
    /// It is queued; the batch is empty now.
    Stored,
    /// No room. Wait for [`SessionIntake::room`], and do not read the socket until then.
    Wait,
}

impl SessionIntake {
    /// `session` is the key of the persistent session: `broker:<name>` or `listen:<name>:<client id>`.
    #[must_use]
    pub(crate) fn new(destination: &Destination, session: Arc<str>, status: Arc<LinkStatus>) -> (Self, Replies) {
        let (reply, replies) = mpsc::unbounded_channel();
        let intake = destination.intake.clone();
        (Self { intake, session, status, reply, outstanding: 0, standstill: Standstill::default() }, replies)
    }

    /// Hands the batch over if there is room.
    ///
    /// # Errors
    /// When the buffer has stopped.
    pub(crate) fn submit(&mut self, batch: &mut Batch) -> Result<Submitted, Stopped> {
        if batch.is_empty() {
            self.count(batch);
            return Ok(Submitted::Stored);
        }
        if let Some(room) = self.intake.try_reserve(batch.cost_bytes()) {
            return self.store(batch, room).map(|()| Submitted::Stored);
        }
        for (route, events) in batch.drop_unanswered() {
            LinkStatus::add(&self.status.dropped, events);
            self.intake.dropped(route, events);
        }
        if batch.is_empty() {
            self.count(batch);
            return Ok(Submitted::Stored);
        }
        Ok(Submitted::Wait)
    }

    /// Is there room for that many bytes now?
    #[must_use]
    pub(crate) fn has_room(&self, bytes: usize) -> bool {
        self.intake.has_room(bytes)
    }

    /// Room for that batch. The future owns what it needs: keep it beside the intake and poll it with the rest.
    ///
    /// # Errors
    /// When the buffer has stopped.
    pub(crate) fn room(&self, batch: &Batch) -> impl Future<Output = Result<Room, Stopped>> + Send + use<> {
        let intake = self.intake.clone();
        let bytes = batch.cost_bytes();
        async move { intake.reserve(bytes).await }
    }

    /// Hands the batch over into the room that was waited for.
    ///
    /// # Errors
    /// When the buffer has stopped.
    pub(crate) fn store(&mut self, batch: &mut Batch, room: Room) -> Result<(), Stopped> {
        self.count(batch);
        let Batch { events, changes, receipts, .. } = std::mem::take(batch);
        let sessions = if changes.is_empty() {
            Vec::new()
        } else {
            vec![SessionChange { session: Arc::clone(&self.session), changes }]
        };
        self.send(events, sessions, receipts, Some(room))
    }

    /// What the end of a session changes. Takes no room: it is small, and there is at most one of it for each session
    /// that the buffer was told of before; so it reaches the buffer also when that is full.
    ///
    /// # Errors
    /// When the buffer has stopped.
    pub(crate) fn announce(&mut self, changes: Vec<IdChange>) -> Result<(), Stopped> {
        if changes.is_empty() {
            return Ok(());
        }
        let change = SessionChange { session: Arc::clone(&self.session), changes };
        self.send(Vec::new(), vec![change], Receipts::new(), None)
    }

    /// What is to be remembered beside the session, under keys of their own. Takes no room either: there is at most one
    /// of it for each filter of a link and each connection.
    ///
    /// # Errors
    /// When the buffer has stopped.
    pub(crate) fn note(&mut self, notes: Vec<(Arc<str>, IdChange)>) -> Result<(), Stopped> {
        if notes.is_empty() {
            return Ok(());
        }
        let changes = notes.into_iter().map(|(session, change)| SessionChange { session, changes: vec![change] });
        self.send(Vec::new(), changes.collect(), Receipts::new(), None)
    }

    /// The buffer has answered a batch.
    pub(crate) fn answered(&mut self) {
        self.outstanding -= 1;
        self.standstill.answered(Instant::now());
    }

    /// Batches that the buffer has not answered yet.
    #[must_use]
    pub(crate) fn outstanding(&self) -> usize {
        self.outstanding
    }

    fn send(
        &mut self,
        events: Vec<Event>,
        sessions: Vec<SessionChange>,
        receipt: Receipts,
        room: Option<Room>,
    ) -> Result<(), Stopped> {
        let stands_still = self.standstill.read(receipt.len(), Instant::now());
        let waits = stands_still || receipt.iter().any(|receipt| receipt.answer() == Answer::Proceed);
        self.intake.store(Arrivals { events, sessions, receipt, reply: self.reply.clone(), room, waits })?;
        self.outstanding += 1;
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;
    use std::time::Duration;

    use bytes::BytesMut;

    use super::*;
    use crate::buffer::Buffer;
    use crate::clock::Moment;
    use crate::ingest::acker::Acker;
    use crate::ingest::codec::{self, Packet};
    use crate::ingest::receipt::Epoch;
    use crate::ingest::unreleased::Unreleased;
    use crate::observe::pulse::Pulse;
    use crate::settings::machine::BufferKeys;
    use crate::settings::{self, MqttVersion};

    fn settings() -> settings::Buffer {
        settings::Buffer {
            max_bytes: 64 << 20,
            ..settings::example(BufferKeys::TABLE, BufferKeys::read).complete(Duration::ZERO).unwrap()
        }
    }

    /// One of QoS 0, one of QoS 1, one of QoS 2, the last of them twice.
    fn batch(epoch: Epoch, topics: &mut Topics) -> Batch {
        let mut unreleased = Unreleased::default();
        let mut bytes =
            BytesMut::from(&b"\x30\x04\0\x01ta\x32\x06\0\x01t\0\x01b\x34\x06\0\x01t\0\x02c\x3c\x06\0\x01t\0\x02c"[..]);
        let mut batch = Batch::default();
        while let Some(packet) = codec::decode(MqttVersion::V311, &mut bytes, 1000).unwrap() {
            let Packet::Publish(publish) = packet else { panic!("{packet:?}") };
            batch.publish(epoch, publish, Moment::default(), topics, &mut unreleased);
        }
        batch
    }

    #[tokio::test]
    async fn without_room_qos_0_is_dropped_and_on_the_books_and_the_rest_waits() {
        let folder = tempfile::tempdir().unwrap();
        let (buffer, recovered) = Buffer::open(settings(), folder.path(), &[]).unwrap();
        let running = buffer.start::<Receipts>(Pulse::new()).unwrap();
        let destination =
            Destination { intake: running.intake.clone(), routes: Arc::default(), route_ids: recovered.routes.into() };
        let status = Arc::new(LinkStatus::new("b", "broker"));
        let (mut intake, mut replies) = SessionIntake::new(&destination, "broker:b".into(), Arc::clone(&status));
        let acker = Acker::new(Epoch::next(), MqttVersion::V311);
        let mut batch = batch(acker.epoch(), &mut destination.topics(1000));

        let everything = running.intake.try_reserve(usize::MAX).expect("an empty buffer has room");
        assert_eq!(intake.submit(&mut batch), Ok(Submitted::Wait));
        assert_eq!(status.dropped.load(Ordering::Relaxed), 1);
        assert_eq!(intake.outstanding(), 0, "nothing is queued without room");
        let room = intake.room(&batch);
        drop(everything);
        intake.store(&mut batch, room.await.unwrap()).unwrap();
        assert!(batch.is_empty());
        assert_eq!((intake.outstanding(), status.messages.load(Ordering::Relaxed)), (1, 4));

        let mut out = BytesMut::new();
        let acknowledged = acker.acknowledge(replies.recv().await.unwrap(), &mut out);
        intake.answered();
        assert_eq!((acknowledged.packets, intake.outstanding()), (3, 0));
        assert_eq!(&out[..], b"\x40\x02\0\x01\x50\x02\0\x02\x50\x02\0\x02");

        drop((intake, destination, running.intake, running.settler));
        running.thread.join().unwrap();
        let (_, recovered) = Buffer::open(settings(), folder.path(), &[]).unwrap();
        assert_eq!(recovered.sessions["broker:b"].packet_ids.keys().copied().collect::<Vec<_>>(), [2]);
        let books = running.status.borrow().clone();
        let line = &books.ledger[0].1;
        assert_eq!((line.received, line.dropped, line.held), (3, 1, 2));
    }
}
