//! `tidegate audit`: reads the Kafka topics and proves for each buffer that nothing is missing, repeated or out of order,
//! or names what is.
//!
//! # What is proven
//!
//! Each event bears `tidegate-id`, its buffer and its sequence, and `tidegate-instance`, the start of the agent that stored
//! it. Two records are the same event when sequence and instance agree, whatever their buffers. The sequences of a buffer are contiguous from 1, over all
//! its Kafka topics; so whoever reads all of these sees what is missing. The gateway declares in the watermark topic
//! ([`crate::watermark`]) what will never come and what has yet to come. For each buffer:
//!
//! | found | explained by |
//! |---|---|
//! | a missing sequence | a declared hole (dead-lettered, dropped, purged, lost); a parked lane with room for it (`waiting`); the new id of a clone (`tidegate-was`); being above the watermark (`not_yet_delivered`) |
//! | an event seen twice | nothing; only a repeat under a new id that says so is declared |
//! | two events under one id | nothing |
//! | a sequence behind a higher one of the same MQTT topic in the same partition | nothing |
//! | a record without `tidegate-id` | it is somebody else's: counted |
//! | a `tidegate-id` that is none | nothing |
//!
//! Where the beginning is cut off, by `--from` or because Kafka has removed old records, judging begins at the lowest
//! sequence that arrived after the cut; with `--to` it ends at the highest that arrived before. Time is that
//! of the record: when it was sent, or when it arrived at its gateway (`timestamp = "arrival"`). `--to` does not end the reading: a gateway that was away delivers late.
//!
//! The answer is for the moment of the start: first the watermarks are read, then the ends of the topics are taken, and
//! read to. It is 0 when everything is explained, 2 when not, 1 when not everything could be looked at (Kafka away, a
//! transaction that stays open, a bound below reached), 78 when the configuration is wrong.
//!
//! # How
//!
//! `look.rs` asks Kafka in the right order, `reader.rs` reads spans of partitions, `headers.rs` takes the headers out of
//! a record; `auditor.rs` takes records and keeps books, without Kafka and clock (`sequences.rs`, `order.rs`,
//! `said.rs`); `judge.rs` closes them; `findings.rs` is what comes out, `report.rs` says it to people.
//!
//! # Bounds
//!
//! | what | bound | beyond |
//! |---|---|---|
//! | sequences, as ranges and bits | 80,000 entries, 20 million events of partitions that are read ahead of others (each stands twice: in all, and by its start) | the lower half is not judged: incomplete |
//! | last sequence of each MQTT topic, by hash | 450,000 | the order of further topics is not watched: incomplete |
//! | declared holes and lanes | 100,000 (neighbours join) | incomplete |
//! | buffers | 10,000 | incomplete |
//! | read ahead by librdkafka | 10,000 records or 4 MiB, and one fetch of 384 KiB compressed | it waits |

mod auditor;
mod buffer;
mod findings;
mod headers;
mod judge;
mod look;
mod order;
mod progress;
mod reader;
mod report;
mod said;
mod sequences;
#[cfg(test)]
mod tests;
mod when;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use regex_lite::Regex;
use serde::Serialize;
use uuid::Uuid;

use self::findings::Verdict;
use self::look::{Found, Plan};
use self::progress::Progress;
use self::reader::Isolation;
use super::config_file::DEFAULT_CONFIG;
use super::exit::{EXIT_CONFIG, EXIT_FAILED};
use super::out::{self, complain};
use crate::config;
use crate::settings::{Codec, Delivery, HeaderNames, Kafka, Timestamp};
use crate::watermark;

/// Something is missing without a reason, came twice, or out of order.
const EXIT_UNEXPLAINED: u8 = 2;

/// `tidegate audit`
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit code: 0 everything is explained, 2 something is not, 1 not everything could be read, 78 wrong \
         configuration"
)]
pub struct Options {
    /// Configuration file: brokers, [kafka.options] and the topics of its routes
    ///
    /// Without this option but with --brokers, no file is read. [default: /etc/tidegate/tidegate.toml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Kafka brokers to ask, instead of those in the configuration
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',')]
    brokers: Vec<String>,
    /// A topic to audit, instead of those of the routes; may be given more than once
    ///
    /// The sequences of a buffer run over all its topics, so audit all of them together: what went to another topic
    /// looks like a gap.
    #[arg(long = "topic", value_name = "TOPIC")]
    topic: Vec<String>,
    /// Audit all topics whose whole name matches this
    #[arg(long, value_name = "REGEX")]
    topics: Option<String>,
    /// The watermark topic, to which the gateways write what they delivered [default: that of the configuration]
    #[arg(long, value_name = "TOPIC")]
    watermark_topic: Option<String>,
    /// Only records from this time on, by the records' time: 2026-01-31T12:00:00Z, or 2h (for 2 hours ago)
    #[arg(long, value_name = "TIME", value_parser = when::parse)]
    from: Option<i64>,
    /// Only records before this time
    #[arg(long, value_name = "TIME", value_parser = when::parse)]
    to: Option<i64>,
    /// Only this buffer; may be given more than once
    #[arg(long, value_name = "ID", value_parser = buffer_id)]
    buffer: Vec<Uuid>,
    /// Which records to read
    #[arg(long, value_enum, default_value = "read-committed")]
    isolation: Visible,
    /// Print JSON for machines: a line for each buffer, then the summary
    #[arg(long)]
    json: bool,
}

