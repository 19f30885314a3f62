//! The books: everything about the buffer that is not an event, as it stood after the last commit.
//!
//! The state row is one envelope around `[transaction, next, released, [[gap, length], …], [[route, received,
//! delivered, dead lettered, dropped, purged, held], …], watermark]`, the last since format version 2. The settled spans above the cursor are written as gap from
//! the end of the one before and length. It changes in the same transaction as the events it speaks of, so after any
//! crash it fits them. `transaction` goes up by one in each commit: after a commit whose outcome is unknown it tells
//! which side of the commit the disk is on.
//!
//! While a transaction runs, the copy in memory is ahead of the disk; when it fails, the copy is read again.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use rusqlite::Connection;

use super::envelope::{Damage, Opener, Sealer};
use super::error::LoadError;
use super::ledger::Ledger;
use super::spans::Settled;
use super::{LaneId, StoredSession};
use crate::cbor;
use crate::event::Sequence;

/// What the last commit left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Books {
    /// Number of the last commit.
    pub(super) transaction: u64,
    /// The next sequence to be given out.
    pub(super) next: Sequence,
    pub(super) settled: Settled,
    /// Kafka has committed a watermark up to here; 0 when none is known.
    pub(super) watermark: Sequence,
    pub(super) ledger: Ledger,
    pub(super) lanes: BTreeMap<LaneId, Lane>,
    pub(super) sessions: HashMap<Arc<str>, StoredSession>,
}

/// A parked Kafka topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Lane {
    pub(super) kafka_topic: Arc<str>,
    /// Events in it.
    pub(super) held: u64,
}

type StateRow = (u64, Sequence, Sequence, Vec<(u64, u64)>, Vec<LedgerRow>, Sequence);
/// Of format version 1.
type StateRow1 = (u64, Sequence, Sequence, Vec<(u64, u64)>, Vec<LedgerRow>);
pub(super) type LedgerRow = (u16, u64, u64, u64, u64, u64, u64);

impl Books {
    /// Of a buffer that has seen nothing.
    pub(super) fn empty() -> Self {
        Self {
            transaction: 0,
            next: 1,
            settled: Settled::default(),
            watermark: 0,
            ledger: Ledger::default(),
            lanes: BTreeMap::new(),
            sessions: HashMap::new(),
        }
    }

    /// Reads them.
    pub(super) fn load(connection: &Connection) -> Result<Self, LoadError> {
        let mut opener = Opener::default();
        let body: Vec<u8> = connection.query_row("SELECT body FROM state WHERE id = 1", [], |row| row.get(0))?;
        let damaged = |what| move |cause: Damage| LoadError::Damaged { what, cause: cause.to_string() };
        let raw = opener.open(&body).map_err(damaged("state"))?;
        let (transaction, next, released, spans, ledger, watermark) =
            read_state(&raw).map_err(|e| damaged("state")(e.into()))?;
        let mut end = released;
        let spans = spans.into_iter().map(|(gap, length)| {
            let first = end.saturating_add(gap);
            end = first.saturating_add(length);
            (first, end)
        });
        let mut books = Self {
            transaction,
            next,
            settled: Settled::new(released, spans),
            watermark,
            ledger: Ledger::from_rows(ledger),
            ..Self::empty()
        };
        books.load_lanes(connection)?;
        books.load_sessions(connection, &mut opener)?;
        Ok(books)
    }

    /// As the state row wants them.
    pub(super) fn seal<'a>(&self, raw: &mut Vec<u8>, sealer: &'a mut Sealer) -> Result<&'a [u8], Damage> {
        let mut end = self.settled.released();
        let spans = self.settled.above().map(|(first, last)| {
            let delta = (first.saturating_sub(end), last.saturating_sub(first));
            end = last;
            delta
        });
        let released = self.settled.released();
        let row: StateRow =
            (self.transaction, self.next, released, spans.collect(), self.ledger.rows(), self.watermark);
        raw.clear();
        cbor::append(&row, raw)?;
        sealer.seal(raw, false).ok_or(Damage::TooLong(u64::MAX))
    }

    fn load_lanes(&mut self, connection: &Connection) -> Result<(), LoadError> {
        let mut lanes = connection.prepare("SELECT id, kafka_topic, held FROM lane")?;
        let mut rows = lanes.query([])?;
        while let Some(row) = rows.next()? {
            let topic: String = row.get(1)?;
            let held = u64::try_from(row.get::<_, i64>(2)?).unwrap_or(0);
            self.lanes.insert(LaneId(row.get(0)?), Lane { kafka_topic: topic.into(), held });
        }
        Ok(())
    }

    fn load_sessions(&mut self, connection: &Connection, opener: &mut Opener) -> Result<(), LoadError> {
        let mut sessions = connection.prepare("SELECT name, used_ms, expiry_s, packet_ids FROM session")?;
        let mut rows = sessions.query([])?;
        while let Some(row) = rows.next()? {
            let name: String = row.get(0)?;
            let body: Vec<u8> = row.get(3)?;
            let packet_ids = open_packet_ids(&body, opener)
                .map_err(|cause| LoadError::Damaged { what: "session", cause: format!("{name}: {cause}") })?;
            let session = StoredSession { packet_ids, used_ms: row.get(1)?, expiry_s: row.get(2)? };
            self.sessions.insert(name.into(), session);
        }
        Ok(())
    }
}

fn read_state(raw: &[u8]) -> Result<StateRow, cbor::Error> {
    cbor::read::<StateRow>(raw).or_else(|newer| {
        let (transaction, next, released, spans, ledger): StateRow1 = cbor::read(raw).map_err(|_older| newer)?;
        Ok((transaction, next, released, spans, ledger, 0))
    })
}

/// Packet ids as runs of `[first, more]`: brokers count them upwards, so a window is one or two runs.
pub(super) fn seal_packet_ids<'a>(
    packet_ids: &BTreeSet<u16>,
    raw: &mut Vec<u8>,
    sealer: &'a mut Sealer,
) -> Result<&'a [u8], Damage> {
    let mut runs: Vec<(u16, u16)> = Vec::new();
    for id in packet_ids {
        match runs.last_mut() {
            Some((first, more)) if first.checked_add(*more).and_then(|last| last.checked_add(1)) == Some(*id) => {
                *more = more.saturating_add(1);
            }
            _ => runs.push((*id, 0)),
        }
    }
    raw.clear();
    cbor::append(&runs, raw)?;
    sealer.seal(raw, false).ok_or(Damage::TooLong(u64::MAX))
}

fn open_packet_ids(body: &[u8], opener: &mut Opener) -> Result<BTreeSet<u16>, Damage> {
    let runs: Vec<(u16, u16)> = cbor::read(&opener.open(body)?)?;
    Ok(runs.into_iter().flat_map(|(first, more)| first..=first.saturating_add(more)).collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn packet_ids_come_back(ids in proptest::collection::btree_set(prop_oneof![0u16..40, any::<u16>()], 0..80)) {
            let (mut raw, mut sealer) = (Vec::new(), Sealer::default());
            let body = seal_packet_ids(&ids, &mut raw, &mut sealer).unwrap();
            prop_assert_eq!(open_packet_ids(body, &mut Opener::default()).unwrap(), ids);
        }
    }

    #[test]
    fn a_window_of_a_thousand_packet_ids_is_a_few_bytes() {
        let (mut raw, mut sealer) = (Vec::new(), Sealer::default());
        let ids: BTreeSet<u16> = (64_900..=u16::MAX).chain(1..365).collect();
        assert!(seal_packet_ids(&ids, &mut raw, &mut sealer).unwrap().len() < 32);
    }
}
