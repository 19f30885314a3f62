//! The examples of docs/kafka.md's "Consumers", run: each reading once, whatever was aborted, repeated or sent again by a clone,
//! and none left out. The tests of clones and restored buffers run them on what real agents sent ([`examples_print`]).

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::support::kafka::{self, jars};
use crate::support::process::{Folder, Process};
use crate::support::stream::{Hand, Planted};
use crate::support::{Outcome, PATIENCE, Trouble, Verdict, trouble, wait_until};

const ONE: &str = "11111111-1111-4111-8111-111111111111";
/// A consumer that prints nothing for so long has printed all that there is.
const SILENCE: Duration = Duration::from_secs(2);

const CLONE: &str = "22222222-2222-4222-8222-222222222222";

/// Starts of the agent: before the copy was made, and of each by itself since.
const BOTH: &str = "00000000000000aa";
const ITS_OWN: &str = "00000000000000bb";
const CLONES: &str = "00000000000000cc";

/// The readings 1 to 12 of two sensors, those that a clone took in under the numbers 10 to 12, and two that were sent in
/// the wrong order, with all that can go wrong on the way; and what a consumer should print of them.
fn plant(topic: &str) -> Outcome<Vec<String>> {
    let brokers = kafka::shared()?.brokers();
    let event = |instance: &'static str, id: &str, was: Option<&str>, sequence: u64| Planted {
        topic,
        partition: 0,
        id: id.to_owned(),
        instance,
        was: was.map(str::to_owned),
        mqtt_topic: ["s/0", "s/1"][(sequence % 2) as usize],
        at_ms: 1,
    };
    let events_of = |instance, hand: &Hand, sequences: std::ops::RangeInclusive<u64>| -> Outcome<()> {
        for sequence in sequences {
            hand.event(&event(instance, &format!("{ONE}:{sequence}"), None, sequence))?;
        }
        Ok(())
    };
    let events = |hand: &Hand, sequences| events_of(BOTH, hand, sequences);
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
    // A clone: 7 once more, then what both have and only it has sent, then what it took in by itself.
    events_of(ITS_OWN, &hand, 10..=12)?;
    for sequence in 7..=12 {
        let instance = if sequence <= 9 { BOTH } else { CLONES };
        let (id, was) = (format!("{CLONE}:{sequence}"), format!("{ONE}:{sequence}"));
        hand.event(&event(instance, &id, Some(&was), sequence))?;
    }
    // What waited for long comes late.
    events_of(ITS_OWN, &hand, 15..=15)?;
    events_of(ITS_OWN, &hand, 13..=13)?;
    hand.commit()?;
    let sequences = (1..=6).chain([7]).chain(10..=12).chain(8..=9).chain(10..=12).chain([15, 13]);
    Ok(sequences.map(|sequence| format!("s/{}", sequence % 2)).collect())
}

/// Runs a consumer until it has printed what `is_enough`.
fn consumed(mut command: Command, topic: &str, is_enough: impl Fn(&str) -> bool) -> Outcome<Vec<String>> {
    let folder = Folder::new("consumer")?;
    let (out, err) = (folder.path().join("out"), folder.path().join("err"));
    // A group of its own: one that was killed is waited for by the others of its group.
    let group = kafka::unique_topic("group");
    command.args([&kafka::shared()?.brokers(), topic, &group]).current_dir(folder.path());
    command.stdout(std::fs::File::create(&out)?).stderr(std::fs::File::create(&err)?);
    let mut process = Process::start("consumer", command)?;
    let printed = || std::fs::read_to_string(&out).unwrap_or_default();
    wait_until("the last reading", PATIENCE, || process.exited().is_some() || is_enough(&printed()))
        .and_then(|()| if is_enough(&printed()) { Ok(()) } else { trouble!("it ended") })
        .map_err(|error| {
            let (printed, said) = (printed(), std::fs::read_to_string(&err).unwrap_or_default());
            Trouble(format!("{error:?}: {} lines, {printed:.2000} {said:.2000}", printed.lines().count()))
        })?;
    Ok(printed().lines().map(str::to_owned).collect())
}

fn each_reading_once(command: Command, claim: &str) -> Outcome<()> {
    let topic = kafka::shared()?.topic(claim)?;
    let wanted = plant(&topic)?;
    let hand = Hand::plain(&kafka::shared()?.brokers())?;
    let id = format!("{ONE}:100");
    hand.event(&Planted {
        topic: &topic,
        partition: 0,
        id,
        instance: ITS_OWN,
        was: None,
        mqtt_topic: "s/end",
        at_ms: 1,
    })?;
    hand.flush()?;
    let printed = consumed(command, &topic, |printed| printed.contains("s/end"))?;
    let topics: Vec<&str> = printed.iter().filter_map(|line| line.split(' ').next()).collect();
    assert_eq!(topics[..topics.len() - 1], wanted, "{printed:?}");
    Ok(())
}

fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(name)
}

fn java() -> Outcome<Command> {
    let mut command = Process::command("java");
    command.args(["-cp", &format!("{}/*", jars()?.display())]).arg(example("Consume.java"));
    Ok(command)
}

fn python() -> Outcome<Command> {
    let python = kafka::cached("python")?.join("bin/python");
    if !python.exists() {
        return trouble!("no {}: tests/run brings it", python.display());
    }
    let mut command = Process::command(python);
    command.arg(example("consume.py"));
    Ok(command)
}

/// Both examples, on a topic that is quiet now: each of these readings once. A reading is what was published, byte for
/// byte; the examples go by the headers.
pub fn examples_print(topic: &str, readings: usize) -> Outcome<Verdict> {
    let mut verdict = Ok(());
    for (name, command) in [("java", java()?), ("python", python()?)] {
        // A consumer has printed all when nothing comes any more.
        let last = std::cell::Cell::new((0, Instant::now()));
        let silent = |printed: &str| {
            let lines = printed.lines().count();
            if last.get().0 != lines {
                last.set((lines, Instant::now()));
            }
            lines > 0 && last.get().1.elapsed() > if lines >= readings { SILENCE } else { SILENCE * 4 }
        };
        let printed = consumed(command, topic, silent)?;
        let different: BTreeSet<&String> = printed.iter().collect();
        if printed.len() != readings || different.len() != readings {
            let (lines, different) = (printed.len(), different.len());
            verdict =
                trouble!("the {name} example printed {lines} lines, {different} different, for {readings} readings");
        }
    }
    Ok(verdict)
}

#[test]
fn the_java_example_prints_each_reading_once() -> Outcome<()> {
    each_reading_once(java()?, "consume-java")
}

#[test]
fn the_python_example_prints_each_reading_once() -> Outcome<()> {
    each_reading_once(python()?, "consume-python")
}
