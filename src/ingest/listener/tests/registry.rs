//! Sessions on loan: take-over, expiry, bounds and waiting wills.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::super::memory::Memory;
use super::super::origin::ConnectionId;
use super::super::registry::{Answer, Claim, Displaced, Entry, Now, Registry, SessionEnd};
use super::will;
use crate::buffer::{IdChange, PacketIds, StoredSession};
use crate::clock::Clock;
use crate::event::Properties;
use crate::ingest::codec::Will;
use crate::ingest::limits::{EARLIEST_SANE_MS, MAX_SESSIONS_AWAY, MAX_WAITING_WILL_BYTES, MAX_WILL_DELAY, WILL_PAUSE};

const HOUR: Duration = Duration::from_secs(3600);

struct Desk {
    registry: Registry,
    now: Now,
    connections: ConnectionId,
    /// Where the next one comes from: the last number of its address.
    host: u8,
    /// Wills of sessions that ended with a claim.
    overdue: Vec<Will>,
}

impl Desk {
    fn new() -> Self {
        Self::with(HashMap::new())
    }

    fn with(stored: HashMap<Arc<str>, StoredSession>) -> Self {
        let now = Now { instant: Instant::now(), unix_ms: EARLIEST_SANE_MS + 1_000_000_000, clock: Clock::default() };
        Self { registry: Registry::new("floor", 3, 8, stored), now, connections: 0, host: 1, overdue: Vec::new() }
    }

    fn claim(&mut self, client: &str, resume: bool) -> (ConnectionId, oneshot::Receiver<Answer>) {
        self.connections += 1;
        let (answer, answered) = oneshot::channel();
        let origin = std::net::IpAddr::from([192, 0, 2, self.host]).into();
        let claim = Claim { connection: self.connections, origin, client: client.into(), resume, answer };
        self.overdue.extend(self.registry.claim(claim, self.now));
        (self.connections, answered)
    }

    fn enter(&mut self, client: &str, resume: bool) -> (ConnectionId, Entry) {
        let (id, mut answered) = self.claim(client, resume);
        (id, entry(&mut answered))
    }

    fn end_session(
        &mut self,
        id: ConnectionId,
        client: &str,
        memory: Memory,
        expiry_s: u32,
        will: Option<(Will, Duration)>,
    ) {
        let session_end = SessionEnd { connection: id, client: client.into(), memory, expiry_s, will };
        let (forgotten, at_once) = self.registry.end_session(session_end, self.now);
        assert!(forgotten.is_empty());
        self.overdue.extend(at_once);
    }
}

fn entry(answered: &mut oneshot::Receiver<Answer>) -> Entry {
    match answered.try_recv() {
        Ok(Answer::Enter(entry)) => *entry,
        other => panic!("{other:?}"),
    }
}

fn with_id(id: u16) -> Memory {
    Memory::stored(PacketIds::from([(id, None)]))
}

fn stored(client: &str, expiry_s: u32, used_ms: i64) -> HashMap<Arc<str>, StoredSession> {
    let session = StoredSession { packet_ids: PacketIds::from([(7, None)]), used_ms, expiry_s };
    HashMap::from([(format!("listen:floor:{client}").into(), session)])
}

#[test]
fn a_session_comes_back_to_its_client_and_to_no_other() {
    let mut desk = Desk::new();
    let (id, first) = desk.enter("press", true);
    assert!(!first.lease.present);
    desk.end_session(id, "press", with_id(7), 60, None);
    assert!(!desk.enter("drill", true).1.lease.present);
    let (_, again) = desk.enter("press", true);
    assert!(again.lease.present && again.lease.memory.unreleased.contains(7));
}

#[test]
fn a_clean_start_gets_nothing_of_the_old_session_but_the_duty_to_forget_it() {
    let mut desk = Desk::with(stored("press", 60, EARLIEST_SANE_MS + 1_000_000_000));
    let (_, fresh) = desk.enter("press", false);
    assert!(!fresh.lease.present && fresh.lease.memory.is_idle() && fresh.lease.memory.on_disk);
}

