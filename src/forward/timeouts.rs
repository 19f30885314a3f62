//! How long Kafka may take: for a request, for a record, for a transaction. It follows the link.
//!
//! Short is better for others: a gateway that dies in a transaction holds up every `read_committed` reader of its
//! partitions for `transaction.timeout.ms`, and up to 10 s more, which is how often brokers look. Too short is no delivery
//! at all: at 9,600 bit/s a reading of 100 kB is on its way for 83 s. And a transaction's ends take three or four round
//! trips in which nothing else flows, so that on a long link it must be long to be worth them.
//!
//! So there are a few steps. Every start begins with the shortest. A longer one is taken when the link asks for it: when
//! the ends of transactions take a tenth of the time, or when the least that can be sent was overdue twice in a row. It
//! costs a new producer, and is given back when for an hour a shorter one would have done.

use std::time::{Duration, Instant};

use rdkafka::ClientConfig;

/// `transaction.timeout.ms`, and `message.timeout.ms`, which may not be longer and deletes nothing: the transaction is over
/// then, and the readings are in the buffer. 15 s bear a round trip of 0.2 s or 50 kbit/s at full use; 60 s is what Java's
/// producer has; 900 s is what brokers allow at most (`transaction.max.timeout.ms`), and a reading of 1 MB takes that
/// at 9,600 bit/s.
const TRANSACTIONS: &[Duration] =
    &[Duration::from_secs(15), Duration::from_secs(60), Duration::from_secs(300), Duration::from_secs(900)];

/// For its ends alone a transaction is not made longer than this: readers may bear five minutes where a round trip takes
/// seconds. The last step is for single readings that need it.
const LONGEST_FOR_ENDS: usize = 2;

/// `socket.timeout.ms` without transactions: librdkafka's default, and the most it takes.
const REQUESTS: &[Duration] = &[Duration::from_secs(60), Duration::from_secs(300)];

/// A transaction is worth its ends when it is so many times as long.
const WORTH: u32 = 16;

/// ... and has to be made longer when it is not even so many times.
const NOT_WORTH: u32 = 12;

/// Where nothing is connected yet, a transaction takes up to so many of the round trips that a start measures, which are one
/// or two each.
const COLD: u32 = 10;

/// ... and its ends so many of them, once everything is connected. With a backlog a start takes times that are worth such
/// ends at once: a producer more in the midst of it costs ten round trips, and the window that it had.
const ENDS: u32 = 4;

/// One measured round trip of so much is enough to know that the link is long, before anything is sent. Less may be a
/// broker that has just started; the window finds it out by and by.
const SURELY_LONG: Duration = Duration::from_millis(200);

/// The least was overdue so many times in a row: once may be a link that was gone for a while.
const MOST_OVERDUE: u32 = 2;

/// A shorter step would have done for so long.
const GIVE_BACK: Duration = Duration::from_secs(3600);

/// On longer links librdkafka waits so long for the rest of what it is given: the first few in a request of their own
/// would cost a round trip.
const LINGER_MS: &str = "20";

/// From this round trip on a twentieth of it is nothing, and a slow processor hands over a whole window in it.
pub(super) const VERY_LONG: Duration = Duration::from_secs(1);
const VERY_LONG_LINGER_MS: &str = "50";

/// `batch.size` where the link is not long.
pub(super) const BATCH_BYTES: &str = "262144";

/// There, a request holds more: with one at a time, each costs a round trip. It is librdkafka's own size, which fits into what
/// brokers take.
const LONG_BATCH_BYTES: &str = "1000000";

/// How long a link is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Reach {
    /// Nothing was measured yet.
    Unknown,
    Short,
    /// As [`SURELY_LONG`] says, or the window's confirmations.
    Long,
    /// [`VERY_LONG`]
    VeryLong,
}

/// See the documentation of the module.
#[derive(Debug)]
pub(super) struct Timeouts {
    transactional: bool,
    steps: Vec<Duration>,
    step: usize,
    /// `socket.timeout.ms`, if `[kafka.options]` has it.
    asked: Option<Duration>,
    /// How long a round trip takes; the shortest times may do all the same.
    reach: Reach,
    overdue: u32,
    less_would_do_since: Option<Instant>,
}

