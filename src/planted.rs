//! Bugs on purpose, for the positive controls: each fault test must turn red on one of these.
//!
//! Without the cargo feature `planted` every question is a constant `false` and nothing of this is in the binary.
//! With it, `TIDEGATE_PLANT=<name>[,<name>]` plants bugs. The tests build that binary beside the real one.

/// A bug that a test must be able to see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(feature = "planted"), expect(dead_code, reason = "some places are not in the product at all"))]
pub(crate) enum Bug {
    /// PUBACK and PUBREC leave before the commit (which then comes 300 ms late).
    AckBeforeCommit,
    /// Events count as delivered when they are handed to librdkafka.
    ReleaseBeforeDelivery,
    /// Acknowledgements of a dead connection leave on the next one.
    NoConnectionEpoch,
    /// QoS 2 packet ids are not written to the buffer.
    ForgetPacketIds,
    /// A QoS 2 message that comes again after a reconnect counts as new without DUP, at a listener as well.
    WantDup,
    /// No SUBSCRIBE after the broker lost the session.
    NoResubscribe,
    /// Reconnects follow each other without a pause.
    NoBackoff,
    /// A message that cannot be read ends every connection that brings it.
    FlawedBlocks,
    /// A message that cannot be read is acknowledged and nothing of it is kept.
    DropFlawed,
    /// The intake admits everything at once.
    UnboundedIntake,
    /// Small payloads keep the whole read that brought them in memory.
    PinnedReads,
    /// New events of a parked topic are not put behind the parked ones.
    ParkedOutOfOrder,
    /// Events of a missing topic are released instead of parked.
    DropParked,
    /// A stop does not wait for acknowledgements and delivery reports.
    CarelessStop,
    /// The watchdog is fed without looking at the stages.
    BlindWatchdog,
    /// A record that Kafka refuses is released without a dead letter.
    DropDeadLetters,
    /// Each dead letter is a row of its own, ten times as large as in its chunk.
    RowADeadLetter,
    /// What is held under a route that is gone becomes dead letters.
    RouteIsVerdict,
    /// A batch that Kafka refuses is blamed on its newest record, though it was not alone.
    BlameTheBatch,
    /// The cursor moves when Kafka has acknowledged the records, before the transaction is committed.
    CursorBeforeCommit,
    /// The watermark is written by a producer of its own, outside the transaction.
    WatermarkOutside,
    /// The watermark is read with what is not committed.
    NoReadCommitted,
    /// The watermark is read without waiting for the transactions that others hold open.
    NoStableRead,
    /// The producer goes on after an `EndTxn` that was sent twice.
    KeepProducer,
    /// Sequences that may have been given out and lost are given out again.
    GiveOutTwice,
    /// A watermark bears the instance of a start that is not on disk.
    SpeakUnwritten,
    /// A reading bears the instance of the start that sends it, not of the one that stored it.
    InstanceOfSender,
    /// A librdkafka client is ended on the loop that sends, however long that takes.
    EndOnTheLoop,
    /// The gateway's clock is believed whatever Kafka says, and what Kafka refuses for it is a dead letter.
    BelieveTheClock,
    /// Records bear the time of arrival whatever the configuration says.
    StampArrival,
    /// Not bugs but faults: kill -9 of itself, in that phase of a transaction with readings in it (one without asks for the
    /// time), the third time it comes by. Before the
    /// watermark is read;
    DieRecovering,
    /// with records sent, before their reports;
    DieFilling,
    /// with all reports there, before the watermark is sent;
    DieSealing,
    /// with the watermark sent, before the commit;
    DieCommitting,
    /// after the commit, before the buffer knows;
    DieCommitted,
    /// A damaged row, or a garbage page, sets the whole buffer aside.
    RowDamageSetsAside,
    /// Nobody rebuilds a file that is found damaged at work.
    GarbageIsFinal,
    /// A watermark vouches for readings that could not be read.
    UnreadIsDelivered,
    /// Not a bug but a fault: the forwarder's loop stands still two seconds after start, so that the watchdog has
    /// something to find.
    StuckForward,
}

