//! One client's session on one connection, from its CONNACK to its end. Bytes and time in; bytes and a batch of work
//! for the buffer out. It owns no socket, so tests can feed it anything in any order.
//!
//! ```text
//!            the session's changes are queued             durable: CONNACK leaves
//!   (admitted) ───────────────────────────▶ Settling ───────────────────────────▶ Open
//!        │        nothing to change                                            ▲   │ DISCONNECT, lost, silent,
//!        └─────────────────────────────────────────────────────────────────────┘   │ broke the rules, taken over,
//!                                     CONNACK leaves at once                       ▼ we stop (from Settling too)
//!                                                                                 Over
//! ```
//!
//! * In `Settling` the bytes of the client wait undecoded: a stale packet id must not swallow a new message.
//! * In `Open` every read is decoded to its end and gives one batch. PUBACK, PUBREC and PUBCOMP leave only through the
//!   [`Acker`], for what the buffer has made durable (custody rule 1).
//! * In `Over` nothing is decoded any more; [`Session::into_last`] says what is left to be written: the will, and
//!   the end of the session if it was not to outlive its connection.
//! * A client that has gone while it was not read ([`Session::look_through`]) gets its due: what it had sent is looked
//!   through for its goodbye. Nothing of QoS 1 and 2 is stored, because nobody could be told; it is the client's to send
//!   again.
//!
//! A session that ends with its connection keeps its QoS 2 ids in memory only: nobody can ask for them later.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Buf, BytesMut};

use super::aliases::Aliases;
use super::handshake::{Admission, write_refusal};
use super::memory::Memory;
use super::policy::{ListenerPolicy, most_silence};
use super::registry::{Lease, Now};
use super::remarks::{Remark, Remarks};
use crate::buffer::{Durable, IdChange};
use crate::event::{Event, MAX_USER_PROPERTIES, Qos};
use crate::ingest::acker::{Acker, Acknowledged};
use crate::ingest::batch::Batch;
use crate::ingest::close::{Close, Peer};
use crate::ingest::codec::encode::{self, Grants};
use crate::ingest::codec::{self, DecodeError, Disconnect, Packet, Publish, Subscribe, SubscribeFilter, Will, reason};
use crate::ingest::limits::{
    BEGINNING_BYTES, KEPT_OF_OVERSIZED_BYTES, MAX_UNSENT_BYTES, SETTLING_TIMEOUT, SIGN_OF_LIFE_BYTES,
};
use crate::ingest::receipt::{Epoch, Receipts};
use crate::ingest::topics::Topics;
use crate::settings::MqttVersion;

/// See the drawing above.
#[derive(Debug)]
enum State {
    Settling,
    Open,
    Over(Close),
}

/// The session on its connection.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "independent facts about one session, each read by itself")]
pub(super) struct Session {
    state: State,
    /// It was open once: what it began with is durable.
    settled: bool,
    /// The buffer held something under the session's key before this connection.
    was_on_disk: bool,
    version: MqttVersion,
    policy: Arc<ListenerPolicy>,
    acker: Acker,
    topics: Topics,
    memory: Memory,
    present: bool,
    /// The buffer was told, if the session is on disk at all.
    granted_expiry_s: u32,
    /// A DISCONNECT may have changed it.
    expiry_s: u32,
    will: Option<Will>,
    grants: Grants,
    keepalive: Duration,
    /// When the client last gave a sign of life.
    heard: Instant,
    /// Bytes since then.
    since_heard: usize,
    /// Whole packets so far.
    packets: u64,
    /// The client is not read for a reason that is ours: its silence does not count.
    held: bool,
    aliases: Aliases,
    /// A message that is too large, as much as is kept of it, and how many of its bytes are still to be passed over.
    oversized: Option<(Publish, usize)>,
    remarks: Remarks,
    input: BytesMut,
    /// To be written to the socket.
    pub(super) output: BytesMut,
    /// To be handed to the buffer.
    pub(super) batch: Batch,
}

