//! Is Kafka there? Turns librdkafka's many remarks into two log lines: one when the link is lost, one when it is back.
//!
//! librdkafka reports each broker, each address and each attempt. Somebody who reads the log after a week of outage
//! wants to know when it began, why, and when it ended. A human is needed only where waiting does not help: wrong
//! credentials or certificates; those are errors, said once and then at most once a minute with a count.

use std::time::{Duration, Instant};

use rdkafka::types::RDKafkaErrorCode as Code;

use crate::log_throttle::LogThrottle;

/// A link is lost when nobody has answered for so long after the last connection went. Brokers close idle connections
/// as a matter of course, and a broker that restarts alone in a cluster is back within seconds: neither is news.
const DOUBT: Duration = Duration::from_secs(3);

/// librdkafka tries a connection that is needed again after 2 s at most; 5,000 gateways do it.
const LATELY: Duration = Duration::from_secs(10);

/// While in doubt or without a link, and with nothing in flight that would tell: ask so often. A transaction begins only
/// when somebody has answered, so this is a part of the time from Kafka's return to the first commit.
const ASK: Duration = Duration::from_secs(1);

/// What librdkafka's error callback said since it was looked at last. Keeps the newest text only.
#[derive(Debug, Default)]
pub(super) struct Remarks {
    /// "All brokers are down", in librdkafka's words.
    pub(super) all_down: Option<String>,
    /// The newest remark.
    pub(super) newest: Option<String>,
    /// The newest one that waiting will not cure.
    pub(super) refused: Option<String>,
}

impl Remarks {
    /// One call of the error callback.
    #[expect(clippy::wildcard_enum_match_arm, reason = "all others are remarks about the link")]
    pub(super) fn hear(&mut self, code: Code, text: &str) {
        match code {
            Code::AllBrokersDown => {
                self.all_down = Some(text.to_owned());
                return;
            }
            // The lanes look for it themselves and judge what caused it.
            Code::Fatal | Code::GaplessGuarantee => return,
            _ => {}
        }
        if needs_a_human(code) {
            self.refused = Some(text.to_owned());
        }
        self.newest = Some(text.to_owned());
    }

    /// Nothing was said.
    pub(super) fn is_empty(&self) -> bool {
        self.all_down.is_none() && self.newest.is_none() && self.refused.is_none()
    }
}

fn needs_a_human(code: Code) -> bool {
    [
        Code::Authentication,
        Code::SaslAuthenticationFailed,
        Code::SSL,
        Code::ClusterAuthorizationFailed,
        Code::TransactionalIdAuthorizationFailed,
        Code::UnsupportedSASLMechanism,
        Code::UnsupportedFeature,
        Code::UnsupportedVersion,
    ]
    .contains(&code)
}

/// The state of the link and what was said about it.
#[derive(Debug, Default)]
pub(super) struct Link {
    state: State,
    /// For the status; empty when all is well.
    last_error: String,
    refused: LogThrottle,
    /// Somebody has refused this client, in these words, and nobody has answered since. Perhaps one broker of several, or
    /// one handshake: so as long as connections stand it says nothing about the others, and one of them is asked.
    refusing: Option<String>,
    /// The last refusal, answered or not.
    last_refusal: Option<(Instant, String)>,
    next_ask: Option<Instant>,
    /// Somebody has answered since start.
    met: bool,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Since start: no word yet.
    #[default]
    Unknown,
    Up,
    /// The last connection went at that time.
    Doubt(Instant),
    /// ... and nobody has answered since; it was said.
    Down(Instant),
}

/// A line for the log.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// WARN
    Lost(String),
    /// INFO, first contact since start.
    Connected,
    /// INFO, with the duration of the outage.
    Back(Duration),
    /// ERROR, with the number of times it was not said.
    Refused(String, u64),
}

impl Link {
    /// At least one broker answered the last time we heard anything.
    pub(super) fn connected(&self) -> bool {
        match self.state {
            State::Up => true,
            State::Doubt(_) => self.met && self.refusing.is_none(),
            State::Unknown | State::Down(_) => false,
        }
    }

