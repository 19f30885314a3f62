//! Peers that break the rules cost themselves their connection, and nobody else anything.

use std::time::{Duration, Instant};

use crate::support::agent::{Agent, Build, Gateway};
use crate::support::client::{Connection, clean, keep};
use crate::support::kafka;
use crate::support::mosquitto;
use crate::support::proxy::{Proxy, Weather};
use crate::support::publisher::{Plan, Publisher};
use crate::support::scripted::{Peer, ScriptedBroker};
use crate::support::settle::settle;
use crate::support::wire::{Message, Packet, Property, Version, property, write_publish};
use crate::support::{Outcome, PATIENCE, Trouble, Verdict};

/// What a broker may do to make an agent leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offence {
    /// A message over `max_packet_bytes`; MQTT 3.1.1 cannot forbid it.
    Oversized,
    /// A packet that the standard does not know.
    Malformed,
    /// A length of 256 MB and nothing behind it.
    HugeLength,
}

impl Offence {
    fn commit(self, peer: &mut Peer) -> Outcome<()> {
        match self {
            Self::Oversized => peer.publish("t/1", &[7; 10_000], 1, 1, true),
            Self::Malformed => peer.link.send_raw(&[0xf7, 3, 1, 2, 3]),
            Self::HugeLength => peer.link.send_raw(&[0x32, 0xff, 0xff, 0xff, 0x7f, 0, 3]),
        }
    }
}

/// A broker that offends on every connection: the agent comes back in back-off steps, and another broker's readings flow.
pub fn offending_broker(build: Build, version: Version, offence: Offence) -> Outcome<Verdict> {
    let (kafka, honest) = (kafka::shared()?, mosquitto::shared()?);
    let topic = kafka.topic("offence")?;
    let hostile = ScriptedBroker::start()?;
    let mut gateway = Gateway::new(build, &kafka.brokers())?;
    let more = format!("version = \"{}\"\nmax_packet_bytes = \"4KiB\"\n", version.name());
    gateway.subscribe("hostile", &hostile.url(), "t/#", 1, &more);
    gateway.subscribe("honest", &honest.url(), &format!("{topic}/#"), 1, "").route("#", &topic);
    let agent = gateway.start()?;
    agent.wait_log(&["\"subscribed\"", &topic])?;
    let publisher = Publisher::start(honest.address(), Plan::new(&topic, &format!("{topic}/t"), 1).rate(500));
    // 0.25, 0.5, 1, 2 s with jitter in the upper half, each at least half of it: four or five in this time.
    let limit = Duration::from_secs(5);
    let end = Instant::now() + limit;
    let mut connections = 0;
    while let Some(mut peer) = hostile.try_accept(end.saturating_duration_since(Instant::now()))? {
        connections += 1;
        // What fails here fails because the agent has already left.
        drop(peer.welcome(true).and_then(|()| offence.commit(&mut peer)));
        drop(peer.link.until_closed(PATIENCE));
        if connections > 50 {
            break;
        }
    }
    let books = settle(&agent, &kafka.brokers(), &[&topic], &[publisher.stop(PATIENCE)?])?;
    if let Err(error) = books.at_least_once() {
        return Ok(Err(Trouble(format!("the honest broker suffered: {error:?}"))));
    }
    let complaints = agent.log_lines("WARN").len() + agent.log_lines("ERROR").len();
    eprintln!("{offence:?} {version:?}: {connections} connections, {complaints} complaints in {limit:?}");
    Ok(match (connections, complaints) {
        (2..=8, 1..=3) => Ok(()),
        _ => Err(Trouble(format!(
            "{connections} connections and {complaints} complaints in {limit:?}; log:\n{}",
            agent.log()
        ))),
    })
}

#[test]
fn an_oversized_packet_does_not_make_a_loop_and_does_not_stop_others() -> Outcome<()> {
    Version::ALL.into_iter().try_for_each(|version| offending_broker(Build::Real, version, Offence::Oversized)?)
}

#[test]
fn a_malformed_packet_does_not_make_a_loop_and_does_not_stop_others() -> Outcome<()> {
    offending_broker(Build::Real, Version::V5, Offence::Malformed)??;
    offending_broker(Build::Real, Version::V311, Offence::HugeLength)?
}

