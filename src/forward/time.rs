//! The time that records bear: one that Kafka takes, whatever the gateway's clock says.
//!
//! # Why the gateway's clock is not enough
//!
//! Kafka refuses a record that is more than `message.timestamp.after.max.ms` (an hour, unless set) ahead of its own clock,
//! and deletes on arrival what is older than the topic's retention. A gateway without a clock battery is wrong by years,
//! and readings wait for weeks. So a record bears the time at which it is sent (`timestamp = "delivery"`), by a clock that
//! agrees with Kafka's; when the reading arrived, by the gateway's clock, stands in `tidegate-arrived`.
//!
//! # How Kafka's time is known
//!
//! The watermark topic has `message.timestamp.type=LogAppendTime`, so that the report of every record there says what time
//! it was at the broker. With transactions that comes for nothing with each commit. It is asked for on purpose
//!
//! * before anything is sent, while the gateway's clock is doubtful (no time server, or before this program was made);
//! * when Kafka has refused the time of a record;
//!
//! by a transaction that has nothing but the watermark, and with at-least-once by one record without a value under the key
//! `<buffer id>/clock`. From then on Kafka's time goes on by the time since boot. A local clock that is within
//! [`CLOSE_MS`] of it is used as it is.
//!
//! Where nobody tells (the topic is missing, or its records bear the senders' time) the local clock is believed until
//! Kafka refuses it. Then it is taken to be ahead: by 2 hours, 4, 8 … ([`Times::step_back`]), which is a handful of refused
//! batches for a whole start and never one a reading. What is refused even so is the topic's own doing: it is parked.

use std::collections::HashSet;
use std::sync::Arc;

use crate::clock::{self, Clock, EARLIEST_MS, Moment};
use crate::event::Event;
use crate::planted::{Bug, planted};
use crate::settings::Timestamp;

/// A clock that is so close to Kafka's is right enough: Kafka takes an hour, and commits are reported late on slow links.
const CLOSE_MS: i64 = 5 * 60_000;

/// Kafka is not asked again sooner: a topic that refuses every time would have a question before each of its batches.
const ASK_AGAIN_MS: i64 = 60_000;

/// The first step back, twice as far as Kafka lets a record be ahead; each further one is twice as far.
const STEP_MS: i64 = 2 * 3_600_000;

/// 2 hours doubled so often are 119 years.
const MOST_STEPS: u32 = 19;

/// Topics that take no old records are remembered up to this number; a sensor may choose a part of their names.
const MOST_LATE_TOPICS: usize = 1_000;

/// See the documentation of the module.
#[derive(Debug)]
pub(super) struct Times {
    mode: Timestamp,
    now: Moment,
    /// Kafka's time at a moment since boot.
    kafka: Option<Known>,
    question: Question,
    /// When Kafka has refused a time last, since boot.
    refused_ms: Option<i64>,
    /// Since the last time that was taken.
    steps: u32,
    /// Their records bear the time of delivery although that of arrival was asked for.
    late_topics: HashSet<Arc<str>>,
    /// How far the clock was off, to the minute, when it was said last.
    said: i64,
}

#[derive(Debug, Clone, Copy)]
struct Known {
    kafka_ms: i64,
    uptime_ms: i64,
    /// Kafka said so; otherwise it is a guess, good for that clock only.
    told: bool,
    clock: Clock,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Question {
    /// If the clock is doubtful.
    IfDoubtful,
    /// Kafka has refused a time, or a parked lane waits.
    Wanted,
    /// Asked; the answer has not come yet.
    Asked,
    /// There was an answer, or nobody who could give one.
    Settled,
}

/// What a refused time leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// It is known what to do differently: send again.
    Again,
    /// The topic takes no time that there is.
    Hopeless,
}

impl Times {
    /// Knows nothing of Kafka's time yet.
    pub(super) fn new(mode: Timestamp) -> Self {
        Self {
            mode,
            now: clock::now(),
            kafka: None,
            question: Question::IfDoubtful,
            refused_ms: None,
            steps: 0,
            late_topics: HashSet::new(),
            said: 0,
        }
    }

    /// Looks at the clock; once a turn of the loop.
    pub(super) fn tick(&mut self, now: Moment) {
        self.now = now;
        let was_set = |known: &Known| known.clock.booted_ms.abs_diff(now.clock.booted_ms) > CLOSE_MS.unsigned_abs();
        if self.kafka.take_if(|known| !known.told && was_set(known)).is_some() {
            // A guess about the clock as it was.
            (self.question, self.steps) = (Question::IfDoubtful, 0);
        }
    }

