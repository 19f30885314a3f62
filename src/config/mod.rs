//! The configuration: TOML in, checked values out, all problems at once.
//!
//! [`schema`] lists every key with its kind, limits, default and reason. [`reading`] walks a table by that list and
//! turns single values into checked ones. Above them one file for each part of the configuration knows what belongs
//! together: [`local`] (`[agent]`, `[log]`, `[http]`, `[buffer]`), [`links`] (`[[mqtt]]`, `[[listen]]`), [`kafka`] with
//! [`options`], and [`routes`]. What comes out, [`Config`], is complete and checked, and each stage takes its own part
//! by value; nobody looks at TOML afterwards.
//!
//! * Reading goes on after a problem, so that one run names them all, each with line, column, key, what was found and
//!   what is allowed. Only TOML that cannot be parsed ends it early, for the rest would be guesswork.
//! * Nothing is ignored: an unknown key is a problem, and one that comes in a later version says so.
//! * Sizes and times carry their unit.
//! * A secret is never part of a message. Where one may stand by mistake (in a URL, in place of a path, in a Kafka
//!   property) the value is not repeated.
//! * Nothing here touches the network. Files are only read: secrets, and users files and
//!   certificates to see whether they can be used.

mod endpoint;
mod env;
#[cfg(test)]
mod example;
mod files;
mod kafka;
mod links;
mod local;
#[cfg(test)]
mod manual;
mod options;
mod problems;
mod reading;
mod routes;
mod schema;
mod secret;
mod settings;
#[cfg(test)]
mod tests;
mod units;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use toml::de::DeTable;

pub use env::Env;
pub use problems::{Problem, Problems};
pub use secret::Secret;
pub use settings::{
    Agent, Broker, Buffer, Compression, Config, Delivery, Http, Identity, Kafka, Listener, Log, LogFormat, MqttVersion,
    Subscription, SyncMode, Timestamp, Tls, WhenFull,
};

use problems::{Notes, Reported};
use reading::Document;

/// No configuration is so large; whatever the file is, it is not one.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Reads and checks a configuration file.
///
/// # Errors
/// All problems, or that the file cannot be read.
pub fn load(path: &Path) -> Result<Config, Problems> {
    let file = path.display().to_string();
    let text = read_file(path).map_err(|why| Problems::of_file(&file, why))?;
    parse(&text, &file, &Env::of_process())
}

/// Checks the text of a configuration. `file` is for the messages.
///
/// # Errors
/// All problems.
pub fn parse(text: &str, file: &str, env: &Env) -> Result<Config, Problems> {
    let (root, errors) = DeTable::parse_recoverable(text);
    let notes = Notes::new(text);
    let document = Document { notes: &notes, root: root.get_ref() };
    let read = note_syntax(&notes, &errors).and_then(|()| read(&document, env));
    let (problems, remarks) = notes.into_lists();
    match read {
        Ok(config) if problems.is_empty() => Ok(Config { remarks, ..config }),
        Ok(_) | Err(_) => Err(Problems::new(file, problems)),
    }
}

fn read(document: &Document<'_, '_>, env: &Env) -> Result<Config, Reported> {
    document.refuse_unknown();
    let agent = local::agent(&document.one(&schema::AGENT), env);
    let log = local::log(&document.one(&schema::LOG));
    let http = local::http(&document.one(&schema::HTTP));
    let agent_id = agent.as_ref().ok().map(|agent| &*agent.id);
    let links = links::links(document, agent_id, http.as_ref().ok(), env);
    let buffer = local::buffer(&document.one(&schema::BUFFER));
    let kafka = kafka::kafka(&document.one(&schema::KAFKA), env);
    let watermark_topic = kafka.as_ref().ok().map(|kafka| kafka.watermark_topic.as_str());
    let routes = routes::routes(document, watermark_topic);
    let (mqtt, listen) = links?;
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

/// Of each line the first error: the parser stumbles on over the rest of it. Only the description is taken; the long
/// form repeats the line, which may hold a secret.
fn note_syntax(notes: &Notes<'_>, errors: &[toml::de::Error]) -> Result<(), Reported> {
    let mut lines = BTreeSet::new();
    let mut outcome = Ok(());
    for error in errors {
        let span = error.span().unwrap_or(0..0);
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
    file.take(MAX_FILE_BYTES.saturating_add(1)).read_to_end(&mut bytes).map_err(cannot)?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > MAX_FILE_BYTES {
        return Err(format!("more than {MAX_FILE_BYTES} bytes: this is no configuration"));
    }
    String::from_utf8(bytes).map_err(|error| {
        let good = error.utf8_error().valid_up_to();
        let before = error.as_bytes().iter().take(good);
        let line = before.filter(|byte| **byte == b'\n').count().saturating_add(1);
        format!("not UTF-8 text: a bad byte in line {line}")
    })
}
