//! Nothing that a network, a broker, a certificate or a name server does is final, and no wait is silent: each state in
//! which librdkafka would never try again, or would hold up its caller, is provoked here.

use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use rcgen::ExtendedKeyUsagePurpose;

use crate::support::agent::{Agent, Build, Gateway};
use crate::support::certificates::{Authority, Claims};
use crate::support::cluster::Cluster;
use crate::support::kafka::{self, Kafka};
use crate::support::process::{Folder, free_port};
use crate::support::proxy::{Proxy, Weather};
use crate::support::publisher::{Log, Plan, Publisher, publish_all};
use crate::support::reader::Reader;
use crate::support::settle::settle_committed;
use crate::support::stage::{watermark_topic, with_log};
use crate::support::topics::delete_topic;
use crate::support::{Outcome, PATIENCE, Trouble, Verdict, trouble, wait_until};

/// What a gateway waits for, by `/status`.
fn waiting(agent: &Agent) -> Option<(String, String)> {
    let status = agent.status().ok()?;
    let waiting = status.pointer("/kafka/waiting").filter(|waiting| !waiting.is_null())?;
    let text = |key: &str| waiting.get(key).and_then(serde_json::Value::as_str).map(str::to_owned);
    Some((text("reason")?, text("why")?))
}

/// Waits until `/status`, the metric and the log all tell that reason; how long that took.
fn told(agent: &Agent, reason: &str) -> Outcome<Duration> {
    let begin = Instant::now();
    let metric = format!("tidegate_kafka_waiting{{reason=\"{reason}\"}}");
    let mark = format!("\"reason\":\"{reason}\"");
    wait_until(&format!("the reason {reason}"), PATIENCE, || {
        waiting(agent).is_some_and(|(told, why)| told == reason && !why.is_empty())
            && agent.metric(&metric).is_ok_and(|value| value > 0.5)
            && agent.log().lines().any(|line| line.contains("readings wait") && line.contains(&mark))
    })
    .map_err(|error| Trouble::new(format!("{error:?}, but {:?}; log:\n{}", waiting(agent), agent.log())))?;
    Ok(begin.elapsed())
}

/// Publishes so many, and waits until Kafka has them.
fn flows(gateway: &Gateway, agent: &Agent, name: &str, count: u64) -> Outcome<Log> {
    let before = agent.book("delivered")?;
    let log = publish_all(gateway.listener(), Plan::new(name, "t/1", 1).count(count))?;
    wait_until(&format!("{name} to be delivered"), PATIENCE * 4, || {
        agent.book("delivered").is_ok_and(|now| now >= before + count)
    })
    .map_err(|error| Trouble::new(format!("{error:?}; waits for {:?}; log:\n{}", waiting(agent), agent.log())))?;
    Ok(log)
}

