//! `tidegate --version`: which build this is, for whoever has to say what runs on a device. `-V` is the short form.

use std::sync::LazyLock;

/// Version, commit, target and the libraries inside, a line each.
#[must_use]
pub fn long() -> &'static str {
    static TEXT: LazyLock<String> = LazyLock::new(text);
    &TEXT
}

fn text() -> String {
    let (_, librdkafka) = rdkafka::util::get_rdkafka_version();
    let parts = [
        ("commit", option_env!("TIDEGATE_BUILD_COMMIT").unwrap_or("not recorded; cross/build records it")),
        ("target", option_env!("TIDEGATE_BUILD_TARGET").unwrap_or("not recorded")),
        ("librdkafka", &librdkafka),
        ("SQLite", rusqlite::version()),
        ("OpenSSL", option_env!("TIDEGATE_BUILD_OPENSSL").unwrap_or("not recorded")),
    ];
    // Linked only where MQTT speaks TLS.
    let rustls = option_env!("TIDEGATE_BUILD_RUSTLS").map(|version| ("rustls", version));
    let lines = parts.into_iter().chain(rustls).map(|(name, value)| format!("\n{name:<11} {value}"));
    [env!("CARGO_PKG_VERSION").to_owned()].into_iter().chain(lines).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_long_version_names_the_target_and_every_library() {
        let text = long();
        assert!(text.starts_with(concat!(env!("CARGO_PKG_VERSION"), "\ncommit ")), "{text}");
        for name in ["target", "librdkafka", "SQLite", "OpenSSL"] {
            let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{name}: {text}"));
            let value = line.split_once(' ').unwrap().1.trim();
            assert_ne!(value, "not recorded", "{name}");
            let dotted = value.split('.').all(|part| part.parse::<u32>().is_ok());
            assert!(dotted || name == "target", "{line}");
        }
    }
}
