//! The relay as the demo sees it: a child process, its configuration file, its log and its `/status`.
//!
//! The child does not survive the demo: [`Relay`] kills it when dropped. It runs in a process group of its own, so that
//! Ctrl-C in the terminal reaches the demo alone, which then ends it in its own order. (Only a kill -9 of the demo
//! itself leaves it behind: a process cannot answer that without unsafe code.)

use std::fs::{File, OpenOptions};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use test_kit::Trouble;
use test_kit::ports::free_port;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use crate::observe::status::Status;

/// The relay starts in well under a second; a slow SD card and a debug build get more.
const START_TIME: Duration = Duration::from_secs(20);

/// Its promise is to stop within 10 s; a little more for the machine.
const STOP_TIME: Duration = Duration::from_secs(12);

/// `/status` is made from memory; on a busy machine the answer may still take this long.
const ANSWER_TIME: Duration = Duration::from_secs(2);

/// Larger than any `/status`.
const MAX_ANSWER_BYTES: u64 = 1 << 20;

/// Lines of the log shown when the relay fails.
const TAIL_LINES: usize = 12;

/// What went wrong with the child.
#[derive(Debug, thiserror::Error)]
pub(super) enum RelayError {
    /// A file or a process operation.
    #[error("{what}: {cause}")]
    Os {
        what: String,
        #[source]
        cause: io::Error,
    },
    /// It ended by itself.
    #[error("the relay ended unexpectedly ({status}); the end of its log:\n{tail}")]
    Ended { status: ExitStatus, tail: String },
    /// It runs and is not ready.
    #[error("the relay was not ready after {} s; the end of its log:\n{tail}", START_TIME.as_secs())]
    NotReady { tail: String },
}

fn os(what: &str) -> impl FnOnce(io::Error) -> RelayError + '_ {
    move |cause| RelayError::Os { what: what.to_owned(), cause }
}

/// Where everything is.
#[derive(Debug, Clone)]
pub(super) struct Site {
    /// The configuration file that the demo wrote.
    pub(super) config: PathBuf,
    /// Both runs' log.
    pub(super) log: PathBuf,
    /// Where sensors publish.
    pub(super) mqtt: SocketAddr,
    /// Where the relay answers about itself.
    pub(super) http: SocketAddr,
}

impl Site {
    /// Chooses two free ports and writes the configuration.
    pub(super) fn prepare(folder: &Path, brokers: &str) -> Result<Self, RelayError> {
        let [mqtt, http] = free_ports()?;
        let site = Self { config: folder.join("tidegate.toml"), log: folder.join("relay.log"), mqtt, http };
        let data_dir = folder.join("data");
        let Some(data_dir) = data_dir.to_str() else {
            return Err(os("use the temporary folder")(io::Error::other("its path is not UTF-8")));
        };
        let text = configuration(data_dir, brokers, mqtt, http);
        std::fs::write(&site.config, text).map_err(os("write the configuration"))?;
        Ok(site)
    }

    /// The relay's own books; `None` when it does not answer.
    pub(super) async fn status(&self) -> Option<Status> {
        let body = timeout(ANSWER_TIME, get(self.http, "/status")).await.ok()?.ok()??;
        serde_json::from_slice(&body).ok()
    }

    async fn ready(&self) -> bool {
        matches!(timeout(ANSWER_TIME, get(self.http, "/readyz")).await, Ok(Ok(Some(_))))
    }

    fn tail(&self) -> String {
        let Ok(text) = std::fs::read(&self.log) else { return String::new() };
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines.get(lines.len().saturating_sub(TAIL_LINES)..).unwrap_or_default().join("\n")
    }
}

/// The running child.
#[derive(Debug)]
pub(super) struct Relay {
    site: Site,
    child: Child,
}

