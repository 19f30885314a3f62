//! `[kafka]`: the way out.

use super::endpoint::host_port;
use super::env::Env;
use super::options;
use super::problems::{Reported, quoted};
use super::reading::Section;
use super::settings::{Codec, Delivery, HeaderNames, Kafka, Timestamp};

pub(super) fn kafka(section: &Section<'_, '_>, env: &Env, largest_record_bytes: u64) -> Result<Kafka, Reported> {
    section.refuse_unknown();
    let brokers = brokers(section);
    let delivery = section
        .choice("delivery", &[("at-least-once", Delivery::AtLeastOnce), ("exactly-once", Delivery::ExactlyOnce)]);
    let watermark_topic = watermark_topic(section);
    let timestamp = section.choice("timestamp", &[("delivery", Timestamp::Delivery), ("arrival", Timestamp::Arrival)]);
    let linger = section.time("linger");
    let codecs = [Codec::Gzip, Codec::Lz4, Codec::Snappy, Codec::Zstd, Codec::None].map(|codec| (codec.name(), codec));
    let compression = section.choice("compression", &codecs);
    let names = [("tidegate", HeaderNames::Tidegate), ("all", HeaderNames::All), ("confluent", HeaderNames::Confluent)];
    let headers = section.choice("headers", &names);
    let max_topics = section.count("max_topics");
    // Without a valid one its own problem is told, and the options are looked at as they are.
    let options =
        options::options(section, env, *delivery.as_ref().unwrap_or(&Delivery::AtLeastOnce), largest_record_bytes);
    Ok(Kafka {
        brokers: brokers?,
        delivery: delivery?,
        watermark_topic: watermark_topic?,
        timestamp: timestamp?,
        linger: linger?,
        compression: compression?,
        headers: headers?,
        max_topics: max_topics?,
        largest_record_bytes,
        options: options?,
    })
}

/// An MQTT topic stands in a packet once, and in a record up to three times: key, header, envelope.
const MQTT_TOPIC_BYTES: u64 = 65_535;

/// What is in a record beside what was in the packet: the id, the names of headers, their lengths.
const HEADERS_BYTES: u64 = 16 << 10;

/// JSON writes a control character with six.
const JSON_FACTOR: u64 = 6;

/// What a packet of that size can become: our own limit on records never refuses what an acknowledgement was given for.
pub(super) fn largest_record_bytes(packet: u32, json: bool) -> u64 {
    let factor = if json { JSON_FACTOR } else { 1 };
    u64::from(packet).saturating_mul(factor).saturating_add(2 * MQTT_TOPIC_BYTES + HEADERS_BYTES)
}

/// Kafka's own rule for names of topics.
const MAX_TOPIC_BYTES: usize = 249;

fn watermark_topic(section: &Section<'_, '_>) -> Result<String, Reported> {
    const KEY: &str = "watermark_topic";
    let name = section.text(KEY)?;
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if name.is_empty() || name.len() > MAX_TOPIC_BYTES || name == "." || name == ".." || !name.chars().all(allowed) {
        let what = format!("found {}; allowed: 1 to {MAX_TOPIC_BYTES} of a-z A-Z 0-9 . _ -", quoted(&name));
        return Err(section.problem(KEY, what));
    }
    Ok(name)
}

fn brokers(section: &Section<'_, '_>) -> Result<Vec<String>, Reported> {
    let mut known = Vec::new();
    let mut problem = None;
    for (index, (text, span)) in section.list("brokers")?.into_iter().enumerate() {
        let key = format!("brokers[{index}]");
        match host_port(&text, None) {
            Err(why) => problem = Some(section.problem_at(&span, &key, format!("{why}; allowed: host:port"))),
            Ok(_) if known.contains(&text) => {
                problem = Some(section.problem_at(&span, &key, format!("{text:?} stands twice")));
            }
            Ok(_) => known.push(text),
        }
    }
    problem.map_or(Ok(known), Err)
}
