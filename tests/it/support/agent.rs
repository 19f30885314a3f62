//! The agent as a process: its configuration, its life and death, and what it says of itself.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output};
use std::time::Duration;

use super::http::{self, Answer};
use super::process::{Folder, Process, free_port};
use super::{Outcome, PATIENCE, Trouble, trouble, wait_for, wait_until};

/// Which binary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Build {
    /// The product.
    Real,
    /// The product with a bug from `src/planted.rs`, by its name.
    Planted(&'static str),
}

impl Build {
    /// Where it lies. `tests/run` builds both and says where: what `cargo test` builds by itself unwinds when a stage
    /// panics, the product does not.
    pub fn binary(self) -> Outcome<PathBuf> {
        let by_cargo = PathBuf::from(env!("CARGO_BIN_EXE_tidegate"));
        match self {
            Self::Real => Ok(std::env::var_os("TIDEGATE_BINARY").map_or(by_cargo, PathBuf::from)),
            Self::Planted(_) => {
                let planted = by_cargo.with_file_name("tidegate-planted");
                if planted.exists() { Ok(planted) } else { trouble!("no {}: tests/run builds it", planted.display()) }
            }
        }
    }
}

/// One gateway: a folder with a configuration and a buffer, ports, and the agent that is started on them, again and again.
pub struct Gateway {
    folder: Folder,
    build: Build,
    http_port: u16,
    listen_port: u16,
    tables: Tables,
    environment: Vec<(String, String)>,
}

#[derive(Default)]
struct Tables {
    mqtt: Vec<String>,
    listen: Vec<String>,
    buffer: String,
    kafka: String,
    options: String,
    routes: Vec<String>,
    redirects: Vec<String>,
    log: String,
}

impl Gateway {
    /// With one route for everything, `#` to this Kafka topic, unless others are added before.
    pub fn new(build: Build, kafka: &str) -> Outcome<Self> {
        let level = std::env::var("TIDEGATE_LOG").unwrap_or_else(|_none| "info".to_owned());
        let log = format!("level = \"{level}\"\nformat = \"json\"\n");
        let tables = Tables { kafka: kafka_table(kafka), log, ..Tables::default() };
        Ok(Self {
            folder: Folder::new("gateway")?,
            build,
            http_port: free_port()?,
            listen_port: free_port()?,
            tables,
            environment: Vec::new(),
        }
        .with_transactions_if_asked(kafka))
    }

    /// `TIDEGATE_DELIVERY=exactly-once` runs every scenario with transactions, each with a watermark topic of its own.
    fn with_transactions_if_asked(mut self, kafka: &str) -> Self {
        if super::reader::transactions_are_asked_for() {
            let topic = super::kafka::unique_topic("all-watermarks");
            if super::topics::create_topic(kafka, &topic, 1, &[("cleanup.policy", "compact")]).is_ok() {
                self.exactly_once(&topic);
            }
        }
        self
    }

    /// Sensors may publish to [`Gateway::listener`]. More keys of the table in `more`.
    pub fn listen(&mut self, more: &str) -> &mut Self {
        let address = self.listener();
        self.tables.listen.push(format!("name = \"floor\"\naddress = \"{address}\"\n{more}"));
        self
    }

    /// One more listener, on this port.
    pub fn listen_at(&mut self, name: &str, port: u16, more: &str) -> &mut Self {
        self.tables.listen.push(format!("name = \"{name}\"\naddress = \"127.0.0.1:{port}\"\n{more}"));
        self
    }

    /// Subscribes `filter` at a broker. More keys of the table in `more`.
    pub fn subscribe(&mut self, name: &str, url: &str, filter: &str, qos: u8, more: &str) -> &mut Self {
        let subscribe = format!("subscribe = [{{ filter = \"{filter}\", qos = {qos} }}]\n");
        self.broker(name, url, &format!("{subscribe}{more}"))
    }

    /// A `[[mqtt]]` table.
    pub fn broker(&mut self, name: &str, url: &str, more: &str) -> &mut Self {
        // A client id of its own: many gateways share one broker.
        let unique = format!("client_id = \"gateway-{}-{name}\"\n", self.http_port);
        let client_id = if more.contains("client_id") { "" } else { &unique };
        self.tables.mqtt.push(format!("name = \"{name}\"\nurl = \"{url}\"\n{client_id}{more}"));
        self
    }

