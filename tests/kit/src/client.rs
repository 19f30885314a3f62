//! One MQTT connection, either end of it, blocking.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::wire::{Connect, Message, Packet, Property, Version, property};
use crate::{Outcome, PATIENCE, trouble};

/// A socket that speaks packets.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    inbound: Vec<u8>,
    /// So many of them are read.
    read: usize,
    /// What both sides speak.
    pub version: Version,
    /// Unanswered QoS 1 and 2 messages that the other side bears, by its CONNACK.
    pub receive_maximum: u16,
}

/// The other side has closed, or reset; or the socket did not take what it should.
#[derive(Debug, thiserror::Error)]
#[error("connection closed: {0}")]
pub struct Closed(String);

impl Connection {
    /// Connects and nothing more.
    pub fn dial(address: SocketAddr, version: Version) -> Outcome<Self> {
        let stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
        Self::over(stream, version)
    }

    /// On a socket that exists.
    pub fn over(stream: TcpStream, version: Version) -> Outcome<Self> {
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(Duration::from_secs(30)))?;
        Ok(Self { stream, inbound: Vec::new(), read: 0, version, receive_maximum: u16::MAX })
    }

    /// Connects, says CONNECT, waits for an accepting CONNACK; true = the session was present.
    pub fn open(address: SocketAddr, version: Version, connect: Connect) -> Outcome<(Self, bool)> {
        Self::dial(address, version)?.greet(connect)
    }

    /// Says CONNECT and waits for an accepting CONNACK; true = the session was present.
    pub fn greet(mut self, connect: Connect) -> Outcome<(Self, bool)> {
        self.send(&Packet::Connect(connect))?;
        match self.next(PATIENCE)? {
            Some(Packet::ConnAck { session_present, code: 0, properties }) => {
                for property in properties {
                    if let Property::Two(property::RECEIVE_MAXIMUM, value) = property {
                        self.receive_maximum = value;
                    }
                }
                Ok((self, session_present))
            }
            other => trouble!("CONNECT was answered with {other:?}"),
        }
    }

    /// Writes one packet.
    pub fn send(&mut self, packet: &Packet) -> Outcome<()> {
        let mut bytes = Vec::new();
        packet.write(self.version, &mut bytes);
        self.send_raw(&bytes)
    }

    /// Writes any bytes.
    pub fn send_raw(&mut self, bytes: &[u8]) -> Outcome<()> {
        Ok(self.stream.write_all(bytes)?)
    }

    /// The next packet; `None` when none came in time; an error when the other side has closed.
    pub fn next(&mut self, limit: Duration) -> Outcome<Option<Packet>> {
        let end = Instant::now() + limit;
        loop {
            if let Some(packet) = self.next_that_came()? {
                return Ok(Some(packet));
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() || !self.fill(left)? {
                return Ok(None);
            }
        }
    }

    /// The next packet of those that are here already; asks the socket for nothing.
    pub fn next_that_came(&mut self) -> Outcome<Option<Packet>> {
        let unread = self.inbound.get(self.read..).unwrap_or_default();
        let Some((packet, length)) = Packet::peek(self.version, unread)? else { return Ok(None) };
        self.read += length;
        Ok(Some(packet))
    }

    /// A packet that must come, past those that `skip` names (pings, answers that do not matter).
    pub fn expect(&mut self, what: &str, mut wanted: impl FnMut(&Packet) -> bool) -> Outcome<Packet> {
        let end = Instant::now() + PATIENCE;
        while let Some(packet) = self.next(end.saturating_duration_since(Instant::now()))? {
            if wanted(&packet) {
                return Ok(packet);
            }
        }
        trouble!("{what} did not come")
    }

    /// What comes within this time, all of it. An end of the connection ends it, too.
    pub fn all_within(&mut self, limit: Duration) -> Vec<Packet> {
        let end = Instant::now() + limit;
        let mut packets = Vec::new();
        while let Ok(Some(packet)) = self.next(end.saturating_duration_since(Instant::now())) {
            packets.push(packet);
        }
        packets
    }

    /// Waits for the other side to close; the packets that came before.
    pub fn until_closed(&mut self, limit: Duration) -> Outcome<Vec<Packet>> {
        let end = Instant::now() + limit;
        let mut packets = Vec::new();
        loop {
            match self.next(end.saturating_duration_since(Instant::now())) {
                Ok(Some(packet)) => packets.push(packet),
                Ok(None) => return trouble!("the other side did not close within {limit:?}"),
                Err(_) => return Ok(packets),
            }
        }
    }

    /// More bytes from the socket; false when none came in time.
    fn fill(&mut self, limit: Duration) -> Outcome<bool> {
        self.inbound.drain(..self.read);
        self.read = 0;
        self.stream.set_read_timeout(Some(limit.max(Duration::from_millis(1))))?;
        let mut bytes = [0; 16 * 1024];
        match self.stream.read(&mut bytes) {
            Ok(0) => Err(Closed("end of stream".into()).into()),
            Ok(count) => {
                self.inbound.extend_from_slice(bytes.get(..count).unwrap_or_default());
                Ok(true)
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Ok(false),
            Err(error) => Err(Closed(error.to_string()).into()),
        }
    }

    /// Writes what the socket takes within `limit`; for senders that must not wait. The rest stays in `bytes`.
    pub fn send_some(&mut self, bytes: &mut Vec<u8>, limit: Duration) -> Outcome<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.stream.set_write_timeout(Some(limit))?;
        while !bytes.is_empty() {
            match self.stream.write(bytes) {
                Ok(count) => drop(bytes.drain(..count)),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return Ok(()),
                Err(error) => return Err(Closed(error.to_string()).into()),
            }
        }
        Ok(())
    }

    /// Publishes at QoS 0, 1 or 2 and waits until the other side has taken custody (nothing to wait for at QoS 0).
    pub fn publish(&mut self, message: &Message, id: u16) -> Outcome<()> {
        self.send(&Packet::Publish { message: message.clone(), id, dup: false })?;
        let refused = |reason: u8| trouble!("PUBLISH {id} was refused with {reason:#x}");
        match message.qos {
            0 => Ok(()),
            1 => match self.expect("PUBACK", |packet| matches!(packet, Packet::PubAck { .. }))? {
                Packet::PubAck { id: answered, reason } if answered == id && reason < 0x80 => Ok(()),
                Packet::PubAck { reason, .. } => refused(reason),
                other => trouble!("{other:?}"),
            },
            _ => {
                self.expect("PUBREC", |packet| matches!(packet, Packet::PubRec { .. }))?;
                self.send(&Packet::PubRel { id, reason: 0 })?;
                self.expect("PUBCOMP", |packet| matches!(packet, Packet::PubComp { .. })).map(|_| ())
            }
        }
    }
}

/// A CONNECT that keeps its session for an hour.
pub fn keep(client_id: &str) -> Connect {
    Connect {
        client_id: client_id.to_owned(),
        clean: false,
        keep_alive: 60,
        properties: vec![Property::Four(property::SESSION_EXPIRY, 3600)],
        ..Connect::default()
    }
}

/// A CONNECT that wants no session.
pub fn clean(client_id: &str) -> Connect {
    Connect { client_id: client_id.to_owned(), clean: true, keep_alive: 60, ..Connect::default() }
}