    /// Is Kafka to be asked for the time before anything else is sent?
    pub(super) fn wants_to_ask(&self) -> bool {
        match self.question {
            Question::IfDoubtful => self.kafka.is_none() && self.now.is_doubtful(),
            Question::Wanted => true,
            Question::Asked | Question::Settled => false,
        }
    }

    /// ... even if the main lane has nothing to send.
    pub(super) fn is_urgent(&self) -> bool {
        self.question == Question::Wanted
    }

    /// The answer is waited for.
    pub(super) fn is_pending(&self) -> bool {
        matches!(self.question, Question::Wanted | Question::Asked)
    }

    /// May a parked lane send? If not, the main lane asks.
    pub(super) fn is_settled(&mut self) -> bool {
        if self.wants_to_ask() {
            self.question = Question::Wanted;
        }
        !self.is_pending()
    }

    /// It is being asked.
    pub(super) fn asked(&mut self) {
        self.question = Question::Asked;
    }

    /// Who was to answer is gone.
    pub(super) fn unanswered(&mut self) {
        if self.question == Question::Asked {
            self.question = Question::Wanted;
        }
    }

    /// A record of the watermark topic was written: at this time of Kafka's, at that moment since boot. `None`: the topic
    /// does not tell.
    pub(super) fn heard(&mut self, told: Option<(i64, i64)>) {
        match told {
            Some((kafka_ms, uptime_ms)) => {
                self.kafka = Some(Known { kafka_ms, uptime_ms, told: true, clock: self.now.clock });
                (self.question, self.steps) = (Question::Settled, 0);
                self.say();
            }
            None if self.question == Question::Asked => self.nobody_tells(),
            None => {}
        }
    }

    /// How far the gateway's clock is ahead of Kafka's, if Kafka has said its time.
    pub(super) fn ahead_ms(&self) -> Option<i64> {
        self.kafka.filter(|known| known.told).map(|known| self.now.wall_ms.saturating_sub(self.then(&known)))
    }

    /// The time now, as Kafka would say it as far as that is known.
    pub(super) fn now_ms(&self) -> i64 {
        let local = self.now.wall_ms;
        if planted(Bug::BelieveTheClock) {
            return local;
        }
        match self.kafka.map(|known| (known.told, self.then(&known))) {
            Some((true, kafka)) if kafka.abs_diff(local) <= CLOSE_MS.unsigned_abs() => local,
            Some((_, kafka)) => kafka,
            None => local,
        }
    }

    /// The time stamp of an event's record.
    pub(super) fn stamp(&self, event: &Event, topic: &str) -> i64 {
        let now_ms = self.now_ms();
        if planted(Bug::StampArrival) {
            return event.arrived_ms;
        }
        match self.mode {
            Timestamp::Delivery => now_ms,
            Timestamp::Arrival if self.late_topics.contains(topic) => now_ms,
            Timestamp::Arrival => self.arrived(event, now_ms).min(now_ms),
        }
    }

    /// What `tidegate-sent` bears: the time of delivery, where the record itself bears that of arrival.
    pub(super) fn sent_ms(&self) -> Option<i64> {
        (self.mode == Timestamp::Arrival).then(|| self.now_ms())
    }

    /// Kafka has refused the time of records of that topic.
    pub(super) fn refused(&mut self, topic: &Arc<str>) -> Refusal {
        let uptime_ms = self.now.uptime_ms();
        let asked_lately = self.refused_ms.is_some_and(|at| uptime_ms.saturating_sub(at) < ASK_AGAIN_MS);
        if !asked_lately {
            self.refused_ms = Some(uptime_ms);
            self.question = Question::Wanted;
            return Refusal::Again;
        }
        if self.mode == Timestamp::Arrival
            && self.late_topics.len() < MOST_LATE_TOPICS
            && !self.late_topics.contains(topic)
        {
            tracing::warn!(
                topic = &**topic,
                "kafka: the topic refuses records with the time of arrival (message.timestamp.before.max.ms); the \
                 agent gives them the time of delivery from now on"
            );
            self.late_topics.insert(Arc::clone(topic));
            return Refusal::Again;
        }
        let told = self.kafka.is_some_and(|known| known.told);
        if !told && self.step_back() { Refusal::Again } else { Refusal::Hopeless }
    }

    /// Kafka has refused the time of a watermark: then its topic tells no time.
    pub(super) fn refused_watermark(&mut self) {
        self.refused_ms = Some(self.now.uptime_ms());
        self.question = Question::Settled;
        self.step_back();
    }

