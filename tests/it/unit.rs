//! The systemd unit and its drop-in examples, as `systemd-analyze` judges them; nothing is started. What they do in
//! effect, `cross/test` shows.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;

use crate::support::agent::Build;
use crate::support::process::Folder;
use crate::support::{Outcome, Trouble, trouble};

/// Exposure as `--threshold` wants it: 1.2.
const THRESHOLD: &str = "12";

/// systemd 254 brought these; an older one names them and goes on without.
const BACK_OFF: [&str; 2] = ["RestartSteps=", "RestartMaxDelaySec="];
const BACK_OFF_SINCE: u32 = 254;

/// The unit, and drop-ins, as they are to be judged.
struct Staged {
    folder: Folder,
    unit: String,
    drop_ins: BTreeMap<String, String>,
}

impl Staged {
    fn unit() -> Outcome<Self> {
        // Where the agent is installed, there is none on a machine that builds.
        let program = Build::Real.binary()?.display().to_string();
        let unit = std::fs::read_to_string(file("tidegate.service"))?.replace("/usr/bin/tidegate", &program);
        Ok(Self { folder: Folder::new("unit")?, unit, drop_ins: BTreeMap::new() })
    }

    fn with(drop_in: &str) -> Outcome<Self> {
        let mut staged = Self::unit()?;
        staged.drop_ins.insert(drop_in.to_owned(), std::fs::read_to_string(file(drop_in))?);
        Ok(staged)
    }

    fn each() -> Outcome<Vec<(String, Self)>> {
        let mut all = vec![("the unit".to_owned(), Self::unit()?)];
        for name in examples()? {
            all.push((name.clone(), Self::with(&name)?));
        }
        Ok(all)
    }

    fn without(mut self, line: &str) -> Self {
        assert!(self.unit.contains(&format!("\n{line}\n")), "the unit has no line {line}");
        self.unit = self.unit.replace(&format!("\n{line}\n"), "\n");
        self
    }

    /// Runs `systemd-analyze`: did it find everything right, and what did it say?
    fn analyze(&self, arguments: &[&str]) -> Outcome<(bool, String)> {
        let path = self.folder.path().join("tidegate.service");
        let folder = self.folder.path().join("tidegate.service.d");
        std::fs::create_dir_all(&folder)?;
        std::fs::write(&path, &self.unit)?;
        for (name, text) in &self.drop_ins {
            std::fs::write(folder.join(name).with_extension("conf"), text)?;
        }
        let mut command = Command::new("systemd-analyze");
        let output = command.arg("--no-pager").args(arguments).arg(&path).output();
        let output =
            output.map_err(|error| Trouble::new(format!("systemd-analyze: {error}; tests/run installs it")))?;
        Ok((output.status.success(), String::from_utf8([output.stdout, output.stderr].concat())?))
    }

    fn verify(&self) -> Outcome<(bool, String)> {
        let known = version()? >= BACK_OFF_SINCE;
        let mut staged =
            Self { folder: Folder::new("unit")?, unit: self.unit.clone(), drop_ins: self.drop_ins.clone() };
        if !known {
            let too_new = |line: &&str| !BACK_OFF.iter().any(|key| line.starts_with(key));
            staged.unit = self.unit.lines().filter(too_new).fold(String::new(), |text, line| text + line + "\n");
        }
        // The manual pages that the unit names come with the package.
        staged.analyze(&["verify", "--man=no", "--recursive-errors=no"])
    }

    fn exposure(&self) -> Outcome<(bool, String)> {
        let (fine, said) = self.analyze(&["security", "--offline=true", "--threshold", THRESHOLD])?;
        // A unit that it cannot read is no witness either way.
        let Some(verdict) = said.lines().find(|line| line.contains("Overall exposure level")) else {
            return trouble!("no verdict: {said}");
        };
        Ok((fine, verdict.to_owned()))
    }
}

fn file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("systemd").join(name)
}

/// The drop-in examples.
fn examples() -> Outcome<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(file(""))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.ends_with(".conf.example") {
            names.push(name);
        }
    }
    names.sort();
    if names.len() < 4 { trouble!("drop-in examples: only {names:?}") } else { Ok(names) }
}

