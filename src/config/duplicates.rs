//! A key or table that stands twice: which, and where the first one is.
//!
//! The parser says only "duplicate key" and where the second one stands. It keeps the first value and goes on, so that
//! everything else can still be read.

use std::ops::Range;

use toml::de::{DeTable, DeValue};

use crate::settings::problems::{Notes, quoted};
use crate::settings::reading::shown_key;

/// What the parser calls it.
pub(super) const MESSAGE: &str = "duplicate key";

/// Notes the key that stands at `span` and, further up, once before.
pub(super) fn note(notes: &Notes<'_>, root: &DeTable<'_>, span: &Range<usize>) {
    let text = notes.text();
    let name = text.get(span.clone()).unwrap_or_default();
    let name = name.trim_matches(['"', '\'', ' ', '\t']);
    if let Some((header, first)) = header_before(text, span.start) {
        notes.problem(
            span,
            &header,
            format!("this table appears twice: first in line {first}; make one table of both"),
        );
        return;
    }
    let mut found = None;
    first_before(root, "", name, span.start, &mut found);
    let key = found.as_ref().map_or_else(|| shown_key(name), |(_, path)| path.clone());
    let what = match found {
        Some((at, _)) => format!("appears twice: first in line {}; keep one of them", notes.line(&(at..at))),
        None => format!("{} appears twice; keep one of them", quoted(name)),
    };
    notes.problem(span, &key, what);
}

/// When a header stands at this place: it, and the line of the same one before.
fn header_before(text: &str, at: usize) -> Option<(String, usize)> {
    let start = text.get(..at)?.rfind('\n').map_or(0, |newline| newline + 1);
    let header = header(text.get(start..)?.lines().next()?)?;
    let same = |line: &str| self::header(line) == Some(header);
    let first = text.get(..start)?.lines().position(same)?;
    Some((header.trim_matches(['[', ']', ' ']).to_owned(), first + 1))
}

fn header(line: &str) -> Option<&str> {
    let line = line.split('#').next()?.trim();
    line.starts_with('[').then_some(line)
}

/// The last key of that name before `end`: tables are written in one piece, so that it is the one in the same table.
fn first_before(table: &DeTable<'_>, path: &str, name: &str, end: usize, found: &mut Option<(usize, String)>) {
    for (key, value) in table {
        let here =
            if path.is_empty() { shown_key(key.get_ref()) } else { format!("{path}.{}", shown_key(key.get_ref())) };
        let start = key.span().start;
        if &**key.get_ref() == name && start < end && found.as_ref().is_none_or(|(last, _)| *last < start) {
            *found = Some((start, here.clone()));
        }
        match value.get_ref() {
            DeValue::Table(inner) => first_before(inner, &here, name, end, found),
            DeValue::Array(items) => {
                for (index, item) in items.iter().enumerate() {
                    if let Some(inner) = item.get_ref().as_table() {
                        first_before(inner, &format!("{here}[{index}]"), name, end, found);
                    }
                }
            }
            DeValue::String(_)
            | DeValue::Integer(_)
            | DeValue::Float(_)
            | DeValue::Boolean(_)
            | DeValue::Datetime(_) => {}
        }
    }
}