impl Relay {
    /// Starts it and waits until it is ready; says how long that took.
    pub(super) async fn start(site: &Site) -> Result<(Self, Duration), RelayError> {
        let begun = Instant::now();
        let mut relay = Self { site: site.clone(), child: spawn(site)? };
        while !site.ready().await {
            relay.check()?;
            if begun.elapsed() > START_TIME {
                return Err(RelayError::NotReady { tail: site.tail() });
            }
            sleep(Duration::from_millis(20)).await;
        }
        Ok((relay, begun.elapsed()))
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// An error if it has ended by itself.
    pub(super) fn check(&mut self) -> Result<(), RelayError> {
        match self.child.try_wait().map_err(os("check the relay's process"))? {
            None => Ok(()),
            Some(status) => Err(RelayError::Ended { status, tail: self.site.tail() }),
        }
    }

    /// kill -9, and waits until it is gone.
    pub(super) fn kill(mut self) -> Result<(), RelayError> {
        self.check()?;
        self.child.kill().map_err(os("kill the relay"))?;
        self.child.wait().map_err(os("wait for the relay"))?;
        Ok(())
    }

    /// SIGTERM; how it ended and how long that took. `None`: it did not end and was killed.
    pub(super) async fn stop(mut self) -> Result<(Option<ExitStatus>, Duration), RelayError> {
        self.check()?;
        let begun = Instant::now();
        kill_process(Pid::from_child(&self.child), Signal::TERM)
            .map_err(|error| RelayError::Os { what: "send SIGTERM to the relay".to_owned(), cause: error.into() })?;
        while begun.elapsed() < STOP_TIME {
            if let Some(status) = self.child.try_wait().map_err(os("wait for the relay"))? {
                return Ok((Some(status), begun.elapsed()));
            }
            sleep(Duration::from_millis(20)).await;
        }
        Ok((None, begun.elapsed()))
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        // Both fail only for a child that is gone already, which is what they are for.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn spawn(site: &Site) -> Result<Child, RelayError> {
    let log: File = OpenOptions::new().create(true).append(true).open(&site.log).map_err(os("open the relay's log"))?;
    let errors = log.try_clone().map_err(os("open the relay's log"))?;
    let program = std::env::current_exe().map_err(os("find this program's own file"))?;
    Command::new(program)
        .arg("run")
        .arg("--config")
        .arg(&site.config)
        .env("NO_COLOR", "1")
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(errors)
        .process_group(0)
        .spawn()
        .map_err(os("start the relay"))
}

/// They differ.
fn free_ports() -> Result<[SocketAddr; 2], RelayError> {
    let free = || free_port().map_err(|Trouble(why)| os("find a free port")(io::Error::other(why)));
    Ok([free()?, free()?].map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port))))
}

fn configuration(data_dir: &str, brokers: &str, mqtt: SocketAddr, http: SocketAddr) -> String {
    // A JSON string is a TOML string.
    let data_dir = serde_json::Value::from(data_dir);
    let brokers = serde_json::Value::from(brokers.split(',').collect::<Vec<_>>());
    format!(
        r#"# Written by `tidegate demo`. Try: tidegate check --config <this file>

[agent]
id = "demo"
data_dir = {data_dir} # the buffer: a SQLite file

[http]
listen = "{http}" # /status, /metrics, /healthz, /readyz

[[listen]] # sensors publish straight to the relay, over MQTT 5 or 3.1.1
name = "floor"
address = "{mqtt}"

[kafka]
brokers = {brokers} # the demo's own, in its own process
delivery = "at-least-once" # exactly-once, the default, wants a real Kafka

[[route]] # MQTT topic to Kafka topic
from = "sensors/{{site}}/{{device}}/#"
to = "sensors.{{site}}"
"#
    )
}

/// The body of a 200; `None` for any other answer.
async fn get(address: SocketAddr, path: &str) -> io::Result<Option<Vec<u8>>> {
    let mut socket = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    socket.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    socket.take(MAX_ANSWER_BYTES).read_to_end(&mut answer).await?;
    if !answer.starts_with(b"HTTP/1.1 200 ") {
        return Ok(None);
    }
    let body = answer.windows(4).position(|window| window == b"\r\n\r\n").map(|head| head + 4);
    Ok(body.and_then(|body| answer.get(body..)).map(<[u8]>::to_vec))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_is_toml_whatever_the_folder_is_called() {
        let [mqtt, http] = free_ports().unwrap();
        let text = configuration("/tmp/a \"b\" \\c ü", "127.0.0.1:9", mqtt, http);
        let table: toml::Table = text.parse().unwrap();
        assert_eq!(table["agent"]["data_dir"].as_str(), Some("/tmp/a \"b\" \\c ü"));
        assert_eq!(table["kafka"]["brokers"][0].as_str(), Some("127.0.0.1:9"));
        assert_eq!(table["route"][0]["from"].as_str(), Some("sensors/{site}/{device}/#"));
    }

    #[test]
    fn two_free_ports_differ() {
        let [first, second] = free_ports().unwrap();
        assert_ne!(first, second);
    }
}
