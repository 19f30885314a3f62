//! Other programs of the kind, in the same run: found by a path that is given, configured by a file below `benches/peers`.

use std::net::{SocketAddr, TcpStream};
use std::path::Path;

use crate::support::process::{Folder, Process, free_port};
use crate::support::{Outcome, PATIENCE, trouble, wait_until};

/// Where its program is: `TIDEGATE_PEER_FLUENT_BIT=/opt/fluent-bit/bin/fluent-bit`.
const FLUENT_BIT: &str = "TIDEGATE_PEER_FLUENT_BIT";

/// One that runs.
pub struct Peer {
    pub process: Process,
    pub address: SocketAddr,
    /// What it buffers.
    _folder: Folder,
}

/// Is one to be compared with?
pub fn is_given() -> bool {
    std::env::var_os(FLUENT_BIT).is_some()
}

impl Peer {
    /// Fluent Bit, listening.
    pub fn start(brokers: &str, topic: &str) -> Outcome<Self> {
        let Some(program) = std::env::var_os(FLUENT_BIT) else { return trouble!("{FLUENT_BIT} is not set") };
        let (folder, port) = (Folder::new("peer")?, free_port()?);
        let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peers/fluent-bit.conf");
        let mut command = Process::command(program);
        command.arg("-c").arg(config).current_dir(folder.path());
        command.env("FOLDER", folder.path()).env("MQTT_PORT", port.to_string());
        command.env("BROKERS", brokers).env("TOPIC", topic);
        let process = Process::start("fluent-bit", command)?;
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        wait_until("the peer to listen", PATIENCE, || TcpStream::connect(address).is_ok())?;
        Ok(Self { process, address, _folder: folder })
    }
}
