//! What the connections of a listener share, and what they say to its task.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::{Semaphore, mpsc};

use super::gate::Stage;
use super::origin::ConnectionId;
use super::policy::ListenerPolicy;
use super::registry::{Claim, Now};
use super::remarks::Remark;
use super::users::Users;
use crate::clock::{self, Moment};
use crate::ingest::session_intake::Destination;
use crate::ingest::status::LinkStatus;
use crate::stop::Stop;

/// What all connections of a listener share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) name: Arc<str>,
    pub(super) policy: Arc<ListenerPolicy>,
    pub(super) users: Option<Users>,
    pub(super) destination: Destination,
    pub(super) status: Arc<LinkStatus>,
    /// To the listener's task.
    pub(super) words: mpsc::Sender<Word>,
    /// Memory for large packets that are still arriving, in bytes.
    pub(super) assembly: Arc<Semaphore>,
    /// Memory for wills that wait for room in the buffer, in bytes.
    pub(super) wills: Arc<Semaphore>,
    pub(super) stop: Stop,
}

/// What a connection says to the listener's task while it lives.
#[derive(Debug)]
pub(super) enum Word {
    Claim(Claim),
    /// A stranger has come so far.
    Moved {
        connection: ConnectionId,
        to: Stage,
    },
    /// It is no stranger any more.
    In(ConnectionId),
    /// Said once a connection.
    Remark {
        peer: SocketAddr,
        client: Arc<str>,
        remark: Remark,
    },
}

/// Both clocks, read now.
pub(super) fn now() -> Now {
    let Moment { wall_ms: unix_ms, clock } = clock::now();
    Now { instant: Instant::now(), unix_ms, clock }
}
