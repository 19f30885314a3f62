//! The session at a broker as a state machine. Bytes and time in; bytes ([`Session::out`]), work for the buffer
//! ([`Session::batch`]) and verdicts ([`Close`]) out.
//!
//! ```text
//!                 connected            CONNACK, session gone
//!   ┌──▶ Offline ───────────▶ Greeting ────────────────────▶ Forgetting
//!   │                            │                               │ the old ids are durably forgotten
//!   │ lost                       │ CONNACK, session kept         ▼
//!   │ (from anywhere)            ├─────────────────────────▶ Subscribing   first connection, or a filter is missing
//!   │                            │                               │ every SUBSCRIBE is answered
//!   └── Closing ◀── close        └─────────────────────────▶  Online
//!                (from anywhere but Offline)
//! ```
//!
//! PUBLISH and PUBREL are taken in every state behind the greeting: the broker need not wait for anything.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use tracing::{debug, info, warn};

use super::fault::BrokerFault;
use super::subscriptions::{Stray, Subscriptions};
use super::version::Version;
use crate::buffer::{Durable, IdChange, StoredSession};
use crate::clock::Moment;
use crate::event::{MAX_USER_PROPERTIES, Qos};
use crate::ingest::acker::{Acker, Acknowledged};
use crate::ingest::batch::Batch;
use crate::ingest::close::Close;
use crate::ingest::codec::encode::{self, Hello};
use crate::ingest::codec::{self, Ack, ConnAck, DecodeError, Flawed, Packet, Publish, reason};
use crate::ingest::limits::{CONNACK_TIMEOUT, FLAWED_TRIES, PROVEN_TIME, RESUBSCRIBE_INTERVAL, SUBACK_TIMEOUT};
use crate::ingest::receipt::{Epoch, Receipts};
use crate::ingest::topics::Topics;
use crate::ingest::unreleased::Unreleased;
use crate::planted::{Bug, planted};
use crate::settings::{Broker, MqttVersion};

/// Where the session stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Offline,
    Greeting,
    Forgetting,
    Subscribing,
    Online,
    Closing,
}

impl State {
    /// The legal moves.
    fn may_become(self, next: Self) -> bool {
        match (self, next) {
            (Self::Offline, Self::Greeting)
            | (Self::Greeting, Self::Forgetting | Self::Subscribing | Self::Online)
            | (Self::Forgetting, Self::Subscribing | Self::Online)
            | (Self::Subscribing, Self::Online)
            | (_, Self::Offline) => true,
            (from, Self::Closing) => from != Self::Offline,
            (_, Self::Greeting | Self::Forgetting | Self::Subscribing | Self::Online) => false,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Offline => "offline",
            Self::Greeting => "waiting for CONNACK",
            Self::Forgetting => "forgetting the lost session",
            Self::Subscribing => "subscribing",
            Self::Online => "online",
            Self::Closing => "closing",
        }
    }
}

/// What the broker's answers mean for the outside; the task counts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Counts {
    pub(super) connects: u64,
    pub(super) refusals: u64,
    pub(super) unreleased_lost: u64,
}

/// One broker's session, through all its connections.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "independent facts about one session, each read by itself")]
pub(super) struct Session {
    settings: Broker,
    state: State,
    /// Time of the last change of state.
    since: Instant,
    version: Version,
    acker: Acker,
    unreleased: Unreleased,
    topics: Topics,
    subscriptions: Subscriptions,
    asked: Instant,
    /// The broker has lost the session, and that our ids go with it is not durable yet. Outlives a connection: the
    /// next CONNACK would speak of the new session as of the old one.
    must_forget: bool,
    /// A session existed in this process.
    known: bool,
    /// A message had too many user properties, and it was said.
    properties_cut: bool,
    /// Once in the life of the process.
    said_whose_promise: bool,
    /// A message that could not be read: its digest, and on how many connections in a row it came.
    flawed: Option<(u32, u8)>,
    /// In force on this connection; `None` = off.
    keepalive: Option<Duration>,
    heard: Instant,
    spoke: Instant,
    reading: bool,
    counts: Counts,
    /// What the last read brought, to be handed to the buffer.
    pub(super) batch: Batch,
    /// Bytes to be sent.
    pub(super) out: BytesMut,
}

