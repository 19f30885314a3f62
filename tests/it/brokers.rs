//! Brokers that are not mosquitto, as `[[mqtt]]` upstream: readings of every QoS through a kill -9 of the agent, and while it
//! is away. docs/compatibility.md has the table.
//!
//! `TIDEGATE_BROKERS=all` runs each broker in each version that it speaks, and through a restart where it keeps its
//! sessions; `TIDEGATE_PAHO_TESTING=FOLDER` (a copy of github.com/eclipse/paho.mqtt.testing) its test broker as well.

use std::time::Duration;

use crate::support::agent::{Build, Gateway};
use crate::support::brokers::{Broker, Kind, paho_testing};
use crate::support::client::{Connection, clean};
use crate::support::kafka;
use crate::support::publisher::{Log, Plan, Publisher, publish_all};
use crate::support::reader::Reader;
use crate::support::settle::settle;
use crate::support::wire::{Message, Property, Version};
use crate::support::{Outcome, PATIENCE, Trouble, Verdict, trouble, wait_until};

/// Readings of each QoS through the kill -9, and while the agent is away.
const LIVE: u64 = 300;
const AWAY: u64 = 100;

/// Slow enough for the kill to come into the middle.
const RATE: u32 = 100;

/// Is the long run asked for?
fn all() -> Outcome<bool> {
    match std::env::var("TIDEGATE_BROKERS") {
        Ok(word) if word == "all" => Ok(true),
        Ok(word) => trouble!("TIDEGATE_BROKERS={word}: \"all\" is what it can say"),
        Err(_unset) => Ok(false),
    }
}

/// A scenario at one broker: which version the agent is told to speak, which the broker does, when the agent is killed, and
/// whether the broker is restarted while it is away.
struct Case {
    kind: Kind,
    told: &'static str,
    spoken: Version,
    kill: Kill,
    restart: bool,
}

/// When the agent is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kill {
    /// While readings are on their way to it.
    Among,
    /// When all that was published is acknowledged on both sides.
    AtRest,
}

/// Moquette 0.17 sends what was on its way when a connection broke again 5 s after the next one began, in an order of its
/// own, and nothing before that (seen on the wire).
const MOQUETTE_WAITS: Duration = Duration::from_secs(6);

/// It loses the message that it is writing when the connection breaks: one of QoS 1 or 2 in 3 of 12 runs, on the wire
/// once and then never again, while its packet id was given to another.
const MOQUETTE_LOSES_A_KILL: u64 = 1;

/// Three sensors, one of each QoS, and the gateway between them and Kafka.
struct Scene {
    broker: Broker,
    gateway: Gateway,
    topics: Vec<String>,
    version: Version,
    logs: Vec<Vec<Log>>,
}

impl Scene {
    fn set(build: Build, case: &Case) -> Outcome<Self> {
        let kafka = kafka::shared()?;
        let broker = Broker::start(case.kind.clone())?;
        let mut gateway = Gateway::new(build, &kafka.brokers())?;
        gateway.subscribe("plant", &broker.url(), "t/#", 2, case.told);
        let topics = (0..=2).map(|qos| kafka.topic(&format!("broker-{qos}"))).collect::<Outcome<Vec<_>>>()?;
        for (qos, topic) in topics.iter().enumerate() {
            gateway.route(&format!("t/{qos}"), topic);
        }
        Ok(Self { broker, gateway, topics, version: case.spoken, logs: vec![vec![], vec![], vec![]] })
    }

    fn plan(&self, phase: &str, qos: usize, count: u64) -> Plan {
        Plan::new(&format!("{phase}-{qos}"), &format!("t/{qos}"), qos as u8).version(self.version).count(count)
    }

    /// The agent dies among the readings and comes back among them.
    fn among(&mut self) -> Outcome<()> {
        let mut agent = self.gateway.start()?;
        agent.wait_subscribed(1)?;
        let publishers: Vec<Publisher> = (0..=2)
            .map(|qos| Publisher::start(self.broker.address(), self.plan("live", qos, LIVE).rate(RATE)))
            .collect();
        publishers[1].wait_acknowledged(LIVE / 3)?;
        agent.kill();
        publishers[1].wait_acknowledged(LIVE * 2 / 3)?;
        agent = self.gateway.start()?;
        for (qos, publisher) in publishers.into_iter().enumerate() {
            let log = publisher.finish(PATIENCE * 2)?;
            if qos > 0 && log.acknowledged_count() < LIVE {
                return trouble!("the broker took {} of {LIVE} at QoS {qos}", log.acknowledged_count());
            }
            self.logs[qos].push(log);
        }
        agent.kill();
        Ok(())
    }

    /// The agent dies when it has all there is.
    fn at_rest(&mut self) -> Outcome<()> {
        let agent = self.gateway.start()?;
        agent.wait_subscribed(1)?;
        for qos in 0..=2 {
            let log = publish_all(self.broker.address(), self.plan("live", qos, LIVE))?;
            self.logs[qos].push(log);
        }
        agent.wait_book("received", 3 * LIVE)?;
        // The last PUBCOMPs are on their way.
        std::thread::sleep(Duration::from_secs(1));
        agent.kill();
        Ok(())
    }

    /// Nobody is there to read.
    fn away(&mut self, restart: bool) -> Outcome<()> {
        for qos in 0..=2 {
            let log = publish_all(self.broker.address(), self.plan("away", qos, AWAY))?;
            self.logs[qos].push(log);
        }
        if restart {
            self.broker.stop()?;
            self.broker.run()?;
        }
        Ok(())
    }

