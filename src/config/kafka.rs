//! `[kafka]`: the way out.

use super::endpoint::host_port;
use super::env::Env;
use super::options;
use super::problems::Reported;
use super::reading::Section;
use super::settings::{Delivery, Kafka};

pub(super) fn kafka(section: &Section<'_, '_>, env: &Env) -> Result<Kafka, Reported> {
    section.refuse_unknown();
    let brokers = brokers(section);
    let delivery = section.choice("delivery", &[("at-least-once", Delivery::AtLeastOnce)]);
    let linger = section.time("linger");
    let options = options::options(section, env);
    Ok(Kafka { brokers: brokers?, delivery: delivery?, linger: linger?, options: options? })
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
