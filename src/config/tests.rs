//! Whole configurations: wrong ones, mutated ones, and what never shows.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use proptest::prelude::*;

use super::{Config, Env, Problem, Problems, load, parse};
use crate::event::Qos;
use crate::settings::{Delivery, LogFormat, MqttVersion, SyncMode};

const EXAMPLE: &str = include_str!("../../config/tidegate.toml");
const WRONG: &str = include_str!("../../tests/wrong_configs/cases.txt");

/// What a wrong configuration with a secret in it must not repeat.
const SECRET: &str = "hunter2";

/// The tables without which nothing runs, each with its header.
const NEEDED: [(&str, &str); 4] = [
    ("agent", "[agent]\nid = \"gw\"\n"),
    ("mqtt", "[[mqtt]]\nname = \"base\"\nurl = \"mqtt://base\"\nsubscribe = [{ filter = \"a\" }]\n"),
    ("kafka", "[kafka]\nbrokers = [\"k:9092\"]\n"),
    ("route", "[[route]]\nfrom = \"#\"\nto = \"all\"\n"),
];

struct Case {
    text: String,
    expected: Vec<(usize, String, String)>,
}

fn env() -> Env {
    Env::of("gw")
}

fn read(text: &str) -> Result<Config, Problems> {
    parse(text, "t.toml", &env())
}

fn good(text: &str) -> Config {
    read(text).unwrap_or_else(|problems| panic!("{problems}\n{text}"))
}

/// Puts the tables that are not named behind the text.
fn completed(text: &str) -> String {
    let named = |table: &str| {
        let starts = [format!("[{table}"), format!("[[{table}"), format!("{table} =")];
        text.lines().any(|line| starts.iter().any(|start| line.starts_with(start)))
    };
    let mut whole = text.to_owned();
    NEEDED.iter().filter(|(table, _)| !named(table)).for_each(|(_, more)| whole.push_str(more));
    whole
}

/// The files that cases speak of.
fn files() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let other_key = rcgen::KeyPair::generate().unwrap().serialize_pem();
    let contents: [(&str, &[u8]); 10] = [
        ("secret", b"hunter2\n"),
        ("empty", b""),
        ("binary", b"\xff"),
        ("users", b"# nobody yet\n"),
        ("bad_users", b"# the floor\nbob:hunter2\n"),
        ("bad.pem", b"-----BEGIN CERTIFICATE-----\naHVudGVyMg==\n-----END CERTIFICATE-----\n"),
        ("bad.key", b"-----BEGIN PRIVATE KEY-----\naHVudGVyMg==\n-----END PRIVATE KEY-----\n"),
        (
            "encrypted.key",
            b"-----BEGIN ENCRYPTED PRIVATE KEY-----\naHVudGVyMg==\n-----END ENCRYPTED PRIVATE KEY-----\n",
        ),
        (
            "encrypted_rsa.key",
            b"-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\nhunter2=\n-----END RSA PRIVATE KEY-----\n",
        ),
        ("other.key", other_key.as_bytes()),
    ];
    for (name, content) in contents {
        write_private(&folder.path().join(name), content);
    }
    let rcgen::CertifiedKey { cert, signing_key } = rcgen::generate_simple_self_signed(["gateway".into()]).unwrap();
    write_private(&folder.path().join("ca.pem"), cert.pem().as_bytes());
    write_private(&folder.path().join("ca.der"), cert.der());
    write_private(&folder.path().join("client.pem"), cert.pem().as_bytes());
    write_private(&folder.path().join("client.key"), signing_key.serialize_pem().as_bytes());
    folder
}

