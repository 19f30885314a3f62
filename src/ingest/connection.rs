//! The loop of a connection, in both roles: we subscribe at a broker, or a client publishes to us.
//!
//! ```text
//!            ┌────────────── select: what happened? ◀──────────────┐
//!            ▼                                                     │
//!   Stop · Committed · Room · Own · Sent · Received · Due ──▶ apply (does not wait)
//!                                                                  │ the role has a reason to end
//!                                                                  ▼
//!                     closing: nothing is read, commits under way are answered ──▶ goodbye
//! ```
//!
//! * One task owns the socket. All that one read brings is one batch; all that the buffer has answered meanwhile leaves in
//!   one write.
//! * The socket is read only when something could be done with the bytes: not while a batch waits for room in the buffer,
//!   not while the peer leaves our answers lying, and not while the role does not listen. TCP then stops the peer; answers,
//!   pings and timers go on.
//! * What came before the reason to end is stored, and as [`Close::time_for_answers`] has it answered, before the goodbye.
//!
//! Everything that is waited for is cancel safe. A [`Role`] says what a packet means and owns no socket and no channel.

use std::future::{self, Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use tokio::time::{Sleep, sleep};

use super::batch::Batch;
use super::close::{Close, Peer};
use super::receipt::Receipts;
use super::session_intake::{Replies, SessionIntake, Submitted};
use super::stream::Stream;
use crate::buffer::{Durable, Room, Stopped};
use crate::stop::Stop;

/// What the loop asks of the two roles.
pub(super) trait Role {
    /// What only this role waits for.
    type Own;

    /// Who is at the other end.
    const PEER: Peer;

    /// What was read, to be handed to the buffer.
    fn batch(&mut self) -> &mut Batch;

    /// Bytes to be sent.
    fn output(&mut self) -> &mut BytesMut;

    /// Is there anything that bytes could be read for?
    fn listens(&self) -> bool;

    /// May commits be answered on this connection yet?
    fn answers(&self) -> bool {
        true
    }

    /// Before each wait: `full` while a batch waits for room, and the peer's silence does not count.
    fn hold(&mut self, full: bool, now: Instant);

    /// When [`Role::tick`] is due, if nothing happens before.
    fn due(&self) -> Option<Instant>;

    /// Cancel safe, as all of these.
    fn poll_own(&mut self, cx: &mut Context<'_>) -> Poll<Self::Own>;

    /// Takes one read off the socket; 0 is the end.
    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut Stream,
        intake: &SessionIntake,
    ) -> Poll<io::Result<usize>>;

    /// [`Role::poll_own`] was ready.
    fn apply(&mut self, own: Self::Own, now: Instant);

    /// A read brought that many bytes.
    fn received(&mut self, bytes: usize, now: Instant);

    /// Some of the output has left.
    fn sent(&mut self, now: Instant);

    /// Writes the answers to a commit, on the connection that they were earned on (custody rule 1).
    fn durable(&mut self, durable: Durable<Receipts>, now: Instant);

    /// Time has passed, or something has happened.
    ///
    /// # Errors
    /// When the buffer has stopped.
    fn tick(&mut self, now: Instant, stream: &mut Stream, intake: &mut SessionIntake) -> Result<(), Stopped>;

    /// The connection ends for a reason that the loop has met. The first one counts.
    fn end(&mut self, why: Close, now: Instant);

    /// Why it ends, if it does.
    fn ending(&self) -> Option<&Close>;

    /// Writes the last packet, if there is one for this end.
    fn write_disconnect(&mut self);
}

/// What connects a session with the rest of the agent.
#[derive(Debug)]
pub(super) struct Wires {
    pub(super) intake: SessionIntake,
    pub(super) replies: Replies,
    pub(super) stop: Stop,
}

/// What has happened.
enum Event<Own> {
    Stop,
    Committed(Durable<Receipts>),
    Room(Result<Room, Stopped>),
    Own(Own),
    Sent(io::Result<usize>),
    Received(io::Result<usize>),
    Due,
}

/// Serves the connection until its role has a reason to end, then closes it.
pub(super) async fn serve<R: Role>(role: &mut R, wires: &mut Wires, stream: Stream) {
    let mut connection = Connection { role, wires, stream, room: None, closing: None };
    connection.converse().await;
    connection.part().await;
}

/// Room in the buffer that is waited for.
type Waiting = Pin<Box<dyn Future<Output = Result<Room, Stopped>> + Send>>;

struct Connection<'a, R: Role> {
    role: &'a mut R,
    wires: &'a mut Wires,
    stream: Stream,
    room: Option<Waiting>,
    /// It ends, by then at the latest.
    closing: Option<Instant>,
}