    /// Other keys for the last `[[mqtt]]` table from the next start on; its name, url and client id stay.
    pub fn broker_is(&mut self, more: &str) -> &mut Self {
        if let Some(table) = self.tables.mqtt.last_mut() {
            let begin = |line: &&str| ["name", "url", "client_id"].iter().any(|key| line.starts_with(key));
            *table = table.split_inclusive('\n').filter(begin).chain([more]).collect();
        }
        self
    }

    /// A `[[route]]` table; first match wins.
    pub fn route(&mut self, from: &str, to: &str) -> &mut Self {
        self.tables.routes.push(format!("from = \"{from}\"\nto = \"{to}\"\n"));
        self
    }

    /// No routes from the next start on, until some are added.
    pub fn forget_routes(&mut self) -> &mut Self {
        self.tables.routes.clear();
        self
    }

    /// A `[[route]]` table as it is.
    pub fn route_table(&mut self, table: &str) -> &mut Self {
        self.tables.routes.push(table.to_owned());
        self
    }

    /// No `[[route]]` until one is added.
    pub fn without_routes(&mut self) -> &mut Self {
        self.tables.routes.clear();
        self
    }

    /// A `[[redirect]]` table as it is.
    pub fn redirect(&mut self, table: &str) -> &mut Self {
        self.tables.redirects.push(table.to_owned());
        self
    }

    /// Lines of `[buffer]`.
    pub fn buffer(&mut self, lines: &str) -> &mut Self {
        self.tables.buffer.push_str(lines);
        self
    }

    /// Lines of `[kafka]`.
    pub fn kafka(&mut self, lines: &str) -> &mut Self {
        self.tables.kafka.push_str(lines);
        self
    }

    /// A line of `[kafka]` in place of another, from the next start on.
    pub fn kafka_instead(&mut self, of: &str, line: &str) -> &mut Self {
        self.tables.kafka = self.tables.kafka.replace(of, line);
        self
    }

    /// With transactions, and this watermark topic.
    pub fn exactly_once(&mut self, watermark_topic: &str) -> &mut Self {
        let lines = format!("delivery = \"exactly-once\"\nwatermark_topic = \"{watermark_topic}\"\n");
        self.tables.kafka = self.tables.kafka.replace("delivery = \"at-least-once\"\n", &lines);
        self
    }

    /// `[kafka]` says nothing of delivery: the defaults.
    pub fn default_delivery(&mut self) -> &mut Self {
        let said = |line: &&str| !line.starts_with("delivery") && !line.starts_with("watermark_topic");
        self.tables.kafka = self.tables.kafka.split_inclusive('\n').filter(said).collect();
        self
    }

    /// Another Kafka from the next start on.
    pub fn kafka_at(&mut self, brokers: &str) -> &mut Self {
        self.tables.kafka = kafka_table(brokers);
        self
    }

    /// Lines of `[kafka.options]`.
    pub fn kafka_options(&mut self, lines: &str) -> &mut Self {
        self.tables.options.push_str(lines);
        self
    }

    /// `[kafka.options]` from the next start on.
    pub fn kafka_options_are(&mut self, lines: &str) -> &mut Self {
        lines.clone_into(&mut self.tables.options);
        self
    }

    /// `[log]` in place of information as JSON.
    pub fn log(&mut self, lines: &str) -> &mut Self {
        lines.clone_into(&mut self.tables.log);
        self
    }

    /// An environment variable of the agent.
    pub fn environment(&mut self, name: &str, value: &str) -> &mut Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The other binary from the next start on.
    pub fn build(&mut self, build: Build) -> &mut Self {
        self.build = build;
        self
    }

