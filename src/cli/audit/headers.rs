//! Tidegate's headers of a record, by name and without copying.
//!
//! rdkafka panics when the name of a header is not UTF-8 (0.39: `to_str().unwrap()` in `Headers::try_get`). Such a record
//! is none of Tidegate's, for MQTT has only UTF-8, but a stranger's record must not end an audit: the panic is
//! caught, without a word on standard error, and the record counts as foreign.

use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe};

use rdkafka::message::{BorrowedMessage, Headers, Message};

/// The headers that an audit reads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Own<'m> {
    /// `tidegate-id`
    pub(super) id: Option<&'m [u8]>,
    /// `tidegate-was`
    pub(super) was: Option<&'m [u8]>,
    /// `mqtt-topic`
    pub(super) mqtt_topic: Option<&'m [u8]>,
}

thread_local! {
    static READING: Cell<bool> = const { Cell::new(false) };
}

/// Keeps the panics silent that [`own`] catches. Once, at the start.
pub(super) fn silence_panics_of_reading() {
    let usual = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        if !READING.get() {
            usual(panic);
        }
    }));
}

/// Reads them.
pub(super) fn own<'m>(message: &'m BorrowedMessage<'_>) -> Own<'m> {
    message.headers().map_or_else(Own::default, of)
}

fn of<H: Headers>(headers: &H) -> Own<'_> {
    READING.set(true);
    let read = panic::catch_unwind(AssertUnwindSafe(|| read(headers)));
    READING.set(false);
    // Nothing of what was read until then is kept.
    read.unwrap_or_default()
}

fn read<H: Headers>(headers: &H) -> Own<'_> {
    let mut own = Own::default();
    let mut index = 0_usize;
    while let Some(header) = headers.try_get(index) {
        let place = match header.key {
            "tidegate-id" => &mut own.id,
            "mqtt-topic" => &mut own.mqtt_topic,
            "tidegate-was" => &mut own.was,
            _ => &mut None,
        };
        // The first counts; Tidegate writes each once.
        *place = place.or(Some(header.value.unwrap_or_default()));
        index = index.saturating_add(1);
    }
    own
}

#[cfg(test)]
mod tests {
    use rdkafka::message::{Header, OwnedHeaders};

    use super::*;

    #[test]
    fn the_first_of_each_name_counts_and_others_do_not() {
        let headers = OwnedHeaders::new()
            .insert(Header { key: "x", value: Some("1") })
            .insert(Header { key: "tidegate-id", value: Some("2") })
            .insert(Header { key: "tidegate-id", value: Some("3") })
            .insert(Header { key: "mqtt-topic", value: None::<&str> });
        let own = of(headers.as_borrowed());
        assert_eq!(own, Own { id: Some(b"2"), was: None, mqtt_topic: Some(b"") });
    }

    #[test]
    fn headers_that_cannot_be_read_are_a_strangers() {
        struct Broken;
        impl Headers for Broken {
            fn count(&self) -> usize {
                1
            }
            fn try_get(&self, _: usize) -> Option<Header<'_, &[u8]>> {
                panic!("a name that is not UTF-8")
            }
        }
        silence_panics_of_reading();
        assert_eq!(of(&Broken), Own::default());
        assert!(!READING.get());
    }
}
