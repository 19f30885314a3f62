//! MQTT text inside a Kafka topic name, and back.
//!
//! Kafka allows `a-z A-Z 0-9 . _ -` and 249 characters; MQTT allows nearly everything. The rule, level by level:
//!
//! | in the MQTT topic | in the Kafka topic |
//! |---|---|
//! | `a-z A-Z 0-9 -` | itself |
//! | `_` | `__` |
//! | any other byte of the UTF-8 text, `.` included | `_` and two lower-case hexadecimal digits: `_2e`, `_20` |
//! | an empty level | `_-` |
//! | the `/` between two levels of `{rest}` and `{topic}` | `.` |
//!
//! An escaped level is never empty and holds no `.`, so a `.` in a template always separates, and two different levels
//! never look alike: what the tests read back is what [`escape_topic`] was given, byte for byte.
//!
//! Kafka itself refuses to create a topic that differs from an existing one only in `.` against `_` (their metric names
//! would be the same). Escaped names can meet that only when a level begins or ends with `_`; the second topic is then
//! parked with Kafka's own words, and never mixed with the first.

/// Puts one level behind what `out` holds.
pub(crate) fn escape_level(level: &str, out: &mut String) {
    if level.is_empty() {
        out.push_str("_-");
    }
    for byte in level.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' => out.push(char::from(byte)),
            b'_' => out.push_str("__"),
            _ => {
                out.push('_');
                out.push(hex_digit(byte >> 4));
                out.push(hex_digit(byte & 0xf));
            }
        }
    }
}

/// Puts a whole MQTT topic, or a tail of one, behind what `out` holds.
pub(crate) fn escape_topic(topic: &str, out: &mut String) {
    for (index, level) in topic.split('/').enumerate() {
        if index > 0 {
            out.push('.');
        }
        escape_level(level, out);
    }
}

fn hex_digit(nibble: u8) -> char {
    char::from_digit(u32::from(nibble), 16).unwrap_or('0')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The level that `escape_level` wrote so; `None` when it never writes this.
    fn unescape_level(escaped: &str) -> Option<String> {
        if escaped == "_-" {
            return Some(String::new());
        }
        if escaped.is_empty() {
            return None;
        }
        let mut bytes = escaped.bytes();
        let mut level = Vec::with_capacity(escaped.len());
        while let Some(byte) = bytes.next() {
            level.push(match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' => byte,
                b'_' => match bytes.next()? {
                    b'_' => b'_',
                    high => escaped_byte(high, bytes.next()?)?,
                },
                _ => return None,
            });
        }
        String::from_utf8(level).ok()
    }

    /// The MQTT topic that `escape_topic` wrote so; `None` when it never writes this.
    fn unescape_topic(escaped: &str) -> Option<String> {
        let levels: Option<Vec<String>> = escaped.split('.').map(unescape_level).collect();
        levels.map(|levels| levels.join("/"))
    }

    /// The byte of two digits, unless it is one that is written otherwise.
    fn escaped_byte(high: u8, low: u8) -> Option<u8> {
        let digit = |byte: u8| match byte {
            b'0'..=b'9' => byte.checked_sub(b'0'),
            b'a'..=b'f' => byte.checked_sub(b'a').and_then(|b| b.checked_add(10)),
            _ => None,
        };
        let byte = (digit(high)? << 4) | digit(low)?;
        (!byte.is_ascii_alphanumeric() && !b"-_/".contains(&byte)).then_some(byte)
    }

    fn escaped(topic: &str) -> String {
        let mut out = String::new();
        escape_topic(topic, &mut out);
        out
    }

    #[test]
    fn ordinary_names_stay_as_they_are() {
        assert_eq!(escaped("sensors/press-07/Temp1"), "sensors.press-07.Temp1");
    }

    #[test]
    fn forbidden_characters_are_written_as_bytes() {
        assert_eq!(escaped("line_2/oil temp/v1.5/Öl"), "line__2.oil_20temp.v1_2e5._c3_96l");
    }

    #[test]
    fn empty_levels_are_seen() {
        assert_eq!(escaped("/a//"), "_-.a._-._-");
        assert_eq!(unescape_topic("_-.a._-._-").as_deref(), Some("/a//"));
    }

    #[test]
    fn text_that_is_never_written_is_not_read() {
        for never in ["", "a..b", "_", "_2", "_2E", "_41", "_5f", "_2f", "_-a", "a b", "_ff", "a."] {
            assert_eq!(unescape_topic(never), None, "{never}");
        }
    }

    proptest! {
        #[test]
        fn every_topic_comes_back(topic in "\\PC*|[a/._ -]{0,20}|\\p{any}{0,40}") {
            let kafka = escaped(&topic);
            prop_assert!(kafka.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)));
            prop_assert_eq!(unescape_topic(&kafka), Some(topic));
        }

        #[test]
        fn what_can_be_read_is_what_would_be_written(text in "[a_.2ef-]{0,12}") {
            if let Some(topic) = unescape_topic(&text) {
                prop_assert_eq!(escaped(&topic), text);
            }
        }
    }
}