/// One broker, as it comes: transactions want three. Then it is set right; its watermark topic is deleted and made again;
/// and it is replaced by another cluster. Two gateways, one of each delivery, go on unaided.
#[test]
fn a_kafka_that_cannot_do_it_or_is_not_the_same_any_more_is_waited_for_and_named() -> Outcome<()> {
    let wants_three = "transaction.state.log.replication.factor=3\ntransaction.state.log.min.isr=2\n";
    let kafka = Kafka::with(wants_three)?;
    let (topic, watermarks) = (kafka.topic("first")?, watermark_topic(&kafka)?);
    let mut exactly = Gateway::new(Build::Real, &kafka.brokers())?;
    exactly.exactly_once(&watermarks).listen("").route("#", &topic);
    let mut at_least = Gateway::new(Build::Real, &kafka.brokers())?;
    at_least.listen("").route("#", &topic);
    let agents = [exactly.start()?, at_least.start()?];
    let gateways = [&exactly, &at_least];

    publish_all(exactly.listener(), Plan::new("early", "t/0", 1).count(100))?;
    let after = told(&agents[0], "no_coordinator")?;
    eprintln!("told after {after:?}: {:?}", waiting(&agents[0]));
    let ready = agents[0].get("/readyz")?.status;
    assert_eq!(ready, 200, "Kafka is no reason not to take readings");
    let said = exactly.command(&["kafka-setup", "--watermark-topic", &watermarks])?;
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(said.contains("transaction.state.log.replication.factor=3"), "{said}");
    kafka.run_with("transaction.state.log.replication.factor=1\ntransaction.state.log.min.isr=1\n")?;
    agents[0].wait_book("delivered", 100)?;
    agents[0].wait_log(&["readings flow again"])?;
    for (gateway, agent) in gateways.iter().zip(&agents) {
        flows(gateway, agent, "set-right", 100)?;
    }

    for topic in [&watermarks, &topic] {
        delete_topic(&kafka.brokers(), topic)?;
    }
    wait_until("the topics to be gone", PATIENCE, || {
        [&watermarks, &topic].iter().all(|topic| Reader::open(&kafka.brokers(), &[topic]).is_err())
    })?;
    kafka.create_topic(&watermarks, 1, &[("cleanup.policy", "compact")])?;
    kafka.create_topic(&topic, 1, &[])?;
    for (gateway, agent) in gateways.iter().zip(&agents) {
        flows(gateway, agent, "made-again", 100)?;
    }

    kafka.replace()?;
    kafka.create_topic(&watermarks, 1, &[("cleanup.policy", "compact")])?;
    kafka.create_topic(&topic, 1, &[])?;
    let mut logs = Vec::new();
    for (gateway, agent) in gateways.iter().zip(&agents) {
        logs.push(flows(gateway, agent, if logs.is_empty() { "another-1" } else { "another-2" }, 100)?);
        agent.wait_book("held", 0)?;
    }
    settle_committed(&agents[1], &kafka.brokers(), &[&topic], &logs)?.at_least_once()
}

/// A broker dies, and with it the only replica of one topic and one of two of another. Both wait alone, in order, and say
/// why; a third one flows; a gateway that starts meanwhile begins although somebody else's partition of the watermark
/// topic has no leader. When the broker comes back, all come.
/// Where a Java client sends that key, whose length is a multiple of four: murmur2, made positive, modulo.
fn partition_of(key: &str, partitions: u32) -> i32 {
    const M: u32 = 0x5bd1_e995;
    let (words, rest) = key.as_bytes().as_chunks::<4>();
    assert!(rest.is_empty(), "{key}");
    let mixed = words.iter().fold(0x9747_b28c ^ key.len() as u32, |hash, word| {
        let word = u32::from_le_bytes(*word).wrapping_mul(M);
        hash.wrapping_mul(M) ^ (word ^ (word >> 24)).wrapping_mul(M)
    });
    let hash = (mixed ^ (mixed >> 13)).wrapping_mul(M);
    (((hash ^ (hash >> 15)) & 0x7fff_ffff) % partitions) as i32
}

