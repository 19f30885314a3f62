//! From an event to a Kafka record: value, headers, time stamp.
//!
//! Headers of a record:
//!
//! | header | value |
//! |---|---|
//! | `tidegate-id` | `<buffer id>:<sequence>`, the event's id for ever |
//! | `tidegate-instance` | 16 digits: the start of the agent that stored the event. With the sequence it is the reading's own, under whatever buffer id it comes |
//! | `tidegate-was` | `<old buffer id>:<sequence>`; only on events from before this buffer took a new identity, one for each that it had since |
//! | `mqtt-topic` | the MQTT topic |
//! | `tidegate-arrived` | when it arrived, by the gateway's clock: milliseconds since 1970 |
//! | `tidegate-clock` | which clock that was ([`Clock`](crate::clock::Clock)): `s` or `u` (it followed a time server or not), the boot, when that was by this clock; not on events that an older Tidegate took in |
//! | `tidegate-sent` | when it was sent, as Kafka would say it; only with `timestamp = "arrival"` |
//! | `mqtt-retain` | `1`; only on retained messages |
//! | `content-type`, `correlation-data`, `response-topic`, `payload-format`, `message-expiry` | the MQTT 5 properties, if the publisher set them; the last in seconds, as they were at arrival |
//! | any other | MQTT 5 user properties, in order, repeated names kept |
//!
//! With `headers = "all"` also:
//!
//! | header | value |
//! |---|---|
//! | `mqtt-qos` | `0`, `1` or `2` |
//! | `mqtt-dup` | `1`; only on messages that the sender marked so |
//! | `mqtt-client` | client id of the sensor, by its own word; only behind a `[[listen]]` |
//! | `mqtt-user` | the user whose password it gave; the same |
//!
//! With `headers = "confluent"` there are `mqtt.qos`, `mqtt.retained` and `mqtt.duplicate` (`true` or `false`) instead of
//! `mqtt-retain`, as Confluent's source connector has them. Its `mqtt.message.id` is missing: a packet id is given out anew
//! all the time and says nothing.
//!
//! A publisher cannot forge what Tidegate says: a user property whose name is Tidegate's (`tidegate-…`, `mqtt-…`, `mqtt.…`,
//! or that of another property, in any case) travels under the same name behind `user.`, so `tidegate-id` becomes
//! `user.tidegate-id`, whatever `headers` says. Nothing is dropped.

use std::fmt::Write as _;
use std::ops::RangeInclusive;

use base64::Engine as _;
use rdkafka::message::{Header, OwnedHeaders};
use serde::Serialize;

use crate::buffer::Instances;
use crate::cbor::{self, Blob};
use crate::clock::Clock;
use crate::event::{Event, Properties, Qos, Sequence};
#[cfg(feature = "planted")]
use crate::planted::{Bug, planted};
use crate::route::ValueFormat;
use crate::settings::HeaderNames;

/// Makes the records of one buffer; holds the memory they are built in.
#[derive(Debug)]
pub(super) struct Records {
    /// `<buffer id>:<sequence>`; the id stays, the sequence is written anew for each record.
    id: String,
    id_prefix: usize,
    value: Vec<u8>,
    names: HeaderNames,
    instances: Instances,
    /// Of the last record: by which start events of these sequences were stored.
    stored_by: Option<(RangeInclusive<Sequence>, String)>,
    /// A time as text, written anew like the sequence.
    time: String,
    /// The last clock, which most events share, as text.
    clock: (Clock, String),
}

