//! A publisher's session without sockets: what is in flight, what is acknowledged, what must be sent again; by the letter
//! of the standard (MQTT 5, 4.3 and 4.4).
//!
//! ```text
//!            next()                    PUBACK (QoS 1)
//!   (none) ─────────▶ Offered ───────────────────────────────▶ (none)
//!                        │  PUBREC (QoS 2)                        ▲
//!                        └────────────────▶ Released ─────────────┘
//!                                           (PUBREL sent)  PUBCOMP
//! ```
//!
//! After a reconnect everything in flight is sent again in the order of its first sending, before anything new:
//! `Offered` as PUBLISH with DUP, `Released` as PUBREL. When the other side has forgotten the session, it has forgotten what
//! it had received, too: all is published anew without DUP, and who forgot without a reason takes it twice.

use std::collections::VecDeque;
use std::time::Instant;

use crate::plan::Plan;
use crate::publisher::{Log, Stamp};
use crate::wire::{self, Packet};

/// A packet about a reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Say {
    /// PUBLISH of reading `n`.
    Publish { id: u16, n: u64, dup: bool },
    /// PUBREL.
    Release { id: u16 },
}

/// A reading on its way.
#[derive(Debug, Clone, Copy)]
struct Flight {
    id: u16,
    n: u64,
    step: Step,
    since: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Offered,
    Released,
}

/// One publisher's session.
#[derive(Debug)]
pub(crate) struct Session {
    log: Log,
    flights: VecDeque<Flight>,
    /// By packet id: is it in use?
    busy: Vec<bool>,
    last_id: u16,
    /// The plan's, or what the other side bears.
    window: usize,
    /// Answered to the end, refused or not.
    completed: u64,
}

impl Session {
    pub(crate) fn new(plan: Plan) -> Self {
        let window = plan.window;
        let busy = vec![false; 65_536];
        Self { log: Log::new(plan), flights: VecDeque::new(), busy, last_id: 0, window, completed: 0 }
    }

    pub(crate) fn plan(&self) -> &Plan {
        &self.log.plan
    }

    pub(crate) fn published(&self) -> u64 {
        self.log.published
    }

    /// Readings that were answered with success, at QoS 2 to the end.
    pub(crate) fn completed(&self) -> u64 {
        self.completed
    }

    pub(crate) fn into_log(self) -> Log {
        self.log
    }

    pub(crate) fn nothing_in_flight(&self) -> bool {
        self.flights.is_empty()
    }

    pub(crate) fn is_full(&self) -> bool {
        self.flights.len() >= self.window
    }

    /// A connection stands: what must be sent before anything new.
    pub(crate) fn resume(&mut self, session_present: bool, receive_maximum: u16) -> Vec<Say> {
        self.window = self.log.plan.window.min(usize::from(receive_maximum));
        self.log.connects += 1;
        if self.log.connects > 1 && !session_present {
            self.log.sessions_lost += 1;
        }
        let mut say = Vec::with_capacity(self.flights.len());
        for Flight { id, n, step, .. } in &mut self.flights {
            if *step == Step::Released && session_present {
                say.push(Say::Release { id: *id });
            } else {
                *step = Step::Offered;
                self.log.sent_again.insert(*n);
                say.push(Say::Publish { id: *id, n: *n, dup: session_present });
            }
        }
        say
    }

    /// The next new reading, unless the window is full.
    pub(crate) fn next(&mut self, now: Instant) -> Option<Say> {
        if self.is_full() {
            return None;
        }
        let n = self.log.published;
        let id = if self.log.plan.qos > 0 { self.free_id() } else { 0 };
        if self.log.plan.qos > 0 {
            self.flights.push_back(Flight { id, n, step: Step::Offered, since: now });
        }
        self.log.published += 1;
        self.log.acknowledged.push(false);
        Some(Say::Publish { id, n, dup: false })
    }

    /// A packet came: what must be answered.
    pub(crate) fn hear(&mut self, packet: &Packet, now: Instant) -> Option<Say> {
        match (self.log.plan.qos, packet) {
            (1, Packet::PubAck { id, reason }) => self.settle(*id, Step::Offered, *reason, now),
            (2, Packet::PubRec { id, reason }) if *reason >= 0x80 => self.settle(*id, Step::Offered, *reason, now),
            (2, Packet::PubRec { id, .. }) => return self.release(*id),
            (2, Packet::PubComp { id, .. }) => self.settle(*id, Step::Released, 0, now),
            (_, Packet::PubAck { .. } | Packet::PubRec { .. } | Packet::PubComp { .. }) => self.log.stray_answers += 1,
            _ => {}
        }
        None
    }

    /// The other side has taken custody, and wants to hear that it may forget the id.
    fn release(&mut self, id: u16) -> Option<Say> {
        let Some(flight) = self.flights.iter_mut().find(|flight| flight.id == id) else {
            self.log.stray_answers += 1;
            return None;
        };
        flight.step = Step::Released;
        let n = flight.n;
        self.log.custody(n);
        Some(Say::Release { id })
    }

    fn settle(&mut self, id: u16, step: Step, reason: u8, now: Instant) {
        let place = self.flights.iter().position(|flight| flight.id == id && flight.step == step);
        let Some(flight) = place.and_then(|place| self.flights.remove(place)) else {
            self.log.stray_answers += 1;
            return;
        };
        if let Some(busy) = self.busy.get_mut(usize::from(id)) {
            *busy = false;
        }
        if reason >= 0x80 {
            self.log.refused += 1;
            return;
        }
        self.completed += 1;
        self.log.custody(flight.n);
        if self.log.plan.stamped {
            self.log.stamps.push(Stamp { n: flight.n, written: flight.since, answered: now });
        }
    }

