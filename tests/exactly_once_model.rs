//! A model of the way from the buffer to a `read_committed` reader, checked over every interleaving of crash, time-out,
//! lost answer, late request and recovery, for a few events.
//!
//! It is the protocol and not the code: what the forwarder does in which order, against what Kafka does (epochs,
//! transactions, the last stable offset) and what librdkafka does (it sends `EndTxn` again without a word after a broken
//! connection, and the first one may arrive late). The rules are those of `src/forward/`; each of them can be taken out,
//! and then the checker finds the loss, the repeat or the wrong order that the rule prevents.
//!
//! One Kafka partition, one buffer, events 1 to 4 of one MQTT topic, one of which Kafka refuses. Beside it another
//! gateway that may hold a transaction open on the partition of the watermark topic.

#![allow(missing_docs, reason = "a test")]
#![expect(clippy::indexing_slicing, reason = "small numbers in a test")]

use stateright::{Checker, Model, Property};

/// An event's sequence.
type Sequence = u8;

const LAST: Sequence = 4;
const POISON: Sequence = 2;
/// The largest batch.
const BATCH: usize = 2;

/// How much goes wrong in one run; all orders of it are tried.
const CRASHES: u8 = 2;
const CUTS: u8 = 2;
const TIMEOUTS: u8 = 1;
const RIVALS: u8 = 1;

/// A rule that is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Without {
    Nothing,
    /// The watermark goes only when all data is confirmed.
    RuleA,
    /// A new producer after a retried `EndTxn`.
    RuleB,
    RulesAAndB,
    /// The watermark is a part of the transaction.
    WatermarkInside,
    /// The buffer releases after the commit.
    CommitBeforeRelease,
    /// The watermark is read with `read_committed`.
    ReadCommitted,
    /// ... once the stable offset has reached the end.
    StableRead,
    /// A dead letter is durable before a watermark passes it.
    DeadLetterFirst,
    /// When the outcome of a transaction is not known: new producer, then the watermark tells.
    NewProducerInDoubt,
    /// The watermark is read after a start.
    Recovery,
    /// A batch begins with the oldest event.
    OldestFirst,
}

const MISSING: &str = "nothing released is missing";
const TWICE: &str = "nothing is there twice";
const ORDER: &str = "order is kept";
const ARRIVES: &str = "everything arrives";

