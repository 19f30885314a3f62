//! The tables that bring readings in: `[[mqtt]]` and `[[listen]]`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use tokio_rustls::rustls::pki_types::ServerName;

use super::endpoint::host_port;
use super::files;
use super::problems::{Reported, quoted};
use super::reading::Section;
use super::secret::Secret;
use super::table::{Key, Table};
use super::unique::Unique;
use super::values::{
    Value, Words, address, choice, count, flag, keys, name, path, read_path, size, table, tables, text, whole_seconds,
};
use crate::event::Qos;
use crate::route::filter::Filter;

/// `[[mqtt]]` and `[[listen]]` tables, each. A link costs a task, a session and its part of the intake.
const MAX_LINKS: usize = 64;

/// Filters of one `[[mqtt]]`: they travel in one SUBSCRIBE packet.
const MAX_FILTERS: usize = 256;

/// MQTT counts sessions in four bytes of seconds.
const MAX_SESSION_SECONDS: u64 = u32::MAX as u64;

/// MQTT counts silence in two bytes of seconds; this is a little less.
const MAX_KEEPALIVE_SECONDS: u64 = 18 * 3600;

const fn packet_size() -> Value<u32> {
    size(1 << 10, 16 << 20, "a packet is held whole in memory")
}

const fn receive_maximum() -> Value<u16> {
    count(1, 65_535, "MQTT has two bytes for it")
}

table! {
    /// A broker to subscribe to, one table for each. There must be at least one [[mqtt]] or [[listen]].
    many("mqtt", MAX_LINKS) read as BrokerKeys, checked as Broker {
        /// Name of this broker in logs, metrics and the client id; no other [[mqtt]] or [[listen]] may have it.
        name: String = name().required("plant"),

        /// mqtt://host or mqtt://host:port, with port 1883 if none is given; mqtts:// is with TLS, and its port is 8883
        /// if none is given.
        url: Url = text().required("mqtt://localhost:1883").read_by(url),

        /// MQTT version; with "5" the agent falls back to "3.1.1" if the broker refuses 5.
        version: MqttVersion = choice().or("5"),

        /// The broker knows the session by this id, so it must not change, and no other client may use it.
        client_id: String = text().computed("tidegate-<agent id>-<name>", "tidegate-press-07-plant").read_by(client_id),

        /// User name, if the broker asks for one.
        username: Option<String> = text().absent("tidegate").read_by(username),

        /// File that holds the password and nothing else. $CREDENTIALS_DIRECTORY is where systemd puts what
        /// LoadCredential= names.
        password["password_file"]: Option<Secret> = path().absent("$CREDENTIALS_DIRECTORY/plant.pw").read_by(password),

        /// What to subscribe to: an MQTT filter ($share/group/filter too), and qos 0, 1 or 2 (default 1).
        subscribe: Vec<Subscription> = tables(SubscriptionKeys::TABLE)
            .required("[{ filter = \"sensors/#\", qos = 1 }]")
            .read_by(subscriptions),

        /// How long the broker keeps the session while the agent is away (MQTT 5; with 3.1.1 the broker decides). How
        /// much it keeps is in the broker's own settings: mosquitto drops what is beyond 1000 messages, unless it has
        /// the lines of mosquitto.conf.example.
        session_expiry: Duration = whole_seconds(
            1, MAX_SESSION_SECONDS, "without a session the broker forgets what comes while the agent is away",
        )
        .or("7d"),

        /// Longest silence before the agent sends a ping to the broker. A longer one needs less mobile data.
        keepalive: Duration = whole_seconds(5, MAX_KEEPALIVE_SECONDS, "MQTT has two bytes for the seconds").or("30s"),

        /// Largest packet that the agent takes; with MQTT 5 it tells the broker. Kafka takes records of 1 MiB if its
        /// topics are not set otherwise, and a record holds the MQTT topic as well.
        max_packet_bytes: u32 = packet_size().or("960KiB"),

        /// QoS 1 and 2 messages in flight; with MQTT 5 the agent tells the broker. If a commit could take more, a small
        /// number slows the broker down.
        receive_maximum: u16 = receive_maximum().or("1000"),

        /// How to reach it with `mqtts://`; `None` = without TLS.
        tls: Option<Tls> = keys(TlsKeys::TABLE),
    }
}

table! {
    /// The files are read anew at each connection.
    one("mqtt.tls") read as TlsKeys {
        /// For mqtts://: PEM file with the authorities that may have signed the broker's certificate. Without it those
        /// of the system are used. The agent reads all three files again at each connection.
        ca_file: Option<PathBuf> = path().absent("/etc/tidegate/ca.pem"),

        /// PEM file with this gateway's certificate, if the broker asks for one, followed by the intermediate
        /// certificates.
        cert_file: Option<PathBuf> = path().absent("/etc/tidegate/client.pem"),

        /// PEM file with its private key, not encrypted.
        key_file: Option<PathBuf> = path().absent("$CREDENTIALS_DIRECTORY/client.key"),
    }
}