    /// The next id that is not in flight; there is one, because the window is far smaller than the 65,535 ids.
    fn free_id(&mut self) -> u16 {
        loop {
            self.last_id = self.last_id.checked_add(1).unwrap_or(1);
            if let Some(busy) = self.busy.get_mut(usize::from(self.last_id)).filter(|busy| !**busy) {
                *busy = true;
                return self.last_id;
            }
        }
    }

    /// Appends the packet.
    pub(crate) fn write(&self, say: Say, out: &mut Vec<u8>) {
        let plan = &self.log.plan;
        match say {
            Say::Publish { id, n, dup } => wire::write_publish(&plan.message(n), id, dup, plan.version, out),
            Say::Release { id } => Packet::PubRel { id, reason: 0 }.write(plan.version, out),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const NO_LIMIT: u16 = u16::MAX;

    fn session(qos: u8, published: u64) -> Session {
        let mut session = Session::new(Plan::new("p", "t", qos));
        session.resume(false, NO_LIMIT);
        for n in 0..published {
            assert_eq!(next(&mut session), Some(Say::Publish { id: n as u16 + 1, n, dup: false }));
        }
        session
    }

    fn next(session: &mut Session) -> Option<Say> {
        session.next(Instant::now())
    }

    fn hear(session: &mut Session, packet: &Packet) -> Option<Say> {
        session.hear(packet, Instant::now())
    }

    fn ack(id: u16) -> Packet {
        Packet::PubAck { id, reason: 0 }
    }

    fn rec(id: u16) -> Packet {
        Packet::PubRec { id, reason: 0 }
    }

    fn comp(id: u16) -> Packet {
        Packet::PubComp { id, reason: 0 }
    }

    #[test]
    fn a_reading_counts_as_acknowledged_with_its_puback_and_not_before() {
        let mut session = session(1, 2);
        assert_eq!(hear(&mut session, &ack(2)), None);
        assert_eq!(session.completed(), 1);
        assert_eq!(session.into_log().acknowledged, [false, true]);
    }

    #[test]
    fn a_qos_2_reading_is_in_custody_with_its_pubrec_and_in_flight_until_its_pubcomp() {
        let mut session = session(2, 1);
        assert_eq!(hear(&mut session, &rec(1)), Some(Say::Release { id: 1 }));
        assert_eq!((session.log.acknowledged.as_slice(), session.completed()), (&[true][..], 0));
        hear(&mut session, &comp(1));
        assert!(session.nothing_in_flight());
        assert_eq!(session.completed(), 1);
    }

    #[test]
    fn after_a_reconnect_each_reading_goes_on_from_its_own_step_in_the_old_order() {
        let mut session = session(2, 3);
        hear(&mut session, &rec(2));
        let again = session.resume(true, NO_LIMIT);
        let expected =
            [Say::Publish { id: 1, n: 0, dup: true }, Say::Release { id: 2 }, Say::Publish { id: 3, n: 2, dup: true }];
        assert_eq!(again, expected);
        let log = session.into_log();
        assert_eq!((log.sent_again, log.sessions_lost), (BTreeSet::from([0, 2]), 0));
    }

    #[test]
    fn the_old_order_stays_when_packet_ids_have_wrapped() {
        let mut session = session(1, 0);
        session.last_id = u16::MAX - 1;
        next(&mut session);
        next(&mut session);
        let expected = [Say::Publish { id: u16::MAX, n: 0, dup: true }, Say::Publish { id: 1, n: 1, dup: true }];
        assert_eq!(session.resume(true, NO_LIMIT), expected);
    }

    #[test]
    fn a_session_that_the_relay_forgot_is_published_anew() {
        let mut session = session(2, 2);
        hear(&mut session, &rec(1));
        let expected = [Say::Publish { id: 1, n: 0, dup: false }, Say::Publish { id: 2, n: 1, dup: false }];
        assert_eq!(session.resume(false, NO_LIMIT), expected);
        let log = session.into_log();
        assert_eq!((log.acknowledged, log.sessions_lost), (vec![true, false], 1));
    }

    #[test]
    fn nothing_new_is_published_beyond_what_the_relay_takes() {
        let mut session = session(1, 0);
        session.resume(true, 2);
        assert!(next(&mut session).is_some() && next(&mut session).is_some());
        assert_eq!(next(&mut session), None);
        hear(&mut session, &ack(1));
        assert_eq!(next(&mut session), Some(Say::Publish { id: 3, n: 2, dup: false }));
    }

    #[test]
    fn an_id_in_flight_is_not_given_out_again() {
        let mut session = session(1, 1);
        session.last_id = u16::MAX;
        assert_eq!(next(&mut session), Some(Say::Publish { id: 2, n: 1, dup: false }));
    }

    #[test]
    fn an_acknowledgement_of_nothing_is_on_the_books() {
        let mut session = session(1, 1);
        for packet in [ack(9), comp(1), rec(1)] {
            hear(&mut session, &packet);
        }
        let log = session.into_log();
        assert_eq!((log.stray_answers, log.acknowledged), (3, vec![false]));
    }

    #[test]
    fn a_refused_reading_is_not_acknowledged() {
        let mut session = session(2, 1);
        hear(&mut session, &Packet::PubRec { id: 1, reason: 0x97 });
        assert!(session.nothing_in_flight());
        let log = session.into_log();
        assert_eq!((log.refused, log.acknowledged), (1, vec![false]));
    }
}
