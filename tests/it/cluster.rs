//! Leaders die under load: three real brokers, three replicas, two must confirm.

use crate::support::agent::{Build, Gateway};
use crate::support::cluster::Cluster;
use crate::support::publisher::{Plan, Publisher};
use crate::support::settle::settle;
use crate::support::stage::{Stage, no_holes, once};
use crate::support::{Outcome, PATIENCE, asked};

/// How often a leader is killed in a run: 5, or `TIDEGATE_LEADER_KILLS`.
fn kills() -> Outcome<i32> {
    asked("TIDEGATE_LEADER_KILLS", 5)
}

/// Partitions of the topic, led by different brokers.
const PARTITIONS: i32 = 3;

/// Where Kafka keeps what its transaction coordinators know; the leader is the coordinator.
const COORDINATORS: &str = "__transaction_state";

fn publish(gateway: &Gateway) -> Outcome<Publisher> {
    let topics = (0..9).map(|n| format!("t/{n}")).collect();
    let publisher = Publisher::start(gateway.listener(), Plan::new("p", "", 2).topics(topics).rate(1_000));
    publisher.wait_acknowledged(1_000)?;
    Ok(publisher)
}

#[test]
fn leaders_that_are_killed_in_turn_under_load_lose_nothing_and_keep_the_order() -> Outcome<()> {
    let mut cluster = Cluster::start()?;
    let topic = cluster.topic("leaders", PARTITIONS, &[])?;
    let mut gateway = Gateway::new(Build::Real, &cluster.brokers())?;
    gateway.listen("").route("#", &topic);
    let agent = gateway.start()?;
    let publisher = publish(&gateway)?;
    let kills = kills()?;
    for kill in 0..kills {
        let before = publisher.acknowledged();
        cluster.kill_leader(&topic, kill % PARTITIONS)?;
        publisher.wait_acknowledged(before + 500)?;
    }
    let books = settle(&agent, &cluster.brokers(), &[&topic], &[publisher.stop(PATIENCE)?])?;
    eprintln!("{kills} leaders killed: {books}");
    books.once_into_the_buffer()
}

/// Leaders of the data, of the watermark and of the transactions themselves.
#[test]
fn leaders_and_coordinators_that_are_killed_in_turn_under_load_repeat_nothing_with_transactions() -> Outcome<()> {
    let mut cluster = Cluster::start()?;
    let topic = cluster.topic("leaders", PARTITIONS, &[])?;
    let watermarks = cluster.topic("watermarks", 1, &[("cleanup.policy", "compact")])?;
    let mut gateway = Gateway::new(Build::Real, &cluster.brokers())?;
    gateway.exactly_once(&watermarks).listen("").route("#", &topic);
    let stage = Stage::on(cluster.brokers(), topic.clone())?;
    let agent = gateway.start()?;
    let publisher = publish(&gateway)?;
    let kills = kills()?;
    for kill in 0..kills {
        let before = publisher.acknowledged();
        match kill % 3 {
            0 => cluster.kill_leader(COORDINATORS, 0)?,
            1 => cluster.kill_leader(&topic, kill % PARTITIONS)?,
            _ => cluster.kill_leader(&watermarks, 0)?,
        }
        publisher.wait_acknowledged(before + 500)?;
    }
    let seen = stage.settle(&agent, &[publisher.stop(PATIENCE)?])?;
    eprintln!("{kills} leaders and coordinators killed, with transactions: {}", seen.books[1]);
    once(&seen)?;
    no_holes(&[&seen])
}
