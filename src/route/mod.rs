//! Which Kafka topic and key an MQTT topic becomes.
//!
//! A route has three parts: `from`, an MQTT filter whose `+` levels may bear names (`sensors/{site}/{device}/#`);
//! `to`, the Kafka topic as a template over those names; and `key`, a template too, by default the MQTT topic. The first
//! route whose `from` matches an MQTT topic takes it.
//!
//! * Everything is checked when the configuration is read; what depends on the MQTT topic (the length of the name made)
//!   is checked by [`Routes::target`], and an event that fails there goes to the dead letters with its reason.
//! * Two MQTT topics come into one Kafka topic only by the operator's word: a template without names, a wildcard left
//!   out of the template, or two routes with the same `to`. [`escape`] and [`template`] say how the rest is kept apart.
//! * A key is never empty, because Kafka clients spread empty keys over all partitions and the order of a sensor's
//!   readings would be lost (custody rule 4). A template that comes out empty gives the MQTT topic instead.
//! * Looking up is a walk over the tables; callers keep the answer for each MQTT topic they know.

pub(crate) mod escape;
pub(crate) mod filter;
pub(crate) mod template;

use std::collections::BTreeMap;
use std::sync::Arc;

use filter::Filter;
use template::{Filling, KeyTemplate, TopicTemplate};

use crate::event::{RouteId, Sender};

/// The `[[route]]` and `[[redirect]]` tables, checked; of the routes the first match wins.
#[derive(Debug, Clone, Default)]
pub(crate) struct Routes {
    tables: Arc<[Route]>,
    redirects: Arc<[Redirect]>,
    /// The watermark topic; empty: none.
    watermark_topic: Arc<str>,
    /// Routes that the configuration has no more, by the ledger line of the readings that were taken in under them.
    gone: Arc<BTreeMap<RouteId, Route>>,
}

/// One `[[route]]`, checked.
#[derive(Debug, Clone)]
pub(crate) struct Route {
    /// `from` as it was written: the name of the ledger line.
    pub name: Arc<str>,
    /// `from`
    pub from: Filter,
    /// `to`
    pub to: TopicTemplate,
    /// `key`
    pub key: KeyTemplate,
    /// `value`
    pub value: ValueFormat,
}

/// One `[[redirect]]`, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Redirect {
    /// The Kafka topic that routes make.
    pub from: Arc<str>,
    /// The one that its readings go to instead; `None`: they are given up.
    pub to: Option<Arc<str>>,
}

/// A route as it was written. The buffer keeps it, so that what was taken in under it has a way out when it is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Definition {
    /// `from`
    pub from: Arc<str>,
    /// `to`
    pub to: Arc<str>,
    /// `key`
    pub key: Arc<str>,
    /// `value`
    pub value: Arc<str>,
}

/// How the Kafka record's value is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ValueFormat {
    /// The payload as it came.
    Payload,
    /// A CBOR envelope: topic, times, qos, id, payload.
    Cbor,
    /// The same as JSON.
    Json,
}

/// Where an event goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    /// Kafka topic.
    pub topic: Arc<str>,
    /// Record key.
    pub key: Arc<str>,
    /// How the value is made.
    pub value: ValueFormat,
    /// The operator has written the topic out; otherwise it is what sensors make of a template.
    pub is_fixed: bool,
}

/// Why an event has no target; it goes to the dead letters with these words. They do not differ from reading to reading:
/// the log counts by them, and neighbours with the same words are declared together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoTarget {
    /// No `from` matches.
    #[error("no [[route]] matches its MQTT topic")]
    NoRoute,
    /// The Kafka topic that the template makes is not a legal one: too long, empty, `.` or `..`.
    #[error("its MQTT topic gives no valid Kafka topic: {0}")]
    IllegalTopic(String),
    /// What the template makes is not for readings.
    #[error(
        "its MQTT topic gives the name of a Kafka topic that is not for readings: the watermark topic, or one of \
         Kafka's own, whose names begin with \"__\""
    )]
    Reserved,
    /// The operator's word.
    #[error("a [[redirect]] with give_up = true for Kafka topic {0:?}")]
    GivenUp(Arc<str>),
}

