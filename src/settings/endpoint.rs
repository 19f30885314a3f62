//! Host and port, with and without a scheme.

use std::net::Ipv6Addr;

/// DNS allows no longer name.
const MAX_HOST_BYTES: usize = 253;

/// Splits `host:port`, `[::1]:port`. Without a port, `default_port` is taken.
///
/// What is wrong is told without the text itself, which may hold a password.
pub(crate) fn host_port(text: &str, default_port: Option<u16>) -> Result<(String, u16), String> {
    if text.contains('@') {
        return Err("it has an \"@\"; a user name or password is not allowed in it".into());
    }
    if text.contains('/') {
        return Err("it has a \"/\"; only host and port are allowed".into());
    }
    let (host, port) = if let Some(bracketed) = text.strip_prefix('[') {
        let (host, after) = bracketed.split_once(']').ok_or("the \"[\" is not closed by \"]\"")?;
        if host.parse::<Ipv6Addr>().is_err() {
            return Err("there is no IPv6 address between \"[\" and \"]\"".into());
        }
        let port = match after {
            "" => None,
            _ => Some(after.strip_prefix(':').ok_or("after \"]\" comes \":\" and the port")?),
        };
        (host, port)
    } else {
        match text.split_once(':') {
            Some((_, port)) if port.contains(':') => {
                return Err("write an IPv6 address in brackets, as in \"[::1]:1883\"".into());
            }
            Some((host, port)) => (check_host(host)?, Some(port)),
            None => (check_host(text)?, None),
        }
    };
    let port = match (port, default_port) {
        (Some(port), _) => read_port(port)?,
        (None, Some(port)) => port,
        (None, None) => return Err("the port is missing".into()),
    };
    Ok((host.to_owned(), port))
}

fn check_host(host: &str) -> Result<&str, String> {
    if host.is_empty() {
        return Err("the host is missing".into());
    }
    if host.len() > MAX_HOST_BYTES {
        return Err(format!("a host name has at most {MAX_HOST_BYTES} characters"));
    }
    match host.chars().find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'))) {
        Some(bad) => Err(format!("{bad:?} is not allowed in a host name")),
        None => Ok(host),
    }
}

fn read_port(port: &str) -> Result<u16, String> {
    let digits = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
    let port = if digits { port.parse::<u16>().ok() } else { None };
    port.filter(|port| *port > 0).ok_or_else(|| "the port is a number from 1 to 65535".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_and_ports_are_split() {
        assert_eq!(host_port("kafka-1:9092", None), Ok(("kafka-1".into(), 9092)));
        assert_eq!(host_port("10.0.0.1", Some(1883)), Ok(("10.0.0.1".into(), 1883)));
        assert_eq!(host_port("[::1]:9092", None), Ok(("::1".into(), 9092)));
        assert_eq!(host_port("[::1]", Some(1)), Ok(("::1".into(), 1)));
    }

    #[test]
    fn what_is_wrong_is_told() {
        for (text, word) in [
            ("kafka", "port is missing"),
            ("kafka:", "1 to 65535"),
            ("kafka:0", "1 to 65535"),
            ("kafka:+1", "1 to 65535"),
            ("kafka:70000", "1 to 65535"),
            (":1", "host is missing"),
            ("a b:1", "not allowed in a host name"),
            ("::1", "brackets"),
            ("[::1", "not closed"),
            ("[x]:1", "no IPv6"),
            ("[::1]9", "comes \":\""),
            ("a:1/x", "\"/\""),
            ("user:pw@a:1", "\"@\""),
        ] {
            let why = host_port(text, None).unwrap_err();
            assert!(why.contains(word) && !why.contains("pw"), "{text}: {why}");
        }
        assert!(host_port(&format!("{}:1", "x".repeat(254)), None).is_err());
    }
}
