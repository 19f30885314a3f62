//! A publisher's session without sockets: what is in flight, what is acknowledged, what must be sent again.
//!
//! rumqttc's own client would be the stronger demonstration ("any MQTT client"), and was the first choice. It is unfit
//! for keeping books: version 0.25.1 sends unacknowledged messages again without the DUP flag, in the order of their
//! packet ids and not of their first sending (so that the order on a topic changes once ids have wrapped), forgets
//! them when the session is gone, reconnects without a pause, and names an acknowledged message by packet id only.
//! So this is a small publisher on its codecs, by the letter of the standard (MQTT 5, 4.3 and 4.4):
//!
//! ```text
//!            next()                    PUBACK (QoS 1)
//!   (none) ─────────▶ Offered ───────────────────────────────▶ acknowledged
//!                        │  PUBREC (QoS 2)                          ▲
//!                        └────────────────▶ Released ───────────────┘
//!                                           (PUBREL sent)  PUBCOMP
//! ```
//!
//! After a reconnect everything in flight is sent again in the order of its first sending, before anything new:
//! `Offered` as PUBLISH with DUP, `Released` as PUBREL. When the other side has forgotten the session, `Offered` is
//! published anew without DUP, and `Released` counts as acknowledged: the PUBREC had passed the reading on.

use std::collections::{BTreeSet, VecDeque};

use super::wire::Incoming;
use crate::event::Qos;

/// Readings that a sensor keeps in flight: enough for 1,000 a second at 10 ms a commit and two commits for QoS 2.
const WINDOW: usize = 64;

/// What one sensor knows at the end.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Journal {
    /// One for each reading published, in order; the first has counter 1.
    pub(super) acknowledged: Vec<bool>,
    /// Counters of readings that were published more than once, because no answer had come before the connection broke.
    pub(super) sent_again: BTreeSet<u64>,
    /// Readings that the relay refused by reason code.
    pub(super) refused: u64,
    /// Acknowledgements of something that was not in flight on this connection.
    pub(super) stray: u64,
}

/// A packet about a reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Say {
    /// PUBLISH of reading `n`.
    Publish { packet_id: u16, n: u64, again: bool },
    /// PUBREL.
    Release { packet_id: u16 },
}

/// One sensor's session.
#[derive(Debug)]
pub(super) struct Session {
    qos: Qos,
    in_flight: VecDeque<InFlight>,
    window: usize,
    last_packet_id: u16,
    acknowledged: u64,
    journal: Journal,
}

#[derive(Debug, Clone, Copy)]
struct InFlight {
    packet_id: u16,
    n: u64,
    step: Step,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Offered,
    Released,
}

impl Session {
    pub(super) fn new(qos: Qos) -> Self {
        let journal = Journal::default();
        Self {
            qos,
            in_flight: VecDeque::with_capacity(WINDOW),
            window: WINDOW,
            last_packet_id: 0,
            acknowledged: 0,
            journal,
        }
    }

    /// A connection stands: what must be sent before anything new.
    pub(super) fn resume(&mut self, session_present: bool, receive_maximum: Option<u16>) -> Vec<Say> {
        self.window = receive_maximum.map_or(WINDOW, |limit| WINDOW.min(usize::from(limit)));
        if !session_present {
            let (offered, released): (VecDeque<_>, VecDeque<_>) =
                self.in_flight.iter().copied().partition(|flight| flight.step == Step::Offered);
            self.in_flight = offered;
            for flight in released {
                self.acknowledge(flight.n);
            }
        }
        let mut say = Vec::with_capacity(self.in_flight.len());
        for flight in &self.in_flight {
            say.push(match flight.step {
                Step::Offered => {
                    self.journal.sent_again.insert(flight.n);
                    Say::Publish { packet_id: flight.packet_id, n: flight.n, again: session_present }
                }
                Step::Released => Say::Release { packet_id: flight.packet_id },
            });
        }
        say
    }

    /// The next new reading, unless the window is full.
    pub(super) fn next(&mut self) -> Option<Say> {
        if self.in_flight.len() >= self.window {
            return None;
        }
        let packet_id = self.free_packet_id();
        self.journal.acknowledged.push(false);
        let n = self.published();
        self.in_flight.push_back(InFlight { packet_id, n, step: Step::Offered });
        Some(Say::Publish { packet_id, n, again: false })
    }

    /// An acknowledgement came: what must be answered.
    pub(super) fn hear(&mut self, packet: &Incoming) -> Option<Say> {
        match (self.qos, packet) {
            (Qos::AtLeastOnce, Incoming::Acknowledged { packet_id, accepted }) => {
                self.settle(*packet_id, Step::Offered, *accepted);
                None
            }
            (Qos::ExactlyOnce, Incoming::Received { packet_id, accepted: false }) => {
                self.settle(*packet_id, Step::Offered, false);
                None
            }
            (Qos::ExactlyOnce, Incoming::Received { packet_id, accepted: true }) => {
                let Some(flight) = self.in_flight.iter_mut().find(|flight| flight.packet_id == *packet_id) else {
                    self.journal.stray += 1;
                    return None;
                };
                flight.step = Step::Released;
                Some(Say::Release { packet_id: *packet_id })
            }
            (Qos::ExactlyOnce, Incoming::Completed { packet_id }) => {
                self.settle(*packet_id, Step::Released, true);
                None
            }
            (_, Incoming::Connected { .. } | Incoming::Pong) => None,
            (_, Incoming::Acknowledged { .. } | Incoming::Received { .. } | Incoming::Completed { .. }) => {
                self.journal.stray += 1;
                None
            }
        }
    }

