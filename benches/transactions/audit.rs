//! `tidegate audit` over a million records of 20 gateways.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::agent::Build;
use crate::support::kafka::{self, unique_topic};
use crate::support::process::Process;
use crate::support::stream::{Hand, Planted, delivered};
use crate::support::{Outcome, Trouble, trouble};
use crate::{Samples, Table, scaled};

const GATEWAYS: u64 = 20;
const ROUNDS: usize = 3;

pub fn run(table: &mut Table) -> Outcome<()> {
    let kafka = kafka::shared()?;
    let (data, watermarks) = (unique_topic("bench-audit"), unique_topic("bench-audit-watermarks"));
    kafka.create_topic(&data, 3, &[])?;
    kafka.create_topic(&watermarks, 1, &[("cleanup.policy", "compact")])?;
    let each = scaled(1_000_000) as u64 / GATEWAYS;
    let hand = Hand::new(&kafka.brokers(), &[("queue.buffering.max.kbytes", "65536"), ("linger.ms", "20")])?;
    let buffers: Vec<String> = (0..GATEWAYS).map(|n| format!("{n:08x}-1111-4111-8111-111111111111")).collect();
    for sequence in 1..=each {
        for (number, buffer) in buffers.iter().enumerate() {
            hand.event(&Planted {
                topic: &data,
                partition: number as i32 % 3,
                id: format!("{buffer}:{sequence}"),
                instance: "00000000000000aa",
                was: None,
                mqtt_topic: &format!("bench/line/s{number:03}"),
                at_ms: 1_700_000_000_000 + sequence as i64,
            })?;
        }
    }
    hand.flush()?;
    for buffer in &buffers {
        hand.say(&watermarks, buffer, &delivered(each))?;
    }
    hand.flush()?;
    let (mut rate, mut peak_mb) = (Samples::default(), Samples::default());
    for _ in 0..ROUNDS {
        let (seconds, peak_kib) = audit(&kafka.brokers(), &data, &watermarks, each * GATEWAYS)?;
        rate.push((each * GATEWAYS) as f64 / seconds);
        peak_mb.push(peak_kib as f64 / 1024.0);
    }
    table.row(
        "audit: records/s of 1,000,000 (100 bytes, 20 gateways, 3 partitions), its start included",
        &rate.spread(0),
        "–",
        "≥ 300,000",
    );
    table.row("audit: MB resident at most", &peak_mb.spread(1), "–", "≤ 64");
    Ok(())
}

/// Seconds from its start to its end, and its memory.
fn audit(brokers: &str, data: &str, watermarks: &str, records: u64) -> Outcome<(f64, u64)> {
    let mut command: Command = Process::command(Build::Real.binary()?);
    command.args(["audit", "--brokers", brokers, "--topic", data, "--watermark-topic", watermarks, "--json"]);
    command.stdout(Stdio::piped()).stderr(Stdio::null());
    let start = Instant::now();
    let mut child = command.spawn()?;
    let mut peak_kib = 0;
    let status = loop {
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.split_whitespace().next()?.parse().ok());
        peak_kib = peak_kib.max(peak.unwrap_or(0));
        if let Some(status) = child.try_wait()? {
            break status;
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let seconds = start.elapsed().as_secs_f64();
    let mut said = String::new();
    std::io::Read::read_to_string(&mut child.stdout.take().ok_or_else(|| Trouble::new("no output"))?, &mut said)?;
    let mut found = said.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let events = found.find_map(|line| line.pointer("/summary/events")?.as_u64());
    if status.success() && events == Some(records) {
        return Ok((seconds, peak_kib));
    }
    trouble!("audit ended with {status} and saw {events:?} of {records}: {said}")
}
