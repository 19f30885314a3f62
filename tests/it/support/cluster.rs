//! Three real brokers that replicate, each with its own controller: one can die and the others go on.

use std::process::{Command, Stdio};
use std::time::Duration;

use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};

use super::kafka::{CLUSTER_ID, LOGGING, SETTINGS, class_path};
use super::process::{Folder, Process, free_port};
use super::reader::Reader;
use super::topics::create_replicated_topic;
use super::{Outcome, trouble, wait_for, wait_until};

/// Node ids are 1, 2 and 3. Every topic has three replicas, of which two must confirm.
const NODES: usize = 3;

/// A node needs some seconds; three of them share two cores with everything else.
const START_LIMIT: Duration = Duration::from_secs(180);

/// A dead leader is noticed after `broker.session.timeout.ms`, and its replicas catch up when it is back.
const REPAIR_LIMIT: Duration = Duration::from_secs(120);

/// Brokers 1, 2 and 3.
pub struct Cluster {
    nodes: Vec<Node>,
}

struct Node {
    folder: Folder,
    port: u16,
    process: Option<Process>,
}

impl Cluster {
    /// Formats three new logs and starts on them; returns when all three are known to all.
    pub fn start() -> Outcome<Self> {
        let ports = (0..NODES).map(|_| Ok((free_port()?, free_port()?))).collect::<Outcome<Vec<_>>>()?;
        let voters: Vec<String> =
            (1..).zip(&ports).map(|(id, (_, controller))| format!("{id}@127.0.0.1:{controller}")).collect();
        let mut nodes = Vec::new();
        for (id, (port, controller)) in (1..).zip(&ports) {
            let folder = Folder::new("cluster")?;
            // The settings come behind the shared ones: of a property that is there twice, the last one counts.
            let properties = format!(
                "{SETTINGS}{REPLICATED}\
                 node.id={id}\n\
                 controller.quorum.voters={}\n\
                 listeners=MAIN://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}\n\
                 advertised.listeners=MAIN://127.0.0.1:{port}\n\
                 listener.security.protocol.map=MAIN:PLAINTEXT,CONTROLLER:PLAINTEXT\n\
                 log.dirs={}\n",
                voters.join(","),
                folder.path().join("data").display()
            );
            std::fs::write(folder.path().join("server.properties"), properties)?;
            std::fs::write(folder.path().join("log4j2.properties"), LOGGING)?;
            nodes.push(Node { folder, port: *port, process: None });
        }
        let mut cluster = Self { nodes };
        for node in &mut cluster.nodes {
            node.format()?;
        }
        for node in &mut cluster.nodes {
            node.run()?;
        }
        for node in &cluster.nodes {
            wait_until("a broker of the cluster to answer", START_LIMIT, || node.knows(NODES))?;
        }
        Ok(cluster)
    }

    /// All of them.
    pub fn brokers(&self) -> String {
        self.nodes.iter().map(Node::address).collect::<Vec<_>>().join(",")
    }

    /// A topic with three replicas.
    pub fn topic(&self, claim: &str, partitions: i32, settings: &[(&str, &str)]) -> Outcome<String> {
        let topic = super::kafka::unique_topic(claim);
        create_replicated_topic(&self.brokers(), &topic, partitions, NODES as i32, settings)?;
        Ok(topic)
    }

    /// A topic with so many replicas whose only partition has one of them on that node.
    pub fn topic_on(&self, node: usize, claim: &str, replicas: i32, settings: &[(&str, &str)]) -> Outcome<String> {
        // The controller chooses; among some, one is right.
        for _ in 0..30 {
            let topic = super::kafka::unique_topic(claim);
            create_replicated_topic(&self.brokers(), &topic, 1, replicas, settings)?;
            let holds = |found: &rdkafka::metadata::MetadataTopic| {
                found.partitions().first().filter(|p| p.leader() > 0).map(|p| p.replicas().contains(&(node as i32)))
            };
            if wait_for("a leader", REPAIR_LIMIT, || self.ask(&topic, holds).flatten())? {
                return Ok(topic);
            }
        }
        trouble!("no topic came to node {node}")
    }

    /// A topic with these partitions, each with one replica.
    pub fn scattered(&self, claim: &str, partitions: i32, settings: &[(&str, &str)]) -> Outcome<String> {
        let topic = super::kafka::unique_topic(claim);
        create_replicated_topic(&self.brokers(), &topic, partitions, 1, settings)?;
        Ok(topic)
    }

