//! A Kafka topic that may not be written, until the right is given: from then to its first reading, and until all that
//! waited is gone and it is direct again.

use std::time::{Duration, Instant};

use crate::support::kafka::{self, unique_topic};
use crate::support::publisher::{Plan, Publisher};
use crate::support::{Outcome, PATIENCE, wait_until};
use crate::watch::{Firsts, Onlooker};
use crate::{Both, Mode, Samples, Table, scaled};

const AGENTS: usize = 3;

/// Readings a second of each agent for the closed topic.
const RATE: u32 = 500;

/// Seconds that it stays closed when all agents know of it: tries come after 1, 3, 7, 15 and 31.
const CLOSED: usize = 25;

pub fn run(table: &mut Table) -> Outcome<()> {
    let kafka = kafka::shared()?;
    let (open, shut) = (kafka.topic("bench-open")?, unique_topic("bench-shut"));
    kafka.create_topic(&shut, 1, &[])?;
    kafka.forbid_writing(&shut, true)?;
    let mut agents = Vec::new();
    for mode in Mode::BOTH {
        for number in 0..AGENTS {
            let mut gateway = mode.gateway(kafka, &kafka.brokers())?;
            gateway.route("open/#", &open).route("shut/#", &shut);
            let agent = gateway.start()?;
            let name = format!("{mode:?}-{number}");
            let publisher = |name: &str, topic: &str, rate| {
                Publisher::start(gateway.listener(), Plan::new(name, topic, 1).rate(rate).window(100))
            };
            let publishers = [publisher(&format!("{name}-open"), "open/1", 20), publisher(&name, "shut/1", RATE)];
            agents.push((mode, name, gateway, agent, publishers));
        }
    }
    let firsts = Firsts::default();
    let theirs = firsts.clone();
    // A payload begins with the name of its publisher.
    let onlooker = Onlooker::start(&kafka.brokers(), std::slice::from_ref(&shut), move |_, payload, at| {
        let name = payload.split(|byte| *byte == b'/').next().unwrap_or_default();
        theirs.note(&String::from_utf8_lossy(name), at);
    })?;
    for (.., agent, _) in &agents {
        wait_until("the topic to be parked", PATIENCE, || agent.parked().is_ok_and(|parked| parked.contains(&shut)))?;
    }
    std::thread::sleep(Duration::from_secs(scaled(CLOSED) as u64));
    kafka.forbid_writing(&shut, false)?;
    let given = Instant::now();
    let (mut first, mut open) = (Both::<Samples>::default(), Both::<Samples>::default());
    let mut waiting: Vec<usize> = (0..agents.len()).collect();
    wait_until("the topic to be open everywhere", PATIENCE * 4, || {
        waiting.retain(|index| {
            let (mode, .., agent, _) = &agents[*index];
            let parked = agent.parked().map_or(true, |parked| parked.contains(&shut));
            if !parked {
                open.of(*mode).push(given.elapsed().as_secs_f64());
            }
            parked
        });
        waiting.is_empty()
    })?;
    for (mode, name, ..) in &agents {
        let at = firsts.of(name).unwrap_or(given);
        first.of(*mode).push(at.saturating_duration_since(given).as_secs_f64());
    }
    for (.., mut agent, publishers) in agents {
        for publisher in publishers {
            publisher.stop(PATIENCE)?;
        }
        agent.stop(Duration::from_secs(20))?;
    }
    onlooker.end()?;
    let closed = format!("a topic that was forbidden for {CLOSED} s, {RATE} events/s for it");
    table.row(
        &format!("s from the right being given to the first reading seen: {closed}"),
        &first.exactly_once.spread(1),
        &first.at_least_once.spread(1),
        "",
    );
    table.row(
        "s from the right being given until it is direct again, the same",
        &open.exactly_once.spread(1),
        &open.at_least_once.spread(1),
        "",
    );
    Ok(())
}
