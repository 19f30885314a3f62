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
        let rounded_up_for_the_first = self.sensors - (index + 1);
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
            counted: 0,
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
    /// Acknowledged readings that are in the tally.
    counted: u64,
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
            if let Ok(Ok(mut socket)) = timeout(ANSWER_TIME, TcpStream::connect(relay)).await
                && let Ok(waiting) = self.handshake(&mut socket).await
            {
                pause = SHORTEST_PAUSE;
                self.tally.connected.fetch_add(1, Ordering::Relaxed);
                let end = self.converse(socket, waiting).await;
                self.tally.connected.fetch_sub(1, Ordering::Relaxed);
                if let Ok(End::Finished) = end {
                    break;
                }
            }
            if self.stop.requested() && self.session.in_flight() == 0 {
                break;
            }
            sleep(pause.mul_f64(0.5 + fastrand::f64())).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
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
        self.count();
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
            let answer = self.session.hear(&packet);
            if let Some(say) = answer {
                self.encode(say, out)?;
            }
        }
        self.count();
        Ok(())
    }

    fn count(&mut self) {
        let now = self.session.acknowledged();
        self.tally.acknowledged.fetch_add(now - self.counted, Ordering::Relaxed);
        self.counted = now;
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

#[cfg(test)]
mod tests {
    use rumqttc::mqttbytes::QoS;
    use rumqttc::mqttbytes::v4::{ConnAck, ConnectReturnCode, Packet, PubAck, PubComp, PubRec};
    use tokio::net::TcpListener;

    use super::*;
    use crate::event::Qos;
    use crate::settings::MqttVersion;
    use crate::stop::pair;

    /// A relay for one MQTT 3.1.1 sensor, with the verbs that a test needs.
    struct Peer {
        listener: TcpListener,
        socket: Option<TcpStream>,
        input: BytesMut,
    }

    impl Peer {
        async fn new() -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            Self { listener, socket: None, input: BytesMut::new() }
        }

        async fn accept(&mut self, session_present: bool) {
            self.socket = Some(self.listener.accept().await.unwrap().0);
            self.input.clear();
            assert!(matches!(self.hear().await, Some(Packet::Connect(connect)) if !connect.clean_session));
            self.say(Packet::ConnAck(ConnAck::new(ConnectReturnCode::Success, session_present))).await;
        }

        async fn hear(&mut self) -> Option<Packet> {
            loop {
                if let Ok(packet) = Packet::read(&mut self.input, 4096) {
                    return Some(packet);
                }
                if self.socket.as_mut().unwrap().read_buf(&mut self.input).await.unwrap() == 0 {
                    return None;
                }
            }
        }

        async fn say(&mut self, packet: Packet) {
            let mut out = BytesMut::new();
            packet.write(&mut out, 4096).unwrap();
            self.socket.as_mut().unwrap().write_all(&out).await.unwrap();
        }

        fn hang_up(&mut self) {
            self.socket = None;
        }
    }

    /// Lets one sensor talk to a script; its journal.
    fn with_a_sensor<F: Future<Output = ()>>(
        index: usize,
        script: impl FnOnce(Peer, crate::stop::Stopper) -> F,
    ) -> Journal {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
            let peer = Peer::new().await;
            let address = peer.listener.local_addr().unwrap();
            let (stopper, stop) = pair();
            let sensor = Fleet::new(4).sensors()[index].clone();
            assert_eq!(sensor.version, MqttVersion::V311);
            let link = Link {
                session: Session::new(sensor.qos),
                pace: Pace { start: Instant::now(), per_second: 10_000, sensors: 4 },
                sensor,
                tally: Arc::new(Tally::default()),
                counted: 0,
                stop,
                told_to_stop: None,
            };
            let ((_, journal), ()) = tokio::join!(link.run(address), script(peer, stopper));
            journal
        })
    }

    #[test]
    fn a_qos_1_sensor_sends_again_what_was_not_acknowledged_in_order_and_with_dup() {
        let mut offered = Vec::new();
        let journal = with_a_sensor(2, async |mut peer, stopper| {
            peer.accept(false).await;
            for expected in 1..=10 {
                let Some(Packet::Publish(publish)) = peer.hear().await else { panic!("no publish") };
                assert_eq!((publish.pkid, publish.dup, publish.qos), (expected, false, QoS::AtLeastOnce));
                if expected <= 4 {
                    peer.say(Packet::PubAck(PubAck::new(expected))).await;
                }
            }
            peer.hang_up();
            peer.accept(true).await;
            stopper.stop();
            while let Some(packet) = peer.hear().await {
                let Packet::Publish(publish) = packet else { break };
                peer.say(Packet::PubAck(PubAck::new(publish.pkid))).await;
                offered.push((publish.pkid, publish.dup));
            }
        });
        assert!(offered.is_sorted() && offered.len() >= 6, "{offered:?}");
        assert!(offered.iter().take(6).all(|(_, dup)| *dup), "{offered:?}");
        assert!(journal.acknowledged.iter().all(|acknowledged| *acknowledged));
        assert!((5..=10).all(|n| journal.sent_again.contains(&n)));
        assert_eq!((journal.refused, journal.stray), (0, 0));
    }

    #[test]
    fn a_qos_2_sensor_goes_on_from_the_step_it_had_reached() {
        let journal = with_a_sensor(3, async |mut peer, stopper| {
            peer.accept(false).await;
            for expected in 1..=2 {
                let Some(Packet::Publish(publish)) = peer.hear().await else { panic!("no publish") };
                assert_eq!((publish.pkid, publish.qos), (expected, QoS::ExactlyOnce));
            }
            stopper.stop();
            peer.say(Packet::PubRec(PubRec::new(1))).await;
            while !matches!(peer.hear().await, Some(Packet::PubRel(release)) if release.pkid == 1) {}
            peer.hang_up();
            peer.accept(true).await;
            let Some(Packet::PubRel(first)) = peer.hear().await else { panic!("no release") };
            let Some(Packet::Publish(second)) = peer.hear().await else { panic!("no publish") };
            assert_eq!((first.pkid, second.pkid, second.dup), (1, 2, true));
            peer.say(Packet::PubComp(PubComp::new(1))).await;
            peer.say(Packet::PubRec(PubRec::new(2))).await;
            while let Some(packet) = peer.hear().await {
                if let Packet::Publish(publish) = packet {
                    peer.say(Packet::PubRec(PubRec::new(publish.pkid))).await;
                } else if let Packet::PubRel(release) = packet {
                    peer.say(Packet::PubComp(PubComp::new(release.pkid))).await;
                }
            }
        });
        assert!(journal.acknowledged.iter().all(|acknowledged| *acknowledged));
        assert!(!journal.sent_again.contains(&1) && journal.sent_again.contains(&2));
    }

    #[test]
    fn the_fleet_publishes_what_is_due_evenly_and_no_more() {
        let pace = Pace { start: Instant::now(), per_second: 10, sensors: 4 };
        let due = |elapsed| [0, 1, 2, 3].map(|index| pace.due(index, elapsed));
        assert_eq!(due(Duration::ZERO), [0, 0, 0, 0]);
        assert_eq!(due(Duration::from_secs(1)), [3, 3, 2, 2]);
        assert_eq!(due(Duration::from_secs(2)), [5, 5, 5, 5]);
    }

    #[test]
    fn qos_1_and_qos_2_are_what_the_tests_above_take_them_for() {
        let fleet = Fleet::new(4);
        assert_eq!([2, 3].map(|index| fleet.sensors()[index].qos), [Qos::AtLeastOnce, Qos::ExactlyOnce]);
    }
}
