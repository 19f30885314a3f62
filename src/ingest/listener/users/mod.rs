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
mod file;
mod hash;

pub(super) use self::desk::{Users, Verdict};
pub(super) use self::file::UsersFile;
pub(crate) use self::file::{UsersError, check_users_file};

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use bytes::Bytes;

    use super::*;
    use crate::ingest::limits::MAX_USERS_FILE_BYTES;

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
            (format!("{BOB}\n{BOB}\n"), 2, "\"bob\" appears twice"),
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
