//! Exactly-once against at-least-once, in one run on one machine, all parts real: the figures of docs/figures.md, and a Markdown
//! table of them at the end.
//!
//! ```sh
//! cargo bench --bench transactions                 # everything, about half an hour
//! cargo bench --bench transactions -- wire return  # these parts: rate, wire, return, far, links, opening, audit
//! ```
//!
//! It needs what `tests/run` installs. With `TIDEGATE_BINARY` another build of the agent is measured. `TIDEGATE_BENCH_SCALE=0.2`
//! makes everything that counts or waits so much smaller: a look whether it works, not a measurement.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    clippy::map_err_ignore,
    clippy::wildcard_enum_match_arm,
    reason = "a benchmark stops at the first surprise and prints figures"
)]
#![allow(missing_docs, unreachable_pub, reason = "a benchmark has no interface")]

mod audit;
mod far;
mod links;
#[path = "../relay/load.rs"]
#[allow(dead_code, reason = "the latencies of PUBACK are the relay benchmark's")]
mod load;
mod opening;
mod rate;
mod returns;
#[path = "../../tests/it/support/mod.rs"]
#[allow(dead_code, unused_imports, reason = "the benchmark uses a part of the tests' support")]
mod support;
#[path = "../relay/usage.rs"]
mod usage;
mod watch;
mod wire;

use std::process::ExitCode;
use std::time::Instant;

use support::agent::{Build, Gateway};
use support::kafka::{Kafka, unique_topic};
use support::{Outcome, reader};

type Part = fn(&mut Table) -> Outcome<()>;

const PARTS: [(&str, Part); 7] = [
    ("rate", rate::run),
    ("wire", wire::run),
    ("return", returns::run),
    ("far", far::run),
    ("links", links::run),
    ("opening", opening::run),
    ("audit", audit::run),
];

fn main() -> ExitCode {
    let asked: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    if reader::transactions_are_asked_for() || asked.iter().any(|part| PARTS.iter().all(|(name, _)| name != part)) {
        let names: Vec<&str> = PARTS.iter().map(|(name, _)| *name).collect();
        eprintln!("nothing, or some of: {}; and TIDEGATE_DELIVERY stays unset: both are measured", names.join(" "));
        return ExitCode::FAILURE;
    }
    let (began, mut table) = (Instant::now(), Table::default());
    let mut failed = false;
    for (name, part) in PARTS {
        if !asked.is_empty() && !asked.iter().any(|part| part == name) {
            continue;
        }
        let start = Instant::now();
        // What was measured is worth printing although a later part could not be.
        if let Err(error) = part(&mut table) {
            failed = true;
            table.row(&format!("{name}: not measured"), &format!("{error:?}"), "", "");
        }
        eprintln!("-- {name}: {:.0} s", start.elapsed().as_secs_f64());
    }
    println!("{}, {:.0} min; ", usage::machine(), began.elapsed().as_secs_f64() / 60.0);
    println!("{}", table.markdown());
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// Which `delivery`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    ExactlyOnce,
    AtLeastOnce,
}

impl Mode {
    const BOTH: [Self; 2] = [Self::ExactlyOnce, Self::AtLeastOnce];

    /// A gateway with a listener that reaches Kafka at that address; its watermark topic is its own.
    fn gateway(self, kafka: &Kafka, brokers: &str) -> Outcome<Gateway> {
        let mut gateway = Gateway::new(Build::Real, brokers)?;
        if self == Self::ExactlyOnce {
            let topic = unique_topic("bench-watermarks");
            kafka.create_topic(&topic, 1, &[("cleanup.policy", "compact")])?;
            gateway.exactly_once(&topic);
        }
        gateway.listen("");
        Ok(gateway)
    }
}

/// One of each mode.
#[derive(Debug, Default)]
struct Both<T> {
    exactly_once: T,
    at_least_once: T,
}

impl<T> Both<T> {
    fn of(&mut self, mode: Mode) -> &mut T {
        match mode {
            Mode::ExactlyOnce => &mut self.exactly_once,
            Mode::AtLeastOnce => &mut self.at_least_once,
        }
    }
}

/// Several measurements of one thing.
#[derive(Debug, Default, Clone)]
struct Samples(Vec<f64>);

impl Samples {
    fn push(&mut self, sample: f64) {
        let at = self.0.partition_point(|other| *other < sample);
        self.0.insert(at, sample);
    }

    fn extend(&mut self, samples: impl IntoIterator<Item = f64>) {
        self.0.extend(samples);
        self.0.sort_by(f64::total_cmp);
    }

    fn len(&self) -> usize {
        self.0.len()
    }

    /// 0.5 is the median, 1.0 the largest.
    fn quantile(&self, quantile: f64) -> f64 {
        let last = self.0.len().saturating_sub(1);
        self.0.get((last as f64 * quantile).round() as usize).copied().unwrap_or(f64::NAN)
    }

    /// Median, smallest and largest.
    fn spread(&self, digits: usize) -> String {
        let [median, least, most] = [0.5, 0.0, 1.0].map(|quantile| self.quantile(quantile));
        format!("{median:.digits$} ({least:.digits$} to {most:.digits$})")
    }
}

/// What is printed at the end.
#[derive(Debug, Default)]
struct Table(Vec<[String; 4]>);

impl Table {
    fn row(&mut self, what: &str, exactly_once: &str, at_least_once: &str, aim: &str) {
        eprintln!("{what}: {exactly_once} | {at_least_once}");
        self.0.push([what, exactly_once, at_least_once, aim].map(str::to_owned));
    }

    fn markdown(&self) -> String {
        let mut text = "| | exactly once | at least once | aim |\n|---|---|---|---|\n".to_owned();
        for row in &self.0 {
            text.extend(["| ", &row.join(" | "), " |\n"]);
        }
        text
    }
}

/// So many, or that share of them which `TIDEGATE_BENCH_SCALE` asks for.
fn scaled(count: usize) -> usize {
    let scale = std::env::var("TIDEGATE_BENCH_SCALE").ok().and_then(|text| text.parse::<f64>().ok()).unwrap_or(1.0);
    ((count as f64 * scale) as usize).max(1)
}
