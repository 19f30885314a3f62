//! Who is connected, and the sessions of those who are away.
//!
//! The listener's own task owns the registry. A connection borrows the session of its client as a value ([`Entry`])
//! and gives it back when it ends ([`Registry::depart`]): there is never a second copy, and no lock.
//!
//! ```text
//!                 claim                      claim by another connection
//!   (unknown) ───────────▶ Connected ──────────────────────────────────▶ Connected, told to go, next one waits
//!      ▲  ▲                │   ▲  ▲                                         │ depart
//!      │  └─ depart, over ─┘   │  └──────────── the next one enters ────────┘
//!      │                       │ claim
//!      └── claim, over ─── Away ◀── depart (from Connected), the session lives on
//! ```
//!
//! * **Take-over.** The next one enters only with the session that the old connection has handed back. What the old one
//!   had sent to the buffer stands in its queue before anything the new one sends, and its QoS 2 packet ids
//!   are in the session although their commit may still be running.
//! * **Expiry** is judged only when the client comes back, never by a timer: a clock that jumps deletes nothing. For
//!   sessions left since this process started it is measured by the monotonic clock; for older ones by the wall clock,
//!   from the last CONNECT or QoS 2 message that the buffer has written, and only when both readings make sense. In
//!   doubt a session lives longer than granted.
//! * **Shares.** One origin gets at most `max_connections_per_address` places. When all places are taken, whoever comes from
//!   an origin that has clearly fewer gets the place of the newest connection of the one that has the most: so a host that
//!   takes all it can get keeps nobody out, and clients that are spread evenly leave each other alone.
//! * **Bound.** At most [`MAX_SESSIONS_AWAY`] are remembered; above that the one that has been away longest goes, those
//!   without packet ids first. Its client is told "no session" when it comes back, as after an expiry.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::memory::Memory;
use super::origin::{ConnectionId, Origin};
use crate::buffer::{IdChange, SessionChange, StoredSession};
use crate::clock::{Clock, Moment};
use crate::ingest::codec::Will;
use crate::ingest::limits::{
    EARLIEST_SANE_MS, GOING_SOCKETS, MAX_SESSIONS_AWAY, MAX_WAITING_WILL_BYTES, MAX_WILL_DELAY, WILL_PAUSE,
};

/// Both clocks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Now {
    pub(super) instant: Instant,
    /// Milliseconds since 1970, by the wall clock.
    pub(super) unix_ms: i64,
    /// Which wall clock.
    pub(super) clock: Clock,
}

impl Now {
    /// The wall clock's part of it.
    pub(super) fn moment(self) -> Moment {
        Moment { wall_ms: self.unix_ms, clock: self.clock }
    }
}

/// A client whose CONNECT was accepted wants its session.
#[derive(Debug)]
pub(super) struct Claim {
    pub(super) connection: ConnectionId,
    pub(super) origin: Origin,
    pub(super) client: Arc<str>,
    /// Neither a clean start nor a clean session.
    pub(super) resume: bool,
    /// Dropped without a word when yet another connection of this client takes its place, and at a stop.
    pub(super) answer: oneshot::Sender<Answer>,
}

/// What a claim leads to.
#[derive(Debug)]
pub(super) enum Answer {
    /// The client is in; its connection must [`Registry::depart`] when it ends.
    Enter(Box<Entry>),
    /// `max_connections` others are.
    Busy,
    /// `max_connections_per_address` others of the same origin are.
    Crowded,
}

/// Why a connection that is in has to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Displaced {
    /// Another connection of the same client waits.
    ByItself,
    /// All places are taken, and its origin has the most of them.
    ByAnother,
}

/// A place among the connected.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) lease: Lease,
    /// Fires when it has to go.
    pub(super) displaced: oneshot::Receiver<Displaced>,
}

/// The session, lent to a connection.
#[derive(Debug)]
pub(super) struct Lease {
    pub(super) memory: Memory,
    /// There was a session, and it goes on.
    pub(super) present: bool,
}

