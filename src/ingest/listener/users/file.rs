//! The password file as it was read, and read again when it has changed.

use std::borrow::Cow;
use std::collections::HashMap;
use std::collections::hash_map::{Entry, RandomState};
use std::fs::{self, File, Metadata};
use std::hash::BuildHasher;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::hash::Stored;
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
pub(in crate::ingest::listener) struct UsersFile {
    pub(super) path: PathBuf,
    /// What the file looked like when it was read last, well or not.
    pub(super) stamp: Option<Stamp>,
    users: Vec<Stored>,
    /// Position in `users`.
    by_name: HashMap<Box<str>, usize>,
    /// Picks the line that an unknown name is checked against; its key is drawn at each start.
    decoys: RandomState,
}

/// Enough to see that a file was written again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    modified: Option<SystemTime>,
    bytes: u64,
}

impl Stamp {
    /// `None`: it is not there.
    pub(super) fn now(path: &Path) -> Option<Self> {
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
    pub(in crate::ingest::listener) fn open(path: &Path) -> Result<Self, UsersError> {
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
    pub(super) fn refresh(&mut self) -> bool {
        let now = Stamp::now(&self.path);
        if now == self.stamp {
            return false;
        }
        // One message a change of the file: the stamp moves also when it cannot be used.
        match self.read() {
            Ok(()) => {
                tracing::info!(file = %self.path.display(), users = self.users.len(), "the users_file has changed \
                     and was read again");
                true
            }
            Err(error) => {
                self.stamp = now;
                tracing::error!(%error, "the users_file has changed and cannot be used: correct it; until then the \
                     old users stay valid");
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

    pub(super) fn verify(&self, name: &str, password: &[u8]) -> bool {
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
            Entry::Occupied(_) => return Err((number, format!("user {name:?} appears twice").into())),
            Entry::Vacant(vacant) => vacant.insert(users.len()),
        };
        users.push(stored);
    }
    Ok((users, by_name))
}
