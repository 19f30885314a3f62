//! The Kafka readers that people have, as they are installed: each reads a topic that the agent filled with its defaults,
//! with aborted records in it, and sees each reading once. And what strangers write stops no audit. franz-go is one of
//! them with `TIDEGATE_READERS=all`.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::agent::{Build, Gateway};
use crate::support::kafka::{self, Kafka, jars, unique_topic};
use crate::support::process::{Folder, Process};
use crate::support::publisher::{Plan, publish_all};
use crate::support::stage::watermark_topic;
use crate::support::stream::{Hand, Planted};
use crate::support::{Outcome, PATIENCE, Trouble, trouble, wait_until};

const STRANGER: &str = "11111111-1111-4111-8111-111111111111";

/// Readings before and behind the aborted ones.
const READINGS: u64 = 300;

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/readers").join(name)
}

fn python() -> Outcome<PathBuf> {
    let python = kafka::cached("python")?.join("bin/python");
    if python.exists() { Ok(python) } else { trouble!("no {}: tests/run brings it", python.display()) }
}

/// A topic with 2 × [`READINGS`] readings, all different, and 50 aborted records between them.
fn filled(kafka: &Kafka) -> Outcome<String> {
    let topic = kafka.topic("readers")?;
    let mut gateway = Gateway::new(Build::Real, &kafka.brokers())?;
    gateway.exactly_once(&watermark_topic(kafka)?).listen("").route("#", &topic);
    let agent = gateway.start()?;
    publish_all(gateway.listener(), Plan::new("before", "s/1", 1).count(READINGS))?;
    agent.wait_book("delivered", READINGS)?;
    let hand = Hand::new(&kafka.brokers(), &[("transactional.id", &topic), ("compression.type", "gzip")])?;
    hand.begin()?;
    for sequence in 1..=50 {
        let id = format!("{STRANGER}:{sequence}");
        hand.event(&Planted { topic: &topic, partition: 0, id, instance: "", was: None, mqtt_topic: "s/1", at_ms: 1 })?;
    }
    hand.abort()?;
    publish_all(gateway.listener(), Plan::new("behind", "s/1", 1).count(READINGS))?;
    agent.wait_book("delivered", 2 * READINGS)?;
    Ok(topic)
}

/// A reader that prints a line for each record: its value, after what else it wants to say and a tab.
struct Reading {
    name: &'static str,
    process: Process,
    folder: Folder,
}

impl Reading {
    fn start(name: &'static str, mut command: Command) -> Outcome<Self> {
        let folder = Folder::new("reader")?;
        let file = |name: &str| std::fs::File::create(folder.path().join(name));
        command.stdout(file("out")?).stderr(file("err")?).current_dir(folder.path());
        Ok(Self { name, process: Process::start(name, command)?, folder })
    }

    /// The values, when it has ended by itself.
    fn end(mut self) -> Outcome<Vec<String>> {
        let text = |name: &str| std::fs::read_to_string(self.folder.path().join(name)).unwrap_or_default();
        wait_until("the reader's end", PATIENCE * 2, || self.process.exited().is_some())
            .map_err(|error| Trouble(format!("{}: {error:?}: {}", self.name, text("err"))))?;
        let values: Vec<String> = text("out").lines().map(str::to_owned).collect();
        if values.is_empty() {
            trouble!("{}: nothing read: {}{}", self.name, text("out"), text("err"))
        } else {
            Ok(values)
        }
    }
}

/// `TIDEGATE_READERS=all`: franz-go as well, which takes `go` on the PATH and its module proxy.
fn go_is_asked_for() -> Outcome<bool> {
    match std::env::var("TIDEGATE_READERS") {
        Ok(word) if word == "all" => Ok(true),
        Ok(word) => trouble!("TIDEGATE_READERS={word}: \"all\" is what it can say"),
        Err(_unset) => Ok(false),
    }
}

#[test]
fn every_reader_sees_each_reading_once_as_it_is_installed() -> Outcome<()> {
    let kafka = kafka::shared()?;
    let topic = filled(kafka)?;
    let count = (2 * READINGS).to_string();
    let mut readers = Vec::new();
    for library in ["confluent", "kafka-python", "aiokafka"] {
        let mut command = Process::command(python()?);
        command.arg(script("read.py")).args([library, &kafka.brokers(), &topic, &count]);
        readers.push(Reading::start(library, command)?);
    }
    let mut java = Process::command("java");
    java.args(["-cp", &format!("{}/*", jars()?.display()), kafka::console_consumer()?]);
    java.args(["--bootstrap-server", &kafka.brokers(), "--topic", &topic, "--from-beginning"]);
    java.args(["--isolation-level", "read_committed", "--max-messages", &count, "--timeout-ms", "60000"]);
    readers.push(Reading::start("java", java)?);
    // Node is not on every machine; tests/run brings kafkajs where it is.
    let node = kafka::cached("node")?;
    if node.join("node_modules/kafkajs").exists() {
        let mut command = Process::command("node");
        command.env("NODE_PATH", node.join("node_modules")).arg(script("read.js"));
        command.args([&kafka.brokers(), &topic, &count]);
        readers.push(Reading::start("kafkajs", command)?);
    } else {
        eprintln!("kafkajs: not tried, there is no {}", node.display());
    }
    if go_is_asked_for()? {
        let mut command = Process::command("go");
        command.args(["run", "-C"]).arg(script("franz")).args([".", &kafka.brokers(), &topic, &count]);
        readers.push(Reading::start("franz-go", command)?);
    }
    for reader in readers {
        let name = reader.name;
        let mut values = reader.end()?;
        let all = values.len();
        values.sort();
        values.dedup();
        assert_eq!((all, values.len()), (2 * READINGS as usize, 2 * READINGS as usize), "{name}");
    }
    Ok(())
}

/// rdkafka panics at a header whose name is not UTF-8, and what is packaged aborts at a panic.
#[test]
fn no_record_of_a_stranger_stops_an_audit() -> Outcome<()> {
    let kafka = kafka::shared()?;
    let (topic, watermarks) = (kafka.topic("strangers")?, unique_topic("strangers-watermarks"));
    kafka.create_topic(&watermarks, 1, &[])?;
    let mut command = Process::command(python()?);
    command.arg(script("strangers.py")).args([&kafka.brokers(), &topic, &watermarks]);
    let output = command.output()?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let hand = Hand::plain(&kafka.brokers())?;
    for sequence in 1..=5 {
        let id = format!("{STRANGER}:{sequence}");
        hand.event(&Planted { topic: &topic, partition: 0, id, instance: "", was: None, mqtt_topic: "s/1", at_ms: 1 })?;
    }
    hand.flush()?;
    let mut audit = Process::command(Build::Real.binary()?);
    audit.args(["audit", "--brokers", &kafka.brokers(), "--topic", &topic, "--watermark-topic", &watermarks]);
    let output = audit.output()?;
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.contains("5 events of 1 buffers") && said.contains("6 records without a tidegate-id"), "{said}");
    assert!(!said.contains("panic"), "{said}");
    Ok(())
}
