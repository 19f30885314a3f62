//! Passwords and keys in memory.

use std::fmt;

/// A value that never shows in logs, Debug output or metrics.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Secret(String);

impl Secret {
    /// Wraps it.
    #[must_use]
    pub(crate) fn new(value: String) -> Self {
        Self(value)
    }

    /// The one place where it is read.
    #[must_use]
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<secret>")
    }
}
