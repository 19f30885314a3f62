//! The programs of `tests/clients/`: one a language takes orders on its standard input, a JSON object a line, each with the
//! `client` that it is for, which is the client id as well:
//!
//! | `do` | besides |
//! |---|---|
//! | `open` | `library` where a program has several, `host`, `port`, `version` (5; 4 is 3.1.1), `persistent`; perhaps `user` and `password`, `will` (`topic`, `payload`). It connects, and goes on trying as the library does, once a second where it can be told |
//! | `publish` | `topic`, `payloads`, `qos`, `retain`, `pause_ms` between two. Connected or not: the library's own queue is what is tested |
//! | `subscribe` | `filters`, at QoS 1 |
//! | `close` | with DISCONNECT |
//!
//! and says on its standard output, as objects with the `client` in them, what the application is told: `connected`,
//! `refused` (why), `lost` (the connection, why), `acked` (so many in all; QoS 0: handed over), `rejected` (a publish, why),
//! `granted` (codes). All judging is done by who gives the orders.

#[path = "../../clients/rumqtt.rs"]
mod rumqtt;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{ChildStdin, Command, Stdio};
use std::thread::JoinHandle;

use serde_json::{Value, json};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

use crate::support::process::{Folder, Process};
use crate::support::proxy::Proxy;
use crate::support::publisher::Plan;
use crate::support::wire::Version;
use crate::support::{Outcome, PATIENCE, Trouble, trouble, wait_for};

pub const USER: &str = "sensor";
pub const PASSWORD: &str = "right";

/// A library in one version of the protocol, and what its application is told.
pub struct Library {
    pub name: &'static str,
    pub version: Version,
    /// Words of the refusal without a password, and with a wrong one.
    pub refusals: [&'static str; 2],
    pub too_large: TooLarge,
}

/// What becomes of a message that is too large.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum TooLarge {
    /// Acknowledged, for 3.1.1 has no other word, and on the books as a dead letter.
    DeadLetter,
    /// The application is told these words: by the listener's reason, or because the library minds what it was told at
    /// the beginning.
    Told(&'static str),
}

impl Library {
    /// As `mqtt.js-5-q1`.
    pub fn client(&self, role: &str) -> String {
        format!("{}-{}-{role}", self.name, self.version.name())
    }

    pub fn open(&self, role: &str, at: &Proxy, password: Option<&str>, more: &Value) -> Value {
        let mut order = json!({
            "do": "open", "client": self.client(role), "library": self.name,
            "host": "127.0.0.1", "port": at.address().port(),
            "version": if self.version == Version::V5 { 5 } else { 4 }, "persistent": true,
        });
        if let Some(order) = order.as_object_mut() {
            if let Some(password) = password {
                order.extend([("user".to_owned(), USER.into()), ("password".to_owned(), password.into())]);
            }
            order.extend(more.as_object().cloned().unwrap_or_default());
        }
        order
    }
}

/// What a client was told until now.
#[derive(Debug, Default, Clone)]
pub struct Heard {
    pub connects: u64,
    pub refused: Vec<String>,
    pub lost: Vec<String>,
    pub acked: u64,
    pub rejected: Vec<String>,
    pub granted: Vec<u64>,
}

impl Heard {
    fn hear(&mut self, said: &Value) {
        let word = |key: &str| said.get(key).map(|word| word.as_str().map_or(word.to_string(), str::to_owned));
        self.connects += u64::from(said.get("connected").is_some());
        self.acked = said.get("acked").and_then(Value::as_u64).unwrap_or(self.acked);
        self.refused.extend(word("refused"));
        self.lost.extend(word("lost"));
        self.rejected.extend(word("rejected"));
        let codes = said.get("granted").and_then(Value::as_array);
        self.granted.extend(codes.into_iter().flatten().filter_map(Value::as_u64));
    }
}

/// Where a program runs.
enum Body {
    Process(Process, ChildStdin),
    /// Rust's library needs no process of its own. Without its sender it drops its sockets.
    Thread(Option<UnboundedSender<Value>>, Option<JoinHandle<()>>),
}

/// A program of `tests/clients/`.
pub struct Program {
    body: Body,
    folder: Folder,
    /// How much of what was said is heard.
    offset: usize,
    heard: BTreeMap<String, Heard>,
}

impl Program {
    pub fn start(name: &str, mut command: Command) -> Outcome<Self> {
        let folder = Folder::new("client")?;
        let file = |name: &str| File::create(folder.path().join(name));
        command.stdin(Stdio::piped()).stdout(file("said")?).stderr(file("complained")?).current_dir(folder.path());
        let mut process = Process::start(name, command)?;
        let Some(stdin) = process.stdin() else { return trouble!("no standard input") };
        Ok(Self { body: Body::Process(process, stdin), folder, offset: 0, heard: BTreeMap::new() })
    }

