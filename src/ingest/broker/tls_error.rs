//! Why TLS with a broker came to nothing, in words that a technician can act on.
//!
//! rustls's and the broker's codes become ours here and nowhere else. All of it is tried again with back-off: a
//! certificate is renewed, a clock is set, a file is mended. The text must be the same at each try, so that it is said
//! once: no time of day in it.

use std::io;
use std::time::{Duration, UNIX_EPOCH};

use tokio_rustls::rustls::pki_types::UnixTime;
use tokio_rustls::rustls::{AlertDescription, CertificateError, Error};

/// No TLS, and why.
#[derive(Debug, thiserror::Error)]
#[error("TLS: {text}")]
pub(in crate::ingest) struct TlsError {
    text: String,
    /// What a person can do; `None` where waiting helps.
    pub(super) remedy: Option<&'static str>,
}

impl TlsError {
    /// When it was TLS that failed, and not the connection below it. `host` is what the certificate must be made out to.
    pub(super) fn of(error: &io::Error, host: &str) -> Option<Self> {
        let error = error.get_ref()?.downcast_ref::<Error>()?;
        Some(Self::of_tls(error, host))
    }

    /// The broker closed the connection in the middle of the handshake. It may be the link, so nobody is called; when
    /// it goes on, it is the wrong port.
    pub(super) fn closed() -> Self {
        let text = "the broker closed the connection in the TLS handshake: if it does so each time, this is not its port \
             for TLS";
        Self { text: text.into(), remedy: None }
    }

    fn of_tls(error: &Error, host: &str) -> Self {
        #[expect(clippy::wildcard_enum_match_arm, reason = "rustls may add errors; the rest is told in its own words")]
        match error {
            Error::InvalidCertificate(why) => Self::of_certificate(why, host),
            Error::AlertReceived(alert) => Self::of_alert(*alert),
            Error::InvalidMessage(_) => Self {
                text: "the server at this port does not speak TLS".into(),
                remedy: Some(
                    "check the port in url (the usual port for MQTT over TLS is 8883), or write mqtt:// for \
                     a broker without TLS",
                ),
            },
            Error::PeerIncompatible(why) => Self {
                text: format!("the broker and this gateway have no TLS version or cipher in common ({why:?})"),
                remedy: Some("the broker must offer TLS 1.2 or 1.3 with AES-GCM or ChaCha20 and ECDHE"),
            },
            // The clock stands before 1970.
            Error::FailedToGetCurrentTime => Self { text: clock_not_set(), remedy: None },
            other => Self { text: other.to_string(), remedy: None },
        }
    }

    /// The broker's certificate is not taken.
    fn of_certificate(why: &CertificateError, host: &str) -> Self {
        #[expect(clippy::wildcard_enum_match_arm, reason = "rustls may add errors; the rest is told in its own words")]
        let (text, remedy) = match why {
            CertificateError::UnknownIssuer | CertificateError::BadSignature => (
                "this gateway does not trust the authority that signed the broker's certificate".into(),
                Some(
                    "tls.ca_file must hold the certificate of the authority that signed the broker's, and the broker \
                     must send the intermediate certificates",
                ),
            ),
            CertificateError::NotValidForNameContext { presented, .. } if presented.is_empty() => (
                format!("the broker's certificate is not made out to {host}: it has no subjectAltName"),
                Some("make a certificate with a subjectAltName; a name that stands only in the CN does not count"),
            ),
            CertificateError::NotValidForNameContext { presented, .. } => (
                format!("the broker's certificate is not made out to {host} but to {}", few(presented)),
                Some("write that name in url, or make a certificate with the name in url as subjectAltName"),
            ),
            CertificateError::ExpiredContext { time, not_after } => (
                format!(
                    "the broker's certificate expired on {}, and by this machine's clock today is {}",
                    day(*not_after),
                    day(*time)
                ),
                Some("renew the broker's certificate, or set this machine's clock if it is wrong"),
            ),
            // A gateway without a clock battery, before NTP has answered: waiting helps.
            CertificateError::NotValidYetContext { time, not_before } => (
                format!(
                    "the broker's certificate is not valid before {}, and by this machine's clock today is {}: the \
                     clock is not set, or the certificate is for later",
                    day(*not_before),
                    day(*time)
                ),
                None,
            ),
            CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => (
                "the broker's certificate is not for servers".into(),
                Some("make a certificate with the extended key usage serverAuth, or without that extension"),
            ),
            CertificateError::Other(other) if other.0.to_string() == "CaUsedAsEndEntity" => (
                "the broker uses the certificate of an authority as its own".into(),
                Some(
                    "make a certificate for the broker that the authority has signed (CA:FALSE), and put the \
                     authority's into tls.ca_file",
                ),
            ),
            other => (format!("this gateway does not accept the broker's certificate: {other}"), None),
        };
        Self { text, remedy }
    }

