//! What is right only together, or as a stage sees it, in `[[mqtt]]` and `[[listen]]`.

use std::net::SocketAddr;
use std::path::PathBuf;

use crate::ingest::broker;
use crate::ingest::listener;
use crate::route::Routes;
use crate::settings::files;
use crate::settings::links::{BrokerKeys, ListenerKeys, SubscriptionKeys, TlsKeys, Url, check_subscription};
use crate::settings::problems::{Reported, Unusable, quoted};
use crate::settings::reading::{Document, Section};
use crate::settings::unique::Unique;
use crate::settings::{Broker, Http, Identity, Listener, Tls};

/// Of all links.
#[derive(Default)]
struct Given {
    names: Unique<String>,
    /// Host, port and client id.
    sessions: Unique<(String, u16, String)>,
    addresses: Unique<SocketAddr>,
}

/// `[[mqtt]]` and `[[listen]]` together: at least one, and no name, session or address twice.
pub(super) fn links(
    document: &Document<'_, '_>,
    agent_id: Option<&str>,
    http: Option<&Http>,
) -> Result<(Vec<Broker>, Vec<Listener>), Reported> {
    let brokers = document.many(BrokerKeys::TABLE);
    let listeners = document.many(ListenerKeys::TABLE);
    let mut given = Given::default();
    if let Some(address) = http.and_then(|http| http.listen) {
        given.addresses.reserve(address, "[http] listen");
    }
    let brokers = brokers.and_then(|sections| {
        let read: Vec<_> = sections.iter().map(|section| read_broker(section, agent_id, &mut given)).collect();
        read.into_iter().collect::<Result<Vec<_>, _>>()
    });
    let listeners = listeners.and_then(|sections| {
        let read: Vec<_> = sections.iter().map(|section| read_listener(section, &mut given)).collect();
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
    for broker in document.many(BrokerKeys::TABLE)? {
        for table in broker.tables(&BrokerKeys::subscribe.key, SubscriptionKeys::TABLE)? {
            let text = SubscriptionKeys::read(&table).filter?;
            if check_subscription(&text).is_ok_and(|filter| !routes.meets(&filter)) {
                let what =
                    format!("no [[route]] matches anything of {}: its readings become dead letters", quoted(&text));
                table.remark("filter", what);
            }
        }
    }
    Ok(())
}

fn read_broker(section: &Section<'_, '_>, agent_id: Option<&str>, given: &mut Given) -> Result<Broker, Reported> {
    let mut broker = BrokerKeys::read(section);
    broker.name = broker.name.and_then(|name| unique_name(section, name, given));
    broker.tls = tls(section, broker.url.as_ref().ok());
    broker.client_id = client_id(section, &broker, agent_id, given);
    broker.complete()
}

/// The one that is set, or made of the names; no other session at this broker has it.
fn client_id(
    section: &Section<'_, '_>,
    broker: &BrokerKeys,
    agent_id: Option<&str>,
    given: &mut Given,
) -> Result<String, Reported> {
    let set = broker.client_id.clone()?;
    let (Ok(name), Ok(url)) = (&broker.name, &broker.url) else { return Ok(set) };
    let (id, key) = if set.is_empty() {
        (format!("tidegate-{}-{name}", agent_id.unwrap_or_default()), "name")
    } else {
        (set, "client_id")
    };
    let what = format!("the client id {} at this broker", quoted(&id));
    given.sessions.take((url.host.clone(), url.port, id.clone()), section, key, &what)?;
    Ok(id)
}

fn unique_name(section: &Section<'_, '_>, name: String, given: &mut Given) -> Result<String, Reported> {
    given.names.take(name.clone(), section, "name", &format!("the name {}", quoted(&name)))?;
    Ok(name)
}

/// `tls.*`, checked with its files. `url` is missing when it could not be read.
fn tls(section: &Section<'_, '_>, url: Option<&Url>) -> Result<Option<Tls>, Reported> {
    let keys = section.keys(&BrokerKeys::tls.key, TlsKeys::TABLE)?;
    let TlsKeys { ca_file, cert_file, key_file } = TlsKeys::read(&keys);
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
            return Err(section.problem("tls", "is only for a url with mqtts://, and this url is without TLS".into()));
        }
        return Ok(None);
    };
    let tls = Tls { server_name, ca_file, identity };
    if hidden(&keys, &tls)? {
        return Ok(Some(tls));
    }
    match broker::check_tls(&tls) {
        Ok(oddities) => oddities.into_iter().for_each(|(key, what)| keys.remark(key, what)),
        Err(broker::TlsConfigError::File { key, what }) => return Err(keys.problem(key, what)),
        Err(other @ (broker::TlsConfigError::NoBundle(_) | broker::TlsConfigError::Library(_))) => {
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

fn read_listener(section: &Section<'_, '_>, given: &mut Given) -> Result<Listener, Reported> {
    let mut listener = ListenerKeys::read(section);
    listener.name = listener.name.and_then(|name| unique_name(section, name, given));
    listener.address = listener.address.and_then(|address| {
        // Port 0 lets the system choose, so two of them do not meet.
        if address.port() != 0 {
            given.addresses.take(address, section, "address", &format!("the address {address}"))?;
        }
        Ok(address)
    });
    listener.users_file = listener.users_file.and_then(|path| users_file(section, path));
    let access = check_access(section, &listener);
    let listener = listener.complete()?;
    access.map(|()| listener)
}

/// The file is one that can be used.
fn users_file(section: &Section<'_, '_>, path: Option<PathBuf>) -> Result<Option<PathBuf>, Reported> {
    const KEY: &str = ListenerKeys::users_file.key.name;
    let Some(path) = path else {
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
fn check_access(section: &Section<'_, '_>, listener: &ListenerKeys) -> Result<(), Reported> {
    let anonymous = listener.anonymous?;
    let users_file = listener.users_file.as_ref().map_or(true, Option::is_some);
    if anonymous && section.has("users_file") {
        let what = "users_file asks every client for a password, anonymous = true asks none; keep one of them".into();
        return Err(section.problem("anonymous", what));
    }
    match listener.address {
        Ok(address) if !anonymous && !users_file && !address.ip().is_loopback() => Err(section.problem(
            "address",
            format!(
                "everybody who reaches {address} could publish without a password; set users_file, or anonymous = \
                 true if that is meant"
            ),
        )),
        _ => Ok(()),
    }
}
