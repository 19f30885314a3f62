//! What an agent has used, and on what machine.

use crate::support::Outcome;
use crate::support::agent::Agent;

/// Clock ticks a second in `/proc/<pid>/stat`; 100 on every Linux that Tidegate runs on.
const TICKS: f64 = 100.0;

/// CPU and disk writes of an agent.
pub struct Usage {
    pub cpu_s: f64,
    pub written_bytes: u64,
}

impl Usage {
    pub fn of(agent: &Agent) -> Outcome<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", agent.pid()))?;
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        let ticks: f64 = fields[11].parse::<f64>()? + fields[12].parse::<f64>()?;
        let io = std::fs::read_to_string(format!("/proc/{}/io", agent.pid()))?;
        let written = io.lines().find_map(|l| l.strip_prefix("write_bytes: ")).unwrap();
        Ok(Self { cpu_s: ticks / TICKS, written_bytes: written.trim().parse()? })
    }

    pub fn since(&self, before: &Self) -> Self {
        Self { cpu_s: self.cpu_s - before.cpu_s, written_bytes: self.written_bytes - before.written_bytes }
    }
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