fn write_private(path: &Path, content: &[u8]) {
    fs::write(path, content).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

fn cases(folder: &Path) -> Vec<Case> {
    let folder = folder.to_str().unwrap();
    let case = |block: &str| {
        let (heads, text): (Vec<&str>, Vec<&str>) = block.lines().partition(|line| line.starts_with("== "));
        let text: String = text.iter().map(|line| line.replace("$TMP", folder) + "\n").collect();
        let expected = heads.iter().filter(|head| **head != "== whole").map(|head| {
            let parts: Vec<&str> = head["== ".len()..].splitn(3, " | ").collect();
            let [line, key, words] = parts[..] else { panic!("not a heading: {head}") };
            (line.parse().unwrap(), key.to_owned(), words.to_owned())
        });
        Case { expected: expected.collect(), text: if heads.contains(&"== whole") { text } else { completed(&text) } }
    };
    WRONG.split("\n----\n").skip(1).map(case).collect()
}

#[test]
fn every_wrong_configuration_gives_its_problems_and_no_others() {
    let folder = files();
    let cases = cases(folder.path());
    assert!(cases.len() >= 120, "only {} cases", cases.len());
    let mut failures = Vec::new();
    for Case { text, expected } in &cases {
        let found = match read(text) {
            Ok(_) => Vec::new(),
            Err(problems) => problems.list().to_vec(),
        };
        let fits = |problem: &Problem, (line, key, words): &(usize, String, String)| {
            problem.place.is_some_and(|(l, column)| l == *line && column > 0)
                && problem.key == *key
                && problem.what.contains(words)
        };
        let mut expected = expected.clone();
        expected.sort_by_key(|(line, ..)| *line);
        let all =
            found.len() == expected.len() && expected.iter().all(|e| found.iter().any(|problem| fits(problem, e)));
        if !all || expected.is_empty() {
            failures.push(format!("expected {expected:#?}\nfound {found:#?}\nin\n{text}"));
        }
        let shown = format!("{found:?}");
        assert!(!shown.contains(SECRET), "a secret shows: {shown}");
    }
    assert!(failures.is_empty(), "{} of {}:\n{}", failures.len(), cases.len(), failures.join("\n----\n"));
}

#[test]
fn problems_are_shown_with_file_line_column_and_key() {
    let shown = read(&completed("[buffer]\nsync = \"off\"\n")).unwrap_err().to_string();
    assert_eq!(shown, "t.toml:2:8: buffer.sync: found \"off\"; allowed: \"full\" or \"normal\"");
}

#[test]
fn everything_in_the_example_can_be_switched_on() {
    let folder = files();
    for name in ["plant.pw", "kafka.pw"] {
        write_private(&folder.path().join(name), b"hunter2\n");
    }
    let text: String = EXAMPLE
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(setting) if setting.starts_with(|c: char| c == '[' || c.is_ascii_alphabetic()) => setting,
            _ => line,
        })
        .map(|line| {
            let line = line.replace("\"/etc/tidegate/", &format!("\"{}/", folder.path().display()));
            line.replace("\"mqtt://", "\"mqtts://") + "\n"
        })
        .collect();
    let env = Env { credentials_directory: Some(folder.path().to_owned()), ..env() };
    let config = parse(&text, "t.toml", &env).unwrap_or_else(|problems| panic!("{problems}"));
    assert_eq!(config.mqtt[0].password.as_ref().unwrap().reveal(), SECRET);
    assert_eq!(config.kafka.options["sasl.password"].reveal(), SECRET);
    assert_eq!(config.kafka.options["security.protocol"].reveal(), "SASL_SSL");
    assert_eq!(config.remarks, []);
    assert!(!format!("{config:?}").contains(SECRET), "{config:?}");
}

#[test]
fn values_arrive_as_they_were_written() {
    let folder = files();
    let text = format!(
        r#"
        [agent]
        id = "press-07"
        data_dir = "/data"
        [log]
        level = "warn, tidegate=debug"
        format = "json"
        [http]
        listen = ""
        [[mqtt]]
        name = "plant"
        url = "mqtt://[::1]:1884"
        version = "3.1.1"
        username = "u"
        password_file = "{folder}/secret"
        subscribe = [{{ filter = "$share/g/a/#", qos = 2 }}, {{ filter = "b" }}]
        session_expiry = "1h"
        keepalive = "1m 30s"
        max_packet_bytes = "64KiB"
        receive_maximum = 0xff
        [[listen]]
        name = "floor"
        address = "0.0.0.0:1883"
        users_file = "{folder}/users"
        max_connections = 1_000
        [buffer]
        max_bytes = "2.5GB"
        sync = "normal"
        commit_delay = "20ms"
        [kafka]
        brokers = ["k1:9092", "[::1]:9093"]
        delivery = "at-least-once"
        linger = "0ms"
        [kafka.options]
        "socket.timeout.ms" = "5000"
        ssl.endpoint.identification.algorithm = "none"
        [[route]]
        from = "a/{{site}}/#"
        to = "a.{{site}}"
        "#,
        folder = folder.path().display()
    );
    let config = good(&text);
    assert_eq!((&*config.agent.id, &*config.agent.data_dir), ("press-07", Path::new("/data")));
    assert_eq!((&*config.log.level, config.log.format), ("warn, tidegate=debug", LogFormat::Json));
    assert_eq!(config.http.listen, None);
    let plant = &config.mqtt[0];
    assert_eq!((&*plant.url.host, plant.url.port, plant.version), ("::1", 1884, MqttVersion::V311));
    assert_eq!(plant.client_id, "tidegate-press-07-plant");
    assert_eq!(plant.password.as_ref().unwrap().reveal(), SECRET);
    assert_eq!((&*plant.subscribe[0].filter, plant.subscribe[0].qos), ("$share/g/a/#", Qos::ExactlyOnce));
    assert_eq!(plant.subscribe[1].qos, Qos::AtLeastOnce);
    assert_eq!((plant.session_expiry, plant.keepalive), (Duration::from_secs(3600), Duration::from_secs(90)));
    assert_eq!((plant.max_packet_bytes, plant.receive_maximum), (65_536, 255));
    let floor = &config.listen[0];
    assert_eq!((floor.address, floor.max_connections), ("0.0.0.0:1883".parse().unwrap(), 1000));
    assert_eq!(floor.users_file, Some(folder.path().join("users")));
    assert_eq!((config.buffer.max_bytes, config.buffer.sync), (2_500_000_000, SyncMode::Normal));
    assert_eq!(config.buffer.commit_delay, Some(Duration::from_millis(20)));
    assert_eq!((config.kafka.delivery, config.kafka.linger), (Delivery::AtLeastOnce, Duration::ZERO));
    assert_eq!(config.kafka.options["ssl.endpoint.identification.algorithm"].reveal(), "none");
    assert_eq!(config.routes.target("a/n/x", None).unwrap().topic.as_ref(), "a.n");
}

