//! The session: acknowledgements, QoS 2, what is kept, wills, keepalive, and its end.

use std::time::Duration;

use super::super::handshake::{Handshake, Progress};
use super::client::{Connect, V5, V311, connect, disconnect, pingreq, publish, pubrel, subscribe};
use super::{Bench, ack, disconnect_reason, kept, nothing, policy};
use crate::event::Qos;
use crate::ingest::close::{Close, Kind};
use crate::ingest::codec::Packet;
use crate::ingest::limits::MAX_UNSENT_BYTES;

#[test]
fn acknowledgements_leave_after_the_commit_in_arrival_order() {
    for version in [V311, V5] {
        let mut bench = Bench::open(&connect(version, "press"));
        bench.feed(&publish(version, 1, false, 3, "a"));
        bench.feed(&publish(version, 2, false, 2, "b"));
        bench.feed(&publish(version, 0, false, 0, "c"));
        let receipts = bench.store();
        assert_eq!(bench.said(), [], "nothing is on disk yet");
        bench.session.durable_unproven(receipts, bench.now);
        assert_eq!(bench.said(), [Packet::PubAck(ack(3)), Packet::PubRec(ack(2))]);
        bench.feed(&pubrel(2));
        assert_eq!(bench.said(), []);
        bench.commit();
        assert_eq!(bench.said(), [Packet::PubComp(ack(2))]);
        assert_eq!(bench.payloads(), ["a", "b", "c"]);
    }
}

#[test]
fn packets_cut_anywhere_are_the_same_packets() {
    for version in [V311, V5] {
        let bytes = [
            publish(version, 1, false, 1, "a"),
            pingreq(),
            publish(version, 2, false, 2, &"b".repeat(200)),
            pubrel(2),
            subscribe(version, &["x/#"]),
            publish(version, 0, false, 0, ""),
        ]
        .concat();
        for cut in 0..=bytes.len() {
            let mut bench = Bench::open(&connect(version, "press").kept());
            bench.feed(&bytes[..cut]);
            bench.commit();
            bench.feed(&bytes[cut..]);
            bench.commit();
            assert_eq!(bench.payloads(), ["a".to_owned(), "b".repeat(200), String::new()], "cut at {cut}");
            let mut said: Vec<_> = bench.said().iter().map(Packet::name).collect();
            said.sort_unstable();
            assert_eq!(said, ["PINGRESP", "PUBACK", "PUBCOMP", "PUBREC", "SUBACK"], "cut at {cut}");
            assert_eq!(bench.disk, Some([].into()));
        }
    }
}

#[test]
fn a_kept_session_is_on_disk_before_connack_and_nothing_is_decoded_before() {
    for version in [V311, V5] {
        let policy = policy();
        let bytes = [connect(version, "press").kept().bytes(), publish(version, 2, false, 1, "early")].concat();
        let Progress::Admit(admission) = Handshake::new().received(&bytes, &policy) else { panic!() };
        let mut bench = Bench::enter(&connect(version, "press").kept(), nothing());
        bench.feed(&admission.input);
        let receipts = bench.store();
        assert_eq!((bench.disk.clone(), bench.expiry_s), (Some([].into()), if version == V5 { 3600 } else { 86_400 }));
        assert_eq!((bench.said(), bench.payloads()), (vec![], vec![]));
        bench.session.durable_unproven(receipts, bench.now);
        assert!(matches!(&bench.said()[..], [Packet::ConnAck(ack)] if ack.reason == 0 && !ack.session_present));
        bench.commit();
        assert_eq!(bench.payloads(), ["early"]);
        assert_eq!(bench.said(), [Packet::PubRec(ack(1))]);
    }
}

#[test]
fn a_clean_start_forgets_durably_before_connack() {
    for version in [V311, V5] {
        let mut lease = kept(&[7]);
        lease.present = false;
        lease.memory = lease.memory.emptied();
        let mut bench = Bench::enter(&connect(version, "press"), lease);
        assert_eq!(bench.said(), []);
        let receipts = bench.store();
        assert_eq!(bench.disk, None);
        bench.session.durable_unproven(receipts, bench.now);
        assert!(matches!(&bench.said()[..], [Packet::ConnAck(ack)] if !ack.session_present));
        bench.feed(&publish(version, 2, true, 7, "new under an old id"));
        bench.commit();
        assert_eq!(bench.payloads(), ["new under an old id"]);
    }
}

