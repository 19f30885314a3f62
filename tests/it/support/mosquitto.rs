//! mosquitto for real, from its Debian package.

use std::fmt::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex};

use super::client::{Connection, clean};
use super::process::{Folder, Process, free_port};
use super::wire::Version;
use super::{Outcome, PATIENCE, Trouble, trouble, wait_until};

/// A broker.
pub struct Mosquitto {
    folder: Folder,
    port: u16,
    process: Mutex<Option<Process>>,
}

/// For `[[mqtt]]` tables of tests that judge the order of a backlog: in MQTT 5 the client's window counts.
pub const WIDE: &str = "receive_maximum = 65535\n";

/// The one that tests share which do not restart it.
pub fn shared() -> Outcome<&'static Mosquitto> {
    static SHARED: LazyLock<Outcome<Mosquitto>> = LazyLock::new(|| Mosquitto::start(""));
    SHARED.as_ref().map_err(|error| Trouble::new(format!("mosquitto: {error:?}")))
}

/// A users file for a listener with one user in it, by mosquitto's own tool.
pub fn users_file(folder: &Path, user: &str, password: &str) -> Outcome<PathBuf> {
    let file = folder.join("users");
    let mut command = std::process::Command::new("mosquitto_passwd");
    command.args(["-b", "-c"]).arg(&file).args([user, password]).stderr(std::process::Stdio::null());
    if command.status()?.success() { Ok(file) } else { trouble!("mosquitto_passwd failed") }
}

impl Mosquitto {
    /// Keeps sessions on disk; `settings` are more lines of `mosquitto.conf`. Anyone may connect unless they say otherwise.
    pub fn start(settings: &str) -> Outcome<Self> {
        // Queues must hold what a killed relay leaves behind.
        let mut conf = "max_queued_messages 0\nset_tcp_nodelay true\n".to_owned();
        // mosquitto 2.0.11 mixes up the order of one topic as soon as a subscriber's window is full (1,595 of 4,000
        // readings with the default of 20, an ordinary subscriber, no Tidegate). Without a window in MQTT 3.1.1, and
        // with WIDE in MQTT 5, the tests see what the relay does and not what mosquitto does.
        conf.push_str("max_inflight_messages 0\n");
        Self::as_debian_ships_it(&format!("{conf}{settings}"))
    }

    /// What a sensor may expect of `apt install mosquitto`, and `settings` as in a file below `/etc/mosquitto/conf.d`.
    pub fn as_debian_ships_it(settings: &str) -> Outcome<Self> {
        let folder = Folder::new("mosquitto")?;
        let port = free_port()?;
        let mut conf = format!("listener {port} 127.0.0.1\nuser root\n");
        if !settings.contains("allow_anonymous") {
            conf.push_str("allow_anonymous true\n");
        }
        writeln!(conf, "persistence true\npersistence_location {}/", folder.path().display())?;
        conf.push_str(settings);
        std::fs::write(folder.path().join("mosquitto.conf"), conf)?;
        let mosquitto = Self { folder, port, process: Mutex::new(None) };
        mosquitto.run()?;
        Ok(mosquitto)
    }

    /// For the configuration.
    pub fn url(&self) -> String {
        format!("mqtt://127.0.0.1:{}", self.port)
    }

    /// For publishers.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }

    /// Starts (again), on the same port; returns when it answers.
    pub fn run(&self) -> Outcome<()> {
        let mut command = Process::command(program()?);
        command.arg("-c").arg("mosquitto.conf").current_dir(self.folder.path());
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.folder.path().join("log"))?;
        command.stdout(log.try_clone()?).stderr(log);
        let process = Process::start("mosquitto", command)?;
        *self.process.lock()? = Some(process);
        let address = self.address();
        // With credentials asked for, the refusal is an answer as well.
        wait_until("mosquitto to answer", PATIENCE, || Connection::dial(address, Version::V5).is_ok())
    }

    /// SIGTERM: it saves its sessions.
    pub fn stop(&self) -> Outcome<()> {
        self.process.lock()?.take().map_or(Ok(()), Process::stop)
    }

    /// kill -9, and nothing of what it knew is left: sessions and queues are gone.
    pub fn lose_everything(&self) -> Outcome<()> {
        self.process.lock()?.take();
        let saved = self.folder.path().join("mosquitto.db");
        if saved.exists() { Ok(std::fs::remove_file(saved)?) } else { Ok(()) }
    }

    /// Does an ordinary client get in?
    pub fn welcomes(&self, client_id: &str) -> bool {
        Connection::open(self.address(), Version::V5, clean(client_id)).is_ok()
    }
}

/// Debian puts it where only root looks.
fn program() -> Outcome<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    folders.push("/usr/sbin".into());
    let found = folders.iter().map(|folder| folder.join("mosquitto")).find(|file| Path::new(file).exists());
    match found {
        Some(program) => Ok(program),
        None => trouble!("mosquitto is not installed: tests/run brings it"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::client::keep;
    use super::super::publisher::{Plan, publish_all};
    use super::super::wire::Packet;
    use super::*;

    #[test]
    fn what_is_published_reaches_a_subscriber_once_at_every_qos_and_version() {
        let broker = shared().unwrap();
        for version in Version::ALL {
            for qos in 0..=2 {
                let name = format!("self-{}-{qos}", version.name());
                let topic = format!("{name}/t");
                let (mut subscriber, _) =
                    Connection::open(broker.address(), version, clean(&format!("{name}-s"))).unwrap();
                subscriber.send(&Packet::Subscribe { id: 1, filters: vec![(topic.clone(), 0)] }).unwrap();
                subscriber.expect("SUBACK", |packet| matches!(packet, Packet::SubAck { .. })).unwrap();
                let plan = Plan::new(&name, &topic, qos).version(version).count(500);
                let log = publish_all(broker.address(), plan).unwrap();
                for n in 0..500 {
                    let packet = subscriber.expect("a reading", |packet| matches!(packet, Packet::Publish { .. }));
                    match packet.unwrap() {
                        Packet::Publish { message, .. } => assert_eq!(message.payload, log.plan.payload(n)),
                        other => panic!("{other:?}"),
                    }
                }
                assert_eq!((log.published, log.refused, log.stray_answers, log.connects), (500, 0, 0, 1));
            }
        }
    }

    #[test]
    fn sessions_survive_a_stop_and_not_a_loss() {
        let broker = Mosquitto::start("").unwrap();
        drop(Connection::open(broker.address(), Version::V5, keep("s")).unwrap());
        broker.stop().unwrap();
        broker.run().unwrap();
        let (_, present) = Connection::open(broker.address(), Version::V5, keep("s")).unwrap();
        assert!(present);
        broker.lose_everything().unwrap();
        broker.run().unwrap();
        let (_, present) = Connection::open(broker.address(), Version::V5, keep("s")).unwrap();
        assert!(!present);
        assert!(broker.welcomes("other"));
    }
}
