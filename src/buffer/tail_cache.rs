//! Events on their way from the commit to the forwarder, in memory: moved, not copied, never decoded again.
//!
//! The window is bounded ([`TAIL_CACHE_BYTES`]). When the forwarder is behind, the commit thread drops its copy and only
//! says how far the disk goes; the forwarder sees the gap in the sequences and reads it from there.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::limits::{NEXT_BYTES, TAIL_CACHE_BYTES};
use crate::event::{Sequence, Stored};

/// The window. The commit thread fills it, the reader empties it.
#[derive(Debug)]
pub(super) struct TailCache {
    inner: Mutex<Inner>,
    changed: Condvar,
    /// Somebody has called who waits at the reader.
    called: AtomicBool,
}

#[derive(Debug)]
struct Inner {
    batches: VecDeque<(usize, Vec<Stored>)>,
    bytes: usize,
    /// The highest sequence on disk.
    committed: Sequence,
    closed: bool,
    /// Where the reader has met damage that it cannot pass by.
    damage: Option<String>,
    /// Settlements were applied since the last wait.
    settled: bool,
    /// What the present wait is for: nobody is woken for anything else.
    awaited: Awaited,
}

/// What ends a wait at the reader, beside a call and the time.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Awaited {
    /// Events behind the position.
    pub(crate) events: bool,
    /// Settlements that are on disk.
    pub(crate) settled: bool,
}

/// Where the next events are.
#[derive(Debug)]
pub(super) enum Place {
    /// Here, directly behind the position.
    Memory(Vec<Stored>),
    /// On disk, up to this sequence at least.
    Disk { committed: Sequence },
    /// There are none yet.
    Nowhere,
    /// There are none, and no more will come.
    Closed,
}

impl TailCache {
    pub(super) fn new(committed: Sequence) -> Self {
        let (batches, awaited) = (VecDeque::new(), Awaited::default());
        let inner = Inner { batches, bytes: 0, committed, closed: false, damage: None, settled: false, awaited };
        Self { inner: Mutex::new(inner), changed: Condvar::new(), called: AtomicBool::new(false) }
    }

    /// After COMMIT: these events are on disk.
    pub(super) fn offer(&self, events: Vec<Stored>) {
        let Some(last) = events.last().map(|event| event.sequence) else { return };
        let cost = events.iter().map(|event| event.event.cost_bytes()).sum::<usize>();
        let mut inner = self.lock();
        inner.committed = last;
        let bytes = inner.bytes + cost;
        if bytes <= TAIL_CACHE_BYTES {
            inner.bytes = bytes;
            inner.batches.push_back((cost, events));
        }
        let is_awaited = inner.awaited.events;
        drop(inner);
        if is_awaited {
            self.changed.notify_one();
        }
    }

    /// After COMMIT: settlements are on disk.
    pub(super) fn settled(&self) {
        let mut inner = self.lock();
        inner.settled = true;
        let is_awaited = inner.awaited.settled;
        drop(inner);
        if is_awaited {
            self.changed.notify_one();
        }
    }

    /// Ends the present wait at the reader, or the next one.
    pub(super) fn call(&self) {
        if !self.called.swap(true, Ordering::AcqRel) {
            // Who has looked and does not wait yet holds the lock.
            drop(self.lock());
            self.changed.notify_one();
        }
    }