impl Session {
    pub(super) fn new(settings: Broker, stored: StoredSession, topics: Topics, now: Instant) -> Self {
        Self {
            state: State::Offline,
            since: now,
            version: Version::new(settings.version),
            acker: Acker::new(Epoch::next(), settings.version),
            unreleased: Unreleased::inherited(stored.packet_ids),
            topics,
            subscriptions: Subscriptions::new(&settings.name, settings.subscribe.clone()),
            asked: now,
            must_forget: false,
            known: false,
            properties_cut: false,
            said_whose_promise: false,
            flawed: None,
            keepalive: None,
            heard: now,
            spoke: now,
            reading: true,
            counts: Counts::default(),
            batch: Batch::default(),
            out: BytesMut::new(),
            settings,
        }
    }

    /// With the filters that the buffer remembers of earlier runs.
    pub(super) fn with_filters(mut self, filters: Vec<String>) -> Self {
        self.subscriptions.remember(filters);
        self
    }

    /// What the buffer shall remember or forget of filters, since the last call.
    pub(super) fn take_notes(&mut self) -> Vec<(Arc<str>, IdChange)> {
        self.subscriptions.take_notes()
    }

    pub(super) fn settings(&self) -> &Broker {
        &self.settings
    }

    pub(super) fn version(&self) -> MqttVersion {
        self.version.current()
    }

    pub(super) fn is_online(&self) -> bool {
        self.state == State::Online
    }

    /// Nothing of this connection can be durable yet.
    pub(super) fn is_greeting(&self) -> bool {
        self.state == State::Greeting
    }

    /// What was counted since the last call.
    pub(super) fn take_counts(&mut self) -> Counts {
        std::mem::take(&mut self.counts)
    }

    /// The connection has been well long enough for the next failure to be a new one.
    pub(super) fn proven(&self, now: Instant) -> bool {
        self.state == State::Online && now.saturating_duration_since(self.since) >= PROVEN_TIME
    }

    /// There is a connection: greets the broker.
    pub(super) fn connected(&mut self, now: Instant) -> Result<(), Close> {
        let version = self.version.for_connection(now);
        self.acker = Acker::new(Epoch::next(), version);
        self.out.clear();
        self.heard = now;
        self.spoke = now;
        self.reading = true;
        self.go(State::Greeting, now);
        encode::connect(
            &mut self.out,
            version,
            &Hello {
                client_id: &self.settings.client_id,
                keepalive_s: whole_seconds(self.settings.keepalive, u16::MAX),
                session_expiry_s: whole_seconds(self.settings.session_expiry, u32::MAX),
                receive_maximum: self.settings.receive_maximum,
                max_packet_bytes: self.settings.max_packet_bytes,
                username: self.settings.username.as_deref(),
                password: self.settings.password.as_ref(),
            },
        )?;
        Ok(())
    }

    /// Bytes came. Takes every whole packet off the front of `inbox`; the work for the buffer is in [`Session::batch`]
    /// then, also after an error: it holds what came before the offending packet.
    pub(super) fn received(&mut self, now: Instant, arrived: Moment, inbox: &mut BytesMut) -> Result<(), Close> {
        self.heard = now;
        let version = self.version();
        let max_packet_bytes = self.settings.max_packet_bytes;
        loop {
            match codec::decode_or_look(version, inbox, max_packet_bytes) {
                Ok(Some(packet)) => self.packet(now, arrived, packet)?,
                Ok(None) => return Ok(()),
                Err((error, Some(flawed))) if self.is_hopeless(&flawed) => self.give_up(arrived, &error, flawed),
                Err((error, _)) => return Err(Close::Undecodable { error, version }),
            }
        }
    }

    /// The same message that cannot be read has come on so many connections that it will come on the next one, too.
    fn is_hopeless(&mut self, flawed: &Flawed) -> bool {
        let digest = flawed.digest();
        let times = match self.flawed {
            // More often than is told apart is as good as for ever.
            Some((known, times)) if known == digest => times.saturating_add(1),
            Some(_) | None => 1,
        };
        self.flawed = Some((digest, times));
        times >= FLAWED_TRIES && !planted(Bug::FlawedBlocks)
    }

