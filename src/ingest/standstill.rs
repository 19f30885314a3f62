//! Does the peer stand still until it is answered?
//!
//! A commit waits for others when that saves flash ([`crate::buffer`]). Most publishers go on meanwhile. One that waits for each
//! acknowledgement, or at the end of its window (paho-mqtt's 20, mosquitto's 20 at QoS 2), does not: it would send four windows
//! a second. Nobody announces a window, so it is learnt:
//!
//! ```text
//!  read      ▮ ▮ ▮ ▮ ▮                                  ▮ ▮ ▮ ▮ ▮
//!  answered                                           ✓
//!                     └──── silence ────┘             └┘ pause: the time it usually takes to the next one
//! ```
//! A silence of many pauses, ended by an answer, is no accident; three such in a row are not either. From then on, as many
//! unanswered packets as there were then are taken for its window, and the commit that they are in does not wait. Whoever sends
//! more than that did not stand still, and is not suspected again for a while.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Silence is suspicious from so many pauses on.
const SUSPICIOUS: u32 = 3;

/// So many suspicious silences in a row, or one of this many pauses, are proof.
const IN_A_ROW: u32 = 3;
const BEYOND_DOUBT: u32 = 30;

/// Who takes longer from an answer to the next packet is hardly slowed by a commit that waits a quarter of a second; a sensor
/// that reports four times a second and goes on regardless would look the same.
const LONGEST_PAUSE: Duration = Duration::from_millis(80);

/// What is left of a long pause after the next packet: half after 14.
const FADING: f64 = 0.95;

/// After a mistake, so many answers are not judged.
const UNJUDGED: u32 = 64;

/// See the module's words.
#[derive(Debug, Default)]
pub(super) struct Standstill {
    /// Packets of each batch that is not answered yet.
    unanswered: VecDeque<usize>,
    in_flight: usize,
    last_read: Option<Instant>,
    last_answer: Option<Instant>,
    /// The longest of the last few. Sensors that report together make a broker send in bursts: a mean says nothing.
    pause: Option<Duration>,
    suspicions: u32,
    window: Option<usize>,
    unjudged: u32,
    /// The present silence was judged already.
    judged: bool,
}

impl Standstill {
    /// A batch with so many packets to be answered is handed over. Does the peer stand still now?
    pub(super) fn read(&mut self, packets: usize, now: Instant) -> bool {
        self.unanswered.push_back(packets);
        if packets == 0 {
            return false;
        }
        if self.window.is_some_and(|window| self.in_flight >= window) {
            self.was_wrong();
        }
        if let Some(before) = self.last_read.max(self.last_answer) {
            let pause = now.saturating_duration_since(before).min(LONGEST_PAUSE * 2);
            self.pause = Some(self.pause.map_or(pause, |longest| longest.mul_f64(FADING).max(pause)));
        }
        self.in_flight += packets;
        self.last_read = Some(now);
        self.judged = false;
        self.window.is_some_and(|window| self.in_flight >= window)
    }

    /// The oldest batch is answered.
    pub(super) fn answered(&mut self, now: Instant) {
        if !self.judged {
            self.judge(now);
            self.judged = true;
        }
        self.in_flight -= self.unanswered.pop_front().unwrap_or_default();
        self.last_answer = Some(now);
    }

    fn judge(&mut self, now: Instant) {
        if self.unjudged > 0 {
            self.unjudged -= 1;
            return;
        }
        let (Some(pause), Some(last_read)) = (self.pause, self.last_read) else { return };
        if pause > LONGEST_PAUSE {
            self.suspicions = 0;
            if self.window.is_some() {
                self.was_wrong();
            }
            return;
        }
        let silence = now.saturating_duration_since(last_read);
        if self.in_flight == 0 || silence < pause * SUSPICIOUS {
            self.suspicions = 0;
            return;
        }
        self.suspicions += 1;
        if self.suspicions >= IN_A_ROW || silence >= pause * BEYOND_DOUBT {
            self.suspicions = 0;
            self.window = Some(self.in_flight);
        }
    }

