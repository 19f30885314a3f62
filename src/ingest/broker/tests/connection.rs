//! Its connections: sessions that stay or are gone, subscriptions, refusals, silence, the end.

use std::time::Duration;

use super::super::fault::BrokerFault;
use super::super::session::State;
use super::{Bench, MAX_PACKET, V5, V311, connack, puback, publish, pubrec};
use crate::ingest::close::{Close, Peer};
use crate::ingest::codec::{self, Packet, reason};

#[test]
fn the_first_connect_asks_for_a_session_that_stays() {
    for version in [V311, V5] {
        let mut bench = Bench::new(version);
        bench.session.connected(bench.now).unwrap();
        let Some(Packet::Connect(connect)) = bench.sent().pop() else { panic!("no CONNECT") };
        assert_eq!(
            (connect.version, connect.clean_start, connect.client_id.as_str()),
            (version, false, "tidegate-x-plant")
        );
        let of_5 = |value| if version == V5 { Some(value) } else { None };
        assert_eq!(connect.session_expiry_s, of_5(3600));
        assert_eq!(connect.max_packet_bytes, of_5(MAX_PACKET));
        assert_eq!(connect.receive_maximum.map(u32::from), of_5(1000));
    }
}

#[test]
fn a_lost_session_is_durably_forgotten_before_subscribing() {
    for version in [V311, V5] {
        let mut bench = Bench::with_ids(version, &[5]);
        bench.connect();
        bench.feed(&connack(version, false, 0)).unwrap();
        assert_eq!(bench.session.state(), State::Forgetting);
        assert!(bench.session.out.is_empty(), "no SUBSCRIBE before the old ids are gone");
        bench.commit();
        assert!(bench.disk.is_empty());
        assert_eq!(bench.grant(&[2, 1]).len(), 2);
        assert!(bench.session.is_online());
        bench.feed(&publish(version, 2, true, 5, "of the new session")).unwrap();
        assert_eq!(bench.commit(), [pubrec(5)]);
        assert_eq!(bench.payloads(), ["of the new session"]);
    }
}

#[test]
fn forgetting_survives_a_connection_that_ends_too_early() {
    let mut bench = Bench::with_ids(V5, &[5]);
    bench.connect();
    bench.feed(&connack(V5, false, 0)).unwrap();
    // The broker has a new session now and calls it present.
    bench.reconnect(true);
    assert_eq!(bench.session.state(), State::Forgetting);
    bench.commit();
    assert!(bench.disk.is_empty());
    assert_eq!(bench.session.take_counts().unreleased_lost, 1, "each message that was half way is counted once");
    assert_eq!(bench.grant(&[2, 1]).len(), 2);
}

#[test]
fn a_session_that_was_kept_is_not_subscribed_again() {
    for version in [V311, V5] {
        let mut bench = Bench::online(version);
        bench.reconnect(true);
        assert!(bench.session.is_online());
        assert_eq!(bench.sent(), []);
        bench.reconnect(false);
        bench.commit();
        assert_eq!(bench.grant(&[2, 1]).len(), 2, "a lost one is");
    }
}

#[test]
fn a_suback_that_never_came_is_asked_for_on_the_next_connection() {
    let mut bench = Bench::new(V5);
    bench.connect();
    bench.feed(&connack(V5, false, 0)).unwrap();
    bench.commit();
    assert!(matches!(bench.pass(Duration::from_secs(31)), Err(Close::Broker(BrokerFault::NoSubAck(30)))));
    bench.sent();
    bench.reconnect(true);
    assert_eq!(bench.grant(&[2, 1]).len(), 2);
}

#[test]
fn a_refused_filter_is_asked_for_again_slowly() {
    let mut bench = Bench::new(V5);
    bench.connect();
    bench.feed(&connack(V5, false, 0)).unwrap();
    bench.commit();
    bench.grant(&[2, reason::NOT_AUTHORIZED]);
    assert!(bench.session.is_online());
    assert_eq!(bench.session.take_counts().refusals, 1);
    let mut asked = Vec::new();
    for _ in 0..130 {
        bench.pass(Duration::from_secs(10)).unwrap();
        asked.extend(bench.sent().into_iter().filter(|packet| matches!(packet, Packet::Subscribe(_))));
        bench.feed(&[0xd0, 0]).unwrap();
        bench.session.sent(bench.now);
    }
    assert_eq!(asked.len(), 1, "once in ten minutes, and not while the first is open: {asked:?}");
}

