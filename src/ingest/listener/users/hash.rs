//! One stored password: the three forms that `mosquitto_passwd` has written over the years.
//!
//! * `$6$salt$hash`: SHA-512 of password and salt (`-H sha512`, mosquitto 1.x);
//! * `$7$iterations$salt$hash`: PBKDF2 with HMAC-SHA-512 (the default of mosquitto 2.0);
//! * `$argon2id$v=19$m=…,t=…,p=…$salt$hash`: the default of mosquitto 2.1.
//!
//! Salt and hash are base64, padded in the first two and unpadded in the last. Parameters that would let one line of
//! the file occupy the device are refused when the file is read.

use std::fmt;

use argon2::{Algorithm, Argon2, Params, Version};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use sha2::{Digest, Sha512};
use subtle::ConstantTimeEq;

/// SHA-512 makes 64 bytes, and `mosquitto_passwd` stores all of them.
const SHA512_BYTES: usize = 64;

/// mosquitto writes 12 to 64 bytes.
const MAX_SALT_BYTES: usize = 256;

/// mosquitto 2.0 uses 101 rounds, 2.1 uses 1,000. A million take about two seconds on a Raspberry Pi, which is as
/// long as a sensor should wait for its CONNACK.
const MAX_PBKDF2_ROUNDS: u32 = 1_000_000;

/// The memory of one check, in KiB: it is taken for the time of the check, one at a time. mosquitto 2.1 uses 46 MiB,
/// argon2's own recommendation is 64 MiB; devices have 256 MB.
const MAX_ARGON2_KIB: u32 = 64 * 1024;

/// Passes over that memory. mosquitto 2.1 uses 1.
const MAX_ARGON2_PASSES: u32 = 16;

/// What a password is checked against.
#[derive(Clone)]
pub(super) enum Stored {
    Sha512 { salt: Vec<u8>, hash: [u8; SHA512_BYTES] },
    Pbkdf2 { rounds: u32, salt: Vec<u8>, hash: [u8; SHA512_BYTES] },
    Argon2id { argon2: Argon2<'static>, salt: Vec<u8>, hash: Vec<u8> },
}

impl Stored {
    /// Reads what stands behind `user:`.
    ///
    /// # Errors
    /// What is wrong with it, without a word of the hash itself.
    pub(super) fn parse(text: &str) -> Result<Self, &'static str> {
        let Some(text) = text.strip_prefix('$') else {
            return Err("the password is not hashed; `mosquitto_passwd -U FILE` hashes a file of plain passwords");
        };
        let parts: Vec<&str> = text.split('$').collect();
        match parts.as_slice() {
            ["6", salt, hash] => Ok(Self::Sha512 { salt: padded_salt(salt)?, hash: sha512_hash(hash)? }),
            ["7", rounds, salt, hash] => {
                let rounds = rounds.parse().map_or(0, |rounds: u32| rounds);
                if !(1..=MAX_PBKDF2_ROUNDS).contains(&rounds) {
                    return Err("the number of iterations behind `$7$` is not between 1 and 1000000");
                }
                Ok(Self::Pbkdf2 { rounds, salt: padded_salt(salt)?, hash: sha512_hash(hash)? })
            }
            ["argon2id", "v=19", costs, salt, hash] => Self::parse_argon2id(costs, salt, hash),
            _ => Err("the hash is of an unknown form; allowed: `$6$`, `$7$` and `$argon2id$v=19$`"),
        }
    }