impl Bug {
    /// The name as `TIDEGATE_PLANT` takes it.
    #[cfg(feature = "planted")]
    #[must_use]
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::AckBeforeCommit => "ack-before-commit",
            Self::ReleaseBeforeDelivery => "release-before-delivery",
            Self::NoConnectionEpoch => "no-connection-epoch",
            Self::ForgetPacketIds => "forget-packet-ids",
            Self::WantDup => "want-dup",
            Self::NoResubscribe => "no-resubscribe",
            Self::NoBackoff => "no-backoff",
            Self::FlawedBlocks => "flawed-blocks",
            Self::DropFlawed => "drop-flawed",
            Self::UnboundedIntake => "unbounded-intake",
            Self::PinnedReads => "pinned-reads",
            Self::ParkedOutOfOrder => "parked-out-of-order",
            Self::DropParked => "drop-parked",
            Self::CarelessStop => "careless-stop",
            Self::BlindWatchdog => "blind-watchdog",
            Self::DropDeadLetters => "drop-dead-letters",
            Self::RowADeadLetter => "row-a-dead-letter",
            Self::RouteIsVerdict => "route-is-verdict",
            Self::BlameTheBatch => "blame-the-batch",
            Self::CursorBeforeCommit => "cursor-before-commit",
            Self::WatermarkOutside => "watermark-outside",
            Self::NoReadCommitted => "no-read-committed",
            Self::NoStableRead => "no-stable-read",
            Self::KeepProducer => "keep-producer",
            Self::GiveOutTwice => "give-out-twice",
            Self::SpeakUnwritten => "speak-unwritten",
            Self::InstanceOfSender => "instance-of-sender",
            Self::EndOnTheLoop => "end-on-the-loop",
            Self::BelieveTheClock => "believe-the-clock",
            Self::StampArrival => "stamp-arrival",
            Self::DieRecovering => "die-recovering",
            Self::DieFilling => "die-filling",
            Self::DieSealing => "die-sealing",
            Self::DieCommitting => "die-committing",
            Self::DieCommitted => "die-committed",
            Self::RowDamageSetsAside => "row-damage-sets-aside",
            Self::GarbageIsFinal => "garbage-is-final",
            Self::UnreadIsDelivered => "unread-is-delivered",
            Self::StuckForward => "stuck-forward",
        }
    }
}

/// Is this bug planted? Always `false` in the product.
#[cfg(not(feature = "planted"))]
#[inline]
#[must_use]
pub(crate) const fn planted(_bug: Bug) -> bool {
    false
}

/// Is this bug planted? `TIDEGATE_PLANT` says.
#[cfg(feature = "planted")]
#[must_use]
pub(crate) fn planted(bug: Bug) -> bool {
    use std::sync::LazyLock;
    static PLANTED: LazyLock<Option<String>> = LazyLock::new(|| std::env::var("TIDEGATE_PLANT").ok());
    PLANTED.as_deref().is_some_and(|names| names.split(',').any(|name| name == bug.name()))
}

/// Dies here, as if by kill -9, if that is planted. Never in the product.
#[cfg(not(feature = "planted"))]
#[inline]
pub(crate) const fn die(_bug: Bug) {}

/// Dies here, as if by kill -9, if `TIDEGATE_PLANT` says so: the `TIDEGATE_PLANT_AT`th time, the third by default.
#[cfg(feature = "planted")]
pub(crate) fn die(bug: Bug) {
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicU32, Ordering};
    static COUNT: AtomicU32 = AtomicU32::new(0);
    static AT: LazyLock<u32> =
        LazyLock::new(|| std::env::var("TIDEGATE_PLANT_AT").ok().and_then(|at| at.parse().ok()).unwrap_or(3));
    if planted(bug) && COUNT.fetch_add(1, Ordering::Relaxed) + 1 >= *AT {
        // It may fail only where there is no such process.
        rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL).unwrap_or_default();
    }
}
