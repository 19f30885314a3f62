//! A link that can be cut, held and mended, for any TCP service.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::{Outcome, process::free_port};

/// What the link does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Weather {
    /// Everything passes.
    Fair,
    /// Connections stay, and nothing passes in either direction: packets vanish.
    Fog,
    /// Connections are closed, new ones as well.
    Cut,
    /// Requests pass; the first byte of an answer closes its connection instead: the answer is lost.
    AnswersLost,
    /// Kafka only: when a client ends a transaction (`EndTxn`), its connection is closed, and that very request arrives
    /// over another one, 150 to 1,650 ms later: what a slow network does to a request of a dead connection.
    EndTxnLate,
}

/// A request of Kafka's protocol by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i16)]
pub enum Request {
    Produce = 0,
    FindCoordinator = 10,
    InitProducerId = 22,
    AddPartitionsToTxn = 24,
    EndTxn = 26,
}

/// When a request loses its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// Kafka never sees it.
    Before,
    /// Kafka does it, and the answer is lost.
    After,
}

/// Runs until dropped.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    state: Arc<State>,
}

#[derive(Debug)]
struct State {
    weather: AtomicU8,
    /// Connections accepted, whatever became of them.
    attempts: AtomicU64,
    live: AtomicUsize,
    answers_lost: AtomicU64,
    /// `EndTxn` requests that were made late.
    late: AtomicU64,
    /// The next request that loses its connection.
    snare: Mutex<Option<(Request, Loss)>>,
    /// Requests that did.
    snared: AtomicU64,
    /// How long each byte takes in each direction.
    delay_ms: AtomicU64,
    /// Bytes that clients have sent, and been sent.
    up: AtomicU64,
    down: AtomicU64,
    target: u16,
    is_kafka: bool,
}

/// A dropped proxy.
const GONE: u8 = 0xff;

/// How often threads look at the weather when nothing comes.
const GLANCE: Duration = Duration::from_millis(10);

impl Proxy {
    /// In front of that port of 127.0.0.1, on a free one.
    pub fn start(target: u16) -> Outcome<Self> {
        let listener = TcpListener::bind(("127.0.0.1", free_port()?))?;
        Self::serve(listener, target, false)
    }

    /// In front of Kafka, whose requests are told apart; on a listener that exists: its port had to be known before the
    /// target was started.
    pub fn of_kafka(listener: TcpListener, target: u16) -> Outcome<Self> {
        Self::serve(listener, target, true)
    }

    fn serve(listener: TcpListener, target: u16, is_kafka: bool) -> Outcome<Self> {
        let address = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        let state = Arc::new(State {
            weather: AtomicU8::new(Weather::Fair as u8),
            attempts: AtomicU64::new(0),
            live: AtomicUsize::new(0),
            answers_lost: AtomicU64::new(0),
            late: AtomicU64::new(0),
            snare: Mutex::new(None),
            snared: AtomicU64::new(0),
            delay_ms: AtomicU64::new(0),
            up: AtomicU64::new(0),
            down: AtomicU64::new(0),
            target,
            is_kafka,
        });
        let shared = Arc::clone(&state);
        std::thread::spawn(move || accept(&listener, target, &shared));
        Ok(Self { address, state })
    }

    /// Where clients connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on.
    pub fn set(&self, weather: Weather) {
        self.state.weather.store(weather as u8, Ordering::SeqCst);
    }

    /// From now on every byte takes so long in each direction: half a round trip. The width of the link is not bounded.
    pub fn delay(&self, time: Duration) {
        self.state.delay_ms.store(time.as_millis() as u64, Ordering::SeqCst);
    }

    /// The next request of this kind, and that one only, loses its connection.
    pub fn snare(&self, request: Request, loss: Loss) -> Outcome<()> {
        *self.state.snare.lock()? = Some((request, loss));
        Ok(())
    }

    /// Requests that lost their connection until now.
    pub fn snared(&self) -> u64 {
        self.state.snared.load(Ordering::SeqCst)
    }

    /// `EndTxn` requests that were made late until now.
    pub fn late(&self) -> u64 {
        self.state.late.load(Ordering::SeqCst)
    }

    /// Bytes that clients have sent until now.
    pub fn bytes_up(&self) -> u64 {
        self.state.up.load(Ordering::SeqCst)
    }

    /// Bytes that clients were sent until now.
    pub fn bytes_down(&self) -> u64 {
        self.state.down.load(Ordering::SeqCst)
    }

