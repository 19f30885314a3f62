//! What is done with a socket's reading half: one read, for all connections through the same memory, and the question
//! whether the client has gone.

use std::cell::RefCell;
use std::future::{self, Future};
use std::io;
use std::pin::{Pin, pin};
use std::task::{Poll, ready};

use tokio::io::{AsyncRead, Interest, ReadBuf};
use tokio::net::tcp::ReadHalf;

use crate::ingest::limits::READ_BYTES;

thread_local! {
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ_BYTES].into_boxed_slice());
}

/// Has the client closed its side, or is the connection broken? Also when there are bytes before the end, which is why it
/// cannot just be read.
pub(super) async fn has_closed(reader: &ReadHalf<'_>) -> bool {
    future::poll_fn(|context| {
        let ready = pin!(reader.ready(Interest::READABLE)).poll(context);
        Poll::Ready(matches!(ready, Poll::Ready(Ok(ready)) if ready.is_read_closed()))
    })
    .await
}

/// One read into the buffer that all connections of the thread share, shown to `take`: so an idle client has no read
/// buffer, and what its packets keep alive is as long as they are. `most` bytes, of [`READ_BYTES`] at most.
pub(super) async fn read(reader: &mut ReadHalf<'_>, most: usize, mut take: impl FnMut(&[u8])) -> io::Result<usize> {
    future::poll_fn(|context| {
        SCRATCH.with_borrow_mut(|scratch| {
            let mut buffer = ReadBuf::new(scratch.get_mut(..most).unwrap_or_default());
            ready!(Pin::new(&mut *reader).poll_read(context, &mut buffer))?;
            take(buffer.filled());
            Poll::Ready(Ok(buffer.filled().len()))
        })
    })
    .await
}

/// The same without waiting.
pub(super) fn try_read(reader: &ReadHalf<'_>, mut take: impl FnMut(&[u8])) -> io::Result<usize> {
    SCRATCH.with_borrow_mut(|scratch| {
        let bytes = reader.try_read(scratch)?;
        take(scratch.get(..bytes).unwrap_or_default());
        Ok(bytes)
    })
}
