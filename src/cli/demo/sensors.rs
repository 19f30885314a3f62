//! The simulated sensors: one task and one TCP connection each, paced by the clock.
//!
//! A sensor that cannot reach the relay keeps trying with growing pauses; what became due meanwhile is published when
//! the relay is back. It stops only when everything it published is acknowledged, or after [`PATIENCE`].

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use super::reading::{Fleet, Sensor};
use super::session::{Journal, Say, Session};
use super::wire::{self, Incoming, KEEPALIVE_S, Outgoing, WireError};
use crate::stop::Stop;

/// How long a sensor that was told to stop waits for its last acknowledgements: a restart of the relay fits in.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// A write or a handshake that takes longer is a dead connection.
const ANSWER_TIME: Duration = Duration::from_secs(5);

/// How often a sensor looks at the clock: fine enough that the readings come evenly, coarse enough to cost nothing.
const TICK: Duration = Duration::from_millis(20);

/// The first pause before a reconnect; it doubles up to the longest.
const SHORTEST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_millis(800);

/// What all sensors together have done, for the live view.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Readings published, each counted once.
    pub(super) published: AtomicU64,
    /// Readings whose PUBACK or PUBCOMP has come.
    pub(super) acknowledged: AtomicU64,
    /// Sensors connected now.
    pub(super) connected: AtomicU64,
    /// Connections that found their session again.
    pub(super) resumed: AtomicU64,
}

/// How fast the whole fleet publishes, and since when.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    pub(super) start: Instant,
    pub(super) per_second: u64,
    pub(super) sensors: u64,
}

impl Pace {
    /// How many readings the sensor with that index should have published by now.
    fn due(&self, index: u64, elapsed: Duration) -> u64 {
        let micros = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX);
        let of_all = micros.saturating_mul(self.per_second) / 1_000_000;
        let rounded_up_for_the_first = self.sensors.saturating_sub(index.saturating_add(1));
        of_all.saturating_add(rounded_up_for_the_first).checked_div(self.sensors).unwrap_or(0)
    }
}

/// Starts one task a sensor; each returns its place in the fleet and its journal.
pub(super) fn start(
    fleet: &Fleet,
    relay: SocketAddr,
    pace: Pace,
    tally: &Arc<Tally>,
    stop: &Stop,
) -> JoinSet<(usize, Journal)> {
    let mut tasks = JoinSet::new();
    for sensor in fleet.sensors() {
        let link = Link {
            session: Session::new(sensor.qos),
            sensor: sensor.clone(),
            pace,
            tally: Arc::clone(tally),
            stop: stop.clone(),
            told_to_stop: None,
        };
        tasks.spawn(link.run(relay));
    }
    tasks
}

struct Link {
    sensor: Sensor,
    session: Session,
    pace: Pace,
    tally: Arc<Tally>,
    stop: Stop,
    told_to_stop: Option<Instant>,
}

/// Why a connection ended.
enum End {
    /// Told to stop, and all is acknowledged.
    Finished,
    /// To be tried again.
    Lost,
}

impl Link {
    async fn run(mut self, relay: SocketAddr) -> (usize, Journal) {
        let mut pause = SHORTEST_PAUSE;
        while !self.out_of_patience() {
            if let Ok(Ok(mut socket)) = timeout(ANSWER_TIME, TcpStream::connect(relay)).await {
                if let Ok(waiting) = self.handshake(&mut socket).await {
                    pause = SHORTEST_PAUSE;
                    self.tally.connected.fetch_add(1, Ordering::Relaxed);
                    let end = self.converse(socket, waiting).await;
                    self.tally.connected.fetch_sub(1, Ordering::Relaxed);
                    if let Ok(End::Finished) = end {
                        break;
                    }
                }
            }
            if self.stop.requested() && self.session.in_flight() == 0 {
                break;
            }
            sleep(pause.mul_f64(0.5 + fastrand::f64())).await;
            pause = pause.saturating_mul(2).min(LONGEST_PAUSE);
        }
        (self.sensor.index, self.session.into_journal())
    }

    fn out_of_patience(&mut self) -> bool {
        if self.stop.requested() && self.told_to_stop.is_none() {
            self.told_to_stop = Some(Instant::now());
        }
        self.told_to_stop.is_some_and(|since| since.elapsed() > PATIENCE)
    }

