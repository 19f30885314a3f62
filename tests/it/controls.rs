//! Positive controls: every scenario must turn red on the bug that it is there to find.
//!
//! The scenarios are those of the tests; the binary has the bug planted at the line that keeps the rule
//! (`src/planted.rs`, built by `tests/run`). A scenario that cannot be run is no control: only the verdict counts.

use crate::brokers::behind_hivemq;
use crate::clocks::{waited_for_longer_than_the_retention, wrong_clock};
use crate::custody::{kill_at_random, killed_right_after_an_acknowledgement, qos_2_across_a_kill};
use crate::damage::{flipped_bit_in_the_books, garbage_page, misread_once};
use crate::exactly_once::{die_in, late_end_txn};
use crate::health::stuck_disk;
use crate::hostile::{Offence, offending_broker, poisoned_session};
use crate::identity::{self, cloned, full_disk_at_start, lost_tail};
use crate::kafka_away::killed_while_kafka_is_away;
use crate::libraries::go_through_rumqttc;
use crate::memory::{flood, small_beside_large};
use crate::nothing_final::names_hang;
use crate::parking::{Closed, one_of_two_topics_closed, one_record_too_large};
use crate::refusals::{BLAMING, FINAL, Mode, Refused, refused};
use crate::routes::{dead_letters_by_the_thousand, renamed_with_a_backlog};
use crate::session::{broker_that_lost_everything, cut_while_a_commit_is_under_way, qos_2_resumed};
use crate::stop::stopped_under_load;
use crate::support::agent::Build;
use crate::support::kills::Way;
use crate::support::wire::Version;
use crate::support::{Outcome, Trouble, Verdict, trouble};
use crate::watermarks::stalled_partition;

fn red(bug: &'static str, scenario: impl FnOnce(Build) -> Outcome<Verdict>) -> Outcome<()> {
    found(bug, scenario(Build::Planted(bug))?)
}

/// The same where the scenario kills at moments that it does not choose: once it may miss the bug, three times it does not.
fn red_in_three(bug: &'static str, scenario: impl Fn(Build) -> Outcome<Verdict>) -> Outcome<()> {
    for _ in 0..2 {
        let verdict = scenario(Build::Planted(bug))?;
        if verdict.is_err() {
            return found(bug, verdict);
        }
    }
    red(bug, scenario)
}

fn found(bug: &str, verdict: Verdict) -> Outcome<()> {
    match verdict {
        Err(Trouble(found)) => {
            eprintln!("{bug} was found: {}", found.lines().next().unwrap_or_default());
            Ok(())
        }
        Ok(()) => trouble!("{bug} is planted and the scenario does not see it"),
    }
}

#[test]
fn an_acknowledgement_before_the_commit_is_seen() -> Outcome<()> {
    red("ack-before-commit", killed_right_after_an_acknowledgement)
}

#[test]
fn an_acknowledgement_before_the_commit_is_seen_by_random_kills() -> Outcome<()> {
    red_in_three("ack-before-commit", |build| kill_at_random(build, Way::Listener, 10))
}

#[test]
fn an_acknowledgement_before_the_commit_is_seen_behind_hivemq() -> Outcome<()> {
    red_in_three("ack-before-commit", behind_hivemq)
}

#[test]
fn a_release_before_delivery_is_seen() -> Outcome<()> {
    red("release-before-delivery", killed_while_kafka_is_away)
}

#[test]
fn an_acknowledgement_on_the_wrong_connection_is_seen() -> Outcome<()> {
    red("no-connection-epoch", |build| cut_while_a_commit_is_under_way(build, Version::V5, 1))
}

#[test]
fn forgotten_packet_ids_are_seen_at_the_listener() -> Outcome<()> {
    red("forget-packet-ids", |build| qos_2_across_a_kill(build, Version::V5))
}

#[test]
fn forgotten_packet_ids_are_seen_at_a_broker() -> Outcome<()> {
    red("forget-packet-ids", |build| qos_2_resumed(build, Version::V5))
}

#[test]
fn a_listener_that_wants_dup_is_seen_by_a_library_that_never_sets_it() -> Outcome<()> {
    red("want-dup", go_through_rumqttc)
}

#[test]
fn a_missing_subscription_is_seen() -> Outcome<()> {
    red("no-resubscribe", broker_that_lost_everything)
}

#[test]
fn a_missing_back_off_is_seen() -> Outcome<()> {
    red("no-backoff", |build| offending_broker(build, Version::V5, Offence::Malformed))
}

#[test]
fn a_message_that_blocks_a_link_for_ever_is_seen() -> Outcome<()> {
    red("flawed-blocks", |build| poisoned_session(build, 1))
}

#[test]
fn a_message_that_is_acknowledged_unread_and_not_kept_is_seen() -> Outcome<()> {
    [1, 2].into_iter().try_for_each(|qos| red("drop-flawed", |build| poisoned_session(build, qos)))
}

