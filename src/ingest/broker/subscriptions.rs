//! What we want to hear from a broker, and what it said to that.
//!
//! A filter that the broker refuses does not stop the others. It is asked for again at every connection, and on a
//! lasting one every [`RESUBSCRIBE_INTERVAL`], so that a right granted later takes effect without a restart. Each change of the
//! broker's mind is logged once.
//!
//! A session at a broker keeps its filters for as long as it lives, and no client can ask for the list. So what was asked for
//! is remembered in the buffer (as a session of its own, [`filter_key`]), and what the configuration does not name any more
//! is unsubscribed at the next connection: else its readings would come for ever, and no route would take them.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::BytesMut;
use tracing::{info, warn};

use crate::buffer::IdChange;
use crate::ingest::codec::encode::{self, EncodeError};
use crate::ingest::codec::reason;
use crate::ingest::limits::MAX_FILTERS_A_PACKET;
use crate::settings::{MqttVersion, Subscription};

/// All filters of one `[[mqtt]]` table.
#[derive(Debug)]
pub(super) struct Subscriptions {
    broker: String,
    wanted: Vec<Wanted>,
    /// Packet ids of SUBSCRIBEs without an answer yet, with the filters in them.
    open: Vec<(u16, Vec<usize>)>,
    /// What the buffer knows to have been asked for.
    remembered: BTreeSet<String>,
    /// Packet ids of UNSUBSCRIBEs without an answer yet, with the filters in them.
    leaving: Vec<(u16, Vec<String>)>,
    /// For the buffer: what it shall remember or forget.
    notes: Vec<(Arc<str>, IdChange)>,
    last_id: u16,
}

