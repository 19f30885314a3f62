//! The tables that bring readings in: `[[mqtt]]` and `[[listen]]`.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use tokio_rustls::rustls::pki_types::ServerName;

use super::endpoint::host_port;
use super::env::Env;
use super::files::{self, Unusable};
use super::problems::{Reported, quoted};
use super::reading::{Document, Section};
use super::schema::{LISTEN, MAX_FILTERS, MAX_LINKS, MQTT};
use super::secret::Secret;
use super::settings::{Broker, Http, Identity, Listener, MqttVersion, Subscription, Tls};
use crate::event::Qos;
use crate::ingest::broker;
use crate::ingest::listener;
use crate::route::Routes;
use crate::route::filter::Filter;

/// `[[mqtt]]` and `[[listen]]` together: at least one, and no name, session or address twice.
pub(super) fn links(
    document: &Document<'_, '_>,
    agent_id: Option<&str>,
    http: Option<&Http>,
    env: &Env,
) -> Result<(Vec<Broker>, Vec<Listener>), Reported> {
    let brokers = document.many(&MQTT, MAX_LINKS);
    let listeners = document.many(&LISTEN, MAX_LINKS);
    let mut names = Taken::default();
    let mut sessions = Taken::default();
    let mut addresses = Taken::default();
    if let Some(address) = http.and_then(|http| http.listen) {
        addresses.0.insert(address, "[http] listen".into());
    }
    let brokers = brokers.and_then(|sections| {
        let read: Vec<_> = sections.iter().map(|s| read_broker(s, agent_id, env, &mut names, &mut sessions)).collect();
        read.into_iter().collect::<Result<Vec<_>, _>>()
    });
    let listeners = listeners.and_then(|sections| {
        let read: Vec<_> = sections.iter().map(|s| listener(s, env, &mut names, &mut addresses)).collect();
        read.into_iter().collect::<Result<Vec<_>, _>>()
    });
    let (brokers, listeners) = (brokers?, listeners?);
    if brokers.is_empty() && listeners.is_empty() {
        let what = "no [[mqtt]] and no [[listen]]: nothing would come in; write at least one of them".into();
        return Err(document.missing("mqtt", what));
    }
    Ok((brokers, listeners))
}

/// A filter that is asked for and that no route takes anything of: its readings would all be dead letters.
pub(super) fn remark_unrouted(document: &Document<'_, '_>, routes: &Routes) -> Result<(), Reported> {
    for broker in document.many(&MQTT, MAX_LINKS)? {
        for table in broker.tables("subscribe", MAX_FILTERS)? {
            let text = table.text("filter")?;
            if check_subscription(&text).is_ok_and(|filter| !routes.meets(&filter)) {
                let what =
                    format!("no [[route]] takes anything of {}: its readings become dead letters", quoted(&text));
                table.remark("filter", what);
            }
        }
    }
    Ok(())
}

/// What has been given out, and where.
struct Taken<T>(HashMap<T, String>);

impl<T> Default for Taken<T> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<T: std::hash::Hash + Eq> Taken<T> {
    /// Takes it for this key; the words are for the second who wants it.
    fn take(&mut self, value: T, section: &Section<'_, '_>, key: &str, what: &str) -> Result<(), Reported> {
        let place = format!("line {}", section.line_of(key));
        match self.0.insert(value, place) {
            None => Ok(()),
            Some(first) => Err(section.problem(key, format!("{what} is taken already: {first}"))),
        }
    }
}

