//! From an open buffer to one whose thread runs: queues, doors, and who holds which end.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::thread;

use rusqlite::Connection;
use tokio::sync::{Semaphore, watch};

use super::chunk::{ChunkReader, ChunkWriter};
use super::copies::Tools;
use super::error::{CloseError, OpenError};
use super::inbox::Inbox;
use super::intake::Drops;
use super::limits::INTAKE_BYTES;
use super::pace::Pace;
use super::settlement::Applied;
use super::space::Space;
use super::tail_cache::TailCache;
use super::writer::{Attempted, Counts, Outside, Writer};
use super::{Buffer, BufferReader, BufferStatus, Intake, Settler};
use crate::event::RouteId;
use crate::observe::pulse::Pulse;
use crate::settings::Compression;

/// The doors of a buffer whose thread runs.
#[derive(Debug)]
pub(crate) struct Running<R> {
    /// For ingest.
    pub intake: Intake<R>,
    /// For forward: reading.
    pub reader: BufferReader,
    /// For forward: settling.
    pub settler: Settler,
    /// For everyone.
    pub status: watch::Receiver<Arc<BufferStatus>>,
    /// The thread.
    pub thread: BufferThread,
}

/// The thread that owns the write connection. It ends by itself when all intakes and the settler are dropped and
/// everything queued is committed.
#[derive(Debug)]
pub(crate) struct BufferThread(thread::JoinHandle<Result<(), CloseError>>);

impl BufferThread {
    /// Has it ended?
    #[must_use]
    pub(crate) fn is_finished(&self) -> bool {
        self.0.is_finished()
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When something that was received could not be stored, or the file could not be closed tidily. Nothing that was
    /// acknowledged is lost by either.
    pub(crate) fn join(self) -> Result<(), CloseError> {
        self.0.join().unwrap_or(Err(CloseError::Panicked))
    }
}

impl Buffer {
    /// Starts the thread. It beats `pulse` at least once a second while its loop turns.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub(crate) fn start<R: Send + 'static>(self, pulse: Pulse) -> Result<Running<R>, OpenError> {
        let data_dir = self.data_dir.clone();
        let (writer, connection, doors) = self.assemble(pulse);
        let thread = thread::Builder::new()
            .name("buffer".to_owned())
            .spawn(move || writer.run(connection))
            .map_err(OpenError::files("start the buffer thread for", &data_dir))?;
        let Doors { intake, reader, settler, status } = doors;
        Ok(Running { intake, reader, settler, status, thread: BufferThread(thread) })
    }

    /// The thread's part and everyone else's.
    pub(super) fn assemble<R>(self, pulse: Pulse) -> (Writer<R>, Connection, Doors<R>) {
        let room = Arc::new(Semaphore::new(INTAKE_BYTES));
        let last_line = self.route_names.keys().next_back().copied().unwrap_or(RouteId::UNROUTED);
        let drops = Arc::new(Drops::up_to(last_line));
        let (intake, arrivals, open_doors) = Intake::new(Arc::clone(&room), Arc::clone(&drops));
        let applied = Arc::new(Applied::default());
        applied.set_lanes(self.books.lanes.iter().map(|(id, lane)| (Arc::clone(&lane.kafka_topic), *id)));
        let (settler, settlements) = Settler::new(Arc::clone(&applied));
        let tail = Arc::new(TailCache::new(self.books.next - 1));
        let reader = BufferReader::new(self.reader, Arc::clone(&tail), self.books.settled.released());
        let (status, status_receiver) = watch::channel(Arc::new(BufferStatus::default()));
        let compress = self.settings.compression == Compression::Zstd;
        let writer = Writer {
            lock: self.lock,
            max_bytes: self.settings.max_bytes,
            space: Space::new(self.database.wal_path(), self.settings.max_bytes),
            durable: self.books.transaction,
            attempted: Attempted::default(),
            data_dir: self.data_dir,
            database: self.database,
            marks: self.marks,
            life: self.life,
            books: self.books,
            route_names: self.route_names,
            inbox: Inbox::new(arrivals, open_doors, settlements, (drops, intake.nap())),
            tools: Tools {
                writer: ChunkWriter::new(compress),
                reader: ChunkReader::default(),
                unread: BTreeSet::new(),
            },
            outside: Outside { tail, applied, room, status },
            pulse,
            counts: Counts::new(Pace::new(self.settings.commit_delay, self.settings.linger)),
        };
        // Whoever looks before the first turn of the thread sees the books, not zeros.
        writer.outside.status.send_replace(Arc::new(writer.snapshot(None)));
        (writer, self.connection, Doors { intake, reader, settler, status: status_receiver })
    }
}

/// Everyone else's part.
pub(super) struct Doors<R> {
    pub(super) intake: Intake<R>,
    pub(super) reader: BufferReader,
    pub(super) settler: Settler,
    pub(super) status: watch::Receiver<Arc<BufferStatus>>,
}