impl Timeouts {
    /// For producers of that configuration.
    pub(super) fn new(config: &ClientConfig) -> Self {
        let transactional = config.get("transactional.id").is_some();
        let asked = config.get("socket.timeout.ms").and_then(|ms| ms.parse().ok()).map(Duration::from_millis);
        let steps = match asked {
            _ if transactional => TRANSACTIONS.to_vec(),
            Some(asked) => vec![asked],
            None => REQUESTS.to_vec(),
        };
        Self { transactional, steps, step: 0, asked, reach: Reach::Unknown, overdue: 0, less_would_do_since: None }
    }

    /// Gives a configuration the present times.
    pub(super) fn apply(&self, config: &mut ClientConfig) {
        let timeout = self.timeout();
        if self.transactional {
            for name in ["transaction.timeout.ms", "message.timeout.ms"] {
                config.set(name, timeout.as_millis().to_string());
            }
            if let Some(asked) = self.asked {
                // librdkafka does not take a longer one.
                config.set("socket.timeout.ms", asked.min(timeout).as_millis().to_string());
            }
        } else {
            config.set("socket.timeout.ms", timeout.as_millis().to_string());
        }
        config.set("linger.ms", self.linger_ms());
        // Unless somebody has chosen another size.
        let (from, to) = if self.is_long() { (BATCH_BYTES, LONG_BATCH_BYTES) } else { (LONG_BATCH_BYTES, BATCH_BYTES) };
        if config.get("batch.size") == Some(from) {
            config.set("batch.size", to);
        }
    }

    /// Confirmations have told whether round trips are long.
    pub(super) fn link_is(&mut self, long: bool) {
        self.reach = if long { self.reach.max(Reach::Long) } else { Reach::Short };
    }

    /// How long a round trip takes is to be measured before anything is sent.
    pub(super) fn is_new_to_the_link(&self) -> bool {
        self.reach == Reach::Unknown
    }

    /// A round trip took so long, or longer: who gives no answer in the time that any has is far away, or will be found out.
    pub(super) fn measured(&mut self, round_trip: Duration) {
        let reach = match round_trip {
            long if long >= VERY_LONG => Reach::VeryLong,
            long if long >= SURELY_LONG => Reach::Long,
            _ => Reach::Short,
        };
        self.reach = self.reach.max(reach);
    }

    /// A producer of that configuration makes requests as this link wants them.
    pub(super) fn suits(&self, config: &ClientConfig) -> bool {
        config.get("linger.ms") == Some(self.linger_ms())
    }

