//! Paths in the configuration, and the secrets behind some of them.
//!
//! A path is absolute, or begins with `$CREDENTIALS_DIRECTORY/`, which systemd sets for a service with
//! `LoadCredential=`. What stands in a path that is neither is not repeated in messages: it may well be the password
//! itself.

use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::env::{CREDENTIALS, Env};
use super::problems::Unusable;
use super::secret::Secret;

/// MQTT writes the length of a password in two bytes; Kafka's secrets are shorter.
const MAX_SECRET_BYTES: u64 = 65_535;

/// Where systemd puts the credentials of the service, for those who look at its configuration from outside.
const SERVICE_CREDENTIALS: &str = "/run/credentials/tidegate.service";

/// The path that a text of the configuration means.
pub(crate) fn expand(text: &str, env: &Env) -> Result<PathBuf, Unusable> {
    if let Some(name) = text.strip_prefix(CREDENTIALS) {
        let Some(name) = name.strip_prefix('/').filter(|name| !name.is_empty()) else {
            return Err(Unusable::Wrong(format!("after {CREDENTIALS} comes \"/\" and the name of the credential")));
        };
        if let Some(folder) = &env.credentials_directory {
            return Ok(folder.join(name));
        }
        // Root may look while the service runs.
        let of_the_service = Path::new(SERVICE_CREDENTIALS).join(name);
        return if env.outside_service && fs::metadata(&of_the_service).is_ok() {
            Ok(of_the_service)
        } else {
            Err(Unusable::Hidden(format!(
                "{CREDENTIALS} is not set: systemd sets it for a service with LoadCredential=; on the command line, \
                 set it yourself"
            )))
        };
    }
    let path = Path::new(text);
    if !path.is_absolute() {
        return Err(Unusable::Wrong(format!("not an absolute path; allowed: \"/…\" or \"{CREDENTIALS}/…\"")));
    }
    Ok(path.to_owned())
}

/// Can it be opened, and is it a file?
pub(crate) fn check_readable(path: &Path) -> Result<(), Unusable> {
    open(path).map(|_| ())
}

/// What a secret's file holds.
pub(crate) struct Contents {
    pub(crate) secret: Secret,
    /// Every user of the machine can read the file: its permission bits.
    pub(crate) open_to_all: Option<u32>,
}

/// Reads a secret: the file's text without the newline at its end.
pub(crate) fn read_secret(path: &Path) -> Result<Contents, Unusable> {
    let (file, metadata) = open(path)?;
    let mut bytes = Vec::new();
    file.take(MAX_SECRET_BYTES + 3).read_to_end(&mut bytes).map_err(|error| unreadable(path, &error))?;
    let Ok(text) = String::from_utf8(bytes) else {
        return Err(Unusable::Wrong(format!("{}: the file is not UTF-8 text", path.display())));
    };
    let secret = text.strip_suffix('\n').map_or(&*text, |line| line.strip_suffix('\r').unwrap_or(line));
    if secret.is_empty() {
        return Err(Unusable::Wrong(format!("{}: the file is empty", path.display())));
    }
    if u64::try_from(secret.len()).unwrap_or(u64::MAX) > MAX_SECRET_BYTES {
        return Err(Unusable::Wrong(format!("{}: the file has more than {MAX_SECRET_BYTES} bytes", path.display())));
    }
    Ok(Contents { secret: Secret::new(secret.to_owned()), open_to_all: mode_for_all(&metadata) })
}

/// The permission bits of a file that every user of the machine can read.
pub(crate) fn open_to_all(path: &Path) -> Option<u32> {
    fs::metadata(path).ok().and_then(|metadata| mode_for_all(&metadata))
}

fn mode_for_all(metadata: &Metadata) -> Option<u32> {
    let mode = metadata.permissions().mode() & 0o777;
    (mode & 0o004 != 0).then_some(mode)
}

