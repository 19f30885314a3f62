//! `tidegate check`: what is wrong with a configuration, all of it, or what it means. Offline.

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use super::{EXIT_CONFIG, EXIT_FAILED, EXIT_OK, out};
use crate::config::{self, Broker, Buffer, Config, Delivery, MqttVersion, Problems};

/// Checks the file. Problems go to standard error and end in 78; a right configuration is summed up on standard
/// output, with its remarks on standard error.
#[must_use]
pub fn check(path: &Path) -> ExitCode {
    let file = path.display().to_string();
    let verdict = config::load(path);
    let code = if verdict.is_ok() { EXIT_OK } else { EXIT_CONFIG };
    match report(&file, &verdict, &mut out::stdout(), &mut out::Patient(io::stderr())) {
        Ok(()) => ExitCode::from(code),
        Err(_full) => ExitCode::from(EXIT_FAILED.max(code)),
    }
}

fn report(
    file: &str,
    verdict: &Result<Config, Problems>,
    out: &mut impl Write,
    err: &mut impl Write,
) -> io::Result<()> {
    match verdict {
        Ok(config) => {
            for remark in &config.remarks {
                writeln!(err, "remark: {}", remark.in_file(file))?;
            }
            out.write_all(summary(file, config).as_bytes())
        }
        Err(problems) => {
            let count = problems.list().len();
            writeln!(err, "{problems}")?;
            writeln!(err, "{count} {} to mend", if count == 1 { "problem" } else { "problems" })
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
        let Broker { name, host, port, .. } = broker;
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
        let env = Env { host_name: "gw".into(), state_directory: None, credentials_directory: None };
        let (mut out, mut err) = (Vec::new(), Vec::new());
        report("t.toml", &config::parse(text, "t.toml", &env), &mut out, &mut err).unwrap();
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
        assert!(err.ends_with("4 problems to mend\n"), "{err}");
    }

    #[test]
    fn a_missing_file_is_wrong_configuration() {
        let missing = Path::new("/nowhere/tidegate.toml");
        assert_eq!(check(missing), ExitCode::from(78));
        let text = config::load(missing).unwrap_err().to_string();
        assert!(text.starts_with("/nowhere/tidegate.toml: cannot be read: ") && text.contains("--config"), "{text}");
    }
}
