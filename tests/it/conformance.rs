//! Eclipse's conformance tests against the listener, where `TIDEGATE_PAHO_TESTING` names a copy of
//! github.com/eclipse/paho.mqtt.testing, which no registry has. What is left out stands in `tests/clients/conformance.py`,
//! each with its reason; whatever is not left out must pass.

use std::path::Path;

use serde_json::Value;

use crate::support::agent::{Build, Gateway};
use crate::support::brokers::paho_testing;
use crate::support::kafka;
use crate::support::process::{Folder, Process, free_port};
use crate::support::{Outcome, PATIENCE};

/// By suite: how many tests are run. The rest is left out.
const RUN: [(&str, usize); 2] = [("client_test", 3), ("client_test5", 6)];

#[test]
fn what_is_not_left_out_of_the_conformance_tests_passes_where_they_are_at_hand() -> Outcome<()> {
    let Some(sources) = paho_testing()? else {
        eprintln!("paho.mqtt.testing: not tried, TIDEGATE_PAHO_TESTING names no folder");
        return Ok(());
    };
    let kafka = kafka::shared()?;
    let mut gateway = Gateway::new(Build::Real, &kafka.brokers())?;
    gateway.listen("max_keepalive = \"60s\"\n").route("#", &kafka.topic("conformance")?);
    let refusing = free_port()?;
    gateway.listen_at("refusing", refusing, "subscriptions = \"refuse\"\n");
    let agent = gateway.start()?;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/conformance.py");
    for (suite, count) in RUN {
        let folder = Folder::new("conformance")?;
        let file = |name: &str| std::fs::File::create(folder.path().join(name));
        let mut command = Process::command("python3");
        command.arg(&script).arg(&sources).args([suite, &gateway.listener().port().to_string(), &refusing.to_string()]);
        command.env("PYTHONDONTWRITEBYTECODE", "1").stdout(file("out")?).stderr(file("err")?);
        let status = Process::start("conformance", command)?.wait(PATIENCE * 3)?;
        let text = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap_or_default();
        assert!(status.success(), "{suite}: {}{}", text("out"), text("err"));
        let lines = text("out").lines().map(serde_json::from_str).collect::<Result<Vec<Value>, _>>()?;
        let of = |outcome: &str| lines.iter().filter(|line| line["outcome"] == outcome).count();
        eprintln!("{suite}: {} passed, {} left out", of("passed"), of("left out"));
        assert_eq!(
            (of("passed"), of("passed") + of("left out")),
            (count, lines.len()),
            "{suite}: {}{}",
            text("out"),
            text("err")
        );
    }
    assert!(!agent.log().contains("panicked"), "{}", agent.log());
    Ok(())
}