#[test]
fn a_filter_that_no_route_takes_anything_of_is_remarked() {
    let text = "[[mqtt]]\nname = \"a\"\nurl = \"mqtt://h\"\n\
                subscribe = [{ filter = \"sensors/#\" }, { filter = \"$share/g/plant/+\" }]\n\
                [[route]]\nfrom = \"sensors/{site}/temp\"\nto = \"t\"\n";
    let remarks = good(&completed(text)).remarks;
    assert_eq!(remarks.len(), 1, "{remarks:?}");
    assert_eq!((remarks[0].place, &*remarks[0].key), (Some((4, 51)), "mqtt[0].subscribe[1].filter"));
    assert!(remarks[0].what.contains("\"$share/g/plant/+\": its readings become dead letters"), "{remarks:?}");
}

#[test]
fn a_client_or_a_user_whom_nobody_can_know_is_remarked() {
    let remarks = |more: &str| {
        let text = format!("{more}[[route]]\nfrom = \"#\"\nto = \"t.{{client}}\"\nkey = \"{{user}}/{{topic}}\"\n");
        let remarks = good(&completed(&text)).remarks;
        remarks.iter().map(|remark| remark.key.clone()).collect::<Vec<_>>()
    };
    let folder = files();
    let users = format!("users_file = {:?}\n", folder.path().join("users"));
    let listen = "[[listen]]\nname = \"floor\"\naddress = \"127.0.0.1:1883\"\n";
    assert_eq!(
        remarks("[[mqtt]]\nname = \"a\"\nurl = \"mqtt://h\"\nsubscribe = [{ filter = \"a\" }]\n"),
        ["route[0].to", "route[0].key"]
    );
    assert_eq!(remarks(listen), ["route[0].key"]);
    assert_eq!(remarks(&format!("{listen}{users}")), [""; 0]);
}

#[test]
fn a_secret_that_everybody_can_read_and_filters_that_overlap_are_remarked() {
    let folder = files();
    let secret = folder.path().join("secret");
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o644)).unwrap();
    let text = format!(
        "[[mqtt]]\nname = \"p\"\nurl = \"mqtt://h\"\nusername = \"u\"\npassword_file = {secret:?}\n\
         subscribe = [{{ filter = \"a/#\" }}, {{ filter = \"a/b\" }}, {{ filter = \"$share/g/a/#\" }}]\n"
    );
    let remarks = good(&completed(&text)).remarks;
    let keys: Vec<&str> = remarks.iter().map(|remark| &*remark.key).collect();
    assert_eq!(keys, ["mqtt[0].password_file", "mqtt[0].subscribe"], "{remarks:?}");
    assert!(remarks[0].what.contains("mode 0644") && remarks[1].what.contains("overlap"), "{remarks:?}");
}

#[test]
fn loopback_and_those_who_said_so_may_listen_without_passwords() {
    for (address, anonymous) in [("127.0.0.1:1", "false"), ("[::1]:1", "false"), ("0.0.0.0:1", "true")] {
        let text = format!("[[listen]]\nname = \"f\"\naddress = \"{address}\"\nanonymous = {anonymous}\n");
        assert_eq!(good(&completed(&text)).listen[0].users_file, None);
    }
}

#[test]
fn a_host_name_that_cannot_be_an_id_asks_for_one() {
    let text = completed("").replace("id = \"gw\"", "");
    for host in ["", "a b", "ü", &"x".repeat(65)] {
        let problems = parse(&text, "t.toml", &Env { host_name: host.into(), ..env() }).unwrap_err();
        assert_eq!(problems.list().len(), 1, "{problems}");
        assert!(problems.to_string().contains("agent.id: missing, and the host name"), "{problems}");
    }
    let problems = parse(&text, "t.toml", &Env { state_directory: Some(PathBuf::from("x")), ..env() }).unwrap_err();
    assert!(problems.to_string().contains("$STATE_DIRECTORY is not an absolute path"), "{problems}");
}

