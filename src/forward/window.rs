//! How much may be on its way to Kafka at once: as much as the link takes in a few seconds, found out anew with each
//! producer.
//!
//! librdkafka makes one request of what it has, and whatever it has is overdue when the link takes longer for it than a
//! request may last. So what it is given follows the link. It begins with a few readings and grows with each
//! confirmation, until a reading's way to its confirmation is nearly as long as it may be; a slower link shrinks it at once, by
//! as much as it has become slower. No rate is measured and none is asked for: compression, headers and round trips are
//! all in the time that a reading takes.
//!
//! Where a round trip is long, readings go in rounds: what is there within a moment goes, and nothing more before all of it has
//! come back. What waited in librdkafka for the answer would only have its thread turn in circles meanwhile: it builds no second
//! request for a partition that has more than five messages in flight, and looks again at once whether it may (measured at
//! 300 ms: 17,000 times a second, a third of a core). And a round is one request, so that each window costs one round trip.
//!
//! One reading is watched at a time, the last of those that were handed over together, until it has come back.

use std::time::{Duration, Instant};

use super::timeouts::VERY_LONG;
use crate::event::Sequence;

/// Memory of the readings that go out first, librdkafka's overhead included: five small ones, 0.4 s at 9,600 bit/s.
/// Five confirmations later, which on a local network are 20 ms, it is all that may ever be in flight.
const LEAST_BYTES: usize = 4 << 10;

/// More than any lane allows: from here on the lanes' own bounds hold.
const MOST_BYTES: usize = 16 << 20;

/// A reading may take so many times as long as the quickest one, the queue before it included. With one request in flight
/// a link is idle for a round trip in each, and a reading that is handed over sees the end of one and all of the next: in
/// that time the link is idle for two of thirty. With several partitions, a request each, it is one more for each.
const AIM_IN_QUICKEST: u32 = 30;

/// ... but so long in any case: requests of less than a second are mostly headers where a second is a kilobyte.
const LEAST_AIM: Duration = Duration::from_secs(3);

/// It grows up to this share of the time that a reading may take: beyond, it would shrink as often as it grows.
const NEARLY: f64 = 0.9;

/// ... by so much at once. What is in flight makes a reading's way longer in proportion at most, so that even at once all
/// that is missing would not be too much; but one reading is little to judge by.
const MOST_GROWTH: f64 = 4.0;

/// From this round trip on readings go in rounds. Below, what waits in librdkafka is on its way at once, and to wait for us
/// would cost more than its circles.
const LONG: Duration = Duration::from_millis(20);

/// So many readings must have come back: the first ones of a producer take a connection along.
const SURE: u32 = 8;

/// A round takes what comes within this time: as long as librdkafka waits for company on such links (`timeouts.rs`).
const ROUND: Duration = Duration::from_millis(20);
const VERY_LONG_ROUND: Duration = Duration::from_millis(50);

/// See the documentation of the module.
#[derive(Debug)]
pub(super) struct Window {
    /// When something went with nothing in flight.
    round: Option<Instant>,
    bytes: usize,
    watched: Option<Watched>,
    /// Something had to wait for room since the watched one went.
    was_full: bool,
    /// The newest one in flight is larger than the window, and went because nothing else was.
    alone: bool,
    quickest: Option<Duration>,
    /// Of so many.
    seen: u32,
    latest: Duration,
}

/// The reading that is watched.
#[derive(Debug, Clone, Copy)]
struct Watched {
    sequence: Sequence,
    /// When it was handed over.
    since: Instant,
    /// When the first one was that it was handed over with.
    began: Instant,
}

impl Window {
    /// As small as it gets.
    pub(super) fn new() -> Self {
        let bytes = LEAST_BYTES;
        let (round, watched, quickest) = (None, None, None);
        Self { round, bytes, watched, was_full: false, alone: false, quickest, seen: 0, latest: Duration::ZERO }
    }

    /// May a reading of that cost go, with so many bytes in flight? None of them may take `longest` or longer; on a long link
    /// they go `in_rounds`.
    pub(super) fn takes(
        &mut self,
        in_flight: usize,
        cost: usize,
        longest: Duration,
        in_rounds: bool,
        now: Instant,
    ) -> bool {
        if in_flight == 0 {
            self.alone = cost > self.bytes;
            self.round = Some(now);
            return true;
        }
        if in_rounds && self.round.is_none_or(|began| now.saturating_duration_since(began) > self.round()) {
            return false;
        }
        // When the watched one is late, what is in flight is more than the link takes now.
        let aim = self.aim(longest);
        let late = self.watched.is_some_and(|watched| now.saturating_duration_since(watched.since) > aim * 2);
        let takes = in_flight + cost <= self.bytes && !late;
        self.was_full |= !takes;
        takes
    }

