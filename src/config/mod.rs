//! The configuration: TOML in, checked values out, all problems at once.
//!
//! [`crate::settings`] has each key and reads it. Here is what it takes the whole file for, or a stage: [`links`]
//! (`[[mqtt]]`, `[[listen]]`), [`kafka`] with [`options`], and [`routes`]. What comes out, [`Config`], is complete and
//! checked, and each stage takes its own part by value; nobody looks at TOML afterwards.
//!
//! * Reading goes on after a problem, so that one run names them all, each with line, column, key, what was found and
//!   what is allowed. Only TOML that cannot be parsed ends it early, for the rest would be guesswork.
//! * Whoever only checks, asks, or looks at the centre sees what it may and needs: [`inspect`], [`load_http`],
//!   [`load_central`].
//! * Nothing is ignored: an unknown key is a problem, and one that comes in a later version says so.
//! * Sizes and times carry their unit.
//! * A secret is never part of a message. Where one may stand by mistake (in a URL, in place of a path, in a Kafka
//!   property) the value is not repeated.
//! * Nothing here touches the network. Files are only read: secrets, and users files and
//!   certificates to see whether they can be used.

mod duplicates;
#[cfg(test)]
mod example;
mod kafka;
mod links;
#[cfg(test)]
mod manual;
mod options;
mod routes;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

use toml::de::DeTable;

pub(crate) use crate::settings::env::Env;
pub(crate) use crate::settings::problems::{Problem, Problems};

use crate::observe::log::check_level;
use crate::route::Routes;
use crate::settings::machine::{AgentKeys, BufferKeys, HttpKeys, LogKeys};
use crate::settings::problems::{Files, Notes, Reported, Taken, quoted};
use crate::settings::reading::Document;
use crate::settings::{Agent, Broker, Buffer, Http, Kafka, Listener, Log, TABLES};

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

/// No configuration is so large; whatever the file is, it is not one.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Reads and checks a configuration file.
///
/// # Errors
/// All problems, or that the file cannot be read.
pub(crate) fn load(path: &Path) -> Result<Config, Problems> {
    with_file(path, |text, file| parse(text, file, &Env::of_process()))
}

/// A configuration as far as whoever asks may see it. It is to be looked at, not to be run.
#[derive(Debug)]
pub(crate) struct Inspected {
    config: Config,
    /// What could not be looked at: credentials that systemd shows only to the service, files that only others may read.
    pub unseen: Vec<Problem>,
}

impl Inspected {
    /// Of that text, in a test.
    #[cfg(test)]
    pub(crate) fn of(text: &str, file: &str, env: &Env) -> Result<Self, Problems> {
        inspect_text(text, file, env)
    }

    /// Without the secrets that could not be seen.
    #[must_use]
    pub(crate) fn config(&self) -> &Config {
        &self.config
    }
}

/// Checks a configuration file that may be for somebody else: what this user may not see is no problem of it.
///
/// # Errors
/// All problems, or that the file cannot be read.
pub(crate) fn inspect(path: &Path) -> Result<Inspected, Problems> {
    let env = Env { outside_service: true, ..Env::of_process() };
    with_file(path, |text, file| inspect_text(text, file, &env))
}

fn inspect_text(text: &str, file: &str, env: &Env) -> Result<Inspected, Problems> {
    // In the service everything must be there.
    let files = if env.credentials_directory.is_some() { Files::Needed } else { Files::IfWeMay };
    let (config, Taken { remarks, unseen, .. }) = read_text(text, file, files, env, read)?;
    Ok(Inspected { config: Config { remarks, ..config }, unseen })
}

/// What the centre's tools need to know of a gateway.
#[derive(Debug)]
pub(crate) struct Central {
    /// `[kafka]`
    pub kafka: Kafka,
    /// `[[route]]`
    pub routes: Routes,
}

/// Only what concerns the centre: who looks at Kafka needs no broker's password.
///
/// # Errors
/// All problems of these tables, or that the file cannot be read.
pub(crate) fn load_central(path: &Path) -> Result<Central, Problems> {
    let env = Env { outside_service: true, ..Env::of_process() };
    with_file(path, |text, file| {
        let central = |document: &Document<'_, '_>| {
            // The centre is asked about topics and rights; how large records get is no question there.
            let kafka = kafka::kafka(document, 0);
            let routes = routes::routes(document, kafka.as_ref().ok().map(|kafka| kafka.watermark_topic.as_str()));
            Ok(Central { kafka: kafka?, routes: routes? })
        };
        read_text(text, file, Files::Needed, &env, central).map(|(central, _)| central)
    })
}

/// Only `[http]`, whatever else is wrong: who asks a running agent does not start one.
///
/// # Errors
/// All problems of this table, or that the file cannot be read.
pub(crate) fn load_http(path: &Path) -> Result<Http, Problems> {
    with_file(path, |text, file| {
        let (root, _) = DeTable::parse_recoverable(text);
        let notes = Notes::new(text, Files::IfWeMay);
        let document = Document { notes: &notes, root: root.get_ref(), env: &Env::of_process(), tables: &TABLES };
        let read = HttpKeys::read(&document.one(HttpKeys::TABLE)).complete();
        let problems = notes.taken().problems;
        read.map_err(|_reported| Problems::new(file, problems))
    })
}

