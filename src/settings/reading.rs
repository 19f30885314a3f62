//! From TOML to single checked values, each with its place in the text.
//!
//! A [`Section`] is one table of the text and what is declared of it. Its methods give the value of a key, or its
//! default, or note what is wrong and go on, so that one run finds everything.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::ops::Range;
use std::time::Duration;

use toml::de::{DeTable, DeValue};

use super::env::Env;
use super::problems::{Notes, Reported, Unusable, nearest, quoted};
use super::table::{Default, Key, Kind, MAX_NAME_CHARS, Table};
use super::units::{self, UnitError};

/// The whole file, with what reading it depends on.
#[derive(Clone, Copy)]
pub(crate) struct Document<'t, 'a> {
    pub(crate) notes: &'t Notes<'a>,
    pub(crate) root: &'t DeTable<'a>,
    pub(crate) env: &'t Env,
    /// All tables that there are.
    pub(crate) tables: &'static [&'static Table],
}

/// One table of it. Also made for a table that is not there, to give the defaults.
pub(crate) struct Section<'t, 'a> {
    document: Document<'t, 'a>,
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
    pub(crate) fn refuse_unknown(&self) {
        let known = || self.tables.iter().map(|table| table.name);
        for (key, _) in self.root {
            let name = &**key.get_ref();
            if known().any(|table| table == name) {
                continue;
            }
            let elsewhere = self.tables.iter().find(|table| table.knows(name));
            let hint = match (nearest(name, known()), elsewhere) {
                (_, Some(table)) => format!("it belongs under {}", table.header()),
                (Some(near), None) => format!("did you mean {near:?}?"),
                (None, None) => format!("known tables: {}", known().collect::<Vec<_>>().join(", ")),
            };
            self.notes.problem(&key.span(), &shown_key(name), format!("unknown; {hint}"));
        }
    }

    /// A table that stands once or not at all.
    pub(crate) fn one(&self, schema: &'static Table) -> Section<'t, 'a> {
        let mut section = self.section(schema, schema.name.to_owned());
        if let Some(found) = self.root.get(schema.name) {
            section.header = found.span();
            if let Some(table) = found.get_ref().as_table() {
                section.table = Some(table);
            } else if let Some(array) = found.get_ref().as_array() {
                section.header = array.first().map_or(found.span(), toml::Spanned::span);
                section.here(format!(
                    "only one such table is allowed; write {} instead of [[{}]]",
                    schema.header(),
                    schema.name
                ));
            } else {
                let what = format!("found {}; allowed: a table, written {}", article(found.get_ref()), schema.header());
                section.here(what);
            }
        }
        section
    }

    /// A table that may stand many times.
    pub(crate) fn many(&self, schema: &'static Table) -> Result<Vec<Section<'t, 'a>>, Reported> {
        let Some(found) = self.root.get(schema.name) else { return Ok(Vec::new()) };
        let mut all = self.section(schema, schema.name.to_owned());
        all.header = found.span();
        let DeValue::Array(array) = found.get_ref() else {
            let what = format!("found {}; allowed: tables, each written {}", article(found.get_ref()), schema.header());
            return Err(all.here(what));
        };
        sections(&all, array, schema)
    }

    /// Notes a table that is not there.
    pub(crate) fn missing(&self, key: &str, what: String) -> Reported {
        self.notes.problem(&(0..0), key, what)
    }

    fn section(&self, schema: &'static Table, path: String) -> Section<'t, 'a> {
        Section { document: *self, schema, path, header: 0..0, table: None }
    }
}