/// What is left of a session when its connection is over.
#[derive(Debug)]
pub(super) struct Last {
    pub(super) end: Close,
    pub(super) memory: Memory,
    /// 0: the session has ended too.
    pub(super) expiry_s: u32,
    /// To be published if the client stays away so long.
    pub(super) will: Option<(Will, Duration)>,
    /// To be handed to the buffer before anything of the client's next connection.
    pub(super) changes: Vec<IdChange>,
}

impl Session {
    /// The registry has let the client in. What must be durable before its CONNACK is in the batch.
    pub(super) fn enter(
        admission: Admission,
        lease: Lease,
        policy: Arc<ListenerPolicy>,
        topics: Topics,
        now: Now,
    ) -> Self {
        let Admission { version, expiry_s, keepalive_s, will, will_set_aside, grants, input, .. } = admission;
        let Lease { memory, present } = lease;
        let mut session = Self {
            state: State::Settling,
            settled: false,
            was_on_disk: memory.on_disk,
            version,
            policy,
            acker: Acker::new(Epoch::next(), version),
            topics,
            memory,
            present,
            granted_expiry_s: expiry_s,
            expiry_s,
            will,
            grants,
            keepalive: most_silence(keepalive_s),
            heard: now.instant,
            since_heard: 0,
            packets: 0,
            held: false,
            aliases: Aliases::default(),
            oversized: None,
            remarks: Remarks::default(),
            input,
            output: BytesMut::new(),
            batch: Batch::default(),
        };
        if will_set_aside {
            session.remarks.add(Remark::ServerTopic, 1);
        }
        session.settle(now);
        session
    }

    /// What a read brings.
    pub(super) fn append(&mut self, bytes: &[u8]) {
        self.input.extend_from_slice(bytes);
    }

    /// So many bytes came in.
    pub(super) fn received(&mut self, bytes: usize, now: Now) {
        self.since_heard += bytes;
        if self.since_heard >= SIGN_OF_LIFE_BYTES {
            self.hear(now);
        }
        self.decode(now);
    }

    /// The client has closed its side while it was not read, and this is more of what it had sent before. It is looked
    /// through for a goodbye, which decides about the will. Messages of QoS 1 and 2 were not acknowledged and cannot be any
    /// more; those of QoS 0 are returned, to be stored or counted.
    pub(super) fn look_through(&mut self, bytes: &[u8], now: Now) -> Batch {
        let mut unasked = Batch::default();
        self.input.extend_from_slice(bytes);
        while !self.is_over() {
            match self.next_packet() {
                Ok(Some(Packet::Publish(publish))) => {
                    // An alias that is named beside a message that cannot be stored any more is good for the next.
                    if let Some(publish) = self.acceptable(publish)
                        && publish.qos == Qos::AtMostOnce
                        && !is_server_topic(&publish)
                    {
                        let (epoch, ids) = (self.acker.epoch(), &mut self.memory.unreleased);
                        unasked.publish(epoch, publish, now.moment(), &mut self.topics, ids);
                    }
                }
                Ok(Some(Packet::Disconnect(disconnect))) => self.disconnect(&disconnect),
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(error) => self.finish(Close::Undecodable { error, version: self.version }),
            }
        }
        unasked
    }

    /// The buffer has made work of this connection durable. Returns how many acknowledgements were written.
    pub(super) fn durable(&mut self, durable: Durable<Receipts>, now: Now) -> u64 {
        if self.is_over() {
            // Nothing may follow a DISCONNECT; the client will send again what was not acknowledged.
            return 0;
        }
        let done = self.acker.acknowledge(durable, &mut self.output);
        self.acknowledged(done, now);
        done.packets
    }

    /// The connection ends for a reason outside of it. The first end counts.
    pub(super) fn finish(&mut self, end: Close) {
        if matches!(self.state, State::Over(_)) {
            return;
        }
        match (&self.state, self.version, end.reason(Peer::Client)) {
            (State::Settling, version, _) => write_refusal(&mut self.output, version, &end),
            (_, MqttVersion::V5, Some(code)) => encode::disconnect(&mut self.output, MqttVersion::V5, code),
            // A server of 3.1.1 has no word for it and just closes.
            (_, MqttVersion::V311, _) | (_, _, None) => {}
        }
        self.state = State::Over(end);
    }

