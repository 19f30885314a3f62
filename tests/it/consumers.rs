//! The examples of README's "Consumers", run: each reading once, whatever was aborted, repeated or sent again by a clone.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::kafka::{self, jars};
use crate::support::process::{Folder, Process};
use crate::support::stream::{Hand, Planted};
use crate::support::{Outcome, PATIENCE, Trouble, trouble, wait_until};

const ONE: &str = "11111111-1111-4111-8111-111111111111";
const CLONE: &str = "22222222-2222-4222-8222-222222222222";

/// The readings 1 to 9 of two sensors, with all that can go wrong on the way; and what a consumer should print of them.
fn plant(topic: &str) -> Outcome<Vec<String>> {
    let brokers = kafka::shared()?.brokers();
    let event = |id: &str, was: Option<&str>, sequence: u64| Planted {
        topic,
        partition: 0,
        id: id.to_owned(),
        was: was.map(str::to_owned),
        mqtt_topic: ["s/0", "s/1"][(sequence % 2) as usize],
        at_ms: 1,
    };
    let events = |hand: &Hand, sequences: std::ops::RangeInclusive<u64>| -> Outcome<()> {
        for sequence in sequences {
            hand.event(&event(&format!("{ONE}:{sequence}"), None, sequence))?;
        }
        Ok(())
    };
    let hand = Hand::transactional(&brokers, topic)?;
    hand.begin()?;
    events(&hand, 1..=4)?;
    hand.commit()?;
    hand.begin()?;
    events(&hand, 5..=9)?;
    hand.abort()?;
    hand.begin()?;
    // A batch that comes again, as at-least-once does it, and goes on.
    events(&hand, 3..=7)?;
    // A clone: 7 once more, then what only it has.
    for sequence in 7..=9 {
        hand.event(&event(&format!("{CLONE}:{sequence}"), Some(&format!("{ONE}:{sequence}")), sequence))?;
    }
    hand.commit()?;
    Ok((1..=9).map(|sequence| format!("s/{}", sequence % 2)).collect())
}

/// Runs a consumer until it has printed as much as it should, and a while longer by a last reading that ends it.
fn consumed(mut command: Command, topic: &str) -> Outcome<Vec<String>> {
    let folder = Folder::new("consumer")?;
    let (out, err) = (folder.path().join("out"), folder.path().join("err"));
    command.args([&kafka::shared()?.brokers(), topic]).current_dir(folder.path());
    command.stdout(std::fs::File::create(&out)?).stderr(std::fs::File::create(&err)?);
    let mut process = Process::start("consumer", command)?;
    let printed = || std::fs::read_to_string(&out).unwrap_or_default();
    wait_until("the last reading", PATIENCE, || process.exited().is_some() || printed().contains("s/end"))
        .and_then(|()| if printed().contains("s/end") { Ok(()) } else { trouble!("it ended") })
        .map_err(|error| {
            Trouble(format!("{error:?}: {} {}", printed(), std::fs::read_to_string(&err).unwrap_or_default()))
        })?;
    Ok(printed().lines().map(str::to_owned).collect())
}

fn each_reading_once(command: Command, claim: &str) -> Outcome<()> {
    let topic = kafka::shared()?.topic(claim)?;
    let wanted = plant(&topic)?;
    let hand = Hand::plain(&kafka::shared()?.brokers())?;
    let id = format!("{ONE}:100");
    hand.event(&Planted { topic: &topic, partition: 0, id, was: None, mqtt_topic: "s/end", at_ms: 1 })?;
    hand.flush()?;
    let printed = consumed(command, &topic)?;
    let topics: Vec<&str> = printed.iter().filter_map(|line| line.split(' ').next()).collect();
    assert_eq!(topics[..topics.len() - 1], wanted, "{printed:?}");
    Ok(())
}

fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(name)
}

#[test]
fn the_java_example_prints_each_reading_once() -> Outcome<()> {
    let mut command = Process::command("java");
    command.args(["-cp", &format!("{}/*", jars()?.display())]).arg(example("Consume.java"));
    each_reading_once(command, "consume-java")
}

#[test]
fn the_python_example_prints_each_reading_once() -> Outcome<()> {
    let python = kafka::cached("python")?.join("bin/python");
    if !python.exists() {
        return trouble!("no {}: tests/run brings it", python.display());
    }
    let mut command = Process::command(python);
    command.arg(example("consume.py"));
    each_reading_once(command, "consume-python")
}
