//! A link to one broker as a [`Role`] of the connection loop: the session, and what the operator hears of it.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::BytesMut;
use tracing::{error, info, warn};

use super::failure_log::{FailureLog, Line};
use super::fault::BrokerFault;
use super::session::Session;
use super::tls_error::TlsError;
use crate::buffer::{Durable, Stopped};
use crate::clock;
use crate::ingest::batch::Batch;
use crate::ingest::close::{Close, Peer};
use crate::ingest::connection::Role;
use crate::ingest::inbox::Inbox;
use crate::ingest::limits::{MAX_UNSENT_BYTES, TICK};
use crate::ingest::receipt::Receipts;
use crate::ingest::session_intake::SessionIntake;
use crate::ingest::status::LinkStatus;
use crate::ingest::stream::Stream;
use crate::observe::pulse::Pulse;
use crate::retry::Backoff;

/// The link, through all its connections.
pub(super) struct Link {
    pub(super) session: Session,
    inbox: Inbox,
    status: Arc<LinkStatus>,
    pulse: Pulse,
    pub(super) backoff: Backoff,
    failure_log: FailureLog,
    next_tick: Instant,
    ending: Option<Close>,
    /// "Connected" was logged for this connection.
    said: bool,
    /// This connection has proven itself.
    well: bool,
}

impl Link {
    pub(super) fn new(session: Session, status: Arc<LinkStatus>, pulse: Pulse, now: Instant) -> Self {
        Self {
            session,
            inbox: Inbox::new(),
            status,
            pulse,
            backoff: Backoff::new(),
            failure_log: FailureLog::default(),
            next_tick: now,
            ending: None,
            said: false,
            well: false,
        }
    }

    /// The connection is over, and its reason with it.
    pub(super) fn lost(&mut self, why: &Close, now: Instant) {
        self.count();
        self.session.lost(now, why);
        self.inbox.clear();
        self.status.connected.store(0, Ordering::Relaxed);
        self.said = false;
        self.well = false;
    }

    /// Why the loop has ended.
    pub(super) fn take_ending(&mut self) -> Close {
        self.ending.take().unwrap_or(Close::Closed)
    }

    /// The connection broke, or the TLS on it: a broker may refuse our certificate after the handshake.
    pub(super) fn broke(&self, error: io::Error) -> Close {
        match TlsError::of(&error, &self.session.settings().url.host) {
            Some(tls_error) => BrokerFault::TlsError(tls_error).into(),
            None => Close::Broke(error),
        }
    }

    /// A sign of life, and what a minute has brought, if it has not been said.
    pub(super) fn live(&mut self, now: Instant) {
        self.pulse.beat();
        let line = self.failure_log.look(now, clock::wall_ms());
        self.complain(line);
    }

    pub(super) fn failed(&mut self, failure: &Close, now: Instant) {
        if let Close::Broker(BrokerFault::OtherVersion { .. }) = failure {
            info!(broker = self.session.settings().name, "{failure}");
            return;
        }
        LinkStatus::add(&self.status.failures, 1);
        self.status.failed(&failure.to_string());
        let line = self.failure_log.about(failure, now, clock::wall_ms());
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

    /// Says that the link is up: at once, or after failures once it has proven itself.
    fn look_well(&mut self, now: Instant) {
        if self.well || !self.session.is_online() {
            return;
        }
        let proven = self.session.proven(now);
        let failures = self.failure_log.failures();
        if !self.said && (proven || failures == 0) {
            self.said = true;
            info!(broker = self.session.settings().name, version = ?self.session.version(), failures, "connected");
        }
        if proven {
            self.well = true;
            self.failure_log = FailureLog::default();
            self.backoff.reset();
        }
    }

    /// A verdict of the session's.
    fn take(&mut self, verdict: Result<(), Close>, now: Instant) {
        if let Err(why) = verdict {
            self.end(why, now);
        }
    }
}

impl Role for Link {
    type Own = Infallible;

    const PEER: Peer = Peer::Broker;

    fn batch(&mut self) -> &mut Batch {
        &mut self.session.batch
    }

    fn output(&mut self) -> &mut BytesMut {
        &mut self.session.out
    }

    fn listens(&self) -> bool {
        self.session.out.len() < MAX_UNSENT_BYTES
    }

    fn answers(&self) -> bool {
        !self.session.is_greeting()
    }

    fn hold(&mut self, full: bool, now: Instant) {
        self.session.reading(now, !full);
    }

    fn due(&self) -> Option<Instant> {
        Some(self.next_tick)
    }

    fn poll_own(&mut self, _cx: &mut Context<'_>) -> Poll<Infallible> {
        Poll::Pending
    }

    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut Stream,
        _intake: &SessionIntake,
    ) -> Poll<io::Result<usize>> {
        stream.poll_read(cx, self.inbox.space())
    }

    fn apply(&mut self, own: Infallible, _now: Instant) {
        match own {}
    }

    fn received(&mut self, bytes: usize, now: Instant) {
        self.inbox.filled(bytes);
        let verdict = self.session.received(now, clock::now(), self.inbox.bytes());
        self.inbox.shrink();
        self.count();
        self.take(verdict, now);
    }

    fn sent(&mut self, now: Instant) {
        self.session.sent(now);
    }

    fn durable(&mut self, durable: Durable<Receipts>, now: Instant) {
        match self.session.durable(now, durable) {
            Ok(packets) => LinkStatus::add(&self.status.acknowledgements, packets),
            Err(why) => self.end(why, now),
        }
    }

    fn tick(&mut self, now: Instant, _stream: &mut Stream, intake: &mut SessionIntake) -> Result<(), Stopped> {
        if now >= self.next_tick {
            self.next_tick = now.checked_add(TICK).unwrap_or(now);
        }
        let verdict = self.session.tick(now);
        self.take(verdict, now);
        intake.note(self.session.take_notes())?;
        self.look_well(now);
        self.live(now);
        Ok(())
    }

    fn end(&mut self, why: Close, now: Instant) {
        if self.ending.is_some() {
            return;
        }
        let why = if let Close::Broke(error) = why { self.broke(error) } else { why };
        if why.reason(Self::PEER).is_some() {
            // No more packets are taken, and the commits under way are answered.
            self.session.close(now);
        }
        self.ending = Some(why);
    }

    fn ending(&self) -> Option<&Close> {
        self.ending.as_ref()
    }

    fn write_disconnect(&mut self) {
        if let Some(code) = self.ending.as_ref().and_then(|why| why.reason(Self::PEER)) {
            self.session.disconnect(code);
        }
    }
}