    /// Are round trips long? `None`: too few have been seen.
    pub(super) fn finds_long(&self) -> Option<bool> {
        self.quickest.filter(|_| self.seen >= SURE).map(|quickest| quickest >= LONG)
    }

    fn round(&self) -> Duration {
        if self.quickest.is_some_and(|quickest| quickest >= VERY_LONG) { VERY_LONG_ROUND } else { ROUND }
    }

    /// That reading was handed over. The last one of a moment is watched: the first may go alone, and say nothing of the others.
    pub(super) fn sent(&mut self, sequence: Sequence, now: Instant) {
        let began = self.watched.map_or(now, |watched| watched.began);
        if now.saturating_duration_since(began) <= self.round() {
            self.watched = Some(Watched { sequence, since: now, began });
        }
    }

    /// Who is watched.
    pub(super) fn watched(&self) -> Option<Sequence> {
        self.watched.map(|watched| watched.sequence)
    }

    /// The watched one is confirmed.
    pub(super) fn confirmed(&mut self, longest: Duration, now: Instant) {
        let Some(Watched { since, .. }) = self.watched.take() else { return };
        let took = now.saturating_duration_since(since);
        self.latest = took;
        self.quickest = Some(self.quickest.map_or(took, |quickest| quickest.min(took)));
        self.seen = self.seen.saturating_add(1); // only whether it is a few matters
        let aim = self.aim(longest);
        let (least, most) = match (took > aim, std::mem::take(&mut self.was_full)) {
            (true, _) => (0.0, 1.0),
            (false, true) => (1.0, MOST_GROWTH),
            (false, false) => return,
        };
        let factor = (aim.mul_f64(NEARLY).as_secs_f64() / took.as_secs_f64()).clamp(least, most);
        self.bytes = times(self.bytes, factor).clamp(LEAST_BYTES, MOST_BYTES);
    }

    /// What was in flight is not any more, and nothing is known of it. The window stays.
    pub(super) fn forget(&mut self) {
        self.watched = None;
        self.was_full = false;
        self.alone = false;
    }

    /// Another producer: it begins as small as it gets. How quick the link can be stays known.
    pub(super) fn begin_anew(&mut self) {
        *self = Self { quickest: self.quickest, seen: self.seen, ..Self::new() };
    }

    /// Less than what is in flight cannot be: the least, or one reading that is larger than the window.
    pub(super) fn is_least(&self) -> bool {
        self.bytes == LEAST_BYTES || self.alone
    }

    /// How long the quickest one took, with any producer.
    pub(super) fn quickest(&self) -> Option<Duration> {
        self.quickest
    }

    /// How long the last watched one took.
    pub(super) fn latest(&self) -> Duration {
        self.latest
    }

    /// What has been on its way for so long may be stuck: longer than the next window takes when this one has been full, and
    /// nothing may take `longest`. To ask about it costs a round trip in which no reading goes.
    pub(super) fn is_late_after(&self, longest: Duration) -> Duration {
        self.latest.mul_f64(MOST_GROWTH + 1.0).min(longest)
    }

    fn aim(&self, longest: Duration) -> Duration {
        let wanted = self.quickest.unwrap_or_default() * AIM_IN_QUICKEST;
        wanted.max(LEAST_AIM).min(longest)
    }
}

#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "at most 16 MiB, times a factor between 0 and 4"
)]
fn times(bytes: usize, factor: f64) -> usize {
    (bytes as f64 * factor) as usize
}

#[cfg(test)]
#[expect(clippy::arithmetic_side_effects, clippy::cast_precision_loss, reason = "small numbers in tests")]
mod tests {
    use super::*;

    const COST: usize = 800;

