//! From an event to a Kafka record: value, headers, time stamp.
//!
//! Headers of a record:
//!
//! | header | value |
//! |---|---|
//! | `tidegate-id` | `<buffer id>:<sequence>`, the event's id for ever |
//! | `tidegate-was` | `<old buffer id>:<sequence>`; only on events from before this buffer took a new identity |
//! | `mqtt-topic` | the MQTT topic |
//! | `tidegate-arrived` | when it arrived, by the gateway's clock: milliseconds since 1970 |
//! | `tidegate-clock` | which clock that was ([`Clock`](crate::clock::Clock)): `s` or `u` (it followed a time server or not), the boot, when that was by this clock; not on events that an older Tidegate took in |
//! | `tidegate-sent` | when it was sent, as Kafka would say it; only with `timestamp = "arrival"` |
//! | `mqtt-retain` | `1`; only on retained messages |
//! | `content-type`, `correlation-data` | the MQTT 5 properties, if the publisher set them |
//! | any other | MQTT 5 user properties, in order, repeated names kept |
//!
//! A publisher cannot forge what Tidegate says: a user property whose name is Tidegate's (`tidegate-…`, `mqtt-…`, in
//! any case) travels under the same name behind `user.`, so `tidegate-id` becomes `user.tidegate-id`. Nothing is dropped.

use std::fmt::Write as _;

use base64::Engine as _;
use rdkafka::message::{Header, OwnedHeaders};
use serde::Serialize;

use crate::cbor::{self, Blob};
use crate::clock::Clock;
use crate::event::{Event, Properties, Sequence};
use crate::route::ValueFormat;

/// Makes the records of one buffer; holds the memory they are built in.
#[derive(Debug)]
pub(super) struct Records {
    /// `<buffer id>:<sequence>`; the id stays, the sequence is written anew for each record.
    id: String,
    id_prefix: usize,
    value: Vec<u8>,
    /// A time as text, written anew like the sequence.
    time: String,
    /// The last clock, which most events share, as text.
    clock: (Clock, String),
    /// An identity from before, and the last sequence given out under it.
    former: Option<(uuid::Uuid, Sequence)>,
}

impl Records {
    /// For the buffer with that identity.
    pub(super) fn new(buffer_id: uuid::Uuid) -> Self {
        let id = format!("{buffer_id}:");
        Self {
            id_prefix: id.len(),
            id,
            value: Vec::new(),
            time: String::new(),
            clock: Default::default(),
            former: None,
        }
    }

    /// The same for a buffer that had another identity up to that sequence.
    pub(super) fn formerly(self, former: Option<(uuid::Uuid, Sequence)>) -> Self {
        Self { former, ..self }
    }

    /// Headers and value of a record; `sent_ms` when its own time is that of arrival.
    pub(super) fn build<'a>(
        &'a mut self,
        sequence: Sequence,
        event: &'a Event,
        format: ValueFormat,
        sent_ms: Option<i64>,
    ) -> (OwnedHeaders, &'a [u8]) {
        self.id.truncate(self.id_prefix);
        // Writing to a String cannot fail.
        write!(self.id, "{sequence}").unwrap_or_default();
        let mut headers = headers(&self.id, event);
        if let Some((was, _)) = self.former.filter(|(_, last)| sequence <= *last) {
            headers = headers.insert(Header { key: "tidegate-was", value: Some(&format!("{was}:{sequence}")) });
        }
        headers = self.time_headers(headers, event, sent_ms);
        let value = match format {
            ValueFormat::Payload => event.payload.as_ref(),
            ValueFormat::Cbor => {
                self.value.clear();
                let written = cbor::append(&Envelope::for_cbor(&self.id, event), &mut self.value);
                wrapped(written.map_err(|error| error.to_string()), &self.value, event)
            }
            ValueFormat::Json => {
                self.value.clear();
                let written = serde_json::to_writer(&mut self.value, &Envelope::for_json(&self.id, event));
                wrapped(written.map_err(|error| error.to_string()), &self.value, event)
            }
        };
        (headers, value)
    }

    fn time_headers(&mut self, headers: OwnedHeaders, event: &Event, sent_ms: Option<i64>) -> OwnedHeaders {
        let time = &mut self.time;
        let mut insert = |headers: OwnedHeaders, key, ms: i64| {
            time.clear();
            // Writing to a String cannot fail.
            write!(time, "{ms}").unwrap_or_default();
            headers.insert(Header { key, value: Some(time.as_str()) })
        };
        let mut headers = insert(headers, "tidegate-arrived", event.arrived_ms);
        if let Some(sent_ms) = sent_ms {
            headers = insert(headers, "tidegate-sent", sent_ms);
        }
        if event.clock.boot == 0 {
            return headers;
        }
        let (clock, text) = &mut self.clock;
        if *clock != event.clock {
            *clock = event.clock;
            *text = event.clock.to_string();
        }
        headers.insert(Header { key: "tidegate-clock", value: Some(text.as_str()) })
    }
}