    fn nobody_tells(&mut self) {
        self.question = Question::Settled;
        if self.refused_ms.is_some() {
            self.step_back();
        } else if self.now.wall_ms < EARLIEST_MS {
            self.guess(EARLIEST_MS);
        }
    }

    /// The clock is ahead, nobody knows how far: further than was thought. False when there is no further.
    fn step_back(&mut self) -> bool {
        if self.steps >= MOST_STEPS {
            return false;
        }
        let ahead_ms = STEP_MS.saturating_mul(1_i64.checked_shl(self.steps).unwrap_or(i64::MAX));
        self.steps += 1;
        let guess = self.now.wall_ms.saturating_sub(ahead_ms);
        if guess <= EARLIEST_MS {
            self.steps = MOST_STEPS;
        }
        self.guess(guess.max(EARLIEST_MS));
        true
    }

    fn guess(&mut self, kafka_ms: i64) {
        self.kafka = Some(Known { kafka_ms, uptime_ms: self.now.uptime_ms(), told: false, clock: self.now.clock });
        self.say();
    }

    /// What that knowledge says of the present moment.
    fn then(&self, known: &Known) -> i64 {
        known.kafka_ms.saturating_add(self.now.uptime_ms().saturating_sub(known.uptime_ms))
    }

    /// When an event arrived. If that was in this boot, and by a clock that was wrong, the time since boot tells.
    fn arrived(&self, event: &Event, now_ms: i64) -> i64 {
        if event.clock.boot != self.now.clock.boot {
            return event.arrived_ms;
        }
        let arrival = Moment { wall_ms: event.arrived_ms, clock: event.clock };
        let waited_ms = self.now.uptime_ms().saturating_sub(arrival.uptime_ms()).max(0);
        let mended = now_ms.saturating_sub(waited_ms);
        if mended.abs_diff(event.arrived_ms) <= CLOSE_MS.unsigned_abs() { event.arrived_ms } else { mended }
    }

