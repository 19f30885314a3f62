//! Style that matters is a test: the layout, the custody rules and their proofs, the places where a dangerous thing may stand.

#![expect(
    clippy::panic,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::case_sensitive_file_extension_comparisons,
    reason = "a test that panics has failed"
)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

#[path = "tidy/imports.rs"]
mod imports;

use imports::{Product, circles};

/// Long enough for one subject; a longer file is two. 450 would be better.
const LONGEST_FILE: usize = 600;

/// Words of the source that an operator cannot know, and turns of phrase that hide who does what. Messages do without them.
const NOT_IN_MESSAGES: [&str; 26] = [
    "lane",
    "lanes",
    "door",
    "outlet",
    "twin",
    "fate",
    "fates",
    "settled",
    "settlement",
    "guilty",
    "recall",
    "ledger",
    "hole",
    "holes",
    "stranger",
    "goodbye",
    "company",
    "bear",
    "bears",
    "anew",
    "put right",
    "set right",
    "shut out",
    "last words",
    "a word for",
    "lets us not",
];

#[test]
fn every_custody_rule_names_what_keeps_it_and_a_test_that_exists() {
    let lib = read("src/lib.rs");
    let tests = all_sources(&["tests", "src"]);
    for rule in 1..=7 {
        let text = section(&lib, &format!("//! {rule}. "));
        for (label, pattern) in [("kept by", "Kept by"), ("proven by", "Proven by")] {
            assert!(text.contains(pattern), "rule {rule} in src/lib.rs does not say what it is {label}");
        }
        let (kept, proven) = text.split_once("Proven by").expect("checked above");
        let kept = kept.split_once("Kept by").expect("checked above").1;
        for name in quoted(kept).filter(|name| name.ends_with(".rs")) {
            assert!(Path::new("src").join(name).exists(), "rule {rule} is kept by src/{name}, which does not exist");
        }
        let mut named = 0;
        for name in quoted(proven) {
            let function = format!("fn {name}(");
            assert!(tests.values().any(|source| source.contains(&function)), "rule {rule}: there is no test `{name}`");
            named += 1;
        }
        assert!(named > 0, "rule {rule} has no test");
        let cited = format!("custody rule {rule}");
        assert!(
            tests.iter().any(|(path, source)| path.starts_with("src") && source.to_lowercase().contains(&cited)),
            "no line of src/ cites custody rule {rule}"
        );
    }
}

#[test]
fn imports_follow_the_data() {
    let forbidden = [
        ("src/buffer", vec!["crate::ingest", "crate::forward", "crate::config"]),
        ("src/ingest", vec!["crate::forward", "crate::config"]),
        ("src/forward", vec!["crate::ingest", "crate::config"]),
        ("src/event.rs", vec!["crate::"]),
        ("src/settings", vec!["crate::ingest", "crate::buffer", "crate::forward", "crate::observe", "crate::config"]),
    ];
    for (place, words) in forbidden {
        for (path, source) in all_sources(&[place]) {
            for word in &words {
                assert!(!code(&source).contains(word), "{} names {word}", path.display());
            }
        }
    }
}

/// Where circles and twins are being mended at this moment. Empty when that is done.
const STILL_MENDED: [&str; 0] = [];

fn is_still_mended(path: &Path) -> bool {
    STILL_MENDED.iter().any(|place| path.starts_with(place))
}

/// A circle of any size is one file in pieces: none of them can be read, tested or moved alone. `tests/tidy/imports.rs` says
/// what counts.
#[test]
fn no_imports_go_in_a_circle() {
    let product = Product::new(&all_sources(&["src"]));
    let edges = product.edges();
    assert!(edges.len() > 500, "only {} imports found: is the search broken?", edges.len());
    let mut found = circles(&edges);
    found.retain(|(from, to), _| !is_still_mended(from) || !is_still_mended(to));
    let lines: Vec<String> = found
        .iter()
        .map(|((from, to), names)| format!("{} names {names:?} of {}", from.display(), to.display()))
        .collect();
    assert!(lines.is_empty(), "imports in a circle:\n{}", lines.join("\n"));
}

