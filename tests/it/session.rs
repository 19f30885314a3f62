//! MQTT sessions: acknowledgements that die with their connection, QoS 2 across restarts, sessions that brokers lose,
//! refusals, versions, take-over. Most of it against the scripted broker, which does what mosquitto will not.

use std::time::Duration;

use crate::support::agent::{Agent, Build, Gateway};
use crate::support::client::{Connection, clean, keep};
use crate::support::kafka;
use crate::support::mosquitto::{self, Mosquitto, WIDE};
use crate::support::publisher::{Plan, Publisher, publish_all};
use crate::support::reader::{Reader, Record};
use crate::support::scripted::ScriptedBroker;
use crate::support::settle::settle;
use crate::support::wire::{Message, Packet, Property, Version, property};
use crate::support::{Outcome, PATIENCE, Trouble, Verdict, trouble, wait_until};

/// Longer than anything that is on its way needs.
const A_WHILE: Duration = Duration::from_secs(3);

/// An agent that subscribes `t/#` at the scripted broker, QoS 2, in that version.
struct Stage {
    broker: ScriptedBroker,
    gateway: Gateway,
    topic: String,
}

impl Stage {
    fn set(build: Build, version: Version, buffer: &str) -> Outcome<Self> {
        let kafka = kafka::shared()?;
        let topic = kafka.topic("session")?;
        let broker = ScriptedBroker::start()?;
        let mut gateway = Gateway::new(build, &kafka.brokers())?;
        let more = format!("version = \"{}\"\n", version.name());
        gateway.subscribe("plant", &broker.url(), "t/#", 2, &more).route("#", &topic).buffer(buffer);
        Ok(Self { broker, gateway, topic })
    }

    /// What Kafka holds once it holds that much.
    fn records(&self, count: usize) -> Outcome<Vec<Record>> {
        let mut reader = Reader::open(&kafka::shared()?.brokers(), &[&self.topic])?;
        Ok(reader.read_count(count, PATIENCE)?.to_vec())
    }
}

fn payloads(records: &[Record]) -> Vec<String> {
    let mut payloads: Vec<String> =
        records.iter().map(|record| String::from_utf8_lossy(&record.payload).into_owned()).collect();
    payloads.sort();
    payloads
}

/// The connection ends while a commit is under way. Its acknowledgement must not leave on the next connection, where the
/// broker may have given the packet id to another message.
pub fn cut_while_a_commit_is_under_way(build: Build, version: Version, qos: u8) -> Outcome<Verdict> {
    let stage = Stage::set(build, version, "commit_delay = \"2s\"\n")?;
    let agent = stage.gateway.start()?;
    let mut peer = stage.broker.accept_and_welcome(false)?;
    peer.publish("t/1", b"before", qos, 5, false)?;
    wait_until("the agent to have read it", PATIENCE, || link(&agent, 0, "messages") == Some(1))?;
    drop(peer);
    let mut peer = stage.broker.accept_and_welcome(true)?;
    let unasked = peer.answers_within(A_WHILE);
    if !unasked.is_empty() {
        return Ok(Err(Trouble(format!("on the new connection came {unasked:?}"))));
    }
    // What was stored is delivered, acknowledged or not; what the broker sends again is acknowledged now.
    peer.publish("t/1", b"before", qos, 5, true)?;
    peer.expect_answer(&if qos == 1 {
        Packet::PubAck { id: 5, reason: 0 }
    } else {
        Packet::PubRec { id: 5, reason: 0 }
    })?;
    stage.records(1)?;
    Ok(Ok(()))
}

#[test]
fn an_acknowledgement_dies_with_its_connection() -> Outcome<()> {
    for (version, qos) in [(Version::V5, 1), (Version::V311, 1), (Version::V5, 2)] {
        cut_while_a_commit_is_under_way(Build::Real, version, qos)??;
    }
    Ok(())
}

