//! `tidegate check`: what is wrong with a configuration, all of it, or what it means. Offline.

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use super::exit::{EXIT_CONFIG, EXIT_FAILED, EXIT_OK};
use super::out;
use crate::config::{self, Config, Inspected, Problems};
use crate::settings::links::Url;
use crate::settings::{Broker, Buffer, Delivery, MqttVersion};

/// Checks the file. Problems go to standard error and end in 78; a right configuration is summed up on standard
/// output, with its remarks, and what this user may not look at, on standard error.
#[must_use]
pub fn check(path: &Path) -> ExitCode {
    let file = path.display().to_string();
    let verdict = config::inspect(path);
    let code = if verdict.is_ok() { EXIT_OK } else { EXIT_CONFIG };
    match report(&file, &verdict, &mut out::stdout(), &mut out::Patient(io::stderr())) {
        Ok(()) => ExitCode::from(code),
        Err(_full) => ExitCode::from(EXIT_FAILED.max(code)),
    }
}

fn report(
    file: &str,
    verdict: &Result<Inspected, Problems>,
    out: &mut impl Write,
    err: &mut impl Write,
) -> io::Result<()> {
    match verdict {
        Ok(inspected) => {
            for remark in &inspected.config().remarks {
                writeln!(err, "remark: {}", remark.in_file(file))?;
            }
            for unseen in &inspected.unseen {
                writeln!(err, "note: {}", unseen.in_file(file))?;
            }
            out.write_all(summary(file, inspected.config()).as_bytes())
        }
        Err(problems) => {
            let count = problems.list().len();
            writeln!(err, "{problems}")?;
            writeln!(err, "{count} {} to correct", if count == 1 { "problem" } else { "problems" })
        }
    }
}

/// What the configuration means, in a few lines.
fn summary(file: &str, config: &Config) -> String {
    let mut lines = vec![format!(
        "{file}: ok: {}, {}, {}; gateway {}",
        counted(config.mqtt.len(), "broker"),
        counted(config.listen.len(), "listener"),
        counted(config.routes.definitions().len(), "route"),
        config.agent.id,
    )];
    for broker in &config.mqtt {
        let version = match broker.version {
            MqttVersion::V5 => "5, else 3.1.1",
            MqttVersion::V311 => "3.1.1",
        };
        let filters: Vec<&str> = broker.subscribe.iter().map(|subscription| &*subscription.filter).collect();
        let Broker { name, url: Url { host, port, .. }, .. } = broker;
        lines.push(format!("  in      broker {name}, {host}:{port}, MQTT {version}: {}", filters.join(", ")));
    }
    for listener in &config.listen {
        let who = if listener.users_file.is_some() { "users with a password" } else { "everybody" };
        lines.push(format!("  in      listener {}, {}: {who}", listener.name, listener.address));
    }
    let Buffer { max_bytes, .. } = &config.buffer;
    lines.push(format!("  buffer  {}, at most {max_bytes} bytes", config.agent.data_dir.display()));
    let delivery = match config.kafka.delivery {
        Delivery::AtLeastOnce => "at least once",
        Delivery::ExactlyOnce => "exactly once",
    };
    lines.push(format!("  out     Kafka {}, {delivery}", config.kafka.brokers.join(", ")));
    lines.join("\n") + "\n"
}

fn counted(count: usize, thing: &str) -> String {
    format!("{count} {thing}{}", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Env;

    fn run(text: &str) -> (String, String) {
        let env = Env::of("gw");
        let (mut out, mut err) = (Vec::new(), Vec::new());
        report("t.toml", &Inspected::of(text, "t.toml", &env), &mut out, &mut err).unwrap();
        (String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
    }

    #[test]
    fn a_right_configuration_is_summed_up() {
        let (out, err) = run(include_str!("../../config/tidegate.toml"));
        assert!(out.starts_with("t.toml: ok: 1 broker, 0 listeners, 1 route; gateway gw\n"), "{out}");
        assert!(out.contains("broker plant, localhost:1883, MQTT 5, else 3.1.1: sensors/#"), "{out}");
        assert_eq!(err, "");
    }

    #[test]
    fn all_problems_stand_on_lines_of_their_own_with_their_count() {
        let (out, err) = run("[buffer]\nsize = 1\n");
        assert_eq!(out, "");
        assert!(err.contains("\nt.toml:2:1: buffer.size: unknown key"), "{err}");
        assert!(err.ends_with("4 problems to correct\n"), "{err}");
    }

    #[test]
    fn what_only_the_service_sees_is_a_note_and_no_problem() {
        let text = "[[mqtt]]\nname = \"plant\"\nurl = \"mqtts://plant\"\nusername = \"u\"\n\
                    password_file = \"$CREDENTIALS_DIRECTORY/plant.pw\"\nsubscribe = [{ filter = \"#\" }]\n\
                    tls.cert_file = \"$CREDENTIALS_DIRECTORY/c.pem\"\ntls.key_file = \"$CREDENTIALS_DIRECTORY/c.key\"\n\
                    [kafka]\nbrokers = [\"k:1\"]\n[kafka.options]\nsecurity.protocol = \"SASL_SSL\"\n\
                    sasl.mechanism = \"PLAIN\"\nsasl.username = \"u\"\n\
                    sasl.password_file = \"$CREDENTIALS_DIRECTORY/kafka.pw\"\n\
                    [[listen]]\nname = \"floor\"\naddress = \"0.0.0.0:1\"\n\
                    users_file = \"$CREDENTIALS_DIRECTORY/users\"\n[[route]]\nfrom = \"#\"\nto = \"all\"\n";
        let (out, err) = run(text);
        assert!(out.starts_with("t.toml: ok: 1 broker, 1 listener"), "{out}{err}");
        assert!(out.contains("listener floor, 0.0.0.0:1: users with a password"), "{out}");
        for key in ["mqtt[0].password_file", "mqtt[0].tls.key_file", "kafka.options.sasl.password_file", "users_file"] {
            let line = err.lines().find(|line| line.contains(key)).unwrap_or_else(|| panic!("{key}: {err}"));
            assert!(line.starts_with("note: t.toml:") && line.contains("not checked"), "{line}");
        }
        // Whoever is to use them needs them.
        let problems = config::parse(text, "t.toml", &Env::of("gw")).unwrap_err();
        assert!(problems.list().len() >= 4, "{problems}");
        // And what is wrong is wrong for everybody.
        let (_, err) = run(&text.replace("SASL_SSL", "SASL_SLS"));
        assert!(err.contains("kafka.options.security.protocol"), "{err}");
    }

    #[test]
    fn a_missing_file_is_wrong_configuration() {
        let missing = Path::new("/nowhere/tidegate.toml");
        assert_eq!(check(missing), ExitCode::from(78));
        let text = config::load(missing).unwrap_err().to_string();
        assert!(text.starts_with("/nowhere/tidegate.toml: cannot be read: ") && text.contains("--config"), "{text}");
    }
}
