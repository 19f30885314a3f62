//! `tidegate status`: asks the running agent over `[http] listen` and prints its snapshot.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::config_file::ConfigFile;
use super::exit::{EXIT_CONFIG, EXIT_FAILED};
use super::out::{self, complain};
use crate::observe::status::{ClockPart, LinkPart, Status};

/// The agent answers from memory; longer than this means that it does not answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// A clock that is off by more is worth a line.
const CLOCK_OFF_S: f64 = 300.0;

/// A snapshot of 10,000 parked topics is below this.
const LARGEST_ANSWER_BYTES: usize = 8 << 20;

/// `tidegate status`
#[derive(Debug, clap::Args)]
pub struct Options {
    #[command(flatten)]
    config: ConfigFile,
    /// Print JSON for machines
    #[arg(long)]
    json: bool,
}

/// Exit code 0 when the agent answered.
pub fn status(options: &Options) -> ExitCode {
    let address = match crate::config::load_http(&options.config.config) {
        Ok(http) => http.listen,
        Err(problems) => {
            complain(problems);
            return ExitCode::from(EXIT_CONFIG);
        }
    };
    let Some(address) = address else {
        let file = options.config.config.display();
        complain(format_args!("status: [http] listen is \"\" in {file}, so this command cannot ask the agent"));
        return ExitCode::from(EXIT_FAILED);
    };
    let answer = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(AskError::from)
        .and_then(|runtime| runtime.block_on(ask(address)));
    let json = match answer {
        Ok(json) => json,
        Err(error) => {
            complain(format_args!(
                "status: no answer from http://{address}/status: {error}\n        is the agent running with this configuration?"
            ));
            return ExitCode::from(EXIT_FAILED);
        }
    };
    let text = if options.json {
        json + "\n"
    } else {
        match serde_json::from_str::<Status>(&json) {
            Ok(status) => for_people(&status),
            Err(error) => {
                complain(format_args!("status: the answer of {address} is no status of Tidegate: {error}"));
                return ExitCode::from(EXIT_FAILED);
            }
        }
    };
    match out::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(format_args!("status: {error}"));
            ExitCode::from(EXIT_FAILED)
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum AskError {
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("{0}")]
    Http(#[from] hyper::Error),
    #[error("{0}")]
    Request(#[from] hyper::http::Error),
    #[error("{0}")]
    Body(Box<dyn std::error::Error + Send + Sync>),
    #[error("HTTP status {0}")]
    Refused(StatusCode),
    #[error("no answer within {PATIENCE:?}")]
    Silence,
}

async fn ask(address: SocketAddr) -> Result<String, AskError> {
    tokio::time::timeout(PATIENCE, get(address)).await.unwrap_or(Err(AskError::Silence))
}

async fn get(address: SocketAddr) -> Result<String, AskError> {
    let socket = TcpStream::connect(address).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(socket)).await?;
    let request = Request::get("/status").header("host", address.to_string()).body(Empty::<Bytes>::new())?;
    let exchange = async move {
        let response = sender.send_request(request).await?;
        if response.status() != StatusCode::OK {
            return Err(AskError::Refused(response.status()));
        }
        let body = Limited::new(response.into_body(), LARGEST_ANSWER_BYTES).collect().await.map_err(AskError::Body)?;
        Ok(String::from_utf8_lossy(&body.to_bytes()).into_owned())
    };
    let (answer, _connection_end) = tokio::join!(exchange, connection);
    answer
}

fn for_people(status: &Status) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    write_for_people(&mut out, status).unwrap_or_default();
    out
}

