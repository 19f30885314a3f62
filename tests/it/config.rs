//! Wrong configurations through the binary: exit 78, and a message that names file, line, key and what is allowed.
//! The large table of wrong configurations has a test of its own; this is what the process makes of them.

use crate::support::agent::{Build, Gateway};
use crate::support::kafka::{self};
use crate::support::process::{Folder, how};
use crate::support::{Outcome, PATIENCE, Trouble};

/// `check` and `run` on this text: exit status and what was said.
fn tried(text: &str) -> Outcome<[(Option<i32>, String); 2]> {
    let folder = Folder::new("config")?;
    let file = folder.path().join("wrong.toml");
    std::fs::write(&file, text)?;
    let run = |subcommand: &str| -> Outcome<(Option<i32>, String)> {
        let mut command = crate::support::process::Process::command(Build::Real.binary()?);
        command.args([subcommand, "--config"]).arg(&file).current_dir(folder.path());
        let said = folder.path().join(subcommand);
        let output = std::fs::File::create(&said)?;
        command.stdout(output.try_clone()?).stderr(output);
        let mut process = crate::support::process::Process::start(subcommand, command)?;
        let status = process.wait(PATIENCE).map_err(|e| Trouble(format!("{subcommand} goes on: {e:?}")))?;
        Ok((status.code(), std::fs::read_to_string(&said)?))
    };
    Ok([run("check")?, run("run")?])
}

fn good() -> String {
    let listen = "[[listen]]\nname = \"floor\"\naddress = \"127.0.0.1:1883\"\n";
    let kafka = "[kafka]\nbrokers = [\"localhost:9092\"]\n[[route]]\nfrom = \"s/#\"\nto = \"t\"\n";
    format!("[agent]\nid = \"a\"\ndata_dir = \"/tmp/none\"\n{listen}{kafka}")
}

#[test]
fn every_wrong_key_and_value_is_exit_78_with_line_key_and_what_is_allowed() -> Outcome<()> {
    let good = good();
    let cases: [(&str, &str, &[&str]); 9] = [
        ("name = \"floor\"", "nam = \"floor\"", &["5", "nam", "name"]),
        ("id = \"a\"", "id = 7", &["2", "id"]),
        ("address = \"127.0.0.1:1883\"", "address = \"0.0.0.0:1883\"", &["6", "anonymous", "users_file"]),
        ("address = \"127.0.0.1:1883\"", "address = \"somewhere\"", &["6", "address", "somewhere"]),
        ("brokers = [\"localhost:9092\"]", "brokers = []", &["8", "brokers"]),
        ("brokers = [\"localhost:9092\"]", "brokers = [\"h:1\"]\nlinger = \"fast\"", &["9", "linger", "fast"]),
        (
            "brokers = [\"localhost:9092\"]",
            "brokers = [\"h:1\"]\ndelivery = \"exactly-twice\"",
            &["9", "delivery", "at-least-once"],
        ),
        ("from = \"s/#\"", "from = \"s/#/x\"", &["10", "from", "#"]),
        ("to = \"t\"", "to = \"{site}\"", &["11", "site"]),
    ];
    for (from, to, wanted) in cases {
        assert!(good.contains(from));
        for (code, said) in tried(&good.replacen(from, to, 1))? {
            assert_eq!(code, Some(78), "{to}: {said}");
            for part in wanted.iter().chain(&["wrong.toml"]) {
                assert!(said.contains(part), "{to}: no {part:?} in: {said}");
            }
            assert!(!said.contains("panicked"), "{said}");
        }
    }
    Ok(())
}

#[test]
fn all_mistakes_are_told_at_once() -> Outcome<()> {
    let wrong = good().replace("id = \"a\"", "idd = \"a\"").replace("to = \"t\"", "to = \"\"");
    for (code, said) in tried(&wrong)? {
        assert_eq!(code, Some(78));
        assert!(said.contains("idd") && said.contains("to"), "{said}");
    }
    Ok(())
}

#[test]
fn kafka_options_that_would_break_a_promise_are_refused_with_the_reason() -> Outcome<()> {
    let options = [
        "acks = \"1\"",
        "\"enable.idempotence\" = \"false\"",
        "\"message.timeout.ms\" = \"1000\"",
        "\"transactional.id\" = \"x\"",
    ];
    for option in options {
        let (key, _) = option.split_once(" = ").ok_or_else(|| Trouble::new("no key"))?;
        let (code, said) = &tried(&format!("{}[kafka.options]\n{option}\n", good()))?[0];
        assert_eq!(*code, Some(78), "{option}: {said}");
        assert!(said.contains(key.trim_matches('"')), "{option}: {said}");
    }
    Ok(())
}

