//! One host does what it can to keep the others out of the listener, and cannot.

use std::net::SocketAddr;
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
use crate::support::proxy::Weather;
use crate::support::publisher::{Plan, Publisher};
use crate::support::reader::{Reader, Record};
use crate::support::wire::{Connect, Message, Packet, Version};
use crate::support::{Outcome, PATIENCE, Trouble, asked, trouble, wait_until};

/// Last numbers of 127.0.0.x: those that keep others out, and the others.
const SILENT: u8 = 66;
const GUESSING: u8 = 67;
const HONEST: u8 = 7;

/// Connects from another address of this machine, 127.0.0.`host`, as from another host.
fn dial_as(host: u8, address: SocketAddr, version: Version) -> Outcome<Connection> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let stream = runtime.block_on(async {
        let socket = tokio::net::TcpSocket::new_v4()?;
        // Many short connections leave their ports in TIME_WAIT.
        socket.set_reuseaddr(true)?;
        socket.bind(SocketAddr::from(([127, 0, 0, host], 0)))?;
        socket.connect(address).await?.into_std()
    })?;
    stream.set_nonblocking(false)?;
    Connection::over(stream, version)
}

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
            match dial_as(SILENT, address, Version::V5) {
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
        let Ok(mut guess) = dial_as(GUESSING, address, Version::V311) else { return };
        let wrong = credentials(clean(&format!("guess-{thread}-{n}")), "bob", &format!("guess {n}"));
        if guess.send(&Packet::Connect(wrong)).is_ok() {
            drop(guess.next(Duration::from_millis(10)));
        }
    })
}

/// A CONNECT with name and password.
pub fn credentials(connect: Connect, name: &str, password: &str) -> Connect {
    Connect { username: Some(name.to_owned()), password: Some(password.to_owned()), ..connect }
}

/// What mosquitto 2.1 has each check take, in KiB.
const MOSQUITTO_KIB: u32 = 46 * 1024;

/// A line of a users file whose check takes so much memory, and time in proportion.
pub fn argon2_line(name: &str, password: &str, memory_kib: u32) -> Outcome<String> {
    let salt = b"0123456789abcdef";
    let costs = Params::new(memory_kib, 1, 1, Some(32)).map_err(|error| Trouble::new(error.to_string()))?;
    let mut hash = [0; 32];
    Argon2::new(Algorithm::Argon2id, Argon2Version::V0x13, costs)
        .hash_password_into(password.as_bytes(), salt, &mut hash)
        .map_err(|error| Trouble::new(error.to_string()))?;
    let (salt, hash) = (STANDARD_NO_PAD.encode(salt), STANDARD_NO_PAD.encode(hash));
    Ok(format!("{name}:$argon2id$v=19$m={memory_kib},t=1,p=1${salt}${hash}\n"))
}

/// Connects as that host, publishes one reading, and goes; how long that took. As every client does, it comes again when its
/// connection is lost, but no more than twice.
fn visit(gateway: &Gateway, host: u8, connect: &Connect) -> Outcome<Duration> {
    let begin = Instant::now();
    let once = || {
        let (mut sensor, _) = dial_as(host, gateway.listener(), Version::V311)?.greet(connect.clone())?;
        sensor.publish(&Message { topic: "t".into(), payload: b"x".to_vec(), qos: 1, ..Message::default() }, 1)
    };
    once().or_else(|_| once()).or_else(|_| once())?;
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
            longest = longest.max(visit(&gateway, host, &clean(&format!("honest-{n}")))?);
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
    visit(&gateway, HONEST, &credentials(clean("bob"), "bob", "hunter2"))?;
    let guesses = wrong_passwords(&gateway, 8);
    wait_until("a thousand guesses", PATIENCE, || guesses.done.load(Ordering::Relaxed) > 1_000)?;
    let mut longest = Duration::ZERO;
    for n in 0..50 {
        let (name, password) = if n % 2 == 0 { ("bob", "hunter2") } else { ("eve", "hunter3") };
        longest = longest.max(visit(&gateway, HONEST, &credentials(clean(name), name, password))?);
        // And beside the flood, at its address: who was there before.
        longest = longest.max(visit(&gateway, GUESSING, &credentials(clean(name), name, password))?);
    }
    eprintln!("100 visits through {} guesses, the longest {longest:?}", guesses.stop()?);
    few_complaints(&agent)
}

/// What a gateway may take in the worst mix, in KiB.
const WORST_KIB: u64 = 64 * 1024;

/// And say, in lines, whatever the level.
const WORST_LINES: usize = 100;

/// Two users of the same password file: one whose sensors are honest, and one whose device was taken over.
fn worst_gateway(kafka: &str, good: &str, made: &str) -> Outcome<Gateway> {
    let mut gateway = Gateway::new(Build::Real, kafka)?;
    let users = gateway.path().join("users");
    // With mosquitto's 46 MiB a check would be most of what is measured.
    std::fs::write(&users, [argon2_line("bob", "hunter2", 2048)?, argon2_line("eve", "hunter3", 2048)?].concat())?;
    gateway.listen(&format!("users_file = \"{}\"\n", users.display()));
    gateway.route("good/#", good).route("long/#", good).route("made/{name}", &format!("{made}.{{name}}"));
    gateway.buffer("max_bytes = \"32MiB\"\n");
    Ok(gateway)
}

