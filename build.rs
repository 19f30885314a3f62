//! What `tidegate --version` says beyond the version: commit, target, and the versions of what is linked and cannot be
//! asked at run time without unsafe code.

use std::env;
use std::fs;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=Cargo.lock");
    // Set by cross/build. Asking git here would compile the crate anew after every commit.
    println!("cargo::rerun-if-env-changed=TIDEGATE_COMMIT");
    say("COMMIT", env::var("TIDEGATE_COMMIT").ok().filter(|commit| !commit.is_empty()));
    say("TARGET", env::var("TARGET").ok());
    let lock = fs::read_to_string("Cargo.lock").unwrap_or_default();
    // `300.6.1+3.6.3` is OpenSSL 3.6.3.
    let openssl = locked(&lock, "openssl-src").and_then(|version| version.split_once('+')).map(|(_, openssl)| openssl);
    say("OPENSSL", openssl.map(str::to_owned));
    say("RUSTLS", locked(&lock, "rustls").map(str::to_owned));
}

/// Read by `option_env!`, so that what is not known is `None`, not a made-up word.
fn say(what: &str, value: Option<String>) {
    if let Some(value) = value {
        println!("cargo::rustc-env=TIDEGATE_BUILD_{what}={value}");
    }
}

fn locked<'a>(lock: &'a str, package: &str) -> Option<&'a str> {
    let entry = lock.split("[[package]]").find(|entry| entry.contains(&format!("\nname = \"{package}\"\n")))?;
    entry.lines().find_map(|line| line.strip_prefix("version = \"")?.strip_suffix('"'))
}
