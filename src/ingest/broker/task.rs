//! The loop around the session: one task owns the socket, feeds the session and carries its batches to the door.
//!
//! `loop { what happened? apply it }`: the `select!` only names what happened, and everything it waits for is cancel
//! safe. Reading stops while a batch waits for room and while answers pile up unsent; nothing else ever stops.

use std::collections::HashMap;
use std::future::Future;
use std::io::{
    self,
    ErrorKind::{ConnectionReset, UnexpectedEof},
};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use tokio::net::TcpStream;
use tokio::time::{Interval, MissedTickBehavior, interval, sleep, timeout};
use tokio_rustls::TlsConnector;
use tracing::{debug, error, info, warn};

use super::complaint::{Complaint, Line};
use super::distrust::Distrust;
use super::fault::BrokerFault;
use super::session::Session;
use super::stream::{Carried, Stream};
use super::subscriptions::filter_key;
use super::trust;
use crate::buffer::{Durable, Room, Stopped, StoredSession};
use crate::clock;
use crate::ingest::close::{Close, Peer};
use crate::ingest::door::{Door, Entrance, Replies, Submitted};
use crate::ingest::inbox::Inbox;
use crate::ingest::limits::{
    BROKER_TOPICS_BYTES, DIAL_TIMEOUT, DISCONNECT_TIMEOUT, FAULT_TIMEOUT, MAX_UNSENT_BYTES, STOP_TIMEOUT, TICK,
    TLS_TIMEOUT,
};
use crate::ingest::receipt::Receipts;
use crate::ingest::status::LinkStatus;
use crate::observe::pulse::Pulse;
use crate::planted::{Bug, planted};
use crate::retry::Backoff;
use crate::settings;
use crate::settings::links::Url;
use crate::stop::Stop;

/// Under which the buffer keeps the session at that broker.
fn session_key(name: &str) -> Arc<str> {
    format!("broker:{name}").into()
}

/// What the buffer has kept of one broker: our session there, and the filters that it was asked for.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    session: StoredSession,
    filters: Vec<String>,
}

impl Kept {
    /// Of the broker of that name.
    #[must_use]
    pub(crate) fn of(name: &str, sessions: &HashMap<Arc<str>, StoredSession>) -> Self {
        let prefix = filter_key(name, "");
        let filters = sessions.keys().filter_map(|key| key.strip_prefix(&*prefix)).map(str::to_owned).collect();
        Self { session: sessions.get(&session_key(name)).cloned().unwrap_or_default(), filters }
    }
}

/// Subscribes at one broker until `stop`.
pub(crate) async fn run(
    settings: settings::Broker,
    entrance: Entrance,
    kept: Kept,
    status: Arc<LinkStatus>,
    pulse: Pulse,
    stop: Stop,
) {
    let (door, replies) = Door::new(&entrance, session_key(&settings.name), Arc::clone(&status));
    let topics = entrance.topics(BROKER_TOPICS_BYTES);
    let session = Session::new(settings, kept.session, topics, Instant::now()).with_filters(kept.filters);
    let mut ticker = interval(TICK);
    ticker.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let backoff = Backoff::new();
    let complaint = Complaint::default();
    Link {
        session,
        door,
        replies,
        inbox: Inbox::new(),
        status,
        pulse,
        stop,
        ticker,
        backoff,
        complaint,
        said: false,
        well: false,
    }
    .live()
    .await;
}

struct Link {
    session: Session,
    door: Door,
    replies: Replies,
    inbox: Inbox,
    status: Arc<LinkStatus>,
    pulse: Pulse,
    stop: Stop,
    ticker: Interval,
    backoff: Backoff,
    complaint: Complaint,
    /// "Connected" was logged for this connection.
    said: bool,
    /// This connection has proven itself.
    well: bool,
}

/// What the loop waits for while a batch has no room.
type Waiting = Pin<Box<dyn Future<Output = Result<Room, Stopped>> + Send>>;

