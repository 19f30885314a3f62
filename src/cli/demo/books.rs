//! The books: what the sensors say they published and were acknowledged, against what Kafka holds. Pure.
//!
//! * **Lost**: acknowledged, and not in Kafka. Never allowed.
//! * **Out of order**: readings of one MQTT topic whose first appearance in its Kafka partition comes after the first
//!   appearance of a later reading. Never allowed: a sensor sends again in the old order and before anything new, and
//!   the relay keeps the order of arrival, so even a repeat cannot make a first appearance late.
//! * **Repeated**: the same payload in Kafka more than once, which has exactly two allowed reasons here. The relay sent
//!   it again (`delivery = "at-least-once"`): then both records bear the *same* `tidegate-id`, and a reader drops the
//!   second. Or the sensor published it again at QoS 1, because the kill took the PUBACK it waited for: to everybody
//!   after the sensor these are two events, with two ids. A QoS 2 reading under two ids is a failure.
//! * **Ids**: one id never stands for two readings, and the sequences of each buffer run from 1 without a gap.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};

use uuid::Uuid;

use super::session::Journal;
use crate::event::{Qos, Sequence};

/// The header `tidegate-id`, read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct EventId {
    pub(super) buffer: Uuid,
    pub(super) sequence: Sequence,
}

/// `buffer id:sequence`.
pub(super) fn event_id(header: &[u8]) -> Option<EventId> {
    let (buffer, sequence) = std::str::from_utf8(header).ok()?.split_once(':')?;
    Some(EventId { buffer: buffer.parse().ok()?, sequence: sequence.parse().ok()? })
}

/// One record that Kafka holds, in the order of its partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Record {
    /// Whose reading it is.
    pub(super) sensor: usize,
    /// Its counter.
    pub(super) n: u64,
    /// Its id.
    pub(super) id: EventId,
    /// Kafka topic and partition, numbered in any way.
    pub(super) partition: u32,
}

/// What one sensor says.
#[derive(Debug, Clone)]
pub(super) struct Account {
    pub(super) qos: Qos,
    pub(super) journal: Journal,
}

/// What came out.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Books {
    /// Readings published, each counted once.
    pub(super) published: u64,
    /// Of these acknowledged with PUBACK or PUBCOMP.
    pub(super) acknowledged: u64,
    /// Different readings in Kafka, by payload.
    pub(super) delivered: u64,
    /// Records in Kafka.
    pub(super) records: u64,
    /// Different `tidegate-id`s in Kafka.
    pub(super) ids: u64,
    /// Acknowledged and not in Kafka.
    pub(super) lost: u64,
    /// First appearances that come too late, or in a second partition.
    pub(super) out_of_order: u64,
    /// Records with the id of an earlier one.
    pub(super) repeated_by_relay: u64,
    /// QoS 1 readings under a second id, which their sensor had sent again.
    pub(super) repeated_by_sensor: u64,
    /// Readings under a second id without that excuse.
    pub(super) repeated_unexplained: u64,
    /// QoS 2 readings under a second id.
    pub(super) qos_2_twice: u64,
    /// Ids that stand for two different readings.
    pub(super) ids_shared: u64,
    /// Sequences missing between 1 and the highest of each buffer.
    pub(super) ids_missing: u64,
    /// Records that no sensor sent, or without the headers every record has.
    pub(super) foreign: u64,
    /// Readings in Kafka that their sensor says it never published.
    pub(super) unpublished: u64,
    /// Readings refused by the relay.
    pub(super) refused: u64,
    /// Acknowledgements for nothing.
    pub(super) stray: u64,
}

impl Books {
    /// Compares. `records` of one partition stand in its order; `foreign` were counted by the reader.
    pub(super) fn new(accounts: &[Account], records: &[Record], foreign: u64) -> Self {
        let mut books = Self { foreign, records: count(records.len()), ..Self::default() };
        let mut found_of: Vec<Found> = accounts.iter().map(|account| Found::new(&account.journal)).collect();
        let mut ids: HashMap<EventId, (usize, u64)> = HashMap::with_capacity(records.len());
        for record in records {
            let (Some(account), Some(found)) = (accounts.get(record.sensor), found_of.get_mut(record.sensor)) else {
                add(&mut books.foreign);
                continue;
            };
            let repeated_id = match ids.entry(record.id) {
                Entry::Vacant(vacant) => {
                    vacant.insert((record.sensor, record.n));
                    false
                }
                Entry::Occupied(first) if *first.get() == (record.sensor, record.n) => true,
                Entry::Occupied(_) => {
                    add(&mut books.ids_shared);
                    continue;
                }
            };
            books.place(account, found, record, repeated_id);
        }
        books.ids = count(ids.len());
        books.ids_missing = missing(ids.keys());
        for (account, found) in accounts.iter().zip(&found_of) {
            books.close(&account.journal, found);
        }
        books
    }