#[test]
fn the_largest_packet_is_announced_to_an_mqtt_5_broker() -> Outcome<()> {
    let broker = ScriptedBroker::start()?;
    let mut gateway = Gateway::new(Build::Real, &kafka::shared()?.brokers())?;
    let more = "max_packet_bytes = \"64KiB\"\nreceive_maximum = 77\n";
    gateway.subscribe("plant", &broker.url(), "t/#", 1, more).route("#", "nowhere");
    let _agent = gateway.start()?;
    let properties = broker.accept()?.connect.properties;
    assert!(properties.contains(&Property::Four(property::MAXIMUM_PACKET_SIZE, 65_536)), "{properties:?}");
    assert!(properties.contains(&Property::Two(property::RECEIVE_MAXIMUM, 77)), "{properties:?}");
    Ok(())
}

/// What clients send instead of MQTT, or in the middle of it.
fn rubbish() -> Vec<(&'static str, Vec<u8>)> {
    let mut connect = Vec::new();
    Packet::Connect(clean("rude")).write(Version::V5, &mut connect);
    let after_connect = |bytes: &[u8]| [&connect[..], bytes].concat();
    let mut bad_topic = Vec::new();
    write_publish(
        &Message { topic: "a/+/b".into(), qos: 1, ..Message::default() },
        1,
        false,
        Version::V5,
        &mut bad_topic,
    );
    let mut no_id = Vec::new();
    write_publish(&Message { topic: "a".into(), qos: 1, ..Message::default() }, 0, false, Version::V5, &mut no_id);
    vec![
        ("nothing", vec![]),
        ("HTTP", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec()),
        ("TLS", vec![0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3]),
        ("half a CONNECT", connect[..connect.len() / 2].to_vec()),
        ("an endless length", vec![0x10, 0xff, 0xff, 0xff, 0xff, 0xff]),
        ("256 MB before CONNECT", vec![0x10, 0xff, 0xff, 0xff, 0x7f]),
        ("256 MB after CONNECT", after_connect(&[0x32, 0xff, 0xff, 0xff, 0x7f])),
        ("CONNECT twice", after_connect(&connect)),
        ("PUBLISH first", vec![0x30, 4, 0, 1, b'a', b'x']),
        ("QoS 3", after_connect(&[0x36, 6, 0, 1, b'a', 0, 1, 0])),
        ("a topic that is not UTF-8", after_connect(&[0x30, 5, 0, 2, 0xc3, 0x28, 0])),
        ("a topic that is longer than the packet", after_connect(&[0x30, 3, 0xff, 0xff, b'a'])),
        ("a wildcard in a topic", after_connect(&bad_topic)),
        ("packet id 0", after_connect(&no_id)),
        ("PUBACK for nothing", after_connect(&[0x40, 2, 0, 9])),
        ("packet type 0", after_connect(&[0, 0])),
        ("CONNACK from a client", after_connect(&[0x20, 3, 0, 0, 0])),
        ("an alias that was never set", after_connect(&[0x30, 6, 0, 0, 3, 35, 0, 9])),
        ("version 9", {
            let mut other = connect.clone();
            other[8] = 9;
            other
        }),
    ]
}

#[test]
fn rubbish_at_the_listener_costs_the_sender_its_connection_and_nobody_else_anything() -> Outcome<()> {
    let kafka = kafka::shared()?;
    let topic = kafka.topic("rubbish")?;
    let mut gateway = Gateway::new(Build::Real, &kafka.brokers())?;
    gateway.listen("").route("#", &topic);
    let mut agent = gateway.start()?;
    let publisher = Publisher::start(gateway.listener(), Plan::new("honest", "t", 2).rate(500));
    for (what, bytes) in rubbish() {
        let mut rude = Connection::dial(gateway.listener(), Version::V5)?;
        rude.send_raw(&bytes)?;
        drop(rude.all_within(Duration::from_millis(100)));
        drop(rude);
        assert!(agent.exited().is_none(), "{what} ended the agent:\n{}", agent.log());
    }
    // The connection must end by the agent's hand, not wait for more.
    for (what, bytes) in
        rubbish().into_iter().filter(|(what, _)| ["CONNECT twice", "PUBLISH first", "packet type 0"].contains(what))
    {
        let mut rude = Connection::dial(gateway.listener(), Version::V5)?;
        rude.send_raw(&bytes)?;
        rude.until_closed(PATIENCE).map_err(|error| Trouble(format!("{what}: {error:?}")))?;
    }
    honest_was_left_alone(&agent, &topic, publisher)
}