    /// Connections accepted until now.
    pub fn attempts(&self) -> u64 {
        self.state.attempts.load(Ordering::SeqCst)
    }

    /// Connections closed in place of an answer until now.
    pub fn answers_lost(&self) -> u64 {
        self.state.answers_lost.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.state.weather.store(GONE, Ordering::SeqCst);
    }
}

impl State {
    fn is(&self, weather: Weather) -> bool {
        self.weather.load(Ordering::SeqCst) == weather as u8
    }

    /// Is it this one's turn to lose its connection?
    fn snares(&self, frame: &[u8]) -> Option<Loss> {
        let mut snare = self.snare.lock().ok()?;
        let (request, loss) = (*snare)?;
        if !is(frame, request) {
            return None;
        }
        *snare = None;
        self.snared.fetch_add(1, Ordering::SeqCst);
        Some(loss)
    }

    fn ends_connections(&self) -> bool {
        let weather = self.weather.load(Ordering::SeqCst);
        weather == GONE || weather == Weather::Cut as u8
    }
}

fn accept(listener: &TcpListener, target: u16, state: &Arc<State>) {
    while state.weather.load(Ordering::SeqCst) != GONE {
        let Ok((client, _)) = listener.accept() else {
            std::thread::sleep(Duration::from_millis(2));
            continue;
        };
        state.attempts.fetch_add(1, Ordering::SeqCst);
        if state.ends_connections() {
            continue;
        }
        let Ok(server) = TcpStream::connect(("127.0.0.1", target)) else { continue };
        for (from, to, answers) in [(&client, &server, false), (&server, &client, true)] {
            if let (Ok(from), Ok(to)) = (from.try_clone(), to.try_clone()) {
                let state = Arc::clone(state);
                std::thread::spawn(move || {
                    state.live.fetch_add(1, Ordering::SeqCst);
                    // An end of either direction ends both; that is all an error can tell here.
                    drop(copy(&from, &to, answers, &state));
                    drop(from.shutdown(Shutdown::Both));
                    drop(to.shutdown(Shutdown::Both));
                    state.live.fetch_sub(1, Ordering::SeqCst);
                });
            }
        }
    }
}

