//! Where readings go: `[[route]]` and `[[redirect]]`. What they mean together is for `crate::config` to say.

use super::problems::Reported;
use super::reading::Section;
use super::table::{Key, Table};
use super::values::{Value, Words, choice, flag, table, text, text_or_empty};
use crate::route::ValueFormat;

/// A new topic is looked up by walking over them.
const MAX_ROUTES: usize = 1_000;

table! {
    /// Where readings go: a reading takes the first table whose from matches. A reading that matches none is a dead letter.
    many("route", MAX_ROUTES) read as RouteKeys {
        /// An MQTT filter; {name} stands for +, and "to" and "key" can use what it matched.
        from: String = text().required("sensors/{site}/#"),

        /// Kafka topic, made of the names in from, {rest} for what # matched and {topic} for the whole MQTT topic;
        /// {client} and {user} are the client id and the user of a sensor that publishes to a [[listen]]. Characters
        /// that Kafka forbids become _ and two hex digits, _ becomes __, / becomes a dot.
        to: String = text().required("sensors.{site}"),

        /// Record key, made of the same names, as they came. Readings with the same key keep their order.
        key: String = text_or_empty().or("{topic}"),

        /// payload: the payload as it came; cbor and json wrap it with topic, times, qos and id.
        value: ValueFormat = choice().or("payload"),
    }
}

impl Words for ValueFormat {
    const MEANINGS: &'static [(&'static str, Self)] = &Self::WORDS;
}

table! {
    /// Sends the readings of a Kafka topic elsewhere, also those that wait for it, or gives them up: for a topic that stays
    /// missing or forbidden. It takes effect at the next start.
    many("redirect", MAX_ROUTES) read as RedirectKeys {
        /// The Kafka topic, as routes make it and tidegate status shows it.
        from: String = text().required("sensors.nroth"),

        /// The Kafka topic to which its readings go instead.
        to: Option<String> = text().absent("sensors.north").read_by(optional_text),

        /// true, in place of to: its readings become dead letters, counted and declared.
        give_up: bool = flag().or("false"),
    }
}

fn optional_text(section: &Section<'_, '_>, key: &Key) -> Result<Option<String>, Reported> {
    section.optional_text(key)
}