fn write_for_people(out: &mut String, status: &Status) -> std::fmt::Result {
    let books = &status.total;
    writeln!(out, "tidegate {} on {}, up {}", status.version, status.agent, seconds(status.uptime_s))?;
    writeln!(out, "  {}", status.one_line())?;
    writeln!(
        out,
        "\nbooks     received {} = delivered {} + held {} + dead letters {} + dropped {} + purged {} + lost {}   {}",
        books.received,
        books.delivered,
        books.held,
        books.dead_lettered,
        books.dropped,
        books.purged,
        books.lost,
        if status.balanced { "balanced" } else { "NOT BALANCED" }
    )?;
    for route in status.routes.iter().filter(|r| r.books.received > 0) {
        let name = if route.route.is_empty() { "(no route)" } else { &route.route };
        let b = &route.books;
        writeln!(
            out,
            "  {name}: received {}, delivered {}, held {}, dead letters {}",
            b.received, b.delivered, b.held, b.dead_lettered
        )?;
        if let Some(to) = route.gone_to.as_ref().filter(|_| b.held > 0) {
            writeln!(
                out,
                "    not in the configuration any more: the {} held go by the route that matches them now, or to \
                 {to} as before",
                b.held
            )?;
        }
    }
    let buffer = &status.buffer;
    writeln!(
        out,
        "\nbuffer    {} of {} used{}, oldest event {}",
        bytes(buffer.used_bytes),
        bytes(buffer.max_bytes),
        if buffer.full { ", FULL: the agent takes no readings" } else { "" },
        buffer.oldest_age_s.map_or("none".to_owned(), |age| format!("{age:.0} s old"))
    )?;
    if buffer.write_failures > 0 {
        writeln!(out, "          {} failed writes since start: see the log", buffer.write_failures)?;
    }
    status.links.iter().try_for_each(|link| write_link(out, link))?;
    let kafka = &status.kafka;
    let word = if kafka.connected { "connected" } else { "AWAY" };
    writeln!(out, "\nkafka     {word}, {} in flight, {} delivered since start", kafka.in_flight, kafka.delivered)?;
    if let Some(waiting) = &kafka.waiting {
        writeln!(out, "          READINGS WAIT ({}): {}", waiting.reason, waiting.why)?;
        writeln!(out, "          what to do: {}", waiting.remedy)?;
    }
    if !kafka.last_error.is_empty() {
        writeln!(out, "          last error: {}", kafka.last_error)?;
    }
    if kafka.unread > 0 {
        writeln!(
            out,
            "          {} readings in the buffer cannot be read; the agent tries them again at the next start",
            kafka.unread
        )?;
    }
    for parked in &kafka.parked {
        writeln!(out, "          topic {} is parked with {} events: {}", parked.topic, parked.held, parked.reason)?;
    }
    write_clock(out, &status.clock)
}

fn write_clock(out: &mut String, clock: &ClockPart) -> std::fmt::Result {
    let ahead_s = clock.ahead_of_kafka_s.unwrap_or(0.0);
    if clock.doubtful {
        writeln!(
            out,
            "\nclock     follows no time server, as far as the system says; the records of readings say so \
             (header tidegate-clock)"
        )?;
    }
    if ahead_s.abs() > CLOCK_OFF_S {
        let word = if ahead_s > 0.0 { "ahead of" } else { "behind" };
        let off =
            humantime::format_duration(Duration::try_from_secs_f64(ahead_s.abs().round()).unwrap_or(Duration::MAX));
        writeln!(out, "\nclock     {off} {word} Kafka's: records have Kafka's time")?;
    }
    Ok(())
}

fn write_link(out: &mut String, link: &LinkPart) -> std::fmt::Result {
    writeln!(
        out,
        "\n{:9} {}: {} connected, {} messages, {} failures",
        link.kind, link.name, link.connected, link.messages, link.failures
    )?;
    if link.dropped > 0 {
        writeln!(out, "          {} QoS 0 messages dropped, because the buffer had no room", link.dropped)?;
    }
    if !link.last_error.is_empty() {
        writeln!(out, "          last error: {}", link.last_error)?;
    }
    Ok(())
}

fn seconds(s: u64) -> String {
    humantime::format_duration(Duration::from_secs(s)).to_string()
}

/// IEC units, one decimal: for people.
fn bytes(n: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "shown with one decimal")]
    let n = n as f64;
    let (unit, scale) = match n {
        n if n >= 1_073_741_824.0 => ("GiB", 1_073_741_824.0),
        n if n >= 1_048_576.0 => ("MiB", 1_048_576.0),
        _ => ("KiB", 1024.0),
    };
    format!("{:.1} {unit}", n / scale)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::status::{Books, KafkaPart, ParkedPart, RouteBooks, WaitingPart};

    #[test]
    fn a_person_sees_what_is_wrong_first() {
        let status = Status {
            total: Books { received: 5, held: 4, ..Books::default() },
            balanced: false,
            routes: vec![RouteBooks {
                route: "old/{x}".into(),
                gone_to: Some("old.{x}".into()),
                books: Books { received: 3, held: 3, ..Books::default() },
            }],
            kafka: KafkaPart {
                unread: 7,
                waiting: Some(WaitingPart {
                    reason: "refused".into(),
                    why: "wrong password".into(),
                    remedy: "check the credentials".into(),
                    since_ms: 0,
                }),
                parked: vec![ParkedPart { topic: "plant.a".into(), reason: "missing".into(), since_ms: 0, held: 4 }],
                ..KafkaPart::default()
            },
            ..Status::default()
        };
        let text = for_people(&status);
        assert!(text.contains("NOT BALANCED"), "{text}");
        assert!(text.contains("the 3 held go by the route that matches them now, or to old.{x}"), "{text}");
        assert!(text.contains("topic plant.a is parked with 4 events: missing"), "{text}");
        assert!(text.contains("7 readings in the buffer cannot be read"), "{text}");
        assert!(text.contains("AWAY"), "{text}");
        assert!(text.contains("READINGS WAIT (refused): wrong password"), "{text}");
        assert!(text.contains("what to do: check the credentials"), "{text}");
    }
}