impl<'t, 'a> Section<'t, 'a> {
    pub(crate) fn env(&self) -> &'t Env {
        self.document.env
    }

    /// A text that is there or has a default.
    pub(crate) fn text(&self, key: &Key) -> Result<String, Reported> {
        self.optional_text(key)?.ok_or_else(|| self.not_there(key))
    }

    /// A text that may be missing.
    pub(crate) fn optional_text(&self, key: &Key) -> Result<Option<String>, Reported> {
        let Some(found) = self.find(key) else { return Ok(None) };
        let text = self.string(key, &found)?;
        let fits = if matches!(key.kind, Kind::Name) {
            is_name(text)
        } else {
            !text.is_empty() || matches!(key.kind, Kind::Text(true))
        };
        if fits { Ok(Some(text.to_owned())) } else { Err(self.refuse(key, &found, &quoted(text))) }
    }

    /// One of the words in `meanings`, which are those of the key.
    pub(crate) fn choice<T: Copy>(&self, key: &Key, meanings: &[(&str, T)]) -> Result<T, Reported> {
        let found = self.need(key)?;
        let text = self.string(key, &found)?;
        if let Some((_, meaning)) = meanings.iter().find(|(word, _)| *word == text) {
            return Ok(*meaning);
        }
        if matches!(key.kind, Kind::Choice(_, later) if later.contains(&text)) {
            let what = format!("{text:?} comes in a later version; allowed: {}", key.kind.allowed());
            return Err(self.note(&found, key, what));
        }
        let near = nearest(text, meanings.iter().map(|(word, _)| *word));
        let near = near.map_or(String::new(), |near| format!("; did you mean {near:?}?"));
        let what = format!("found {}; allowed: {}{near}", quoted(text), key.kind.allowed());
        Err(self.note(&found, key, what))
    }

    pub(crate) fn flag(&self, key: &Key) -> Result<bool, Reported> {
        let found = self.need(key)?;
        found.value.as_bool().ok_or_else(|| self.refuse_type(key, &found))
    }

    /// A whole number; the key's limits make it fit where it goes.
    pub(crate) fn count<T: TryFrom<u64>>(&self, key: &Key) -> Result<T, Reported> {
        let found = self.need(key)?;
        let Some(number) = found.value.as_integer() else { return Err(self.refuse_type(key, &found)) };
        let value = u64::from_str_radix(number.as_str(), number.radix()).ok();
        let value = value.filter(|value| key.kind.takes(*value)).and_then(|value| T::try_from(value).ok());
        value.ok_or_else(|| self.refuse(key, &found, number.as_str()))
    }

    /// Bytes; the key's limits make it fit where it goes.
    pub(crate) fn size<T: TryFrom<u64>>(&self, key: &Key) -> Result<T, Reported> {
        let found = self.need(key)?;
        let text = self.with_unit(key, &found)?;
        let bytes = units::size(text).map_err(|error| self.unit_error(key, &found, error))?;
        let value = Some(bytes).filter(|bytes| key.kind.takes(*bytes)).and_then(|bytes| T::try_from(bytes).ok());
        value.ok_or_else(|| self.refuse(key, &found, &quoted(text)))
    }

    pub(crate) fn time(&self, key: &Key) -> Result<Duration, Reported> {
        let found = self.need(key)?;
        let text = self.with_unit(key, &found)?;
        let time = units::time(text).map_err(|error| self.unit_error(key, &found, error))?;
        if key.kind.takes_time(time) { Ok(time) } else { Err(self.refuse(key, &found, &quoted(text))) }
    }

    /// `None` for "auto".
    pub(crate) fn time_or_auto(&self, key: &Key) -> Result<Option<Duration>, Reported> {
        let found = self.need(key)?;
        if found.value.as_str() == Some("auto") { Ok(None) } else { self.time(key).map(Some) }
    }

    /// IP address and port.
    pub(crate) fn address(&self, key: &Key) -> Result<SocketAddr, Reported> {
        let found = self.need(key)?;
        let text = self.string(key, &found)?;
        text.parse().map_err(|_bad: std::net::AddrParseError| self.refuse(key, &found, &quoted(text)))
    }

    /// The same; `None` for "".
    pub(crate) fn address_or_off(&self, key: &Key) -> Result<Option<SocketAddr>, Reported> {
        let found = self.need(key)?;
        if found.value.as_str() == Some("") { Ok(None) } else { self.address(key).map(Some) }
    }

    /// Texts with what is needed to report on each.
    pub(crate) fn list(&self, key: &Key) -> Result<Vec<(String, Range<usize>)>, Reported> {
        let found = self.need(key)?;
        let DeValue::Array(array) = &found.value else { return Err(self.refuse_type(key, &found)) };
        if array.is_empty() {
            return Err(self.refuse(key, &found, "an empty list"));
        }
        let text = |(index, item): (usize, &toml::Spanned<DeValue<'a>>)| {
            item.get_ref().as_str().map(|text| (text.to_owned(), item.span())).ok_or_else(|| {
                let what = format!("found {}; allowed: text", article(item.get_ref()));
                self.document.notes.problem(&item.span(), &format!("{}[{index}]", self.path_of(key.name)), what)
            })
        };
        let all: Vec<_> = array.iter().enumerate().map(text).collect();
        all.into_iter().collect()
    }

    /// The inline tables of a key.
    pub(crate) fn tables(&self, key: &Key, schema: &'static Table) -> Result<Vec<Self>, Reported> {
        let found = self.need(key)?;
        let array = match self.table.and_then(|table| table.get(key.name)).map(toml::Spanned::get_ref) {
            Some(DeValue::Array(array)) if !array.is_empty() => array,
            Some(DeValue::Array(_)) => return Err(self.refuse(key, &found, "an empty list")),
            _ => return Err(self.refuse_type(key, &found)),
        };
        sections(&self.within(key, found.span, self.table), array, schema)
    }

    /// The keys behind a dot; without them, a section that gives their defaults.
    pub(crate) fn keys(&self, key: &Key, schema: &'static Table) -> Result<Self, Reported> {
        let found = self.free_table(key)?;
        Ok(Self { schema, ..self.within(key, self.span_of(key.name), found) })
    }

    /// The table that a key holds, as it is.
    pub(crate) fn free_table(&self, key: &Key) -> Result<Option<&'t DeTable<'a>>, Reported> {
        let Some(found) = self.table.and_then(|table| table.get(key.name)) else { return Ok(None) };
        found.get_ref().as_table().map(Some).ok_or_else(|| {
            let what = format!("found {}; allowed: {}", article(found.get_ref()), key.kind.allowed());
            self.problem(key.name, what)
        })
    }

    /// Is the key in the file?
    pub(crate) fn has(&self, key: &str) -> bool {
        self.table.is_some_and(|table| table.contains_key(key))
    }

    /// Keys that nobody knows, and keys whose time has not come.
    pub(crate) fn refuse_unknown(&self) {
        for (key, _) in self.table.into_iter().flatten() {
            let name = &**key.get_ref();
            let later = self.schema.later.iter().find(|(later, _)| *later == name);
            let what = match (self.schema.key(name), later) {
                (Some(_), _) => continue,
                (None, Some((_, why))) => format!("{why}; leave the key out"),
                (None, None) => format!("unknown key; {}", self.hint(name)),
            };
            self.document.notes.problem(&key.span(), &self.path_of(name), what);
        }
    }

    /// Notes a problem with the value of a key, or with the table when the key is not there.
    pub(crate) fn problem(&self, key: &str, what: String) -> Reported {
        self.document.notes.problem(&self.span_of(key), &self.path_of(key), what)
    }

    /// Notes a problem with a part of a value; `part` is the rest of its path.
    pub(crate) fn problem_at(&self, span: &Range<usize>, part: &str, what: String) -> Reported {
        self.document.notes.problem(span, &format!("{}.{part}", self.path), what)
    }

    /// The file of a key cannot be used. `Ok` when that is only because we may not look at it.
    pub(crate) fn file(&self, key: &str, why: Unusable) -> Result<(), Reported> {
        self.document.notes.file(&self.span_of(key), &self.path_of(key), why)
    }

    /// The same for a part of a value.
    pub(crate) fn file_at(&self, span: &Range<usize>, part: &str, why: Unusable) -> Result<(), Reported> {
        self.document.notes.file(span, &format!("{}.{part}", self.path), why)
    }

    /// Notes something odd about a part of a value.
    pub(crate) fn remark_at(&self, span: &Range<usize>, part: &str, what: String) {
        self.document.notes.remark(span, &format!("{}.{part}", self.path), what);
    }

    pub(crate) fn remark(&self, key: &str, what: String) {
        self.document.notes.remark(&self.span_of(key), &self.path_of(key), what);
    }

    /// Where the value of a key stands.
    pub(crate) fn span_of(&self, key: &str) -> Range<usize> {
        self.table.and_then(|table| table.get(key)).map_or_else(|| self.header.clone(), toml::Spanned::span)
    }

    /// The line of a key's value.
    pub(crate) fn line_of(&self, key: &str) -> usize {
        self.document.notes.line(&self.span_of(key))
    }

    /// Nothing there and no default.
    fn not_there(&self, key: &Key) -> Reported {
        let what = format!("missing; write {} = {}. {}", key.name, key.example(), key.why);
        self.document.notes.problem(&self.header, &self.path_of(key.name), what)
    }

    /// The same table, but for what is reported: a part of it.
    fn within(&self, key: &Key, header: Range<usize>, table: Option<&'t DeTable<'a>>) -> Self {
        Self { document: self.document, schema: self.schema, path: self.path_of(key.name), header, table }
    }

    fn note(&self, found: &Found<'a>, key: &Key, what: String) -> Reported {
        self.document.notes.problem(&found.span, &self.path_of(key.name), what)
    }

    fn here(&self, what: String) -> Reported {
        self.document.notes.problem(&self.header, &self.path, what)
    }

    fn path_of(&self, key: &str) -> String {
        format!("{}.{}", self.path, shown_key(key))
    }

    fn hint(&self, name: &str) -> String {
        let known = || self.schema.keys.iter().map(|key| key.name);
        if let Some(near) = nearest(name, known()) {
            return format!("did you mean {near:?}?");
        }
        if self.document.tables.iter().any(|table| table.name == name) {
            return format!("{name:?} is another table: put its header at the beginning of a line");
        }
        if let Some(table) = self.document.tables.iter().find(|table| table.knows(name)) {
            return format!("it belongs under {}", table.header());
        }
        format!("known here: {}", known().collect::<Vec<_>>().join(", "))
    }

    fn find(&self, key: &Key) -> Option<Found<'a>> {
        if let Some(value) = self.table.and_then(|table| table.get(key.name)) {
            return Some(Found { value: value.get_ref().clone(), span: value.span() });
        }
        let Default::Is(text) = key.default else { return None };
        let value = if key.kind.is_text() {
            DeValue::String(Cow::Borrowed(text))
        } else {
            DeValue::parse(text).ok()?.into_inner()
        };
        Some(Found { value, span: self.header.clone() })
    }

    fn need(&self, key: &Key) -> Result<Found<'a>, Reported> {
        self.find(key).ok_or_else(|| self.not_there(key))
    }

    fn string<'f>(&self, key: &Key, found: &'f Found<'a>) -> Result<&'f str, Reported> {
        found.value.as_str().ok_or_else(|| self.refuse_type(key, found))
    }

    /// The text of a size or time; a number gets the word about units.
    fn with_unit<'f>(&self, key: &Key, found: &'f Found<'a>) -> Result<&'f str, Reported> {
        if matches!(found.value, DeValue::Integer(_) | DeValue::Float(_)) {
            return Err(self.unit_error(key, found, UnitError::NoUnit));
        }
        self.string(key, found)
    }

    fn unit_error(&self, key: &Key, found: &Found<'a>, error: UnitError) -> Reported {
        let number = found.value.as_integer().map(ToString::to_string);
        let number = number.or_else(|| found.value.as_float().map(ToString::to_string));
        let shown = number.or_else(|| found.value.as_str().map(quoted)).unwrap_or_default();
        match error {
            UnitError::NoUnit => {
                let what = format!("{shown} has no unit; write for example {} = {}", key.name, key.example());
                self.note(found, key, what)
            }
            UnitError::Unreadable | UnitError::TooLarge => self.refuse(key, found, &shown),
        }
    }

    fn refuse(&self, key: &Key, found: &Found<'a>, shown: &str) -> Reported {
        let what = format!("found {shown}; allowed: {}", key.kind.allowed());
        self.note(found, key, what)
    }

    fn refuse_type(&self, key: &Key, found: &Found<'a>) -> Reported {
        self.refuse(key, found, article(&found.value))
    }
}

fn sections<'t, 'a>(
    list: &Section<'t, 'a>,
    array: &'t [toml::Spanned<DeValue<'a>>],
    schema: &'static Table,
) -> Result<Vec<Section<'t, 'a>>, Reported> {
    if let Some(most) = schema.most.filter(|most| array.len() > *most) {
        return Err(list.here(format!("found {}; at most {most} are allowed", array.len())));
    }
    let section = |(index, item): (usize, &'t toml::Spanned<DeValue<'a>>)| {
        let mut section = Section {
            document: list.document,
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
pub(crate) fn article(value: &DeValue<'_>) -> &'static str {
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

pub(crate) fn is_name(text: &str) -> bool {
    (1..=MAX_NAME_CHARS).contains(&text.len())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
}

/// A key as it can be shown; one that is not plain is quoted.
pub(crate) fn shown_key(key: &str) -> String {
    if is_name(key) { key.to_owned() } else { quoted(key) }
}
