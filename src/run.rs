//! Wires the stages, starts them, and stops them in flow order.
//!
//! ```text
//!   thread          runs                                   owns
//!   main            tokio, one thread: ingest, http,       the sockets
//!                   systemd, signals
//!   buffer          group commits                          the only write connection to SQLite
//!   forward         sends, reads reports, settles          the Kafka producer, a read connection
//!   (librdkafka's)  one a Kafka broker and one more
//! ```
//!
//! Stop: ingest stops reading → what is queued is committed → its acknowledgements leave → forward sends until its
//! deadline and settles what Kafka confirmed → the buffer closes. When the forwarder finds that another agent has this
//! buffer's identity, the same happens, the buffer gets a new one, and all begins again in this process. Nothing depends on this order being finished: a
//! kill -9 at any point loses nothing. It is there so that nothing need be repeated.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::{error, info, warn};

use crate::buffer::{self, Buffer, BufferThread, CloseError, Recovered};
use crate::config::Config;
use crate::forward::status::ForwardStatus;
use crate::forward::{self, ForwardError};
use crate::ingest::broker;
use crate::ingest::listener::{self, ListenError};
use crate::ingest::session_intake::Destination;
use crate::ingest::status::LinkStatus;
use crate::observe::pulse::Pulse;
use crate::observe::status::Sources;
use crate::observe::{self, http, systemd, watchdog};
use crate::planted::{Bug, planted};
use crate::settings::{self, Delivery};
use crate::stop::{self, Stopper};

/// Ingest has this long to commit and acknowledge what it has read. With [`FORWARD_TIME`] and the buffer's last commit
/// it stays below the 10 s that are promised for SIGTERM.
const INGEST_TIME: Duration = Duration::from_secs(4);

/// Forward has this long to hear from Kafka about what is in flight, and the buffer to close behind it.
const FORWARD_TIME: Duration = Duration::from_secs(5);

/// A file that is damaged again so soon after it was rebuilt lies on a card that is dying: the process ends, and whoever
/// starts it again waits ever longer.
const REBUILD_AGAIN: Duration = Duration::from_secs(3600);

/// A thread that has ended is noticed this soon while stopping.
const JOIN_STEP: Duration = Duration::from_millis(5);

