//! The books: everything about the buffer that is not an event, as it stood after the last commit. Their layout stands in the
//! [specification](super).
//!
//! They change in the same transaction as the events they speak of, so after any crash they fit them. `transaction` goes up by
//! one in each commit: after a commit whose outcome is unknown it tells which side of the commit the disk is on.
//!
//! While a transaction runs, the copy in memory is ahead of the disk; when it fails, the copy is read again.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use rusqlite::Connection;

use super::envelope::{Damage, Opener, Sealer};
use super::error::{LoadError, is_about_the_row};
use super::ledger::{Ledger, LedgerRow};
use super::limits::{MAX_COUNT, MAX_SEQUENCE};
use super::spans::Settled;
use super::{LaneId, PacketIds, StoredSession};
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
/// Of format versions 1 to 3.
type StateRow1 = (u64, Sequence, Sequence, Vec<(u64, u64)>, Vec<LedgerRow2>);
type StateRow2 = (u64, Sequence, Sequence, Vec<(u64, u64)>, Vec<LedgerRow2>, Sequence);
type LedgerRow2 = (u16, u64, u64, u64, u64, u64, u64);

/// Rows beside the state row that could not be read. What they said is left out of the books; what they were is said
/// and written anew where the buffer is opened.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Flaws {
    /// MQTT sessions that are forgotten, each with what is wrong.
    pub(super) sessions: Vec<String>,
    /// Rows of parked lanes.
    pub(super) lanes: Vec<String>,
}

