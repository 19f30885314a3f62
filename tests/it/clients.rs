//! What common client libraries do, beyond the standard or at its edges: a listener that holds it against them loops,
//! repeats or turns them away.

use crate::crowds::{argon2_line, credentials};
use crate::session::link;
use crate::support::agent::{Build, Gateway};
use crate::support::client::{Connection, clean, keep};
use crate::support::kafka;
use crate::support::mosquitto::Mosquitto;
use crate::support::publisher::{Plan, publish_all};
use crate::support::reader::Reader;
use crate::support::wire::{Message, Packet, Property, Version, property, write_publish};
use crate::support::{Outcome, PATIENCE, trouble, wait_until};

fn message(topic: &str, payload: &str, qos: u8) -> Message {
    Message { topic: topic.into(), payload: payload.into(), qos, ..Message::default() }
}

/// paho and mqtt.js send all that has waited, whatever the receive maximum says.
#[test]
fn five_hundred_at_once_cost_one_connection_and_no_repeat() -> Outcome<()> {
    let kafka = kafka::shared()?;
    let topic = kafka.topic("burst")?;
    let mut gateway = Gateway::new(Build::Real, &kafka.brokers())?;
    gateway.listen("").route("#", &topic);
    let agent = gateway.start()?;
    for qos in [1, 2] {
        let (mut client, _) = Connection::open(gateway.listener(), Version::V5, keep(&format!("burst-{qos}")))?;
        if client.receive_maximum != 100 {
            return trouble!("the receive maximum is {}, not the default", client.receive_maximum);
        }
        let mut burst = Vec::new();
        for id in 1..=500 {
            write_publish(&message("t", &format!("{qos}/{id}"), qos), id, false, Version::V5, &mut burst);
        }
        client.send_raw(&burst)?;
        for id in 1..=500 {
            if qos == 1 {
                client.expect("PUBACK", |packet| *packet == Packet::PubAck { id, reason: 0 })?;
            } else {
                client.expect("PUBREC", |packet| *packet == Packet::PubRec { id, reason: 0 })?;
                client.send(&Packet::PubRel { id, reason: 0 })?;
            }
        }
        if qos == 2 {
            client.expect("the last PUBCOMP", |packet| *packet == Packet::PubComp { id: 500, reason: 0 })?;
        }
    }
    agent.wait_book("received", 1_000)?;
    assert_eq!(link(&agent, 0, "connects"), Some(2));
    Ok(())
}

/// mqtt.js and rumqttc never set DUP.
#[test]
fn a_qos_2_message_that_comes_again_without_dup_is_the_same_message() -> Outcome<()> {
    for version in Version::ALL {
        let kafka = kafka::shared()?;
        let topic = kafka.topic("no-dup")?;
        let mut gateway = Gateway::new(Build::Real, &kafka.brokers())?;
        gateway.listen("").route("#", &topic);
        let agent = gateway.start()?;
        let send = |id, payload: &str| -> Outcome<Connection> {
            let (mut client, _) = Connection::open(gateway.listener(), version, keep("mqttjs"))?;
            client.send(&Packet::Publish { message: message("t", payload, 2), id, dup: false })?;
            client.expect("PUBREC", |packet| *packet == Packet::PubRec { id, reason: 0 })?;
            Ok(client)
        };
        drop(send(7, "one")?);
        drop(send(7, "one")?); // a cut connection
        agent.kill();
        let _agent = gateway.start()?;
        let mut client = send(7, "one")?; // a dead agent
        client.send(&Packet::PubRel { id: 7, reason: 0 })?;
        client.expect("PUBCOMP", |packet| *packet == Packet::PubComp { id: 7, reason: 0 })?;
        drop(client);
        drop(send(7, "one")?); // released: a new one that says the same
        drop(send(7, "two")?); // another one under an id in use
        let mut reader = Reader::open(&kafka.brokers(), &[&topic])?;
        let all = |records: &[crate::support::reader::Record]| records.iter().any(|record| record.payload == b"two");
        let mut ids: Vec<_> =
            reader.read_until("the last one", PATIENCE, all)?.iter().map(crate::support::reader::Record::id).collect();
        ids.sort();
        ids.dedup(); // at least once: the kill
        if ids.len() != 3 {
            return trouble!("{version:?}: {} readings of 3", ids.len());
        }
    }
    Ok(())
}

