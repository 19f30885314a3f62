//! A visit of a client: from accept to what it leaves behind.
//!
//! In order: CONNECT within its time; name and password; the session, claimed from the listener's registry (which first
//! ends an older connection of the same client); then the [connection loop](connection::serve) with the [`Client`] as
//! its role, goodbye included; last of all what the end of the session changes on disk, and the session itself back to the registry as part of the result, with the will
//! if there is one to be published. Nothing of that waits for room in the buffer: a client that has gone holds no place.
//! A connection is never cancelled by dropping it, except at the end of the process.

use std::future;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::sleep;

use super::client::Client;
use super::gate::Stage;
use super::handshake::{Admission, Handshake, Progress, refusal};
use super::origin::ConnectionId;
use super::registry::{Answer, Claim, Entry, SessionEnd, session_key};
use super::session::{Last, Session};
use super::shared::{Shared, Word, now};
use super::users::Verdict;
use crate::event::Sender;
use crate::ingest::close::Close;
use crate::ingest::codec::{Will, reason};
use crate::ingest::connection::{self, Wires};
use crate::ingest::limits::{CLIENT_TOPICS_BYTES, CONNECT_TIMEOUT, MAX_WAITING_WILL_BYTES};
use crate::ingest::session_intake::SessionIntake;
use crate::ingest::status::LinkStatus;
use crate::ingest::stream::Stream;

/// What a connection leaves behind.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) connection: ConnectionId,
    pub(super) peer: SocketAddr,
    pub(super) client: Option<Arc<str>>,
    pub(super) end: Close,
    /// If it had a session.
    pub(super) session_end: Option<SessionEnd>,
    /// Memory for its will, if that is to be published at once and may have to wait for room in the buffer.
    pub(super) will_room: Option<OwnedSemaphorePermit>,
}

impl Ended {
    fn without_session(visitor: &Visitor, client: Option<Arc<str>>, end: Close) -> Self {
        let Visitor { connection, peer, .. } = *visitor;
        Self { connection, peer, client, end, session_end: None, will_room: None }
    }
}

/// Somebody who is not in yet.
struct Visitor {
    connection: ConnectionId,
    peer: SocketAddr,
    /// Fires when it has to make room for others.
    go: Option<oneshot::Receiver<()>>,
}

impl Visitor {
    /// Says how far it has come.
    async fn moved(&self, to: Stage, shared: &Shared) {
        if shared.words.send(Word::Moved { connection: self.connection, to }).await.is_err() {
            tracing::trace!("the listener stops");
        }
    }
}

/// A connection from accept to end.
pub(super) async fn serve(
    stream: TcpStream,
    peer: SocketAddr,
    connection: ConnectionId,
    go: oneshot::Receiver<()>,
    shared: Arc<Shared>,
) -> Ended {
    let mut stream = Stream::Plain(stream);
    let mut visitor = Visitor { connection, peer, go: Some(go) };
    let mut stop = shared.stop.clone();
    let let_in = tokio::select! {
        biased;
        () = stop.wait() => return Ended::without_session(&visitor, None, Close::Stopping),
        let_in = let_in(&mut stream, &mut visitor, &shared) => let_in,
    };
    let (mut admission, entry) = match let_in {
        Ok(let_in) => let_in,
        Err(Turned { client, answer, end }) => {
            if !answer.is_empty() {
                visitor.moved(Stage::Leaving, &shared).await;
                tokio::select! {
                    biased;
                    () = told(&mut visitor.go) => {}
                    () = stream.close(&answer) => {}
                }
            }
            return Ended::without_session(&visitor, client, end);
        }
    };
    if shared.words.send(Word::In(connection)).await.is_err() {
        tracing::trace!("the listener stops");
    }
    let client = Arc::clone(&admission.client);
    let key = session_key(&shared.name, &client).into();
    let (intake, replies) = SessionIntake::new(&shared.destination, key, Arc::clone(&shared.status));
    let sender = Arc::new(Sender { client: Arc::clone(&client), user: admission.user.take() });
    if let Some(will) = &mut admission.will {
        will.sender = Some(Arc::clone(&sender));
    }
    let topics = shared.destination.topics(CLIENT_TOPICS_BYTES).of(sender);
    let Entry { lease, displaced } = *entry;
    let mut session = Session::enter(*admission, lease, Arc::clone(&shared.policy), topics, now());
    LinkStatus::add(&shared.status.connects, 1);
    LinkStatus::add(&shared.status.connected, 1);
    let mut wires = Wires { intake, replies, stop };
    let mut role = Client::new(&mut session, displaced, peer, Arc::clone(&client), &shared);
    connection::serve(&mut role, &mut wires, stream).await;
    shared.status.connected.fetch_sub(1, Ordering::Relaxed);
    let Last { end, memory, expiry_s, will, changes } = session.into_last();
    if wires.intake.announce(changes).is_err() {
        tracing::debug!(%client, "the buffer has stopped before the end of a session was written");
    }
    let will_room = match &will {
        Some((will, delay)) if delay.is_zero() => {
            tokio::select! {
                biased;
                room = will_room(&shared.wills, will) => room,
                () = wires.stop.wait() => None,
            }
        }
        Some(_) | None => None,
    };
    let session_end = SessionEnd { connection, client: Arc::clone(&client), memory, expiry_s, will };
    Ended { connection, peer, client: Some(client), end, session_end: Some(session_end), will_room }
}