#[test]
fn a_session_that_ended_with_its_connection_is_gone() {
    let mut desk = Desk::new();
    let (id, _) = desk.enter("press", true);
    desk.end_session(id, "press", with_id(7), 0, None);
    let (_, fresh) = desk.enter("press", true);
    assert!(!fresh.lease.present && fresh.lease.memory.is_idle());
}

#[test]
fn what_was_half_way_when_a_session_ended_is_counted_once() {
    let mut desk = Desk::new();
    let mut visit = |resume, expiry_s| {
        let (id, _) = desk.enter("press", resume);
        let at_its_begin = desk.registry.take_unreleased_lost();
        desk.end_session(id, "press", with_id(7), expiry_s, None);
        (at_its_begin, desk.registry.take_unreleased_lost())
    };
    assert_eq!(visit(true, 60), (0, 0), "it waits");
    assert_eq!(visit(false, 60), (1, 0), "a clean start ended the one before");
    assert_eq!(visit(true, 0), (0, 1), "it went on, and ended with its connection");
    assert_eq!(visit(true, 60), (0, 0), "there was nothing left");
}

#[test]
fn the_will_of_a_client_that_comes_and_goes_is_published_once_a_minute_and_at_last() {
    let mut desk = Desk::new();
    let flap = |desk: &mut Desk| {
        let (id, _) = desk.enter("press", true);
        desk.now.instant += Duration::from_secs(1);
        desk.end_session(id, "press", Memory::default(), 0, Some((will("status/press"), Duration::ZERO)));
        std::mem::take(&mut desk.overdue).len()
    };
    assert_eq!(flap(&mut desk), 1);
    for _ in 0..50 {
        assert_eq!(flap(&mut desk), 0, "too soon after the last one");
    }
    let due = |desk: &mut Desk| desk.registry.due_wills(desk.now.instant, |_| true).len();
    // The 50 above have taken 50 s.
    desk.now.instant += WILL_PAUSE.saturating_sub(Duration::from_secs(51));
    assert_eq!(due(&mut desk), 0);
    desk.now.instant += Duration::from_secs(1);
    assert_eq!(due(&mut desk), 1, "it has stayed away");
    assert_eq!(due(&mut desk), 0);
    desk.now.instant += WILL_PAUSE;
    assert_eq!(flap(&mut desk), 1);
    // Another client's is its own.
    let (id, _) = desk.enter("drill", true);
    desk.end_session(id, "drill", Memory::default(), 0, Some((will("status/drill"), Duration::ZERO)));
    assert_eq!(desk.overdue.len(), 1);
}

#[test]
fn one_host_takes_no_more_than_its_share_and_gives_way_when_another_comes() {
    let mut desk = Desk { registry: Registry::new("floor", 3, 3, HashMap::new()), ..Desk::new() };
    let mut greedy: Vec<_> = (0..3).map(|n| desk.enter(&format!("greedy {n}"), false)).collect();
    assert!(matches!(desk.claim("greedy 3", false).1.try_recv(), Ok(Answer::Crowded)));
    desk.host = 2;
    let (_, mut honest) = desk.enter("honest", false);
    assert_eq!(greedy[2].1.displaced.try_recv(), Ok(Displaced::ByAnother), "the newest of those with the most");
    // Two against one: nobody is driven round in circles.
    assert!(matches!(desk.claim("honest 2", false).1.try_recv(), Ok(Answer::Busy)));
    desk.end_session(greedy[2].0, "greedy 2", Memory::default(), 0, None);
    desk.host = 1;
    assert!(matches!(desk.claim("greedy 2", false).1.try_recv(), Ok(Answer::Busy)));
    assert!(greedy.iter_mut().take(2).all(|(_, entry)| entry.displaced.try_recv().is_err()));
    assert!(honest.displaced.try_recv().is_err());
    // Its own client comes back, though there is no place for a further one.
    let (again, mut answered) = desk.claim("greedy 1", false);
    desk.end_session(greedy[1].0, "greedy 1", Memory::default(), 0, None);
    assert!(!entry(&mut answered).lease.present);
    desk.end_session(again, "greedy 1", Memory::default(), 0, None);
    desk.enter("greedy 3", false);
}