/// The state row.
#[derive(Debug)]
pub(super) enum StateRead {
    /// Without what stands in rows of its own.
    Sound(Books),
    /// With what is wrong.
    Damaged(String),
}

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

    /// Reads them. Only the state row is needed: of what stands beside it, damage costs the row that is damaged.
    pub(super) fn load(connection: &Connection) -> Result<(Self, Flaws), LoadError> {
        let mut books = Self::load_state(connection)?;
        let flaws = books.load_rows(connection)?;
        Ok((books, flaws))
    }

    /// What stands in rows of its own: lanes and sessions.
    pub(super) fn load_rows(&mut self, connection: &Connection) -> Result<Flaws, LoadError> {
        let lanes = self.load_lanes(connection)?;
        let sessions = self.load_sessions(connection)?;
        Ok(Flaws { sessions, lanes })
    }

    /// The state row alone; a row that is not there, or is something else, is damaged as well.
    pub(super) fn read_state_row(connection: &Connection) -> Result<StateRead, LoadError> {
        match Self::load_state(connection) {
            Ok(books) => Ok(StateRead::Sound(books)),
            Err(LoadError::Damaged { cause, .. }) => Ok(StateRead::Damaged(cause)),
            Err(LoadError::Sqlite(error)) if is_about_the_row(&error) => Ok(StateRead::Damaged(error.to_string())),
            Err(error) => Err(error),
        }
    }

    /// Writes the state row, whatever stood there.
    pub(super) fn write(&self, connection: &Connection) -> Result<(), LoadError> {
        let (mut raw, mut sealer) = (Vec::new(), Sealer::default());
        let body = self
            .seal(&mut raw, &mut sealer)
            .map_err(|cause| LoadError::Damaged { what: "state", cause: cause.to_string() })?;
        connection.execute("INSERT OR REPLACE INTO state (id, body) VALUES (1, ?1)", [body])?;
        Ok(())
    }

    fn load_state(connection: &Connection) -> Result<Self, LoadError> {
        let mut opener = Opener::default();
        let body: Vec<u8> = connection.query_row("SELECT body FROM state WHERE id = 1", [], |row| row.get(0))?;
        let damaged = |what| move |cause: Damage| LoadError::Damaged { what, cause: cause.to_string() };
        let raw = opener.open(&body).map_err(damaged("state"))?;
        let (transaction, next, released, spans, ledger, watermark) =
            read_state(&raw).map_err(|e| damaged("state")(e.into())).and_then(|row| {
                if is_possible(&row) {
                    Ok(row)
                } else {
                    Err(damaged("state")(Damage::Content("its counts cannot be right".into())))
                }
            })?;
        let mut end = released;
        let spans = spans.into_iter().map(|(gap, length)| {
            let first = end.saturating_add(gap);
            end = first.saturating_add(length);
            (first, end)
        });
        Ok(Self {
            transaction,
            next,
            settled: Settled::new(released, spans),
            watermark,
            ledger: Ledger::from_rows(ledger),
            ..Self::empty()
        })
    }

    /// As the state row wants them.
    pub(super) fn seal<'a>(&self, raw: &mut Vec<u8>, sealer: &'a mut Sealer) -> Result<&'a [u8], Damage> {
        let mut end = self.settled.released();
        let spans = self.settled.above().map(|(first, last)| {
            let delta = (first - end, last - first);
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

    fn load_lanes(&mut self, connection: &Connection) -> Result<Vec<String>, LoadError> {
        let mut lanes = connection.prepare("SELECT id, kafka_topic, held FROM lane")?;
        let mut rows = lanes.query([])?;
        let mut flaws = Vec::new();
        while let Some(row) = rows.next()? {
            let lane = || -> Result<_, LoadError> {
                let topic: String = row.get(1)?;
                let held = u64::try_from(row.get::<_, i64>(2)?).unwrap_or(0);
                Ok((LaneId(row.get(0)?), Lane { kafka_topic: topic.into(), held }))
            };
            match lane() {
                Ok((id, lane)) => drop(self.lanes.insert(id, lane)),
                Err(error) => flaws.push(error.to_string()),
            }
        }
        Ok(flaws)
    }

    fn load_sessions(&mut self, connection: &Connection) -> Result<Vec<String>, LoadError> {
        let mut opener = Opener::default();
        let mut sessions = connection.prepare("SELECT name, used_ms, expiry_s, packet_ids FROM session")?;
        let mut rows = sessions.query([])?;
        let mut flaws = Vec::new();
        while let Some(row) = rows.next()? {
            match read_session(row, &mut opener) {
                Ok((name, session)) => drop(self.sessions.insert(name, session)),
                Err(error) => flaws.push(error.to_string()),
            }
        }
        Ok(flaws)
    }
}

fn read_session(row: &rusqlite::Row<'_>, opener: &mut Opener) -> Result<(Arc<str>, StoredSession), LoadError> {
    let name: String = row.get(0)?;
    let body: Vec<u8> = row.get(3)?;
    let packet_ids = open_packet_ids(&body, opener)
        .map_err(|cause| LoadError::Damaged { what: "session", cause: format!("{name}: {cause}") })?;
    Ok((name.into(), StoredSession { packet_ids, used_ms: row.get(1)?, expiry_s: row.get(2)? }))
}

fn read_state(raw: &[u8]) -> Result<StateRow, cbor::Error> {
    cbor::read::<StateRow>(raw).or_else(|newest| {
        let of_1 =
            |(transaction, next, released, spans, ledger): StateRow1| (transaction, next, released, spans, ledger, 0);
        let of_2 = cbor::read::<StateRow2>(raw).or_else(|_newer| cbor::read(raw).map(of_1));
        let (transaction, next, released, spans, ledger, watermark) = of_2.map_err(|_oldest: cbor::Error| newest)?;
        let with_nothing_lost = |(route, received, delivered, dead, dropped, purged, held): LedgerRow2| {
            (route, received, delivered, dead, dropped, purged, held, 0)
        };
        let ledger = ledger.into_iter().map(with_nothing_lost).collect();
        Ok((transaction, next, released, spans, ledger, watermark))
    })
}

/// Can these numbers have been counted?
fn is_possible((transaction, next, released, spans, ledger, watermark): &StateRow) -> bool {
    let mut counts = ledger.iter().flat_map(|&(_, received, delivered, dead, dropped, purged, held, lost)| {
        [received, delivered, dead, dropped, purged, held, lost]
    });
    let sequences = [*transaction, *next, *released, *watermark];
    let end_of_spans = spans.iter().try_fold(*released, |end, (gap, more)| end.checked_add(*gap)?.checked_add(*more));
    let total = counts.try_fold(0_u64, u64::checked_add);
    *next > 0
        && sequences.iter().all(|number| *number <= MAX_SEQUENCE)
        && end_of_spans.is_some_and(|end| end <= MAX_SEQUENCE)
        && total.is_some_and(|total| total <= MAX_COUNT * 8) // all accounts of all routes together
}

/// `[[first, more], …]`: brokers count packet ids upwards, so a window is one or two runs.
type Runs = Vec<(u16, u16)>;

/// A version before the digests wrote the first of the three alone, and is read as that.
type PacketIdsRow<'a> = (Runs, Runs, cbor::Blob<'a>);

const DIGEST_BYTES: usize = size_of::<u32>();

pub(super) fn seal_packet_ids<'a>(
    packet_ids: &PacketIds,
    raw: &mut Vec<u8>,
    sealer: &'a mut Sealer,
) -> Result<&'a [u8], Damage> {
    let without = packet_ids.iter().filter(|(_, digest)| digest.is_none());
    let with = packet_ids.iter().filter(|(_, digest)| digest.is_some());
    let digests: Vec<u8> = packet_ids.values().flatten().flat_map(|digest| digest.to_le_bytes()).collect();
    let row: PacketIdsRow<'_> = (runs(without.map(|(id, _)| *id)), runs(with.map(|(id, _)| *id)), cbor::Blob(&digests));
    raw.clear();
    cbor::append(&row, raw)?;
    sealer.seal(raw, false).ok_or(Damage::TooLong(u64::MAX))
}

