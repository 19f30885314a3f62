//! What has a bound: connections, users, packets, room in the buffer, time.

use std::io::Write as _;
use std::sync::atomic::Ordering;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::super::client::{Connect, V5, V311, connect, disconnect, publish, publish_to};
use super::{Client, PATIENCE, Site, settings};
use crate::ingest::codec::Packet;
use crate::ingest::limits::{PACKET_PAUSE, SPARE_SOCKETS, TICK};
use crate::settings::Listener;

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
async fn messages_up_to_the_limit_come_through_and_larger_ones_are_passed_over() {
    let folder = tempfile::tempdir().unwrap();
    let mut site = Site::start(folder.path(), settings());
    let (mut client, _) = Client::connected(site.address, &connect(V5, "press")).await;
    let large = vec![b'x'; 1024 * 1024 - 64];
    client.send(&publish_to(V5, "t", 1, false, 1, &large)).await;
    assert_eq!(client.names(1).await, ["PUBACK"]);
    assert_eq!(site.holds(1).await[0].1.len(), large.len());
    let too_large = publish_to(V5, "t", 1, false, 2, &vec![0; 1024 * 1024]);
    client.send(&too_large).await;
    match client.next().await {
        Some(Packet::PubAck(ack)) => assert_eq!((ack.packet_id, ack.reason), (2, 0x97)),
        other => panic!("{other:?}"),
    }
    client.send(&publish(V5, 1, false, 3, "behind it")).await;
    assert_eq!(client.names(1).await, ["PUBACK"]);
    assert_eq!(site.holds(2).await[1].1, b"behind it");
    site.until("it is counted", |status| status.refusals.load(Ordering::Relaxed) == 1).await;
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
    sleep(TICK * 3).await;
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
        sleep(PACKET_PAUSE / 6).await;
        client.send(&[&packet(id)[80_000..], &packet(id + 1)[..80_000]].concat()).await;
        assert_eq!(client.names(1).await, ["PUBACK"], "{id}");
    }
    site.holds(8).await;
    site.stop().await;
}
