//! One declaration a key: what it may hold, its type, and the reading of it.
//!
//! Tables are declared with [`table!`], and each of their keys with one of the functions here. They give a [`Value`],
//! whose type is that of the field, so that a key whose kind and field do not go together does not compile.

#![expect(clippy::redundant_closure_for_method_calls, reason = "a method's lifetimes do not make it the `fn` wanted")]

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::files;
use super::problems::Reported;
use super::reading::Section;
use super::table::{Default, Key, Kind, Table};

/// A key of which a `T` is read.
pub(crate) struct Value<T> {
    pub(crate) key: Key,
    read: fn(&Section<'_, '_>, &Key) -> Result<T, Reported>,
}

/// A type whose values are words in the configuration.
pub(super) trait Words: Copy + 'static {
    const MEANINGS: &'static [(&'static str, Self)];

    fn words() -> Vec<&'static str> {
        Self::MEANINGS.iter().map(|(word, _)| *word).collect()
    }
}

impl<T> Value<T> {
    const fn new(kind: Kind, read: fn(&Section<'_, '_>, &Key) -> Result<T, Reported>) -> Self {
        Self { key: Key { name: "", kind, default: Default::Absent(""), why: "" }, read }
    }

    /// It must be set, for example so.
    pub(super) const fn required(self, example: &'static str) -> Self {
        self.when_absent(Default::Required(example))
    }

    pub(super) const fn or(self, default: &'static str) -> Self {
        self.when_absent(Default::Is(default))
    }

    /// The default depends on the machine: in words, and for example so.
    pub(super) const fn computed(self, words: &'static str, example: &'static str) -> Self {
        self.when_absent(Default::Computed(words, example))
    }

    /// Without it there is nothing; it may be set, for example so.
    pub(super) const fn absent(self, example: &'static str) -> Self {
        self.when_absent(Default::Absent(example))
    }

    /// Read by a function of its own, which knows what else must be right.
    pub(super) const fn read_by<U>(self, read: fn(&Section<'_, '_>, &Key) -> Result<U, Reported>) -> Value<U> {
        Value { key: self.key, read }
    }

    const fn when_absent(self, default: Default) -> Self {
        Self { key: Key { default, ..self.key }, read: self.read }
    }

    /// The last step of a declaration; of a text, the space in front is that behind the `///`.
    pub(super) const fn named(self, name: &'static str, why: &'static str) -> Self {
        Self { key: Key { name, why: why.trim_ascii_start(), ..self.key }, read: self.read }
    }

    /// Reads it, or notes what is wrong with it.
    pub(super) fn read(&self, section: &Section<'_, '_>) -> Result<T, Reported> {
        (self.read)(section, &self.key)
    }
}

pub(super) const fn name() -> Value<String> {
    Value::new(Kind::Name, |section, key| section.text(key))
}

pub(super) const fn text() -> Value<String> {
    Value::new(Kind::Text(false), |section, key| section.text(key))
}

pub(super) const fn text_or_empty() -> Value<String> {
    Value::new(Kind::Text(true), |section, key| section.text(key))
}

pub(super) const fn flag() -> Value<bool> {
    Value::new(Kind::Flag, |section, key| section.flag(key))
}

pub(super) const fn choice<T: Words>() -> Value<T> {
    choice_and_later(&[])
}

/// Also knows words that come in a later version.
pub(super) const fn choice_and_later<T: Words>(later: &'static [&'static str]) -> Value<T> {
    Value::new(Kind::Choice(T::words, later), |section, key| section.choice(key, T::MEANINGS))
}

pub(super) const fn count<T: TryFrom<u64>>(min: u64, max: u64, reason: &'static str) -> Value<T> {
    Value::new(Kind::Count { min, max, reason }, |section, key| section.count(key))
}

pub(super) const fn size<T: TryFrom<u64>>(min: u64, max: u64, reason: &'static str) -> Value<T> {
    Value::new(Kind::Size { min, max, reason }, |section, key| section.size(key))
}

pub(super) const fn time(max: Duration, reason: &'static str) -> Value<Duration> {
    Value::new(Kind::Time { min: Duration::ZERO, max, whole_seconds: false, reason }, |section, key| section.time(key))
}

/// `None` is "auto".
pub(super) const fn time_or_auto(max: Duration, reason: &'static str) -> Value<Option<Duration>> {
    Value::new(Kind::TimeOrAuto { max, reason }, |section, key| section.time_or_auto(key))
}

pub(super) const fn whole_seconds(min: u64, max: u64, reason: &'static str) -> Value<Duration> {
    let (min, max) = (Duration::from_secs(min), Duration::from_secs(max));
    Value::new(Kind::Time { min, max, whole_seconds: true, reason }, |section, key| section.time(key))
}

pub(super) const fn address() -> Value<SocketAddr> {
    Value::new(Kind::Address(false), |section, key| section.address(key))
}

pub(super) const fn address_or_off() -> Value<Option<SocketAddr>> {
    Value::new(Kind::Address(true), |section, key| section.address_or_off(key))
}

