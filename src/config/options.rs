//! `[kafka.options]`: properties of librdkafka, as they are.
//!
//! `sasl.password = "…"` and `"sasl.password" = "…"` mean the same: TOML reads the first as tables within tables, and
//! they are put together again. A secret may come from a file: `sasl.password_file = "/…"`. No value is ever part of a
//! message, whatever the name of its property.

use std::collections::BTreeMap;
use std::ops::Range;

use toml::de::DeTable;

use super::env::Env;
use super::files;
use super::problems::Reported;
use super::reading::{Section, article, shown_key};
use super::secret::Secret;

/// Properties that may come from a file.
const FROM_FILE: [&str; 3] = ["sasl.password", "ssl.key.password", "ssl.keystore.password"];

/// No property of librdkafka has more parts.
const MOST_PARTS: usize = 8;

pub(super) fn options(
    section: &Section<'_, '_>,
    env: &Env,
    largest_record_bytes: u64,
) -> Result<BTreeMap<String, Secret>, Reported> {
    let Some(table) = section.free_table("options")? else { return Ok(BTreeMap::new()) };
    let mut entries = Vec::new();
    let mut problem = flatten(section, table, "", 1, &mut entries);
    let mut options = BTreeMap::new();
    let mut places: BTreeMap<String, Range<usize>> = BTreeMap::new();
    for (name, value, span) in entries {
        let read = match name.strip_suffix("_file").filter(|option| FROM_FILE.contains(option)) {
            Some(option) => from_file(section, &name, value, &span, env).map(|secret| (option.to_owned(), secret)),
            None => Ok((name.clone(), Secret::new(value.to_owned()))),
        };
        match read {
            Err(reported) => problem = Some(reported),
            Ok((option, secret)) => {
                if options.insert(option.clone(), secret).is_some() {
                    let what = format!("{option} is set twice; keep one of them");
                    problem = Some(section.problem_at(&span, &path(&name), what));
                }
                places.insert(option, span);
            }
        }
    }
    for (name, why) in judge(&options, largest_record_bytes) {
        let span = places.get(&name).cloned().unwrap_or_else(|| section.span_of("options"));
        problem = Some(section.problem_at(&span, &path(&name), why));
    }
    problem.map_or(Ok(options), Err)
}

/// What breaks a promise, and what librdkafka does not know or take.
fn judge(options: &BTreeMap<String, Secret>, largest_record_bytes: u64) -> Vec<(String, String)> {
    crate::forward::check_options(options, largest_record_bytes)
}

type Entry<'t> = (String, &'t str, Range<usize>);

fn flatten<'t>(
    section: &Section<'_, '_>,
    table: &'t DeTable<'_>,
    prefix: &str,
    part: usize,
    entries: &mut Vec<Entry<'t>>,
) -> Option<Reported> {
    let mut problem = None;
    for (key, value) in table {
        let name = format!("{prefix}{}", key.get_ref());
        if let Some(text) = value.get_ref().as_str() {
            entries.push((name, text, value.span()));
        } else if let Some(inner) = value.get_ref().as_table().filter(|_| part < MOST_PARTS) {
            problem = flatten(section, inner, &format!("{name}."), part.saturating_add(1), entries).or(problem);
        } else {
            let what = format!("found {}; allowed: text, in quotes", article(value.get_ref()));
            problem = Some(section.problem_at(&value.span(), &path(&name), what));
        }
    }
    problem
}

fn from_file(
    section: &Section<'_, '_>,
    name: &str,
    value: &str,
    span: &Range<usize>,
    env: &Env,
) -> Result<Secret, Reported> {
    let read = files::expand(value, env).and_then(|path| Ok((files::read_secret(&path)?, path)));
    let (contents, file) = read.map_err(|why| section.problem_at(span, &path(name), why))?;
    if let Some(mode) = contents.open_to_all {
        section.remark_at(span, &path(name), files::too_open(&file, mode));
    }
    Ok(contents.secret)
}

/// The empty name stands for all options together.
fn path(option: &str) -> String {
    if option.is_empty() { "options".into() } else { format!("options.{}", shown_key(option)) }
}
