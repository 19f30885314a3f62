//! Every key there is: its kind, its default, and why one would touch it.
//!
//! The one source for what is allowed, for the defaults, and for the text of `config/tidegate.toml`, which a test
//! compares with what this table renders. A limit stands here with its reason and nowhere else.

use std::time::Duration;

use super::route_tables::{REDIRECT, ROUTE};
use super::units::{show_size, show_time};

/// A TOML table.
#[derive(Debug)]
pub(super) struct Table {
    /// As in the header, with the way to it: `kafka`, `mqtt.subscribe`.
    pub(super) name: &'static str,
    /// `[[name]]`, may stand many times.
    pub(super) many: bool,
    #[cfg_attr(not(test), expect(dead_code, reason = "text of config/tidegate.toml, which a test renders"))]
    pub(super) why: &'static str,
    pub(super) keys: &'static [Key],
}

/// One key.
#[derive(Debug)]
pub(super) struct Key {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) default: Default,
    pub(super) why: &'static str,
}

/// What happens when the key is not there.
#[derive(Debug)]
pub(super) enum Default {
    /// It must be there; for example so.
    Required(&'static str),
    /// This value, as TOML.
    Is(&'static str),
    /// A value that depends on the machine: in words, and for example so.
    Computed(
        #[cfg_attr(not(test), expect(dead_code, reason = "text of config/tidegate.toml, which a test renders"))]
        &'static str,
        &'static str,
    ),
    /// Nothing; for example so.
    Absent(&'static str),
}

/// What a value may be.
#[derive(Debug)]
pub(super) enum Kind {
    /// Short text in letters that are safe everywhere: file names, client ids, metric labels.
    Name,
    /// Any text; with `true` also the empty one.
    Text(bool),
    Flag,
    /// One of these; those of the second list are known and come in a later version.
    Choice(&'static [&'static str], &'static [&'static str]),
    Count {
        min: u64,
        max: u64,
        reason: &'static str,
    },
    Size {
        min: u64,
        max: u64,
        reason: &'static str,
    },
    Time {
        min: Duration,
        max: Duration,
        /// MQTT counts them.
        whole_seconds: bool,
        reason: &'static str,
    },
    /// IP address and port; with `true` also "".
    Address(bool),
    /// A file.
    Path,
    Folder,
    /// A list of texts, at least one.
    List,
    /// A list of inline tables, at least one.
    Tables(&'static Table),
    /// Keys behind a dot, `tls.ca_file`.
    Keys(&'static Table),
    /// `[kafka.options]`
    Options,
    /// Known, and not in this version: why.
    Later(&'static str),
}

impl Table {
    pub(super) fn key(&self, name: &str) -> Option<&'static Key> {
        self.keys.iter().find(|key| key.name == name)
    }

    /// `[name]` or `[[name]]`
    pub(super) fn header(&self) -> String {
        if self.many { format!("[[{}]]", self.name) } else { format!("[{}]", self.name) }
    }
}

impl Key {
    /// A value for the documentation and for messages.
    pub(super) fn example(&self) -> &'static str {
        match self.default {
            Default::Required(example)
            | Default::Is(example)
            | Default::Computed(_, example)
            | Default::Absent(example) => example,
        }
    }
}

impl Kind {
    /// In words: what is allowed.
    pub(super) fn allowed(&self) -> String {
        match self {
            Self::Name => format!("1 to {MAX_NAME_CHARS} letters, digits, \".\", \"_\" and \"-\""),
            Self::Text(true) => "text".into(),
            Self::Text(false) => "text, not empty".into(),
            Self::Flag => "true or false".into(),
            Self::Choice(words, _) => one_of(words),
            Self::Count { min, max, reason } => limits("a number", &min.to_string(), &max.to_string(), reason),
            Self::Size { min, max, reason } => {
                limits("a size with its unit", &show_size(*min), &show_size(*max), reason)
            }
            Self::Time { min, max, whole_seconds, reason } => {
                let what =
                    if *whole_seconds { "a time in whole seconds with its unit" } else { "a time with its unit" };
                limits(what, &show_time(*min), &show_time(*max), reason)
            }
            Self::Address(false) => "an IP address with its port".into(),
            Self::Address(true) => "an IP address with its port, or \"\"".into(),
            Self::Folder => "an absolute path".into(),
            Self::Path => format!("an absolute path, or one that begins with \"{CREDENTIALS}/\""),
            Self::List => "a list of texts, at least one".into(),
            Self::Tables(table) => {
                let keys: Vec<String> = table.keys.iter().map(|key| key.name.to_owned()).collect();
                format!("a list of tables with {}, at least one", keys.join(" and "))
            }
            Self::Keys(table) => {
                let keys: Vec<&str> = table.keys.iter().map(|key| key.name).collect();
                format!("a table with {}", keys.join(", "))
            }
            Self::Options => "a table of texts".into(),
            Self::Later(why) => format!("nothing yet: {why}"),
        }
    }
}

fn one_of(words: &[&str]) -> String {
    let quoted: Vec<String> = words.iter().map(|word| format!("{word:?}")).collect();
    match quoted.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        _ => quoted.concat(),
    }
}

fn limits(what: &str, min: &str, max: &str, reason: &str) -> String {
    let reason = if reason.is_empty() { String::new() } else { format!(" ({reason})") };
    format!("{what}, {min} to {max}{reason}")
}

/// The folder that systemd makes for `LoadCredential=`, as a path in the configuration begins with it.
pub(super) const CREDENTIALS: &str = "$CREDENTIALS_DIRECTORY";

/// Two names and the word `tidegate` make a client id, and brokers log it.
pub(super) const MAX_NAME_CHARS: usize = 64;

/// `[[mqtt]]` and `[[listen]]` tables, each. A link costs a task, a session and its part of the intake.
pub(super) const MAX_LINKS: usize = 64;

/// Filters of one `[[mqtt]]`: they travel in one SUBSCRIBE packet.
pub(super) const MAX_FILTERS: usize = 256;

/// `[[route]]` tables: a new topic is looked up by walking over them.
pub(super) const MAX_ROUTES: usize = 1_000;

/// A packet is held in memory whole while it comes in, one for each connection.
const PACKET: Kind =
    Kind::Size { min: 1 << 10, max: 16 << 20, reason: "a packet is held whole in memory while it comes in" };

const RECEIVE_MAXIMUM: Kind = Kind::Count { min: 1, max: 65_535, reason: "two bytes in MQTT" };

const SESSION_SECONDS: Duration = Duration::from_secs(u32::MAX as u64);

pub(super) const AGENT: Table = Table {
    name: "agent",
    many: false,
    why: "This gateway.",
    keys: &[
        Key {
            name: "id",
            kind: Kind::Name,
            default: Default::Computed("the host name", "\"press-07\""),
            why: "Name of this gateway, one of its kind: client ids and logs carry it.",
        },
        Key {
            name: "data_dir",
            kind: Kind::Folder,
            default: Default::Computed("$STATE_DIRECTORY, which systemd sets, else as here", "\"/var/lib/tidegate\""),
            why: "Where the buffer lives. Local flash or disk, never a network share.",
        },
    ],
};

pub(super) const LOG: Table = Table {
    name: "log",
    many: false,
    why: "What the agent says about itself, on standard error or in the journal.",
    keys: &[
        Key {
            name: "level",
            kind: Kind::Text(false),
            default: Default::Is("\"info\""),
            why: "off, error, warn, info, debug or trace; single parts as in \"info,tidegate::ingest=debug\".",
        },
        Key {
            name: "format",
            kind: Kind::Choice(&["auto", "text", "json", "journald"], &[]),
            default: Default::Is("\"auto\""),
            why: "auto is journald when systemd has connected the agent to its journal, else text.",
        },
    ],
};

pub(super) const HTTP: Table = Table {
    name: "http",
    many: false,
    why: "Metrics and health, for those who may reach the address; there is no password on it.",
    keys: &[Key {
        name: "listen",
        kind: Kind::Address(true),
        default: Default::Is("\"127.0.0.1:9464\""),
        why: "Serves /metrics, /healthz, /readyz and /status; \"\" switches it off, and with it tidegate status.",
    }],
};

pub(super) const MQTT: Table = Table {
    name: "mqtt",
    many: true,
    why: "A broker to subscribe to; one table each. At least one [[mqtt]] or [[listen]].",
    keys: &[
        Key {
            name: "name",
            kind: Kind::Name,
            default: Default::Required("\"plant\""),
            why: "Its name in logs, metrics and the client id; no other [[mqtt]] or [[listen]] has it.",
        },
        Key {
            name: "url",
            kind: Kind::Text(false),
            default: Default::Required("\"mqtt://localhost:1883\""),
            why: "mqtt://host or mqtt://host:port; without a port it is 1883. mqtts:// is with TLS; without a port it is \
                  8883.",
        },
        Key {
            name: "version",
            kind: Kind::Choice(&["5", "3.1.1"], &[]),
            default: Default::Is("\"5\""),
            why: "MQTT version; \"5\" falls back to \"3.1.1\" when the broker refuses it.",
        },
        Key {
            name: "client_id",
            kind: Kind::Text(false),
            default: Default::Computed("tidegate-<agent id>-<name>", "\"tidegate-press-07-plant\""),
            why: "The broker knows the session by it, so it must not change and nobody else may use it.",
        },
        Key {
            name: "username",
            kind: Kind::Text(false),
            default: Default::Absent("\"tidegate\""),
            why: "User name, if the broker asks for one.",
        },
        Key {
            name: "password_file",
            kind: Kind::Path,
            default: Default::Absent("\"$CREDENTIALS_DIRECTORY/plant.pw\""),
            why: "File with the password and nothing else. $CREDENTIALS_DIRECTORY is where systemd puts what \
                  LoadCredential= names.",
        },
        Key {
            name: "subscribe",
            kind: Kind::Tables(&SUBSCRIBE),
            default: Default::Required("[{ filter = \"sensors/#\", qos = 1 }]"),
            why: "What to ask for: filter as MQTT writes it ($share/group/filter too), qos 0, 1 or 2 (default 1).",
        },
        Key {
            name: "session_expiry",
            kind: Kind::Time {
                min: Duration::from_secs(1),
                max: SESSION_SECONDS,
                whole_seconds: true,
                reason: "without a session the broker forgets what comes while the agent is away",
            },
            default: Default::Is("\"7d\""),
            why: "How long the broker keeps the session while the agent is away (MQTT 5; on 3.1.1 the broker decides). How \
                  much it keeps is for its own settings to say: mosquitto throws away what is beyond 1000 messages, unless \
                  it has the lines of mosquitto.conf.example.",
        },
        Key {
            name: "keepalive",
            kind: Kind::Time {
                min: Duration::from_secs(5),
                max: Duration::from_secs(18 * 3600),
                whole_seconds: true,
                reason: "two bytes of seconds in MQTT",
            },
            default: Default::Is("\"30s\""),
            why: "Longest silence before the agent asks whether the broker is there. Longer costs less mobile data.",
        },
        Key {
            name: "max_packet_bytes",
            kind: PACKET,
            default: Default::Is("\"960KiB\""),
            why: "Largest packet taken; the broker is told on MQTT 5. Kafka takes records of 1 MiB unless its topics say \
                  otherwise, and a record bears the MQTT topic besides.",
        },
        Key {
            name: "receive_maximum",
            kind: RECEIVE_MAXIMUM,
            default: Default::Is("1000"),
            why: "QoS 1 and 2 messages in flight; the broker is told on MQTT 5. Fewer than a commit takes slow it down.",
        },
        Key { name: "tls", kind: Kind::Keys(&TLS), default: Default::Absent(""), why: "" },
    ],
};

const TLS: Table = Table {
    name: "mqtt.tls",
    many: false,
    why: "",
    keys: &[
        Key {
            name: "ca_file",
            kind: Kind::Path,
            default: Default::Absent("\"/etc/tidegate/ca.pem\""),
            why: "For mqtts://: PEM file with the authorities that the broker's certificate may come from. Without it \
                  those of the system. All three files are read again at each connection.",
        },
        Key {
            name: "cert_file",
            kind: Kind::Path,
            default: Default::Absent("\"/etc/tidegate/client.pem\""),
            why: "Certificate of ours, if the broker asks for one, PEM; behind it those between it and its authority.",
        },
        Key {
            name: "key_file",
            kind: Kind::Path,
            default: Default::Absent("\"$CREDENTIALS_DIRECTORY/client.key\""),
            why: "Its private key, PEM, not encrypted.",
        },
    ],
};

pub(super) const SUBSCRIBE: Table = Table {
    name: "mqtt.subscribe",
    many: true,
    why: "",
    keys: &[
        Key {
            name: "filter",
            kind: Kind::Text(false),
            default: Default::Required("\"sensors/#\""),
            why: "An MQTT topic filter.",
        },
        Key {
            name: "qos",
            kind: Kind::Count { min: 0, max: 2, reason: "" },
            default: Default::Is("1"),
            why: "Asked for; the broker may grant less.",
        },
    ],
};

pub(super) const LISTEN: Table = Table {
    name: "listen",
    many: true,
    why: "An address where sensors publish straight to Tidegate, no broker between: their PUBACK means it is on disk.",
    keys: &[
        Key {
            name: "name",
            kind: Kind::Name,
            default: Default::Required("\"floor\""),
            why: "Its name in logs and metrics; no other [[mqtt]] or [[listen]] has it.",
        },
        Key {
            name: "address",
            kind: Kind::Address(false),
            default: Default::Required("\"127.0.0.1:1884\""),
            why: "IP address and port; 0.0.0.0 or [::] for all of this machine.",
        },
        Key {
            name: "users_file",
            kind: Kind::Path,
            default: Default::Absent("\"/etc/tidegate/users\""),
            why: "Who may publish, as mosquitto_passwd writes it. Without it nobody is asked, which must be said with \
                  anonymous, except on loopback.",
        },
        Key {
            name: "anonymous",
            kind: Kind::Flag,
            default: Default::Is("false"),
            why: "true lets everyone publish who can reach the address.",
        },
        Key {
            name: "max_connections",
            kind: Kind::Count { min: 1, max: 10_000, reason: "each is an open file and a few KiB of memory" },
            default: Default::Is("256"),
            why: "Connections at a time. When all are taken, a client of an address that has few gets the place of one of \
                  the address that has the most, if there is such a difference; else more are refused.",
        },
        Key {
            name: "max_connections_per_address",
            kind: Kind::Count { min: 1, max: 10_000, reason: "as max_connections" },
            default: Default::Is("128"),
            why: "The same of one address (IPv6: one /64), so that one host cannot take all. Sensors behind one router \
                  with NAT, and programs on this machine, count as one address: raise it for more of them.",
        },
        Key {
            name: "max_keepalive",
            kind: Kind::Time {
                min: Duration::from_secs(5),
                max: Duration::from_secs(18 * 3600),
                whole_seconds: true,
                reason: "two bytes of seconds in MQTT",
            },
            default: Default::Is("\"10m\""),
            why: "Longest keepalive granted; who asks for more, or for none, gets this, so that dead connections end: after \
                  one and a half times of it without a word. MQTT 5 clients are told. MQTT 3.1.1 clients cannot be: \
                  raise it if such a client is silent for longer and lives.",
        },
        Key {
            name: "max_packet_bytes",
            kind: PACKET,
            default: Default::Is("\"960KiB\""),
            why: "Largest packet taken; clients are told on MQTT 5. As for [[mqtt]], Kafka takes 1 MiB.",
        },
        Key {
            name: "receive_maximum",
            kind: RECEIVE_MAXIMUM,
            default: Default::Is("100"),
            why: "QoS 1 and 2 messages in flight from one client; clients are told on MQTT 5. Those that send more are taken.",
        },
        Key {
            name: "subscriptions",
            kind: Kind::Choice(&["accept", "refuse"], &[]),
            default: Default::Is("\"accept\""),
            why: "What a SUBSCRIBE gets. Nothing is ever sent to clients; but many devices subscribe to a command topic, and \
                  some of them do not go on when it is refused.",
        },
        Key {
            name: "max_session_expiry",
            kind: Kind::Time {
                min: Duration::from_secs(1),
                max: SESSION_SECONDS,
                whole_seconds: true,
                reason: "four bytes of seconds in MQTT",
            },
            default: Default::Is("\"7d\""),
            why: "How long a client that is away keeps its session, and with it the ids that keep QoS 2 exactly once.",
        },
        Key { name: "tls", kind: Kind::Later("TLS comes in a later version"), default: Default::Absent(""), why: "" },
    ],
};

pub(super) const BUFFER: Table = Table {
    name: "buffer",
    many: false,
    why: "The local store: what is acknowledged lies here until Kafka has it.",
    keys: &[
        Key {
            name: "max_bytes",
            kind: Kind::Size {
                min: 16 << 20,
                max: 16 << 40,
                reason: "SQLite's log alone wants some MiB, and its file ends at 16TiB",
            },
            default: Default::Is("\"1GiB\""),
            why: "Disk the buffer may use. Its log takes up to 16MiB beside it, and a full buffer needs room to move readings: up \
                  to 8MiB and a 32nd more.",
        },
        Key {
            name: "max_age",
            kind: Kind::Text(true),
            default: Default::Is("\"\""),
            why: "Readings older than this are dropped; \"\" keeps all. Other values come in a later version.",
        },
        Key {
            name: "when_full",
            kind: Kind::Choice(&["stop-reading"], &["drop-oldest", "drop-newest"]),
            default: Default::Is("\"stop-reading\""),
            why: "stop-reading takes no more from the network until there is room, so that broker and sensors wait.",
        },
        Key {
            name: "sync",
            kind: Kind::Choice(&["full", "normal"], &[]),
            default: Default::Is("\"full\""),
            why: "full: acknowledged means safe from a power cut. normal: a power cut may take the last seconds.",
        },
        Key {
            name: "commit_delay",
            kind: Kind::Time {
                min: Duration::ZERO,
                max: Duration::from_secs(10),
                whole_seconds: false,
                reason: "acknowledgements wait as long",
            },
            default: Default::Is("\"0ms\""),
            why: "A commit waits so long for company: fewer flash writes, later acknowledgements.",
        },
        Key {
            name: "compression",
            kind: Kind::Choice(&["zstd", "none"], &[]),
            default: Default::Is("\"zstd\""),
            why: "Of what lies in the buffer. none saves processor time and costs disk.",
        },
    ],
};

pub(super) const KAFKA: Table = Table {
    name: "kafka",
    many: false,
    why: "The central cluster.",
    keys: &[
        Key {
            name: "brokers",
            kind: Kind::List,
            default: Default::Required("[\"localhost:9092\"]"),
            why: "Some brokers of the cluster as host:port; the others are found through them.",
        },
        Key {
            name: "delivery",
            kind: Kind::Choice(&["exactly-once", "at-least-once"], &[]),
            default: Default::Is("\"exactly-once\""),
            why: "exactly-once: readers with isolation.level=read_committed see each reading once; Kafka transactions, \
                  about 900 bytes on the wire each. at-least-once: after a crash a reading may come twice, with the \
                  same tidegate-id; for links that are paid by the byte.",
        },
        Key {
            name: "watermark_topic",
            kind: Kind::Text(false),
            default: Default::Is("\"tidegate.watermarks\""),
            why: "For exactly-once: the compacted topic that says how far each buffer is delivered; tidegate kafka-setup \
                  says what it needs.",
        },
        Key {
            name: "timestamp",
            kind: Kind::Choice(&["delivery", "arrival"], &[]),
            default: Default::Is("\"delivery\""),
            why: "The time a record bears. delivery: when it is sent, so that Kafka keeps it for the whole retention of its \
                  topic. arrival: when the reading came; what has waited here for longer than the retention is deleted by \
                  Kafka as soon as it is there. When a reading came stands in tidegate-arrived in any case.",
        },
        Key {
            name: "linger",
            kind: Kind::Time {
                min: Duration::ZERO,
                max: Duration::from_secs(60),
                whole_seconds: false,
                reason: "readings are later by as much",
            },
            default: Default::Is("\"100ms\""),
            why: "A batch waits so long for company: fewer and larger requests.",
        },
        Key {
            name: "compression",
            kind: Kind::Choice(&["gzip", "lz4", "snappy", "zstd", "none"], &[]),
            default: Default::Is("\"gzip\""),
            why: "Of what goes to Kafka. Every reader can read gzip. zstd is smaller and costs the gateway less, and \
                  kafkajs, kafka-python and aiokafka cannot read it as they are installed; docs/kafka.md has a table.",
        },
        Key {
            name: "headers",
            kind: Kind::Choice(&["tidegate", "all", "confluent"], &[]),
            default: Default::Is("\"tidegate\""),
            why: "What goes along as record headers. tidegate: id, MQTT topic, retain, and the MQTT 5 properties that a \
                  message has. all: also QoS, DUP, and client id and user of a sensor at a [[listen]]. confluent: QoS, \
                  retain and DUP as Confluent's MQTT source connector calls them.",
        },
        Key {
            name: "max_topics",
            kind: Kind::Count { min: 1, max: 10_000, reason: "librdkafka keeps 4 to 8 KiB of memory for each" },
            default: Default::Is("1000"),
            why: "Kafka topics that sensors may make through names in [[route]] to, between two starts; those written \
                  out do not count. Readings for more of them wait, together, until this number is raised.",
        },
        Key {
            name: "options",
            kind: Kind::Options,
            default: Default::Absent(""),
            why: "Any property of librdkafka as text, for TLS, SASL and tuning, checked when the agent starts. Those \
                  that would break the promise (acks, message.timeout.ms …) are refused. sasl.password, \
                  ssl.key.password and ssl.keystore.password also come from a file: add _file to the name.",
        },
    ],
};

/// An example for `[kafka.options]`, which has no keys of its own.
#[cfg(test)]
pub(super) const OPTIONS_EXAMPLE: [(&str, &str); 4] = [
    ("security.protocol", "\"SASL_SSL\""),
    ("sasl.mechanism", "\"SCRAM-SHA-512\""),
    ("sasl.username", "\"tidegate\""),
    ("sasl.password_file", "\"$CREDENTIALS_DIRECTORY/kafka.pw\""),
];

/// In the order of the documentation.
pub(super) const TABLES: [&Table; 9] = [&AGENT, &LOG, &HTTP, &MQTT, &LISTEN, &BUFFER, &KAFKA, &ROUTE, &REDIRECT];
