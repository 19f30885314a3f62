//! The loop of one connection between a socket, a [`Session`] and the buffer's door.
//!
//! It reads only when it could do something with the bytes: a batch that waits for room in the buffer, a large packet
//! that waits for memory, and a client that does not take its answers all stop it; TCP then stops the client. One read
//! gives one batch, and all that the buffer has answered meanwhile leaves in one write.
//!
//! Who is not read cannot be heard going either. So the socket is looked at each [`TICK`] meanwhile: when the client has
//! closed its side, what it sent before is looked through for its goodbye, and the socket is free.

use std::future::{self, Future};
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Buf, BytesMut};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::sync::{AcquireError, OwnedSemaphorePermit, oneshot};
use tokio::time::{Sleep, sleep};

use super::connection::{Shared, Word, now};
use super::registry::Displaced;
use super::remarks::Remark;
use super::session::Session;
use super::socket::{has_closed, read, try_read};
use crate::buffer::{Durable, Room, Stopped};
use crate::ingest::batch::Batch;
use crate::ingest::close::Close;
use crate::ingest::door::{Door, Replies, Submitted};
use crate::ingest::limits::{
    AMPLE_ROOM_BYTES, PACKET_PAUSE, READ_BYTES, SCARCE_READ_BYTES, SLOWEST_BYTES_PER_S, SMALL_PACKET_BYTES,
    STOP_TIMEOUT, TICK,
};
use crate::ingest::receipt::Receipts;
use crate::ingest::status::LinkStatus;
use crate::planted::{Bug, planted};
use crate::stop::Stop;

/// A connected client.
pub(super) struct Link<'a> {
    session: &'a mut Session,
    door: &'a mut Door,
    replies: &'a mut Replies,
    displaced: Option<oneshot::Receiver<Displaced>>,
    peer: SocketAddr,
    client: Arc<str>,
    shared: &'a Shared,
    /// Not read for a reason that is ours, since then.
    held: Option<Instant>,
    /// When to look whether the client is there still; `None` while it is read.
    look: Option<Instant>,
    room: Option<Wait<Result<Room, Stopped>>>,
    assembly: Assembly,
    /// Said already on this connection.
    remarked: Vec<Remark>,
    stopping: bool,
}

type Wait<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Memory for a large packet that is still arriving.
enum Assembly {
    NotNeeded,
    Waiting(Wait<Result<OwnedSemaphorePermit, AcquireError>>),
    /// For the packet of that number, which must be complete by then.
    Granted {
        packet: u64,
        by: Instant,
        _until_complete: OwnedSemaphorePermit,
    },
}

/// What woke the loop.
enum Woken {
    Committed(Durable<Receipts>),
    Room(Result<Room, Stopped>),
    Assembly(Result<OwnedSemaphorePermit, AcquireError>),
    Read(io::Result<usize>),
    Writable(io::Result<()>),
    Displaced(Displaced),
    Stop,
    Timer,
}

impl<'a> Link<'a> {
    pub(super) fn new(
        session: &'a mut Session,
        door: &'a mut Door,
        replies: &'a mut Replies,
        displaced: oneshot::Receiver<Displaced>,
        peer: SocketAddr,
        client: Arc<str>,
        shared: &'a Shared,
    ) -> Self {
        Self {
            session,
            door,
            replies,
            displaced: Some(displaced),
            peer,
            client,
            shared,
            held: None,
            look: None,
            room: None,
            assembly: Assembly::NotNeeded,
            remarked: Vec::new(),
            stopping: false,
        }
    }

    /// Until the session is over.
    ///
    /// # Errors
    /// When the buffer has stopped.
    pub(super) async fn serve(&mut self, stream: &mut TcpStream) -> Result<(), Stopped> {
        let (mut reader, writer) = stream.split();
        let mut stop = self.shared.stop.clone();
        let mut timer = pin!(sleep(Duration::ZERO));
        loop {
            self.submit()?;
            self.write(&writer);
            self.remark();
            if self.session.is_over() {
                return Ok(());
            }
            if self.stopping && self.room.is_none() && self.door.outstanding() == 0 {
                // All that was read is on disk and acknowledged.
                self.session.finish(Close::Stopping);
                continue;
            }
            self.hold();
            self.watch();
            let may_time_out = self.arm(timer.as_mut());
            let woken = self.wait(&mut reader, &writer, &mut stop, timer.as_mut(), may_time_out).await;
            let timer_fired = matches!(woken, Woken::Timer);
            self.apply(woken, timer.as_mut())?;
            if timer_fired {
                self.look(&reader).await?;
            }
        }
    }

