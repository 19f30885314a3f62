//! From Kafka's return to the first reading that a `read_committed` consumer sees: a link that is cut and mended, and a
//! broker that is killed and restarted. Several agents live through the same outage, each with a back-off of its own.

use std::time::{Duration, Instant};

use rdkafka::consumer::Consumer;

use crate::support::agent::{Agent, Gateway};
use crate::support::kafka::Kafka;
use crate::support::proxy::Weather;
use crate::support::publisher::{Plan, Publisher};
use crate::support::{Outcome, PATIENCE, Trouble, wait_until};
use crate::watch::{Firsts, Onlooker, consumer};
use crate::{Both, Mode, Samples, Table, scaled};

/// Agents of each mode in each kind of outage.
const AGENTS: usize = 5;

/// Seconds, and how often.
const OUTAGES: [(usize, usize); 2] = [(5, 3), (60, 2)];

/// Readings a second of each agent.
const RATE: u32 = 20;

/// Agents of both modes behind one way to Kafka.
struct Camp {
    topics: Both<Vec<String>>,
    agents: Vec<(Gateway, Agent, Publisher)>,
    firsts: Firsts,
    onlooker: Onlooker,
}

impl Camp {
    fn start(kafka: &Kafka, way: &str) -> Outcome<Self> {
        let (mut topics, mut agents) = (Both::<Vec<String>>::default(), Vec::new());
        for mode in Mode::BOTH {
            for _ in 0..AGENTS {
                let topic = kafka.topic("bench-return")?;
                let mut gateway = mode.gateway(kafka, way)?;
                gateway.route("#", &topic);
                let agent = gateway.start()?;
                let publisher = Publisher::start(gateway.listener(), Plan::new(&topic, "t", 1).rate(RATE));
                topics.of(mode).push(topic);
                agents.push((gateway, agent, publisher));
            }
        }
        let firsts = Firsts::default();
        let theirs = firsts.clone();
        let onlooker = Onlooker::start(&kafka.brokers(), &all(&topics), move |topic, _, at| theirs.note(topic, at))?;
        Ok(Self { topics, agents, firsts, onlooker })
    }

    fn flows(&self) -> Outcome<()> {
        self.firsts.forget();
        self.firsts.wait_for(&all(&self.topics), PATIENCE * 2)
    }

    /// Everything comes again: how long after that moment.
    fn measure(&mut self, returned: Instant, seconds: &mut Both<Samples>) -> Outcome<()> {
        self.firsts.wait_for(&all(&self.topics), PATIENCE * 2)?;
        for mode in Mode::BOTH {
            for topic in self.topics.of(mode).iter() {
                let first = self.firsts.of(topic).ok_or_else(|| Trouble::new("a record that was there is gone"))?;
                seconds.of(mode).push(first.saturating_duration_since(returned).as_secs_f64());
            }
        }
        Ok(())
    }

    fn end(self) -> Outcome<()> {
        for (_, mut agent, publisher) in self.agents {
            publisher.stop(PATIENCE)?;
            agent.stop(Duration::from_secs(20))?;
        }
        self.onlooker.end()
    }
}

fn all(topics: &Both<Vec<String>>) -> Vec<String> {
    [&topics.exactly_once[..], &topics.at_least_once[..]].concat()
}

pub fn run(table: &mut Table) -> Outcome<()> {
    let (cut, killed) = (Kafka::start(1)?, Kafka::start(0)?);
    let link = cut.lease()?;
    let (mut behind_link, mut at_broker) =
        (Camp::start(&cut, &link.brokers()?)?, Camp::start(&killed, &killed.brokers())?);
    for (outage, rounds) in OUTAGES.map(|(seconds, rounds)| (scaled(seconds), rounds)) {
        let (mut after_cut, mut after_kill) = (Both::<Samples>::default(), Both::<Samples>::default());
        for _ in 0..rounds {
            behind_link.flows()?;
            at_broker.flows()?;
            std::thread::sleep(Duration::from_secs(3));
            link.set(Weather::Cut)?;
            killed.kill()?;
            std::thread::sleep(Duration::from_secs(outage as u64));
            behind_link.firsts.forget();
            let returned = Instant::now();
            link.set(Weather::Fair)?;
            behind_link.measure(returned, &mut after_cut)?;
            // The other one stays away until these have been measured: Java takes both cores when it starts.
            at_broker.firsts.forget();
            let topic = at_broker.topics.exactly_once.first().cloned().unwrap_or_default();
            let brokers = killed.brokers();
            let answers = std::thread::spawn(move || first_answer(&brokers, &topic));
            killed.run()?;
            let returned = answers.join().map_err(|_| Trouble::new("who asked has died"))??;
            at_broker.measure(returned, &mut after_kill)?;
        }
        for (what, seconds) in [("link cut and mended", after_cut), ("broker killed and restarted", after_kill)] {
            let worst = |samples: &Samples| {
                format!("{:.2} / {:.2} of {}", samples.quantile(0.5), samples.quantile(1.0), samples.len())
            };
            let what = format!("s from Kafka's return to the first reading seen, p50 / most: {what}, {outage} s");
            table.row(&what, &worst(&seconds.exactly_once), &worst(&seconds.at_least_once), "≤ 3");
        }
    }
    behind_link.end()?;
    at_broker.end()
}

/// When the broker says that it leads that topic.
fn first_answer(brokers: &str, topic: &str) -> Outcome<Instant> {
    let asker = consumer(brokers)?;
    wait_until("the broker", PATIENCE * 2, || {
        let Ok(metadata) = asker.fetch_metadata(Some(topic), Duration::from_millis(100)) else { return false };
        let leads = |found: &rdkafka::metadata::MetadataTopic| {
            found.error().is_none() && found.partitions().iter().all(|partition| partition.leader() > 0)
        };
        !metadata.brokers().is_empty() && metadata.topics().iter().all(leads)
    })?;
    Ok(Instant::now())
}
