//! What `[[route]]` and `[[redirect]]` mean together: [`Routes`].

use toml::de::DeValue;

use crate::route::filter::Filter;
use crate::route::template::{KeyTemplate, TopicTemplate};
use crate::route::{KAFKAS_OWN, Redirect, Route, Routes};
use crate::settings::Listener;
use crate::settings::problems::{Reported, quoted};
use crate::settings::reading::{Document, Section};
use crate::settings::routes::{RedirectKeys, RouteKeys};

/// All tables, and that each can be reached.
pub(super) fn routes(document: &Document<'_, '_>, watermark_topic: Option<&str>) -> Result<Routes, Reported> {
    let sections = document.many(RouteKeys::TABLE)?;
    if sections.is_empty() {
        let what = "missing: without a [[route]] every reading is a dead letter; write at least one, with from and to";
        return Err(document.missing("route", what.into()));
    }
    let mut earlier = Vec::new();
    let read: Vec<_> = sections.iter().map(|section| route(section, watermark_topic, &mut earlier)).collect();
    let redirects = redirects(document, watermark_topic);
    let routes = read.into_iter().collect::<Result<Vec<_>, _>>().map(Routes::new)?;
    Ok(routes.redirecting(redirects?).keeping_clear(watermark_topic.unwrap_or_default()))
}

/// `{client}` and `{user}` where nobody can be known are always empty.
pub(super) fn remark_unknown_senders(
    document: &Document<'_, '_>,
    routes: &Routes,
    listeners: &[Listener],
) -> Result<(), Reported> {
    let asks_for_users = listeners.iter().any(|listener| listener.users_file.is_some());
    for (section, (to, key)) in document.many(RouteKeys::TABLE)?.iter().zip(routes.templates()) {
        let sender = [("to", to.names_the_sender()), ("key", key.names_the_sender())];
        let user = [("to", to.names_the_user()), ("key", key.names_the_user())];
        let (named, why) = if listeners.is_empty() {
            (
                sender,
                "{client} and {user} are empty, because only sensors at a [[listen]] have them, and there is no \
                 [[listen]]",
            )
        } else if asks_for_users {
            continue;
        } else {
            (user, "{user} is empty, because no [[listen]] has a users_file")
        };
        named.into_iter().filter(|(_, named)| *named).for_each(|(key, _)| section.remark(key, why.to_owned()));
    }
    Ok(())
}

/// Asked before the tables are read.
pub(super) fn any_makes_json(document: &Document<'_, '_>) -> bool {
    let tables = document.root.get(RouteKeys::TABLE.name).and_then(|tables| tables.get_ref().as_array());
    let value = |table: &DeValue<'_>| table.get("value").is_some_and(|value| value.get_ref().as_str() == Some("json"));
    tables.is_some_and(|tables| tables.iter().any(|table| value(table.get_ref())))
}

/// A redirect leads to its end in one step, so that the order of the tables means nothing.
fn redirects(document: &Document<'_, '_>, watermark_topic: Option<&str>) -> Result<Vec<Redirect>, Reported> {
    let sections = document.many(RedirectKeys::TABLE)?;
    let read: Vec<_> = sections.iter().map(|section| redirect(section, watermark_topic)).collect();
    let redirects = read.into_iter().collect::<Result<Vec<_>, _>>()?;
    let mut outcome = Ok(());
    for (index, (section, redirect)) in sections.iter().zip(&redirects).enumerate() {
        let from = quoted(&redirect.from);
        if redirects.iter().take(index).any(|earlier| earlier.from == redirect.from) {
            outcome = Err(section.problem("from", format!("found {from}: an earlier [[redirect]] has the same from")));
        }
        if let Some(to) = &redirect.to
            && redirects.iter().any(|other| other.from == *to)
        {
            let what =
                format!("found {}: another [[redirect]] sends this topic on; write that one's to here", quoted(to));
            outcome = Err(section.problem("to", what));
        }
    }
    outcome.map(|()| redirects)
}

fn redirect(section: &Section<'_, '_>, watermark_topic: Option<&str>) -> Result<Redirect, Reported> {
    let RedirectKeys { from, to, give_up } = RedirectKeys::read(section);
    let (from, to, give_up) = (from?, to?, give_up?);
    let topic = |key, name: &str| {
        let filter = Filter::parse("#").map_err(|why| section.problem(key, why))?;
        let why = match TopicTemplate::parse(name, &filter) {
            Ok(template) if !template.is_fixed() => {
                "a [[redirect]] is for one Kafka topic; only a [[route]] may have names in {}".into()
            }
            Ok(_) => return Ok(()),
            Err(why) => why,
        };
        Err(section.problem(key, format!("found {}: {why}", quoted(name))))
    };
    topic("from", &from)?;
    let Some(to) = to else {
        if give_up {
            return Ok(Redirect { from: from.into(), to: None });
        }
        let what = "missing; write another Kafka topic, or give_up = true, which makes dead letters of the readings";
        return Err(section.problem("to", what.into()));
    };
    if give_up {
        return Err(section.problem("give_up", "found true, but there is also to; keep one of them".into()));
    }
    topic("to", &to)?;
    if to == from {
        return Err(section.problem("to", format!("found {}, the same as from; choose another topic", quoted(&to))));
    }
    refuse_reserved(section, &to, watermark_topic)?;
    Ok(Redirect { from: from.into(), to: Some(to.into()) })
}

/// Topics that are not for readings.
fn refuse_reserved(section: &Section<'_, '_>, to: &str, watermark_topic: Option<&str>) -> Result<(), Reported> {
    let what = if watermark_topic == Some(to) {
        "it is the watermark topic, which is compacted, so readings in it would be lost; choose another one"
    } else if to.starts_with(KAFKAS_OWN) {
        "names that begin with \"__\" are Kafka's own; choose another one"
    } else {
        return Ok(());
    };
    Err(section.problem("to", format!("found {}: {what}", quoted(to))))
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
    let RouteKeys { from: name, to, key, value } = RouteKeys::read(section);
    let from = name.as_ref().map_err(|reported| *reported).and_then(|name| from(section, name, earlier));
    // Names are known only from a filter that could be read.
    let from = from?;
    let to = to.and_then(|to| {
        refuse_reserved(section, &to, watermark_topic)?;
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
        return Err(refuse("$share belongs in subscribe of an [[mqtt]]; write the filter alone".into()));
    }
    let filter = Filter::parse(text).map_err(refuse)?;
    let before = earlier.iter().find(|route| route.from.covers(&filter)).map(|route| route.line);
    earlier.push(Earlier { from: filter.clone(), line: section.line_of("from") });
    match before {
        Some(line) => Err(refuse(format!(
            "no reading can reach this route: the one in line {line} matches first; put this one before it"
        ))),
        None => Ok(filter),
    }
}
