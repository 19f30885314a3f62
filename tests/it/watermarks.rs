//! `delivery = "exactly-once"` where a buffer or the watermark topic is not what it was: restored copies, clones,
//! another gateway's open transaction before ours, a topic that is missing, deleted or not compacted.

use std::time::Duration;

use crate::consumers::examples_print;
use crate::support::agent::{Agent, Build, Gateway};
use crate::support::kafka::{self, unique_topic};
use crate::support::proxy::Weather;
use crate::support::publisher::{Plan, Publisher};
use crate::support::reader::{Reader, Record};
use crate::support::stage::{Stage, no_holes, once, watermark_topic, with_log};
use crate::support::topics::{OpenTransaction, delete_topic, policy, set_policy};
use crate::support::{Outcome, PATIENCE, Verdict, trouble, wait_until};

/// Copies a buffer that nobody uses now, as an image of the whole card does it: nothing here tells it from the original.
fn image_buffer(from: &Gateway, to: &std::path::Path) -> Outcome<()> {
    copy_buffer(from, to)?;
    Ok(std::fs::remove_file(to.join("identity"))?)
}

/// Copies a buffer that nobody uses now.
pub fn copy_buffer(from: &Gateway, to: &std::path::Path) -> Outcome<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from.data_dir())? {
        let entry = entry?;
        std::fs::copy(entry.path(), to.join(entry.file_name()))?;
    }
    Ok(())
}

#[test]
fn a_restored_older_copy_takes_a_new_identity_and_loses_no_new_reading() -> Outcome<()> {
    let kafka = kafka::shared()?;
    let stage = Stage::new(kafka, "restored")?;
    let link = kafka.lease()?;
    let mut gateway = Gateway::new(Build::Real, &link.brokers()?)?;
    gateway.exactly_once(&watermark_topic(kafka)?).listen("").route("#", &stage.topic);
    let publish = |name: &str, count| {
        Publisher::start(gateway.listener(), Plan::new(name, name, 2).count(count)).finish(PATIENCE)
    };
    let backup = gateway.path().join("backup");
    let mut agent = gateway.start()?;
    let mut logs = vec![publish("first", 500)?];
    agent.wait_book("delivered", 500)?;
    agent.stop(Duration::from_secs(10))?;
    image_buffer(&gateway, &backup)?;
    let mut agent = gateway.start()?;
    let old_id = agent.status()?["buffer_id"].to_string();
    logs.push(publish("second", 500)?);
    agent.wait_book("delivered", 1_000)?;
    agent.stop(Duration::from_secs(10))?;
    // The copy comes back, and takes new readings under the same sequences before it sees Kafka.
    std::fs::remove_dir_all(gateway.data_dir())?;
    std::fs::rename(&backup, gateway.data_dir())?;
    link.set(Weather::Cut)?;
    let mut agent = gateway.start()?;
    logs.push(publish("third", 800)?);
    link.set(Weather::Fair)?;
    agent.wait_log(&["ERROR", "taken a new identity"])?;
    // It begins anew behind that line, its page included.
    agent.wait_ready()?;
    let new_id = agent.status()?["buffer_id"].to_string();
    if new_id == old_id {
        return trouble!("the copy kept its identity {old_id}");
    }
    logs.push(publish("fourth", 100)?);
    agent.wait_book("delivered", 500 + 800 + 100)?;
    let mut reader = Reader::committed(&kafka.brokers(), &[&stage.topic])?;
    let was = |records: &[Record]| records.iter().filter(|record| record.header("tidegate-was").is_some()).count();
    let with_old_id = was(reader.read_until("all", PATIENCE, |records| records.len() >= 1_900)?);
    let topic = stage.topic.clone();
    let seen = stage.settle(&agent, &logs)?;
    eprintln!("{with_old_id} records bear the old id as well: {}", seen.books[1]);
    seen.books[1].once_into_the_buffer()?;
    if with_old_id != 800 {
        return trouble!("{with_old_id} of 800 records bear the old id");
    }
    examples_print(&topic, 1_900)?
}

