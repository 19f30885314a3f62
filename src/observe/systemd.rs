//! What systemd is told: READY, STATUS, WATCHDOG, STOPPING. Without `NOTIFY_SOCKET` all of it does nothing.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use sd_notify::NotifyState;
use tracing::{debug, error};

use super::http::STUCK_AFTER;
use super::status::Sources;
use crate::planted::{Bug, planted};
use crate::stop::Stop;

/// The status line is renewed this often; nobody reads it faster.
const STATUS_EVERY: Duration = Duration::from_secs(5);

/// Signs of life of a long start: this often, each good for so long.
const SIGN_OF_LIFE: Duration = Duration::from_secs(1);
const EXTENSION_US: u32 = 60_000_000;

/// The agent takes readings.
pub(crate) fn ready() {
    tell(&NotifyState::Ready);
}

/// A start that takes longer than usual goes on: a damaged buffer of a gigabyte is rebuilt in a minute or two, on a slow
/// card in ten. May be called as often as one likes.
pub(crate) fn still_starting() {
    static SAID: Mutex<Option<Instant>> = Mutex::new(None);
    let mut said = SAID.lock().unwrap_or_else(PoisonError::into_inner);
    if said.is_none_or(|said| said.elapsed() >= SIGN_OF_LIFE) {
        *said = Some(Instant::now());
        tell(&NotifyState::ExtendTimeoutUsec(EXTENSION_US));
        tell(&NotifyState::Watchdog);
    }
}

/// The agent is on its way out.
pub(crate) fn stopping() {
    tell(&NotifyState::Stopping);
}

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
                    error!(stage, silent_for = ?patience, "a stage is stuck; the watchdog is no longer fed");
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

fn tell(state: &NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(std::slice::from_ref(state)) {
        debug!(%error, "systemd: notify");
    }
}
