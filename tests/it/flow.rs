//! What goes in comes out: byte for byte, once, in order, under the right names.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::support::agent::{Build, Gateway};
use crate::support::books::Books;
use crate::support::client::{Connection, clean, keep};
use crate::support::kafka::{self, unique_topic};
use crate::support::mosquitto;
use crate::support::publisher::{Plan, Publisher, publish_all};
use crate::support::reader::{Reader, Record};
use crate::support::settle::settle;
use crate::support::topics::policy;
use crate::support::wire::{Message, Packet, Property, Version, property};
use crate::support::{Outcome, PATIENCE, wait_until};

/// What sensors send: the ordinary, and what a text protocol would choke on.
fn payloads() -> Vec<Vec<u8>> {
    let reading = br#"{"t":1700000000.25,"v":21.75,"u":"C"}"#.repeat(3);
    vec![
        Vec::new(),
        vec![0, 0xff, 0xfe, b'\n', 0xc3, 0x28],
        reading[..100].to_vec(),
        (0..65_536u32).map(|n| n as u8).collect(),
    ]
}

fn properties() -> Vec<Property> {
    vec![
        Property::Bytes(property::CONTENT_TYPE, b"application/json".to_vec()),
        Property::Bytes(property::CORRELATION_DATA, vec![0, 0xff, 7]),
        Property::User("unit".into(), "°C".into()),
        Property::User("unit".into(), "K".into()),
    ]
}

fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}

#[test]
fn every_qos_version_and_payload_arrives_whole_through_a_broker_and_through_the_listener() -> Outcome<()> {
    let (kafka, broker) = (kafka::shared()?, mosquitto::shared()?);
    let topic = kafka.topic("flow")?;
    let mut gateway = Gateway::new(Build::Real, &kafka.brokers())?;
    for version in Version::ALL {
        let name = format!("v{}", version.name());
        let more = format!("version = \"{}\"\n", version.name());
        gateway.subscribe(&name, &broker.url(), &format!("{topic}/{}/#", version.name()), 2, &more);
    }
    gateway.listen("").route("#", &topic);
    let agent = gateway.start()?;
    agent.wait_subscribed(2)?;

    let begin = now_ms();
    let mut sent = Vec::new();
    for (way, address) in [("broker", broker.address()), ("listener", gateway.listener())] {
        for version in Version::ALL {
            let (mut sensor, _) = Connection::open(address, version, clean(&unique_topic("sensor")))?;
            let mut id = 0;
            for qos in 0..=2 {
                for (index, payload) in payloads().into_iter().enumerate() {
                    id += 1;
                    let mqtt_topic = format!("{topic}/{}/{way}/{qos}/{index}", version.name());
                    let message = Message { topic: mqtt_topic, payload, qos, retain: false, properties: properties() };
                    sensor.publish(&message, id)?;
                    sent.push((version, message));
                }
            }
        }
    }
    let mut reader = Reader::open(&kafka.brokers(), &[&topic])?;
    let records = reader.read_count(sent.len(), PATIENCE)?;
    assert_eq!(records.len(), sent.len());
    let mut ids = std::collections::BTreeSet::new();
    for (version, message) in &sent {
        let found: Vec<&Record> = records.iter().filter(|r| r.mqtt_topic() == message.topic).collect();
        let [record] = found[..] else { panic!("{}: {} records", message.topic, found.len()) };
        assert!(record.has_payload && record.payload == message.payload, "{}: another payload", message.topic);
        assert_eq!(record.key.as_deref(), Some(message.topic.as_bytes()));
        let arrived = record.timestamp_ms.unwrap_or_default();
        assert!((begin..=now_ms()).contains(&arrived), "{}: timestamp {arrived}", message.topic);
        assert!(ids.insert(record.id()), "{}: {:?} again", message.topic, record.id());
        assert_eq!(record.header("mqtt-retain"), None);
        let units: Vec<&[u8]> = record.headers.iter().filter(|h| h.0 == "unit").map(|h| &h.1[..]).collect();
        if *version == Version::V5 {
            assert_eq!(record.text("content-type"), "application/json");
            assert_eq!(record.header("correlation-data"), Some(&[0, 0xff, 7][..]));
            assert_eq!(units, ["°C".as_bytes(), b"K"]);
        } else {
            assert_eq!((record.header("content-type"), units.len()), (None, 0));
        }
    }
    let buffers: std::collections::BTreeSet<String> = ids.iter().flatten().map(|(buffer, _)| buffer.clone()).collect();
    assert_eq!(buffers.len(), 1, "one buffer, one name");
    let sequences: Vec<u64> = ids.iter().flatten().map(|(_, sequence)| *sequence).collect();
    assert_eq!((sequences.first(), sequences.last()), (Some(&1), Some(&(sent.len() as u64))), "contiguous from 1");
    Ok(())
}

