//! `tidegate demo`: the main job on stage, from nothing, in half a minute.
//!
//! It needs no file and no argument. The relay is a child process of its own (this program, `run --config`), with a
//! configuration that the demo writes; the sensors are threads of this process that publish to it over TCP; the central
//! Kafka is librdkafka's mock cluster, in this process too. Kafka goes away, the relay is killed with -9 in the middle
//! of that and started again, Kafka returns, and at the end the books are made from what Kafka holds.
//!
//! * `fleet`: the sensors · `central`: the mock Kafka and its reader · `relay`: the child · `stage`: the play
//! * `view`, `report`: what is printed
//!
//! Who publishes, reads and judges is the tests' own kit (`tests/kit`), which uses none of Tidegate's code.
//!
//! Whatever happens, the child is killed and the folder removed (`--keep` keeps it): on an error, on Ctrl-C, SIGTERM
//! and SIGHUP. The exit code is 0 only if the books balance: nothing lost, nothing out of order, every repeat
//! explained, the relay's own books balanced, and a clean stop.

mod central;
mod fleet;
mod relay;
mod report;
mod stage;
mod view;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use tempfile::TempDir;
use tokio::signal::unix::{SignalKind, signal};

pub use stage::Options;
use stage::StageError;

use super::out::complain;

/// Why there are no books.
#[derive(Debug, thiserror::Error)]
enum DemoError {
    #[error("the demo cannot be prepared: {0}")]
    Prepare(#[from] io::Error),
    #[error(transparent)]
    Stage(#[from] StageError),
    #[error("interrupted")]
    Interrupted,
}

/// Runs it; 0 when the books balance.
#[must_use]
pub fn demo(options: Options) -> ExitCode {
    match in_a_folder(&options) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            complain(format_args!("\ntidegate demo: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn in_a_folder(options: &Options) -> Result<bool, DemoError> {
    let folder = tempfile::Builder::new().prefix("tidegate-demo-").tempdir()?;
    let balanced = perform(options, folder.path());
    leave(folder, options.keep)?;
    balanced
}

fn perform(options: &Options, folder: &Path) -> Result<bool, DemoError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (outcome, view) = tokio::select! {
            played = stage::play(options, folder) => played?,
            interrupted = interruption() => return Err(interrupted?),
        };
        let balanced = outcome.tell(&view);
        view.line(what_next(options));
        Ok(balanced)
    })
}

/// Returns when somebody wants the demo to end.
async fn interruption() -> io::Result<DemoError> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        _ = hang_up.recv() => {}
    }
    Ok(DemoError::Interrupted)
}

fn what_next(options: &Options) -> String {
    let more = if options.keep {
        "tidegate demo --rate 20000       ten times the load"
    } else {
        "tidegate demo --keep             keeps the configuration, the buffer and the log, and says where"
    };
    format!(
        "\nWhat to try next (README.md has the rest):\n  \
         {more}\n  \
         tidegate check --config FILE     is a configuration right? All errors at once, with line and key\n  \
         tidegate run --config FILE       the relay, for your own sensors and your own Kafka"
    )
}

fn leave(folder: TempDir, keep: bool) -> io::Result<()> {
    if !keep {
        return folder.close();
    }
    let kept: PathBuf = folder.keep();
    let note = format!(
        "\nKept in {}: tidegate.toml (configuration), data/ (buffer), relay.log (log of both runs).",
        kept.display()
    );
    drop(writeln!(io::stdout(), "{note}"));
    Ok(())
}