    /// Acknowledged and put aside with its bytes: else nothing behind it would ever come.
    fn give_up(&mut self, arrived: Moment, error: &DecodeError, flawed: Flawed) {
        warn!(
            broker = self.settings.name,
            topic = flawed.topic,
            packet_id = flawed.packet_id,
            tries = FLAWED_TRIES,
            "the broker sends a message again and again that the agent cannot read ({error}): the agent acknowledges \
             it and keeps its bytes as a dead letter"
        );
        self.flawed = None;
        let why = format!("the broker sent what is not MQTT: {error}; the payload is the bytes after the fixed header");
        self.batch.flawed(self.acker.epoch(), flawed, &why, arrived, &mut self.topics);
    }

    /// The buffer has committed what these receipts came with (custody rule 1).
    pub(super) fn durable(&mut self, now: Instant, durable: Durable<Receipts>) -> Result<u64, Close> {
        let acknowledged = self.acker.acknowledge(durable, &mut self.out);
        self.committed(now, acknowledged)
    }

    /// The time. Call it at least every second.
    pub(super) fn tick(&mut self, now: Instant) -> Result<(), Close> {
        let in_state = now.saturating_duration_since(self.since);
        match self.state {
            State::Offline | State::Closing => return Ok(()),
            State::Greeting => {
                let late = in_state >= CONNACK_TIMEOUT;
                return if late { Err(BrokerFault::NoConnAck(CONNACK_TIMEOUT.as_secs()).into()) } else { Ok(()) };
            }
            State::Subscribing if in_state >= SUBACK_TIMEOUT => {
                return Err(BrokerFault::NoSubAck(SUBACK_TIMEOUT.as_secs()).into());
            }
            State::Online if self.subscriptions.incomplete() => self.ask_again(now)?,
            State::Forgetting | State::Subscribing | State::Online => {}
        }
        self.keep_alive(now)
    }

    /// Bytes of [`Session::out`] went out.
    pub(super) fn sent(&mut self, now: Instant) {
        self.spoke = now;
    }

    /// The socket is read, or is not for want of room. The broker cannot be heard while nobody listens.
    pub(super) fn reading(&mut self, now: Instant, reading: bool) {
        if reading && !self.reading {
            self.heard = now;
        }
        self.reading = reading;
    }

    /// No more packets are taken; outstanding commits are still answered.
    pub(super) fn close(&mut self, now: Instant) {
        if self.state != State::Offline {
            self.go(State::Closing, now);
        }
    }

    /// Says goodbye, as far as the version can.
    pub(super) fn disconnect(&mut self, code: u8) {
        let version = self.version();
        // 3.1.1 knows only the normal one. Without it the broker publishes a will; we have none.
        if version == MqttVersion::V5 || code == reason::SUCCESS {
            encode::disconnect(&mut self.out, version, code);
        }
    }

    /// The connection is over. What was not handed to the buffer will be sent again.
    pub(super) fn lost(&mut self, now: Instant, why: &Close) {
        if self.state == State::Greeting && matches!(why, Close::Closed | Close::Broke(_)) {
            self.version.closed_without_a_word();
        }
        self.batch.abandon(&mut self.unreleased);
        self.out = BytesMut::new();
        self.subscriptions.disconnected();
        self.go(State::Offline, now);
    }