table! {
    /// One filter.
    many("mqtt.subscribe", MAX_FILTERS) read as SubscriptionKeys {
        /// An MQTT topic filter.
        filter: String = text().required("sensors/#"),

        /// Asked for; the broker may grant less.
        qos: Qos = count::<u8>(0, 2, "").or("1").read_by(qos),
    }
}

table! {
    /// An address where sensors publish to Tidegate itself, without a broker: a PUBACK means that the reading is on disk.
    many("listen", MAX_LINKS) read as ListenerKeys, checked as Listener {
        /// Name of this address in logs and metrics; no other [[mqtt]] or [[listen]] may have it.
        name: String = name().required("floor"),

        /// IP address and port; 0.0.0.0 or [::] for all addresses of this machine.
        address: SocketAddr = address().required("127.0.0.1:1884"),

        /// The users that may publish, as mosquitto_passwd writes them. Without it nobody is asked for a password; then
        /// set anonymous, except on loopback.
        users_file: Option<PathBuf> = path().absent("/etc/tidegate/users"),

        /// true lets everybody publish who can reach the address.
        #[expect(dead_code, reason = "the operator's word, asked for when users_file is missing and never after")]
        anonymous: bool = flag().or("false"),

        /// Connections at the same time. When all are in use, a client of an address with few connections replaces one
        /// of the address with the most; if no address has more than others, the new client is refused.
        max_connections: usize = count(1, 10_000, "each needs an open file and a few KiB of memory").or("256"),

        /// Connections from one address (IPv6: one /64) at the same time, so that one host cannot take all. Sensors
        /// behind a router with NAT, and programs on this machine, count as one address: raise it for more of them.
        max_connections_per_address: usize = count(1, 10_000, "like max_connections").or("128"),

        /// Longest keepalive. A client that asks for more, or for none, gets this, so that dead connections end: after
        /// 1.5 times of it without a packet. MQTT 5 clients are told. MQTT 3.1.1 clients cannot be told: raise it if
        /// such clients are silent for longer.
        max_keepalive: Duration = whole_seconds(5, MAX_KEEPALIVE_SECONDS, "MQTT has two bytes for the seconds").or("10m"),

        /// Largest packet that the agent takes; with MQTT 5 it tells the clients. As for [[mqtt]], Kafka takes 1 MiB.
        max_packet_bytes: u32 = packet_size().or("960KiB"),

        /// QoS 1 and 2 messages in flight from one client; with MQTT 5 the agent tells the clients. It also takes those
        /// of clients that send more.
        receive_maximum: u16 = receive_maximum().or("100"),

        /// The answer to a SUBSCRIBE. The agent never sends messages to clients; but many devices subscribe to a
        /// command topic, and some of them stop when that is refused.
        subscriptions: bool = choice::<OnSubscribe>().or("accept").read_by(are_accepted),

        /// How long the agent keeps the session of a client that is away, and with it the packet ids that keep QoS 2
        /// exactly once.
        max_session_expiry: Duration = whole_seconds(1, MAX_SESSION_SECONDS, "MQTT has four bytes for the seconds").or("7d"),
    }
    later {
        "tls": "TLS comes in a later version",
    }
}

/// Where a broker is.
#[derive(Debug, Clone)]
pub(crate) struct Url {
    /// Host name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// For `mqtts://`: what the certificate must be made out to.
    pub server_name: Option<ServerName<'static>>,
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

impl Words for MqttVersion {
    const MEANINGS: &'static [(&'static str, Self)] = &[("5", Self::V5), ("3.1.1", Self::V311)];
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OnSubscribe {
    Accept,
    Refuse,
}

impl Words for OnSubscribe {
    const MEANINGS: &'static [(&'static str, Self)] = &[("accept", Self::Accept), ("refuse", Self::Refuse)];
}

fn are_accepted(section: &Section<'_, '_>, key: &Key) -> Result<bool, Reported> {
    section.choice(key, OnSubscribe::MEANINGS).map(|on| on == OnSubscribe::Accept)
}

fn qos(section: &Section<'_, '_>, key: &Key) -> Result<Qos, Reported> {
    section.count::<u8>(key).map(|level| Qos::from_level(level).unwrap_or(Qos::AtLeastOnce))
}

fn url(section: &Section<'_, '_>, key: &Key) -> Result<Url, Reported> {
    let text = section.text(key)?;
    read_url(&text).map_err(|why| section.problem(key.name, why))
}