/// The remark on a file that is open to all.
pub(crate) fn too_open(path: &Path, mode: u32) -> String {
    format!(
        "every user of this machine can read {} (mode {mode:04o}); chmod it to 0600, and let systemd give it to the \
         service (credentials.conf.example)",
        path.display()
    )
}

/// Only files: opening a pipe would wait for somebody to write.
fn open(path: &Path) -> Result<(File, Metadata), Unusable> {
    let metadata = fs::metadata(path).map_err(|error| unreadable(path, &error))?;
    if !metadata.is_file() {
        return Err(Unusable::Wrong(format!("{}: this is not a file", path.display())));
    }
    let file = File::open(path).map_err(|error| unreadable(path, &error))?;
    Ok((file, metadata))
}

fn unreadable(path: &Path, error: &io::Error) -> Unusable {
    let what = format!("{} cannot be read: {error}", path.display());
    if error.kind() == io::ErrorKind::PermissionDenied { Unusable::Hidden(what) } else { Unusable::Wrong(what) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn what(why: &Unusable) -> &str {
        let (Unusable::Wrong(what) | Unusable::Hidden(what)) = why;
        what
    }

    fn env(credentials: Option<&Path>) -> Env {
        Env { credentials_directory: credentials.map(Path::to_owned), ..Env::of("h") }
    }

    fn file(folder: &Path, content: &[u8]) -> PathBuf {
        let path = folder.join("secret");
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path
    }

    #[test]
    fn one_newline_at_the_end_is_not_part_of_a_secret() {
        let folder = tempfile::tempdir().unwrap();
        for (content, expected) in [("pw", "pw"), ("pw\n", "pw"), ("pw\r\n", "pw"), (" pw \n\n", " pw \n")] {
            let read = read_secret(&file(folder.path(), content.as_bytes())).unwrap();
            assert_eq!(read.secret.reveal(), expected);
            assert_eq!(read.open_to_all, None);
        }
    }

    #[test]
    fn files_without_a_secret_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        for (content, word) in [
            (Vec::new(), "empty"),
            (b"\n".to_vec(), "empty"),
            (vec![0xff], "UTF-8"),
            (vec![b'x'; 70_000], "more than 65535"),
        ] {
            let why = read_secret(&file(folder.path(), &content)).err().unwrap();
            assert!(matches!(&why, Unusable::Wrong(what) if what.contains(word)), "{why:?}");
        }
        assert!(what(&read_secret(folder.path()).err().unwrap()).contains("not a file"));
        assert!(what(&read_secret(&folder.path().join("none")).err().unwrap()).contains("cannot be read"));
        let denied = unreadable(folder.path(), &io::Error::from(io::ErrorKind::PermissionDenied));
        assert!(matches!(denied, Unusable::Hidden(_)), "{denied:?}");
    }

    #[test]
    fn a_file_open_to_all_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        let path = file(folder.path(), b"pw");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(read_secret(&path).unwrap().open_to_all, Some(0o644));
    }

    #[test]
    fn credentials_are_found_where_systemd_says() {
        let folder = Path::new("/run/credentials/tidegate.service");
        assert_eq!(expand("$CREDENTIALS_DIRECTORY/plant.pw", &env(Some(folder))), Ok(folder.join("plant.pw")));
        let hidden = expand("$CREDENTIALS_DIRECTORY/plant.pw", &env(None)).unwrap_err();
        assert!(matches!(&hidden, Unusable::Hidden(what) if what.contains("LoadCredential=")), "{hidden:?}");
        let nameless = expand("$CREDENTIALS_DIRECTORY", &env(Some(folder))).unwrap_err();
        assert!(matches!(&nameless, Unusable::Wrong(what) if what.contains("name of the credential")), "{nameless:?}");
        let relative = expand("hunter2", &env(None)).unwrap_err();
        assert!(what(&relative).contains("absolute") && !what(&relative).contains("hunter2"), "{relative:?}");
    }
}