#[test]
fn a_cloned_buffer_that_runs_twice_loses_nothing_and_ends_up_with_two_identities() -> Outcome<()> {
    let kafka = kafka::shared()?;
    let stage = Stage::new(kafka, "cloned")?;
    let watermarks = watermark_topic(kafka)?;
    let gateways = ["a", "b"].map(|_| -> Outcome<Gateway> {
        let mut gateway = Gateway::new(Build::Real, &kafka.brokers())?;
        gateway.exactly_once(&watermarks).listen("").route("#", &stage.topic);
        Ok(gateway)
    });
    let [first, second] = gateways;
    let (first, second) = (first?, second?);
    let mut agent = first.start()?;
    let publish = |gateway: &Gateway, name: &str, count| {
        Publisher::start(gateway.listener(), Plan::new(name, name, 2).count(count).rate(500))
    };
    let mut logs = vec![publish(&first, "before", 200).finish(PATIENCE)?];
    agent.wait_book("delivered", 200)?;
    agent.stop(Duration::from_secs(10))?;
    image_buffer(&first, &second.data_dir())?;
    let agents = [first.start()?, second.start()?];
    let publishers = [publish(&first, "one", 3_000), publish(&second, "two", 3_000)];
    for publisher in publishers {
        logs.push(publisher.finish(PATIENCE)?);
    }
    for agent in &agents {
        agent.wait_book("delivered", 200 + 3_000)?;
    }
    let ids = [agents[0].status()?["buffer_id"].to_string(), agents[1].status()?["buffer_id"].to_string()];
    let renamed = agents.iter().filter(|agent| agent.log().contains("taken a new identity")).count();
    let topic = stage.topic.clone();
    let seen = stage.settle(&agents[0], &logs)?;
    eprintln!("{ids:?}, {renamed} renamed: {}", seen.books[1]);
    if ids[0] == ids[1] || renamed != 1 {
        let verdict = trouble!("{ids:?}, {renamed} took a new identity");
        return with_log(with_log(verdict, &agents[0]), &agents[1]);
    }
    let books = &seen.books[1];
    if books.lost + books.foreign + books.misdirected > 0 {
        return trouble!("{books}");
    }
    examples_print(&topic, 6_200)?
}

/// Another gateway holds a transaction open in our partition of the watermark topic, before our last watermark: a
/// `read_committed` reader does not see that one. The agent, killed after that commit, must wait and not send again.
pub fn stalled_partition(build: Build) -> Outcome<Verdict> {
    let kafka = kafka::shared()?;
    let stage = Stage::new(kafka, "stalled")?;
    let watermarks = watermark_topic(kafka)?;
    let mut gateway = Gateway::new(Build::Real, &kafka.brokers())?;
    gateway.exactly_once(&watermarks).listen("").route("#", &stage.topic).environment("TIDEGATE_PLANT_AT", "1");
    let address = gateway.listener();
    let publish = |name: &str| Publisher::start(address, Plan::new(name, name, 2).count(200));
    let wait_watermark = |agent: &Agent| {
        wait_until("the watermark", PATIENCE, || {
            agent.status().is_ok_and(|status| status["kafka"]["transactions"]["watermark"] == 200)
        })
    };
    let mut agent = gateway.start()?;
    let mut logs = vec![publish("a").finish(PATIENCE)?];
    wait_watermark(&agent)?;
    agent.stop(Duration::from_secs(10))?;
    let mut agent = gateway.build(Build::Planted("die-committed")).start()?;
    wait_watermark(&agent)?;
    let other = OpenTransaction::begin(&kafka.brokers(), &watermarks)?;
    let publisher = publish("b");
    agent.wait(PATIENCE)?; // by its own hand, after a commit
    let agent = gateway.build(build).start()?;
    std::thread::sleep(Duration::from_secs(3));
    if build == Build::Real {
        agent.wait_log(&["another gateway's transaction is open"])?;
    }
    other.abort()?;
    logs.push(publisher.finish(PATIENCE)?);
    let seen = stage.settle(&agent, &logs)?;
    eprintln!("{}", seen.books[1]);
    Ok(once(&seen).and(no_holes(&[&seen])))
}

