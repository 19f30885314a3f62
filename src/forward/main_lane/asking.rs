//! Without transactions no commit tells Kafka's time: it is asked for, when it matters, before anything is sent.

use std::sync::Arc;
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::MainLane;
use crate::forward::aside::Call;
use crate::forward::producer::Producer;
use crate::forward::shared::Shared;
use crate::forward::topic_state::{Answers, Found};
use crate::watermark;

/// The answer is there after a round trip or two, and a new connection; after this time nobody gives it.
const ANSWER: Duration = Duration::from_secs(10);

/// Where Kafka is asked for the time.
#[derive(Debug)]
pub(super) struct Asking {
    topic: Arc<str>,
    key: String,
    /// Whether there is such a topic is being asked, beside the loop.
    finding: Option<Call<Answers>>,
    /// The question is on its way.
    until: Option<Instant>,
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// What there is to know is known.
    Known,
    /// Nothing is to be sent before it is there.
    NotYet,
    /// It did not come, and may come late: this producer is over.
    Never,
}

impl MainLane {
    /// Without transactions: the topic that tells the time.
    pub(in crate::forward) fn asking_the_time(mut self, topic: &str, buffer_id: Uuid) -> Self {
        let key = watermark::clock_key(buffer_id);
        self.asking = Some(Asking { topic: Arc::from(topic), key, finding: None, until: None });
        self
    }

    /// The question is on its way.
    pub(super) fn is_asking(&self) -> bool {
        self.asking.as_ref().is_some_and(|asking| asking.finding.is_some() || asking.until.is_some())
    }

    /// The producer that had it is over.
    pub(super) fn forget_the_question(&mut self, shared: &mut Shared) {
        shared.times.unanswered();
        if let Some(asking) = &mut self.asking {
            asking.finding = None;
            asking.until = None;
        }
    }

    /// Asks if need be, without waiting.
    pub(super) fn ask_the_time(&mut self, producer: &Producer, shared: &mut Shared, now: Instant) -> Answer {
        let Some(asking) = &mut self.asking else { return Answer::Known };
        let Some(until) = asking.until else {
            if !shared.times.wants_to_ask() {
                return Answer::Known;
            }
            let Some(finding) = &asking.finding else {
                if producer.in_flight().0 == 0 && producer.has_met_a_broker() {
                    // Without a thread it is asked again.
                    asking.finding = producer.look(vec![Arc::clone(&asking.topic)]).ok();
                }
                return Answer::NotYet;
            };
            let Some(answers) = finding.answer() else { return Answer::NotYet };
            asking.finding = None;
            let is_there = |found: &Found| matches!(found, Found::Led { .. } | Found::Leaderless { .. });
            let finds = answers.iter().any(|(_, found)| is_there(found));
            shared.times.asked();
            let at_ms = shared.times.now_ms();
            if !finds || producer.ask_the_time(&asking.topic, &asking.key, at_ms).is_err() {
                tracing::info!(
                    topic = &*asking.topic,
                    "kafka: nobody tells the time; tidegate kafka-setup makes the topic that does"
                );
                shared.times.heard(None);
                return Answer::Known;
            }
            asking.until = now.checked_add(ANSWER);
            return Answer::NotYet;
        };
        match producer.sealed() {
            Ok(false) if now < until => return Answer::NotYet,
            Ok(true) => shared.times.heard(producer.told()),
            Ok(false) | Err(_) => shared.times.heard(None),
        }
        let answered = !matches!(producer.sealed(), Ok(false));
        asking.until = None;
        if answered { Answer::Known } else { Answer::Never }
    }
}