#[test]
fn the_next_connection_enters_with_what_the_old_one_hands_back_and_not_before() {
    let mut desk = Desk::new();
    let (old, mut first) = desk.enter("press", true);
    let (new, mut answered) = desk.claim("press", true);
    assert!(answered.try_recv().is_err(), "two connections hold one session");
    assert_eq!(first.displaced.try_recv(), Ok(Displaced::ByItself));
    desk.end_session(old, "press", with_id(9), 60, None);
    let second = entry(&mut answered);
    assert!(second.lease.present && second.lease.memory.unreleased.contains(9));
    desk.end_session(new, "press", with_id(9), 60, None);
    assert!(desk.enter("press", true).1.lease.present);
}

#[test]
fn of_those_who_wait_only_the_last_enters() {
    let mut desk = Desk::new();
    let (old, _first) = desk.enter("press", true);
    let (_, mut second) = desk.claim("press", true);
    let (_, mut third) = desk.claim("press", true);
    assert!(matches!(second.try_recv(), Err(oneshot::error::TryRecvError::Closed)));
    desk.end_session(old, "press", Memory::default(), 60, None);
    entry(&mut third);
}

#[test]
fn whoever_gave_up_waiting_takes_no_session_with_it() {
    let mut desk = Desk::new();
    let (old, _first) = desk.enter("press", true);
    drop(desk.claim("press", false));
    desk.end_session(old, "press", with_id(9), 60, None);
    assert!(desk.enter("press", true).1.lease.memory.unreleased.contains(9));
}

#[test]
fn a_late_end_of_another_connection_changes_nothing() {
    let mut desk = Desk::new();
    let (id, _first) = desk.enter("press", true);
    desk.end_session(id + 100, "press", with_id(1), 60, None);
    let (_, mut answered) = desk.claim("press", true);
    assert!(answered.try_recv().is_err(), "the holder is still there");
}

#[test]
fn max_connections_turns_newcomers_away_but_not_a_client_that_comes_back() {
    let mut desk = Desk::new();
    let (first, _one) = desk.enter("1", true);
    let (_, _two) = desk.enter("2", true);
    let (_, _three) = desk.enter("3", true);
    let (_, mut fourth) = desk.claim("4", true);
    assert!(matches!(fourth.try_recv(), Ok(Answer::Busy)));
    let (_, mut again) = desk.claim("1", true);
    desk.end_session(first, "1", Memory::default(), 60, None);
    entry(&mut again);
    let (_, mut fourth) = desk.claim("4", true);
    assert!(matches!(fourth.try_recv(), Ok(Answer::Busy)), "three are connected still");
}

#[test]
fn being_turned_away_costs_no_session() {
    let mut desk = Desk::with(stored("4", u32::MAX, 0));
    let (first, _one) = desk.enter("1", true);
    let (_, _two) = desk.enter("2", true);
    let (_, _three) = desk.enter("3", true);
    let (_, mut fourth) = desk.claim("4", true);
    assert!(matches!(fourth.try_recv(), Ok(Answer::Busy)));
    desk.end_session(first, "1", Memory::default(), 0, None);
    assert!(desk.enter("4", true).1.lease.memory.unreleased.contains(7));
}

#[test]
fn a_session_left_since_the_start_ends_by_the_monotonic_clock_alone() {
    for (away_s, wall_jump_ms, present) in
        [(59, 0, true), (59, 1_000_000_000_000, true), (59, -1_000_000_000_000, true), (61, 0, false)]
    {
        let mut desk = Desk::new();
        let (id, _) = desk.enter("press", true);
        desk.end_session(id, "press", with_id(7), 60, None);
        desk.now.instant += Duration::from_secs(away_s);
        desk.now.unix_ms += wall_jump_ms;
        assert_eq!(desk.enter("press", true).1.lease.present, present, "{away_s} s, jump {wall_jump_ms} ms");
    }
}

#[test]
fn a_session_from_before_the_start_ends_only_by_a_clock_that_makes_sense() {
    let then = EARLIEST_SANE_MS + 1_000_000;
    for (used_ms, now_ms, expiry_s, present, why) in [
        (then, then + 59_000, 60, true, "not over"),
        (then, then + 61_000, 60, false, "over"),
        (then, then - 5, 60, true, "the clock went back"),
        (1_000, then, 60, true, "it was written in 1970"),
        (then, 5_000, 60, true, "it is 1970 again"),
        (then, then + 1_000_000_000_000, u32::MAX, true, "it has no end"),
        (then, then, 0, false, "it was to end with its connection"),
    ] {
        let mut desk = Desk::with(stored("press", expiry_s, used_ms));
        desk.now.unix_ms = now_ms;
        desk.now.clock.synchronised = true;
        assert_eq!(desk.enter("press", true).1.lease.present, present, "{why}");
    }
}

