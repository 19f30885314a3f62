//! Stopping as a value: who holds a [`Stop`] is told once, and can wait for it.

use tokio::sync::watch;

/// The hand that stops.
#[derive(Debug)]
pub(crate) struct Stopper(watch::Sender<bool>);

/// The ear that hears it.
#[derive(Debug, Clone)]
pub(crate) struct Stop(watch::Receiver<bool>);

/// A connected pair.
#[must_use]
pub(crate) fn pair() -> (Stopper, Stop) {
    let (sender, receiver) = watch::channel(false);
    (Stopper(sender), Stop(receiver))
}

impl Stopper {
    /// Tells every [`Stop`] of this pair, once and for ever.
    pub(crate) fn stop(&self) {
        self.0.send_replace(true);
    }
}

impl Stop {
    /// Was it said? For threads, which look in their loop.
    #[must_use]
    pub(crate) fn requested(&self) -> bool {
        *self.0.borrow()
    }

    /// Returns when it was said, or when the [`Stopper`] is gone. Cancel safe.
    pub(crate) async fn wait(&mut self) {
        // An error means that the other side is gone, which is a stop as well.
        self.0.wait_for(|stop| *stop).await.map(drop).unwrap_or_default();
    }
}