fn version() -> Outcome<u32> {
    let output = Command::new("systemd-analyze").arg("--version").output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    // "systemd 252 (252.39-1~deb12u2)"
    let version = said.split(|c: char| !c.is_ascii_digit()).find(|part| !part.is_empty());
    version.and_then(|v| v.parse().ok()).ok_or_else(|| Trouble::new(format!("no version in {said}")))
}

/// A setting of the unit.
fn setting(name: &str) -> Outcome<String> {
    let unit = std::fs::read_to_string(file("tidegate.service"))?;
    let value = unit.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    value.map(str::to_owned).ok_or_else(|| Trouble::new(format!("the unit does not set {name}")))
}

#[test]
fn systemd_finds_nothing_wrong_with_the_unit_and_with_each_drop_in() -> Outcome<()> {
    for (name, staged) in Staged::each()? {
        let (fine, said) = staged.verify()?;
        assert!(fine && said.is_empty(), "{name}: {said}");
    }
    Ok(())
}

#[test]
fn a_misspelt_key_is_found_in_the_unit_and_in_each_drop_in() -> Outcome<()> {
    let misspelt = |text: &str| text.replacen("\n[Service]\n", "\n[Service]\nProtectSystm=strict\n", 1);
    for (name, mut staged) in Staged::each()? {
        if staged.drop_ins.is_empty() {
            staged.unit = misspelt(&staged.unit);
        }
        for text in staged.drop_ins.values_mut() {
            // One of them has only a [Unit] section.
            *text = misspelt(&format!("{text}\n[Service]\n"));
        }
        let (fine, said) = staged.verify()?;
        assert!(!fine && said.contains("ProtectSystm"), "{name}: {said}");
    }
    Ok(())
}

#[test]
fn the_exposure_is_at_most_1_2_as_shipped_and_with_each_drop_in() -> Outcome<()> {
    for (name, staged) in Staged::each()? {
        let (fine, verdict) = staged.exposure()?;
        assert!(fine, "{name}: {verdict}");
    }
    Ok(())
}

#[test]
fn a_hardening_line_that_is_missing_is_found() -> Outcome<()> {
    for line in [
        "CapabilityBoundingSet=",
        "DynamicUser=yes",
        "PrivateDevices=yes",
        "RestrictNamespaces=yes",
        "RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX",
        "SystemCallFilter=@system-service",
    ] {
        let (fine, verdict) = Staged::unit()?.without(line).exposure()?;
        assert!(!fine, "nobody misses {line}: {verdict}");
    }
    Ok(())
}

#[test]
fn an_older_systemd_misses_the_back_off_and_nothing_else() -> Outcome<()> {
    let (_, said) = Staged::unit()?.analyze(&["verify", "--man=no", "--recursive-errors=no"])?;
    let wanted = if version()? < BACK_OFF_SINCE { BACK_OFF.len() } else { 0 };
    assert_eq!(said.lines().count(), wanted, "{said}");
    assert!(said.lines().all(|line| BACK_OFF.iter().any(|key| line.contains(key.trim_end_matches('=')))), "{said}");
    Ok(())
}

#[test]
fn limits_of_the_unit_have_room_for_what_the_configuration_allows() -> Outcome<()> {
    let example = std::fs::read_to_string(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("config/tidegate.toml"))?;
    let (before, _) = example.split_once("#max_connections").ok_or_else(|| Trouble::new("no max_connections"))?;
    let allowed = before.lines().rfind(|line| line.contains("Allowed: a number, 1 to "));
    let most: u64 = allowed
        .and_then(|line| line.split(" to ").nth(1)?.split(' ').next()?.parse().ok())
        .ok_or_else(|| Trouble::new(format!("{allowed:?} names no number")))?;
    let files: u64 = setting("LimitNOFILE")?.parse()?;
    // 16 sockets more may say who they are; the rest is for Kafka's brokers, the database and a second listener.
    assert!(files >= most + 16 + 1024, "LimitNOFILE={files} and max_connections up to {most}");
    let patience: u64 = setting("TimeoutStopSec")?.parse()?;
    assert!(patience > 10, "TimeoutStopSec={patience}; the agent has 10 s");
    Ok(())
}
