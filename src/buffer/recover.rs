//! What the buffer thread does after a failed transaction (custody rule 6: in doubt, stop, and go on from what the
//! disk says).
//!
//! A failed COMMIT may have happened: after a failed sync the row can be there or not. The [specification](super) says what is
//! done about it, and why the number of the last transaction tells.

use std::sync::Arc;
use std::time::Instant;

use rusqlite::Connection;

use super::books::Books;
use super::error::{CloseError, WriteError};
use super::limits::{STOP_PATIENCE, TICK};
use super::pace;
use super::salvage;
use super::schema::checkpoint;
use super::settle::Part;
use super::writer::Writer;
use crate::planted::{Bug, planted};

impl<R> Writer<R> {
    /// Returns with a database whose books are known.
    pub(super) fn recover(&mut self, error: &WriteError) -> Result<Connection, CloseError> {
        self.failed(error);
        self.stop_if_damaged(error)?;
        if self.attempted.settlements.is_some() {
            self.inbox.doubt();
        }
        loop {
            self.pause()?;
            match self.reopen() {
                Ok((connection, on_disk)) => {
                    self.resolve(on_disk);
                    return Ok(connection);
                }
                Err(error) => {
                    self.failed(&error);
                    self.stop_if_damaged(&error)?;
                }
            }
        }
    }

    /// A damaged file is not written any more. It is rebuilt at the next start, which [`run`](crate::run) makes at once;
    /// nothing that is in doubt was acknowledged.
    fn stop_if_damaged(&self, error: &WriteError) -> Result<(), CloseError> {
        let Some(cause) = error.damage().filter(|_| !planted(Bug::GarbageIsFinal)) else { return Ok(()) };
        if let Err(error) = salvage::ask_for(self.database.path(), &cause) {
            // The next start may find the damage by itself, or else this thread will again.
            tracing::error!(%error, "buffer: the mark that the database is damaged cannot be written");
        }
        Err(CloseError::Damaged { cause })
    }

    fn failed(&mut self, error: &WriteError) {
        self.counts.write_failures += 1;
        self.counts.publish_due = true;
        self.counts.trouble.failed(error);
        let failures = self.counts.write_failures;
        self.outside.status.send_modify(|status| {
            let status = Arc::make_mut(status);
            status.write_failures = failures;
            status.failing = true;
        });
    }

    /// Waits before the next try. The thread is alive meanwhile, and settlements do not pile up.
    fn pause(&mut self) -> Result<(), CloseError> {
        let start = Instant::now();
        let wait = self.counts.backoff.next_wait();
        loop {
            if self.inbox.closed() {
                let since = *self.counts.stuck_since.get_or_insert_with(Instant::now);
                if since.elapsed() >= STOP_PATIENCE {
                    let (events, cause) = (self.inbox.batch.events(), self.counts.trouble.text());
                    return Err(CloseError::Unwritten { events, cause });
                }
            }
            let left = pace::left(start, wait, Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            self.pulse.beat();
            self.inbox.wait_for_settlement(left.min(TICK), &self.books);
        }
    }

    fn reopen(&self) -> Result<(Connection, Books), WriteError> {
        let connection = self.database.open_existing()?;
        self.database.apply(&connection)?;
        if !checkpoint(&connection)? {
            return Err(WriteError::LogInUse);
        }
        let (on_disk, _said_at_the_next_start) = Books::load(&connection)?;
        let found = on_disk.transaction;
        if found != self.durable && found != self.durable + 1 {
            return Err(WriteError::Strange { expected: self.durable, found });
        }
        Ok((connection, on_disk))
    }

    fn resolve(&mut self, on_disk: Books) {
        let happened = on_disk.transaction != self.durable;
        tracing::info!(transaction = on_disk.transaction, happened, "buffer: opened again after a failed write");
        self.books = on_disk;
        if happened {
            let events = if self.attempted.batch { self.inbox.batch.found_on_disk(&self.books) } else { Vec::new() };
            if self.attempted.settlements == Some(Part::Releases) {
                self.inbox.half_done();
                self.released(events);
            } else {
                let pending = self.inbox.done();
                self.committed(events, &pending);
            }
        } else {
            self.inbox.undone();
        }
    }
}
