//! Every limit of ingest that is not a key of the configuration: its unit is in its name or type, its reason above it.
//!
//! First what holds for every connection, then what is only for a link to a broker, then what is only for the listener
//! and its clients. Lengths and flags that the MQTT standard fixes stand with the codec.

use std::time::Duration;

// ---- every connection ------------------------------------------------------------------------------------------------

/// What one read takes from a socket at most: 500 readings of 100 bytes, which brings the system call below 10 ns a reading;
/// little beside the agent's 20 MB. The listener has one such buffer for all its clients.
pub(super) const READ_BYTES: usize = 64 * 1024;

/// A payload from this size on stays a slice of the read that brought it; a smaller one is copied, so that it does not keep
/// the whole read in memory. Half of the largest read: what is kept is at most twice what is charged.
pub(super) const OWN_BUFFER_BYTES: usize = READ_BYTES / 2;

/// Answers that the peer has not taken off its socket. With more than this it is not read: who does not listen shall not
/// speak. 16,384 acknowledgements of 4 bytes, more than a round trip brings on any link we know.
pub(super) const MAX_UNSENT_BYTES: usize = 64 * 1024;

/// Timers are looked at so often where no deadline is nearer; also the watchdog's beat, which must be below 1 s.
pub(super) const TICK: Duration = Duration::from_millis(500);

/// At a stop: how long to wait for the commits of what was read, and for their answers to leave. One synced commit on a slow
/// card takes 0.05 s. With [`DISCONNECT_TIMEOUT`] 3.5 s, below the 4 s that `run` gives all of ingest.
pub(super) const STOP_TIMEOUT: Duration = Duration::from_millis(2500);

/// How long DISCONNECT may take to leave, and the peer to read it and close.
pub(super) const DISCONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// Memory a receipt is charged with: itself (16 bytes), its id change, and vectors that double.
pub(super) const RECEIPT_COST_BYTES: usize = 48;

/// Memory a batch is charged with beside its contents: `Arrivals` and its slot in the queue.
pub(super) const BATCH_COST_BYTES: usize = 512;

/// Memory a known topic is charged with beside its name: the map's slot, the `Arc` and its counters.
pub(super) const TOPIC_COST_BYTES: usize = 64;

/// Longer topic names are not remembered: one of 64 KiB would push a thousand ordinary ones out.
pub(super) const MAX_CACHED_TOPIC_BYTES: usize = 512;

// ---- a link to a broker ----------------------------------------------------------------------------------------------

/// TCP and name resolution together; a satellite link needs two or three of it.
pub(super) const DIAL_TIMEOUT: Duration = Duration::from_secs(10);

/// The whole TLS handshake. TLS 1.2 takes two round trips and up to 8 KiB of certificates: 2 s over a satellite, 8 s over
/// a 9.6 kbit/s modem. A broker that takes the TCP connection and then says nothing must not hold the link for ever.
pub(super) const TLS_TIMEOUT: Duration = Duration::from_secs(15);

/// A broker that has not answered CONNECT by then will not.
pub(super) const CONNACK_TIMEOUT: Duration = Duration::from_secs(10);

/// The same for SUBSCRIBE; longer, because a broker may send many retained messages first.
pub(super) const SUBACK_TIMEOUT: Duration = Duration::from_secs(30);

/// Before a connection is closed for a fault of the broker's, what came before the fault gets so long to be answered.
pub(super) const FAULT_TIMEOUT: Duration = Duration::from_secs(2);

/// A connection has proven itself when it has been online for so long. By time and not by traffic: in front of a packet
/// that ends each connection there may be others that flow well.
pub(super) const PROVEN_TIME: Duration = Duration::from_secs(10);

/// A message that cannot be read ends so many connections but one; then it is put aside. Two may be noise on the line, and
/// with the back-off three are a second apart.
pub(super) const FLAWED_TRIES: u8 = 3;

/// An MQTT 5 CONNECT that is answered by closing, so often in a row, gives 3.1.1 a try.
pub(super) const MAX_WORDLESS_CLOSES: u8 = 3;