    /// CONNECT, CONNACK, and the packets that must go before anything new.
    async fn handshake(&mut self, socket: &mut TcpStream) -> Result<BytesMut, WireError> {
        socket.set_nodelay(true).map_err(|error| lost(&error))?;
        let mut out = BytesMut::new();
        wire::encode(self.sensor.version, Outgoing::Connect { client_id: &self.sensor.client_id }, &mut out)?;
        send(socket, &mut out).await?;
        let mut input = BytesMut::new();
        let answer = loop {
            match wire::decode(self.sensor.version, &mut input)? {
                Some(packet) => break packet,
                None => receive(socket, &mut input).await?,
            }
        };
        let Incoming::Connected { session_present, receive_maximum } = answer else {
            return Err(WireError::NotUnderstood(format!("{answer:?} instead of CONNACK")));
        };
        if session_present {
            self.tally.resumed.fetch_add(1, Ordering::Relaxed);
        }
        for say in self.session.resume(session_present, receive_maximum) {
            self.encode(say, &mut out)?;
        }
        Ok(out)
    }

    async fn converse(&mut self, mut socket: TcpStream, mut out: BytesMut) -> Result<End, WireError> {
        let mut input = BytesMut::with_capacity(4096);
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut last_sent = Instant::now();
        loop {
            self.publish_what_is_due(&mut out)?;
            if last_sent.elapsed() > Duration::from_secs(u64::from(KEEPALIVE_S) / 3) {
                wire::encode(self.sensor.version, Outgoing::Ping, &mut out)?;
            }
            if !out.is_empty() {
                send(&mut socket, &mut out).await?;
                last_sent = Instant::now();
            }
            let patience_is_over = self.out_of_patience();
            if patience_is_over || (self.told_to_stop.is_some() && self.session.in_flight() == 0) {
                wire::encode(self.sensor.version, Outgoing::Disconnect, &mut out)?;
                send(&mut socket, &mut out).await?;
                return Ok(End::Finished);
            }
            tokio::select! {
                read = socket.read_buf(&mut input) => match read {
                    Ok(0) | Err(_) => return Ok(End::Lost),
                    Ok(_) => self.listen(&mut input, &mut out)?,
                },
                _ = tick.tick() => {}
            }
        }
    }

    fn publish_what_is_due(&mut self, out: &mut BytesMut) -> Result<(), WireError> {
        if self.stop.requested() {
            return Ok(());
        }
        let index = u64::try_from(self.sensor.index).unwrap_or(u64::MAX);
        let due = self.pace.due(index, self.pace.start.elapsed());
        while self.session.published() < due {
            let Some(say) = self.session.next() else { break };
            self.tally.published.fetch_add(1, Ordering::Relaxed);
            self.encode(say, out)?;
        }
        Ok(())
    }

    /// Everything that has come.
    fn listen(&mut self, input: &mut BytesMut, out: &mut BytesMut) -> Result<(), WireError> {
        while let Some(packet) = wire::decode(self.sensor.version, input)? {
            let before = (self.session.in_flight(), self.session.refused());
            let answer = self.session.hear(&packet);
            if self.session.in_flight() < before.0 && self.session.refused() == before.1 {
                self.tally.acknowledged.fetch_add(1, Ordering::Relaxed);
            }
            if let Some(say) = answer {
                self.encode(say, out)?;
            }
        }
        Ok(())
    }

    fn encode(&self, say: Say, out: &mut BytesMut) -> Result<(), WireError> {
        let packet = match say {
            Say::Publish { packet_id, n, again } => Outgoing::Publish {
                packet_id,
                qos: self.sensor.qos,
                topic: &self.sensor.topic,
                payload: self.sensor.payload(n),
                again,
            },
            Say::Release { packet_id } => Outgoing::Release { packet_id },
        };
        wire::encode(self.sensor.version, packet, out)
    }
}

async fn send(socket: &mut TcpStream, out: &mut BytesMut) -> Result<(), WireError> {
    match timeout(ANSWER_TIME, socket.write_all(out)).await {
        Ok(Ok(())) => {
            out.clear();
            Ok(())
        }
        Ok(Err(error)) => Err(lost(&error)),
        Err(elapsed) => Err(lost(&elapsed)),
    }
}

async fn receive(socket: &mut TcpStream, input: &mut BytesMut) -> Result<(), WireError> {
    match timeout(ANSWER_TIME, socket.read_buf(input)).await {
        Ok(Ok(0)) => Err(lost(&"closed")),
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(lost(&error)),
        Err(elapsed) => Err(lost(&elapsed)),
    }
}

fn lost(why: &impl ToString) -> WireError {
    WireError::Ended(why.to_string())
}
