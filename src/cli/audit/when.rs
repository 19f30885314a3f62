//! `--from` and `--to`: a moment, or so long ago.

use std::time::{Duration, SystemTime};

/// Milliseconds since 1970.
pub(super) fn parse(text: &str) -> Result<i64, String> {
    parse_at(text, SystemTime::now())
}

fn parse_at(text: &str, now: SystemTime) -> Result<i64, String> {
    let moment = if let Ok(moment) = humantime::parse_rfc3339_weak(text) {
        moment
    } else {
        let ago: Duration = humantime::parse_duration(text).map_err(|_neither| {
            "a time looks like 2026-01-31T12:00:00Z (UTC), or 2h, 3days for so long ago".to_owned()
        })?;
        now.checked_sub(ago).ok_or("that is too long ago")?
    };
    let since = moment.duration_since(SystemTime::UNIX_EPOCH).map_err(|_before| "that is before 1970")?;
    i64::try_from(since.as_millis()).map_err(|_beyond| "that is too far away".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_and_so_long_ago_are_both_times() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        assert_eq!(parse_at("1970-01-02T00:00:00Z", now), Ok(86_400_000));
        assert_eq!(parse_at("1970-01-02 00:00:00", now), Ok(86_400_000));
        assert_eq!(parse_at("2h", now), Ok(1_000_000_000 - 7_200_000));
        assert_eq!(parse_at("1day 1s", now), Ok(1_000_000_000 - 86_401_000));
        for wrong in ["", "yesterday", "-2h", "12:00", "100years"] {
            assert!(parse_at(wrong, now).is_err(), "{wrong}");
        }
    }
}
