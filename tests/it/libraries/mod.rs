//! The client libraries that sensors speak through, as they are installed: each goes through passwords, the three QoS, a
//! retained reading, a subscription, a message that is too large, a listener that is away, kill -9 of the agent, and its
//! own sudden end. `docs/compatibility.md` has the result.
//!
//! `program.rs` has what a program of `tests/clients/` is told and says; all judging is done here.
//!
//! `TIDEGATE_CLIENTS=all`: five kills in 2,000 readings instead of one in 400.

mod program;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use serde_json::json;

use program::{Library, PASSWORD, Program, TooLarge, USER, script};

use crate::session::link;
use crate::support::agent::{Agent, Build, Gateway};
use crate::support::books::{Books, Missing};
use crate::support::kafka;
use crate::support::mosquitto::users_file;
use crate::support::process::Process;
use crate::support::proxy::{Proxy, Weather};
use crate::support::publisher::{Log, Plan};
use crate::support::reader::{Reader, Record};
use crate::support::settle::wait_while_anything_comes;
use crate::support::stage::with_log;
use crate::support::wire::Version;
use crate::support::{Outcome, PATIENCE, Trouble, Verdict, trouble, wait_for};

/// Published while the listener is away.
const AWAY: u64 = 500;

/// Stored and not answered when the agent is killed, of each client; Paho Java leaves at most 10 without an answer.
const UNANSWERED: u64 = 5;

/// Of each client, at each QoS, in quiet times.
const QUIET: u64 = 20;

/// More than a listener takes (`max_packet_bytes` is 960 KiB).
const TOO_LARGE: usize = 2_000_000;

fn all_is_asked_for() -> bool {
    std::env::var("TIDEGATE_CLIENTS").is_ok_and(|clients| clients == "all")
}

/// Readings of one client under one name, and how often they may be in Kafka a second time.
struct Batch {
    log: Log,
    repeats: u64,
}

/// All of them, of all clients of a program.
#[derive(Default)]
struct Batches(Vec<Batch>);

impl Batches {
    fn plan(client: &str, what: &str, qos: u8) -> Plan {
        Plan::new(&format!("{client}-{what}"), &format!("hall/{client}/{what}"), qos)
    }

    /// Once all was acknowledged.
    fn add(&mut self, plan: Plan, count: u64, repeats: u64) {
        self.0.push(Batch { log: Log::all_acknowledged(plan, count), repeats });
    }

    /// Each reading is in Kafka, retained if it was, and no more often than it may be.
    fn judge(&self, agent: &Agent, brokers: &str, topic: &str) -> Outcome<Verdict> {
        let logs: Vec<Log> = self.0.iter().map(|batch| batch.log.clone()).collect();
        let mut reader = Reader::open(brokers, &[topic])?;
        let mut missing = Missing::of(&logs);
        wait_while_anything_comes(agent, &mut reader, |records| missing.none(records))?;
        agent.wait_book("held", 0)?;
        let mut by_name: BTreeMap<String, Vec<Record>> = BTreeMap::new();
        for record in reader.read_all()? {
            let name = Plan::name_and_number(&record.payload).map(|(name, _)| name.to_owned());
            by_name.entry(name.unwrap_or_default()).or_default().push(record.clone());
        }
        let mut found = String::new();
        for Batch { log, repeats } in &self.0 {
            let name = &log.plan.name;
            let records = by_name.remove(name).unwrap_or_default();
            let books = Books::close(std::slice::from_ref(log), &records);
            let retained = records.iter().filter(|record| record.header("mqtt-retain").is_some()).count();
            let wanted = if name.ends_with("retained") { records.len() } else { 0 };
            let faults = books.lost + books.foreign + books.bad_ids + books.misdirected;
            if faults > 0 || books.taken_twice > *repeats || retained != wanted {
                write!(found, "{name}: {retained} retained, {repeats} repeats allowed: {books}")?;
            } else if books.taken_twice + books.out_of_order > 0 {
                eprintln!("{name}: {} repeats, {} out of order", books.taken_twice, books.out_of_order);
            }
        }
        if let Some(stranger) = by_name.values().flatten().next() {
            write!(found, "and a stranger: {}", stranger.payload.escape_ascii())?;
        }
        Ok(if found.is_empty() { Ok(()) } else { Err(Trouble(found)) })
    }
}

