//! Every limit of a broker link that is not a key of `[[mqtt]]`, with its reason. Those of the protocol stand with the
//! session.

use std::time::Duration;

/// TCP and name resolution together; a satellite link needs two or three of it.
pub(super) const DIAL_TIME: Duration = Duration::from_secs(10);

/// The whole TLS handshake. TLS 1.2 takes two round trips and up to 8 KiB of certificates: 2 s over a satellite, 8 s over
/// a 9.6 kbit/s modem. A broker that takes the TCP connection and then says nothing must not hold the link for ever.
pub(super) const HANDSHAKE_TIME: Duration = Duration::from_secs(15);

/// A file named in `tls.*`, and the system's CA bundle: it is read whole. Debian's bundle has 220 KB.
pub(super) const MAX_PEM_BYTES: u64 = 2 * 1024 * 1024;

/// Timers are looked at so often when nothing else happens; also the pulse's beat, which must be below 1 s.
pub(super) const TICK: Duration = Duration::from_millis(500);

/// At a stop, commits under way get so long to be answered. With [`FAREWELL_TIME`] it stays below the time that the
/// process gives ingest (4 s).
pub(super) const STOP_TIME: Duration = Duration::from_millis(2500);

/// The same before a connection is closed for a fault of the broker's.
pub(super) const FAULT_TIME: Duration = Duration::from_secs(2);

/// Last bytes get so long to leave, and the broker to read them and close.
pub(super) const FAREWELL_TIME: Duration = Duration::from_secs(1);

/// Answers that the broker does not take: with more than this, nothing is read until it does. 16,000 answers, more
/// than a round trip brings on any link we know.
pub(super) const MOST_UNSENT_BYTES: usize = 64 * 1024;

/// Topic names known for one broker: about 10,000 of ordinary length.
pub(super) const TOPIC_CACHE_BYTES: usize = 1024 * 1024;

/// A failure that goes on is said again after so long: once a minute, with a tick (0.5 s) and the longest goodbye, during which
/// nothing is said ([`FAULT_TIME`] and [`FAREWELL_TIME`], 3 s), still within it.
pub(super) const SAY_AGAIN: Duration = Duration::from_secs(55);

/// Different reasons of one trouble that are said at once when they first come; others wait for the line of the minute.
/// A reason may bear a number that is another one each time.
pub(super) const MOST_REASONS: usize = 8;
