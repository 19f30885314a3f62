//! A publisher that costs little, so that what is measured is the relay: prepared MQTT 3.1.1 bytes, one thread a
//! connection, a window of unacknowledged messages, one write for many packets.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// What to publish.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    pub to: SocketAddr,
    pub qos: u8,
    pub payload_bytes: usize,
    pub connections: usize,
    /// Sensors a connection, each with a topic of its own.
    pub sensors: usize,
    /// Events of all connections together.
    pub events: usize,
    /// Unacknowledged messages a connection. With QoS 0, messages a write.
    pub window: usize,
    /// Events a second of all connections together; `None` = as fast as it goes.
    pub rate: Option<f64>,
    /// Remember when each event was acknowledged.
    pub stamp: bool,
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Published {
    pub events: usize,
    pub payload_bytes: u64,
    /// PUBLISH written → PUBACK or PUBCOMP read, sampled, in seconds, sorted.
    pub latencies: Vec<f64>,
    /// With `stamp`: number of the connection, number of the event on it, when it was acknowledged.
    pub stamps: Vec<(usize, usize, Instant)>,
    pub elapsed: Duration,
}

impl Published {
    pub fn latency_ms(&self, quantile: f64) -> f64 {
        let last = self.latencies.len().saturating_sub(1);
        self.latencies.get((last as f64 * quantile) as usize).map_or(f64::NAN, |s| s * 1e3)
    }
}

impl Load {
    /// Readings of 100 bytes at QoS 1 over four connections, as fast as they are acknowledged.
    pub fn full(to: SocketAddr, events: usize) -> Self {
        Self {
            to,
            qos: 1,
            payload_bytes: 100,
            connections: 4,
            sensors: 1,
            events,
            window: 250,
            rate: None,
            stamp: false,
        }
    }

    pub fn run(&self) -> io::Result<Published> {
        let start = Instant::now();
        let threads: Vec<_> = (0..self.connections)
            .map(|n| {
                let load = *self;
                std::thread::spawn(move || Publisher::connect(load, n)?.run())
            })
            .collect();
        let mut all = Published::default();
        for thread in threads {
            let one = thread.join().map_err(|_| io::Error::other("a publisher died"))??;
            all.events += one.events;
            all.payload_bytes += one.payload_bytes;
            all.latencies.extend(one.latencies);
            all.stamps.extend(one.stamps);
        }
        all.latencies.sort_by(f64::total_cmp);
        all.elapsed = start.elapsed();
        Ok(all)
    }
}

/// What is left of a reading is text that repeats now and then, as status texts do.
const FILL: &[u8] = b"pump running; valve 3 open; door closed; last service 2026-03-14; operator K. Larsen; ";

/// A JSON reading of exactly that many bytes, different each time.
pub fn reading(out: &mut Vec<u8>, sensor: usize, counter: usize, bytes: usize) {
    let from = out.len();
    let value = 20.0 + ((counter * 7919 + sensor * 31) % 10_000) as f64 / 1000.0;
    write!(
        out,
        "{{\"sensor\":\"s{sensor:03}\",\"n\":{counter},\"t\":{},\"temp\":{value:.3},\"unit\":\"C\",\"ok\":true,\"note\":\"",
        SystemTime::now().duration_since(UNIX_EPOCH).expect("it is after 1970").as_millis()
    )
    .expect("a Vec takes all");
    let mut i = counter % 7;
    while out.len() + 2 < from + bytes {
        out.push(FILL[i % FILL.len()]);
        i += 1;
    }
    out.extend_from_slice(b"\"}");
    out.truncate(from + bytes);
}

struct Publisher {
    load: Load,
    number: usize,
    socket: TcpStream,
    out: Vec<u8>,
    payload: Vec<u8>,
    sent_at: Vec<Option<Instant>>,
    /// Which event has that packet id now; with `stamp`.
    event_of: Vec<usize>,
    next_id: u16,
    in_flight: usize,
    result: Published,
}

impl Publisher {
    fn connect(load: Load, number: usize) -> io::Result<Self> {
        let mut socket = TcpStream::connect(load.to)?;
        socket.set_nodelay(true)?;
        let id = format!("bench-{number}");
        let mut connect = vec![0x10, 12 + id.len() as u8, 0, 4];
        connect.extend_from_slice(b"MQTT\x04\x02\x00\x00\x00");
        connect.push(id.len() as u8);
        connect.extend_from_slice(id.as_bytes());
        socket.write_all(&connect)?;
        let mut connack = [0; 4];
        socket.read_exact(&mut connack)?;
        if connack[3] != 0 {
            return Err(io::Error::other(format!("CONNACK {}", connack[3])));
        }
        Ok(Self {
            load,
            number,
            socket,
            out: Vec::with_capacity(256 * 1024),
            payload: Vec::new(),
            sent_at: vec![None; 65_536],
            event_of: vec![0; if load.stamp { 65_536 } else { 0 }],
            next_id: 1,
            in_flight: 0,
            result: Published::default(),
        })
    }