/// All scenarios, with all libraries of a program at once, at one gateway.
fn go_through(build: Build, program: &mut Program, libraries: &[Library]) -> Outcome<Verdict> {
    let kafka = kafka::shared()?;
    let topic = kafka.topic("libraries")?;
    let mut gateway = Gateway::new(build, &kafka.brokers())?;
    let users = users_file(gateway.path(), USER, PASSWORD)?;
    gateway.listen(&format!("users_file = \"{}\"\n", users.display())).route("#", &topic);
    let agent = gateway.start()?;
    let proxy = Proxy::start(gateway.listener().port())?;
    let mut batches = Batches::default();

    passwords(program, libraries, &proxy)?;
    let agent = away_and_killed(program, libraries, &gateway, agent, &proxy, &mut batches)?;
    let quiet = quiet_times(program, libraries, &agent, &proxy, &mut batches)
        .and_then(|()| too_large(program, libraries, &agent, &proxy, &mut batches))
        .and_then(|()| sudden_end(program, libraries, &proxy, &mut batches));
    quiet.map_err(|Trouble(why)| Trouble(format!("{why}\nlog:\n{}", agent.log())))?;
    Ok(with_log(batches.judge(&agent, &kafka.brokers(), &topic)?, &agent))
}

/// Without a password and with a wrong one: the application is told what it is.
fn passwords(program: &mut Program, libraries: &[Library], proxy: &Proxy) -> Outcome<()> {
    for library in libraries {
        for ((role, password), words) in [("nobody", None), ("wrong", Some("wrong"))].into_iter().zip(library.refusals)
        {
            program.order(library.open(role, proxy, password, &json!({})))?;
            let client = library.client(role);
            program.wait("a refusal", std::slice::from_ref(&client), |heard| !heard.refused.is_empty())?;
            let heard = program.heard(&client);
            if heard.connects > 0 || !heard.refused.iter().any(|refused| refused.contains(words)) {
                return trouble!("{client} was to hear {words:?}: {heard:?}");
            }
            program.order(json!({"do": "close", "client": client}))?;
        }
    }
    Ok(())
}

