//! The connection to a broker, with TLS or without. Two kinds in an enum, so that the plain one pays for the other
//! with one comparison a read.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::task::{Context, Poll};

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls;

/// A connection.
#[derive(Debug)]
pub(super) enum Stream {
    Plain(TcpStream),
    /// Boxed: the TLS state is some KiB, and most links are without.
    Tls(Box<TlsStream<TcpStream>>),
}

/// Read at once of what is thrown away.
const UNWANTED_BYTES: usize = 4 * 1024;

/// What [`Stream::carry`] did.
#[derive(Debug)]
pub(super) enum Carried {
    /// So many bytes were taken off the front of what is to be sent.
    Out(io::Result<usize>),
    /// So many bytes came; 0 is the end.
    In(io::Result<usize>),
}

impl Stream {
    /// Sends of `out` what goes, or else reads into `inbox`, if there is one. Waits until something was done; cancel
    /// safe. With nothing to do it waits for ever.
    pub(super) async fn carry(&mut self, out: &mut BytesMut, mut inbox: Option<&mut BytesMut>) -> Carried {
        poll_fn(|cx| {
            if let Poll::Ready(written) = self.poll_out(cx, out) {
                return Poll::Ready(Carried::Out(written));
            }
            match &mut inbox {
                Some(inbox) => self.poll_in(cx, inbox).map(Carried::In),
                None => Poll::Pending,
            }
        })
        .await
    }

    /// Sends all of `out`, says that nothing more will come, and waits until the broker closes. What still comes is
    /// thrown away: to close a socket in which something lies unread resets the connection, and a broker whose write
    /// fails by that does not read the answers that were on their way (seen with mosquitto: 32 readings came again after a
    /// clean stop).
    pub(super) async fn finish(&mut self, out: &[u8]) -> io::Result<()> {
        let tcp = match self {
            Self::Plain(tcp) => {
                tcp.write_all(out).await?;
                tcp.shutdown().await?;
                tcp
            }
            Self::Tls(tls) => {
                tls.write_all(out).await?;
                tls.shutdown().await?;
                tls.get_mut().0
            }
        };
        let mut unwanted = BytesMut::with_capacity(UNWANTED_BYTES);
        while tcp.read_buf(&mut unwanted).await? > 0 {
            unwanted.clear();
        }
        Ok(())
    }

    fn poll_out(&mut self, cx: &mut Context<'_>, out: &mut BytesMut) -> Poll<io::Result<usize>> {
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

    fn poll_in(&mut self, cx: &mut Context<'_>, inbox: &mut BytesMut) -> Poll<io::Result<usize>> {
        match self {
            Self::Plain(tcp) => pin!(tcp.read_buf(inbox)).poll(cx),
            Self::Tls(tls) => pin!(tls.read_buf(inbox)).poll(cx).map(|read| match read {
                // Gone without TLS's own goodbye, as a broker that was killed. MQTT packets carry their length, so
                // nobody can cut one short unseen.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(0),
                read => read,
            }),
        }
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
