//! The machine's clocks: the wall clock, which may lie, and the time since boot, which does not.
//!
//! A gateway without a clock battery starts in 1970, or where it was switched off, and jumps when it first hears a time
//! server. So nothing is ordered or timed by the wall clock, and each event bears, beside the wall clock's word, what it
//! takes to mend it later: by which clock it was read ([`Clock`]).

use std::fs;
use std::path::Path;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use rtime_clock::adjtime::{Timex, adjtimex};
use rustix::time::{ClockId, clock_gettime};

pub(crate) use crate::event::Clock;

/// A wall clock before this is wrong: 2026-01-01, before the first release. It goes up now and then with a release.
pub(crate) const EARLIEST_MS: i64 = 1_767_225_600_000;

/// One moment, by the wall clock and by the time since boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Moment {
    /// Wall clock, milliseconds since 1970; below 0 before that.
    pub wall_ms: i64,
    /// Which clock said so.
    pub clock: Clock,
}

impl Moment {
    /// Milliseconds since boot.
    #[must_use]
    pub(crate) fn uptime_ms(&self) -> i64 {
        self.wall_ms.saturating_sub(self.clock.booted_ms)
    }

    /// The wall clock follows no time server, or stands before this program was made.
    #[must_use]
    pub(crate) fn is_doubtful(&self) -> bool {
        !self.clock.synchronised || self.wall_ms < EARLIEST_MS
    }
}

/// Both clocks, read now.
#[must_use]
pub(crate) fn now() -> Moment {
    let (wall_ms, uptime_ms) = (wall_ms(), uptime_ms());
    let booted_ms = settled(wall_ms.saturating_sub(uptime_ms));
    Moment { wall_ms, clock: Clock { boot: *BOOT, booted_ms, synchronised: synchronised(uptime_ms) } }
}

/// The wall clock, milliseconds since 1970.
#[must_use]
pub(crate) fn wall_ms() -> i64 {
    match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_millis()).unwrap_or(i64::MAX),
        Err(before) => i64::try_from(before.duration().as_millis()).map_or(i64::MIN, i64::wrapping_neg),
    }
}

/// Time since boot, suspended time included, in milliseconds.
#[must_use]
pub(crate) fn uptime_ms() -> i64 {
    let since = clock_gettime(ClockId::Boottime);
    // 32-bit systems have 32-bit seconds: 68 years since boot.
    #[allow(clippy::useless_conversion, reason = "the width of a Timespec's fields depends on the target")]
    let (seconds, nanoseconds) = (i64::from(since.tv_sec), i64::from(since.tv_nsec));
    seconds.saturating_mul(1000).saturating_add(nanoseconds / 1_000_000)
}

/// The two clocks are not read in the same instant, and each is rounded. Time servers that slew the clock slew both, so
/// the moment of boot moves only when the clock is set.
const BLUR_MS: u64 = 20;

/// The moment of boot as it was last said, unless the clock was set since.
fn settled(booted_ms: i64) -> i64 {
    static BOOTED_MS: AtomicI64 = AtomicI64::new(i64::MIN);
    let before = BOOTED_MS.load(Ordering::Relaxed);
    if before.abs_diff(booted_ms) <= BLUR_MS {
        return before;
    }
    BOOTED_MS.store(booted_ms, Ordering::Relaxed);
    booted_ms
}

/// The kernel is asked once a second at most: it changes seldom, and the question is a system call.
const ASK_AGAIN_MS: i64 = 1_000;

fn synchronised(uptime_ms: i64) -> bool {
    static ASKED_MS: AtomicI64 = AtomicI64::new(i64::MIN);
    static ANSWER: AtomicBool = AtomicBool::new(false);
    if uptime_ms.saturating_sub(ASKED_MS.load(Ordering::Relaxed)) >= ASK_AGAIN_MS {
        ANSWER.store(ask_kernel(), Ordering::Relaxed);
        ASKED_MS.store(uptime_ms, Ordering::Relaxed);
    }
    ANSWER.load(Ordering::Relaxed)
}

/// What adjtimex(2) answers when the clock follows no time server (`TIME_ERROR`).
const TIME_ERROR: i32 = 5;

/// systemd-timesyncd makes this file when it has heard a server.
const TIMESYNCD: &str = "/run/systemd/timesync/synchronized";

/// Where the kernel may not be asked (the shipped unit's `ProtectClock=`, containers), timesyncd's word counts. To allow the
/// question would take the exposure of the unit from 1.1 to 1.4.
fn ask_kernel() -> bool {
    adjtimex(&mut Timex::new()).map_or_else(|_refused| Path::new(TIMESYNCD).exists(), |state| state != TIME_ERROR)
}

/// The first digits of the kernel's boot id. Where it cannot be read (systemd's `ProcSubset=pid`) a number that lasts as
/// long as this process: its records are then told apart from those of the start before, which loses nothing but the
/// bridge between them.
static BOOT: LazyLock<u32> = LazyLock::new(|| {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let digits = id.get(..8).and_then(|digits| u32::from_str_radix(digits, 16).ok());
    digits.unwrap_or_else(|| fastrand::u32(..)).max(1)
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_moment_of_boot_stays_while_nobody_sets_the_clock() {
        let first = now();
        std::thread::sleep(std::time::Duration::from_millis(50));
        let second = now();
        assert_eq!(first.clock, second.clock);
        assert!((50..10_000).contains(&(second.uptime_ms() - first.uptime_ms())), "{first:?} {second:?}");
        assert_ne!(first.clock.boot, 0);
    }

    #[test]
    fn a_clock_of_before_the_program_is_doubtful_even_if_it_follows_a_server() {
        let at = |wall_ms, synchronised| Moment { wall_ms, clock: Clock { synchronised, ..Clock::default() } };
        assert!(at(0, true).is_doubtful() && at(EARLIEST_MS, false).is_doubtful());
        assert!(!at(EARLIEST_MS, true).is_doubtful());
    }
}
