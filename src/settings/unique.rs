//! What must be different in each table: names, addresses, sessions, filters.

use std::collections::HashMap;

use super::problems::Reported;
use super::reading::Section;

/// Values of which each may stand once, and where it was given out.
pub(crate) struct Unique<T>(HashMap<T, String>);

impl<T> Default for Unique<T> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<T: std::hash::Hash + Eq> Unique<T> {
    /// Is given out elsewhere.
    pub(crate) fn reserve(&mut self, value: T, place: &str) {
        self.0.insert(value, place.to_owned());
    }

    /// Takes it for this key; the words are for the second who wants it.
    pub(crate) fn take(&mut self, value: T, section: &Section<'_, '_>, key: &str, what: &str) -> Result<(), Reported> {
        let place = format!("line {}", section.line_of(key));
        match self.0.insert(value, place) {
            None => Ok(()),
            Some(first) => Err(section.problem(key, format!("{what} is taken already: {first}"))),
        }
    }
}