    /// The deadline has passed.
    pub(super) fn timed_out(&mut self, now: Instant) {
        if self.deadline().is_some_and(|deadline| deadline <= now) {
            let settling = matches!(self.state, State::Settling);
            self.finish(if settling { Close::no_room() } else { Close::Silent });
        }
    }

    /// When the client's silence becomes too long, or its wait for CONNACK; `None` while it is we who do not listen.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match self.state {
            State::Open if !self.held => self.heard.checked_add(self.keepalive),
            State::Settling => self.heard.checked_add(SETTLING_TIMEOUT),
            State::Open | State::Over(_) => None,
        }
    }

    /// The connection stops reading for want of room, or goes on.
    pub(super) fn hold(&mut self, held: bool, now: Instant) {
        if self.held && !held {
            self.heard = now;
        }
        self.held = held;
    }

    /// A large packet is arriving and was given memory: takes it at once, instead of twice as much bit by bit.
    pub(super) fn expect(&mut self, announced: usize) {
        self.input.reserve(announced.saturating_sub(self.input.len()));
    }

    /// May the socket be read? Not before CONNACK, and not while the client leaves our answers lying.
    pub(super) fn wants_bytes(&self) -> bool {
        matches!(self.state, State::Open) && self.output.len() < MAX_UNSENT_BYTES
    }

    pub(super) fn is_over(&self) -> bool {
        matches!(self.state, State::Over(_))
    }

    /// Why it is over, if it is.
    pub(super) fn ending(&self) -> Option<&Close> {
        match &self.state {
            State::Over(end) => Some(end),
            State::Settling | State::Open => None,
        }
    }

    /// Which packet is arriving.
    pub(super) fn packet_number(&self) -> u64 {
        self.packets
    }

    /// Bytes of a packet that is still arriving.
    pub(super) fn unfinished_bytes(&self) -> usize {
        self.input.len()
    }

    /// How many there will be.
    pub(super) fn announced_bytes(&self) -> usize {
        codec::announced(&self.input).unwrap_or(0).max(self.input.len())
    }

    /// What is worth a remark since the last question.
    pub(super) fn take_remarks(&mut self) -> Vec<(Remark, u64)> {
        self.remarks.take()
    }

    /// The end: what is left to be done. A batch that was not handed to the buffer is given up: its messages are not
    /// acknowledged, so the client still has them.
    pub(super) fn into_last(mut self) -> Last {
        // What the session begins with never got to the buffer, for want of room.
        let unsettled = !self.settled && !self.batch.is_empty();
        self.batch.abandon(&mut self.memory.unreleased);
        let end = match self.state {
            State::Over(end) => end,
            State::Settling | State::Open => Close::Closed,
        };
        let expiry_s = self.expiry_s;
        let will = self.will.take().filter(|_| end.wants_will());
        let will = will.map(|will| {
            let delay_s = will.delay_s.min(expiry_s);
            (will, Duration::from_secs(delay_s.into()))
        });
        let mut changes = Vec::new();
        if unsettled {
            // Its client was told nothing. What was on disk is there still: old packet ids, which must not swallow new
            // messages. Who holds the session next, or the listener when it stops, will see to it.
            self.memory.on_disk = self.was_on_disk;
            self.memory.stale = self.was_on_disk && (!self.present || expiry_s == 0);
        } else if expiry_s == 0 && self.memory.on_disk {
            changes.push(IdChange::Forget);
            self.memory.on_disk = false;
        } else if expiry_s != self.granted_expiry_s {
            changes.push(IdChange::Keep(expiry_s));
        }
        let Self { memory, .. } = self;
        // A new session that is not on disk has not begun.
        let expiry_s = if unsettled && !memory.on_disk { 0 } else { expiry_s };
        Last { end, memory, expiry_s, will, changes }
    }

    #[cfg(test)]
    pub(super) fn durable_unproven(&mut self, receipts: Receipts, now: Now) {
        if !self.is_over() {
            let done = self.acker.acknowledge_unproven(receipts, &mut self.output);
            self.acknowledged(done, now);
        }
    }

    #[cfg(test)]
    pub(super) fn grant_subscriptions(&mut self) {
        self.policy = Arc::new(ListenerPolicy { subscriptions: true, ..ListenerPolicy::clone(&self.policy) });
    }

    #[cfg(test)]
    pub(super) fn input_capacity(&self) -> usize {
        self.input.capacity()
    }

    fn settle(&mut self, now: Now) {
        let mut changes = Vec::new();
        if self.memory.on_disk && !self.present {
            changes.push(IdChange::Forget);
            self.memory.on_disk = false;
        }
        if self.expiry_s > 0 || self.memory.on_disk {
            // With expiry 0 it says that what is there ends with this connection, should the process not live to
            // forget it.
            changes.push(IdChange::Keep(self.expiry_s));
            self.memory.on_disk = true;
        }
        if changes.is_empty() {
            return self.open(now);
        }
        self.batch.session(self.acker.epoch(), changes);
    }

    fn acknowledged(&mut self, done: Acknowledged, now: Now) {
        if done.proceed && matches!(self.state, State::Settling) {
            self.open(now);
        }
    }

    fn open(&mut self, now: Now) {
        self.settled = true;
        self.state = State::Open;
        self.heard = now.instant;
        let grants = std::mem::take(&mut self.grants);
        if let Err(error) = encode::accept(&mut self.output, self.version, self.present, grants) {
            return self.finish(error.into());
        }
        self.decode(now);
    }

    fn decode(&mut self, now: Now) {
        while matches!(self.state, State::Open) {
            match self.next_packet() {
                Ok(Some(packet)) => {
                    self.packets = self.packets.wrapping_add(1);
                    self.hear(now);
                    self.packet(packet, now);
                }
                Ok(None) => break,
                Err(error) => self.finish(Close::Undecodable { error, version: self.version }),
            }
        }
        if self.input.is_empty() || self.is_over() {
            // The events hold the memory as long as they need it; an idle client has none.
            self.input = BytesMut::new();
        }
        if self.expiry_s == 0 && !self.memory.on_disk {
            self.batch.changes.clear();
        }
    }

    /// The next packet that is there as a whole. Of a message that is too large only the beginning is kept, and it comes when
    /// its last byte has been passed over: a client that keeps its session would send it again at each connection, and
    /// nothing behind it would ever get through.
    fn next_packet(&mut self) -> Result<Option<Packet>, DecodeError> {
        if self.oversized.is_none() {
            let bytes = match codec::decode(self.version, &mut self.input, self.policy.max_packet_bytes) {
                Err(DecodeError::TooLarge { bytes, .. }) if codec::is_publish(&self.input) => bytes,
                decoded => return decoded,
            };
            if self.input.len() < bytes.min(BEGINNING_BYTES) {
                return Ok(None);
            }
            let publish = codec::decode_beginning(self.version, &self.input, KEPT_OF_OVERSIZED_BYTES)?;
            self.oversized = Some((publish, bytes));
        }
        let Some((_, left)) = &mut self.oversized else { return Ok(None) };
        let passed = (*left).min(self.input.len());
        self.input.advance(passed);
        *left -= passed;
        if *left > 0 {
            return Ok(None);
        }
        Ok(self.oversized.take().map(|(publish, _)| Packet::Publish(publish)))
    }

    fn hear(&mut self, now: Now) {
        self.heard = now.instant;
        self.since_heard = 0;
    }

    fn packet(&mut self, packet: Packet, now: Now) {
        match packet {
            Packet::Publish(publish) => self.publish(publish, now),
            Packet::PubRel(ack) => {
                self.batch.release(self.acker.epoch(), ack.packet_id, &mut self.memory.unreleased);
            }
            Packet::PingReq => encode::pingresp(&mut self.output),
            Packet::Subscribe(subscribe) => self.subscribe(&subscribe),
            Packet::Unsubscribe(unsubscribe) => encode::unsuback(
                &mut self.output,
                self.version,
                unsubscribe.packet_id,
                unsubscribe.filters,
                if self.policy.subscriptions { reason::SUCCESS } else { reason::NO_SUBSCRIPTION_EXISTED },
            ),
            Packet::Disconnect(disconnect) => self.disconnect(&disconnect),
            Packet::Connect(_)
            | Packet::ConnAck(_)
            | Packet::PubAck(_)
            | Packet::PubRec(_)
            | Packet::PubComp(_)
            | Packet::SubAck { .. }
            | Packet::UnsubAck { .. }
            | Packet::PingResp => {
                self.finish(Close::Unexpected { packet: packet.name(), state: "connected" });
            }
        }
    }

    /// Whoever subscribes waits for messages that will never come. Granted or refused, it is counted and said.
    fn subscribe(&mut self, subscribe: &Subscribe) {
        let filters = &subscribe.filters;
        let (remark, codes): (_, Vec<u8>) = if self.policy.subscriptions {
            let code = |filter: &SubscribeFilter| {
                if is_filter(&filter.filter) { filter.qos.level() } else { reason::TOPIC_FILTER_INVALID }
            };
            (Remark::Subscribed, filters.iter().map(code).collect())
        } else {
            (Remark::SubscribeRefused, vec![reason::NOT_AUTHORIZED; filters.len()])
        };
        encode::suback(&mut self.output, self.version, subscribe.packet_id, &codes);
        self.remarks.add(remark, codes.len());
    }

    fn publish(&mut self, publish: Publish, now: Now) {
        let Some(publish) = self.acceptable(publish) else { return };
        let epoch = self.acker.epoch();
        if is_server_topic(&publish) {
            self.remarks.add(Remark::ServerTopic, 1);
            return self.batch.refuse(epoch, &publish, reason::NOT_AUTHORIZED);
        }
        if publish.whole_bytes.is_some() {
            self.remarks.add(Remark::TooLarge, 1);
            if self.version == MqttVersion::V5 && publish.qos != Qos::AtMostOnce {
                // It is told that we do not have it.
                return self.batch.refuse(epoch, &publish, reason::QUOTA_EXCEEDED);
            }
        }
        self.batch.publish(epoch, publish, now.moment(), &mut self.topics, &mut self.memory.unreleased);
    }

    /// With its topic, where an alias stands for it. `None`: the connection ends.
    fn acceptable(&mut self, mut publish: Publish) -> Option<Publish> {
        if publish.properties_cut > 0 {
            // Not stored without them: what a client sends arrives as it is or not at all.
            let detail = format!("{} more than {MAX_USER_PROPERTIES}", publish.properties_cut);
            self.finish(Close::broke(reason::QUOTA_EXCEEDED, "the client sent too many user properties", detail));
            return None;
        }
        match self.aliases.resolve(&mut publish) {
            Ok(()) => Some(publish),
            Err(end) => {
                self.finish(end);
                None
            }
        }
    }

    fn disconnect(&mut self, disconnect: &Disconnect) {
        if let Some(asked_s) = disconnect.session_expiry_s {
            if self.expiry_s == 0 && asked_s > 0 {
                let detail = "the DISCONNECT has a session expiry, but the CONNECT had none";
                return self.finish(Close::broke(reason::PROTOCOL_ERROR, "the client broke the MQTT protocol", detail));
            }
            self.expiry_s = asked_s.min(self.policy.max_session_expiry_s);
        }
        self.finish(Close::Disconnected { code: disconnect.reason, words: disconnect.reason_string.clone() });
    }
}

/// Such topics belong to the server; a reading there would match no route that does not name it.
fn is_server_topic(publish: &Publish) -> bool {
    publish.topic().starts_with('$')
}

/// Could it be granted? `#` and `+` stand for whole levels, `#` for the last ones.
fn is_filter(filter: &str) -> bool {
    let mut levels = filter.split('/').rev();
    let is_level = |level: &str| level == "+" || !level.contains(['+', '#']);
    !filter.is_empty() && levels.next().is_some_and(|last| last == "#" || is_level(last)) && levels.all(is_level)
}

/// A will is an event like any other.
pub(super) fn event(will: Will, topics: &mut Topics, now: Now) -> Event {
    let (topic, route) = topics.resolve(&will.topic);
    let Will { payload, qos, retain, properties, sender, .. } = will;
    Event {
        topic,
        payload,
        qos,
        retain,
        dup: false,
        arrived_ms: now.unix_ms,
        clock: now.clock,
        route,
        sender,
        properties,
    }
}