fn copy(mut from: &TcpStream, to: &TcpStream, answers: bool, state: &Arc<State>) -> std::io::Result<()> {
    from.set_nonblocking(false)?;
    from.set_nodelay(true)?;
    to.set_nodelay(true)?;
    from.set_read_timeout(Some(GLANCE))?;
    let mut line = Line::new(to.try_clone()?, Arc::clone(state));
    let mut frames = Frames { is_kafka: state.is_kafka, rest: Vec::new() };
    let mut bytes = vec![0; 64 * 1024];
    while !state.ends_connections() {
        if state.is(Weather::Fog) {
            std::thread::sleep(GLANCE);
            continue;
        }
        match from.read(&mut bytes) {
            Ok(0) => return Ok(()),
            Ok(count) => {
                // What was read while fog came down waits until it lifts.
                while state.is(Weather::Fog) {
                    std::thread::sleep(GLANCE);
                }
                if answers && state.is(Weather::AnswersLost) {
                    state.answers_lost.fetch_add(1, Ordering::SeqCst);
                    return Ok(());
                }
                if state.ends_connections() {
                    return Ok(());
                }
                let read = bytes.get(..count).unwrap_or_default();
                if answers {
                    state.down.fetch_add(count as u64, Ordering::SeqCst);
                    line.send(read)?;
                    continue;
                }
                state.up.fetch_add(count as u64, Ordering::SeqCst);
                if !frames.is_kafka {
                    line.send(read)?;
                    continue;
                }
                for frame in frames.feed(read) {
                    if is(&frame, Request::EndTxn) && state.is(Weather::EndTxnLate) {
                        state.late.fetch_add(1, Ordering::SeqCst);
                        deliver(frame, state.target, Duration::from_millis(fastrand::u64(150..1_650)));
                        return Ok(());
                    }
                    match state.snares(&frame) {
                        None => {}
                        Some(Loss::Before) => return Ok(()),
                        Some(Loss::After) => {
                            deliver(frame, state.target, Duration::ZERO);
                            return Ok(());
                        }
                    }
                    line.send(&frame)?;
                }
                if !frames.is_kafka {
                    line.send(&std::mem::take(&mut frames.rest))?;
                }
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Over a connection of its own, when its sender does not wait for it any more.
fn deliver(frame: Vec<u8>, target: u16, after: Duration) {
    std::thread::spawn(move || -> std::io::Result<()> {
        let mut stream = TcpStream::connect(("127.0.0.1", target))?;
        std::thread::sleep(after);
        stream.write_all(&frame)?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        stream.read(&mut [0; 256]).map(|_answer| ())
    });
}

/// Behind its length, a request begins with its number.
fn is(frame: &[u8], request: Request) -> bool {
    frame.get(4..6) == Some(&(request as i16).to_be_bytes()[..])
}

/// Requests of Kafka's protocol: a length and so many bytes. What does not look like that is passed on as it is.
struct Frames {
    is_kafka: bool,
    rest: Vec<u8>,
}

impl Frames {
    fn feed(&mut self, bytes: &[u8]) -> Vec<Vec<u8>> {
        self.rest.extend_from_slice(bytes);
        let mut whole = Vec::new();
        while let Some(head) = self.rest.first_chunk::<4>() {
            let length = u32::from_be_bytes(*head) as usize + 4;
            if length > 100 << 20 {
                self.is_kafka = false;
                break;
            }
            if self.rest.len() < length {
                break;
            }
            let next = self.rest.split_off(length);
            whole.push(std::mem::replace(&mut self.rest, next));
        }
        whole
    }
}

/// Writes at once, or after the link's delay.
struct Line {
    to: TcpStream,
    state: Arc<State>,
    delayed: Option<std::sync::mpsc::Sender<(Instant, Vec<u8>)>>,
}

impl Line {
    fn new(to: TcpStream, state: Arc<State>) -> Self {
        Self { to, state, delayed: None }
    }

    fn send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        let delay = Duration::from_millis(self.state.delay_ms.load(Ordering::SeqCst));
        if delay.is_zero() && self.delayed.is_none() {
            return self.to.write_all(bytes);
        }
        if self.delayed.is_none() {
            let (sender, receiver) = std::sync::mpsc::channel::<(Instant, Vec<u8>)>();
            let mut to = self.to.try_clone()?;
            std::thread::spawn(move || {
                for (due, bytes) in receiver {
                    std::thread::sleep(due.saturating_duration_since(Instant::now()));
                    if to.write_all(&bytes).is_err() {
                        return;
                    }
                }
            });
            self.delayed = Some(sender);
        }
        let Some(sender) = &self.delayed else { return Ok(()) };
        sender.send((Instant::now() + delay, bytes.to_vec())).map_err(|_gone| ErrorKind::BrokenPipe.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A service that sends back what it gets.
    fn echo() -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                std::thread::spawn(move || {
                    let mut reader = stream.try_clone().unwrap();
                    drop(std::io::copy(&mut reader, &mut &stream));
                });
            }
        });
        port
    }

    fn ask(stream: &mut TcpStream) -> std::io::Result<usize> {
        stream.set_read_timeout(Some(Duration::from_millis(300)))?;
        stream.write_all(b"x")?;
        stream.read(&mut [0; 8])
    }

    #[test]
    fn fair_passes_fog_holds_and_a_cut_ends() {
        let proxy = Proxy::start(echo()).unwrap();
        let mut stream = TcpStream::connect(proxy.address()).unwrap();
        assert_eq!(ask(&mut stream).unwrap(), 1);
        proxy.set(Weather::Fog);
        assert!(ask(&mut stream).is_err(), "fog let a byte through");
        proxy.set(Weather::Fair);
        assert_eq!(stream.read(&mut [0; 8]).unwrap(), 1, "what the fog held was lost");
        proxy.set(Weather::Cut);
        super::super::wait_until("the end of the connection", super::super::PATIENCE, || {
            !matches!(ask(&mut stream), Ok(1))
        })
        .unwrap();
        let mut refused = TcpStream::connect(proxy.address()).unwrap();
        assert!(!matches!(ask(&mut refused), Ok(1)));
        proxy.set(Weather::Fair);
        assert_eq!(ask(&mut TcpStream::connect(proxy.address()).unwrap()).unwrap(), 1);
    }

    #[test]
    fn a_lost_answer_means_that_the_request_got_through() {
        let proxy = Proxy::start(echo()).unwrap();
        proxy.set(Weather::AnswersLost);
        let mut stream = TcpStream::connect(proxy.address()).unwrap();
        assert!(!matches!(ask(&mut stream), Ok(1)));
        assert_eq!(proxy.answers_lost(), 1);
    }
}
