//! Custody and sessions over TCP: acknowledged means stored, one connection a client, wills, the stop.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::super::super::bind;
use super::super::client::{V5, V311, connect, disconnect, pingreq, publish, pubrel, subscribe};
use super::{Client, Site, settings};
use crate::ingest::codec::Packet;
use crate::settings::{Listener, MqttVersion};

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
async fn an_address_that_is_taken_is_named_in_the_error() {
    let taken = bind(settings()).unwrap();
    let error = bind(Listener { address: taken.local_addr(), ..settings() }).unwrap_err().to_string();
    assert!(error.contains("\"floor\"") && error.contains(&taken.local_addr().to_string()), "{error}");
    let users_file = Some(PathBuf::from("/nowhere/users"));
    let error = bind(Listener { users_file, ..settings() }).unwrap_err().to_string();
    assert!(error.contains("\"floor\"") && error.contains("/nowhere/users"), "{error}");
}