    fn packet(&mut self, now: Instant, arrived: Moment, packet: Packet) -> Result<(), Close> {
        if self.state == State::Greeting {
            let Packet::ConnAck(ack) = packet else { return Err(self.unexpected(&packet)) };
            return self.greeted(now, ack);
        }
        match packet {
            Packet::Publish(publish) if publish.alias.is_some() => {
                Err(Close::Undecodable { error: DecodeError::TopicAlias, version: self.version() })
            }
            Packet::Publish(publish) => {
                self.see_properties(&publish);
                let epoch = self.acker.epoch();
                self.batch.publish(epoch, publish, arrived, &mut self.topics, &mut self.unreleased);
                Ok(())
            }
            Packet::PubRel(Ack { packet_id, .. }) => {
                self.batch.release(self.acker.epoch(), packet_id, &mut self.unreleased);
                Ok(())
            }
            Packet::SubAck { packet_id, codes } => self.subscribed(now, packet_id, &codes),
            Packet::UnsubAck { packet_id } => {
                self.subscriptions.left(packet_id).map_err(|Stray| self.unexpected(&packet))
            }
            Packet::PingResp => Ok(()),
            Packet::Disconnect(told) if self.version() == MqttVersion::V5 => {
                Err(Close::Disconnected { code: told.reason, words: told.reason_string })
            }
            Packet::Connect(_)
            | Packet::ConnAck(_)
            | Packet::PubAck(_)
            | Packet::PubRec(_)
            | Packet::PubComp(_)
            | Packet::Subscribe(_)
            | Packet::Unsubscribe(_)
            | Packet::PingReq
            | Packet::Disconnect(_) => Err(self.unexpected(&packet)),
        }
    }

    /// Refusing would not help: the broker would send it again for ever. So the event is kept with the first of its
    /// user properties, and it is said once in the life of the link.
    fn see_properties(&mut self, publish: &Publish) {
        if publish.properties_cut > 0 && !std::mem::replace(&mut self.properties_cut, true) {
            warn!(
                broker = self.settings.name,
                topic = publish.topic(),
                cut = publish.properties_cut,
                limit = MAX_USER_PROPERTIES,
                "a message has more user properties than the limit: the agent keeps only the first, in this message \
                 and in later ones"
            );
        }
    }

    fn unexpected(&self, packet: &Packet) -> Close {
        Close::Unexpected { packet: packet.name(), state: self.state.name() }
    }

    fn greeted(&mut self, now: Instant, ack: ConnAck) -> Result<(), Close> {
        if ack.reason != reason::SUCCESS {
            return Err(self.refused(ack));
        }
        self.version.accepted(now);
        self.counts.connects += 1;
        let keepalive_s = ack.server_keepalive_s.unwrap_or(whole_seconds(self.settings.keepalive, u16::MAX));
        self.keepalive = (keepalive_s > 0).then(|| Duration::from_secs(u64::from(keepalive_s)));
        self.see_expiry(&ack);
        if !ack.session_present {
            self.session_gone();
        }
        if self.must_forget {
            let lost = u64::try_from(self.unreleased.len()).unwrap_or(u64::MAX);
            self.counts.unreleased_lost += lost;
            self.unreleased.clear();
            // Our side has no expiry of its own: the broker decides whether the session still exists.
            self.batch.session(self.acker.epoch(), [IdChange::Forget, IdChange::Keep(u32::MAX)]);
            self.go(State::Forgetting, now);
            return Ok(());
        }
        if !self.known {
            self.batch.session(self.acker.epoch(), [IdChange::Keep(u32::MAX)]);
        }
        self.subscribe(now)
    }

    fn refused(&mut self, ack: ConnAck) -> Close {
        let refused = self.version();
        if matches!(ack.reason, 1 | reason::UNSUPPORTED_PROTOCOL_VERSION) && self.version.refused() {
            return BrokerFault::OtherVersion { refused, next: self.version() }.into();
        }
        self.counts.refusals += 1;
        BrokerFault::Refused { code: ack.reason, words: ack.reason_string }.into()
    }

    fn see_expiry(&self, ack: &ConnAck) {
        let asked = whole_seconds(self.settings.session_expiry, u32::MAX);
        if let Some(granted) = ack.session_expiry_s.filter(|granted| *granted < asked) {
            info!(
                broker = self.settings.name,
                asked_s = asked,
                granted_s = granted,
                "the broker keeps this gateway's session for a shorter time than session_expiry"
            );
        }
    }

    fn session_gone(&mut self) {
        if self.known {
            warn!(
                broker = self.settings.name,
                unreleased = self.unreleased.len(),
                "the broker has lost this gateway's session and the readings in it; the agent subscribes again"
            );
        } else if self.unreleased.is_empty() {
            debug!(broker = self.settings.name, "the broker has made a new session");
        } else {
            let unreleased = self.unreleased.len();
            warn!(
                broker = self.settings.name,
                unreleased, "the broker has lost this gateway's session of the last run and the readings in it"
            );
        }
        self.must_forget = true;
        if !(planted(Bug::NoResubscribe) && self.known) {
            self.subscriptions.lost();
        }
    }

