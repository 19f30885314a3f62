//! The whole listener over TCP, into a real buffer on a real disk.

mod bounds;
mod sessions;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::super::{ListenError, bind, run};
use super::client::{Connect, V5, V311};
use crate::buffer::{Buffer, BufferReader, BufferThread, Intake, Room};
use crate::ingest::codec::{self, Packet};
use crate::ingest::receipt::Receipts;
use crate::ingest::session_intake::Destination;
use crate::ingest::status::LinkStatus;
use crate::observe::pulse::Pulse;
use crate::settings::links::ListenerKeys;
use crate::settings::machine::BufferKeys;
use crate::settings::{self, Listener, MqttVersion, SyncMode};
use crate::stop::{self, Stopper};

/// Long enough for a busy machine; reached only when a test fails.
const PATIENCE: Duration = Duration::from_secs(20);

fn settings() -> Listener {
    Listener {
        name: "floor".to_owned(),
        address: SocketAddr::from(([127, 0, 0, 1], 0)),
        max_connections: 4,
        max_connections_per_address: 16,
        max_keepalive: Duration::from_secs(600),
        max_packet_bytes: 1024 * 1024,
        receive_maximum: 1000,
        subscriptions: false,
        max_session_expiry: Duration::from_secs(86_400),
        ..settings::example(ListenerKeys::TABLE, ListenerKeys::read).complete().unwrap()
    }
}

/// A listener with its buffer.
struct Site {
    address: SocketAddr,
    status: Arc<LinkStatus>,
    stopper: Stopper,
    tasks: JoinSet<Result<(), ListenError>>,
    reader: BufferReader,
    intake: Intake<Receipts>,
    thread: BufferThread,
    /// Payloads that the buffer has given out, with their topics.
    held: Vec<(String, Vec<u8>)>,
}

impl Site {
    fn start(folder: &Path, settings: Listener) -> Self {
        Self::start_slow(folder, settings, Duration::ZERO)
    }

    /// With a buffer that takes its time.
    fn start_slow(folder: &Path, settings: Listener, commit_delay: Duration) -> Self {
        let disk = settings::Buffer {
            sync: SyncMode::Normal,
            commit_delay: Some(commit_delay),
            ..settings::example(BufferKeys::TABLE, BufferKeys::read).complete(Duration::ZERO).unwrap()
        };
        let (buffer, recovered) = Buffer::open(disk, folder, &[]).unwrap();
        let running = buffer.start::<Receipts>(Pulse::new()).unwrap();
        let intake = running.intake.clone();
        let destination = Destination { intake: running.intake, routes: Arc::default(), route_ids: Arc::from([]) };
        let status = Arc::new(LinkStatus::new("floor", "listener"));
        let (stopper, stop) = stop::pair();
        let bound = bind(settings).unwrap();
        let address = bound.local_addr();
        let mut tasks = JoinSet::new();
        tasks.spawn(run(bound, destination, recovered.sessions, Arc::clone(&status), Pulse::new(), stop));
        Self {
            address,
            status,
            stopper,
            tasks,
            reader: running.reader,
            intake,
            thread: running.thread,
            held: Vec::new(),
        }
    }

    /// Waits until the buffer holds that many events.
    async fn holds(&mut self, events: usize) -> &[(String, Vec<u8>)] {
        let all = async {
            while self.held.len() < events {
                let more = self.reader.next(Duration::ZERO).unwrap();
                self.held.extend(more.into_iter().map(|s| (s.event.topic.to_string(), s.event.payload.to_vec())));
                sleep(Duration::from_millis(2)).await;
            }
        };
        timeout(PATIENCE, all).await.expect("the events come into the buffer");
        &self.held
    }

    /// Takes all the room that there is.
    async fn fill(&self) -> Room {
        timeout(PATIENCE, self.intake.reserve(usize::MAX)).await.expect("an idle buffer has room").unwrap()
    }

    async fn stop(mut self) {
        self.stopper.stop();
        timeout(PATIENCE, self.tasks.join_next()).await.expect("it stops").unwrap().unwrap().unwrap();
        drop((self.tasks, self.intake));
        self.thread.join().unwrap();
    }

    /// Waits until a counter of the status says so.
    async fn until(&self, what: &str, reached: impl Fn(&LinkStatus) -> bool) {
        let reached = async {
            while !reached(&self.status) {
                sleep(Duration::from_millis(2)).await;
            }
        };
        timeout(PATIENCE, reached).await.unwrap_or_else(|_| panic!("{what}: {:?}", self.status));
    }
}

struct Client {
    version: MqttVersion,
    stream: TcpStream,
    input: BytesMut,
}

impl Client {
    async fn dial(address: SocketAddr, connect: &Connect) -> Self {
        let version = if connect.level == 5 { V5 } else { V311 };
        let stream = TcpStream::connect(address).await.unwrap();
        let mut client = Self { version, stream, input: BytesMut::new() };
        client.send(&connect.bytes()).await;
        client
    }

    /// Connected; says whether the session was there.
    async fn connected(address: SocketAddr, connect: &Connect) -> (Self, bool) {
        let mut client = Self::dial(address, connect).await;
        match client.next().await {
            Some(Packet::ConnAck(ack)) if ack.reason == 0 => (client, ack.session_present),
            other => panic!("{other:?}"),
        }
    }

    /// The code of the CONNACK.
    async fn refused(address: SocketAddr, connect: &Connect) -> u8 {
        match Self::dial(address, connect).await.next().await {
            Some(Packet::ConnAck(ack)) => ack.reason,
            other => panic!("{other:?}"),
        }
    }

    async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    /// The next packet; `None` when the server has closed.
    async fn next(&mut self) -> Option<Packet> {
        let next = async {
            loop {
                if let Some(packet) = codec::decode(self.version, &mut self.input, 1 << 20).unwrap() {
                    return Some(packet);
                }
                match self.stream.read_buf(&mut self.input).await {
                    Ok(1..) => {}
                    Ok(0) | Err(_) => return None,
                }
            }
        };
        timeout(PATIENCE, next).await.expect("an answer or an end")
    }

    async fn names(&mut self, count: usize) -> Vec<&'static str> {
        let mut names = Vec::new();
        while names.len() < count {
            names.push(self.next().await.expect("the connection lives").name());
        }
        names
    }
}
