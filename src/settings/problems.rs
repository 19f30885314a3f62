//! What is wrong with a configuration, and where.

use std::cell::RefCell;
use std::fmt;
use std::ops::Range;

/// One thing to mend.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Problem {
    /// Line and column in the file, from 1; `None` when there is no file to point into.
    pub place: Option<(usize, usize)>,
    /// The key, as `mqtt[0].subscribe[1].qos`; empty when the TOML itself cannot be read.
    pub key: String,
    /// What was found, what is allowed. Never a secret.
    pub what: String,
}

/// All of them, in the order of the file. Shown as one `file:line:column: key: what` a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problems {
    file: String,
    list: Vec<Problem>,
}

/// "It has been noted": made only by noting a problem, so that nothing is given up in silence.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reported(());

/// Why a file cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Unusable {
    /// It must be mended.
    Wrong(String),
    /// This user may not see it; the agent may.
    Hidden(String),
}

/// Takes down problems and remarks while a text is read.
pub(crate) struct Notes<'a> {
    text: &'a str,
    files: Files,
    problems: RefCell<Vec<Problem>>,
    remarks: RefCell<Vec<Problem>>,
    unseen: RefCell<Vec<Problem>>,
}

/// Whether each file that is named must be readable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Files {
    /// By who is to use it.
    Needed,
    /// By whom it is for: who only checks may not be allowed to look.
    IfWeMay,
}

/// What was taken down.
pub(crate) struct Taken {
    pub(crate) problems: Vec<Problem>,
    pub(crate) remarks: Vec<Problem>,
    /// What could not be looked at, and may well be right.
    pub(crate) unseen: Vec<Problem>,
}

impl Problem {
    /// With the name of its file.
    #[must_use]
    pub(crate) fn in_file(&self, file: &str) -> String {
        let place = self.place.map_or(String::new(), |(line, column)| format!(":{line}:{column}"));
        let key = if self.key.is_empty() { String::new() } else { format!(" {}:", self.key) };
        format!("{file}{place}:{key} {}", self.what)
    }
}

impl Problems {
    pub(crate) fn new(file: &str, mut list: Vec<Problem>) -> Self {
        list.sort();
        list.dedup();
        Self { file: file.to_owned(), list }
    }

    /// For a file that cannot be read at all.
    pub(crate) fn of_file(file: &str, what: String) -> Self {
        Self::new(file, vec![Problem { place: None, key: String::new(), what }])
    }

    /// In the order of the file.
    #[must_use]
    pub(crate) fn list(&self) -> &[Problem] {
        &self.list
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.list.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            f.write_str(&problem.in_file(&self.file))?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

impl<'a> Notes<'a> {
    pub(crate) fn new(text: &'a str, files: Files) -> Self {
        let (problems, remarks, unseen) = (RefCell::default(), RefCell::default(), RefCell::default());
        Self { text, files, problems, remarks, unseen }
    }

    /// A file cannot be used. `Ok` when that is only because we may not look at it.
    pub(crate) fn file(&self, span: &Range<usize>, key: &str, why: Unusable) -> Result<(), Reported> {
        match why {
            Unusable::Hidden(what) if self.files == Files::IfWeMay => {
                self.unseen.borrow_mut().push(self.at(span, key, format!("not checked: {what}")));
                Ok(())
            }
            Unusable::Hidden(what) | Unusable::Wrong(what) => Err(self.problem(span, key, what)),
        }
    }

    pub(crate) fn problem(&self, span: &Range<usize>, key: &str, what: String) -> Reported {
        self.problems.borrow_mut().push(self.at(span, key, what));
        Reported(())
    }

    pub(crate) fn remark(&self, span: &Range<usize>, key: &str, what: String) {
        self.remarks.borrow_mut().push(self.at(span, key, what));
    }

    pub(crate) fn text(&self) -> &'a str {
        self.text
    }

    /// Line of a place in the text, from 1.
    pub(crate) fn line(&self, span: &Range<usize>) -> usize {
        self.place(span).0
    }

    pub(crate) fn taken(self) -> Taken {
        let Self { problems, remarks, unseen, .. } = self;
        Taken { problems: problems.into_inner(), remarks: remarks.into_inner(), unseen: unseen.into_inner() }
    }

    fn at(&self, span: &Range<usize>, key: &str, what: String) -> Problem {
        Problem { place: Some(self.place(span)), key: key.to_owned(), what }
    }

    fn place(&self, span: &Range<usize>) -> (usize, usize) {
        let before = self.text.get(..span.start).unwrap_or(self.text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let line = before.bytes().filter(|byte| *byte == b'\n').count() + 1;
        let column = before.get(line_start..).unwrap_or_default().chars().count() + 1;
        (line, column)
    }
}

/// A value as it may be shown: quoted, no control characters, not too long.
pub(crate) fn quoted(text: &str) -> String {
    const MOST_CHARS: usize = 60;
    if text.chars().count() <= MOST_CHARS {
        return format!("{text:?}");
    }
    let head: String = text.chars().take(MOST_CHARS).collect();
    format!("{:?}", format!("{head}…"))
}

/// The known word that was probably meant.
pub(crate) fn nearest<'k>(word: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    let plain = |text: &str| text.to_ascii_lowercase().replace('-', "_");
    let word = plain(word.get(..word.len().min(LONGEST_TYPO_BYTES)).unwrap_or_default());
    known
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(&word, &plain(candidate)), candidate))
        .filter(|(distance, candidate)| {
            let part = word.len() >= SHORTEST_PART_BYTES && candidate.contains(&*word);
            part || *distance <= candidate.len().div_euclid(3).max(1)
        })
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Longer than any key; the comparison takes quadratic time.
const LONGEST_TYPO_BYTES: usize = 64;

/// A word of so many letters that is part of a key was probably meant for it: `password` for `password_file`.
const SHORTEST_PART_BYTES: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_count_from_one_in_characters() {
        let notes = Notes::new("a = 1\nü = x\n", Files::Needed);
        for (start, place) in [(0, (1, 1)), (4, (1, 5)), (6, (2, 1)), (11, (2, 5)), (99, (3, 1))] {
            assert_eq!(notes.place(&(start..start)), place);
        }
    }

    #[test]
    fn a_typo_finds_its_key_and_nonsense_does_not() {
        let keys = ["max_bytes", "sync", "when_full"];
        assert_eq!(nearest("max-bytes", keys), Some("max_bytes"));
        assert_eq!(nearest("maxbyte", keys), Some("max_bytes"));
        assert_eq!(nearest("snyc", keys), Some("sync"));
        assert_eq!(nearest("full", keys), Some("when_full"));
        assert_eq!(nearest("colour", keys), None);
        assert_eq!(nearest("ü".repeat(40).as_str(), keys), None);
    }

    #[test]
    fn shown_values_are_short_and_plain() {
        assert_eq!(quoted("\u{1b}[2J"), r#""\u{1b}[2J""#);
        assert!(quoted(&"x".repeat(1000)).len() < 80);
    }
}