fn read_broker(
    section: &Section<'_, '_>,
    agent_id: Option<&str>,
    env: &Env,
    names: &mut Taken<String>,
    sessions: &mut Taken<(String, u16, String)>,
) -> Result<Broker, Reported> {
    section.refuse_unknown();
    let name = link_name(section, names);
    let url = section.text("url").and_then(|url| read_url(&url).map_err(|why| section.problem("url", why)));
    let tls = tls(section, url.as_ref().ok(), env);
    let version = section.choice("version", &[("5", MqttVersion::V5), ("3.1.1", MqttVersion::V311)]);
    let client_id = section.optional_text("client_id").and_then(|id| match id {
        Some(id) => check_mqtt_text(section, "client_id", &id, MAX_CLIENT_ID_BYTES).map(|()| Some(id)),
        None => Ok(None),
    });
    let username = section.optional_text("username").and_then(|name| match name {
        Some(name) => check_mqtt_text(section, "username", &name, MAX_USERNAME_BYTES).map(|()| Some(name)),
        None => Ok(None),
    });
    let password = password(section, env);
    let subscribe = section.tables("subscribe", MAX_FILTERS).and_then(|tables| subscriptions(section, &tables));
    let session_expiry = section.time("session_expiry");
    let keepalive = section.time("keepalive");
    let max_packet_bytes = section.size("max_packet_bytes");
    let receive_maximum = section.count("receive_maximum");

    let (name, Url { host, port, .. }, client_id) = (name?, url?, client_id?);
    let client_id = client_id.unwrap_or_else(|| format!("tidegate-{}-{name}", agent_id.unwrap_or_default()));
    let session = (host.clone(), port, client_id.clone());
    let what = format!("the client id {} at this broker", quoted(&client_id));
    sessions.take(session, section, if section.has("client_id") { "client_id" } else { "name" }, &what)?;
    Ok(Broker {
        name,
        host,
        port,
        tls: tls?,
        version: version?,
        client_id,
        username: username?,
        password: password?,
        subscribe: subscribe?,
        session_expiry: session_expiry?,
        keepalive: keepalive?,
        max_packet_bytes: max_packet_bytes?,
        receive_maximum: receive_maximum?,
    })
}

fn link_name(section: &Section<'_, '_>, names: &mut Taken<String>) -> Result<String, Reported> {
    let name = section.text("name")?;
    names.take(name.clone(), section, "name", &format!("the name {}", quoted(&name)))?;
    Ok(name)
}

/// Long enough for every default; brokers must take 23 bytes and all known ones take these.
const MAX_CLIENT_ID_BYTES: usize = 256;

/// MQTT writes the length in two bytes.
const MAX_USERNAME_BYTES: usize = 65_535;

fn check_mqtt_text(section: &Section<'_, '_>, key: &str, text: &str, most: usize) -> Result<(), Reported> {
    if text.len() > most {
        return Err(section.problem(key, format!("found {} bytes; allowed: at most {most}", text.len())));
    }
    if text.chars().any(char::is_control) {
        return Err(section.problem(key, format!("found {}; control characters are not allowed", quoted(text))));
    }
    Ok(())
}

/// Where a broker is.
struct Url {
    host: String,
    port: u16,
    /// For `mqtts://`: what the certificate must be made out to.
    server_name: Option<ServerName<'static>>,
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
        Some(name.map_err(|_bad| "no certificate can be made out to such a host name".to_owned())?)
    } else {
        None
    };
    Ok(Url { host, port, server_name })
}