/// A client at QoS 1 and one at QoS 2: 500 readings are published while the listener is away, and cost one connection and
/// no repeat; then, while 400 are published, the agent is killed when it has stored some that it has not answered yet.
fn away_and_killed(
    program: &mut Program,
    libraries: &[Library],
    gateway: &Gateway,
    mut agent: Agent,
    proxy: &Proxy,
    batches: &mut Batches,
) -> Outcome<Agent> {
    let clients: Vec<(String, u8)> =
        libraries.iter().flat_map(|library| [1, 2].map(|qos| (library.client(&format!("q{qos}")), qos))).collect();
    let names: Vec<String> = clients.iter().map(|(name, _)| name.clone()).collect();
    for library in libraries {
        for role in ["q1", "q2"] {
            program.order(library.open(role, proxy, Some(PASSWORD), &json!({})))?;
        }
    }
    program.wait("the connection", &names, |heard| heard.connects == 1)?;
    proxy.set(Weather::Cut);
    agent.stop(PATIENCE)?;
    program.wait("the loss of the connection", &names, |heard| !heard.lost.is_empty())?;
    for (client, qos) in &clients {
        let plan = Batches::plan(client, "away", *qos);
        program.publish(client, &plan, 0..AWAY, 0)?;
        batches.add(plan, AWAY, 0);
    }
    let mut agent = gateway.start()?;
    proxy.set(Weather::Fair);
    program.wait("all that waited", &names, |heard| heard.acked == AWAY)?;
    let connects = link(&agent, 0, "connects").unwrap_or_default();
    if connects != clients.len() as u64 {
        return trouble!("{connects} connections of {} clients:\n{}", clients.len(), agent.log());
    }

    let (kills, count) = if all_is_asked_for() { (5, 2_000) } else { (1, 400) };
    for (client, qos) in &clients {
        program.publish(client, &Batches::plan(client, "killed", *qos), 0..count, 5)?;
    }
    // A repeat at QoS 1 is another reading for a listener that did not answer the first one.
    let mut unanswered = vec![0; clients.len()];
    for kill in 0..kills {
        let half_way = AWAY + count * (2 * kill + 1) / (2 * kills);
        // Not before all are back: mqtt.js tells its application that a publish has failed which it was just saying again.
        program.wait("half of them", &names, |heard| heard.acked >= half_way && heard.connects >= kill + 2)?;
        // A byte a second: no answer comes back any more.
        proxy.narrow_down(8);
        wait_unanswered(program, &agent, &names, AWAY + count)?;
        for (unanswered, client) in unanswered.iter_mut().zip(&names) {
            *unanswered += AWAY + count - program.heard(client).acked;
        }
        proxy.set(Weather::Cut);
        agent.kill();
        proxy.narrow_down(0);
        agent = gateway.start()?;
        proxy.set(Weather::Fair);
    }
    program
        .wait("all, after the kill", &names, |heard| heard.acked == AWAY + count)
        .map_err(|Trouble(why)| Trouble(format!("{why}\nlog:\n{}", agent.log())))?;
    for ((client, qos), unanswered) in clients.iter().zip(unanswered) {
        batches.add(Batches::plan(client, "killed", *qos), count, if *qos == 1 { unanswered } else { 0 });
        program.order(json!({"do": "close", "client": client}))?;
    }
    Ok(agent)
}

/// Waits until no answer comes any more, and the agent has taken in that much more than it was told of each client that has
/// not had all answers: a fast library may be through when a slow one is half way.
fn wait_unanswered(program: &mut Program, agent: &Agent, clients: &[String], all: u64) -> Outcome<()> {
    let (mut last, mut since) = (0, Instant::now());
    wait_for("readings without an answer", PATIENCE, || {
        program.listen();
        let acked: Vec<u64> = clients.iter().map(|client| program.heard(client).acked).collect();
        let wanted: u64 = acked.iter().map(|acked| UNANSWERED.min(all.saturating_sub(*acked))).sum();
        let acked = acked.iter().sum();
        if acked != last {
            (last, since) = (acked, Instant::now());
        }
        let enough = agent.book("received").ok()? >= acked + wanted;
        (enough && since.elapsed() > Duration::from_millis(300)).then_some(())
    })
}

/// Each QoS, a retained one, and a subscription to a command topic and to all of them, on one connection that lasts.
fn quiet_times(
    program: &mut Program,
    libraries: &[Library],
    agent: &Agent,
    proxy: &Proxy,
    batches: &mut Batches,
) -> Outcome<()> {
    let clients: Vec<String> = libraries.iter().map(|library| library.client("clean")).collect();
    let before = link(agent, 0, "subscriptions").unwrap_or_default();
    for library in libraries {
        program.order(library.open("clean", proxy, Some(PASSWORD), &json!({"persistent": false})))?;
    }
    program.wait("the connection", &clients, |heard| heard.connects == 1)?;
    for client in &clients {
        for (what, qos, count) in [("q0", 0, QUIET), ("q1", 1, QUIET), ("q2", 2, QUIET), ("retained", 1, 1)] {
            let plan = Batches::plan(client, what, qos);
            program.publish(client, &plan, 0..count, 0)?;
            batches.add(plan, count, 0);
        }
        program.order(json!({"do": "subscribe", "client": client, "filters": [format!("cmd/{client}"), "cmd/#"]}))?;
    }
    let until_here = 3 * QUIET + 1;
    program.wait("each QoS, and the subscription", &clients, |heard| {
        heard.acked == until_here && heard.granted == [1, 1]
    })?;
    for client in &clients {
        let plan = Batches::plan(client, "behind", 1);
        program.publish(client, &plan, 0..QUIET, 0)?;
        batches.add(plan, QUIET, 0);
    }
    program.wait("what is behind the subscription", &clients, |heard| heard.acked == until_here + QUIET)?;
    let counted = link(agent, 0, "subscriptions").unwrap_or_default() - before;
    if counted != 2 * clients.len() as u64 {
        return trouble!("{counted} subscriptions counted");
    }
    for client in &clients {
        let heard = program.heard(client);
        if heard.connects != 1 || !heard.lost.is_empty() || !heard.rejected.is_empty() {
            return trouble!("{client}: {heard:?}");
        }
        program.order(json!({"do": "close", "client": client}))?;
    }
    Ok(())
}

