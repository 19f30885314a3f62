//! Apache Kafka for real: its own jars, KRaft, broker and controller in one JVM.
//!
//! The jars are in a cache that `tests/run` fills. One broker serves the whole test binary; a test that restarts a
//! broker starts its own. Besides its main listener the broker has a few whose advertised address is that of a proxy:
//! a client that begins there stays behind that proxy ([`Lease`]), so that each test can have its own outage.

use std::fmt::Write;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Condvar, LazyLock, Mutex};
use std::time::Duration;

use super::certificates::{Authority, Pair};
use super::process::{Folder, Process, free_port};
use super::proxy::{Proxy, Weather};
use super::reader::Reader;
use super::{Outcome, Trouble, trouble, wait_until};

/// A broker.
pub struct Kafka {
    folder: Folder,
    port: u16,
    process: Mutex<Option<Process>>,
    proxies: Vec<Proxy>,
    free: Mutex<Vec<usize>>,
    freed: Condvar,
}

/// Links with a proxy that the shared broker has: tests that run at the same time, and some to spare.
const SHARED_LINKS: usize = 6;

/// Not one of them is needed before a minute is over, on the slowest machine.
const START_LIMIT: Duration = Duration::from_secs(90);

/// The broker that all tests share.
pub fn shared() -> Outcome<&'static Kafka> {
    static SHARED: LazyLock<Outcome<Kafka>> = LazyLock::new(|| Kafka::start(SHARED_LINKS));
    SHARED.as_ref().map_err(|error| Trouble::new(format!("Kafka: {error:?}")))
}

/// A topic name that no other test has.
pub fn unique_topic(claim: &str) -> String {
    static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    format!("{claim}-{}", COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed))
}

impl Kafka {
    /// Formats a new log and starts on it; returns when it answers.
    pub fn start(links: usize) -> Outcome<Self> {
        Self::start_with(links, &[], "")
    }

    /// With these properties besides, or in place of the usual ones: of a property that is there twice, the last one counts.
    pub fn with(properties: &str) -> Outcome<Self> {
        Self::start_with(0, &[], properties)
    }

    /// Killed, and started again with more properties.
    pub fn run_with(&self, properties: &str) -> Outcome<()> {
        self.kill()?;
        let file = self.folder.path().join("server.properties");
        std::fs::write(&file, std::fs::read_to_string(&file)? + properties)?;
        self.run()
    }

    /// Killed, and in its place, on its port, stands another cluster: empty, with another id.
    pub fn replace(&self) -> Outcome<()> {
        self.kill()?;
        std::fs::remove_dir_all(self.folder.path().join("data"))?;
        self.command("kafka.tools.StorageTool", &["format", "-t", OTHER_CLUSTER_ID, "-c", "server.properties"])?;
        self.run()
    }

    /// A broker on which nobody may do anything without a rule, besides us; and the address at which the users
    /// [`GUARDED_USERS`] log in (SASL/PLAIN, the password is the name).
    pub fn guarded() -> Outcome<(Self, String)> {
        let port = free_port()?;
        let users: Vec<String> = GUARDED_USERS.iter().map(|user| format!("user_{user}=\"{user}\"")).collect();
        let properties = format!(
            "allow.everyone.if.no.acl.found=false\n\
             super.users=User:ANONYMOUS\n\
             sasl.enabled.mechanisms=PLAIN\n\
             listener.name.guarded.plain.sasl.jaas.config=\
             org.apache.kafka.common.security.plain.PlainLoginModule required {};\n",
            users.join(" ")
        );
        let kafka = Self::start_with(0, &[("GUARDED", port, port, "SASL_PLAINTEXT")], &properties)?;
        Ok((kafka, format!("127.0.0.1:{port}")))
    }

    /// With one more listener, on this port, that speaks TLS and asks for a certificate of the same authority; clients are
    /// told to come to that address.
    pub fn start_tls(port: u16, address: SocketAddr, pair: &Pair, authority: &Authority) -> Outcome<Self> {
        let folder = pair.cert.with_extension("kafka");
        std::fs::create_dir_all(&folder)?;
        let (own, trusted) = (folder.join("own.pem"), folder.join("trusted.pem"));
        std::fs::write(&own, std::fs::read_to_string(&pair.key)? + &std::fs::read_to_string(&pair.cert)?)?;
        std::fs::write(&trusted, authority.pem())?;
        let properties = format!(
            "listener.name.tls.ssl.keystore.type=PEM\n\
             listener.name.tls.ssl.keystore.location={}\n\
             listener.name.tls.ssl.truststore.type=PEM\n\
             listener.name.tls.ssl.truststore.location={}\n\
             listener.name.tls.ssl.client.auth=required\n",
            own.display(),
            trusted.display()
        );
        Self::start_with(0, &[("TLS", port, address.port(), "SSL")], &properties)
    }

