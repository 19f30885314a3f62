//! `tidegate(1)` and the shells' completions below `cross/`, as the command line says they must be, and the tests that
//! hold them together.

use std::fs;
use std::path::Path;

use clap::{Command, CommandFactory};
use clap_complete::{Shell, generate};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use super::{Cli, EXIT_CONFIG, EXIT_FAILED, EXIT_OK};

fn command() -> Command {
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    command
}

/// One page for all subcommands: a technician types `man tidegate`.
fn page() -> String {
    let command = command();
    let man = Man::new(command.clone());
    // No date, no version: the page changes when the command line does.
    let mut out = b".TH TIDEGATE 1 \"\" tidegate\n".to_vec();
    man.render_name_section(&mut out).unwrap();
    man.render_synopsis_section(&mut out).unwrap();
    let mut text = Roff::new();
    text.control("SH", ["DESCRIPTION"]);
    text.text([roman(
        "Tidegate takes readings from MQTT, stores each in a local buffer before it acknowledges it, and forwards \
         them to Apache Kafka whenever the link allows. A reading leaves the buffer only when Kafka has confirmed \
         it.",
    )]);
    text.control("SH", ["COMMANDS"]);
    for subcommand in command.get_subcommands() {
        describe(&mut text, subcommand);
    }
    text.control("SH", ["EXIT STATUS"]);
    for (code, meaning) in [
        (EXIT_OK, "Stopped as asked, or done."),
        (EXIT_FAILED, "Any other end; the last line of the log says why."),
        (
            EXIT_CONFIG,
            "The configuration or the command line is wrong, or a newer version has written the buffer, so that this \
             one must not use it. After this code systemd does not start the service again.",
        ),
    ] {
        item(&mut text, &code.to_string(), meaning);
    }
    text.control("SH", ["FILES"]);
    for (file, what) in [
        ("/etc/tidegate/tidegate.toml", "The configuration: tidegate.toml(5)."),
        ("/var/lib/tidegate", "The buffer. Under systemd it is a link to /var/lib/private/tidegate."),
        (
            "/usr/share/doc/tidegate/examples",
            "Drop-ins for the service, and the lines that mosquitto needs to lose nothing.",
        ),
    ] {
        item(&mut text, file, what);
    }
    text.control("SH", ["ENVIRONMENT"]);
    for (variable, what) in [
        ("STATE_DIRECTORY", "The folder of the buffer, if the configuration does not name one. systemd sets it."),
        ("CREDENTIALS_DIRECTORY", "The folder of the secrets that the configuration names with it. systemd sets it."),
    ] {
        item(&mut text, variable, what);
    }
    text.control("SH", ["SEE ALSO"]);
    text.text([
        bold("tidegate.toml"),
        roman("(5), "),
        bold("systemctl"),
        roman("(1), "),
        bold("journalctl"),
        roman("(1)"),
    ]);
    text.to_writer(&mut out).unwrap();
    String::from_utf8(out).unwrap()
}

fn describe(text: &mut Roff, command: &Command) {
    let name = command.get_bin_name().unwrap_or_else(|| command.get_name()).to_owned();
    text.control("SS", [&*name]);
    let about = command.get_long_about().or(command.get_about()).map(ToString::to_string).unwrap_or_default();
    text.text([roman(sentence(&about))]);
    for argument in command.get_arguments().filter(|argument| !argument.is_hide_set() && argument.get_id() != "help") {
        let value = argument.get_value_names().unwrap_or_default().join(" ");
        let takes_value = argument.get_num_args().is_some_and(|number| number.takes_values());
        let label = match argument.get_long() {
            Some(long) if takes_value => format!("--{long} {value}"),
            Some(long) => format!("--{long}"),
            None => value.clone(),
        };
        let help = argument.get_long_help().or(argument.get_help()).map(ToString::to_string).unwrap_or_default();
        let mut help = sentence(&help);
        let defaults: Vec<_> = argument.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
        if takes_value && !defaults.is_empty() {
            help.extend([" Default: ", &defaults.join(", "), "."]);
        }
        item(text, &label, &help);
    }
    for subcommand in command.get_subcommands() {
        describe(text, subcommand);
    }
}

fn item(text: &mut Roff, label: &str, what: &str) {
    text.control("TP", []);
    text.text([bold(label)]);
    text.text([roman(what)]);
}

fn sentence(help: &str) -> String {
    let paragraphs = help.split("\n\n").map(|paragraph| paragraph.trim_end_matches('.').replace('\n', " ") + ".");
    paragraphs.collect::<Vec<_>>().join(" ")
}

fn completions(shell: Shell) -> String {
    let mut out = Vec::new();
    generate(shell, &mut Cli::command(), "tidegate", &mut out);
    String::from_utf8(out).unwrap()
}

#[test]
fn the_manual_and_the_completions_are_what_the_command_line_says() {
    let files = [
        ("cross/man/tidegate.1", page()),
        ("cross/completions/tidegate.bash", completions(Shell::Bash)),
        ("cross/completions/_tidegate", completions(Shell::Zsh)),
        ("cross/completions/tidegate.fish", completions(Shell::Fish)),
    ];
    for (name, rendered) in files {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
        if std::env::var_os("TIDEGATE_WRITE_EXAMPLE").is_some() {
            fs::write(path, &rendered).unwrap();
            continue;
        }
        assert!(
            fs::read_to_string(&path).unwrap_or_default() == rendered,
            "{name} and the command line differ; write the file anew with\n  \
             TIDEGATE_WRITE_EXAMPLE=1 cargo test --lib what_the"
        );
    }
}

#[test]
fn the_manual_names_every_command() {
    let page = page();
    for subcommand in command().get_subcommands() {
        let header = format!(".SS \"tidegate {}\"", subcommand.get_name());
        assert!(page.contains(&header), "{header} in\n{page}");
    }
}