pub(super) const fn path() -> Value<Option<PathBuf>> {
    Value::new(Kind::Path, read_path)
}

/// `None` also when we may not know it.
pub(super) fn read_path(section: &Section<'_, '_>, key: &Key) -> Result<Option<PathBuf>, Reported> {
    let Some(text) = section.optional_text(key)? else { return Ok(None) };
    match files::expand(&text, section.env()) {
        Ok(path) => Ok(Some(path)),
        Err(why) => section.file(key.name, why).map(|()| None),
    }
}

pub(super) const fn folder() -> Value<String> {
    Value::new(Kind::Folder, |section, key| section.text(key))
}

/// Texts; what they are says the function that reads them.
pub(super) const fn list() -> Value<()> {
    Value::new(Kind::List, |_, _| Ok(()))
}

/// Inline tables; what they are says the function that reads them.
pub(super) const fn tables(schema: &'static Table) -> Value<()> {
    Value::new(Kind::Tables(schema), |_, _| Ok(()))
}

/// Keys behind a dot. `crate::config` reads them and puts in what they mean: it asks the stage.
pub(super) const fn keys<T>(schema: &'static Table) -> Value<Option<T>> {
    Value::new(Kind::Keys(schema), |_, _| Ok(None))
}

/// Names that are not ours. `crate::config` reads them and puts them in: it asks the stage.
pub(super) const fn options<T: std::default::Default>() -> Value<T> {
    Value::new(Kind::Options, |_, _| Ok(T::default()))
}

/// Declares a table: each key once, as a field with its doc comment, its type and its [`Value`].
///
/// `one("name")` stands once in the file, `many("name", most)` so many times. What comes of the keys:
///
/// * The struct behind `read as`: each field is the value of its key or `Err`, when a problem was noted. All are read
///   before one is looked at, so that one run finds everything. It also has each key as a constant of its name.
/// * `TABLE` in it: names, kinds, defaults and the doc comments, for messages, example and manual page.
/// * The struct behind `checked as`, if there is one: the same fields with plain values, for the stages. `complete`
///   makes it, when all are right; fields under `follows` are no keys, and are given to it.
///
/// A field that is called otherwise than its key names it: `password["password_file"]`. Names under `later` are known
/// and come in a later version.
macro_rules! table {
    (
        $(#[doc = $about:literal])+
        $shape:ident($($arg:expr),+) read as $Keys:ident {
            $( $(#[doc = $why:literal])+ $field:ident $([$name:literal])?: $T:ty = $value:expr, )+
        }
        $(later { $( $later:literal: $reason:literal, )+ })?
    ) => {
        $(#[doc = $about])+
        #[allow(clippy::doc_markdown, reason = "it is the text of the manual page as well")]
        #[allow(clippy::struct_field_names, reason = "fields have the names of their keys")]
        pub(crate) struct $Keys { $( $(#[doc = $why])+ pub $field: Result<$T, Reported>, )+ }

        #[expect(non_upper_case_globals, reason = "each constant has the name of its key")]
        impl $Keys {
            $(
                pub(crate) const $field: Value<$T> =
                    $value.named(table!(@name $field $($name)?), concat!($($why),+));
            )+
            pub(crate) const TABLE: &'static Table = &Table {
                why: concat!($($about),+).trim_ascii_start(),
                keys: &[$( Self::$field.key ),+],
                later: &[$($( ($later, $reason) ),+)?],
                ..Table::$shape($($arg),+)
            };

            pub(crate) fn read(section: &Section<'_, '_>) -> Self {
                section.refuse_unknown();
                Self { $( $field: Self::$field.read(section) ),+ }
            }
        }
    };
    (
        $(#[doc = $about:literal])+
        $shape:ident($($arg:expr),+) read as $Keys:ident, checked as $Struct:ident {
            $(
                $(#[doc = $why:literal])+ $(#[expect $expect:tt])?
                $field:ident $([$name:literal])?: $T:ty = $value:expr,
            )+
        }
        $(later $later:tt)?
        $(follows { $( $(#[doc = $because:literal])+ $made:ident: $M:ty, )+ })?
    ) => {
        table! {
            $(#[doc = $about])+
            $shape($($arg),+) read as $Keys {
                $( $(#[doc = $why])+ $field $([$name])?: $T = $value, )+
            }
            $(later $later)?
        }

        $(#[doc = $about])+
        #[allow(clippy::doc_markdown, reason = "it is the text of the manual page as well")]
        #[derive(Debug, Clone)]
        pub(crate) struct $Struct {
            $( $(#[doc = $why])+ $(#[expect $expect])? pub $field: $T, )+
            $($( $(#[doc = $because])+ pub $made: $M, )+)?
        }

        impl $Keys {
            pub(crate) fn complete(self $($(, $made: $M)+)?) -> Result<$Struct, Reported> {
                Ok($Struct { $( $field: self.$field?, )+ $($( $made, )+)? })
            }
        }
    };
    (@name $field:ident) => { stringify!($field) };
    (@name $field:ident $name:literal) => { $name };
}

pub(super) use table;
