//! The tables about this machine: `[agent]`, `[log]`, `[http]`, `[buffer]`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::problems::{Reported, quoted};
use super::reading::{Section, is_name};
use super::table::{Key, Table};
use super::units;
use super::values::{
    Value, Words, address_or_off, choice, choice_and_later, folder, name, size, table, text, text_or_empty,
    time_or_auto,
};

table! {
    /// This gateway.
    one("agent") read as AgentKeys, checked as Agent {
        /// Name of this gateway; no other gateway may have it. Client ids and logs carry it.
        id: String = name().computed("the host name", "press-07").read_by(agent_id),

        /// Folder of the buffer, on a local flash or disk; never on a network share.
        data_dir: PathBuf = folder()
            .computed("$STATE_DIRECTORY, which systemd sets, or the folder below", "/var/lib/tidegate")
            .read_by(data_dir),
    }
}

table! {
    /// The agent's log, on standard error or in the journal.
    one("log") read as LogKeys, checked as Log {
        /// off, error, warn, info, debug or trace; for a part of the agent as in "info,tidegate::ingest=debug".
        level: String = text().or("info"),

        /// auto means journald if systemd has connected the agent to its journal, and text if not.
        format: LogFormat = choice().or("auto"),
    }
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

impl Words for LogFormat {
    const MEANINGS: &'static [(&'static str, Self)] =
        &[("auto", Self::Auto), ("text", Self::Text), ("json", Self::Json), ("journald", Self::Journald)];
}

table! {
    /// Metrics and health. Everybody who can reach the address can read them; there is no password.
    one("http") read as HttpKeys, checked as Http {
        /// Serves /metrics, /healthz, /readyz and /status; "" switches it off, and with it tidegate status.
        listen: Option<SocketAddr> = address_or_off().or("127.0.0.1:9464"),
    }
}

table! {
    /// The buffer on the local disk: it keeps what is acknowledged until Kafka has it.
    one("buffer") read as BufferKeys, checked as Buffer {
        /// Disk space that the buffer may use. SQLite's log takes up to 16MiB beside it, and a full buffer needs room
        /// to move readings: up to 8MiB and a 32nd of max_bytes.
        max_bytes: u64 = size(16 << 20, 16 << 40, "SQLite's log alone needs some MiB, and its file ends at 16TiB")
            .or("1GiB"),

        /// The agent drops readings that are older; "" keeps all. Other values come in a later version.
        #[expect(dead_code, reason = "nobody asks while there is one answer")]
        max_age: Option<Duration> = text_or_empty().or("").read_by(max_age),

        /// stop-reading: a full buffer takes no readings until there is room, so that broker and sensors wait.
        #[expect(dead_code, reason = "nobody asks while there is one answer")]
        when_full: WhenFull = choice_and_later(&["drop-oldest", "drop-newest"]).or("stop-reading"),

        /// full: what is acknowledged survives a power cut. normal: a power cut may lose the last seconds.
        sync: SyncMode = choice().or("full"),

        /// How long a commit waits for more readings: fewer flash writes, later acknowledgements. auto: four commits a
        /// second on a busy line, at once for a reading that comes alone or whose sender waits for it; never longer than
        /// half of linger in [kafka]. A time: always that long. "0ms": never.
        commit_delay: Option<Duration> = time_or_auto(Duration::from_secs(10), "acknowledgements wait for as long")
            .or("auto"),

        /// Compression of the readings in the buffer. none saves processor time and costs disk space.
        compression: Compression = choice().or("zstd"),
    }
    follows {
        /// How long a reading may wait on its way to Kafka for others: `[kafka] linger`.
        linger: Duration,
    }
}

/// What becomes of new readings when there is no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WhenFull {
    /// They wait where they are.
    StopReading,
}

impl Words for WhenFull {
    const MEANINGS: &'static [(&'static str, Self)] = &[("stop-reading", Self::StopReading)];
}

/// SQLite's `synchronous`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SyncMode {
    /// Every commit is synced: the promise holds through power loss.
    Full,
    /// Acknowledged events of the last seconds may go in a power cut.
    Normal,
}

impl Words for SyncMode {
    const MEANINGS: &'static [(&'static str, Self)] = &[("full", Self::Full), ("normal", Self::Normal)];
}

/// Of chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    /// zstd, level 1.
    Zstd,
    /// As they are.
    None,
}

impl Words for Compression {
    const MEANINGS: &'static [(&'static str, Self)] = &[("zstd", Self::Zstd), ("none", Self::None)];
}

fn agent_id(section: &Section<'_, '_>, key: &Key) -> Result<String, Reported> {
    if let Some(id) = section.optional_text(key)? {
        return Ok(id);
    }
    let host_name = &section.env().host_name;
    if is_name(host_name) {
        return Ok(host_name.clone());
    }
    let what = format!("missing, and the host name {} cannot be used as the id; set id", quoted(host_name));
    Err(section.problem(key.name, what))
}

fn data_dir(section: &Section<'_, '_>, key: &Key) -> Result<PathBuf, Reported> {
    let Some(text) = section.optional_text(key)? else {
        let folder = section.env().state_directory.clone().unwrap_or_else(|| PathBuf::from("/var/lib/tidegate"));
        if folder.is_absolute() {
            return Ok(folder);
        }
        return Err(section.problem(key.name, "missing, and $STATE_DIRECTORY is not an absolute path".into()));
    };
    let folder = PathBuf::from(&text);
    if folder.is_absolute() {
        return Ok(folder);
    }
    Err(section.problem(key.name, format!("found {}; allowed: an absolute path", quoted(&text))))
}

fn max_age(section: &Section<'_, '_>, key: &Key) -> Result<Option<Duration>, Reported> {
    let text = section.text(key)?;
    if text.is_empty() {
        return Ok(None);
    }
    let what = match units::time(&text) {
        Ok(_) => "dropping by age comes in a later version; allowed: \"\"".into(),
        Err(_) => format!("found {}; allowed: \"\" (a time with its unit, in a later version)", quoted(&text)),
    };
    Err(section.problem(key.name, what))
}
