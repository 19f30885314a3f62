//! `[kafka]`: the way out.

use super::endpoint::host_port;
use super::env::Env;
use super::options;
use super::problems::{Reported, quoted};
use super::reading::Section;
use super::settings::{Delivery, Kafka, Timestamp};

pub(super) fn kafka(section: &Section<'_, '_>, env: &Env) -> Result<Kafka, Reported> {
    section.refuse_unknown();
    let brokers = brokers(section);
    let delivery = section
        .choice("delivery", &[("at-least-once", Delivery::AtLeastOnce), ("exactly-once", Delivery::ExactlyOnce)]);
    let watermark_topic = watermark_topic(section);
    let timestamp = section.choice("timestamp", &[("delivery", Timestamp::Delivery), ("arrival", Timestamp::Arrival)]);
    let linger = section.time("linger");
    let options = options::options(section, env);
    Ok(Kafka {
        brokers: brokers?,
        delivery: delivery?,
        watermark_topic: watermark_topic?,
        timestamp: timestamp?,
        linger: linger?,
        options: options?,
    })
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
