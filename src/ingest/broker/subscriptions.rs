//! What we want to hear from a broker, and what it said to that.
//!
//! A filter that the broker refuses does not stop the others. It is asked for again at every connection, and on a
//! lasting one every [`ASK_AGAIN`], so that a right granted later takes effect without a restart. Each change of the
//! broker's mind is logged once.

use std::time::Duration;

use bytes::BytesMut;
use tracing::{info, warn};

use crate::config::{MqttVersion, Subscription};
use crate::ingest::codec::encode::{self, EncodeError};
use crate::ingest::codec::reason;

/// Refused filters are asked for again so often.
pub(super) const ASK_AGAIN: Duration = Duration::from_secs(600);

/// Filters a SUBSCRIBE: as many as the most restrictive public broker takes (AWS `IoT` Core: 8).
const FILTERS_A_PACKET: usize = 8;

/// All filters of one `[[mqtt]]` table.
#[derive(Debug)]
pub(super) struct Subscriptions {
    broker: String,
    wanted: Vec<Wanted>,
    /// Packet ids of SUBSCRIBEs without an answer yet, with the filters in them.
    open: Vec<(u16, Vec<usize>)>,
    last_id: u16,
}

#[derive(Debug)]
struct Wanted {
    subscription: Subscription,
    standing: Standing,
    /// What was logged last.
    said: Option<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// To be asked for.
    Missing,
    /// The broker has it.
    Granted,
    /// The broker does not want it.
    Refused,
}

/// A SUBACK that answers nothing that is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stray;

impl Subscriptions {
    pub(super) fn new(broker: &str, subscriptions: Vec<Subscription>) -> Self {
        let wanted = |subscription| Wanted { subscription, standing: Standing::Missing, said: None };
        let wanted = subscriptions.into_iter().map(wanted).collect();
        Self { broker: broker.to_owned(), wanted, open: Vec::new(), last_id: 0 }
    }

    /// The broker has none of them any more.
    pub(super) fn lost(&mut self) {
        for wanted in &mut self.wanted {
            wanted.standing = Standing::Missing;
        }
    }

    /// The connection is over: what is open will not be answered.
    pub(super) fn disconnected(&mut self) {
        self.open.clear();
    }

    /// Some filter is not granted.
    pub(super) fn incomplete(&self) -> bool {
        self.wanted.iter().any(|wanted| wanted.standing != Standing::Granted)
    }

    /// Some SUBSCRIBE is not answered.
    pub(super) fn waiting(&self) -> bool {
        !self.open.is_empty()
    }

    /// Writes SUBSCRIBEs for everything that is not granted.
    pub(super) fn ask(&mut self, version: MqttVersion, out: &mut BytesMut) -> Result<(), EncodeError> {
        let missing = self.wanted.iter().enumerate().filter(|(_, wanted)| wanted.standing != Standing::Granted);
        let missing: Vec<usize> = missing.map(|(index, _)| index).collect();
        for group in missing.chunks(FILTERS_A_PACKET) {
            self.last_id = self.last_id.checked_add(1).unwrap_or(1);
            let filters = group.iter().filter_map(|index| self.wanted.get(*index)).map(|wanted| &wanted.subscription);
            encode::subscribe(out, version, self.last_id, filters)?;
            self.open.push((self.last_id, group.to_vec()));
        }
        Ok(())
    }

    /// Takes a SUBACK; says how many filters it refuses.
    pub(super) fn answer(&mut self, packet_id: u16, codes: &[u8]) -> Result<u64, Stray> {
        let position = self.open.iter().position(|(id, _)| *id == packet_id).ok_or(Stray)?;
        let (_, filters) = self.open.swap_remove(position);
        if filters.len() != codes.len() {
            return Err(Stray);
        }
        let mut refused = 0_u64;
        for (index, &code) in filters.iter().zip(codes) {
            let Some(wanted) = self.wanted.get_mut(*index) else { continue };
            wanted.standing = if code < 0x80 { Standing::Granted } else { Standing::Refused };
            if code >= 0x80 {
                refused = refused.saturating_add(1);
            }
            if wanted.said.replace(code) != Some(code) {
                say(&self.broker, &wanted.subscription, code);
            }
        }
        Ok(refused)
    }
}

fn say(broker: &str, wanted: &Subscription, code: u8) {
    let filter = wanted.filter.as_str();
    if code >= 0x80 {
        let reason = format!("{} (code {code:#04x})", reason::text(code));
        warn!(broker, filter, reason, "subscription refused; the others go on, and this one is asked for again");
    } else if code < wanted.qos.level() {
        warn!(broker, filter, asked = wanted.qos.level(), granted = code, "the broker grants a lower QoS than asked");
    } else {
        info!(broker, filter, qos = code, "subscribed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Qos;

    fn filters(n: usize) -> Vec<Subscription> {
        (0..n).map(|i| Subscription { filter: format!("f/{i}"), qos: Qos::AtLeastOnce }).collect()
    }

    #[test]
    fn a_refusal_leaves_the_others_and_is_asked_for_again() {
        let mut subscriptions = Subscriptions::new("b", filters(3));
        let mut out = BytesMut::new();
        subscriptions.ask(MqttVersion::V5, &mut out).unwrap();
        assert_eq!(subscriptions.answer(1, &[1, 0x87, 2]), Ok(1));
        assert!(subscriptions.incomplete() && !subscriptions.waiting());
        let mut again = BytesMut::new();
        subscriptions.ask(MqttVersion::V311, &mut again).unwrap();
        assert_eq!(&again[..], [0x82, 8, 0, 2, 0, 3, b'f', b'/', b'1', 1], "only the refused one, under a new id");
        assert_eq!(subscriptions.answer(2, &[1]), Ok(0));
        assert!(!subscriptions.incomplete());
    }

    #[test]
    fn at_most_eight_filters_travel_in_one_packet() {
        let mut subscriptions = Subscriptions::new("b", filters(17));
        subscriptions.ask(MqttVersion::V311, &mut BytesMut::new()).unwrap();
        let sizes: Vec<usize> = subscriptions.open.iter().map(|(_, filters)| filters.len()).collect();
        assert_eq!(sizes, [8, 8, 1]);
    }

    #[test]
    fn a_suback_that_fits_nothing_is_stray() {
        let mut subscriptions = Subscriptions::new("b", filters(2));
        subscriptions.ask(MqttVersion::V5, &mut BytesMut::new()).unwrap();
        assert_eq!(subscriptions.answer(9, &[1, 1]), Err(Stray));
        assert_eq!(subscriptions.answer(1, &[1]), Err(Stray), "one code for two filters");
    }

    #[test]
    fn packet_ids_go_round_without_zero() {
        let mut subscriptions = Subscriptions::new("b", filters(1));
        subscriptions.last_id = u16::MAX;
        subscriptions.ask(MqttVersion::V5, &mut BytesMut::new()).unwrap();
        assert_eq!(subscriptions.open[0].0, 1);
    }
}
