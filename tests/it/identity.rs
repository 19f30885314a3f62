//! One id, one reading: whatever became of the buffer's files, no id stands on two readings, nothing is lost, and with
//! exactly-once nothing comes twice. The log has lost its end; the disk was full at a start; a card was cloned.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::audit::audit;
use crate::consumers::examples_print;
use crate::support::agent::{Build, Gateway};
use crate::support::kafka;
use crate::support::proxy::Weather;
use crate::support::publisher::{Plan, Publisher};
use crate::support::reader::Reader;
use crate::support::stage::{Stage, once, watermark_topic, with_log};
use crate::support::{Outcome, PATIENCE, Trouble, Verdict, trouble, wait_until};
use crate::watermarks::copy_buffer;

/// How readings go to Kafka.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    AtLeastOnce,
    ExactlyOnce,
}

/// What a power cut takes from a log that was not synced: its end, and its index.
fn lose_the_end_of_the_log(data_dir: &Path) -> Outcome<()> {
    const FRAME: usize = 24 + 4096;
    let path = data_dir.join("buffer.db-wal");
    let log = std::fs::read(&path)?;
    let salts = log.get(16..24).unwrap_or_default();
    let frames =
        log.get(32..).unwrap_or_default().chunks(FRAME).take_while(|frame| frame.get(8..16) == Some(salts)).count();
    let kept = 32 + FRAME * (frames * 3 / 5);
    std::fs::OpenOptions::new().write(true).open(&path)?.set_len(kept as u64)?;
    std::fs::remove_file(data_dir.join("buffer.db-shm"))?;
    eprintln!("{} of {frames} frames of the log are kept", frames * 3 / 5);
    Ok(())
}

/// 400 readings are delivered, the last of which the buffer forgets; then come 100 new ones.
pub fn lost_tail(build: Build, way: Way) -> Outcome<Verdict> {
    let kafka = kafka::shared()?;
    let stage = Stage::new(kafka, "lost-tail")?;
    let mut gateway = Gateway::new(build, &kafka.brokers())?;
    let watermarks = if way == Way::ExactlyOnce { Some(watermark_topic(kafka)?) } else { None };
    if let Some(watermarks) = &watermarks {
        gateway.exactly_once(watermarks);
    }
    let topic = stage.topic.clone();
    gateway.listen("").buffer("sync = \"normal\"\n").route("#", &stage.topic);
    let publish = |name: &str, count| {
        Publisher::start(gateway.listener(), Plan::new(name, name, 2).count(count).rate(400)).finish(PATIENCE)
    };
    let agent = gateway.start()?;
    let mut logs = vec![publish("before", 400)?];
    agent.wait_book("delivered", 400)?;
    let id = agent.status()?["buffer_id"].clone();
    agent.kill();
    lose_the_end_of_the_log(&gateway.data_dir())?;
    let agent = gateway.start()?;
    if build == Build::Real {
        agent.wait_log(&["WARN", "are not used again"])?;
    }
    logs.push(publish("after", 100)?);
    let seen = stage.settle(&agent, &logs)?;
    eprintln!("{way:?}: {}", seen.books[1]);
    let verdict = match way {
        Way::AtLeastOnce => seen.books[1].once_into_the_buffer(),
        Way::ExactlyOnce => once(&seen),
    };
    let now = agent.status()?["buffer_id"].clone();
    let verdict = verdict.and(if now == id { Ok(()) } else { trouble!("{id} has become {now}") });
    let verdict = match watermarks {
        Some(watermarks) if verdict.is_ok() => verdict.and(left_out_is_declared(&topic, &watermarks)?),
        _ => verdict,
    };
    Ok(with_log(verdict, &agent))
}

/// The sequences that no reading will bear are explained at the centre.
fn left_out_is_declared(topic: &str, watermarks: &str) -> Outcome<Verdict> {
    let brokers = kafka::shared()?.brokers();
    let found = audit(&["--brokers", &brokers, "--topic", topic, "--watermark-topic", watermarks])?;
    let lost = &found.summary["missing"]["lost"];
    if found.code == Some(0) && lost.as_u64().is_some_and(|lost| lost > 0) {
        return Ok(Ok(()));
    }
    Ok(trouble!("audit: {lost} declared as lost; {}", found.said))
}

#[test]
fn no_id_is_given_out_twice_after_the_log_has_lost_its_end() -> Outcome<()> {
    lost_tail(Build::Real, Way::AtLeastOnce)?
}

#[test]
fn what_an_unsynced_buffer_has_forgotten_in_a_power_cut_is_its_own_past_and_not_a_twins() -> Outcome<()> {
    lost_tail(Build::Real, Way::ExactlyOnce)?
}