fn runs(ids: impl Iterator<Item = u16>) -> Runs {
    let mut runs: Runs = Vec::new();
    for id in ids {
        match runs.last_mut() {
            Some((first, more)) if first.checked_add(*more).and_then(|last| last.checked_add(1)) == Some(id) => {
                *more += 1;
            }
            _ => runs.push((id, 0)),
        }
    }
    runs
}

fn open_packet_ids(body: &[u8], opener: &mut Opener) -> Result<PacketIds, Damage> {
    let raw = opener.open(body)?;
    let ids = |runs: Runs| runs.into_iter().flat_map(|(first, more)| first..=first.saturating_add(more));
    let (without, with, digests) = match cbor::read::<PacketIdsRow<'_>>(&raw) {
        Ok((without, with, cbor::Blob(digests))) => (without, with, digests),
        Err(newer) => (cbor::read::<Runs>(&raw).map_err(|_older| newer)?, Vec::new(), &[][..]),
    };
    let (digests, rest) = digests.as_chunks::<DIGEST_BYTES>();
    let with: Vec<u16> = ids(with).collect();
    if with.len() != digests.len() || !rest.is_empty() {
        return Err(Damage::Content(format!("{} packet ids and {} digests", with.len(), digests.len())));
    }
    let digests = digests.iter().map(|digest| Some(u32::from_le_bytes(*digest)));
    Ok(ids(without).map(|id| (id, None)).chain(with.into_iter().zip(digests)).collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_that_nobody_can_have_counted_are_damage() {
        let row = |next, received| (1, next, 0, Vec::new(), vec![(0, received, 0, 0, 0, 0, received, 0)], 0);
        assert!(is_possible(&row(1, MAX_COUNT)) && is_possible(&row(MAX_SEQUENCE, 0)));
        let beyond = (1, 1, 0, vec![(1, u64::MAX)], Vec::new(), 0);
        let many = (1, 1, 0, Vec::new(), vec![(0, MAX_COUNT, 0, 0, 0, 0, MAX_COUNT, 0); 300], 0);
        for row in [row(0, 0), row(u64::MAX, 0), row(1, u64::MAX), beyond, many] {
            assert!(!is_possible(&row), "{row:?}");
        }
    }

    proptest! {
        #[test]
        fn packet_ids_come_back(
            ids in proptest::collection::btree_map(prop_oneof![0u16..40, any::<u16>()], any::<Option<u32>>(), 0..80),
        ) {
            let (mut raw, mut sealer) = (Vec::new(), Sealer::default());
            let body = seal_packet_ids(&ids, &mut raw, &mut sealer).unwrap();
            prop_assert_eq!(open_packet_ids(body, &mut Opener::default()).unwrap(), ids);
        }

        #[test]
        fn packet_ids_of_the_version_before_the_digests_are_read(
            ids in proptest::collection::btree_set(prop_oneof![0u16..40, any::<u16>()], 0..80),
        ) {
            let (mut raw, mut sealer) = (Vec::new(), Sealer::default());
            cbor::append(&runs(ids.iter().copied()), &mut raw).unwrap();
            let body = sealer.seal(&raw, false).unwrap();
            let expected: PacketIds = ids.into_iter().map(|id| (id, None)).collect();
            prop_assert_eq!(open_packet_ids(body, &mut Opener::default()).unwrap(), expected);
        }
    }

    #[test]
    fn a_window_of_a_thousand_packet_ids_is_its_digests_and_a_few_bytes() {
        let (mut raw, mut sealer) = (Vec::new(), Sealer::default());
        let ids: PacketIds = (64_900..=u16::MAX).chain(1..365).map(|id| (id, Some(7))).collect();
        assert!(seal_packet_ids(&ids, &mut raw, &mut sealer).unwrap().len() < 1000 * DIGEST_BYTES + 40);
    }

    #[test]
    fn digests_that_do_not_fit_their_ids_are_damage() {
        for digests in [&[1, 2, 3][..], &[1, 2, 3, 4, 5, 6, 7, 8]] {
            let (mut raw, mut sealer) = (Vec::new(), Sealer::default());
            let row: PacketIdsRow<'_> = (vec![], vec![(7, 0)], cbor::Blob(digests));
            cbor::append(&row, &mut raw).unwrap();
            assert!(open_packet_ids(sealer.seal(&raw, false).unwrap(), &mut Opener::default()).is_err());
        }
    }
}
