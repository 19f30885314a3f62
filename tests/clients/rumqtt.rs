//! rumqttc, told what to do through a channel and saying in a file what came of it: `tests/it/libraries/` has the words.
//! All that is not asked for there is left as the library has it.

use std::fs::File;
use std::io::Write;
use std::time::Duration;

use rumqttc::v5::mqttbytes::v5 as mqtt5;
use rumqttc::{AsyncClient, LastWill, MqttOptions, Outgoing, Packet, QoS, v5};
use serde_json::{Value, json};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::JoinSet;

use crate::support::{Outcome, trouble};

/// Requests that wait in the library: none, as its documentation recommends. Of more than go in flight, it loses some when
/// the connection is lost and answers are slow: it sends them all under ids in use, and keeps one that collides.
const QUEUE: usize = 0;

/// rumqttc tries again at once when it is polled; applications sleep.
const PAUSE: Duration = Duration::from_secs(1);

/// Takes orders until nobody can give any; then all connections are dropped without a DISCONNECT.
pub fn run(mut orders: UnboundedReceiver<Value>, said: &File) -> Outcome<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut tasks = JoinSet::new();
        let mut clients = std::collections::BTreeMap::new();
        while let Some(order) = orders.recv().await {
            let name = text(&order, "client");
            match text(&order, "do").as_str() {
                "open" => {
                    let mouth = Mouth { client: name.clone(), said: said.try_clone()?, acked: 0 };
                    clients.insert(name, open(&order, mouth, &mut tasks)?);
                }
                what => match clients.get(&name).cloned() {
                    Some(client) => {
                        let what = what.to_owned();
                        tasks.spawn(async move { client.obey(&what, &order).await });
                    }
                    None => return trouble!("no client {name}"),
                },
            }
        }
        Ok(())
    })
}

