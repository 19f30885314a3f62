//! The last page: the books as a table, what they mean, and the verdict.

use std::process::ExitStatus;

use test_kit::books::Books;
use test_kit::publisher::Log;

use super::view::{View, grouped};
use crate::observe::status::Status;

/// Everything that the verdict hangs on.
#[derive(Debug)]
pub(super) struct Outcome {
    /// What Kafka holds against what the sensors say.
    pub(super) books: Books,
    /// Readings that the relay refused by reason code.
    pub(super) refused: u64,
    /// Acknowledgements of something that was not in flight.
    pub(super) stray: u64,
    /// The relay's own books, just before it was asked to stop; `None` when it did not answer.
    pub(super) relay: Option<Status>,
    /// How it ended; `None` when it had to be killed.
    pub(super) exit: Option<ExitStatus>,
}

impl Outcome {
    /// What Kafka holds and what the sensors say, before the relay is asked.
    pub(super) fn new(books: Books, logs: &[Log]) -> Self {
        let (refused, stray) = logs.iter().fold((0, 0), |(r, s), log| (r + log.refused, s + log.stray_answers));
        Self { books, refused, stray, relay: None, exit: None }
    }

    /// What must not be, in words.
    fn faults(&self) -> Vec<String> {
        let mut faults = self.faults_of_books();
        match &self.relay {
            None => faults.push("the relay did not show its own books".to_owned()),
            Some(status) if !status.balanced => faults.push("the relay's own books do not balance".to_owned()),
            Some(status) if status.total.received != self.books.ids => faults.push(format!(
                "the relay's own books say it received {}, Kafka holds {} ids",
                grouped(status.total.received),
                grouped(self.books.ids)
            )),
            Some(_) => {}
        }
        match self.exit {
            Some(status) if status.success() => {}
            Some(status) => faults.push(format!("the relay did not stop cleanly: {status}")),
            None => faults.push("the relay did not stop when asked, and was killed".to_owned()),
        }
        faults
    }

    fn faults_of_books(&self) -> Vec<String> {
        let books = &self.books;
        let rows = [
            (books.lost, "acknowledged and not in Kafka: lost"),
            (books.out_of_order, "out of order"),
            (unexplained(books), "readings under a second id, without a reason"),
            (books.bad_ids, "records without an id, or under the id of a different reading"),
            (books.holes, "sequences missing between the ids in Kafka"),
            (books.foreign, "records that no sensor sent"),
            (books.misdirected, "records under another MQTT topic or key"),
            (self.refused, "readings refused by the relay"),
            (self.stray, "acknowledgements of something that was not in flight"),
        ];
        let mut faults: Vec<String> =
            rows.iter().filter(|(number, _)| *number > 0).map(|(number, what)| format!("{number} {what}")).collect();
        if books.acknowledged == 0 {
            faults.push("nothing was acknowledged at all".to_owned());
        }
        faults
    }

    /// Prints all of it; true when everything balances.
    pub(super) fn tell(&self, view: &View) -> bool {
        view.line("");
        view.line(view.bold("The books, from what Kafka holds"));
        for (name, number, meaning) in rows(&self.books) {
            let row = format!("  {name:<32}{:>10}   {meaning}", grouped(number));
            view.line(row.trim_end());
        }
        view.line("");
        if let Some(status) = &self.relay {
            view.line(format!(
                "The relay's own books, kept on its disk through the kill: received {} · delivered {} · held {} · {}",
                grouped(status.total.received),
                grouped(status.total.delivered),
                grouped(status.total.held),
                if status.balanced { "balanced" } else { "NOT BALANCED" },
            ));
        }
        let faults = self.faults();
        if faults.is_empty() {
            view.line(view.good("The books balance: every reading that was acknowledged is in Kafka, in order."));
        } else {
            view.line(view.bad("The books do not balance:"));
            for fault in &faults {
                view.line(format!("  {fault}"));
            }
        }
        faults.is_empty()
    }
}

/// Readings under a second id that no sensor made: it sent them again at QoS 1, because the kill took the PUBACK that it
/// waited for. To everybody after the sensor these are two events. QoS 2 promises that there is none.
fn unexplained(books: &Books) -> u64 {
    books.taken_twice - books.sent_again
}

fn rows(books: &Books) -> Vec<(&'static str, u64, &'static str)> {
    let repeated = books.recognised + books.taken_twice;
    // An acknowledgement too many is a fault of its own.
    let unacknowledged = books.published.saturating_sub(books.acknowledged);
    let always = [
        ("published", books.published, "by the sensors, each reading counted once"),
        ("acknowledged", books.acknowledged, "PUBACK or PUBREC arrived: from then on the relay is responsible"),
        ("delivered", books.delivered, "different readings in Kafka, compared byte for byte"),
        ("lost", books.lost, "acknowledged, and not in Kafka"),
        ("out of order", books.out_of_order, "by MQTT topic, against the sensor's own counter"),
        ("repeated", repeated, "the same reading in Kafka more than once; of these:"),
        ("  sent again by the relay", books.recognised, "recognised by the same tidegate-id: a reader drops it"),
        (
            "  sent again by a sensor (QoS 1)",
            books.sent_again,
            "the kill stopped its PUBACK: a new event, with a new tidegate-id",
        ),
    ];
    let if_any = [
        (
            "  under two ids, for no reason",
            unexplained(books),
            "no sensor sent these again, or QoS 2 promises that this never happens",
        ),
        ("not acknowledged", unacknowledged, "the sensors still hold these: the relay promised nothing"),
    ];
    always.into_iter().chain(if_any.into_iter().filter(|(_, number, _)| *number > 0)).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;
    use crate::observe::status;

    fn good() -> Outcome {
        let books = Books { published: 3, acknowledged: 3, delivered: 3, records: 3, ids: 3, ..Books::default() };
        Outcome { books, refused: 0, stray: 0, relay: Some(relay(3, true)), exit: Some(ExitStatus::from_raw(0)) }
    }

    fn relay(received: u64, balanced: bool) -> Status {
        Status { total: status::Books { received, ..status::Books::default() }, balanced, ..Status::default() }
    }

    #[test]
    fn only_a_run_with_balanced_books_and_a_clean_stop_is_without_fault() {
        assert_eq!(good().faults(), Vec::<String>::new());
        let mut lost = good();
        lost.books.lost = 1;
        let mut shared = good();
        shared.books.bad_ids = 1;
        let mut twice = good();
        twice.books.taken_twice = 1;
        let refused = Outcome { refused: 1, ..good() };
        let stray = Outcome { stray: 1, ..good() };
        let nothing = Outcome { books: Books { ids: 3, ..Books::default() }, ..good() };
        let unbalanced = Outcome { relay: Some(relay(3, false)), ..good() };
        let other = Outcome { relay: Some(relay(4, true)), ..good() };
        let silent = Outcome { relay: None, ..good() };
        let failed = Outcome { exit: Some(ExitStatus::from_raw(256)), ..good() };
        let stuck = Outcome { exit: None, ..good() };
        for outcome in [lost, shared, twice, refused, stray, nothing, unbalanced, other, silent, failed, stuck] {
            assert_eq!(outcome.faults().len(), 1, "{outcome:?}");
        }
    }

    #[test]
    fn allowed_repeats_are_no_fault() {
        let mut outcome = good();
        outcome.books.recognised = 5;
        (outcome.books.taken_twice, outcome.books.sent_again) = (2, 2);
        assert!(outcome.faults().is_empty());
    }
}
