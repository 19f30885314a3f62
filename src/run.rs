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
    Listen(#[from] ingest::listener::ListenError),
    /// `[http] listen` cannot be served.
    #[error("[http] listen = \"{address}\": {cause}; is another program, or another agent, using it? \"\" turns it off")]
    Http {
        /// The address asked for.
        address: std::net::SocketAddr,
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
    let names = config.routes.names();
    let mut pulses = Vec::new();
    let mut pulse = |stage: &str| {
        let pulse = Pulse::new();
        pulses.push((stage.to_owned(), pulse.clone()));
        pulse
    };
    let (opened, recovered) = buffer::open(config.buffer, &config.agent.data_dir, &names)?;
    info!(
        agent = config.agent.id,
        buffer_id = %recovered.buffer_id,
        data_dir = %config.agent.data_dir.display(),
        "tidegate {} starts",
        env!("CARGO_PKG_VERSION")
    );
    let (ended, stage_ended) = mpsc::unbounded_channel();
    let buffer = opened.start(pulse("buffer"))?;
}
