//! From TOML to single checked values, each with its place in the text.
//!
//! A [`Section`] is one table and what the schema knows about it. Its methods give the value of a key, or its default,
//! or note what is wrong and go on, so that one run finds everything. Whoever builds a checked type reads all keys
//! first and looks for failures last.

use std::net::SocketAddr;
use std::ops::Range;
use std::time::Duration;

use toml::de::{DeTable, DeValue};

use super::files::Unusable;
use super::problems::{Notes, Reported, nearest, quoted};
use super::schema::{Default, Key, Kind, MAX_NAME_CHARS, TABLES, Table};
use super::units::{self, UnitError};

/// The whole file.
pub(super) struct Document<'t, 'a> {
    pub(super) notes: &'t Notes<'a>,
    pub(super) root: &'t DeTable<'a>,
}

/// One table of it. Also made for a table that is not there, to give the defaults.
pub(super) struct Section<'t, 'a> {
    notes: &'t Notes<'a>,
    schema: &'static Table,
    path: String,
    header: Range<usize>,
    table: Option<&'t DeTable<'a>>,
}

/// A value and where it stands; for a default, where its table stands.
struct Found<'a> {
    value: DeValue<'a>,
    span: Range<usize>,
}

impl<'t, 'a> Document<'t, 'a> {
    /// Tables that nobody knows.
    pub(super) fn refuse_unknown(&self) {
        let known = || TABLES.iter().map(|table| table.name);
        for (key, _) in self.root {
            let name = &**key.get_ref();
            if known().any(|table| table == name) {
                continue;
            }
            let elsewhere = TABLES.iter().find(|table| table.key(name).is_some());
            let hint = match (nearest(name, known()), elsewhere) {
                (_, Some(table)) => format!("it belongs under {}", table.header()),
                (Some(near), None) => format!("did you mean {near:?}?"),
                (None, None) => format!("known tables: {}", known().collect::<Vec<_>>().join(", ")),
            };
            self.notes.problem(&key.span(), &shown_key(name), format!("unknown; {hint}"));
        }
    }

    /// A table that stands once or not at all.
    pub(super) fn one(&self, schema: &'static Table) -> Section<'t, 'a> {
        let mut section = self.section(schema, schema.name.to_owned());
        if let Some(found) = self.root.get(schema.name) {
            section.header = found.span();
            if let Some(table) = found.get_ref().as_table() {
                section.table = Some(table);
            } else if let Some(array) = found.get_ref().as_array() {
                section.header = array.first().map_or(found.span(), toml::Spanned::span);
                section.here(format!("there is only one; write {} instead of [[{}]]", schema.header(), schema.name));
            } else {
                let what = format!("found {}; this is a table: write {}", article(found.get_ref()), schema.header());
                section.here(what);
            }
        }
        section
    }

    /// A table that may stand many times.
    pub(super) fn many(&self, schema: &'static Table, most: usize) -> Result<Vec<Section<'t, 'a>>, Reported> {
        let Some(found) = self.root.get(schema.name) else { return Ok(Vec::new()) };
        let mut all = self.section(schema, schema.name.to_owned());
        all.header = found.span();
        let DeValue::Array(array) = found.get_ref() else {
            let what = format!("found {}; there may be several: write {}", article(found.get_ref()), schema.header());
            return Err(all.here(what));
        };
        sections(&all, array, schema, most)
    }

    /// Notes a table that is not there.
    pub(super) fn missing(&self, key: &str, what: String) -> Reported {
        self.notes.problem(&(0..0), key, what)
    }

    fn section(&self, schema: &'static Table, path: String) -> Section<'t, 'a> {
        Section { notes: self.notes, schema, path, header: 0..0, table: None }
    }
}

impl<'t, 'a> Section<'t, 'a> {
    /// A text that is there or has a default.
    pub(super) fn text(&self, key: &str) -> Result<String, Reported> {
        self.optional_text(key)?.ok_or_else(|| self.not_there(key))
    }

    /// A text that may be missing.
    pub(super) fn optional_text(&self, key: &str) -> Result<Option<String>, Reported> {
        let (spec, found) = self.find(key)?;
        let Some(found) = found else { return Ok(None) };
        let text = self.string(spec, &found)?;
        let fits = if matches!(spec.kind, Kind::Name) {
            is_name(text)
        } else {
            !text.is_empty() || matches!(spec.kind, Kind::Text(true))
        };
        if fits { Ok(Some(text.to_owned())) } else { Err(self.refuse(spec, &found, &quoted(text))) }
    }