/// The real one, with its defaults: protocol level 0x84, a will and notifications on `$SYS/…`.
#[test]
fn the_bridge_of_mosquitto_connects_with_its_defaults() -> Outcome<()> {
    let kafka = kafka::shared()?;
    let topic = kafka.topic("bridge")?;
    for version in ["", "bridge_protocol_version mqttv50\n"] {
        let mut gateway = Gateway::new(Build::Real, &kafka.brokers())?;
        gateway.listen("").route("#", &topic);
        let agent = gateway.start()?;
        let bridge = format!("connection up\naddress {}\ntopic t/# out 1\n{version}", gateway.listener());
        let broker = Mosquitto::as_debian_ships_it(&bridge)?;
        wait_until("the bridge", PATIENCE, || link(&agent, 0, "set_aside") >= Some(1))?;
        publish_all(broker.address(), Plan::new("behind-a-bridge", "t/1", 1).count(20))?;
        agent.wait_book("received", 20)?;
        assert_eq!(link(&agent, 0, "connects"), Some(1), "{}", agent.log());
        let about_it = agent.log_lines("WARN").into_iter().filter(|line| line.contains("floor"));
        assert_eq!(about_it.collect::<Vec<_>>(), Vec::<String>::new());
    }
    Ok(())
}

#[test]
fn subscriptions_are_granted_counted_and_said_and_the_connection_goes_on() -> Outcome<()> {
    let kafka = kafka::shared()?;
    let mut gateway = Gateway::new(Build::Real, &kafka.brokers())?;
    gateway.listen("").route("#", &kafka.topic("granted")?);
    let agent = gateway.start()?;
    for version in Version::ALL {
        let (mut client, _) = Connection::open(gateway.listener(), version, clean("curious"))?;
        client.send(&Packet::Subscribe { id: 3, filters: vec![("cmd/#".into(), 1), ("a/+".into(), 2)] })?;
        client.expect("SUBACK", |packet| *packet == Packet::SubAck { id: 3, codes: vec![1, 2] })?;
        client.publish(&message("t", "x", 1), 1)?;
    }
    assert_eq!(link(&agent, 0, "subscriptions"), Some(4));
    agent.wait_log(&["SUBSCRIBE granted", "nothing will be sent"])?;
    Ok(())
}

#[test]
fn topic_aliases_are_understood() -> Outcome<()> {
    let kafka = kafka::shared()?;
    let topic = kafka.topic("alias")?;
    let mut gateway = Gateway::new(Build::Real, &kafka.brokers())?;
    gateway.listen("").route("#", &topic);
    let _agent = gateway.start()?;
    let (mut client, _) = Connection::open(gateway.listener(), Version::V5, clean("paho"))?;
    for (id, name) in [(1, "hall/7"), (2, ""), (3, "")] {
        let properties = vec![Property::Two(property::TOPIC_ALIAS, 1)];
        client.publish(&Message { properties, ..message(name, &format!("{id}"), 1) }, id)?;
    }
    let mut reader = Reader::open(&kafka.brokers(), &[&topic])?;
    let keys: Vec<_> = reader.read_count(3, PATIENCE)?.iter().map(|record| record.key.clone()).collect();
    assert_eq!(keys, vec![Some(b"hall/7".to_vec()); 3]);
    Ok(())
}