#[test]
fn a_session_from_before_the_start_ends_by_the_time_since_the_start_where_no_time_server_is_followed() {
    let then = EARLIEST_SANE_MS + 1_000_000;
    for (here_s, present) in [(59, true), (65, false)] {
        let mut desk = Desk::with(stored("press", 60, then));
        desk.now.unix_ms = then + 1_500_000_000_000;
        desk.now.instant += Duration::from_secs(here_s);
        assert_eq!(desk.enter("press", true).1.lease.present, present, "50 years later by the clock, {here_s} s here");
    }
}

#[test]
fn sessions_of_other_links_are_not_mine() {
    let session = || StoredSession { packet_ids: PacketIds::from([(7, None)]), used_ms: 0, expiry_s: u32::MAX };
    let mut desk = Desk::with(HashMap::from([
        ("listen:floor2:press".into(), session()),
        ("broker:floor".into(), session()),
        ("listen:floor:press:7".into(), session()),
    ]));
    assert!(!desk.enter("press", true).1.lease.present);
    assert!(desk.enter("press:7", true).1.lease.present);
}

#[test]
fn the_longest_away_without_packet_ids_goes_first_when_there_are_too_many() {
    let stored = (0..MAX_SESSIONS_AWAY)
        .map(|n| {
            let packet_ids = if n == 0 { PacketIds::from([(1, None)]) } else { PacketIds::new() };
            let used_ms = EARLIEST_SANE_MS + i64::try_from(n).unwrap();
            (format!("listen:floor:{n}").into(), StoredSession { packet_ids, used_ms, expiry_s: u32::MAX })
        })
        .collect();
    let mut desk = Desk::with(stored);
    let (id, _) = desk.enter("new", true);
    let session_end = SessionEnd {
        connection: id,
        client: "new".into(),
        memory: Memory::default(),
        expiry_s: 60,
        will: Some((will("w"), HOUR)),
    };
    let (forgotten, _) = desk.registry.end_session(session_end, desk.now);
    let [change] = &forgotten[..] else { panic!("{forgotten:?}") };
    assert_eq!(&*change.session, "listen:floor:1", "0 has a message half way, 1 is the oldest of the others");
    assert_eq!(change.changes, [IdChange::Forget]);
    assert!(desk.enter("new", true).1.lease.present);
}

#[test]
fn a_will_waits_for_its_delay_and_is_void_when_the_client_resumes() {
    let mut desk = Desk::new();
    let (id, _) = desk.enter("press", true);
    desk.end_session(id, "press", Memory::default(), 3600, Some((will("press"), Duration::from_secs(30))));
    desk.now.instant += Duration::from_secs(29);
    assert!(desk.registry.due_wills(desk.now.instant, |_| true).is_empty());
    let (id, _) = desk.enter("press", true);
    assert!(desk.overdue.is_empty());
    desk.end_session(id, "press", Memory::default(), 3600, Some((will("press"), Duration::from_secs(30))));
    desk.now.instant += Duration::from_secs(30);
    assert_eq!(desk.registry.due_wills(desk.now.instant, |_| true).len(), 1);
    assert!(desk.registry.due_wills(desk.now.instant, |_| true).is_empty(), "published twice");
    desk.enter("press", false);
    assert!(desk.overdue.is_empty());
}

#[test]
fn a_waiting_will_is_due_when_its_session_ends_by_a_clean_start() {
    let mut desk = Desk::new();
    let (id, _) = desk.enter("press", true);
    desk.end_session(id, "press", Memory::default(), 3600, Some((will("press"), Duration::from_secs(30))));
    desk.enter("press", false);
    assert!(matches!(&desk.overdue[..], [will] if will.topic == "press"));
    assert!(desk.registry.all_wills().is_empty());
}