    /// Where the listener is, once [`Gateway::listen`] was called.
    pub fn listener(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.listen_port))
    }

    /// A place for more files.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Where the buffer is.
    pub fn data_dir(&self) -> PathBuf {
        self.path().join("data")
    }

    /// The configuration file as it would be written.
    pub fn toml(&self) -> String {
        let mut text = format!(
            "[agent]\nid = \"test-gateway\"\ndata_dir = \"{}\"\n[http]\nlisten = \"127.0.0.1:{}\"\n[log]\n{}",
            self.data_dir().display(),
            self.http_port,
            self.tables.log
        );
        for (name, tables) in [
            ("mqtt", &self.tables.mqtt),
            ("listen", &self.tables.listen),
            ("route", &self.tables.routes),
            ("redirect", &self.tables.redirects),
        ] {
            for table in tables {
                text.extend(["[[", name, "]]\n", table, "\n"]);
            }
        }
        for (name, lines) in
            [("buffer", &self.tables.buffer), ("kafka", &self.tables.kafka), ("kafka.options", &self.tables.options)]
        {
            text.extend(["[", name, "]\n", lines, "\n"]);
        }
        text
    }

    /// Starts the agent and waits for nothing.
    pub fn launch(&self) -> Outcome<Agent> {
        std::fs::write(self.config_file(), self.toml())?;
        let mut command = Process::command(self.build.binary()?);
        command.args(["run", "--config"]).arg(self.config_file()).current_dir(self.path());
        if let Build::Planted(bug) = self.build {
            command.env("TIDEGATE_PLANT", bug);
        }
        command.env_remove("NOTIFY_SOCKET").env_remove("WATCHDOG_USEC");
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.log_file())?;
        command.stdout(log.try_clone()?).stderr(log);
        let process = Process::start("tidegate", command)?;
        Ok(Agent { process, http_port: self.http_port, log_file: self.log_file() })
    }

    /// Starts the agent and waits until it is ready.
    pub fn start(&self) -> Outcome<Agent> {
        let mut agent = self.launch()?;
        agent.wait_ready()?;
        Ok(agent)
    }

    /// Runs a subcommand with this configuration to its end.
    pub fn command(&self, arguments: &[&str]) -> Outcome<Output> {
        std::fs::write(self.config_file(), self.toml())?;
        let mut command = Command::new(self.build.binary()?);
        Ok(command.args(arguments).arg("--config").arg(self.config_file()).current_dir(self.path()).output()?)
    }

    /// `tidegate status --json`.
    pub fn status(&self) -> Outcome<serde_json::Value> {
        let output = self.command(&["status", "--json"])?;
        if !output.status.success() {
            let said = [output.stdout, output.stderr].concat();
            return trouble!("status: {}", String::from_utf8_lossy(&said));
        }
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    fn config_file(&self) -> PathBuf {
        self.path().join("tidegate.toml")
    }

    fn log_file(&self) -> PathBuf {
        self.path().join("log")
    }
}

/// `brokers` as Kafka's own tools take them: with commas between.
fn kafka_table(brokers: &str) -> String {
    format!("brokers = [\"{}\"]\ndelivery = \"at-least-once\"\n", brokers.replace(',', "\", \""))
}

/// A running agent.
pub struct Agent {
    process: Process,
    http_port: u16,
    log_file: PathBuf,
}

impl Agent {
    /// Waits for `/readyz`; an agent that ends instead is told with its log.
    pub fn wait_ready(&mut self) -> Outcome<()> {
        let answer = wait_for("readiness", PATIENCE, || {
            if let Some(status) = self.process.exited() {
                return Some(Err(super::process::how(status)));
            }
            self.get("/readyz").is_ok_and(|answer| answer.status == 200).then_some(Ok(()))
        });
        match answer {
            Ok(Ok(())) => Ok(()),
            Ok(Err(how)) => trouble!("the agent ended with {how} before it was ready:\n{}", self.log()),
            Err(error) => {
                let said = self.get("/readyz").map(|answer| answer.body);
                trouble!("{error:?}; /readyz: {said:?}; log:\n{}", self.log())
            }
        }
    }

    /// GET from its own HTTP server.
    pub fn get(&self, path: &str) -> Outcome<Answer> {
        http::get(self.http_port, path)
    }

