//! The rows on a page of a damaged database, read without SQLite: by the file format that it promises to keep
//! (<https://www.sqlite.org/fileformat2.html>), and nothing is believed that does not fit.

use std::ops::Range;

use rusqlite::types::Value;

use super::pages::{Number, PAGE, Pages, number_at};
use crate::buffer::limits::MAX_RAW_BYTES;

const TABLE_LEAF: u8 = 13;
const INDEX_LEAF: u8 = 10;
const INDEX_INTERIOR: u8 = 2;

/// The database's own head stands on its first page.
const FILE_HEAD: usize = 100;

/// Our tables have at most so many columns, and any we may get.
const MOST_COLUMNS: usize = 64;

/// One row as it stands in the file.
#[derive(Debug, PartialEq)]
pub(super) struct Row {
    /// `None`: of an index or of a table that is one.
    pub(super) id: Option<i64>,
    pub(super) columns: Vec<Value>,
}

/// What stands on a page; what is not a page with rows has none.
pub(super) fn rows(number: Number, page: &[u8; PAGE], pages: &Pages) -> Vec<Row> {
    let start = if number == 1 { FILE_HEAD } else { 0 };
    let Some(&kind) = page.get(start) else { return Vec::new() };
    let head = match kind {
        TABLE_LEAF | INDEX_LEAF => 8,
        INDEX_INTERIOR => 12_usize,
        _ => return Vec::new(),
    };
    let cells = short_at(page, start + 3).unwrap_or(0);
    let pointers = start + head;
    let pointer = |nth: usize| short_at(page, pointers + nth * 2);
    (0..cells.min(PAGE / 2)).filter_map(|nth| row(page, pointer(nth)?, kind, pages)).collect()
}

fn row(page: &[u8; PAGE], at: usize, kind: u8, pages: &Pages) -> Option<Row> {
    let mut cell = page.get(at..)?;
    if kind == INDEX_INTERIOR {
        cell = cell.get(4..)?;
    }
    let length = usize::try_from(varint(&mut cell)?).ok().filter(|length| *length <= MAX_RAW_BYTES)?;
    let id = if kind == TABLE_LEAF { Some(varint(&mut cell)?.cast_signed()) } else { None };
    let local = local_bytes(length, kind);
    let mut payload = cell.get(..local)?.to_vec();
    if local < length {
        let mut next = number_at(cell, local)?;
        while payload.len() < length {
            // Each page gives at least a byte, so a chain that bites its own tail ends.
            let overflow = pages.read(next)?;
            let wanted = (length - payload.len()).min(PAGE - 4);
            payload.extend_from_slice(overflow.get(4..wanted + 4)?);
            next = number_at(&overflow, 0)?;
        }
    }
    Some(Row { id, columns: columns(&payload)? })
}

/// By the file format for pages of 4096 bytes: what a row may have on its own page, at most and at least.
const TABLE_MOST: usize = PAGE - 35;
const INDEX_MOST: usize = 1_002;
const LEAST: usize = 489;
const OVERFLOW: usize = PAGE - 4;

/// How much of a row stands on its own page.
fn local_bytes(length: usize, kind: u8) -> usize {
    let most = if kind == TABLE_LEAF { TABLE_MOST } else { INDEX_MOST };
    if length <= most {
        return length;
    }
    let beyond = (length - LEAST) % OVERFLOW;
    let fits = LEAST + beyond;
    if fits <= most { fits } else { LEAST }
}

fn columns(payload: &[u8]) -> Option<Vec<Value>> {
    let mut head = payload;
    let head_bytes = usize::try_from(varint(&mut head)?).ok()?;
    let mut types = payload.get(payload.len().checked_sub(head.len())?..head_bytes)?;
    let mut body = payload.get(head_bytes..)?;
    let mut columns = Vec::new();
    while !types.is_empty() && columns.len() < MOST_COLUMNS {
        columns.push(column(varint(&mut types)?, &mut body)?);
    }
    (types.is_empty() && body.is_empty()).then_some(columns)
}

fn column(kind: u64, body: &mut &[u8]) -> Option<Value> {
    let integer = |body: &mut &[u8], bytes: usize| {
        let taken = take(body, 0..bytes)?;
        let sign = if taken.first()? & 0x80 == 0 { 0 } else { -1_i64 };
        Some(Value::Integer(taken.iter().fold(sign, |number, byte| number << 8 | i64::from(*byte))))
    };
    match kind {
        0 => Some(Value::Null),
        1..=4 => integer(body, usize::try_from(kind).ok()?),
        5 => integer(body, 6),
        6 => integer(body, 8),
        8 => Some(Value::Integer(0)),
        9 => Some(Value::Integer(1)),
        // No column of ours holds a floating-point number, and 10 and 11 are for SQLite's own use.
        7 | 10 | 11 => None,
        _ => {
            let bytes = take(body, 0..usize::try_from(kind.checked_sub(12)? / 2).ok()?)?;
            if kind.is_multiple_of(2) {
                return Some(Value::Blob(bytes.to_vec()));
            }
            String::from_utf8(bytes.to_vec()).ok().map(Value::Text)
        }
    }
}

fn take<'a>(from: &mut &'a [u8], range: Range<usize>) -> Option<&'a [u8]> {
    let taken = from.get(range.clone())?;
    *from = from.get(range.end..)?;
    Some(taken)
}

/// Seven bits a byte, the first byte first, and all eight of a ninth.
fn varint(from: &mut &[u8]) -> Option<u64> {
    let mut number = 0_u64;
    for nth in 0..9 {
        let byte = *from.first()?;
        *from = from.get(1..)?;
        if nth == 8 {
            return Some(number << 8 | u64::from(byte));
        }
        number = number << 7 | u64::from(byte & 0x7f);
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

fn short_at(page: &[u8; PAGE], at: usize) -> Option<usize> {
    page.get(at..)?.first_chunk::<2>().map(|two| usize::from(u16::from_be_bytes(*two)))
}