    fn start_with(links: usize, doors: &[(&str, u16, u16, &str)], properties: &str) -> Outcome<Self> {
        let folder = Folder::new("kafka")?;
        let (port, controller) = (free_port()?, free_port()?);
        let mut proxies = Vec::new();
        let mut listeners = format!("MAIN://127.0.0.1:{port}");
        let mut advertised = listeners.clone();
        let mut protocols = "MAIN:PLAINTEXT,CONTROLLER:PLAINTEXT".to_owned();
        for link in 0..links {
            let behind = free_port()?;
            let front = TcpListener::bind(("127.0.0.1", free_port()?))?;
            write!(listeners, ",LINK{link}://127.0.0.1:{behind}")?;
            write!(advertised, ",LINK{link}://{}", front.local_addr()?)?;
            write!(protocols, ",LINK{link}:PLAINTEXT")?;
            proxies.push(Proxy::of_kafka(front, behind)?);
        }
        for (name, port, told, protocol) in doors {
            write!(listeners, ",{name}://127.0.0.1:{port}")?;
            write!(advertised, ",{name}://127.0.0.1:{told}")?;
            write!(protocols, ",{name}:{protocol}")?;
        }
        let data = folder.path().join("data");
        let properties = format!(
            "{SETTINGS}\
             controller.quorum.voters=1@127.0.0.1:{controller}\n\
             listeners={listeners},CONTROLLER://127.0.0.1:{controller}\n\
             advertised.listeners={advertised}\n\
             listener.security.protocol.map={protocols}\n\
             log.dirs={}\n\
             {properties}",
            data.display()
        );
        std::fs::write(folder.path().join("server.properties"), properties)?;
        std::fs::write(folder.path().join("log4j2.properties"), LOGGING)?;
        let free = Mutex::new((0..links).collect());
        let kafka = Self { folder, port, process: Mutex::new(None), proxies, free, freed: Condvar::new() };
        kafka.command("kafka.tools.StorageTool", &["format", "-t", CLUSTER_ID, "-c", "server.properties"])?;
        kafka.run()?;
        Ok(kafka)
    }

    /// For clients without a proxy: the oracle.
    pub fn brokers(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// A link of one's own; waits until one is free.
    pub fn lease(&self) -> Outcome<Lease<'_>> {
        let mut free = self.free.lock()?;
        loop {
            if let Some(index) = free.pop() {
                return Ok(Lease { kafka: self, index });
            }
            free = self.freed.wait(free)?;
        }
    }

    /// kill -9.
    pub fn kill(&self) -> Outcome<()> {
        let mut process = self.process.lock()?;
        *process = None;
        Ok(())
    }

