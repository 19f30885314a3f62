//! What the outside sees: systemd, probes, metrics, status.

use std::os::unix::net::UnixDatagram;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::support::agent::{Agent, Build, Gateway};
use crate::support::client::{Connection, clean};
use crate::support::kafka;
use crate::support::process::Process;
use crate::support::proxy::Weather;
use crate::support::publisher::{Plan, publish_all};
use crate::support::wire::{Message, Packet, Version};
use crate::support::{Outcome, PATIENCE, Trouble, Verdict, trouble, wait_until};

/// systemd's end of the notification socket.
struct Systemd(UnixDatagram);

impl Systemd {
    /// With a watchdog of that interval.
    fn attend(gateway: &mut Gateway, watchdog: Duration) -> Outcome<Self> {
        let path = gateway.path().join("notify");
        let socket = UnixDatagram::bind(&path)?;
        gateway.environment("NOTIFY_SOCKET", &path.display().to_string());
        gateway.environment("WATCHDOG_USEC", &watchdog.as_micros().to_string());
        Ok(Self(socket))
    }

    /// Does such a line come in time?
    fn hears(&self, wanted: &str, limit: Duration) -> Outcome<bool> {
        let end = Instant::now() + limit;
        let mut bytes = [0; 4096];
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            self.0.set_read_timeout(Some(left))?;
            if let Ok(count) = self.0.recv(&mut bytes) {
                let text = String::from_utf8_lossy(bytes.get(..count).unwrap_or_default()).into_owned();
                if text.lines().any(|line| line.starts_with(wanted)) {
                    return Ok(true);
                }
            }
        }
    }

    /// Is the watchdog fed in two intervals that follow? What was fed before the agent could notice does not count.
    fn still_feels_a_pulse(&self, interval: Duration) -> Outcome<bool> {
        let begin = Instant::now();
        while begin.elapsed() < interval {
            self.hears("WATCHDOG=1", interval.saturating_sub(begin.elapsed()))?;
        }
        self.hears("WATCHDOG=1", interval * 2)
    }

    fn expect(&self, wanted: &str) -> Outcome<()> {
        if self.hears(wanted, PATIENCE)? { Ok(()) } else { trouble!("systemd never heard {wanted}") }
    }
}

#[test]
fn systemd_hears_ready_status_watchdog_and_stopping() -> Outcome<()> {
    let mut gateway = Gateway::new(Build::Real, &kafka::shared()?.brokers())?;
    gateway.listen("").route("#", "nowhere");
    let systemd = Systemd::attend(&mut gateway, Duration::from_secs(2))?;
    let mut agent = gateway.launch()?;
    systemd.expect("READY=1")?;
    // Ready means: a sensor gets in.
    Connection::open(gateway.listener(), Version::V5, clean("s"))?;
    systemd.expect("STATUS=")?;
    for _ in 0..3 {
        systemd.expect("WATCHDOG=1")?;
    }
    agent.signal("TERM")?;
    systemd.expect("STOPPING=1")?;
    assert!(agent.wait(PATIENCE)?.success());
    Ok(())
}

/// The buffer's thread hangs in fdatasync, as on a card that has died: the watchdog must not be fed any more.
/// `strace` delays the call; nothing in the agent knows of it.
pub fn stuck_disk(build: Build) -> Outcome<Verdict> {
    let mut gateway = Gateway::new(build, &kafka::shared()?.brokers())?;
    gateway.listen("").route("#", "nowhere");
    let interval = Duration::from_secs(4);
    let systemd = Systemd::attend(&mut gateway, interval)?;
    let agent = gateway.start()?;
    systemd.expect("WATCHDOG=1")?;
    let _strace = hang_in_fdatasync(&agent)?;
    let (mut sensor, _) = Connection::open(gateway.listener(), Version::V5, clean("s"))?;
    let message = Message { topic: "t".into(), qos: 1, ..Message::default() };
    sensor.send(&Packet::Publish { message, id: 1, dup: false })?;
    let fed = systemd.still_feels_a_pulse(interval)?;
    // The acknowledgement did not come: the disk did hang.
    if sensor.next(Duration::from_millis(10))?.is_some() {
        return trouble!("strace did not delay fdatasync");
    }
    Ok(if fed { Err(Trouble::new("the watchdog is fed while the buffer is stuck")) } else { Ok(()) })
}

fn hang_in_fdatasync(agent: &Agent) -> Outcome<Process> {
    let mut command = Process::command("strace");
    command.args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=fdatasync"]);
    command.args(["-e", "inject=fdatasync:delay_enter=120000000", "-p", &agent.pid().to_string()]);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let strace = Process::start("strace", command)?;
    let traced = || {
        let threads = std::fs::read_dir(format!("/proc/{}/task", agent.pid())).ok()?;
        let by_strace = |entry: std::io::Result<std::fs::DirEntry>| {
            let status = std::fs::read_to_string(entry.ok()?.path().join("status")).ok()?;
            Some(status.lines().any(|line| line.starts_with("TracerPid:") && !line.ends_with("\t0")))
        };
        threads.map(by_strace).all(|traced| traced == Some(true)).then_some(())
    };
    super::support::wait_for("strace to hold every thread", PATIENCE, traced)?;
    Ok(strace)
}

#[test]
fn a_stage_that_is_stuck_stops_the_watchdog() -> Outcome<()> {
    stuck_disk(Build::Real)?
}

