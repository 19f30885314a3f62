//! GET, as much of it as the tests need.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use super::{Outcome, Trouble};

/// Status code and body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// 200, 503 …
    pub status: u16,
    /// Header lines, as they came.
    pub head: String,
    /// The body.
    pub body: String,
}

/// `GET path` from 127.0.0.1.
pub fn get(port: u16, path: &str) -> Outcome<Answer> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    parse(&String::from_utf8_lossy(&bytes)).ok_or_else(|| Trouble::new(format!("GET {path}: not HTTP: {bytes:?}")))
}

fn parse(text: &str) -> Option<Answer> {
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    let body = if chunked { unchunk(body)? } else { body.to_owned() };
    Some(Answer { status, head: head.to_owned(), body })
}

fn unchunk(mut rest: &str) -> Option<String> {
    let mut body = String::new();
    loop {
        let (size, tail) = rest.split_once("\r\n")?;
        let size = usize::from_str_radix(size.trim(), 16).ok()?;
        if size == 0 {
            return Some(body);
        }
        body.push_str(tail.get(..size)?);
        rest = tail.get(size + 2..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_and_chunked_bodies_are_read() {
        let plain = parse("HTTP/1.1 503 Service Unavailable\r\nX: y\r\n\r\nno").unwrap();
        assert_eq!((plain.status, plain.body.as_str()), (503, "no"));
        let chunked =
            parse("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n").unwrap();
        assert_eq!(chunked.body, "abcde");
    }
}
