//! The play: who is on stage, what happens when.
//!
//! ```text
//!   0 ──────────── kafka_goes ──── killed ──── kafka_back ─────────────── sensors_stop ── drain ── SIGTERM ── books
//!     normal flow  │  the buffer grows  │  …and grows  │  backlog drains      │
//!                  └────────────── 8 s of outage ──────┘
//! ```

use std::cell::Cell;
use std::convert::Infallible;
use std::path::Path;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use test_kit::Trouble;
use tokio::time::sleep;

use super::central::{Central, CentralError};
use super::fleet::{Fleet, plans};
use super::relay::{Relay, RelayError, Site};
use super::report::Outcome;
use super::view::{Numbers, View, grouped};
use crate::observe::status::Status;

/// Shows an outage of Kafka and a kill -9 on this machine, with simulated sensors and a simulated Kafka.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct Options {
    /// How long the demo takes, about.
    // The books keep about 150 bytes a reading: 120 s of 20,000/s are 360 MB, the most that the limits here allow.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(10..=120))]
    pub seconds: u64,
    /// Readings a second, of all sensors together.
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u64).range(1..=20_000))]
    pub rate: u64,
    /// Number of simulated sensors.
    // The listener takes 256 connections by default.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=200))]
    pub sensors: u16,
    /// Keep the configuration, the buffer and the log, and print where they are.
    #[arg(long)]
    pub keep: bool,
}

/// Longest outage on stage.
const OUTAGE: Duration = Duration::from_secs(8);

/// Of the whole time, what starting, draining and stopping take.
const BEFORE_AND_AFTER: Duration = Duration::from_secs(2);

/// How long Kafka may take to get the last acknowledged reading. A backlog drains in a second or two.
const DRAIN_TIME: Duration = Duration::from_secs(30);

/// How often the numbers are read and drawn.
const LOOK: Duration = Duration::from_millis(80);

/// Why the play broke off.
#[derive(Debug, thiserror::Error)]
pub(super) enum StageError {
    /// The relay, or what it needs.
    #[error(transparent)]
    Relay(#[from] RelayError),
    /// The central Kafka.
    #[error(transparent)]
    Central(#[from] CentralError),
    /// A sensor's thread died.
    #[error("a simulated sensor failed: {0}")]
    Sensor(Trouble),
}

/// When what happens, from the first reading on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Times {
    kafka_goes: Duration,
    killed: Duration,
    dark: Duration,
    kafka_back: Duration,
    sensors_stop: Duration,
}

impl Times {
    /// A short demo has a short outage; a long one has more of the rest.
    fn new(seconds: u64) -> Self {
        // Too short for its parts: they shrink to nothing.
        let play = Duration::from_secs(seconds).saturating_sub(BEFORE_AND_AFTER);
        let outage = OUTAGE.min(play.mul_f64(0.3));
        let kafka_goes = play.saturating_sub(outage).mul_f64(0.4);
        Self {
            kafka_goes,
            killed: kafka_goes + outage.mul_f64(0.5),
            dark: outage.mul_f64(0.1),
            kafka_back: kafka_goes + outage,
            sensors_stop: play,
        }
    }
}

/// Plays it in that folder.
pub(super) async fn play(options: &Options, folder: &Path) -> Result<(Outcome, View), StageError> {
    let times = Times::new(options.seconds);
    let mut view = View::new(options.rate.saturating_mul(times.sensors_stop.as_secs()));
    let plans = plans(options.sensors, options.rate);
    let central = Central::start(&plans)?;
    let site = Site::prepare(folder, &central.address())?;
    introduce(&view, options, &site, &central.address());
    let (relay, took) = Relay::start(&site).await?;
    view.line(format!("The relay is ready after {:.2} s, as process {}.\n", took.as_secs_f64(), relay.pid()));
    view.curtain();

    let start = Instant::now();
    let fleet = Fleet::start(&plans, site.mqtt);
    let (held, most_held) = (Cell::new(0), Cell::new(0));
    let act =
        Act { options, times, central: &central, site: &site, view: &view, start, fleet: &fleet, held, most_held };
    let finale = tokio::select! {
        finale = act.perform(relay) => finale?,
        never = act.watch() => match never {},
    };
    let logs = fleet.leave().map_err(StageError::Sensor)?;
    let books = central.finish().await?.close(&logs);
    view.close();
    Ok((Outcome { relay: finale.status, exit: finale.exit, ..Outcome::new(books, &logs) }, view))
}

fn introduce(view: &View, options: &Options, site: &Site, kafka: &str) {
    let rate = grouped(options.rate);
    view.line(format!(
        "{}: a site with a bad link, on one machine, in about {} s.\n",
        view.bold("tidegate demo"),
        options.seconds
    ));
    view.line(format!(
        "  sensors  {} of them, simulated, {rate} readings/s together, over TCP: MQTT 5 and 3.1.1, QoS 1 and 2",
        options.sensors
    ));
    view.line(format!("  relay    tidegate run --config {}", site.config.display()));
    view.line(format!("           takes MQTT at {}, answers for itself at http://{}/", site.mqtt, site.http));
    view.line(format!("  Kafka    a mock cluster inside this process, at {kafka}: the real protocol, no disk\n"));
    view.line(
        "A reading is acknowledged when its PUBACK (QoS 1) or PUBREC (QoS 2) has come. By then it is on the relay's",
    );
    view.line("disk, and only Kafka's own confirmation removes it. This demo tries to prove that wrong.\n");
}

/// What the relay said at the end.
struct Finale {
    status: Option<Status>,
    exit: Option<ExitStatus>,
}

struct Act<'a> {
    options: &'a Options,
    times: Times,
    central: &'a Central,
    site: &'a Site,
    view: &'a View,
    start: Instant,
    fleet: &'a Fleet,
    /// As `/status` said last.
    held: Cell<u64>,
    most_held: Cell<u64>,
}