impl<R: Role> Connection<'_, R> {
    async fn converse(&mut self) {
        let mut timer = pin!(sleep(Duration::ZERO));
        loop {
            let now = Instant::now();
            if let Err(Stopped) = self.submit() {
                self.role.end(Close::BufferStopped, now);
            }
            if self.is_over(now) {
                return;
            }
            self.role.hold(self.room.is_some(), now);
            let armed = self.arm(timer.as_mut());
            let event = self.select(timer.as_mut(), armed).await;
            let now = Instant::now();
            if let Err(Stopped) = self.apply(event, now) {
                self.role.end(Close::BufferStopped, now);
            }
        }
    }

    fn submit(&mut self) -> Result<(), Stopped> {
        let Self { role, wires: Wires { intake, .. }, room, .. } = self;
        if room.is_none() && intake.submit(role.batch())? == Submitted::Wait {
            *room = Some(Box::pin(intake.room(role.batch())));
        }
        Ok(())
    }

    /// There is a reason to end, and nothing to wait for any more.
    fn is_over(&mut self, now: Instant) -> bool {
        let Some(why) = self.role.ending() else { return false };
        let time = why.time_for_answers(R::PEER);
        let until = *self.closing.get_or_insert_with(|| now.checked_add(time).unwrap_or(now));
        now >= until || self.room.is_none() && self.wires.intake.outstanding() == 0 && self.role.output().is_empty()
    }

    /// Sets the timer, if there is anything to wait for. The deadline moves with every packet; the timer only when it
    /// fires.
    fn arm(&self, timer: Pin<&mut Sleep>) -> bool {
        let deadline = [self.role.due(), self.closing].into_iter().flatten().min();
        let Some(deadline) = deadline.map(tokio::time::Instant::from_std) else { return false };
        if timer.is_elapsed() || timer.deadline() > deadline {
            timer.reset(deadline);
        }
        true
    }

    /// In this order: what frees memory comes before what takes more.
    async fn select(&mut self, timer: Pin<&mut Sleep>, armed: bool) -> Event<R::Own> {
        let Self { role, wires: Wires { intake, replies, stop }, stream, room, closing } = self;
        let answers = role.answers();
        let reads = closing.is_none() && room.is_none() && role.listens();
        tokio::select! {
            biased;
            () = stop.wait(), if closing.is_none() => Event::Stop,
            Some(durable) = replies.recv(), if answers => Event::Committed(durable),
            room = granted(room) => Event::Room(room),
            event = poll_fn(|cx| poll_peer(*role, stream, intake, reads, cx)) => event,
            () = timer, if armed => Event::Due,
        }
    }

    /// No waiting, and no way to fail but a stopped buffer.
    fn apply(&mut self, event: Event<R::Own>, now: Instant) -> Result<(), Stopped> {
        let Self { role, wires, stream, room, closing } = self;
        match event {
            Event::Stop => role.end(Close::Stopping, now),
            Event::Committed(durable) => {
                wires.intake.answered();
                role.durable(durable, now);
                while let Ok(durable) = wires.replies.try_recv() {
                    wires.intake.answered();
                    role.durable(durable, now);
                }
            }
            Event::Room(granted) => {
                *room = None;
                wires.intake.store(role.batch(), granted?)?;
            }
            Event::Own(own) => role.apply(own, now),
            Event::Sent(Ok(_)) => role.sent(now),
            Event::Received(Ok(0)) => role.end(Close::Closed, now),
            Event::Received(Ok(bytes)) => role.received(bytes, now),
            Event::Sent(Err(error)) | Event::Received(Err(error)) => {
                // No answer gets through any more.
                *closing = closing.map(|_| now);
                role.end(Close::Broke(error), now);
            }
            Event::Due => {}
        }
        role.tick(now, stream, &mut wires.intake)
    }

    async fn part(self) {
        let Self { role, wires, mut stream, .. } = self;
        let open = wires.intake.outstanding();
        if open > 0 {
            tracing::debug!(open, "the connection closes; commits under way are not acknowledged on it any more");
        }
        role.write_disconnect();
        if role.ending().is_some_and(|why| why.is_heard(R::PEER)) {
            stream.close(role.output()).await;
        } else {
            stream.write_now(role.output());
        }
    }
}

/// The peer, and what else only its role waits for: answers leave before more is read.
fn poll_peer<R: Role>(
    role: &mut R,
    stream: &mut Stream,
    intake: &SessionIntake,
    reads: bool,
    cx: &mut Context<'_>,
) -> Poll<Event<R::Own>> {
    if let Poll::Ready(own) = role.poll_own(cx) {
        return Poll::Ready(Event::Own(own));
    }
    if let Poll::Ready(sent) = stream.poll_write(cx, role.output()) {
        return Poll::Ready(Event::Sent(sent));
    }
    if reads { role.poll_read(cx, stream, intake).map(Event::Received) } else { Poll::Pending }
}

/// The room that is waited for; never, when none is.
async fn granted(room: &mut Option<Waiting>) -> Result<Room, Stopped> {
    match room {
        Some(room) => room.await,
        None => future::pending().await,
    }
}
