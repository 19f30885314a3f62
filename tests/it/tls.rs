//! `mqtts://`: readings flow over TLS, and whatever is wrong with certificates is said once, tried again, and loses nothing.

use std::fmt::Write;
use std::net::TcpListener;
use std::path::Path;

use rcgen::ExtendedKeyUsagePurpose;

use crate::support::agent::{Agent, Build, Gateway};
use crate::support::certificates::{Authority, Claims, Pair};
use crate::support::kafka;
use crate::support::mosquitto::{self, Mosquitto};
use crate::support::process::{Folder, free_port};
use crate::support::publisher::{Plan, Publisher, publish_all};
use crate::support::settle::settle;
use crate::support::wire::Version;
use crate::support::{Outcome, PATIENCE, Trouble, wait_until};

/// A TLS listener for `mosquitto.conf`.
fn listener(port: u16, pair: &Pair, more: &str) -> String {
    let (cert, key) = (pair.cert.display(), pair.key.display());
    format!("listener {port} 127.0.0.1\ncertfile {cert}\nkeyfile {key}\n{more}")
}

/// A mosquitto with one TLS listener, whose certificate comes from `authority`.
fn broker(folder: &Path, authority: &Authority) -> Outcome<(Mosquitto, u16)> {
    let port = free_port()?;
    let pair = authority.sign(folder, "broker", &Claims::default())?;
    Ok((Mosquitto::start(&listener(port, &pair, ""))?, port))
}

fn url(port: u16) -> String {
    format!("mqtts://127.0.0.1:{port}")
}

fn ca(folder: &Path, authority: &Authority) -> Outcome<String> {
    let path = folder.join("ca.pem");
    std::fs::write(&path, authority.pem())?;
    Ok(format!("tls.ca_file = \"{}\"\n", path.display()))
}

/// Log lines above INFO that speak of a link.
fn complaints(agent: &Agent, link: &str) -> Vec<String> {
    let mark = format!("\"broker\":\"{link}\"");
    [agent.log_lines("WARN"), agent.log_lines("ERROR")].concat().into_iter().filter(|l| l.contains(&mark)).collect()
}

#[test]
fn readings_flow_over_tls_whether_the_broker_is_named_by_name_or_address_and_whoever_names_the_authority() -> Outcome<()>
{
    let kafka = kafka::shared()?;
    let topic = kafka.topic("tls-flow")?;
    let folder = Folder::new("certificates")?;
    let authority = Authority::new("plant")?;
    let (broker, port) = broker(folder.path(), &authority)?;
    let ca = ca(folder.path(), &authority)?;
    let mut gateway = Gateway::new(Build::Real, &kafka.brokers())?;
    // Without ca_file the system's bundle counts, and this variable names it.
    gateway.environment("SSL_CERT_FILE", &folder.path().join("ca.pem").display().to_string());
    for (name, url, more) in [
        ("address", url(port), &*ca),
        ("name", format!("mqtts://localhost:{port}"), ca.as_str()),
        ("system", url(port), "version = \"3.1.1\"\n"),
    ] {
        gateway.subscribe(name, &url, &format!("{topic}/{name}/#"), 2, &format!("{}{more}", mosquitto::WIDE));
    }
    gateway.route("#", &topic);
    let mut agent = gateway.start()?;
    agent.wait_subscribed(3)?;
    let mut logs = Vec::new();
    for name in ["address", "name", "system"] {
        for (qos, version) in [(1, Version::V5), (2, Version::V311)] {
            let plan = Plan::new(&format!("{topic}-{name}-{qos}"), &format!("{topic}/{name}/{qos}"), qos);
            logs.push(publish_all(broker.address(), plan.version(version).count(3000))?);
        }
    }
    settle(&agent, &kafka.brokers(), &[&topic], &logs)?.exactly_once()?;
    assert!(agent.stop(PATIENCE)?.success());
    assert_eq!([agent.log_lines("WARN"), agent.log_lines("ERROR")].concat(), Vec::<String>::new());
    Ok(())
}

