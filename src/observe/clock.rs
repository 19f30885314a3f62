//! Watches the wall clock and says when somebody has set it: all readings after that bear another time.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tracing::{info, warn};

use super::status::Sources;
use crate::clock::{self, Moment};
use crate::log_throttle::LogThrottle;
use crate::stop::Stop;

/// The clock is looked at so often: two settings within it are one.
const LOOK: Duration = Duration::from_secs(1);

/// Time servers and leap seconds move a clock by less without anybody caring.
const JUMP_MS: u64 = 2_000;

/// Until told to stop.
pub(crate) async fn watch(sources: Arc<Sources>, mut stop: Stop) {
    let (mut before, mut throttle) = (clock::now(), LogThrottle::default());
    if before.is_doubtful() {
        info!(
            wall_clock = %shown(before),
            "clock: the wall clock follows no time server, as far as the system says; the records of readings say so \
             (header tidegate-clock: u)"
        );
    }
    loop {
        tokio::select! {
            () = stop.wait() => return,
            () = tokio::time::sleep(LOOK) => {}
        }
        let now = clock::now();
        let moved_ms = now.clock.booted_ms.saturating_sub(before.clock.booted_ms);
        if moved_ms.unsigned_abs() > JUMP_MS {
            sources.clock_jumps.fetch_add(1, Ordering::Relaxed);
            // A clock that jumps each second is one piece of news a minute.
            if let Some(repeats) = throttle.again("set", Instant::now()) {
                #[expect(clippy::cast_precision_loss, reason = "shown in seconds")]
                let by_s = moved_ms as f64 / 1000.0;
                warn!(
                    by_s,
                    wall_clock = %shown(now),
                    repeats,
                    "clock: the wall clock was set; new readings get the new time"
                );
            }
        }
        if now.clock.synchronised && !before.clock.synchronised {
            info!(wall_clock = %shown(now), "clock: the wall clock follows a time server now");
        }
        before = now;
    }
}

/// As far as it can be shown: within some thousand years.
fn shown(at: Moment) -> String {
    let since = u64::try_from(at.wall_ms).ok().map(Duration::from_millis);
    let time = since.and_then(|since| std::time::UNIX_EPOCH.checked_add(since));
    let year_9999 = Duration::from_secs(253_402_300_799);
    match time.filter(|_| since.is_some_and(|since| since < year_9999)) {
        Some(time) => humantime::format_rfc3339_seconds(time).to_string(),
        None => format!("{} ms since 1970", at.wall_ms),
    }
}
