//! What systemd is told: READY, STATUS, WATCHDOG, STOPPING. Without `NOTIFY_SOCKET` all of it does nothing.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use sd_notify::NotifyState;
use tracing::debug;

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

pub(super) fn tell(state: &NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(std::slice::from_ref(state)) {
        debug!(%error, "systemd: notify");
    }
}
