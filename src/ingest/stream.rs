//! A socket, with TLS or without, as both roles use it: one way to write, one goodbye, and two ways to read. Two kinds in an
//! enum, so that the plain one pays for the other with one comparison a read.
//!
//! A link to a broker reads straight into a buffer of its own. The clients of a listener share one piece of memory a
//! thread ([`Stream::poll_read_shared`]): so an idle client has no read buffer, and what its packets keep alive is as long
//! as they are.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls;

use super::limits::{DISCONNECT_TIMEOUT, READ_BYTES};

thread_local! {
    static SHARED: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ_BYTES].into_boxed_slice());
}

/// A connection.
#[derive(Debug)]
pub(super) enum Stream {
    Plain(TcpStream),
    /// Boxed: the TLS state is some KiB, and most links are without.
    Tls(Box<TlsStream<TcpStream>>),
}

impl Stream {
    /// Takes of `out` what the socket takes. Not ready with nothing to do.
    pub(super) fn poll_write(&mut self, cx: &mut Context<'_>, out: &mut BytesMut) -> Poll<io::Result<usize>> {
        match self {
            Self::Plain(_) if out.is_empty() => Poll::Pending,
            Self::Plain(tcp) => pin!(tcp.write_buf(out)).poll(cx),
            Self::Tls(tls) if !out.is_empty() => {
                let written = pin!(tls.write_buf(out)).poll(cx);
                written.map(|written| written.map_err(|error| last_word(tls, cx, error)))
            }
            // What was encrypted and did not fit into the socket leaves only when asked to.
            Self::Tls(tls) if tls.get_ref().1.wants_write() => pin!(tls.flush()).poll(cx).map(|done| done.map(|()| 0)),
            Self::Tls(_) => Poll::Pending,
        }
    }

    /// What the socket takes at once, of answers that nobody may be there to read.
    pub(super) fn write_now(&mut self, out: &mut BytesMut) {
        while !out.is_empty() {
            // Not by polling: a task that has done much in one go is told to come again.
            let written = match self {
                Self::Plain(tcp) => tcp.try_write(out).inspect(|written| out.advance(*written)).is_ok(),
                Self::Tls(_) => {
                    matches!(self.poll_write(&mut Context::from_waker(Waker::noop()), out), Poll::Ready(Ok(_)))
                }
            };
            if !written {
                return;
            }
        }
    }

