//! systemd's watchdog: fed while every stage beats; and the status line that `systemctl status` shows.

use std::sync::Arc;
use std::time::Duration;

use sd_notify::NotifyState;
use tracing::error;

use super::pulse::STUCK_AFTER;
use super::status::Sources;
use super::systemd::tell;
use crate::planted::{Bug, planted};
use crate::stop::Stop;

/// The status line is renewed this often; nobody reads it faster.
const STATUS_EVERY: Duration = Duration::from_secs(5);

/// Feeds the watchdog while every stage beats, and renews the status line. A stage that is stuck stops the feeding,
/// and systemd then kills and restarts the agent: what is on disk is on disk.
pub(crate) async fn attend(sources: Arc<Sources>, mut stop: Stop) {
    let watchdog = sd_notify::watchdog_enabled();
    // systemd asks for a sign of life within the interval; three tries fit into it.
    let pause = watchdog.map_or(STATUS_EVERY, |interval| part(interval, 3).min(STATUS_EVERY));
    let patience = watchdog.map_or(STUCK_AFTER, |interval| part(interval, 2).min(STUCK_AFTER));
    let mut reported = false;
    loop {
        match sources.stuck(patience) {
            Some(stage) if !planted(Bug::BlindWatchdog) => {
                if !reported {
                    error!(stage, silent_for = ?patience, "a stage is stuck; the agent does not answer systemd's \
                         watchdog any more, and systemd will restart it");
                    reported = true;
                }
            }
            _ => {
                reported = false;
                if watchdog.is_some() {
                    tell(&NotifyState::Watchdog);
                }
            }
        }
        tell(&NotifyState::Status(&sources.snapshot().one_line()));
        tokio::select! {
            () = stop.wait() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

fn part(interval: Duration, of: u32) -> Duration {
    interval.checked_div(of).unwrap_or(interval)
}