/// What the names of Kafka's own topics begin with.
pub(crate) const KAFKAS_OWN: &str = "__";

impl ValueFormat {
    /// Each with its word in the configuration.
    pub(crate) const WORDS: [(&'static str, Self); 3] =
        [("payload", Self::Payload), ("cbor", Self::Cbor), ("json", Self::Json)];

    fn word(self) -> &'static str {
        Self::WORDS.iter().find(|(_, format)| *format == self).map_or("payload", |(word, _)| word)
    }
}

impl Route {
    /// As it was written.
    #[must_use]
    pub(crate) fn definition(&self) -> Definition {
        let (to, key) = (self.to.text().into(), self.key.text().into());
        Definition { from: Arc::clone(&self.name), to, key, value: self.value.word().into() }
    }

    /// Reads what an earlier configuration has said.
    ///
    /// # Errors
    /// What is wrong with it: another version wrote it.
    pub(crate) fn parse(definition: &Definition) -> Result<Self, String> {
        let Definition { from: name, to, key, value } = definition;
        let from = Filter::parse(name)?;
        let (to, key) = (TopicTemplate::parse(to, &from)?, KeyTemplate::parse(key, &from)?);
        let word = ValueFormat::WORDS.iter().find(|(word, _)| **word == **value);
        let (_, value) = word.ok_or_else(|| format!("this version does not know value = {value:?}"))?;
        Ok(Self { name: Arc::clone(name), from, to, key, value: *value })
    }

    /// Do different senders of one MQTT topic go different ways?
    fn names_the_sender(&self) -> bool {
        self.to.names_the_sender() || self.key.names_the_sender()
    }

    /// `None`: it does not match.
    fn target(&self, mqtt_topic: &str, sender: Option<&Sender>) -> Option<Result<Target, NoTarget>> {
        let captures = self.from.captures(mqtt_topic)?;
        let filling = Filling { topic: mqtt_topic, captures: &captures, sender };
        Some(self.to.render(filling).map_err(NoTarget::IllegalTopic).map(|topic| {
            let key = self.key.render(filling);
            let key = if key.is_empty() { mqtt_topic.into() } else { key.into() };
            Target { topic: topic.into(), key, value: self.value, is_fixed: self.to.is_fixed() }
        }))
    }
}

impl Routes {
    /// The tables in their order.
    #[must_use]
    pub(crate) fn new(routes: Vec<Route>) -> Self {
        Self { tables: routes.into(), ..Self::default() }
    }

    /// No reading goes to that topic, whatever templates make.
    #[must_use]
    pub(crate) fn keeping_clear(self, watermark_topic: &str) -> Self {
        Self { watermark_topic: watermark_topic.into(), ..self }
    }

    /// With these `[[redirect]]` tables.
    #[must_use]
    pub(crate) fn redirecting(self, redirects: Vec<Redirect>) -> Self {
        Self { redirects: redirects.into(), ..self }
    }

    /// What is held under these routes, and what no present one matches, goes where they say.
    #[must_use]
    pub(crate) fn with_gone(self, gone: BTreeMap<RouteId, Route>) -> Self {
        Self { gone: Arc::new(gone), ..self }
    }

    /// As they were written, in the order of the tables; the ledger has a line for each, named by its `from`.
    #[must_use]
    pub(crate) fn definitions(&self) -> Vec<Definition> {
        self.tables.iter().map(Route::definition).collect()
    }

    /// A number that differs when the tables do, those of routes that are gone included.
    #[must_use]
    pub(crate) fn mark(&self) -> u64 {
        let gone: Vec<_> = self.gone.iter().map(|(id, route)| (id, route.definition())).collect();
        let text = format!("{:?} {:?} {} {gone:?}", self.definitions(), self.redirects, self.watermark_topic);
        u64::from(crc32c::crc32c(text.as_bytes()))
    }

