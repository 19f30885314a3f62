//! `[[route]]`: the tables of [`Routes`].

use super::problems::{Reported, quoted};
use super::reading::{Document, Section};
use super::schema::{MAX_ROUTES, ROUTE};
use crate::route::filter::Filter;
use crate::route::template::{KeyTemplate, TopicTemplate};
use crate::route::{Route, Routes, ValueFormat};

/// All tables, and that each can be reached.
pub(super) fn routes(document: &Document<'_, '_>, watermark_topic: Option<&str>) -> Result<Routes, Reported> {
    let sections = document.many(&ROUTE, MAX_ROUTES)?;
    if sections.is_empty() {
        let what = "missing: without a [[route]] every reading is a dead letter; write at least one, with from and to";
        return Err(document.missing("route", what.into()));
    }
    let mut earlier = Vec::new();
    let read: Vec<_> = sections.iter().map(|section| route(section, watermark_topic, &mut earlier)).collect();
    read.into_iter().collect::<Result<Vec<_>, _>>().map(Routes::new)
}

/// A route that was read, for those behind it.
struct Earlier {
    from: Filter,
    line: usize,
}

fn route(
    section: &Section<'_, '_>,
    watermark_topic: Option<&str>,
    earlier: &mut Vec<Earlier>,
) -> Result<Route, Reported> {
    section.refuse_unknown();
    let name = section.text("from");
    let from = name.as_ref().map_err(|reported| *reported).and_then(|name| from(section, name, earlier));
    let values = [("payload", ValueFormat::Payload), ("cbor", ValueFormat::Cbor), ("json", ValueFormat::Json)];
    let value = section.choice("value", &values);
    let (to, key) = (section.text("to"), section.text("key"));
    // Names are known only from a filter that could be read.
    let from = from?;
    let to = to.and_then(|to| {
        if watermark_topic == Some(to.as_str()) {
            let what =
                "it is the watermark topic, which is compacted: readings in it would be lost; choose another one";
            return Err(section.problem("to", format!("found {}: {what}", quoted(&to))));
        }
        TopicTemplate::parse(&to, &from).map_err(|why| section.problem("to", format!("found {}: {why}", quoted(&to))))
    });
    let key = key.and_then(|key| {
        KeyTemplate::parse(&key, &from).map_err(|why| section.problem("key", format!("found {}: {why}", quoted(&key))))
    });
    Ok(Route { name: name?.into(), from, to: to?, key: key?, value: value? })
}

fn from(section: &Section<'_, '_>, text: &str, earlier: &mut Vec<Earlier>) -> Result<Filter, Reported> {
    let refuse = |why: String| section.problem("from", format!("found {}: {why}", quoted(text)));
    if text.starts_with("$share/") {
        return Err(refuse("a share is asked for under subscribe; write the filter alone".into()));
    }
    let filter = Filter::parse(text).map_err(refuse)?;
    let before = earlier.iter().find(|route| route.from.covers(&filter)).map(|route| route.line);
    earlier.push(Earlier { from: filter.clone(), line: section.line_of("from") });
    match before {
        Some(line) => {
            Err(refuse(format!("never reached: the route of line {line} matches first; put this one before it")))
        }
        None => Ok(filter),
    }
}
