//! The whole listener over TCP, into a real buffer on a real disk.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::super::limits::SPARE_SOCKETS;
use super::super::{ListenError, bind, run};
use super::client::{Connect, V5, V311, connect, disconnect, pingreq, publish, publish_to, pubrel, subscribe};
use crate::buffer::{Buffer, BufferThread, Intake, Outlet, Room};
use crate::config::{self, Compression, Listener, MqttVersion, SyncMode, WhenFull};
use crate::ingest::codec::{self, Packet};
use crate::ingest::door::Entrance;
use crate::ingest::receipt::Receipts;
use crate::ingest::status::LinkStatus;
use crate::observe::pulse::Pulse;
use crate::stop::{self, Stopper};

/// Long enough for a busy machine; reached only when a test fails.
const PATIENCE: Duration = Duration::from_secs(20);

fn settings() -> Listener {
    Listener {
        name: "floor".to_owned(),
        address: SocketAddr::from(([127, 0, 0, 1], 0)),
        users_file: None,
        max_connections: 4,
        max_keepalive: Duration::from_secs(600),
        max_packet_bytes: 1024 * 1024,
        receive_maximum: 1000,
        max_session_expiry: Duration::from_secs(86_400),
    }
}

/// A listener with its buffer.
struct Site {
    address: SocketAddr,
    status: Arc<LinkStatus>,
    stopper: Stopper,
    tasks: JoinSet<Result<(), ListenError>>,
    outlet: Outlet,
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
        let disk = config::Buffer {
            max_bytes: 1 << 30,
            when_full: WhenFull::StopReading,
            sync: SyncMode::Normal,
            commit_delay,
            compression: Compression::Zstd,
        };
        let (buffer, recovered) = Buffer::open(disk, folder, &[]).unwrap();
        let running = buffer.start::<Receipts>(Pulse::new()).unwrap();
        let intake = running.intake.clone();
        let entrance = Entrance { intake: running.intake, routes: Arc::default(), route_ids: Arc::from([]) };
        let status = Arc::new(LinkStatus::new("floor", "listener"));
        let (stopper, stop) = stop::pair();
        let bound = bind(settings).unwrap();
        let address = bound.local_addr();
        let mut tasks = JoinSet::new();
        tasks.spawn(run(bound, entrance, recovered.sessions, Arc::clone(&status), Pulse::new(), stop));
        Self {
            address,
            status,
            stopper,
            tasks,
            outlet: running.outlet,
            intake,
            thread: running.thread,
            held: Vec::new(),
        }
    }

    /// Waits until the buffer holds that many events.
    async fn holds(&mut self, events: usize) -> &[(String, Vec<u8>)] {
        let all = async {
            while self.held.len() < events {
                let more = self.outlet.next(Duration::ZERO).unwrap();
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

#[tokio::test]
async fn every_qos_of_both_versions_comes_into_the_buffer_and_is_acknowledged() {
    let folder = tempfile::tempdir().unwrap();
    let mut site = Site::start(folder.path(), settings());
    for version in [V311, V5] {
        let (mut client, _) = Client::connected(site.address, &connect(version, "press")).await;
        client.send(&publish(version, 0, false, 0, "zero")).await;
        client.send(&publish(version, 1, false, 1, "one")).await;
        client.send(&publish(version, 2, false, 2, "two")).await;
        assert_eq!(client.names(2).await, ["PUBACK", "PUBREC"]);
        client.send(&[pubrel(2), pingreq(), subscribe(version, &["#"])].concat()).await;
        let mut names = client.names(3).await;
        names.sort_unstable();
        assert_eq!(names, ["PINGRESP", "PUBCOMP", "SUBACK"]);
        client.send(&disconnect(0, None)).await;
        assert_eq!(client.next().await, None);
    }
    let held = site.holds(6).await;
    let payloads: Vec<_> = held.iter().map(|(_, payload)| String::from_utf8_lossy(payload)).collect();
    assert_eq!(payloads, ["zero", "one", "two", "zero", "one", "two"]);
    assert!(held.iter().all(|(topic, _)| topic == "sensors/press"));
    site.until("everything counted", |status| status.connected.load(Ordering::Relaxed) == 0).await;
    let status = &site.status;
    let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    assert_eq!((count(&status.messages), count(&status.acknowledgements), count(&status.connects)), (6, 6, 2));
    assert_eq!((count(&status.failures), count(&status.refusals)), (0, 2), "two SUBSCRIBE filters");
    site.stop().await;
}

#[tokio::test]
async fn a_qos_2_message_resent_after_a_restart_of_the_agent_is_stored_once() {
    for version in [V311, V5] {
        let folder = tempfile::tempdir().unwrap();
        let mut site = Site::start(folder.path(), settings());
        let (mut client, present) = Client::connected(site.address, &connect(version, "press").kept()).await;
        assert!(!present);
        client.send(&publish(version, 2, false, 7, "once")).await;
        assert_eq!(client.names(1).await, ["PUBREC"]);
        site.holds(1).await;
        site.stop().await;

        let mut site = Site::start(folder.path(), settings());
        let (mut client, present) = Client::connected(site.address, &connect(version, "press").kept()).await;
        assert!(present);
        client.send(&publish(version, 2, true, 7, "once")).await;
        assert_eq!(client.names(1).await, ["PUBREC"]);
        client.send(&pubrel(7)).await;
        assert_eq!(client.names(1).await, ["PUBCOMP"]);
        client.send(&publish(version, 2, false, 7, "another")).await;
        assert_eq!(client.names(1).await, ["PUBREC"]);
        let held: Vec<_> = site.holds(2).await.iter().map(|(_, payload)| payload.clone()).collect();
        assert_eq!(held, [b"once".to_vec(), b"another".to_vec()]);
        assert_eq!(site.status.repeats.load(Ordering::Relaxed), 1);
        site.stop().await;
    }
}

#[tokio::test]
async fn a_clean_start_forgets_for_good() {
    for version in [V311, V5] {
        let folder = tempfile::tempdir().unwrap();
        let site = Site::start(folder.path(), settings());
        let (mut client, _) = Client::connected(site.address, &connect(version, "press").kept()).await;
        client.send(&publish(version, 2, false, 7, "old")).await;
        client.names(1).await;
        let (client, present) = Client::connected(site.address, &connect(version, "press")).await;
        assert!(!present);
        drop(client);
        site.stop().await;
        let mut site = Site::start(folder.path(), settings());
        let (mut client, present) = Client::connected(site.address, &connect(version, "press").kept()).await;
        assert!(!present, "it came back after a restart");
        client.send(&publish(version, 2, true, 7, "new")).await;
        client.names(1).await;
        site.holds(2).await;
        site.stop().await;
    }
}

#[tokio::test]
async fn a_second_connection_of_a_client_ends_the_first_and_goes_on_where_it_was() {
    for version in [V311, V5] {
        let folder = tempfile::tempdir().unwrap();
        let mut site = Site::start(folder.path(), settings());
        let mut will = connect(version, "press").kept().with_will(0);
        will.will.as_mut().unwrap().topic = "status/first";
        let (mut first, _) = Client::connected(site.address, &will).await;
        first.send(&publish(version, 2, false, 7, "half way")).await;
        first.names(1).await;
        let (mut second, present) = Client::connected(site.address, &connect(version, "press").kept()).await;
        assert!(present);
        match (version, first.next().await) {
            (MqttVersion::V5, Some(Packet::Disconnect(goodbye))) => assert_eq!(goodbye.reason, 0x8e),
            (MqttVersion::V311, None) => {}
            (_, other) => panic!("{other:?}"),
        }
        second.send(&publish(version, 2, true, 7, "half way")).await;
        second.send(&pubrel(7)).await;
        assert_eq!(second.names(2).await, ["PUBREC", "PUBCOMP"]);
        let held = site.holds(2).await;
        assert_eq!(held.iter().map(|(topic, _)| topic.as_str()).collect::<Vec<_>>(), ["sensors/press", "status/first"]);
        site.stop().await;
    }
}

#[tokio::test]
async fn a_crowd_of_connections_with_one_client_id_leaves_one() {
    let folder = tempfile::tempdir().unwrap();
    let site = Site::start(folder.path(), settings());
    let mut clients = Vec::new();
    for _ in 0..12 {
        clients.push(Client::dial(site.address, &connect(V5, "press").kept()).await);
    }
    let (mut last, _) = Client::connected(site.address, &connect(V5, "press").kept()).await;
    for client in &mut clients {
        while client.next().await.is_some() {}
    }
    last.send(&publish(V5, 1, false, 1, "x")).await;
    assert_eq!(last.names(1).await, ["PUBACK"]);
    assert_eq!(site.status.connected.load(Ordering::Relaxed), 1);
    site.stop().await;
}

#[tokio::test]
async fn a_client_that_vanishes_leaves_its_will_and_one_that_comes_back_in_time_does_not() {
    let folder = tempfile::tempdir().unwrap();
    let mut site = Site::start(folder.path(), settings());
    let (client, _) = Client::connected(site.address, &connect(V311, "a").with_will(0)).await;
    drop(client);
    assert_eq!(site.holds(1).await[0].0, "status/press");
    let patient = connect(V5, "b").kept().with_will(3600);
    let (client, _) = Client::connected(site.address, &patient).await;
    drop(client);
    site.until("b has gone", |status| status.connected.load(Ordering::Relaxed) == 0).await;
    let (mut back, present) = Client::connected(site.address, &patient).await;
    assert!(present);
    back.send(&disconnect(0, None)).await;
    assert_eq!(back.next().await, None);
    let hasty = connect(V5, "c").kept().with_will(1);
    drop(Client::connected(site.address, &hasty).await);
    assert_eq!(site.holds(2).await.len(), 2);
    site.stop().await;
}

#[tokio::test]
async fn a_stop_acknowledges_what_was_read_and_says_goodbye() {
    for version in [V311, V5] {
        let folder = tempfile::tempdir().unwrap();
        let site = Site::start_slow(folder.path(), settings(), Duration::from_millis(300));
        let (mut client, _) = Client::connected(site.address, &connect(version, "press")).await;
        let burst: Vec<u8> = (1..=500).flat_map(|id| publish(version, 1, false, id, "x")).collect();
        client.send(&burst).await;
        site.until("something is read", |status| status.messages.load(Ordering::Relaxed) > 0).await;
        let read = async {
            let (mut acknowledged, mut goodbye) = (0, None);
            while let Some(packet) = client.next().await {
                match packet {
                    Packet::PubAck(_) => acknowledged += 1,
                    Packet::Disconnect(disconnect) => goodbye = Some(disconnect.reason),
                    other => panic!("{other:?}"),
                }
            }
            (acknowledged, goodbye)
        };
        let status = Arc::clone(&site.status);
        let ((acknowledged, goodbye), ()) = tokio::join!(read, site.stop());
        assert_eq!(status.messages.load(Ordering::Relaxed), acknowledged, "all that was read");
        assert_eq!(goodbye, (version == V5).then_some(0x8b));
        let mut site = Site::start(folder.path(), settings());
        site.holds(usize::try_from(acknowledged).unwrap()).await;
        site.stop().await;
    }
}

#[tokio::test]
async fn whoever_comes_above_max_connections_is_told_so_and_an_old_client_gets_back_in() {
    let folder = tempfile::tempdir().unwrap();
    let site = Site::start(folder.path(), Listener { max_connections: 2, ..settings() });
    let (_one, _) = Client::connected(site.address, &connect(V5, "1")).await;
    let (two, _) = Client::connected(site.address, &connect(V5, "2")).await;
    assert_eq!(Client::refused(site.address, &connect(V5, "3")).await, 0x89);
    assert_eq!(Client::refused(site.address, &connect(V311, "3")).await, 3);
    let (_again, _) = Client::connected(site.address, &connect(V5, "1")).await;
    drop(two);
    site.until("2 has gone", |status| status.connected.load(Ordering::Relaxed) == 1).await;
    let (_three, _) = Client::connected(site.address, &connect(V5, "3")).await;
    let mut idle = Vec::new();
    for _ in 0..SPARE_SOCKETS + 8 {
        idle.push(TcpStream::connect(site.address).await.unwrap());
    }
    site.until("sockets are bounded", |status| status.refusals.load(Ordering::Relaxed) >= 2 + 8).await;
    site.stop().await;
}

#[tokio::test]
async fn only_users_of_the_file_come_in() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("users");
    let bob = "bob:$7$101$qmj1CcK2y1gDHJZC$Wa0MgQxf+gBrPZKAhyiBELu3vz3I2YEmFsSIG1uTfREmXIs+/vUHpXUPx1oZtdY7R4lgoDn8j1OhmAbxrLqkAg==\n";
    std::fs::write(&path, bob).unwrap();
    let site = Site::start(folder.path(), Listener { users_file: Some(path.clone()), ..settings() });
    for (version, wrong, anonymous) in [(V311, 4, 5), (V5, 0x86, 0x87)] {
        let right = Connect { username: Some("bob"), password: Some(b"hunter2"), ..connect(version, "press") };
        Client::connected(site.address, &right).await;
        let bad = Connect { password: Some(b"hunter3"), ..right.clone() };
        assert_eq!(Client::refused(site.address, &bad).await, wrong);
        let nobody = Connect { username: Some("mallory"), ..right.clone() };
        assert_eq!(Client::refused(site.address, &nobody).await, wrong);
        assert_eq!(Client::refused(site.address, &connect(version, "press")).await, anonymous);
    }
    std::fs::OpenOptions::new()
        .append(true)
        .open(&path)
        .unwrap()
        .write_all(&bob.replace("bob", "eve").into_bytes())
        .unwrap();
    let eve = Connect { username: Some("eve"), password: Some(b"hunter2"), ..connect(V5, "press") };
    Client::connected(site.address, &eve).await;
    site.stop().await;
}

#[tokio::test]
async fn packets_up_to_the_limit_come_through_and_larger_ones_end_the_connection() {
    let folder = tempfile::tempdir().unwrap();
    let mut site = Site::start(folder.path(), settings());
    let (mut client, _) = Client::connected(site.address, &connect(V5, "press")).await;
    let large = vec![b'x'; 1024 * 1024 - 64];
    client.send(&publish_to(V5, "t", 1, false, 1, &large)).await;
    assert_eq!(client.names(1).await, ["PUBACK"]);
    assert_eq!(site.holds(1).await[0].1.len(), large.len());
    let too_large = publish_to(V5, "t", 1, false, 2, &vec![0; 1024 * 1024]);
    client.send(&too_large[..100]).await;
    match client.next().await {
        Some(Packet::Disconnect(goodbye)) => assert_eq!(goodbye.reason, 0x95),
        other => panic!("{other:?}"),
    }
    assert_eq!(client.next().await, None);
    site.until("it is counted", |status| status.failures.load(Ordering::Relaxed) == 1).await;
    assert!(site.status.last_error().contains("too large"), "{}", site.status.last_error());
    site.stop().await;
}

#[tokio::test]
async fn more_than_the_intake_holds_comes_through_from_many_clients_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let mut site = Site::start(folder.path(), settings());
    let mut clients = JoinSet::new();
    for n in 0..4 {
        let address = site.address;
        clients.spawn(async move {
            let (mut client, _) = Client::connected(address, &connect(V311, &format!("c{n}"))).await;
            let payload = vec![b'x'; 20_000];
            let burst: Vec<u8> =
                (1..=100).flat_map(|id| publish_to(V311, &format!("t/{n}"), 1, false, id, &payload)).collect();
            let (mut reader, mut writer) = client.stream.split();
            let write = async { writer.write_all(&burst).await.unwrap() };
            let read = async {
                let mut acks = vec![0; 400];
                reader.read_exact(&mut acks).await.unwrap();
                acks
            };
            let ((), acks) = timeout(PATIENCE, async { tokio::join!(write, read) }).await.unwrap();
            let ids: Vec<u16> = acks.chunks(4).map(|ack| u16::from_be_bytes([ack[2], ack[3]])).collect();
            assert_eq!(ids, (1..=100).collect::<Vec<_>>());
        });
    }
    while let Some(done) = clients.join_next().await {
        done.unwrap();
    }
    site.holds(400).await;
    site.stop().await;
}

#[tokio::test]
async fn an_address_that_is_taken_is_named_in_the_error() {
    let taken = bind(settings()).unwrap();
    let error = bind(Listener { address: taken.local_addr(), ..settings() }).unwrap_err().to_string();
    assert!(error.contains("\"floor\"") && error.contains(&taken.local_addr().to_string()), "{error}");
    let users_file = Some(PathBuf::from("/nowhere/users"));
    let error = bind(Listener { users_file, ..settings() }).unwrap_err().to_string();
    assert!(error.contains("\"floor\"") && error.contains("/nowhere/users"), "{error}");
}

#[tokio::test]
async fn clients_that_have_gone_hold_no_socket_while_the_buffer_is_full_and_their_wills_are_right() {
    let folder = tempfile::tempdir().unwrap();
    let mut site = Site::start(folder.path(), settings());
    let with_will = |connect: Connect, topic| {
        let mut connect = connect.with_will(0);
        connect.will.as_mut().unwrap().topic = topic;
        connect
    };
    let (mut lost, _) = Client::connected(site.address, &with_will(connect(V5, "lost"), "status/lost")).await;
    let (mut polite, _) = Client::connected(site.address, &with_will(connect(V5, "polite"), "status/polite")).await;
    let full = site.fill().await;
    // One is read and waits for room, with more behind it; then both go.
    for client in [&mut lost, &mut polite] {
        client.send(&[publish(V5, 0, false, 0, "dropped"), publish(V5, 1, false, 1, "waits")].concat()).await;
    }
    site.until("both are read", |status| status.dropped.load(Ordering::Relaxed) == 2).await;
    for client in [&mut lost, &mut polite] {
        client.send(&[publish(V5, 1, false, 2, "unread"), publish(V5, 0, false, 0, "unread")].concat()).await;
    }
    polite.send(&disconnect(0, None)).await;
    drop((lost, polite));
    // This one never gets its CONNACK: its session finds no room.
    let settling = Client::dial(site.address, &with_will(connect(V311, "settling").kept(), "status/settling")).await;
    site.until("it is let in", |status| status.connects.load(Ordering::Relaxed) == 3).await;
    drop(settling);
    site.until("no client is connected", |status| status.connected.load(Ordering::Relaxed) == 0).await;
    assert_eq!(site.status.dropped.load(Ordering::Relaxed), 4, "QoS 0 is on the books");
    // Their places are free too: max_connections is 4.
    let mut others = Vec::new();
    for n in 0..4 {
        others.push(Client::connected(site.address, &connect(V5, &format!("other {n}"))).await);
    }
    drop(full);
    let mut topics: Vec<_> = site.holds(2).await.iter().map(|(topic, _)| topic.clone()).collect();
    topics.sort_unstable();
    assert_eq!(topics, ["status/lost", "status/settling"], "QoS 1 is its sender's to send again");
    others[0].0.send(&publish(V5, 1, false, 1, "room")).await;
    assert_eq!(others[0].0.names(1).await, ["PUBACK"]);
    assert_eq!(site.holds(3).await.len(), 3);
    site.stop().await;
}

#[tokio::test]
async fn a_client_that_stays_is_read_on_when_there_is_room_again() {
    let folder = tempfile::tempdir().unwrap();
    let mut site = Site::start(folder.path(), settings());
    let (mut client, _) = Client::connected(site.address, &connect(V5, "press")).await;
    let full = site.fill().await;
    client.send(&[publish(V5, 0, false, 0, "dropped"), publish(V5, 1, false, 1, "one")].concat()).await;
    site.until("it is read", |status| status.dropped.load(Ordering::Relaxed) == 1).await;
    client.send(&publish(V5, 1, false, 2, "two")).await;
    // Looked at more than once meanwhile.
    sleep(super::super::limits::TICK * 3).await;
    drop(full);
    assert_eq!(client.names(2).await, ["PUBACK", "PUBACK"]);
    site.holds(2).await;
    site.stop().await;
}

#[tokio::test]
async fn a_clean_start_without_room_is_forgotten_at_the_stop_or_by_the_next_connection() {
    for stop in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let mut site = Site::start(folder.path(), settings());
        let kept = connect(V5, "press").kept();
        let (mut client, _) = Client::connected(site.address, &kept).await;
        client.send(&publish(V5, 2, false, 7, "old")).await;
        client.names(1).await;
        client.send(&disconnect(0, None)).await;
        assert_eq!(client.next().await, None);
        let full = site.fill().await;
        let clean = Client::dial(site.address, &Connect { clean: true, ..kept.clone() }).await;
        site.until("it is let in", |status| status.connects.load(Ordering::Relaxed) == 2).await;
        drop(clean);
        if stop {
            site.stop().await;
            drop(full);
            site = Site::start(folder.path(), settings());
        } else {
            site.until("it has gone", |status| status.connected.load(Ordering::Relaxed) == 0).await;
            drop(full);
        }
        let (mut client, present) = Client::connected(site.address, &kept).await;
        assert!(!present, "stop {stop}");
        client.send(&publish(V5, 2, true, 7, "new")).await;
        client.names(1).await;
        let held: Vec<_> = site.holds(2).await.iter().map(|(_, payload)| payload.clone()).collect();
        assert_eq!(held, [b"old".to_vec(), b"new".to_vec()]);
        site.stop().await;
    }
}