/// The forwarder stands still two seconds after the start. That fault is planted, too: no tool reaches it from outside.
#[test]
fn a_forwarder_that_stands_still_stops_the_watchdog_and_is_named() -> Outcome<()> {
    let mut gateway = Gateway::new(Build::Planted("stuck-forward"), &kafka::shared()?.brokers())?;
    gateway.listen("").route("#", "nowhere");
    let interval = Duration::from_secs(4);
    let systemd = Systemd::attend(&mut gateway, interval)?;
    let agent = gateway.start()?;
    systemd.expect("WATCHDOG=1")?;
    agent.wait_log(&["\"level\":\"ERROR\"", "stuck", "forward"])?;
    assert!(!systemd.still_feels_a_pulse(interval)?, "the watchdog is fed while the forwarder stands still");
    Ok(())
}

#[test]
fn probes_tell_alive_from_ready() -> Outcome<()> {
    let mut gateway = Gateway::new(Build::Real, &kafka::shared()?.brokers())?;
    gateway.listen("").route("#", "nowhere");
    let agent = gateway.start()?;
    for path in ["/healthz", "/readyz", "/metrics", "/status", "/"] {
        assert_eq!(agent.get(path)?.status, 200, "{path}");
    }
    assert_eq!(agent.get("/nowhere")?.status, 404);
    Ok(())
}

/// A sample as OpenMetrics writes it, read strictly enough: name, labels, value.
fn sample(line: &str) -> Option<(&str, f64)> {
    let (name, value) = line.rsplit_once(' ')?;
    let bare = name.split('{').next()?;
    let legal = bare.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    let closed = !name.contains('{') || name.ends_with('}') && name.replace("\\\"", "").matches('"').count() % 2 == 0;
    (legal && closed && !bare.is_empty()).then_some(())?;
    Some((name, value.parse().ok()?))
}

#[test]
fn every_line_of_metrics_parses_and_event_counters_survive_a_kill() -> Outcome<()> {
    let kafka = kafka::shared()?;
    let topic = kafka.topic("metrics")?;
    let mut gateway = Gateway::new(Build::Real, &kafka.brokers())?;
    gateway.listen("").route("a/\\\"odd/#", &topic).route("#", &topic);
    let agent = gateway.start()?;
    publish_all(gateway.listener(), Plan::new("p", "t", 1).count(500))?;
    agent.wait_book("delivered", 500)?;
    let text = agent.get("/metrics")?.body;
    let mut lines = text.lines().filter(|line| !line.starts_with('#'));
    assert!(lines.clone().count() > 20, "{text}");
    assert!(lines.all(|line| sample(line).is_some() && line.starts_with("tidegate_")), "{text}");
    assert!(text.ends_with("# EOF\n"), "{text}");
    for line in text.lines().filter(|line| line.starts_with("# TYPE")) {
        let name = line.split(' ').nth(2).unwrap_or_default();
        assert!(text.contains(&format!("# HELP {name} ")), "{name} has no help");
    }
    let received = "tidegate_events_received_total{route=\"#\"}";
    assert_eq!(agent.metric(received)? as u64, 500);
    assert_eq!(agent.metric("tidegate_books_balanced")? as u64, 1);
    agent.kill();
    let agent = gateway.start()?;
    assert_eq!(agent.metric(received)? as u64, 500);
    assert_eq!(agent.metric("tidegate_events_delivered_total{route=\"#\"}")? as u64, 500);
    Ok(())
}

#[test]
fn status_tells_what_is_held_and_why_for_people_and_for_machines() -> Outcome<()> {
    let kafka = kafka::shared()?;
    let topic = kafka.topic("status")?;
    let link = kafka.lease()?;
    let mut gateway = Gateway::new(Build::Real, &link.brokers()?)?;
    gateway.listen("").route("#", &topic);
    let agent = gateway.start()?;
    publish_all(gateway.listener(), Plan::new("p", "t", 1).count(100))?;
    agent.wait_book("delivered", 100)?;
    link.set(Weather::Cut)?;
    publish_all(gateway.listener(), Plan::new("q", "t", 1).count(50))?;
    agent.wait_book("received", 150)?;
    wait_until("the outage to be seen", PATIENCE, || {
        agent.status().is_ok_and(|status| status.pointer("/kafka/connected") == Some(&false.into()))
    })?;
    let status = gateway.status()?;
    let number = |key: &str| status.get(key).and_then(serde_json::Value::as_u64);
    let books = ["received", "delivered", "dead_lettered", "dropped", "purged", "lost", "held"].map(number);
    assert_eq!(books, [Some(150), Some(100), Some(0), Some(0), Some(0), Some(0), Some(50)], "{status:#}");
    assert_eq!(status.get("balanced"), Some(&true.into()));
    assert!(status.pointer("/routes/0/route").is_some(), "{status:#}");
    for part in ["links", "kafka", "buffer"] {
        assert!(status.get(part).is_some(), "{status:#}");
    }
    let output = gateway.command(&["status"])?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && said.contains("150") && said.contains("50"), "{said}");
    Ok(())
}

#[test]
fn status_without_an_agent_says_so() -> Outcome<()> {
    let mut gateway = Gateway::new(Build::Real, "localhost:9092")?;
    gateway.listen("").route("#", "t");
    let output = gateway.command(&["status"])?;
    assert!(!output.status.success());
    assert!(!output.stderr.is_empty());
    Ok(())
}
