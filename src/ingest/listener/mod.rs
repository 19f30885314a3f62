//! `[[listen]]`: sensors publish straight to Tidegate, with no broker between. A PUBACK that a sensor gets is its
//! proof that the reading is on disk here.
//!
//! ```text
//!                 bind ─▶ run: accept ──────────────▶ visit ─▶ handshake ─▶ users
//!                          ▲  │                       │  ▲
//!                  result  │  └─ registry ◀── claim ──┤  │ session
//!                (session) └──────────────────────────┘  ▼
//!                                          client: the role of ingest's connection loop
//! ```
//!
//! One task runs the listener. It accepts, owns the registry of sessions, and keeps its connections in a set of tasks.
//! A visit takes its session out of the registry and hands it back with its result; they share nothing else that
//! changes. The protocol itself is in `handshake` and `session`, which own no socket and read no clock.
//!
//! # What clients can rely on
//!
//! * MQTT 3.1.1 and 5, QoS 0, 1 and 2. PUBACK, PUBREC and PUBCOMP leave after the commit they speak of (custody rules 1
//!   and 3). A repeated QoS 2 PUBLISH is recognised, also after a restart of the agent, as long as its session lives.
//! * A session is kept as long as the client asks for, up to `max_session_expiry`; on 3.1.1, which cannot ask, so long.
//! * A clean start has forgotten the old session durably, and a kept session is on disk, before CONNACK says so.
//! * A second connection with the same client id ends the first.
//! * No other host takes their place: not with silent sockets ([`gate`]), not with wrong passwords
//!   ([`users`]), not with as many clients as it likes ([`registry`]). Sensors behind one address share its share.
//! * Wills are events like any other. With a delay (MQTT 5) they wait in memory: a will that waits when the power goes
//!   is lost, as the standard allows. When the agent stops, connected clients' wills are not published: it was not
//!   they who failed.
//!
//! # What they cannot
//!
//! * There is nothing to be had by a SUBSCRIBE. With `subscriptions = "accept"` it is granted, because devices that subscribe
//!   to their command topic loop when it is not, and nothing is sent; with `"refuse"` each filter is refused (MQTT 5:
//!   0x87; 3.1.1: 0x80). The connection goes on in both.
//! * Topics that begin with `$` belong to servers: a PUBLISH to one is acknowledged (MQTT 5: with 0x87) and not forwarded,
//!   and so is a will. mosquitto's bridges send both.
//! * A message above `max_packet_bytes` is taken off the wire and not kept. With MQTT 5 its acknowledgement says so (0x97);
//!   else, because 3.1.1 has no word for it and the client would send it for ever, it is acknowledged, and a dead letter
//!   with its first bytes and its size is on the books.
//! * No enhanced authentication. More than 256 user properties in a PUBLISH end the connection (0x97).
//! * `receive_maximum` is what MQTT 5 clients are told, and nobody is sent away for more: common clients do not keep to
//!   it. It is memory that counts, as on 3.1.1, and a client for whose messages there is no room is not read.
//! * The will of a client that comes and goes is published once a minute.
//!
//! Whoever breaks the rules is told why (MQTT 5), counted, and logged once for each cause; repeats are summed up.

mod aliases;
mod client_log;
mod gate;
mod handshake;
mod client;
mod memory;
mod origin;
mod registry;
mod remarks;
mod session;
mod shared;
mod policy;
#[cfg(test)]
#[expect(clippy::wildcard_enum_match_arm, reason = "a test that meets them fails")]
mod tests;
mod users;
mod visit;