/// An envelope of plain fields in memory has no way to fail. If it did, the payload alone would be better than nothing.
fn wrapped<'a>(written: Result<(), String>, value: &'a [u8], event: &'a Event) -> &'a [u8] {
    match written {
        Ok(()) => value,
        Err(error) => {
            tracing::error!(error, "kafka: an envelope could not be written; the payload goes without it");
            event.payload.as_ref()
        }
    }
}

fn headers(id: &str, event: &Event) -> OwnedHeaders {
    let user = event.properties.as_ref().map_or(0, |properties| properties.user.len());
    let headers = OwnedHeaders::new_with_capacity(user.saturating_add(8))
        .insert(Header { key: "tidegate-id", value: Some(id) })
        .insert(Header { key: "mqtt-topic", value: Some(&*event.topic) });
    let headers = if event.retain { headers.insert(Header { key: "mqtt-retain", value: Some("1") }) } else { headers };
    match &event.properties {
        None => headers,
        Some(properties) => property_headers(headers, properties),
    }
}

fn property_headers(mut headers: OwnedHeaders, properties: &Properties) -> OwnedHeaders {
    if let Some(content_type) = &properties.content_type {
        headers = headers.insert(Header { key: "content-type", value: Some(&**content_type) });
    }
    if let Some(data) = &properties.correlation_data {
        headers = headers.insert(Header { key: "correlation-data", value: Some(data.as_ref()) });
    }
    let mut renamed = String::new();
    for (name, value) in &properties.user {
        let key = if is_tidegates_own(name) {
            renamed.clear();
            renamed.push_str("user.");
            renamed.push_str(name);
            renamed.as_str()
        } else {
            name
        };
        headers = headers.insert(Header { key, value: Some(&**value) });
    }
    headers
}

fn is_tidegates_own(name: &str) -> bool {
    let starts_with = |own: &str| name.get(..own.len()).is_some_and(|start| start.eq_ignore_ascii_case(own));
    starts_with("tidegate-") || starts_with("mqtt-")
}