#[test]
fn a_broker_that_asks_for_a_certificate_gets_it_and_its_absence_is_told() -> Outcome<()> {
    let kafka = kafka::shared()?;
    let topic = kafka.topic("tls-client")?;
    let folder = Folder::new("certificates")?;
    let authority = Authority::new("plant")?;
    let ca = ca(folder.path(), &authority)?;
    let pair = authority.sign(folder.path(), "broker", &Claims::default())?;
    let client = Claims {
        common_name: "gateway-7",
        alternative_names: &[],
        purpose: ExtendedKeyUsagePurpose::ClientAuth,
        ..Claims::default()
    };
    let ours = authority.sign(folder.path(), "ours", &client)?;
    let stranger = Authority::new("elsewhere")?.sign(folder.path(), "stranger", &client)?;
    let port = free_port()?;
    let ask = format!("cafile {}\nrequire_certificate true\n", folder.path().join("ca.pem").display());
    let broker = Mosquitto::start(&listener(port, &pair, &ask))?;
    let mut gateway = Gateway::new(Build::Real, &kafka.brokers())?;
    let shown = |pair: &Pair| {
        format!("{ca}tls.cert_file = \"{}\"\ntls.key_file = \"{}\"\n", pair.cert.display(), pair.key.display())
    };
    gateway.subscribe("good", &url(port), &format!("{topic}/#"), 1, &shown(&ours));
    gateway.subscribe("none", &url(port), "none/#", 1, &ca);
    gateway.subscribe("stranger", &url(port), "stranger/#", 1, &shown(&stranger));
    gateway.route("#", &topic);
    let agent = gateway.start()?;
    agent.wait_subscribed(1)?;
    agent.wait_log(&[
        "\"broker\":\"none\"",
        "ERROR",
        "TLS: the broker refuses",
        "set tls.cert_file and tls.key_file",
    ])?;
    agent.wait_log(&["\"broker\":\"stranger\"", "ERROR", "TLS: the broker refuses", "check tls.cert_file"])?;
    let log = publish_all(broker.address(), Plan::new(&topic, &format!("{topic}/t"), 1).count(500))?;
    settle(&agent, &kafka.brokers(), &[&topic], &[log])?.exactly_once()?;
    assert_eq!(complaints(&agent, "good"), Vec::<String>::new());
    Ok(())
}

#[test]
fn a_wrong_authority_is_told_once_loses_nothing_and_is_mended_without_a_restart() -> Outcome<()> {
    let kafka = kafka::shared()?;
    let topic = kafka.topic("tls-wrong-ca")?;
    let folder = Folder::new("certificates")?;
    let authority = Authority::new("plant")?;
    let (broker, port) = broker(folder.path(), &authority)?;
    let ca = ca(folder.path(), &authority)?;
    let ca_file = folder.path().join("ca.pem");
    let mut gateway = Gateway::new(Build::Real, &kafka.brokers())?;
    gateway.subscribe("plant", &url(port), &format!("{topic}/#"), 1, &format!("{}{ca}", mosquitto::WIDE));
    gateway.route("#", &topic);
    let mut agent = gateway.start()?;
    agent.wait_subscribed(1)?;
    assert!(agent.stop(PATIENCE)?.success());

    std::fs::write(&ca_file, Authority::new("elsewhere")?.pem())?;
    let agent = gateway.start()?;
    agent.wait_log(&[
        "TLS: this gateway does not trust the authority that signed the broker's certificate",
        "tls.ca_file must",
    ])?;
    let log = publish_all(broker.address(), Plan::new(&topic, &format!("{topic}/t"), 1).count(500))?;
    // A file that is being replaced, and is found in the middle of it.
    std::fs::write(&ca_file, "")?;
    agent.wait_log(&["tls.ca_file:", "there is no certificate in it", "it is read again at the next try"])?;
    assert!(complaints(&agent, "plant").len() <= 2, "said again and again:\n{}", agent.log());
    std::fs::write(&ca_file, authority.pem())?;
    settle(&agent, &kafka.brokers(), &[&topic], &[log])?.exactly_once()
}

#[test]
fn a_certificate_that_is_not_good_is_refused_in_words_that_help() -> Outcome<()> {
    let kafka = kafka::shared()?;
    let topic = kafka.topic("tls-refused")?;
    let folder = Folder::new("certificates")?;
    let authority = Authority::new("plant")?;
    let ca = ca(folder.path(), &authority)?;
    let claims = Claims::default;
    let cases: [(&str, Claims, &str, [&str; 2]); 4] = [
        (
            "cn",
            Claims { common_name: "127.0.0.1", alternative_names: &[], ..claims() },
            "ERROR",
            ["not made out to 127.0.0.1: it has no subjectAltName", "stands only in the CN does not count"],
        ),
        (
            "name",
            Claims { alternative_names: &["plant.example", "127.0.0.2"], ..claims() },
            "ERROR",
            ["not made out to 127.0.0.1 but to plant.example, 127.0.0.2", "write that name in url"],
        ),
        (
            "expired",
            Claims { years: (2019, 2020), ..claims() },
            "ERROR",
            ["expired on 2020-01-01, and by this machine's clock today is 2", "renew the broker's certificate"],
        ),
        (
            "early",
            Claims { years: (2098, 2099), ..claims() },
            "WARN",
            ["is not valid before 2098-01-01, and by this machine's clock today is 2", "clock is not set"],
        ),
    ];
    let mut conf = String::new();
    let mut gateway = Gateway::new(Build::Real, &kafka.brokers())?;
    let mut table = |name: &str, pair: &Pair| -> Outcome<()> {
        let port = free_port()?;
        write!(conf, "{}", listener(port, pair, ""))?;
        gateway.subscribe(name, &url(port), &format!("{topic}/{name}"), 1, &ca);
        Ok(())
    };
    for (name, claims, ..) in &cases {
        table(name, &authority.sign(folder.path(), name, claims)?)?;
    }
    table("posing", &authority.pose(folder.path(), "posing")?)?;
    table("good", &authority.sign(folder.path(), "good", &claims())?)?;
    let broker = Mosquitto::start(&conf)?;
    // And two that do not speak TLS at all: one speaks MQTT, the other is silent.
    gateway.subscribe("plain", &broker.url().replace("mqtt", "mqtts"), "x", 1, &ca);
    let silent = TcpListener::bind(("127.0.0.1", free_port()?))?;
    gateway.subscribe("silent", &url(silent.local_addr()?.port()), "x", 1, &ca);
    gateway.route("#", &topic);

    let agent = gateway.start()?;
    agent.wait_subscribed(1)?;
    for (name, _, level, words) in &cases {
        agent.wait_log(&[&format!("\"broker\":\"{name}\""), &format!("\"{level}\""), "TLS: ", words[0], words[1]])?;
    }
    agent.wait_log(&["\"broker\":\"posing\"", "ERROR", "the certificate of an authority as its own", "CA:FALSE"])?;
    agent.wait_log(&["\"broker\":\"plain\"", "WARN", "in the TLS handshake", "this is not its port for TLS"])?;
    agent.wait_log(&["\"broker\":\"silent\"", "WARN", "no TLS handshake within 15 s"])?;
    // The others flow all the while, and each trouble was said once, however often it was tried.
    let log = publish_all(broker.address(), Plan::new(&topic, &format!("{topic}/good"), 1).count(500))?;
    settle(&agent, &kafka.brokers(), &[&topic], &[log])?.exactly_once()?;
    let failures =
        |name: &str| agent.metric(&format!("tidegate_mqtt_failures_total{{link=\"{name}\",kind=\"broker\"}}"));
    for (name, ..) in &cases {
        let tries = failures(name)?;
        assert!((3.0..20.0).contains(&tries), "{name}: {tries} tries in half a minute");
        assert_eq!(complaints(&agent, name).len(), 1, "{:?}", complaints(&agent, name));
    }
    assert_eq!(complaints(&agent, "good"), Vec::<String>::new());
    Ok(())
}

