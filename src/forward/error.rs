//! Why the forwarder ends, sorted by what happens next.

use uuid::Uuid;

use crate::buffer::Stopped;
use crate::event::Sequence;

/// Why the forwarder cannot go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ForwardError {
    /// librdkafka refuses the configuration. Usage: exit 78.
    #[error("kafka: the producer cannot be created: {0}")]
    Options(String),
    /// The operating system gives no thread. Retry.
    #[error("kafka: a thread cannot be started: {0}")]
    System(#[from] std::io::Error),
    /// The buffer has stopped before the forwarder. Halt: the buffer's own error says why.
    #[error("kafka: the buffer has stopped")]
    BufferStopped,
    /// Another agent has this buffer's identity: a cloned card, or a copy that was restored. `run.rs` starts again with a
    /// new one.
    #[error(
        "kafka: the watermark topic holds watermark {through} for buffer {buffer_id}, which this buffer did not \
         write: another agent has the same buffer id (a cloned card, or a restored copy)"
    )]
    DuplicateIdentity {
        /// The identity.
        buffer_id: Uuid,
        /// What the other one has delivered.
        through: Sequence,
    },
}

impl ForwardError {
    /// Would the next start end the same way, until a person has done something?
    pub(crate) fn wants_a_person(&self) -> bool {
        match self {
            Self::Options(_) => true,
            Self::System(_) | Self::BufferStopped | Self::DuplicateIdentity { .. } => false,
        }
    }
}

impl From<Stopped> for ForwardError {
    fn from(_: Stopped) -> Self {
        Self::BufferStopped
    }
}
