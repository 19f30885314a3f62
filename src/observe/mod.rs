//! What the outside may see: logs, metrics, health, systemd's watchdog.

pub mod clock;
pub mod http;
pub mod log;
pub mod metrics;
pub mod pulse;
pub mod repeats;
pub mod status;
pub mod systemd;