/// A message that is too large between two small ones.
fn too_large(
    program: &mut Program,
    libraries: &[Library],
    agent: &Agent,
    proxy: &Proxy,
    batches: &mut Batches,
) -> Outcome<()> {
    let dead_letters = agent.book("dead_lettered")?;
    for library in libraries {
        let client = library.client("large");
        program.order(library.open("large", proxy, Some(PASSWORD), &json!({})))?;
        program.wait("the connection", std::slice::from_ref(&client), |heard| heard.connects == 1)?;
        let plan = Batches::plan(&client, "small", 1);
        program.publish(&client, &plan, 0..1, 0)?;
        program.order(json!({
            "do": "publish", "client": client, "topic": plan.topic(0), "payloads": ["x".repeat(TOO_LARGE)],
            "qos": 1, "retain": false, "pause_ms": 0,
        }))?;
        program.publish(&client, &plan, 1..2, 0)?;
    }
    for library in libraries {
        let client = library.client("large");
        program.wait("the second small one", std::slice::from_ref(&client), |heard| match library.too_large {
            TooLarge::DeadLetter => heard.acked == 3,
            TooLarge::Told(_) => heard.acked == 2 && !heard.rejected.is_empty(),
        })?;
        let heard = program.heard(&client);
        let told = match library.too_large {
            TooLarge::DeadLetter => true,
            TooLarge::Told(words) => heard.rejected.iter().all(|why| why.contains(words)),
        };
        if heard.connects > 3 || !told {
            return trouble!("{client}: {heard:?}");
        }
        // rumqttc ends the connection by itself, and says again what was not answered before.
        batches.add(Batches::plan(&client, "small", 1), 2, heard.connects - 1);
        program.order(json!({"do": "close", "client": client}))?;
    }
    let on_the_books = libraries.iter().filter(|library| library.too_large == TooLarge::DeadLetter).count() as u64;
    agent.wait_book("dead_lettered", dead_letters + on_the_books)
}

/// The program dies without a DISCONNECT: the wills are readings.
fn sudden_end(program: &mut Program, libraries: &[Library], proxy: &Proxy, batches: &mut Batches) -> Outcome<()> {
    for library in libraries {
        let client = library.client("will");
        let plan = Batches::plan(&client, "will", 1);
        let payload = String::from_utf8_lossy(&plan.payload(0)).into_owned();
        let will = json!({"persistent": false, "will": {"topic": plan.topic(0), "payload": payload}});
        program.order(library.open("will", proxy, Some(PASSWORD), &will))?;
        program.wait("the connection", &[client], |heard| heard.connects == 1)?;
        batches.add(plan, 1, 0);
    }
    program.kill();
    Ok(())
}

#[test]
fn paho_for_python() -> Outcome<()> {
    let python = kafka::cached("python")?.join("bin/python");
    if !python.exists() {
        return trouble!("no {}: tests/run brings it", python.display());
    }
    let mut command = Process::command(python);
    command.arg(script("paho_python.py"));
    let libraries = [
        Library {
            name: "paho.py",
            version: Version::V311,
            refusals: ["Not authorized", "Bad user name or password"],
            too_large: TooLarge::DeadLetter,
        },
        Library {
            name: "paho.py",
            version: Version::V5,
            refusals: ["Not authorized", "Bad user name or password"],
            too_large: TooLarge::Told("Quota exceeded"),
        },
    ];
    go_through(Build::Real, &mut Program::start("paho_python.py", command)?, &libraries)??;
    Ok(())
}

