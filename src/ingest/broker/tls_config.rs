//! Whom a `mqtts://` link trusts, and what it shows of itself: from PEM files to rustls's settings.
//!
//! The files are read anew at each connection, so that a renewed certificate needs no restart; `tidegate check` reads
//! them the same way. Without `tls.ca_file` the CA bundle of the system counts. A certificate in a bundle that cannot
//! be read is passed over and counted: old bundles hold some, and one of them must not cut a gateway off.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use tokio_rustls::rustls::client::Resumption;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore};

use crate::ingest::limits::MAX_PEM_BYTES;
use crate::settings::{Identity, Tls};

/// Where distributions keep the bundle: Debian, Alpine and Arch; Fedora; openSUSE; Alpine and the BSDs.
const SYSTEM_BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Names another bundle, as for OpenSSL.
const BUNDLE_VARIABLE: &str = "SSL_CERT_FILE";

/// Why the files cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsConfigError {
    /// This one.
    #[error("tls.{key}: {what}")]
    File {
        /// The key below `tls` that names it.
        key: &'static str,
        /// What is wrong, with the file's name.
        what: String,
    },
    /// There is no `tls.ca_file` and the system has no bundle.
    #[error("this machine has no CA certificates: {0}")]
    NoBundle(String),
    /// rustls says no to its own defaults.
    #[error("the TLS library: {0}")]
    Library(rustls::Error),
}

/// What is odd about files that can be used: the key below `tls`, and what it is.
pub(crate) type Oddity = (&'static str, String);

/// Can the files be used? Offline; the system's bundle is not looked at, it may be another one where the agent runs.
///
/// # Errors
/// When one cannot.
pub(crate) fn check(tls: &Tls) -> Result<Vec<Oddity>, TlsConfigError> {
    let mut odd = Vec::new();
    let roots = match &tls.ca_file {
        Some(path) => {
            let (roots, passed_over) =
                authorities(path).map_err(|what| TlsConfigError::File { key: "ca_file", what })?;
            if passed_over > 0 {
                let what = format!("{}: {passed_over} certificates in it cannot be read", path.display());
                odd.push(("ca_file", what));
            }
            roots
        }
        None => RootCertStore::empty(),
    };
    settings(roots, tls.identity.as_ref())?;
    Ok(odd)
}

/// For one connection, with how many certificates of the bundle were passed over.
pub(super) fn read(tls: &Tls) -> Result<(Arc<ClientConfig>, usize), TlsConfigError> {
    let (roots, passed_over) = match &tls.ca_file {
        Some(path) => authorities(path).map_err(|what| TlsConfigError::File { key: "ca_file", what })?,
        None => system_authorities()?,
    };
    Ok((Arc::new(settings(roots, tls.identity.as_ref())?), passed_over))
}

fn settings(roots: RootCertStore, identity: Option<&Identity>) -> Result<ClientConfig, TlsConfigError> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(TlsConfigError::Library)?
        .with_root_certificates(roots);
    let mut settings = match identity {
        None => builder.with_no_client_auth(),
        Some(files) => {
            let chain = chain(&files.cert_file).map_err(|what| TlsConfigError::File { key: "cert_file", what })?;
            let key = private_key(&files.key_file).map_err(|what| TlsConfigError::File { key: "key_file", what })?;
            builder.with_client_auth_cert(chain, key).map_err(|error| unfit(files, &error))?
        }
    };
    // The settings live as long as their connection: nothing could be resumed.
    settings.resumption = Resumption::disabled();
    Ok(settings)
}

fn unfit(files: &Identity, error: &rustls::Error) -> TlsConfigError {
    let (cert, key) = (files.cert_file.display(), files.key_file.display());
    #[expect(clippy::wildcard_enum_match_arm, reason = "rustls may add errors; all others are the key's")]
    match error {
        rustls::Error::InconsistentKeys(_) => {
            TlsConfigError::File { key: "key_file", what: format!("{key} is not the key of the certificate in {cert}") }
        }
        rustls::Error::InvalidCertificate(why) => {
            TlsConfigError::File { key: "cert_file", what: format!("{cert}: the certificate cannot be read ({why})") }
        }
        // Its text may quote the file; what it would add is seen in the kind of the key.
        _ => TlsConfigError::File {
            key: "key_file",
            what: format!(
                "{key}: this kind of key cannot be used; allowed: RSA of 2048 bits or more, ECDSA P-256 or P-384, \
                 Ed25519"
            ),
        },
    }
}

fn system_authorities() -> Result<(RootCertStore, usize), TlsConfigError> {
    if let Some(path) = std::env::var_os(BUNDLE_VARIABLE).filter(|path| !path.is_empty()) {
        return authorities(Path::new(&path))
            .map_err(|what| TlsConfigError::NoBundle(format!("{BUNDLE_VARIABLE} names {what}")));
    }
    match SYSTEM_BUNDLES.iter().map(Path::new).find(|path| path.exists()) {
        Some(path) => authorities(path).map_err(TlsConfigError::NoBundle),
        None => Err(TlsConfigError::NoBundle(format!("there is none of {}", SYSTEM_BUNDLES.join(", ")))),
    }
}

