//! The oracle: what publishers were acknowledged against what Kafka holds.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;

use crate::plan::Plan;
use crate::publisher::Log;
use crate::reader::Record;
use crate::{Trouble, Verdict};

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
    /// Records that no publisher has published, byte for byte; readings that none has published yet.
    pub foreign: u64,
    /// Different ids that Kafka holds.
    pub ids: u64,
    /// Records that repeat another one under the same `tidegate-id`: a consumer drops them.
    pub recognised: u64,
    /// Records that repeat a reading under another id: the relay took it twice.
    pub taken_twice: u64,
    /// Of these: at QoS 1, of a reading that its publisher had sent again, because no answer had come.
    pub sent_again: u64,
    /// First occurrences that come after one published later on the same MQTT topic, or in another partition.
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
        let mut ledger = Ledger::new(logs.iter().map(|log| log.plan.clone()));
        for record in records {
            ledger.enter(record);
        }
        ledger.close(logs)
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

    fn example(&mut self, text: String) {
        if self.examples.len() < EXAMPLES {
            self.examples.push(text);
        }
    }
}

/// A publisher, by its place among the plans, and the number of its reading.
type Reading = (usize, u64);

/// A buffer, by its place among those seen, and a sequence.
type Id = (usize, u64);

/// Takes records down as they come, and remembers about 100 bytes of each.
pub struct Ledger {
    plans: Vec<Plan>,
    by_name: HashMap<String, usize>,
    buffers: HashMap<String, usize>,
    /// With the first id.
    readings: HashMap<Reading, Id>,
    ids: HashMap<Id, Reading>,
    /// By publisher and topic: the newest one so far.
    newest: HashMap<(usize, String), Newest>,
    /// Each under an id of its own.
    taken_twice: Vec<Reading>,
    books: Books,
}

/// The reading with the highest number of its topic, and where it lies.
struct Newest {
    n: u64,
    topic: String,
    partition: i32,
}

impl Ledger {
    /// Of publishers with these plans; of two with one name, the last one counts.
    pub fn new(plans: impl IntoIterator<Item = Plan>) -> Self {
        let plans: Vec<Plan> = plans.into_iter().collect();
        let by_name = plans.iter().enumerate().map(|(place, plan)| (plan.name.clone(), place)).collect();
        Self {
            plans,
            by_name,
            buffers: HashMap::new(),
            readings: HashMap::new(),
            ids: HashMap::new(),
            newest: HashMap::new(),
            taken_twice: Vec::new(),
            books: Books::default(),
        }
    }

    /// Different readings until now.
    pub fn readings(&self) -> u64 {
        self.readings.len() as u64
    }

    /// Takes a record down. Records of one partition come in its order.
    pub fn enter(&mut self, record: &Record) {
        self.books.records += 1;
        let claim = Plan::name_and_number(&record.payload);
        let known = claim.and_then(|(name, n)| Some((*self.by_name.get(name)?, n)));
        let of = |(place, n): Reading| self.plans.get(place).filter(|plan| plan.payload(n) == record.payload);
        let Some((reading, plan)) = known.and_then(|reading| Some((reading, of(reading)?))) else {
            self.books.foreign += 1;
            return self.books.example(format!("foreign: {}", record.payload.escape_ascii()));
        };
        let (name, n, topic) = (plan.name.clone(), reading.1, plan.topic(reading.1).to_owned());
        if record.mqtt_topic() != topic || record.key.as_deref() != Some(topic.as_bytes()) {
            self.books.misdirected += 1;
            let misdirected = format!("misdirected: {name}/{n} as {} key {:?}", record.mqtt_topic(), record.key);
            self.books.example(misdirected);
        }
        let Some((buffer, sequence)) = record.id() else {
            self.books.bad_ids += 1;
            return self.books.example(format!("no id: {:?}", record.headers));
        };
        let next = self.buffers.len();
        let id = (*self.buffers.entry(buffer).or_insert(next), sequence);
        self.enter_reading(reading, id, topic, record);
    }

    fn enter_reading(&mut self, reading: Reading, id: Id, topic: String, record: &Record) {
        let text = || String::from_utf8_lossy(record.payload.split(|byte| *byte == b' ').next().unwrap_or_default());
        let known_id = self.ids.insert(id, reading);
        if known_id.is_some_and(|other| other != reading) {
            self.books.bad_ids += 1;
            self.books.example(format!("{} stands on {known_id:?} and {}", record.text("tidegate-id"), text()));
        }
        match self.readings.entry(reading) {
            Entry::Vacant(vacant) => {
                vacant.insert(id);
                self.order(reading, topic, record);
            }
            Entry::Occupied(_) if known_id.is_some() => self.books.recognised += 1,
            Entry::Occupied(first) => {
                self.books.taken_twice += 1;
                self.taken_twice.push(reading);
                let first = first.get().1;
                let twice = format!("taken twice: {} as {first} and {}", text(), record.text("tidegate-id"));
                self.books.example(twice);
            }
        }
    }

