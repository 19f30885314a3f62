//! Connects to one broker, again and again, until the stop.
//!
//! What happens on a connection is the loop's ([`serve`]) and the [`Link`]'s; here it is dialled, and waited between two
//! of them.

use std::collections::HashMap;
use std::future::Future;
use std::io::ErrorKind::{ConnectionReset, UnexpectedEof};
use std::sync::Arc;
use std::time::Instant;

use tokio::net::TcpStream;
use tokio::time::{Interval, MissedTickBehavior, interval, sleep, timeout};
use tokio_rustls::TlsConnector;
use tracing::{debug, info};

use super::fault::BrokerFault;
use super::link::Link;
use super::session::Session;
use super::subscriptions::filter_key;
use super::tls_config;
use super::tls_error::TlsError;
use crate::buffer::StoredSession;
use crate::ingest::close::Close;
use crate::ingest::connection::{Wires, serve};
use crate::ingest::limits::{BROKER_TOPICS_BYTES, DIAL_TIMEOUT, TICK, TLS_TIMEOUT};
use crate::ingest::session_intake::{Destination, SessionIntake};
use crate::ingest::status::LinkStatus;
use crate::ingest::stream::Stream;
use crate::observe::pulse::Pulse;
use crate::planted::{Bug, planted};
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
    destination: Destination,
    kept: Kept,
    status: Arc<LinkStatus>,
    pulse: Pulse,
    stop: Stop,
) {
    let (intake, replies) = SessionIntake::new(&destination, session_key(&settings.name), Arc::clone(&status));
    let topics = destination.topics(BROKER_TOPICS_BYTES);
    let now = Instant::now();
    let session = Session::new(settings, kept.session, topics, now).with_filters(kept.filters);
    let mut ticker = interval(TICK);
    ticker.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let link = Link::new(session, status, pulse, now);
    Task { link, wires: Wires { intake, replies, stop }, ticker }.run().await;
}

struct Task {
    link: Link,
    wires: Wires,
    ticker: Interval,
}

impl Task {
    async fn run(mut self) {
        loop {
            let why = self.connection().await;
            let now = Instant::now();
            self.link.lost(&why, now);
            if matches!(why, Close::Stopping) {
                info!(broker = self.link.session.settings().name, "disconnected");
                return;
            }
            if matches!(why, Close::BufferStopped) {
                // The process ends; its last words are the buffer's.
                return;
            }
            self.link.failed(&why, now);
            if !planted(Bug::NoBackoff) {
                let wait = self.link.backoff.next_wait();
                if self.meanwhile(sleep(wait)).await.is_none() {
                    return;
                }
            }
        }
    }

    /// One connection, from the first packet to the last.
    async fn connection(&mut self) -> Close {
        let stream = match self.connect().await {
            Ok(stream) => stream,
            Err(why) => return why,
        };
        if let Err(why) = self.link.session.connected(Instant::now()) {
            return why;
        }
        serve(&mut self.link, &mut self.wires, stream).await;
        self.link.take_ending()
    }

    /// TCP, and TLS on it where the URL says so.
    async fn connect(&mut self) -> Result<Stream, Close> {
        let Url { host, port, .. } = self.link.session.settings().url.clone();
        let dialled = self.meanwhile(timeout(DIAL_TIMEOUT, TcpStream::connect((host, port)))).await;
        let tcp = match dialled {
            None => return Err(Close::Stopping),
            Some(Err(_)) => return Err(BrokerFault::DialTimeout(DIAL_TIMEOUT.as_secs()).into()),
            Some(Ok(Err(error))) => return Err(BrokerFault::Unreachable(error).into()),
            Some(Ok(Ok(stream))) => stream,
        };
        // Answers are small and wanted at once: Nagle would hold them for the peer's delayed ACK, 40 ms.
        tcp.set_nodelay(true).map_err(Close::Broke)?;
        let Some(tls) = self.link.session.settings().tls.clone() else { return Ok(Stream::Plain(tcp)) };
        let (settings, passed_over) = tls_config::read(&tls).map_err(BrokerFault::Files)?;
        if passed_over > 0 {
            debug!(
                broker = self.link.session.settings().name,
                passed_over, "some CA certificates cannot be read and are ignored"
            );
        }
        let handshake = TlsConnector::from(settings).connect(tls.server_name, tcp);
        match self.meanwhile(timeout(TLS_TIMEOUT, handshake)).await {
            None => Err(Close::Stopping),
            Some(Err(_)) => Err(BrokerFault::TlsTimeout(TLS_TIMEOUT.as_secs()).into()),
            Some(Ok(Err(error))) if matches!(error.kind(), UnexpectedEof | ConnectionReset) => {
                Err(BrokerFault::TlsError(TlsError::closed()).into())
            }
            Some(Ok(Err(error))) => Err(self.link.broke(error)),
            Some(Ok(Ok(stream))) => Ok(Stream::Tls(Box::new(stream))),
        }
    }

    /// Waits for something while there is no connection. `None`: a stop came first.
    async fn meanwhile<T>(&mut self, future: impl Future<Output = T>) -> Option<T> {
        let Self { link, wires, ticker } = self;
        tokio::pin!(future);
        loop {
            tokio::select! {
                biased;
                () = wires.stop.wait() => return None,
                done = &mut future => return Some(done),
                // Answers of the last connection: they die with it.
                Some(_stale) = wires.replies.recv(), if !planted(Bug::NoConnectionEpoch) => wires.intake.answered(),
                _ = ticker.tick() => {}
            }
            link.live(Instant::now());
        }
    }
}