    fn parse_argon2id(costs: &str, salt: &str, hash: &str) -> Result<Self, &'static str> {
        const COSTS: &str = "the costs of `$argon2id$` are not `m=…,t=…,p=…` with m at most 65536 and t at most 16";
        let mut numbers = ["m=", "t=", "p="]
            .into_iter()
            .zip(costs.split(','))
            .map(|(name, cost)| cost.strip_prefix(name).and_then(|number| number.parse::<u32>().ok()));
        let (Some(Some(kib)), Some(Some(passes)), Some(Some(lanes)), 3) =
            (numbers.next(), numbers.next(), numbers.next(), costs.split(',').count())
        else {
            return Err(COSTS);
        };
        if kib > MAX_ARGON2_KIB || passes > MAX_ARGON2_PASSES {
            return Err(COSTS);
        }
        let Ok(salt) = STANDARD_NO_PAD.decode(salt) else { return Err("the salt of `$argon2id$` is not base64") };
        let Ok(hash) = STANDARD_NO_PAD.decode(hash) else { return Err("the hash of `$argon2id$` is not base64") };
        if salt.len() > MAX_SALT_BYTES || salt.len() < argon2::MIN_SALT_LEN {
            return Err("the salt of `$argon2id$` is too short or too long");
        }
        if !(16..=128).contains(&hash.len()) {
            return Err("the hash of `$argon2id$` is not 16 to 128 bytes long");
        }
        let Ok(params) = Params::new(kib, passes, lanes, Some(hash.len())) else { return Err(COSTS) };
        Ok(Self::Argon2id { argon2: Argon2::new(Algorithm::Argon2id, Version::V0x13, params), salt, hash })
    }

    /// Takes as long for a wrong password as for the right one.
    pub(super) fn verify(&self, password: &[u8]) -> bool {
        match self {
            Self::Sha512 { salt, hash } => {
                let made = Sha512::new().chain_update(password).chain_update(salt).finalize();
                made.as_slice().ct_eq(hash).into()
            }
            Self::Pbkdf2 { rounds, salt, hash } => {
                let mut made = [0; SHA512_BYTES];
                pbkdf2::pbkdf2_hmac::<Sha512>(password, salt, *rounds, &mut made);
                made.ct_eq(hash).into()
            }
            Self::Argon2id { argon2, salt, hash } => {
                let mut made = vec![0; hash.len()];
                argon2.hash_password_into(password, salt, &mut made).is_ok() && bool::from(made.ct_eq(hash))
            }
        }
    }
}

fn padded_salt(text: &str) -> Result<Vec<u8>, &'static str> {
    match STANDARD.decode(text) {
        Ok(salt) if (1..=MAX_SALT_BYTES).contains(&salt.len()) => Ok(salt),
        Ok(_) => Err("the salt is empty or too long"),
        Err(_) => Err("the salt is not base64"),
    }
}

fn sha512_hash(text: &str) -> Result<[u8; SHA512_BYTES], &'static str> {
    let Ok(hash) = STANDARD.decode(text) else { return Err("the hash is not base64") };
    <[u8; SHA512_BYTES]>::try_from(hash.as_slice()).or(Err("the hash is not 64 bytes long"))
}