#[test]
fn no_reading_is_lost_when_agent_or_broker_are_killed_in_the_middle_of_tls() -> Outcome<()> {
    let kafka = kafka::shared()?;
    let topic = kafka.topic("tls-kill")?;
    let folder = Folder::new("certificates")?;
    let authority = Authority::new("plant")?;
    let (broker, port) = broker(folder.path(), &authority)?;
    let ca = ca(folder.path(), &authority)?;
    let mut gateway = Gateway::new(Build::Real, &kafka.brokers())?;
    gateway.subscribe("plant", &url(port), &format!("{topic}/#"), 2, &format!("{}{ca}", mosquitto::WIDE));
    gateway.route("#", &topic);
    let mut agent = gateway.start()?;
    agent.wait_subscribed(1)?;
    let topics = (0..5).map(|n| format!("{topic}/{n}")).collect();
    let plan = Plan::new(&topic, "", 1).topics(topics).version(Version::V5).rate(2000);
    let publisher = Publisher::start(broker.address(), plan);
    for _ in 0..10 {
        std::thread::sleep(std::time::Duration::from_millis(fastrand::u64(50..800)));
        agent.kill();
        agent = gateway.start()?;
    }
    let log = publisher.stop(PATIENCE)?;
    // Only then: what a killed mosquitto has not saved is lost by it. Afterwards the link comes back by itself.
    let mut books = settle(&agent, &kafka.brokers(), &[&topic], std::slice::from_ref(&log))?;
    books.at_least_once()?;
    broker.stop()?;
    broker.run()?;
    let topics = (0..5).map(|n| format!("{topic}/again/{n}")).collect();
    wait_until("the link to come back", PATIENCE, || {
        agent.metric("tidegate_mqtt_connected{link=\"plant\",kind=\"broker\"}").is_ok_and(|up| up > 0.5)
    })?;
    let more = publish_all(broker.address(), Plan::new(&format!("{topic}-again"), "", 1).topics(topics).count(500))?;
    books = settle(&agent, &kafka.brokers(), &[&topic], &[log, more])?;
    books.at_least_once()
}

#[test]
fn check_names_line_and_key_of_a_file_that_cannot_be_used() -> Outcome<()> {
    let folder = Folder::new("certificates")?;
    let pair = Authority::new("plant")?.sign(folder.path(), "ours", &Claims::default())?;
    let mut gateway = Gateway::new(Build::Real, "127.0.0.1:9092")?;
    let more = format!("tls.ca_file = \"{}\"\n", pair.key.display());
    gateway.subscribe("plant", "mqtts://broker.example", "a/#", 1, &more);
    gateway.route("#", "all");
    let output = gateway.command(&["check"])?;
    let said = String::from_utf8(output.stderr)?;
    let line =
        gateway.toml().lines().position(|line| line.starts_with("tls.ca_file")).ok_or(Trouble::new("no line"))? + 1;
    assert_eq!(output.status.code(), Some(78), "{said}");
    let place = format!("tidegate.toml:{line}:");
    assert!(said.contains(&place) && said.contains("mqtt[0].tls.ca_file: "), "{said}");
    assert!(said.contains("there is no certificate in it, but a private key"), "{said}");
    Ok(())
}
