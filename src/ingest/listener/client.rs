//! A connected client as a [`Role`] of the connection loop: its session, its place at the listener, and the memory that a
//! large packet of its needs.
//!
//! Who is not read cannot be heard going either. So the socket is looked at each [`TICK`] meanwhile: when the client has
//! closed its side, what it sent before is looked through for its goodbye, and the socket is free.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use tokio::sync::{AcquireError, OwnedSemaphorePermit, oneshot};

use super::registry::Displaced;
use super::remarks::Remark;
use super::session::Session;
use super::shared::{Shared, Word, now};
use crate::buffer::{Durable, Stopped};
use crate::ingest::batch::Batch;
use crate::ingest::close::{Close, Peer};
use crate::ingest::connection::Role;
use crate::ingest::limits::{
    AMPLE_ROOM_BYTES, PACKET_PAUSE, READ_BYTES, SCARCE_READ_BYTES, SLOWEST_BYTES_PER_S, SMALL_PACKET_BYTES, TICK,
};
use crate::ingest::receipt::Receipts;
use crate::ingest::session_intake::{SessionIntake, Submitted};
use crate::ingest::status::LinkStatus;
use crate::ingest::stream::Stream;

/// A connected client.
pub(super) struct Client<'a> {
    session: &'a mut Session,
    displaced: Option<oneshot::Receiver<Displaced>>,
    peer: SocketAddr,
    id: Arc<str>,
    shared: &'a Shared,
    /// Not read for a reason that is ours, since then.
    held: Option<Instant>,
    /// When to look whether the client is there still; `None` while it is read.
    look: Option<Instant>,
    assembly: Assembly,
    /// Said already on this connection.
    remarked: Vec<Remark>,
    /// Not yet told to the session, which still answers.
    stopping: Option<Close>,
}

type Permit = Result<OwnedSemaphorePermit, AcquireError>;

/// Memory for a large packet that is still arriving.
enum Assembly {
    NotNeeded,
    Waiting(Pin<Box<dyn Future<Output = Permit> + Send>>),
    /// For the packet of that number, which must be complete by then.
    Granted {
        packet: u64,
        by: Instant,
        _until_complete: OwnedSemaphorePermit,
    },
}

/// What only a client waits for.
pub(super) enum Own {
    Displaced(Displaced),
    Assembly(Permit),
}

impl<'a> Client<'a> {
    pub(super) fn new(
        session: &'a mut Session,
        displaced: oneshot::Receiver<Displaced>,
        peer: SocketAddr,
        id: Arc<str>,
        shared: &'a Shared,
    ) -> Self {
        Self {
            session,
            displaced: Some(displaced),
            peer,
            id,
            shared,
            held: None,
            look: None,
            assembly: Assembly::NotNeeded,
            remarked: Vec::new(),
            stopping: None,
        }
    }

    /// Asks for memory when a large packet is arriving, and gives it back when it is there.
    fn see_to_memory(&mut self) {
        let unfinished = if self.session.wants_bytes() { self.session.unfinished_bytes() } else { 0 };
        let complete = match self.assembly {
            Assembly::Granted { packet, .. } => packet != self.session.packet_number(),
            Assembly::NotNeeded | Assembly::Waiting(_) => false,
        };
        if unfinished <= SMALL_PACKET_BYTES || complete {
            self.assembly = Assembly::NotNeeded;
        }
        if unfinished > SMALL_PACKET_BYTES && matches!(self.assembly, Assembly::NotNeeded) {
            let semaphore = Arc::clone(&self.shared.assembly);
            // At most max_packet_bytes, which the decoder has seen to, and the semaphore has as many.
            let bytes = u32::try_from(self.session.announced_bytes()).unwrap_or(u32::MAX);
            let bytes = bytes.min(self.shared.policy.max_packet_bytes);
            self.assembly = Assembly::Waiting(Box::pin(semaphore.acquire_many_owned(bytes)));
        }
    }

    /// There is memory for the packet that is arriving.
    fn assemble(&mut self, permit: OwnedSemaphorePermit) -> Assembly {
        let announced = self.session.announced_bytes();
        self.session.expect(announced);
        let seconds = u32::try_from(announced).unwrap_or(u32::MAX) / SLOWEST_BYTES_PER_S;
        let time = PACKET_PAUSE + Duration::from_secs(seconds.into());
        let now = Instant::now();
        let by = now.checked_add(time).unwrap_or(now);
        Assembly::Granted { packet: self.session.packet_number(), by, _until_complete: permit }
    }

    fn look_at_the_clock(
        &mut self,
        now: Instant,
        stream: &mut Stream,
        intake: &mut SessionIntake,
    ) -> Result<(), Stopped> {
        self.session.timed_out(now);
        if self.assembled_by().is_some_and(|by| by <= now) {
            let (arrived, announced) = (self.session.unfinished_bytes(), self.session.announced_bytes());
            self.session.finish(Close::too_slow(arrived, announced));
        }
        self.watch(now, stream, intake)
    }

    /// Looks whether the client is there still, when it is time to. Who is not read is watched.
    fn watch(&mut self, now: Instant, stream: &mut Stream, intake: &mut SessionIntake) -> Result<(), Stopped> {
        if self.look.is_none_or(|look| look > now) || self.ending().is_some() {
            return Ok(());
        }
        self.look = now.checked_add(TICK);
        if stream.has_closed() { self.look_through(stream, intake) } else { Ok(()) }
    }

    /// When the large packet that is arriving must be there.
    fn assembled_by(&self) -> Option<Instant> {
        match self.assembly {
            Assembly::Granted { packet, by, .. } if self.held.is_none() && packet == self.session.packet_number() => {
                Some(by)
            }
            Assembly::Granted { .. } | Assembly::Waiting(_) | Assembly::NotNeeded => None,
        }
    }

