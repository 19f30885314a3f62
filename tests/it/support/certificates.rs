//! An authority of our own and what it signs, good and bad.

use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair};

use super::Outcome;

/// Signs.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

/// What a certificate says. The default is a server's that is good for `localhost` and 127.0.0.1.
pub struct Claims {
    /// Only here for those who look at the CN.
    pub common_name: &'static str,
    /// DNS names and addresses.
    pub alternative_names: &'static [&'static str],
    /// First and last year.
    pub years: (i32, i32),
    pub purpose: ExtendedKeyUsagePurpose,
}

/// Files.
pub struct Pair {
    pub cert: PathBuf,
    pub key: PathBuf,
}

impl Default for Claims {
    fn default() -> Self {
        Self {
            common_name: "broker",
            alternative_names: &["localhost", "127.0.0.1"],
            years: (2020, 2099),
            purpose: ExtendedKeyUsagePurpose::ServerAuth,
        }
    }
}

impl Authority {
    /// With a key of its own.
    pub fn new(name: &str) -> Outcome<Self> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        Ok(Self(CertifiedIssuer::self_signed(params, KeyPair::generate()?)?))
    }

    /// Its certificate.
    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// Signs a new certificate and writes `<name>.pem` and `<name>.key`.
    pub fn sign(&self, folder: &Path, name: &str, claims: &Claims) -> Outcome<Pair> {
        let names: Vec<String> = claims.alternative_names.iter().map(|&name| name.to_owned()).collect();
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name.push(DnType::CommonName, claims.common_name);
        params.extended_key_usages.push(claims.purpose.clone());
        params.not_before = rcgen::date_time_ymd(claims.years.0, 1, 1);
        params.not_after = rcgen::date_time_ymd(claims.years.1, 1, 1);
        let key = KeyPair::generate()?;
        let cert = params.signed_by(&key, &self.0)?;
        let pair = Pair { cert: folder.join(format!("{name}.pem")), key: folder.join(format!("{name}.key")) };
        std::fs::write(&pair.cert, cert.pem())?;
        std::fs::write(&pair.key, key.serialize_pem())?;
        private(&pair.key)?;
        Ok(pair)
    }

    /// Writes its own certificate and key as if they were a server's.
    pub fn pose(&self, folder: &Path, name: &str) -> Outcome<Pair> {
        let pair = Pair { cert: folder.join(format!("{name}.pem")), key: folder.join(format!("{name}.key")) };
        std::fs::write(&pair.cert, self.0.pem())?;
        std::fs::write(&pair.key, self.0.key().serialize_pem())?;
        private(&pair.key)?;
        Ok(pair)
    }
}

fn private(path: &Path) -> Outcome<()> {
    use std::os::unix::fs::PermissionsExt;
    Ok(std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?)
}
