//! What the outside may see: logs, metrics, health, systemd's watchdog.

pub mod pulse;
