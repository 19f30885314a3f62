//! Standard output and error of the commands. Whoever reads them may leave early (`tidegate status | head -1`): what a
//! command does, and the exit code it ends with, do not depend on that.

use std::fmt::Display;
use std::io::{self, StdoutLock, Write};

/// What is written after the reader has left goes nowhere. Any other error is one: a full disk behind `> file`.
#[derive(Debug)]
pub(super) struct Patient<W>(pub(super) W);

/// Standard output.
pub(super) fn stdout() -> Patient<StdoutLock<'static>> {
    Patient(io::stdout().lock())
}

/// Says on standard error what is wrong. Where even that cannot be written, the exit code says it alone.
pub(super) fn complain(what: impl Display) {
    drop(writeln!(io::stderr(), "{what}"));
}

impl<W: Write> Write for Patient<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.0.write(bytes) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(bytes.len()),
            written => written,
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self.0.flush() {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            flushed => flushed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_that_leaves_is_no_error_and_a_full_disk_is() {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        assert!(writeln!(&writer, "for nobody").is_err(), "the control: it has left");
        let mut out = Patient(writer);
        writeln!(out, "for nobody").unwrap();
        out.flush().unwrap();
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        assert!(writeln!(Patient(full), "for nobody").is_err());
    }
}