    fn linger_ms(&self) -> &'static str {
        match self.reach {
            Reach::VeryLong => VERY_LONG_LINGER_MS,
            Reach::Long => LINGER_MS,
            Reach::Unknown | Reach::Short if self.step > 0 => LINGER_MS,
            Reach::Unknown | Reach::Short => "0",
        }
    }

    /// Each round trip counts: requests carry what they can, and readings go in rounds.
    pub(super) fn is_long(&self) -> bool {
        self.reach >= Reach::Long || self.step > 0
    }

    /// A transaction, or without them a request, is over after this time.
    pub(super) fn timeout(&self) -> Duration {
        self.at(self.step)
    }

    /// Records go into a transaction for so long at most. It leaves the rest for their confirmations, for the ends, and for
    /// a link that becomes slower meanwhile.
    pub(super) fn filling(&self) -> Duration {
        filling(self.timeout())
    }

    /// A reading may be on its way to its confirmation for so long, the queue before it included.
    pub(super) fn flight(&self) -> Duration {
        // Without transactions it is only the request that is timed, and that is half of what is on its way.
        let share = match (self.transactional, self.step) {
            (false, _) => 0.66,
            (true, 0) => 0.2,
            // The longer the time, the less of it is round trips and chance.
            (true, _) => 0.25,
        };
        self.timeout().mul_f64(share)
    }

    /// How long a transaction stays open when more is waiting, if its ends take so long.
    pub(super) fn worth(&self, ends: Duration) -> Duration {
        (ends * WORTH).min(self.filling())
    }

    /// A transaction is committed whose ends have taken so long, and which took `all` in all; more was `waiting`. True: the
    /// next producer shall have other times.
    pub(super) fn committed(&mut self, ends: Duration, all: Duration, waiting: bool, now: Instant) -> bool {
        self.overdue = 0;
        let is_worth = |timeout: Duration| ends * NOT_WORTH <= filling(timeout);
        if waiting && !is_worth(self.timeout()) {
            let longest = LONGEST_FOR_ENDS.min(self.last());
            let enough = (self.step..=longest).find(|step| is_worth(self.at(*step))).unwrap_or(longest);
            return self.take(enough.max(self.step));
        }
        let Some(shorter) = self.step.checked_sub(1) else { return false };
        let bound = filling(self.at(shorter));
        if ends * WORTH > bound || all > bound {
            self.less_would_do_since = None;
            return false;
        }
        let since = *self.less_would_do_since.get_or_insert(now);
        now.saturating_duration_since(since) >= GIVE_BACK && self.take(shorter)
    }

    /// A start has found out how long a round trip takes; is a backlog `waiting`? True: no transaction would get through, or
    /// be worth its ends, and the next producer shall have other times.
    pub(super) fn began(&mut self, round_trip: Duration, waiting: bool) -> bool {
        self.measured(round_trip);
        let is_enough = |timeout: Duration| {
            let is_worth = || round_trip * ENDS * NOT_WORTH <= filling(timeout);
            round_trip * COLD <= timeout && (!waiting || is_worth())
        };
        let longest = LONGEST_FOR_ENDS.min(self.last());
        let enough = (self.step..=longest).find(|step| is_enough(self.at(*step))).unwrap_or(longest);
        self.take(enough.max(self.step))
    }

    /// Something is confirmed without transactions.
    pub(super) fn confirmed(&mut self) {
        self.overdue = 0;
    }

    /// What was sent was overdue; was it the least that can be sent? True: the next producer shall have other times.
    pub(super) fn overdue(&mut self, was_least: bool) -> bool {
        self.overdue += 1;
        was_least && self.overdue >= MOST_OVERDUE && self.take((self.step + 1).min(self.last()))
    }

    /// So often in a row that it is no outage.
    pub(super) fn is_overdue(&self) -> bool {
        self.overdue >= MOST_OVERDUE
    }

    /// The brokers do not allow so long a transaction. True: they are asked for less from now on.
    pub(super) fn refused(&mut self) -> bool {
        if !self.transactional || self.step == 0 {
            return false;
        }
        self.steps.truncate(self.step);
        self.take(self.last())
    }

    fn take(&mut self, step: usize) -> bool {
        if step == self.step {
            return false;
        }
        let (was_s, now_s) = (self.timeout().as_secs(), self.at(step).as_secs());
        if self.transactional {
            tracing::info!(
                was_s,
                now_s,
                "kafka: the agent changes the time-out of its transactions to fit this link; if the gateway dies in \
                 a transaction, read_committed consumers wait for so long"
            );
        } else {
            tracing::info!(was_s, now_s, "kafka: the agent changes the time-out of its requests to fit this link");
        }
        self.step = step;
        self.less_would_do_since = None;
        true
    }

    fn last(&self) -> usize {
        self.steps.len() - 1
    }

    fn at(&self, step: usize) -> Duration {
        self.steps.get(step).copied().unwrap_or(Duration::from_secs(15))
    }
}