    fn place(&mut self, account: &Account, found: &mut Found, record: &Record, repeated_id: bool) {
        let Some(seen) = usize::try_from(record.n).ok().and_then(|n| found.seen.get_mut(n.checked_sub(1)?)) else {
            add(&mut self.unpublished);
            return;
        };
        if repeated_id {
            add(&mut self.repeated_by_relay);
        } else if !*seen {
            *seen = true;
            add(&mut self.delivered);
            if record.n <= found.highest || found.partition.is_some_and(|partition| partition != record.partition) {
                add(&mut self.out_of_order);
            }
            found.highest = found.highest.max(record.n);
            found.partition = Some(record.partition);
        } else if account.qos == Qos::ExactlyOnce {
            add(&mut self.qos_2_twice);
        } else if account.journal.sent_again.contains(&record.n) {
            add(&mut self.repeated_by_sensor);
        } else {
            add(&mut self.repeated_unexplained);
        }
    }

    fn close(&mut self, journal: &Journal, found: &Found) {
        self.published += count(journal.acknowledged.len());
        self.refused += journal.refused;
        self.stray += journal.stray;
        for (acknowledged, seen) in journal.acknowledged.iter().zip(&found.seen) {
            if *acknowledged {
                add(&mut self.acknowledged);
                if !seen {
                    add(&mut self.lost);
                }
            }
        }
    }

    /// All repeats, whoever made them.
    pub(super) fn repeated(&self) -> u64 {
        [self.repeated_by_relay, self.repeated_by_sensor, self.repeated_unexplained, self.qos_2_twice].into_iter().sum()
    }

    /// Published and never acknowledged: the sensor still holds them. An acknowledgement too many is a fault of its own.
    pub(super) fn unacknowledged(&self) -> u64 {
        self.published.saturating_sub(self.acknowledged)
    }

    /// What must not be, in words; empty when the books balance.
    pub(super) fn faults(&self) -> Vec<String> {
        let rows = [
            (self.lost, "acknowledged and not in Kafka: lost"),
            (self.out_of_order, "out of order"),
            (self.qos_2_twice, "QoS 2 readings under two ids"),
            (self.repeated_unexplained, "repeats under a new id that no sensor sent again"),
            (self.ids_shared, "records under the id of a different reading"),
            (self.ids_missing, "sequences missing between the ids in Kafka"),
            (self.foreign, "records that no sensor sent, or without their headers"),
            (self.unpublished, "records of readings that were never published"),
            (self.refused, "readings refused by the relay"),
            (self.stray, "acknowledgements of something that was not in flight"),
        ];
        let mut faults: Vec<String> =
            rows.iter().filter(|(number, _)| *number > 0).map(|(number, what)| format!("{number} {what}")).collect();
        if self.acknowledged == 0 {
            faults.push("nothing was acknowledged at all".to_owned());
        }
        faults
    }
}

/// What Kafka holds of one sensor.
struct Found {
    seen: Vec<bool>,
    highest: u64,
    partition: Option<u32>,
}

impl Found {
    fn new(journal: &Journal) -> Self {
        Self { seen: vec![false; journal.acknowledged.len()], highest: 0, partition: None }
    }
}

/// Sequences missing between 1 and the highest, summed over the buffers.
fn missing<'a>(ids: impl Iterator<Item = &'a EventId>) -> u64 {
    let mut buffers: BTreeMap<Uuid, (u64, u64)> = BTreeMap::new();
    for id in ids {
        let (number, highest) = buffers.entry(id.buffer).or_default();
        add(number);
        *highest = id.sequence.max(*highest);
    }
    buffers.values().fold(0, |sum, (number, highest)| sum.saturating_add(highest.saturating_sub(*number)))
}

fn add(counter: &mut u64) {
    *counter += 1;
}