struct Relay {
    without: Without,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct World {
    disk: Disk,
    agent: Agent,
    kafka: Kafka,
    /// An `EndTxn` of a dead connection, on its way: the epoch it was sent in.
    late: Option<u8>,
    left: Left,
}

/// What is durable in the buffer, bit by sequence.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Disk {
    released: u8,
    dead: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Agent {
    Down,
    /// The producer has its epoch; the watermark is not read yet.
    Started {
        epoch: u8,
    },
    /// In a transaction, or about to begin one.
    Working(Work),
    /// Sent `EndTxn`; no answer yet.
    Committing {
        work: Work,
        retried: bool,
    },
    /// Kafka has said Ok.
    Committed {
        work: Work,
        retried: bool,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
struct Work {
    epoch: u8,
    /// The batch; empty: no transaction.
    batch: Vec<Sequence>,
    /// How many of it Kafka has confirmed.
    sent: usize,
    marked: bool,
    /// Refused, and not yet durable as dead letters (only without that rule).
    dead: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
struct Kafka {
    epoch: u8,
    ongoing: bool,
    /// Written in the open transaction.
    open: Vec<Sequence>,
    open_mark: Option<Sequence>,
    /// What a `read_committed` reader sees, in order.
    log: Vec<Sequence>,
    watermark: Sequence,
    /// The newest watermark record in the log, whatever became of its transaction.
    newest_mark: Sequence,
    /// Another gateway's open transaction: a reader that does not wait sees this watermark.
    held_down: Option<Sequence>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Left {
    crashes: u8,
    cuts: u8,
    timeouts: u8,
    rivals: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Action {
    Start,
    ReadWatermark,
    Begin(usize),
    /// The next record reaches Kafka. After a torn transaction: on a partition that is new in it, or not.
    Send {
        new_partition: bool,
    },
    SendMark,
    EndTxnArrives,
    /// ... and is done, but its answer is lost: librdkafka asks again.
    EndTxnAnswerLost,
    /// The connection breaks; the request is still under way.
    EndTxnCut,
    LateEndTxnArrives,
    /// No answer in time: the outcome is not known.
    GiveUp,
    Release,
    Crash,
    TransactionTimesOut,
    RivalBegins,
    RivalEnds,
}

fn bit(sequence: Sequence) -> u8 {
    1 << sequence
}

impl World {
    fn is_settled(&self, work: &Work, sequence: Sequence) -> bool {
        (self.disk.released | self.disk.dead | work.dead) & bit(sequence) != 0
    }

    /// `EndTxn` reaches Kafka.
    fn end(&mut self, work: Work, retried: bool, answered: bool) {
        if work.epoch != self.kafka.epoch {
            self.agent = Agent::Started { epoch: self.kafka.init() };
            return;
        }
        self.kafka.commit(); // when the first request has done it already, Kafka says Ok again
        self.agent =
            if answered { Agent::Committed { work, retried } } else { Agent::Committing { work, retried: true } };
    }

    fn release(&mut self, work: &Work) {
        for sequence in &work.batch {
            self.disk.released |= bit(*sequence);
        }
        self.disk.dead |= work.dead;
    }

    fn unsettled(&self, work: &Work) -> Vec<Sequence> {
        (1..=LAST).filter(|sequence| !self.is_settled(work, *sequence)).collect()
    }

    /// Everything up to here is settled or in this batch.
    fn mark_of(&self, work: &Work) -> Sequence {
        (1..=LAST).take_while(|s| self.is_settled(work, *s) || work.batch.contains(s)).last().unwrap_or(0)
    }
}

impl Kafka {
    /// `InitProducerId`: aborts what is open, and nobody with an older epoch can do anything any more.
    fn init(&mut self) -> u8 {
        self.abort();
        self.epoch += 1;
        self.epoch
    }

    fn abort(&mut self) {
        self.ongoing = false;
        self.open.clear();
        self.open_mark = None;
    }

    fn commit(&mut self) {
        self.log.append(&mut self.open);
        if let Some(mark) = self.open_mark.take() {
            self.watermark = mark;
        }
        self.ongoing = false;
    }
}

impl Relay {
    fn is_without(&self, rules: &[Without]) -> bool {
        rules.contains(&self.without)
    }

    /// What to do when the state of the transaction is not known.
    fn in_doubt(&self, world: &mut World, work: &Work) {
        if self.is_without(&[Without::NewProducerInDoubt]) {
            world.kafka.abort();
            world.agent = Agent::Working(Work { epoch: work.epoch, dead: work.dead, ..Work::default() });
        } else {
            world.agent = Agent::Started { epoch: world.kafka.init() };
        }
    }

    fn send(&self, world: &mut World, mut work: Work, new_partition: bool) {
        if work.epoch != world.kafka.epoch {
            return world.agent = Agent::Started { epoch: world.kafka.init() }; // fenced
        }
        let torn = work.sent > 0 && !world.kafka.ongoing;
        if torn && !new_partition {
            return self.in_doubt(world, &work); // InvalidTxnState
        }
        let sequence = work.batch[work.sent];
        if sequence == POISON {
            // The batch is aborted, and goes again without it.
            world.kafka.abort();
            if self.is_without(&[Without::DeadLetterFirst]) {
                work.dead |= bit(sequence);
            } else {
                world.disk.dead |= bit(sequence);
            }
            world.agent = Agent::Working(Work { epoch: work.epoch, dead: work.dead, ..Work::default() });
            return;
        }
        world.kafka.ongoing = true;
        world.kafka.open.push(sequence);
        work.sent += 1;
        world.agent = Agent::Working(work);
    }

    fn send_mark(&self, world: &mut World, mut work: Work) {
        let mark = world.mark_of(&work);
        world.kafka.newest_mark = mark;
        if self.is_without(&[Without::WatermarkInside]) {
            world.kafka.watermark = mark;
        } else {
            if work.epoch != world.kafka.epoch {
                return world.agent = Agent::Started { epoch: world.kafka.init() };
            }
            // The watermark's partition is new in each transaction: a torn one does not show here.
            world.kafka.ongoing = true;
            world.kafka.open_mark = Some(mark);
        }
        work.marked = true;
        world.agent = Agent::Working(work);
    }
}

impl Model for Relay {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        vec![World {
            disk: Disk { released: 0, dead: 0 },
            agent: Agent::Down,
            kafka: Kafka::default(),
            late: None,
            left: Left { crashes: CRASHES, cuts: CUTS, timeouts: TIMEOUTS, rivals: RIVALS },
        }]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        match &world.agent {
            Agent::Down => actions.push(Action::Start),
            Agent::Started { .. } => {
                // A stable read waits for the other gateway's transaction.
                if world.kafka.held_down.is_none() || self.is_without(&[Without::StableRead]) {
                    actions.push(Action::ReadWatermark);
                }
            }
            Agent::Working(work) if work.batch.is_empty() => {
                actions.extend((1..=BATCH).map(Action::Begin));
            }
            Agent::Working(work) => {
                let all_sent = work.sent == work.batch.len();
                if !all_sent {
                    actions.extend([false, true].map(|new_partition| Action::Send { new_partition }));
                }
                if !work.marked && (all_sent || self.is_without(&[Without::RuleA, Without::RulesAAndB])) {
                    actions.push(Action::SendMark);
                }
                if all_sent && work.marked {
                    actions.extend([Action::EndTxnArrives, Action::EndTxnAnswerLost, Action::EndTxnCut]);
                }
            }
            Agent::Committing { .. } => {
                let answers = [Action::EndTxnArrives, Action::EndTxnAnswerLost, Action::EndTxnCut];
                actions.extend(answers);
                actions.push(Action::GiveUp);
            }
            Agent::Committed { .. } => actions.push(Action::Release),
        }
        if world.late.is_some() {
            actions.push(Action::LateEndTxnArrives);
        }
        if world.agent != Agent::Down {
            actions.push(Action::Crash);
        }
        actions.extend([Action::TransactionTimesOut, Action::RivalBegins, Action::RivalEnds]);
    }

    fn next_state(&self, before: &World, action: Action) -> Option<World> {
        let mut world = before.clone();
        match (action, before.agent.clone()) {
            (Action::Start, Agent::Down) => {
                let epoch = world.kafka.init();
                let blind = Agent::Working(Work { epoch, ..Work::default() });
                world.agent = if self.is_without(&[Without::Recovery]) { blind } else { Agent::Started { epoch } };
            }
            (Action::ReadWatermark, Agent::Started { epoch }) => {
                let watermark = if self.is_without(&[Without::ReadCommitted]) {
                    world.kafka.newest_mark
                } else {
                    world.kafka.held_down.unwrap_or(world.kafka.watermark)
                };
                for sequence in (1..=watermark).filter(|s| world.disk.dead & bit(*s) == 0) {
                    world.disk.released |= bit(sequence);
                }
                world.agent = Agent::Working(Work { epoch, ..Work::default() });
            }
            (Action::Begin(size), Agent::Working(mut work)) => {
                let mut waiting = world.unsettled(&work);
                if self.is_without(&[Without::OldestFirst]) {
                    waiting.reverse();
                }
                work.batch = waiting.get(..size)?.to_vec();
                if self.is_without(&[Without::CommitBeforeRelease]) {
                    world.release(&work);
                }
                world.agent = Agent::Working(work);
            }
            (Action::Send { new_partition }, Agent::Working(work)) => self.send(&mut world, work, new_partition),
            (Action::SendMark, Agent::Working(work)) => self.send_mark(&mut world, work),
            (Action::EndTxnArrives, Agent::Working(work)) => world.end(work, false, true),
            (Action::EndTxnArrives, Agent::Committing { work, retried }) => world.end(work, retried, true),
            (Action::EndTxnAnswerLost, Agent::Working(work) | Agent::Committing { work, .. }) => {
                world.left.cuts = world.left.cuts.checked_sub(1)?;
                world.end(work, true, false);
            }
            (Action::EndTxnCut, Agent::Working(work) | Agent::Committing { work, .. }) => {
                world.left.cuts = world.left.cuts.checked_sub(1)?;
                world.late = Some(work.epoch);
                world.agent = Agent::Committing { work, retried: true };
            }
            (Action::GiveUp, Agent::Committing { work, .. }) => self.in_doubt(&mut world, &work),
            (Action::LateEndTxnArrives, _) => {
                if world.late.take()? == world.kafka.epoch && world.kafka.ongoing {
                    world.kafka.commit();
                }
            }
            (Action::Release, Agent::Committed { work, retried }) => {
                world.release(&work);
                let renew = retried && !self.is_without(&[Without::RuleB, Without::RulesAAndB]);
                let epoch = if renew { world.kafka.init() } else { work.epoch };
                world.agent = Agent::Working(Work { epoch, ..Work::default() });
            }
            (Action::Crash, _) => {
                world.left.crashes = world.left.crashes.checked_sub(1)?;
                world.agent = Agent::Down;
            }
            (Action::TransactionTimesOut, _) if world.kafka.ongoing => {
                world.left.timeouts = world.left.timeouts.checked_sub(1)?;
                world.kafka.init();
            }
            (Action::RivalBegins, _) if world.kafka.held_down.is_none() => {
                world.left.rivals = world.left.rivals.checked_sub(1)?;
                world.kafka.held_down = Some(world.kafka.watermark);
            }
            (Action::RivalEnds, _) => {
                world.kafka.held_down.take()?;
            }
            _ => return None,
        }
        Some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(MISSING, |_, world: &World| {
                (1..=LAST).all(|s| world.disk.released & bit(s) == 0 || world.kafka.log.contains(&s))
            }),
            Property::always(TWICE, |_, world: &World| {
                (1..=LAST).all(|s| world.kafka.log.iter().filter(|there| **there == s).nth(1).is_none())
            }),
            Property::always(ORDER, |_, world: &World| {
                let log = &world.kafka.log;
                let first_time = (0..log.len()).filter(|at| !log[..*at].contains(&log[*at])).map(|at| log[at]);
                first_time.is_sorted()
            }),
            Property::sometimes(ARRIVES, |_, world: &World| {
                world.kafka.log == [1, 3, 4]
                    && world.disk.released | world.disk.dead == 0b11110
                    && world.disk.dead == bit(POISON)
            }),
        ]
    }
}

/// The properties that the checker finds broken.
fn broken(without: Without) -> Vec<&'static str> {
    let checker = Relay { without }.checker().threads(2).spawn_bfs().join();
    let mut broken: Vec<&str> = checker.discoveries().into_keys().filter(|name| *name != ARRIVES).collect();
    // A checker that gets nowhere finds nothing.
    assert!(!broken.is_empty() || checker.discovery(ARRIVES).is_some(), "{without:?}: nothing ever arrives");
    broken.sort_unstable();
    broken
}

#[test]
fn no_interleaving_of_crash_time_out_and_late_request_loses_repeats_or_reorders() {
    assert_eq!(broken(Without::Nothing), [""; 0]);
}

#[test]
fn each_rule_that_is_left_out_is_found() {
    for (without, expected) in [
        (Without::RuleB, vec![TWICE]),
        (Without::RulesAAndB, vec![TWICE, MISSING]),
        (Without::WatermarkInside, vec![MISSING]),
        (Without::CommitBeforeRelease, vec![MISSING]),
        (Without::ReadCommitted, vec![MISSING]),
        (Without::StableRead, vec![TWICE]),
        (Without::DeadLetterFirst, vec![MISSING]),
        (Without::NewProducerInDoubt, vec![TWICE]),
        (Without::Recovery, vec![TWICE]),
        (Without::OldestFirst, vec![TWICE, ORDER]),
    ] {
        assert_eq!(broken(without), expected, "{without:?}");
    }
}

/// Rule A is the second line of defence: with rule B there is no torn transaction that it could make harmless. Without
/// B it is the difference between a repeat, which a reader can see, and a loss.
#[test]
fn rule_a_makes_of_every_tear_a_repeat_and_never_a_loss() {
    assert_eq!(broken(Without::RuleA), [""; 0]);
    assert!(!broken(Without::RuleB).contains(&MISSING));
    assert!(broken(Without::RulesAAndB).contains(&MISSING));
}
