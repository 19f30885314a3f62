//! The read buffer of one connection.
//!
//! Reads start small and grow with the traffic: an idle sensor costs 2 KiB, a busy link reads 64 KiB at a time. Small
//! payloads are copied out of it (`codec::Publish::into_payload`); a large one is a slice, and keeps its read alive.

use bytes::BytesMut;

use crate::ingest::limits::{MIN_READ_BYTES, READ_BYTES};

/// Bytes received and not yet decoded.
#[derive(Debug)]
pub(crate) struct Inbox {
    buffer: BytesMut,
    read_bytes: usize,
}

impl Inbox {
    /// Empty, without memory.
    #[must_use]
    pub(crate) fn new() -> Self {
        Self { buffer: BytesMut::new(), read_bytes: MIN_READ_BYTES }
    }

    /// The buffer with space for the next read (`read_buf` fills it; call [`Inbox::filled`] after).
    pub(crate) fn space(&mut self) -> &mut BytesMut {
        let spare = self.buffer.capacity() - self.buffer.len();
        // A rest of a quarter is used up first: a new buffer a read would pin more memory than it saves calls.
        if spare < self.read_bytes / 4 {
            self.buffer.reserve(self.read_bytes);
        }
        &mut self.buffer
    }

    /// A read brought that many bytes.
    pub(crate) fn filled(&mut self, bytes: usize) {
        let full = self.buffer.capacity() == self.buffer.len();
        if full {
            self.read_bytes = (self.read_bytes * 2).min(READ_BYTES);
        } else if bytes < self.read_bytes / 16 {
            self.read_bytes = (self.read_bytes / 2).max(MIN_READ_BYTES);
        }
    }

    /// What is to be decoded.
    pub(crate) fn bytes(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    /// Gives back the memory that a large packet needed. Call it when a read has been decoded.
    pub(crate) fn shrink(&mut self) {
        if self.buffer.is_empty() && self.buffer.capacity() > READ_BYTES * 2 {
            self.buffer = BytesMut::new();
        }
    }

    /// The connection is over: nothing of it may be read as the next one's.
    pub(crate) fn clear(&mut self) {
        self.buffer = BytesMut::new();
        self.read_bytes = MIN_READ_BYTES;
    }
}

impl Default for Inbox {
    fn default() -> Self {
        Self::new()
    }
}