#[tokio::test]
async fn a_large_packet_reserves_what_it_announces_and_not_the_most_there_may_be() {
    let folder = tempfile::tempdir().unwrap();
    let mut site = Site::start(folder.path(), Listener { max_connections: 16, ..settings() });
    let mut clients = Vec::new();
    let packet = publish_to(V5, "t", 1, false, 1, &vec![b'x'; 100_000]);
    for n in 0..12 {
        let (mut client, _) = Client::connected(site.address, &connect(V5, &format!("{n}"))).await;
        client.send(&packet[..50_000]).await;
        clients.push(client);
    }
    // The first ones hold what they have reserved until the last one is through.
    for client in clients.iter_mut().rev() {
        client.send(&packet[50_000..]).await;
        assert_eq!(client.names(1).await, ["PUBACK"]);
    }
    site.holds(12).await;
    site.stop().await;
}

#[tokio::test]
async fn a_large_packet_that_comes_too_slowly_ends_its_connection() {
    let folder = tempfile::tempdir().unwrap();
    let site = Site::start(folder.path(), settings());
    let (mut client, _) = Client::connected(site.address, &connect(V5, "press")).await;
    let packet = publish_to(V5, "t", 1, false, 1, &vec![b'x'; 100_000]);
    client.send(&packet[..50_000]).await;
    match client.next().await {
        Some(Packet::Disconnect(goodbye)) => assert_eq!(goodbye.reason, 0x97),
        other => panic!("{other:?}"),
    }
    site.until("it is counted", |status| status.failures.load(Ordering::Relaxed) == 1).await;
    assert!(site.status.last_error().contains("50000 of 100"), "{}", site.status.last_error());
    site.stop().await;
}

#[tokio::test]
async fn large_packets_one_behind_the_other_have_their_time_each() {
    let folder = tempfile::tempdir().unwrap();
    let mut site = Site::start(folder.path(), settings());
    let (mut client, _) = Client::connected(site.address, &connect(V5, "press")).await;
    let packet = |id| publish_to(V5, "t", 1, false, id, &vec![b'x'; 100_000]);
    client.send(&packet(1)[..80_000]).await;
    // In all longer than one packet may take, and never without a large one that is half way: the read that brings the
    // end of one brings enough of the next.
    for id in 1..=8 {
        sleep(super::super::limits::PACKET_PAUSE / 6).await;
        client.send(&[&packet(id)[80_000..], &packet(id + 1)[..80_000]].concat()).await;
        assert_eq!(client.names(1).await, ["PUBACK"], "{id}");
    }
    site.holds(8).await;
    site.stop().await;
}