/// All certificates of a bundle that can be read, and how many cannot.
fn authorities(path: &Path) -> Result<(RootCertStore, usize), String> {
    let text = read_pem(path)?;
    let mut roots = RootCertStore::empty();
    let mut passed_over = 0_usize;
    for certificate in CertificateDer::pem_slice_iter(&text) {
        let taken = certificate.is_ok_and(|certificate| roots.add(certificate).is_ok());
        if !taken {
            passed_over += 1;
        }
    }
    match (roots.is_empty(), passed_over) {
        (false, _) => Ok((roots, passed_over)),
        (true, 0) => Err(format!("{}: there is no certificate in it{}", path.display(), instead(&text))),
        (true, _) => Err(format!("{}: none of the {passed_over} certificates in it can be read", path.display())),
    }
}

fn chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let text = read_pem(path)?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    match chain {
        Ok(chain) if chain.is_empty() => {
            Err(format!("{}: there is no certificate in it{}", path.display(), instead(&text)))
        }
        Ok(chain) => Ok(chain),
        Err(_) => Err(format!("{}: a certificate in it cannot be read", path.display())),
    }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, String> {
    let text = read_pem(path)?;
    if contains(&text, b"-----BEGIN ENCRYPTED PRIVATE KEY-----") || contains(&text, b"Proc-Type: 4,ENCRYPTED") {
        return Err(format!(
            "{0}: the key is encrypted, and a service has nobody who types the passphrase; decrypt it with \"openssl \
             pkey -in {0} -out NEW\", or keep it as a systemd credential",
            path.display()
        ));
    }
    match PrivateKeyDer::pem_slice_iter(&text).next() {
        Some(Ok(key)) => Ok(key),
        Some(Err(_)) => Err(format!("{}: the key in it cannot be read", path.display())),
        None => Err(format!("{}: there is no private key in it{}", path.display(), instead(&text))),
    }
}

/// What is in a file that does not hold what it should.
fn instead(text: &[u8]) -> &'static str {
    if contains(text, b"PRIVATE KEY-----") {
        ", but a private key"
    } else if contains(text, b"-----BEGIN CERTIFICATE-----") {
        ", but a certificate"
    } else if contains(text, b"-----BEGIN ") {
        ""
    } else {
        ": it is not PEM, which begins with \"-----BEGIN\"; \"openssl x509 -inform der\" turns DER into it"
    }
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

/// Only files: opening a pipe would wait for somebody to write.
fn read_pem(path: &Path) -> Result<Vec<u8>, String> {
    let unreadable = |error: std::io::Error| format!("{} cannot be read: {error}", path.display());
    if !std::fs::metadata(path).map_err(unreadable)?.is_file() {
        return Err(format!("{}: this is not a file", path.display()));
    }
    let mut text = Vec::new();
    let file = File::open(path).map_err(unreadable)?;
    let bytes = file.take(MAX_PEM_BYTES + 1).read_to_end(&mut text).map_err(unreadable)?;
    if u64::try_from(bytes).unwrap_or(u64::MAX) > MAX_PEM_BYTES {
        return Err(format!("{}: more than {MAX_PEM_BYTES} bytes", path.display()));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use tokio_rustls::rustls::pki_types::ServerName;

    use super::*;

    fn trusting(ca_file: PathBuf) -> Tls {
        Tls { server_name: ServerName::try_from("h").unwrap(), ca_file: Some(ca_file), identity: None }
    }

    #[test]
    fn a_certificate_that_cannot_be_read_is_passed_over_and_counted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bundle.pem");
        let good = |name: &str| rcgen::generate_simple_self_signed([name.to_owned()]).unwrap().cert.pem();
        let bad = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        let no_base64 = "-----BEGIN CERTIFICATE-----\n%%%\n-----END CERTIFICATE-----\n";
        let cut = "-----BEGIN CERTIFICATE-----\nAAAA\n";
        std::fs::write(&path, ["# ours\n", &good("a"), bad, no_base64, &good("b"), cut].concat()).unwrap();
        let (roots, passed_over) = authorities(&path).unwrap();
        assert_eq!((roots.len(), passed_over), (2, 3));
        let odd = check(&trusting(path.clone())).unwrap();
        assert!(matches!(&odd[..], [("ca_file", what)] if what.contains("3 certificates")), "{odd:?}");
        assert_eq!(read(&trusting(path)).unwrap().1, 3);
    }

    #[test]
    fn files_are_read_again_at_each_connection_and_not_beyond_their_limit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ca.pem");
        let pem = rcgen::generate_simple_self_signed(["a".to_owned()]).unwrap().cert.pem();
        assert!(read(&trusting(path.clone())).unwrap_err().to_string().contains("cannot be read"));
        std::fs::write(&path, &pem).unwrap();
        assert_eq!(read(&trusting(path.clone())).unwrap().1, 0);
        let limit = usize::try_from(MAX_PEM_BYTES).unwrap();
        std::fs::write(&path, pem.clone() + &"x".repeat(limit - pem.len())).unwrap();
        assert_eq!(read(&trusting(path.clone())).unwrap().1, 0);
        std::fs::write(&path, pem.clone() + &"x".repeat(limit + 1 - pem.len())).unwrap();
        assert!(read(&trusting(path)).unwrap_err().to_string().contains("more than 2097152 bytes"));
    }
}