/// How long a fallback to 3.1.1 is kept. Long: the price of 3.1.1 is throughput, the price of trying is a reconnect's delay.
pub(super) const FALLBACK_TIME: Duration = Duration::from_secs(24 * 3600);

/// Refused filters are asked for again so often.
pub(super) const RESUBSCRIBE_INTERVAL: Duration = Duration::from_secs(600);

/// Filters a SUBSCRIBE: as many as the most restrictive public broker takes (AWS `IoT` Core: 8).
pub(super) const MAX_FILTERS_A_PACKET: usize = 8;

/// A file named in `tls.*`, and the system's CA bundle: it is read whole. Debian's bundle has 220 KB.
pub(super) const MAX_PEM_BYTES: u64 = 2 * 1024 * 1024;

/// First read size of a link: an idle broker's packets. It doubles up to [`READ_BYTES`] as reads come full.
pub(super) const MIN_READ_BYTES: usize = 2 * 1024;

/// Topic names known for one broker: about 10,000 of ordinary length.
pub(super) const BROKER_TOPICS_BYTES: usize = 1024 * 1024;

/// A link that goes on failing is logged again after so long: once a minute, with a tick (0.5 s) and the longest goodbye,
/// during which nothing is logged ([`FAULT_TIMEOUT`] and [`DISCONNECT_TIMEOUT`], 3 s), still within it.
pub(super) const LINK_LOG_INTERVAL: Duration = Duration::from_secs(55);

/// Different reasons of one trouble that are logged at once when they first come; others wait for the line of the minute.
/// A reason may bear a number that is another one each time.
pub(super) const MAX_LOGGED_REASONS: usize = 8;

// ---- the listener and its clients ------------------------------------------------------------------------------------

/// From TCP accept to a complete CONNECT. The standard asks for "a reasonable time"; a sensor on a satellite link needs
/// three round trips of 0.6 s. What comes then (password, session) takes our time, not the client's.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A CONNECT carries names, a password and a will. Until the client is known, nobody gets more memory than this (16 KiB
/// times 320 sockets are 5 MB).
pub(super) const MAX_CONNECT_BYTES: u32 = 16 * 1024;

/// The standard demands 23; UUIDs, serial numbers and MAC addresses with a prefix stay below 100. Each id is part of a
/// key in the database.
pub(super) const MAX_CLIENT_ID_BYTES: usize = 256;

/// Sockets above `max_connections`, for those who are not in: a client that was cut off comes back while its old
/// connection still counts, and the others get a CONNACK "server busy" instead of a mere close. As many as a switch
/// has ports, which come back all at once after a power cut, with one to spare; when they are all taken, the
/// gate decides.
pub(super) const SPARE_SOCKETS: usize = 64;

/// Sockets whose owner was told to go, and that are not closed yet. With as many of them nobody is accepted for a moment.
pub(super) const GOING_SOCKETS: usize = 64;

/// Sessions that are remembered while their client is away, for each listener: about 300 bytes each in memory and on
/// disk, 1.2 MB. Sixteen times the default of `max_connections`.
pub(super) const MAX_SESSIONS_AWAY: usize = 4096;

/// No wall clock before 2024-01-01 is believed: a device without a clock battery starts in 1970, or where it was
/// switched off.
pub(super) const EARLIEST_SANE_MS: i64 = 1_704_067_200_000;

/// Wills that wait for their delay, all together. What is above goes out at once. As much again may wait for room in the
/// buffer; above that a client that has gone keeps its place until there is.
pub(super) const MAX_WAITING_WILL_BYTES: usize = 1024 * 1024;

/// A will waits no longer than this, whatever its delay: a day late, it is no news.
pub(super) const MAX_WILL_DELAY: Duration = Duration::from_secs(24 * 60 * 60);

/// What one read takes while the buffer's intake is short of room. What it brings waits outside of the intake, with each
/// connection: 10 readings of 100 bytes, 3 KB; 256 connections with the tiniest packets there are, 8 MB.
pub(super) const SCARCE_READ_BYTES: usize = 1024;

/// The intake is short of room when it could not take what one whole read may bring: 500 readings of 100 bytes are
/// charged with 150 KB.
pub(super) const AMPLE_ROOM_BYTES: usize = 256 * 1024;