use std::collections::HashMap;
use std::io;
use std::net::{self, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{MissedTickBehavior, interval, timeout};

use self::client_log::{About, ClientLog, Tone};
use self::gate::{Gate, Stage};
use self::origin::ConnectionId;
use self::registry::{Registry, session_key};
use self::session::event;
use self::shared::{Shared, Word, now};
use self::users::{Users, UsersFile};
pub(crate) use self::users::{UsersError, check_users_file};
use self::visit::{Ended, serve, will_permits};
use crate::buffer::{Arrivals, SessionChange, Stopped, StoredSession};
use crate::ingest::batch::Batch;
use crate::ingest::close::Kind;
use crate::ingest::codec::Will;
use crate::ingest::limits::{
    ASSEMBLY_BYTES, GOING_SOCKETS, MAX_SESSIONS_AWAY, MAX_WAITING_WILL_BYTES, MAX_WORDS, SPARE_SOCKETS, TICK,
    WHOLE_STOP_TIMEOUT,
};
use crate::ingest::session_intake::{Destination, SessionIntake, Submitted};
use crate::ingest::status::LinkStatus;
use crate::observe::pulse::Pulse;
use crate::settings::Listener;
use crate::stop::Stop;

/// A `[[listen]]` table cannot be served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ListenError {
    /// The address cannot be had.
    #[error("[[listen]] name = {name:?}: the agent cannot listen on {address}: {cause}")]
    Bind {
        /// Of the table.
        name: String,
        /// Its `address`.
        address: SocketAddr,
        /// Most often: another process has it.
        cause: io::Error,
    },
    /// There is no thread for the check of passwords.
    #[error("[[listen]] name = {name:?}: the thread that checks passwords cannot be started: {cause}")]
    Desk {
        /// Of the table.
        name: String,
        /// Of the system.
        cause: io::Error,
    },
    /// Its `users_file` cannot be used.
    #[error("[[listen]] name = {name:?}: {cause}")]
    Users {
        /// Of the table.
        name: String,
        /// Which file and line.
        cause: UsersError,
    },
}

/// A listener that has its address and its users, and accepts nobody yet: the kernel lets clients wait.
#[derive(Debug)]
pub(crate) struct Bound {
    settings: Listener,
    socket: net::TcpListener,
    address: SocketAddr,
    users: Option<UsersFile>,
}

/// Takes the address and reads the users file.
///
/// # Errors
/// When one of them cannot be had.
pub(crate) fn bind(settings: Listener) -> Result<Bound, ListenError> {
    let users = match settings.users_file.as_deref().map(UsersFile::open).transpose() {
        Ok(users) => users,
        Err(cause) => return Err(ListenError::Users { name: settings.name, cause }),
    };
    let bound = net::TcpListener::bind(settings.address).and_then(|socket| {
        socket.set_nonblocking(true)?;
        let address = socket.local_addr()?;
        Ok((socket, address))
    });
    match bound {
        Ok((socket, address)) => Ok(Bound { settings, socket, address, users }),
        Err(cause) => Err(ListenError::Bind { name: settings.name, address: settings.address, cause }),
    }
}

impl Bound {
    /// Where clients connect; tells the port when the settings said 0.
    #[cfg(test)]
    pub(super) fn local_addr(&self) -> SocketAddr {
        self.address
    }
}

/// Serves clients until the stop, and then until what they have sent is on disk and acknowledged. `sessions` are those
/// that the buffer has kept, of any link.
///
/// # Errors
/// When the socket cannot be handed to the runtime.
pub(crate) async fn run(
    bound: Bound,
    destination: Destination,
    sessions: HashMap<Arc<str>, StoredSession>,
    status: Arc<LinkStatus>,
    pulse: Pulse,
    stop: Stop,
) -> Result<(), ListenError> {
    let Bound { settings, socket, address, users } = bound;
    let socket = match TcpListener::from_std(socket) {
        Ok(socket) => socket,
        Err(cause) => return Err(ListenError::Bind { name: settings.name, address, cause }),
    };
    let (words, heard) = mpsc::channel(MAX_WORDS);
    let max_packet_bytes = usize::try_from(settings.max_packet_bytes).unwrap_or(usize::MAX);
    let name: Arc<str> = settings.name.as_str().into();
    let shared = Shared {
        name: Arc::clone(&name),
        policy: Arc::new((&settings).into()),
        users: users
            .map(Users::ask)
            .transpose()
            .map_err(|cause| ListenError::Desk { name: settings.name.clone(), cause })?,
        destination,
        status,
        words,
        assembly: Arc::new(Semaphore::new(ASSEMBLY_BYTES.max(max_packet_bytes).min(Semaphore::MAX_PERMITS))),
        wills: Arc::new(Semaphore::new(MAX_WAITING_WILL_BYTES)),
        stop: stop.clone(),
    };
    let listening = Listening {
        registry: Registry::new(&name, settings.max_connections, settings.max_connections_per_address, sessions),
        gate: Gate::default(),
        client_log: ClientLog::new(Arc::clone(&name)),
        shared: Arc::new(shared),
        connections: JoinSet::new(),
        wills: JoinSet::new(),
        max_sockets: settings.max_connections + SPARE_SOCKETS,
        last_id: 0,
        address,
        exhausted: false,
    };
    tracing::info!(listener = %name, %address, "listening for sensors");
    listening.run(socket, heard, pulse, stop).await;
    tracing::info!(listener = %name, %address, "listener stopped");
    Ok(())
}