/// The session, given back.
#[derive(Debug)]
pub(super) struct SessionEnd {
    pub(super) connection: ConnectionId,
    pub(super) client: Arc<str>,
    pub(super) memory: Memory,
    /// 0: it has ended with its connection, which has told the buffer to forget it.
    pub(super) expiry_s: u32,
    /// To be published unless the client comes back in time.
    pub(super) will: Option<(Will, Duration)>,
}

#[derive(Debug)]
pub(super) struct Registry {
    /// Of the keys in the buffer: `listen:<name>:`.
    prefix: String,
    clients: HashMap<Arc<str>, Client>,
    max_connections: usize,
    max_per_origin: usize,
    connected: usize,
    /// Of the connected, by where they come from; without those who give way.
    shares: HashMap<Origin, usize>,
    /// Connected, and told to go for the sake of others: their places are given out already.
    giving_way: usize,
    waiting_will_bytes: usize,
    /// When the wills of these clients went out, as long as they may not go out again.
    said: HashMap<Arc<str>, Instant>,
    /// Wills that were too soon after the last one of their client, and when they are due.
    held_back: HashMap<Arc<str>, (Will, Instant)>,
    /// Messages half way in sessions that have ended since somebody asked.
    unreleased_lost: u64,
}

#[derive(Debug)]
enum Client {
    Connected(Connected),
    Away(Box<Away>),
}

#[derive(Debug)]
struct Connected {
    connection: ConnectionId,
    origin: Origin,
    /// Taken when it is told to go.
    displace: Option<oneshot::Sender<Displaced>>,
    gives_way: bool,
    next: Option<Claim>,
}

impl Connected {
    fn displace(&mut self, why: Displaced) {
        if let Some(displace) = self.displace.take()
            && displace.send(why).is_err()
        {
            tracing::trace!(connection = self.connection, "the older connection is closing already");
        }
    }
}

#[derive(Debug)]
struct Away {
    memory: Memory,
    expiry_s: u32,
    since: Since,
    will: Option<(Will, Instant)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Since {
    /// Loaded from the buffer: milliseconds since 1970 by the clock of that time. If that is not to be believed, or that of
    /// today, its time begins anew with this start.
    BeforeStart(i64, Instant),
    Here(Instant),
}

impl Registry {
    /// With the sessions that the buffer has kept; those of other listeners are left aside.
    pub(super) fn new(
        name: &str,
        max_connections: usize,
        max_per_origin: usize,
        stored: HashMap<Arc<str>, StoredSession>,
    ) -> Self {
        let started = Instant::now();
        let prefix = session_key(name, "");
        let mut clients = HashMap::new();
        for (key, session) in stored {
            let Some(client) = key.strip_prefix(&prefix) else { continue };
            let away = Away {
                expiry_s: session.expiry_s,
                since: Since::BeforeStart(session.used_ms, started),
                memory: Memory::stored(session.packet_ids),
                will: None,
            };
            clients.insert(client.into(), Client::Away(Box::new(away)));
        }
        Self {
            prefix,
            clients,
            max_connections,
            max_per_origin,
            connected: 0,
            shares: HashMap::new(),
            giving_way: 0,
            waiting_will_bytes: 0,
            said: HashMap::new(),
            held_back: HashMap::new(),
            unreleased_lost: 0,
        }
    }

    /// Lends the session out, or tells its present holder to bring it back. Returned is the will of a session that has
    /// ended with this: it is to be published before anything of the new one, whose task does not run before we wait.
    #[must_use]
    pub(super) fn claim(&mut self, claim: Claim, now: Now) -> Option<Will> {
        let before = match self.clients.remove(&claim.client) {
            Some(Client::Connected(mut connected)) => {
                connected.displace(Displaced::ByItself);
                let client = Arc::clone(&claim.client);
                // An older claim is dropped.
                connected.next = Some(claim);
                self.clients.insert(client, Client::Connected(connected));
                return None;
            }
            Some(Client::Away(away)) => Some(away),
            None => None,
        };
        if let Some(refusal) = self.refusal(claim.origin) {
            if let Some(away) = before {
                self.clients.insert(Arc::clone(&claim.client), Client::Away(away));
            }
            if claim.answer.send(refusal).is_err() {
                tracing::trace!("the refused client has closed its connection");
            }
            return None;
        }
        self.enter(claim, before.map(|away| *away), now)
    }

