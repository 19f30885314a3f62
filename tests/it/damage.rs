//! Damage to the buffer's file while readings wait in it: flipped bits, garbage pages, a missing head, a chunk that cannot
//! be read today and can tomorrow. It costs what is damaged and no more, and everything sound reaches Kafka once.

use std::os::unix::fs::FileExt;
use std::time::Duration;

use rusqlite::Connection;

use crate::audit::audit;
use crate::support::agent::{Agent, Build, Gateway};
use crate::support::kafka::{self, Lease};
use crate::support::proxy::Weather;
use crate::support::publisher::{Log, Plan, publish_all};
use crate::support::stage::{Stage, watermark_topic, with_log};
use crate::support::{Outcome, PATIENCE, Trouble, Verdict, trouble, wait_until};

const PAGE: u64 = 4096;

/// Readings that wait, a few hundred commits.
const HELD: u64 = 6_000;

/// How long to wait for what a planted bug prevents.
const IN_VAIN: Duration = Duration::from_secs(20);

/// A gateway whose agent is stopped, and whose buffer holds readings.
struct Scene {
    stage: Stage,
    link: Lease<'static>,
    gateway: Gateway,
    watermarks: String,
    before: Log,
    log: Log,
    buffer_id: String,
    planted: bool,
}

impl Scene {
    fn new(build: Build, claim: &str) -> Outcome<Self> {
        let kafka = kafka::shared()?;
        let stage = Stage::new(kafka, claim)?;
        let link = kafka.lease()?;
        let watermarks = watermark_topic(kafka)?;
        let mut gateway = Gateway::new(build, &link.brokers()?)?;
        gateway.exactly_once(&watermarks).listen("").route("#", &stage.topic);
        // Some are delivered before, so that there is a watermark to go on from.
        let mut agent = gateway.start()?;
        let before = publish_all(gateway.listener(), Plan::new("before", "t/before", 1).count(500))?;
        agent.wait_book("delivered", 500)?;
        link.set(Weather::Cut)?;
        let topics = (0..3).map(|n| format!("t/{n}")).collect();
        let log = publish_all(gateway.listener(), Plan::new("p", "", 1).topics(topics).count(HELD).window(20))?;
        let buffer_id = agent.status()?["buffer_id"].to_string();
        agent.stop(PATIENCE)?;
        let planted = build != Build::Real;
        Ok(Self { stage, link, gateway, watermarks, before, log, buffer_id, planted })
    }

    fn database(&self) -> Outcome<Connection> {
        Connection::open(self.gateway.data_dir().join("buffer.db")).map_err(|error| Trouble::new(error.to_string()))
    }

    fn sql(&self, line: &str) -> Outcome<()> {
        let changed = self.database()?.execute(line, []).map_err(|error| Trouble::new(error.to_string()))?;
        if changed == 1 { Ok(()) } else { trouble!("{line}: {changed} rows") }
    }

    /// Garbage in place of the page at that part of the file that holds rows.
    fn garbage_page(&self, percent: u64) -> Outcome<()> {
        let file =
            std::fs::OpenOptions::new().read(true).write(true).open(self.gateway.data_dir().join("buffer.db"))?;
        let pages = file.metadata()?.len() / PAGE;
        let mut page = pages * percent / 100;
        loop {
            let mut first = [0];
            file.read_exact_at(&mut first, page * PAGE)?;
            if first == [13] {
                break;
            }
            page += 1;
        }
        Ok(file.write_all_at(&[0x5a; PAGE as usize], page * PAGE)?)
    }

    fn set_aside(&self) -> Outcome<bool> {
        let names = std::fs::read_dir(self.gateway.data_dir())?.filter_map(Result::ok);
        Ok(names.into_iter().any(|entry| entry.file_name().to_string_lossy().starts_with("buffer.db.set-aside-")))
    }

    /// Starts the agent with Kafka there, and waits until nothing is held any more.
    fn drain(&self) -> Outcome<Result<Agent, Trouble>> {
        self.link.set(Weather::Fair)?;
        let agent = self.gateway.start()?;
        let limit = if self.planted { IN_VAIN } else { PATIENCE * 2 };
        let drained = wait_until("the buffer to be drained", limit, || agent.book("held").is_ok_and(|held| held == 0));
        Ok(match drained {
            Ok(()) => Ok(agent),
            Err(Trouble(in_vain)) => {
                with_log(Err(Trouble(format!("{in_vain}: {:?}", agent.status()))), &agent).map(|()| agent)
            }
        })
    }

    fn same_buffer(&self, agent: &Agent) -> Verdict {
        let now = agent.status().map(|status| status["buffer_id"].to_string()).unwrap_or_default();
        if now == self.buffer_id { Ok(()) } else { trouble!("buffer {} is now {now}", self.buffer_id) }
    }

    /// What is lost is on the books and declared: `audit` explains all.
    fn audited(&self) -> Verdict {
        let (brokers, id) = (kafka::shared()?.brokers(), self.buffer_id.trim_matches('"').to_owned());
        let topics = ["--topic", &self.stage.topic, "--watermark-topic", &self.watermarks, "--buffer", &id];
        let mut found = audit(&[&["--brokers", &brokers], &topics[..]].concat())?;
        for _ in 0..60 {
            if found.code == Some(0) {
                return Ok(());
            }
            // What is declared goes with the next transaction.
            std::thread::sleep(Duration::from_millis(500));
            found = audit(&[&["--brokers", &brokers], &topics[..]].concat())?;
        }
        trouble!("audit: {}", found.said)
    }

