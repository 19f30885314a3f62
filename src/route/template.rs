//! Templates: `sensors.{site}` over the names of a filter.
//!
//! Besides the names of its filter a template knows `{topic}`, the whole MQTT topic, and, when the filter ends with
//! `#`, `{rest}`, what `#` matched; and of a sensor that published straight to us `{client}`, its client id, and `{user}`,
//! whose password it gave. A filter's own name goes before these two. In a Kafka topic all are escaped (see
//! [`escape`](super::escape)); in a key they stand as they came. Behind a broker nobody is known: `{client}` and `{user}`
//! are empty then, as for a client that was asked for no password.
//!
//! Two MQTT topics share a Kafka topic only when the operator left something out of the template. What is in it keeps
//! them apart, and for that names must not run together: between two of them stands a `.`, which no escaped level
//! holds, and of `{rest}` and `{topic}`, which do hold some, there is at most one.

use super::escape::{escape_level, escape_topic};
use super::filter::{Captures, Filter};
use crate::event::Sender;

/// Kafka's limit for a topic name.
pub(crate) const MAX_TOPIC_CHARS: usize = 249;

/// Longest key: longer than any MQTT topic, so that the topic itself always fits.
const MAX_KEY_TEMPLATE_BYTES: usize = 65_535;

/// What makes a Kafka topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TopicTemplate {
    text: Box<str>,
    parts: Vec<Part>,
}

/// What makes a record key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KeyTemplate {
    text: Box<str>,
    parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(Box<str>),
    /// The filter's name with this index.
    Name(usize),
    /// The whole MQTT topic.
    Topic,
    /// What `#` matched.
    Rest,
    /// The sender's client id.
    Client,
    /// The sender's user.
    User,
}

/// What the parts of a template stand for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Filling<'a> {
    pub(super) topic: &'a str,
    pub(super) captures: &'a Captures<'a>,
    pub(super) sender: Option<&'a Sender>,
}

impl<'a> Filling<'a> {
    /// Of a part that stands for one level; empty: nobody is known.
    fn level(&self, part: &'a Part) -> Option<&'a str> {
        match part {
            Part::Text(_) | Part::Topic | Part::Rest => None,
            Part::Name(index) => Some(self.captures.named.get(*index).copied().unwrap_or_default()),
            Part::Client => Some(self.sender.map_or("", |sender| &sender.client)),
            Part::User => Some(self.sender.and_then(|sender| sender.user.as_deref()).unwrap_or_default()),
        }
    }
}

impl TopicTemplate {
    /// Reads a template over the names of `filter`.
    ///
    /// # Errors
    /// What is wrong with it, in words for the person who wrote it.
    pub(crate) fn parse(text: &str, filter: &Filter) -> Result<Self, String> {
        if text.is_empty() {
            return Err("a Kafka topic has at least one character".into());
        }
        let parts = parse(text, filter)?;
        check_letters(&parts)?;
        check_apart(&parts)?;
        let fixed: usize = parts.iter().map(Part::fixed_len).sum();
        if fixed > MAX_TOPIC_CHARS {
            return Err(format!("{fixed} characters, and a Kafka topic has at most {MAX_TOPIC_CHARS}"));
        }
        if let [Part::Text(text)] = &*parts {
            check_legal(text)?;
        }
        Ok(Self { text: text.into(), parts })
    }

    /// As it was written.
    #[must_use]
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// It makes one name, whatever sensors say.
    #[must_use]
    pub(crate) fn is_fixed(&self) -> bool {
        matches!(&*self.parts, [Part::Text(_)])
    }

    /// A regular expression for the Kafka topics that it can make, from their first character to their last.
    #[must_use]
    pub(crate) fn pattern(&self) -> String {
        let parts = self.parts.iter().map(|part| match part {
            Part::Text(text) => text.replace('.', "\\."),
            Part::Name(_) | Part::Client | Part::User => "[A-Za-z0-9_-]+".to_owned(),
            Part::Topic => "[A-Za-z0-9._-]+".to_owned(),
            Part::Rest => "[A-Za-z0-9._-]*".to_owned(),
        });
        format!("^{}$", parts.collect::<String>())
    }

    /// What all Kafka topics begin with that it can make, and whether that is all of the name.
    #[must_use]
    pub(crate) fn prefix(&self) -> (&str, bool) {
        match self.parts.first() {
            Some(Part::Text(text)) => (text, self.parts.len() == 1),
            Some(Part::Name(_) | Part::Topic | Part::Rest | Part::Client | Part::User) | None => ("", false),
        }
    }