enum Happened {
    Stop,
    Committed(Durable<Receipts>),
    Room(Result<Room, Stopped>),
    Carried(Carried),
    Tick,
}

impl Link {
    async fn live(mut self) {
        self.connect_again_and_again().await;
    }

    async fn connect_again_and_again(&mut self) {
        loop {
            self.said = false;
            self.well = false;
            let ended = self.connection().await;
            let now = Instant::now();
            self.count();
            self.session.lost(now, &ended);
            self.inbox.clear();
            self.status.connected.store(0, Ordering::Relaxed);
            if matches!(ended, Close::Stopping) {
                info!(broker = self.session.settings().name, "disconnected");
                return;
            }
            if matches!(ended, Close::BufferStopped) {
                // The process ends; its last words are the buffer's.
                return;
            }
            self.failed(&ended, now);
            if !planted(Bug::NoBackoff) {
                let wait = self.backoff.next_wait();
                if self.meanwhile(sleep(wait)).await.is_none() {
                    return;
                }
            }
        }
    }

    /// One connection, from the first packet to the last.
    async fn connection(&mut self) -> Close {
        let mut stream = match self.connect().await {
            Ok(stream) => stream,
            Err(ended) => return ended,
        };
        if let Err(ended) = self.session.connected(Instant::now()) {
            return ended;
        }
        let ended = self.converse(&mut stream).await;
        if let Some(code) = ended.reason(Peer::Broker) {
            self.part(&mut stream, &ended, code).await;
        }
        ended
    }

    /// TCP, and TLS on it where the URL says so.
    async fn connect(&mut self) -> Result<Stream, Close> {
        let Url { host, port, .. } = self.session.settings().url.clone();
        let dialled = self.meanwhile(timeout(DIAL_TIMEOUT, TcpStream::connect((host, port)))).await;
        let tcp = match dialled {
            None => return Err(Close::Stopping),
            Some(Err(_)) => return Err(BrokerFault::DialTimeout(DIAL_TIMEOUT.as_secs()).into()),
            Some(Ok(Err(error))) => return Err(BrokerFault::Unreachable(error).into()),
            Some(Ok(Ok(stream))) => stream,
        };
        // Answers are small and wanted at once: Nagle would hold them for the peer's delayed ACK, 40 ms.
        tcp.set_nodelay(true).map_err(Close::Broke)?;
        let Some(tls) = self.session.settings().tls.clone() else { return Ok(Stream::Plain(tcp)) };
        let (settings, passed_over) = trust::read(&tls).map_err(BrokerFault::Files)?;
        if passed_over > 0 {
            debug!(broker = self.session.settings().name, passed_over, "CA certificates that cannot be read");
        }
        let handshake = TlsConnector::from(settings).connect(tls.server_name, tcp);
        match self.meanwhile(timeout(TLS_TIMEOUT, handshake)).await {
            None => Err(Close::Stopping),
            Some(Err(_)) => Err(BrokerFault::TlsTimeout(TLS_TIMEOUT.as_secs()).into()),
            Some(Ok(Err(error))) if matches!(error.kind(), UnexpectedEof | ConnectionReset) => {
                Err(BrokerFault::Distrust(Distrust::closed()).into())
            }
            Some(Ok(Err(error))) => Err(self.broke(error)),
            Some(Ok(Ok(stream))) => Ok(Stream::Tls(Box::new(stream))),
        }
    }

    /// The connection broke, or the TLS on it: a broker may refuse our certificate after the handshake.
    fn broke(&self, error: io::Error) -> Close {
        match Distrust::of(&error, &self.session.settings().url.host) {
            Some(distrust) => BrokerFault::Distrust(distrust).into(),
            None => Close::Broke(error),
        }
    }