/// Of a message that is larger than `max_packet_bytes`, so much is looked at for its topic and properties; the rest is taken
/// off the wire without being kept. Whose topic is longer has its connection ended, as before.
pub(super) const BEGINNING_BYTES: usize = 8 * 1024;

/// What its dead letter keeps of its payload: enough to see what it was.
pub(super) const KEPT_OF_OVERSIZED_BYTES: usize = 1024;

/// A packet that is still arriving may occupy this much without asking. One read may bring more of it: at worst
/// [`READ_BYTES`] times 256 clients, 17 MB, when every client is in the middle of a large packet at once.
pub(super) const SMALL_PACKET_BYTES: usize = 16 * 1024;

/// Larger packets that are still arriving, of all connections of a listener together, each with its announced length;
/// who finds no room is not read meanwhile. A single packet of up to `max_packet_bytes` is always let in.
pub(super) const ASSEMBLY_BYTES: usize = 4 * 1024 * 1024;

/// A large packet must arrive at this rate on the whole, or its connection ends: else a few clients that send a byte now
/// and then would hold the memory above for ever. Half of what GSM's 9.6 kbit/s bring; 1 MiB gets 34 minutes.
pub(super) const SLOWEST_BYTES_PER_S: u32 = if cfg!(test) { 1 << 20 } else { 512 };

/// A large packet gets this on top, for a link that pauses: longer than a cellular modem takes to come back.
pub(super) const PACKET_PAUSE: Duration = Duration::from_secs(if cfg!(test) { 3 } else { 60 });

/// From CONNECT to its commit. A commit takes 0.05 s; what takes longer is a buffer without room, and that may last
/// for hours. The client is told to come again instead of holding a socket; clients give up by themselves after 30 to 60 s.
pub(super) const SETTLING_TIMEOUT: Duration = Duration::from_secs(30);

/// A complete packet is a sign of life, and so is every KiB of one that is still arriving: a large packet may take
/// longer over a thin link than one and a half keepalives. Single bytes are none.
pub(super) const SIGN_OF_LIFE_BYTES: usize = 1024;

/// Topic names that a connection remembers with their route: a sensor has a handful, 32 KiB are about 300.
pub(super) const CLIENT_TOPICS_BYTES: usize = 32 * 1024;

/// Topic aliases that are understood, though none are granted: a sensor that uses them unasked has a handful of topics.
pub(super) const MAX_ALIASES: u16 = 32;

/// What the topics behind them may take, for each connection: 32 of 128 bytes, four times a long one.
pub(super) const MAX_ALIAS_BYTES: usize = 4 * 1024;

/// A client's will that has just been published is not published again for so long: whoever comes and goes each second is no
/// reading each second. If the client stays away, its will goes out when the time is over.
pub(super) const WILL_PAUSE: Duration = Duration::from_secs(60);

/// The whole listener at a stop: the connections' own time, their goodbyes, and wills that wait for room.
pub(crate) const WHOLE_STOP_TIMEOUT: Duration = Duration::from_millis(3800);

/// What connections have to say to the listener's task. It answers at once, so more than a few never wait.
pub(super) const MAX_WORDS: usize = 64;

/// Passwords on their way to the desk while it is at a check: as many as clients that may be in by default, 4 MB at worst.
pub(super) const MAX_CHECKS: usize = 256;

/// Passwords that wait for their check, for each origin: 3 s with mosquitto's argon2 on a gateway, which is what a client
/// waits for its CONNACK without worry.
pub(super) const MAX_CHECKS_AN_ORIGIN: usize = 64;

/// After a wrong password nobody of that origin is checked for so long: five guesses a second, a tenth of what an argon2
/// line costs a core. A person who mistypes does not notice.
pub(super) const WRONG_PAUSE: Duration = Duration::from_millis(200);

/// 10,000 users take about 1.5 MB.
pub(super) const MAX_USERS_FILE_BYTES: u64 = 4 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_stops_within_the_time_of_all() {
        assert!(STOP_TIMEOUT + DISCONNECT_TIMEOUT < WHOLE_STOP_TIMEOUT);
    }
}
