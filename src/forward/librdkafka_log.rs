//! What librdkafka tells nowhere but in its log, besides what `end_txn.rs` hears: why a start takes so long, and what
//! brokers answer to batches that it sends again and again by itself. `debug=eos,msg` makes it say so.
//!
//! They are lines of librdkafka's [`TESTED`](super::end_txn::TESTED) version, not an interface. No promise rests on them:
//! without them readings wait all the same, and less is said about why.

use std::collections::HashMap;
use std::time::Instant;

/// Topics with an unanswered refusal that are remembered: for a sentence in the status.
const MOST_TOPICS: usize = 256;

/// The topic in a line that says that it may not be written. In a transaction that is refused before any record is sent,
/// for all topics together, and librdkafka tells nowhere else which of them it was: `Failed to add partition "<topic>"
/// [<n>] to transaction: Broker: Topic authorization failed`, facility `ADDPARTS`.
pub(super) fn forbidden_topic<'a>(facility: &str, line: &'a str) -> Option<&'a str> {
    if facility != "ADDPARTS" || !line.ends_with("Topic authorization failed") {
        return None;
    }
    let (_, rest) = line.split_once("Failed to add partition \"")?;
    rest.split_once("\" [").map(|(topic, _)| topic)
}

/// What is in the way of a registration (`init_transactions`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum RegistrationProblem {
    /// The cluster names no coordinator for transactions; in Kafka's words.
    NoCoordinator(String),
    /// Kafka has not ended this producer's last transaction on all partitions yet.
    StillOpen,
    /// Anything else, in librdkafka's words.
    Other(String),
}

/// What was heard.
#[derive(Debug, Default)]
pub(super) struct LibrdkafkaLog {
    registration_problem: Option<(RegistrationProblem, Instant)>,
    /// By Kafka topic: the answer to the last batch, and how often in a row there was no good one.
    refusals: HashMap<String, (String, u32)>,
    /// When a connection last failed.
    remarked: Option<Instant>,
}

impl LibrdkafkaLog {
    /// A line of the log.
    pub(super) fn hear(&mut self, facility: &str, line: &str, now: Instant) {
        match facility {
            "GETPID" | "TXNCOORD" => {
                if line.contains("Transaction coordinator is broker") {
                    self.registration_problem = self.registration_problem.take().filter(|(registration_problem, _)| {
                        !matches!(registration_problem, RegistrationProblem::NoCoordinator(_))
                    });
                }
                if let Some(registration_problem) = registration_problem(facility, line) {
                    let since = self
                        .registration_problem
                        .take()
                        .filter(|(was, _)| same(was, &registration_problem))
                        .map_or(now, |(_, since)| since);
                    self.registration_problem = Some((registration_problem, since));
                }
            }
            "MSGSET" => {
                let Some((topic, answer)) = refused(line) else { return };
                if let Some((last, count)) = self.refusals.get_mut(topic) {
                    answer.clone_into(last);
                    *count += 1;
                } else if self.refusals.len() < MOST_TOPICS {
                    self.refusals.insert(topic.to_owned(), (answer.to_owned(), 1));
                }
            }
            _ => {}
        }
    }

    /// A connection has failed.
    pub(super) fn remark(&mut self, now: Instant) {
        self.remarked = Some(now);
    }

    /// When a connection last failed.
    pub(super) fn remarked(&self) -> Option<Instant> {
        self.remarked
    }

    /// Something for that topic was confirmed.
    pub(super) fn taken(&mut self, topic: &str) {
        if !self.refusals.is_empty() {
            self.refusals.remove(topic);
        }
    }

    /// What is in the way of the registration, since when.
    pub(super) fn registration_problem(&self) -> Option<(RegistrationProblem, Instant)> {
        self.registration_problem.clone()
    }

    /// The answer to the last batch for that topic, and how often in a row there was no good one.
    pub(super) fn refusal(&self, topic: &str) -> Option<(String, u32)> {
        self.refusals.get(topic).cloned()
    }
}

/// The same cause, whatever the words.
fn same(one: &RegistrationProblem, other: &RegistrationProblem) -> bool {
    std::mem::discriminant(one) == std::mem::discriminant(other)
}

