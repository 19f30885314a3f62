//! Links and brokers fail in the middle of transactions: a connection is cut at each request of their protocol, before
//! and after Kafka has done what was asked; Kafka ends a transaction that takes too long; the broker is killed.

use std::time::Duration;

use crate::support::agent::{Build, Gateway};
use crate::support::kafka::{self, Kafka};
use crate::support::kafka_wire::Request;
use crate::support::proxy::{Loss, Proxy};
use crate::support::publisher::{Plan, Publisher};
use crate::support::stage::{Stage, no_holes, once, watermark_topic};
use crate::support::{Outcome, PATIENCE, asked, trouble, wait_until};

/// So long after it goes on, the agent knows that Kafka has ended its transaction.
const NOTICED: Duration = Duration::from_secs(10);

fn publish(gateway: &Gateway) -> Outcome<Publisher> {
    let topics = (0..10).map(|n| format!("t/{n}")).collect();
    let publisher = Publisher::start(gateway.listener(), Plan::new("hit", "", 2).topics(topics).rate(1_000));
    publisher.wait_acknowledged(200)?;
    Ok(publisher)
}

const REQUESTS: [Request; 5] =
    [Request::EndTxn, Request::Produce, Request::AddPartitionsToTxn, Request::InitProducerId, Request::FindCoordinator];

fn cut(link: &Proxy, request: Request, loss: Loss) -> Outcome<()> {
    let snared = |more: u64, so_far: u64, limit: Duration| {
        wait_until("a request to be cut", limit, || link.snared() >= so_far + more)
    };
    let so_far = link.snared();
    match request {
        Request::EndTxn | Request::Produce | Request::AddPartitionsToTxn => {
            link.snare(request, loss)?;
            snared(1, so_far, PATIENCE)
        }
        // Only a new producer asks these, and a lost end of a transaction makes one.
        Request::InitProducerId | Request::FindCoordinator => {
            for _ in 0..5 {
                let so_far = link.snared();
                link.snare(Request::EndTxn, Loss::After)?;
                snared(1, so_far, PATIENCE)?;
                link.snare(request, loss)?;
                if snared(2, so_far, Duration::from_secs(10)).is_ok() {
                    return Ok(());
                }
            }
            trouble!("no new producer came to {request:?}")
        }
    }
}

#[test]
fn a_connection_that_is_cut_at_any_request_of_a_transaction_neither_loses_nor_repeats() -> Outcome<()> {
    let kafka = kafka::shared()?;
    let stage = Stage::on(kafka.brokers(), kafka.topic("cut")?)?;
    let link = kafka.lease()?;
    let mut gateway = Gateway::new(Build::Real, &link.brokers()?)?;
    gateway.exactly_once(&watermark_topic(kafka)?).listen("").route("#", &stage.topic);
    let agent = gateway.start()?;
    let publisher = publish(&gateway)?;
    let cuts = asked("TIDEGATE_CUTS", 30)?;
    for round in 0..cuts {
        let loss = if (round / REQUESTS.len()).is_multiple_of(2) { Loss::Before } else { Loss::After };
        cut(link.proxy()?, REQUESTS[round % REQUESTS.len()], loss)?;
        std::thread::sleep(Duration::from_millis(fastrand::u64(50..500)));
        if round == cuts / 2 {
            // A slow coordinator: every answer takes two seconds.
            link.proxy()?.delay(Duration::from_secs(1));
            std::thread::sleep(Duration::from_secs(8));
            link.proxy()?.delay(Duration::ZERO);
        }
    }
    let seen = stage.settle(&agent, &[publisher.stop(PATIENCE)?])?;
    let producers = agent.metric("tidegate_kafka_producers_total")?;
    eprintln!("{cuts} cuts, {producers} producers: {}", seen.books[1]);
    once(&seen)?;
    no_holes(&[&seen])
}

#[test]
fn a_transaction_that_kafka_ended_because_it_took_too_long_is_sent_again_once() -> Outcome<()> {
    let kafka = kafka::shared()?;
    let stage = Stage::on(kafka.brokers(), kafka.topic("late")?)?;
    let link = kafka.lease()?;
    let mut gateway = Gateway::new(Build::Real, &link.brokers()?)?;
    gateway.exactly_once(&watermark_topic(kafka)?).listen("").route("#", &stage.topic);
    let agent = gateway.start()?;
    let publisher = publish(&gateway)?;
    let producers = || agent.metric("tidegate_kafka_producers_total");
    let first = producers()?;
    // On a long link a transaction is open most of the time; the agent is stopped at an instant of its own choice.
    for _ in 0..5 {
        link.proxy()?.delay(Duration::from_millis(100));
        let before = publisher.acknowledged();
        publisher.wait_acknowledged(before + fastrand::u64(500..1_500))?;
        agent.signal("STOP")?;
        // transaction.timeout.ms, and the 10 s after which Kafka looks.
        std::thread::sleep(Duration::from_secs(28));
        agent.signal("CONT")?;
        link.proxy()?.delay(Duration::ZERO);
        if wait_until("a new producer", NOTICED, || producers().is_ok_and(|now| now > first)).is_ok() {
            break;
        }
    }
    if producers()? <= first {
        return trouble!("no transaction was open at any of five instants");
    }
    let seen = stage.settle(&agent, &[publisher.stop(PATIENCE)?])?;
    eprintln!("timed out: {}", seen.books[1]);
    once(&seen)?;
    no_holes(&[&seen])
}

#[test]
fn a_broker_that_is_killed_again_and_again_makes_no_transaction_come_twice() -> Outcome<()> {
    let kafka = Kafka::start(0)?;
    let stage = Stage::on(kafka.brokers(), kafka.topic("restarts")?)?;
    let mut gateway = Gateway::new(Build::Real, &kafka.brokers())?;
    gateway.exactly_once(&watermark_topic(&kafka)?).listen("").route("#", &stage.topic);
    let agent = gateway.start()?;
    let publisher = publish(&gateway)?;
    let kills = asked("TIDEGATE_BROKER_KILLS", 3)?;
    for _ in 0..kills {
        let before = publisher.acknowledged();
        publisher.wait_acknowledged(before + fastrand::u64(500..2_000))?;
        kafka.kill()?;
        std::thread::sleep(Duration::from_millis(fastrand::u64(0..2_000)));
        kafka.run()?;
        let delivered = agent.book("delivered")?;
        wait_until("delivery to go on", PATIENCE, || agent.book("delivered").is_ok_and(|now| now > delivered))?;
    }
    let seen = stage.settle(&agent, &[publisher.stop(PATIENCE)?])?;
    eprintln!("{kills} kills of the broker: {}", seen.books[1]);
    once(&seen)?;
    no_holes(&[&seen])
}