    /// Starts again on the same log; returns when it answers.
    pub fn run(&self) -> Outcome<()> {
        let mut command = Process::command("java");
        command.args(["-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]).args(class_path()?);
        command.args(["kafka.Kafka", "server.properties"]).current_dir(self.folder.path());
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.folder.path().join("log"))?;
        command.stdout(log.try_clone()?).stderr(log);
        let process = Process::start("kafka", command)?;
        *self.process.lock()? = Some(process);
        let answers = || Reader::probe(&self.brokers(), Duration::from_secs(1)).is_ok();
        wait_until("Kafka to answer", START_LIMIT, answers).map_err(|error| self.with_log(&error))
    }

    /// A topic that keeps everything for ever, with these settings besides.
    pub fn create_topic(&self, topic: &str, partitions: i32, settings: &[(&str, &str)]) -> Outcome<()> {
        super::topics::create_topic(&self.brokers(), topic, partitions, settings)
    }

    /// A new topic with a name of its own and one partition.
    pub fn topic(&self, claim: &str) -> Outcome<String> {
        let topic = unique_topic(claim);
        self.create_topic(&topic, 1, &[])?;
        Ok(topic)
    }

    /// Takes the right to write to a topic away from everyone, or gives it back.
    pub fn forbid_writing(&self, topic: &str, forbidden: bool) -> Outcome<()> {
        let brokers = self.brokers();
        let all = ["Read", "Describe", "DescribeConfigs"].map(|right| ["--operation", right]);
        let command = |verb, principal, rights: &[&str]| {
            let who = ["--bootstrap-server", &brokers, verb, "--force", principal, "User:*", "--topic", topic];
            self.command(acl_command()?, &[&who[..], rights].concat())
        };
        if forbidden {
            // A topic with any rule at all denies what no rule allows.
            command("--add", "--allow-principal", &all.concat())?;
            command("--add", "--deny-principal", &["--operation", "Write"])
        } else {
            command("--remove", "--deny-principal", &["--operation", "Write"])?;
            command("--add", "--allow-principal", &["--operation", "All"])
        }
    }

    /// Runs a line of a shell in which Kafka's own command line tools are found under their names.
    pub fn shell(&self, line: &str) -> Outcome<String> {
        let bin = self.folder.path().join("bin");
        std::fs::create_dir_all(&bin)?;
        let [cp, jars, _] = class_path()?;
        for (name, class) in [
            ("kafka-topics.sh", tool((3, 7), "org.apache.kafka.tools.TopicCommand", "kafka.admin.TopicCommand")?),
            ("kafka-configs.sh", "kafka.admin.ConfigCommand"),
            ("kafka-acls.sh", acl_command()?),
        ] {
            let script = format!("#!/bin/sh\nexec java -XX:TieredStopAtLevel=1 {cp} '{jars}' {class} \"$@\"\n");
            let file = bin.join(name);
            std::fs::write(&file, script)?;
            std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        }
        let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap_or_default());
        let output = Command::new("sh").args(["-ec", line]).env("PATH", path).stdin(Stdio::null()).output()?;
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        if output.status.success() { Ok(said) } else { trouble!("{line}: {said}") }
    }

    /// One of Kafka's own command line tools.
    fn command(&self, class: &str, arguments: &[&str]) -> Outcome<()> {
        let output = Command::new("java")
            .args(["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"])
            .args(class_path()?)
            .arg(class)
            .args(arguments)
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .output()?;
        if output.status.success() {
            return Ok(());
        }
        let said = [output.stdout, output.stderr].concat();
        trouble!("{class}: {}", String::from_utf8_lossy(&said))
    }

    fn with_log(&self, error: &Trouble) -> Trouble {
        let log = std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
        Trouble::new(format!("{error:?}\n{log}"))
    }
}

/// A link to the broker that belongs to one test; fair again when given back.
pub struct Lease<'a> {
    kafka: &'a Kafka,
    index: usize,
}

impl Lease<'_> {
    /// The proxy.
    pub fn proxy(&self) -> Outcome<&Proxy> {
        self.kafka.proxies.get(self.index).ok_or_else(|| Trouble::new("no such link"))
    }

    /// What the link does from now on.
    pub fn set(&self, weather: Weather) -> Outcome<()> {
        self.proxy()?.set(weather);
        Ok(())
    }

    /// For the agent's configuration.
    pub fn brokers(&self) -> Outcome<String> {
        Ok(self.proxy()?.address().to_string())
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        if let Some(proxy) = self.kafka.proxies.get(self.index) {
            proxy.set(Weather::Fair);
            proxy.delay(Duration::ZERO);
            proxy.narrow(0);
            // A poisoned lock means that another thread has failed its test.
            drop(proxy.refuse(None));
        }
        if let Ok(mut free) = self.kafka.free.lock() {
            free.push(self.index);
            self.kafka.freed.notify_one();
        }
    }
}

/// The folder of Kafka's own jars.
pub fn jars() -> Outcome<PathBuf> {
    let version = include_str!("../../kafka/pom.xml").split("<kafka.version>").nth(1).and_then(|t| t.split('<').next());
    let jars = match std::env::var_os("TIDEGATE_KAFKA_JARS") {
        Some(jars) => PathBuf::from(jars),
        None => cached(&format!("kafka-{}", version.unwrap_or_default()))?,
    };
    if jars.is_dir() { Ok(jars) } else { trouble!("no Kafka in {}: tests/run brings it", jars.display()) }
}

/// Where `tests/run` keeps what it has brought.
pub fn cached(name: &str) -> Outcome<PathBuf> {
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    match std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(home) {
        Some(cache) => Ok(cache.join("tidegate-tests").join(name)),
        None => trouble!("neither HOME nor XDG_CACHE_HOME"),
    }
}

