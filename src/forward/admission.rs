//! How many Kafka topics sensors may make.
//!
//! A template makes a Kafka topic of whatever sensors publish to. Each costs memory in librdkafka, a lane while it is
//! missing, and, where brokers create topics by themselves, a topic in the cluster. So no more than `[kafka] max_topics`
//! are admitted between two starts; readings for more of them wait together in one lane, [`OVERFLOW`](crate::buffer::OVERFLOW), which is never
//! sent. Topics that the operator has written out are always admitted.
//!
//! What waits there must not be overtaken by later readings of its MQTT topic. So nothing is admitted any more while
//! something waits: not in this run, because the number is reached, and not in the next, because the buffer keeps the
//! names that were admitted. When the configuration has changed, what waits is looked through (`relocation.rs`), and the
//! first of it admitted, before anything new is sent.

use std::collections::HashMap;
use std::sync::Arc;

/// So many topics made by templates are found missing before new ones are no longer believed to exist.
const TRUSTED: usize = 3;

/// The topics that templates made.
#[derive(Debug)]
pub(super) struct Admission {
    most: usize,
    /// Nothing waits in the overflow lane that is not looked through: new ones may come.
    is_open: bool,
    /// With each: was it sent to without a lane between?
    admitted: HashMap<Arc<str>, bool>,
    /// Not written down yet.
    fresh: Vec<Arc<str>>,
    missing: usize,
}

impl Admission {
    /// Up to `most`. `admitted` are those of earlier starts, while something waits in the overflow lane.
    pub(super) fn new(most: usize, admitted: Vec<Arc<str>>, is_open: bool) -> Self {
        let admitted = admitted.into_iter().map(|topic| (topic, false)).collect();
        Self { most, is_open, admitted, fresh: Vec::new(), missing: 0 }
    }

    /// May readings go to that topic, or to a lane of its own?
    pub(super) fn admits(&mut self, topic: &Arc<str>) -> bool {
        if self.admitted.contains_key(topic) {
            return true;
        }
        if !self.is_open || self.admitted.len() >= self.most {
            return false;
        }
        self.admitted.insert(Arc::clone(topic), false);
        self.fresh.push(Arc::clone(topic));
        true
    }

    /// A lane of its own holds readings for it, whatever the limit is now.
    pub(super) fn recovered(&mut self, topic: &Arc<str>) {
        self.admitted.insert(Arc::clone(topic), false);
    }

    /// From now on new ones are admitted again, while there is room; or not.
    pub(super) fn open(&mut self, open: bool) {
        self.is_open = open;
    }

    /// A topic was found missing.
    pub(super) fn found_missing(&mut self) {
        self.missing += 1;
    }

    /// Is it better to ask for that topic in a lane of its own first? A missing one holds up all others while librdkafka
    /// looks for it.
    pub(super) fn is_suspect(&self, topic: &str) -> bool {
        self.missing >= TRUSTED && !self.admitted.get(topic).copied().unwrap_or(false)
    }

    /// Readings go to that topic without a lane between.
    pub(super) fn is_direct(&mut self, topic: &str) {
        if let Some(direct) = self.admitted.get_mut(topic) {
            *direct = true;
        }
    }

    /// Those that were admitted since this was asked last, for the buffer.
    pub(super) fn take_fresh(&mut self) -> Vec<Arc<str>> {
        std::mem::take(&mut self.fresh)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topic(n: usize) -> Arc<str> {
        format!("t{n}").into()
    }

    #[test]
    fn no_more_than_the_limit_is_admitted_and_what_was_stays() {
        let mut admission = Admission::new(3, vec![topic(0)], true);
        let admitted: Vec<bool> = [1, 2, 3, 1, 0].map(|n| admission.admits(&topic(n))).into();
        assert_eq!(admitted, [true, true, false, true, true]);
        assert_eq!(admission.take_fresh(), [topic(1), topic(2)]);
        assert_eq!(admission.take_fresh().len(), 0);
    }

    #[test]
    fn while_something_waits_nothing_new_is_admitted() {
        let mut admission = Admission::new(3, vec![topic(0)], false);
        assert!(admission.admits(&topic(0)) && !admission.admits(&topic(1)));
        admission.open(true);
        assert!(admission.admits(&topic(1)));
    }

    #[test]
    fn new_topics_are_suspect_after_a_few_missing_ones() {
        let mut admission = Admission::new(9, vec![], true);
        assert!(admission.admits(&topic(1)) && admission.admits(&topic(2)));
        admission.is_direct("t1");
        for _ in 0..TRUSTED {
            assert!(!admission.is_suspect("t2"));
            admission.found_missing();
        }
        assert!(admission.is_suspect("t2") && !admission.is_suspect("t1"));
    }
}