    /// One of the words in `meanings`.
    pub(super) fn choice<T: Copy>(&self, key: &str, meanings: &[(&str, T)]) -> Result<T, Reported> {
        let (spec, found) = self.need(key)?;
        let text = self.string(spec, &found)?;
        if let Some((_, meaning)) = meanings.iter().find(|(word, _)| *word == text) {
            return Ok(*meaning);
        }
        let Kind::Choice(words, later) = spec.kind else { return Err(self.fault(key)) };
        if later.contains(&text) {
            let what = format!("{text:?} comes in a later version; allowed: {}", spec.kind.allowed());
            return Err(self.notes.problem(&found.span, &self.path_of(key), what));
        }
        let near = nearest(text, words.iter().copied());
        let near = near.map_or(String::new(), |near| format!("; did you mean {near:?}?"));
        let what = format!("found {}; allowed: {}{near}", quoted(text), spec.kind.allowed());
        Err(self.notes.problem(&found.span, &self.path_of(key), what))
    }

    pub(super) fn flag(&self, key: &str) -> Result<bool, Reported> {
        let (spec, found) = self.need(key)?;
        found.value.as_bool().ok_or_else(|| self.refuse_type(spec, &found))
    }

    /// A whole number; the schema's limits make it fit where it goes.
    pub(super) fn count<T: TryFrom<u64>>(&self, key: &str) -> Result<T, Reported> {
        let (spec, found) = self.need(key)?;
        let Kind::Count { min, max, .. } = spec.kind else { return Err(self.fault(key)) };
        let Some(number) = found.value.as_integer() else { return Err(self.refuse_type(spec, &found)) };
        let value = u64::from_str_radix(number.as_str(), number.radix()).ok();
        let value = value.filter(|value| (min..=max).contains(value)).and_then(|value| T::try_from(value).ok());
        value.ok_or_else(|| self.refuse(spec, &found, number.as_str()))
    }

    /// Bytes; the schema's limits make it fit where it goes.
    pub(super) fn size<T: TryFrom<u64>>(&self, key: &str) -> Result<T, Reported> {
        let (spec, found) = self.need(key)?;
        let Kind::Size { min, max, .. } = spec.kind else { return Err(self.fault(key)) };
        let text = self.with_unit(spec, &found)?;
        let bytes = units::size(text).map_err(|error| self.unit_error(spec, &found, error))?;
        let value = Some(bytes).filter(|bytes| (min..=max).contains(bytes)).and_then(|bytes| T::try_from(bytes).ok());
        value.ok_or_else(|| self.refuse(spec, &found, &quoted(text)))
    }

    pub(super) fn time(&self, key: &str) -> Result<Duration, Reported> {
        let (spec, found) = self.need(key)?;
        let Kind::Time { min, max, whole_seconds, .. } = spec.kind else { return Err(self.fault(key)) };
        let text = self.with_unit(spec, &found)?;
        let time = units::time(text).map_err(|error| self.unit_error(spec, &found, error))?;
        let whole = !whole_seconds || time.subsec_nanos() == 0;
        if whole && (min..=max).contains(&time) { Ok(time) } else { Err(self.refuse(spec, &found, &quoted(text))) }
    }

    /// IP address and port; `None` for "", where the schema allows it.
    pub(super) fn address(&self, key: &str) -> Result<Option<SocketAddr>, Reported> {
        let (spec, found) = self.need(key)?;
        let text = self.string(spec, &found)?;
        if text.is_empty() && matches!(spec.kind, Kind::Address(true)) {
            return Ok(None);
        }
        text.parse().map(Some).map_err(|_bad: std::net::AddrParseError| self.refuse(spec, &found, &quoted(text)))
    }

    /// Texts with what is needed to report on each.
    pub(super) fn list(&self, key: &str) -> Result<Vec<(String, Range<usize>)>, Reported> {
        let (spec, found) = self.need(key)?;
        let DeValue::Array(array) = &found.value else { return Err(self.refuse_type(spec, &found)) };
        if array.is_empty() {
            return Err(self.refuse(spec, &found, "an empty list"));
        }
        let text = |(index, item): (usize, &toml::Spanned<DeValue<'a>>)| {
            item.get_ref().as_str().map(|text| (text.to_owned(), item.span())).ok_or_else(|| {
                let what = format!("found {}; allowed: text", article(item.get_ref()));
                self.notes.problem(&item.span(), &format!("{}[{index}]", self.path_of(key)), what)
            })
        };
        let all: Vec<_> = array.iter().enumerate().map(text).collect();
        all.into_iter().collect()
    }