/// What a reader sees.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Visible {
    /// What transactions have committed, as consumers should read
    ReadCommitted,
    /// Also what aborted or open transactions have written
    ReadUncommitted,
}

/// Exit code 0 when everything is explained.
#[must_use]
pub fn audit(options: &Options) -> ExitCode {
    let plan = match options.plan() {
        Ok(plan) => plan,
        Err(wrong) => {
            complain(wrong);
            return ExitCode::from(EXIT_CONFIG);
        }
    };
    let mut progress = Progress::new();
    let found = look::audit(&plan, |what, far| progress.draw(what, far));
    progress.end();
    match found {
        Err(error) => {
            complain(format_args!("audit: {error}"));
            ExitCode::from(EXIT_FAILED)
        }
        Ok(found) => {
            let mut out = BufWriter::new(out::stdout());
            let written =
                if options.json { write_json(&mut out, &found) } else { report::for_people(&mut out, &found) };
            if let Err(error) = written.and_then(|()| out.flush()) {
                complain(format_args!("audit: {error}"));
                return ExitCode::from(EXIT_FAILED);
            }
            match found.summary.verdict {
                Verdict::Explained => ExitCode::SUCCESS,
                Verdict::Unexplained => ExitCode::from(EXIT_UNEXPLAINED),
                Verdict::Incomplete => ExitCode::from(EXIT_FAILED),
            }
        }
    }
}

impl Options {
    /// What to do; or what is wrong, for the person who wrote it.
    fn plan(&self) -> Result<Plan, String> {
        let names: BTreeSet<String> = self.topic.iter().cloned().collect();
        let mut patterns = Vec::new();
        if let Some(pattern) = &self.topics {
            let pattern = Regex::new(&format!("^(?:{pattern})$")).map_err(|error| format!("--topics: {error}"))?;
            patterns.push(pattern);
        }
        let kafka = if self.config.is_none() && !self.brokers.is_empty() {
            if names.is_empty() && patterns.is_empty() {
                return Err("--brokers without --config needs --topic or --topics".into());
            }
            Kafka {
                brokers: self.brokers.clone(),
                delivery: Delivery::AtLeastOnce,
                watermark_topic: watermark::TOPIC.to_owned(),
                timestamp: Timestamp::Delivery,
                linger: Duration::ZERO,
                compression: Codec::None,
                headers: HeaderNames::Tidegate,
                max_topics: 0,
                largest_record_bytes: 0,
                options: BTreeMap::new(),
            }
        } else {
            let file = self.config.clone().unwrap_or_else(|| DEFAULT_CONFIG.into());
            let config = config::load_central(&file).map_err(|problems| problems.to_string())?;
            if names.is_empty() && patterns.is_empty() {
                // Also those without names: a topic that is missing, whose readings wait, is no reason not to look.
                patterns.extend(config.routes.topics().filter_map(|topic| Regex::new(&topic.pattern()).ok()));
                let redirected = config.routes.redirected_to().map(|topic| format!("^{}$", topic.replace('.', "\\.")));
                patterns.extend(redirected.filter_map(|pattern| Regex::new(&pattern).ok()));
            }
            let brokers = if self.brokers.is_empty() { config.kafka.brokers.clone() } else { self.brokers.clone() };
            Kafka { brokers, ..config.kafka }
        };
        Ok(Plan {
            way: crate::forward::way_to_kafka(&kafka),
            names,
            patterns,
            watermark_topic: self.watermark_topic.clone().unwrap_or(kafka.watermark_topic),
            from_ms: self.from,
            to_ms: self.to,
            buffers: self.buffer.iter().copied().collect(),
            isolation: match self.isolation {
                Visible::ReadCommitted => Isolation::Committed,
                Visible::ReadUncommitted => Isolation::Uncommitted,
            },
        })
    }
}

fn buffer_id(text: &str) -> Result<Uuid, String> {
    watermark::buffer_id(text).ok_or_else(|| "a buffer id looks like 0b5b9f9e-6e0f-4c6e-b3a3-5a53b3c3a2a1".into())
}

fn write_json(out: &mut impl Write, found: &Found) -> io::Result<()> {
    #[derive(Serialize)]
    struct Last<'a> {
        summary: &'a findings::Summary,
    }
    for buffer in &found.buffers {
        write_line(out, buffer)?;
    }
    write_line(out, &Last { summary: &found.summary })
}

fn write_line(out: &mut impl Write, value: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *out, value)?;
    writeln!(out)
}