#[test]
fn cuts_at_random_bytes_lose_nothing() -> Outcome<()> {
    let kafka = kafka::shared()?;
    let topics = [kafka.topic("cut-1")?, kafka.topic("cut-2")?];
    let mut gateway = Gateway::new(Build::Real, &kafka.brokers())?;
    gateway.listen("").route("1/#", &topics[0]).route("2/#", &topics[1]);
    let agent = gateway.start()?;
    let proxy = Proxy::start(gateway.listener().port())?;
    let publishers = [
        Publisher::start(proxy.address(), Plan::new("p1", "1/t", 1).rate(5_000).version(Version::V311)),
        Publisher::start(proxy.address(), Plan::new("p2", "2/t", 2).rate(5_000)),
    ];
    for _ in 0..40 {
        std::thread::sleep(Duration::from_millis(fastrand::u64(20..120)));
        proxy.set(Weather::Cut);
        std::thread::sleep(Duration::from_millis(15));
        proxy.set(Weather::Fair);
    }
    let logs = publishers.into_iter().map(|publisher| publisher.stop(PATIENCE)).collect::<Outcome<Vec<_>>>()?;
    assert!(
        logs.iter().all(|log| log.connects > 10 && log.sessions_lost == 0),
        "{:?}",
        (logs[0].connects, logs[1].sessions_lost)
    );
    let first = settle(&agent, &kafka.brokers(), &[&topics[0]], &logs[..1])?;
    let second = settle(&agent, &kafka.brokers(), &[&topics[1]], &logs[1..])?;
    eprintln!("cuts: QoS 1 {first}  QoS 2 {second}");
    first.at_least_once()?;
    second.once_into_the_buffer()
}

#[test]
fn a_client_that_reads_nothing_does_not_stop_others() -> Outcome<()> {
    let kafka = kafka::shared()?;
    let topic = kafka.topic("deaf")?;
    let mut gateway = Gateway::new(Build::Real, &kafka.brokers())?;
    gateway.listen("").route("deaf/#", &kafka.topic("deaf-too")?).route("#", &topic);
    let agent = gateway.start()?;
    let publisher = Publisher::start(gateway.listener(), Plan::new("honest", "t", 1).rate(500));
    let (mut deaf, _) = Connection::open(gateway.listener(), Version::V5, keep("deaf"))?;
    let message = Message { topic: "deaf/1".into(), payload: vec![1; 100], qos: 1, ..Message::default() };
    let mut out = Vec::new();
    let end = Instant::now() + Duration::from_secs(3);
    let mut id = 0u16;
    while Instant::now() < end {
        if out.is_empty() {
            for _ in 0..100 {
                id = id.checked_add(1).unwrap_or(1);
                write_publish(&message, id, false, Version::V5, &mut out);
            }
        }
        // Ended by the agent: that is its right, with a client that exceeds the receive maximum.
        if deaf.send_some(&mut out, Duration::from_millis(20)).is_err() {
            break;
        }
    }
    assert!(agent.memory_kib("VmHWM")? < 40_000, "{} KiB", agent.memory_kib("VmHWM")?);
    honest_was_left_alone(&agent, &topic, publisher)
}

fn honest_was_left_alone(agent: &Agent, topic: &str, publisher: Publisher) -> Outcome<()> {
    let log = publisher.stop(PATIENCE)?;
    assert_eq!(log.connects, 1, "an honest client was thrown out");
    settle(agent, &kafka::shared()?.brokers(), &[topic], &[log])?.once_into_the_buffer()?;
    assert!(!agent.log().contains("panicked"), "{}", agent.log());
    Ok(())
}
