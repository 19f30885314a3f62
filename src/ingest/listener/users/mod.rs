//! Who may connect: a password file as `mosquitto_passwd` writes it.
//!
//! One line a user, `name:hash`; empty lines and lines that begin with `#` are skipped; anything else is an error that
//! names file and line. The file is read when the listener starts, and again at the first CONNECT after it changed. A
//! file that cannot be read then leaves the users as they were, and is reported.
//!
//! A check may take tens of milliseconds (that is the point of these hashes), so one thread owns the file and does the
//! checks, **one at a time**: a crowd of wrong passwords costs the memory of one check, and cannot stop the readings of
//! those who are in. Who is checked next is decided at the [`desk`]. An unknown name costs the check of a real line, so
//! that names cannot be found by measuring time.

mod desk;
mod hash;

use std::borrow::Cow;
use std::collections::HashMap;
use std::collections::hash_map::{Entry, RandomState};
use std::fs::{self, File, Metadata};
use std::hash::BuildHasher;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

pub(super) use self::desk::{Users, Verdict};
use self::hash::Stored;
use crate::ingest::limits::MAX_USERS_FILE_BYTES;

/// Could a listener use this file? For the check of the configuration.
///
/// # Errors
/// When it cannot be read, or a line of it is wrong.
pub(crate) fn check_users_file(path: &Path) -> Result<(), UsersError> {
    UsersFile::open(path).map(drop)
}

/// The password file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UsersError {
    /// It cannot be read.
    #[error("users_file {path}: {cause}", path = path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why not.
        cause: io::Error,
    },
    /// One of its lines is wrong.
    #[error("users_file {path}, line {line}: {what}", path = path.display())]
    Line {
        /// Which file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// What is wrong with it; never a part of a password or hash.
        what: String,
    },
}

/// The file as it was read.
#[derive(Debug)]
pub(super) struct UsersFile {
    path: PathBuf,
    /// What the file looked like when it was read last, well or not.
    stamp: Option<Stamp>,
    users: Vec<Stored>,
    /// Position in `users`.
    by_name: HashMap<Box<str>, usize>,
    /// Picks the line that an unknown name is checked against; its key is drawn at each start.
    decoys: RandomState,
}

/// Enough to see that a file was written again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    modified: Option<SystemTime>,
    bytes: u64,
}

impl Stamp {
    /// `None`: it is not there.
    fn now(path: &Path) -> Option<Self> {
        fs::metadata(path).ok().map(|metadata| Self::from(&metadata))
    }
}

impl From<&Metadata> for Stamp {
    fn from(metadata: &Metadata) -> Self {
        Self { modified: metadata.modified().ok(), bytes: metadata.len() }
    }
}

impl UsersFile {
    /// Reads it.
    ///
    /// # Errors
    /// When it cannot be read, or a line of it is wrong.
    pub(super) fn open(path: &Path) -> Result<Self, UsersError> {
        let mut file = Self {
            path: path.to_owned(),
            stamp: None,
            users: Vec::new(),
            by_name: HashMap::new(),
            decoys: RandomState::new(),
        };
        file.read()?;
        Ok(file)
    }

    /// Reads it again when it has changed. True: there are other users now.
    fn refresh(&mut self) -> bool {
        let now = Stamp::now(&self.path);
        if now == self.stamp {
            return false;
        }
        // One message a change of the file: the stamp moves also when it cannot be used.
        match self.read() {
            Ok(()) => {
                tracing::info!(file = %self.path.display(), users = self.users.len(), "users_file read again");
                true
            }
            Err(error) => {
                self.stamp = now;
                tracing::error!(%error, "users_file changed and cannot be used: correct it; until then the users are the old ones");
                false
            }
        }
    }

    fn read(&mut self) -> Result<(), UsersError> {
        let failed = |cause| UsersError::Read { path: self.path.clone(), cause };
        let file = File::open(&self.path).map_err(failed)?;
        let stamp = Stamp::from(&file.metadata().map_err(failed)?);
        let mut text = String::new();
        let bytes = file.take(MAX_USERS_FILE_BYTES + 1).read_to_string(&mut text).map_err(failed)?;
        if u64::try_from(bytes).is_ok_and(|bytes| bytes > MAX_USERS_FILE_BYTES) {
            return Err(failed(io::Error::other(format!("longer than {MAX_USERS_FILE_BYTES} bytes"))));
        }
        let (users, by_name) = parse(&text).map_err(|(line, what)| UsersError::Line {
            path: self.path.clone(),
            line,
            what: what.into_owned(),
        })?;
        (self.stamp, self.users, self.by_name) = (Some(stamp), users, by_name);
        Ok(())
    }

    fn verify(&self, name: &str, password: &[u8]) -> bool {
        if let Some(stored) = self.by_name.get(name).and_then(|position| self.users.get(*position)) {
            return stored.verify(password);
        }
        // Always the same line for the same name: an unknown name looks like one of the known, also when the lines
        // of the file are of different cost.
        let draw = usize::try_from(self.decoys.hash_one(name) & 0x7fff_ffff).unwrap_or(0);
        let decoy = draw.checked_rem(self.users.len()).and_then(|position| self.users.get(position));
        if let Some(decoy) = decoy {
            std::hint::black_box(decoy.verify(password));
        }
        false
    }
}

type Parsed = (Vec<Stored>, HashMap<Box<str>, usize>);