#[test]
fn topics_that_cannot_be_confirmed_wait_alone_whatever_the_delivery() -> Outcome<()> {
    let mut cluster = Cluster::start()?;
    let compact = [("cleanup.policy", "compact"), ("min.insync.replicas", "1")];
    let watermarks = cluster.scattered("watermarks", 3, &compact)?;
    let mut exactly = Gateway::new(Build::Real, &cluster.brokers())?;
    exactly.exactly_once(&watermarks).listen("");
    let mut at_least = Gateway::new(Build::Real, &cluster.brokers())?;
    at_least.listen("");
    // The identity of a buffer says where its watermark is; the broker that dies is another one.
    let id = {
        exactly.route("#", "nothing-yet");
        let mut agent = exactly.start()?;
        let id = agent.status()?["buffer_id"].as_str().unwrap_or_default().to_owned();
        agent.stop(PATIENCE)?;
        id
    };
    let own = partition_of(&id, 3);
    let keeper = cluster.leader_of(&watermarks, own)?;
    let dead = if keeper == 1 { 2 } else { 1 };
    let leaderless = cluster.topic_on(dead, "leaderless", 1, &[("min.insync.replicas", "1")])?;
    let outnumbered = cluster.topic_on(dead, "outnumbered", 2, &[("min.insync.replicas", "2")])?;
    let good = cluster.topic_on(keeper, "good", 1, &[("min.insync.replicas", "1")])?;
    exactly.forget_routes();
    for gateway in [&mut exactly, &mut at_least] {
        gateway.route("leaderless/#", &leaderless).route("outnumbered/#", &outnumbered).route("#", &good);
    }
    let mut agents = [exactly.start()?, at_least.start()?];
    let names = ["leaderless", "outnumbered", "good"];
    let mut publishers = Vec::new();
    for (gateway, mode) in [(&exactly, "exactly"), (&at_least, "at-least")] {
        for name in names {
            let plan = Plan::new(&format!("{mode}-{name}"), &format!("{name}/{mode}"), 2).rate(50);
            publishers.push(Publisher::start(gateway.listener(), plan));
        }
    }
    for publisher in &publishers {
        publisher.wait_acknowledged(100)?;
    }
    cluster.kill(dead, &leaderless)?;
    let died = Instant::now();
    for agent in &agents {
        let parked = || agent.parked().is_ok_and(|p| p.contains(&leaderless) && p.contains(&outnumbered));
        wait_until("both topics to be parked", PATIENCE * 4, parked)
            .map_err(|error| Trouble::new(format!("{error:?}, waits for {:?}:\n{}", waiting(agent), agent.log())))?;
        eprintln!("parked after {:?}", died.elapsed());
        agent.wait_log(&[&leaderless, "a partition has no leader"])?;
        agent.wait_log(&[&outnumbered, "too few replicas are in sync"])?;
        assert!(!agent.parked()?.contains(&good), "{}", agent.log());
        // What waits for it is on the books a commit later.
        let told = || agent.metric("tidegate_kafka_waiting{reason=\"parked_topic\"}").is_ok_and(|value| value > 0.5);
        wait_until("the metric", PATIENCE, told)?;
    }
    // The good one flows on, and again after a start.
    let flows_on = |agent: &Agent| -> Outcome<()> {
        let before = agent.book("delivered")?;
        wait_until("the good topic to flow", PATIENCE * 2, || agent.book("delivered").is_ok_and(|d| d > before + 100))
            .map_err(|error| Trouble::new(format!("{error:?}, waits for {:?}:\n{}", waiting(agent), agent.log())))
    };
    for agent in &agents {
        flows_on(agent)?;
    }
    agents[0].stop(PATIENCE)?;
    agents[0] = exactly.start()?;
    flows_on(&agents[0])?;
    eprintln!("all flow {:?} after the broker died", died.elapsed());
    cluster.revive(dead)?;
    for agent in &agents {
        wait_until("all topics to be open", PATIENCE * 4, || agent.parked().is_ok_and(|parked| parked.is_empty()))
            .map_err(|error| Trouble::new(format!("{error:?}:\n{}", agent.log())))?;
    }
    let logs = publishers.into_iter().map(|publisher| publisher.stop(PATIENCE)).collect::<Outcome<Vec<Log>>>()?;
    let topics = [&*leaderless, &*outnumbered, &*good];
    agents[0].wait_book("held", 0)?;
    let books = settle_committed(&agents[1], &cluster.brokers(), &topics, &logs)?;
    eprintln!("{books}");
    with_log(books.once_into_the_buffer(), &agents[1])
}

/// Calls of the resolver that last while a file is there.
const SLOW_NAMES: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <netdb.h>
#include <stdlib.h>
#include <unistd.h>
int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **found) {
    int (*real)(const char *, const char *, const struct addrinfo *, struct addrinfo **) = dlsym(RTLD_NEXT, "getaddrinfo");
    const char *file = getenv("SLOW_NAMES");
    while (file && access(file, F_OK) == 0) usleep(20000);
    return real(node, service, hints, found);
}
"#;

