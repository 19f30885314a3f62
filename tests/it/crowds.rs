//! One host does what it can to keep the others out of the listener, and cannot.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use argon2::{Algorithm, Argon2, Params, Version as Argon2Version};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;

use crate::support::agent::{Agent, Build, Gateway};
use crate::support::client::{Connection, clean};
use crate::support::kafka;
use crate::support::wire::{Connect, Message, Packet, Version};
use crate::support::{Outcome, PATIENCE, Trouble, trouble, wait_until};

/// Last numbers of 127.0.0.x: those that keep others out, and the others.
const SILENT: u8 = 66;
const GUESSING: u8 = 67;
const HONEST: u8 = 7;

/// Goes on until it is stopped.
struct Nuisance {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    /// What it has done so far.
    done: Arc<AtomicU64>,
}

impl Nuisance {
    /// So many threads, each again and again.
    fn start(threads: usize, act: impl Fn(usize, u64) + Send + Sync + 'static) -> Self {
        let (stop, done, act) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)), Arc::new(act));
        let start = |thread| {
            let (stop, done, act) = (Arc::clone(&stop), Arc::clone(&done), Arc::clone(&act));
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    act(thread, done.fetch_add(1, Ordering::Relaxed));
                }
            })
        };
        let threads = (0..threads).map(start).collect();
        Self { stop, threads, done }
    }

    /// Ends it; how often it acted.
    fn stop(self) -> Outcome<u64> {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().map_err(|_panic| Trouble::new("a nuisance panicked"))?;
        }
        Ok(self.done.load(Ordering::Relaxed))
    }
}

/// Keeps `sockets` silent connections open, and renews one of them each 20 ms.
fn silent_sockets(gateway: &Gateway, sockets: usize) -> Nuisance {
    let address = gateway.listener();
    let open = std::sync::Mutex::new(std::collections::VecDeque::new());
    Nuisance::start(1, move |_, _| {
        let Ok(mut open) = open.lock() else { return };
        while open.len() < sockets {
            match Connection::dial_as(SILENT, address, Version::V5) {
                Ok(silent) => open.push_back(silent),
                Err(_refused) => break,
            }
        }
        open.pop_front();
        std::thread::sleep(Duration::from_millis(20));
    })
}

/// Connects with a wrong password, again and again, and waits a moment for what is said to it.
fn wrong_passwords(gateway: &Gateway, threads: usize) -> Nuisance {
    let address = gateway.listener();
    Nuisance::start(threads, move |thread, n| {
        // It is to press on the agent, and not on whatever else runs on this machine.
        std::thread::sleep(Duration::from_millis(5));
        let Ok(mut guess) = Connection::dial_as(GUESSING, address, Version::V311) else { return };
        let wrong = credentials(clean(&format!("guess-{thread}-{n}")), "bob", &format!("guess {n}"));
        if guess.send(&Packet::Connect(wrong)).is_ok() {
            drop(guess.next(Duration::from_millis(10)));
        }
    })
}

/// A CONNECT with name and password.
fn credentials(connect: Connect, name: &str, password: &str) -> Connect {
    Connect { username: Some(name.to_owned()), password: Some(password.to_owned()), ..connect }
}

/// What mosquitto 2.1 has each check take, in KiB.
const MOSQUITTO_KIB: u32 = 46 * 1024;

/// A line of a users file whose check takes so much memory, and time in proportion.
fn argon2_line(name: &str, password: &str, memory_kib: u32) -> Outcome<String> {
    let salt = b"0123456789abcdef";
    let costs = Params::new(memory_kib, 1, 1, Some(32)).map_err(|error| Trouble::new(error.to_string()))?;
    let mut hash = [0; 32];
    Argon2::new(Algorithm::Argon2id, Argon2Version::V0x13, costs)
        .hash_password_into(password.as_bytes(), salt, &mut hash)
        .map_err(|error| Trouble::new(error.to_string()))?;
    let (salt, hash) = (STANDARD_NO_PAD.encode(salt), STANDARD_NO_PAD.encode(hash));
    Ok(format!("{name}:$argon2id$v=19$m={memory_kib},t=1,p=1${salt}${hash}\n"))
}

/// Connects as that host, publishes one reading, and goes; how long that took.
fn visit(gateway: &Gateway, host: u8, connect: Connect) -> Outcome<Duration> {
    let begin = Instant::now();
    let (mut sensor, _) = Connection::dial_as(host, gateway.listener(), Version::V311)?.greet(connect)?;
    sensor.publish(&Message { topic: "t".into(), payload: b"x".to_vec(), qos: 1, ..Message::default() }, 1)?;
    Ok(begin.elapsed())
}

fn few_complaints(agent: &Agent) -> Outcome<()> {
    let said = agent.log_lines("WARN").len() + agent.log_lines("ERROR").len();
    if said <= 20 { Ok(()) } else { trouble!("{said} complaints:\n{}", agent.log()) }
}

#[test]
fn three_hundred_silent_sockets_of_one_host_keep_nobody_out() -> Outcome<()> {
    let kafka = kafka::shared()?;
    let mut gateway = Gateway::new(Build::Real, &kafka.brokers())?;
    // With the spare ones 264 sockets, fewer than are held open.
    gateway.listen("max_connections = 200\n").route("#", &kafka.topic("silent")?);
    let agent = gateway.start()?;
    let silent = silent_sockets(&gateway, 300);
    let refused = || super::session::link(&agent, 0, "refusals").unwrap_or_default();
    wait_until("the listener to be full", PATIENCE, || refused() > 20)?;
    // Of another host, and of the very same.
    for (host, visits) in [(HONEST, 100), (SILENT, 30)] {
        let mut longest = Duration::ZERO;
        for n in 0..visits {
            longest = longest.max(visit(&gateway, host, clean(&format!("honest-{n}")))?);
        }
        eprintln!("{visits} visits of 127.0.0.{host}, the longest {longest:?}; {} refused", refused());
    }
    silent.stop()?;
    few_complaints(&agent)
}

#[test]
fn wrong_passwords_by_the_thousand_keep_nobody_out() -> Outcome<()> {
    let kafka = kafka::shared()?;
    let mut gateway = Gateway::new(Build::Real, &kafka.brokers())?;
    let users = gateway.path().join("users");
    std::fs::write(
        &users,
        [argon2_line("bob", "hunter2", MOSQUITTO_KIB)?, argon2_line("eve", "hunter3", MOSQUITTO_KIB)?].concat(),
    )?;
    gateway.listen(&format!("users_file = \"{}\"\n", users.display())).route("#", &kafka.topic("guesses")?);
    let agent = gateway.start()?;
    // One who was there before; eve comes for the first time in the middle of the flood.
    visit(&gateway, HONEST, credentials(clean("bob"), "bob", "hunter2"))?;
    let guesses = wrong_passwords(&gateway, 8);
    wait_until("a thousand guesses", PATIENCE, || guesses.done.load(Ordering::Relaxed) > 1_000)?;
    let mut longest = Duration::ZERO;
    for n in 0..50 {
        let (name, password) = if n % 2 == 0 { ("bob", "hunter2") } else { ("eve", "hunter3") };
        longest = longest.max(visit(&gateway, HONEST, credentials(clean(name), name, password))?);
        // And beside the flood, at its address: who was there before.
        longest = longest.max(visit(&gateway, GUESSING, credentials(clean(name), name, password))?);
    }
    eprintln!("100 visits through {} guesses, the longest {longest:?}", guesses.stop()?);
    few_complaints(&agent)
}
