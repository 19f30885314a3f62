//! Kafka topics that do not confirm although brokers answer: their partition has no leader, or too few replicas, or is led
//! by a broker that cannot be reached from here. librdkafka would send to them for ever and say nothing; what waits for
//! them would fill the window, and with transactions a single reading of theirs would keep all others from being
//! committed. So they are found here, and then wait in a lane of their own like a missing topic.
//!
//! A slow link is none of that. Age alone condemns nobody: a broker must have said that there is no leader, or refused
//! batch after batch; or, for long, brokers answer while some connection fails.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::types::RDKafkaErrorCode as Code;

use super::clients::Call;
use super::producer::Producer;
use super::topic_state::{Answers, Found};

/// A topic that has confirmed nothing for so long is looked at. Leaders are elected sooner.
pub(super) const OVERDUE: Duration = Duration::from_secs(5);

/// A topic whose batches were refused so often in a row, for so long, stays closed for a while. librdkafka sends again
/// after 0.1 s, then ever later, up to 1 s.
const REFUSED: u32 = 3;

/// librdkafka's words for both answers that tell of replicas.
const TOO_FEW: &str = "in-sync replicas";

/// So long brokers must answer that the topic has a leader, while it confirms nothing and connections fail.
const UNREACHABLE: Duration = Duration::from_secs(10);

/// Brokers are asked so often, twice as seldom after each answer that told nothing, and no more seldom than the second: a
/// question is some 100 bytes a topic, and on a narrow link much is overdue.
const ASK: Duration = Duration::from_secs(4);
const SELDOM: Duration = Duration::from_secs(16);

/// What is overdue is looked for so often.
const LOOK: Duration = Duration::from_millis(500);

/// Topics that are asked about together, and after an answer that told nothing.
const MOST: usize = 64;
const FEW: usize = 4;

/// One producer's.
#[derive(Debug, Default)]
pub(super) struct Stalls {
    asking: Option<Call<Answers>>,
    next_ask: Option<Instant>,
    /// The last answers told nothing.
    told_nothing: u32,
    next_look: Option<Instant>,
    /// Since when brokers say of an overdue topic that it has a leader.
    led: HashMap<Arc<str>, Instant>,
}

impl Stalls {
    /// The topics that shall wait alone, each with the reason. On this link nothing is `late` before that.
    pub(super) fn look(&mut self, producer: &Producer, late: Duration, now: Instant) -> Vec<(Arc<str>, Code)> {
        if self.next_look.is_some_and(|at| now < at) {
            return Vec::new();
        }
        self.next_look = now.checked_add(LOOK);
        let overdue = producer.overdue(late.max(OVERDUE), MOST, now);
        if overdue.is_empty() {
            self.led.clear();
            return Vec::new();
        }
        self.led.retain(|topic, _| overdue.contains(topic));
        let outnumbered = |topic: &&Arc<str>| refused(producer, topic).is_some_and(|answer| answer.contains(TOO_FEW));
        let mut stalled: Vec<(Arc<str>, Code)> =
            overdue.iter().filter(outnumbered).map(|topic| (Arc::clone(topic), Code::NotEnoughReplicas)).collect();
        if let Some(answer) = self.asking.as_ref().and_then(Call::answer) {
            self.asking = None;
            stalled.extend(self.answered(answer, &overdue, producer, now));
            self.told_nothing = if stalled.is_empty() { self.told_nothing + 1 } else { 0 };
        } else if self.asking.is_none() && self.next_ask.is_none_or(|at| at <= now) {
            let wait = (ASK * (1 << self.told_nothing.min(8))).min(SELDOM);
            self.next_ask = now.checked_add(wait);
            let mut topics = overdue;
            topics.truncate(if self.told_nothing == 0 { MOST } else { FEW });
            // Without a thread it is asked again later.
            self.asking = producer.look(topics).ok();
        }
        stalled
    }

    fn answered(
        &mut self,
        answer: Answers,
        overdue: &[Arc<str>],
        producer: &Producer,
        now: Instant,
    ) -> Vec<(Arc<str>, Code)> {
        let mut stalled = Vec::new();
        for (topic, found) in answer {
            if !overdue.contains(&topic) {
                continue;
            }
            match found {
                Found::Leaderless { .. } => stalled.push((topic, Code::LeaderNotAvailable)),
                Found::Led { .. } => {
                    let since = *self.led.entry(Arc::clone(&topic)).or_insert(now);
                    let cut_off = producer.last_remark().is_some_and(|at| at > since);
                    let failing = cut_off || refused(producer, &topic).is_some();
                    if failing && now.saturating_duration_since(since) >= UNREACHABLE {
                        stalled.push((topic, Code::TimedOutQueue));
                    }
                }
                // librdkafka reports these by itself.
                Found::Missing | Found::Forbidden => {}
                Found::Silent(_) => self.led.clear(),
            }
        }
        stalled
    }
}

/// What brokers have answered to batch after batch for that topic.
fn refused(producer: &Producer, topic: &str) -> Option<String> {
    producer.refusal(topic).filter(|(_, times)| *times >= REFUSED).map(|(answer, _)| answer)
}