    /// A link that takes `rate` bytes of cost a second, and one request at a time, which is answered after `round_trip`; a
    /// backlog goes over it for `time`. How much of the time it carried something, and the longest way of a reading.
    fn drain(
        window: &mut Window,
        rate: f64,
        round_trip: Duration,
        time: Duration,
        longest: Duration,
    ) -> (f64, Duration) {
        window.forget();
        let start = Instant::now();
        let (mut now, mut next) = (start, 1);
        let (mut queue, mut request): (Vec<(Sequence, Instant)>, Vec<_>) = (vec![], vec![]);
        let (mut busy, mut slowest) = (Duration::ZERO, Duration::ZERO);
        while now < start + time {
            for (sequence, sent) in std::mem::take(&mut request) {
                slowest = slowest.max(now - sent);
                if window.watched() == Some(sequence) {
                    window.confirmed(longest, now);
                }
            }
            // What waits in librdkafka goes at once; what there is room for then goes with the next one.
            let mut hand_over = |queue: &mut Vec<_>, in_request: usize| {
                while (queue.len() + in_request) * COST < 2 << 20
                    && window.takes((queue.len() + in_request) * COST, COST, longest, round_trip >= LONG, now)
                {
                    queue.push((next, now));
                    window.sent(next, now);
                    next += 1;
                }
            };
            if queue.is_empty() {
                hand_over(&mut queue, 0);
            }
            request = std::mem::take(&mut queue);
            // On long links that is too late for this round.
            if round_trip < LONG {
                hand_over(&mut queue, request.len());
            }
            let sending = Duration::from_secs_f64((request.len() * COST) as f64 / rate);
            busy += sending;
            now += sending + round_trip;
        }
        (busy.as_secs_f64() / (now - start).as_secs_f64(), slowest)
    }

    #[test]
    fn it_fills_a_link_of_any_width_and_no_reading_is_overdue() {
        let longest = Duration::from_secs(12);
        // 15 bytes of the wire are 800 of memory: 9,600 bit/s to 10 Mbit/s.
        for rate in [64e3, 800e3, 6e6, 60e6] {
            for round_trip in [2, 20, 300].map(Duration::from_millis) {
                let mut window = Window::new();
                let (share, slowest) = drain(&mut window, rate, round_trip, Duration::from_secs(120), longest);
                let bound_by_memory = f64::from(2_u32 << 20) / rate < round_trip.as_secs_f64() * 10.0;
                assert!(share > 0.9 || bound_by_memory, "{rate} {round_trip:?}: {share}");
                assert!(slowest < longest, "{rate} {round_trip:?}: {slowest:?}");
            }
        }
    }

    #[test]
    fn a_link_that_becomes_slow_has_its_window_shrunk_by_as_much() {
        let (mut window, longest) = (Window::new(), Duration::from_secs(12));
        drain(&mut window, 6e6, Duration::from_millis(20), Duration::from_secs(20), longest);
        let wide = window.bytes;
        drain(&mut window, 64e3, Duration::from_millis(20), Duration::from_secs(60), longest);
        assert!(window.bytes * 8 < wide, "{} of {wide}", window.bytes);
        drain(&mut window, 6e6, Duration::from_millis(20), Duration::from_secs(60), longest);
        assert!(window.bytes * 2 >= wide, "{} of {wide}", window.bytes);
    }

    #[test]
    fn on_a_long_link_nothing_follows_before_all_of_a_round_has_come_back() {
        for (round_trip, follows) in [(LONG / 2, true), (LONG, false)] {
            let (mut window, start) = (Window::new(), Instant::now());
            for sequence in 1..=Sequence::from(SURE) {
                assert!(window.finds_long().is_none() && window.takes(0, COST, LEAST_AIM, false, start));
                window.sent(sequence, start);
                window.confirmed(LEAST_AIM, start + round_trip);
            }
            let in_rounds = window.finds_long().unwrap();
            assert_eq!(in_rounds, !follows);
            let began = start + round_trip * 2;
            assert!(window.takes(0, COST, LEAST_AIM, in_rounds, began));
            assert!(window.takes(COST, COST, LEAST_AIM, in_rounds, began + ROUND));
            assert_eq!(window.takes(COST, COST, LEAST_AIM, in_rounds, began + ROUND * 2), follows, "{round_trip:?}");
            assert!(window.takes(0, COST, LEAST_AIM, in_rounds, began + ROUND * 3), "the next round");
        }
    }

    #[test]
    fn it_does_not_grow_while_nobody_waits_for_room() {
        let (mut window, now) = (Window::new(), Instant::now());
        for sequence in 1..100 {
            assert!(window.takes(0, COST, LEAST_AIM, false, now));
            window.sent(sequence, now);
            window.confirmed(LEAST_AIM, now);
        }
        assert!(window.is_least());
    }

    #[test]
    fn a_reading_that_is_larger_than_the_window_goes_alone() {
        let (mut window, now) = (Window::new(), Instant::now());
        window.bytes = 2 * LEAST_BYTES;
        assert!(window.takes(0, 100_000, LEAST_AIM, false, now) && window.is_least());
        assert!(!window.takes(100_000, COST, LEAST_AIM, false, now));
        assert!(!window.takes(COST, 100_000, LEAST_AIM, false, now));
        assert!(window.takes(0, COST, LEAST_AIM, false, now) && !window.is_least());
    }
}