    fn committed(&mut self, now: Instant, acknowledged: Acknowledged) -> Result<u64, Close> {
        if acknowledged.proceed && self.state == State::Forgetting {
            self.must_forget = false;
            self.subscribe(now)?;
        }
        Ok(acknowledged.packets)
    }

    fn subscribe(&mut self, now: Instant) -> Result<(), Close> {
        self.known = true;
        self.subscriptions.leave(self.version.current(), &mut self.out);
        if !self.subscriptions.incomplete() {
            self.go(State::Online, now);
            return Ok(());
        }
        self.asked = now;
        self.subscriptions.ask(self.version.current(), &mut self.out)?;
        self.go(State::Subscribing, now);
        Ok(())
    }

    fn ask_again(&mut self, now: Instant) -> Result<(), Close> {
        if now.saturating_duration_since(self.asked) < RESUBSCRIBE_INTERVAL || self.subscriptions.waiting() {
            return Ok(());
        }
        self.asked = now;
        self.subscriptions.ask(self.version.current(), &mut self.out)?;
        Ok(())
    }

    fn subscribed(&mut self, now: Instant, packet_id: u16, codes: &[u8]) -> Result<(), Close> {
        let refused = self.subscriptions.answer(packet_id, codes).map_err(|Stray| BrokerFault::StraySubAck)?;
        self.counts.refusals += refused;
        if self.state == State::Subscribing && !self.subscriptions.waiting() {
            self.say_whose_promise_it_is();
            self.go(State::Online, now);
        }
        Ok(())
    }

    /// While we are away, or do not read, it is the broker that holds the readings, and its settings that decide how many.
    fn say_whose_promise_it_is(&mut self) {
        let waits = self.settings.subscribe.iter().any(|subscription| subscription.qos != Qos::AtMostOnce);
        if waits && !std::mem::replace(&mut self.said_whose_promise, true) {
            info!(
                broker = self.settings.name,
                "while the agent does not run, or its buffer is full, readings wait at the broker, within the \
                 broker's own limits: mosquitto keeps 1000 by default and drops later ones; docs/configuring.md, \"A \
                 broker between\", has the lines that change it"
            );
        }
    }

    /// PINGREQ after three quarters of the keepalive, so that the broker hears us within the whole of it.
    fn keep_alive(&mut self, now: Instant) -> Result<(), Close> {
        let Some(keepalive) = self.keepalive else { return Ok(()) };
        let unheard = now.saturating_duration_since(self.heard);
        if self.reading && unheard >= keepalive.mul_f64(1.5) {
            return Err(Close::Silent);
        }
        let due = keepalive.mul_f64(0.75);
        let quiet = now.saturating_duration_since(self.spoke);
        // Also when we have sent all the time but heard nothing: only an answer tells a quiet broker from a dead one.
        if quiet >= due || (unheard >= due && quiet >= keepalive.mul_f64(0.25)) {
            encode::pingreq(&mut self.out);
            // Until the bytes have gone out: one is enough.
            self.spoke = now;
        }
        Ok(())
    }

    fn go(&mut self, next: State, now: Instant) {
        debug_assert!(self.state.may_become(next), "{:?} to {next:?}", self.state);
        if self.state != next {
            self.state = next;
            self.since = now;
        }
    }
}

/// Seconds for the wire, rounded up to at least 1 so that a fraction does not turn into 0, which means something else.
fn whole_seconds<T: TryFrom<u64> + Copy>(duration: Duration, most: T) -> T {
    let seconds = duration.as_secs().max(u64::from(!duration.is_zero()));
    T::try_from(seconds).unwrap_or(most)
}

#[cfg(test)]
impl Session {
    /// As [`Session::durable`], for tests that have no buffer to prove anything.
    pub(super) fn durable_unproven(&mut self, now: Instant, receipts: Receipts) -> Result<u64, Close> {
        let acknowledged = self.acker.acknowledge_unproven(receipts, &mut self.out);
        self.committed(now, acknowledged)
    }

    pub(super) fn state(&self) -> State {
        self.state
    }
}
