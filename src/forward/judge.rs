//! What refused records mean, whoever has sent them: the one place that judges them.
//!
//! Each code has its verdict (`verdict.rs`). The sender's bisection says which of several suspects is the bad record. What is done
//! about a closed topic or a dead record is the owner's: see `Feed::judged`.

use std::collections::BTreeSet;
use std::sync::Arc;

use rdkafka::types::RDKafkaErrorCode as Code;

use super::bisection::{Bisection, Finding};
use super::producer::Failure;
use super::verdict::{Verdict, verdict};

/// Why a new producer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Renewal {
    /// It is known what to do differently now.
    AtOnce,
    /// For reasons outside: wait first.
    AfterWait(Code, String),
}

/// What the failures mean that came back together.
#[derive(Debug, Default)]
pub(super) struct Judged {
    /// How many there were.
    pub(super) failures: usize,
    /// Records that Kafka will never take.
    pub(super) dead: Vec<Failure>,
    /// Kafka topics that are missing, forbidden or confirm nothing.
    pub(super) closed: Vec<(String, Code)>,
    /// Kafka topics that have refused the time of records.
    pub(super) mistimed: BTreeSet<Arc<str>>,
    /// The code of the first failure.
    first: Option<Code>,
    /// The producer cannot be trusted any more.
    distrusted: Option<Code>,
    /// It is known what to do differently.
    understood: bool,
}

impl Judged {
    /// Gives every failure its verdict. Nothing is in flight any more, or nothing more is waited for.
    pub(super) fn of(failures: Vec<Failure>, bisection: &mut Bisection) -> Self {
        let first = failures.first().map(|failure| failure.code);
        let mut judged = Self { failures: failures.len(), first, ..Self::default() };
        let mut suspects = Vec::new();
        for failure in failures {
            match verdict(failure.code) {
                Verdict::Wait | Verdict::Resend => {}
                Verdict::NewProducer => judged.distrusted = Some(failure.code),
                Verdict::Alone => suspects.push(failure),
                Verdict::Retime => drop(judged.mistimed.insert(Arc::from(failure.topic))),
                Verdict::ParkTopic => judged.closed.push((failure.topic, failure.code)),
                Verdict::DeadLetter => judged.dead.push(failure),
            }
        }
        let newest = suspects.iter().map(|suspect| suspect.sequence).max();
        judged.understood =
            newest.is_some() || !judged.dead.is_empty() || !judged.closed.is_empty() || !judged.mistimed.is_empty();
        if let Some(newest) = newest
            && bisection.refused(suspects.len(), newest) == Finding::BadRecord
        {
            judged.dead.extend(suspects.pop());
        }
        judged
    }

    /// Does the producer have to go, whose fatal error that is?
    pub(super) fn renewal(&self, fatal: Option<(Code, String)>) -> Option<Renewal> {
        match (self.distrusted, fatal) {
            (None, None) => None,
            // A refusal within a batch is fatal by our own wish (gapless); it is judged here.
            (_, Some(_)) if self.understood => Some(Renewal::AtOnce),
            (_, Some((code, detail))) => Some(Renewal::AfterWait(code, detail)),
            (Some(code), None) => Some(Renewal::AfterWait(code, String::new())),
        }
    }

    /// The same where a transaction came to nothing: sent again at once it would come back at once, unless it is known what
    /// to do differently.
    pub(super) fn renewal_after_abort(&self, fatal: Option<(Code, String)>) -> Option<Renewal> {
        let nothing = || {
            let cause = self.first.unwrap_or(Code::Fail);
            (!self.understood).then(|| Renewal::AfterWait(cause, "a transaction was aborted".to_owned()))
        };
        self.renewal(fatal).or_else(nothing)
    }

    /// The producer cannot be trusted any more, for that reason.
    pub(super) fn distrusted(&self) -> Option<Code> {
        self.distrusted
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{RouteId, Sequence};

    fn failures(codes: &[Code]) -> Vec<Failure> {
        let failure = |(sequence, code): (Sequence, &Code)| {
            let (route, topic) = (RouteId(1), "t".to_owned());
            Failure { sequence, route, topic, code: *code }
        };
        (1..).zip(codes).map(failure).collect()
    }

    fn dead(judged: &Judged) -> Vec<Sequence> {
        judged.dead.iter().map(|failure| failure.sequence).collect()
    }

    const FATAL: (Code, &str) = (Code::GaplessGuarantee, "gap");

    fn fatal() -> (Code, String) {
        (FATAL.0, FATAL.1.to_owned())
    }

    #[test]
    fn a_suspect_among_others_is_not_blamed_and_one_that_was_alone_is() {
        let mut bisection = Bisection::default();
        let among = Judged::of(failures(&[Code::InvalidRecord, Code::InvalidRecord, Code::PurgeQueue]), &mut bisection);
        assert_eq!((dead(&among), among.renewal(Some(fatal()))), (vec![], Some(Renewal::AtOnce)));
        let alone = Judged::of(failures(&[Code::InvalidRecord, Code::InvalidDifferentRecord]), &mut bisection);
        assert_eq!((dead(&alone), alone.renewal(None)), (vec![1], None));
    }

    #[test]
    fn a_fatal_error_that_no_record_explains_waits_and_one_that_a_record_explains_does_not() {
        let victims = Judged::of(failures(&[Code::PurgeQueue, Code::PurgeInflight]), &mut Bisection::default());
        assert_eq!(victims.renewal(Some(fatal())), Some(Renewal::AfterWait(FATAL.0, FATAL.1.to_owned())));
        let closed =
            Judged::of(failures(&[Code::UnknownTopicOrPartition, Code::PurgeQueue]), &mut Bisection::default());
        assert_eq!(closed.renewal(Some(fatal())), Some(Renewal::AtOnce));
        assert_eq!(closed.closed, [("t".to_owned(), Code::UnknownTopicOrPartition)]);
    }

    #[test]
    fn an_unknown_code_costs_the_producer_and_no_record() {
        let judged =
            Judged::of(failures(&[Code::UnknownProducerId, Code::InvalidTimestamp]), &mut Bisection::default());
        assert_eq!(judged.distrusted(), Some(Code::UnknownProducerId));
        assert_eq!(judged.renewal(None), Some(Renewal::AfterWait(Code::UnknownProducerId, String::new())));
        assert_eq!((dead(&judged), judged.mistimed.len()), (vec![], 1));
    }

    #[test]
    fn a_transaction_that_came_to_nothing_goes_again_at_once_only_when_it_is_known_what_to_change() {
        let victims = Judged::of(failures(&[Code::PurgeQueue]), &mut Bisection::default());
        let why = "a transaction was aborted".to_owned();
        assert_eq!(victims.renewal_after_abort(None), Some(Renewal::AfterWait(Code::PurgeQueue, why)));
        let closed = Judged::of(failures(&[Code::TopicAuthorizationFailed]), &mut Bisection::default());
        assert_eq!(closed.renewal_after_abort(None), None);
    }
}