    /// Takes the session back. What has to be forgotten to keep the bound is returned, and so are wills that do not
    /// wait, or for which there is no room to wait.
    pub(super) fn end_session(&mut self, session_end: SessionEnd, now: Now) -> (Vec<SessionChange>, Vec<Will>) {
        let SessionEnd { connection, client, memory, expiry_s, will } = session_end;
        let connected = match self.clients.remove(&client) {
            Some(Client::Connected(connected)) if connected.connection == connection => connected,
            other => {
                // Not the holder: nothing was lent to it.
                if let Some(other) = other {
                    self.clients.insert(client, other);
                }
                return (Vec::new(), will.map(|(will, _)| will).into_iter().collect());
            }
        };
        self.connected -= 1;
        if connected.gives_way {
            self.giving_way -= 1;
        } else {
            self.give_back(connected.origin);
        }
        let mut at_once = Vec::new();
        let will = will.and_then(|(will, delay)| {
            if !delay.is_zero() && expiry_s > 0 {
                return Some((will, delay));
            }
            at_once.extend(self.not_too_often(&client, will, now.instant));
            None
        });
        if expiry_s > 0 || memory.stale {
            let will = will.and_then(|(will, delay)| {
                let bytes = self.waiting_will_bytes + will.cost_bytes();
                let delay = delay.min(MAX_WILL_DELAY);
                match now.instant.checked_add(delay) {
                    Some(due) if bytes <= MAX_WAITING_WILL_BYTES => {
                        self.waiting_will_bytes = bytes;
                        Some((will, due))
                    }
                    Some(_) | None => {
                        at_once.push(will);
                        None
                    }
                }
            });
            let away = Away { memory, expiry_s, since: Since::Here(now.instant), will };
            self.clients.insert(Arc::clone(&client), Client::Away(Box::new(away)));
        } else {
            self.lost(&memory);
        }
        if let Some(claim) = connected.next.filter(|claim| !claim.answer.is_closed()) {
            at_once.extend(self.claim(claim, now));
        }
        (self.keep_the_bound(), at_once)
    }

    /// QoS 2 messages that were half way in sessions that have ended since the last call.
    pub(super) fn take_unreleased_lost(&mut self) -> u64 {
        std::mem::take(&mut self.unreleased_lost)
    }

    /// Wills whose delay is over, of those that `room` takes.
    pub(super) fn due_wills(&mut self, now: Instant, mut room: impl FnMut(&Will) -> bool) -> Vec<Will> {
        if self.waiting_will_bytes == 0 {
            return Vec::new();
        }
        self.take_wills(|will, due| due <= now && room(will))
    }

    /// All wills that still wait: at a stop nobody will come back in time.
    pub(super) fn all_wills(&mut self) -> Vec<Will> {
        self.take_wills(|_, _| true)
    }

    /// What the buffer must still be told to forget, at a stop: the next process would take it for sessions that live.
    pub(super) fn stale(&mut self) -> Vec<SessionChange> {
        let mut changes = Vec::new();
        for (client, state) in &mut self.clients {
            if let Client::Away(away) = state
                && std::mem::take(&mut away.memory.stale)
            {
                let session = format!("{}{client}", self.prefix).into();
                changes.push(SessionChange { session, changes: vec![IdChange::Forget] });
            }
        }
        changes
    }

