//! The desk where passwords are checked: one thread, one check at a time, and a line for each origin.
//!
//! * **A right password that was right before costs nothing.** A keyed digest of it is kept in memory ([`Known`]), so a sensor
//!   that comes back does not even come to the desk, however long the lines are. The users file decides: when it changes,
//!   all of these are forgotten.
//! * **Lines take turns.** Whoever comes from a quiet address waits for one check of each busy address at most.
//! * **A wrong password holds up the line it stood in** for [`WRONG_PAUSE`], and nobody else: that is five guesses a second
//!   for an address, and a core that is idle between them. Right ones hold nothing up.
//! * **Lines end.** Whoever finds [`MAX_CHECKS_AN_ORIGIN`] before him is told to come again.

use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Instant;
use std::{fmt, io};

use bytes::Bytes;
use sha2::Sha512;
use subtle::ConstantTimeEq;
use tokio::sync::oneshot;

use super::file::{Stamp, UsersFile};
use crate::ingest::limits::{MAX_CHECKS, MAX_CHECKS_AN_ORIGIN, WRONG_PAUSE};
use crate::ingest::listener::origin::Origin;

/// Where connections ask. The thread ends when the last one of these is dropped.
#[derive(Debug, Clone)]
pub(in crate::ingest::listener) struct Users {
    checks: SyncSender<Check>,
    known: Arc<Known>,
}

/// What the desk says to a name and a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::ingest::listener) enum Verdict {
    Right,
    Wrong,
    /// Too many wait already.
    ComeAgain,
}

#[derive(Debug)]
struct Check {
    origin: Origin,
    name: String,
    password: Bytes,
    answer: oneshot::Sender<Verdict>,
}

impl Check {
    /// Whoever does not wait any more costs nothing.
    fn answer(self, verdict: Verdict) {
        if self.answer.send(verdict).is_err() {
            tracing::trace!("a client did not wait for the check of its password");
        }
    }
}

impl Users {
    /// Starts the thread that owns the file.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub(in crate::ingest::listener) fn ask(file: UsersFile) -> io::Result<Self> {
        let (checks, asked) = sync_channel(MAX_CHECKS);
        let known = Arc::new(Known::of(&file));
        let desk = Desk { file, known: Arc::clone(&known), lines: Lines::default() };
        thread::Builder::new().name("passwords".to_owned()).spawn(move || desk.work(&asked))?;
        Ok(Self { checks, known })
    }

    /// May this client in?
    pub(in crate::ingest::listener) async fn admit(&self, origin: Origin, name: String, password: Bytes) -> Verdict {
        if self.known.has(&name, &password) {
            return Verdict::Right;
        }
        let (answer, answered) = oneshot::channel();
        match self.checks.try_send(Check { origin, name, password, answer }) {
            // The thread is gone only when the process goes down: then nobody comes in any more.
            Ok(()) => answered.await.unwrap_or(Verdict::ComeAgain),
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => Verdict::ComeAgain,
        }
    }
}

struct Desk {
    file: UsersFile,
    known: Arc<Known>,
    lines: Lines,
}

impl Desk {
    fn work(mut self, asked: &Receiver<Check>) {
        loop {
            while let Ok(check) = asked.try_recv() {
                self.receive(check);
            }
            let heard = match self.lines.next(Instant::now()) {
                Next::Check(check) => {
                    self.check(check);
                    continue;
                }
                Next::NotBefore(then) => asked.recv_timeout(then.saturating_duration_since(Instant::now())),
                Next::Nobody => asked.recv().map_err(|_gone| RecvTimeoutError::Disconnected),
            };
            match heard {
                Ok(check) => self.receive(check),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn receive(&mut self, check: Check) {
        if let Err(too_many) = self.lines.join(check) {
            too_many.answer(Verdict::ComeAgain);
        }
    }

    fn check(&mut self, check: Check) {
        self.file.refresh();
        let right = self.file.verify(&check.name, &check.password);
        if right {
            self.known.learn(self.file.stamp, &check.name, &check.password);
        } else {
            let until = Instant::now().checked_add(WRONG_PAUSE);
            self.lines.hold_up(check.origin, until.unwrap_or_else(Instant::now));
        }
        check.answer(if right { Verdict::Right } else { Verdict::Wrong });
    }
}

/// Passwords that were right, as digests under a key that nobody knows and that dies with the process. One for each name
/// at most, and only names of the file: as many as it has lines.
#[derive(Debug)]
struct Known {
    path: PathBuf,
    key: [u8; 32],
    digests: Mutex<Digests>,
}

/// Of the passwords in the file that looks so.
#[derive(Default)]
struct Digests {
    stamp: Option<Stamp>,
    of: HashMap<Box<str>, [u8; 64]>,
}

impl fmt::Debug for Digests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} digests", self.of.len())
    }
}