/// PUBREL for an id that was stored by the agent's former life, for one that nobody knows, a repeated PUBLISH of a
/// stored id, and the same id again once it was released.
pub fn qos_2_resumed(build: Build, version: Version) -> Outcome<Verdict> {
    let stage = Stage::set(build, version, "")?;
    let agent = stage.gateway.start()?;
    let mut peer = stage.broker.accept_and_welcome(false)?;
    for (id, payload) in [(7, "seven"), (8, "eight")] {
        peer.publish("t/1", payload.as_bytes(), 2, id, false)?;
        peer.expect_answer(&Packet::PubRec { id, reason: 0 })?;
    }
    agent.kill();
    drop(peer);
    let agent = stage.gateway.start()?;
    let mut peer = stage.broker.accept_and_welcome(true)?;
    for id in [7, 99] {
        peer.release(id)?;
        peer.expect_answer(&Packet::PubComp { id, reason: 0 })?;
    }
    // The broker has not seen the PUBREC of 8.
    peer.publish("t/1", b"eight", 2, 8, true)?;
    peer.expect_answer(&Packet::PubRec { id: 8, reason: 0 })?;
    peer.release(8)?;
    peer.expect_answer(&Packet::PubComp { id: 8, reason: 0 })?;
    // PUBCOMP got lost: the release comes again.
    peer.release(8)?;
    peer.expect_answer(&Packet::PubComp { id: 8, reason: 0 })?;
    peer.publish("t/1", b"seven again", 2, 7, false)?;
    peer.expect_answer(&Packet::PubRec { id: 7, reason: 0 })?;
    let mut reader = Reader::open(&kafka::shared()?.brokers(), &[&stage.topic])?;
    let last = |records: &[Record]| records.iter().any(|record| record.payload == b"seven again");
    let mut records = reader.read_until("the last one", PATIENCE, last)?.to_vec();
    records.sort_by_key(Record::id);
    records.dedup_by_key(|record| record.id()); // delivered again after the kill: recognisable
    let found = payloads(&records);
    if agent.log().contains("panicked") {
        return trouble!("{}", agent.log());
    }
    Ok(if found == ["eight", "seven", "seven again"] { Ok(()) } else { Err(Trouble(format!("{found:?}"))) })
}

#[test]
fn qos_2_goes_on_where_it_was_after_a_kill() -> Outcome<()> {
    Version::ALL.into_iter().try_for_each(|version| qos_2_resumed(Build::Real, version)?)
}

#[test]
fn a_session_that_the_broker_has_lost_forgets_its_packet_ids_and_subscribes_again() -> Outcome<()> {
    let stage = Stage::set(Build::Real, Version::V5, "")?;
    let agent = stage.gateway.start()?;
    let mut peer = stage.broker.accept_and_welcome(false)?;
    assert!(!peer.connect.clean, "the session is to be kept");
    let expiry = |property: &Property| matches!(property, Property::Four(property::SESSION_EXPIRY, 1..));
    assert!(peer.connect.properties.iter().any(expiry), "{:?}", peer.connect.properties);
    peer.publish("t/1", b"old", 2, 7, false)?;
    peer.expect_answer(&Packet::PubRec { id: 7, reason: 0 })?;
    drop(peer);
    let mut peer = stage.broker.accept()?;
    peer.welcome(false)?;
    assert_eq!(peer.grant()?.len(), 1);
    // The same id, not a repeat: another message.
    peer.publish("t/1", b"new", 2, 7, false)?;
    peer.expect_answer(&Packet::PubRec { id: 7, reason: 0 })?;
    agent.wait_book("received", 2)?;
    assert_eq!(payloads(&stage.records(2)?), ["new", "old"]);
    Ok(())
}

/// A broker that was replaced by an empty one: the agent must ask for its filters again.
pub fn broker_that_lost_everything(build: Build) -> Outcome<Verdict> {
    let kafka = kafka::shared()?;
    let topic = kafka.topic("amnesia")?;
    let broker = Mosquitto::start("")?;
    let mut gateway = Gateway::new(build, &kafka.brokers())?;
    gateway.subscribe("plant", &broker.url(), "t/#", 1, "").route("#", &topic);
    let agent = gateway.start()?;
    agent.wait_subscribed(1)?;
    let mut reader = Reader::open(&kafka.brokers(), &[&topic])?;
    publish_all(broker.address(), Plan::new("before", "t/1", 1).count(10))?;
    reader.read_count(10, PATIENCE)?;
    broker.lose_everything()?;
    broker.run()?;
    wait_until("the agent to connect again", PATIENCE, || link(&agent, 0, "connects") >= Some(2))?;
    // It may take a moment until the filters are granted.
    for round in 0..20 {
        publish_all(broker.address(), Plan::new(&format!("after-{round}"), "t/1", 1).count(1))?;
        std::thread::sleep(Duration::from_millis(250));
        if reader.read_all()?.len() > 10 {
            return Ok(Ok(()));
        }
    }
    Ok(Err(Trouble::new("nothing flows since the broker lost the session")))
}

#[test]
fn a_broker_that_lost_everything_is_subscribed_again_and_readings_flow() -> Outcome<()> {
    broker_that_lost_everything(Build::Real)?
}

