//! Clients of librdkafka, and what it may take long for, beside the loop: the loop that sends must beat its pulse and hear a stop.
//!
//! librdkafka's own threads look names up, and while the name servers are away each look-up takes as long as the
//! resolver waits: half a minute, or two. Whoever waits for these threads waits as long. These calls do:
//!
//! | call | waits for | here |
//! |---|---|---|
//! | destroy | the end of every thread | [`Clients`]: a thread that ends clients, one after the other |
//! | abort | all brokers' threads to give back what is queued | [`Call`] |
//! | metadata | an answer, or its time-out | [`Call`] |
//! | purge | the same as abort | non-blocking only |
//!
//! `init_transactions` and `commit_transaction` keep to the time they are given, because they ask librdkafka's main
//! thread, which looks nothing up (`options.rs` refuses the one property that would make it); so they are called in
//! slices on the loop.
//!
//! The loop sleeps meanwhile: who has something for it ends its wait ([`Wake`]).

use std::any::Any;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};
use std::{io, thread};

use crate::buffer::Waker;

/// Clients that send, with those that are being ended: the stream's, that of a parked topic, and four that hang in a name
/// look-up. Each has a thread a broker and two more, which is what `TasksMax=` of the unit is made for. Who is over it
/// waits until one has ended: a new client would hang in the same look-up.
const MOST: usize = 6;

/// How often who waits for the end looks.
const GLANCE: Duration = Duration::from_millis(2);

/// Ends the loop's wait.
#[derive(Debug, Clone, Default)]
pub(super) struct Wake(Option<Waker>);

impl Wake {
    /// Of the loop that waits at that reader.
    pub(super) fn new(waker: Waker) -> Self {
        Self(Some(waker))
    }

    /// There is something for it.
    pub(super) fn wake(&self) {
        if let Some(waker) = &self.0 {
            waker.wake();
        }
    }
}

/// The clients of this process that send, and the thread that ends them.
#[derive(Debug, Clone)]
pub(super) struct Clients {
    wake: Wake,
    live: Arc<AtomicUsize>,
    /// Never more than [`MOST`] are in it, because each has its slot.
    grave: mpsc::Sender<Box<dyn Any + Send>>,
}

impl Clients {
    /// None yet. Calls of theirs end that loop's wait.
    pub(super) fn new(wake: Wake) -> io::Result<Self> {
        let (grave, ended) = mpsc::channel::<Box<dyn Any + Send>>();
        // It ends when nobody is left who could send it something.
        thread::Builder::new().name("kafka end".to_owned()).spawn(move || ended.into_iter().for_each(drop))?;
        Ok(Self { wake, live: Arc::default(), grave })
    }

    /// For whoever has something for the loop.
    pub(super) fn wake(&self) -> &Wake {
        &self.wake
    }

    /// A slot for one more; `None`: too many are being ended.
    pub(super) fn slot(&self) -> Option<ClientSlot> {
        let one_more = |live: usize| (live < MOST).then(|| live + 1);
        self.live.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more).ok()?;
        Some(ClientSlot(Arc::clone(&self.live)))
    }

    /// Is there no slot now?
    pub(super) fn is_full(&self) -> bool {
        self.live.load(Ordering::Acquire) >= MOST
    }

    /// Waits until all have ended, but not longer than that.
    pub(super) fn wait_for_the_end(&self, longest: Duration) {
        let until = Instant::now().checked_add(longest);
        while self.live.load(Ordering::Acquire) > 0 && until.is_some_and(|until| Instant::now() < until) {
            thread::sleep(GLANCE);
        }
    }

    /// Drops the client on the thread for that.
    pub(super) fn end(&self, client: Box<dyn Any + Send>) {
        // Without that thread it is dropped here: better a pause than a client for ever.
        drop(self.grave.send(client));
    }
}

/// The right to one client, which keeps it. Free again when the client has been destroyed.
#[derive(Debug)]
pub(super) struct ClientSlot(Arc<AtomicUsize>);

impl Drop for ClientSlot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A call on a thread of its own.
#[derive(Debug)]
pub(super) struct Call<T>(mpsc::Receiver<T>);

impl<T: Send + 'static> Call<T> {
    /// Begins. The answer of a call that nobody waits for any more is dropped.
    pub(super) fn begin(name: &str, wake: &Wake, work: impl FnOnce() -> T + Send + 'static) -> io::Result<Self> {
        let ((sender, answer), wake) = (mpsc::channel(), wake.clone());
        let work = move || {
            sender.send(work()).unwrap_or_default();
            wake.wake();
        };
        thread::Builder::new().name(name.to_owned()).spawn(work)?;
        Ok(Self(answer))
    }

    /// The answer, once it is there.
    pub(super) fn answer(&self) -> Option<T> {
        self.0.try_recv().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A client that takes long to end.
    struct Slow(mpsc::Receiver<()>, #[expect(dead_code, reason = "it is kept, not used")] ClientSlot);

    impl Drop for Slow {
        fn drop(&mut self) {
            self.0.recv().unwrap_or_default();
        }
    }

    #[test]
    fn clients_that_hang_hold_up_nobody_and_are_so_many_at_most() {
        let clients = Clients::new(Wake::default()).unwrap();
        let start = Instant::now();
        let mut hands = vec![];
        for _ in 0..MOST {
            let (hand, let_go) = mpsc::channel::<()>();
            hands.push(hand);
            clients.end(Box::new(Slow(let_go, clients.slot().unwrap())));
        }
        assert!(clients.slot().is_none(), "one more than may be");
        hands.clear();
        while clients.slot().is_none() {
            assert!(start.elapsed() < Duration::from_secs(60), "no slot after all have ended");
            thread::sleep(Duration::from_millis(1));
        }
    }
}