    /// Everything that was acknowledged is in Kafka once, but for so many; so many came late, behind others of their topic;
    /// the agent is the same, and takes more.
    fn settle(self, agent: &Agent, lost: u64, late: u64) -> Verdict {
        self.same_buffer(agent)?;
        let after = publish_all(self.gateway.listener(), Plan::new("after", "t/after", 1).count(200))?;
        agent.wait_book("held", 0)?;
        self.audited()?;
        let logs = [self.before, self.log, after];
        let seen = self.stage.settle(agent, &logs)?;
        eprintln!("{}", seen.books[1]);
        for mut books in seen.books {
            if (books.lost, books.out_of_order) != (lost, late) {
                return trouble!("{lost} should be lost and {late} late: {books}");
            }
            (books.lost, books.out_of_order) = (0, 0);
            books.once_into_the_buffer()?;
            if books.recognised > 0 {
                return trouble!("repeated: {books}");
            }
        }
        Ok(())
    }
}

fn overall(scene: Scene, judge: impl FnOnce(&Scene, &Agent) -> Outcome<(u64, u64)>) -> Outcome<Verdict> {
    let agent = match scene.drain()? {
        Ok(agent) => agent,
        Err(in_vain) => return Ok(Err(in_vain)),
    };
    let verdict = judge(&scene, &agent).and_then(|(lost, late)| scene.settle(&agent, lost, late));
    Ok(with_log(verdict, &agent))
}

/// The state row, of which nobody but its checksum notices a flipped bit.
pub fn flipped_bit_in_the_books(build: Build) -> Outcome<Verdict> {
    let scene = Scene::new(build, "flipped")?;
    scene.sql("UPDATE state SET body = CAST(substr(body, 1, 11) || x'5a' || substr(body, 13) AS BLOB)")?;
    overall(scene, |_, _| Ok((0, 0)))
}

#[test]
fn a_flipped_bit_in_the_books_costs_the_books_and_no_reading() -> Outcome<()> {
    flipped_bit_in_the_books(Build::Real)?
}

/// One page of many is garbage; it is met at work, some way into the backlog.
pub fn garbage_page(build: Build) -> Outcome<Verdict> {
    let scene = Scene::new(build, "garbage")?;
    scene.garbage_page(50)?;
    overall(scene, |scene, agent| {
        let lost = agent.book("lost")?;
        if lost == 0 || lost > HELD / 10 {
            return trouble!("{lost} lost with one page");
        }
        if !scene.set_aside()? {
            return trouble!("the damaged file was not kept");
        }
        Ok((lost, 0))
    })
}

#[test]
fn a_garbage_page_costs_what_was_on_it_and_the_rest_flows() -> Outcome<()> {
    garbage_page(Build::Real)?
}

#[test]
fn a_file_without_its_head_is_looked_through() -> Outcome<()> {
    let scene = Scene::new(Build::Real, "headless")?;
    let file = std::fs::OpenOptions::new().write(true).open(scene.gateway.data_dir().join("buffer.db"))?;
    file.write_all_at(&[0; PAGE as usize], 0)?;
    drop(file);
    overall(scene, |scene, agent| {
        agent.wait_log(&["ERROR", "the damaged database is rebuilt"])?;
        if scene.set_aside()? { Ok((0, 0)) } else { trouble!("the damaged file was not kept") }
    })?
}

/// One chunk cannot be read while Kafka is there, and can be read at the next start.
pub fn misread_once(build: Build) -> Outcome<Verdict> {
    let scene = Scene::new(build, "misread")?;
    let middle = "first = (SELECT max(first) FROM chunk WHERE first <= (SELECT max(last) / 2 FROM chunk))";
    let database = scene.database()?;
    let sound: (i64, i64, Vec<u8>) = database
        .query_row(&format!("SELECT first, last, body FROM chunk WHERE {middle}"), [], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?))
        })
        .map_err(|error| Trouble::new(error.to_string()))?;
    drop(database);
    let (first, last, body) = sound;
    let held = (last - first + 1) as u64;
    scene.sql(&format!("UPDATE chunk SET body = CAST(x'00' || substr(body, 2) AS BLOB) WHERE first = {first}"))?;
    scene.link.set(Weather::Fair)?;
    let mut agent = scene.gateway.start()?;
    agent.wait_book("held", held)?;
    wait_until("the watermark to pass it", PATIENCE, || {
        let status = agent.status().unwrap_or_default();
        status.pointer("/kafka/transactions/watermark").and_then(serde_json::Value::as_i64) > Some(last)
    })?;
    agent.stop(PATIENCE)?;
    scene
        .database()?
        .execute("UPDATE chunk SET body = ?1 WHERE first = ?2", (body, first))
        .map_err(|error| Trouble::new(error.to_string()))?;
    overall(scene, |_, _| Ok((0, held)))
}

#[test]
fn what_cannot_be_read_today_is_sent_when_it_can_be_read() -> Outcome<()> {
    misread_once(Build::Real)?
}