#[test]
fn an_unbounded_intake_is_seen() -> Outcome<()> {
    red("unbounded-intake", |build| flood(build, 0))
}

#[test]
fn reads_that_small_readings_keep_alive_are_seen() -> Outcome<()> {
    red("pinned-reads", small_beside_large)
}

#[test]
fn a_parked_topic_that_is_overtaken_is_seen() -> Outcome<()> {
    red("parked-out-of-order", |build| one_of_two_topics_closed(build, Closed::Missing))
}

#[test]
fn a_parked_topic_that_is_dropped_is_seen() -> Outcome<()> {
    red("drop-parked", |build| one_of_two_topics_closed(build, Closed::Missing))
}

#[test]
fn a_buffer_that_is_set_aside_for_a_row_is_seen() -> Outcome<()> {
    red("row-damage-sets-aside", flipped_bit_in_the_books)
}

#[test]
fn garbage_that_nobody_gets_past_is_seen() -> Outcome<()> {
    red("garbage-is-final", garbage_page)
}

#[test]
fn a_watermark_that_vouches_for_what_was_not_read_is_seen() -> Outcome<()> {
    red("unread-is-delivered", misread_once)
}

#[test]
fn a_careless_stop_is_seen() -> Outcome<()> {
    red("careless-stop", stopped_under_load)
}

#[test]
fn a_blind_watchdog_is_seen() -> Outcome<()> {
    red("blind-watchdog", stuck_disk)
}

#[test]
fn a_route_that_is_a_verdict_is_seen() -> Outcome<()> {
    red("route-is-verdict", renamed_with_a_backlog)
}

#[test]
fn dead_letters_that_outgrow_their_readings_are_seen() -> Outcome<()> {
    red("row-a-dead-letter", dead_letters_by_the_thousand)
}

#[test]
fn a_dropped_dead_letter_is_seen() -> Outcome<()> {
    red("drop-dead-letters", one_record_too_large)
}

#[test]
fn an_id_that_is_given_out_twice_is_seen() -> Outcome<()> {
    red("give-out-twice", |build| lost_tail(build, identity::Way::AtLeastOnce))?;
    red("give-out-twice", |build| lost_tail(build, identity::Way::ExactlyOnce))?;
    red("give-out-twice", cloned)
}

#[test]
fn a_watermark_of_a_start_that_is_not_on_disk_is_seen() -> Outcome<()> {
    red("speak-unwritten", full_disk_at_start)
}

#[test]
fn a_reading_that_bears_the_start_that_sent_it_is_seen_by_readers() -> Outcome<()> {
    red("instance-of-sender", cloned)
}

#[test]
fn a_cursor_that_moves_before_the_commit_is_seen() -> Outcome<()> {
    found("cursor-before-commit", die_in("cursor-before-commit,die-committing", 3)?)
}

#[test]
fn a_watermark_outside_the_transaction_is_seen() -> Outcome<()> {
    found("watermark-outside", die_in("watermark-outside,die-committing", 3)?)
}

#[test]
fn a_watermark_that_is_read_before_it_is_committed_is_seen() -> Outcome<()> {
    found("no-read-committed", die_in("no-read-committed,die-committing", 3)?)
}

#[test]
fn a_watermark_that_is_read_without_waiting_for_others_is_seen() -> Outcome<()> {
    red("no-stable-read", stalled_partition)
}

#[test]
fn a_producer_that_is_kept_after_a_retried_end_of_transaction_is_seen() -> Outcome<()> {
    red("keep-producer", |build| late_end_txn(build, 40))
}

#[test]
fn readings_that_are_released_before_kafka_refuses_them_are_seen() -> Outcome<()> {
    [Mode::AtLeastOnce, Mode::ExactlyOnce].into_iter().try_for_each(|mode| {
        red("release-before-delivery", |build| refused(build, mode, Refused::Readings, &FINAL[..2]))
    })
}

#[test]
fn a_good_reading_that_is_blamed_for_its_batch_is_seen() -> Outcome<()> {
    [Mode::AtLeastOnce, Mode::ExactlyOnce]
        .into_iter()
        .try_for_each(|mode| red("blame-the-batch", |build| refused(build, mode, Refused::Readings, &BLAMING[2..])))
}

#[test]
fn a_client_that_is_ended_on_the_loop_is_seen() -> Outcome<()> {
    red("end-on-the-loop", names_hang)
}

#[test]
fn a_clock_that_is_believed_whatever_kafka_says_is_seen() -> Outcome<()> {
    for mode in [Mode::ExactlyOnce, Mode::AtLeastOnce] {
        red("believe-the-clock", |build| wrong_clock(build, mode, 2 * 3_600_000))?;
    }
    red("believe-the-clock", |build| wrong_clock(build, Mode::ExactlyOnce, -50 * 365 * 86_400_000))
}

#[test]
fn records_that_bear_the_time_of_arrival_and_are_deleted_by_kafka_are_seen() -> Outcome<()> {
    red("stamp-arrival", waited_for_longer_than_the_retention)
}