    /// Still waiting for the first answer since start.
    pub(super) fn never_met(&self) -> bool {
        !self.met
    }

    /// For the status.
    pub(super) fn last_error(&self) -> &str {
        &self.last_error
    }

    /// Somebody has refused this client, in these words, and nobody has answered since.
    pub(super) fn refusing(&self) -> Option<&str> {
        self.refusing.as_deref()
    }

    /// Somebody refuses this client now and then, in these words, whatever others answer.
    pub(super) fn refused_lately(&self, now: Instant) -> Option<&str> {
        let (at, text) = self.last_refusal.as_ref()?;
        (now.saturating_duration_since(*at) < LATELY).then_some(text)
    }

    /// A broker answered: a confirmation, or cluster metadata.
    pub(super) fn answered(&mut self, now: Instant) -> Option<Line> {
        self.refusing = None;
        let line = match self.state {
            State::Up => {
                self.last_error.clear();
                return None;
            }
            State::Unknown => Some(Line::Connected),
            State::Doubt(_) => (!self.met).then_some(Line::Connected),
            State::Down(since) => Some(Line::Back(now.saturating_duration_since(since))),
        };
        self.state = State::Up;
        self.met = true;
        self.last_error.clear();
        self.refused = LogThrottle::default();
        line
    }

    /// What the error callback said.
    pub(super) fn heard(&mut self, remarks: Remarks, now: Instant) -> Option<Line> {
        if let Some(text) = remarks.newest {
            self.last_error = text;
        }
        if let Some(text) = remarks.all_down {
            if self.last_error.is_empty() {
                self.last_error = text; // says less than what a single broker's error says
            }
            if !matches!(self.state, State::Doubt(_) | State::Down(_)) {
                self.state = State::Doubt(now);
                self.next_ask = Some(now);
            }
        }
        let text = remarks.refused?;
        self.refusing = Some(text.clone());
        self.last_refusal = Some((now, text.clone()));
        let unsaid = self.refused.again(cause(&text), now)?;
        Some(Line::Refused(text, unsaid))
    }

    /// Time passes.
    pub(super) fn tick(&mut self, now: Instant) -> Option<Line> {
        let State::Doubt(since) = self.state else { return None };
        if now.saturating_duration_since(since) < DOUBT {
            return None;
        }
        self.state = State::Down(since);
        Some(Line::Lost(self.last_error.clone()))
    }

    /// Is it time to ask a broker whether it is there? Says yes once per interval.
    pub(super) fn wants_to_ask(&mut self, now: Instant) -> bool {
        let in_doubt = matches!(self.state, State::Doubt(_) | State::Down(_)) || self.refusing.is_some() && self.met;
        let due = in_doubt && self.next_ask.is_none_or(|at| at <= now);
        if due {
            self.next_ask = now.checked_add(ASK);
        }
        due
    }
}

/// librdkafka appends "(after 12ms in state …)", which differs each time.
fn cause(text: &str) -> &str {
    text.split(" (after ").next().unwrap_or(text)
}

