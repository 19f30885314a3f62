//! MQTT brokers that are not mosquitto, for real: `HiveMQ` CE and Moquette from Maven Central, each in a JVM by a small
//! program of ours (`tests/brokers/`), and the broker of Eclipse's paho.mqtt.testing, where an environment variable says
//! that there is one.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use super::client::Connection;
use super::kafka::cached;
use super::process::{Folder, Process, free_port};
use super::wire::Version;
use super::{Outcome, PATIENCE, Trouble, trouble, wait_until};

/// Which.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    HiveMq,
    Moquette,
    /// With the folder of its sources.
    Paho(PathBuf),
}

/// A broker on a port and in a folder of its own, through all its lives.
pub struct Broker {
    kind: Kind,
    folder: Folder,
    port: u16,
    process: Mutex<Option<Process>>,
}

/// Where the sources of paho.mqtt.testing are, if this machine has them.
pub fn paho_testing() -> Outcome<Option<PathBuf>> {
    let Some(folder) = std::env::var_os("TIDEGATE_PAHO_TESTING").map(PathBuf::from) else { return Ok(None) };
    let interoperability = folder.join("interoperability");
    if interoperability.join("startbroker.py").exists() {
        Ok(Some(interoperability))
    } else {
        trouble!("TIDEGATE_PAHO_TESTING={}: there is no interoperability/startbroker.py in it", folder.display())
    }
}

impl Broker {
    /// Its first life.
    pub fn start(kind: Kind) -> Outcome<Self> {
        let broker = Self { kind, folder: Folder::new("broker")?, port: free_port()?, process: Mutex::new(None) };
        broker.run()?;
        Ok(broker)
    }

    /// For the configuration.
    pub fn url(&self) -> String {
        format!("mqtt://{}", self.address())
    }

    /// For publishers.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }

    /// Starts (again), on the same port and folder; returns when it answers.
    pub fn run(&self) -> Outcome<()> {
        let mut command = match &self.kind {
            Kind::HiveMq => self.java("hivemq", "HiveMq.java")?,
            Kind::Moquette => self.java("moquette", "Moquette.java")?,
            Kind::Paho(sources) => self.paho(sources)?,
        };
        let log_file = self.folder.path().join("log");
        let log = std::fs::OpenOptions::new().create(true).append(true).open(&log_file)?;
        command.stdout(log.try_clone()?).stderr(log);
        *self.process.lock()? = Some(Process::start("broker", command)?);
        wait_until("the broker to answer", PATIENCE, || Connection::dial(self.address(), Version::V311).is_ok())
            .map_err(|error| {
                let said = std::fs::read_to_string(log_file).unwrap_or_default();
                Trouble(format!("{:?}: {error:?}: {said}", self.kind))
            })
    }

    /// SIGTERM, and the end that follows.
    pub fn stop(&self) -> Outcome<()> {
        self.process.lock()?.take().map_or(Ok(()), Process::stop)
    }

    /// One of our programs, run from its source with the jars that tests/run has brought.
    fn java(&self, name: &str, program: &str) -> Outcome<Command> {
        let jars = cached(&format!("{name}-{}", version_of(name)))?;
        if !jars.is_dir() {
            return trouble!("no {}: tests/run brings it", jars.display());
        }
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/brokers").join(program);
        let mut command = Process::command("java");
        command.args(["-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp"]);
        command.arg(format!("{}/*", jars.display())).arg(source).arg(self.port.to_string()).arg(self.folder.path());
        Ok(command)
    }

    /// Its configuration is written like mosquitto's. Its own limits are there to try clients: 256 bytes a packet, two at a
    /// time.
    fn paho(&self, sources: &Path) -> Outcome<Command> {
        let file = self.folder.path().join("conf");
        let conf = "maximum_packet_size 65536\nreceive_maximum 20\n";
        std::fs::write(&file, format!("{conf}listener {} 127.0.0.1\n", self.port))?;
        let mut command = Process::command("python3");
        command.args(["startbroker.py", "-c"]).arg(file).current_dir(sources);
        command.env("PYTHONDONTWRITEBYTECODE", "1");
        Ok(command)
    }
}

/// As tests/brokers/pom.xml has it.
fn version_of(name: &str) -> &'static str {
    let pom = include_str!("../../brokers/pom.xml");
    let value = |pom: &'static str| pom.split_once(&format!("<{name}.version>"))?.1.split('<').next();
    value(pom).unwrap_or_default()
}