/// What `value = "cbor"` and `value = "json"` wrap around a payload.
#[derive(Serialize)]
struct Envelope<'a> {
    id: &'a str,
    topic: &'a str,
    arrived_ms: i64,
    qos: u8,
    retain: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<Content<'a>>,
    /// JSON has no byte strings: there, what is not UTF-8 stands here.
    #[serde(skip_serializing_if = "Option::is_none")]
    payload_base64: Option<String>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Content<'a> {
    Text(&'a str),
    Bytes(Blob<'a>),
}

impl<'a> Envelope<'a> {
    fn around(payload: Option<Content<'a>>, id: &'a str, event: &'a Event) -> Self {
        let (qos, retain) = (event.qos.level(), event.retain);
        Self { id, topic: &event.topic, arrived_ms: event.arrived_ms, qos, retain, payload, payload_base64: None }
    }

    fn for_json(id: &'a str, event: &'a Event) -> Self {
        match std::str::from_utf8(&event.payload) {
            Ok(text) => Self::around(Some(Content::Text(text)), id, event),
            Err(_not_text) => {
                let base64 = base64::engine::general_purpose::STANDARD.encode(&event.payload);
                Self { payload_base64: Some(base64), ..Self::around(None, id, event) }
            }
        }
    }

    fn for_cbor(id: &'a str, event: &'a Event) -> Self {
        Self::around(Some(Content::Bytes(Blob(&event.payload))), id, event)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;
    use rdkafka::message::Headers;

    use super::*;
    use crate::event::{Qos, RouteId};

    fn event(payload: &'static [u8]) -> Event {
        Event {
            topic: Arc::from("plant/\"7\"/temp"),
            payload: Bytes::from_static(payload),
            qos: Qos::ExactlyOnce,
            retain: false,
            dup: false,
            arrived_ms: 1_700_000_000_123,
            clock: Clock::default(),
            route: RouteId(1),
            sender: None,
            properties: None,
        }
    }

    fn records() -> Records {
        Records::new(uuid::Uuid::from_u128(0x1234))
    }

    fn built_headers(event: &Event) -> Vec<(String, Vec<u8>)> {
        let mut records = records();
        let (headers, _) = records.build(42, event, ValueFormat::Payload, None);
        headers.iter().map(|h| (h.key.to_owned(), h.value.unwrap_or_default().to_vec())).collect()
    }

    fn value(event: &Event, format: ValueFormat) -> Vec<u8> {
        records().build(42, event, format, None).1.to_vec()
    }

    const ID: &str = "00000000-0000-0000-0000-000000001234:42";

    #[test]
    fn every_record_bears_its_id_and_its_mqtt_topic() {
        let headers = built_headers(&event(b"x"));
        let arrived = ("tidegate-arrived".into(), b"1700000000123".to_vec());
        assert_eq!(
            headers,
            [("tidegate-id".into(), ID.into()), ("mqtt-topic".into(), b"plant/\"7\"/temp".to_vec()), arrived]
        );
    }

    #[test]
    fn the_time_of_arrival_and_its_clock_stand_beside_the_records_own_time() {
        let mut records = records();
        let mut times = |event: &Event, sent| -> Vec<String> {
            let (headers, _) = records.build(42, event, ValueFormat::Payload, sent);
            let texts = headers.iter().map(|h| format!("{}={}", h.key, String::from_utf8_lossy(h.value.unwrap())));
            texts.skip(2).collect()
        };
        let clock = |synchronised| Clock { boot: 0x9f_1c22, booted_ms: -5, synchronised };
        let early = Event { arrived_ms: -3, clock: clock(false), ..event(b"") };
        assert_eq!(times(&early, None), ["tidegate-arrived=-3", "tidegate-clock=u:009f1c22:-5"]);
        let late = Event { clock: clock(true), ..event(b"") };
        assert_eq!(
            times(&late, Some(7)),
            ["tidegate-arrived=1700000000123", "tidegate-sent=7", "tidegate-clock=s:009f1c22:-5"]
        );
        assert_eq!(times(&early, None)[1], "tidegate-clock=u:009f1c22:-5");
    }

    #[test]
    fn the_sequence_of_one_record_is_not_in_the_id_of_the_next() {
        let (mut records, event) = (records(), event(b""));
        for sequence in [u64::MAX, 7, 0] {
            let (headers, _) = records.build(sequence, &event, ValueFormat::Payload, None);
            let id = String::from_utf8(headers.get(0).value.unwrap().to_vec()).unwrap();
            assert_eq!(id, format!("00000000-0000-0000-0000-000000001234:{sequence}"));
        }
    }

    #[test]
    fn events_from_before_a_new_identity_bear_the_old_one_as_well() {
        let was = uuid::Uuid::from_u128(0x99);
        let (mut records, event) = (records().formerly(Some((was, 42))), event(b""));
        let mut names = |sequence| -> Vec<String> {
            let (headers, _) = records.build(sequence, &event, ValueFormat::Payload, None);
            headers.iter().map(|h| format!("{}={}", h.key, String::from_utf8_lossy(h.value.unwrap()))).collect()
        };
        assert_eq!(names(42)[2], format!("tidegate-was={was}:42"));
        assert_eq!(names(43).len(), 3);
    }

    #[test]
    fn mqtt_5_properties_travel_in_order_with_repeated_names() {
        let event = Event {
            retain: true,
            properties: Some(Box::new(Properties {
                content_type: Some("application/json".into()),
                correlation_data: Some(Bytes::from_static(&[0, 255])),
                user: vec![("b".into(), "1".into()), ("a".into(), "2".into()), ("b".into(), String::new().into())],
                ..Properties::default()
            })),
            ..event(b"x")
        };
        let headers = built_headers(&event);
        let rest: Vec<(&str, &[u8])> = headers[2..].iter().map(|(k, v)| (k.as_str(), v.as_slice())).collect();
        assert_eq!(
            rest,
            [
                ("mqtt-retain", &b"1"[..]),
                ("content-type", b"application/json"),
                ("correlation-data", &[0, 255]),
                ("b", b"1"),
                ("a", b"2"),
                ("b", b""),
                ("tidegate-arrived", b"1700000000123"),
            ]
        );
    }

    #[test]
    fn a_publisher_cannot_forge_tidegates_headers() {
        let user = ["tidegate-id", "TideGate-was", "mqtt-topic", "MQTT-Retain", "tidegat", "é", "with\0nul"];
        let event = Event {
            properties: Some(Box::new(Properties {
                user: user.iter().map(|name| ((*name).into(), "forged".into())).collect(),
                ..Properties::default()
            })),
            ..event(b"x")
        };
        let names: Vec<String> = built_headers(&event).into_iter().skip(2).map(|(name, _)| name).collect();
        assert_eq!(names[..4], ["user.tidegate-id", "user.TideGate-was", "user.mqtt-topic", "user.MQTT-Retain"]);
        assert_eq!(names.len(), user.len() + 1);
        assert_eq!(names[4..6], ["tidegat", "é"]);
    }

    #[test]
    fn the_plain_value_is_the_payload_byte_for_byte() {
        for payload in [&b""[..], b"\xff\x00", b"21.5"] {
            assert_eq!(value(&event(payload), ValueFormat::Payload), payload);
        }
    }

    #[test]
    fn the_json_envelope_is_json_for_any_payload() {
        let parse = |payload| -> serde_json::Value {
            serde_json::from_slice(&value(&event(payload), ValueFormat::Json)).unwrap()
        };
        let text = parse(b"say \"hi\"\n\x01\\ \xc3\xa9");
        assert_eq!(text["id"], ID);
        assert_eq!(text["topic"], "plant/\"7\"/temp");
        assert_eq!(text["arrived_ms"], 1_700_000_000_123_i64);
        assert_eq!(text["qos"], 2);
        assert_eq!(text["retain"], false);
        assert_eq!(text["payload"], "say \"hi\"\n\u{1}\\ é");
        let binary = parse(b"\xff\xfe");
        assert_eq!(binary["payload_base64"], "//4=");
        assert!(binary.get("payload").is_none());
    }

    #[test]
    fn the_cbor_envelope_is_read_by_another_library() {
        for (payload, arrived_ms) in [(&b"\xff\x00"[..], 1_700_000_000_123_i64), (b"", -86_400_000), (&[7; 300], 23)] {
            let event = Event { arrived_ms, retain: true, ..event(payload) };
            let decoded: ciborium::Value = ciborium::from_reader(&value(&event, ValueFormat::Cbor)[..]).unwrap();
            let map = decoded.into_map().unwrap();
            let field = |name: &str| map.iter().find(|(k, _)| k.as_text() == Some(name)).unwrap().1.clone();
            assert_eq!(map.len(), 6);
            assert_eq!(field("id").as_text(), Some(ID));
            assert_eq!(field("topic").as_text(), Some("plant/\"7\"/temp"));
            assert_eq!(i128::from(field("arrived_ms").as_integer().unwrap()), i128::from(arrived_ms));
            assert_eq!(i128::from(field("qos").as_integer().unwrap()), 2);
            assert_eq!(field("retain").as_bool(), Some(true));
            assert_eq!(field("payload").into_bytes().unwrap(), payload);
        }
    }
}
