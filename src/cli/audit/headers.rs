//! Tidegate's headers of a record, by name and without copying.
//!
//! Names are compared as bytes: a stranger's record may bear any, and must not end an audit (`raw_headers` has the story).

use rdkafka::message::BorrowedMessage;

/// The headers that an audit reads.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Own<'m> {
    /// `tidegate-id`
    pub(super) id: Option<&'m [u8]>,
    /// `tidegate-instance`
    pub(super) instance: Option<&'m [u8]>,
    /// `tidegate-was`: all of them.
    pub(super) was: Vec<&'m [u8]>,
    /// `mqtt-topic`
    pub(super) mqtt_topic: Option<&'m [u8]>,
    /// `tidegate-sent`
    pub(super) sent: Option<&'m [u8]>,
}

/// Reads them.
pub(super) fn own<'m>(message: &'m BorrowedMessage<'_>) -> Own<'m> {
    of(raw_headers::of(message))
}

fn of<'m>(headers: impl Iterator<Item = raw_headers::Header<'m>>) -> Own<'m> {
    let mut own = Own::default();
    for (name, value) in headers {
        let place = match name {
            b"tidegate-id" => &mut own.id,
            b"mqtt-topic" => &mut own.mqtt_topic,
            b"tidegate-instance" => &mut own.instance,
            b"tidegate-was" => {
                own.was.push(value.unwrap_or_default());
                continue;
            }
            b"tidegate-sent" => &mut own.sent,
            _ => &mut None,
        };
        // The first counts; Tidegate writes each of these once.
        *place = place.or(Some(value.unwrap_or_default()));
    }
    own
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_each_name_counts_but_for_former_ids_and_others_do_not() {
        let headers: [raw_headers::Header<'_>; 9] = [
            (b"x", Some(b"1")),
            (b"\xff\xfe", Some(b"a name that is not UTF-8")),
            (b"tidegate-id", Some(b"2")),
            (b"tidegate-id", Some(b"3")),
            (b"mqtt-topic", None),
            (b"tidegate-was", Some(b"4")),
            (b"tidegate-instance", Some(b"5")),
            (b"tidegate-instance", Some(b"6")),
            (b"tidegate-was", Some(b"7")),
        ];
        let was: Vec<&[u8]> = vec![b"4", b"7"];
        let expected = Own { id: Some(b"2"), instance: Some(b"5"), was, mqtt_topic: Some(b""), sent: None };
        assert_eq!(of(headers.into_iter()), expected);
    }
}
