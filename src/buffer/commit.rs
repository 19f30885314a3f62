//! Where durable becomes true.

/// The proof that what came with this receipt is on disk: the synced commit has returned.
#[derive(Debug)]
#[must_use = "the sender waits for its acknowledgement"]
pub struct Durable<R>(R);

impl<R> Durable<R> {
    /// Takes the right to answer out; the proof is used up.
    pub fn into_receipt(self) -> R {
        self.0
    }
}