fn with_file<T>(path: &Path, use_it: impl FnOnce(&str, &str) -> Result<T, Problems>) -> Result<T, Problems> {
    let file = path.display().to_string();
    let text = read_file(path).map_err(|why| Problems::of_file(&file, why))?;
    use_it(&text, &file)
}

/// Checks the text of a configuration. `file` is for the messages.
///
/// # Errors
/// All problems.
pub(crate) fn parse(text: &str, file: &str, env: &Env) -> Result<Config, Problems> {
    let (config, Taken { remarks, .. }) = read_text(text, file, Files::Needed, env, read)?;
    Ok(Config { remarks, ..config })
}

fn read_text<T>(
    text: &str,
    file: &str,
    files: Files,
    env: &Env,
    read: impl FnOnce(&Document<'_, '_>) -> Result<T, Reported>,
) -> Result<(T, Taken), Problems> {
    let (root, errors) = DeTable::parse_recoverable(text);
    let notes = Notes::new(text, files);
    let document = Document { notes: &notes, root: root.get_ref(), env, tables: &TABLES };
    let read = note_syntax(&notes, &document, &errors).and_then(|()| read(&document));
    let taken = notes.taken();
    match read {
        Ok(read) if taken.problems.is_empty() => Ok((read, taken)),
        Ok(_) | Err(_) => Err(Problems::new(file, taken.problems)),
    }
}

fn read(document: &Document<'_, '_>) -> Result<Config, Reported> {
    document.refuse_unknown();
    let agent = AgentKeys::read(&document.one(AgentKeys::TABLE)).complete();
    let log = log(document);
    let http = HttpKeys::read(&document.one(HttpKeys::TABLE)).complete();
    let agent_id = agent.as_ref().ok().map(|agent| &*agent.id);
    let links = links::links(document, agent_id, http.as_ref().ok());
    let packet = links.as_ref().map_or(0, |(mqtt, listen)| {
        mqtt.iter().map(|m| m.max_packet_bytes).chain(listen.iter().map(|l| l.max_packet_bytes)).max().unwrap_or(0)
    });
    let largest = kafka::largest_record_bytes(packet, routes::any_makes_json(document));
    let kafka = kafka::kafka(document, largest);
    let linger = kafka.as_ref().map_or(Duration::ZERO, |kafka| kafka.linger);
    let buffer = BufferKeys::read(&document.one(BufferKeys::TABLE)).complete(linger);
    let watermark_topic = kafka.as_ref().ok().map(|kafka| kafka.watermark_topic.as_str());
    let routes = routes::routes(document, watermark_topic);
    let (mqtt, listen) = links?;
    if let Ok(routes) = &routes {
        links::remark_unrouted(document, routes)?;
        routes::remark_unknown_senders(document, routes, &listen)?;
    }
    Ok(Config {
        agent: agent?,
        log: log?,
        http: http?,
        mqtt,
        listen,
        buffer: buffer?,
        kafka: kafka?,
        routes: routes?,
        remarks: Vec::new(),
    })
}

fn log(document: &Document<'_, '_>) -> Result<Log, Reported> {
    let section = document.one(LogKeys::TABLE);
    let mut log = LogKeys::read(&section);
    log.level = log.level.and_then(|level| match check_level(&level) {
        Ok(()) => Ok(level),
        Err(why) => Err(section.problem("level", format!("found {}: {why}", quoted(&level)))),
    });
    log.complete()
}

/// Of each line the first error: the parser stumbles on over the rest of it. Only the description is taken; the long
/// form repeats the line, which may hold a secret. A key that stands twice is no reason to stop: the rest was understood.
fn note_syntax(notes: &Notes<'_>, document: &Document<'_, '_>, errors: &[toml::de::Error]) -> Result<(), Reported> {
    let mut lines = BTreeSet::new();
    let mut outcome = Ok(());
    for error in errors {
        let span = error.span().unwrap_or(0..0);
        if error.message() == duplicates::MESSAGE {
            duplicates::note(notes, document.root, &span);
            continue;
        }
        if lines.insert(notes.line(&span)) {
            outcome = Err(notes.problem(&span, "", format!("not TOML: {}", error.message())));
        }
    }
    outcome
}

fn read_file(path: &Path) -> Result<String, String> {
    let remedy = "give the path with --config, or begin with the example config/tidegate.toml";
    let cannot = |error: std::io::Error| format!("cannot be read: {error}; {remedy}");
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(cannot)?;
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(cannot)?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > MAX_FILE_BYTES {
        return Err(format!("the file has more than {MAX_FILE_BYTES} bytes: it is no configuration of Tidegate"));
    }
    String::from_utf8(bytes).map_err(|error| {
        let good = error.utf8_error().valid_up_to();
        let before = error.as_bytes().iter().take(good);
        let line = before.filter(|byte| **byte == b'\n').count() + 1;
        format!("the file is not UTF-8 text: line {line} has a bad byte")
    })
}
