//! Tidegate: MQTT to Kafka for edge devices. A PUBACK means the reading is on disk, and nothing but Kafka's own
//! confirmation ever takes it off.

pub mod buffer; // durable in SQLite
mod cbor; // the one file that names serde_cbor
pub mod config; // TOML to checked values
pub mod delivered; // Kafka's confirmation as a value
pub mod event; // the words all stages share
pub mod forward; // Kafka out
pub mod ingest; // MQTT in
pub mod observe; // logs, metrics, health
pub mod planted; // bugs on purpose, for the tests' positive controls
pub mod retry; // how long to wait
pub mod route; // which Kafka topic and key
pub mod stop; // stopping as a value