fn count(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(qos: Qos, acknowledged: &[bool], sent_again: &[u64]) -> Account {
        let journal = Journal {
            acknowledged: acknowledged.to_vec(),
            sent_again: sent_again.iter().copied().collect(),
            ..Journal::default()
        };
        Account { qos, journal }
    }

    fn record(sensor: usize, n: u64, sequence: u64) -> Record {
        Record { sensor, n, id: EventId { buffer: Uuid::nil(), sequence }, partition: 0 }
    }

    fn one(qos: Qos, acknowledged: &[bool], sent_again: &[u64], records: &[(u64, u64)]) -> Books {
        let records: Vec<Record> = records.iter().map(|(n, sequence)| record(0, *n, *sequence)).collect();
        Books::new(&[account(qos, acknowledged, sent_again)], &records, 0)
    }

    #[test]
    fn everything_once_and_in_order_balances() {
        let accounts = [account(Qos::AtLeastOnce, &[true; 2], &[]), account(Qos::ExactlyOnce, &[true; 2], &[])];
        let records = [record(0, 1, 1), record(1, 1, 2), record(1, 2, 3), record(0, 2, 4)];
        let books = Books::new(&accounts, &records, 0);
        let expected = Books { published: 4, acknowledged: 4, delivered: 4, records: 4, ids: 4, ..Books::default() };
        assert_eq!(books, expected);
        assert_eq!(books.faults(), Vec::<String>::new());
    }

    #[test]
    fn an_acknowledged_reading_that_kafka_does_not_hold_is_lost() {
        let books = one(Qos::AtLeastOnce, &[true, true], &[], &[(1, 1)]);
        assert_eq!((books.lost, books.delivered), (1, 1));
        assert_eq!(books.faults(), ["1 acknowledged and not in Kafka: lost"]);
    }

    #[test]
    fn a_reading_without_acknowledgement_may_be_missing_or_there() {
        let books = one(Qos::AtLeastOnce, &[true, false, false], &[], &[(1, 1), (2, 2)]);
        assert_eq!((books.lost, books.delivered, books.unacknowledged()), (0, 2, 2));
        assert!(books.faults().is_empty());
    }

    #[test]
    fn a_repeat_with_the_same_id_is_the_relays_and_allowed() {
        let books = one(Qos::ExactlyOnce, &[true, true], &[], &[(1, 1), (2, 2), (1, 1), (2, 2)]);
        assert_eq!((books.repeated_by_relay, books.repeated(), books.out_of_order), (2, 2, 0));
        assert!(books.faults().is_empty());
    }

    #[test]
    fn a_repeat_with_another_id_is_the_sensors_only_if_it_did_send_again() {
        let again = one(Qos::AtLeastOnce, &[true], &[1], &[(1, 1), (1, 2)]);
        assert_eq!(again.repeated_by_sensor, 1);
        assert!(again.faults().is_empty());
        let unexplained = one(Qos::AtLeastOnce, &[true], &[], &[(1, 1), (1, 2)]);
        assert_eq!(unexplained.repeated_unexplained, 1);
        assert_eq!(unexplained.faults().len(), 1);
    }

    #[test]
    fn a_qos_2_reading_under_two_ids_is_a_fault_even_if_it_was_sent_again() {
        let books = one(Qos::ExactlyOnce, &[true], &[1], &[(1, 1), (1, 2)]);
        assert_eq!(books.qos_2_twice, 1);
        assert_eq!(books.faults(), ["1 QoS 2 readings under two ids"]);
    }

    #[test]
    fn order_is_that_of_first_appearances_so_a_repeat_may_come_late() {
        let repeat = one(Qos::AtLeastOnce, &[true; 3], &[2], &[(1, 1), (2, 2), (3, 3), (2, 4)]);
        assert_eq!((repeat.out_of_order, repeat.repeated_by_sensor), (0, 1));
        let late = one(Qos::AtLeastOnce, &[true; 3], &[], &[(1, 1), (3, 2), (2, 3)]);
        assert_eq!(late.out_of_order, 1);
        assert_eq!(late.faults(), ["1 out of order"]);
    }

    #[test]
    fn a_topic_in_two_partitions_has_no_order() {
        let mut records = [record(0, 1, 1), record(0, 2, 2)];
        records[1].partition = 1;
        let books = Books::new(&[account(Qos::AtLeastOnce, &[true; 2], &[])], &records, 0);
        assert_eq!(books.out_of_order, 1);
    }

    #[test]
    fn ids_are_contiguous_and_belong_to_one_reading() {
        let gap = one(Qos::AtLeastOnce, &[true; 2], &[], &[(1, 1), (2, 3)]);
        assert_eq!(gap.ids_missing, 1);
        let shared = one(Qos::AtLeastOnce, &[true; 2], &[], &[(1, 1), (2, 1)]);
        assert_eq!((shared.ids_shared, shared.lost), (1, 1));
        assert_eq!(gap.faults().len(), 1);
        assert_eq!(shared.faults().len(), 2);
    }

    #[test]
    fn what_no_sensor_published_is_a_fault() {
        assert_eq!(one(Qos::AtLeastOnce, &[true], &[], &[(1, 1), (2, 2)]).unpublished, 1);
        assert_eq!(Books::new(&[], &[record(4, 1, 1)], 2).foreign, 3);
    }

    #[test]
    fn books_with_nothing_in_them_do_not_balance() {
        assert_eq!(Books::new(&[], &[], 0).faults(), ["nothing was acknowledged at all"]);
    }

    #[test]
    fn the_id_header_is_read_and_rubbish_is_not() {
        let buffer = Uuid::from_u128(7);
        assert_eq!(event_id(format!("{buffer}:42").as_bytes()), Some(EventId { buffer, sequence: 42 }));
        for rubbish in [&b""[..], b"42", b":", b"x:1", b"\xff:1", format!("{buffer}:-1").as_bytes()] {
            assert_eq!(event_id(rubbish), None);
        }
    }
}