    /// A sample of `/metrics` by its name and, if any, labels as they stand there.
    pub fn metric(&self, name: &str) -> Outcome<f64> {
        // A sample without labels may be written with empty braces.
        let text = self.get("/metrics")?.body.replace("{}", "");
        let value =
            text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.split(' ').next()?.parse().ok());
        value.ok_or_else(|| Trouble::new(format!("no {name} in:\n{text}")))
    }

    /// `/status`, of which `tidegate status --json` is a copy.
    pub fn status(&self) -> Outcome<serde_json::Value> {
        Ok(serde_json::from_str(&self.get("/status")?.body)?)
    }

    /// One number of the books: `received`, `delivered`, `dead_lettered`, `dropped`, `purged`, `lost`, `held`.
    pub fn book(&self, key: &str) -> Outcome<u64> {
        let status = self.status()?;
        let value = status.get(key).and_then(serde_json::Value::as_u64);
        value.ok_or_else(|| Trouble::new(format!("status has no number {key}: {status}")))
    }

    /// Waits until that number of the books is that.
    pub fn wait_book(&self, key: &str, wanted: u64) -> Outcome<()> {
        let mut last = None;
        wait_until("the books", PATIENCE * 2, || {
            last = self.book(key).ok();
            last == Some(wanted)
        })
        .map_err(|_in_vain| Trouble::new(format!("{key} is {last:?} and not {wanted}; log:\n{}", self.log())))
    }

    /// Kafka topics that are parked now.
    pub fn parked(&self) -> Outcome<Vec<String>> {
        let status = self.status()?;
        let parked = status.pointer("/kafka/parked").and_then(serde_json::Value::as_array).cloned().unwrap_or_default();
        Ok(parked.iter().filter_map(|topic| Some(topic.get("topic")?.as_str()?.to_owned())).collect())
    }

    /// Waits until so many filters were granted in this life and the ones before.
    pub fn wait_subscribed(&self, count: usize) -> Outcome<()> {
        let granted = || self.log().lines().filter(|line| line.contains("\"subscribed\"")).count();
        wait_until("subscriptions", PATIENCE, || granted() >= count)
            .map_err(|error| Trouble::new(format!("{error:?}; log:\n{}", self.log())))
    }

    /// kill -9.
    pub fn kill(mut self) {
        self.process.kill();
    }

    /// Any signal.
    pub fn signal(&self, signal: &str) -> Outcome<()> {
        self.process.signal(signal)
    }

    /// SIGTERM, and the end that follows.
    pub fn stop(&mut self, limit: Duration) -> Outcome<ExitStatus> {
        self.process.signal("TERM")?;
        self.process.wait(limit).map_err(|error| Trouble::new(format!("{error:?}; log:\n{}", self.log())))
    }

    /// Waits for an end that is its own doing.
    pub fn wait(&mut self, limit: Duration) -> Outcome<ExitStatus> {
        self.process.wait(limit)
    }

    /// Has it ended?
    pub fn exited(&mut self) -> Option<ExitStatus> {
        self.process.exited()
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// How often its threads of that name have gone to sleep until now; all of them with an empty name.
    pub fn sleeps(&self, thread: &str) -> Outcome<u64> {
        let mut sleeps = 0;
        for task in std::fs::read_dir(format!("/proc/{}/task", self.pid()))? {
            let status = std::fs::read_to_string(task?.path().join("status")).unwrap_or_default(); // it has ended
            let line = |key: &str| status.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
            if thread.is_empty() || line("Name:") == Some(thread) {
                sleeps += line("voluntary_ctxt_switches:").and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
            }
        }
        Ok(sleeps)
    }

    /// A line of `/proc/<pid>/status` in KiB: `VmRSS`, `VmHWM` (its peak).
    pub fn memory_kib(&self, line: &str) -> Outcome<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let found = status
            .lines()
            .find_map(|l| l.strip_prefix(line)?.strip_prefix(':')?.split_whitespace().next()?.parse().ok());
        found.ok_or_else(|| Trouble::new(format!("no {line} in {status}")))
    }

    /// All that it has written to standard output and error, former lives included.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log_file).unwrap_or_default()
    }

    /// Log lines of that level (`WARN`, `ERROR` …).
    pub fn log_lines(&self, level: &str) -> Vec<String> {
        let mark = format!("\"level\":\"{level}\"");
        self.log().lines().filter(|line| line.contains(&mark)).map(str::to_owned).collect()
    }

    /// Waits until a log line contains all of these.
    pub fn wait_log(&self, parts: &[&str]) -> Outcome<String> {
        wait_for(&format!("a log line with {parts:?}"), PATIENCE, || {
            self.log().lines().find(|line| parts.iter().all(|part| line.contains(part))).map(str::to_owned)
        })
        .map_err(|error| Trouble::new(format!("{error:?}; log:\n{}", self.log())))
    }
}