/// A hash can be attacked offline: it is a secret too.
impl fmt::Debug for Stored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sha512 { .. } => "<sha512>",
            Self::Pbkdf2 { .. } => "<sha512-pbkdf2>",
            Self::Argon2id { .. } => "<argon2id>",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Written by `mosquitto_passwd` 2.0.11 with `-H sha512`.
    const SHA512: &str =
        "$6$VoIVjJ7YW6Xxw+3S$KgUzANs08B7eoWzlph5MQ0ynQhQ2ltD0PSb/zxXuZ7cvJjW6+RMAMzfTE8zzcTivYMqenciaT0C/B9hSEc5g1Q==";
    /// Written by `mosquitto_passwd` 2.0.11.
    const PBKDF2: &str = "$7$101$qmj1CcK2y1gDHJZC$Wa0MgQxf+gBrPZKAhyiBELu3vz3I2YEmFsSIG1uTfREmXIs+/vUHpXUPx1oZtdY7R4lgoDn8j1OhmAbxrLqkAg==";
    const PBKDF2_EMPTY: &str = "$7$101$f6ITTSIln4iaNpxM$OD+8SWVtMysPplXYPhmu2pitAVmco57uwRE9DvPgGkUq8Sb324C243pPgOswg1xsYZqUcGaJ3ln27tWWEtm6EA==";
    /// Written by the `argon2` command of the reference implementation, which mosquitto 2.1 links.
    const ARGON2ID: &str = "$argon2id$v=19$m=256,t=2,p=1$MDEyMzQ1Njc4OWFiY2RlZg$HG0cavZQOTUk1VuWyqTps8BkZ+5p9NF/muXNra4ybgphts6z0/9Kv/9NFkwSTf2NMjmRO4aM/b2x91LXa3HudQ";

    #[test]
    fn passwords_written_by_the_real_tools_are_verified() {
        for (stored, password) in
            [(SHA512, "pa:ss wörd"), (PBKDF2, "hunter2"), (PBKDF2_EMPTY, ""), (ARGON2ID, "correct horse")]
        {
            let parsed = Stored::parse(stored).unwrap();
            assert!(parsed.verify(password.as_bytes()), "{stored}");
            for wrong in ["x", "hunter22", "pa:ss wörd ", "Correct horse"] {
                assert!(!parsed.verify(wrong.as_bytes()), "{stored} takes {wrong:?}");
            }
        }
    }

    #[test]
    fn a_single_changed_bit_of_the_hash_refuses_the_password() {
        let Stored::Pbkdf2 { rounds, salt, mut hash } = Stored::parse(PBKDF2).unwrap() else { panic!() };
        hash[63] ^= 1;
        assert!(!Stored::Pbkdf2 { rounds, salt, hash }.verify(b"hunter2"));
    }

    #[test]
    fn what_is_no_hash_is_refused_in_words() {
        for (text, word) in [
            ("hunter2", "-U FILE"),
            ("", "-U FILE"),
            ("$5$c2FsdA==$aGFzaA==", "unknown form"),
            ("$6$c2FsdA==", "unknown form"),
            ("$6$%$aGFzaA==", "salt is not base64"),
            ("$6$$aGFzaA==", "salt is empty"),
            ("$6$c2FsdA==$aGFzaA==", "64 bytes"),
            ("$7$0$c2FsdA==$aGFzaA==", "iterations"),
            ("$7$-1$c2FsdA==$aGFzaA==", "iterations"),
            ("$7$1000001$c2FsdA==$aGFzaA==", "iterations"),
            ("$7$99999999999$c2FsdA==$aGFzaA==", "iterations"),
            ("$argon2id$v=19$m=65537,t=1,p=1$MDEyMzQ1Njc4OWFiY2RlZg$MDEyMzQ1Njc4OWFiY2RlZg", "costs"),
            ("$argon2id$v=19$m=256,t=17,p=1$MDEyMzQ1Njc4OWFiY2RlZg$MDEyMzQ1Njc4OWFiY2RlZg", "costs"),
            ("$argon2id$v=19$m=256,t=1$MDEyMzQ1Njc4OWFiY2RlZg$MDEyMzQ1Njc4OWFiY2RlZg", "costs"),
            ("$argon2id$v=19$m=256,t=1,p=1,x=1$MDEyMzQ1Njc4OWFiY2RlZg$MDEyMzQ1Njc4OWFiY2RlZg", "costs"),
            ("$argon2id$v=19$m=256,t=1,p=4294967295$MDEyMzQ1Njc4OWFiY2RlZg$MDEyMzQ1Njc4OWFiY2RlZg", "costs"),
            ("$argon2id$v=16$m=256,t=1,p=1$MDEyMzQ1Njc4OWFiY2RlZg$MDEyMzQ1Njc4OWFiY2RlZg", "unknown form"),
            ("$argon2id$v=19$m=256,t=1,p=1$MDEy$MDEyMzQ1Njc4OWFiY2RlZg", "salt"),
            ("$argon2id$v=19$m=256,t=1,p=1$MDEyMzQ1Njc4OWFiY2RlZg$MDEy", "hash"),
        ] {
            let error = Stored::parse(text).unwrap_err();
            assert!(error.contains(word), "{text}: {error}");
        }
    }

    #[test]
    fn debug_output_keeps_the_hash_secret() {
        for text in [SHA512, PBKDF2, ARGON2ID] {
            let shown = format!("{:?}", Stored::parse(text).unwrap());
            assert!(shown.starts_with('<') && shown.len() < 20, "{shown}");
        }
    }
}