#[test]
fn a_broker_restart_loses_nothing() -> Outcome<()> {
    let kafka = kafka::shared()?;
    let topics = [kafka.topic("restart-1")?, kafka.topic("restart-2")?];
    let broker = Mosquitto::start("")?;
    let mut gateway = Gateway::new(Build::Real, &kafka.brokers())?;
    gateway.subscribe("plant", &broker.url(), "#", 2, WIDE).route("t/1", &topics[0]).route("t/2", &topics[1]);
    let agent = gateway.start()?;
    agent.wait_subscribed(1)?;
    let publishers = [
        Publisher::start(broker.address(), Plan::new("p1", "t/1", 1).rate(1_000)),
        Publisher::start(broker.address(), Plan::new("p2", "t/2", 2).rate(1_000)),
    ];
    for _ in 0..2 {
        let before = publishers[0].acknowledged();
        publishers[0].wait_acknowledged(before + 1_000)?;
        broker.stop()?;
        broker.run()?;
    }
    let before = publishers[0].acknowledged();
    publishers[0].wait_acknowledged(before + 1_000)?;
    let logs = publishers.into_iter().map(|publisher| publisher.stop(PATIENCE)).collect::<Outcome<Vec<_>>>()?;
    let first = settle(&agent, &kafka.brokers(), &[&topics[0]], &logs[..1])?;
    let second = settle(&agent, &kafka.brokers(), &[&topics[1]], &logs[1..])?;
    eprintln!("QoS 1: {first}QoS 2: {second}");
    first.at_least_once()?;
    // Not "once into the buffer", and that is mosquitto's doing (2.0.11, seen in its own log): what it has a PUBREC for and
    // has released with PUBREL, it sends after its restart as PUBLISH with DUP under the same packet id, against
    // MQTT-4.3.3-6. The id was free by then, so it may as well be a new message whose first copy was lost; taking it for a
    // repeat could lose one. `custody.rs` has the case where the agent is the one that dies, and there it is once.
    second.at_least_once()
}

/// mosquitto 2.0.11 numbers what waits in a session upwards and does not look whether the next packet id is in use: with
/// more than 65,535 messages waiting some of them share one. Whoever took the second of two for a repeat lost it, or saw it
/// after later ones when mosquitto sent it again (4,500 to 4,800 of these 40,000 in 4 of 4 runs). That it is stored twice
/// is what remains.
#[test]
fn a_backlog_beyond_all_packet_ids_is_whole_and_in_order_although_the_broker_gives_some_out_twice() -> Outcome<()> {
    let kafka = kafka::shared()?;
    let topics = [kafka.topic("wrap-1")?, kafka.topic("wrap-2")?];
    let broker = Mosquitto::start("")?;
    let mut gateway = Gateway::new(Build::Real, &kafka.brokers())?;
    gateway.subscribe("plant", &broker.url(), "#", 2, WIDE).route("t/1", &topics[0]).route("t/2", &topics[1]);
    let agent = gateway.start()?;
    agent.wait_subscribed(1)?;
    agent.kill();
    let publishers = [(1, "t/1"), (2, "t/2")].map(|(qos, topic)| {
        let plan = Plan::new(&format!("wrap-{qos}"), topic, qos).count(40_000).window(1_000);
        Publisher::start(broker.address(), plan)
    });
    let logs = publishers.into_iter().map(|publisher| publisher.finish(PATIENCE)).collect::<Outcome<Vec<_>>>()?;
    assert!(logs.iter().all(|log| log.acknowledged_count() == 40_000));
    let mut agent = gateway.start()?;
    for _ in 0..5 {
        std::thread::sleep(Duration::from_millis(fastrand::u64(100..600)));
        agent.kill();
        agent = gateway.start()?;
    }
    for (topic, log) in topics.iter().zip(logs) {
        let books = settle(&agent, &kafka.brokers(), &[topic], &[log])?;
        eprintln!("{books}");
        books.at_least_once()?;
    }
    Ok(())
}

#[test]
fn a_refused_filter_is_named_and_the_others_flow() -> Outcome<()> {
    for (version, refusal) in [(Version::V5, 0x87), (Version::V311, 0x80)] {
        let kafka = kafka::shared()?;
        let topic = kafka.topic("refused")?;
        let broker = ScriptedBroker::start()?;
        let mut gateway = Gateway::new(Build::Real, &kafka.brokers())?;
        let filters = "[{ filter = \"secret/#\", qos = 1 }, { filter = \"open/#\", qos = 1 }]";
        let more = format!("version = \"{}\"\nsubscribe = {filters}\n", version.name());
        gateway.broker("plant", &broker.url(), &more).route("#", &topic);
        let agent = gateway.start()?;
        let mut peer = broker.accept()?;
        peer.welcome(false)?;
        let mut granted = 0;
        while granted == 0 {
            let (id, filters) = peer.expect_subscribe()?;
            let code = |filter: &str| if filter == "secret/#" { refusal } else { 1 };
            let codes: Vec<u8> = filters.iter().map(|(filter, _)| code(filter)).collect();
            granted += usize::from(codes.contains(&1));
            peer.link.send(&Packet::SubAck { id, codes })?;
        }
        peer.publish("open/1", b"x", 1, 1, false)?;
        peer.expect_answer(&Packet::PubAck { id: 1, reason: 0 })?;
        Reader::open(&kafka.brokers(), &[&topic])?.read_count(1, PATIENCE)?;
        agent.wait_log(&["\"level\":\"WARN\"", "secret/#", "refuses a subscription"])?;
    }
    Ok(())
}