    /// Readings published so far.
    pub(super) fn published(&self) -> u64 {
        u64::try_from(self.journal.acknowledged.len()).unwrap_or(u64::MAX)
    }

    /// Readings in flight.
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Readings acknowledged so far.
    pub(super) fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    pub(super) fn into_journal(self) -> Journal {
        self.journal
    }

    fn settle(&mut self, packet_id: u16, step: Step, accepted: bool) {
        let place = self.in_flight.iter().position(|flight| flight.packet_id == packet_id && flight.step == step);
        match place.and_then(|place| self.in_flight.remove(place)) {
            Some(flight) if accepted => self.acknowledge(flight.n),
            Some(_) => self.journal.refused += 1,
            None => self.journal.stray += 1,
        }
    }

    fn acknowledge(&mut self, n: u64) {
        let place = usize::try_from(n).ok().and_then(|n| n.checked_sub(1));
        if let Some(slot) = place.and_then(|place| self.journal.acknowledged.get_mut(place)) {
            *slot = true;
            self.acknowledged += 1;
        }
    }

    /// The next id that is not in flight; there is one, because the window is far smaller than the 65,535 ids.
    fn free_packet_id(&mut self) -> u16 {
        loop {
            self.last_packet_id = self.last_packet_id.checked_add(1).unwrap_or(1);
            if self.in_flight.iter().all(|flight| flight.packet_id != self.last_packet_id) {
                return self.last_packet_id;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(qos: Qos, published: usize) -> Session {
        let mut session = Session::new(qos);
        session.resume(false, None);
        for _ in 0..published {
            session.next().unwrap();
        }
        session
    }

    fn ack(packet_id: u16) -> Incoming {
        Incoming::Acknowledged { packet_id, accepted: true }
    }

    fn rec(packet_id: u16) -> Incoming {
        Incoming::Received { packet_id, accepted: true }
    }

    #[test]
    fn a_reading_counts_as_acknowledged_with_its_puback_and_not_before() {
        let mut session = session(Qos::AtLeastOnce, 2);
        assert_eq!(session.hear(&ack(2)), None);
        assert_eq!(session.into_journal().acknowledged, [false, true]);
    }

    #[test]
    fn a_qos_2_reading_counts_with_its_pubcomp_and_not_with_its_pubrec() {
        let mut session = session(Qos::ExactlyOnce, 1);
        assert_eq!(session.hear(&rec(1)), Some(Say::Release { packet_id: 1 }));
        assert_eq!(session.journal.acknowledged, [false]);
        session.hear(&Incoming::Completed { packet_id: 1 });
        assert_eq!(session.in_flight(), 0);
        assert_eq!(session.into_journal().acknowledged, [true]);
    }

    #[test]
    fn after_a_reconnect_each_reading_goes_on_from_its_own_step_in_the_old_order() {
        let mut session = session(Qos::ExactlyOnce, 3);
        session.hear(&rec(2));
        let again = session.resume(true, None);
        let expected = [
            Say::Publish { packet_id: 1, n: 1, again: true },
            Say::Release { packet_id: 2 },
            Say::Publish { packet_id: 3, n: 3, again: true },
        ];
        assert_eq!(again, expected);
        assert_eq!(session.into_journal().sent_again, BTreeSet::from([1, 3]));
    }

    #[test]
    fn the_old_order_stays_when_packet_ids_have_wrapped() {
        let mut session = session(Qos::AtLeastOnce, 0);
        session.last_packet_id = u16::MAX - 1;
        session.next().unwrap();
        session.next().unwrap();
        let again = session.resume(true, None);
        let expected =
            [Say::Publish { packet_id: u16::MAX, n: 1, again: true }, Say::Publish { packet_id: 1, n: 2, again: true }];
        assert_eq!(again, expected);
    }

    #[test]
    fn a_session_that_the_relay_forgot_is_published_anew_and_what_it_had_received_is_not() {
        let mut session = session(Qos::ExactlyOnce, 2);
        session.hear(&rec(1));
        assert_eq!(session.resume(false, None), [Say::Publish { packet_id: 2, n: 2, again: false }]);
        assert_eq!(session.acknowledged(), 1);
        assert_eq!(session.into_journal().acknowledged, [true, false]);
    }

    #[test]
    fn nothing_new_is_published_beyond_what_the_relay_takes() {
        let mut session = session(Qos::AtLeastOnce, 0);
        session.resume(true, Some(2));
        assert!(session.next().is_some() && session.next().is_some());
        assert_eq!(session.next(), None);
        session.hear(&ack(1));
        assert_eq!(session.next(), Some(Say::Publish { packet_id: 3, n: 3, again: false }));
    }

    #[test]
    fn an_id_in_flight_is_not_given_out_again() {
        let mut session = session(Qos::AtLeastOnce, 1);
        session.last_packet_id = u16::MAX;
        assert_eq!(session.next(), Some(Say::Publish { packet_id: 2, n: 2, again: false }));
    }

    #[test]
    fn an_acknowledgement_of_nothing_is_on_the_books() {
        let mut session = session(Qos::AtLeastOnce, 1);
        session.hear(&ack(9));
        session.hear(&Incoming::Completed { packet_id: 1 });
        session.hear(&rec(1));
        let journal = session.into_journal();
        assert_eq!((journal.stray, journal.acknowledged), (3, vec![false]));
    }

    #[test]
    fn a_refused_reading_is_not_acknowledged() {
        let mut session = session(Qos::ExactlyOnce, 1);
        session.hear(&Incoming::Received { packet_id: 1, accepted: false });
        assert_eq!((session.in_flight(), session.acknowledged()), (0, 0));
        let journal = session.into_journal();
        assert_eq!((journal.refused, journal.acknowledged), (1, vec![false]));
    }
}
