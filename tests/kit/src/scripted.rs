//! A broker that does on demand what mosquitto will not: forgets sessions, refuses filters, repeats releases, uses
//! packet ids again, sends rubbish, reads nothing. The test is the script: it accepts connections and speaks on them.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use crate::client::Connection;
use crate::ports::free_port;
use crate::wire::{self, Connect, Message, Packet, Version};
use crate::{Outcome, PATIENCE, trouble, wait_for};

/// Listens.
#[derive(Debug)]
pub struct ScriptedBroker {
    listener: TcpListener,
    address: SocketAddr,
}

/// A client that has said CONNECT.
#[derive(Debug)]
pub struct Peer {
    /// The connection.
    pub link: Connection,
    /// What it asked for.
    pub connect: Connect,
}

impl ScriptedBroker {
    /// On a free port.
    pub fn start() -> Outcome<Self> {
        let listener = TcpListener::bind(("127.0.0.1", free_port()?))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        Ok(Self { listener, address })
    }

    /// For the configuration.
    pub fn url(&self) -> String {
        format!("mqtt://{}", self.address)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The next connection that says CONNECT, if one comes in time.
    pub fn try_accept(&self, limit: Duration) -> Outcome<Option<Peer>> {
        let end = Instant::now() + limit;
        loop {
            match self.listener.accept() {
                Ok((stream, _)) => {
                    stream.set_nonblocking(false)?;
                    return Peer::meet(stream).map(Some);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
            if Instant::now() > end {
                return Ok(None);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// The next connection; it must come.
    pub fn accept(&self) -> Outcome<Peer> {
        match self.try_accept(PATIENCE)? {
            Some(peer) => Ok(peer),
            None => trouble!("nobody connected to the scripted broker"),
        }
    }

    /// The whole of an ordinary beginning: CONNECT, CONNACK, and SUBSCRIBE granted as asked when there is no session.
    pub fn accept_and_welcome(&self, session_present: bool) -> Outcome<Peer> {
        let mut peer = self.accept()?;
        peer.welcome(session_present)?;
        if !session_present {
            peer.grant()?;
        }
        Ok(peer)
    }
}

impl Peer {
    fn meet(stream: std::net::TcpStream) -> Outcome<Self> {
        let version = peek_version(&stream)?;
        let mut link = Connection::over(stream, version)?;
        match link.next(PATIENCE)? {
            Some(Packet::Connect(connect)) => Ok(Self { link, connect }),
            other => trouble!("the first packet was {other:?}"),
        }
    }

    /// CONNACK, accepted.
    pub fn welcome(&mut self, session_present: bool) -> Outcome<()> {
        self.link.send(&Packet::ConnAck { session_present, code: 0, properties: vec![] })
    }

    /// CONNACK with this code.
    pub fn refuse(&mut self, code: u8) -> Outcome<()> {
        self.link.send(&Packet::ConnAck { session_present: false, code, properties: vec![] })
    }

    /// Waits for SUBSCRIBE; what it asks for.
    pub fn expect_subscribe(&mut self) -> Outcome<(u16, Vec<(String, u8)>)> {
        match self.link.expect("SUBSCRIBE", |packet| matches!(packet, Packet::Subscribe { .. }))? {
            Packet::Subscribe { id, filters } => Ok((id, filters)),
            other => trouble!("{other:?}"),
        }
    }

    /// Waits for SUBSCRIBE and grants what it asks for.
    pub fn grant(&mut self) -> Outcome<Vec<(String, u8)>> {
        let (id, filters) = self.expect_subscribe()?;
        let codes = filters.iter().map(|(_, options)| options & 3).collect();
        self.link.send(&Packet::SubAck { id, codes })?;
        Ok(filters)
    }

    /// PUBLISH.
    pub fn publish(&mut self, topic: &str, payload: &[u8], qos: u8, id: u16, dup: bool) -> Outcome<()> {
        let message = Message { topic: topic.into(), payload: payload.to_vec(), qos, ..Message::default() };
        self.link.send(&Packet::Publish { message, id, dup })
    }

    /// PUBREL.
    pub fn release(&mut self, id: u16) -> Outcome<()> {
        self.link.send(&Packet::PubRel { id, reason: 0 })
    }

    /// Waits for the PUBACK, PUBREC or PUBCOMP of this id. A SUBSCRIBE on the way is granted: an agent may ask again
    /// for what it has.
    pub fn expect_answer(&mut self, wanted: &Packet) -> Outcome<()> {
        loop {
            let of_interest =
                |packet: &Packet| same_answer(packet, wanted) || matches!(packet, Packet::Subscribe { .. });
            match self.link.expect(&format!("{wanted:?}"), of_interest)? {
                Packet::Subscribe { id, filters } => {
                    let codes = filters.iter().map(|(_, options)| options & 3).collect();
                    self.link.send(&Packet::SubAck { id, codes })?;
                }
                _ => return Ok(()),
            }
        }
    }

    /// PUBACK, PUBREC, PUBREL and PUBCOMP that come within this time; pings are answered.
    pub fn answers_within(&mut self, limit: Duration) -> Vec<Packet> {
        let mut packets = self.link.all_within(limit);
        packets.retain(|packet| {
            matches!(
                packet,
                Packet::PubAck { .. } | Packet::PubRec { .. } | Packet::PubRel { .. } | Packet::PubComp { .. }
            )
        });
        packets
    }
}

/// The reason of an answer does not matter (MQTT 5 knows several kinds of success).
fn same_answer(packet: &Packet, wanted: &Packet) -> bool {
    match (packet, wanted) {
        (Packet::PubAck { id, .. }, Packet::PubAck { id: other, .. })
        | (Packet::PubRec { id, .. }, Packet::PubRec { id: other, .. })
        | (Packet::PubComp { id, .. }, Packet::PubComp { id: other, .. }) => id == other,
        _ => false,
    }
}

fn peek_version(stream: &std::net::TcpStream) -> Outcome<Version> {
    let mut bytes = vec![0; 4096];
    wait_for("a CONNECT", PATIENCE, || {
        let count = stream.peek(&mut bytes).ok()?;
        match wire::version_asked(bytes.get(..count)?) {
            Ok(Some(version)) => Some(Ok(version)),
            Ok(None) if count == 0 => Some(trouble!("closed before CONNECT")),
            Ok(None) => None,
            Err(error) => Some(Err(error)),
        }
    })?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::{clean, keep};

    #[test]
    fn a_client_of_each_version_meets_the_scripted_broker() {
        for version in Version::ALL {
            let broker = ScriptedBroker::start().unwrap();
            let address = broker.address();
            let client = std::thread::spawn(move || {
                let (mut client, present) = Connection::open(address, version, keep("c")).unwrap();
                assert!(present);
                let message = Message { topic: "t".into(), qos: 1, ..Message::default() };
                client.publish(&message, 9)
            });
            let mut peer = broker.accept().unwrap();
            assert_eq!(peer.link.version, version);
            assert_eq!((peer.connect.client_id.as_str(), peer.connect.clean), ("c", false));
            peer.welcome(true).unwrap();
            peer.link.expect("PUBLISH", |packet| matches!(packet, Packet::Publish { id: 9, .. })).unwrap();
            peer.link.send(&Packet::PubAck { id: 9, reason: 0 }).unwrap();
            client.join().unwrap().unwrap();
        }
    }

    #[test]
    fn a_refusal_and_an_empty_wait_are_told_apart_from_a_welcome() {
        let broker = ScriptedBroker::start().unwrap();
        let address = broker.address();
        assert!(broker.try_accept(Duration::from_millis(1)).unwrap().is_none());
        let client = std::thread::spawn(move || Connection::open(address, Version::V5, clean("c")).map(|_| ()));
        broker.accept().unwrap().refuse(0x87).unwrap();
        let refusal = client.join().unwrap().unwrap_err();
        assert!(refusal.0.contains("135"), "{refusal:?}");
    }
}