/// Under which the buffer remembers that this broker was asked for that filter. The names of links hold no `:`.
pub(super) fn filter_key(broker: &str, filter: &str) -> Arc<str> {
    format!("filter:{broker}:{filter}").into()
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
        Self {
            broker: broker.to_owned(),
            wanted,
            open: Vec::new(),
            remembered: BTreeSet::new(),
            leaving: Vec::new(),
            notes: Vec::new(),
            last_id: 0,
        }
    }

    /// What the buffer remembers of earlier runs.
    pub(super) fn remember(&mut self, filters: impl IntoIterator<Item = String>) {
        self.remembered.extend(filters);
    }

    /// What the buffer shall remember or forget, since the last call.
    pub(super) fn take_notes(&mut self) -> Vec<(Arc<str>, IdChange)> {
        std::mem::take(&mut self.notes)
    }

    /// The broker has none of them any more.
    pub(super) fn lost(&mut self) {
        for wanted in &mut self.wanted {
            wanted.standing = Standing::Missing;
        }
        for filter in self.unwanted() {
            self.forget(&filter);
        }
    }

    /// Writes UNSUBSCRIBEs for what the broker was asked for and the configuration does not name any more.
    pub(super) fn leave(&mut self, version: MqttVersion, out: &mut BytesMut) {
        for group in self.unwanted().chunks(MAX_FILTERS_A_PACKET) {
            let id = self.next_id();
            encode::unsubscribe(out, version, id, group.iter().map(String::as_str));
            self.leaving.push((id, group.to_vec()));
        }
    }

    /// Takes an UNSUBACK. Its codes do not matter: what the broker does not have, it does not send.
    pub(super) fn left(&mut self, packet_id: u16) -> Result<(), Stray> {
        let position = self.leaving.iter().position(|(id, _)| *id == packet_id).ok_or(Stray)?;
        let (_, filters) = self.leaving.swap_remove(position);
        for filter in filters {
            info!(broker = self.broker, filter, "unsubscribed: the configuration does not name this filter any more");
            self.forget(&filter);
        }
        Ok(())
    }

    fn unwanted(&self) -> Vec<String> {
        let is_wanted = |filter: &str| self.wanted.iter().any(|wanted| wanted.subscription.filter == filter);
        self.remembered.iter().filter(|filter| !is_wanted(filter)).cloned().collect()
    }

    fn forget(&mut self, filter: &str) {
        self.remembered.remove(filter);
        self.notes.push((filter_key(&self.broker, filter), IdChange::Forget));
    }

    fn next_id(&mut self) -> u16 {
        self.last_id = self.last_id.checked_add(1).unwrap_or(1);
        self.last_id
    }

    /// The connection is over: what is open will not be answered.
    pub(super) fn disconnected(&mut self) {
        self.open.clear();
        self.leaving.clear();
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
        for group in missing.chunks(MAX_FILTERS_A_PACKET) {
            let id = self.next_id();
            let filters = group.iter().filter_map(|index| self.wanted.get(*index)).map(|wanted| &wanted.subscription);
            encode::subscribe(out, version, id, filters)?;
            self.open.push((id, group.to_vec()));
        }
        for filter in
            missing.iter().filter_map(|index| self.wanted.get(*index)).map(|wanted| &wanted.subscription.filter)
        {
            // Noted with the question and not with the answer: who dies in between has asked.
            if self.remembered.insert(filter.clone()) {
                self.notes.push((filter_key(&self.broker, filter), IdChange::Keep(u32::MAX)));
            }
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
                refused += 1;
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
        warn!(
            broker,
            filter, reason, "the broker refuses a subscription; the others work, and the agent asks for this one again"
        );
    } else if code < wanted.qos.level() {
        warn!(
            broker,
            filter,
            asked = wanted.qos.level(),
            granted = code,
            "the broker grants a lower QoS than the configuration asks for"
        );
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
    fn what_the_configuration_does_not_name_any_more_is_left_and_then_forgotten() {
        let mut subscriptions = Subscriptions::new("b", filters(1));
        subscriptions.remember(["f/0", "old/#", "older/+"].map(str::to_owned));
        let mut out = BytesMut::new();
        subscriptions.ask(MqttVersion::V311, &mut BytesMut::new()).unwrap();
        assert_eq!(subscriptions.take_notes(), [], "it is remembered already");
        subscriptions.leave(MqttVersion::V311, &mut out);
        assert_eq!(&out[..], b"\xa2\x12\0\x02\0\x05old/#\0\x07older/+");
        // The connection breaks before the answer: the same again on the next one.
        subscriptions.disconnected();
        out.clear();
        subscriptions.leave(MqttVersion::V5, &mut out);
        assert_eq!(&out[..], b"\xa2\x13\0\x03\0\0\x05old/#\0\x07older/+");
        assert_eq!(subscriptions.left(2), Err(Stray));
        assert_eq!(subscriptions.left(3), Ok(()));
        let forgotten = ["filter:b:old/#", "filter:b:older/+"].map(|key| (key.into(), IdChange::Forget));
        assert_eq!(subscriptions.take_notes(), forgotten);
        out.clear();
        subscriptions.leave(MqttVersion::V5, &mut out);
        assert!(out.is_empty());
    }

    #[test]
    fn a_broker_that_lost_the_session_has_nothing_to_be_left() {
        let mut subscriptions = Subscriptions::new("b", filters(1));
        subscriptions.remember(["old/#".to_owned()]);
        subscriptions.lost();
        let mut out = BytesMut::new();
        subscriptions.leave(MqttVersion::V5, &mut out);
        assert!(out.is_empty());
        assert_eq!(subscriptions.take_notes(), [("filter:b:old/#".into(), IdChange::Forget)]);
        subscriptions.ask(MqttVersion::V5, &mut out).unwrap();
        assert_eq!(subscriptions.take_notes(), [("filter:b:f/0".into(), IdChange::Keep(u32::MAX))]);
    }

    #[test]
    fn packet_ids_go_round_without_zero() {
        let mut subscriptions = Subscriptions::new("b", filters(1));
        subscriptions.last_id = u16::MAX;
        subscriptions.ask(MqttVersion::V5, &mut BytesMut::new()).unwrap();
        assert_eq!(subscriptions.open[0].0, 1);
    }
}
