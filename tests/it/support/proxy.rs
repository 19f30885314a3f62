//! A link that can be cut, held, narrowed and mended, for any TCP service.

mod copying;
mod width;

use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use self::copying::accept;
use self::width::Width;
use super::kafka_wire::{Batch, Request, is};
use super::{Outcome, Trouble, process::free_port};

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

/// When a request loses its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// Kafka never sees it.
    Before,
    /// Kafka does it, and the answer is lost.
    After,
}

/// Batches that Kafka is made to refuse: the link answers in its place.
#[derive(Debug, Clone)]
pub struct Refusal {
    pub topic: String,
    /// The code of the answer.
    pub error: i16,
    /// So many of them; others pass.
    pub times: u64,
    /// Only with so many records.
    pub least_records: usize,
    /// Only with these bytes in it, when they are not empty.
    pub holding: Vec<u8>,
    /// Kafka stores it all the same: what it said got lost, and this is what a broker makes of that.
    pub stored: bool,
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
    refusal: Mutex<Option<Refusal>>,
    /// Batches that were refused.
    refused: AtomicU64,
    /// A batch that could not be understood, so that none was refused.
    puzzle: Mutex<Option<String>>,
    /// How long each byte takes in each direction.
    delay_ms: AtomicU64,
    /// How wide it is towards the service, and towards its clients.
    width_up: Width,
    width_down: Width,
    /// Bytes that clients have sent, and been sent.
    up: AtomicU64,
    down: AtomicU64,
    target: u16,
    is_kafka: bool,
    /// The next connection is refused with a TLS alert.
    alert: AtomicBool,
    /// Connections that stand, oldest first.
    standing: Mutex<Vec<TcpStream>>,
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
            refusal: Mutex::new(None),
            refused: AtomicU64::new(0),
            puzzle: Mutex::new(None),
            delay_ms: AtomicU64::new(0),
            width_up: Width::default(),
            width_down: Width::default(),
            up: AtomicU64::new(0),
            down: AtomicU64::new(0),
            target,
            is_kafka,
            alert: AtomicBool::new(false),
            standing: Mutex::new(Vec::new()),
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

    /// From now on the link takes so many bits a second in each direction, of all connections together; 0: no bound.
    pub fn narrow(&self, bits_a_second: u64) {
        self.narrow_up(bits_a_second);
        self.narrow_down(bits_a_second);
    }

    /// The same, towards the service only.
    pub fn narrow_up(&self, bits_a_second: u64) {
        self.state.width_up.set(bits_a_second);
    }

    /// The same, towards the clients only.
    pub fn narrow_down(&self, bits_a_second: u64) {
        self.state.width_down.set(bits_a_second);
    }

    /// From now on every byte takes so long in each direction: half a round trip.
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

    /// From now on such batches are refused; `None`: no more.
    pub fn refuse(&self, refusal: Option<Refusal>) -> Outcome<()> {
        *self.state.refusal.lock()? = refusal;
        Ok(())
    }

    /// Batches refused until now. An error when one could not be understood.
    pub fn refused(&self) -> Outcome<u64> {
        match self.state.puzzle.lock()?.take() {
            Some(puzzle) => Err(Trouble(format!("the link does not understand a batch: {puzzle}"))),
            None => Ok(self.state.refused.load(Ordering::SeqCst)),
        }
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

    /// The next connection, and that one only, is answered with a TLS alert (`handshake_failure`) and closed.
    pub fn alert(&self) {
        self.state.alert.store(true, Ordering::SeqCst);
    }

    /// Has it been?
    pub fn alerted(&self) -> bool {
        !self.state.alert.load(Ordering::SeqCst)
    }

    /// Cuts the oldest connection; all others stand.
    pub fn cut_oldest(&self) -> Outcome<()> {
        let mut standing = self.state.standing.lock()?;
        standing.retain(|connection| connection.peer_addr().is_ok());
        if !standing.is_empty() {
            standing.remove(0).shutdown(Shutdown::Both)?;
        }
        Ok(())
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

    /// The answer to a batch that is to be refused, and whether it is stored all the same.
    fn refuses(&self, frame: &[u8]) -> Option<(Vec<u8>, bool)> {
        let mut waiting = self.refusal.lock().ok()?;
        let refusal = waiting.as_mut()?;
        if !is(frame, Request::Produce) {
            return None;
        }
        let batch = match Batch::read(frame) {
            Ok(batch) => batch,
            Err(puzzle) => {
                self.puzzle.lock().ok()?.replace(puzzle);
                return None;
            }
        };
        let fits = batch.topic == refusal.topic
            && batch.count() >= refusal.least_records
            && batch.holds(&refusal.holding)
            && refusal.times > 0;
        if !fits {
            return None;
        }
        refusal.times -= 1;
        self.refused.fetch_add(1, Ordering::SeqCst);
        Some((batch.refused(refusal.error), refusal.stored))
    }

    fn ends_connections(&self) -> bool {
        let weather = self.weather.load(Ordering::SeqCst);
        weather == GONE || weather == Weather::Cut as u8
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;

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
