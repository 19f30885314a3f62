//! `[kafka.options]`: properties of librdkafka, as they are.
//!
//! `sasl.password = "…"` and `"sasl.password" = "…"` mean the same: TOML reads the first as tables within tables, and
//! they are put together again. A secret may come from a file: `sasl.password_file = "/…"`. No value is ever part of a
//! message, whatever the name of its property.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use toml::de::DeTable;

use crate::settings::files;
use crate::settings::kafka::KafkaKeys;
use crate::settings::problems::{Reported, Unusable};
use crate::settings::reading::{Section, article, shown_key};
use crate::settings::{Delivery, Secret};

/// Properties that may come from a file.
const FROM_FILE: [&str; 3] = ["sasl.password", "ssl.key.password", "ssl.keystore.password"];

/// Properties that name a file.
const FILES: [&str; 5] =
    ["ssl.key.location", "ssl.keystore.location", "ssl.certificate.location", "ssl.ca.location", "ssl.crl.location"];

/// No property of librdkafka has more parts.
const MOST_PARTS: usize = 8;

pub(super) fn options(
    section: &Section<'_, '_>,
    delivery: Delivery,
    largest_record_bytes: u64,
) -> Result<BTreeMap<String, Secret>, Reported> {
    let Some(table) = section.free_table(&KafkaKeys::options.key)? else { return Ok(BTreeMap::new()) };
    let mut entries = Vec::new();
    let mut problem = flatten(section, table, "", 1, &mut entries);
    let mut options = BTreeMap::new();
    let mut all_seen = true;
    let mut places: BTreeMap<String, Range<usize>> = BTreeMap::new();
    for (name, value, span) in entries {
        let read = match name.strip_suffix("_file").filter(|option| FROM_FILE.contains(option)) {
            Some(option) => from_file(section, &name, value, &span).map(|secret| (option.to_owned(), secret)),
            None => Ok((name.clone(), hidden_file(section, &name, value, &span)?)),
        };
        match read {
            Err(reported) => problem = Some(reported),
            Ok((option, secret)) => {
                all_seen &= secret.is_some();
                // Whoever may not see it does not use it: any text stands for it while the others are checked.
                let secret = secret.unwrap_or_else(|| Secret::new("hidden".to_owned()));
                if options.insert(option.clone(), secret).is_some() {
                    let what = format!("{option} is set twice; keep one of them");
                    problem = Some(section.problem_at(&span, &path(&name), what));
                }
                places.insert(option, span);
            }
        }
    }
    for (name, why) in judge(&options, delivery, largest_record_bytes, all_seen) {
        let span = places.get(&name).cloned().unwrap_or_else(|| section.span_of("options"));
        problem = Some(section.problem_at(&span, &path(&name), why));
    }
    problem.map_or(Ok(options), Err)
}

/// What breaks a promise, and what librdkafka does not know or take.
fn judge(
    options: &BTreeMap<String, Secret>,
    delivery: Delivery,
    largest_record_bytes: u64,
    all_seen: bool,
) -> Vec<(String, String)> {
    if all_seen {
        crate::forward::check_options(options, delivery, largest_record_bytes)
    } else {
        crate::forward::check_each_option(options, largest_record_bytes)
    }
}

/// The value of a property; `None` when it names a file that we may not look at.
fn hidden_file(
    section: &Section<'_, '_>,
    name: &str,
    value: &str,
    span: &Range<usize>,
) -> Result<Option<Secret>, Reported> {
    if let (true, Err(why @ Unusable::Hidden(_))) = (FILES.contains(&name), files::check_readable(Path::new(value))) {
        section.file_at(span, &path(name), why)?;
        return Ok(None);
    }
    Ok(Some(Secret::new(value.to_owned())))
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
            problem = flatten(section, inner, &format!("{name}."), part + 1, entries).or(problem);
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
) -> Result<Option<Secret>, Reported> {
    let read = files::expand(value, section.env()).and_then(|path| Ok((files::read_secret(&path)?, path)));
    let (contents, file) = match read {
        Ok(read) => read,
        Err(why) => return section.file_at(span, &path(name), why).map(|()| None),
    };
    if let Some(mode) = contents.open_to_all {
        section.remark_at(span, &path(name), files::too_open(&file, mode));
    }
    Ok(Some(contents.secret))
}

/// The empty name stands for all options together.
fn path(option: &str) -> String {
    if option.is_empty() { "options".into() } else { format!("options.{}", shown_key(option)) }
}
