//! The oracle: what publishers were acknowledged against what Kafka holds.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;

use super::publisher::{Log, Plan};
use super::reader::Record;
use super::{Trouble, Verdict};

/// The result. Numbers first, examples for people.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Books {
    /// Readings written to a socket at least once.
    pub published: u64,
    /// Readings whose custody was acknowledged.
    pub acknowledged: u64,
    /// Different readings that Kafka holds.
    pub delivered: u64,
    /// Records that Kafka holds.
    pub records: u64,
    /// Acknowledged and not in Kafka.
    pub lost: u64,
    /// Records that no publisher has published, byte for byte.
    pub foreign: u64,
    /// Records that repeat another one under the same `tidegate-id`: a consumer drops them.
    pub recognised: u64,
    /// Records that repeat a reading under another id: the relay took it twice.
    pub taken_twice: u64,
    /// First occurrences that come before one published earlier on the same MQTT topic.
    pub out_of_order: u64,
    /// Ids that are missing, malformed, or stand on two different readings.
    pub bad_ids: u64,
    /// Sequences between the first and the last of a buffer that no record bears. Counts only what was read.
    pub holes: u64,
    /// Records whose `mqtt-topic` is not the topic of the reading, or whose key is not that topic.
    pub misdirected: u64,
    /// A few words on the first faults.
    pub examples: Vec<String>,
}

/// How many examples people want to read.
const EXAMPLES: usize = 8;

impl Books {
    /// Closes the books.
    pub fn close(logs: &[Log], records: &[Record]) -> Self {
        let mut books = Self::default();
        let by_name: HashMap<&str, &Log> = logs.iter().map(|log| (log.plan.name.as_str(), log)).collect();
        let mut seen = Seen::default();
        for record in records {
            books.enter(&by_name, record, &mut seen);
        }
        for log in logs {
            books.published += log.published;
            books.acknowledged += log.acknowledged_count();
            for n in (0..log.published).filter(|n| log.acknowledged.get(*n as usize) == Some(&true)) {
                if !seen.readings.contains_key(&(log.plan.name.clone(), n)) {
                    books.lost += 1;
                    books.example(format!("lost: {}/{n}", log.plan.name));
                }
            }
        }
        books.delivered = seen.readings.len() as u64;
        books.holes = seen.holes();
        books
    }

    /// Nothing lost, invented, misdirected or out of order; every repeat bears the id of what it repeats.
    pub fn at_least_once(&self) -> Verdict {
        let faults = self.lost + self.foreign + self.out_of_order + self.bad_ids + self.misdirected;
        if faults == 0 { Ok(()) } else { Err(Trouble(self.to_string())) }
    }

    /// Besides, no reading was taken twice: what QoS 2 promises for the MQTT hop.
    pub fn once_into_the_buffer(&self) -> Verdict {
        self.at_least_once()?;
        if self.taken_twice == 0 { Ok(()) } else { Err(Trouble(self.to_string())) }
    }

    /// Besides, Kafka holds every reading once: what a run without trouble leaves.
    pub fn exactly_once(&self) -> Verdict {
        self.once_into_the_buffer()?;
        if self.recognised == 0 && self.holes == 0 { Ok(()) } else { Err(Trouble(self.to_string())) }
    }

    fn enter(&mut self, logs: &HashMap<&str, &Log>, record: &Record, seen: &mut Seen) {
        self.records += 1;
        let claim = Plan::name_and_number(&record.payload);
        let known = claim.and_then(|(name, n)| Some((logs.get(name)?, name, n)));
        let Some((log, name, n)) = known.filter(|(log, _, n)| log.plan.payload(*n) == record.payload) else {
            self.foreign += 1;
            return self.example(format!("foreign: {}", record.payload.escape_ascii()));
        };
        let topic = log.plan.topic(n);
        if record.mqtt_topic() != topic || record.key.as_deref() != Some(topic.as_bytes()) {
            self.misdirected += 1;
            self.example(format!("misdirected: {name}/{n} as {} key {:?}", record.mqtt_topic(), record.key));
        }
        let Some(id) = record.id() else {
            self.bad_ids += 1;
            return self.example(format!("no id: {:?}", record.headers));
        };
        let reading = (name.to_owned(), n);
        if seen.ids.get(&id).is_some_and(|other| *other != reading) {
            self.bad_ids += 1;
            self.example(format!("{id:?} stands on {:?} and {reading:?}", seen.ids.get(&id)));
        }
        let first = !seen.readings.contains_key(&reading);
        if first {
            let newest = seen.newest.entry((name.to_owned(), topic.to_owned())).or_insert(n);
            if n < *newest {
                self.out_of_order += 1;
                let newest = *newest;
                self.example(format!("out of order: {name}/{n} after {newest} at offset {}", record.offset));
            } else {
                *newest = n;
            }
        } else if seen.ids.contains_key(&id) {
            self.recognised += 1;
        } else {
            self.taken_twice += 1;
            self.example(format!("taken twice: {reading:?} as {:?} and {id:?}", seen.readings.get(&reading)));
        }
        seen.ids.insert(id.clone(), reading.clone());
        seen.readings.entry(reading).or_insert(id);
    }

    fn example(&mut self, text: String) {
        if self.examples.len() < EXAMPLES {
            self.examples.push(text);
        }
    }
}

/// An id as [`Record::id`] gives it.
type Id = (String, u64);