    /// Reads into `inbox`; 0 is the end.
    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>, inbox: &mut BytesMut) -> Poll<io::Result<usize>> {
        match self {
            Self::Plain(tcp) => pin!(tcp.read_buf(inbox)).poll(cx),
            Self::Tls(tls) => pin!(tls.read_buf(inbox)).poll(cx).map(end_of_tls),
        }
    }

    /// One read of `most` bytes, [`READ_BYTES`] at most, into the memory that the thread's connections share, shown to
    /// `take`.
    pub(super) fn poll_read_shared(
        &mut self,
        cx: &mut Context<'_>,
        most: usize,
        take: &mut impl FnMut(&[u8]),
    ) -> Poll<io::Result<usize>> {
        SHARED.with_borrow_mut(|shared| {
            let mut buffer = ReadBuf::new(shared.get_mut(..most).unwrap_or_default());
            match self {
                Self::Plain(tcp) => ready!(Pin::new(tcp).poll_read(cx, &mut buffer))?,
                Self::Tls(tls) => {
                    let read = ready!(Pin::new(&mut **tls).poll_read(cx, &mut buffer));
                    end_of_tls(read.map(|()| 0))?;
                }
            }
            take(buffer.filled());
            Poll::Ready(Ok(buffer.filled().len()))
        })
    }

    /// The same, waited for.
    pub(super) async fn read_shared(&mut self, mut take: impl FnMut(&[u8])) -> io::Result<usize> {
        poll_fn(|cx| self.poll_read_shared(cx, READ_BYTES, &mut take)).await
    }

    /// The same without waiting, on a connection that is not read any more afterwards.
    pub(super) fn read_shared_now(&mut self, mut take: impl FnMut(&[u8])) -> io::Result<usize> {
        if let Self::Plain(tcp) = self {
            return SHARED.with_borrow_mut(|shared| {
                let bytes = tcp.try_read(shared)?;
                take(shared.get(..bytes).unwrap_or_default());
                Ok(bytes)
            });
        }
        match self.poll_read_shared(&mut Context::from_waker(Waker::noop()), READ_BYTES, &mut take) {
            Poll::Ready(read) => read,
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    /// Has the peer closed its side, or is the connection broken? Also when there are bytes before the end, which is why it
    /// cannot just be read.
    pub(super) fn has_closed(&self) -> bool {
        let ready = pin!(self.tcp().ready(Interest::READABLE)).poll(&mut Context::from_waker(Waker::noop()));
        matches!(ready, Poll::Ready(Ok(ready)) if ready.is_read_closed())
    }

    /// Says the last words and waits until the peer has read them and closed, or for [`DISCONNECT_TIMEOUT`].
    pub(super) async fn close(mut self, out: &[u8]) {
        match tokio::time::timeout(DISCONNECT_TIMEOUT, self.finish(out)).await {
            Ok(Ok(())) => {}
            // Nothing depends on it: what was not answered comes again.
            Ok(Err(error)) => tracing::debug!(%error, "the connection could not be closed in an orderly way"),
            Err(_) => tracing::debug!("the connection could not be closed in time"),
        }
    }

    /// Sends all of `out`, says that nothing more will come, and waits until the broker closes. What still comes is
    /// thrown away: to close a socket in which something lies unread resets the connection, and a broker whose write
    /// fails by that does not read the answers that were on their way (seen with mosquitto: 32 readings came again after a
    /// clean stop).
    async fn finish(&mut self, out: &[u8]) -> io::Result<()> {
        match self {
            Self::Plain(tcp) => {
                tcp.write_all(out).await?;
                tcp.shutdown().await?;
            }
            Self::Tls(tls) => {
                tls.write_all(out).await?;
                tls.shutdown().await?;
            }
        }
        while poll_fn(|cx| self.poll_drain(cx)).await? > 0 {}
        Ok(())
    }

    /// Below TLS: nobody reads it.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let tcp = match self {
            Self::Plain(tcp) => tcp,
            Self::Tls(tls) => tls.get_mut().0,
        };
        SHARED.with_borrow_mut(|shared| {
            let mut unwanted = ReadBuf::new(shared);
            Pin::new(tcp).poll_read(cx, &mut unwanted).map_ok(|()| unwanted.filled().len())
        })
    }

    fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(tcp) => tcp,
            Self::Tls(tls) => tls.get_ref().0,
        }
    }
}

/// Gone without TLS's own goodbye, as a peer that was killed, is an end like any other: MQTT packets carry their length, so
/// nobody can cut one short unseen.
fn end_of_tls(read: io::Result<usize>) -> io::Result<usize> {
    match read {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(0),
        read => read,
    }
}

/// A broker that refuses our certificate says why and closes; what we see first may be that it has closed. So the
/// reason is looked for when sending fails.
fn last_word(tls: &mut TlsStream<TcpStream>, cx: &mut Context<'_>, error: io::Error) -> io::Error {
    let mut unread = BytesMut::new();
    let read = pin!(tls.read_buf(&mut unread)).poll(cx);
    match read {
        Poll::Ready(Err(said)) if said.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()).is_some() => {
            said
        }
        Poll::Ready(_) | Poll::Pending => error,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::net::TcpListener;
    use tokio::time::{sleep, timeout};

    use super::*;

    #[tokio::test]
    async fn a_broker_that_goes_on_sending_can_read_our_last_words() {
        let door = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let ours = TcpStream::connect(door.local_addr().unwrap()).await.unwrap();
        let (mut broker, _) = door.accept().await.unwrap();
        broker.write_all(b"unread").await.unwrap();
        let part = async {
            let mut stream = Stream::Plain(ours);
            timeout(Duration::from_secs(60), stream.finish(b"answers")).await.unwrap().unwrap();
        };
        let busy = async {
            for _ in 0..10 {
                sleep(Duration::from_millis(20)).await;
                broker.write_all(b"more").await.unwrap();
            }
            let mut heard = Vec::new();
            broker.read_to_end(&mut heard).await.unwrap();
            assert_eq!(heard, b"answers");
            drop(broker);
        };
        tokio::join!(part, busy);
    }
}