/// `Failed to acquire transactional PID from broker <name>: <error>: retrying`, facility `GETPID`, or `Failed to find
/// transaction coordinator: <name of the error>: <error>`, facility `TXNCOORD`.
fn registration_problem(facility: &str, line: &str) -> Option<RegistrationProblem> {
    if facility == "TXNCOORD" {
        let (_, error) = line.split_once("Failed to find transaction coordinator: ")?;
        let words = error.split_once(": ").map_or(error, |(_, words)| words).to_owned();
        let away = error.starts_with("COORDINATOR_NOT_AVAILABLE");
        return Some(if away { RegistrationProblem::NoCoordinator(words) } else { RegistrationProblem::Other(words) });
    }
    let (_, rest) = line.split_once("Failed to acquire transactional PID from broker ")?;
    let (_, error) = rest.split_once(": ")?;
    let error = error.strip_suffix(": retrying").unwrap_or(error);
    Some(if error.contains("another concurrent operation on the same transaction") {
        RegistrationProblem::StillOpen
    } else {
        RegistrationProblem::Other(error.to_owned())
    })
}

/// `<topic> [<n>]: MessageSet with … encountered error: <error> (actions …)`: topic and error, unless it is a victim of
/// another error.
fn refused(line: &str) -> Option<(&str, &str)> {
    let (place, rest) = line.split_once("]: MessageSet with ")?;
    let (place, _partition) = place.rsplit_once(" [")?;
    // Before the topic stand the thread and the broker, each with a colon and a blank behind.
    let topic = place.rsplit_once(": ").map_or(place, |(_, topic)| topic);
    let (_, error) = rest.split_once("encountered error: ")?;
    let (error, _) = error.split_once(" (actions ")?;
    Some((topic, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_forbidden_topic_is_found_among_those_that_were_not_attempted() {
        let line = |topic, why| {
            format!(
                "[thrd:main]: 127.0.0.1:9092/1: Failed to add partition \"{topic}\" [3] to transaction: Broker: {why}"
            )
        };
        let forbidden = line("a.b-c", "Topic authorization failed");
        assert_eq!(forbidden_topic("ADDPARTS", &forbidden), Some("a.b-c"));
        assert_eq!(forbidden_topic("ADDPARTS", &line("other", "Operation not attempted")), None);
        assert_eq!(forbidden_topic("ENDTXN", &forbidden), None);
    }

    #[test]
    fn what_is_in_the_way_of_a_start_is_told_apart_and_since_when() {
        let concurrent = "[thrd:main]: Failed to acquire transactional PID from broker TxnCoordinator/1: Broker: Producer \
                          attempted to update a transaction while another concurrent operation on the same transaction \
                          was ongoing: retrying";
        let none = "[thrd:main]: Failed to find transaction coordinator: COORDINATOR_NOT_AVAILABLE: The coordinator is \
                    not available.";
        let loading = "[thrd:main]: Failed to acquire transactional PID from broker TxnCoordinator/1: Broker: \
                       Coordinator load in progress: retrying";
        let (mut log, start) = (LibrdkafkaLog::default(), Instant::now());
        let later = start + std::time::Duration::from_secs(1);
        log.hear("GETPID", concurrent, start);
        log.hear("GETPID", concurrent, later);
        assert_eq!(log.registration_problem(), Some((RegistrationProblem::StillOpen, start)));
        log.hear("TXNCOORD", none, later);
        assert_eq!(
            log.registration_problem(),
            Some((RegistrationProblem::NoCoordinator("The coordinator is not available.".into()), later))
        );
        log.hear("GETPID", loading, later);
        assert_eq!(
            log.registration_problem(),
            Some((RegistrationProblem::Other("Broker: Coordinator load in progress".into()), later))
        );
        log.hear("TXNCOORD", "[thrd:main]: Querying for transaction coordinator: Acquire PID", later);
        assert!(matches!(log.registration_problem(), Some((RegistrationProblem::Other(_), _))));
    }

    #[test]
    fn the_answers_to_batches_are_counted_by_topic_until_one_is_taken() {
        let line = "[thrd:127.0.0.1:9092/1]: 127.0.0.1:9092/1: a.b-c [0]: MessageSet with 3 message(s) (MsgId 1, BaseSeq 0) \
                    encountered error: Broker: Not enough in-sync replicas (actions Retry,MsgNotPersisted)";
        let mut log = LibrdkafkaLog::default();
        for count in 1..=3 {
            log.hear("MSGSET", line, Instant::now());
            assert_eq!(log.refusal("a.b-c"), Some(("Broker: Not enough in-sync replicas".into(), count)));
        }
        log.taken("other");
        assert!(log.refusal("a.b-c").is_some());
        log.taken("a.b-c");
        assert_eq!(log.refusal("a.b-c"), None);
    }
}