impl Records {
    /// For the buffer with that identity and past.
    pub(super) fn new(buffer_id: uuid::Uuid, instances: Instances, names: HeaderNames) -> Self {
        let id = format!("{buffer_id}:");
        let (time, clock) = (String::new(), <(Clock, String)>::default());
        Self { id_prefix: id.len(), id, value: Vec::new(), names, instances, stored_by: None, time, clock }
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
        if !self.stored_by.as_ref().is_some_and(|(sequences, _)| sequences.contains(&sequence)) {
            self.stored_by = self.instances.of(sequence).map(|(instance, sequences)| (sequences, instance.short()));
            #[cfg(feature = "planted")]
            if planted(Bug::InstanceOfSender) {
                self.stored_by = Some((0..=Sequence::MAX, self.instances.present.short()));
            }
        }
        let instance = self.stored_by.as_ref().map(|(_, instance)| instance.as_str());
        let mut headers = headers(&self.id, instance, event, self.names);
        for (was, _) in self.instances.former.iter().filter(|(_, last)| sequence <= *last) {
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
            tracing::error!(error, "kafka: an envelope cannot be written; the agent sends the payload without it");
            event.payload.as_ref()
        }
    }
}

fn headers(id: &str, instance: Option<&str>, event: &Event, names: HeaderNames) -> OwnedHeaders {
    let user = event.properties.as_ref().map_or(0, |properties| properties.user.len());
    let headers = OwnedHeaders::new_with_capacity(user + USUAL_HEADERS)
        .insert(Header { key: "tidegate-id", value: Some(id) })
        .insert(Header { key: "mqtt-topic", value: Some(&*event.topic) });
    let headers = match instance {
        Some(_) => headers.insert(Header { key: "tidegate-instance", value: instance }),
        None => headers,
    };
    let headers = message_headers(headers, event, names);
    match &event.properties {
        None => headers,
        Some(properties) => property_headers(headers, properties),
    }
}

/// Room for those that most records have; more is made when it is needed.
const USUAL_HEADERS: usize = 8;

fn message_headers(headers: OwnedHeaders, event: &Event, names: HeaderNames) -> OwnedHeaders {
    let with = |headers: OwnedHeaders, key, value| headers.insert(Header { key, value: Some(value) });
    let with_if = |headers, is: bool, key, value| if is { with(headers, key, value) } else { headers };
    let qos = match event.qos {
        Qos::AtMostOnce => "0",
        Qos::AtLeastOnce => "1",
        Qos::ExactlyOnce => "2",
    };
    let word = |is: bool| if is { "true" } else { "false" };
    match names {
        HeaderNames::Tidegate => with_if(headers, event.retain, "mqtt-retain", "1"),
        HeaderNames::All => {
            let headers = with_if(headers, event.retain, "mqtt-retain", "1");
            let headers = with_if(with(headers, "mqtt-qos", qos), event.dup, "mqtt-dup", "1");
            let Some(sender) = &event.sender else { return headers };
            let headers = with(headers, "mqtt-client", &sender.client);
            match &sender.user {
                Some(user) => with(headers, "mqtt-user", user),
                None => headers,
            }
        }
        HeaderNames::Confluent => {
            let headers = with(with(headers, "mqtt.qos", qos), "mqtt.retained", word(event.retain));
            with(headers, "mqtt.duplicate", word(event.dup))
        }
    }
}

