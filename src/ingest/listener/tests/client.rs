//! The client's side, byte by byte, so that it can also say what no library would.

use bytes::{BufMut, BytesMut};

use crate::ingest::codec::{self, Packet};
use crate::settings::MqttVersion;

pub(super) const V5: MqttVersion = MqttVersion::V5;
pub(super) const V311: MqttVersion = MqttVersion::V311;

/// CONNECT with everything a test may want to turn.
#[derive(Debug, Clone)]
pub(super) struct Connect {
    pub(super) level: u8,
    pub(super) name: &'static str,
    pub(super) id: String,
    pub(super) clean: bool,
    pub(super) keepalive: u16,
    pub(super) expiry: Option<u32>,
    pub(super) properties: Vec<u8>,
    pub(super) will: Option<Will>,
    pub(super) username: Option<&'static str>,
    pub(super) password: Option<&'static [u8]>,
}

#[derive(Debug, Clone)]
pub(super) struct Will {
    pub(super) topic: &'static str,
    pub(super) qos: u8,
    pub(super) retain: bool,
    pub(super) delay: u32,
}

pub(super) fn connect(version: MqttVersion, id: &str) -> Connect {
    Connect {
        level: if version == V5 { 5 } else { 4 },
        name: "MQTT",
        id: id.to_owned(),
        clean: true,
        keepalive: 60,
        expiry: None,
        properties: Vec::new(),
        will: None,
        username: None,
        password: None,
    }
}

impl Connect {
    /// Asks for a session that outlives the connection.
    pub(super) fn kept(mut self) -> Self {
        self.clean = false;
        self.expiry = (self.level == 5).then_some(3600);
        self
    }

    pub(super) fn with_will(mut self, delay: u32) -> Self {
        self.will = Some(Will { topic: "status/press", qos: 1, retain: true, delay });
        self
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut body = Vec::new();
        string(&mut body, self.name.as_bytes());
        body.put_u8(self.level);
        let mut flags = u8::from(self.clean) << 1;
        if let Some(will) = &self.will {
            flags |= 4 | will.qos << 3 | u8::from(will.retain) << 5;
        }
        flags |= u8::from(self.username.is_some()) << 7 | u8::from(self.password.is_some()) << 6;
        body.put_u8(flags);
        body.put_u16(self.keepalive);
        if self.level == 5 {
            let mut properties = self.properties.clone();
            if let Some(expiry) = self.expiry {
                properties.put_u8(17);
                properties.put_u32(expiry);
            }
            body.put_u8(u8::try_from(properties.len()).unwrap());
            body.extend(properties);
        }
        string(&mut body, self.id.as_bytes());
        if let Some(will) = &self.will {
            if self.level == 5 {
                body.put_slice(&[5, 24]);
                body.put_u32(will.delay);
            }
            string(&mut body, will.topic.as_bytes());
            string(&mut body, b"offline");
        }
        if let Some(name) = self.username {
            string(&mut body, name.as_bytes());
        }
        if let Some(password) = self.password {
            string(&mut body, password);
        }
        packet(0x10, &body)
    }
}

pub(super) fn publish(version: MqttVersion, qos: u8, dup: bool, id: u16, payload: &str) -> Vec<u8> {
    publish_to(version, "sensors/press", qos, dup, id, payload.as_bytes())
}

pub(super) fn publish_to(version: MqttVersion, topic: &str, qos: u8, dup: bool, id: u16, payload: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    string(&mut body, topic.as_bytes());
    if qos > 0 {
        body.put_u16(id);
    }
    if version == V5 {
        body.put_u8(0);
    }
    body.extend_from_slice(payload);
    packet(0x30 | u8::from(dup) << 3 | qos << 1, &body)
}

pub(super) fn pubrel(id: u16) -> Vec<u8> {
    packet(0x62, &id.to_be_bytes())
}

pub(super) fn subscribe(version: MqttVersion, filters: &[&str]) -> Vec<u8> {
    let mut body = vec![0, 9];
    if version == V5 {
        body.put_u8(0);
    }
    for filter in filters {
        string(&mut body, filter.as_bytes());
        body.put_u8(1);
    }
    packet(0x82, &body)
}

pub(super) fn unsubscribe(version: MqttVersion, filters: &[&str]) -> Vec<u8> {
    let mut body = vec![0, 9];
    if version == V5 {
        body.put_u8(0);
    }
    for filter in filters {
        string(&mut body, filter.as_bytes());
    }
    packet(0xa2, &body)
}

pub(super) fn pingreq() -> Vec<u8> {
    vec![0xc0, 0]
}

/// Goodbye; on MQTT 5 perhaps with a reason and another session expiry.
pub(super) fn disconnect(reason: u8, expiry: Option<u32>) -> Vec<u8> {
    match (reason, expiry) {
        (0, None) => vec![0xe0, 0],
        (reason, None) => vec![0xe0, 1, reason],
        (reason, Some(expiry)) => [&[0xe0, 7, reason, 5, 17][..], &expiry.to_be_bytes()].concat(),
    }
}

pub(super) fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![first];
    let mut rest = body.len();
    loop {
        let low = u8::try_from(rest & 0x7f).unwrap();
        rest >>= 7;
        out.put_u8(low | if rest > 0 { 0x80 } else { 0 });
        if rest == 0 {
            break;
        }
    }
    out.extend_from_slice(body);
    out
}

/// What a server has said.
pub(super) fn packets(version: MqttVersion, bytes: &[u8]) -> Vec<Packet> {
    let mut buffer = BytesMut::from(bytes);
    let mut packets = Vec::new();
    while let Some(packet) = codec::decode(version, &mut buffer, 100_000).expect("what we say is well formed") {
        packets.push(packet);
    }
    assert!(buffer.is_empty(), "half a packet: {buffer:?}");
    packets
}

fn string(out: &mut Vec<u8>, bytes: &[u8]) {
    out.put_u16(u16::try_from(bytes.len()).unwrap());
    out.extend_from_slice(bytes);
}