#[test]
fn a_broker_without_5_gets_3_1_1() {
    for refusal in [&[0x20, 2, 0, 1][..], &[0x20, 3, 0, 0x84, 0]] {
        let mut bench = Bench::new(V5);
        bench.connect();
        let ended = bench.feed(refusal).unwrap_err();
        assert!(matches!(ended, Close::Broker(BrokerFault::OtherVersion { refused: V5, next: V311 })), "{ended}");
        bench.session.lost(bench.now, &ended);
        bench.session.connected(bench.now).unwrap();
        let Some(Packet::Connect(connect)) = bench.sent().pop() else { panic!("no CONNECT") };
        assert_eq!(connect.version, V311);
        bench.feed(&connack(V311, false, 0)).unwrap();
        bench.commit();
        bench.grant(&[2, 1]);
        assert!(bench.session.is_online());
    }
}

#[test]
fn a_refusal_says_why_and_what_to_do() {
    for (version, code) in [(V5, reason::BAD_USER_NAME_OR_PASSWORD), (V311, 4)] {
        let mut bench = Bench::new(version);
        bench.connect();
        let ended = bench.feed(&connack(version, false, code)).unwrap_err();
        assert!(ended.to_string().contains("bad user name or password"), "{ended}");
        assert!(ended.remedy().unwrap().contains("password_file"));
        assert_eq!(ended.reason(Peer::Broker), None);
    }
}

#[test]
fn a_broker_that_never_answers_connect_is_given_up() {
    let mut bench = Bench::new(V5);
    bench.connect();
    bench.pass(Duration::from_secs(9)).unwrap();
    assert!(matches!(bench.pass(Duration::from_secs(2)), Err(Close::Broker(BrokerFault::NoConnAck(10)))));
}

#[test]
fn silence_is_answered_by_a_ping_and_then_by_the_end() {
    let mut bench = Bench::online(V311);
    bench.pass(Duration::from_secs(44)).unwrap();
    assert_eq!(bench.sent(), []);
    bench.pass(Duration::from_secs(2)).unwrap();
    assert_eq!(bench.sent(), [Packet::PingReq]);
    bench.feed(&[0xd0, 0]).unwrap();
    bench.pass(Duration::from_secs(89)).unwrap();
    assert!(bench.sent().contains(&Packet::PingReq));
    assert!(matches!(bench.pass(Duration::from_secs(2)), Err(Close::Silent)));
}

#[test]
fn time_without_reading_is_not_the_brokers_silence() {
    let mut bench = Bench::online(V5);
    bench.session.reading(bench.now, false);
    bench.pass(Duration::from_secs(600)).unwrap();
    let pings = bench.sent();
    assert!(pings.len() >= 13 && pings.iter().all(|packet| *packet == Packet::PingReq), "{pings:?}");
    bench.session.reading(bench.now, true);
    bench.pass(Duration::from_secs(89)).unwrap();
    assert!(matches!(bench.pass(Duration::from_secs(2)), Err(Close::Silent)));
}

#[test]
fn the_servers_keepalive_is_in_force() {
    for (seconds, pings) in [(0, 0), (4, 3)] {
        let mut bench = Bench::new(V5);
        bench.connect();
        bench.feed(&[0x20, 6, 1, 0, 3, 19, 0, seconds]).unwrap();
        bench.commit();
        bench.grant(&[2, 1]);
        let mut sent = 0;
        for _ in 0..9 {
            bench.pass(Duration::from_secs(1)).unwrap();
            sent += bench.sent().len();
            if seconds > 0 {
                bench.feed(&[0xd0, 0]).unwrap();
            }
        }
        assert_eq!(sent, pings, "server keepalive {seconds} s");
        if seconds == 0 {
            bench.pass(Duration::from_secs(1000)).unwrap();
        }
    }
}

#[test]
fn a_link_has_proven_itself_after_ten_seconds_online_and_not_by_traffic() {
    let mut bench = Bench::online(V5);
    for id in 1..100 {
        bench.feed(&publish(V5, 1, false, id, "x")).unwrap();
        bench.commit();
    }
    assert!(!bench.session.proven(bench.now));
    bench.pass(Duration::from_secs(10)).unwrap();
    assert!(bench.session.proven(bench.now));
    bench.reconnect(true);
    assert!(!bench.session.proven(bench.now));
}

#[test]
fn a_stop_answers_what_is_under_way_and_says_goodbye() {
    for version in [V311, V5] {
        let mut bench = Bench::online(version);
        bench.feed(&publish(version, 1, false, 3, "x")).unwrap();
        bench.session.close(bench.now);
        assert_eq!(bench.commit(), [puback(3)]);
        bench.session.disconnect(reason::SUCCESS);
        assert_eq!(bench.sent(), [Packet::Disconnect(codec::Disconnect::default())]);
    }
}
