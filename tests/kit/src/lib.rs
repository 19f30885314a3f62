//! What system tests, benches and `tidegate demo` publish with, and judge by.
//!
//! Nothing here uses Tidegate's code: the oracle lives outside of what it judges, down to the bytes on the wire. Functions
//! answer with `Result`, so that a benchmark and the demo can go on where a test would panic.
//!
//! * `wire`: MQTT packets · `client`: one connection · `scripted`: a broker that does what a test says · `ports`: free ones
//! * `plan`: what to publish · `session`: what is in flight, without sockets · `publisher`: a sensor that remembers what was
//!   acknowledged
//! * `reader`: what Kafka holds · `books`: what was acknowledged against what Kafka holds

pub mod books;
pub mod client;
pub mod plan;
pub mod ports;
pub mod publisher;
pub mod reader;
pub mod scripted;
mod session;
pub mod wire;

use std::fmt;
use std::time::{Duration, Instant};

/// Why something could not be tried, or what was found; a sentence.
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

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The same: a test that ends with it shows this.
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
#[macro_export]
macro_rules! trouble {
    ($($text:tt)*) => { Err($crate::Trouble::new(format!($($text)*))) };
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
