//! How the agent's log lines come out: text, JSON or journald, always on standard error.
//!
//! Text has times in UTC (a gateway's local time is nobody's), and colours only on a terminal and without `NO_COLOR`.
//! `auto` is journald when systemd has connected this process's standard error to the journal, else text.
//!
//! The libraries below speak up at WARN only, unless `level` names them: what matters about a link its owner says.

use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

use tracing::Subscriber;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::{Layer, Registry};

use crate::settings::{Log, LogFormat};

/// Log targets of libraries.
const LIBRARIES: [&str; 5] = ["librdkafka", "rdkafka", "rumqttc", "hyper", "mio"];

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// Why no log could be started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    /// `level` is not a filter; `config` refuses it before.
    #[error("cannot start the log: level: {0}")]
    Level(String),
    /// `format = "journald"`, and there is no journal.
    #[error("cannot start the log: the journal does not answer: {0}; set [log] format = \"text\"")]
    Journal(#[source] io::Error),
    /// A second start.
    #[error("cannot start the log: it was started before, which is a bug")]
    Twice,
}

/// Starts logging for this process. Once.
///
/// # Errors
/// When the journal is wanted and not there, or the log was started before.
pub(crate) fn start(log: &Log) -> Result<(), StartError> {
    let filter = filter(&log.level).map_err(StartError::Level)?;
    let subscriber = Registry::default().with(filter).with(lines(log.format)?);
    tracing::subscriber::set_global_default(subscriber).map_err(|_started: _| StartError::Twice)
}

/// Is it a level, or a list of `target=level`?
///
/// # Errors
/// What is wrong, in words for the person who wrote it.
pub(crate) fn check_level(text: &str) -> Result<(), String> {
    filter(text).map(|_| ())
}

fn lines<S>(format: LogFormat) -> Result<Box<dyn Layer<S> + Send + Sync>, StartError>
where
    S: Subscriber + for<'s> tracing_subscriber::registry::LookupSpan<'s>,
{
    let text = || tracing_subscriber::fmt::layer().with_writer(io::stderr).with_ansi(colours()).boxed();
    match format {
        LogFormat::Json => Ok(tracing_subscriber::fmt::layer().json().with_writer(io::stderr).boxed()),
        LogFormat::Journald => tracing_journald::layer().map(Layer::boxed).map_err(StartError::Journal),
        LogFormat::Auto if stderr_is_journal() => {
            Ok(tracing_journald::layer().map_or_else(|_absent: io::Error| text(), Layer::boxed))
        }
        LogFormat::Auto | LogFormat::Text => Ok(text()),
    }
}

fn colours() -> bool {
    io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// systemd names device and inode of the stream it made in `$JOURNAL_STREAM`. A child whose standard error goes
/// elsewhere inherits the variable and not the stream.
fn stderr_is_journal() -> bool {
    let Some(stream) = std::env::var("JOURNAL_STREAM").ok() else { return false };
    let Ok(stderr) = io::stderr().as_fd().try_clone_to_owned() else { return false };
    let Ok(metadata) = File::from(stderr).metadata() else { return false };
    stream == format!("{}:{}", metadata.dev(), metadata.ino())
}

fn filter(text: &str) -> Result<Targets, String> {
    let directives: Vec<&str> = text.split(',').map(str::trim).collect();
    check_words(&directives)?;
    let text = directives.join(",");
    let asked = parse(&text)?;
    // A library never says more than the level that was asked for as a whole.
    let quiet = asked.default_level().unwrap_or(LevelFilter::WARN).min(LevelFilter::WARN);
    let tamed = LIBRARIES.map(|library| format!("{library}={quiet}")).join(",");
    // Later directives replace earlier ones for the same target.
    parse(&format!("{tamed},{text}"))
}

fn parse(text: &str) -> Result<Targets, String> {
    text.parse().map_err(|error: tracing_subscriber::filter::ParseError| error.to_string())
}

/// The filter language takes any single word for a target at TRACE, which would make silence of a misspelt level.
fn check_words(directives: &[&str]) -> Result<(), String> {
    for directive in directives {
        if directive.is_empty() {
            return Err("a part between commas is empty".into());
        }
        if directive.contains('=') {
            continue;
        }
        if !LEVELS.contains(&&*directive.to_ascii_lowercase()) {
            return Err(format!("{directive:?} is no level; allowed: {}, or target=level", LEVELS.join(", ")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_filters_are_taken() {
        for text in ["info", "off", "WARN", "info,tidegate::ingest=debug", "warn, librdkafka=debug"] {
            assert_eq!(check_level(text), Ok(()), "{text}");
        }
    }

    #[test]
    fn misspelt_levels_are_refused() {
        for text in ["", "inof", "info,", "info,tidegate", "tidegate=loud", "tidegate::a=b=c", "[x"] {
            assert!(check_level(text).is_err(), "{text}");
        }
    }

    #[test]
    fn libraries_are_quiet_unless_named() {
        let shown = |text| filter(text).unwrap().to_string();
        assert!(shown("debug").contains("librdkafka=warn"));
        assert!(shown("error").contains("librdkafka=error"));
        let named = shown("info,librdkafka=debug");
        assert!(named.contains("librdkafka=debug") && !named.contains("librdkafka=warn"), "{named}");
    }
}
