//! What the tests stand on: real services, a publisher and a reader of their own, and the books that judge.
//!
//! Nothing here uses Tidegate's code: the oracle lives outside of what it judges. Functions answer with `Result`, so that
//! benchmarks can use them as well.

pub mod agent; // the agent as a process: configuration, life, death, what it says
pub mod books; // what was acknowledged against what Kafka holds
pub mod cluster; // three brokers that replicate
pub mod brokers; // HiveMQ, Moquette, Paho's
pub mod certificates; // an authority of our own
pub mod client; // one MQTT connection
pub mod http; // GET
pub mod kafka; // Apache Kafka, one JVM
pub mod kafka_wire; // its protocol, as far as a proxy needs it
pub mod kills; // of the agent, at random instants
pub mod mosquitto; // the Debian package
pub mod process; // children that never outlive us, ports, folders
pub mod proxy; // a link that can be cut
pub mod publisher; // a sensor that remembers what was acknowledged
pub mod reader; // what Kafka holds
pub mod scripted; // a broker that does what mosquitto will not do on demand
pub mod settle; // waits for the end and closes the books
pub mod stage; // a topic, two readers that see what is committed, and what they must have seen
pub mod stream; // what gateways would write to Kafka, planted
pub mod wire; // MQTT packets, independent of the agent's codec

use std::fmt;
use std::time::{Duration, Instant};

/// Why a test could not be run, or what it found; a sentence.
pub struct Trouble(pub String);

/// The usual answer.
pub type Outcome<T> = Result<T, Trouble>;

/// What a scenario found, once it could be run: `Outcome<Verdict>` tells a promise that is broken from a test that is.
/// A planted bug must change the verdict and not the outcome.
pub type Verdict = Result<(), Trouble>;

impl Trouble {
    /// From anything that prints.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

impl fmt::Debug for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<E: std::error::Error> From<E> for Trouble {
    fn from(error: E) -> Self {
        Self(error.to_string())
    }
}

/// An `Err` with a formatted sentence.
macro_rules! trouble {
    ($($text:tt)*) => { Err($crate::support::Trouble::new(format!($($text)*))) };
}
pub(crate) use trouble;

/// A number that a longer or larger run gives in an environment variable; without it, the usual one. What is not a number
/// is an error: nobody shall take the usual run for the long one.
pub fn asked<N: std::str::FromStr>(variable: &str, usual: N) -> Outcome<N> {
    match std::env::var(variable) {
        Ok(text) => text.parse().map_err(|_error| Trouble(format!("{variable}={text} is not a number"))),
        Err(_unset) => Ok(usual),
    }
}

/// Asks again and again until the answer is `Some`; the only way in which tests wait.
pub fn wait_for<T>(what: &str, limit: Duration, mut question: impl FnMut() -> Option<T>) -> Outcome<T> {
    let end = Instant::now() + limit;
    loop {
        if let Some(answer) = question() {
            return Ok(answer);
        }
        if Instant::now() > end {
            return trouble!("waited {limit:?} in vain for: {what}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The same for a yes.
pub fn wait_until(what: &str, limit: Duration, mut question: impl FnMut() -> bool) -> Outcome<()> {
    wait_for(what, limit, || question().then_some(()))
}

/// A deadline that only a broken thing reaches; the machine may be slow and busy.
pub const PATIENCE: Duration = Duration::from_secs(60);
