//! The tables about this machine: `[agent]`, `[log]`, `[http]`, `[buffer]`.

use std::path::PathBuf;

use super::env::Env;
use super::problems::{Reported, quoted};
use super::reading::{Section, is_name};
use super::settings::{Agent, Buffer, Compression, Http, Log, LogFormat, SyncMode};
use super::units;
use crate::observe::log;

pub(super) fn agent(section: &Section<'_, '_>, env: &Env) -> Result<Agent, Reported> {
    section.refuse_unknown();
    let id = agent_id(section, env);
    let data_dir = data_dir(section, env);
    Ok(Agent { id: id?, data_dir: data_dir? })
}

fn agent_id(section: &Section<'_, '_>, env: &Env) -> Result<String, Reported> {
    if let Some(id) = section.optional_text("id")? {
        return Ok(id);
    }
    if is_name(&env.host_name) {
        return Ok(env.host_name.clone());
    }
    let what = format!("missing, and the host name {} cannot stand for it; set id", quoted(&env.host_name));
    Err(section.problem("id", what))
}

fn data_dir(section: &Section<'_, '_>, env: &Env) -> Result<PathBuf, Reported> {
    let Some(text) = section.optional_text("data_dir")? else {
        let folder = env.state_directory.clone().unwrap_or_else(|| PathBuf::from("/var/lib/tidegate"));
        if folder.is_absolute() {
            return Ok(folder);
        }
        return Err(section.problem("data_dir", "missing, and $STATE_DIRECTORY is not an absolute path".into()));
    };
    let folder = PathBuf::from(&text);
    if folder.is_absolute() {
        return Ok(folder);
    }
    Err(section.problem("data_dir", format!("found {}; allowed: an absolute path", quoted(&text))))
}

pub(super) fn log(section: &Section<'_, '_>) -> Result<Log, Reported> {
    section.refuse_unknown();
    let level = section.text("level").and_then(|level| match log::check_level(&level) {
        Ok(()) => Ok(level),
        Err(why) => Err(section.problem("level", format!("found {}: {why}", quoted(&level)))),
    });
    let formats = [
        ("auto", LogFormat::Auto),
        ("text", LogFormat::Text),
        ("json", LogFormat::Json),
        ("journald", LogFormat::Journald),
    ];
    let format = section.choice("format", &formats);
    Ok(Log { level: level?, format: format? })
}

pub(super) fn http(section: &Section<'_, '_>) -> Result<Http, Reported> {
    section.refuse_unknown();
    Ok(Http { listen: section.address("listen")? })
}

pub(super) fn buffer(section: &Section<'_, '_>) -> Result<Buffer, Reported> {
    section.refuse_unknown();
    let max_bytes = section.size("max_bytes");
    let max_age = section.text("max_age").and_then(|text| refuse_max_age(section, &text));
    let when_full = section.choice("when_full", &[("stop-reading", ())]);
    let sync = section.choice("sync", &[("full", SyncMode::Full), ("normal", SyncMode::Normal)]);
    let commit_delay = section.time("commit_delay");
    let compression = section.choice("compression", &[("zstd", Compression::Zstd), ("none", Compression::None)]);
    let ((), ()) = (max_age?, when_full?);
    Ok(Buffer { max_bytes: max_bytes?, sync: sync?, commit_delay: commit_delay?, compression: compression? })
}

fn refuse_max_age(section: &Section<'_, '_>, text: &str) -> Result<(), Reported> {
    if text.is_empty() {
        return Ok(());
    }
    let what = match units::time(text) {
        Ok(_) => "dropping by age comes in a later version; allowed: \"\"".into(),
        Err(_) => format!("found {}; allowed: \"\" (a time with its unit, in a later version)", quoted(text)),
    };
    Err(section.problem("max_age", what))
}