#[test]
fn too_many_tables_are_refused_in_one_line() {
    let routes: Vec<String> = (0..1001).map(|n| format!("[[route]]\nfrom = \"r{n}\"\nto = \"all\"\n")).collect();
    let problems = read(&completed(&routes.concat())).unwrap_err();
    assert_eq!(problems.list().len(), 1);
    assert!(problems.to_string().contains("route: found 1001; at most 1000 are allowed"), "{problems}");
    let links: Vec<String> =
        (0..65).map(|n| format!("[[listen]]\nname = \"l{n}\"\naddress = \"127.0.0.1:{}\"\n", 2000 + n)).collect();
    assert!(read(&completed(&links.concat())).unwrap_err().to_string().contains("listen: found 65; at most 64"));
}

#[test]
fn files_that_are_no_configuration_are_refused_in_plain_words() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t.toml");
    for (content, words) in [
        (b"a = 1\nb = \"\xff\"\n".to_vec(), "not UTF-8 text: line 2 has a bad byte"),
        (vec![b'#'; (1 << 20) + 1], "more than 1048576 bytes"),
    ] {
        fs::write(&path, content).unwrap();
        let shown = load(&path).unwrap_err().to_string();
        assert!(shown.contains(words) && shown.contains("t.toml"), "{shown}");
    }
    assert!(load(folder.path()).unwrap_err().to_string().contains("cannot be read"));
}

/// One change to a text, as a slip of the hand or a bad card would make it.
#[derive(Debug, Clone)]
enum Change {
    Delete(usize, usize),
    Insert(usize, String),
    Repeat(usize, usize),
    Swap(usize, usize),
}

fn change() -> impl Strategy<Value = Change> {
    let place = || any::<prop::sample::Index>().prop_map(|index| index.index(EXAMPLE.len()));
    let bits = prop::sample::select(vec![
        "\"",
        "'",
        "[",
        "]",
        "{",
        "}",
        "#",
        "\n",
        "=",
        ".",
        ",",
        "-",
        "9",
        "1e9",
        "true",
        "[[mqtt]]\n",
        "\u{0}",
        "ü",
        "\\u0000",
        "99999999999999999999",
        "[kafka.options]\n",
        "{rest}",
        "\"\"\"",
    ]);
    prop_oneof![
        (place(), 1..80_usize).prop_map(|(at, len)| Change::Delete(at, len)),
        (place(), bits).prop_map(|(at, text)| Change::Insert(at, text.to_owned())),
        (place(), "\\PC{0,8}").prop_map(|(at, text)| Change::Insert(at, text)),
        (place(), 1..200_usize).prop_map(|(at, len)| Change::Repeat(at, len)),
        (place(), place()).prop_map(|(one, other)| Change::Swap(one, other)),
    ]
}

fn changed(changes: &[Change], switched_on: bool) -> String {
    let text = if switched_on { EXAMPLE.replace("\n#", "\n") } else { EXAMPLE.to_owned() };
    let mut chars: Vec<char> = text.chars().collect();
    for change in changes {
        let len = chars.len();
        match change {
            Change::Delete(at, count) => drop(chars.drain(*at.min(&len)..at.saturating_add(*count).min(len))),
            Change::Insert(at, text) => drop(chars.splice(at.min(&len)..at.min(&len), text.chars())),
            Change::Repeat(at, count) => {
                let piece = chars[*at.min(&len)..at.saturating_add(*count).min(len)].to_vec();
                chars.extend(piece);
            }
            Change::Swap(one, other) if *one < len && *other < len => chars.swap(*one, *other),
            Change::Swap(..) => {}
        }
    }
    chars.into_iter().collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    #[test]
    fn a_changed_example_is_read_or_refused_and_never_a_panic(
        changes in prop::collection::vec(change(), 1..6), switched_on in any::<bool>(),
    ) {
        let text = changed(&changes, switched_on);
        if let Err(problems) = read(&text) {
            prop_assert!(!problems.list().is_empty());
            let lines = text.lines().count() + 1;
            for problem in problems.list() {
                let (line, column) = problem.place.unwrap();
                prop_assert!((1..=lines).contains(&line) && column > 0, "{}", problems);
                prop_assert!(!problem.what.is_empty());
            }
        }
    }

    #[test]
    fn any_text_is_read_or_refused_and_never_a_panic(text in "\\PC*|([a-z\\[\\]{}=\"'.#\\n 0-9_,]{0,200})") {
        prop_assert!(read(&text).is_err());
    }
}
