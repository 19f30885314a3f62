//! What an agent has used, and on what machine.

use crate::support::Outcome;
use crate::support::agent::Agent;

/// Clock ticks a second in `/proc/<pid>/stat`; 100 on every Linux that Tidegate runs on.
const TICKS: f64 = 100.0;

/// What a process has used.
pub struct Usage {
    pub cpu_s: f64,
    pub written_bytes: u64,
    /// Times that one of its threads went to sleep or was sent to.
    pub switches: u64,
    pub resident_mb: f64,
}

impl Usage {
    pub fn of(agent: &Agent) -> Outcome<Self> {
        Self::of_pid(agent.pid())
    }

    pub fn of_pid(pid: u32) -> Outcome<Self> {
        let io = std::fs::read_to_string(format!("/proc/{pid}/io"))?;
        let written_bytes = number(&io, "write_bytes:").unwrap();
        let mut switches = 0;
        for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
            // A thread may end meanwhile.
            let status = std::fs::read_to_string(task?.path().join("status")).unwrap_or_default();
            switches += number(&status, "\nvoluntary_ctxt_switches:").unwrap_or(0)
                + number(&status, "\nnonvoluntary_ctxt_switches:").unwrap_or(0);
        }
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let resident_mb = number(&status, "VmRSS:").unwrap_or(0) as f64 / 1024.0;
        Ok(Self { cpu_s: cpu_s(pid)?, written_bytes, switches, resident_mb })
    }

    pub fn since(&self, before: &Self) -> Self {
        Self {
            cpu_s: self.cpu_s - before.cpu_s,
            written_bytes: self.written_bytes - before.written_bytes,
            switches: self.switches.saturating_sub(before.switches),
            resident_mb: self.resident_mb,
        }
    }
}

/// User and system time of a process.
pub fn cpu_s(pid: u32) -> Outcome<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    Ok((fields[11].parse::<f64>()? + fields[12].parse::<f64>()?) / TICKS)
}

/// The number behind a name.
fn number(text: &str, name: &str) -> Option<u64> {
    let (_, after) = text.split_once(name)?;
    after.split_whitespace().next()?.parse().ok()
}

/// What the figures were measured on.
pub fn machine() -> String {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model =
        cpu.lines().find_map(|l| l.strip_prefix("model name")).map_or("?", |l| l.trim_start_matches([' ', '\t', ':']));
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("{model}, {cores} cores, Linux {}", kernel.trim())
}