#[test]
fn a_circle_of_imports_is_seen_through_re_exports_and_not_where_only_tests_make_it() {
    let files = |one: &str, two: &str| {
        let own = [
            ("src/lib.rs", "mod a; mod b; mod c;"),
            ("src/a/mod.rs", "mod one; pub(crate) use one::{One, one}; // crate::b::Two\n"),
            ("src/a/one.rs", one),
            ("src/b.rs", two),
            ("src/c.rs", "use crate::a::One; use crate::b; fn c(_: One) -> b::Two { b::two() }"),
        ];
        let own = own.into_iter().map(|(path, source)| (PathBuf::from(path), source.to_owned())).collect();
        circles(&Product::new(&own).edges()).into_keys().map(|(from, _)| from).collect::<Vec<_>>()
    };
    let one = "pub(crate) struct One<'a>(&'a str); pub(crate) fn one() -> char { '\\'' }";
    let two = "use crate::a::One; pub(crate) struct Two(One<'static>);";
    assert_eq!(files(one, two), Vec::<PathBuf>::new());
    assert_eq!(files(&format!("use crate::b::Two; {one}"), two), ["src/a/one.rs", "src/b.rs"].map(PathBuf::from));
    assert_eq!(files(&format!("fn f() {{ crate::b::two(); }} {one}"), two).len(), 2);
    assert_eq!(files(&format!("#[cfg(test)] mod tests {{ use crate::b::Two; }} {one}"), two).len(), 0);
    assert_eq!(files(&format!("const TEXT: &str = r#\"crate::b::Two \"#; {one}"), two).len(), 0);
    let parent = "use super::super::b::Two; use super::Three; struct Four(Two, Three);";
    assert_eq!(files(&format!("{parent} {one}"), two).len(), 2, "of three files one only declares");
}

/// Two files that say the same number under the same name will not both be changed.
#[test]
fn no_constant_is_defined_twice() {
    let product = Product::new(&all_sources(&["src"]));
    let mut seen: BTreeMap<&[String; 3], &Path> = BTreeMap::new();
    for file in product.files() {
        for constant in &file.constants {
            let Some(other) = seen.insert(constant, &file.path).filter(|other| *other != file.path) else { continue };
            let [name, _, value] = constant;
            let places = format!("{} and {}", other.display(), file.path.display());
            assert!(
                is_still_mended(other) || is_still_mended(&file.path),
                "{name} = {value} is defined in {places}: one of them may name the other's"
            );
        }
    }
}

/// What is `pub` and named nowhere else is private, or below `#[cfg(test)]` if it is there for tests: else nobody sees that it
/// is of no use.
#[test]
fn what_other_files_may_name_is_named_by_one() {
    let product = Product::new(&all_sources(&["src"]));
    let mut useless = Vec::new();
    for file in product.files().filter(|file| !is_still_mended(&file.path)) {
        for name in file.offered.iter().filter(|name| product.is_named_nowhere_else(name, file)) {
            useless.push(format!("{}: {name}", file.path.display()));
        }
    }
    assert!(useless.is_empty(), "pub for no other file, or for tests only:\n{}", useless.join("\n"));
}

#[test]
fn libraries_stay_in_their_rooms() {
    let rooms = [
        ("serde_cbor", vec!["src/cbor.rs"]),
        ("rusqlite", vec!["src/buffer", "src/cli/version.rs"]),
        ("tokio_rustls", vec!["src/ingest/broker", "src/ingest/stream.rs", "src/settings"]),
        ("rdkafka", vec!["src/forward", "src/delivered.rs", "src/cli"]),
        ("rumqttc", vec!["src/ingest"]),
        ("test_kit", vec!["src/cli/demo"]),
        ("prometheus_client", vec!["src/observe"]),
        ("hyper", vec!["src/observe", "src/cli/status.rs"]),
    ];
    for (path, source) in all_sources(&["src"]) {
        for (library, rooms) in &rooms {
            let used = code(&source).contains(&format!("{library}::"));
            let allowed = rooms.iter().any(|room| path.starts_with(room));
            assert!(!used || allowed, "{} uses {library}, which belongs into {rooms:?}", path.display());
        }
    }
}

#[test]
fn proofs_are_made_in_one_file_each() {
    let makers = [
        ("Durable(", "src/buffer/commit.rs"),
        ("Receipt {", "src/ingest/receipt.rs"),
        ("Delivered {", "src/delivered.rs"),
    ];
    for (path, source) in all_sources(&["src"]) {
        for (maker, home) in makers {
            let elsewhere = path != Path::new(home);
            let made =
                code(&source).split(maker).skip(1).count() > 0 && !code(&source).contains(&format!("struct {maker}"));
            assert!(!(elsewhere && made), "{} makes a {maker}…; only {home} may", path.display());
        }
    }
    for (_, home) in makers {
        let source = read(home);
        assert!(!source.contains("Clone)]\npub struct"), "a proof in {home} can be cloned");
        assert!(source.contains("compile_fail"), "{home} does not show that its proof cannot be forged");
    }
}