    /// The templates of the Kafka topics, in the order of the tables.
    pub(crate) fn topics(&self) -> impl Iterator<Item = &TopicTemplate> {
        self.tables.iter().map(|route| &route.to)
    }

    /// What makes topic and key, in the order of the tables.
    pub(crate) fn templates(&self) -> impl Iterator<Item = (&TopicTemplate, &KeyTemplate)> {
        self.tables.iter().map(|route| (&route.to, &route.key))
    }

    /// The Kafka topics that readings are redirected to.
    pub(crate) fn redirected_to(&self) -> impl Iterator<Item = &str> {
        self.redirects.iter().filter_map(|redirect| redirect.to.as_deref())
    }

    /// Is there a topic of this filter that a route takes?
    #[must_use]
    pub(crate) fn meets(&self, filter: &Filter) -> bool {
        self.tables.iter().any(|route| route.from.meets(filter))
    }

    /// Index of the first route whose `from` matches.
    #[must_use]
    pub(crate) fn find(&self, mqtt_topic: &str) -> Option<usize> {
        self.tables.iter().position(|route| route.from.matches(mqtt_topic))
    }

    /// Is an MQTT topic enough to know where a reading goes, or does it take the sender as well?
    #[must_use]
    pub(crate) fn name_the_sender(&self) -> bool {
        self.tables.iter().chain(self.gone.values()).any(Route::names_the_sender)
    }

    /// Kafka topic, key and value format for an MQTT topic and who published to it.
    ///
    /// # Errors
    /// When no route matches, or the topic made is not one for readings.
    pub(crate) fn target(&self, mqtt_topic: &str, sender: Option<&Sender>) -> Result<Target, NoTarget> {
        let found = self.tables.iter().find_map(|route| route.target(mqtt_topic, sender));
        self.for_readings(found.ok_or(NoTarget::NoRoute)??)
    }

    /// The same for an event that no present route matches and that was taken in under that one: a configuration is no
    /// verdict over what is held.
    ///
    /// # Errors
    /// As [`Routes::target`]; events that no route matched when they arrived have no target.
    pub(crate) fn former_target(
        &self,
        mqtt_topic: &str,
        sender: Option<&Sender>,
        taken_under: RouteId,
    ) -> Result<Target, NoTarget> {
        let found = self.gone.get(&taken_under).and_then(|route| route.target(mqtt_topic, sender));
        self.for_readings(found.ok_or(NoTarget::NoRoute)??)
    }

    /// Where the readings of a Kafka topic go by the operator's word: mostly to that topic.
    ///
    /// # Errors
    /// They are given up, or the topic is not one for readings.
    pub(crate) fn redirected(&self, topic: &Arc<str>) -> Result<Arc<str>, NoTarget> {
        let topic = match self.redirects.iter().find(|redirect| redirect.from == *topic) {
            None => topic,
            Some(Redirect { to: Some(to), .. }) => to,
            Some(Redirect { from, to: None }) => return Err(NoTarget::GivenUp(Arc::clone(from))),
        };
        if topic.starts_with(KAFKAS_OWN) || *topic == self.watermark_topic {
            return Err(NoTarget::Reserved);
        }
        Ok(Arc::clone(topic))
    }

