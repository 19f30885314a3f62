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

pub mod escape;
pub mod filter;
pub mod template;

use std::sync::Arc;

use filter::Filter;
use template::{KeyTemplate, TopicTemplate};

/// The `[[route]]` tables, checked; first match wins.
#[derive(Debug, Clone, Default)]
pub struct Routes {
    routes: Arc<[Route]>,
}

/// One `[[route]]`, checked.
#[derive(Debug, Clone)]
pub struct Route {
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

/// How the Kafka record's value is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ValueFormat {
    /// The payload as it came.
    Payload,
    /// A CBOR envelope: topic, times, qos, id, payload.
    Cbor,
    /// The same as JSON.
    Json,
}

/// Where an event goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Kafka topic.
    pub topic: Arc<str>,
    /// Record key.
    pub key: Arc<str>,
    /// How the value is made.
    pub value: ValueFormat,
}

/// Why an event has no target; it goes to the dead letters with these words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoTarget {
    /// No `from` matches.
    #[error("no [[route]] matches MQTT topic {0:?}")]
    NoRoute(String),
    /// The Kafka topic that the template makes is not a legal one.
    #[error("MQTT topic {mqtt:?} makes no legal Kafka topic: {why}")]
    IllegalTopic {
        /// The MQTT topic.
        mqtt: String,
        /// Too long, empty, `.` or `..`.
        why: String,
    },
}

impl Routes {
    /// The tables in their order.
    #[must_use]
    pub fn new(routes: Vec<Route>) -> Self {
        Self { routes: routes.into() }
    }

    /// The names of the ledger lines, one a route, in the order of the tables: the route's `from`.
    #[must_use]
    pub fn names(&self) -> Vec<Arc<str>> {
        self.routes.iter().map(|route| Arc::clone(&route.name)).collect()
    }

    /// The templates of the Kafka topics, in the order of the tables.
    pub fn topics(&self) -> impl Iterator<Item = &TopicTemplate> {
        self.routes.iter().map(|route| &route.to)
    }

    /// Is there a topic of this filter that a route takes?
    #[must_use]
    pub fn meets(&self, filter: &Filter) -> bool {
        self.routes.iter().any(|route| route.from.meets(filter))
    }

    /// Index of the first route whose `from` matches.
    #[must_use]
    pub fn find(&self, mqtt_topic: &str) -> Option<usize> {
        self.routes.iter().position(|route| route.from.matches(mqtt_topic))
    }

    /// Kafka topic, key and value format for an MQTT topic.
    ///
    /// # Errors
    /// When no route matches or the topic made is not legal.
    pub fn target(&self, mqtt_topic: &str) -> Result<Target, NoTarget> {
        let found = self.routes.iter().find_map(|route| Some((route, route.from.captures(mqtt_topic)?)));
        let (route, captures) = found.ok_or_else(|| NoTarget::NoRoute(mqtt_topic.to_owned()))?;
        let topic = route
            .to
            .render(mqtt_topic, &captures)
            .map_err(|why| NoTarget::IllegalTopic { mqtt: mqtt_topic.to_owned(), why })?;
        let key = route.key.render(mqtt_topic, &captures);
        let key = if key.is_empty() { mqtt_topic.into() } else { key.into() };
        Ok(Target { topic: topic.into(), key, value: route.value })
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
        let alarm = routes.target("s/nord/alarm").unwrap();
        assert_eq!((&*alarm.topic, &*alarm.key), ("alarms", "s/nord/alarm"));
        let temp = routes.target("s/nord/temp").unwrap();
        assert_eq!((&*temp.topic, &*temp.key), ("s.nord", "nord"));
        assert_eq!(routes.names().iter().map(|n| &**n).collect::<Vec<_>>(), ["s/{site}/alarm", "s/{site}/#"]);
    }

    #[test]
    fn no_route_and_no_legal_topic_are_told_apart() {
        let routes = routes(&[("s/{a}", "{a}", "{topic}")]);
        assert_eq!(routes.target("x"), Err(NoTarget::NoRoute("x".into())));
        let long = format!("s/{}", "x".repeat(300));
        assert!(matches!(routes.target(&long), Err(NoTarget::IllegalTopic { .. })));
    }

    #[test]
    fn an_empty_key_becomes_the_mqtt_topic() {
        let routes = routes(&[("s/#", "all", "{rest}")]);
        assert_eq!(&*routes.target("s").unwrap().key, "s");
        assert_eq!(&*routes.target("s/").unwrap().key, "s/");
        assert_eq!(&*routes.target("s/a").unwrap().key, "a");
    }
}