#[test]
fn no_lock_stands_in_a_signature_and_no_room_is_called_utils() {
    for (path, source) in all_sources(&["src"]) {
        assert!(!code(&source).contains("Arc<Mutex<"), "{} shares a lock", path.display());
        let name = path.file_stem().and_then(|s| s.to_str()).unwrap_or_default().to_owned();
        for banned in ["utils", "util", "common", "helpers", "helper", "types", "manager", "handler", "misc"] {
            assert_ne!(name, banned, "{}", path.display());
        }
    }
}

#[test]
fn no_file_is_two_files() {
    for (path, source) in all_sources(&["src", "benches", "tests/kit"]) {
        let lines = source.lines().count();
        assert!(lines <= LONGEST_FILE, "{} has {lines} lines, more than {LONGEST_FILE}", path.display());
    }
}

/// Whoever reads them knows MQTT and Kafka, and neither this source nor much English.
#[test]
fn messages_say_it_in_plain_words() {
    let mut seen = 0;
    for (path, source) in all_sources(&["src"]) {
        for text in messages(&code(&source)) {
            seen += 1;
            let words: Vec<&str> = text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).collect();
            let plain = format!(" {} ", words.join(" ").to_lowercase());
            for private in NOT_IN_MESSAGES {
                assert!(!plain.contains(&format!(" {private} ")), "{}: {private:?} in {text:?}", path.display());
            }
        }
    }
    assert!(seen > 200, "only {seen} messages found: is the search broken?");
}

/// The texts of what is logged and of error types.
fn messages(source: &str) -> Vec<String> {
    let openers = ["info!(", "warn!(", "error!(", "debug!(", "trace!(", "#[error("];
    let at = openers.iter().flat_map(|opener| source.match_indices(opener).map(|(at, opener)| at + opener.len()));
    at.flat_map(|at| texts_in_brackets(&source[at..])).collect()
}

/// The string literals up to the bracket that closes.
fn texts_in_brackets(source: &str) -> Vec<String> {
    let (mut texts, mut open, mut chars) = (Vec::new(), 1, source.chars());
    while let Some(c) = chars.next().filter(|_| open > 0) {
        match c {
            '(' => open += 1,
            ')' => open -= 1,
            '"' => {
                let mut text = String::new();
                while let Some(c) = chars.next().filter(|c| *c != '"') {
                    text.push(if c == '\\' { chars.next().unwrap_or(c) } else { c });
                }
                texts.push(text);
            }
            _ => {}
        }
    }
    texts
}

/// What is packaged aborts at a panic: whoever catches one there ends the process without a word.
#[test]
fn nothing_rests_on_unwinding() {
    for (path, source) in all_sources(&["src"]) {
        assert!(!code(&source).contains("catch_unwind"), "{} catches a panic", path.display());
    }
}

#[test]
fn every_file_says_what_it_is_for() {
    for (path, source) in all_sources(&["src", "benches", "tests/kit"]) {
        assert!(source.starts_with("//!"), "{} does not begin with what it is for", path.display());
    }
}

#[test]
fn nothing_is_left_for_later() {
    for (path, source) in all_sources(&["src", "benches", "tests"]) {
        if path.ends_with("tidy.rs") {
            continue;
        }
        for word in ["todo!", "unimplemented!", "FIXME", "TODO", "XXX", "#[ignore"] {
            assert!(!source.contains(word), "{} contains {word}", path.display());
        }
    }
}

#[test]
fn every_planted_bug_is_planted_and_caught() {
    let planted = read("src/planted.rs");
    let controls = all_sources(&["tests/it"]).into_values().collect::<String>();
    let product = all_sources(&["src"]);
    let names: Vec<&str> = planted
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Self::")?.split_once(" => \"").map(|(variant, _)| variant))
        .collect();
    assert!(names.len() >= 12, "only {} bugs found in src/planted.rs", names.len());
    for variant in names {
        // A bug is asked for, a death happens.
        let places = [format!("planted(Bug::{variant})"), format!("die(Bug::{variant})")];
        let is_planted = product.values().any(|source| places.iter().any(|place| source.contains(place)));
        assert!(is_planted, "Bug::{variant} is planted nowhere");
        let name = planted
            .split(&format!("Self::{variant} => \""))
            .nth(1)
            .and_then(|s| s.split('"').next())
            .unwrap_or_default();
        assert!(controls.contains(&format!("\"{name}\"")), "no test under tests/it plants {name:?}");
    }
}

