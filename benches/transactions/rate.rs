//! Full rate: events a second and the agent's CPU, the two modes in turn.

use std::time::{Duration, Instant};

use crate::load::Load;
use crate::support::{Outcome, PATIENCE, kafka, mosquitto, wait_until};
use crate::usage::Usage;
use crate::watch::settled;
use crate::{Both, Mode, Samples, Table, scaled};

const ROUNDS: usize = 5;

#[derive(Debug, Default)]
struct Figures {
    rate: Samples,
    cpu_us: Samples,
    peak_mb: Samples,
}

pub fn run(table: &mut Table) -> Outcome<()> {
    for (path, events, aim) in [("listener", 600_000, ""), ("mosquitto", 200_000, "exactly once ≥ 25,000")] {
        let mut figures: Both<Figures> = Both::default();
        for _ in 0..ROUNDS {
            for mode in Mode::BOTH {
                once(mode, path == "mosquitto", scaled(events), figures.of(mode))?;
            }
        }
        let Both { exactly_once, at_least_once } = &figures;
        let way = format!("QoS 1, 100 bytes, through {path}, median of {ROUNDS} (least to most)");
        table.row(&format!("events/s, {way}"), &exactly_once.rate.spread(0), &at_least_once.rate.spread(0), aim);
        let more = exactly_once.cpu_us.quantile(0.5) - at_least_once.cpu_us.quantile(0.5);
        table.row(
            &format!("µs CPU of the agent an event, {path}"),
            &exactly_once.cpu_us.spread(2),
            &at_least_once.cpu_us.spread(2),
            &format!("≤ 2 more; is {more:.2} more"),
        );
        table.row(
            &format!("MB resident at most, {path}"),
            &exactly_once.peak_mb.spread(1),
            &at_least_once.peak_mb.spread(1),
            "",
        );
    }
    Ok(())
}

fn once(mode: Mode, by_broker: bool, events: usize, figures: &mut Figures) -> Outcome<()> {
    let kafka = kafka::shared()?;
    let topic = kafka.topic("bench-rate")?;
    let mut gateway = mode.gateway(kafka, &kafka.brokers())?;
    gateway.route("bench/{line}/{sensor}", &topic);
    let to = if by_broker {
        let broker = mosquitto::shared()?;
        gateway.subscribe("plant", &broker.url(), "bench/#", 1, "");
        broker.address()
    } else {
        gateway.listener()
    };
    let mut agent = gateway.start()?;
    if by_broker {
        wait_until("the subscription", PATIENCE, || {
            agent.metric("tidegate_mqtt_connected{link=\"plant\",kind=\"broker\"}").is_ok_and(|n| n > 0.0)
        })?;
        agent.wait_subscribed(1)?;
    }
    let load = Load::full(to, events);
    let warm = Load { events: 8_000, ..load }.run()?;
    settled(&agent, &kafka.brokers(), &topic, warm.events as u64)?;
    let before = Usage::of(&agent)?;
    let start = Instant::now();
    let published = load.run()?;
    let end = settled(&agent, &kafka.brokers(), &topic, (warm.events + published.events) as u64)?;
    let used = Usage::of(&agent)?.since(&before);
    let events = published.events as f64;
    figures.rate.push(events / end.duration_since(start).as_secs_f64());
    figures.cpu_us.push(used.cpu_s * 1e6 / events);
    figures.peak_mb.push(agent.memory_kib("VmHWM")? as f64 / 1024.0);
    agent.stop(Duration::from_secs(20))?;
    Ok(())
}