/// Why the agent ended on its own.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunError {
    /// The buffer cannot be opened.
    #[error(transparent)]
    Buffer(#[from] buffer::OpenError),
    /// A `[[listen]]` table cannot be served.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// `[http] listen` cannot be served.
    #[error("[http] listen = \"{address}\": {cause}; another program, or another agent, may use it; \"\" turns it off")]
    Http {
        /// The address asked for.
        address: SocketAddr,
        /// What the system said.
        cause: std::io::Error,
    },
    /// The operating system refused a thread, a signal handler or the runtime.
    #[error("the agent cannot start: {0}")]
    System(#[from] std::io::Error),
    /// librdkafka refuses the configuration.
    #[error(transparent)]
    Kafka(ForwardError),
    /// A stage ended although nobody asked it to.
    #[error("stage {stage} ended unexpectedly: {cause}")]
    Stage {
        /// Which.
        stage: &'static str,
        /// Its last words.
        cause: String,
    },
}

impl RunError {
    /// Would the next start end the same way, until a person has done something?
    #[must_use]
    pub(crate) fn wants_a_person(&self) -> bool {
        match self {
            Self::Buffer(error) => error.next_step() != buffer::NextStep::Retry,
            Self::Kafka(error) => error.wants_a_person(),
            Self::Listen(_) | Self::Http { .. } | Self::System(_) | Self::Stage { .. } => false,
        }
    }
}

/// Runs the agent until SIGTERM or SIGINT.
///
/// # Errors
/// When it cannot start, or when a stage gives up; what is on disk stays there.
#[expect(clippy::needless_pass_by_value, reason = "the agent takes its configuration; it begins anew with a copy")]
pub(crate) fn run(config: Config) -> Result<(), RunError> {
    let mut rebuilt: Option<Instant> = None;
    loop {
        match run_once(config.clone())? {
            End::Asked => return Ok(()),
            End::Moved(how) => {
                let (id, unreleased) = buffer::take_new_identity(&config.buffer, &config.agent.data_dir)?;
                warn!(
                    buffer_id = %id,
                    unreleased,
                    how,
                    "the buffer is not where it was: it is a clone or a restored copy, or this is another machine; \
                     it has taken a new identity (a new buffer id), so that no id is used twice; the readings in it \
                     carry the old id in the header tidegate-was"
                );
            }
            End::Damaged(cause) => {
                if rebuilt.is_some_and(|at| at.elapsed() < REBUILD_AGAIN) {
                    return Err(RunError::Stage { stage: "buffer", cause });
                }
                rebuilt = Some(Instant::now());
                warn!("{cause}; the agent starts again within this process");
            }
            End::DuplicateIdentity(cause) => {
                let (id, unreleased) = buffer::take_new_identity(&config.buffer, &config.agent.data_dir)?;
                error!(
                    buffer_id = %id,
                    unreleased,
                    "{cause}; this buffer has taken a new identity (a new buffer id); the agent sends the readings \
                     in it under the new id, with the old one in the header tidegate-was: Kafka gets those twice \
                     that the other agent has delivered"
                );
            }
        }
    }
}

/// Why a run ended well.
enum End {
    /// A signal.
    Asked,
    /// Another agent has this buffer's identity.
    DuplicateIdentity(String),
    /// The buffer is a copy, by that sign.
    Moved(&'static str),
    /// The buffer's file was found damaged; opening it again rebuilds it.
    Damaged(String),
}

fn run_once(config: Config) -> Result<End, RunError> {
    let (buffer, recovered) =
        Buffer::open(config.buffer.clone(), &config.agent.data_dir, &config.routes.definitions())?;
    // At least once has no watermark by which the copies of a buffer find out about each other. With exactly-once it tells
    // more surely, and a machine that was only exchanged keeps its identity; a buffer without readings has nothing to keep
    // it for, and an image that was written to many cards is one.
    let has_no_judge = config.kafka.delivery == Delivery::AtLeastOnce || recovered.is_empty;
    if let Some(how) = recovered.moved.filter(|_| has_no_judge && !planted(Bug::GiveOutTwice)) {
        return Ok(End::Moved(how));
    }
    info!(
        agent = config.agent.id,
        buffer_id = %recovered.buffer_id,
        data_dir = %config.agent.data_dir.display(),
        "tidegate {} starts",
        env!("CARGO_PKG_VERSION")
    );
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let end = runtime.block_on(async {
        let mut signals = Signals::new()?;
        let (mut stages, sources) = Stages::start(config, buffer, recovered).await?;
        systemd::ready();
        info!("ready");
        let end = stages.until_stop(&mut signals).await;
        sources.serving.store(false, Ordering::Relaxed);
        if end.is_ok() {
            systemd::stopping();
        }
        match stages.stop_in_flow_order().await {
            (Some(anew), _) => return Ok(anew),
            (None, Some(error)) => return Err(RunError::Kafka(error)),
            (None, None) => {}
        }
        if end.is_ok() {
            info!(held = sources.snapshot().total.held, "stopped as asked");
        }
        end.map(|()| End::Asked)
    });
    // A name that a dead server is asked for would hold the process up for as long as the resolver waits.
    runtime.shutdown_background();
    end
}

/// What runs, and the hands that stop it.
struct Stages {
    ingest: JoinSet<Result<(), ListenError>>,
    stop_ingest: Stopper,
    forward: thread::JoinHandle<Result<(), ForwardError>>,
    stop_forward: Stopper,
    buffer: BufferThread,
    observers: JoinSet<()>,
    stop_observers: Stopper,
    /// Each thread holds the sender of its status, so that these tell when one has ended.
    buffer_seen: watch::Receiver<Arc<buffer::BufferStatus>>,
    forward_seen: watch::Receiver<ForwardStatus>,
}

impl Stages {
    async fn start(config: Config, buffer: Buffer, recovered: Recovered) -> Result<(Self, Arc<Sources>), RunError> {
        // What can be in the way is found before any reading is taken.
        let page = bind_http(&config.http).await?;
        let mut bound = Vec::new();
        for settings in config.listen {
            bound.push((settings.name.clone(), listener::bind(settings)?));
        }
        let mut watched = Watched::default();
        let recovery = forward::Recovery::from(&recovered);
        let Recovered { buffer_id, routes: route_ids, gone, sessions, .. } = recovered;
        let routes = Arc::new(config.routes);
        let running = buffer.start(watched.pulse("buffer"))?;

        let (stop_forward, forward_stop) = stop::pair();
        let (forward_status, forward_seen) = watch::channel(ForwardStatus::default());
        let forward = {
            let (settings, agent_id, routes) = (config.kafka, config.agent.id.clone(), Arc::clone(&routes));
            let (reader, settler, pulse) = (running.reader, running.settler, watched.pulse("forward"));
            thread::Builder::new().name("forward".to_owned()).spawn(move || {
                forward::run(
                    &settings,
                    &agent_id,
                    routes,
                    reader,
                    settler,
                    recovery,
                    forward_status,
                    pulse,
                    forward_stop,
                )
            })?
        };

        let destination = Destination { intake: running.intake, routes, route_ids: Arc::from(route_ids) };
        let (stop_ingest, stop) = stop::pair();
        let mut ingest = JoinSet::new();
        for settings in config.mqtt {
            let kept = broker::Kept::of(&settings.name, &sessions);
            let status = watched.link(&settings.name, "broker");
            let pulse = watched.pulse(&format!("mqtt {}", settings.name));
            let running = broker::run(settings, destination.clone(), kept, status, pulse, stop.clone());
            ingest.spawn(async move {
                running.await;
                Ok(())
            });
        }
        for (name, bound) in bound {
            let status = watched.link(&name, "listener");
            let pulse = watched.pulse(&format!("listen {name}"));
            ingest.spawn(listener::run(bound, destination.clone(), sessions.clone(), status, pulse, stop.clone()));
        }

        let sources = Arc::new(Sources {
            agent: config.agent.id,
            buffer_id,
            started: Instant::now(),
            buffer: running.status.clone(),
            forward: forward_seen.clone(),
            links: watched.links,
            gone: gone.into_iter().map(|(id, route)| (id, route.to)).collect(),
            pulses: watched.pulses,
            clock_jumps: AtomicU64::new(0),
            serving: AtomicBool::new(true),
        });
        let (stop_observers, stop) = stop::pair();
        let mut observers = JoinSet::new();
        observers.spawn(watchdog::attend(Arc::clone(&sources), stop.clone()));
        observers.spawn(observe::clock::watch(Arc::clone(&sources), stop.clone()));
        if let Some(page) = page {
            observers.spawn(http::serve(page, Arc::clone(&sources), stop));
        }
        let (buffer, buffer_seen) = (running.thread, running.status);
        let stages = Self {
            ingest,
            stop_ingest,
            forward,
            stop_forward,
            buffer,
            observers,
            stop_observers,
            buffer_seen,
            forward_seen,
        };
        Ok((stages, sources))
    }

    /// Returns when a signal asks to stop, or with an error when a stage has ended by itself.
    async fn until_stop(&mut self, signals: &mut Signals) -> Result<(), RunError> {
        let stage = tokio::select! {
            name = signals.stop() => {
                info!(signal = name, "stopping");
                return Ok(());
            }
            () = gone(&mut self.buffer_seen) => "buffer",
            () = gone(&mut self.forward_seen) => "forward",
            Some(end) = self.ingest.join_next() => {
                return Err(match end {
                    Ok(Ok(())) => RunError::Stage { stage: "ingest", cause: "this is a bug".to_owned() },
                    Ok(Err(error)) => RunError::Listen(error),
                    Err(error) => RunError::Stage { stage: "ingest", cause: error.to_string() },
                });
            }
        };
        Err(RunError::Stage { stage, cause: "see the next error".to_owned() })
    }

    /// Sockets first, then the buffer's queue, then Kafka, then the buffer itself. Custody rules 1 and 2 hold at any
    /// point of it. Gives back why all is to begin anew in this process, if it is, or what the forwarder has found out
    /// about its configuration.
    async fn stop_in_flow_order(mut self) -> (Option<End>, Option<ForwardError>) {
        self.stop_ingest.stop();
        let all_acknowledged = async { while self.ingest.join_next().await.is_some() {} };
        if timeout(INGEST_TIME, all_acknowledged).await.is_err() {
            warn!(
                "the agent could not store all readings before it stopped; those were not acknowledged, so the \
                 senders send them again"
            );
        }
        // Drops the last handles of the intake.
        drop(self.ingest);
        self.stop_forward.stop();
        let (forward, buffer) = (self.forward, self.buffer);
        let both_threads = async {
            while !(forward.is_finished() && buffer.is_finished()) {
                tokio::time::sleep(JOIN_STEP).await;
            }
        };
        let (mut anew, mut found) = (None, None);
        if timeout(FORWARD_TIME, both_threads).await.is_err() {
            warn!("the stage forward did not end in time; the next start may send the last readings again");
        } else {
            match forward.join() {
                Ok(Err(error @ ForwardError::DuplicateIdentity { .. })) => {
                    anew = Some(End::DuplicateIdentity(error.to_string()));
                }
                Ok(Err(error @ ForwardError::Options(_))) => found = Some(error),
                Ok(Err(error)) => error!("{error}"),
                Ok(Ok(())) | Err(_) => {}
            }
            match buffer.join() {
                // First of all it must be readable.
                Err(error @ CloseError::Damaged { .. }) => anew = Some(End::Damaged(error.to_string())),
                Err(error) => error!("{error}"),
                Ok(()) => {}
            }
        }
        self.stop_observers.stop();
        while self.observers.join_next().await.is_some() {}
        (anew, found)
    }
}

/// Returns when the sender is gone.
async fn gone<T>(seen: &mut watch::Receiver<T>) {
    while seen.changed().await.is_ok() {}
}

/// What is watched of the stages, gathered while they are started.
#[derive(Default)]
struct Watched {
    pulses: Vec<(String, Pulse)>,
    links: Vec<Arc<LinkStatus>>,
}

impl Watched {
    fn pulse(&mut self, stage: &str) -> Pulse {
        let pulse = Pulse::new();
        self.pulses.push((stage.to_owned(), pulse.clone()));
        pulse
    }

    fn link(&mut self, name: &str, kind: &'static str) -> Arc<LinkStatus> {
        let status = Arc::new(LinkStatus::new(name, kind));
        self.links.push(Arc::clone(&status));
        status
    }
}

async fn bind_http(http: &settings::Http) -> Result<Option<TcpListener>, RunError> {
    let Some(address) = http.listen else { return Ok(None) };
    TcpListener::bind(address).await.map(Some).map_err(|cause| RunError::Http { address, cause })
}

/// The signals that the agent knows.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Returns the name of the signal that asks to stop.
    async fn stop(&mut self) -> &'static str {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return "SIGTERM",
                _ = self.interrupt.recv() => return "SIGINT",
                _ = self.hangup.recv() => info!("SIGHUP does nothing; restart the agent to read the configuration \
                     again"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ingest::limits::WHOLE_STOP_TIMEOUT;

    #[test]
    fn every_connection_stops_within_the_time_of_ingest() {
        assert!(WHOLE_STOP_TIMEOUT < INGEST_TIME);
    }
}
