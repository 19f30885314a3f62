//! Passwords that the configuration holds never show: not in logs at their most talkative, not in metrics or status.

use crate::support::agent::{Build, Gateway};
use crate::support::client::{Connection, keep};
use crate::support::mosquitto::{Mosquitto, users_file};
use crate::support::process::free_port;
use crate::support::wire::{Connect, Message, Version};
use crate::support::{Outcome, PATIENCE, wait_until};

const MQTT_PASSWORD: &str = "s3cret-of-the-broker";
const KAFKA_PASSWORD: &str = "s3cret-of-kafka";
const KEY_PASSWORD: &str = "s3cret-of-the-key";
const SENSOR_PASSWORD: &str = "s3cret-of-the-sensor";
const PAYLOAD: &str = "payload-nobody-may-log";

#[test]
fn no_secret_and_no_payload_is_in_any_log_metric_or_status() -> Outcome<()> {
    let mut gateway = Gateway::new(Build::Real, &format!("127.0.0.1:{}", free_port()?))?;
    let users = users_file(gateway.path(), "sensor", SENSOR_PASSWORD)?;
    let broker = Mosquitto::start(&format!("allow_anonymous false\npassword_file {}\n", users.display()))?;
    let password_file = gateway.path().join("password");
    std::fs::write(&password_file, MQTT_PASSWORD)?;
    // The broker refuses this password: a refusal is where a careless program prints what it tried.
    let more = format!("username = \"relay\"\npassword_file = \"{}\"\n", password_file.display());
    gateway.subscribe("plant", &broker.url(), "#", 1, &more);
    gateway.listen(&format!("users_file = \"{}\"\n", users.display())).route("#", "t");
    gateway.kafka_options(&format!(
        "\"security.protocol\" = \"SASL_PLAINTEXT\"\n\"sasl.mechanism\" = \"PLAIN\"\n\"sasl.username\" = \"u\"\n\
         \"sasl.password\" = \"{KAFKA_PASSWORD}\"\n\"ssl.key.password\" = \"{KEY_PASSWORD}\"\n"
    ));
    gateway.log("level = \"trace\"\nformat = \"text\"\n");
    let agent = gateway.start()?;
    let credentials =
        |password: &str| Connect { username: Some("sensor".into()), password: Some(password.into()), ..keep("s") };
    assert!(Connection::open(gateway.listener(), Version::V311, credentials("s3cret-guess")).is_err());
    assert!(Connection::open(gateway.listener(), Version::V5, keep("nobody")).is_err());
    let (mut sensor, _) = Connection::open(gateway.listener(), Version::V5, credentials(SENSOR_PASSWORD))?;
    sensor.publish(&Message { topic: "t".into(), payload: PAYLOAD.into(), qos: 1, ..Message::default() }, 1)?;
    wait_until("the broker's refusal", PATIENCE, || super::session::link(&agent, 0, "refusals") > Some(0))?;
    let hash = std::fs::read_to_string(&users)?.trim().split(':').nth(1).unwrap_or_default().to_owned();
    assert!(hash.len() > 20);
    let mut said = vec![agent.log(), agent.get("/metrics")?.body, agent.get("/status")?.body, agent.get("/")?.body];
    for arguments in [&["status"][..], &["status", "--json"], &["check"]] {
        let output = gateway.command(arguments)?;
        said.push(String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned());
    }
    for text in said {
        for secret in ["s3cret-", PAYLOAD, &hash] {
            assert!(!text.contains(secret), "{secret} in:\n{text}");
        }
    }
    Ok(())
}