/// `tls.*`, checked with its files. `url` is missing when it could not be read.
fn tls(section: &Section<'_, '_>, url: Option<&Url>, env: &Env) -> Result<Option<Tls>, Reported> {
    let keys = section.keys("tls")?;
    keys.refuse_unknown();
    let [ca_file, cert_file, key_file] = ["ca_file", "cert_file", "key_file"].map(|key| files::path(&keys, key, env));
    match (keys.has("cert_file"), keys.has("key_file")) {
        (true, false) => {
            return Err(keys.problem("cert_file", "a certificate needs its key; set tls.key_file too".into()));
        }
        (false, true) => {
            return Err(keys.problem("key_file", "a key needs its certificate; set tls.cert_file too".into()));
        }
        (true, true) | (false, false) => {}
    }
    let identity = cert_file?.zip(key_file?).map(|(cert_file, key_file)| Identity { cert_file, key_file });
    let ca_file = ca_file?;
    let Some(url) = url else { return Ok(None) };
    let Some(server_name) = url.server_name.clone() else {
        if section.has("tls") {
            return Err(section.problem("tls", "belongs to a url with mqtts://, and this one is without TLS".into()));
        }
        return Ok(None);
    };
    let tls = Tls { server_name, ca_file, identity };
    if hidden(&keys, &tls)? {
        return Ok(Some(tls));
    }
    match broker::check_tls(&tls) {
        Ok(oddities) => oddities.into_iter().for_each(|(key, what)| keys.remark(key, what)),
        Err(broker::Unusable::File { key, what }) => return Err(keys.problem(key, what)),
        Err(other @ (broker::Unusable::NoBundle(_) | broker::Unusable::Library(_))) => {
            return Err(section.problem("url", other.to_string()));
        }
    }
    if let Some(Identity { key_file, .. }) = &tls.identity
        && let Some(mode) = files::open_to_all(key_file)
    {
        keys.remark("key_file", files::too_open(key_file, mode));
    }
    Ok(Some(tls))
}

/// Is one of the files not for us to look at? It is noted then.
fn hidden(keys: &Section<'_, '_>, tls: &Tls) -> Result<bool, Reported> {
    let identity = tls.identity.as_ref();
    let files = [
        ("ca_file", tls.ca_file.as_ref()),
        ("cert_file", identity.map(|identity| &identity.cert_file)),
        ("key_file", identity.map(|identity| &identity.key_file)),
    ];
    let mut hidden = false;
    for (key, path) in files {
        // What is wrong with it otherwise, who reads it says better.
        if let Some(Err(why @ Unusable::Hidden(_))) = path.map(|path| files::check_readable(path)) {
            keys.file(key, why)?;
            hidden = true;
        }
    }
    Ok(hidden)
}

fn password(section: &Section<'_, '_>, env: &Env) -> Result<Option<Secret>, Reported> {
    const KEY: &str = "password_file";
    let Some(path) = files::path(section, KEY, env)? else { return Ok(None) };
    if !section.has("username") {
        return Err(section.problem(KEY, "a password needs a user name; set username too".into()));
    }
    let contents = match files::read_secret(&path) {
        Ok(contents) => contents,
        Err(why) => return section.file(KEY, why).map(|()| None),
    };
    if let Some(mode) = contents.open_to_all {
        section.remark(KEY, files::too_open(&path, mode));
    }
    Ok(Some(contents.secret))
}

fn subscriptions(broker: &Section<'_, '_>, tables: &[Section<'_, '_>]) -> Result<Vec<Subscription>, Reported> {
    let mut known: Vec<(String, Filter)> = Vec::new();
    let mut taken = Taken::default();
    let mut read = Vec::new();
    for table in tables {
        table.refuse_unknown();
        let qos = table.count::<u8>("qos").map(Qos::from_level);
        let filter = table.text("filter").and_then(|filter| {
            let checked = check_subscription(&filter)
                .map_err(|why| table.problem("filter", format!("found {}: {why}", quoted(&filter))))?;
            taken.take(filter.clone(), table, "filter", &format!("the filter {}", quoted(&filter)))?;
            // A shared subscription is one of its own for the broker.
            if !filter.starts_with("$share/") {
                remark_overlap(broker, &known, &filter, &checked);
                known.push((filter.clone(), checked));
            }
            Ok(filter)
        });
        read.push((filter, qos));
    }
    read.into_iter()
        .map(|(filter, qos)| Ok(Subscription { filter: filter?, qos: qos?.unwrap_or(Qos::AtLeastOnce) }))
        .collect()
}

fn remark_overlap(broker: &Section<'_, '_>, known: &[(String, Filter)], text: &str, filter: &Filter) {
    if let Some((other, _)) = known.iter().find(|(_, other)| other.covers(filter) || filter.covers(other)) {
        let what = format!("{} and {} overlap: some brokers then send a reading twice", quoted(other), quoted(text));
        broker.remark("subscribe", what);
    }
}

