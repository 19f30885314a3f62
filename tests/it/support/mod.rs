//! What the tests stand on: the test kit (`tests/kit`: a publisher, a reader and the books that judge), and real services.
//!
//! Nothing here uses Tidegate's code: the oracle lives outside of what it judges. Functions answer with `Result`, so that
//! benchmarks can use them as well.

pub mod agent; // the agent as a process: configuration, life, death, what it says
pub mod cluster; // three brokers that replicate
pub mod brokers; // HiveMQ, Moquette, Paho's
pub mod certificates; // an authority of our own
pub mod http; // GET
pub mod kafka; // Apache Kafka, one JVM
pub mod kafka_wire; // its protocol, as far as a proxy needs it
pub mod kills; // of the agent, at random instants
pub mod mosquitto; // the Debian package
pub mod process; // children that never outlive us, folders
pub mod proxy; // a link that can be cut
pub mod settle; // waits for the end and closes the books
pub mod stage; // a topic, two readers that see what is committed, and what they must have seen
pub mod stream; // what gateways would write to Kafka, planted
pub mod topics; // made, changed and written to by others

pub use test_kit::{Outcome, PATIENCE, Trouble, Verdict, trouble, wait_for, wait_until};
pub use test_kit::{books, client, publisher, reader, scripted, wire};

/// A number that a longer or larger run gives in an environment variable; without it, the usual one. What is not a number
/// is an error: nobody shall take the usual run for the long one.
pub fn asked<N: std::str::FromStr>(variable: &str, usual: N) -> Outcome<N> {
    match std::env::var(variable) {
        Ok(text) => text.parse().map_err(|_error| Trouble(format!("{variable}={text} is not a number"))),
        Err(_unset) => Ok(usual),
    }
}
