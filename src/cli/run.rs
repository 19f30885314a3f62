//! `tidegate run`: the agent, from its configuration file to its exit code.

use std::path::Path;
use std::process::ExitCode;

use tracing::{error, warn};

use super::exit::{EXIT_CONFIG, EXIT_FAILED};
use super::out::complain;

/// Exit code 0: stopped as asked. 78: wrong configuration, or a buffer that only a person can help (systemd does not
/// start it again, custody rule 6: never a crash loop). 1: anything else.
pub fn run(file: &Path) -> ExitCode {
    let config = match crate::config::load(file) {
        Ok(config) => config,
        Err(problems) => {
            complain(problems);
            return ExitCode::from(EXIT_CONFIG);
        }
    };
    if let Err(error) = crate::observe::log::start(&config.log) {
        complain(error);
        return ExitCode::from(EXIT_FAILED);
    }
    die_whole();
    for remark in &config.remarks {
        warn!("{}", remark.in_file(&file.display().to_string()));
    }
    match crate::run::run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!("{error}");
            ExitCode::from(if error.wants_a_person() { EXIT_CONFIG } else { EXIT_FAILED })
        }
    }
}

/// A stage that panics takes the process with it, log line first; systemd starts it again, and what is on disk is on
/// disk. Half an agent that looks alive would be worse.
fn die_whole() {
    std::panic::set_hook(Box::new(|panic| {
        error!("bug: {panic}; please report this line");
        std::process::abort();
    }));
}