    /// The broker does not take us.
    fn of_alert(alert: AlertDescription) -> Self {
        const OURS: &str = "check tls.cert_file: an authority that the broker knows must have signed it, it must be \
             valid now, and it must be for clients";
        #[expect(clippy::wildcard_enum_match_arm, reason = "of the others the name says all there is")]
        let remedy = match alert {
            AlertDescription::CertificateRequired | AlertDescription::HandshakeFailure => {
                Some("the broker may want a certificate of this gateway: set tls.cert_file and tls.key_file")
            }
            AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied
            | AlertDescription::DecryptError => Some(OURS),
            AlertDescription::ProtocolVersion | AlertDescription::InsufficientSecurity => {
                Some("the broker must offer TLS 1.2 or 1.3 with AES-GCM or ChaCha20 and ECDHE")
            }
            AlertDescription::UnrecognisedName => Some("the broker does not know the host name in url"),
            _ => None,
        };
        Self { text: format!("the broker refuses the TLS connection: {alert:?}"), remedy }
    }
}

fn clock_not_set() -> String {
    "this machine's clock is not set: its time is before 1970".into()
}

/// A certificate may bear hundreds of names.
fn few(names: &[String]) -> String {
    const SHOWN: usize = 4;
    let shown: Vec<&str> = names.iter().take(SHOWN).map(|name| bare(name)).collect();
    let more = if names.len() > SHOWN { " …" } else { "" };
    format!("{}{more}", shown.join(", "))
}

/// rustls gives `DnsName("a.example")` and `IpAddress(10.0.0.1)`.
fn bare(name: &str) -> &str {
    let within = |kind: &str, end: &str| name.strip_prefix(kind)?.strip_suffix(end);
    within("DnsName(\"", "\")").or_else(|| within("IpAddress(", ")")).unwrap_or(name)
}

/// The date alone: a text with the time of day would be another one at each try.
fn day(time: UnixTime) -> String {
    /// The end of the year 9999, behind which there is no text for it.
    const LAST: u64 = 253_402_300_799;
    let time = UNIX_EPOCH.checked_add(Duration::from_secs(time.as_secs().min(LAST))).unwrap_or(UNIX_EPOCH);
    humantime::format_rfc3339_seconds(time).to_string().chars().take(10).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_a_certificate_are_shown_bare_and_only_some_of_them() {
        let names = ["DnsName(\"a.example\")", "IpAddress(10.0.0.1)", "Uri", "DnsName(\"b\")", "DnsName(\"c\")"];
        assert_eq!(few(&names.map(str::to_owned)), "a.example, 10.0.0.1, Uri, b …");
        assert_eq!(few(&["DnsName(\"a\")".to_owned()]), "a");
    }

    #[test]
    fn any_time_of_a_certificate_has_a_date() {
        let at = |seconds| day(UnixTime::since_unix_epoch(Duration::from_secs(seconds)));
        assert_eq!((&*at(0), &*at(1_577_836_800)), ("1970-01-01", "2020-01-01"));
        assert_eq!((&*at(253_402_300_800), &*at(u64::MAX)), ("9999-12-31", "9999-12-31"));
    }

    #[test]
    fn a_text_is_the_same_at_each_try_of_a_day() {
        let tried = |seconds| {
            let time = |seconds| UnixTime::since_unix_epoch(Duration::from_secs(seconds));
            let why = CertificateError::ExpiredContext { time: time(seconds), not_after: time(0) };
            let error = io::Error::other(Error::InvalidCertificate(why));
            TlsError::of(&error, "h").unwrap().to_string()
        };
        assert_eq!(tried(100_000), tried(100_030));
        assert_ne!(tried(100_000), tried(200_000));
        assert!(TlsError::of(&io::Error::from(io::ErrorKind::BrokenPipe), "h").is_none(), "not TLS's fault");
    }
}
