//! The system tests: the real agent between a real mosquitto and a real Apache Kafka, and an oracle that lives outside
//! of all three. Filed by the kind of claim; names are claims. `tests/run` brings what they need and runs them.
//!
//! Every fault test is a scenario that takes the [`Build`](support::agent::Build) to run; `controls.rs` runs the same
//! scenario on a binary with a bug planted at the line that keeps the rule, and wants it red.

#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    clippy::indexing_slicing,
    clippy::wildcard_enum_match_arm,
    clippy::print_stderr,
    reason = "a test that panics has failed, and says why on standard error; its figures are small"
)]
#![allow(missing_docs, reason = "names of fields and variants say it")]
#![allow(unreachable_pub, reason = "the benchmark includes support/ as well")]

mod brokers; // those that are not mosquitto
mod clients; // what client libraries do
mod clocks; // the wall clock lies
mod cluster; // leaders die
mod audit; // what Kafka holds is proven, and what is missing is named
mod config; // wrong configurations
mod conformance; // Eclipse's own tests of the protocol
mod consumers; // the examples of docs/kafka.md, run
mod controls; // planted bugs turn the scenarios red
mod crowds; // one host cannot keep the others out
mod custody; // nothing acknowledged is lost when the agent is killed
mod damage; // flipped bits, garbage pages, a missing head
mod everyday; // some readings a second, all day
mod exactly_once; // transactions, through kills and faults
mod flow; // what goes in comes out
mod identity; // one id, one reading
mod health; // systemd, probes, metrics, status
mod hostile; // peers that break the rules
mod kafka_tls; // TLS to Kafka
mod kafka_away; // nothing is lost, and order kept, while Kafka is away
mod nothing_final; // whatever Kafka, names or brokers do, it goes on by itself, and says what it waits for
mod libraries; // the client libraries that sensors speak through
mod limits; // what cannot be promised, stated
mod links; // narrow and long ones
mod memory; // bounds
mod parking; // missing, forbidden, too large
mod readers; // the Kafka clients that people have
mod refusals; // whatever Kafka answers to a batch
mod quiet; // no trouble, no noise
mod routes; // a changed configuration is no verdict over what is held; templates and their abuse
mod secrets; // passwords never show
mod session; // MQTT sessions
mod setup; // what the centre must have
mod stop; // SIGTERM
mod transactions_hit; // links and brokers fail in the middle of transactions
mod watermarks; // twins, copies and the watermark topic
mod unit; // the systemd unit and its drop-ins
mod tls; // certificates, good and bad
#[allow(dead_code, reason = "the tests use one part of it, the benchmark another")]
mod support;
