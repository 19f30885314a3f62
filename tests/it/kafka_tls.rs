//! TLS to Kafka, on a real listener that asks for a certificate as well. librdkafka brings its own OpenSSL, which must find
//! files and answer in words on every target.

use std::net::SocketAddr;

use rcgen::ExtendedKeyUsagePurpose;

use crate::support::agent::{Build, Gateway};
use crate::support::certificates::{Authority, Claims, Pair};
use crate::support::kafka::Kafka;
use crate::support::process::{Folder, free_port};
use crate::support::publisher::{Plan, publish_all};
use crate::support::settle::settle;
use crate::support::{Outcome, PATIENCE};

/// What `[kafka.options]` says of TLS.
fn options(ca: &str, pair: &Pair) -> String {
    format!(
        "security.protocol = \"ssl\"\nssl.ca.location = \"{ca}\"\nssl.certificate.location = \"{}\"\n\
         ssl.key.location = \"{}\"\n",
        pair.cert.display(),
        pair.key.display()
    )
}

#[test]
fn readings_reach_kafka_over_tls_and_wait_while_its_authority_is_not_trusted() -> Outcome<()> {
    let folder = Folder::new("certificates")?;
    let (authority, stranger) = (Authority::new("centre")?, Authority::new("stranger")?);
    let server = authority.sign(folder.path(), "kafka", &Claims::default())?;
    let purpose = ExtendedKeyUsagePurpose::ClientAuth;
    let client = authority.sign(folder.path(), "gateway", &Claims { purpose, ..Claims::default() })?;
    let ca = folder.path().join("ca.pem").display().to_string();
    let wrong = folder.path().join("wrong.pem").display().to_string();
    std::fs::write(&ca, authority.pem())?;
    std::fs::write(&wrong, stranger.pem())?;

    let port = free_port()?;
    let kafka = Kafka::start_tls(port, SocketAddr::from(([127, 0, 0, 1], port)), &server, &authority)?;
    let topic = kafka.topic("tls")?;
    let address = format!("127.0.0.1:{port}");
    let mut gateway = Gateway::new(Build::Real, &address)?;
    gateway.listen("").route("#", &topic).kafka_options(&options(&wrong, &client));
    let mut agent = gateway.start()?;
    let log = publish_all(gateway.listener(), Plan::new("p", "s/1", 1).count(500))?;
    // The control: an authority that is not trusted is not taken, and what is acknowledged waits.
    agent.wait_log(&["certificate verify failed"])?;
    agent.wait_book("held", 500)?;
    assert!(agent.stop(PATIENCE)?.success());

    gateway.kafka_options_are(&options(&ca, &client));
    let mut agent = gateway.start()?;
    let more = publish_all(gateway.listener(), Plan::new("q", "s/2", 1).count(500))?;
    let books = settle(&agent, &kafka.brokers(), &[&topic], &[log, more])?;
    books.exactly_once()?;
    assert_eq!(books.delivered, 1_000);
    assert!(agent.stop(PATIENCE)?.success());
    Ok(())
}
