//! The findings for a person.

use std::io::{self, Write};

use super::findings::{BufferFindings, Missing, Spot, Spots, Summary, Verdict};
use super::look::Found;

/// Buffers without trouble that get a line of their own; a fleet has thousands.
const QUIET_BUFFERS: usize = 20;

/// Some lines, each written as it is made: a fleet has many.
pub(super) fn for_people(out: &mut impl Write, found: &Found) -> io::Result<()> {
    let (quiet, loud): (Vec<_>, Vec<_>) = found.buffers.iter().partition(|buffer| buffer.explained);
    for buffer in quiet.iter().take(QUIET_BUFFERS) {
        write_buffer(out, buffer)?;
    }
    if quiet.len() > QUIET_BUFFERS {
        writeln!(out, "… and {} more buffers that are ok", quiet.len() - QUIET_BUFFERS)?;
    }
    for buffer in loud {
        write_buffer(out, buffer)?;
    }
    write_summary(out, &found.summary)
}

fn write_buffer(out: &mut impl Write, buffer: &BufferFindings) -> io::Result<()> {
    let BufferFindings { buffer: id, events, .. } = buffer;
    let span = |ends: Option<(u64, u64)>| ends.map_or("nothing".to_owned(), |(first, last)| format!("{first}..{last}"));
    let word = if buffer.explained { "ok" } else { "UNEXPLAINED" };
    writeln!(
        out,
        "{id}  {word}: {events} events, sequences {}, judged {}, watermark {}",
        span(buffer.first.zip(buffer.last)),
        span(buffer.judged),
        buffer.watermark.map_or("none".to_owned(), |watermark| watermark.to_string()),
    )?;
    if let Some(was) = buffer.was {
        writeln!(out, "    this buffer had the id {was} before")?;
    }
    write_missing(out, &buffer.missing)?;
    for (first, last) in &buffer.gaps {
        let count = last.saturating_sub(*first).saturating_add(1);
        writeln!(out, "    GAP {first}..{last}: {count} events are missing, and nothing says why")?;
    }
    write_more(out, buffer.gaps.len(), buffer.gap_count, "gaps")?;
    if buffer.missing.unexplained_beside_waiting > 0 {
        let beside = buffer.missing.unexplained_beside_waiting;
        writeln!(out, "    GAP: where parked events wait, {beside} more are missing than wait")?;
    }
    write_spots(out, &buffer.repeats, "REPEATED", "repeats", |_| String::new())?;
    write_spots(out, &buffer.reused, "TWO READINGS UNDER ONE ID", "ids with two readings", |_| String::new())?;
    if buffer.declared_repeats > 0 {
        writeln!(
            out,
            "    {} events came again under a new id, and their header tidegate-was says so",
            buffer.declared_repeats
        )?;
    }
    write_spots(out, &buffer.order_breaks, "OUT OF ORDER", "order breaks", |spot| {
        spot.after.map(|after| format!(" came after {after}")).unwrap_or_default()
    })?;
    if buffer.not_judged_up_to > 0 {
        writeln!(out, "    not judged up to {}: the audit has not enough memory", buffer.not_judged_up_to)?;
    }
    Ok(())
}

fn write_missing(out: &mut impl Write, missing: &Missing) -> io::Result<()> {
    for (count, why) in [
        (missing.dead_lettered, "declared as dead letters: Kafka refused them, the gateway keeps them"),
        (missing.dropped, "declared as dropped by the overflow policy"),
        (missing.purged, "declared as purged by an operator"),
        (
            missing.lost,
            "declared as lost: their part of the gateway's file was damaged, or their sequences were never used",
        ),
        (missing.unread, "are in the gateway's buffer, which could not read them"),
        (missing.waiting, "wait at the gateway for a Kafka topic that is missing or forbidden"),
        (missing.under_new_id, "came under the new id of a clone"),
        (missing.not_yet_delivered, "are not delivered yet (above the watermark)"),
        (missing.elsewhere, "are not here; the buffer also wrote to topics outside this audit"),
    ] {
        if count > 0 {
            writeln!(out, "    {count} {why}")?;
        }
    }
    Ok(())
}

fn write_spots(
    out: &mut impl Write,
    spots: &Spots,
    word: &str,
    more: &str,
    what: impl Fn(&Spot) -> String,
) -> io::Result<()> {
    for spot in &spots.examples {
        let Spot { sequence, mqtt_topic, topic, partition, offset, .. } = spot;
        writeln!(out, "    {word} {sequence}{}: {mqtt_topic:?}, at {topic}/{partition} offset {offset}", what(spot))?;
    }
    write_more(out, spots.examples.len(), spots.count, more)
}

fn write_more(out: &mut impl Write, shown: usize, count: u64, what: &str) -> io::Result<()> {
    let more = count.saturating_sub(u64::try_from(shown).unwrap_or(u64::MAX));
    if more > 0 { writeln!(out, "    … and {more} more {what}") } else { Ok(()) }
}

fn write_summary(out: &mut impl Write, summary: &Summary) -> io::Result<()> {
    let Summary { buffers, records, events, foreign, broken, seconds, missing, .. } = summary;
    writeln!(
        out,
        "{records} records of {} topics in {seconds:.1} s: {events} events of {buffers} buffers",
        summary.topics.len()
    )?;
    if *foreign > 0 {
        writeln!(out, "{foreign} records without a tidegate-id: another program wrote them")?;
    }
    if *broken > 0 {
        writeln!(out, "{broken} records with a tidegate-id that is NOT VALID")?;
    }
    if summary.without_mqtt_topic > 0 {
        writeln!(out, "{} events without the header mqtt-topic", summary.without_mqtt_topic)?;
    }
    for note in &summary.notes {
        writeln!(out, "note: {note}")?;
    }
    let found = format!(
        "{} missing without explanation, {} repeated, {} under the id of another reading, {} out of order",
        missing.unexplained, summary.repeats, summary.reused, summary.order_breaks
    );
    match summary.verdict {
        Verdict::Explained => {
            writeln!(
                out,
                "explained: nothing repeated, nothing out of order, {} missing, all declared",
                missing.total()
            )
        }
        Verdict::Unexplained => writeln!(out, "UNEXPLAINED: {found}"),
        Verdict::Incomplete => writeln!(out, "INCOMPLETE: not everything could be read; in the rest {found}"),
    }
}