/// Node is not on every machine; `tests/run` brings mqtt.js where it is.
#[test]
fn mqtt_js() -> Outcome<()> {
    go_through_mqtt_js(Build::Real)??;
    Ok(())
}

/// It never sets DUP.
pub fn go_through_mqtt_js(build: Build) -> Outcome<Verdict> {
    let node = kafka::cached("node")?;
    if !node.join("node_modules/mqtt").exists() {
        eprintln!("mqtt.js: not tried, there is no {}", node.display());
        return Ok(Ok(()));
    }
    let mut command = Process::command("node");
    command.env("NODE_PATH", node.join("node_modules")).arg(script("mqtt_js.js"));
    let libraries = [
        Library {
            name: "mqtt.js",
            version: Version::V311,
            refusals: ["Not authorized", "Bad username or password"],
            too_large: TooLarge::DeadLetter,
        },
        Library {
            name: "mqtt.js",
            version: Version::V5,
            refusals: ["Not authorized", "Bad User Name or Password"],
            too_large: TooLarge::Told("Quota exceeded"),
        },
    ];
    go_through(build, &mut Program::start("mqtt_js.js", command)?, &libraries)
}

#[test]
fn paho_and_hivemq_for_java() -> Outcome<()> {
    let pom = include_str!("../../clients/pom.xml");
    let list = pom.split("<list.version>").nth(1).and_then(|rest| rest.split('<').next()).unwrap_or_default();
    let jars = kafka::cached(&format!("mqtt-clients-{list}"))?;
    if !jars.exists() {
        return trouble!("no {}: tests/run brings it", jars.display());
    }
    let mut command = Process::command("java");
    command.args(["-XX:TieredStopAtLevel=1", "-Xmx256m", "-cp"]);
    command.arg(format!("{}/*:{}/*", jars.display(), kafka::jars()?.display())).arg(script("Clients.java"));
    let libraries = [
        Library {
            name: "paho-java",
            version: Version::V311,
            refusals: ["Not authorized to connect", "Bad user name or password"],
            too_large: TooLarge::DeadLetter,
        },
        Library {
            name: "paho-java",
            version: Version::V5,
            refusals: ["Not authorized", "Bad User Name or Password"],
            too_large: TooLarge::Told("reason 151"),
        },
        Library {
            name: "hivemq",
            version: Version::V311,
            refusals: ["NOT_AUTHORIZED", "BAD_USER_NAME_OR_PASSWORD"],
            too_large: TooLarge::DeadLetter,
        },
        Library {
            name: "hivemq",
            version: Version::V5,
            refusals: ["NOT_AUTHORIZED", "BAD_USER_NAME_OR_PASSWORD"],
            too_large: TooLarge::Told("exceeded maximum packet size"),
        },
    ];
    go_through(Build::Real, &mut Program::start("Clients.java", command)?, &libraries)??;
    Ok(())
}

#[test]
fn rumqttc() -> Outcome<()> {
    go_through_rumqttc(Build::Real)??;
    Ok(())
}

/// It never sets DUP, as mqtt.js.
pub fn go_through_rumqttc(build: Build) -> Outcome<Verdict> {
    let libraries = [
        Library {
            name: "rumqttc",
            version: Version::V311,
            refusals: ["NotAuthorized", "BadUserNamePassword"],
            too_large: TooLarge::DeadLetter,
        },
        Library {
            name: "rumqttc",
            version: Version::V5,
            refusals: ["NotAuthorized", "BadUserNamePassword"],
            too_large: TooLarge::Told("more than"),
        },
    ];
    go_through(build, &mut Program::start_rumqttc()?, &libraries)
}