#[test]
fn a_clean_start_that_keeps_from_now_on_forgets_first() {
    let mut lease = kept(&[7]);
    lease.present = false;
    lease.memory = lease.memory.emptied();
    let mut bench = Bench::enter(&Connect { clean: true, ..connect(V5, "press").kept() }, lease);
    bench.commit();
    assert_eq!((bench.disk.clone(), bench.expiry_s), (Some([].into()), 3600));
}

#[test]
fn a_session_of_one_connection_writes_nothing_about_itself_and_needs_no_commit() {
    for version in [V311, V5] {
        let mut bench = Bench::enter(&connect(version, "press"), nothing());
        assert!(matches!(bench.said()[..], [Packet::ConnAck(_)]));
        bench.feed(&publish(version, 2, false, 1, "x"));
        bench.feed(&publish(version, 2, true, 1, "x"));
        bench.commit();
        assert_eq!((bench.payloads(), bench.disk.clone()), (vec!["x".to_owned()], None));
        assert_eq!(bench.said(), [Packet::PubRec(ack(1)), Packet::PubRec(ack(1))]);
    }
}

#[test]
fn a_resumed_session_recognises_what_it_has_and_says_so() {
    for version in [V311, V5] {
        let mut bench = Bench::enter(&connect(version, "press").kept(), kept(&[7, 8]));
        bench.disk = Some([7, 8].into());
        bench.commit();
        assert!(matches!(&bench.said()[..], [Packet::ConnAck(ack)] if ack.session_present));
        bench.feed(&publish(version, 2, true, 7, "again"));
        bench.feed(&pubrel(7));
        bench.feed(&pubrel(8));
        bench.commit();
        assert_eq!(bench.payloads(), [""; 0]);
        assert_eq!(bench.said(), [Packet::PubRec(ack(7)), Packet::PubComp(ack(7)), Packet::PubComp(ack(8))]);
        assert_eq!(bench.disk, Some([].into()));
    }
}

#[test]
fn a_release_of_an_unknown_id_is_completed() {
    for version in [V311, V5] {
        let mut bench = Bench::open(&connect(version, "press").kept());
        bench.feed(&pubrel(9));
        bench.commit();
        assert_eq!(bench.said(), [Packet::PubComp(ack(9))]);
    }
}

#[test]
fn ids_of_a_batch_that_was_never_handed_over_are_not_remembered() {
    let mut bench = Bench::open(&connect(V5, "press").kept());
    bench.feed(&publish(V5, 2, false, 1, "stored"));
    bench.commit();
    bench.feed(&publish(V5, 2, false, 2, "no room"));
    bench.session.finish(Close::Closed);
    let unused = Bench::enter(&connect(V5, "x"), nothing()).session;
    let last = std::mem::replace(&mut bench.session, unused).into_last();
    assert!(last.memory.unreleased.contains(1) && !last.memory.unreleased.contains(2));
    assert!(last.changes.is_empty() && !last.memory.stale);
}

#[test]
fn a_session_that_found_no_room_leaves_the_disk_as_it_is_and_remembers_what_must_be_forgotten() {
    let clean = |connect: Connect| Connect { clean: true, ..connect };
    let kept_on = Connect { clean: false, ..connect(V5, "press") };
    for (asked, on_disk, present, stale, expiry_s) in [
        (clean(connect(V5, "press")), true, false, true, 0),
        (clean(connect(V5, "press").kept()), true, false, true, 3600),
        (connect(V5, "press").kept(), true, true, false, 3600),
        // Asked to go on, and to end with this connection.
        (kept_on, true, true, true, 0),
        // Nothing on disk, and it stays so: such a session has not begun.
        (connect(V5, "press").kept(), false, false, false, 0),
    ] {
        let mut lease = if on_disk { kept(&[7]) } else { nothing() };
        lease.present = present;
        if on_disk && !present {
            lease.memory = lease.memory.emptied();
        }
        let mut bench = Bench::enter(&asked, lease);
        bench.session.finish(Close::Closed);
        // The batch is not taken: it still waits for room.
        let unused = Bench::enter(&connect(V5, "x"), nothing()).session;
        let last = std::mem::replace(&mut bench.session, unused).into_last();
        assert_eq!(last.changes, [], "{asked:?}");
        assert_eq!((last.memory.on_disk, last.memory.stale), (on_disk, stale), "{asked:?}");
        assert_eq!(last.memory.unreleased.contains(7), present, "{asked:?}");
        assert_eq!(last.expiry_s, expiry_s, "{asked:?}");
    }
}