/// Publishes from the device that was taken over, as fast as it is answered, and gives up when nothing is read any more.
fn taken_over(gateway: &Gateway, name: &str, messages: impl Iterator<Item = Message>) -> Outcome<u64> {
    let connect = credentials(clean(name), "eve", "hunter3");
    let (mut device, _) = dial_as(GUESSING, gateway.listener(), Version::V311)?.greet(connect)?;
    let (mut open, mut answered, mut id) = (0_u32, 0, 0_u16);
    for message in messages {
        id = id.checked_add(1).unwrap_or(1);
        device.send(&Packet::Publish { message, id, dup: false })?;
        open += 1;
        while open >= 50 {
            if device.next(Duration::from_secs(5))?.is_none() {
                return Ok(answered);
            }
            (open, answered) = (open - 1, answered + 1);
        }
    }
    Ok(answered)
}

fn hostile(topic: String, payload_bytes: usize) -> Message {
    // Random, so that the buffer cannot make it smaller.
    let payload = (0..payload_bytes).map(|_| fastrand::u8(..)).collect();
    Message { topic, payload, qos: 1, ..Message::default() }
}

#[test]
fn the_worst_mix_at_once_leaves_honest_sensors_served_and_memory_and_log_bounded() -> Outcome<()> {
    let (made, long) = (asked("TIDEGATE_WORST_TOPICS", 2_500)?, asked("TIDEGATE_WORST_LONG_TOPICS", 300)?);
    let kafka = kafka::shared()?;
    let good = kafka.topic("good")?;
    let kafka_link = kafka.lease()?;
    let gateway = worst_gateway(&kafka_link.brokers()?, &good, &kafka::unique_topic("made"))?;
    let agent = gateway.start()?;
    let honest = [1, 2].map(|qos| {
        let mut plan = Plan::new(&format!("honest-{qos}"), &format!("good/{qos}"), qos).rate(200);
        plan.connect = credentials(plan.connect, "bob", "hunter2");
        Publisher::start(gateway.listener(), plan)
    });
    honest.iter().try_for_each(|publisher| publisher.wait_acknowledged(50))?;
    let (silent, guesses) = (silent_sockets(&gateway, 300), wrong_passwords(&gateway, 8));
    let flood = taken_over(&gateway, "made", (0..made).map(|n| hostile(format!("made/{n}"), 20)))?;
    let name = |n: u64| format!("long/{n}/{}", "x".repeat(60_000));
    let long = taken_over(&gateway, "long", (0..long).map(|n| hostile(name(n), 20)))?;
    // Kafka goes, and the buffer is filled until nobody is read any more.
    kafka_link.set(Weather::Cut)?;
    let filled = taken_over(&gateway, "filling", (0..2_000).map(|_| hostile("long/fill".into(), 60_000)))?;
    let ready = || agent.get("/readyz").is_ok_and(|answer| answer.status == 200);
    wait_until("the full buffer", PATIENCE, || !ready())?;
    let full = agent.memory_kib("VmHWM")?;
    kafka_link.set(Weather::Fair)?;
    wait_until("room in the buffer", PATIENCE, ready)?;
    let before: Vec<_> = honest.iter().map(Publisher::acknowledged).collect();
    for (publisher, before) in honest.iter().zip(before) {
        publisher.wait_acknowledged(before + 200)?;
    }
    let longest = visit(&gateway, HONEST, &credentials(clean("late"), "bob", "hunter2"))?;
    let (guesses, _) = (guesses.stop()?, silent.stop()?);
    let logs = honest.into_iter().map(|publisher| publisher.stop(PATIENCE)).collect::<Outcome<Vec<_>>>()?;
    let mut reader = Reader::open(&kafka.brokers(), &[&good])?;
    for log in &logs {
        let mine =
            |record: &&Record| Plan::name_and_number(&record.payload).is_some_and(|(name, _)| name == log.plan.name);
        let enough = |records: &[Record]| records.iter().filter(mine).count() as u64 >= log.acknowledged_count();
        reader.read_until("what honest sensors hold a PUBACK for", PATIENCE, enough)?;
    }
    let (peak, lines) = (agent.memory_kib("VmHWM")?, agent.log().lines().count());
    eprintln!(
        "{flood} template topics, {long} of 60 kB, {filled} large ones into a full buffer, {guesses} guesses: {full} KiB \
         resident when full, {peak} in all, {lines} lines; a late visit took {longest:?}"
    );
    if peak > WORST_KIB || lines > WORST_LINES {
        return trouble!("{peak} KiB, {lines} lines:\n{}", agent.log());
    }
    Ok(())
}