    fn run(mut self) -> io::Result<Published> {
        let events = self.load.events / self.load.connections;
        let pace = self.load.rate.map(|rate| Duration::from_secs_f64(self.load.connections as f64 / rate));
        let start = Instant::now();
        let mut sent = 0;
        let mut input = vec![0; 64 * 1024];
        let mut kept = 0;
        while sent < events || self.in_flight > 0 {
            let room = self.load.window.saturating_sub(self.in_flight).min(events - sent);
            let due = match pace {
                Some(pace) => {
                    let target = (start.elapsed().as_secs_f64() / pace.as_secs_f64()) as usize;
                    room.min(target.saturating_sub(sent))
                }
                // Refill in halves: one write for many packets.
                None if room < self.load.window / 2 && sent + room < events => 0,
                None => room,
            };
            for _ in 0..due {
                self.publish(sent);
                sent += 1;
            }
            if !self.out.is_empty() {
                self.socket.write_all(&self.out)?;
                self.out.clear();
            }
            if self.in_flight == 0 {
                if let Some(pace) = pace {
                    std::thread::sleep(pace.min(Duration::from_millis(1)));
                }
                continue;
            }
            if pace.is_some() {
                self.socket.set_read_timeout(Some(Duration::from_micros(500)))?;
            }
            match self.socket.read(&mut input[kept..]) {
                Ok(0) => return Err(io::Error::other("connection closed")),
                Ok(n) => kept = self.acknowledgements(&mut input, kept + n)?,
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
                Err(error) => return Err(error),
            }
        }
        self.socket.write_all(&[0xe0, 0])?;
        Ok(self.result)
    }

    fn publish(&mut self, counter: usize) {
        self.payload.clear();
        let sensor = self.number * self.load.sensors + counter % self.load.sensors;
        reading(&mut self.payload, sensor, counter, self.load.payload_bytes);
        let topic = format!("bench/line{}/s{sensor:03}", self.number % 4);
        let id_bytes = if self.load.qos > 0 { 2 } else { 0 };
        let mut remaining = 2 + topic.len() + id_bytes + self.payload.len();
        self.out.push(0x30 | self.load.qos << 1);
        loop {
            let byte = (remaining % 128) as u8;
            remaining /= 128;
            self.out.push(if remaining > 0 { byte | 0x80 } else { byte });
            if remaining == 0 {
                break;
            }
        }
        self.out.extend_from_slice(&(topic.len() as u16).to_be_bytes());
        self.out.extend_from_slice(topic.as_bytes());
        if self.load.qos > 0 {
            self.out.extend_from_slice(&self.next_id.to_be_bytes());
            if self.next_id.is_multiple_of(8) {
                self.sent_at[usize::from(self.next_id)] = Some(Instant::now());
            }
            if let Some(event) = self.event_of.get_mut(usize::from(self.next_id)) {
                *event = counter;
            }
            self.next_id = if self.next_id == u16::MAX { 1 } else { self.next_id + 1 };
            self.in_flight += 1;
        }
        self.out.extend_from_slice(&self.payload);
        self.result.events += 1;
        self.result.payload_bytes += self.payload.len() as u64;
    }

    /// Works off whole packets, returns how many bytes of an incomplete one are left at the front.
    fn acknowledgements(&mut self, input: &mut [u8], filled: usize) -> io::Result<usize> {
        let mut at = 0;
        while filled - at >= 2 && filled - at >= 2 + usize::from(input[at + 1]) {
            let (kind, id) = (input[at] >> 4, u16::from_be_bytes([input[at + 2], input[at + 3]]));
            match kind {
                4 | 7 => {
                    self.in_flight -= 1;
                    if let Some(event) = self.event_of.get(usize::from(id)) {
                        self.result.stamps.push((self.number, *event, Instant::now()));
                    }
                    if let Some(sent_at) = self.sent_at[usize::from(id)].take() {
                        self.result.latencies.push(sent_at.elapsed().as_secs_f64());
                    }
                }
                5 => {
                    self.out.extend_from_slice(&[0x62, 2]);
                    self.out.extend_from_slice(&id.to_be_bytes());
                }
                other => return Err(io::Error::other(format!("packet type {other} from the relay"))),
            }
            at += 2 + usize::from(input[at + 1]);
        }
        input.copy_within(at..filled, 0);
        Ok(filled - at)
    }
}
