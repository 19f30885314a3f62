//! What the outside may see: logs, metrics, health, systemd's watchdog.

pub(crate) mod clock;
pub(crate) mod http;
pub(crate) mod log;
pub(crate) mod metrics;
pub(crate) mod pulse;
pub(crate) mod status;
pub(crate) mod systemd;
pub(crate) mod watchdog;