#[test]
fn taking_over_voids_a_delayed_will_when_the_session_goes_on_and_not_else() {
    for (resume, due) in [(true, false), (false, true)] {
        let mut desk = Desk::new();
        let (id, _first) = desk.enter("press", true);
        let (_, mut answered) = desk.claim("press", resume);
        desk.end_session(id, "press", Memory::default(), 3600, Some((will("press"), Duration::from_secs(30))));
        entry(&mut answered);
        assert_eq!(!desk.overdue.is_empty(), due);
    }
}

#[test]
fn wills_wait_in_bounded_memory_and_no_longer_than_a_day() {
    let mut desk = Desk::new();
    let mut at_once = 0;
    for n in 0..1000 {
        let client = format!("{n}");
        let (id, _) = desk.enter(&client, true);
        let mut big = will("press");
        big.payload = vec![0; 10_000].into();
        let will = Some((big, Duration::from_secs(u64::from(u32::MAX))));
        let session_end =
            SessionEnd { connection: id, client: client.into(), memory: Memory::default(), expiry_s: u32::MAX, will };
        at_once += usize::from(desk.registry.end_session(session_end, desk.now).1.len() == 1);
    }
    assert!((850..950).contains(&at_once), "{at_once} of 1000 wills of 10 kB");
    desk.now.instant += MAX_WILL_DELAY;
    let mut room = 2;
    let due = desk.registry.due_wills(desk.now.instant, |_| {
        room -= 1;
        room >= 0
    });
    assert_eq!(due.len(), 2, "the others wait until there is room for them");
    at_once += 2;
    assert_eq!(desk.registry.due_wills(desk.now.instant, |_| true).len(), 1000 - at_once);
}

#[test]
fn a_will_without_delay_and_one_of_a_session_that_has_ended_do_not_wait() {
    for (expiry_s, delay) in [(3600, Duration::ZERO), (0, Duration::ZERO)] {
        let mut desk = Desk::new();
        let (id, _) = desk.enter("press", true);
        desk.end_session(id, "press", Memory::default(), expiry_s, Some((will("press"), delay)));
        assert_eq!(desk.overdue.len(), 1);
        assert!(desk.registry.all_wills().is_empty());
    }
}

#[test]
fn the_properties_of_a_waiting_will_are_charged_with_what_they_take() {
    let with = |count: usize| {
        let user = vec![("name".into(), "value".into()); count];
        Will { properties: Some(Box::new(Properties { user, ..Properties::default() })), ..will("press") }
    };
    let one = with(2).cost_bytes() - with(1).cost_bytes();
    assert!(one > "namevalue".len() + 2 * size_of::<(Box<str>, Box<str>)>(), "{one}");
    let mut waiting = 0;
    let mut desk = Desk::new();
    for n in 0..1000 {
        let client = format!("{n}");
        let (id, _) = desk.enter(&client, true);
        let will = Some((with(256), HOUR));
        let (connection, client) = (id, client.into());
        let session_end = SessionEnd { connection, client, memory: Memory::default(), expiry_s: u32::MAX, will };
        waiting += usize::from(desk.registry.end_session(session_end, desk.now).1.is_empty());
    }
    assert!(waiting * with(256).cost_bytes() <= MAX_WAITING_WILL_BYTES, "{waiting} wait");
}

#[test]
fn what_could_not_be_forgotten_is_forgotten_by_the_next_connection_or_at_the_stop() {
    for expiry_s in [0, 60] {
        let mut desk = Desk::with(stored("press", u32::MAX, 0));
        let (id, fresh) = desk.enter("press", false);
        // It went before the buffer was told, and comes back and wants its session.
        let memory = Memory { stale: true, ..fresh.lease.memory };
        desk.end_session(id, "press", memory, expiry_s, None);
        let (id, again) = desk.enter("press", true);
        assert!(!again.lease.present && again.lease.memory.on_disk && !again.lease.memory.stale);
        let memory = Memory { stale: true, ..again.lease.memory };
        desk.end_session(id, "press", memory, expiry_s, None);
        let [change] = &desk.registry.stale()[..] else { panic!("nothing to forget") };
        assert_eq!((&*change.session, &change.changes[..]), ("listen:floor:press", &[IdChange::Forget][..]));
        assert!(desk.registry.stale().is_empty());
    }
}
