//! What the exit code says: can another start help?

/// Stopped as asked.
pub(super) const EXIT_OK: u8 = 0;
/// Anything that is neither of the others.
pub(super) const EXIT_FAILED: u8 = 1;
/// `EX_CONFIG` of sysexits: the configuration or the command line is wrong, or the buffer is not for this version; systemd
/// does not restart on it.
pub(super) const EXIT_CONFIG: u8 = 78;
