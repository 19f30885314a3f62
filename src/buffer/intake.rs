//! The door for ingest: bounded in bytes.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak, mpsc};
use std::time::Duration;

use tokio::sync::{AcquireError, Semaphore};

use super::commit::{Arrivals, Room};
use super::error::Stopped;
use super::limits::{ENOUGH_BYTES, INTAKE_BYTES};
use crate::event::RouteId;
use crate::planted::{Bug, planted};

/// Ingest's end of the queue to the buffer thread. Cheap to clone.
#[derive(Debug)]
pub(crate) struct Intake<R> {
    queue: mpsc::Sender<Arrivals<R>>,
    room: Arc<Semaphore>,
    /// Counts the doors that are open.
    open: Arc<()>,
    drops: Arc<Drops>,
    /// Behind `open`: whoever is woken by the end of the last intake finds it closed.
    bell: Bell,
}

/// Calls the buffer thread when its owner goes.
#[derive(Debug, Clone, Default)]
struct Bell(Arc<Nap>);

impl Drop for Bell {
    fn drop(&mut self) {
        self.0.call();
    }
}

/// How the buffer thread sleeps while a commit waits for others: not one arrival wakes it, but one that cannot wait does, and a
/// queue that is full enough.
#[derive(Debug, Default)]
pub(super) struct Nap {
    sleeps: AtomicBool,
    called: Mutex<bool>,
    wakes: Condvar,
}

impl Nap {
    /// From here on a call is heard. What was queued before must be looked at after this.
    pub(super) fn begin(&self) {
        *self.called.lock().unwrap_or_else(PoisonError::into_inner) = false;
        self.sleeps.store(true, Ordering::SeqCst);
    }

    /// Until a call, no longer than that.
    pub(super) fn sleep(&self, longest: Duration) {
        let called = self.called.lock().unwrap_or_else(PoisonError::into_inner);
        // Poisoned or not: it wakes.
        drop(self.wakes.wait_timeout_while(called, longest, |called| !*called));
    }

    pub(super) fn end(&self) {
        self.sleeps.store(false, Ordering::SeqCst);
    }

    fn call(&self) {
        if self.sleeps.load(Ordering::SeqCst) {
            *self.called.lock().unwrap_or_else(PoisonError::into_inner) = true;
            self.wakes.notify_one();
        }
    }
}

/// QoS 0 events that found no room, by ledger line, until the books have them. Counters and not messages, so that
/// they take no room themselves, however long the buffer is full.
#[derive(Debug)]
pub(super) struct Drops(Box<[AtomicU64]>);

impl Drops {
    /// For ledger lines up to that one.
    pub(super) fn up_to(last: RouteId) -> Self {
        Self((0..=last.0).map(|_| AtomicU64::new(0)).collect())
    }

    /// Takes what was counted since the last time.
    pub(super) fn take(&self) -> impl Iterator<Item = (RouteId, u64)> {
        let counts = (0..=u16::MAX).map(RouteId).zip(&self.0);
        counts.map(|(route, count)| (route, count.swap(0, Ordering::Relaxed))).filter(|(_, count)| *count > 0)
    }
}

impl<R> Clone for Intake<R> {
    fn clone(&self) -> Self {
        Self {
            queue: self.queue.clone(),
            room: Arc::clone(&self.room),
            open: Arc::clone(&self.open),
            drops: Arc::clone(&self.drops),
            bell: self.bell.clone(),
        }
    }
}

impl<R> Intake<R> {
    pub(super) fn new(room: Arc<Semaphore>, drops: Arc<Drops>) -> (Self, mpsc::Receiver<Arrivals<R>>, Weak<()>) {
        let (queue, receiver) = mpsc::channel();
        let open = Arc::new(());
        let doors = Arc::downgrade(&open);
        (Self { queue, room, open, drops, bell: Bell::default() }, receiver, doors)
    }

    pub(super) fn nap(&self) -> Arc<Nap> {
        Arc::clone(&self.bell.0)
    }

    #[cfg(test)]
    pub(super) fn room(&self) -> Arc<Semaphore> {
        Arc::clone(&self.room)
    }

    /// Room for that many bytes, if there is some now. More than the whole bound asks for the whole bound.
    #[must_use]
    pub(crate) fn try_reserve(&self, bytes: usize) -> Option<Room> {
        Arc::clone(&self.room).try_acquire_many_owned(permits(bytes)).ok().map(Room)
    }

    /// Is there room for that many bytes? Only a look: nothing is reserved.
    #[must_use]
    pub(crate) fn has_room(&self, bytes: usize) -> bool {
        self.room.available_permits() >= bytes
    }

    /// Waits for room; meanwhile the caller does not read its socket.
    ///
    /// # Errors
    /// When the buffer has stopped.
    pub(crate) async fn reserve(&self, bytes: usize) -> Result<Room, Stopped> {
        // The only error there is: closed.
        let permit = Arc::clone(&self.room).acquire_many_owned(permits(bytes)).await;
        permit.map(Room).map_err(|AcquireError { .. }| Stopped)
    }

    /// QoS 0 events of that ledger line found no room: the books will say received and dropped (custody rule 7),
    /// also while the buffer is full.
    pub(crate) fn dropped(&self, route: RouteId, events: u64) {
        // Ids beyond the known lines are not given out; such a count would be better in the wrong line than nowhere.
        let line = self.drops.0.get(usize::from(route.0)).or_else(|| self.drops.0.first());
        if let Some(count) = line {
            count.fetch_add(events, Ordering::Relaxed);
        }
    }

    /// Queues work for the next commit. Never blocks: what it may occupy was reserved before.
    ///
    /// # Errors
    /// When the buffer has stopped; nothing of it will be acknowledged.
    pub(crate) fn store(&self, arrivals: Arrivals<R>) -> Result<(), Stopped> {
        let waits = arrivals.waits;
        self.queue.send(arrivals).map_err(|mpsc::SendError(_)| Stopped)?;
        if waits || self.room.available_permits() + ENOUGH_BYTES <= INTAKE_BYTES {
            self.bell.0.call();
        }
        Ok(())
    }
}

/// custody rule 5: what waits for its commit is bounded in bytes.
fn permits(bytes: usize) -> u32 {
    if planted(Bug::UnboundedIntake) {
        return 0;
    }
    u32::try_from(bytes.min(INTAKE_BYTES)).unwrap_or(u32::MAX)
}