#[test]
fn a_transaction_that_another_gateway_holds_open_is_waited_for() -> Outcome<()> {
    stalled_partition(Build::Real)?
}

#[test]
fn a_watermark_topic_that_is_not_compacted_stops_the_sending_and_says_so_and_nothing_is_lost() -> Outcome<()> {
    let kafka = kafka::shared()?;
    let stage = Stage::new(kafka, "crooked")?;
    let watermarks = unique_topic("crooked-watermarks");
    kafka.create_topic(&watermarks, 1, &[])?;
    let mut gateway = Gateway::new(Build::Real, &kafka.brokers())?;
    gateway.exactly_once(&watermarks).listen("").route("#", &stage.topic);
    let agent = gateway.launch()?;
    agent.wait_log(&["WARN", "cleanup.policy", "set it to compact"])?;
    let log = Publisher::start(gateway.listener(), Plan::new("p", "p", 2).count(100)).finish(PATIENCE)?;
    agent.wait_book("held", 100)?;
    let ready = agent.get("/readyz")?;
    if ready.status == 200 || !ready.body.contains("watermark topic") {
        return trouble!("/readyz: {} {}", ready.status, ready.body);
    }
    set_policy(&kafka.brokers(), &watermarks, "compact")?;
    let seen = stage.settle(&agent, &[log])?;
    once(&seen).and(no_holes(&[&seen]))
}

#[test]
fn a_missing_watermark_topic_is_made_with_the_right_settings() -> Outcome<()> {
    let kafka = kafka::shared()?;
    let stage = Stage::new(kafka, "made")?;
    let watermarks = unique_topic("made-watermarks");
    let mut gateway = Gateway::new(Build::Real, &kafka.brokers())?;
    gateway.exactly_once(&watermarks).listen("").route("#", &stage.topic);
    let agent = gateway.start()?;
    let log = Publisher::start(gateway.listener(), Plan::new("p", "p", 2).count(100)).finish(PATIENCE)?;
    let seen = stage.settle(&agent, &[log])?;
    once(&seen)?;
    match policy(&kafka.brokers(), &watermarks)?.as_str() {
        "compact" => Ok(()),
        other => trouble!("cleanup.policy={other}"),
    }
}

/// The topic is deleted while the agent is away: the cursor of the buffer is kept, and somebody is told.
#[test]
fn a_deleted_watermark_topic_is_an_alarm_and_the_cursor_stays() -> Outcome<()> {
    let kafka = kafka::shared()?;
    let stage = Stage::new(kafka, "deleted")?;
    let watermarks = watermark_topic(kafka)?;
    let mut gateway = Gateway::new(Build::Real, &kafka.brokers())?;
    gateway.exactly_once(&watermarks).listen("").route("#", &stage.topic);
    let publish =
        |name: &str| Publisher::start(gateway.listener(), Plan::new(name, name, 2).count(300)).finish(PATIENCE);
    let mut agent = gateway.start()?;
    let mut logs = vec![publish("a")?];
    agent.wait_book("delivered", 300)?;
    agent.stop(Duration::from_secs(10))?;
    delete_topic(&kafka.brokers(), &watermarks)?;
    let agent = gateway.start()?;
    agent.wait_log(&["ERROR", "has lost this buffer's watermark"])?;
    logs.push(publish("b")?);
    let seen = stage.settle(&agent, &logs)?;
    once(&seen).and(no_holes(&[&seen]))
}
