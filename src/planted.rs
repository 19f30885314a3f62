//! Bugs on purpose, for the positive controls: each fault test must turn red on one of these.
//!
//! Without the cargo feature `planted` every question is a constant `false` and nothing of this is in the binary.
//! With it, `TIDEGATE_PLANT=<name>[,<name>]` plants bugs. The tests build that binary beside the real one.

/// A bug that a test must be able to see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    /// PUBACK and PUBREC leave before the commit (which then comes 300 ms late).
    AckBeforeCommit,
    /// Events count as delivered when they are handed to librdkafka.
    ReleaseBeforeDelivery,
    /// Acknowledgements of a dead connection leave on the next one.
    NoConnectionEpoch,
    /// QoS 2 packet ids are not written to the buffer.
    ForgetPacketIds,
    /// No SUBSCRIBE after the broker lost the session.
    NoResubscribe,
    /// Reconnects follow each other without a pause.
    NoBackoff,
    /// The intake admits everything at once.
    UnboundedIntake,
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
    /// Not a bug but a fault: the forwarder's loop stands still two seconds after start, so that the watchdog has
    /// something to find.
    StuckForward,
}

impl Bug {
    /// The name as `TIDEGATE_PLANT` takes it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::AckBeforeCommit => "ack-before-commit",
            Self::ReleaseBeforeDelivery => "release-before-delivery",
            Self::NoConnectionEpoch => "no-connection-epoch",
            Self::ForgetPacketIds => "forget-packet-ids",
            Self::NoResubscribe => "no-resubscribe",
            Self::NoBackoff => "no-backoff",
            Self::UnboundedIntake => "unbounded-intake",
            Self::ParkedOutOfOrder => "parked-out-of-order",
            Self::DropParked => "drop-parked",
            Self::CarelessStop => "careless-stop",
            Self::BlindWatchdog => "blind-watchdog",
            Self::DropDeadLetters => "drop-dead-letters",
            Self::StuckForward => "stuck-forward",
        }
    }
}

/// Is this bug planted? Always `false` in the product.
#[cfg(not(feature = "planted"))]
#[inline]
#[must_use]
pub const fn planted(_bug: Bug) -> bool {
    false
}

/// Is this bug planted? `TIDEGATE_PLANT` says.
#[cfg(feature = "planted")]
#[must_use]
pub fn planted(bug: Bug) -> bool {
    use std::sync::LazyLock;
    static PLANTED: LazyLock<Option<String>> = LazyLock::new(|| std::env::var("TIDEGATE_PLANT").ok());
    PLANTED.as_deref().is_some_and(|names| names.split(',').any(|name| name == bug.name()))
}
