//! The command line: one file a subcommand. Only here, standard output is written to, and only by way of `out`.

pub mod run; // the agent
pub mod check; // the configuration, offline
pub mod status; // what the running agent says
pub mod audit; // what Kafka holds, and what is missing
pub mod kafka_setup; // what the centre must have
pub mod demo; // everything embedded
pub mod version; // which build this is
mod config_file; // which configuration
mod exit; // what the exit code says
mod out; // what they say, and to whom if nobody listens any more
#[cfg(test)]
mod manual; // tidegate(1) and completions, in step with the above

use std::process::ExitCode;

use clap::{Parser, Subcommand};

pub use config_file::ConfigFile;
use exit::{EXIT_CONFIG, EXIT_FAILED, EXIT_OK};

/// MQTT to Kafka for edge devices: a PUBACK means the reading is on disk.
#[derive(Debug, Parser)]
#[command(name = "tidegate", version, long_version = version::long(), max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the agent
    Run(ConfigFile),
    /// Check the configuration without a network: all errors at once; exit code 78 if it is wrong
    Check(ConfigFile),
    /// Show what the running agent holds, sends and waits for
    Status(status::Options),
    /// Read the Kafka topics and check for each buffer that no reading is missing, repeated or out of order
    Audit(audit::Options),
    /// Show what Kafka needs: the watermark topic, rights, cost; compare it with the cluster; create it with --apply
    KafkaSetup(kafka_setup::Options),
    /// Show an outage on this machine, with simulated sensors and a simulated Kafka
    Demo(demo::Options),
}

/// Reads the arguments, runs the subcommand, says how it ended.
#[must_use]
pub fn main() -> ExitCode {
    let command = match Cli::try_parse() {
        Ok(Cli { command }) => command,
        Err(error) => {
            // Help and version are no errors. clap's own code is 2, which is `audit`'s word for "not explained".
            let code = if error.use_stderr() { EXIT_CONFIG } else { EXIT_OK };
            return if error.print().is_ok() { ExitCode::from(code) } else { ExitCode::from(EXIT_FAILED.max(code)) };
        }
    };
    match command {
        Command::Run(file) => run::run(&file.config),
        Command::Check(file) => check::check(&file.config),
        Command::Status(options) => status::status(&options),
        Command::Audit(options) => audit::audit(&options),
        Command::KafkaSetup(options) => kafka_setup::kafka_setup(&options),
        Command::Demo(options) => demo::demo(options),
    }
}