    fn was_wrong(&mut self) {
        self.window = None;
        self.suspicions = 0;
        self.unjudged = UNJUDGED;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    /// A commit that waits, and one that does not.
    const LATE: Duration = Duration::from_millis(250);
    const SOON: Duration = Duration::from_millis(3);

    /// A publisher with a window that sends every `each` while it may, for `seconds`; commits come every [`LATE`], or at once when
    /// it stands still. How many it could send.
    fn sent(window: usize, each: Duration, pause: Duration, seconds: u64) -> usize {
        let (mut peer, start) = (Standstill::default(), Instant::now());
        let (mut now, mut commit_at, mut sent, mut open) = (start, start, 0, 0);
        let mut free_at = start;
        while now < start + Duration::from_secs(seconds) {
            if open < window && free_at <= commit_at {
                now = now.max(free_at);
                let waits = peer.read(1, now);
                (sent, open, free_at) = (sent + 1, open + 1, now + each);
                if waits {
                    commit_at = commit_at.min(now + SOON);
                } else if open == 1 {
                    commit_at = commit_at.max(now);
                }
            } else {
                now = commit_at;
                for _ in 0..open {
                    peer.answered(now);
                }
                (open, commit_at, free_at) = (0, now + LATE, free_at.max(now + pause));
            }
        }
        sent
    }

    #[test]
    fn who_waits_for_each_acknowledgement_is_seen_and_not_slowed() {
        assert!(sent(1, MS / 5, MS / 5, 10) >= 2_000, "one at a time");
        assert!(sent(20, MS, MS, 10) >= 5_000, "paho-mqtt's window");
        assert!(sent(1, 20 * MS, 20 * MS, 10) >= 300, "with 20 ms of work between");
    }

    #[test]
    fn who_goes_on_regardless_is_not_suspected() {
        for each in [1, 2, 10, 40, 100, 260, 1_000] {
            let (mut peer, start) = (Standstill::default(), Instant::now());
            let (mut next_read, mut next_commit, mut open, mut standing) = (start, start + LATE, 0, 0);
            for _ in 0..10_000 {
                if next_read <= next_commit {
                    standing += u32::from(peer.read(1, next_read));
                    (next_read, open) = (next_read + each * MS, open + 1);
                } else {
                    (0..open).for_each(|_| peer.answered(next_commit));
                    (next_commit, open) = (next_commit + LATE, 0);
                }
            }
            assert!(standing <= 20, "one every {each} ms: {standing} times");
        }
    }

    #[test]
    fn bursts_are_not_taken_for_a_window() {
        let (mut peer, start, mut standing) = (Standstill::default(), Instant::now(), 0);
        // Four sensors behind a broker that report at the same moments, 25 times a second.
        let (mut next_read, mut next_commit, mut open) = (start, start + LATE, 0);
        for n in 0..10_000 {
            if next_read <= next_commit {
                standing += u32::from(peer.read(1, next_read));
                (next_read, open) = (next_read + if n % 4 == 3 { 40 * MS } else { MS / 10 }, open + 1);
            } else {
                (0..open).for_each(|_| peer.answered(next_commit));
                (next_commit, open) = (next_commit + LATE, 0);
            }
        }
        assert!(standing <= 20, "{standing} times");
    }

    #[test]
    fn a_window_that_grows_is_learnt_anew() {
        let (mut peer, start) = (Standstill::default(), Instant::now());
        assert!(!peer.read(1, start) && !peer.read(1, start + MS));
        (0..2).for_each(|_| peer.answered(start + LATE));
        let again = start + LATE + MS;
        assert!(!peer.read(1, again), "one of two");
        assert!(peer.read(1, again + MS), "as many as then");
        assert!(!peer.read(1, again + 2 * MS), "it has not stood still");
    }

    #[test]
    fn what_asks_for_no_answer_says_nothing() {
        let (mut peer, start) = (Standstill::default(), Instant::now());
        for n in 0..100 {
            assert!(!peer.read(0, start + n * MS));
            peer.answered(start + n * MS + LATE);
        }
        assert_eq!(peer.window, None);
    }
}