    /// The inline tables of a key.
    pub(super) fn tables(&self, key: &str, most: usize) -> Result<Vec<Section<'t, 'a>>, Reported> {
        let (spec, found) = self.need(key)?;
        let Kind::Tables(schema) = spec.kind else { return Err(self.fault(key)) };
        let array = match self.table.and_then(|table| table.get(key)).map(toml::Spanned::get_ref) {
            Some(DeValue::Array(array)) if !array.is_empty() => array,
            Some(DeValue::Array(_)) => return Err(self.refuse(spec, &found, "an empty list")),
            _ => return Err(self.refuse_type(spec, &found)),
        };
        let list = Section {
            notes: self.notes,
            schema: self.schema,
            path: self.path_of(key),
            header: found.span,
            table: self.table,
        };
        sections(&list, array, schema, most)
    }

    /// The keys behind a dot; without them, a section that gives their defaults.
    pub(super) fn keys(&self, key: &str) -> Result<Section<'t, 'a>, Reported> {
        let spec = self.schema.key(key).ok_or_else(|| self.fault(key))?;
        let Kind::Keys(schema) = spec.kind else { return Err(self.fault(key)) };
        let found = self.free_table(key)?;
        Ok(Section { notes: self.notes, schema, path: self.path_of(key), header: self.span_of(key), table: found })
    }

    /// The table that a key holds, as it is.
    pub(super) fn free_table(&self, key: &str) -> Result<Option<&'t DeTable<'a>>, Reported> {
        let spec = self.schema.key(key).ok_or_else(|| self.fault(key))?;
        let Some(found) = self.table.and_then(|table| table.get(key)) else { return Ok(None) };
        found.get_ref().as_table().map(Some).ok_or_else(|| {
            let what = format!("found {}; allowed: {}", article(found.get_ref()), spec.kind.allowed());
            self.notes.problem(&found.span(), &self.path_of(key), what)
        })
    }

    /// Is the key in the file?
    pub(super) fn has(&self, key: &str) -> bool {
        self.table.is_some_and(|table| table.contains_key(key))
    }

    /// Keys that nobody knows, and keys whose time has not come.
    pub(super) fn refuse_unknown(&self) {
        for (key, _) in self.table.into_iter().flatten() {
            let name = &**key.get_ref();
            let what = match self.schema.key(name) {
                Some(Key { kind: Kind::Later(why), .. }) => format!("{why}; leave the key out"),
                Some(_) => continue,
                None => format!("unknown key; {}", self.hint(name)),
            };
            self.notes.problem(&key.span(), &self.path_of(name), what);
        }
    }

    /// Notes a problem with the value of a key, or with the table when the key is not there.
    pub(super) fn problem(&self, key: &str, what: String) -> Reported {
        self.notes.problem(&self.span_of(key), &self.path_of(key), what)
    }

    /// Notes a problem with a part of a value; `part` is the rest of its path.
    pub(super) fn problem_at(&self, span: &Range<usize>, part: &str, what: String) -> Reported {
        self.notes.problem(span, &format!("{}.{part}", self.path), what)
    }

    /// The file of a key cannot be used. `Ok` when that is only because we may not look at it.
    pub(super) fn file(&self, key: &str, why: Unusable) -> Result<(), Reported> {
        self.notes.file(&self.span_of(key), &self.path_of(key), why)
    }

    /// The same for a part of a value.
    pub(super) fn file_at(&self, span: &Range<usize>, part: &str, why: Unusable) -> Result<(), Reported> {
        self.notes.file(span, &format!("{}.{part}", self.path), why)
    }

    /// Notes something odd about a part of a value.
    pub(super) fn remark_at(&self, span: &Range<usize>, part: &str, what: String) {
        self.notes.remark(span, &format!("{}.{part}", self.path), what);
    }

    pub(super) fn remark(&self, key: &str, what: String) {
        self.notes.remark(&self.span_of(key), &self.path_of(key), what);
    }

    /// Where the value of a key stands.
    pub(super) fn span_of(&self, key: &str) -> Range<usize> {
        self.table.and_then(|table| table.get(key)).map_or_else(|| self.header.clone(), toml::Spanned::span)
    }

    /// The line of a key's value.
    pub(super) fn line_of(&self, key: &str) -> usize {
        self.notes.line(&self.span_of(key))
    }

    /// Nothing there and no default.
    pub(super) fn not_there(&self, key: &str) -> Reported {
        let Some(spec) = self.schema.key(key) else { return self.fault(key) };
        let what = format!("missing; write {} = {}. {}", spec.name, spec.example(), spec.why);
        self.notes.problem(&self.header, &self.path_of(key), what)
    }

    fn here(&self, what: String) -> Reported {
        self.notes.problem(&self.header, &self.path, what)
    }

    fn path_of(&self, key: &str) -> String {
        format!("{}.{}", self.path, shown_key(key))
    }

