//! Children that never outlive the tests, folders that go away.
//!
//! * Every child is started through `setpriv --pdeathsig KILL`, from one thread that lives as long as the test process:
//!   the kernel kills it when that thread ends, however the tests end.
//! * All folders lie below one root. A shell that holds the reading end of a pipe from us removes it when the pipe
//!   closes, which is after a panic, Ctrl-C or kill -9 as well. `TIDEGATE_KEEP=1` keeps it.

use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{LazyLock, Mutex};
use std::time::Duration;

pub use test_kit::ports::free_port;

use super::{Outcome, PATIENCE, Trouble, trouble, wait_for};

/// A running child; killed when dropped.
pub struct Process {
    name: String,
    child: Child,
}

impl Process {
    /// The command line for [`Process::start`]: what it starts dies with us.
    pub fn command(program: impl AsRef<Path>) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(program.as_ref());
        command.stdin(Stdio::null());
        command
    }

    /// Starts what [`Process::command`] began.
    pub fn start(name: &str, command: Command) -> Outcome<Self> {
        let child = spawn(command).map_err(|error| Trouble::new(format!("start of {name}: {error}")))?;
        Ok(Self { name: name.to_owned(), child })
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What the child reads, if the command was given a pipe for it; once.
    pub fn stdin(&mut self) -> Option<ChildStdin> {
        self.child.stdin.take()
    }

    /// `TERM`, `STOP`, `CONT`, `KILL` …
    pub fn signal(&self, signal: &str) -> Outcome<()> {
        let status =
            Command::new("sh").args(["-c", "kill -\"$0\" \"$1\"", signal, &self.pid().to_string()]).status()?;
        if status.success() { Ok(()) } else { trouble!("cannot send {signal} to {}", self.name) }
    }

    /// SIGTERM, and the end that follows.
    pub fn stop(mut self) -> Outcome<()> {
        self.signal("TERM")?;
        self.wait(PATIENCE).map(drop)
    }

    /// kill -9, and no trace of it.
    pub fn kill(&mut self) {
        // Fails only when it has gone by itself.
        drop(self.child.kill());
        drop(self.child.wait());
    }

    /// Has it gone by itself?
    pub fn exited(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Waits for the end that something else has caused.
    pub fn wait(&mut self, limit: Duration) -> Outcome<ExitStatus> {
        let what = format!("the end of {}", self.name);
        wait_for(&what, limit, || self.exited())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// `exit 78` or `signal 9`.
pub fn how(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "no status".to_owned(),
    }
}

type Birth = (Command, Sender<std::io::Result<Child>>);

fn spawn(command: Command) -> std::io::Result<Child> {
    static NURSERY: LazyLock<Mutex<Sender<Birth>>> = LazyLock::new(|| {
        let (sender, births) = channel::<Birth>();
        std::thread::spawn(move || {
            for (mut command, answer) in births {
                drop(answer.send(command.spawn()));
            }
        });
        Mutex::new(sender)
    });
    let gone = || std::io::Error::other("the thread that starts processes is gone");
    let (answer, child) = channel();
    NURSERY.lock().map_err(|_no_thread| gone())?.send((command, answer)).map_err(|_no_thread| gone())?;
    child.recv().map_err(|_no_thread| gone())?
}

/// A folder of one test, removed when dropped.
#[derive(Debug)]
pub struct Folder(PathBuf);

impl Folder {
    /// A new one.
    pub fn new(name: &str) -> Outcome<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let path = root()?.join(format!("{name}-{}", COUNT.fetch_add(1, Ordering::Relaxed)));
        std::fs::create_dir_all(&path)?;
        Ok(Self(path))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // A test that failed is looked at: its folder stays until the tests end.
        if !std::thread::panicking() && std::env::var_os("TIDEGATE_KEEP").is_none() {
            drop(std::fs::remove_dir_all(&self.0));
        }
    }
}

struct Root {
    path: PathBuf,
    _cleaner: Option<ChildStdin>,
}

const CLEANER: &str = r#"trap "" INT TERM HUP; cat >/dev/null; sleep 0.5
n=0; while [ -e "$1" ] && [ $n -lt 50 ]; do rm -rf "$1" 2>/dev/null; n=$((n+1)); [ -e "$1" ] && sleep 0.2; done"#;

fn root() -> Outcome<&'static Path> {
    static ROOT: LazyLock<Result<Root, String>> = LazyLock::new(|| {
        let path = tempfile::Builder::new()
            .prefix("tidegate-tests-")
            .tempdir()
            .map_err(|error| format!("temporary folder: {error}"))?
            .keep();
        if std::env::var_os("TIDEGATE_KEEP").is_some() {
            return Ok(Root { path, _cleaner: None });
        }
        let mut cleaner = Command::new("sh");
        cleaner.args(["-c", CLEANER, "sh"]).arg(&path).stdin(Stdio::piped()).process_group(0);
        // Its output must not keep a pipe open that somebody reads to its end (cargo test | tee).
        cleaner.stdout(Stdio::null()).stderr(Stdio::null());
        let stdin = cleaner.spawn().map_err(|error| format!("cleaner: {error}"))?.stdin;
        Ok(Root { path, _cleaner: stdin })
    });
    ROOT.as_ref().map(|root| root.path.as_path()).map_err(|error| Trouble::new(error.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_process_is_gone() {
        let mut command = Process::command("sleep");
        command.arg("1000");
        let process = Process::start("sleep", command).unwrap();
        let path = format!("/proc/{}", process.pid());
        assert!(Path::new(&path).exists());
        drop(process);
        assert!(!Path::new(&path).exists());
    }

    #[test]
    fn a_process_survives_the_thread_that_asked_for_it() {
        let asked = std::thread::spawn(|| {
            let mut command = Process::command("sh");
            command.args(["-c", "read nothing <&- ; sleep 0.3; exit 7"]);
            Process::start("sh", command).unwrap()
        });
        let mut process = asked.join().unwrap();
        assert_eq!(how(process.wait(PATIENCE).unwrap()), "exit 7");
    }
}