/// custody rule 5: wills that wait for room in the buffer are bounded by bytes.
async fn will_room(wills: &Arc<Semaphore>, will: &Will) -> Option<OwnedSemaphorePermit> {
    // The semaphore is never closed.
    Arc::clone(wills).acquire_many_owned(will_permits(will)).await.ok()
}

pub(super) fn will_permits(will: &Will) -> u32 {
    u32::try_from(will.cost_bytes().min(MAX_WAITING_WILL_BYTES)).unwrap_or(u32::MAX)
}

/// A client that was not let in, and what it is told.
struct Turned {
    client: Option<Arc<str>>,
    answer: Bytes,
    end: Close,
}

impl Turned {
    fn away(admission: &Admission, code: u8, cause: &'static str) -> Self {
        let end = Close::refused(Some(code), cause, "");
        Self { client: Some(Arc::clone(&admission.client)), answer: refusal(admission.version, &end), end }
    }

    /// Sockets are scarce. It gets no answer: nobody waits for it.
    fn displaced() -> Self {
        Self { client: None, answer: Bytes::new(), end: Close::displaced_stranger() }
    }
}

async fn let_in(
    stream: &mut Stream,
    visitor: &mut Visitor,
    shared: &Shared,
) -> Result<(Box<Admission>, Box<Entry>), Turned> {
    let origin = visitor.peer.ip().into();
    let mut admission = tokio::select! {
        biased;
        () = told(&mut visitor.go) => return Err(Turned::displaced()),
        admission = greet(stream, shared) => admission?,
    };
    if let (Some(users), Some((name, password))) = (&shared.users, admission.credentials.take()) {
        let user = name.as_str().into();
        visitor.moved(Stage::Asking, shared).await;
        tokio::select! {
            biased;
            () = told(&mut visitor.go) => return Err(Turned::displaced()),
            verdict = users.admit(origin, name, password) => judge(verdict, &admission)?,
        }
        admission.user = Some(user);
    }
    let (answer, answered) = oneshot::channel();
    let (client, resume) = (Arc::clone(&admission.client), admission.resume);
    let claim = Claim { connection: visitor.connection, origin, client, resume, answer };
    if shared.words.send(Word::Claim(claim)).await.is_err() {
        return Err(Turned::away(&admission, reason::SERVER_SHUTTING_DOWN, "the agent stops"));
    }
    // Waited for until it comes: the answer may bring the session, which must not be dropped.
    match answered.await {
        Ok(Answer::Enter(entry)) => Ok((admission, entry)),
        Ok(Answer::Busy) => Err(Turned::away(&admission, reason::SERVER_BUSY, "max_connections reached")),
        Ok(Answer::Crowded) => {
            Err(Turned::away(&admission, reason::QUOTA_EXCEEDED, "max_connections_per_address reached"))
        }
        Err(_) => {
            let end = Close::taken_over();
            Err(Turned { client: Some(admission.client), answer: refusal(admission.version, &end), end })
        }
    }
}

fn judge(verdict: Verdict, admission: &Admission) -> Result<(), Turned> {
    match verdict {
        Verdict::Right => Ok(()),
        Verdict::Wrong => {
            Err(Turned::away(admission, reason::BAD_USER_NAME_OR_PASSWORD, "wrong user name or password"))
        }
        Verdict::ComeAgain => {
            Err(Turned::away(admission, reason::SERVER_BUSY, "too many clients wait for the check of their password"))
        }
    }
}

async fn greet(stream: &mut Stream, shared: &Shared) -> Result<Box<Admission>, Turned> {
    let mut too_late = pin!(sleep(CONNECT_TIMEOUT));
    let turned = |answer, end| Turned { client: None, answer, end };
    let mut handshake = Handshake::new();
    loop {
        let mut progress = Progress::ReadOn;
        let took = stream.read_shared(|bytes| progress = handshake.received(bytes, &shared.policy));
        tokio::select! {
            took = took => match took {
                Ok(0) if handshake.is_silent() => return Err(turned(Bytes::new(), Close::nothing_said())),
                Ok(0) => return Err(turned(Bytes::new(), Close::gone_before_connect("before CONNECT"))),
                Ok(_) => {}
                Err(error) => {
                    let end = Close::gone_before_connect(format!("before CONNECT: {error}"));
                    return Err(turned(Bytes::new(), end));
                }
            },
            () = &mut too_late => {
                let end = Close::refused(None, "the client sent no CONNECT in time", format!("{CONNECT_TIMEOUT:?}"));
                return Err(turned(Bytes::new(), end));
            }
        }
        match progress {
            Progress::ReadOn => {}
            Progress::Admit(admission) => return Ok(admission),
            Progress::Refuse(answer, end) => return Err(turned(answer, end)),
        }
    }
}

/// Waits until it is told; never ready when nobody can tell any more, and once only.
async fn told(by: &mut Option<oneshot::Receiver<()>>) {
    let told = match by {
        Some(by) => by.await,
        None => future::pending().await,
    };
    *by = None;
    if told.is_err() {
        future::pending::<()>().await;
    }
}
