//! Without transactions no commit tells Kafka's time: it is asked for, when it matters, before anything is sent.

use std::sync::Arc;
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::clients::Call;
use super::producer::Producer;
use super::time::Times;
use super::topic_state::{Answers, Found};
use crate::watermark;

/// The answer is there after a round trip or two, and a new connection; after this time nobody gives it.
const ANSWER: Duration = Duration::from_secs(10);

/// Where Kafka is asked for the time.
#[derive(Debug)]
pub(super) struct TimeRequest {
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
    /// It did not come, and may come late, or there is nobody to ask: this producer is over.
    Never,
}

impl TimeRequest {
    /// Of the topic that tells the time.
    pub(super) fn new(topic: &str, buffer_id: Uuid) -> Self {
        let key = watermark::clock_key(buffer_id);
        Self { topic: Arc::from(topic), key, finding: None, until: None }
    }

    /// The question is with Kafka.
    pub(super) fn is_on_its_way(&self) -> bool {
        self.until.is_some()
    }

    /// The producer that had it is over.
    pub(super) fn forget(&mut self) {
        self.finding = None;
        self.until = None;
    }

    /// Asks if need be, without waiting.
    pub(super) fn ask_the_time(&mut self, producer: &Producer, times: &mut Times, now: Instant) -> Answer {
        let Some(until) = self.until else {
            if !times.wants_to_ask() {
                return Answer::Known;
            }
            let Some(finding) = &self.finding else {
                if producer.in_flight().0 == 0 && producer.has_met_a_broker() {
                    // Without a thread it is asked again.
                    self.finding = producer.look(vec![Arc::clone(&self.topic)]).ok();
                }
                return Answer::NotYet;
            };
            let Some(answers) = finding.answer() else { return Answer::NotYet };
            self.finding = None;
            return self.send_the_question(&answers, producer, times, now);
        };
        match producer.sealed() {
            Ok(false) if now < until => return Answer::NotYet,
            Ok(true) => times.heard(producer.told()),
            Ok(false) | Err(_) => times.heard(None),
        }
        let answered = !matches!(producer.sealed(), Ok(false));
        self.until = None;
        if answered { Answer::Known } else { Answer::Never }
    }

    /// If there is such a topic, to it.
    fn send_the_question(&mut self, answers: &Answers, producer: &Producer, times: &mut Times, now: Instant) -> Answer {
        let is_there = |found: &Found| matches!(found, Found::Led { .. } | Found::Leaderless { .. });
        let finds = answers.iter().any(|(_, found)| is_there(found));
        times.asked();
        let at_ms = times.now_ms();
        if finds && producer.ask_the_time(&self.topic, &self.key, at_ms).is_ok() {
            self.until = now.checked_add(ANSWER);
            return Answer::NotYet;
        }
        tracing::info!(
            topic = &*self.topic,
            "kafka: the agent cannot learn Kafka's time, because the watermark topic is missing; tidegate \
             kafka-setup --apply creates it"
        );
        times.heard(None);
        // librdkafka would look for a topic that is not there once a second, as long as this producer lives.
        if finds { Answer::Known } else { Answer::Never }
    }
}