    async fn converse(&mut self, stream: &mut Stream) -> Close {
        let mut waiting: Option<Waiting> = None;
        loop {
            let happened = self.next(stream, &mut waiting).await;
            let now = Instant::now();
            self.pulse.beat();
            let result = match happened {
                Happened::Stop => Err(Close::Stopping),
                Happened::Committed(durable) => self.durable(durable, now),
                Happened::Room(room) => {
                    waiting = None;
                    self.session.reading(now, true);
                    room.and_then(|room| self.door.store(&mut self.session.batch, room))
                        .map_err(|Stopped| Close::BufferStopped)
                }
                Happened::Carried(Carried::Out(Ok(_))) => {
                    self.session.sent(now);
                    Ok(())
                }
                Happened::Carried(Carried::Out(Err(error)) | Carried::In(Err(error))) => Err(self.broke(error)),
                Happened::Carried(Carried::In(Ok(0))) => Err(Close::Closed),
                Happened::Carried(Carried::In(Ok(bytes))) => self.read(bytes, now),
                Happened::Tick => Ok(()),
            };
            let result = result.and_then(|()| self.session.tick(now));
            if let Err(ended) = result {
                return ended;
            }
            if let Err(Stopped) = self.door.note(self.session.take_notes()) {
                return Close::BufferStopped;
            }
            if waiting.is_none() && !self.session.batch.is_empty() {
                match self.door.submit(&mut self.session.batch) {
                    Ok(Submitted::Stored) => {}
                    Ok(Submitted::Wait) => {
                        self.session.reading(now, false);
                        waiting = Some(Box::pin(self.door.room(&self.session.batch)));
                    }
                    Err(Stopped) => return Close::BufferStopped,
                }
            }
            self.look_well(now);
            self.sum_up(now);
        }
    }

    async fn next(&mut self, stream: &mut Stream, waiting: &mut Option<Waiting>) -> Happened {
        let reading = waiting.is_none() && self.session.out.len() < MAX_UNSENT_BYTES;
        let inbox = reading.then(|| self.inbox.space());
        tokio::select! {
            biased;
            () = self.stop.wait() => Happened::Stop,
            Some(durable) = self.replies.recv(), if !self.session.is_greeting() => Happened::Committed(durable),
            room = granted(waiting) => Happened::Room(room),
            carried = stream.carry(&mut self.session.out, inbox) => Happened::Carried(carried),
            _ = self.ticker.tick() => Happened::Tick,
        }
    }

    fn read(&mut self, bytes: usize, now: Instant) -> Result<(), Close> {
        self.inbox.filled(bytes);
        let result = self.session.received(now, clock::now(), self.inbox.bytes());
        self.inbox.shrink();
        self.count();
        if result.is_err() {
            // What came before the offending packet is good: it is stored and answered before we part, so that it does
            // not come again with the offender.
            return match self.door.submit(&mut self.session.batch) {
                Ok(Submitted::Stored | Submitted::Wait) => result,
                Err(Stopped) => Err(Close::BufferStopped),
            };
        }
        Ok(())
    }

    /// Answers everything that the buffer has ready, to leave in one write.
    fn durable(&mut self, first: Durable<Receipts>, now: Instant) -> Result<(), Close> {
        let mut packets = 0_u64;
        let mut next = Some(first);
        while let Some(durable) = next {
            self.door.answered();
            packets = packets.saturating_add(self.session.durable(now, durable)?);
            next = self.replies.try_recv().ok();
        }
        LinkStatus::add(&self.status.acknowledgements, packets);
        Ok(())
    }

    /// Stops reading, waits for the commits under way, sends their answers and says goodbye.
    async fn part(&mut self, stream: &mut Stream, why: &Close, code: u8) {
        if matches!(why, Close::Stopping) && planted(Bug::CarelessStop) {
            return;
        }
        let time = if matches!(why, Close::Stopping) { STOP_TIMEOUT } else { FAULT_TIMEOUT };
        self.session.close(Instant::now());
        let answered = timeout(time, self.answer_outstanding(stream)).await;
        if answered.is_err() {
            let open = self.door.outstanding();
            debug!(broker = self.session.settings().name, open, "closing without waiting for these commits any longer");
        }
        self.session.farewell(code);
        match timeout(DISCONNECT_TIMEOUT, stream.finish(&self.session.out)).await {
            Ok(Ok(())) => {}
            // Nothing depends on it: what was not answered comes again.
            Ok(Err(error)) => debug!(broker = self.session.settings().name, %error, "no orderly goodbye"),
            Err(_) => debug!(broker = self.session.settings().name, "no orderly goodbye in time"),
        }
    }