#[test]
fn a_right_configuration_passes_the_check_and_a_missing_file_does_not() -> Outcome<()> {
    let mut gateway = Gateway::new(Build::Real, "localhost:9092")?;
    gateway.listen("").route("#", "t");
    let output = gateway.command(&["check"])?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&[output.stdout, output.stderr].concat()));
    std::fs::remove_file(gateway.path().join("tidegate.toml"))?;
    let missing =
        std::process::Command::new(Build::Real.binary()?).args(["check", "--config", "/nowhere/x.toml"]).output()?;
    assert_eq!(missing.status.code(), Some(78), "{}", String::from_utf8_lossy(&missing.stderr));
    Ok(())
}

#[test]
fn a_port_that_is_taken_ends_the_agent_with_a_sentence_and_no_panic() -> Outcome<()> {
    let kafka = kafka::shared()?;
    let mut gateway = Gateway::new(Build::Real, &kafka.brokers())?;
    gateway.listen("").route("#", "t");
    let _taken = std::net::TcpListener::bind(gateway.listener())?;
    let mut agent = gateway.launch()?;
    let status = agent.wait(PATIENCE)?;
    assert!(!status.success(), "{}", how(status));
    let log = agent.log();
    assert!(log.contains(&gateway.listener().to_string()) && !log.contains("panicked"), "{log}");
    Ok(())
}

#[test]
fn two_agents_do_not_share_a_buffer() -> Outcome<()> {
    let mut gateway = Gateway::new(Build::Real, &kafka::shared()?.brokers())?;
    gateway.listen("").route("#", "t");
    let agent = gateway.start()?;
    let mut twin = Gateway::new(Build::Real, &kafka::shared()?.brokers())?;
    twin.listen("").route("#", "t");
    std::os::unix::fs::symlink(gateway.data_dir(), twin.data_dir())?;
    let mut second = twin.launch()?;
    let status = second.wait(PATIENCE)?;
    assert!(!status.success(), "{}\n{}", how(status), second.log());
    assert!(agent.get("/healthz")?.status == 200);
    Ok(())
}

/// As root configures it with the drop-ins: secrets below `$CREDENTIALS_DIRECTORY`, and files that only root may read.
#[test]
fn whoever_may_not_see_the_secrets_can_check_and_ask_all_the_same() -> Outcome<()> {
    let mut gateway = Gateway::new(Build::Real, &kafka::shared()?.brokers())?;
    gateway.listen("").route("#", "t");
    let agent = gateway.start()?;
    for drop_in in ["credentials.conf.example", "credentials-encrypted.conf.example"] {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd").join(drop_in);
        let shipped = std::fs::read_to_string(path)?;
        let line = shipped.lines().find_map(|line| line.split_once("for example: ").map(|(_, line)| line));
        let line = line.ok_or_else(|| Trouble::new(format!("{drop_in} shows no line of tidegate.toml")))?;
        let broker = "[[mqtt]]\nname = \"plant\"\nurl = \"mqtt://localhost\"\nusername = \"u\"\n\
                      subscribe = [{ filter = \"#\" }]\n";
        let text = format!("{}{broker}{line}\n", gateway.toml());
        let file = gateway.path().join("secret.toml");
        std::fs::write(&file, text)?;
        for (arguments, wanted) in
            [(&["check"][..], "note: "), (&["status"], "tidegate "), (&["status", "--json"], "{")]
        {
            let mut command = std::process::Command::new(Build::Real.binary()?);
            let output =
                command.args(arguments).arg("--config").arg(&file).env_remove("CREDENTIALS_DIRECTORY").output()?;
            let said = String::from_utf8_lossy(&[output.stderr, output.stdout].concat()).into_owned();
            assert_eq!(output.status.code(), Some(0), "{drop_in}: {arguments:?}: {said}");
            assert!(said.contains(wanted), "{drop_in}: {arguments:?}: {said}");
        }
    }
    // Something else is wrong: the running agent answers all the same.
    let file = gateway.path().join("broken.toml");
    std::fs::write(&file, gateway.toml() + "[buffer]\nmax_bytes = 1GiB\n")?;
    let ask = |subcommand: &str| {
        std::process::Command::new(Build::Real.binary()?)
            .args([subcommand, "--config"])
            .arg(&file)
            .output()
            .map_err(Trouble::from)
    };
    assert_eq!((ask("check")?.status.code(), ask("status")?.status.code()), (Some(78), Some(0)));
    drop(agent);
    Ok(())
}