fn property_headers(mut headers: OwnedHeaders, properties: &Properties) -> OwnedHeaders {
    if let Some(content_type) = &properties.content_type {
        headers = headers.insert(Header { key: "content-type", value: Some(&**content_type) });
    }
    if let Some(data) = &properties.correlation_data {
        headers = headers.insert(Header { key: "correlation-data", value: Some(data.as_ref()) });
    }
    if let Some(topic) = &properties.response_topic {
        headers = headers.insert(Header { key: "response-topic", value: Some(&**topic) });
    }
    if let Some(format) = properties.payload_format {
        headers = headers.insert(Header { key: "payload-format", value: Some(&format.to_string()) });
    }
    if let Some(seconds) = properties.expiry_s {
        headers = headers.insert(Header { key: "message-expiry", value: Some(&seconds.to_string()) });
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
    OWN_BEGINNINGS.into_iter().any(starts_with) || PROPERTY_NAMES.iter().any(|own| name.eq_ignore_ascii_case(own))
}

const OWN_BEGINNINGS: [&str; 3] = ["tidegate-", "mqtt-", "mqtt."];

const PROPERTY_NAMES: [&str; 5] =
    ["content-type", "correlation-data", "response-topic", "payload-format", "message-expiry"];

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
    use crate::buffer::PastInstance;
    use crate::event::{RouteId, Sender};
    use crate::watermark::Instance;

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

    const HERE: &str = "000000000000000d";

    /// Of a buffer whose present start gives out 43 and above; the one before gave out 40 to 42, and nobody knows of others.
    fn instances() -> Instances {
        let before = PastInstance { instance: Instance(0xb << 4), first: 40, last: 42, commit: 0 };
        Instances::invented(Instance((0xc << 64) | 0xd), 43, vec![before])
    }

    fn records() -> Records {
        Records::new(uuid::Uuid::from_u128(0x1234), instances(), HeaderNames::Tidegate)
    }

    fn built_headers(event: &Event) -> Vec<(String, Vec<u8>)> {
        built_with(event, HeaderNames::Tidegate)
    }

    fn built_with(event: &Event, names: HeaderNames) -> Vec<(String, Vec<u8>)> {
        let mut records = Records { names, ..records() };
        let (headers, _) = records.build(43, event, ValueFormat::Payload, None);
        headers.iter().map(|h| (h.key.to_owned(), h.value.unwrap_or_default().to_vec())).collect()
    }

    fn value(event: &Event, format: ValueFormat) -> Vec<u8> {
        records().build(43, event, format, None).1.to_vec()
    }

    const ID: &str = "00000000-0000-0000-0000-000000001234:43";

    #[test]
    fn every_record_bears_its_id_its_mqtt_topic_and_the_start_that_stored_it() {
        let headers = built_headers(&event(b"x"));
        let topic = b"plant/\"7\"/temp".to_vec();
        assert_eq!(
            headers,
            [
                ("tidegate-id".into(), ID.into()),
                ("mqtt-topic".into(), topic),
                ("tidegate-instance".into(), HERE.into()),
                ("tidegate-arrived".into(), b"1700000000123".to_vec()),
            ]
        );
    }

    #[test]
    fn an_event_bears_the_start_that_stored_it_whoever_sends_it() {
        let (mut records, event) = (records(), event(b""));
        let mut instance = |sequence| {
            let (headers, _) = records.build(sequence, &event, ValueFormat::Payload, None);
            let found = headers.iter().find(|h| h.key == "tidegate-instance");
            found.map(|h| String::from_utf8(h.value.unwrap().to_vec()).unwrap())
        };
        for sequence in [43, u64::MAX] {
            assert_eq!(instance(sequence).as_deref(), Some(HERE));
        }
        for sequence in [42, 40, 41] {
            assert_eq!(instance(sequence).as_deref(), Some("00000000000000b0"));
        }
        assert_eq!(instance(39), None);
        assert_eq!(instance(44).as_deref(), Some(HERE));
    }

    #[test]
    fn the_time_of_arrival_and_its_clock_stand_beside_the_records_own_time() {
        let mut records = records();
        let mut times = |event: &Event, sent| -> Vec<String> {
            let (headers, _) = records.build(43, event, ValueFormat::Payload, sent);
            let texts = headers.iter().map(|h| format!("{}={}", h.key, String::from_utf8_lossy(h.value.unwrap())));
            texts.skip(3).collect()
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
    fn events_from_before_a_new_identity_bear_all_they_had_as_well() {
        let [first, second] = [0x99, 0x9a].map(uuid::Uuid::from_u128);
        let mut instances = instances();
        instances.former = vec![(first, 41), (second, 50)];
        let (mut records, event) =
            (Records::new(uuid::Uuid::from_u128(0x1234), instances, HeaderNames::Tidegate), event(b""));
        let mut was = |sequence| -> Vec<String> {
            let (headers, _) = records.build(sequence, &event, ValueFormat::Payload, None);
            let was = headers.iter().filter(|h| h.key == "tidegate-was");
            was.map(|h| String::from_utf8(h.value.unwrap().to_vec()).unwrap()).collect()
        };
        assert_eq!(was(41), [format!("{first}:41"), format!("{second}:41")]);
        assert_eq!(was(42), [format!("{second}:42")]);
        assert_eq!(was(51), [""; 0]);
    }

    #[test]
    fn mqtt_5_properties_travel_in_order_with_repeated_names() {
        let event = Event {
            retain: true,
            properties: Some(Box::new(Properties {
                content_type: Some("application/json".into()),
                correlation_data: Some(Bytes::from_static(&[0, 255])),
                user: vec![("b".into(), "1".into()), ("a".into(), "2".into()), ("b".into(), String::new().into())],
                response_topic: Some("answers/7".into()),
                payload_format: Some(1),
                expiry_s: Some(60),
                flaw: None,
            })),
            ..event(b"x")
        };
        let headers = built_headers(&event);
        let rest: Vec<(&str, &[u8])> = headers[3..].iter().map(|(k, v)| (k.as_str(), v.as_slice())).collect();
        assert_eq!(
            rest,
            [
                ("mqtt-retain", &b"1"[..]),
                ("content-type", b"application/json"),
                ("correlation-data", &[0, 255]),
                ("response-topic", b"answers/7"),
                ("payload-format", b"1"),
                ("message-expiry", b"60"),
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
        let more =
            ["mqtt.qos", "Content-Type", "correlation-data", "response-topic", "payload-format", "message-expiry"];
        let event = Event {
            properties: Some(Box::new(Properties {
                user: user.iter().chain(&more).map(|name| ((*name).into(), "forged".into())).collect(),
                ..Properties::default()
            })),
            ..event(b"x")
        };
        let names: Vec<String> = built_headers(&event).into_iter().skip(3).map(|(name, _)| name).collect();
        assert_eq!(names[..4], ["user.tidegate-id", "user.TideGate-was", "user.mqtt-topic", "user.MQTT-Retain"]);
        assert_eq!(names.len(), user.len() + more.len() + 1);
        assert_eq!(names[4..6], ["tidegat", "é"]);
        assert_eq!(names[user.len()..user.len() + more.len()], more.map(|name| format!("user.{name}")));
    }

    #[test]
    fn what_else_is_known_of_a_message_travels_under_the_names_that_were_asked_for() {
        let sender =
            |user: Option<&str>| Some(Arc::new(Sender { client: "press-7".into(), user: user.map(Into::into) }));
        let told = |event: &Event, names| -> Vec<String> {
            let others = |name: &str| !name.starts_with("tidegate-") && name != "mqtt-topic";
            let headers = built_with(event, names).into_iter().filter(|(name, _)| others(name));
            headers.map(|(name, value)| format!("{name}={}", String::from_utf8_lossy(&value))).collect()
        };
        let plain = Event { sender: sender(None), ..event(b"x") };
        let full = Event { retain: true, dup: true, sender: sender(Some("ann")), ..event(b"x") };
        assert_eq!(told(&plain, HeaderNames::Tidegate), Vec::<String>::new());
        assert_eq!(told(&full, HeaderNames::Tidegate), ["mqtt-retain=1"]);
        assert_eq!(told(&event(b"x"), HeaderNames::All), ["mqtt-qos=2"]);
        assert_eq!(told(&plain, HeaderNames::All), ["mqtt-qos=2", "mqtt-client=press-7"]);
        assert_eq!(
            told(&full, HeaderNames::All),
            ["mqtt-retain=1", "mqtt-qos=2", "mqtt-dup=1", "mqtt-client=press-7", "mqtt-user=ann"]
        );
        assert_eq!(told(&plain, HeaderNames::Confluent), ["mqtt.qos=2", "mqtt.retained=false", "mqtt.duplicate=false"]);
        assert_eq!(told(&full, HeaderNames::Confluent), ["mqtt.qos=2", "mqtt.retained=true", "mqtt.duplicate=true"]);
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
