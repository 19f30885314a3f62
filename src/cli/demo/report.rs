//! The last page: the books as a table, what they mean, and the verdict.

use std::process::ExitStatus;

use super::books::Books;
use super::view::{View, grouped};
use crate::observe::status::Status;

/// Everything that the verdict hangs on.
#[derive(Debug)]
pub(super) struct Outcome {
    /// What Kafka holds against what the sensors say.
    pub(super) books: Books,
    /// The relay's own books, just before it was asked to stop; `None` when it did not answer.
    pub(super) relay: Option<Status>,
    /// How it ended; `None` when it had to be killed.
    pub(super) exit: Option<ExitStatus>,
}

impl Outcome {
    /// What must not be, in words.
    pub(super) fn faults(&self) -> Vec<String> {
        let mut faults = self.books.faults();
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

fn rows(books: &Books) -> Vec<(&'static str, u64, &'static str)> {
    let always = [
        ("published", books.published, "by the sensors, each reading counted once"),
        ("acknowledged", books.acknowledged, "PUBACK or PUBCOMP arrived: from then on the relay is responsible"),
        ("delivered", books.delivered, "different readings in Kafka, compared byte for byte"),
        ("lost", books.lost, "acknowledged, and not in Kafka"),
        ("out of order", books.out_of_order, "by MQTT topic, against the sensor's own counter"),
        ("repeated", books.repeated(), "the same reading in Kafka more than once; of these:"),
        ("  sent again by the relay", books.repeated_by_relay, "recognised by the same tidegate-id: a reader drops it"),
        (
            "  sent again by a sensor (QoS 1)",
            books.repeated_by_sensor,
            "the kill stopped its PUBACK: a new event, with a new tidegate-id",
        ),
    ];
    let if_any = [
        ("  under two ids, for no reason", books.repeated_unexplained, "no sensor sent these again"),
        ("  under two ids, at QoS 2", books.qos_2_twice, "QoS 2 promises that this never happens"),
        ("not acknowledged", books.unacknowledged(), "the sensors still hold these: the relay promised nothing"),
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
        Outcome { books, relay: Some(relay(3, true)), exit: Some(ExitStatus::from_raw(0)) }
    }

    fn relay(received: u64, balanced: bool) -> Status {
        Status { total: status::Books { received, ..status::Books::default() }, balanced, ..Status::default() }
    }

    #[test]
    fn only_a_run_with_balanced_books_and_a_clean_stop_is_without_fault() {
        assert_eq!(good().faults(), Vec::<String>::new());
        let mut lost = good();
        lost.books.lost = 1;
        let unbalanced = Outcome { relay: Some(relay(3, false)), ..good() };
        let other = Outcome { relay: Some(relay(4, true)), ..good() };
        let silent = Outcome { relay: None, ..good() };
        let failed = Outcome { exit: Some(ExitStatus::from_raw(256)), ..good() };
        let stuck = Outcome { exit: None, ..good() };
        for outcome in [lost, unbalanced, other, silent, failed, stuck] {
            assert_eq!(outcome.faults().len(), 1, "{outcome:?}");
        }
    }

    #[test]
    fn allowed_repeats_are_no_fault() {
        let mut outcome = good();
        outcome.books.repeated_by_relay = 5;
        outcome.books.repeated_by_sensor = 2;
        assert!(outcome.faults().is_empty());
    }
}
