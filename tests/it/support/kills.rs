//! The agent is killed with -9 at random instants, again and again, while a QoS 1 and a QoS 2 publisher go on. Who calls
//! it judges what Kafka holds.

use std::ops::Range;
use std::time::Duration;

use super::agent::{Agent, Gateway};
use super::mosquitto;
use super::publisher::{Log, Plan, Publisher};
use super::wire::Version;
use super::{Outcome, PATIENCE, Verdict, trouble, wait_until};

/// How many kills a campaign has: 30, or `TIDEGATE_KILLS`.
pub fn asked() -> Outcome<u32> {
    super::asked("TIDEGATE_KILLS", 30)
}

/// As many kills as were asked for, `most` at a time: each part is settled, and the next begins on a new buffer.
pub fn in_parts(most: u32, part: impl Fn(u32) -> Verdict) -> Outcome<()> {
    let mut left = asked()?;
    while left > 0 {
        let now = left.min(most);
        part(now)?;
        left -= now;
    }
    Ok(())
}

/// How readings reach the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Straight.
    Listener,
    /// Through mosquitto.
    Broker,
}

/// mosquitto 2.0.11 has 65,535 packet ids a session and gives some out twice when more messages wait in it: on a machine
/// that does not keep up, fewer wait, of both publishers together.
const MOST_WAITING: u64 = 20_000;

/// What one is like.
pub struct Campaign {
    pub way: Way,
    pub kills: u32,
    /// How long the agent lives each time, milliseconds.
    pub lives_ms: Range<u64>,
    /// Of each publisher, a second; low enough that two cores keep up while half of the time is spent starting.
    pub rate: u32,
}

impl Campaign {
    /// QoS 1 in MQTT 5 to the first of these Kafka topics, QoS 2 in MQTT 3.1.1 to the second. The agent that is left,
    /// and what each publisher was acknowledged.
    pub fn run(&self, gateway: &mut Gateway, topics: [&str; 2]) -> Outcome<(Agent, [Log; 2])> {
        let root = topics[0];
        for (qos, topic) in (1..).zip(topics) {
            gateway.route(&format!("{root}/{qos}/#"), topic);
        }
        let address = match self.way {
            Way::Listener => gateway.listen("").listener(),
            Way::Broker => {
                let broker = mosquitto::shared()?;
                gateway.subscribe("plant", &broker.url(), &format!("{root}/#"), 2, mosquitto::WIDE);
                broker.address()
            }
        };
        let mut agent = gateway.start()?;
        if self.way == Way::Broker {
            agent.wait_subscribed(1)?;
        }
        let publisher = |qos: u8, version, name: &str| {
            let topics = (0..5).map(|n| format!("{root}/{qos}/{n}")).collect();
            Publisher::start(address, Plan::new(name, "", qos).topics(topics).version(version).rate(self.rate))
        };
        let publishers = [publisher(1, Version::V5, topics[0]), publisher(2, Version::V311, topics[1])];
        for _ in 0..self.kills {
            std::thread::sleep(Duration::from_millis(fastrand::u64(self.lives_ms.clone())));
            agent.kill();
            agent = gateway.start()?;
            if self.way == Way::Broker {
                let route = format!("{root}/2/#");
                wait_until("the agent to keep up with the broker", PATIENCE * 2, || {
                    received(&agent, &route).is_some_and(|count| publishers[1].published() < count + MOST_WAITING)
                })?;
            }
        }
        let [first, second] = publishers.map(|publisher| publisher.stop(PATIENCE));
        let logs = [first?, second?];
        if logs.iter().any(|log| log.acknowledged_count() < u64::from(self.kills)) {
            return trouble!("hardly anything was acknowledged: {logs:?}");
        }
        Ok((agent, logs))
    }
}

/// What this route has taken. Of QoS 2, no repeats.
fn received(agent: &Agent, route: &str) -> Option<u64> {
    let status = agent.status().ok()?;
    let routes = status.get("routes")?.as_array()?;
    routes.iter().find(|books| books.get("route").is_some_and(|name| name == route))?.get("received")?.as_u64()
}
