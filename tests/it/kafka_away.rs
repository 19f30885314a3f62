//! Kafka goes away and comes back: cut links, vanishing packets, lost answers, a killed broker. Readings keep being
//! acknowledged, wait, and leave in order.

use std::time::Duration;

use crate::support::agent::{Build, Gateway};
use crate::support::kafka::{self, Kafka};
use crate::support::proxy::Weather;
use crate::support::publisher::{Plan, Publisher, publish_all};
use crate::support::settle::settle;
use crate::support::{Outcome, PATIENCE, Verdict, wait_until};

/// The link is in `weather` while 3,000 readings come in, and fair before and after.
fn away_and_back(weather: Weather) -> Outcome<()> {
    let kafka = kafka::shared()?;
    let topic = kafka.topic("away")?;
    let link = kafka.lease()?;
    let mut gateway = Gateway::new(Build::Real, &link.brokers()?)?;
    gateway.listen("").route("#", &topic);
    let agent = gateway.start()?;
    let topics = (0..5).map(|n| format!("t/{n}")).collect();
    let publisher = Publisher::start(gateway.listener(), Plan::new("p", "", 1).topics(topics).rate(2_000));
    publisher.wait_acknowledged(1_000)?;
    link.set(weather)?;
    let before = publisher.acknowledged();
    publisher.wait_acknowledged(before + 3_000)?;
    wait_until("readings to wait", PATIENCE, || agent.book("held").is_ok_and(|held| held > 1_000))?;
    link.set(Weather::Fair)?;
    let before = publisher.acknowledged();
    publisher.wait_acknowledged(before + 1_000)?;
    let log = publisher.stop(PATIENCE)?;
    assert_eq!((log.connects, log.acknowledged_count()), (1, log.published), "the sensor noticed nothing");
    let books = settle(&agent, &kafka.brokers(), &[&topic], &[log])?;
    eprintln!("{weather:?}: {books}");
    books.once_into_the_buffer()
}

#[test]
fn a_cut_link_loses_nothing_and_keeps_the_order() -> Outcome<()> {
    away_and_back(Weather::Cut)
}

#[test]
fn vanishing_packets_lose_nothing_and_keep_the_order() -> Outcome<()> {
    away_and_back(Weather::Fog)
}

#[test]
fn answers_that_are_lost_after_kafka_stored_the_batch_repeat_nothing_while_the_producer_lives() -> Outcome<()> {
    let kafka = kafka::shared()?;
    let topic = kafka.topic("answers")?;
    let link = kafka.lease()?;
    let mut gateway = Gateway::new(Build::Real, &link.brokers()?)?;
    gateway.listen("").route("#", &topic);
    let agent = gateway.start()?;
    let publisher = Publisher::start(gateway.listener(), Plan::new("p", "t", 1).rate(2_000));
    publisher.wait_acknowledged(500)?;
    for _ in 0..10 {
        let lost = link.proxy()?.answers_lost();
        link.set(Weather::AnswersLost)?;
        wait_until("an answer to be lost", PATIENCE, || link.proxy().is_ok_and(|proxy| proxy.answers_lost() > lost))?;
        link.set(Weather::Fair)?;
        let delivered = agent.book("delivered")?;
        wait_until("delivery to go on", PATIENCE, || agent.book("delivered").is_ok_and(|now| now > delivered))?;
    }
    let books = settle(&agent, &kafka.brokers(), &[&topic], &[publisher.stop(PATIENCE)?])?;
    books.exactly_once()
}

#[test]
fn a_broker_that_is_killed_and_restarted_loses_nothing_and_keeps_the_order() -> Outcome<()> {
    let kafka = Kafka::start(0)?;
    // Kafka itself does not sync before it confirms; a kill -9 of the process loses nothing that was written.
    let topic = kafka.topic("restart")?;
    let mut gateway = Gateway::new(Build::Real, &kafka.brokers())?;
    gateway.listen("").route("#", &topic);
    let agent = gateway.start()?;
    let topics = (0..5).map(|n| format!("t/{n}")).collect();
    let publisher = Publisher::start(gateway.listener(), Plan::new("p", "", 2).topics(topics).rate(1_000));
    publisher.wait_acknowledged(1_000)?;
    kafka.kill()?;
    let before = publisher.acknowledged();
    publisher.wait_acknowledged(before + 1_000)?;
    kafka.run()?;
    let before = publisher.acknowledged();
    publisher.wait_acknowledged(before + 1_000)?;
    let books = settle(&agent, &kafka.brokers(), &[&topic], &[publisher.stop(PATIENCE)?])?;
    eprintln!("restart: {books}");
    books.once_into_the_buffer()
}

/// Readings are acknowledged while Kafka is away, and then the agent is killed: they must go out by the next one.
pub fn killed_while_kafka_is_away(build: Build) -> Outcome<Verdict> {
    let kafka = kafka::shared()?;
    let topic = kafka.topic("away-kill")?;
    let link = kafka.lease()?;
    let mut gateway = Gateway::new(build, &link.brokers()?)?;
    gateway.listen("").route("#", &topic);
    let agent = gateway.start()?;
    let first = publish_all(gateway.listener(), Plan::new("before", "t/0", 1).count(200))?;
    agent.wait_book("delivered", 200)?;
    link.set(Weather::Cut)?;
    let second = publish_all(gateway.listener(), Plan::new("away", "t/1", 1).count(2_000))?;
    // Time enough for a careless forwarder to hand over and forget.
    std::thread::sleep(Duration::from_secs(2));
    agent.kill();
    link.set(Weather::Fair)?;
    let agent = gateway.start()?;
    let books = settle(&agent, &kafka.brokers(), &[&topic], &[first, second])?;
    Ok(books.once_into_the_buffer())
}

#[test]
fn what_was_acknowledged_while_kafka_was_away_survives_a_kill() -> Outcome<()> {
    killed_while_kafka_is_away(Build::Real)?
}

#[test]
fn an_agent_that_starts_without_kafka_takes_readings_and_delivers_them_when_it_comes() -> Outcome<()> {
    let kafka = kafka::shared()?;
    let topic = kafka.topic("cold")?;
    let link = kafka.lease()?;
    link.set(Weather::Cut)?;
    let mut gateway = Gateway::new(Build::Real, &link.brokers()?)?;
    gateway.listen("").route("#", &topic);
    let agent = gateway.start()?;
    let log = publish_all(gateway.listener(), Plan::new("p", "t", 2).count(1_000))?;
    agent.wait_book("held", 1_000)?;
    link.set(Weather::Fair)?;
    settle(&agent, &kafka.brokers(), &[&topic], &[log])?.exactly_once()
}
