//! `tidegate.toml(5)` below `cross/man`, as the schema says it must be, and the test that holds the two together.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use crate::settings::TABLES;
use crate::settings::kafka::OPTIONS_EXAMPLE;
use crate::settings::table::{Default, Key, Kind, Table};

const HEAD: &str = r#".TH TIDEGATE.TOML 5 "" tidegate
.SH NAME
tidegate.toml \- configuration of the agent tidegate
.SH SYNOPSIS
/etc/tidegate/tidegate.toml
.SH DESCRIPTION
TOML. Sizes and times are texts with their unit: "64KiB", "1GiB", "100ms", "30s", "7d". An unknown key is an error.
.B tidegate check
names every mistake with its line, without a network. Changes are taken at the next start.
.PP
A path may begin with $CREDENTIALS_DIRECTORY, where systemd puts what LoadCredential= names.
"#;

const FOOT: &str = "\
.SH SEE ALSO
.BR tidegate (1),
.BR systemd.exec (5)
";

fn page() -> String {
    let mut out = HEAD.to_owned();
    for table in TABLES {
        writeln!(out, ".SH {}\n{}", quoted(&table.header()), escaped(table.why)).unwrap();
        for key in table.keys {
            describe(&mut out, table, key);
        }
    }
    out + FOOT
}

fn describe(out: &mut String, table: &Table, key: &Key) {
    if let Kind::Options = key.kind {
        let header = format!("[{}.{}]", table.name, key.name);
        writeln!(out, ".SH {}\n{}\n.PP\n.nf", quoted(&header), escaped(key.why)).unwrap();
        for (name, value) in OPTIONS_EXAMPLE {
            writeln!(out, "{}", escaped(&format!("{name} = {value}"))).unwrap();
        }
        out.push_str(".fi\n");
        return;
    }
    if let Kind::Keys(inner) = key.kind {
        for inner_key in inner.keys {
            describe_one(out, &format!("{}.{}", key.name, inner_key.name), inner_key);
        }
        return;
    }
    describe_one(out, key.name, key);
}

fn describe_one(out: &mut String, name: &str, key: &Key) {
    let example = key.example();
    let default = match key.default {
        Default::Required(_) => format!("Must be set, for example {example}."),
        Default::Is(_) => format!("Default: {example}."),
        Default::Computed(words, _) => format!("Default: {}.", words.replace("as here", &example)),
        Default::Absent(_) => format!("Default: none. For example {example}."),
    };
    let said_by_why = matches!(key.kind, Kind::Text(_) | Kind::List | Kind::Tables(_));
    let allowed = if said_by_why { String::new() } else { format!("Allowed: {}. ", key.kind.allowed()) };
    writeln!(out, ".TP\n.B {name}\n{}\n{}", escaped(key.why), escaped(&(allowed + &default))).unwrap();
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", escaped(text))
}

/// Text of one line as troff reads it: no dash that is a hyphen, no dot that is a request.
fn escaped(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-").replace('…', "...");
    if text.starts_with(['.', '\'']) { format!("\\&{text}") } else { text }
}

#[test]
fn the_manual_is_what_the_schema_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("cross/man/tidegate.toml.5");
    if std::env::var_os("TIDEGATE_WRITE_EXAMPLE").is_some() {
        fs::write(path, page()).unwrap();
        return;
    }
    assert!(
        fs::read_to_string(&path).unwrap_or_default() == page(),
        "cross/man/tidegate.toml.5 and src/settings differ; write the file anew with\n  \
         TIDEGATE_WRITE_EXAMPLE=1 cargo test --lib what_the"
    );
}
