//! How wide a link is: so many bits a second in one direction, for all its connections together.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What the kernel keeps of a connection on our side of a narrow link: a fifth of a second, and at least so much. The rest
/// waits with the sender, as it does in front of a modem: a queue within the proxy would make a request look sent that is
/// not. It has to be so from the handshake on: a sender that has once seen a large window sends nothing into less than half
/// of it but probes, five a second.
const LEAST_KERNEL_BYTES: usize = 4 * 1024;
const KERNEL_A_SECOND: u64 = 5;

/// As much as the kernel gives without being asked.
pub(super) const UNBOUND_KERNEL_BYTES: usize = 208 * 1024;

/// Most that is passed at once.
pub(super) const MOST_BYTES: usize = 64 * 1024;

/// A piece takes about so long.
const PIECES_A_SECOND: u64 = 20;

/// See the module's words.
#[derive(Debug, Default)]
pub(super) struct Width {
    /// 0: no bound.
    bits_a_second: AtomicU64,
    /// When what was let through until now has gone over.
    free_at: Mutex<Option<Instant>>,
}

impl Width {
    pub(super) fn set(&self, bits_a_second: u64) {
        self.bits_a_second.store(bits_a_second, Ordering::SeqCst);
    }

    /// Bytes that may be taken from a socket at once; `None`: no bound.
    pub(super) fn piece(&self) -> Option<usize> {
        let bytes = self.bits_a_second.load(Ordering::SeqCst) / 8;
        (bytes > 0).then(|| ((bytes / PIECES_A_SECOND) as usize).clamp(32, MOST_BYTES))
    }

    /// See [`LEAST_KERNEL_BYTES`]; `None`: no bound.
    pub(super) fn kernel_bytes(&self) -> Option<usize> {
        let bytes = self.bits_a_second.load(Ordering::SeqCst) / 8;
        (bytes > 0).then(|| ((bytes / KERNEL_A_SECOND) as usize).clamp(LEAST_KERNEL_BYTES, UNBOUND_KERNEL_BYTES))
    }

    /// Waits until so many bytes have gone over.
    pub(super) fn carry(&self, bytes: usize) {
        let bits_a_second = self.bits_a_second.load(Ordering::SeqCst);
        if bits_a_second == 0 {
            return;
        }
        let takes = Duration::from_secs_f64(bytes as f64 * 8.0 / bits_a_second as f64);
        let Ok(mut free_at) = self.free_at.lock() else { return };
        let now = Instant::now();
        // Who wakes up late has not lost the time: a quarter of a second is made good.
        let earliest = now.checked_sub(Duration::from_millis(250)).unwrap_or(now);
        let gone = free_at.map_or(now, |free| free.max(earliest)) + takes;
        *free_at = Some(gone);
        drop(free_at);
        std::thread::sleep(gone.saturating_duration_since(now));
    }
}