/// The text itself never stands in a message: it may hold a password.
fn read_url(url: &str) -> Result<Url, String> {
    const PLAIN_PORT: u16 = 1883;
    const TLS_PORT: u16 = 8883;
    let Some((scheme, rest)) = url.split_once("://") else {
        return Err("the scheme is missing; write \"mqtt://host:port\" or \"mqtts://host:port\"".into());
    };
    let default_port = match scheme {
        "mqtt" => PLAIN_PORT,
        "mqtts" => TLS_PORT,
        "ws" => return Err("WebSocket comes in a later version; allowed: mqtt:// and mqtts://".into()),
        "wss" => return Err("TLS and WebSocket together come in a later version; allowed: mqtt:// and mqtts://".into()),
        _ => return Err("the scheme is not known; write \"mqtt://host:port\" or \"mqtts://host:port\"".into()),
    };
    if rest.contains('@') {
        return Err("user name and password do not belong in the URL; use username and password_file".into());
    }
    let (host, port) =
        host_port(rest, Some(default_port)).map_err(|why| format!("{why}; write \"{scheme}://host:port\""))?;
    let server_name = if scheme == "mqtts" {
        let name = ServerName::try_from(host.clone());
        Some(name.map_err(|_bad| "no certificate can be for such a host name".to_owned())?)
    } else {
        None
    };
    Ok(Url { host, port, server_name })
}

/// Long enough for every default; brokers must take 23 bytes and all known ones take these.
const MAX_OWN_CLIENT_ID_BYTES: usize = 256;

/// MQTT writes the length in two bytes.
const MAX_USERNAME_BYTES: usize = 65_535;

/// Empty when it is not there: whoever knows the name of the agent makes it.
fn client_id(section: &Section<'_, '_>, key: &Key) -> Result<String, Reported> {
    Ok(mqtt_text(section, key, MAX_OWN_CLIENT_ID_BYTES)?.unwrap_or_default())
}

fn username(section: &Section<'_, '_>, key: &Key) -> Result<Option<String>, Reported> {
    mqtt_text(section, key, MAX_USERNAME_BYTES)
}

fn mqtt_text(section: &Section<'_, '_>, key: &Key, most: usize) -> Result<Option<String>, Reported> {
    let Some(text) = section.optional_text(key)? else { return Ok(None) };
    if text.len() > most {
        return Err(section.problem(key.name, format!("found {} bytes; allowed: at most {most}", text.len())));
    }
    if text.chars().any(char::is_control) {
        return Err(section.problem(key.name, format!("found {}; control characters are not allowed", quoted(&text))));
    }
    Ok(Some(text))
}

fn password(section: &Section<'_, '_>, key: &Key) -> Result<Option<Secret>, Reported> {
    let Some(path) = read_path(section, key)? else { return Ok(None) };
    if !section.has("username") {
        return Err(section.problem(key.name, "a password needs a user name; set username too".into()));
    }
    let contents = match files::read_secret(&path) {
        Ok(contents) => contents,
        Err(why) => return section.file(key.name, why).map(|()| None),
    };
    if let Some(mode) = contents.open_to_all {
        section.remark(key.name, files::too_open(&path, mode));
    }
    Ok(Some(contents.secret))
}

fn subscriptions(broker: &Section<'_, '_>, key: &Key) -> Result<Vec<Subscription>, Reported> {
    let mut known: Vec<(String, Filter)> = Vec::new();
    let mut filters = Unique::default();
    let mut read = Vec::new();
    for table in broker.tables(key, SubscriptionKeys::TABLE)? {
        let SubscriptionKeys { filter, qos } = SubscriptionKeys::read(&table);
        let filter = filter.and_then(|filter| {
            let checked = check_subscription(&filter)
                .map_err(|why| table.problem("filter", format!("found {}: {why}", quoted(&filter))))?;
            filters.take(filter.clone(), &table, "filter", &format!("the filter {}", quoted(&filter)))?;
            // A shared subscription is one of its own for the broker.
            if !filter.starts_with("$share/") {
                remark_overlap(broker, &known, &filter, &checked);
                known.push((filter.clone(), checked));
            }
            Ok(filter)
        });
        read.push((filter, qos));
    }
    read.into_iter().map(|(filter, qos)| Ok(Subscription { filter: filter?, qos: qos? })).collect()
}

fn remark_overlap(broker: &Section<'_, '_>, known: &[(String, Filter)], text: &str, filter: &Filter) {
    if let Some((other, _)) = known.iter().find(|(_, other)| other.covers(filter) || filter.covers(other)) {
        let what = format!(
            "{} and {} overlap, and some brokers then send a reading twice; make one filter of them",
            quoted(other),
            quoted(text)
        );
        broker.remark("subscribe", what);
    }
}

/// The filter behind `$share/group/`, or the text as it is.
pub(crate) fn check_subscription(text: &str) -> Result<Filter, String> {
    let plain = match text.strip_prefix("$share/") {
        None if text == "$share" => return Err("write $share/group/filter".into()),
        None => text,
        Some(shared) => {
            let (group, filter) = shared.split_once('/').ok_or("write $share/group/filter")?;
            if group.is_empty() || group.contains(['+', '#']) {
                return Err("the group in $share/group/filter must not be empty, and \"+\" and \"#\" are not allowed \
                     in it"
                    .into());
            }
            filter
        }
    };
    let filter = Filter::parse(plain)?;
    if filter.names().next().is_some() {
        return Err("names are allowed only in \"from\" of a [[route]]; write \"+\" here".into());
    }
    Ok(filter)
}
