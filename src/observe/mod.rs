//! What the outside may see: logs, metrics, health, systemd's watchdog.

pub mod http;
pub mod metrics;
pub mod pulse;
pub mod status;
pub mod systemd;
