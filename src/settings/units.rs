//! Sizes and times as people write them: a number and its unit. A number alone is refused, because whoever reads it
//! next cannot know what was meant.

use std::time::Duration;

/// What a text with a unit can be wrong in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum UnitError {
    /// A number alone.
    NoUnit,
    /// Nothing that can be read.
    Unreadable,
    /// More than 64 bits.
    TooLarge,
}

/// Reads `1GiB`, `64 KiB`, `1.5MB` (MB is 1,000,000 bytes, MiB is 1,048,576).
pub(crate) fn size(text: &str) -> Result<u64, UnitError> {
    let text = text.trim();
    if is_number(text) {
        return Err(UnitError::NoUnit);
    }
    if !text.starts_with(|c: char| c.is_ascii_digit()) {
        return Err(UnitError::Unreadable);
    }
    parse_size::parse_size(text).map_err(|error| {
        if error == parse_size::Error::PosOverflow { UnitError::TooLarge } else { UnitError::Unreadable }
    })
}

/// Reads `100ms`, `30s`, `1h 30m`, `7d`.
pub(crate) fn time(text: &str) -> Result<Duration, UnitError> {
    let text = text.trim();
    if is_number(text) {
        return Err(UnitError::NoUnit);
    }
    humantime::parse_duration(text).map_err(|error| {
        if error == humantime::DurationError::NumberOverflow { UnitError::TooLarge } else { UnitError::Unreadable }
    })
}

/// The shortest exact way to write a size.
pub(crate) fn show_size(bytes: u64) -> String {
    const UNITS: [(u64, &str); 4] = [(1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    show(bytes, &UNITS, "B")
}

/// The shortest exact way to write a time, to the millisecond.
pub(crate) fn show_time(time: Duration) -> String {
    const UNITS: [(u64, &str); 4] = [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1_000, "s")];
    show(u64::try_from(time.as_millis()).unwrap_or(u64::MAX), &UNITS, "ms")
}

fn show(value: u64, units: &[(u64, &str)], smallest: &str) -> String {
    for (unit, name) in units {
        if value > 0
            && value.checked_rem(*unit) == Some(0)
            && let Some(count) = value.checked_div(*unit)
        {
            return format!("{count}{name}");
        }
    }
    format!("{value}{smallest}")
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_digit() || matches!(c, '.' | '_' | '+' | '-'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_and_times_are_read_with_their_unit() {
        assert_eq!(size("1GiB"), Ok(1 << 30));
        assert_eq!(size(" 1.5 MB "), Ok(1_500_000));
        assert_eq!(size("512B"), Ok(512));
        assert_eq!(time("0ms"), Ok(Duration::ZERO));
        assert_eq!(time("1h 30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(time("7d"), Ok(Duration::from_secs(7 * 86_400)));
    }

    #[test]
    fn a_number_alone_is_refused() {
        for text in ["0", "1024", "1_000", "1.5", "-1"] {
            assert_eq!(size(text), Err(UnitError::NoUnit), "{text}");
            assert_eq!(time(text), Err(UnitError::NoUnit), "{text}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", "GiB", "1 parsec", "s", "MiB1", "-1s", "-1KiB", "1GiB 2"] {
            assert_eq!(size(text), Err(UnitError::Unreadable), "{text}");
            assert_eq!(time(text), Err(UnitError::Unreadable), "{text}");
        }
        assert_eq!(size("99999999999999EiB"), Err(UnitError::TooLarge));
        assert_eq!(time("999999999999999999999s"), Err(UnitError::TooLarge));
    }

    proptest! {
        #[test]
        fn what_is_read_has_a_unit(text in "\\PC*|[0-9.e_+-]{0,24} ?(EiB|GiB|y|weeks|months|ns|s|B|k)?") {
            if size(&text).is_ok() || time(&text).is_ok() {
                prop_assert!(text.contains(|c: char| !c.is_ascii_digit()));
            }
        }

        #[test]
        fn what_is_shown_is_read_as_the_same(value in any::<u64>(), shift in 0_u32..60, ms in 0..(1_u64 << 43)) {
            prop_assert_eq!(size(&show_size(value >> shift)), Ok(value >> shift));
            prop_assert_eq!(time(&show_time(Duration::from_millis(ms >> shift))), Ok(Duration::from_millis(ms >> shift)));
        }
    }
}