    /// Different senders may make different names.
    pub(crate) fn names_the_sender(&self) -> bool {
        names_the_sender(&self.parts)
    }

    /// Different users may.
    pub(crate) fn names_the_user(&self) -> bool {
        self.parts.contains(&Part::User)
    }

    pub(super) fn render(&self, filling: Filling<'_>) -> Result<String, String> {
        let mut out = String::with_capacity(filling.topic.len());
        for part in &self.parts {
            match part {
                Part::Text(text) => out.push_str(text),
                Part::Topic => escape_topic(filling.topic, &mut out),
                Part::Rest => {
                    if let Some(rest) = filling.captures.rest {
                        escape_topic(rest, &mut out);
                    }
                }
                Part::Name(_) | Part::Client | Part::User => {
                    escape_level(filling.level(part).unwrap_or_default(), &mut out);
                }
            }
        }
        check_legal(&out)?;
        Ok(out)
    }
}

impl KeyTemplate {
    /// Reads a template over the names of `filter`.
    ///
    /// # Errors
    /// What is wrong with it, in words for the person who wrote it.
    pub(crate) fn parse(text: &str, filter: &Filter) -> Result<Self, String> {
        if text.is_empty() {
            return Err(
                "an empty key would spread one sensor's readings over all partitions, out of order; leave the \
                 key out to use the MQTT topic"
                    .into(),
            );
        }
        if text.len() > MAX_KEY_TEMPLATE_BYTES {
            return Err(format!("a key has at most {MAX_KEY_TEMPLATE_BYTES} bytes"));
        }
        Ok(Self { text: text.into(), parts: parse(text, filter)? })
    }

    /// As it was written.
    #[must_use]
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// Different senders may make different keys.
    pub(crate) fn names_the_sender(&self) -> bool {
        names_the_sender(&self.parts)
    }

    /// Different users may.
    pub(crate) fn names_the_user(&self) -> bool {
        self.parts.contains(&Part::User)
    }

    pub(super) fn render(&self, filling: Filling<'_>) -> String {
        let mut out = String::with_capacity(filling.topic.len());
        for part in &self.parts {
            out.push_str(match part {
                Part::Text(text) => text,
                Part::Topic => filling.topic,
                Part::Rest => filling.captures.rest.unwrap_or_default(),
                Part::Name(_) | Part::Client | Part::User => filling.level(part).unwrap_or_default(),
            });
        }
        out
    }
}

fn names_the_sender(parts: &[Part]) -> bool {
    parts.iter().any(|part| matches!(part, Part::Client | Part::User))
}

impl Part {
    fn fixed_len(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Name(_) | Self::Topic | Self::Rest | Self::Client | Self::User => 0,
        }
    }
}

fn parse(text: &str, filter: &Filter) -> Result<Vec<Part>, String> {
    let mut parts = Vec::new();
    let mut left = text;
    while let Some((before, after)) = left.split_once('{') {
        push_text(before, &mut parts)?;
        let (name, after) = after.split_once('}').ok_or("a \"{\" is not closed by \"}\"")?;
        parts.push(find_name(name, filter)?);
        left = after;
    }
    push_text(left, &mut parts)?;
    Ok(parts)
}

fn push_text(text: &str, parts: &mut Vec<Part>) -> Result<(), String> {
    if text.contains('}') {
        return Err("a \"}\" has no \"{\" before it".into());
    }
    if !text.is_empty() {
        parts.push(Part::Text(text.into()));
    }
    Ok(())
}

fn find_name(name: &str, filter: &Filter) -> Result<Part, String> {
    match name {
        "topic" => return Ok(Part::Topic),
        "rest" if filter.is_open() => return Ok(Part::Rest),
        "rest" => return Err("{rest} is what \"#\" matches, and \"from\" does not end with \"#\"".into()),
        _ => {}
    }
    if let Some(index) = filter.names().position(|known| known == name) {
        return Ok(Part::Name(index));
    }
    match name {
        "client" => return Ok(Part::Client),
        "user" => return Ok(Part::User),
        _ => {}
    }
    let mut known: Vec<String> = filter.names().map(|known| format!("{{{known}}}")).collect();
    known.push("{topic}".into());
    if filter.is_open() {
        known.push("{rest}".into());
    }
    known.extend(["{client}".into(), "{user}".into()]);
    Err(format!("{{{name}}} is not a name of \"from\"; known here: {}", known.join(", ")))
}