    /// Of its first occurrence.
    fn order(&mut self, (publisher, n): Reading, topic: String, record: &Record) {
        let at = || Newest { n, topic: record.topic.clone(), partition: record.partition };
        let newest = self.newest.entry((publisher, topic)).or_insert_with(at);
        let elsewhere = newest.topic == record.topic && newest.partition != record.partition;
        let (late, after) = (n < newest.n, format!("{} in partition {}", newest.n, newest.partition));
        if !late {
            *newest = at();
        }
        if !late && !elsewhere {
            return;
        }
        let place = format!("at offset {} of partition {}", record.offset, record.partition);
        self.books.out_of_order += 1;
        let name = self.plans.get(publisher).map(|plan| plan.name.as_str()).unwrap_or_default();
        self.books.example(format!("out of order: {name}/{n} after {after}, {place}"));
    }

    /// Closes the books with what the publishers say in the end.
    pub fn close(mut self, logs: &[Log]) -> Books {
        let mut logs_of: HashMap<usize, Vec<&Log>> = HashMap::new();
        for log in logs {
            let Some(publisher) = self.by_name.get(&log.plan.name).copied() else { continue };
            logs_of.entry(publisher).or_default().push(log);
            self.books.published += log.published;
            self.books.acknowledged += log.acknowledged_count();
            for n in (0..log.published).filter(|n| log.is_acknowledged(*n)) {
                if !self.readings.contains_key(&(publisher, n)) {
                    self.books.lost += 1;
                    self.books.example(format!("lost: {}/{n}", log.plan.name));
                }
            }
        }
        let is_so = |(publisher, n): &Reading, holds: &dyn Fn(&Log) -> bool| {
            logs_of.get(publisher).is_some_and(|logs| logs.iter().any(|log| *n < log.published && holds(log)))
        };
        self.books.foreign += self.readings.keys().filter(|reading| !is_so(reading, &|_| true)).count() as u64;
        let excused = |(_, n): &Reading, log: &Log| log.plan.qos == 1 && log.sent_again.contains(n);
        let sent_again = self.taken_twice.iter().filter(|reading| is_so(reading, &|log| excused(reading, log)));
        self.books.sent_again = sent_again.count() as u64;
        self.books.delivered = self.readings.len() as u64;
        self.books.ids = self.ids.len() as u64;
        self.books.holes = self.holes();
        self.books
    }

    /// Sequences between the first and the last of each buffer that no record bears.
    fn holes(&self) -> u64 {
        let mut spans: BTreeMap<usize, (u64, u64, u64)> = BTreeMap::new();
        for (buffer, sequence) in self.ids.keys() {
            let (first, last, count) = spans.entry(*buffer).or_insert((*sequence, *sequence, 0));
            (*first, *last, *count) = ((*first).min(*sequence), (*last).max(*sequence), *count + 1);
        }
        spans.values().map(|(first, last, count)| last - first + 1 - count).sum()
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
            let acknowledged = (0..log.published).filter(|n| log.is_acknowledged(*n));
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
    fn a_topic_in_two_partitions_has_no_order_and_in_two_kafka_topics_it_may_be() {
        let mut records = [record(0, 1, 0), record(1, 2, 0)];
        records[1].partition = 1;
        assert_eq!(Books::close(&[log(2)], &records).out_of_order, 1);
        records[1].topic = "another".into();
        assert_eq!(Books::close(&[log(2)], &records).out_of_order, 0);
    }

    #[test]
    fn a_reading_under_a_second_id_is_its_publishers_only_if_it_did_send_again_at_qos_1() {
        let twice = [record(0, 1, 0), record(0, 2, 1)];
        let mut log = log(1);
        let books = |log: &Log| Books::close(std::slice::from_ref(log), &twice);
        assert_eq!((books(&log).taken_twice, books(&log).sent_again), (1, 0));
        log.sent_again.insert(0);
        assert_eq!((books(&log).taken_twice, books(&log).sent_again), (1, 1));
        log.plan.qos = 2;
        assert_eq!((books(&log).taken_twice, books(&log).sent_again), (1, 0));
    }

    #[test]
    fn what_no_sensor_published_yet_is_foreign() {
        let books = Books::close(&[log(1)], &[record(0, 1, 0), record(1, 2, 1)]);
        assert_eq!((books.foreign, books.lost), (1, 0));
        books.at_least_once().unwrap_err();
    }

    #[test]
    fn missing_shrinks_as_records_come() {
        let mut missing = Missing::of(&[log(2)]);
        assert!(!missing.none(&[record(0, 1, 0)]));
        assert_eq!(missing.count(), 1);
        assert!(missing.none(&[record(0, 1, 0), record(1, 2, 1)]));
    }
}
