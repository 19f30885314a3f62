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
//! deadline and settles what Kafka confirmed → the buffer closes. Nothing depends on this order being finished: a
//! kill -9 at any point loses nothing. It is there so that nothing need be repeated.

use std::collections::HashMap;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tracing::{error, info, warn};

use crate::buffer::{self, Recovered, StoredSession};
use crate::config::{self, Config};
use crate::event::RouteId;
use crate::forward;
use crate::ingest::{self, status::LinkStatus};
use crate::observe::{http, pulse::Pulse, status::Sources, systemd};
use crate::stop::{self, Stop};

/// Ingest has this long to commit and acknowledge what it has read. With [`FORWARD_TIME`] and the buffer's last commit
/// it stays below the 10 s that are promised for SIGTERM.
pub const INGEST_TIME: Duration = Duration::from_secs(4);

/// Forward has this long to hear from Kafka about what is in flight.
pub const FORWARD_TIME: Duration = Duration::from_secs(4);

/// Why the agent ended on its own.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The buffer cannot be opened.
    #[error(transparent)]
    Buffer(#[from] buffer::OpenError),
    /// A `[[listen]]` table cannot be served.
    #[error(transparent)]
    Listen(#[from] listener::ListenError),
    /// `[http] listen` cannot be served.
    #[error("[http] listen = \"{address}\": {cause}; another program, or another agent, may use it; \"\" turns it off")]
    Http {
        /// The address asked for.
        address: SocketAddr,
        /// What the system said.
        cause: std::io::Error,
    },
    /// The operating system refused a thread, a signal handler or the runtime.
    #[error("start: {0}")]
    System(#[from] std::io::Error),
    /// A stage ended although nobody asked it to.
    #[error("{stage} ended: {cause}")]
    Stage {
        /// Which.
        stage: &'static str,
        /// Its last words.
        cause: String,
    },
}

/// Runs the agent until SIGTERM or SIGINT.
///
/// # Errors
/// When it cannot start, or when a stage gives up; what is on disk stays there.
pub fn run(config: Config) -> Result<(), RunError> {
    let (opened, recovered) = buffer::open(config.buffer, &config.agent.data_dir, &config.routes.names())?;
    info!(
        agent = config.agent.id,
        buffer_id = %recovered.buffer_id,
        data_dir = %config.agent.data_dir.display(),
        "tidegate {} starts",
        env!("CARGO_PKG_VERSION")
    );
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(serve(config, opened, recovered))
}

async fn serve(config: Config, opened: Opened<Receipts>, mut recovered: Recovered) -> Result<(), RunError> {
    // What can be in the way is found before any reading is taken.
    let mut signals = Signals::new()?;
    let page = bind_http(&config.http).await?;
    let mut bound = Vec::new();
    for settings in config.listen {
        bound.push(listener::bind(settings).await?);
    }

    let mut pulses = Vec::new();
    let mut links = Vec::new();
    let routes = Arc::new(config.routes);
    let (threads, mut ended) = Threads::new();
    let running = opened.start(pulse(&mut pulses, "buffer"), threads.watch("buffer"))?;
    let entrance = Entrance {
        intake: running.intake,
        routes: Arc::clone(&routes),
        route_ids: Arc::from(std::mem::take(&mut recovered.routes)),
    };

    let (stop_ingest, ingest_stop) = stop::pair();
    let mut ingest = JoinSet::new();
    for settings in config.mqtt {
        let stored = recovered.sessions.remove(broker::session_key(&settings.name).as_str()).unwrap_or_default();
        let status = link(&mut links, &settings.name, "broker");
        let pulse = pulse(&mut pulses, &format!("mqtt {}", settings.name));
        ingest.spawn(broker::run(settings, entrance.clone(), stored, status, pulse, ingest_stop.clone()));
    }
    for bound in bound {
        let sessions = sessions_of(&mut recovered.sessions, &listener::session_prefix(bound.name()));
        let status = link(&mut links, bound.name(), "listener");
        let pulse = pulse(&mut pulses, &format!("listen {}", bound.name()));
        ingest.spawn(bound.run(entrance.clone(), sessions, status, pulse, ingest_stop.clone()));
    }
    drop(entrance);

    let buffer_id = recovered.buffer_id;
    let (stop_forward, forward_stop) = stop::pair();
    let (forward_status, forward_seen) = watch::channel(ForwardStatus::default());
    let forwarder = forward::Forwarder {
        agent_id: config.agent.id.clone(),
        routes,
        outlet: running.outlet,
        settler: running.settler,
        status: forward_status,
        pulse: pulse(&mut pulses, "forward"),
        stop: forward_stop,
    };
    threads.spawn("forward", move || forward::run(config.kafka, recovered, forwarder))?;

    let sources = Arc::new(Sources {
        agent: config.agent.id,
        buffer_id,
        started: Instant::now(),
        buffer: running.status,
        forward: forward_seen,
        links,
        pulses,
        serving: AtomicBool::new(true),
    });
    let (stop_observe, observe_stop) = stop::pair();
    let mut observers = JoinSet::new();
    observers.spawn(systemd::attend(Arc::clone(&sources), observe_stop.clone()));
    if let Some(page) = page {
        observers.spawn(http::serve(page, Arc::clone(&sources), observe_stop));
    }
    systemd::ready();
    info!("ready");

    let trouble = until_stop(&mut signals, &mut ingest, &mut ended).await;
    sources.serving.store(false, Ordering::Relaxed);
    systemd::stopping();
    stop_in_flow_order(&stop_ingest, ingest, &stop_forward, &mut ended).await;
    stop_observe.stop();
    while observers.join_next().await.is_some() {}
    match trouble {
        None => {
            info!(held = sources.snapshot().total.held, "stopped as asked");
            Ok(())
        }
        Some(trouble) => Err(trouble),
    }
}

/// Returns when a signal asks to stop (`None`), or when a stage has ended by itself.
async fn until_stop(signals: &mut Signals, ingest: &mut JoinSet<()>, ended: &mut Ended) -> Option<RunError> {
    tokio::select! {
        name = signals.stop() => {
            info!(signal = name, "stopping");
            None
        }
        Some(end) = ended.recv() => Some(RunError::Stage { stage: end.stage, cause: end.result.err().unwrap_or_else(|| "without a word".to_owned()) }),
        Some(end) = ingest.join_next() => Some(RunError::Stage {
            stage: "ingest",
            cause: end.err().map_or_else(|| "without being asked".to_owned(), |error| error.to_string()),
        }),
    }
}

/// Sockets first, then the buffer's queue, then Kafka, then the buffer itself (custody rules 1 and 2 hold at any point of it).
async fn stop_in_flow_order(stop_ingest: &Stopper, mut ingest: JoinSet<()>, stop_forward: &Stopper, ended: &mut Ended) {
    stop_ingest.stop();
    let all_acknowledged = async { while ingest.join_next().await.is_some() {} };
    if timeout(INGEST_TIME, all_acknowledged).await.is_err() {
        warn!("not all that was read was committed in time; it was not acknowledged and will come again");
    }
    // Drops the last doors to the buffer.
    drop(ingest);
    stop_forward.stop();
    let both_threads = async {
        let mut open = 2_u8;
        while let Some(end) = ended.recv().await {
            if let Err(cause) = end.result {
                error!(stage = end.stage, cause, "ended with an error while stopping");
            }
            open = open.saturating_sub(1);
            if open == 0 {
                break;
            }
        }
    };
    if timeout(FORWARD_TIME + CLOSE_TIME, both_threads).await.is_err() {
        warn!("the last stage did not end in time; what Kafka confirmed last may be sent again");
    }
}

async fn bind_http(http: &config::Http) -> Result<Option<TcpListener>, RunError> {
    let Some(address) = http.listen else { return Ok(None) };
    TcpListener::bind(address).await.map(Some).map_err(|cause| RunError::Http { address, cause })
}

fn pulse(pulses: &mut Vec<(String, Pulse)>, stage: &str) -> Pulse {
    let pulse = Pulse::new();
    pulses.push((stage.to_owned(), pulse.clone()));
    pulse
}

fn link(links: &mut Vec<Arc<LinkStatus>>, name: &str, kind: &'static str) -> Arc<LinkStatus> {
    let status = Arc::new(LinkStatus::new(name, kind));
    links.push(Arc::clone(&status));
    status
}

/// Takes the sessions of one listener out.
fn sessions_of(all: &mut HashMap<Arc<str>, StoredSession>, prefix: &str) -> HashMap<Arc<str>, StoredSession> {
    all.extract_if(|key, _| key.starts_with(prefix)).collect()
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
                _ = self.hangup.recv() => info!("SIGHUP is reserved and does nothing; restart to read the configuration again"),
            }
        }
    }
}