    async fn wait(
        &mut self,
        reader: &mut ReadHalf<'_>,
        writer: &WriteHalf<'_>,
        stop: &mut Stop,
        timer: Pin<&mut Sleep>,
        may_time_out: bool,
    ) -> Woken {
        let may_read = self.listens();
        let has_answers = !self.session.output.is_empty();
        let most = if self.door.has_room(AMPLE_ROOM_BYTES) { READ_BYTES } else { SCARCE_READ_BYTES };
        let session = &mut *self.session;
        // In this order: what frees memory comes before what takes more.
        tokio::select! {
            biased;
            () = stop.wait(), if !self.stopping => Woken::Stop,
            Some(durable) = self.replies.recv() => Woken::Committed(durable),
            room = until(&mut self.room) => Woken::Room(room),
            permit = self.assembly.granted() => Woken::Assembly(permit),
            ready = writer.writable(), if has_answers => Woken::Writable(ready),
            why = told(&mut self.displaced) => Woken::Displaced(why),
            took = read(reader, most, |bytes| session.received(bytes, now())), if may_read => Woken::Read(took),
            () = timer, if may_time_out => Woken::Timer,
        }
    }

    /// No waiting and no way to fail but a stopped buffer.
    fn apply(&mut self, woken: Woken, mut timer: Pin<&mut Sleep>) -> Result<(), Stopped> {
        match woken {
            Woken::Committed(durable) => {
                self.answer(durable);
                while let Ok(durable) = self.replies.try_recv() {
                    self.answer(durable);
                }
            }
            Woken::Room(room) => {
                self.room = None;
                self.door.store(&mut self.session.batch, room?)?;
            }
            Woken::Assembly(permit) => {
                // The semaphore is never closed.
                self.assembly = permit.map_or(Assembly::NotNeeded, |permit| self.assemble(permit));
            }
            Woken::Read(Ok(0)) => self.session.finish(Close::Closed),
            Woken::Read(Ok(_)) | Woken::Writable(Ok(())) => {}
            Woken::Read(Err(error)) | Woken::Writable(Err(error)) => {
                self.session.finish(Close::Broke(error));
            }
            Woken::Displaced(Displaced::ByItself) => self.session.finish(Close::taken_over()),
            Woken::Displaced(Displaced::ByAnother) => self.session.finish(Close::gave_way()),
            Woken::Stop => {
                self.stopping = true;
                if planted(Bug::CarelessStop) {
                    self.session.finish(Close::Stopping);
                }
                timer.set(sleep(STOP_TIMEOUT));
            }
            Woken::Timer if self.stopping => self.session.finish(Close::Stopping),
            Woken::Timer => {
                let now = Instant::now();
                self.session.timed_out(now);
                if self.held.is_none()
                    && let Assembly::Granted { by, .. } = self.assembly
                    && by <= now
                {
                    let (arrived, announced) = (self.session.unfinished_bytes(), self.session.announced_bytes());
                    self.session.finish(Close::too_slow(arrived, announced));
                }
            }
        }
        Ok(())
    }

    /// Custody rule 1: the answers to a commit leave after it, and only on the connection that they were earned on.
    fn answer(&mut self, durable: Durable<Receipts>) {
        self.door.answered();
        let sent = self.session.durable(durable, now());
        LinkStatus::add(&self.shared.status.acknowledgements, sent);
    }

    fn submit(&mut self) -> Result<(), Stopped> {
        if self.room.is_none() && self.door.submit(&mut self.session.batch)? == Submitted::Wait {
            self.room = Some(Box::pin(self.door.room(&self.session.batch)));
        }
        Ok(())
    }