    fn say(&mut self) {
        let Some(known) = self.kafka else { return };
        let ahead_ms = self.now.wall_ms.saturating_sub(self.then(&known));
        let minutes = if ahead_ms.unsigned_abs() <= CLOSE_MS.unsigned_abs() { 0 } else { ahead_ms / 60_000 };
        // It drifts by a minute in weeks; a further step is news.
        if minutes.abs_diff(self.said) <= 5 && (minutes == 0) == (self.said == 0) {
            return;
        }
        self.said = minutes;
        if minutes == 0 {
            tracing::info!(ahead_s = ahead_ms / 1000, "kafka: the gateway's clock agrees with Kafka's again");
        } else {
            tracing::warn!(
                ahead_s = ahead_ms / 1000,
                told_by_kafka = known.told,
                "kafka: the gateway's clock differs from Kafka's; the records have Kafka's time, and the header \
                 tidegate-arrived has the time of arrival by the gateway's clock: set the clock, or give the gateway \
                 a time server"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::event::{Qos, RouteId};

    const HOUR: i64 = 3_600_000;
    const NOON: i64 = EARLIEST_MS + 1_000 * HOUR;

    fn moment(wall_ms: i64, uptime_ms: i64, synchronised: bool) -> Moment {
        Moment { wall_ms, clock: Clock { boot: 1, booted_ms: wall_ms - uptime_ms, synchronised } }
    }

    fn times(mode: Timestamp, now: Moment) -> Times {
        let mut times = Times::new(mode);
        times.tick(now);
        times
    }

    fn event(arrival: Moment) -> Event {
        Event {
            topic: "t".into(),
            payload: Bytes::new(),
            qos: Qos::AtLeastOnce,
            retain: false,
            dup: false,
            arrived_ms: arrival.wall_ms,
            clock: arrival.clock,
            route: RouteId(1),
            sender: None,
            properties: None,
        }
    }

    #[test]
    fn a_good_clock_is_believed_and_nobody_is_asked() {
        let times = times(Timestamp::Delivery, moment(NOON, HOUR, true));
        assert!(!times.wants_to_ask());
        assert_eq!(times.stamp(&event(moment(NOON - 900 * HOUR, 0, true)), "t"), NOON);
        assert_eq!(times.sent_ms(), None);
    }

    #[test]
    fn a_doubtful_clock_is_asked_about_and_kafkas_time_goes_on_by_the_time_since_boot() {
        for wall in [0, -HOUR, NOON + 500_000 * HOUR, NOON] {
            let mut times = times(Timestamp::Delivery, moment(wall, HOUR, false));
            assert!(times.wants_to_ask());
            times.asked();
            assert!(!times.wants_to_ask());
            // The link broke: it is asked again, and parked lanes wait.
            times.unanswered();
            assert!(times.wants_to_ask() && !times.is_settled());
            times.asked();
            times.heard(Some((NOON, HOUR)));
            assert!(times.is_settled());
            times.tick(moment(wall + HOUR, 2 * HOUR, false));
            assert_eq!(times.now_ms(), NOON + HOUR, "{wall}");
            assert_eq!(times.ahead_ms(), Some(wall - NOON));
        }
    }

    #[test]
    fn a_clock_that_is_close_to_kafkas_is_used_as_it_is() {
        let mut times = times(Timestamp::Delivery, moment(NOON, HOUR, true));
        times.heard(Some((NOON - 60_000, HOUR)));
        assert_eq!(times.now_ms(), NOON);
        // It is set by two hours: Kafka's time goes on as it was.
        times.tick(moment(NOON + 3 * HOUR, 2 * HOUR, true));
        assert_eq!(times.now_ms(), NOON - 60_000 + HOUR);
    }

    #[test]
    fn where_nobody_tells_a_clock_that_is_ahead_is_found_in_a_few_steps_and_a_set_clock_is_believed_again() {
        for ahead in [2 * HOUR, 24 * HOUR, 30 * 24 * HOUR] {
            let (wall, topic) = (NOON + ahead, Arc::from("t"));
            let mut times = times(Timestamp::Delivery, moment(wall, HOUR, true));
            let mut refusals = 0;
            while times.now_ms() > NOON + HOUR {
                assert_eq!(times.refused(&topic), Refusal::Again);
                refusals += 1;
                if times.wants_to_ask() {
                    times.asked();
                    times.heard(None);
                }
            }
            assert!(refusals <= 11 && times.now_ms() > NOON - ahead, "{ahead}: {refusals}");
            times.tick(moment(NOON + 7, HOUR, true));
            assert_eq!(times.now_ms(), NOON + 7);
        }
    }

    #[test]
    fn a_topic_that_refuses_what_kafka_itself_says_is_hopeless_and_asked_about_once_a_minute() {
        let topic = Arc::from("t");
        let mut times = times(Timestamp::Delivery, moment(NOON, HOUR, true));
        assert_eq!(times.refused(&topic), Refusal::Again);
        times.asked();
        times.heard(Some((NOON, HOUR)));
        assert_eq!(times.refused(&topic), Refusal::Hopeless);
        times.tick(moment(NOON + 70_000, HOUR + 70_000, true));
        assert_eq!(times.refused(&topic), Refusal::Again);
        assert!(times.wants_to_ask());
    }

    #[test]
    fn with_nobody_to_tell_it_ends_at_the_earliest_time_there_is() {
        let topic = Arc::from("t");
        let mut times = times(Timestamp::Delivery, moment(NOON + 400_000 * HOUR, HOUR, true));
        let mut refusals = 0;
        while times.refused(&topic) == Refusal::Again {
            if times.wants_to_ask() {
                times.asked();
                times.heard(None);
            }
            refusals += 1;
            assert!(refusals <= 25);
        }
        assert_eq!(times.now_ms(), EARLIEST_MS);
    }

    #[test]
    fn arrival_is_mended_by_the_time_since_boot_and_never_ahead_of_now() {
        let wrong = moment(HOUR, HOUR, false);
        let mut times = times(Timestamp::Arrival, moment(NOON, 3 * HOUR, true));
        assert_eq!(times.stamp(&event(wrong), "t"), NOON - 2 * HOUR);
        assert_eq!(times.stamp(&event(moment(NOON - HOUR, 2 * HOUR, true)), "t"), NOON - HOUR);
        // Of another boot nothing is known.
        let other = Moment { clock: Clock { boot: 2, ..wrong.clock }, ..wrong };
        assert_eq!(times.stamp(&event(other), "t"), HOUR);
        let ahead = Moment { wall_ms: NOON + 9 * HOUR, ..other };
        assert_eq!(times.stamp(&event(ahead), "t"), NOON);
        assert_eq!(times.sent_ms(), Some(NOON));
        // A topic that takes only young records gets the time of delivery.
        let topic: Arc<str> = Arc::from("t");
        times.heard(Some((NOON, 3 * HOUR)));
        assert_eq!(times.refused(&topic), Refusal::Again);
        times.asked();
        times.heard(Some((NOON, 3 * HOUR)));
        assert_eq!(times.refused(&topic), Refusal::Again);
        assert_eq!(times.stamp(&event(other), "t"), NOON);
        assert_eq!(times.stamp(&event(other), "u"), HOUR);
        assert_eq!(times.refused(&topic), Refusal::Hopeless);
    }
}
