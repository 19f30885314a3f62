//! What librdkafka tells of its transactions nowhere but in its log: above all, was `EndTxn` sent more than once?
//!
//! **Rule B.** After a broken connection librdkafka sends `EndTxn` again and the commit returns Ok. The first request may
//! still be on its way; when it arrives while a later transaction of the same epoch is open, Kafka commits that one's
//! first part (librdkafka #5423; without this rule 60 late requests lost 7,264 records and repeated 400). A new producer
//! has a new epoch, and Kafka refuses the late request then. So: `debug=eos`, and here the two lines that matter:
//!
//! * facility `ENDTXN`, `EndTxn returned <error> in state …`: an answer, or the lack of one; anything but `NO_ERROR`
//!   means that the request goes out again;
//! * facility `TXNSTATE`, `… CommitNotAcked -> Ready`, or `AbortNotAcked`: the last line of an end. rdkafka hands log lines over through
//!   the event queue, so they may come after the call has returned: before this one nothing is known.
//!
//! They are text of librdkafka [`TESTED`], not an interface. A test provokes the retry and fails when it is not seen.

/// The version of librdkafka that rule B was tested with.
pub(super) const TESTED: &str = "2.12.1";

/// What the log has said about the present commit or abort.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct EndTxn {
    /// The request did not get a good answer at least once.
    pub(super) retried: bool,
    /// All its lines have been heard.
    pub(super) complete: bool,
}

impl EndTxn {
    /// A line of the log.
    pub(super) fn hear(&mut self, facility: &str, line: &str) {
        if facility == "ENDTXN" && line.contains("EndTxn returned") && !line.contains("returned NO_ERROR") {
            self.retried = true;
        }
        if facility == "TXNSTATE" && line.ends_with("NotAcked -> Ready") {
            self.complete = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(lines: &[(&str, &str)]) -> EndTxn {
        let mut heard = EndTxn::default();
        for (facility, line) in lines {
            heard.hear(facility, line);
        }
        heard
    }

    #[test]
    fn a_retry_is_seen_and_a_plain_commit_is_none() {
        const READY: (&str, &str) = ("TXNSTATE", "Transaction state change CommitNotAcked -> Ready");
        let good = ("ENDTXN", "EndTxn returned NO_ERROR in state CommittingTransaction (may_retry=false)");
        let bad = ("ENDTXN", "EndTxn returned _TRANSPORT in state CommittingTransaction (may_retry=true)");
        assert_eq!(after(&[good, READY]), EndTxn { retried: false, complete: true });
        assert_eq!(after(&[bad, good, READY]), EndTxn { retried: true, complete: true });
        assert_eq!(after(&[bad]), EndTxn { retried: true, complete: false });
        assert_eq!(
            after(&[("TXNSTATE", "Transaction state change BeginCommit -> CommittingTransaction")]),
            EndTxn::default()
        );
    }
}
