//! The threads of a link: one for each direction of each connection.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddrV4, TcpListener, TcpStream};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::net::sockopt::set_socket_recv_buffer_size;
use rustix::net::{AddressFamily, SocketType};

use super::super::kafka_wire::{Frames, Request, is};
use super::width::{MOST_BYTES, UNBOUND_KERNEL_BYTES};
use super::{GLANCE, GONE, Loss, State, Weather, Width};

pub(super) fn accept(listener: &TcpListener, target: u16, state: &Arc<State>) {
    let mut bound = None;
    while state.weather.load(Ordering::SeqCst) != GONE {
        // Connections have it from their listener.
        let wanted = state.width_up.kernel_bytes();
        if bound != wanted {
            bound = wanted;
            set_socket_recv_buffer_size(listener, wanted.unwrap_or(UNBOUND_KERNEL_BYTES)).unwrap_or_default();
        }
        let Ok((client, _)) = listener.accept() else {
            std::thread::sleep(Duration::from_millis(2));
            continue;
        };
        state.attempts.fetch_add(1, Ordering::SeqCst);
        if state.ends_connections() {
            continue;
        }
        if state.alert.swap(false, Ordering::SeqCst) {
            // Fatal, handshake_failure. It may be gone already.
            drop((&client).write_all(&[0x15, 3, 3, 0, 2, 2, 40]));
            continue;
        }
        if let (Ok(mut standing), Ok(client)) = (state.standing.lock(), client.try_clone()) {
            standing.retain(|connection: &TcpStream| connection.peer_addr().is_ok());
            standing.push(client);
        }
        let Ok(server) = connect(target, state.width_down.kernel_bytes()) else { continue };
        let Ok(back) = Line::new(&client, Arc::clone(state)).map(|line| Arc::new(Mutex::new(line))) else { continue };
        for (from, to, answers) in [(&client, &server, false), (&server, &client, true)] {
            if let (Ok(from), Ok(to)) = (from.try_clone(), to.try_clone()) {
                let (state, back) = (Arc::clone(state), Arc::clone(&back));
                std::thread::spawn(move || {
                    state.live.fetch_add(1, Ordering::SeqCst);
                    // An end of either direction ends both; that is all an error can tell here.
                    drop(if answers { answer(&from, &back, &state) } else { ask(&from, &to, &back, &state) });
                    drop(from.shutdown(Shutdown::Both));
                    drop(to.shutdown(Shutdown::Both));
                    state.live.fetch_sub(1, Ordering::SeqCst);
                });
            }
        }
    }
}

/// To the service, through a link of that width.
fn connect(target: u16, kernel_bytes: Option<usize>) -> std::io::Result<TcpStream> {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None)?;
    if let Some(bytes) = kernel_bytes {
        set_socket_recv_buffer_size(&socket, bytes)?;
    }
    rustix::net::connect(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, target))?;
    Ok(socket.into())
}

/// Requests, to the service; what is answered in its place goes back.
fn ask(from: &TcpStream, to: &TcpStream, back: &Mutex<Line>, state: &Arc<State>) -> std::io::Result<()> {
    let mut line = Line::new(to, Arc::clone(state))?;
    let mut frames = Frames { is_kafka: state.is_kafka, rest: Vec::new() };
    each_reading(from, state, &state.width_up, |read| {
        state.up.fetch_add(read.len() as u64, Ordering::SeqCst);
        if !frames.is_kafka {
            return line.send(read);
        }
        for frame in frames.feed(read) {
            if is(&frame, Request::EndTxn) && state.is(Weather::EndTxnLate) {
                state.late.fetch_add(1, Ordering::SeqCst);
                deliver(frame, state.target, Duration::from_millis(fastrand::u64(150..1_650)));
                return Err(ErrorKind::ConnectionAborted.into());
            }
            if let Some(loss) = state.snares(&frame) {
                if loss == Loss::After {
                    deliver(frame, state.target, Duration::ZERO);
                }
                return Err(ErrorKind::ConnectionAborted.into());
            }
            if let Some((answer, stored)) = state.refuses(&frame) {
                if stored && !matches!(deliver(frame, state.target, Duration::ZERO).join(), Ok(Ok(()))) {
                    return Err(ErrorKind::ConnectionAborted.into());
                }
                back.lock().map_err(|_poisoned| ErrorKind::BrokenPipe)?.send(&answer)?;
                continue;
            }
            line.send(&frame)?;
        }
        if frames.is_kafka { Ok(()) } else { line.send(&std::mem::take(&mut frames.rest)) }
    })
}

