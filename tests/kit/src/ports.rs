//! Ports that stay free: from below the range that the kernel takes for outgoing connections, so that a service which is
//! restarted finds its port free.

use std::net::TcpListener;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::{Outcome, trouble};

/// Below 32,768, where outgoing connections begin.
const FIRST_PORT: u32 = 20_000;
const PORTS: u32 = 12_000;

/// A port of 127.0.0.1 that nobody else will be given.
pub fn free_port() -> Outcome<u16> {
    static NEXT: LazyLock<AtomicU32> = LazyLock::new(|| AtomicU32::new(std::process::id().wrapping_mul(61) % PORTS));
    for _ in 0..PORTS {
        let number = FIRST_PORT + NEXT.fetch_add(1, Ordering::Relaxed) % PORTS;
        let Ok(port) = u16::try_from(number) else { continue };
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    trouble!("no free port")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_given_once() {
        let ports: std::collections::BTreeSet<u16> = (0..50).map(|_| free_port().unwrap()).collect();
        assert_eq!(ports.len(), 50);
    }
}
