//! The end of a scenario: waits until everything has arrived, or nothing more will, and closes the books.

use std::time::{Duration, Instant};

use super::agent::Agent;
use super::books::{Books, Missing};
use super::publisher::Log;
use super::reader::{Reader, Record};
use super::{Outcome, PATIENCE};

/// An agent that holds nothing for this long has nothing more to come, from a broker's queue either.
const QUIET: Duration = Duration::from_secs(4);

/// Reads the topics until nothing that was acknowledged is missing; gives up when the agent holds nothing any more and
/// nothing comes. What is missing then is lost, and stands in the books.
pub fn settle(agent: &Agent, brokers: &str, topics: &[&str], logs: &[Log]) -> Outcome<Books> {
    close(agent, Reader::open(brokers, topics)?, logs)
}

/// The same where transactions have left their marks.
pub fn settle_committed(agent: &Agent, brokers: &str, topics: &[&str], logs: &[Log]) -> Outcome<Books> {
    close(agent, Reader::committed(brokers, topics)?, logs)
}

fn close(agent: &Agent, mut reader: Reader, logs: &[Log]) -> Outcome<Books> {
    let mut missing = Missing::of(logs);
    wait_while_anything_comes(agent, &mut reader, |records| missing.none(records))?;
    // What was published and not acknowledged may still be on its way: it must be in the books, too.
    agent.wait_book("held", 0)?;
    Ok(Books::close(logs, reader.read_all()?))
}

/// Reads until there is enough, or nothing more will come: the agent holds nothing, and nothing came for a while.
pub fn wait_while_anything_comes(
    agent: &Agent,
    reader: &mut Reader,
    mut enough: impl FnMut(&[Record]) -> bool,
) -> Outcome<()> {
    let end = Instant::now() + PATIENCE * 3;
    let mut quiet_since = Instant::now();
    let mut count = 0;
    while !enough(reader.read_all()?) && quiet_since.elapsed() < QUIET && Instant::now() < end {
        if reader.records().len() != count || agent.book("held").ok() != Some(0) {
            count = reader.records().len();
            quiet_since = Instant::now();
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}
