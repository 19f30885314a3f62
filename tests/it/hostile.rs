//! Peers that break the rules cost themselves their connection, and nobody else anything.

use std::time::{Duration, Instant};

use crate::support::agent::{Agent, Build, Gateway};
use crate::support::client::{Connection, clean, keep};
use crate::support::kafka;
use crate::support::mosquitto;
use crate::support::proxy::{Proxy, Weather};
use crate::support::publisher::{Plan, Publisher};
use crate::support::reader::Reader;
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

/// What the Paho test broker makes of a user property "k" with the value "ünï": it gives the length in characters, three,
/// and not in bytes.
const USER_PROPERTY: &[u8] = b"\x26\0\x01k\0\x03\xc3\xbcn\xc3\xaf";

/// A PUBLISH with that property, MQTT 5.
fn poison(qos: u8, id: u16, dup: bool) -> Vec<u8> {
    let property_bytes = USER_PROPERTY.len() as u8;
    let body = [b"\0\x03t/1", &id.to_be_bytes()[..], &[property_bytes], USER_PROPERTY, b"poison"].concat();
    [&[0x30 | u8::from(dup) << 3 | qos << 1, body.len() as u8], &body[..]].concat()
}

/// A broker holds a message that cannot be read in our session, and sends it first on every connection: it is put aside at
/// the third, with its bytes, and what is behind it flows.
pub fn poisoned_session(build: Build, qos: u8) -> Outcome<Verdict> {
    let kafka = kafka::shared()?;
    let topic = kafka.topic("poison")?;
    let broker = ScriptedBroker::start()?;
    let mut gateway = Gateway::new(build, &kafka.brokers())?;
    gateway.subscribe("plant", &broker.url(), "t/#", 2, "").route("#", &topic);
    let agent = gateway.start()?;
    let answer = |qos, id| if qos == 1 { Packet::PubAck { id, reason: 0 } } else { Packet::PubRec { id, reason: 0 } };
    for connection in 1..=5 {
        let mut peer = broker.accept_and_welcome(connection > 1)?;
        peer.link.send_raw(&poison(qos, 1, connection > 1))?;
        // The agent may have left already, and answers nothing then.
        let behind = peer.publish("t/1", b"behind", 1, 2, connection > 1);
        let answered = behind.and_then(|()| peer.expect_answer(&answer(qos, 1)));
        match (answered, connection) {
            (Err(_left), 1 | 2) => {}
            (Ok(()), 3) => {
                peer.expect_answer(&answer(1, 2))?;
                if qos == 2 {
                    peer.release(1)?;
                    peer.expect_answer(&Packet::PubComp { id: 1, reason: 0 })?;
                }
                return on_the_books(agent, &gateway, &topic);
            }
            (Err(_left), _) => return Ok(Err(Trouble(format!("blocked at connection {connection}: {}", agent.log())))),
            (Ok(()), _) => return Ok(Err(Trouble(format!("acknowledged at connection {connection}")))),
        }
    }
    Ok(Err(Trouble("never put aside".to_owned())))
}

/// What was behind it is in Kafka, and the message itself in the dead letters, also after a kill -9.
fn on_the_books(agent: Agent, gateway: &Gateway, topic: &str) -> Outcome<Verdict> {
    Reader::open(&kafka::shared()?.brokers(), &[topic])?.read_count(1, PATIENCE)?;
    agent.wait_book("held", 0)?;
    let books = (agent.book("received")?, agent.book("delivered")?, agent.book("dead_lettered")?);
    let said = agent.log_lines("WARN").into_iter().filter(|line| line.contains("its bytes as a dead letter")).count();
    if (books, said) != ((2, 1, 1), 1) {
        return Ok(Err(Trouble(format!("received, delivered, dead {books:?}; said {said}: {}", agent.log()))));
    }
    agent.kill();
    let database = rusqlite::Connection::open(gateway.data_dir().join("buffer.db"))?;
    let letter = |row: &rusqlite::Row<'_>| Ok((row.get::<_, String>(0)?, row.get::<_, Vec<u8>>(1)?));
    let (reason, body) = database.query_row("SELECT reason, body FROM dead_letter", [], letter)?;
    // Behind the ten bytes of its envelope a chunk is zstd's.
    let body = zstd::bulk::decompress(body.get(10..).unwrap_or_default(), 64 * 1024)?;
    let whole = body.windows(USER_PROPERTY.len()).any(|bytes| bytes == USER_PROPERTY);
    Ok(if whole && reason.contains("the broker sent what is not MQTT") {
        Ok(())
    } else {
        Err(Trouble(format!("the dead letter is {reason:?}, {}", body.escape_ascii())))
    })
}

#[test]
fn a_message_that_no_one_can_read_is_put_aside_with_its_bytes_and_what_is_behind_it_flows() -> Outcome<()> {
    [1, 2].into_iter().try_for_each(|qos| poisoned_session(Build::Real, qos)?)
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
