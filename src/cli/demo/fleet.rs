//! The simulated sensors: who they are, and the test kit's publishers that play them, a thread and a connection each.
//!
//! A sensor that cannot reach the relay tries again; what became due meanwhile is published when the relay is back. rumqttc's
//! own client would be the stronger demonstration ("any MQTT client") and is unfit for keeping books: version 0.25.1 sends
//! unacknowledged messages again without the DUP flag, in the order of their packet ids and not of their first sending,
//! forgets them when the session is gone, reconnects without a pause, and names an acknowledged message by packet id only.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use test_kit::Trouble;
use test_kit::publisher::{Log, Pace, Plan, Publisher};
use test_kit::wire::Version;
use tokio::time::sleep;

/// The two sites, one Kafka topic each.
const SITES: [&str; 2] = ["north", "south"];

/// Readings that a sensor keeps in flight: enough for 1,000 a second at 10 ms a commit and two commits for QoS 2.
const WINDOW: usize = 64;

/// How long a sensor that was told to stop waits for its last acknowledgements: a restart of the relay fits in.
const PATIENCE: Duration = Duration::from_secs(10);

/// Kafka topics of the demo.
pub(super) fn topics() -> [String; 2] {
    SITES.map(|site| format!("sensors.{site}"))
}

/// So many sensors, so many readings a second of all together. Four in a row have all four combinations of version and QoS;
/// the next four stand at the other site.
pub(super) fn plans(sensors: u16, per_second: u64) -> Vec<Plan> {
    let plan = |index: u16| {
        let site = if (index / 4).is_multiple_of(2) { SITES[0] } else { SITES[1] };
        let device = format!("press-{:02}", index + 1);
        let qos = if index.is_multiple_of(2) { 1 } else { 2 };
        let version = if (index / 2).is_multiple_of(2) { Version::V5 } else { Version::V311 };
        let pace = Pace { per_second, index: u64::from(index), publishers: u64::from(sensors) };
        Plan::new(&device, &format!("sensors/{site}/{device}/reading"), qos).version(version).window(WINDOW).share(pace)
    };
    (0..sensors).map(plan).collect()
}

/// All sensors at work.
pub(super) struct Fleet(Vec<Publisher>);

impl Fleet {
    pub(super) fn start(plans: &[Plan], relay: SocketAddr) -> Self {
        Self(plans.iter().map(|plan| Publisher::start(relay, plan.clone())).collect())
    }

    /// Readings published, each counted once.
    pub(super) fn published(&self) -> u64 {
        self.0.iter().map(Publisher::published).sum()
    }

    /// Readings acknowledged, at QoS 2 to the end.
    pub(super) fn acknowledged(&self) -> u64 {
        self.0.iter().map(Publisher::acknowledged).sum()
    }

    /// Connections that found their session again.
    pub(super) fn resumed(&self) -> u64 {
        self.0.iter().map(Publisher::resumed).sum()
    }

    /// Nothing new; returns when all is acknowledged, or after [`PATIENCE`].
    pub(super) async fn stop(&self) {
        self.0.iter().for_each(Publisher::publish_no_more);
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE && !self.0.iter().all(Publisher::is_finished) {
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// What each sensor says in the end.
    pub(super) fn leave(self) -> Result<Vec<Log>, Trouble> {
        self.0.into_iter().map(Publisher::leave).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_fleet_of_four_has_every_version_with_every_qos() {
        let kinds: BTreeSet<_> = plans(4, 1).iter().map(|plan| (plan.qos, plan.version.name())).collect();
        assert_eq!(kinds.len(), 4);
    }

    #[test]
    fn a_fleet_of_twenty_stands_at_both_sites() {
        let plans = plans(20, 1);
        for site in SITES {
            assert!(plans.iter().any(|plan| plan.topic(0).starts_with(&format!("sensors/{site}/"))));
        }
    }

    #[test]
    fn every_reading_is_unlike_every_other() {
        let plans = plans(5, 1);
        let all: BTreeSet<_> = plans.iter().flat_map(|plan| (0..200).map(|n| plan.payload(n))).collect();
        assert_eq!(all.len(), 1000);
        assert!(all.iter().all(|payload| (80..=120).contains(&payload.len())));
    }
}