/// Writes the line.
pub(super) fn say(line: Line) {
    match line {
        Line::Lost(error) => {
            tracing::warn!(error, "kafka: no broker answers; the buffer keeps the readings until one does");
        }
        Line::Connected => tracing::info!("kafka: connected"),
        Line::Back(outage) => {
            tracing::info!(outage_s = outage.as_secs_f64(), "kafka: connected again");
        }
        Line::Refused(error, repeats) => {
            tracing::error!(
                error,
                repeats,
                "kafka: a broker refuses this client; check the credentials and certificates in [kafka.options]"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remarks(said: &[(Code, &str)]) -> Remarks {
        let mut remarks = Remarks::default();
        for (code, text) in said {
            remarks.hear(*code, text);
        }
        remarks
    }

    fn after(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    const ALL_DOWN: [(Code, &str); 2] =
        [(Code::BrokerTransportFailure, "b1: refused"), (Code::AllBrokersDown, "2/2 brokers are down")];

    #[test]
    fn an_outage_is_one_line_at_its_begin_and_one_at_its_end() {
        let (mut link, start) = (Link::default(), Instant::now());
        assert_eq!(link.answered(start), Some(Line::Connected));
        assert_eq!(link.answered(start), None);
        let mut lines = vec![];
        for second in 0..1000 {
            lines.extend(link.heard(remarks(&ALL_DOWN), after(start, second)));
            lines.extend(link.tick(after(start, second)));
        }
        assert_eq!(lines, [Line::Lost("b1: refused".into())]);
        assert!(!link.connected());
        assert_eq!(link.last_error(), "b1: refused");
        assert_eq!(link.answered(after(start, 1000)), Some(Line::Back(Duration::from_secs(1000))));
        assert_eq!(link.last_error(), "");
    }

    #[test]
    fn an_idle_connection_that_is_closed_is_no_news_when_a_broker_answers_soon() {
        let (mut link, start) = (Link::default(), Instant::now());
        link.answered(start);
        assert_eq!(link.heard(remarks(&ALL_DOWN), start), None);
        assert!(link.wants_to_ask(start) && !link.wants_to_ask(start));
        assert_eq!(link.tick(after(start, 2)), None);
        assert!(link.connected());
        assert_eq!(link.answered(after(start, 2)), None);
        assert_eq!(link.tick(after(start, 60)), None);
    }

    #[test]
    fn a_start_without_kafka_is_said_once() {
        let (mut link, start) = (Link::default(), Instant::now());
        link.heard(remarks(&ALL_DOWN), start);
        assert!(!link.connected());
        let lines: Vec<Line> = (0..100).filter_map(|second| link.tick(after(start, second))).collect();
        assert_eq!(lines.len(), 1);
        assert!(!link.connected());
    }

    #[test]
    fn a_broker_that_goes_while_others_answer_is_no_line() {
        let mut link = Link::default();
        link.answered(Instant::now());
        assert_eq!(link.heard(remarks(&ALL_DOWN[..1]), Instant::now()), None);
        assert!(link.connected());
    }

    #[test]
    fn one_refusal_while_others_answer_stops_nothing_and_has_them_asked_until_one_has_answered() {
        let (mut link, start) = (Link::default(), Instant::now());
        link.answered(start);
        assert!(!link.wants_to_ask(start));
        let refused = |link: &mut Link, second| link.heard(remarks(&[(Code::SSL, "b2: alert")]), after(start, second));
        assert_eq!(refused(&mut link, 1), Some(Line::Refused("b2: alert".into(), 0)));
        assert!(link.connected());
        assert_eq!((link.refusing(), link.last_error()), (Some("b2: alert"), "b2: alert"));
        assert!(link.wants_to_ask(after(start, 1)), "nobody else may have anything to say");
        assert_eq!(link.answered(after(start, 2)), None);
        assert_eq!((link.refusing(), link.last_error()), (None, ""));
        assert!(!link.wants_to_ask(after(start, 9)));
        // Said once a minute all the same.
        assert_eq!(refused(&mut link, 3), None);
    }

    #[test]
    fn whoever_refuses_on_every_connection_is_no_link() {
        let (mut link, start) = (Link::default(), Instant::now());
        link.answered(start);
        let all = [(Code::Authentication, "b1: wrong password"), (Code::AllBrokersDown, "2/2 brokers are down")];
        link.heard(remarks(&all), start);
        assert!(!link.connected());
        assert_eq!(link.tick(after(start, 4)), Some(Line::Lost("b1: wrong password".into())));
        assert_eq!(link.refusing(), Some("b1: wrong password"));
    }

    #[test]
    fn a_wrong_password_is_said_once_and_then_once_a_minute_with_a_count() {
        let (mut link, start) = (Link::default(), Instant::now());
        let mut counts = vec![];
        for second in 0..=120 {
            let text = format!("SASL authentication failed (after {second}ms in state AUTH_REQ)");
            match link.heard(remarks(&[(Code::Authentication, &text)]), after(start, second)) {
                Some(Line::Refused(_, count)) => counts.push(count),
                None => {}
                Some(other) => panic!("{other:?}"),
            }
        }
        assert_eq!(counts, [0, 59, 59]);
        assert!(link.last_error().starts_with("SASL authentication failed"));
        assert!(!link.connected());
    }
}
