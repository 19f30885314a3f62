//! What a gateway does all day: some readings a second share their commits and their transactions, and nobody who waits for an
//! acknowledgement is slowed by that. What it costs is told by `cargo bench --bench relay -- everyday`.

use std::time::Duration;

use crate::support::Outcome;
use crate::support::agent::{Agent, Build, Gateway};
use crate::support::kafka;
use crate::support::publisher::{Plan, publish_all};
use crate::support::stage::watermark_topic;

/// Commits, the seconds that they waited for others, and Kafka transactions.
#[derive(Debug, Clone, Copy)]
struct Counts {
    commits: f64,
    waited_s: f64,
    transactions: f64,
}

impl Counts {
    fn of(agent: &Agent) -> Outcome<Self> {
        Ok(Self {
            commits: agent.metric("tidegate_buffer_commits_total")?,
            waited_s: agent.metric("tidegate_buffer_commit_wait_seconds_total")?,
            transactions: agent.metric("tidegate_kafka_transactions_committed_total")?,
        })
    }

    fn since(self, before: Self) -> Self {
        Self {
            commits: self.commits - before.commits,
            waited_s: self.waited_s - before.waited_s,
            transactions: self.transactions - before.transactions,
        }
    }
}

/// A gateway as it is installed, and its topic.
fn gateway(name: &str) -> Outcome<(Gateway, String)> {
    let kafka = kafka::shared()?;
    let topic = kafka.topic(name)?;
    let mut gateway = Gateway::new(Build::Real, &kafka.brokers())?;
    gateway.listen("").route("#", &topic).exactly_once(&watermark_topic(kafka)?);
    Ok((gateway, topic))
}

#[test]
fn readings_of_a_busy_line_share_their_commits_and_their_transactions() -> Outcome<()> {
    const READINGS: u64 = 1_000;
    let (gateway, topic) = gateway("shared-commits")?;
    let agent = gateway.start()?;
    publish_all(gateway.listener(), Plan::new("first", &topic, 1).count(1))?;
    agent.wait_book("delivered", 1)?;
    let before = Counts::of(&agent)?;
    let topics = (0..20).map(|n| format!("line/{n}")).collect();
    let log = publish_all(gateway.listener(), Plan::new("busy", "", 1).topics(topics).count(READINGS).rate(100))?;
    let counts = Counts::of(&agent)?.since(before);
    eprintln!("1,000 readings in 10 s: {counts:?}");
    // Four commits and two transactions a second are 40 and 20; a slow machine makes fewer.
    assert!(counts.commits <= 100.0 && counts.transactions <= 50.0, "{counts:?}");
    agent.wait_book("delivered", READINGS + 1)?;
    assert_eq!(log.acknowledged_count(), READINGS);
    Ok(())
}

/// Seconds that commits waited while somebody filled its window so many times.
fn waited_for(window: usize, rounds: u64, buffer: &str) -> Outcome<Counts> {
    let (mut gateway, topic) = gateway("unslowed")?;
    let agent = gateway.buffer(buffer).start()?;
    publish_all(gateway.listener(), Plan::new("first", &topic, 1).count(1))?;
    agent.wait_book("delivered", 1)?;
    let before = Counts::of(&agent)?;
    let readings = rounds * u64::try_from(window)?;
    publish_all(gateway.listener(), Plan::new("waits", &topic, 1).count(readings).window(window))?;
    Ok(Counts::of(&agent)?.since(before))
}

#[test]
fn a_publisher_that_waits_for_its_acknowledgements_is_not_slowed() -> Outcome<()> {
    // The control: where each commit waits, it shows.
    let control = waited_for(1, 20, "commit_delay = \"250ms\"\n")?;
    assert!(control.waited_s >= 4.0, "{control:?}");
    for window in [1, 20] {
        let counts = waited_for(window, 300, "")?;
        eprintln!("a window of {window}, 300 times: {counts:?}");
        assert!(counts.waited_s < 15.0, "were each to wait, it would be 75 s; a window of {window}: {counts:?}");
    }
    Ok(())
}

#[test]
fn a_reading_that_comes_alone_is_committed_and_sent_at_once() -> Outcome<()> {
    let (gateway, topic) = gateway("alone")?;
    let agent = gateway.start()?;
    publish_all(gateway.listener(), Plan::new("first", &topic, 1).count(1))?;
    agent.wait_book("delivered", 1)?;
    let before = Counts::of(&agent)?;
    for n in 0..5 {
        std::thread::sleep(Duration::from_millis(1_500));
        publish_all(gateway.listener(), Plan::new(&format!("alone-{n}"), &topic, 1).count(1))?;
    }
    agent.wait_book("delivered", 6)?;
    let counts = Counts::of(&agent)?.since(before);
    assert!(counts.waited_s < 0.1, "none waits for another that does not come: {counts:?}");
    Ok(())
}
