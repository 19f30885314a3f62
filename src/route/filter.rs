//! MQTT topic filters, with names for wildcards: `sensors/{site}/+/#`.
//!
//! `{name}` matches one level, as `+` does, and remembers it. `#` comes last and matches any number of further levels,
//! none included. As MQTT says, a topic that begins with `$` is not matched by a wildcard at its first level.

/// A checked filter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Filter {
    levels: Vec<Level>,
    /// Ends with `#`.
    open: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Level {
    Exactly(Box<str>),
    /// `+` or `{name}`.
    Any(Option<Box<str>>),
}

/// What the wildcards of a filter matched in one topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Captures<'t> {
    /// One for each name, in the order of the filter.
    pub(super) named: Vec<&'t str>,
    /// What `#` matched; `None` when that was no level at all, `Some("")` for one empty level.
    pub(super) rest: Option<&'t str>,
}

/// A match, and what is left for `#`.
struct Matched<'t> {
    rest: Option<&'t str>,
}

/// Names that templates give a meaning of their own.
const RESERVED: [&str; 2] = ["topic", "rest"];

/// MQTT writes the length of a topic in two bytes.
const MAX_FILTER_BYTES: usize = 65_535;

impl Filter {
    /// Reads a filter.
    ///
    /// # Errors
    /// What is wrong with it, in words for the person who wrote it.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("an MQTT topic filter has at least one character".into());
        }
        if text.len() > MAX_FILTER_BYTES {
            return Err(format!("an MQTT topic filter has at most {MAX_FILTER_BYTES} bytes"));
        }
        if text.chars().any(char::is_control) {
            return Err("control characters are not allowed in an MQTT topic filter".into());
        }
        let (text, open) = match text.strip_suffix('#') {
            Some("") => return Ok(Self { levels: Vec::new(), open: true }),
            Some(before) => {
                let before = before.strip_suffix('/').ok_or("\"#\" takes a whole level: write \"…/#\"")?;
                (before, true)
            }
            None => (text, false),
        };
        let mut levels = Vec::new();
        for level in text.split('/') {
            let level = Level::parse(level)?;
            if let Level::Any(Some(name)) = &level
                && levels.iter().any(|l| matches!(l, Level::Any(Some(known)) if known == name))
            {
                return Err(format!("the name {{{name}}} appears twice; write every name once"));
            }
            levels.push(level);
        }
        Ok(Self { levels, open })
    }

    /// The names, in order.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.levels.iter().filter_map(|level| match level {
            Level::Any(Some(name)) => Some(&**name),
            Level::Any(None) | Level::Exactly(_) => None,
        })
    }

    /// Does it end with `#`?
    #[must_use]
    pub(crate) fn is_open(&self) -> bool {
        self.open
    }

    /// Does it match this topic?
    #[must_use]
    pub(crate) fn matches(&self, topic: &str) -> bool {
        self.walk(topic, |_| ()).is_some()
    }

    /// Does it match every topic that `other` matches?
    #[must_use]
    pub(crate) fn covers(&self, other: &Self) -> bool {
        let wild_first = |filter: &Self| !matches!(filter.levels.first(), Some(Level::Exactly(_)));
        if let Some(Level::Exactly(first)) = other.levels.first()
            && first.starts_with('$')
            && wild_first(self)
        {
            return false;
        }
        // A topic has at least one level, so "#" is "+/#".
        let levels = |filter: &Self| match (filter.levels.is_empty(), &*filter.levels) {
            (true, _) => vec![Level::Any(None)],
            (false, levels) => levels.to_vec(),
        };
        let (ours, theirs) = (levels(self), levels(other));
        let enough = ours.len() <= theirs.len() && (self.open || (!other.open && ours.len() == theirs.len()));
        enough
            && ours.iter().zip(&theirs).all(|(our, their)| match our {
                Level::Any(_) => true,
                Level::Exactly(text) => matches!(their, Level::Exactly(other) if other == text),
            })
    }

    /// Is there a topic that both match?
    #[must_use]
    pub(crate) fn meets(&self, other: &Self) -> bool {
        let first_is_dollar = |filter: &Self| match filter.levels.first() {
            Some(Level::Exactly(first)) => Some(first.starts_with('$')),
            Some(Level::Any(_)) | None => None,
        };
        match (first_is_dollar(self), first_is_dollar(other)) {
            (Some(true), None) | (None, Some(true)) => return false,
            (_, _) => {}
        }
        let (ours, theirs) = (self.levels.len(), other.levels.len());
        let long_enough = (ours >= theirs || self.open) && (theirs >= ours || other.open);
        long_enough
            && self.levels.iter().zip(&other.levels).all(|pair| match pair {
                (Level::Exactly(our), Level::Exactly(their)) => our == their,
                (Level::Any(_), _) | (_, Level::Any(_)) => true,
            })
    }

    /// What the wildcards stand for in this topic; `None` when it does not match.
    pub(super) fn captures<'t>(&self, topic: &'t str) -> Option<Captures<'t>> {
        let mut named = Vec::new();
        let Matched { rest } = self.walk(topic, |level| named.push(level))?;
        Some(Captures { named, rest })
    }

    /// Goes along topic and filter together.
    fn walk<'t>(&self, topic: &'t str, mut named: impl FnMut(&'t str)) -> Option<Matched<'t>> {
        let mut left = Some(topic);
        if topic.starts_with('$') && !matches!(self.levels.first(), Some(Level::Exactly(_))) {
            return None;
        }
        for level in &self.levels {
            let text = left?;
            let (head, tail) = match text.split_once('/') {
                Some((head, tail)) => (head, Some(tail)),
                None => (text, None),
            };
            match level {
                Level::Exactly(wanted) if **wanted != *head => return None,
                Level::Any(Some(_)) => named(head),
                Level::Exactly(_) | Level::Any(None) => {}
            }
            left = tail;
        }
        (self.open || left.is_none()).then_some(Matched { rest: left })
    }
}