    fn hint(&self, name: &str) -> String {
        let known = || self.schema.keys.iter().filter(|key| !matches!(key.kind, Kind::Later(_))).map(|key| key.name);
        if let Some(near) = nearest(name, known()) {
            return format!("did you mean {near:?}?");
        }
        if TABLES.iter().any(|table| table.name == name) {
            return format!("{name:?} is a table of its own: put its header at the beginning of a line");
        }
        if let Some(table) = TABLES.iter().find(|table| table.key(name).is_some()) {
            return format!("it belongs under {}", table.header());
        }
        format!("known here: {}", known().collect::<Vec<_>>().join(", "))
    }

    fn find(&self, key: &str) -> Result<(&'static Key, Option<Found<'a>>), Reported> {
        let spec = self.schema.key(key).ok_or_else(|| self.fault(key))?;
        if let Some(value) = self.table.and_then(|table| table.get(key)) {
            return Ok((spec, Some(Found { value: value.get_ref().clone(), span: value.span() })));
        }
        let Default::Is(text) = spec.default else { return Ok((spec, None)) };
        let value = DeValue::parse(text).map_err(|_bad| self.fault(key))?;
        Ok((spec, Some(Found { value: value.into_inner(), span: self.header.clone() })))
    }

    fn need(&self, key: &str) -> Result<(&'static Key, Found<'a>), Reported> {
        match self.find(key)? {
            (spec, Some(found)) => Ok((spec, found)),
            (_, None) => Err(self.not_there(key)),
        }
    }

    fn string<'f>(&self, spec: &Key, found: &'f Found<'a>) -> Result<&'f str, Reported> {
        found.value.as_str().ok_or_else(|| self.refuse_type(spec, found))
    }

    /// The text of a size or time; a number gets the word about units.
    fn with_unit<'f>(&self, spec: &Key, found: &'f Found<'a>) -> Result<&'f str, Reported> {
        if matches!(found.value, DeValue::Integer(_) | DeValue::Float(_)) {
            return Err(self.unit_error(spec, found, UnitError::NoUnit));
        }
        self.string(spec, found)
    }

    fn unit_error(&self, spec: &Key, found: &Found<'a>, error: UnitError) -> Reported {
        let number = found.value.as_integer().map(ToString::to_string);
        let number = number.or_else(|| found.value.as_float().map(ToString::to_string));
        let shown = number.or_else(|| found.value.as_str().map(quoted)).unwrap_or_default();
        match error {
            UnitError::NoUnit => {
                let what = format!("{shown} has no unit; write for example {} = {}", spec.name, spec.example());
                self.notes.problem(&found.span, &self.path_of(spec.name), what)
            }
            UnitError::Unreadable | UnitError::TooLarge => self.refuse(spec, found, &shown),
        }
    }

    fn refuse(&self, spec: &Key, found: &Found<'a>, shown: &str) -> Reported {
        let what = format!("found {shown}; allowed: {}", spec.kind.allowed());
        self.notes.problem(&found.span, &self.path_of(spec.name), what)
    }

    fn refuse_type(&self, spec: &Key, found: &Found<'a>) -> Reported {
        self.refuse(spec, found, article(&found.value))
    }

    /// Code and schema disagree. A test reads every key, so this does not leave the workshop.
    fn fault(&self, key: &str) -> Reported {
        self.notes.problem(
            &self.header,
            &self.path_of(key),
            "a fault in this version of tidegate, please report".into(),
        )
    }
}

fn sections<'t, 'a>(
    list: &Section<'t, 'a>,
    array: &'t [toml::Spanned<DeValue<'a>>],
    schema: &'static Table,
    most: usize,
) -> Result<Vec<Section<'t, 'a>>, Reported> {
    if array.len() > most {
        return Err(list.here(format!("found {}; at most {most} are allowed", array.len())));
    }
    let section = |(index, item): (usize, &'t toml::Spanned<DeValue<'a>>)| {
        let mut section = Section {
            notes: list.notes,
            schema,
            path: format!("{}[{index}]", list.path),
            header: item.span(),
            table: None,
        };
        section.table = item.get_ref().as_table();
        match section.table {
            Some(_) => Ok(section),
            None => Err(section.here(format!("found {}; allowed: a table", article(item.get_ref())))),
        }
    };
    let all: Vec<_> = array.iter().enumerate().map(section).collect();
    all.into_iter().collect()
}

/// The type of a value, never the value: it may be a secret in the wrong place.
pub(super) fn article(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "text",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a decimal number",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date or time",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

pub(super) fn is_name(text: &str) -> bool {
    (1..=MAX_NAME_CHARS).contains(&text.len())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
}

/// A key as it can be shown; one that is not plain is quoted.
pub(super) fn shown_key(key: &str) -> String {
    if is_name(key) { key.to_owned() } else { quoted(key) }
}
