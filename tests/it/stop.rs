//! SIGTERM: the agent leaves in flow order, within ten seconds, with its books in order.

use std::time::Duration;

use crate::support::agent::{Build, Gateway};
use crate::support::kafka;
use crate::support::mosquitto;
use crate::support::process::how;
use crate::support::proxy::Weather;
use crate::support::publisher::{Plan, Publisher, publish_all};
use crate::support::settle::settle;
use crate::support::{Outcome, PATIENCE, Trouble, Verdict};

/// What systemd would give it.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// Half a round trip to Kafka: at any instant of a stop something is on its way, or a careless one may be lucky.
const HALF_ROUND_TRIP: Duration = Duration::from_millis(50);

/// The agent is stopped three times under full load through its listener and through a broker.
pub fn stopped_under_load(build: Build) -> Outcome<Verdict> {
    let (kafka, broker) = (kafka::shared()?, mosquitto::shared()?);
    let topic = kafka.topic("stop")?;
    let link = kafka.lease()?;
    link.proxy()?.delay(HALF_ROUND_TRIP);
    let mut gateway = Gateway::new(build, &link.brokers()?)?;
    gateway.subscribe("plant", &broker.url(), &format!("{topic}/#"), 1, mosquitto::WIDE).listen("").route("#", &topic);
    let mut agent = gateway.start()?;
    agent.wait_subscribed(1)?;
    let plan = |name: &str, qos| {
        let topics = (0..3).map(|n| format!("{topic}/{name}/{n}")).collect();
        Plan::new(name, "", qos).topics(topics).rate(2_000)
    };
    let publishers = [
        Publisher::start(gateway.listener(), plan("straight-1", 1)),
        Publisher::start(gateway.listener(), plan("straight-2", 2)),
        Publisher::start(broker.address(), plan("through", 1)),
    ];
    for _ in 0..3 {
        let before = publishers[0].acknowledged();
        publishers[0].wait_acknowledged(before + 2_000)?;
        let status = agent.stop(STOP_LIMIT)?;
        if !status.success() {
            return Ok(Err(Trouble(format!("the stop ended with {}; log:\n{}", how(status), agent.log()))));
        }
        agent = gateway.start()?;
    }
    let logs = publishers.into_iter().map(|publisher| publisher.stop(PATIENCE)).collect::<Outcome<Vec<_>>>()?;
    let books = settle(&agent, &kafka.brokers(), &[&topic], &logs)?;
    eprintln!("three stops: {books}");
    let repeated = books.recognised + books.taken_twice;
    Ok(match books.at_least_once() {
        Ok(()) if repeated > 0 => Err(Trouble(format!("a clean stop repeated something: {books}"))),
        verdict => verdict,
    })
}

#[test]
fn a_stop_under_load_loses_nothing_and_repeats_nothing() -> Outcome<()> {
    stopped_under_load(Build::Real)?
}

#[test]
fn a_stop_while_kafka_is_away_ends_in_time_and_keeps_what_is_held() -> Outcome<()> {
    let kafka = kafka::shared()?;
    let topic = kafka.topic("stop-away")?;
    let link = kafka.lease()?;
    let mut gateway = Gateway::new(Build::Real, &link.brokers()?)?;
    gateway.listen("").route("#", &topic);
    let mut agent = gateway.start()?;
    let first = publish_all(gateway.listener(), Plan::new("before", "t/0", 1).count(100))?;
    agent.wait_book("delivered", 100)?;
    link.set(Weather::Fog)?;
    let second = publish_all(gateway.listener(), Plan::new("away", "t/1", 1).count(1_000))?;
    let status = agent.stop(STOP_LIMIT)?;
    assert!(status.success(), "{}", how(status));
    link.set(Weather::Fair)?;
    let agent = gateway.start()?;
    settle(&agent, &kafka.brokers(), &[&topic], &[first, second])?.once_into_the_buffer()
}

#[test]
fn interrupt_is_a_stop_as_well() -> Outcome<()> {
    let mut gateway = Gateway::new(Build::Real, &kafka::shared()?.brokers())?;
    gateway.listen("").route("#", "nowhere");
    let mut agent = gateway.start()?;
    agent.signal("INT")?;
    let status = agent.wait(STOP_LIMIT)?;
    assert!(status.success(), "{}", how(status));
    Ok(())
}
