//! A backlog over a link with a round trip of 300 ms.

use std::time::{Duration, Instant};

use crate::load::Load;
use crate::support::{Outcome, PATIENCE, kafka, proxy::Weather, wait_until};
use crate::watch::settled;
use crate::{Both, Mode, Table, scaled};

pub fn run(table: &mut Table) -> Outcome<()> {
    let mut figures: Both<(f64, f64)> = Both::default();
    for mode in Mode::BOTH {
        *figures.of(mode) = drain(mode, scaled(100_000))?;
    }
    let (first, then) = (figures.exactly_once, figures.at_least_once);
    table.row(
        "events/s, a backlog of 100,000 over a round trip of 300 ms",
        &format!("{:.0}", first.1),
        &format!("{:.0}", then.1),
        "≥ 5,000",
    );
    table.row(
        "s from the link's return to the first delivery, the same (connection, start and recovery over it)",
        &format!("{:.1}", first.0),
        &format!("{:.1}", then.0),
        "",
    );
    Ok(())
}

/// Seconds to the first delivery, and the rate from it to the last one.
fn drain(mode: Mode, events: usize) -> Outcome<(f64, f64)> {
    let kafka = kafka::shared()?;
    let topic = kafka.topic("bench-far")?;
    let link = kafka.lease()?;
    let mut gateway = mode.gateway(kafka, &link.brokers()?)?;
    gateway.route("bench/{line}/{sensor}", &topic);
    link.set(Weather::Cut)?;
    let mut agent = gateway.start()?;
    let load = Load { sensors: 5, ..Load::full(gateway.listener(), events) };
    let published = load.run()?.events as u64;
    link.proxy()?.delay(Duration::from_millis(150));
    let returned = Instant::now();
    link.set(Weather::Fair)?;
    wait_until("the first delivery", PATIENCE * 2, || agent.book("delivered").is_ok_and(|n| n > 0))?;
    let (first, held) = (Instant::now(), published - agent.book("delivered")?);
    let end = settled(&agent, &kafka.brokers(), &topic, published)?;
    link.proxy()?.delay(Duration::ZERO);
    agent.stop(Duration::from_secs(20))?;
    Ok((first.duration_since(returned).as_secs_f64(), held as f64 / end.duration_since(first).as_secs_f64()))
}