/// The session at the broker outlives the configuration, and so does what it is subscribed to.
#[test]
fn a_filter_that_is_taken_out_of_the_configuration_is_unsubscribed_at_the_next_connection() -> Outcome<()> {
    for version in Version::ALL {
        let kafka = kafka::shared()?;
        let (topic, broker) = (kafka.topic("unsubscribed")?, mosquitto::shared()?);
        let mut gateway = Gateway::new(Build::Real, &kafka.brokers())?;
        let more = |filters: &str| format!("version = \"{}\"\nsubscribe = [{filters}]\n", version.name());
        let [stays, goes] = ["stays", "goes"].map(|name| format!("{{ filter = \"{topic}/{name}/#\", qos = 1 }}"));
        gateway.broker("plant", &broker.url(), &more(&format!("{stays}, {goes}")));
        gateway.route(&format!("{topic}/+/x"), &topic);
        let mut agent = gateway.start()?;
        agent.wait_subscribed(2)?;
        agent.stop(PATIENCE)?;
        gateway.broker_is(&more(&stays));
        let agent = gateway.start()?;
        agent.wait_log(&["unsubscribed: the configuration", "/goes/#"])?;
        for (n, name) in ["goes", "stays"].into_iter().enumerate() {
            let plan = Plan::new(&format!("{topic}-{n}"), &format!("{topic}/{name}/x"), 1).count(5);
            publish_all(broker.address(), plan)?;
        }
        agent.wait_book("received", 5)?;
        agent.wait_book("delivered", 5)?;
        // The broker has forgotten it, and so has the agent.
        agent.kill();
        let agent = gateway.start()?;
        agent.wait_subscribed(4)?;
        let said = agent.log().lines().filter(|line| line.contains("unsubscribed: the")).count();
        assert_eq!(said, 1, "{}", agent.log());
    }
    Ok(())
}

#[test]
fn a_broker_that_refuses_mqtt_5_is_spoken_to_in_3_1_1() -> Outcome<()> {
    // A broker that knows version 5 and does not want it answers in it; one that is older answers in its own.
    for refusal in [&[0x20, 3, 0, 0x84, 0][..], &[0x20, 2, 0, 1]] {
        let stage = Stage::set(Build::Real, Version::V5, "")?;
        let agent = stage.gateway.start()?;
        let mut peer = stage.broker.accept()?;
        assert_eq!(peer.link.version, Version::V5);
        peer.link.send_raw(refusal)?;
        drop(peer);
        let mut peer = stage.broker.accept_and_welcome(false)?;
        assert_eq!(peer.link.version, Version::V311);
        peer.publish("t/1", b"x", 1, 1, false)?;
        peer.expect_answer(&Packet::PubAck { id: 1, reason: 0 })?;
        assert_eq!(agent.log_lines("WARN"), Vec::<String>::new(), "a fallback is no trouble");
    }
    Ok(())
}

#[test]
fn a_refused_connection_is_reported_and_tried_again() -> Outcome<()> {
    let stage = Stage::set(Build::Real, Version::V5, "")?;
    let agent = stage.gateway.start()?;
    stage.broker.accept()?.refuse(0x87)?;
    stage.broker.accept()?.refuse(0x87)?;
    let mut peer = stage.broker.accept_and_welcome(false)?;
    peer.publish("t/1", b"x", 1, 1, false)?;
    peer.expect_answer(&Packet::PubAck { id: 1, reason: 0 })?;
    let said = agent.log_lines("ERROR").len() + agent.log_lines("WARN").len();
    assert_eq!(said, 1, "said once, then counted:\n{}", agent.log());
    Ok(())
}