#[test]
fn readme_shows_both_commands_and_the_top_level_is_whole() {
    let readme = read("README.md");
    let first = readme.find("cargo run --release -- demo").expect("README shows the demo");
    let second = readme.find("tests/run").expect("README shows the tests");
    assert!(first < second, "the demo comes first");
    for path in [
        "Cargo.toml",
        "Cargo.lock",
        "config/tidegate.toml",
        "systemd/tidegate.service",
        "ARCHITECTURE.md",
        "CHANGELOG.md",
        "LICENSE-MIT",
        "LICENSE-APACHE",
        ".ci/run",
        "tests/run",
        "deny.toml",
        "rustfmt.toml",
        "clippy.toml",
    ] {
        assert!(Path::new(path).exists(), "{path} is missing");
    }
}

/// `profile.dist` inherits what `profile.release` says of a package: whatever is built less thoroughly there says here how
/// thoroughly it is packaged.
#[test]
fn what_is_packaged_inherits_no_level_from_the_everyday_build() {
    let manifest = read("Cargo.toml");
    let table = |heading: &str| {
        let body = manifest.split(heading).nth(1).unwrap_or_else(|| panic!("{heading} is missing")).split("\n[").next();
        let lines = body.unwrap_or_default().lines().filter(|line| line.contains("opt-level"));
        lines.filter_map(|line| line.split(" = ").next()).map(str::to_owned).collect::<Vec<_>>()
    };
    let (release, dist) = (table("[profile.release.package]"), table("[profile.dist.package]"));
    assert!(release.len() > 20, "{release:?}");
    let silent: Vec<_> = release.iter().filter(|package| !dist.contains(package)).collect();
    assert!(silent.is_empty(), "profile.dist.package does not say how {silent:?} are packaged");
}

/// GitHub's and every other renderer's: small letters, digits, hyphens.
fn anchors(markdown: &str) -> Vec<String> {
    let heading = |line: &str| {
        let text = line.trim_start_matches('#').trim().to_lowercase();
        let kept = text.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    markdown.lines().filter(|line| line.starts_with('#')).map(heading).collect()
}

#[test]
fn links_of_documents_lead_somewhere() {
    let docs = fs::read_dir("docs").expect("docs/").map(|entry| entry.expect("a readable folder").path());
    let others = ["README.md", "ARCHITECTURE.md", "CHANGELOG.md", "cross/README.md"].map(PathBuf::from);
    let mut seen = 0;
    for document in docs.chain(others) {
        let text = read(document.to_str().expect("UTF-8 names"));
        let links = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        for link in links.filter(|link| !link.starts_with("http")) {
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = match path {
                "" => document.clone(),
                path => document.parent().expect("a file in a folder").join(path),
            };
            assert!(target.exists(), "{}: {link} leads nowhere", document.display());
            if !anchor.is_empty() {
                let target = read(target.to_str().expect("UTF-8 names"));
                assert!(
                    anchors(&target).iter().any(|a| a == anchor),
                    "{}: {link}: no such heading",
                    document.display()
                );
            }
            seen += 1;
        }
    }
    assert!(seen > 10, "{seen} links: is the search broken?");
    let readme = read("README.md");
    for entry in fs::read_dir("docs").expect("docs/") {
        let name = entry.expect("a readable folder").file_name();
        let name = format!("docs/{}", name.to_str().expect("UTF-8 names"));
        assert!(readme.contains(&name), "README does not lead to {name}");
    }
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn all_sources(places: &[&str]) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut open: Vec<PathBuf> = places.iter().map(PathBuf::from).collect();
    while let Some(path) = open.pop() {
        if path.is_dir() {
            let entries = fs::read_dir(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            open.extend(entries.map(|entry| entry.expect("a readable folder").path()));
        } else if path.extension().is_some_and(|e| e == "rs") {
            let source = read(path.to_str().expect("UTF-8 names"));
            found.insert(path, source);
        }
    }
    assert!(!found.is_empty(), "no sources in {places:?}");
    found
}

/// The source without comments and without its unit tests.
fn code(source: &str) -> String {
    let product = source.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
    product.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// From a heading to the next numbered one.
fn section(text: &str, from: &str) -> String {
    let start = text.find(from).unwrap_or_else(|| panic!("{from:?} is missing in src/lib.rs"));
    let body: Vec<&str> = text[start..].lines().collect();
    let is_next = |line: &str| {
        line.strip_prefix("//! ")
            .is_some_and(|rest| rest.split_once(". ").is_some_and(|(n, _)| n.parse::<u8>().is_ok()))
    };
    let end =
        body.iter().skip(1).position(|line| is_next(line) || !line.starts_with("//!")).map_or(body.len(), |i| i + 1);
    body[..end].join("\n")
}

/// What stands between backquotes.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}