    /// The client has gone. All that it sent is in the socket; the kernel's buffer bounds it.
    fn look_through(&mut self, stream: &mut Stream, intake: &mut SessionIntake) -> Result<(), Stopped> {
        while !self.session.is_over() {
            let mut unasked = Batch::default();
            let took = stream.read_shared_now(|bytes| unasked = self.session.look_through(bytes, now()));
            // Of QoS 0 alone: stored if there is room (only memory for a large packet is missing), else counted.
            let _stored: Submitted = intake.submit(&mut unasked)?;
            match took {
                Ok(0) => self.session.finish(Close::Closed),
                Ok(_) => {}
                Err(error) => self.session.finish(Close::Broke(error)),
            }
        }
        Ok(())
    }

    fn remark(&mut self) {
        for (remark, times) in self.session.take_remarks() {
            let status = &self.shared.status;
            let counter = match remark {
                Remark::Subscribed => &status.subscriptions,
                Remark::SubscribeRefused | Remark::TooLarge => &status.refusals,
                Remark::ServerTopic => &status.set_aside,
            };
            LinkStatus::add(counter, times);
            if self.remarked.contains(&remark) {
                continue;
            }
            self.remarked.push(remark);
            let word = Word::Remark { peer: self.peer, client: Arc::clone(&self.id), remark };
            if self.shared.words.try_send(word).is_err() {
                tracing::trace!("the listener is busy; a line of its log is left out");
            }
        }
    }
}

impl Role for Client<'_> {
    type Own = Own;

    const PEER: Peer = Peer::Client;

    fn batch(&mut self) -> &mut Batch {
        &mut self.session.batch
    }

    fn output(&mut self) -> &mut BytesMut {
        &mut self.session.output
    }

    fn listens(&self) -> bool {
        self.held.is_none() && self.session.wants_bytes()
    }

    fn hold(&mut self, full: bool, now: Instant) {
        self.see_to_memory();
        let held = full || matches!(self.assembly, Assembly::Waiting(_));
        if held != self.held.is_some() {
            if let (Some(since), Assembly::Granted { by, .. }) = (self.held, &mut self.assembly) {
                // We did not listen: that is not the client's slowness.
                *by = by.checked_add(now.saturating_duration_since(since)).unwrap_or(*by);
            }
            self.held = held.then_some(now);
            self.session.hold(held, now);
        }
        if self.listens() || self.stopping.is_some() {
            self.look = None;
        } else if self.look.is_none() {
            self.look = now.checked_add(TICK);
        }
    }

    fn due(&self) -> Option<Instant> {
        if self.stopping.is_some() {
            return None;
        }
        [self.session.deadline(), self.assembled_by(), self.look].into_iter().flatten().min()
    }

    fn poll_own(&mut self, cx: &mut Context<'_>) -> Poll<Own> {
        if let Assembly::Waiting(permit) = &mut self.assembly
            && let Poll::Ready(permit) = permit.as_mut().poll(cx)
        {
            return Poll::Ready(Own::Assembly(permit));
        }
        let Some(displaced) = &mut self.displaced else { return Poll::Pending };
        let Poll::Ready(why) = Pin::new(displaced).poll(cx) else { return Poll::Pending };
        // Once only; and when nobody can tell any more, never.
        self.displaced = None;
        why.map_or(Poll::Pending, |why| Poll::Ready(Own::Displaced(why)))
    }

    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut Stream,
        intake: &SessionIntake,
    ) -> Poll<io::Result<usize>> {
        let most = if intake.has_room(AMPLE_ROOM_BYTES) { READ_BYTES } else { SCARCE_READ_BYTES };
        stream.poll_read_shared(cx, most, &mut |bytes| self.session.append(bytes))
    }

    fn apply(&mut self, own: Own, now: Instant) {
        match own {
            // The semaphore is never closed.
            Own::Assembly(permit) => {
                self.assembly = permit.map_or(Assembly::NotNeeded, |permit| self.assemble(permit));
            }
            Own::Displaced(Displaced::ByItself) => self.end(Close::taken_over(), now),
            Own::Displaced(Displaced::ByAnother) => self.end(Close::gave_way(), now),
        }
    }

    fn received(&mut self, bytes: usize, _now: Instant) {
        self.session.received(bytes, now());
    }

    fn sent(&mut self, _now: Instant) {
        if self.session.output.is_empty() {
            // An idle client has no memory for answers.
            self.session.output = BytesMut::new();
        }
    }

    fn durable(&mut self, durable: Durable<Receipts>, _now: Instant) {
        let packets = self.session.durable(durable, now());
        LinkStatus::add(&self.shared.status.acknowledgements, packets);
    }

    fn tick(&mut self, now: Instant, stream: &mut Stream, intake: &mut SessionIntake) -> Result<(), Stopped> {
        let watched = if self.stopping.is_some() { Ok(()) } else { self.look_at_the_clock(now, stream, intake) };
        self.remark();
        watched
    }

    fn end(&mut self, why: Close, _now: Instant) {
        if matches!(why, Close::Stopping) && self.stopping.is_none() {
            // What was read is still stored and answered.
            self.stopping = Some(why);
        } else {
            self.session.finish(why);
        }
    }

    fn ending(&self) -> Option<&Close> {
        self.session.ending().or(self.stopping.as_ref())
    }

    fn write_disconnect(&mut self) {
        if let Some(why) = self.stopping.take() {
            // Where the session has ended otherwise meanwhile, it has said its own.
            self.session.finish(why);
        }
    }
}