#[test]
fn acknowledgements_leave_in_the_order_of_arrival() -> Outcome<()> {
    let stage = Stage::set(Build::Real, Version::V311, "")?;
    let _agent = stage.gateway.start()?;
    let mut peer = stage.broker.accept_and_welcome(false)?;
    let sent: Vec<u16> = (1..=2_000).map(|n: u16| n.wrapping_mul(7919) % 60_000 + 1).collect();
    for id in &sent {
        peer.publish("t/1", format!("{id}").as_bytes(), 1, *id, false)?;
    }
    let mut answered = Vec::new();
    while answered.len() < sent.len() {
        match peer.link.expect("PUBACK", |packet| matches!(packet, Packet::PubAck { .. }))? {
            Packet::PubAck { id, .. } => answered.push(id),
            other => return trouble!("{other:?}"),
        }
    }
    assert_eq!(answered, sent);
    Ok(())
}

#[test]
fn a_silent_broker_is_pinged_and_given_up_when_it_does_not_answer() -> Outcome<()> {
    let kafka = kafka::shared()?;
    let broker = ScriptedBroker::start()?;
    let mut gateway = Gateway::new(Build::Real, &kafka.brokers())?;
    gateway.subscribe("plant", &broker.url(), "t/#", 1, "keepalive = \"5s\"\n").route("#", "nowhere");
    let _agent = gateway.start()?;
    let mut peer = broker.accept_and_welcome(false)?;
    peer.link.expect("PINGREQ", |packet| *packet == Packet::PingReq)?;
    peer.link.send(&Packet::PingResp)?;
    peer.link.expect("the second PINGREQ", |packet| *packet == Packet::PingReq)?;
    // No answer: the agent must notice, and come again.
    broker.accept_and_welcome(true).map(|_| ())
}

#[test]
fn the_listener_hands_a_session_over_to_the_newest_connection() -> Outcome<()> {
    let mut gateway = Gateway::new(Build::Real, &kafka::shared()?.brokers())?;
    gateway.listen("").route("#", "nowhere");
    let _agent = gateway.start()?;
    for version in Version::ALL {
        let (mut old, _) = Connection::open(gateway.listener(), version, keep("twin"))?;
        let (mut new, _) = Connection::open(gateway.listener(), version, keep("twin"))?;
        let last = old.until_closed(PATIENCE)?;
        if version == Version::V5 {
            assert_eq!(last, [Packet::Disconnect { reason: 0x8e }], "session taken over");
        }
        new.publish(&Message { topic: "t".into(), qos: 2, ..Message::default() }, 1)?;
    }
    Ok(())
}

#[test]
fn the_listener_refuses_subscriptions_with_the_right_code_and_keeps_the_connection() -> Outcome<()> {
    let mut gateway = Gateway::new(Build::Real, &kafka::shared()?.brokers())?;
    gateway.listen("subscriptions = \"refuse\"\n").route("#", "nowhere");
    let _agent = gateway.start()?;
    for (version, code) in [(Version::V5, 0x87..=0x8f), (Version::V311, 0x80..=0x80)] {
        let (mut client, _) = Connection::open(gateway.listener(), version, clean("curious"))?;
        client.send(&Packet::Subscribe { id: 3, filters: vec![("#".into(), 1), ("a".into(), 0)] })?;
        match client.expect("SUBACK", |packet| matches!(packet, Packet::SubAck { .. }))? {
            Packet::SubAck { id: 3, codes } => {
                assert!(codes.len() == 2 && codes.iter().all(|c| code.contains(c)), "{codes:02x?}");
            }
            other => return trouble!("{other:?}"),
        }
        client.publish(&Message { topic: "t".into(), qos: 1, ..Message::default() }, 1)?;
    }
    Ok(())
}

#[test]
fn the_listener_takes_no_more_connections_than_it_may() -> Outcome<()> {
    let mut gateway = Gateway::new(Build::Real, &kafka::shared()?.brokers())?;
    gateway.listen("max_connections = 3\n").route("#", "nowhere");
    let _agent = gateway.start()?;
    let mut inside = Vec::new();
    for n in 0..3 {
        inside.push(Connection::open(gateway.listener(), Version::V5, clean(&format!("c{n}")))?.0);
    }
    assert!(Connection::open(gateway.listener(), Version::V5, clean("c3")).is_err());
    for connection in &mut inside {
        connection.publish(&Message { topic: "t".into(), qos: 1, ..Message::default() }, 1)?;
    }
    inside.pop();
    wait_until("room for another", PATIENCE, || Connection::open(gateway.listener(), Version::V5, clean("c4")).is_ok())
}

/// A number from the link's part of the status.
pub fn link(agent: &Agent, index: usize, key: &str) -> Option<u64> {
    agent.status().ok()?.pointer(&format!("/links/{index}/{key}"))?.as_u64()
}