impl Act<'_> {
    async fn perform(&self, mut relay: Relay) -> Result<Finale, StageError> {
        self.view.scene("Everything works: readings go to Kafka, and the buffer is almost empty.");
        self.until(self.times.kafka_goes, &mut relay).await?;

        let relay = self.outage(relay).await?;
        let mut relay = self.recovery(relay).await?;
        self.until(self.times.sensors_stop, &mut relay).await?;

        self.view.scene("The sensors stop, and wait for their last acknowledgements.");
        self.fleet.stop().await;
        self.drain(&mut relay).await?;
        let status = self.site.status().await;
        let (exit, took) = relay.stop().await?;
        self.view.scene(match exit {
            Some(exit) => format!("SIGTERM: the relay stopped after {:.2} s ({exit}).", took.as_secs_f64()),
            None => format!("SIGTERM: the relay did not stop within {:.0} s, and was killed.", took.as_secs_f64()),
        });
        Ok(Finale { status, exit })
    }

    /// Kafka goes away, and in the middle of that the relay is killed and started again.
    async fn outage(&self, mut relay: Relay) -> Result<Relay, StageError> {
        let away = self.times.kafka_back.saturating_sub(self.times.kafka_goes);
        self.central.go_away()?;
        let acknowledged_before = self.numbers().acknowledged;
        self.view.scene(format!(
            "Kafka goes away for {:.1} s. Readings are still acknowledged: they are on disk, and the buffer grows.",
            away.as_secs_f64()
        ));
        self.until(self.times.killed, &mut relay).await?;

        let resumed_before = self.fleet.resumed();
        relay.kill()?;
        self.view.scene("kill -9: the relay dies at once. The sensors keep what was not acknowledged.");
        sleep(self.times.dark).await;
        let (mut relay, took) = Relay::start(self.site).await?;
        let held = self.site.status().await.map_or(0, |status| status.total.held);
        self.view.scene(format!(
            "The relay is started again: ready after {:.2} s, with {} readings from its disk.",
            took.as_secs_f64(),
            grouped(held)
        ));
        self.until(self.times.kafka_back, &mut relay).await?;
        self.view.scene(format!(
            "In the outage the relay acknowledged {} readings. {} of {} sensors found their session again.",
            grouped(self.numbers().acknowledged - acknowledged_before),
            self.fleet.resumed() - resumed_before,
            self.options.sensors
        ));
        Ok(relay)
    }

    /// Kafka returns, and the backlog drains while new readings come in.
    async fn recovery(&self, mut relay: Relay) -> Result<Relay, StageError> {
        self.central.come_back()?;
        let back = Instant::now();
        self.view.scene(format!(
            "Kafka is back. {} readings wait in the buffer; they go out in order, while new ones come in.",
            grouped(self.most_held.get())
        ));
        // Half a second of readings is what may be on its way at any time.
        let almost_none = self.options.rate / 2;
        while self.start.elapsed() < self.times.sensors_stop {
            self.pause(&mut relay).await?;
            if back.elapsed() > LOOK * 3 && self.held.get() <= almost_none {
                self.view.scene(format!(
                    "The backlog is gone, {:.1} s after Kafka came back.",
                    back.elapsed().as_secs_f64()
                ));
                break;
            }
        }
        Ok(relay)
    }

    /// Until Kafka holds what was acknowledged and the buffer is empty, or the time is over.
    async fn drain(&self, relay: &mut Relay) -> Result<(), StageError> {
        let begun = Instant::now();
        loop {
            let numbers = self.numbers();
            // Its books may be a moment old: those are meant that have the last reading.
            let books = self.site.status().await.map(|status| status.total);
            let empty = books.is_some_and(|books| books.held == 0 && books.received >= numbers.acknowledged);
            if empty && numbers.in_kafka >= numbers.acknowledged {
                self.view.scene("Kafka holds everything, and the buffer is empty.");
                return Ok(());
            }
            if begun.elapsed() > DRAIN_TIME {
                self.view.scene(format!(
                    "Kafka does not hold everything after {} s, and the demo waits no longer.",
                    DRAIN_TIME.as_secs()
                ));
                return Ok(());
            }
            self.pause(relay).await?;
        }
    }

    async fn until(&self, at: Duration, relay: &mut Relay) -> Result<(), StageError> {
        while self.start.elapsed() < at {
            self.pause(relay).await?;
        }
        Ok(())
    }

    /// A moment, in which the relay must not end by itself.
    async fn pause(&self, relay: &mut Relay) -> Result<(), StageError> {
        sleep(LOOK).await;
        Ok(relay.check()?)
    }

    /// Keeps the numbers fresh and on the screen, for ever.
    async fn watch(&self) -> Infallible {
        loop {
            let held = if let Some(status) = self.site.status().await {
                status.total.held
            } else {
                // It is dead or busy: what was promised and has not arrived is the best guess.
                // What it sent just before may have been counted there first.
                let numbers = self.numbers();
                numbers.acknowledged.saturating_sub(numbers.in_kafka)
            };
            self.held.set(held);
            self.most_held.set(held.max(self.most_held.get()));
            self.view.draw(self.numbers());
            sleep(LOOK).await;
        }
    }

    fn numbers(&self) -> Numbers {
        Numbers {
            published: self.fleet.published(),
            acknowledged: self.fleet.acknowledged(),
            held: self.held.get(),
            in_kafka: self.central.readings(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thirty_seconds_have_eight_of_outage_with_the_kill_in_the_middle() {
        let times = Times::new(30);
        assert_eq!(times.kafka_back, times.kafka_goes + Duration::from_secs(8));
        assert_eq!(times.killed, times.kafka_goes + Duration::from_secs(4));
        assert_eq!(times.sensors_stop, Duration::from_secs(28));
    }

    #[test]
    fn scenes_follow_each_other_however_long_the_demo() {
        for seconds in 10..=120 {
            let times = Times::new(seconds);
            assert!(times.kafka_goes > Duration::from_secs(1), "{times:?}");
            assert!(times.kafka_goes < times.killed && times.killed + times.dark < times.kafka_back, "{times:?}");
            assert!(times.kafka_back + Duration::from_secs(2) < times.sensors_stop, "{times:?}");
        }
    }
}