#[test]
fn a_run_without_trouble_delivers_every_reading_once_in_order() -> Outcome<()> {
    let (kafka, broker) = (kafka::shared()?, mosquitto::shared()?);
    let topic = unique_topic("calm");
    kafka.create_topic(&topic, 3, &[])?;
    let mut gateway = Gateway::new(Build::Real, &kafka.brokers())?;
    for version in Version::ALL {
        let name = format!("v{}", version.name());
        let more = format!("version = \"{}\"\n", version.name());
        gateway.subscribe(&name, &broker.url(), &format!("{topic}/{}/#", version.name()), 2, &more);
    }
    gateway.listen("").route("#", &topic);
    let agent = gateway.start()?;
    agent.wait_subscribed(2)?;
    let mut publishers = Vec::new();
    for (way, address) in [("broker", broker.address()), ("listener", gateway.listener())] {
        for version in Version::ALL {
            for qos in 1..=2 {
                let name = format!("{topic}-{way}-{}-{qos}", version.name());
                let topics = (0..7).map(|n| format!("{topic}/{}/{name}/{n}", version.name())).collect();
                let plan = Plan::new(&name, "", qos).topics(topics).version(version).count(2_000);
                publishers.push(Publisher::start(address, plan));
            }
        }
    }
    let logs = publishers.into_iter().map(|publisher| publisher.finish(PATIENCE * 2)).collect::<Outcome<Vec<_>>>()?;
    assert!(logs.iter().all(|log| log.acknowledged_count() == 2_000 && log.connects == 1 && log.stray_answers == 0));
    let books = settle(&agent, &kafka.brokers(), &[&topic], &logs)?;
    books.exactly_once()?;
    assert_eq!(books.delivered, 16_000);
    assert_eq!((agent.book("received")?, agent.book("delivered")?), (16_000, 16_000));
    Ok(())
}

#[test]
fn qos_0_arrives_in_order_and_at_most_once() -> Outcome<()> {
    let kafka = kafka::shared()?;
    let topic = kafka.topic("qos0")?;
    let mut gateway = Gateway::new(Build::Real, &kafka.brokers())?;
    gateway.listen("").route("#", &topic);
    let agent = gateway.start()?;
    let plan = Plan::new("p", "s/0", 0).count(20_000).rate(20_000);
    let log = Publisher::start(gateway.listener(), plan).finish(PATIENCE)?;
    wait_until("all to be taken in", PATIENCE, || agent.book("received").ok() == Some(20_000))?;
    let books = settle(&agent, &kafka.brokers(), &[&topic], &[log])?;
    books.exactly_once()?;
    assert_eq!(books.delivered + agent.book("dropped")?, 20_000, "{books}");
    Ok(())
}

