//! Who the simulated sensors are and what they say.
//!
//! A reading is a function of its sensor and its counter, with nothing random and no clock in it. So the books need
//! not remember what was published: they make the payload again and compare it byte for byte with what Kafka holds.

use std::collections::HashMap;

use serde::Deserialize;

use crate::event::Qos;
use crate::settings::MqttVersion;

/// The two sites, one Kafka topic each.
pub(super) const SITES: [&str; 2] = ["north", "south"];

/// Counters above this are not ours: twice what the largest demo publishes (120 s of 20,000/s by one sensor).
const MAX_COUNTER: u64 = 4_800_000;

/// One simulated sensor.
#[derive(Debug, Clone)]
pub(super) struct Sensor {
    /// Its place in the fleet.
    pub(super) index: usize,
    /// Its own MQTT topic, `sensors/<site>/<device>/reading`.
    pub(super) topic: String,
    /// Its MQTT client id.
    pub(super) client_id: String,
    /// How it publishes.
    pub(super) qos: Qos,
    /// The protocol it speaks.
    pub(super) version: MqttVersion,
    site: &'static str,
    device: String,
}

impl Sensor {
    /// Four in a row have all four combinations of version and QoS; the next four stand at the other site.
    fn new(index: usize) -> Self {
        let site = if (index / 4).is_multiple_of(2) { SITES[0] } else { SITES[1] };
        let device = format!("press-{:02}", index + 1);
        Self {
            index,
            topic: format!("sensors/{site}/{device}/reading"),
            client_id: format!("demo-{site}-{device}"),
            qos: if index.is_multiple_of(2) { Qos::AtLeastOnce } else { Qos::ExactlyOnce },
            version: if (index / 2).is_multiple_of(2) { MqttVersion::V5 } else { MqttVersion::V311 },
            site,
            device,
        }
    }

    /// Reading number `n`, about 100 bytes of JSON.
    pub(super) fn payload(&self, n: u64) -> String {
        let noise = scramble(n ^ u64::try_from(self.index).unwrap_or(0).rotate_right(16));
        format!(
            r#"{{"site":"{}","device":"{}","n":{n},"temperature_c":2{}.{:03},"vibration_mm_s":{}.{:02}}}"#,
            self.site,
            self.device,
            noise % 10,
            (noise >> 8) % 1000,
            (noise >> 20) % 10,
            (noise >> 28) % 100,
        )
    }
}

/// All of them.
#[derive(Debug)]
pub(super) struct Fleet {
    sensors: Vec<Sensor>,
    by_topic: HashMap<String, usize>,
}

impl Fleet {
    pub(super) fn new(size: usize) -> Self {
        let sensors: Vec<Sensor> = (0..size).map(Sensor::new).collect();
        let by_topic = sensors.iter().map(|sensor| (sensor.topic.clone(), sensor.index)).collect();
        Self { sensors, by_topic }
    }

    pub(super) fn sensors(&self) -> &[Sensor] {
        &self.sensors
    }

    /// Which sensor said this under which counter; `None` when no sensor of the fleet ever says exactly this there.
    pub(super) fn recognise(&self, topic: &str, payload: &[u8]) -> Option<(usize, u64)> {
        #[derive(Deserialize)]
        struct Counter {
            n: u64,
        }
        let sensor = self.sensors.get(*self.by_topic.get(topic)?)?;
        let Counter { n } = serde_json::from_slice(payload).ok()?;
        let genuine = (1..=MAX_COUNTER).contains(&n) && sensor.payload(n).as_bytes() == payload;
        genuine.then_some((sensor.index, n))
    }
}

/// Spreads a counter over 64 bits, so that neighbours look unlike (the finaliser of the `SplitMix64` generator).
fn scramble(n: u64) -> u64 {
    let n = n.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let n = (n ^ (n >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let n = (n ^ (n >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    n ^ (n >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_fleet_of_four_has_every_version_with_every_qos() {
        let kinds: BTreeSet<_> =
            Fleet::new(4).sensors().iter().map(|s| (s.qos, s.version == MqttVersion::V5)).collect();
        assert_eq!(kinds.len(), 4);
    }

    #[test]
    fn a_fleet_of_twenty_stands_at_both_sites() {
        let fleet = Fleet::new(20);
        for site in SITES {
            assert!(fleet.sensors().iter().any(|s| s.topic.starts_with(&format!("sensors/{site}/"))));
        }
    }

    #[test]
    fn every_reading_is_unlike_every_other_and_is_recognised() {
        let fleet = Fleet::new(5);
        let mut all = BTreeSet::new();
        for sensor in fleet.sensors() {
            for n in 1..=200 {
                let payload = sensor.payload(n);
                assert_eq!(fleet.recognise(&sensor.topic, payload.as_bytes()), Some((sensor.index, n)));
                assert!((80..=120).contains(&payload.len()), "{payload}");
                all.insert(payload);
            }
        }
        assert_eq!(all.len(), 1000);
    }

    #[test]
    fn a_reading_that_was_altered_or_moved_is_not_recognised() {
        let fleet = Fleet::new(2);
        let (first, second) = (&fleet.sensors()[0], &fleet.sensors()[1]);
        let payload = first.payload(7);
        assert_eq!(fleet.recognise(&second.topic, payload.as_bytes()), None);
        assert_eq!(fleet.recognise("sensors/elsewhere", payload.as_bytes()), None);
        assert_eq!(fleet.recognise(&first.topic, format!("{payload} ").as_bytes()), None);
        assert_eq!(fleet.recognise(&first.topic, payload.replace("\"n\":7", "\"n\":8").as_bytes()), None);
        assert_eq!(fleet.recognise(&first.topic, b"\xff"), None);
        assert_eq!(fleet.recognise(&first.topic, b""), None);
    }
}