    /// As much as the socket takes now.
    fn write(&mut self, writer: &WriteHalf<'_>) {
        while !self.session.output.is_empty() {
            match writer.try_write(&self.session.output) {
                Ok(written) => self.session.output.advance(written),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    self.session.output.clear();
                    self.session.finish(Close::Broke(error));
                    return;
                }
            }
        }
        // An idle client has no memory for answers.
        self.session.output = BytesMut::new();
    }

    /// Decides whether we listen. While we do not, the client's silence does not count.
    fn hold(&mut self) {
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
            let bytes = bytes.min(self.shared.terms.max_packet_bytes);
            self.assembly = Assembly::Waiting(Box::pin(semaphore.acquire_many_owned(bytes)));
        }
        let held = self.room.is_some() || matches!(self.assembly, Assembly::Waiting(_));
        if held == self.held.is_some() {
            return;
        }
        let now = Instant::now();
        if let (Some(since), Assembly::Granted { by, .. }) = (self.held, &mut self.assembly) {
            // We did not listen: that is not the client's slowness.
            *by = by.checked_add(now.saturating_duration_since(since)).unwrap_or(*by);
        }
        self.held = held.then_some(now);
        self.session.hold(held, now);
    }

    /// There is memory for the packet that is arriving.
    fn assemble(&mut self, permit: OwnedSemaphorePermit) -> Assembly {
        let announced = self.session.announced_bytes();
        self.session.expect(announced);
        let seconds = u32::try_from(announced).unwrap_or(u32::MAX) / SLOWEST_BYTES_PER_S;
        let time = PACKET_PAUSE.saturating_add(Duration::from_secs(seconds.into()));
        let now = Instant::now();
        let by = now.checked_add(time).unwrap_or(now);
        Assembly::Granted { packet: self.session.packet_number(), by, _until_complete: permit }
    }

    fn listens(&self) -> bool {
        self.held.is_none() && !self.stopping && self.session.wants_bytes()
    }

    /// Who is not read is watched.
    fn watch(&mut self) {
        if self.listens() || self.stopping {
            self.look = None;
        } else if self.look.is_none() {
            self.look = Instant::now().checked_add(TICK);
        }
    }

    /// Looks whether the client is there still, when it is time to.
    async fn look(&mut self, reader: &ReadHalf<'_>) -> Result<(), Stopped> {
        let now = Instant::now();
        if self.session.is_over() || self.look.is_none_or(|look| look > now) {
            return Ok(());
        }
        self.look = now.checked_add(TICK);
        if has_closed(reader).await { self.look_through(reader) } else { Ok(()) }
    }

    /// The client has gone. All that it sent is in the socket; the kernel's buffer bounds it.
    fn look_through(&mut self, reader: &ReadHalf<'_>) -> Result<(), Stopped> {
        while !self.session.is_over() {
            let mut unasked = Batch::default();
            let took = try_read(reader, |bytes| unasked = self.session.look_through(bytes, now()));
            // Of QoS 0 alone: stored if there is room (only memory for a large packet is missing), else counted.
            let _stored: Submitted = self.door.submit(&mut unasked)?;
            match took {
                Ok(0) => self.session.finish(Close::Closed),
                Ok(_) => {}
                Err(error) => self.session.finish(Close::Broke(error)),
            }
        }
        Ok(())
    }

    /// Sets the timer, if there is anything to wait for. The deadline moves with every packet; the timer only when it
    /// fires.
    fn arm(&self, timer: Pin<&mut Sleep>) -> bool {
        if self.stopping {
            return true;
        }
        let assembled = match self.assembly {
            Assembly::Granted { by, .. } if self.held.is_none() => Some(by),
            Assembly::Granted { .. } | Assembly::Waiting(_) | Assembly::NotNeeded => None,
        };
        let deadline = [self.session.deadline(), assembled, self.look].into_iter().flatten().min();
        let Some(deadline) = deadline.map(tokio::time::Instant::from_std) else { return false };
        if timer.is_elapsed() || timer.deadline() > deadline {
            timer.reset(deadline);
        }
        true
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
            let word = Word::Remark { peer: self.peer, client: Arc::clone(&self.client), remark };
            if self.shared.words.try_send(word).is_err() {
                tracing::trace!("the listener has more important things to hear");
            }
        }
    }
}

impl Assembly {
    /// Never ready while nothing is waited for.
    async fn granted(&mut self) -> Result<OwnedSemaphorePermit, AcquireError> {
        match self {
            Self::Waiting(permit) => permit.as_mut().await,
            Self::NotNeeded | Self::Granted { .. } => future::pending().await,
        }
    }
}

/// Never ready while nothing is waited for.
async fn until<T>(wait: &mut Option<Wait<T>>) -> T {
    match wait {
        Some(wait) => wait.as_mut().await,
        None => future::pending().await,
    }
}

/// Never ready when nobody can tell any more; and once only.
pub(super) async fn told<T>(by: &mut Option<oneshot::Receiver<T>>) -> T {
    let told = match by {
        Some(by) => by.await,
        None => future::pending().await,
    };
    *by = None;
    match told {
        Ok(word) => word,
        Err(_gone) => future::pending().await,
    }
}
