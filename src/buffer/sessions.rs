//! QoS 2 packet ids of the MQTT sessions: changed in the same transaction as the events they came with, so that a
//! repeat after any crash is recognised and a PUBCOMP never runs ahead of the disk. A digest of the message stands with
//! each id, so that another message under an old id is not taken for a repeat.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::StoredSession;
use super::books::seal_packet_ids;
use super::clock;
use super::envelope::Sealer;
use super::error::WriteError;
use super::statements::Statements;
use crate::planted::{Bug, planted};

/// Changes to one persistent MQTT session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SessionChange {
    /// `broker:<name>` or `listen:<name>:<client id>`.
    pub session: Arc<str>,
    /// In order.
    pub changes: Vec<IdChange>,
}

/// One change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum IdChange {
    /// A QoS 2 packet id arrived, with a message of this digest. Replaces what is known of the id.
    Add(u16, u32),
    /// It was released (PUBREL); PUBCOMP follows when this is durable.
    Remove(u16),
    /// Remember this session and its expiry in seconds (`u32::MAX` = never), packet ids kept.
    Keep(u32),
    /// Forget the session and all its ids.
    Forget,
}

/// Applies all changes in order and writes each changed session once.
pub(super) fn apply(
    changes: &[SessionChange],
    sessions: &mut HashMap<Arc<str>, StoredSession>,
    tx: &mut Statements<'_>,
    raw: &mut Vec<u8>,
    sealer: &mut Sealer,
) -> Result<(), WriteError> {
    if changes.is_empty() || planted(Bug::ForgetPacketIds) {
        return Ok(());
    }
    let now_ms = clock::now_ms();
    let mut touched: BTreeSet<&Arc<str>> = BTreeSet::new();
    for SessionChange { session, changes } in changes {
        touched.insert(session);
        for change in changes {
            apply_one(*change, session, sessions, now_ms);
        }
    }
    for name in touched {
        match sessions.get(name) {
            Some(StoredSession { packet_ids, used_ms, expiry_s }) => {
                let body = seal_packet_ids(packet_ids, raw, sealer)?;
                tx.upsert_session.execute((&**name, used_ms, expiry_s, body))?;
            }
            None => {
                tx.delete_session.execute([&**name])?;
            }
        }
    }
    Ok(())
}

fn apply_one(change: IdChange, name: &Arc<str>, sessions: &mut HashMap<Arc<str>, StoredSession>, now_ms: i64) {
    if change == IdChange::Forget {
        sessions.remove(name);
        return;
    }
    // A session nobody announced is kept: forgetting its ids could let a repeat through.
    let new = || StoredSession { expiry_s: u32::MAX, ..StoredSession::default() };
    let session = sessions.entry(Arc::clone(name)).or_insert_with(new);
    session.used_ms = now_ms;
    match change {
        IdChange::Add(id, digest) => {
            session.packet_ids.insert(id, Some(digest));
        }
        IdChange::Remove(id) => {
            session.packet_ids.remove(&id);
        }
        IdChange::Keep(expiry_s) => session.expiry_s = expiry_s,
        IdChange::Forget => {}
    }
}