#[test]
fn routes_name_topics_and_keys_and_what_has_no_route_is_a_dead_letter() -> Outcome<()> {
    let kafka = kafka::shared()?;
    let prefix = unique_topic("site");
    for site in ["north", "south"] {
        kafka.create_topic(&format!("{prefix}.{site}"), 1, &[])?;
    }
    let mut gateway = Gateway::new(Build::Real, &kafka.brokers())?;
    gateway.listen("").route_table(&format!(
        "from = \"plant/{{site}}/{{device}}/#\"\nto = \"{prefix}.{{site}}\"\nkey = \"{{site}}/{{device}}\"\n"
    ));
    let agent = gateway.start()?;
    let (mut sensor, _) = Connection::open(gateway.listener(), Version::V5, clean("s"))?;
    for (id, topic) in (1..).zip(["plant/north/7/temp", "elsewhere", "plant/south/8/a/b", "plant/north/9"]) {
        let message = Message { topic: topic.into(), payload: topic.into(), qos: 1, ..Message::default() };
        sensor.publish(&message, id)?;
    }
    let (north, south) = (format!("{prefix}.north"), format!("{prefix}.south"));
    let mut reader = Reader::open(&kafka.brokers(), &[&north, &south])?;
    let mut found: Vec<(String, String, Vec<u8>)> = reader
        .read_count(3, PATIENCE)?
        .iter()
        .map(|r| {
            (r.topic.clone(), String::from_utf8_lossy(r.key.as_deref().unwrap_or_default()).into(), r.payload.clone())
        })
        .collect();
    found.sort();
    let wanted = [
        (north.clone(), "north/7".to_owned(), b"plant/north/7/temp".to_vec()),
        (north, "north/9".to_owned(), b"plant/north/9".to_vec()),
        (south, "south/8".to_owned(), b"plant/south/8/a/b".to_vec()),
    ];
    assert_eq!(found, wanted);
    agent.wait_book("dead_lettered", 1)?;
    agent.wait_book("held", 0)?;
    assert_eq!(agent.status()?.get("balanced"), Some(&true.into()));
    Ok(())
}

#[test]
fn the_envelope_formats_carry_topic_payload_qos_and_id() -> Outcome<()> {
    let kafka = kafka::shared()?;
    let (json, cbor) = (kafka.topic("json")?, kafka.topic("cbor")?);
    let mut gateway = Gateway::new(Build::Real, &kafka.brokers())?;
    gateway.listen("");
    for (format, topic) in [("json", &json), ("cbor", &cbor)] {
        gateway.route_table(&format!("from = \"{format}/#\"\nto = \"{topic}\"\nvalue = \"{format}\"\n"));
    }
    let _agent = gateway.start()?;
    let (mut sensor, _) = Connection::open(gateway.listener(), Version::V5, clean("s"))?;
    for (id, topic) in [(1, "json/a"), (2, "cbor/a")] {
        sensor
            .publish(&Message { topic: topic.into(), payload: b"21.5".to_vec(), qos: 1, ..Message::default() }, id)?;
    }
    let mut reader = Reader::open(&kafka.brokers(), &[&json])?;
    let value: serde_json::Value = serde_json::from_slice(&reader.read_count(1, PATIENCE)?[0].payload)?;
    assert_eq!(value.get("topic").and_then(|v| v.as_str()), Some("json/a"), "{value}");
    assert_eq!(value.get("qos").and_then(serde_json::Value::as_u64), Some(1), "{value}");
    assert!(value.get("id").is_some() && value.get("payload").is_some(), "{value}");
    let mut reader = Reader::open(&kafka.brokers(), &[&cbor])?;
    let value: serde_cbor::Value = serde_cbor::from_slice(&reader.read_count(1, PATIENCE)?[0].payload)?;
    let serde_cbor::Value::Map(map) = value else { panic!("{value:?}") };
    let topic = map.get(&serde_cbor::Value::Text("topic".into()));
    assert_eq!(topic, Some(&serde_cbor::Value::Text("cbor/a".into())));
    Ok(())
}