/// The users of a file, or the number of the first bad line and what is wrong with it.
fn parse(text: &str) -> Result<Parsed, (usize, Cow<'static, str>)> {
    let (mut users, mut by_name) = (Vec::new(), HashMap::new());
    for (line, number) in text.lines().zip(1_usize..) {
        if line.trim().is_empty() || line.starts_with('#') {
            continue;
        }
        let Some((name, stored)) = line.split_once(':') else {
            return Err((number, "no `:` between user name and password hash".into()));
        };
        if name.is_empty() {
            return Err((number, "no user name before the `:`".into()));
        }
        let stored = Stored::parse(stored.trim_end()).map_err(|what| (number, what.into()))?;
        match by_name.entry(name.into()) {
            Entry::Occupied(_) => return Err((number, format!("user {name:?} is there twice").into())),
            Entry::Vacant(vacant) => vacant.insert(users.len()),
        };
        users.push(stored);
    }
    Ok((users, by_name))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    const BOB: &str = "bob:$7$101$qmj1CcK2y1gDHJZC$Wa0MgQxf+gBrPZKAhyiBELu3vz3I2YEmFsSIG1uTfREmXIs+/vUHpXUPx1oZtdY7R4lgoDn8j1OhmAbxrLqkAg==";
    const CAROL: &str = "carol:$7$101$f6ITTSIln4iaNpxM$OD+8SWVtMysPplXYPhmu2pitAVmco57uwRE9DvPgGkUq8Sb324C243pPgOswg1xsYZqUcGaJ3ln27tWWEtm6EA==";

    fn file(contents: &str) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("users");
        fs::write(&path, contents).unwrap();
        (folder, path)
    }

    #[test]
    fn names_passwords_comments_and_dos_line_ends_are_read() {
        let (_folder, path) = file(&format!("# the floor\r\n\r\n{BOB}\r\n{CAROL}"));
        let users = UsersFile::open(&path).unwrap();
        assert!(users.verify("bob", b"hunter2"));
        assert!(users.verify("carol", b""));
        assert!(!users.verify("bob", b""));
        assert!(!users.verify("Bob", b"hunter2"));
        assert!(!users.verify("mallory", b"hunter2"));
        assert!(!users.verify("", b""));
    }

    #[test]
    fn an_empty_file_lets_nobody_in() {
        let (_folder, path) = file("# nobody yet\n");
        assert!(!UsersFile::open(&path).unwrap().verify("bob", b"hunter2"));
    }

    #[test]
    fn a_wrong_line_is_named_with_file_and_number() {
        for (contents, number, word) in [
            (format!("{BOB}\n\nalice"), 3, "no `:`"),
            (format!("{BOB}\n{BOB}\n"), 2, "\"bob\" is there twice"),
            ("bob:hunter2\n".to_owned(), 1, "-U FILE"),
            (":$6$c2FsdA==$aGFzaA==".to_owned(), 1, "no user name"),
        ] {
            let (_folder, path) = file(&contents);
            let error = UsersFile::open(&path).unwrap_err().to_string();
            assert!(error.contains(&format!("{}, line {number}: ", path.display())), "{error}");
            assert!(error.contains(word), "{error}");
            assert!(!error.contains("hunter2"), "a password shows: {error}");
        }
    }

    #[test]
    fn a_missing_or_oversized_file_is_an_error_with_its_name() {
        let (folder, path) = file(&"#".repeat(usize::try_from(MAX_USERS_FILE_BYTES).unwrap() + 1));
        assert!(UsersFile::open(&path).unwrap_err().to_string().contains("longer than"));
        let missing = folder.path().join("missing");
        assert!(UsersFile::open(&missing).unwrap_err().to_string().contains("missing"));
    }

    #[test]
    fn a_changed_file_counts_from_the_next_check_and_a_broken_one_changes_nothing() {
        let (_folder, path) = file(BOB);
        let mut users = UsersFile::open(&path).unwrap();
        assert!(!users.refresh());
        assert!(users.verify("bob", b"hunter2") && !users.verify("carol", b""));
        fs::write(&path, format!("{BOB}\n{CAROL}\n")).unwrap();
        assert!(users.refresh());
        assert!(users.verify("bob", b"hunter2") && users.verify("carol", b""));
        fs::write(&path, "broken").unwrap();
        assert!(!users.refresh());
        assert!(users.verify("carol", b""), "a typo in the file shut everybody out");
        fs::remove_file(&path).unwrap();
        assert!(!users.refresh());
        assert!(users.verify("carol", b""));
        fs::write(&path, CAROL).unwrap();
        assert!(users.refresh());
        assert!(users.verify("carol", b"") && !users.verify("bob", b"hunter2"));
    }

    #[tokio::test]
    async fn connections_ask_and_are_answered() {
        let (_folder, path) = file(BOB);
        let users = Users::ask(UsersFile::open(&path).unwrap()).unwrap();
        let here = std::net::IpAddr::from([192, 0, 2, 1]).into();
        let ask = async |password| users.admit(here, "bob".to_owned(), Bytes::from_static(password)).await;
        assert_eq!(ask(b"hunter2").await, Verdict::Right);
        assert_eq!(ask(b"hunter3").await, Verdict::Wrong);
        assert_eq!(ask(b"hunter2").await, Verdict::Right);
        // It was right, and the file says otherwise now.
        fs::write(&path, CAROL).unwrap();
        assert_eq!(ask(b"hunter2").await, Verdict::Wrong);
    }
}