#[derive(Default)]
struct Seen {
    /// Publisher and number, with the first id.
    readings: HashMap<(String, u64), Id>,
    ids: HashMap<Id, (String, u64)>,
    /// By publisher and topic: the highest number so far.
    newest: HashMap<(String, String), u64>,
}

impl Seen {
    fn holes(&self) -> u64 {
        let mut buffers: BTreeMap<&str, BTreeSet<u64>> = BTreeMap::new();
        for (buffer, sequence) in self.ids.keys() {
            buffers.entry(buffer).or_default().insert(*sequence);
        }
        let span = |sequences: &BTreeSet<u64>| match (sequences.first(), sequences.last()) {
            (Some(first), Some(last)) => last - first + 1 - sequences.len() as u64,
            _ => 0,
        };
        buffers.values().map(span).sum()
    }
}

/// How many of the acknowledged readings are still missing; cheap enough to be asked again and again.
pub struct Missing {
    wanted: HashSet<Vec<u8>>,
    looked_at: usize,
}

impl Missing {
    /// All that these publishers were acknowledged.
    pub fn of(logs: &[Log]) -> Self {
        let mut wanted = HashSet::new();
        for log in logs {
            let acknowledged = (0..log.published).filter(|n| log.acknowledged.get(*n as usize) == Some(&true));
            wanted.extend(acknowledged.map(|n| log.plan.payload(n)));
        }
        Self { wanted, looked_at: 0 }
    }

    /// Looks at the records that came since the last question; true when nothing is missing.
    pub fn none(&mut self, records: &[Record]) -> bool {
        for record in records.get(self.looked_at..).unwrap_or_default() {
            self.wanted.remove(&record.payload);
        }
        self.looked_at = records.len();
        self.wanted.is_empty()
    }

    /// How many.
    pub fn count(&self) -> usize {
        self.wanted.len()
    }
}

impl fmt::Display for Books {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "published {} · acknowledged {} · delivered {} ({} records) · lost {} · foreign {} · repeats {} recognised, {} taken twice · \
             out of order {} · bad ids {} · holes {} · misdirected {}",
            self.published,
            self.acknowledged,
            self.delivered,
            self.records,
            self.lost,
            self.foreign,
            self.recognised,
            self.taken_twice,
            self.out_of_order,
            self.bad_ids,
            self.holes,
            self.misdirected
        )?;
        self.examples.iter().try_for_each(|example| writeln!(f, "  {example}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(count: u64) -> Log {
        Log::all_acknowledged(Plan::new("p", "t", 1), count)
    }

    fn record(n: u64, sequence: u64, offset: i64) -> Record {
        Record {
            topic: "k".into(),
            partition: 0,
            offset,
            timestamp_ms: None,
            key: Some(b"t".to_vec()),
            has_payload: true,
            payload: Plan::new("p", "t", 1).payload(n),
            headers: vec![
                ("tidegate-id".into(), format!("b:{sequence}").into_bytes()),
                ("mqtt-topic".into(), b"t".to_vec()),
            ],
        }
    }

    #[test]
    fn a_clean_run_balances() {
        let books = Books::close(&[log(3)], &[record(0, 1, 0), record(1, 2, 1), record(2, 3, 2)]);
        books.exactly_once().unwrap();
        assert_eq!((books.published, books.acknowledged, books.delivered), (3, 3, 3));
    }

    #[test]
    fn a_lost_reading_is_seen_and_an_unacknowledged_one_is_not_missed() {
        let mut log = log(3);
        log.acknowledged = vec![true, true, false];
        let books = Books::close(&[log], &[record(0, 1, 0)]);
        assert_eq!(books.lost, 1);
        books.at_least_once().unwrap_err();
    }

    #[test]
    fn repeats_are_sorted_by_their_ids() {
        let records = [record(0, 1, 0), record(0, 1, 1), record(0, 2, 2)];
        let books = Books::close(&[log(1)], &records);
        assert_eq!((books.recognised, books.taken_twice, books.lost), (1, 1, 0));
        books.at_least_once().unwrap();
        books.once_into_the_buffer().unwrap_err();
    }

    #[test]
    fn a_repeat_from_behind_is_not_out_of_order_but_a_late_first_is() {
        let again = [record(0, 1, 0), record(1, 2, 1), record(0, 1, 2)];
        assert_eq!(Books::close(&[log(2)], &again).out_of_order, 0);
        let late = [record(1, 2, 0), record(0, 1, 1)];
        assert_eq!(Books::close(&[log(2)], &late).out_of_order, 1);
    }

    #[test]
    fn strangers_wrong_ids_holes_and_wrong_topics_are_seen() {
        let mut stranger = record(0, 1, 0);
        stranger.payload = b"else".to_vec();
        let mut nameless = record(0, 1, 1);
        nameless.headers.remove(0);
        let mut elsewhere = record(1, 2, 2);
        elsewhere.key = Some(b"other".to_vec());
        let books = Books::close(&[log(3)], &[stranger, nameless, elsewhere, record(2, 2, 3), record(0, 9, 4)]);
        assert_eq!((books.foreign, books.bad_ids, books.misdirected, books.holes), (1, 2, 1, 6));
    }

    #[test]
    fn missing_shrinks_as_records_come() {
        let mut missing = Missing::of(&[log(2)]);
        assert!(!missing.none(&[record(0, 1, 0)]));
        assert_eq!(missing.count(), 1);
        assert!(missing.none(&[record(0, 1, 0), record(1, 2, 1)]));
    }
}