/// Of the jars: major and minor version, `(4, 1)`.
fn version() -> Outcome<(u32, u32)> {
    for file in std::fs::read_dir(jars()?)? {
        let name = file?.file_name().to_string_lossy().into_owned();
        let Some(version) = name.strip_prefix("kafka-clients-") else { continue };
        let mut parts = version.split('.').map(str::parse);
        if let (Some(Ok(major)), Some(Ok(minor))) = (parts.next(), parts.next()) {
            return Ok((major, minor));
        }
    }
    trouble!("no kafka-clients in {}", jars()?.display())
}

/// Kafka's command line tools have moved, one after the other: the class since that version, and before.
fn tool(since: (u32, u32), class: &'static str, before: &'static str) -> Outcome<&'static str> {
    Ok(if version()? < since { before } else { class })
}

fn acl_command() -> Outcome<&'static str> {
    tool((4, 0), "org.apache.kafka.tools.AclCommand", "kafka.admin.AclCommand")
}

/// What `kafka-console-consumer.sh` runs.
pub fn console_consumer() -> Outcome<&'static str> {
    tool((3, 8), "org.apache.kafka.tools.consumer.ConsoleConsumer", "kafka.tools.ConsoleConsumer")
}

pub(super) fn class_path() -> Outcome<[String; 3]> {
    let jars = jars()?;
    Ok(["-cp".into(), format!("{}/*", jars.display()), "-Dlog4j2.configurationFile=log4j2.properties".into()])
}

/// Who can log in at a guarded broker.
pub const GUARDED_USERS: [&str; 2] = ["edge", "stranger"];

pub(super) const CLUSTER_ID: &str = "MkU3OEVBNTcwNTJENDM2Qk";

/// Of a cluster that takes its place.
const OTHER_CLUSTER_ID: &str = "NkU3OEVBNTcwNTJENDM2Qg";

/// Small, without waiting, and with rights that can be taken away: whoever no rule speaks of may do everything.
pub(super) const SETTINGS: &str = "\
process.roles=broker,controller
node.id=1
inter.broker.listener.name=MAIN
controller.listener.names=CONTROLLER
num.network.threads=1
num.io.threads=2
num.partitions=1
auto.create.topics.enable=false
offsets.topic.num.partitions=1
offsets.topic.replication.factor=1
transaction.state.log.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.num.partitions=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
log.retention.ms=-1
log.retention.check.interval.ms=2000
log.initial.task.delay.ms=1000
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
allow.everyone.if.no.acl.found=true
";

pub(super) const LOGGING: &str = "\
rootLogger.level=warn
rootLogger.appenderRef.out.ref=out
appender.out.type=Console
appender.out.name=out
appender.out.layout.type=PatternLayout
appender.out.layout.pattern=%d %p %m (%c)%n
";

#[cfg(test)]
mod tests {
    use super::super::topics::produce;
    use super::*;

    #[test]
    fn what_is_produced_is_read_back_also_through_a_link() {
        let kafka = shared().unwrap();
        let topic = kafka.topic("self-test").unwrap();
        let lease = kafka.lease().unwrap();
        produce(&kafka.brokers(), &topic, &[(b"k", b"1")]).unwrap();
        produce(&lease.brokers().unwrap(), &topic, &[(b"k", b"2"), (b"", b"\xff\x00")]).unwrap();
        let mut reader = Reader::open(&kafka.brokers(), &[&topic]).unwrap();
        let payloads: Vec<&[u8]> = reader.read_all().unwrap().iter().map(|record| &record.payload[..]).collect();
        assert_eq!(payloads, [&b"1"[..], b"2", b"\xff\x00"]);
        lease.set(Weather::Cut).unwrap();
        assert!(
            produce(&lease.brokers().unwrap(), &topic, &[(b"k", b"3")]).is_err(),
            "the cut link let a record through"
        );
    }

    #[test]
    fn the_right_to_write_is_taken_and_given_back() {
        let kafka = shared().unwrap();
        let topic = kafka.topic("self-test-rights").unwrap();
        kafka.forbid_writing(&topic, true).unwrap();
        assert!(produce(&kafka.brokers(), &topic, &[(b"k", b"1")]).is_err());
        kafka.forbid_writing(&topic, false).unwrap();
        produce(&kafka.brokers(), &topic, &[(b"k", b"2")]).unwrap();
    }
}