#[test]
fn a_client_that_waits_too_long_for_its_connack_is_told_to_come_again() {
    for (version, code) in [(V311, 3), (V5, 0x88)] {
        let mut bench = Bench::enter(&connect(version, "press").kept().with_will(0), nothing());
        bench.wait(29);
        assert!(!bench.session.is_over());
        bench.wait(1);
        assert!(matches!(&bench.said()[..], [Packet::ConnAck(ack)] if ack.reason == code));
        let last = bench.ended();
        assert_eq!(last.end.kind(), Kind::Refused);
        assert_eq!(bench.payloads(), [""; 0], "who was not let in has no will");
    }
}

#[test]
fn a_client_that_has_gone_unread_is_judged_by_what_it_had_sent() {
    let readings =
        || [publish(V5, 0, false, 0, "zero"), publish(V5, 1, false, 1, "one"), publish(V5, 2, false, 2, "two")];
    for (settled, goodbye) in [(true, true), (true, false), (false, true), (false, false)] {
        let kind = if goodbye { Kind::Goodbye } else { Kind::Gone };
        let asked = connect(V5, "press").kept().with_will(0);
        let mut bench = if settled { Bench::open(&asked) } else { Bench::enter(&asked, nothing()) };
        bench.session.hold(true, bench.now.instant);
        let mut sent = readings().concat();
        if goodbye {
            sent.extend(disconnect(0, None));
        }
        // Cut anywhere, as reads are.
        let (first, second) = sent.split_at(9);
        let mut unasked = Vec::new();
        for part in [first, second] {
            let batch = bench.session.look_through(part, bench.now);
            assert!(batch.receipts.is_empty() && batch.changes.is_empty(), "nothing can be answered any more");
            unasked.extend(batch.events);
        }
        bench.session.finish(Close::Closed);
        let last = bench.ended();
        assert_eq!(last.end.kind(), kind);
        assert_eq!(unasked.iter().map(|event| &event.payload[..]).collect::<Vec<_>>(), [b"zero"]);
        assert_eq!(bench.payloads().len(), usize::from(!goodbye), "the will");
        assert!(last.memory.is_idle(), "ids of messages that were not stored");
    }
}

#[test]
fn silence_ends_a_connection_after_one_and_a_half_keepalives() {
    for version in [V311, V5] {
        let mut bench = Bench::open(&connect(version, "press").with_will(0));
        bench.wait(89);
        assert!(!bench.session.is_over());
        bench.feed(&pingreq());
        bench.said();
        bench.wait(89);
        assert!(!bench.session.is_over());
        bench.feed(&publish(version, 1, false, 1, "half")[..5]);
        bench.wait(1);
        assert!(bench.session.is_over(), "five bytes of a packet are no sign of life");
        assert_eq!(disconnect_reason(&mut bench), (version == V5).then_some(0x8d));
        bench.ended();
        assert_eq!(bench.payloads(), ["offline"]);
    }
}

#[test]
fn silence_does_not_count_while_we_do_not_listen() {
    let mut bench = Bench::open(&connect(V5, "press"));
    bench.session.hold(true, bench.now.instant);
    bench.wait(100_000);
    bench.session.hold(false, bench.now.instant);
    bench.wait(89);
    assert!(!bench.session.is_over());
    assert_eq!(bench.session.deadline(), Some(bench.now.instant + Duration::from_secs(1)));
}

#[test]
fn a_client_that_leaves_its_answers_is_not_read() {
    let mut bench = Bench::open(&connect(V311, "press"));
    while bench.session.wants_bytes() {
        bench.feed(&pingreq().repeat(1000));
        assert!(bench.session.output.len() < MAX_UNSENT_BYTES + 10_000);
    }
    bench.said();
    assert!(bench.session.wants_bytes());
}

#[test]
fn a_goodbye_voids_the_will_and_every_other_end_of_the_client_publishes_it() {
    for version in [V311, V5] {
        let dying = connect(version, "press").with_will(0);
        let mut bench = Bench::open(&dying);
        bench.feed(&disconnect(0, None));
        assert_eq!(bench.ended().end.kind(), Kind::Goodbye);
        assert_eq!(bench.payloads(), [""; 0]);
        for end in [Close::Closed, Close::taken_over()] {
            let mut bench = Bench::open(&dying);
            bench.finish(end);
            let [event] = &bench.events[..] else { panic!("{:?}", bench.events) };
            assert_eq!((&*event.topic, &event.payload[..]), ("status/press", &b"offline"[..]));
            assert_eq!((event.qos, event.retain), (Qos::AtLeastOnce, true));
        }
    }
    let mut bench = Bench::open(&connect(V5, "press").with_will(0));
    bench.feed(&disconnect(4, None));
    assert_eq!(bench.ended().end.kind(), Kind::Gone);
    assert_eq!(bench.payloads(), ["offline"]);
}