    pub fn start_rumqttc() -> Outcome<Self> {
        let folder = Folder::new("client")?;
        let said = File::create(folder.path().join("said"))?;
        let complained = File::create(folder.path().join("complained"))?;
        let (sender, orders) = unbounded_channel();
        let thread = std::thread::spawn(move || {
            if let Err(Trouble(why)) = rumqtt::run(orders, &said) {
                drop(writeln!(&complained, "{why}"));
            }
        });
        Ok(Self { body: Body::Thread(Some(sender), Some(thread)), folder, offset: 0, heard: BTreeMap::new() })
    }

    pub fn order(&mut self, order: Value) -> Outcome<()> {
        match &mut self.body {
            Body::Process(_, stdin) => writeln!(stdin, "{order}").map_err(Trouble::from),
            Body::Thread(Some(sender), _) => sender.send(order).map_err(Trouble::from),
            Body::Thread(None, _) => trouble!("it has ended"),
        }
        .map_err(|Trouble(why)| Trouble(format!("{why}: {}", self.complaints())))
    }

    /// No DISCONNECT.
    pub fn kill(&mut self) {
        match &mut self.body {
            Body::Process(process, _) => process.kill(),
            Body::Thread(sender, thread) => {
                drop(sender.take());
                drop(thread.take().map(JoinHandle::join));
            }
        }
    }

    pub fn publish(&mut self, client: &str, plan: &Plan, numbers: std::ops::Range<u64>, pause_ms: u64) -> Outcome<()> {
        let payloads: Vec<String> = numbers.map(|n| String::from_utf8_lossy(&plan.payload(n)).into_owned()).collect();
        self.order(json!({
            "do": "publish", "client": client, "topic": plan.topic(0), "payloads": payloads,
            "qos": plan.qos, "retain": plan.name.ends_with("retained"), "pause_ms": pause_ms,
        }))
    }

    pub fn listen(&mut self) {
        let said = std::fs::read_to_string(self.folder.path().join("said")).unwrap_or_default();
        let new = said.get(self.offset..).unwrap_or_default();
        for line in new.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
            self.offset += line.len();
            if let Ok(said) = serde_json::from_str::<Value>(line)
                && let Some(client) = said.get("client").and_then(Value::as_str)
            {
                self.heard.entry(client.to_owned()).or_default().hear(&said);
            }
        }
    }

    pub fn heard(&self, client: &str) -> Heard {
        self.heard.get(client).cloned().unwrap_or_default()
    }

    /// Waits until all of these clients have heard that.
    pub fn wait(&mut self, what: &str, clients: &[String], enough: impl Fn(&Heard) -> bool) -> Outcome<()> {
        let waited = wait_for(what, PATIENCE * 2, || {
            self.listen();
            clients.iter().all(|client| enough(&self.heard(client))).then_some(())
        });
        waited.map_err(|Trouble(why)| {
            let late = clients.iter().filter(|client| !enough(&self.heard(client)));
            let late: Vec<String> = late.map(|client| format!("{client}: {:?}", self.heard(client))).collect();
            Trouble(format!("{why}\n{}\n{}", late.join("\n"), self.complaints()))
        })
    }

    fn complaints(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("complained")).unwrap_or_default()
    }
}

/// Where a program is.
pub fn script(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/clients").join(name)
}
