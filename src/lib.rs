//! Tidegate: MQTT to Kafka for edge devices. A PUBACK means the reading is on disk, and nothing but Kafka's own
//! confirmation ever takes it off.
//!
//! # The custody rules
//!
//! Code cites the rule at the line that keeps it (`custody rule 1`); `tests/tidy.rs` fails when a rule names no keeper
//! or no test.
//!
//! 1. **No acknowledgement before durability.** PUBACK (QoS 1) and PUBREC/PUBCOMP (QoS 2) leave only after the SQLite
//!    commit that holds the event has returned, and that commit was synced.
//!    Kept by `buffer/commit.rs` (only there a `Durable` is made) and `ingest/acker.rs` (which takes nothing else).
//!    Proven by @1.
//! 2. **An event leaves the buffer in exactly four ways**: Kafka confirmed it; it was moved to the dead letters with its
//!    reason; a declared overflow policy dropped it, counted and announced; an operator purged it. No timeout, retry
//!    budget, Kafka error or restart ever removes one.
//!    Kept by `delivered.rs`, `buffer/settle.rs` and `forward/verdict.rs`. Proven by @2.
//! 3. **Nothing is stored twice that QoS 2 delivered once**: packet ids are durable with the events, and PUBCOMP leaves
//!    when their removal is. (Exactly once up to Kafka's readers comes with transactions.)
//!    Kept by `ingest/unreleased.rs` and `buffer/sessions.rs`. Proven by @3.
//! 4. **Order**: events of one MQTT topic reach their Kafka partition in arrival order.
//!    Kept by `forward/outstanding.rs` and `forward/parking.rs`. Proven by @4.
//! 5. **Everything is bounded**: disk, memory, open files, reconnect rate, log rate. No bound is silent.
//!    Kept by `buffer/limits.rs`, `ingest/door.rs` and `retry.rs`. Proven by @5.
//! 6. **In doubt, stop.** After a failed write or an unknown commit outcome: stop acknowledging, reopen, re-read, go on
//!    from what the disk says. Never a crash loop on bad input, never an in-memory fallback, never a deleted buffer.
//!    Kept by `buffer/open.rs` and `buffer/writer.rs`. Proven by @6.
//! 7. **Every loss is on the books.** A ledger in the database, which survives restarts: received = delivered +
//!    dead-lettered + dropped + purged + held.
//!    Kept by `buffer/ledger.rs`. Proven by @7.

pub mod event; // the words all stages share
pub mod ingest; // MQTT in
pub mod buffer; // durable in SQLite
mod cbor; // the buffer's encoding
pub mod delivered; // Kafka's confirmation as a value
pub mod route; // which Kafka topic and key
pub mod forward; // Kafka out
pub mod run; // wires the stages, stops them in flow order
pub mod config; // TOML to checked values
pub mod observe; // logs, metrics, health
pub mod cli; // the subcommands
pub mod retry; // how long to wait
pub mod stop; // stopping as a value
pub mod planted; // bugs on purpose, for the tests' positive controls