/// The uplink goes, and the name servers with it, in the middle of a transaction: librdkafka's threads hang in their
/// look-ups, and a client of it cannot be ended. The loop goes round all the same, a new client takes over, and when the
/// link is back so are the readings.
pub fn names_hang(build: Build) -> Outcome<Verdict> {
    let kafka = kafka::shared()?;
    let topic = kafka.topic("names")?;
    let link = kafka.lease()?;
    let folder = Folder::new("names")?;
    let (source, library, slow) =
        (folder.path().join("slow.c"), folder.path().join("slow.so"), folder.path().join("slow"));
    std::fs::write(&source, SLOW_NAMES)?;
    let made = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).arg("-ldl").status()?;
    assert!(made.success(), "cc");
    let mut gateway = Gateway::new(build, &link.brokers()?)?;
    gateway.exactly_once(&watermark_topic(kafka)?).listen("").route("#", &topic);
    gateway.environment("LD_PRELOAD", &library.display().to_string());
    gateway.environment("SLOW_NAMES", &slow.display().to_string());
    let agent = gateway.start()?;
    let publisher = Publisher::start(gateway.listener(), Plan::new("p", "t/1", 2).rate(200));
    wait_until("readings to flow", PATIENCE, || agent.book("delivered").is_ok_and(|delivered| delivered > 100))?;
    let producers = || agent.metric("tidegate_kafka_producers_total");
    let before = producers()?;
    std::fs::write(&slow, "")?;
    link.set(Weather::Cut)?;
    let renewed = wait_until("a new producer while the old one hangs", PATIENCE, || {
        producers().is_ok_and(|now| now > before + 0.5)
    });
    if renewed.is_err() {
        std::fs::remove_file(&slow)?;
        return Ok(trouble!("the loop stands still; log:\n{}", agent.log()));
    }
    assert!(waiting(&agent).is_some(), "a silent wait: {}", agent.log());
    assert_eq!(agent.get("/healthz")?.status, 200);
    std::fs::remove_file(&slow)?;
    link.set(Weather::Fair)?;
    let log = publisher.stop(PATIENCE)?;
    let books = settle_committed(&agent, &kafka.brokers(), &[&topic], &[log])?;
    Ok(with_log(books.once_into_the_buffer(), &agent))
}

#[test]
fn a_name_look_up_that_hangs_holds_up_nobody() -> Outcome<()> {
    names_hang(Build::Real)?
}

/// A client has three connections or four; twice each is enough to have met the coordinator's.
const MOST_CUTS: usize = 10;

/// TLS to Kafka, link up and idle: each connection in turn is cut, and its next handshake refused once. Readings flow on.
#[test]
fn one_failed_handshake_on_one_connection_stops_nothing() -> Outcome<()> {
    let folder = Folder::new("certificates")?;
    let authority = Authority::new("centre")?;
    let server = authority.sign(folder.path(), "kafka", &Claims::default())?;
    let purpose = ExtendedKeyUsagePurpose::ClientAuth;
    let client = authority.sign(folder.path(), "gateway", &Claims { purpose, ..Claims::default() })?;
    let ca = folder.path().join("ca.pem");
    std::fs::write(&ca, authority.pem())?;
    let port = free_port()?;
    let link = Proxy::start(port)?;
    let kafka = Kafka::start_tls(port, link.address(), &server, &authority)?;
    let topic = kafka.topic("handshake")?;
    let address: SocketAddr = link.address();
    let mut gateway = Gateway::new(Build::Real, &address.to_string())?;
    gateway.exactly_once(&watermark_topic(&kafka)?).listen("").route("#", &topic);
    gateway.kafka_options(&format!(
        "security.protocol = \"ssl\"\nssl.ca.location = \"{}\"\nssl.certificate.location = \"{}\"\n\
         ssl.key.location = \"{}\"\n",
        ca.display(),
        client.cert.display(),
        client.key.display()
    ));
    let agent = gateway.start()?;
    let mut logs = vec![flows(&gateway, &agent, "before", 50)?];
    let refused = || agent.log().contains("refuses this client");
    // Which connection is whose cannot be seen: each has its turn. Some are made again at once, others when needed.
    for n in 0..MOST_CUTS {
        if n > 2 && refused() {
            break;
        }
        link.alert();
        link.cut_oldest()?;
        drop(wait_until("a refused handshake", Duration::from_secs(2), || link.alerted()));
        logs.push(flows(&gateway, &agent, &format!("after-{n}"), 20)?);
        wait_until("a link that is up", PATIENCE, || {
            agent.status().is_ok_and(|status| status["kafka"]["connected"] == true)
        })?;
    }
    assert!(refused(), "the control: none was refused\n{}", agent.log());
    settle_committed(&agent, &kafka.brokers(), &[&topic], &logs)?.exactly_once()
}
