//! Tidegate: MQTT to Kafka for edge devices. A PUBACK means the reading is on disk, and nothing but Kafka's own
//! confirmation ever takes it off.
//!
//! # The custody rules
//!
//! Code cites the rule at the line that keeps it (`custody rule 1`); `tests/tidy.rs` fails when a rule names no keeper
//! or no test.
//!
//! 1. **No acknowledgement before durability.** PUBACK (QoS 1) and PUBREC/PUBCOMP (QoS 2) leave only after the SQLite
//!    commit that holds the event has returned, and that commit was synced.
//!    Kept by `buffer/commit.rs` (only there a `Durable` is made) and `ingest/acker.rs` (which takes nothing else).
//!    Proven by `an_acknowledgement_means_that_the_reading_survives_the_kill_in_the_same_instant`,
//!    `everything_acknowledged_is_in_the_files_at_once` and `an_acknowledgement_before_the_commit_is_seen` (the control).
//! 2. **An event leaves the buffer in exactly four ways**: Kafka confirmed it; it was moved to the dead letters with its
//!    reason; a declared overflow policy dropped it, counted and announced; an operator purged it. No timeout, retry
//!    budget, Kafka error or restart ever removes one.
//!    A changed configuration is no verdict over what is held, either.
//!    Kept by `delivered.rs`, `buffer/settle.rs`, `forward/verdict.rs` and `forward/relocation.rs`. Proven by `a_broker_that_is_killed_and_restarted_loses_nothing_and_keeps_the_order`,
//!    `every_row_of_the_recovery_table_has_its_verdict`,
//!    `a_backlog_whose_route_is_renamed_goes_where_it_was_sent_from_a_nearly_full_file`,
//!    `a_release_before_delivery_is_seen` and `a_route_that_is_a_verdict_is_seen` (the controls).
//! 3. **Exactly once**: nothing is stored twice that QoS 2 delivered once, because packet ids are durable with the events
//!    and PUBCOMP leaves when their removal is; and with `delivery = "exactly-once"` a `read_committed` reader sees all that
//!    the buffer took once.
//!    A start of the agent gives out a number once, and says so on each reading: so a copy of a buffer is told from the
//!    original, and a repeat from another reading.
//!    Kept by `ingest/unreleased.rs`, `buffer/sessions.rs`, `buffer/instances.rs`, `forward/transaction.rs` and
//!    `forward/watermark_reader.rs`. Proven by `no_id_is_given_out_twice_after_the_log_has_lost_its_end`,
//!    `a_clone_takes_a_new_identity_with_at_least_once_and_readers_see_each_reading_once`,
//!    `an_id_that_is_given_out_twice_is_seen` (a control),
//!    `a_death_in_any_phase_of_a_transaction_is_not_seen_by_readers`,
//!    `an_end_of_transaction_that_comes_late_tears_nothing`, `a_transaction_that_another_gateway_holds_open_is_waited_for`,
//!    `a_producer_that_is_kept_after_a_retried_end_of_transaction_is_seen` (a control),
//!    `a_qos_2_reading_is_taken_once_though_the_agent_is_killed_between_pubrec_and_pubrel`,
//!    `qos_2_goes_on_where_it_was_after_a_kill` and `forgotten_packet_ids_are_seen_at_a_broker` (the control).
//! 4. **Order**: events of one MQTT topic reach their Kafka partition in arrival order.
//!    Kept by `forward/outstanding.rs`, `forward/parking.rs` and `forward/relocation.rs`. Proven by
//!    `parked_readings_follow_a_mended_route_and_a_redirect_in_order_and_once_through_kills`, `a_missing_topic_waits_in_order_while_the_other_flows_and_drains_when_it_appears`,
//!    `no_acknowledged_reading_is_lost_when_the_agent_behind_its_listener_is_killed` and
//!    `a_parked_topic_that_is_overtaken_is_seen` (the control).
//! 5. **Everything is bounded**: disk, memory, open files, reconnect rate, log rate. No bound is silent.
//!    Kept by `buffer/limits.rs`, `ingest/session_intake.rs`, `ingest/listener/gate.rs`, `forward/admission.rs`, `forward/moves.rs`
//!    and `retry.rs`. Proven by
//!    `sensors_that_make_25_000_topics_hold_up_nobody`, `topics_of_60_kb_do_not_pile_up_in_memory`,
//!    `dead_letters_fit_where_their_readings_were_and_are_said_once`,
//!    `memory_is_bounded_while_kafka_is_away_and_200_000_readings_pile_up_and_drain`,
//!    `a_full_buffer_acknowledges_nothing_settles_on_and_opens_again`,
//!    `an_oversized_packet_does_not_make_a_loop_and_does_not_stop_others`,
//!    `small_readings_do_not_keep_the_large_reads_that_brought_them`, `three_hundred_silent_sockets_of_one_host_keep_nobody_out`
//!    and `an_unbounded_intake_is_seen` (a control).
//! 6. **In doubt, stop.** After a failed write or an unknown commit outcome: stop acknowledging, reopen, re-read, go on
//!    from what the disk says. Never a crash loop on bad input, never an in-memory fallback, never a deleted buffer.
//!    Kept by `buffer/open.rs` and `buffer/writer.rs`. Proven by `a_failing_disk_acknowledges_nothing_and_recovers_unaided`,
//!    `each_page_of_garbage_costs_what_was_on_it` and
//!    `a_file_without_its_head_or_its_end_is_looked_through`.
//! 7. **Every loss is on the books.** A ledger in the database, which survives restarts: received = delivered +
//!    dead-lettered + dropped + purged + lost + held; lost is what went with a part of the file that cannot be read.
//!    Kept by `buffer/ledger.rs`. Proven by `nothing_is_lost_or_reordered_and_the_books_balance`,
//!    `every_line_of_metrics_parses_and_event_counters_survive_a_kill` and `a_dropped_dead_letter_is_seen` (a control).

mod event; // the words all stages share
mod clock; // what time it is, and whether that is so
mod ingest; // MQTT in
mod buffer; // durable in SQLite
mod cbor; // the buffer's encoding
mod delivered; // Kafka's confirmation as a value
mod watermark; // what the watermark topic holds
mod route; // which Kafka topic and key
mod forward; // Kafka out
mod run; // wires the stages, stops them in flow order
mod settings; // what can be set, each key once
mod config; // TOML to checked values
mod observe; // logs, metrics, health
pub mod cli; // the subcommands
mod retry; // how long to wait
mod log_throttle; // how often to say it
mod stop; // stopping as a value
mod planted; // bugs on purpose, for the tests' positive controls

/// For the documents of the proofs, which show what does not compile; nothing else is public.
#[doc(hidden)]
pub mod proofs {
    pub use crate::buffer::Durable;
    pub use crate::delivered::{Acked, Batch, CommittedWatermark, Delivered};
    pub use crate::event::RouteId;
    pub use crate::ingest::acker::Acker;
    pub use crate::ingest::receipt::{Answer, Epoch, Receipt, Receipts};
    pub use crate::watermark::Instance;
}