    /// Waits, but not for longer than that, until there is something behind `position`, as far as that is awaited.
    pub(super) fn wait(&self, position: Sequence, awaited: Awaited, wait: Duration) {
        let deadline = Instant::now().checked_add(wait);
        let mut inner = self.lock();
        inner.awaited = awaited;
        loop {
            let is_called = self.called.swap(false, Ordering::AcqRel);
            let has_events = awaited.events && (inner.committed > position || inner.closed);
            let is_settled = awaited.settled && inner.settled;
            let left = deadline.map_or(wait, |deadline| deadline.saturating_duration_since(Instant::now()));
            if is_called || has_events || is_settled || left.is_zero() {
                inner.awaited = Awaited::default();
                inner.settled = false;
                return;
            }
            inner = self.changed.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The reader cannot get past something: the file is to be rebuilt.
    pub(super) fn report_damage(&self, cause: String) {
        self.lock().damage.get_or_insert(cause);
    }

    /// The highest sequence on disk.
    pub(super) fn committed(&self) -> Sequence {
        self.lock().committed
    }

    /// What was reported.
    pub(super) fn damage(&self) -> Option<String> {
        self.lock().damage.clone()
    }

    /// Nothing more will come.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    /// What comes after `position`, waiting up to `wait` for it.
    pub(super) fn after(&self, position: Sequence, wait: Duration) -> Place {
        let deadline = Instant::now().checked_add(wait);
        let mut inner = self.lock();
        inner.awaited.events = true;
        loop {
            inner.drop_until(position);
            if let Some(events) = inner.take_behind(position) {
                return Place::Memory(events);
            }
            if inner.committed > position {
                return Place::Disk { committed: inner.committed };
            }
            if inner.closed {
                return Place::Closed;
            }
            let left = deadline.map_or(wait, |deadline| deadline.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                return Place::Nowhere;
            }
            inner = self.changed.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Forgets what the position has passed.
    fn drop_until(&mut self, position: Sequence) {
        while let Some((cost, events)) = self.batches.front_mut() {
            if events.last().is_some_and(|event| event.sequence > position) {
                if events.first().is_some_and(|event| event.sequence <= position) {
                    events.retain(|event| event.sequence > position);
                }
                return;
            }
            self.bytes -= *cost;
            self.batches.pop_front();
        }
    }

    /// The first batch, if it begins right behind the position; at most about [`NEXT_BYTES`] of it.
    fn take_behind(&mut self, position: Sequence) -> Option<Vec<Stored>> {
        let (cost, events) = self.batches.front_mut()?;
        if events.first()?.sequence != position.checked_add(1)? {
            return None;
        }
        let mut taken_bytes = 0_usize;
        let fits = events.iter().take_while(|event| {
            let before = taken_bytes;
            taken_bytes += event.event.cost_bytes();
            before < NEXT_BYTES
        });
        let fits = fits.count();
        if fits < events.len() {
            let rest = events.split_off(fits);
            let rest_cost = rest.iter().map(|event| event.event.cost_bytes()).sum();
            self.bytes -= *cost - rest_cost;
            *cost = rest_cost;
            return Some(std::mem::replace(events, rest));
        }
        self.bytes -= *cost;
        self.batches.pop_front().map(|(_, events)| events)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::clock::Clock;
    use crate::event::{Event, Qos, RouteId};

    fn events(sequences: std::ops::RangeInclusive<u64>, payload: usize) -> Vec<Stored> {
        let event = Event {
            topic: "t".into(),
            payload: Bytes::from(vec![0; payload]),
            qos: Qos::AtLeastOnce,
            retain: false,
            dup: false,
            arrived_ms: 0,
            clock: Clock::default(),
            route: RouteId(1),
            sender: None,
            properties: None,
        };
        sequences.map(|sequence| Stored { sequence, event: event.clone() }).collect()
    }

    fn sequences(place: Place) -> Vec<u64> {
        let Place::Memory(events) = place else { panic!("{place:?}") };
        events.iter().map(|event| event.sequence).collect()
    }

    #[test]
    fn events_come_from_memory_only_right_behind_the_position() {
        let cache = TailCache::new(4);
        cache.offer(events(5..=8, 1));
        assert!(matches!(cache.after(2, Duration::ZERO), Place::Disk { committed: 8 }));
        assert_eq!(sequences(cache.after(6, Duration::ZERO)), [7, 8]);
        assert!(matches!(cache.after(8, Duration::ZERO), Place::Nowhere));
        cache.close();
        assert!(matches!(cache.after(8, Duration::ZERO), Place::Closed));
        assert!(matches!(cache.after(7, Duration::ZERO), Place::Disk { committed: 8 }));
    }

    #[test]
    fn a_full_window_sends_the_forwarder_to_the_disk_and_recovers() {
        let cache = TailCache::new(0);
        cache.offer(events(1..=1, TAIL_CACHE_BYTES / 2));
        cache.offer(events(2..=2, TAIL_CACHE_BYTES));
        cache.offer(events(3..=3, 1));
        assert_eq!(sequences(cache.after(0, Duration::ZERO)), [1]);
        assert!(matches!(cache.after(1, Duration::ZERO), Place::Disk { committed: 3 }));
        assert_eq!(sequences(cache.after(2, Duration::ZERO)), [3]);
        assert_eq!(cache.lock().bytes, 0);
    }

    /// Longer than any test takes: a wait that lasts so long was not ended.
    const FOR_EVER: Duration = Duration::from_secs(3_600);

    #[test]
    fn a_wait_ends_with_what_it_is_for_also_when_that_came_before_it_began() {
        let (cache, nothing) = (TailCache::new(4), Awaited::default());
        cache.call();
        cache.wait(4, nothing, FOR_EVER);
        cache.settled();
        cache.wait(4, Awaited { settled: true, ..nothing }, FOR_EVER);
        cache.offer(events(5..=5, 1));
        cache.wait(4, Awaited { events: true, ..nothing }, FOR_EVER);
        cache.close();
        cache.wait(5, Awaited { events: true, ..nothing }, FOR_EVER);
    }

    #[test]
    fn a_wait_is_ended_by_a_call_from_elsewhere_and_by_nothing_that_it_is_not_for() {
        let cache = TailCache::new(4);
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| cache.wait(4, Awaited { events: false, settled: true }, FOR_EVER));
            cache.offer(events(5..=5, 1));
            assert!(!waiting.is_finished());
            cache.settled();
            waiting.join().unwrap();
            let waiting = scope.spawn(|| cache.wait(5, Awaited::default(), FOR_EVER));
            cache.settled();
            cache.call();
            waiting.join().unwrap();
        });
    }

    #[test]
    fn a_large_batch_is_handed_out_in_pieces() {
        let cache = TailCache::new(0);
        cache.offer(events(1..=40, 10_000));
        let mut position = 0;
        let mut calls = 0;
        while let Place::Memory(events) = cache.after(position, Duration::ZERO) {
            assert!(events.iter().map(|e| e.event.cost_bytes()).sum::<usize>() < NEXT_BYTES + 11_000);
            position = events.last().unwrap().sequence;
            calls += 1;
        }
        assert_eq!((position, calls, cache.lock().bytes), (40, 2, 0));
    }
}