    /// Lets go of those who wait to come in.
    pub(super) fn drop_claims(&mut self) {
        for client in self.clients.values_mut() {
            if let Client::Connected(connected) = client {
                connected.next = None;
            }
        }
    }

    /// Why there is no place for one more of that origin, if so. One may be made by this.
    fn refusal(&mut self, origin: Origin) -> Option<Answer> {
        if self.share(origin) >= self.max_per_origin {
            return Some(Answer::Crowded);
        }
        let full = self.connected - self.giving_way >= self.max_connections;
        if full && !self.make_room(origin) { Some(Answer::Busy) } else { None }
    }

    /// Takes a place from the origin that has the most. Two more than the newcomer's, so that nobody is driven round in
    /// circles: afterwards it has still as many.
    fn make_room(&mut self, newcomer: Origin) -> bool {
        let Some((&most, &share)) = self.shares.iter().max_by_key(|(origin, share)| (**share, **origin)) else {
            return false;
        };
        if share < self.share(newcomer) + 2 || self.giving_way >= GOING_SOCKETS {
            return false;
        }
        let of_most = self.clients.values_mut().filter_map(|client| match client {
            Client::Connected(connected) if connected.origin == most && connected.displace.is_some() => Some(connected),
            Client::Connected(_) | Client::Away(_) => None,
        });
        let Some(newest) = of_most.max_by_key(|connected| connected.connection) else { return false };
        newest.displace(Displaced::ByAnother);
        newest.gives_way = true;
        self.giving_way += 1;
        self.give_back(most);
        true
    }

    fn share(&self, origin: Origin) -> usize {
        self.shares.get(&origin).copied().unwrap_or(0)
    }

    fn give_back(&mut self, origin: Origin) {
        let share = self.share(origin) - 1;
        if share == 0 {
            self.shares.remove(&origin);
        } else {
            self.shares.insert(origin, share);
        }
    }

    /// Gives the will back if it may go out now. One that is too soon after the last one of its client waits, and is void if
    /// the client comes back meanwhile: what it says would not be true any more.
    fn not_too_often(&mut self, client: &Arc<str>, will: Will, now: Instant) -> Option<Will> {
        self.said.retain(|_, then| now.saturating_duration_since(*then) < WILL_PAUSE);
        let due = self.said.get(client).and_then(|then| then.checked_add(WILL_PAUSE));
        let bytes = self.waiting_will_bytes + will.cost_bytes();
        match due {
            Some(due) if bytes <= MAX_WAITING_WILL_BYTES => {
                self.waiting_will_bytes = bytes;
                // Its client came back and went again: the one before was void by then.
                self.held_back.insert(Arc::clone(client), (will, due));
                None
            }
            Some(_) => Some(will),
            None => {
                if self.said.len() < MAX_SESSIONS_AWAY {
                    self.said.insert(Arc::clone(client), now);
                }
                Some(will)
            }
        }
    }

    fn enter(&mut self, claim: Claim, before: Option<Away>, now: Now) -> Option<Will> {
        let Claim { connection, origin, client, resume, answer } = claim;
        if let Some((will, _)) = self.held_back.remove(&client) {
            self.waiting_will_bytes -= will.cost_bytes();
        }
        let (mut memory, mut present, mut overdue) = (Memory::default(), false, None);
        if let Some(mut away) = before {
            let will = self.take_will(&mut away);
            present = resume && !away.memory.stale && !away.is_over(now);
            if present {
                // Back before the delay was over: the will is void.
                memory = away.memory;
            } else {
                self.lost(&away.memory);
                memory = away.memory.emptied();
                overdue = will;
            }
        }
        let (displace, displaced) = oneshot::channel();
        match answer.send(Answer::Enter(Box::new(Entry { lease: Lease { memory, present }, displaced }))) {
            Ok(()) => {
                self.connected += 1;
                let share = self.shares.entry(origin).or_default();
                *share += 1;
                let displace = Some(displace);
                let connected = Connected { connection, origin, displace, gives_way: false, next: None };
                self.clients.insert(client, Client::Connected(connected));
            }
            // A connection waits for its answer until it comes. Should it not have, the session is still here.
            Err(Answer::Enter(entry)) => {
                let since = Since::Here(now.instant);
                let stale = entry.lease.memory.on_disk && !entry.lease.present;
                let memory = Memory { stale, ..entry.lease.memory };
                let away = Away { memory, expiry_s: u32::MAX, since, will: None };
                self.clients.insert(client, Client::Away(Box::new(away)));
            }
            Err(Answer::Busy | Answer::Crowded) => {}
        }
        overdue
    }