    async fn answer_outstanding(&mut self, stream: &mut Stream) {
        while self.door.outstanding() > 0 || !self.session.out.is_empty() {
            let happened = tokio::select! {
                biased;
                Some(durable) = self.replies.recv() => Happened::Committed(durable),
                carried = stream.carry(&mut self.session.out, None) => Happened::Carried(carried),
                _ = self.ticker.tick() => Happened::Tick,
            };
            self.pulse.beat();
            match happened {
                Happened::Committed(durable) => {
                    if self.durable(durable, Instant::now()).is_err() {
                        return;
                    }
                }
                Happened::Carried(Carried::Out(Err(_))) => return,
                Happened::Carried(_) | Happened::Tick | Happened::Stop | Happened::Room(_) => {}
            }
        }
    }

    /// Waits for something while there is no connection. `None`: a stop came first.
    async fn meanwhile<T>(&mut self, future: impl Future<Output = T>) -> Option<T> {
        tokio::pin!(future);
        loop {
            tokio::select! {
                biased;
                () = self.stop.wait() => return None,
                done = &mut future => return Some(done),
                // Answers of the last connection: they die with it.
                Some(_stale) = self.replies.recv(), if !planted(Bug::NoConnectionEpoch) => self.door.answered(),
                _ = self.ticker.tick() => {}
            }
            self.pulse.beat();
            self.sum_up(Instant::now());
        }
    }

    fn count(&mut self) {
        let counts = self.session.take_counts();
        if counts.connects > 0 {
            self.status.connected.store(1, Ordering::Relaxed);
            LinkStatus::add(&self.status.connects, counts.connects);
        }
        if counts.refusals > 0 {
            LinkStatus::add(&self.status.refusals, counts.refusals);
        }
        LinkStatus::add(&self.status.unreleased_lost, counts.unreleased_lost);
    }

    fn failed(&mut self, failure: &Close, now: Instant) {
        if let Close::Broker(BrokerFault::OtherVersion { .. }) = failure {
            info!(broker = self.session.settings().name, "{failure}");
            return;
        }
        LinkStatus::add(&self.status.failures, 1);
        self.status.failed(&failure.to_string());
        let line = self.complaint.about(failure, now, clock::wall_ms());
        self.complain(line);
    }

    /// What a minute has brought, if it has not been said.
    fn sum_up(&mut self, now: Instant) {
        let line = self.complaint.look(now, clock::wall_ms());
        self.complain(line);
    }

    fn complain(&self, line: Option<Line>) {
        let Some(Line { text, remedy, grave, failures }) = line else { return };
        let broker = self.session.settings().name.as_str();
        let version = self.session.version();
        if grave {
            error!(broker, ?version, failures, remedy, "broker link: {text}");
        } else {
            warn!(broker, ?version, failures, remedy, "broker link: {text}");
        }
    }

    /// Says that the link is up: at once, or after failures once it has proven itself.
    fn look_well(&mut self, now: Instant) {
        if self.well || !self.session.is_online() {
            return;
        }
        let proven = self.session.proven(now);
        if !self.said && (proven || self.complaint.failures() == 0) {
            self.said = true;
            let failures = self.complaint.failures();
            info!(broker = self.session.settings().name, version = ?self.session.version(), failures, "connected");
        }
        if proven {
            self.well = true;
            self.complaint = Complaint::default();
            self.backoff.reset();
        }
    }
}

/// The room that is waited for; never, when none is.
async fn granted(waiting: &mut Option<Waiting>) -> Result<Room, Stopped> {
    match waiting {
        Some(room) => room.await,
        None => std::future::pending().await,
    }
}
