//! Tests of the buffer as a whole, on real files.

use crate::config::{self, Compression, SyncMode, WhenFull};

pub(super) fn settings() -> config::Buffer {
    config::Buffer {
        max_bytes: 1024 * 1024 * 1024,
        when_full: WhenFull::StopReading,
        sync: SyncMode::Full,
        commit_delay: std::time::Duration::ZERO,
        compression: Compression::Zstd,
    }
}