fn check_letters(parts: &[Part]) -> Result<(), String> {
    for part in parts {
        if let Part::Text(text) = part
            && let Some(bad) = text.chars().find(|c| !is_topic_char(*c))
        {
            return Err(format!("{bad:?} is not allowed in a Kafka topic; allowed: a-z A-Z 0-9 . _ - and {{names}}"));
        }
    }
    Ok(())
}

/// See the module's words on names that run together.
fn check_apart(parts: &[Part]) -> Result<(), String> {
    if parts.iter().filter(|part| matches!(part, Part::Rest | Part::Topic)).count() > 1 {
        return Err("{rest} and {topic} stand for many levels; a Kafka topic takes one of them, once".into());
    }
    let mut separated = true;
    for part in parts {
        match part {
            Part::Text(text) => separated |= text.contains('.'),
            Part::Name(_) | Part::Rest | Part::Topic | Part::Client | Part::User => {
                if !separated {
                    return Err("two names need a \".\" between them, or two MQTT topics could give the same Kafka \
                         topic"
                        .into());
                }
                separated = false;
            }
        }
    }
    Ok(())
}

fn check_legal(topic: &str) -> Result<(), String> {
    if topic.is_empty() {
        return Err("the name is empty".into());
    }
    if topic == "." || topic == ".." {
        return Err(format!("Kafka does not allow the name {topic:?}"));
    }
    if topic.len() > MAX_TOPIC_CHARS {
        // Without the number: what is said of a reading must not differ from reading to reading, see `NoTarget`.
        return Err(format!(
            "the name has more than {MAX_TOPIC_CHARS} characters once escaped, which Kafka does not allow"
        ));
    }
    Ok(())
}