    /// QoS 1 and 2: nothing lost, in order. QoS 2: nothing taken twice. QoS 0 has no promise, and is there to be in the way.
    fn close(self, case: &Case) -> Outcome<Verdict> {
        let agent = self.gateway.start()?;
        let forgiven = if case.kind == Kind::Moquette && case.kill == Kill::Among {
            std::thread::sleep(MOQUETTE_WAITS);
            2 * MOQUETTE_LOSES_A_KILL
        } else {
            0
        };
        let brokers = kafka::shared()?.brokers();
        let mut all = Vec::new();
        for (topic, logs) in self.topics.iter().zip(&self.logs) {
            let mut books = settle(&agent, &brokers, &[topic], logs)?;
            eprintln!("{:?} {:?} QoS {}: {books}", case.kind, case.spoken, all.len());
            if forgiven > 0 {
                books.lost = books.lost.saturating_sub(forgiven);
                books.out_of_order = 0;
            }
            all.push(books);
        }
        let fell_back = agent.log().contains("does not speak MQTT V5");
        let loud = agent.log_lines("ERROR");
        Ok(if all[0].foreign > 0 {
            Err(Trouble(format!("QoS 0: {}", all[0])))
        } else if fell_back != (case.told.is_empty() && case.spoken == Version::V311) || !loud.is_empty() {
            Err(Trouble(format!("fell back: {fell_back}; {loud:?}; log:\n{}", agent.log())))
        } else {
            all[1].at_least_once().and(all[2].once_into_the_buffer())
        })
    }
}

/// Through a kill -9 among the readings, and with readings that come while nobody is there.
fn killed_and_away(build: Build, case: &Case) -> Outcome<Verdict> {
    let mut scene = Scene::set(build, case)?;
    match case.kill {
        Kill::Among => scene.among()?,
        Kill::AtRest => scene.at_rest()?,
    }
    scene.away(case.restart)?;
    scene.close(case)
}

const V311: &str = "version = \"3.1.1\"\n";

/// `HiveMQ` in the version it likes best.
pub fn behind_hivemq(build: Build) -> Outcome<Verdict> {
    let case = Case { kind: Kind::HiveMq, told: "", spoken: Version::V5, kill: Kill::Among, restart: all()? };
    killed_and_away(build, &case)
}

#[test]
fn hivemq_keeps_what_the_agent_misses_and_qos_2_comes_once() -> Outcome<()> {
    behind_hivemq(Build::Real)??;
    if all()? {
        let case = Case { kind: Kind::HiveMq, told: V311, spoken: Version::V311, kill: Kill::Among, restart: true };
        killed_and_away(Build::Real, &case)??;
    }
    Ok(())
}

/// Moquette 0.17 knows no MQTT 5: the agent is told nothing, and speaks 3.1.1 by itself.
#[test]
fn moquette_is_spoken_to_in_3_1_1_and_keeps_what_the_agent_misses() -> Outcome<()> {
    let case = |told, kill| Case { kind: Kind::Moquette, told, spoken: Version::V311, kill, restart: false };
    killed_and_away(Build::Real, &case("", Kill::AtRest))??;
    if all()? {
        killed_and_away(Build::Real, &case(V311, Kill::Among))??;
    }
    Ok(())
}

/// The broker of paho.mqtt.testing sends again while a connection lives, and writes a wrong length into what it was given.
#[test]
fn paho_s_test_broker_where_it_is_at_hand_loses_nothing_and_its_unreadable_message_blocks_nothing() -> Outcome<()> {
    let Some(sources) = paho_testing()? else {
        eprintln!("the Paho test broker: not tried, TIDEGATE_PAHO_TESTING names no folder");
        return Ok(());
    };
    for (told, spoken) in [("", Version::V5), (V311, Version::V311)] {
        let case = Case { kind: Kind::Paho(sources.clone()), told, spoken, kill: Kill::Among, restart: false };
        killed_and_away(Build::Real, &case)??;
    }
    unreadable(Kind::Paho(sources))?
}

/// A user property that is not ASCII.
fn unreadable(kind: Kind) -> Outcome<Verdict> {
    let kafka = kafka::shared()?;
    let (topic, broker) = (kafka.topic("unreadable")?, Broker::start(kind)?);
    let mut gateway = Gateway::new(Build::Real, &kafka.brokers())?;
    gateway.subscribe("plant", &broker.url(), "t/#", 1, "").route("#", &topic);
    let agent = gateway.start()?;
    agent.wait_subscribed(1)?;
    let (mut sensor, _) = Connection::open(broker.address(), Version::V5, clean("sensor"))?;
    let properties = vec![Property::User("k".into(), "ünï".into())];
    for (id, (payload, properties)) in (1..).zip([("poison", properties), ("behind", vec![])]) {
        sensor.publish(
            &Message { topic: "t/1".into(), payload: payload.into(), qos: 1, properties, retain: false },
            id,
        )?;
    }
    wait_until("the dead letter", PATIENCE, || agent.book("dead_lettered").ok() == Some(1))?;
    let mut reader = Reader::open(&kafka.brokers(), &[&topic])?;
    let behind = reader.read_count(1, PATIENCE)?[0].payload.clone();
    std::thread::sleep(Duration::from_secs(1));
    agent.wait_book("held", 0)?;
    let records = reader.read_all()?;
    Ok(if behind == b"behind" && records.iter().all(|record| record.payload == b"behind") {
        Ok(())
    } else {
        Err(Trouble(format!("{} records, the first {}", records.len(), behind.escape_ascii())))
    })
}