#[test]
fn tls_and_websocket_on_the_plain_port_are_named_in_the_log() -> Outcome<()> {
    let mut gateway = Gateway::new(Build::Real, &kafka::shared()?.brokers())?;
    gateway.listen("").route("#", "nowhere");
    let agent = gateway.start()?;
    for (bytes, word) in
        [(&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3][..], "TLS"), (b"GET /mqtt HTTP/1.1\r\n", "WebSocket")]
    {
        let mut lost = Connection::dial(gateway.listener(), Version::V5)?;
        lost.send_raw(bytes)?;
        lost.until_closed(PATIENCE)?;
        agent.wait_log(&["client speaks", word, "mqtt://"])?;
    }
    Ok(())
}

/// A client that keeps its session sends it again at each connection; nothing behind it would get through.
#[test]
fn a_message_that_is_too_large_jams_nobody_and_is_on_the_books() -> Outcome<()> {
    let kafka = kafka::shared()?;
    let topic = kafka.topic("large")?;
    let mut gateway = Gateway::new(Build::Real, &kafka.brokers())?;
    gateway.listen("max_packet_bytes = \"64KiB\"\n").route("#", &topic);
    let agent = gateway.start()?;
    for version in Version::ALL {
        let (mut client, _) = Connection::open(gateway.listener(), version, keep("camera"))?;
        let large = Message { payload: vec![b'x'; 2_000_000], ..message("t", "", 1) };
        client.send(&Packet::Publish { message: large, id: 1, dup: false })?;
        let reason = if version == Version::V5 { 0x97 } else { 0 };
        client.expect("PUBACK", |packet| *packet == Packet::PubAck { id: 1, reason })?;
        client.publish(&message("t", "behind it", 1), 2)?;
    }
    agent.wait_book("delivered", 2)?;
    assert_eq!((agent.book("received")?, agent.book("dead_lettered")?), (3, 1), "MQTT 5 was told");
    agent.wait_log(&["not taken", "raise max_packet_bytes"])?;
    agent.wait_log(&["the payload has up to 2048 KiB"])?;
    assert_eq!(link(&agent, 0, "connects"), Some(2));
    Ok(())
}

/// Two devices that publish to the same MQTT topic, each to its own Kafka topic and under its own key, over a restart.
#[test]
fn topic_and_key_can_name_the_client_and_its_user() -> Outcome<()> {
    let kafka = kafka::shared()?;
    let clients = [kafka.topic("press-a")?, kafka.topic("press-b")?];
    let mut gateway = Gateway::new(Build::Real, &kafka.brokers())?;
    let users = gateway.path().join("users");
    std::fs::write(&users, [argon2_line("ann", "pw", 64)?, argon2_line("bob", "pw", 64)?].concat())?;
    gateway.listen(&format!("users_file = \"{}\"\n", users.display()));
    gateway.route_table("from = \"#\"\nto = \"{client}\"\nkey = \"{user}/{client}/{topic}\"\n");
    for round in 0..2 {
        let mut agent = gateway.start()?;
        for (client, user) in clients.iter().zip(["ann", "bob"]) {
            let connect = credentials(clean(client), user, "pw");
            let (mut sensor, _) = Connection::open(gateway.listener(), Version::V5, connect)?;
            sensor.publish(&message("state", &format!("{user} {round}"), 1), 1)?;
        }
        agent.wait_book("delivered", 2 * (round + 1))?;
        agent.stop(PATIENCE)?;
    }
    for (client, user) in clients.iter().zip(["ann", "bob"]) {
        let mut reader = Reader::committed(&kafka.brokers(), &[client])?;
        let found = reader.read_all()?;
        let found: Vec<_> = found.iter().map(|record| (record.key.clone(), record.payload.clone())).collect();
        let key = Some(format!("{user}/{client}/state").into_bytes());
        let wanted = [0, 1].map(|round| (key.clone(), format!("{user} {round}").into_bytes()));
        assert_eq!(found, wanted, "{client}");
    }
    Ok(())
}
