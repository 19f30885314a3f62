//! `config/tidegate.toml`, as the schema says it must be, and the tests that hold the two together.
//!
//! A line that begins with `#` and a letter or bracket is a setting at its default; `# ` is prose.

use crate::settings::TABLES;
use crate::settings::kafka::OPTIONS_EXAMPLE;
use crate::settings::table::{Default, Key, Kind, Table};

const WIDTH: usize = 110;

const HEAD: &str = "\
# Tidegate's configuration: every key there is.
#
# As it is, it works with an MQTT broker and a Kafka broker on this machine; while Kafka is away, readings wait here.
# Three lines make it yours: url and subscribe below [[mqtt]], brokers below [kafka].
#
# A line \"#key = value\" shows a key that is not set, with its default; take away the \"#\" to set it.
# Sizes and times are texts with their unit: \"64KiB\", \"1GiB\", \"100ms\", \"30s\", \"7d\".
# `tidegate check --config FILE` finds every mistake before the agent does, without a network.
";

/// The whole file.
fn render() -> String {
    let mut out = HEAD.to_owned();
    for table in TABLES {
        out.push('\n');
        prose(&mut out, table.why);
        // What a first install must say stands there; [[listen]] and [[redirect]] are for those who want them.
        let off = if ["listen", "redirect"].contains(&table.name) { "#" } else { "" };
        out.extend([off, &table.header(), "\n"]);
        for key in table.keys {
            render_key(&mut out, off, "", key);
        }
    }
    out
}

fn render_key(out: &mut String, off: &str, parent: &str, key: &Key) {
    let (name, example, why) = (key.name, key.example(), key.why);
    match (&key.kind, &key.default) {
        (Kind::Keys(table), _) => {
            for key in table.keys {
                render_key(out, off, &format!("{name}."), key);
            }
        }
        (Kind::Options, _) => {
            out.push('\n');
            prose(out, why);
            out.push_str("#[kafka.options]\n");
            for (name, value) in OPTIONS_EXAMPLE {
                out.extend(["#", name, " = ", value, "\n"]);
            }
        }
        (kind, default) => {
            let default_words = match default {
                Default::Required(_) => "Must be set.".to_owned(),
                Default::Is(_) => String::new(),
                Default::Computed(words, _) => format!("Default: {words}."),
                Default::Absent(_) => "Default: none.".to_owned(),
            };
            let said_by_why = matches!(kind, Kind::Text(_) | Kind::List | Kind::Tables(_));
            let allowed = if said_by_why { String::new() } else { format!("Allowed: {}.", kind.allowed()) };
            prose(out, why);
            let words: Vec<&str> = [&*allowed, &*default_words].into_iter().filter(|words| !words.is_empty()).collect();
            if !words.is_empty() {
                prose(out, &words.join(" "));
            }
            let unset = if matches!(default, Default::Required(_)) { off } else { "#" };
            out.extend([unset, parent, name, " = ", &example, "\n"]);
        }
    }
}

fn prose(out: &mut String, text: &str) {
    let mut line = String::from("#");
    for word in text.split(' ') {
        if WIDTH.saturating_sub(line.len()) <= word.len() {
            out.push_str(&line);
            out.push('\n');
            line = String::from("#");
        }
        line.push(' ');
        line.push_str(word);
    }
    out.push_str(&line);
    out.push('\n');
}

mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::{Config, Env, parse};

    const FILE: &str = include_str!("../../config/tidegate.toml");

    /// The machine that the file's examples are made for.
    fn env() -> Env {
        Env::of("press-07")
    }

    fn read(text: &str) -> Config {
        parse(text, "t.toml", &env()).unwrap_or_else(|problems| panic!("{problems}\n{text}"))
    }

    #[test]
    fn the_file_is_what_the_schema_says() {
        let rendered = render();
        if std::env::var_os("TIDEGATE_WRITE_EXAMPLE").is_some() {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/tidegate.toml");
            std::fs::write(path, &rendered).unwrap();
            return;
        }
        assert!(
            FILE == rendered,
            "config/tidegate.toml and src/settings differ; write the file anew with\n  \
            TIDEGATE_WRITE_EXAMPLE=1 cargo test --lib what_the"
        );
    }

    #[test]
    fn the_file_passes_as_it_is() {
        let config = read(FILE);
        assert_eq!((config.mqtt.len(), config.listen.len(), config.routes.definitions().len()), (1, 0, 1));
        assert_eq!(config.kafka.brokers, ["localhost:9092"]);
        assert_eq!(config.remarks, []);
    }

    /// Settings only, the commented ones included, as `(table, line)`.
    fn settings(text: &str) -> Vec<(String, String)> {
        let mut header = String::new();
        let mut found = Vec::new();
        for line in text.lines().map(|line| line.strip_prefix('#').unwrap_or(line)) {
            if line.starts_with('[') {
                header = line.to_owned();
                found.push((header.clone(), line.to_owned()));
            } else if line.starts_with(|c: char| c.is_ascii_alphabetic()) {
                found.push((header.clone(), line.to_owned()));
            }
        }
        found
    }

    fn key_of(table: &str, line: &str) -> Option<(&'static Table, &'static Key)> {
        let table = TABLES.iter().find(|t| t.header() == table)?;
        let name = line.split(" = ").next()?;
        match name.split_once('.') {
            None => Some((table, table.key(name)?)),
            Some((group, name)) => {
                let Kind::Keys(keys) = table.key(group)?.kind else { return None };
                Some((keys, keys.key(name)?))
            }
        }
    }

    #[test]
    fn the_file_lists_exactly_the_keys_of_the_schema() {
        let lines = settings(FILE);
        let groups = TABLES.iter().flat_map(|table| table.keys).filter_map(|key| {
            let Kind::Keys(keys) = key.kind else { return None };
            Some(keys)
        });
        let written = |key: &&Key| !matches!(key.kind, Kind::Options | Kind::Keys(_));
        for table in TABLES.into_iter().chain(groups) {
            for key in table.keys.iter().filter(written) {
                let count =
                    lines.iter().filter(|(t, l)| key_of(t, l).is_some_and(|(_, k)| std::ptr::eq(k, key))).count();
                assert_eq!(count, 1, "{} {}", table.name, key.name);
            }
        }
        for (table, line) in &lines {
            let known = table == line || table == "[kafka.options]" || key_of(table, line).is_some();
            assert!(known, "{table} {line}");
        }
    }

    #[test]
    fn every_documented_default_is_the_default_of_the_code() {
        let pick = |wanted: fn(&Default) -> bool| {
            let lines = settings(FILE).into_iter().filter(|(table, line)| {
                // A redirect wants one of two keys, and neither has a default that would do.
                !["[kafka.options]", "[[redirect]]"].contains(&&**table)
                    && (table == line || key_of(table, line).is_some_and(|(_, key)| wanted(&key.default)))
            });
            lines.map(|(_, line)| line + "\n").collect::<String>()
        };
        let least = pick(|default| matches!(default, Default::Required(_)));
        let documented = pick(|default| !matches!(default, Default::Absent(_)));
        assert!(documented.lines().count() > least.lines().count() + 20, "{documented}");
        assert_eq!(format!("{:#?}", read(&documented)), format!("{:#?}", read(&least)));
    }

    #[test]
    fn every_default_that_depends_on_the_machine_is_stated() {
        let config = read(FILE);
        assert_eq!(config.agent.id, "press-07");
        assert_eq!(config.agent.data_dir, Path::new("/var/lib/tidegate"));
        assert_eq!(config.mqtt[0].client_id, "tidegate-press-07-plant");
        let systemd = Env { state_directory: Some("/var/lib/private/tidegate".into()), ..env() };
        let config = parse(FILE, "t.toml", &systemd).unwrap();
        assert_eq!(config.agent.data_dir, Path::new("/var/lib/private/tidegate"));
    }

    #[test]
    fn every_word_of_a_choice_is_accepted() {
        for (table, line) in settings(FILE) {
            let Some((_, Key { name, kind: Kind::Choice(words, _), .. })) = key_of(&table, &line) else { continue };
            for word in words() {
                let mut text = FILE.replacen(&format!("#{line}"), &format!("{name} = {word:?}"), 1);
                assert_ne!(text, FILE, "{line}");
                if table == "[[listen]]" {
                    // It is off in the file; what it must say stands there.
                    for needed in ["[[listen]]", "name = \"floor\"", "address = \"127.0.0.1:1884\""] {
                        text = text.replacen(&format!("\n#{needed}\n"), &format!("\n{needed}\n"), 1);
                    }
                }
                read(&text);
            }
        }
    }
}
