//! What the machine and systemd say, gathered once, so that reading a configuration is otherwise a function of its text.

use std::path::PathBuf;

/// The folder that systemd makes for `LoadCredential=`, as a path in the configuration begins with it.
pub(crate) const CREDENTIALS: &str = "$CREDENTIALS_DIRECTORY";

/// What defaults and paths depend on.
#[derive(Debug, Clone)]
pub(crate) struct Env {
    /// Default of `[agent] id`.
    pub host_name: String,
    /// `$STATE_DIRECTORY`, which systemd sets for `StateDirectory=`.
    pub state_directory: Option<PathBuf>,
    /// `$CREDENTIALS_DIRECTORY`, which systemd sets for `LoadCredential=`.
    pub credentials_directory: Option<PathBuf>,
    /// Whoever reads is not the agent, and may look for the credentials of the service that runs.
    pub outside_service: bool,
}

impl Env {
    /// Of this process.
    #[must_use]
    pub(crate) fn of_process() -> Self {
        // systemd lists several folders with ":" between them; the first is the one to use.
        let first = |list: String| list.split(':').next().map(PathBuf::from);
        Self {
            host_name: gethostname::gethostname().to_string_lossy().into_owned(),
            state_directory: set("STATE_DIRECTORY").and_then(first),
            credentials_directory: set("CREDENTIALS_DIRECTORY").map(PathBuf::from),
            outside_service: false,
        }
    }

    /// A machine of that name with nothing set.
    #[cfg(test)]
    pub(crate) fn of(host_name: &str) -> Self {
        let host_name = host_name.to_owned();
        Self { host_name, state_directory: None, credentials_directory: None, outside_service: false }
    }
}

fn set(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}