fn is_topic_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn topic(template: &str, from: &str, mqtt: &str) -> Result<String, String> {
        let filter = Filter::parse(from)?;
        let template = TopicTemplate::parse(template, &filter)?;
        template.render(by(None, mqtt, &filter.captures(mqtt).expect("matches")))
    }

    fn by<'a>(sender: Option<&'a Sender>, topic: &'a str, captures: &'a Captures<'a>) -> Filling<'a> {
        Filling { topic, captures, sender }
    }

    #[test]
    fn names_are_filled_in_and_escaped() {
        assert_eq!(topic("sensors.{site}", "s/{site}/#", "s/nord 1/x").unwrap(), "sensors.nord_201");
        assert_eq!(topic("s.{rest}", "s/#", "s/a/b.c").unwrap(), "s.a.b_2ec");
        assert_eq!(topic("{topic}", "s/#", "s/a_b").unwrap(), "s.a__b");
        assert_eq!(topic("all", "s/#", "s/a_b").unwrap(), "all");
        assert_eq!(topic("{b}.{a}", "{a}/{b}", "x/y").unwrap(), "y.x");
    }

    #[test]
    fn the_prefix_of_a_template_is_its_text_before_the_first_name() {
        let prefix = |template| {
            let template = TopicTemplate::parse(template, &Filter::parse("s/{a}/#").unwrap()).unwrap();
            let (prefix, whole) = template.prefix();
            (prefix.to_owned(), whole)
        };
        assert_eq!(prefix("plain.a"), ("plain.a".into(), true));
        assert_eq!(prefix("s-{a}.x"), ("s-".into(), false));
        assert_eq!(prefix("{a}"), (String::new(), false));
    }

    #[test]
    fn no_level_and_an_empty_level_stay_apart() {
        assert_eq!(topic("s.{rest}", "s/#", "s").unwrap(), "s.");
        assert_eq!(topic("s.{rest}", "s/#", "s/").unwrap(), "s._-");
    }

    #[test]
    fn topics_that_kafka_would_refuse_are_refused() {
        assert!(topic("{rest}", "s/#", "s").unwrap_err().contains("empty"));
        assert!(topic(".{rest}", "s/#", "s").unwrap_err().contains("not allow"));
        assert!(topic("{a}", "{a}", &"x".repeat(250)).unwrap_err().contains("more than 249"));
        assert!(topic("{a}", "{a}", &"x".repeat(249)).is_ok());
    }

    #[test]
    fn bad_templates_are_explained() {
        for (text, word) in [
            ("", "at least one"),
            ("a{b", "not closed"),
            ("a}b", "no \"{\" before"),
            ("a.{nord}", "known here: {site}, {dev}, {topic}, {client}, {user}"),
            ("{site}{client}", "need a \".\""),
            ("a.{rest}", "does not end with \"#\""),
            ("a/b", "'/' is not allowed"),
            ("ä", "'ä' is not allowed"),
            (".", "not allow"),
            ("..", "not allow"),
            ("{site}{dev}", "need a \".\""),
            ("{site}-{dev}", "need a \".\""),
            ("{topic}.{topic}", "once"),
            ("{}", "not a name"),
        ] {
            let why = TopicTemplate::parse(text, &Filter::parse("s/{site}/{dev}").unwrap()).unwrap_err();
            assert!(why.contains(word), "{text}: {why}");
        }
        let long = "x".repeat(250);
        assert!(TopicTemplate::parse(&long, &Filter::parse("#").unwrap()).unwrap_err().contains("250"));
    }

    #[test]
    fn client_and_user_are_the_senders_unless_the_filter_has_such_names() {
        let press = Sender { client: "press/7".into(), user: Some("ann".into()) };
        let made = |from: &str, sender| {
            let filter = Filter::parse(from).unwrap();
            let (topic, key) =
                (TopicTemplate::parse("t.{client}.{user}", &filter), KeyTemplate::parse("{user}/{client}", &filter));
            let captures = filter.captures("s/a").unwrap();
            let filling = by(sender, "s/a", &captures);
            (topic.unwrap().render(filling).unwrap(), key.unwrap().render(filling))
        };
        assert_eq!(made("s/+", Some(&press)), ("t.press_2f7.ann".into(), "ann/press/7".into()));
        assert_eq!(made("s/{client}", Some(&press)), ("t.a.ann".into(), "ann/a".into()));
        let unasked = Sender { client: "x".into(), user: None };
        assert_eq!(made("s/+", Some(&unasked)), ("t.x._-".into(), "/x".into()));
        assert_eq!(made("s/+", None), ("t._-._-".into(), "/".into()));
    }

    #[test]
    fn keys_take_text_as_it_came() {
        let filter = Filter::parse("s/{site}/#").unwrap();
        let key = KeyTemplate::parse("{site}/{rest}?ü", &filter).unwrap();
        assert_eq!(key.render(by(None, "s/a b/c/d", &filter.captures("s/a b/c/d").unwrap())), "a b/c/d?ü");
        assert!(KeyTemplate::parse("", &filter).unwrap_err().contains("out of order"));
    }

    proptest! {
        /// The promise of the module: what is in the template keeps topics apart.
        #[test]
        fn different_captures_make_different_topics(
            a in "[a./_-]{1,6}", b in "[a./_-]{1,6}",
            template in prop::sample::select(vec!["{x}.{y}.{rest}", "{rest}.{y}-.{x}", "k{x}_.{rest}-.{y}z", "{topic}", "{x}.{topic}.{y}"]),
        ) {
            let filter = Filter::parse("{x}/{y}/#").unwrap();
            let template = TopicTemplate::parse(template, &filter).unwrap();
            if let (Some(one), Some(other)) = (filter.captures(&a), filter.captures(&b)) {
                let (one, other) = (template.render(by(None, &a, &one)), template.render(by(None, &b, &other)));
                prop_assert_eq!(one == other, a == b);
            }
        }

        #[test]
        fn every_topic_made_is_of_the_pattern_and_has_the_prefix(
            topic in "[a./_ ü-]{1,12}",
            template in prop::sample::select(vec!["{x}.{rest}", "a.b{rest}", "k{x}_.-{topic}", "all.of_it", "t{topic}"]),
        ) {
            let filter = Filter::parse("{x}/#").unwrap();
            let template = TopicTemplate::parse(template, &filter).unwrap();
            let made = filter.captures(&topic).and_then(|captures| template.render(by(None, &topic, &captures)).ok());
            if let Some(made) = made {
                prop_assert!(regex_lite::Regex::new(&template.pattern()).unwrap().is_match(&made), "{made}");
                let (prefix, whole) = template.prefix();
                prop_assert!(made.starts_with(prefix));
                prop_assert!(!whole || made == prefix);
            }
        }

        #[test]
        fn any_template_is_read_without_panic(text in "\\PC*|[{}a.rest]{0,12}") {
            let filter = Filter::parse("{a}/#").unwrap();
            if let Ok(template) = TopicTemplate::parse(&text, &filter) {
                drop(template.render(by(None, "a/b", &filter.captures("a/b").unwrap())));
            }
        }
    }
}
