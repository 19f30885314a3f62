//! The checked values: what the stages get.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use tokio_rustls::rustls::pki_types::ServerName;

use super::problems::Problem;
use super::secret::Secret;
use crate::event::Qos;
use crate::route::Routes;

/// Everything the agent is told, checked. Each stage takes its own part by value.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    /// `[agent]`
    pub agent: Agent,
    /// `[log]`
    pub log: Log,
    /// `[http]`
    pub http: Http,
    /// `[[mqtt]]`
    pub mqtt: Vec<Broker>,
    /// `[[listen]]`
    pub listen: Vec<Listener>,
    /// `[buffer]`
    pub buffer: Buffer,
    /// `[kafka]`
    pub kafka: Kafka,
    /// `[[route]]`
    pub routes: Routes,
    /// What is odd and keeps nothing from running: `check` prints it, `run` logs it as WARN.
    pub remarks: Vec<Problem>,
}

/// `[agent]`
#[derive(Debug, Clone)]
pub(crate) struct Agent {
    /// Name of this gateway.
    pub id: String,
    /// Where the buffer lives.
    pub data_dir: PathBuf,
}

/// `[log]`
#[derive(Debug, Clone)]
pub(crate) struct Log {
    /// error, warn, info, debug, trace, or a tracing filter like `info,tidegate::ingest=debug`.
    pub level: String,
    /// How lines look.
    pub format: LogFormat,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LogFormat {
    /// journald when started by systemd with a journal, else text.
    Auto,
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
    /// Native journal fields.
    Journald,
}

/// `[http]`
#[derive(Debug, Clone)]
pub(crate) struct Http {
    /// `None` = off.
    pub listen: Option<SocketAddr>,
}

/// `[[mqtt]]`: a broker to subscribe to.
#[derive(Debug, Clone)]
pub(crate) struct Broker {
    /// Unique name.
    pub name: String,
    /// Host name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// `mqtts://`: how. `None` = without TLS.
    pub tls: Option<Tls>,
    /// The version to begin with.
    pub version: MqttVersion,
    /// Fixed client id.
    pub client_id: String,
    /// User name, if the broker wants one.
    pub username: Option<String>,
    /// From `password_file`.
    pub password: Option<Secret>,
    /// What to subscribe to.
    pub subscribe: Vec<Subscription>,
    /// How long the broker shall keep the session while we are away.
    pub session_expiry: Duration,
    /// Longest silence before a PINGREQ.
    pub keepalive: Duration,
    /// Largest packet accepted, announced on MQTT 5.
    pub max_packet_bytes: u32,
    /// QoS 1 and 2 messages in flight, announced on MQTT 5.
    pub receive_maximum: u16,
}

/// `tls.*` of a broker. The files are read anew at each connection.
#[derive(Debug, Clone)]
pub(crate) struct Tls {
    /// What the broker's certificate must be made out to: the host of the URL.
    pub server_name: ServerName<'static>,
    /// Whom we trust; `None` = whom the system trusts.
    pub ca_file: Option<PathBuf>,
    /// What we show, if the broker asks.
    pub identity: Option<Identity>,
}

/// A client certificate.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    /// It, and those between it and the authority.
    pub cert_file: PathBuf,
    /// Its private key.
    pub key_file: PathBuf,
}

/// One filter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Subscription {
    /// MQTT topic filter, `$share/group/filter` included.
    pub filter: String,
    /// Asked for; the broker may grant less.
    pub qos: Qos,
}

/// MQTT protocol version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MqttVersion {
    /// 3.1.1
    V311,
    /// 5.0
    V5,
}

