//! What the buffer looks like from outside.

use std::sync::Arc;
use std::time::Instant;

use super::BufferStatus;
use super::limits::STATUS_EVERY;
use super::statements::Statements;
use super::writer::Writer;

impl<R> Writer<R> {
    /// Publishes after commits, at most ten times a second, what was left over when quiet, and at once when the
    /// limit is reached or over.
    pub(super) fn publish(&mut self, quiet: bool, tx: &mut Statements<'_>) -> rusqlite::Result<()> {
        let now = Instant::now();
        let recent = self.counts.published.is_some_and(|at| now.saturating_duration_since(at) < STATUS_EVERY);
        let turned = self.outside.status.borrow().full != self.space.is_full();
        if !turned && (!self.counts.publish_due || (recent && !quiet)) {
            return Ok(());
        }
        let oldest_ms = tx.oldest.query_row([], |row| row.get(0))?;
        let status = self.snapshot(oldest_ms);
        self.outside.status.send_replace(Arc::new(status));
        self.counts.published = Some(now);
        self.counts.publish_due = false;
        Ok(())
    }

    /// As of now.
    pub(super) fn snapshot(&self, oldest_ms: Option<i64>) -> BufferStatus {
        let books = &self.books;
        BufferStatus {
            ledger: books.ledger.lines(&self.route_names),
            next_sequence: books.next,
            released: books.settled.released(),
            oldest_ms,
            used_bytes: self.space.used(),
            max_bytes: self.max_bytes,
            full: self.space.is_full(),
            lanes: books.lanes.iter().map(|(id, lane)| (*id, Arc::clone(&lane.kafka_topic), lane.held)).collect(),
            commits: self.counts.commits,
            failing: false,
            write_failures: self.counts.write_failures,
            commit_seconds: self.counts.commit_time.as_secs_f64(),
            commit_wait_seconds: self.counts.commit_wait.as_secs_f64(),
        }
    }
}