    fn for_readings(&self, made: Target) -> Result<Target, NoTarget> {
        let topic = self.redirected(&made.topic)?;
        let is_fixed = made.is_fixed || topic != made.topic;
        Ok(Target { topic, is_fixed, ..made })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn routes(tables: &[(&str, &str, &str)]) -> Routes {
        let route = |&(from, to, key): &(&str, &str, &str)| {
            let filter = Filter::parse(from).unwrap();
            Route {
                name: from.into(),
                to: TopicTemplate::parse(to, &filter).unwrap(),
                key: KeyTemplate::parse(key, &filter).unwrap(),
                from: filter,
                value: ValueFormat::Payload,
            }
        };
        Routes::new(tables.iter().map(route).collect())
    }

    #[test]
    fn the_first_match_wins() {
        let routes = routes(&[("s/{site}/alarm", "alarms", "{topic}"), ("s/{site}/#", "s.{site}", "{site}")]);
        assert_eq!(routes.find("s/nord/alarm"), Some(0));
        assert_eq!(routes.find("s/nord/temp"), Some(1));
        assert_eq!(routes.find("x"), None);
        let alarm = routes.target("s/nord/alarm", None).unwrap();
        assert_eq!((&*alarm.topic, &*alarm.key), ("alarms", "s/nord/alarm"));
        let temp = routes.target("s/nord/temp", None).unwrap();
        assert_eq!((&*temp.topic, &*temp.key), ("s.nord", "nord"));
        let names: Vec<_> = routes.definitions().iter().map(|route| route.from.to_string()).collect();
        assert_eq!(names, ["s/{site}/alarm", "s/{site}/#"]);
    }

    #[test]
    fn no_route_and_no_legal_topic_are_told_apart() {
        let routes = routes(&[("s/{a}", "{a}", "{topic}")]);
        assert_eq!(routes.target("x", None), Err(NoTarget::NoRoute));
        let long = |n| routes.target(&format!("s/{}", "x".repeat(n)), None).unwrap_err();
        assert!(matches!(long(300), NoTarget::IllegalTopic(_)));
        assert_eq!(
            long(300).to_string(),
            long(301).to_string(),
            "what is said does not differ from reading to reading"
        );
    }

    #[test]
    fn no_template_makes_the_watermark_topic_or_one_of_kafkas_own() {
        let routes = routes(&[("#", "{topic}", "{topic}")]).keeping_clear("tidegate.watermarks");
        for topic in ["tidegate/watermarks", "_x", "_consumer_offsets"] {
            assert_eq!(routes.target(topic, None), Err(NoTarget::Reserved), "{topic}");
        }
        for topic in ["tidegate/watermarks/x", "tidegate", "x_", " x"] {
            assert!(routes.target(topic, None).is_ok(), "{topic}");
        }
    }

    #[test]
    fn a_redirect_leads_elsewhere_or_gives_up() {
        let to = |from: &str, to: Option<&str>| Redirect { from: from.into(), to: to.map(Into::into) };
        let routes = routes(&[("#", "s.{topic}", "{topic}")])
            .redirecting(vec![to("s.nroth", Some("s.north")), to("s.old", None)])
            .keeping_clear("w");
        let target = routes.target("nroth", None).unwrap();
        assert_eq!((&*target.topic, &*target.key, target.is_fixed), ("s.north", "nroth", true));
        assert_eq!(routes.target("old", None), Err(NoTarget::GivenUp("s.old".into())));
        assert!(!routes.target("new", None).unwrap().is_fixed);
        assert_eq!(routes.redirected(&"elsewhere".into()), Ok("elsewhere".into()));
    }

    #[test]
    fn what_was_taken_in_under_a_route_that_is_gone_goes_where_that_one_said() {
        let gone = Route::parse(&routes(&[("a/{x}/#", "a.{x}", "{x}")]).definitions()[0]).unwrap();
        let routes = routes(&[("b/#", "b", "{topic}")]).with_gone(BTreeMap::from([(RouteId(3), gone)]));
        let target = routes.former_target("a/1/t", None, RouteId(3)).unwrap();
        assert_eq!((&*target.topic, &*target.key), ("a.1", "1"));
        assert_eq!(routes.former_target("a/1/t", None, RouteId(4)), Err(NoTarget::NoRoute));
        assert_eq!(routes.former_target("c", None, RouteId(3)), Err(NoTarget::NoRoute));
        assert_eq!(routes.target("a/1/t", None), Err(NoTarget::NoRoute), "what arrives now is another matter");
    }

    #[test]
    fn an_empty_key_becomes_the_mqtt_topic() {
        let routes = routes(&[("s/#", "all", "{rest}")]);
        assert_eq!(&*routes.target("s", None).unwrap().key, "s");
        assert_eq!(&*routes.target("s/", None).unwrap().key, "s/");
        assert_eq!(&*routes.target("s/a", None).unwrap().key, "a");
    }
}