/// A card is cloned with 200 readings on it, and both go on. With at-least-once no watermark tells them apart.
pub fn cloned(build: Build) -> Outcome<Verdict> {
    let kafka = kafka::shared()?;
    let stage = Stage::new(kafka, "cloned-alo")?;
    let link = kafka.lease()?;
    let gateways = [(); 2].map(|()| -> Outcome<Gateway> {
        let mut gateway = Gateway::new(build, &link.brokers()?)?;
        gateway.listen("").route("#", &stage.topic);
        Ok(gateway)
    });
    let [first, second] = gateways;
    let (first, second) = (first?, second?);
    let publish = |gateway: &Gateway, name: &str, count| {
        Publisher::start(gateway.listener(), Plan::new(name, name, 2).count(count)).finish(PATIENCE)
    };
    link.set(Weather::Cut)?;
    let mut agent = first.start()?;
    let mut logs = vec![publish(&first, "both", 200)?];
    agent.stop(Duration::from_secs(10))?;
    copy_buffer(&first, &second.data_dir())?;
    link.set(Weather::Fair)?;
    let agents = [first.start()?, second.start()?];
    logs.push(publish(&first, "one", 300)?);
    logs.push(publish(&second, "two", 300)?);
    for agent in &agents {
        agent.wait_book("delivered", 500)?;
    }
    let topic = stage.topic.clone();
    let seen = stage.settle(&agents[0], &logs)?;
    let books = &seen.books[1];
    eprintln!("{books}");
    let ids = [agents[0].status()?["buffer_id"].clone(), agents[1].status()?["buffer_id"].clone()];
    let found = audit(&["--brokers", &kafka.brokers(), "--topic", &topic])?;
    let faults = books.lost + books.bad_ids + books.foreign + books.misdirected;
    let verdict = if faults > 0 || ids[0] == ids[1] || found.code != Some(0) {
        trouble!("{ids:?} {books} audit: {}", found.said)
    } else {
        Ok(())
    };
    Ok(with_log(verdict.and(examples_print(&topic, 800)?), &agents[1]))
}

#[test]
fn a_clone_takes_a_new_identity_with_at_least_once_and_readers_see_each_reading_once() -> Outcome<()> {
    cloned(Build::Real)?
}

/// A disk that somebody else can fill.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: PathBuf) -> Outcome<Self> {
        std::fs::create_dir_all(&at)?;
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=8m", "none"]).arg(&at).status()?;
        if mounted.success() { Ok(Self(at)) } else { trouble!("mount (needs root): {mounted}") }
    }

    /// Leaves not one page.
    fn fill(&self) -> Outcome<()> {
        use std::io::Write as _;
        let mut filler = std::fs::File::create(self.0.join("filler"))?;
        while filler.write_all(&[7; 4096]).is_ok() {}
        Ok(())
    }

    fn make_room(&self) -> Outcome<()> {
        Ok(std::fs::remove_file(self.0.join("filler"))?)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("-l").arg(&self.0).status());
    }
}

/// 1,000 readings are held, somebody else fills the disk, and the agent is started again, twice.
pub fn full_disk_at_start(build: Build) -> Outcome<Verdict> {
    let kafka = kafka::shared()?;
    let stage = Stage::new(kafka, "full-disk")?;
    let link = kafka.lease()?;
    let mut gateway = Gateway::new(build, &link.brokers()?)?;
    gateway.exactly_once(&watermark_topic(kafka)?).listen("").route("#", &stage.topic);
    let disk = SmallDisk::mount(gateway.data_dir())?;
    let publish = |name: &str, count| {
        Publisher::start(gateway.listener(), Plan::new(name, name, 2).count(count)).finish(PATIENCE)
    };
    let agent = gateway.start()?;
    let mut logs = vec![publish("first", 100)?];
    agent.wait_book("delivered", 100)?;
    let id = agent.status()?["buffer_id"].clone();
    link.set(Weather::Cut)?;
    logs.push(publish("held", 1_000)?);
    agent.wait_book("held", 1_000)?;
    agent.kill();
    disk.fill()?;
    link.set(Weather::Fair)?;
    let agent = gateway.launch()?;
    let mut reader = Reader::committed(&kafka.brokers(), &[&stage.topic])?;
    let mut blocked_since = None;
    wait_until("what it does", PATIENCE, || {
        let is_blocked = agent.status().is_ok_and(|status| {
            status["kafka"]["transactions"]["blocked"].as_str().is_some_and(|why| why.contains("make room"))
        });
        let all_sent = reader.read_all().is_ok_and(|records| records.len() >= 1_100);
        let since = *blocked_since.get_or_insert_with(Instant::now);
        if !is_blocked {
            blocked_since = None;
        }
        all_sent || is_blocked && since.elapsed() > Duration::from_secs(3)
    })
    .map_err(|error| Trouble::new(format!("{error:?}; log:\n{}", agent.log())))?;
    agent.kill();
    disk.make_room()?;
    let agent = gateway.start()?;
    logs.push(publish("after", 100)?);
    let seen = stage.settle(&agent, &logs)?;
    eprintln!("{}", seen.books[1]);
    let now = agent.status()?["buffer_id"].clone();
    let verdict = once(&seen).and(if now == id { Ok(()) } else { trouble!("{id} has become {now}: a false twin") });
    Ok(with_log(verdict, &agent))
}

#[test]
fn a_disk_that_is_full_at_a_start_makes_no_twin_of_that_start() -> Outcome<()> {
    full_disk_at_start(Build::Real)?
}