/// `[[listen]]`: sensors publish straight to Tidegate.
#[derive(Debug, Clone)]
pub(crate) struct Listener {
    /// Unique name.
    pub name: String,
    /// Where to listen.
    pub address: SocketAddr,
    /// `mosquitto_passwd` file; `None` = no credentials asked.
    pub users_file: Option<PathBuf>,
    /// Connections at a time.
    pub max_connections: usize,
    /// The same of one address.
    pub max_connections_per_address: usize,
    /// Longest keepalive granted; a client that asks for more, or for none, gets this (MQTT 5: Server Keep Alive).
    pub max_keepalive: Duration,
    /// Largest packet accepted.
    pub max_packet_bytes: u32,
    /// QoS 1 and 2 messages in flight a client, announced on MQTT 5.
    pub receive_maximum: u16,
    /// A SUBSCRIBE is granted, though nothing will be sent.
    pub subscriptions: bool,
    /// Longest session expiry granted.
    pub max_session_expiry: Duration,
}

/// `[buffer]`
#[derive(Debug, Clone)]
pub(crate) struct Buffer {
    /// Disk the buffer may use.
    pub max_bytes: u64,
    /// SQLite's `synchronous`.
    pub sync: SyncMode,
    /// A commit waits so long for company.
    pub commit_delay: Duration,
    /// Of chunks.
    pub compression: Compression,
}

/// SQLite's `synchronous`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SyncMode {
    /// Every commit is synced: the promise holds through power loss.
    Full,
    /// Acknowledged events of the last seconds may go in a power cut.
    Normal,
}

/// Of chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    /// zstd, level 1.
    Zstd,
    /// As they are.
    None,
}

/// `[kafka]`
#[derive(Debug, Clone)]
pub(crate) struct Kafka {
    /// `host:port`, at least one.
    pub brokers: Vec<String>,
    /// How.
    pub delivery: Delivery,
    /// The compacted topic that says how far each buffer is delivered; of use with exactly-once.
    pub watermark_topic: String,
    /// What time records bear.
    pub timestamp: Timestamp,
    /// A batch waits so long for company.
    pub linger: Duration,
    /// Of what goes to Kafka.
    pub compression: Codec,
    /// What travels as headers, and how it is called.
    pub headers: HeaderNames,
    /// Kafka topics that sensors may make through templates.
    pub max_topics: usize,
    /// The largest record that a packet of the largest size can become, in bytes.
    pub largest_record_bytes: u64,
    /// `[kafka.options]`, checked against librdkafka's own list; values may be secrets.
    pub options: BTreeMap<String, Secret>,
}

/// Compression of what goes to Kafka: not every client reads each of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Codec {
    /// Read by all.
    Gzip,
    /// The least work.
    Lz4,
    /// Like lz4.
    Snappy,
    /// The fewest bytes.
    Zstd,
    /// As it is.
    None,
}

impl Codec {
    /// As librdkafka calls it.
    #[must_use]
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Lz4 => "lz4",
            Self::Snappy => "snappy",
            Self::Zstd => "zstd",
            Self::None => "none",
        }
    }

    /// As librdkafka counts it, where its own choice is not the best for readings.
    #[must_use]
    pub(crate) fn level(self) -> Option<&'static str> {
        match self {
            // Measured with 100-byte readings: 10.1 bytes each in the log, against 10.8 with librdkafka's choice (3), and
            // faster.
            Self::Zstd => Some("1"),
            // Measured likewise: 24 bytes each on the wire and 1 to 4 µs, against 22 and 5 to 6 µs with the usual 6.
            Self::Gzip => Some("3"),
            Self::Lz4 | Self::Snappy | Self::None => None,
        }
    }
}

/// What of a message travels as headers besides its id and topic, and under which names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HeaderNames {
    /// What only some messages have.
    Tidegate,
    /// Also QoS, DUP, client id and user.
    All,
    /// As Confluent's MQTT source connector calls them.
    Confluent,
}

/// What time records bear; the other stands in a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Timestamp {
    /// When the reading is sent: no retention is shorter than its wait in the buffer.
    Delivery,
    /// When it arrived at the gateway.
    Arrival,
}

/// Delivery guarantee of the Kafka hop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Delivery {
    /// Idempotent producer, acks=all.
    AtLeastOnce,
    /// A transaction a batch, and in it the watermark of this buffer.
    ExactlyOnce,
}