impl Level {
    fn parse(level: &str) -> Result<Self, String> {
        if level == "+" {
            return Ok(Self::Any(None));
        }
        if let Some(name) = level.strip_prefix('{').and_then(|l| l.strip_suffix('}')) {
            return check_name(name).map(|()| Self::Any(Some(name.into())));
        }
        if level.contains('#') {
            return Err("\"#\" is allowed only at the end; it stands for all further levels".into());
        }
        if level.contains('+') {
            return Err(format!("\"+\" takes a whole level, and {level:?} holds more"));
        }
        if level.contains(['{', '}']) {
            return Err(format!("a name takes a whole level, as in \"a/{{name}}/b\", and {level:?} does not"));
        }
        Ok(Self::Exactly(level.into()))
    }
}

fn check_name(name: &str) -> Result<(), String> {
    let mut chars = name.chars();
    let starts_well = chars.next().is_some_and(|c| c.is_ascii_alphabetic());
    if !starts_well || !chars.all(|c| c.is_ascii_alphanumeric() || c == '_') {
        return Err(format!("the name {{{name}}} must begin with a letter and go on with letters, digits and \"_\""));
    }
    if RESERVED.contains(&name) {
        return Err(format!("templates use the name {{{name}}} for something else; choose another"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn filter(text: &str) -> Filter {
        Filter::parse(text).unwrap_or_else(|why| panic!("{text}: {why}"))
    }

    #[test]
    fn filters_meet_when_some_topic_is_of_both() {
        let meets = |a: &str, b: &str| {
            let (a, b) = (Filter::parse(a).unwrap(), Filter::parse(b).unwrap());
            assert_eq!(a.meets(&b), b.meets(&a));
            a.meets(&b)
        };
        for (a, b) in
            [("#", "a/b"), ("a/+/c", "+/b/c"), ("a/#", "a"), ("a/#", "a/b/#"), ("{x}/b", "a/+"), ("$s/#", "$s/+")]
        {
            assert!(meets(a, b), "{a} {b}");
        }
        for (a, b) in [("a/b", "a/c"), ("a/+", "a"), ("a/#", "b/#"), ("+/+", "a"), ("#", "$s/x"), ("+/x", "$s/x")] {
            assert!(!meets(a, b), "{a} {b}");
        }
    }

    #[test]
    fn filters_match_as_mqtt_says() {
        for (text, topic, expected) in [
            ("a/b", "a/b", true),
            ("a/b", "a", false),
            ("a/b", "a/b/c", false),
            ("a/+", "a/b", true),
            ("a/+", "a/", true),
            ("a/+", "a", false),
            ("a/#", "a", true),
            ("a/#", "a/", true),
            ("a/#", "a/b/c", true),
            ("a/#", "ab", false),
            ("#", "a/b", true),
            ("#", "/", true),
            ("+", "/", false),
            ("+/+", "/", true),
            ("/+", "/a", true),
            ("#", "$SYS/a", false),
            ("+/a", "$SYS/a", false),
            ("{x}/a", "$SYS/a", false),
            ("$SYS/#", "$SYS/a", true),
            ("a/{x}/#", "a/b", true),
            ("a/{x}/c", "a/b/c", true),
        ] {
            assert_eq!(filter(text).matches(topic), expected, "{text} on {topic}");
        }
    }

    #[test]
    fn names_and_rest_are_captured() {
        let captures = filter("s/{site}/+/{device}/#").captures("s/nord/x/press/a//b").unwrap();
        assert_eq!(captures, Captures { named: vec!["nord", "press"], rest: Some("a//b") });
        assert_eq!(filter("s/#").captures("s").unwrap().rest, None);
        assert_eq!(filter("s/#").captures("s/").unwrap().rest, Some(""));
        assert_eq!(filter("#").captures("s/t").unwrap().rest, Some("s/t"));
    }

    #[test]
    fn bad_filters_are_explained() {
        for (text, word) in [
            ("", "at least one character"),
            ("a#", "whole level"),
            ("a/#/b", "only at the end"),
            ("#/#", "only at the end"),
            ("a/b+", "whole level"),
            ("a/x{b}", "whole level"),
            ("a/{b", "whole level"),
            ("a/{}", "begin with a letter"),
            ("a/{1}", "begin with a letter"),
            ("a/{a-b}", "begin with a letter"),
            ("a/{rest}", "for something else"),
            ("{a}/{a}", "twice"),
            ("a\u{0}", "control"),
        ] {
            let why = Filter::parse(text).unwrap_err();
            assert!(why.contains(word), "{text}: {why}");
        }
    }

    #[test]
    fn covering_is_seen() {
        for (one, other, expected) in [
            ("#", "a/b", true),
            ("#", "+/#", true),
            ("+/#", "#", true),
            ("+", "#", false),
            ("#", "$SYS/#", false),
            ("$SYS/#", "$SYS/a", true),
            ("a/#", "a", true),
            ("a/#", "a/+/c/#", true),
            ("a/+/#", "a/#", false),
            ("a/+", "a/{x}", true),
            ("a/+", "a/#", false),
            ("a/b", "a/+", false),
            ("a/+/c", "a/b/+", false),
            ("a", "a/b", false),
        ] {
            assert_eq!(filter(one).covers(&filter(other)), expected, "{one} over {other}");
        }
    }

    proptest! {
        #[test]
        fn a_covering_filter_matches_what_the_other_matches(
            one in "([a$+]?(/[a+]?){0,2}(/#)?)|#", other in "([a$+]?(/[a+]?){0,2}(/#)?)|#", topic in "[a$]?(/a?){0,3}",
        ) {
            if let (Ok(one), Ok(other)) = (Filter::parse(&one), Filter::parse(&other))
                && !topic.is_empty() && one.covers(&other) && other.matches(&topic)
            {
                prop_assert!(one.matches(&topic));
            }
        }

        #[test]
        fn any_text_is_read_without_panic(text in "\\PC*|[a+#/{}$]{0,12}", topic in "[a/$]{1,8}") {
            if let Ok(filter) = Filter::parse(&text) {
                prop_assert_eq!(filter.matches(&topic), filter.captures(&topic).is_some());
            }
        }
    }
}
