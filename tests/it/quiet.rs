//! A run without trouble says nothing above INFO, and little of that; and nobody has to listen.

use std::process::{Command, Stdio};

use crate::support::Outcome;
use crate::support::agent::{Build, Gateway};
use crate::support::kafka;
use crate::support::mosquitto;
use crate::support::publisher::{Plan, publish_all};
use crate::support::settle::settle;
use crate::support::stage::watermark_topic;
use crate::support::wire::Version;

#[test]
fn a_run_without_trouble_logs_no_warning() -> Outcome<()> {
    let (kafka, broker) = (kafka::shared()?, mosquitto::shared()?);
    let topic = kafka.topic("quiet")?;
    let mut gateway = Gateway::new(Build::Real, &kafka.brokers())?;
    for version in Version::ALL {
        let name = format!("v{}", version.name());
        let more = format!("version = \"{}\"\n", version.name());
        gateway.subscribe(&name, &broker.url(), &format!("{topic}/{}/#", version.name()), 2, &more);
    }
    gateway.listen("").route("#", &topic);
    // Two lives: a restart is no trouble either.
    for life in 0..2 {
        let mut agent = gateway.start()?;
        agent.wait_subscribed(2)?;
        let mut logs = Vec::new();
        for version in Version::ALL {
            for (way, address) in [("broker", broker.address()), ("listener", gateway.listener())] {
                let name = format!("{topic}-{way}-{}-{life}", version.name());
                let plan =
                    Plan::new(&name, &format!("{topic}/{}/{way}", version.name()), 2).version(version).count(200);
                logs.push(publish_all(address, plan)?);
            }
        }
        agent.wait_book("received", 800 * (life + 1))?;
        agent.wait_book("held", 0)?;
        if life == 0 {
            settle(&agent, &kafka.brokers(), &[&topic], &logs)?.exactly_once()?;
        }
        assert!(agent.stop(crate::support::PATIENCE)?.success());
        let log = agent.log();
        for level in ["WARN", "ERROR"] {
            assert_eq!(agent.log_lines(level), Vec::<String>::new());
        }
        // JSON throughout: not a line that came from elsewhere, such as a library's own standard error.
        for line in log.lines() {
            assert!(serde_json::from_str::<serde_json::Value>(line).is_ok(), "not JSON: {line}");
        }
        assert!(log.lines().count() < 60, "{} lines for nothing:\n{log}", log.lines().count());
    }
    Ok(())
}

/// Ten readings a second, as from a handful of sensors: the thread that forwards sleeps until something happens. It wakes for
/// the reading, for `linger`, for each of Kafka's answers, and four times a second to be seen alive.
fn wakes_for_a_reading(exactly_once: bool) -> Outcome<u64> {
    const READINGS: u64 = 100;
    let kafka = kafka::shared()?;
    let topic = kafka.topic("sleeps")?;
    let mut gateway = Gateway::new(Build::Real, &kafka.brokers())?;
    gateway.listen("").route("#", &topic);
    if exactly_once {
        gateway.exactly_once(&watermark_topic(kafka)?);
    }
    let agent = gateway.start()?;
    publish_all(gateway.listener(), Plan::new("first", &topic, 1).count(1))?;
    agent.wait_book("delivered", 1)?;
    let (before, all_before) = (agent.sleeps("forward")?, agent.sleeps("")?);
    publish_all(gateway.listener(), Plan::new("sleeps", &topic, 1).count(READINGS).rate(10))?;
    agent.wait_book("delivered", READINGS + 1)?;
    let (own, all) = (agent.sleeps("forward")? - before, agent.sleeps("")? - all_before);
    eprintln!(
        "exactly once {exactly_once}: {own} wake-ups of the forwarder, {all} of the agent for {READINGS} readings"
    );
    Ok(own / READINGS)
}

#[test]
fn a_reading_that_comes_alone_wakes_the_forwarder_a_few_times() -> Outcome<()> {
    for (exactly_once, most) in [(false, 10), (true, 20)] {
        let wakes = wakes_for_a_reading(exactly_once)?;
        assert!(wakes < most, "{wakes} wake-ups of the forwarder for each reading, exactly once {exactly_once}");
    }
    Ok(())
}

/// Everything that prints and ends by itself.
const COMMANDS: [&[&str]; 6] =
    [&["check"], &["status"], &["status", "--json"], &["kafka-setup"], &["audit"], &["audit", "--json"]];

#[test]
fn a_command_ends_as_always_when_nobody_reads_what_it_says() -> Outcome<()> {
    let kafka = kafka::shared()?;
    let topic = kafka.topic("unheard")?;
    let mut gateway = Gateway::new(Build::Real, &kafka.brokers())?;
    gateway.listen("").route("#", &topic);
    let _agent = gateway.start()?;
    let good = gateway.path().join("tidegate.toml");
    let wrong = gateway.path().join("wrong.toml");
    std::fs::write(&wrong, "[agent]\nidd = \"a\"\n")?;
    // With a wrong configuration it is standard error that has something to say; so `run` ends by itself, too.
    let run: &[&str] = &["run"];
    let cases =
        COMMANDS.iter().map(|words| (words, &good)).chain(COMMANDS.iter().chain([&run]).map(|words| (words, &wrong)));
    for (words, file) in cases {
        let command = || -> Outcome<Command> {
            let mut command = Command::new(Build::Real.binary()?);
            command.args(*words).arg("--config").arg(file).stdin(Stdio::null());
            Ok(command)
        };
        let heard = command()?.output()?;
        assert!(!heard.stdout.is_empty() || !heard.stderr.is_empty(), "the control: {words:?} says something");
        let unheard = command()?.stdout(unread()?).output()?;
        let said = String::from_utf8_lossy(&unheard.stderr);
        assert_eq!(unheard.status, heard.status, "{words:?}, standard output unread: {said}");
        assert_eq!(unheard.stderr, heard.stderr, "{words:?}: {said}");
        let deaf = command()?.stdout(unread()?).stderr(unread()?).status()?;
        assert_eq!(deaf, heard.status, "{words:?}, both unread");
    }
    Ok(())
}

/// A pipe whose reader has left.
fn unread() -> Outcome<std::io::PipeWriter> {
    Ok(std::io::pipe()?.1)
}
