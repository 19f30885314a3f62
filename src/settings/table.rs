//! What a table of the configuration may hold: its keys, each with its kind, its default, and why one would touch it.
//!
//! What is allowed, messages, `config/tidegate.toml` and the manual page are all made of this; tests compare the two
//! files with it.

use std::time::Duration;

use super::env::CREDENTIALS;
use super::units::{show_size, show_time};

/// A TOML table.
#[derive(Debug)]
pub(crate) struct Table {
    /// As in the header, with the way to it: `kafka`, `mqtt.subscribe`.
    pub(crate) name: &'static str,
    /// `[[name]]`, may stand as many times; `None`: `[name]`, stands once.
    pub(crate) most: Option<usize>,
    #[cfg_attr(not(test), expect(dead_code, reason = "text of config/tidegate.toml, which a test renders"))]
    pub(crate) why: &'static str,
    pub(crate) keys: &'static [Key],
    /// Known, and not in this version: each with why.
    pub(crate) later: &'static [(&'static str, &'static str)],
}

/// One key.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Key {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    pub(crate) default: Default,
    pub(crate) why: &'static str,
}

/// What happens when the key is not there. Text stands here without the quotes that TOML puts around it.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Default {
    /// It must be there; for example so.
    Required(&'static str),
    /// This value.
    Is(&'static str),
    /// A value that depends on the machine: in words, and for example so.
    Computed(
        #[cfg_attr(not(test), expect(dead_code, reason = "text of config/tidegate.toml, which a test renders"))]
        &'static str,
        &'static str,
    ),
    /// Nothing; for example so.
    Absent(&'static str),
}

/// What a value may be.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind {
    /// Short text in letters that are safe everywhere: file names, client ids, metric labels.
    Name,
    /// Any text; with `true` also the empty one.
    Text(bool),
    Flag,
    /// One of these; those of the second list are known and come in a later version.
    Choice(fn() -> Vec<&'static str>, &'static [&'static str]),
    Count {
        min: u64,
        max: u64,
        reason: &'static str,
    },
    Size {
        min: u64,
        max: u64,
        reason: &'static str,
    },
    Time {
        min: Duration,
        max: Duration,
        /// MQTT counts them.
        whole_seconds: bool,
        reason: &'static str,
    },
    /// ... or "auto".
    TimeOrAuto {
        max: Duration,
        reason: &'static str,
    },
    /// IP address and port; with `true` also "".
    Address(bool),
    /// A file.
    Path,
    Folder,
    /// A list of texts, at least one.
    List,
    /// A list of inline tables, at least one.
    Tables(&'static Table),
    /// Keys behind a dot, `tls.ca_file`.
    Keys(&'static Table),
    /// `[kafka.options]`
    Options,
}

impl Table {
    /// `[name]`
    pub(crate) const fn one(name: &'static str) -> Self {
        Self { name, most: None, why: "", keys: &[], later: &[] }
    }

    /// `[[name]]`, at most so many.
    pub(crate) const fn many(name: &'static str, most: usize) -> Self {
        Self { most: Some(most), ..Self::one(name) }
    }

    pub(crate) fn key(&self, name: &str) -> Option<&'static Key> {
        self.keys.iter().find(|key| key.name == name)
    }

    /// The names that may stand in it, those of later versions included.
    pub(crate) fn knows(&self, name: &str) -> bool {
        self.key(name).is_some() || self.later.iter().any(|(later, _)| *later == name)
    }

    /// `[name]` or `[[name]]`
    pub(crate) fn header(&self) -> String {
        if self.most.is_some() { format!("[[{}]]", self.name) } else { format!("[{}]", self.name) }
    }
}

impl Key {
    /// A value for the documentation and for messages, as TOML writes it.
    pub(crate) fn example(&self) -> String {
        let (Default::Required(example)
        | Default::Is(example)
        | Default::Computed(_, example)
        | Default::Absent(example)) = self.default;
        if self.kind.is_text() { format!("{example:?}") } else { example.to_owned() }
    }
}

impl Kind {
    /// Does it stand in quotes?
    pub(crate) fn is_text(&self) -> bool {
        !matches!(self, Self::Flag | Self::Count { .. } | Self::List | Self::Tables(_) | Self::Keys(_) | Self::Options)
    }

    /// Is the number of a count or a size within its limits?
    pub(crate) fn takes(&self, number: u64) -> bool {
        matches!(self, Self::Count { min, max, .. } | Self::Size { min, max, .. } if (*min..=*max).contains(&number))
    }

    /// Is the time within its limits, and whole where it must be?
    pub(crate) fn takes_time(&self, time: Duration) -> bool {
        matches!(self, Self::TimeOrAuto { max, .. } if time <= *max)
            || matches!(self, Self::Time { min, max, whole_seconds, .. }
                if (*min..=*max).contains(&time) && (!whole_seconds || time.subsec_nanos() == 0))
    }

    /// In words: what is allowed.
    pub(crate) fn allowed(&self) -> String {
        match self {
            Self::Name => format!("1 to {MAX_NAME_CHARS} letters, digits, \".\", \"_\" and \"-\""),
            Self::Text(true) => "text".into(),
            Self::Text(false) => "text, not empty".into(),
            Self::Flag => "true or false".into(),
            Self::Choice(words, _) => one_of(&words()),
            Self::Count { min, max, reason } => limits("a number", &min.to_string(), &max.to_string(), reason),
            Self::Size { min, max, reason } => {
                limits("a size with its unit", &show_size(*min), &show_size(*max), reason)
            }
            Self::Time { min, max, whole_seconds, reason } => {
                let what =
                    if *whole_seconds { "a time in whole seconds with its unit" } else { "a time with its unit" };
                limits(what, &show_time(*min), &show_time(*max), reason)
            }
            Self::TimeOrAuto { max, reason } => {
                limits("auto or a time with its unit", &show_time(Duration::ZERO), &show_time(*max), reason)
            }
            Self::Address(false) => "an IP address with its port".into(),
            Self::Address(true) => "an IP address with its port, or \"\"".into(),
            Self::Folder => "an absolute path".into(),
            Self::Path => format!("an absolute path, or one that begins with \"{CREDENTIALS}/\""),
            Self::List => "a list of texts, at least one".into(),
            Self::Tables(table) => {
                let keys: Vec<String> = table.keys.iter().map(|key| key.name.to_owned()).collect();
                format!("a list of tables with {}, at least one", keys.join(" and "))
            }
            Self::Keys(table) => {
                let keys: Vec<&str> = table.keys.iter().map(|key| key.name).collect();
                format!("a table with {}", keys.join(", "))
            }
            Self::Options => "a table of texts".into(),
        }
    }
}

fn one_of(words: &[&str]) -> String {
    let quoted: Vec<String> = words.iter().map(|word| format!("{word:?}")).collect();
    match quoted.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        _ => quoted.concat(),
    }
}

fn limits(what: &str, min: &str, max: &str, reason: &str) -> String {
    let reason = if reason.is_empty() { String::new() } else { format!(" ({reason})") };
    format!("{what}, {min} to {max}{reason}")
}

/// Two names and the word `tidegate` make a client id, and brokers log it.
pub(crate) const MAX_NAME_CHARS: usize = 64;