fn text(order: &Value, key: &str) -> String {
    order.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn qos(order: &Value) -> QoS {
    match order.get("qos").and_then(Value::as_u64) {
        Some(0) => QoS::AtMostOnce,
        Some(2) => QoS::ExactlyOnce,
        _ => QoS::AtLeastOnce,
    }
}

/// Says what came of it.
struct Mouth {
    client: String,
    said: File,
    acked: u64,
}

impl Mouth {
    fn say(&mut self, key: &str, what: impl Into<Value>) {
        // The test waits in vain for what cannot be written, and says so.
        drop(writeln!(self.said, "{}", json!({"client": self.client, key: what.into()})));
    }

    fn acked(&mut self) {
        self.acked += 1;
        self.say("acked", self.acked);
    }
}

#[derive(Clone)]
enum Client {
    V311(AsyncClient),
    V5(v5::AsyncClient),
}

fn open(order: &Value, mouth: Mouth, tasks: &mut JoinSet<()>) -> Outcome<Client> {
    let (name, host) = (mouth.client.clone(), text(order, "host"));
    let port = u16::try_from(order.get("port").and_then(Value::as_u64).unwrap_or_default())?;
    let persistent = order.get("persistent").and_then(Value::as_bool) == Some(true);
    let user = order.get("user").map(|_user| (text(order, "user"), text(order, "password")));
    let will = order.get("will").map(|will| (text(will, "topic"), text(will, "payload")));
    if order.get("version") == Some(&json!(5)) {
        let mut options = v5::MqttOptions::new(name, host, port);
        options.set_clean_start(!persistent).set_session_expiry_interval(persistent.then_some(3_600));
        if let Some((user, password)) = user {
            options.set_credentials(user, password);
        }
        if let Some((topic, payload)) = will {
            options.set_last_will(mqtt5::LastWill::new(topic, payload, v5::mqttbytes::QoS::AtLeastOnce, false, None));
        }
        let (client, events) = v5::AsyncClient::new(options, QUEUE);
        tasks.spawn(poll_5(events, mouth));
        Ok(Client::V5(client))
    } else {
        let mut options = MqttOptions::new(name, host, port);
        // 10 KiB unless it is told.
        options.set_clean_session(!persistent).set_max_packet_size(4 << 20, 4 << 20);
        if let Some((user, password)) = user {
            options.set_credentials(user, password);
        }
        if let Some((topic, payload)) = will {
            options.set_last_will(LastWill::new(topic, payload, QoS::AtLeastOnce, false));
        }
        let (client, events) = AsyncClient::new(options, QUEUE);
        tasks.spawn(poll_311(events, mouth));
        Ok(Client::V311(client))
    }
}

impl Client {
    /// A request that cannot be made is missed by the test.
    async fn obey(self, what: &str, order: &Value) {
        match what {
            "publish" => {
                let payloads = order.get("payloads").and_then(Value::as_array).cloned().unwrap_or_default();
                let pause = order.get("pause_ms").and_then(Value::as_u64).unwrap_or_default();
                for payload in payloads {
                    self.publish(order, payload.as_str().unwrap_or_default()).await;
                    tokio::time::sleep(Duration::from_millis(pause)).await;
                }
            }
            "subscribe" => {
                let filters = order.get("filters").and_then(Value::as_array).into_iter().flatten();
                let filters: Vec<&str> = filters.filter_map(Value::as_str).collect();
                self.subscribe(&filters).await;
            }
            _ => match self {
                Self::V311(client) => drop(client.disconnect().await),
                Self::V5(client) => drop(client.disconnect().await),
            },
        }
    }

    async fn publish(&self, order: &Value, payload: &str) {
        let (topic, retain) = (text(order, "topic"), order.get("retain") == Some(&json!(true)));
        match self {
            Self::V311(client) => drop(client.publish(topic, qos(order), retain, payload).await),
            Self::V5(client) => {
                let qos = match qos(order) {
                    QoS::AtMostOnce => v5::mqttbytes::QoS::AtMostOnce,
                    QoS::AtLeastOnce => v5::mqttbytes::QoS::AtLeastOnce,
                    QoS::ExactlyOnce => v5::mqttbytes::QoS::ExactlyOnce,
                };
                drop(client.publish(topic, qos, retain, payload.to_owned()).await);
            }
        }
    }

    async fn subscribe(&self, filters: &[&str]) {
        match self {
            Self::V311(client) => {
                let filter = |filter: &&str| rumqttc::SubscribeFilter::new((*filter).to_owned(), QoS::AtLeastOnce);
                drop(client.subscribe_many(filters.iter().map(filter)).await);
            }
            Self::V5(client) => {
                let filter = |filter: &&str| mqtt5::Filter::new(*filter, v5::mqttbytes::QoS::AtLeastOnce);
                drop(client.subscribe_many(filters.iter().map(filter)).await);
            }
        }
    }
}

async fn poll_311(mut events: rumqttc::EventLoop, mut mouth: Mouth) {
    loop {
        match events.poll().await {
            Ok(rumqttc::Event::Incoming(Packet::ConnAck(_))) => mouth.say("connected", true),
            Ok(
                rumqttc::Event::Incoming(Packet::PubAck(_) | Packet::PubComp(_))
                | rumqttc::Event::Outgoing(Outgoing::Publish(0)),
            ) => mouth.acked(),
            Ok(rumqttc::Event::Incoming(Packet::SubAck(ack))) => {
                let code = |code: &rumqttc::SubscribeReasonCode| match code {
                    rumqttc::SubscribeReasonCode::Success(qos) => *qos as u8,
                    rumqttc::SubscribeReasonCode::Failure => 0x80,
                };
                mouth.say("granted", ack.return_codes.iter().map(code).collect::<Vec<u8>>());
            }
            Ok(rumqttc::Event::Outgoing(Outgoing::Disconnect)) => return,
            Ok(_) => {}
            Err(rumqttc::ConnectionError::ConnectionRefused(code)) => {
                return mouth.say("refused", format!("{code:?}"));
            }
            Err(error) => {
                mouth.say("lost", error.to_string());
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn poll_5(mut events: v5::EventLoop, mut mouth: Mouth) {
    loop {
        match events.poll().await {
            Ok(v5::Event::Incoming(mqtt5::Packet::ConnAck(_))) => mouth.say("connected", true),
            Ok(v5::Event::Incoming(mqtt5::Packet::PubAck(ack))) if ack.reason != mqtt5::PubAckReason::Success => {
                mouth.say("rejected", format!("{:?}", ack.reason));
            }
            Ok(
                v5::Event::Incoming(mqtt5::Packet::PubAck(_) | mqtt5::Packet::PubComp(_))
                | v5::Event::Outgoing(Outgoing::Publish(0)),
            ) => mouth.acked(),
            Ok(v5::Event::Incoming(mqtt5::Packet::SubAck(ack))) => {
                let code = |code: &mqtt5::SubscribeReasonCode| match code {
                    mqtt5::SubscribeReasonCode::Success(qos) => *qos as u8,
                    _ => 0x80,
                };
                mouth.say("granted", ack.return_codes.iter().map(code).collect::<Vec<u8>>());
            }
            Ok(v5::Event::Outgoing(Outgoing::Disconnect)) => return,
            Ok(_) => {}
            Err(v5::ConnectionError::ConnectionRefused(code)) => {
                return mouth.say("refused", format!("{code:?}"));
            }
            Err(v5::ConnectionError::MqttState(v5::StateError::Deserialization(
                v5::mqttbytes::Error::OutgoingPacketTooLarge { pkt_size, max },
            ))) => {
                mouth.say("rejected", format!("{pkt_size} bytes, more than {max}"));
                // It stays among what rumqttc sends on the next connection, until the application takes it out.
                let fits = |publish: &mqtt5::Publish| publish.payload.len() <= max as usize;
                events.pending.retain(|request| !matches!(request, v5::Request::Publish(publish) if !fits(publish)));
            }
            Err(error) => {
                mouth.say("lost", error.to_string());
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}