    /// Which node leads a partition.
    pub fn leader_of(&self, topic: &str, partition: i32) -> Outcome<usize> {
        let led = || self.leader(topic, partition).filter(|leader| *leader > 0);
        Ok(usize::try_from(wait_for("a leader", REPAIR_LIMIT, led)?)?)
    }

    /// kill -9, and waits until the others know that partition to be without a leader.
    pub fn kill(&mut self, node: usize, topic: &str) -> Outcome<()> {
        match self.nodes.get_mut(node.saturating_sub(1)) {
            Some(node) => node.process = None,
            None => return trouble!("no node {node}"),
        }
        wait_until("a partition without a leader", REPAIR_LIMIT, || self.leader(topic, 0).is_some_and(|now| now < 0))
    }

    /// Starts it again.
    pub fn revive(&mut self, node: usize) -> Outcome<()> {
        match self.nodes.get_mut(node.saturating_sub(1)) {
            Some(node) => node.run(),
            None => trouble!("no node {node}"),
        }
    }

    /// Kills the leader of that partition, waits until another one leads, starts the dead one again and waits until
    /// all replicas of all of the topic's partitions are in sync.
    pub fn kill_leader(&mut self, topic: &str, partition: i32) -> Outcome<()> {
        let leader = wait_for("a leader", REPAIR_LIMIT, || self.leader(topic, partition))?;
        let dead = usize::try_from(leader)?.saturating_sub(1);
        match self.nodes.get_mut(dead) {
            Some(node) => node.process = None,
            None => return trouble!("node {leader} leads {topic}"),
        }
        wait_until("another leader", REPAIR_LIMIT, || {
            self.leader(topic, partition).is_some_and(|now| now != leader && now > 0)
        })?;
        if let Some(node) = self.nodes.get_mut(dead) {
            node.run()?;
        }
        wait_until("all replicas to be in sync", REPAIR_LIMIT, || self.in_sync(topic))
    }

    fn leader(&self, topic: &str, partition: i32) -> Option<i32> {
        self.ask(topic, |found| {
            found.partitions().iter().find(|p| p.id() == partition).map(rdkafka::metadata::MetadataPartition::leader)
        })?
    }

    fn in_sync(&self, topic: &str) -> bool {
        self.ask(topic, |found| found.partitions().iter().all(|p| p.isr().len() == NODES)).unwrap_or(false)
    }

    fn ask<T>(&self, topic: &str, look: impl FnOnce(&rdkafka::metadata::MetadataTopic) -> T) -> Option<T> {
        let consumer: BaseConsumer =
            ClientConfig::new().set("bootstrap.servers", self.brokers()).set("log_level", "0").create().ok()?;
        let metadata = consumer.fetch_metadata(Some(topic), Duration::from_secs(5)).ok()?;
        metadata.topics().first().filter(|found| found.error().is_none()).map(look)
    }
}

impl Node {
    fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    fn format(&self) -> Outcome<()> {
        let mut command = Command::new("java");
        command.args(["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"]).args(class_path()?);
        command.args(["kafka.tools.StorageTool", "format", "-t", CLUSTER_ID, "-c", "server.properties"]);
        let output = command.current_dir(self.folder.path()).stdin(Stdio::null()).output()?;
        if output.status.success() {
            return Ok(());
        }
        trouble!("format: {}", String::from_utf8_lossy(&[output.stdout, output.stderr].concat()))
    }

    fn run(&mut self) -> Outcome<()> {
        let mut command = Process::command("java");
        command.args(["-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]).args(class_path()?);
        command.args(["kafka.Kafka", "server.properties"]).current_dir(self.folder.path());
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.folder.path().join("log"))?;
        command.stdout(log.try_clone()?).stderr(log);
        self.process = Some(Process::start("kafka", command)?);
        Ok(())
    }

    fn knows(&self, nodes: usize) -> bool {
        Reader::brokers(&self.address(), Duration::from_secs(2)).is_ok_and(|known| known == nodes)
    }
}

/// A leader that dies is missed after 3 s. The controllers vote before the rules on who may are known to them.
const REPLICATED: &str = "\
default.replication.factor=3
min.insync.replicas=2
offsets.topic.replication.factor=3
transaction.state.log.replication.factor=3
transaction.state.log.min.isr=2
share.coordinator.state.topic.replication.factor=3
share.coordinator.state.topic.min.isr=2
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
controller.quorum.election.timeout.ms=1000
controller.quorum.fetch.timeout.ms=2000
replica.lag.time.max.ms=5000
unclean.leader.election.enable=false
super.users=User:ANONYMOUS
";