/// Answers, to the client. Those of Kafka go as wholes, because others may go between them.
fn answer(from: &TcpStream, back: &Mutex<Line>, state: &Arc<State>) -> std::io::Result<()> {
    let mut frames = Frames { is_kafka: state.is_kafka, rest: Vec::new() };
    each_reading(from, state, &state.width_down, |read| {
        if state.is(Weather::AnswersLost) {
            state.answers_lost.fetch_add(1, Ordering::SeqCst);
            return Err(ErrorKind::ConnectionAborted.into());
        }
        state.down.fetch_add(read.len() as u64, Ordering::SeqCst);
        let mut line = back.lock().map_err(|_poisoned| ErrorKind::BrokenPipe)?;
        if !frames.is_kafka {
            return line.send(read);
        }
        for frame in frames.feed(read) {
            line.send(&frame)?;
        }
        if frames.is_kafka { Ok(()) } else { line.send(&std::mem::take(&mut frames.rest)) }
    })
}

/// Reads until the end, as the weather allows.
fn each_reading(
    mut from: &TcpStream,
    state: &State,
    width: &Width,
    mut pass: impl FnMut(&[u8]) -> std::io::Result<()>,
) -> std::io::Result<()> {
    from.set_nonblocking(false)?;
    from.set_nodelay(true)?;
    from.set_read_timeout(Some(GLANCE))?;
    let mut bytes = vec![0; MOST_BYTES];
    let mut is_narrow = false;
    while !state.ends_connections() {
        if state.is(Weather::Fog) {
            std::thread::sleep(GLANCE);
            continue;
        }
        let piece = width.piece();
        if piece.is_some() && !is_narrow {
            is_narrow = true;
            set_socket_recv_buffer_size(from, width.kernel_bytes().unwrap_or(UNBOUND_KERNEL_BYTES))?;
        }
        match from.read(bytes.get_mut(..piece.unwrap_or(MOST_BYTES)).unwrap_or_default()) {
            Ok(0) => return Ok(()),
            Ok(count) => {
                width.carry(count);
                // What was read while fog came down waits until it lifts.
                while state.is(Weather::Fog) {
                    std::thread::sleep(GLANCE);
                }
                if state.ends_connections() {
                    return Ok(());
                }
                pass(bytes.get(..count).unwrap_or_default())?;
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Over a connection of its own, when its sender does not wait for it any more.
fn deliver(frame: Vec<u8>, target: u16, after: Duration) -> JoinHandle<std::io::Result<()>> {
    std::thread::spawn(move || -> std::io::Result<()> {
        let mut stream = TcpStream::connect(("127.0.0.1", target))?;
        std::thread::sleep(after);
        stream.write_all(&frame)?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        stream.read(&mut [0; 256]).map(|_answer| ())
    })
}

/// Writes at once, or after the link's delay.
struct Line {
    to: TcpStream,
    state: Arc<State>,
    delayed: Option<std::sync::mpsc::Sender<(Instant, Vec<u8>)>>,
}

impl Line {
    fn new(to: &TcpStream, state: Arc<State>) -> std::io::Result<Self> {
        to.set_nodelay(true)?;
        Ok(Self { to: to.try_clone()?, state, delayed: None })
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
