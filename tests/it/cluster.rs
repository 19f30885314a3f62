//! Leaders die under load: three real brokers, three replicas, two must confirm.

use crate::support::agent::{Build, Gateway};
use crate::support::cluster::Cluster;
use crate::support::publisher::{Plan, Publisher};
use crate::support::settle::settle;
use crate::support::{Outcome, PATIENCE};

/// How often a leader is killed in a run; `TIDEGATE_LEADER_KILLS` asks for more.
fn kills() -> u32 {
    std::env::var("TIDEGATE_LEADER_KILLS").ok().and_then(|kills| kills.parse().ok()).unwrap_or(5)
}

#[test]
fn leaders_that_are_killed_in_turn_under_load_lose_nothing_and_keep_the_order() -> Outcome<()> {
    let mut cluster = Cluster::start()?;
    let topic = cluster.topic("leaders", 3)?;
    let mut gateway = Gateway::new(Build::Real, &cluster.brokers())?;
    gateway.listen("").route("#", &topic);
    let agent = gateway.start()?;
    let topics = (0..9).map(|n| format!("t/{n}")).collect();
    let publisher = Publisher::start(gateway.listener(), Plan::new("p", "", 2).topics(topics).rate(1_000));
    publisher.wait_acknowledged(1_000)?;
    for kill in 0..kills() {
        let before = publisher.acknowledged();
        cluster.kill_leader(&topic, i32::try_from(kill % 3)?)?;
        publisher.wait_acknowledged(before + 500)?;
    }
    let books = settle(&agent, &cluster.brokers(), &[&topic], &[publisher.stop(PATIENCE)?])?;
    eprintln!("{} leaders killed: {books}", kills());
    books.once_into_the_buffer()
}