#[test]
fn retained_readings_say_so_and_wills_are_readings_like_any_other() -> Outcome<()> {
    let (kafka, broker) = (kafka::shared()?, mosquitto::shared()?);
    let topic = kafka.topic("will")?;
    let retained =
        Message { topic: format!("{topic}/r"), payload: b"kept".to_vec(), qos: 1, retain: true, properties: vec![] };
    let (mut sensor, _) = Connection::open(broker.address(), Version::V5, clean(&topic))?;
    sensor.publish(&retained, 1)?;
    let mut gateway = Gateway::new(Build::Real, &kafka.brokers())?;
    gateway.subscribe("plant", &broker.url(), &format!("{topic}/#"), 1, "").listen("").route("#", &topic);
    let _agent = gateway.start()?;
    for version in Version::ALL {
        let mut connect = keep(&format!("mortal-{}", version.name()));
        let payload = version.name().into();
        connect.will = Some(Message { topic: "will".into(), payload, qos: 1, retain: true, properties: vec![] });
        // The end of the connection without DISCONNECT is the death.
        drop(Connection::open(gateway.listener(), version, connect)?);
    }
    let mut reader = Reader::open(&kafka.brokers(), &[&topic])?;
    let mut found: Vec<(String, Vec<u8>, String)> = reader
        .read_count(3, PATIENCE)?
        .iter()
        .map(|record| (record.mqtt_topic(), record.payload.clone(), record.text("mqtt-retain")))
        .collect();
    found.sort();
    let mut wanted = vec![
        (retained.topic.clone(), b"kept".to_vec(), "1".to_owned()),
        ("will".to_owned(), b"3.1.1".to_vec(), "1".to_owned()),
        ("will".to_owned(), b"5".to_vec(), "1".to_owned()),
    ];
    wanted.sort();
    assert_eq!(found, wanted);
    Ok(())
}

#[test]
fn a_publisher_cannot_forge_the_headers_of_the_agent() -> Outcome<()> {
    let kafka = kafka::shared()?;
    let topic = kafka.topic("forged")?;
    let mut gateway = Gateway::new(Build::Real, &kafka.brokers())?;
    gateway.listen("").route("#", &topic);
    let _agent = gateway.start()?;
    let (mut sensor, _) = Connection::open(gateway.listener(), Version::V5, clean("s"))?;
    let forged = ["tidegate-id", "Tidegate-Id", "mqtt-topic", "tidegate-was", "tidegate-instance", "tidegate-clock"];
    let mut properties: Vec<Property> = forged.map(|name| Property::User(name.into(), "forged".into())).to_vec();
    properties.push(Property::User("honest".into(), "yes".into()));
    let message = Message { topic: "t".into(), payload: b"x".to_vec(), qos: 1, retain: false, properties };
    sensor.send(&Packet::Publish { message, id: 1, dup: false })?;
    let mut reader = Reader::open(&kafka.brokers(), &[&topic])?;
    let record = &reader.read_count(1, PATIENCE)?[0];
    let mut names: Vec<String> = record.headers.iter().map(|(name, _)| name.to_ascii_lowercase()).collect();
    let own = |name: &String| name.starts_with("tidegate-") || name.starts_with("mqtt-");
    names.retain(own);
    names.sort();
    let agents = ["mqtt-topic", "tidegate-arrived", "tidegate-clock", "tidegate-id", "tidegate-instance"];
    assert_eq!(names, agents, "{:?}", record.headers);
    assert!(agents.iter().all(|name| record.text(name) != "forged"), "{:?}", record.headers);
    assert_eq!((record.mqtt_topic().as_str(), record.text("honest").as_str()), ("t", "yes"));
    assert_eq!(record.id().map(|(_, sequence)| sequence), Some(1));
    Ok(())
}

/// A configuration that says nothing of delivery, on a Kafka on which nothing was prepared.
#[test]
fn by_default_the_agent_makes_its_watermark_topic_and_delivers_exactly_once() -> Outcome<()> {
    let kafka = kafka::shared()?;
    let topic = kafka.topic("default")?;
    let mut gateway = Gateway::new(Build::Real, &kafka.brokers())?;
    gateway.default_delivery().listen("").route("#", &topic);
    let agent = gateway.start()?;
    let log = publish_all(gateway.listener(), Plan::new("default", "t/0", 2).count(100))?;
    agent.wait_book("delivered", 100)?;
    assert_eq!(agent.status()?.pointer("/kafka/delivery").and_then(serde_json::Value::as_str), Some("exactly-once"));
    assert_eq!(policy(&kafka.brokers(), "tidegate.watermarks")?, "compact");
    let mut reader = Reader::committed(&kafka.brokers(), &[&topic])?;
    Books::close(&[log], reader.read_all()?).exactly_once()
}
