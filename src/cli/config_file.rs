//! Which configuration a subcommand is about.

use std::path::PathBuf;

use clap::Args;

/// Where packages put it.
pub(super) const DEFAULT_CONFIG: &str = "/etc/tidegate/tidegate.toml";

/// Which configuration.
#[derive(Debug, Args)]
pub struct ConfigFile {
    /// Configuration file
    #[arg(long, value_name = "FILE", default_value = DEFAULT_CONFIG)]
    pub config: PathBuf,
}