/// The state of the listener's task.
struct Listening {
    registry: Registry,
    gate: Gate,
    client_log: ClientLog,
    shared: Arc<Shared>,
    connections: JoinSet<Ended>,
    /// Wills whose client did not come back, on their way into the buffer.
    wills: JoinSet<()>,
    max_sockets: usize,
    last_id: ConnectionId,
    /// Our own.
    address: SocketAddr,
    /// No connection can be accepted until the next tick.
    exhausted: bool,
}

impl Listening {
    async fn run(mut self, socket: TcpListener, mut words: mpsc::Receiver<Word>, pulse: Pulse, mut stop: Stop) {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            pulse.beat();
            tokio::select! {
                () = stop.wait() => break,
                Some(ended) = self.connections.join_next() => self.ended(ended),
                Some(word) = words.recv() => self.hear(word),
                accepted = socket.accept(), if !self.exhausted && self.gate.going() < GOING_SOCKETS => match accepted {
                    Ok((stream, peer)) => self.accept(stream, peer),
                    Err(error) => self.exhausted = self.cannot_accept(&error),
                },
                _ = tick.tick() => self.tick(),
            }
        }
        drop(socket);
        self.stop(words, &pulse).await;
    }

    fn accept(&mut self, stream: TcpStream, peer: SocketAddr) {
        let origin = peer.ip().into();
        let taken = self.connections.len().saturating_sub(self.gate.going());
        if taken >= self.max_sockets && !self.gate.make_room(origin) {
            LinkStatus::add(&self.shared.status.refusals, 1);
            let about = About { peer, client: "", detail: "closed without an answer" };
            self.client_log.add(Instant::now(), Tone::Odd, "max_connections reached", &about);
            return;
        }
        if let Err(error) = stream.set_nodelay(true) {
            // It is gone already; reading from it will tell.
            tracing::trace!(%peer, %error, "TCP_NODELAY");
        }
        self.last_id = self.last_id.wrapping_add(1);
        let go = self.gate.arrive(self.last_id, origin);
        self.connections.spawn(serve(stream, peer, self.last_id, go, Arc::clone(&self.shared)));
    }

    /// True: out of file descriptors or memory. The clients wait in the kernel's queue until some are free.
    fn cannot_accept(&mut self, error: &io::Error) -> bool {
        if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset) {
            // Only this one, and it has gone.
            return false;
        }
        let about = About { peer: self.address, client: "", detail: &error.to_string() };
        self.client_log.add(Instant::now(), Tone::Odd, "the agent cannot accept connections", &about);
        self.shared.status.failed(&format!("accept: {error}"));
        true
    }

    fn hear(&mut self, word: Word) {
        match word {
            Word::Moved { connection, to } => self.gate.moved(connection, to),
            Word::In(connection) => self.gate.passed(connection),
            Word::Claim(claim) => {
                self.gate.moved(claim.connection, Stage::Claiming);
                if let Some(will) = self.registry.claim(claim, now()) {
                    self.publish(will, None);
                }
                self.count_unreleased();
            }
            Word::Remark { peer, client, remark } => {
                let (tone, cause, detail) = remark.words();
                self.client_log.add(Instant::now(), tone, cause, &About { peer, client: &client, detail });
            }
        }
    }

    fn ended(&mut self, ended: Result<Ended, JoinError>) {
        let Ended { connection, peer, client, end, session_end, mut will_room } = match ended {
            Ok(ended) => ended,
            Err(error) => {
                // A panic ends the process in a release. Elsewhere its client's session is gone until the restart.
                tracing::error!(%error, "a connection's task failed");
                return;
            }
        };
        self.gate.passed(connection);
        let client = client.as_deref().unwrap_or_default();
        let about = About { peer, client, detail: &end.detail() };
        let status = &self.shared.status;
        let counter = match end.kind() {
            Kind::Goodbye | Kind::Stopped => None,
            Kind::Gone => Some((&status.failures, Tone::Everyday)),
            Kind::Broke => Some((&status.failures, Tone::Odd)),
            Kind::Refused => Some((&status.refusals, Tone::Odd)),
        };
        if let Some((counter, tone)) = counter {
            LinkStatus::add(counter, 1);
            if tone == Tone::Odd {
                status.failed(format!("{peer} {client:?}: {} {}", end.cause(), end.detail()).trim_end());
            }
            self.client_log.add(Instant::now(), tone, end.cause(), &about);
        } else {
            tracing::debug!(listener = %self.shared.name, %peer, client, "{}", end.cause());
        }
        let Some(session_end) = session_end else { return };
        let (forgotten, wills) = self.registry.end_session(session_end, now());
        self.count_unreleased();
        if !forgotten.is_empty() {
            tracing::info!(
                listener = %self.shared.name,
                sessions = forgotten.len(),
                limit = MAX_SESSIONS_AWAY,
                "too many clients are away: the agent forgets the sessions of those that were away longest"
            );
        }
        self.forget(forgotten);
        // Its own comes first.
        for will in wills {
            self.publish(will, will_room.take());
        }
    }

    fn tick(&mut self) {
        let now = Instant::now();
        self.client_log.sum_up(now);
        self.exhausted = false;
        let mut rooms = Vec::new();
        let due = self.registry.due_wills(now, |will| {
            let room = Arc::clone(&self.shared.wills).try_acquire_many_owned(will_permits(will));
            room.is_ok_and(|room| {
                rooms.push(room);
                true
            })
        });
        for (will, room) in due.into_iter().zip(rooms) {
            self.publish(will, Some(room));
        }
        while let Some(published) = self.wills.try_join_next() {
            report(published);
        }
    }

    /// A will whose client did not come back. Without room in the buffer it waits in a task of its own, and its place in
    /// the memory for wills with it; ahead of all that is read later, because room is given in the order of asking.
    fn publish(&mut self, will: Will, place: Option<OwnedSemaphorePermit>) {
        let mut topics = self.shared.destination.topics(0);
        let mut batch = Batch::default();
        batch.event(event(will, &mut topics, now()));
        let key = session_key(&self.shared.name, "").into();
        let (mut intake, _replies) = SessionIntake::new(&self.shared.destination, key, Arc::clone(&self.shared.status));
        match intake.submit(&mut batch) {
            Ok(Submitted::Stored) => {}
            Ok(Submitted::Wait) => {
                self.wills.spawn(async move {
                    let stored = intake.room(&batch).await.and_then(|room| intake.store(&mut batch, room));
                    drop(place);
                    if stored.is_err() {
                        tracing::warn!("the buffer has stopped, so a will is not published");
                    }
                });
            }
            Err(Stopped) => tracing::warn!("the buffer has stopped, so a will is not published"),
        }
    }

    fn count_unreleased(&mut self) {
        LinkStatus::add(&self.shared.status.unreleased_lost, self.registry.take_unreleased_lost());
    }

    /// Queued at once: were the client to come back meanwhile, its new session must stand behind this.
    fn forget(&self, sessions: Vec<SessionChange>) {
        if sessions.is_empty() {
            return;
        }
        let (reply, _nobody_waits) = mpsc::unbounded_channel();
        let work = Arrivals { events: Vec::new(), sessions, receipt: Vec::new(), reply, room: None, waits: false };
        if let Err(stopped) = self.shared.destination.intake.store(work) {
            tracing::debug!(%stopped, "the buffer has stopped, so these sessions are forgotten only after the next \
                 start");
        }
    }

    /// Custody rule 1 up to the end: each connection waits for the commits of what it has read, and answers.
    async fn stop(mut self, mut words: mpsc::Receiver<Word>, pulse: &Pulse) {
        for will in self.registry.all_wills() {
            self.publish(will, None);
        }
        let mut tick = interval(TICK);
        let all = async {
            while !(self.connections.is_empty() && self.wills.is_empty()) {
                pulse.beat();
                // Who waits for an older connection to end need not wait any longer.
                self.registry.drop_claims();
                tokio::select! {
                    Some(ended) = self.connections.join_next() => self.ended(ended),
                    Some(published) = self.wills.join_next() => report(published),
                    Some(_too_late) = words.recv() => {}
                    _ = tick.tick() => {}
                }
            }
        };
        // Each connection has a time-out of its own; this one is for wills that find no room.
        if timeout(WHOLE_STOP_TIMEOUT, all).await.is_err() {
            tracing::warn!(
                listener = %self.shared.name,
                connections = self.connections.len(),
                wills = self.wills.len(),
                "the listener stopped before all readings were stored: those were not acknowledged, so the senders \
                 still have them"
            );
        }
        let stale = self.registry.stale();
        self.forget(stale);
    }
}

fn report(published: Result<(), JoinError>) {
    if let Err(error) = published {
        tracing::error!(%error, "the task that publishes a will failed");
    }
}