    /// One leaves for one that came: the caller adds at most one at a time, but the first may find more, of a time when
    /// the bound was higher.
    fn keep_the_bound(&mut self) -> Vec<SessionChange> {
        if self.clients.len().saturating_sub(self.connected) <= MAX_SESSIONS_AWAY {
            return Vec::new();
        }
        let mut away: Vec<_> = self
            .clients
            .iter()
            .filter_map(|(id, client)| match client {
                Client::Away(away) => Some((!away.memory.is_idle(), away.since, Arc::clone(id))),
                Client::Connected(_) => None,
            })
            .collect();
        let surplus = away.len().saturating_sub(MAX_SESSIONS_AWAY);
        away.sort_unstable();
        away.truncate(surplus);
        let mut forgotten = Vec::with_capacity(surplus);
        for (_, _, client) in away {
            let Some(Client::Away(mut away)) = self.clients.remove(&client) else { continue };
            self.lost(&away.memory);
            // A will of that session would be due with its end; it is given up with it.
            drop(self.take_will(&mut away));
            if away.memory.on_disk {
                let session = format!("{}{client}", self.prefix).into();
                forgotten.push(SessionChange { session, changes: vec![IdChange::Forget] });
            }
        }
        forgotten
    }

    fn lost(&mut self, memory: &Memory) {
        let count = u64::try_from(memory.unreleased.len()).unwrap_or(u64::MAX);
        self.unreleased_lost += count;
    }

    fn take_wills(&mut self, mut which: impl FnMut(&Will, Instant) -> bool) -> Vec<Will> {
        let mut taken = Vec::new();
        for client in self.clients.values_mut() {
            if let Client::Away(away) = client
                && let Some((will, _)) = away.will.take_if(|(will, due)| which(will, *due))
            {
                self.waiting_will_bytes -= will.cost_bytes();
                taken.push(will);
            }
        }
        for (client, (will, _)) in self.held_back.extract_if(|_, (will, due)| which(will, *due)) {
            self.waiting_will_bytes -= will.cost_bytes();
            self.said.insert(client, Instant::now());
            taken.push(will);
        }
        taken
    }

    fn take_will(&mut self, away: &mut Away) -> Option<Will> {
        let (will, _) = away.will.take()?;
        self.waiting_will_bytes -= will.cost_bytes();
        Some(will)
    }
}

impl Away {
    fn is_over(&self, now: Now) -> bool {
        if self.expiry_s == u32::MAX {
            return false;
        }
        let granted = Duration::from_secs(self.expiry_s.into());
        match self.since {
            Since::Here(since) => now.instant.saturating_duration_since(since) > granted,
            // It was to end with its connection, and that has ended.
            Since::BeforeStart(..) if self.expiry_s == 0 => true,
            Since::BeforeStart(used_ms, started) => {
                let elapsed = u64::try_from(now.unix_ms.saturating_sub(used_ms)).map(Duration::from_millis);
                let is_sane = used_ms >= EARLIEST_SANE_MS && now.clock.synchronised;
                now.instant.saturating_duration_since(started) > granted
                    || is_sane && elapsed.is_ok_and(|elapsed| elapsed > granted)
            }
        }
    }
}

/// The name under which the buffer keeps a session.
pub(super) fn session_key(listener: &str, client: &str) -> String {
    format!("listen:{listener}:{client}")
}
