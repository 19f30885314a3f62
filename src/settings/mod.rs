//! What can be set: each key of the configuration, declared once, and the types that the stages get.
//!
//! A table stands as `table!` in one of [`machine`] (`[agent]`, `[log]`, `[http]`, `[buffer]`), [`links`] (`[[mqtt]]`,
//! `[[listen]]`), [`kafka`] and [`routes`] (`[[route]]`, `[[redirect]]`): a key's name, type, limits, default and reason
//! are one entry of it, and struct, reading, messages, `config/tidegate.toml` and the manual page follow. [`values`]
//! has the kinds of keys, [`table`] what is known of a table, and [`reading`] walks a text by it.
//!
//! This is the ground floor: it names no stage. What only a stage can judge (certificates, users files, properties of
//! librdkafka) and what concerns several tables is looked at in `crate::config`, above.
//!
//! To add a key, add an entry; then `TIDEGATE_WRITE_EXAMPLE=1 cargo test --lib what_the` writes the two files anew.

pub(crate) mod endpoint;
pub(crate) mod env;
pub(crate) mod files;
pub(crate) mod kafka;
pub(crate) mod links;
pub(crate) mod machine;
pub(crate) mod problems;
pub(crate) mod reading;
pub(crate) mod routes;
mod secret;
pub(crate) mod table;
pub(crate) mod unique;
mod units;
pub(crate) mod values;

pub(crate) use kafka::{Codec, Delivery, HeaderNames, Kafka, Timestamp};
pub(crate) use links::{Broker, Identity, Listener, MqttVersion, Subscription, Tls};
pub(crate) use machine::{Agent, Buffer, Compression, Http, Log, LogFormat, SyncMode};
pub(crate) use secret::Secret;

use table::Table;

/// In the order of the documentation.
pub(crate) const TABLES: [&Table; 9] = [
    machine::AgentKeys::TABLE,
    machine::LogKeys::TABLE,
    machine::HttpKeys::TABLE,
    links::BrokerKeys::TABLE,
    links::ListenerKeys::TABLE,
    machine::BufferKeys::TABLE,
    kafka::KafkaKeys::TABLE,
    routes::RouteKeys::TABLE,
    routes::RedirectKeys::TABLE,
];

/// For tests: a table in which only that stands which must, as in its example.
#[cfg(test)]
pub(crate) fn example<T>(table: &'static Table, read: impl FnOnce(&reading::Section<'_, '_>) -> T) -> T {
    let mut text = format!("[{}]\n", table.name);
    for key in table.keys.iter().filter(|key| matches!(key.default, table::Default::Required(_))) {
        text.extend([key.name, " = ", &key.example(), "\n"]);
    }
    let (root, _) = toml::de::DeTable::parse_recoverable(&text);
    let notes = problems::Notes::new(&text, problems::Files::Needed);
    let env = env::Env::of("press-07");
    read(&reading::Document { notes: &notes, root: root.get_ref(), env: &env, tables: &TABLES }.one(table))
}