impl Known {
    fn of(file: &UsersFile) -> Self {
        let [a, b] = [uuid::Uuid::new_v4(), uuid::Uuid::new_v4()].map(uuid::Uuid::into_bytes);
        let mut key = [0; 32];
        key.iter_mut().zip(a.into_iter().chain(b)).for_each(|(to, from)| *to = from);
        Self { path: file.path.clone(), key, digests: Mutex::default() }
    }

    /// Was it right, and is the file still the same?
    fn has(&self, name: &str, password: &[u8]) -> bool {
        let Ok(digests) = self.digests.lock() else { return false };
        let Some(known) = digests.of.get(name) else { return false };
        digests.stamp == Stamp::now(&self.path) && bool::from(known.ct_eq(&self.digest(name, password)))
    }

    fn learn(&self, stamp: Option<Stamp>, name: &str, password: &[u8]) {
        let Ok(mut digests) = self.digests.lock() else { return };
        if digests.stamp != stamp {
            *digests = Digests { stamp, of: HashMap::new() };
        }
        let digest = self.digest(name, password);
        digests.of.insert(name.into(), digest);
    }

    /// An HMAC of key and name under the password.
    fn digest(&self, name: &str, password: &[u8]) -> [u8; 64] {
        let mut digest = [0; 64];
        pbkdf2::pbkdf2_hmac::<Sha512>(password, &[&self.key, name.as_bytes()].concat(), 1, &mut digest);
        digest
    }
}

/// Who waits, by origin.
#[derive(Debug, Default)]
struct Lines {
    lines: HashMap<Origin, Line>,
    /// The origins, in the order of their turns.
    turns: VecDeque<Origin>,
}

#[derive(Debug, Default)]
struct Line {
    waiting: VecDeque<Check>,
    not_before: Option<Instant>,
}

/// What there is to do.
#[derive(Debug)]
enum Next {
    Check(Check),
    /// All lines are held up.
    NotBefore(Instant),
    Nobody,
}

impl Lines {
    /// Puts a check at the end of its line, or gives it back.
    fn join(&mut self, check: Check) -> Result<(), Check> {
        let origin = check.origin;
        let line = self.lines.entry(origin).or_insert_with(|| {
            self.turns.push_back(origin);
            Line::default()
        });
        line.waiting.retain(|check| !check.answer.is_closed());
        if line.waiting.len() >= MAX_CHECKS_AN_ORIGIN {
            return Err(check);
        }
        line.waiting.push_back(check);
        Ok(())
    }

    /// The next check, of the line whose turn it is.
    fn next(&mut self, now: Instant) -> Next {
        let mut earliest: Option<Instant> = None;
        for _ in 0..self.turns.len() {
            let Some(origin) = self.turns.pop_front() else { break };
            let Some(line) = self.lines.get_mut(&origin) else { continue };
            line.waiting.retain(|check| !check.answer.is_closed());
            let held_until = line.not_before.filter(|then| *then > now);
            match (held_until, line.waiting.pop_front()) {
                (None, None) => drop(self.lines.remove(&origin)),
                (None, Some(check)) => {
                    self.turns.push_back(origin);
                    return Next::Check(check);
                }
                (Some(then), first) => {
                    if let Some(first) = first {
                        line.waiting.push_front(first);
                    }
                    self.turns.push_back(origin);
                    earliest = Some(earliest.map_or(then, |earliest| earliest.min(then)));
                }
            }
        }
        earliest.map_or(Next::Nobody, Next::NotBefore)
    }