fn filling(timeout: Duration) -> Duration {
    timeout.mul_f64(0.45)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn transactional() -> Timeouts {
        Timeouts::new(ClientConfig::new().set("transactional.id", "t"))
    }

    #[test]
    fn a_quick_link_keeps_the_shortest_times_whatever_waits() {
        let mut timeouts = transactional();
        for _ in 0..1_000 {
            assert!(!timeouts.committed(SECOND / 100, 6 * SECOND, true, Instant::now()));
        }
        assert_eq!(timeouts.timeout(), 15 * SECOND);
    }

    #[test]
    fn long_ends_make_long_transactions_when_something_waits_and_at_most_of_five_minutes() {
        let mut timeouts = transactional();
        assert!(!timeouts.committed(SECOND, 2 * SECOND, false, Instant::now()), "nothing waits");
        assert!(timeouts.committed(SECOND, 6 * SECOND, true, Instant::now()));
        assert_eq!(timeouts.timeout(), 60 * SECOND);
        assert!(timeouts.committed(60 * SECOND, 120 * SECOND, true, Instant::now()));
        assert_eq!(timeouts.timeout(), 300 * SECOND);
        assert!(!timeouts.committed(60 * SECOND, 120 * SECOND, true, Instant::now()));
    }

    #[test]
    fn a_start_over_a_long_link_takes_longer_times_at_once() {
        for (round_trip, waiting, timeout) in [
            (SECOND / 2, false, 15),
            (2 * SECOND, false, 60),
            (SECOND / 10, true, 15),
            (SECOND / 3, true, 60),
            (2 * SECOND, true, 300),
        ] {
            let mut timeouts = transactional();
            assert_eq!(timeouts.began(round_trip, waiting), timeout > 15, "{round_trip:?} {waiting}");
            assert_eq!(timeouts.timeout(), timeout * SECOND, "{round_trip:?} {waiting}");
            assert!(!timeouts.is_new_to_the_link() && timeouts.is_long() == (round_trip >= SURELY_LONG));
        }
    }

    #[test]
    fn one_long_round_trip_is_enough_to_begin_with_and_confirmations_know_better() {
        let mut timeouts = Timeouts::new(ClientConfig::new().set("linger.ms", "0"));
        let mut config = ClientConfig::new();
        for (round_trip, linger) in [(SECOND / 10, "0"), (SECOND / 2, LINGER_MS), (SECOND, VERY_LONG_LINGER_MS)] {
            timeouts.measured(round_trip);
            timeouts.apply(&mut config);
            assert_eq!(config.get("linger.ms"), Some(linger));
        }
        timeouts.link_is(false);
        assert!(!timeouts.suits(&config), "a broker that was slow once");
    }

    #[test]
    fn the_least_that_is_overdue_twice_in_a_row_gets_more_time_and_an_outage_does_not() {
        let mut timeouts = transactional();
        for _ in 0..10 {
            assert!(!timeouts.overdue(true));
            assert!(!timeouts.committed(SECOND / 10, SECOND, false, Instant::now()));
        }
        let overdue: Vec<bool> = (0..5).map(|_| timeouts.overdue(true)).collect();
        assert_eq!(overdue, [false, true, true, true, false]);
        assert_eq!(timeouts.timeout(), 900 * SECOND);
        assert!(!timeouts.overdue(true));
    }

    #[test]
    fn what_the_brokers_do_not_allow_is_not_asked_for_again() {
        let mut timeouts = transactional();
        assert!(!timeouts.refused());
        assert!(timeouts.committed(SECOND, 6 * SECOND, true, Instant::now()) && timeouts.refused());
        assert_eq!(timeouts.timeout(), 15 * SECOND);
        assert!(!timeouts.committed(SECOND, 6 * SECOND, true, Instant::now()));
    }

    #[test]
    fn time_that_is_not_needed_for_an_hour_is_given_back() {
        let (mut timeouts, start) = (transactional(), Instant::now());
        assert!(timeouts.committed(SECOND, 6 * SECOND, true, start));
        let quick = |timeouts: &mut Timeouts, at| timeouts.committed(SECOND / 10, SECOND, true, at);
        assert!(!quick(&mut timeouts, start));
        assert!(!quick(&mut timeouts, start + GIVE_BACK / 2));
        assert!(!timeouts.committed(SECOND / 10, 7 * SECOND, true, start + GIVE_BACK / 2), "a long one");
        assert!(!quick(&mut timeouts, start + GIVE_BACK));
        assert!(quick(&mut timeouts, start + GIVE_BACK * 2));
        assert_eq!(timeouts.timeout(), 15 * SECOND);
    }

    #[test]
    fn librdkafka_takes_every_step() {
        for options in [&[][..], &[("socket.timeout.ms", "45000")], &[("transactional.id", "t")]] {
            let mut config = ClientConfig::new();
            config.set("bootstrap.servers", "127.0.0.1:1").set("enable.idempotence", "true");
            for (name, value) in options {
                config.set(*name, *value);
            }
            let mut timeouts = Timeouts::new(&config);
            loop {
                timeouts.apply(&mut config);
                config.create::<rdkafka::producer::BaseProducer>().unwrap();
                if timeouts.step == timeouts.last() {
                    break;
                }
                timeouts.step += 1;
            }
        }
    }
}