/// The filter behind `$share/group/`, or the text as it is.
fn check_subscription(text: &str) -> Result<Filter, String> {
    let plain = match text.strip_prefix("$share/") {
        None if text == "$share" => return Err("write $share/group/filter".into()),
        None => text,
        Some(shared) => {
            let (group, filter) = shared.split_once('/').ok_or("write $share/group/filter")?;
            if group.is_empty() || group.contains(['+', '#']) {
                return Err("the group in $share/group/filter is not empty and holds no \"+\" or \"#\"".into());
            }
            filter
        }
    };
    let filter = Filter::parse(plain)?;
    if filter.names().next().is_some() {
        return Err("names belong in \"from\" of a [[route]]; write \"+\" here".into());
    }
    Ok(filter)
}

fn listener(
    section: &Section<'_, '_>,
    env: &Env,
    names: &mut Taken<String>,
    addresses: &mut Taken<SocketAddr>,
) -> Result<Listener, Reported> {
    section.refuse_unknown();
    let name = link_name(section, names);
    let address = section.address("address").and_then(|address| {
        let address = address.ok_or_else(|| section.not_there("address"))?;
        // Port 0 lets the system choose, so two of them do not meet.
        if address.port() != 0 {
            addresses.take(address, section, "address", &format!("the address {address}"))?;
        }
        Ok(address)
    });
    let users_file = users_file(section, env);
    let anonymous = section.flag("anonymous");
    let access = check_access(section, address.as_ref().ok(), users_file.as_ref().ok(), anonymous);
    let max_connections = section.count("max_connections");
    let max_connections_per_address = section.count("max_connections_per_address");
    let max_keepalive = section.time("max_keepalive");
    let max_packet_bytes = section.size("max_packet_bytes");
    let receive_maximum = section.count("receive_maximum");
    let subscriptions = section.choice("subscriptions", &[("accept", true), ("refuse", false)]);
    let max_session_expiry = section.time("max_session_expiry");
    let () = access?;
    Ok(Listener {
        name: name?,
        address: address?,
        users_file: users_file?,
        max_connections: max_connections?,
        max_connections_per_address: max_connections_per_address?,
        max_keepalive: max_keepalive?,
        max_packet_bytes: max_packet_bytes?,
        receive_maximum: receive_maximum?,
        subscriptions: subscriptions?,
        max_session_expiry: max_session_expiry?,
    })
}

fn users_file(section: &Section<'_, '_>, env: &Env) -> Result<Option<PathBuf>, Reported> {
    const KEY: &str = "users_file";
    let Some(path) = files::path(section, KEY, env)? else {
        // There is one, and it is not for us to see.
        return Ok(section.has(KEY).then(PathBuf::new));
    };
    match files::check_readable(&path) {
        Ok(()) => listener::check_users_file(&path).map_err(|error| section.problem(KEY, error.to_string()))?,
        Err(why) => section.file(KEY, why)?,
    }
    Ok(Some(path))
}

/// Nobody listens for everybody by accident.
fn check_access(
    section: &Section<'_, '_>,
    address: Option<&SocketAddr>,
    users_file: Option<&Option<PathBuf>>,
    anonymous: Result<bool, Reported>,
) -> Result<(), Reported> {
    let (anonymous, users_file) = (anonymous?, users_file.is_none_or(Option::is_some));
    if anonymous && section.has("users_file") {
        let what = "users_file asks everybody, anonymous = true asks nobody; keep one of them".into();
        return Err(section.problem("anonymous", what));
    }
    match address {
        Some(address) if !anonymous && !users_file && !address.ip().is_loopback() => Err(section.problem(
            "address",
            format!(
                "{address} can be reached from outside and nobody is asked for a password; set users_file, or \
                 anonymous = true if everybody may publish"
            ),
        )),
        _ => Ok(()),
    }
}