    /// No check of that line before then.
    fn hold_up(&mut self, origin: Origin, until: Instant) {
        let line = self.lines.entry(origin).or_insert_with(|| {
            self.turns.push_back(origin);
            Line::default()
        });
        line.not_before = Some(until);
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    fn check(last: u8, name: &str) -> (Check, oneshot::Receiver<Verdict>) {
        let (answer, answered) = oneshot::channel();
        let origin = IpAddr::from([192, 0, 2, last]).into();
        (Check { origin, name: name.to_owned(), password: Bytes::new(), answer }, answered)
    }

    fn name(next: Next) -> String {
        match next {
            Next::Check(check) => check.name,
            Next::NotBefore(_) => "(held up)".to_owned(),
            Next::Nobody => "(nobody)".to_owned(),
        }
    }

    #[test]
    fn a_sensor_waits_for_one_check_of_a_flood_and_not_for_all_of_it() {
        let (mut lines, now) = (Lines::default(), Instant::now());
        let mut waiting = Vec::new();
        for n in 0..MAX_CHECKS_AN_ORIGIN {
            let (check, answered) = check(1, &format!("flood {n}"));
            assert!(lines.join(check).is_ok());
            waiting.push(answered);
        }
        let (one_more, _one) = check(1, "one more");
        assert!(lines.join(one_more).is_err(), "a line ends");
        let (honest, _honest) = check(2, "honest");
        assert!(lines.join(honest).is_ok());
        assert_eq!([name(lines.next(now)), name(lines.next(now))], ["flood 0", "honest"]);
        // Whoever has gone costs nothing and keeps nobody out.
        waiting.clear();
        let (late, _late) = check(1, "late");
        assert!(lines.join(late).is_ok());
        assert_eq!(name(lines.next(now)), "late");
        assert_eq!(name(lines.next(now)), "(nobody)");
        assert!(lines.lines.is_empty() && lines.turns.is_empty());
    }

    #[test]
    fn a_wrong_password_holds_up_its_own_line_for_a_moment() {
        let (mut lines, now) = (Lines::default(), Instant::now());
        let (wrong, _wrong) = check(1, "wrong");
        let origin = wrong.origin;
        assert!(lines.join(wrong).is_ok());
        assert_eq!(name(lines.next(now)), "wrong");
        lines.hold_up(origin, now + WRONG_PAUSE);
        let ((same, _same), (other, _other)) = (check(1, "same"), check(2, "other"));
        assert!(lines.join(same).is_ok() && lines.join(other).is_ok());
        assert_eq!([name(lines.next(now)), name(lines.next(now))], ["other", "(held up)"]);
        assert_eq!(name(lines.next(now + WRONG_PAUSE)), "same");
    }

    #[test]
    fn what_was_right_is_known_until_the_file_changes_and_nothing_else_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("users");
        std::fs::write(&path, "# nobody\n").unwrap();
        let file = UsersFile::open(&path).unwrap();
        let known = Known::of(&file);
        known.learn(file.stamp, "bob", b"hunter2");
        assert!(known.has("bob", b"hunter2"));
        assert!(!known.has("bob", b"hunter3") && !known.has("carol", b"hunter2") && !known.has("bob", b""));
        std::fs::write(&path, "# nobody any more\n").unwrap();
        assert!(!known.has("bob", b"hunter2"));
        known.learn(Stamp::now(&path), "eve", b"x");
        assert!(known.has("eve", b"x") && !known.has("bob", b"hunter2"));
        assert_ne!(Known::of(&file).digest("bob", b"x"), known.digest("bob", b"x"), "the key is drawn anew");
    }
}