#[test]
fn when_we_stop_the_will_is_kept_back_and_the_client_is_told() {
    for version in [V311, V5] {
        let mut bench = Bench::open(&connect(version, "press").with_will(0));
        bench.session.finish(Close::Stopping);
        assert_eq!(disconnect_reason(&mut bench), (version == V5).then_some(0x8b));
        bench.ended();
        assert_eq!(bench.payloads(), [""; 0]);
    }
}

#[test]
fn a_will_waits_as_long_as_its_delay_and_its_session() {
    for (expiry, delay, waits) in [(Some(3600), 30, Some(30)), (Some(10), 30, Some(10)), (None, 30, None)] {
        let mut bench = Bench::open(&Connect { expiry, ..connect(V5, "press").with_will(delay) });
        let last = bench.finish(Close::Closed);
        assert_eq!(last.will.map(|(_, delay)| delay), waits.map(Duration::from_secs));
        assert_eq!(bench.payloads().len(), usize::from(waits.is_none()));
    }
}

#[test]
fn a_session_without_expiry_is_forgotten_at_its_end() {
    let mut bench = Bench::enter(&Connect { clean: false, ..connect(V5, "press") }, kept(&[7]));
    bench.commit();
    assert_eq!(bench.expiry_s, 0, "the disk knows that it ends with this connection");
    assert!(matches!(&bench.said()[..], [Packet::ConnAck(ack)] if ack.session_present));
    let last = bench.finish(Close::Closed);
    assert_eq!((last.expiry_s, bench.disk.clone()), (0, None));
}

#[test]
fn disconnect_may_change_the_session_expiry() {
    for (asked, on_disk, expiry_s) in [(0, false, 3600), (60, true, 60), (u32::MAX, true, 86_400)] {
        let mut bench = Bench::open(&connect(V5, "press").kept());
        bench.feed(&disconnect(0, Some(asked)));
        let last = bench.ended();
        assert_eq!(last.end.kind(), Kind::Goodbye);
        assert_eq!((bench.disk.is_some(), bench.expiry_s), (on_disk, expiry_s), "asked for {asked}");
        assert_eq!(last.expiry_s, asked.min(86_400));
    }
}

#[test]
fn a_session_that_ends_before_connack_refuses() {
    for end in [Close::taken_over as fn() -> Close, || Close::Stopping] {
        for (version, code) in [(V311, 3), (V5, 0x88)] {
            let mut bench = Bench::enter(&connect(version, "press").kept(), nothing());
            bench.session.finish(end());
            assert!(matches!(&bench.said()[..], [Packet::ConnAck(ack)] if ack.reason == code));
        }
    }
}

#[test]
fn a_large_packet_over_a_thin_link_is_a_sign_of_life() {
    let mut bench = Bench::open(&connect(V5, "press"));
    for piece in publish(V5, 1, false, 1, &"x".repeat(3900)).chunks(1100) {
        bench.wait(80);
        bench.feed(piece);
    }
    bench.commit();
    assert_eq!(bench.said(), [Packet::PubAck(ack(1))]);
}

#[test]
fn nothing_follows_the_goodbye() {
    let mut bench = Bench::open(&connect(V5, "press"));
    bench.feed(&publish(V5, 1, false, 1, "x"));
    let late = bench.store();
    bench.session.finish(Close::taken_over());
    bench.session.finish(Close::Stopping);
    bench.session.durable_unproven(late, bench.now);
    bench.feed(&publish(V5, 1, false, 2, "y"));
    assert_eq!(disconnect_reason(&mut bench), Some(0x8e));
    assert_eq!(bench.said(), []);
    assert_eq!(bench.payloads(), ["x"]);
}

#[test]
fn an_idle_client_holds_no_buffers() {
    let mut bench = Bench::open(&connect(V5, "press"));
    bench.feed(&publish(V5, 1, false, 1, &"x".repeat(900)));
    assert_eq!(bench.session.input_capacity(), 0);
}
