//! The life of a transactional producer, and which moves are legal in it. Pure: `session.rs` does what it says.
//!
//! ```text
//!              Registered        Known           Begun          Closed          Sealed
//!   ──▶ Starting ──▶ Recovering ───▶ Idle ──────▶ Filling ──────▶ Closing ──────▶ Sealing
//!                                       ▲             │ Refused        │ Refused      │ Reported
//!                                       │             ▼                │              ▼
//!                                       │          Aborting ◀──────────┘          Committing
//!                                       │             │ Aborted                       │ Committed
//!                                       │             ▼                               │
//!                                       └───────── Proving ◀──────────────────────────┘
//!                             FirstEndTxn             │ Retried
//!     from every state: Lost ──▶ Over ◀───────────────┘
//! ```
//!
//! * *Starting*: `init_transactions`, in slices. Kafka ends what an earlier producer of this name left open.
//! * *Recovering*: the watermark is read (`watermark_reader.rs`); nothing is sent before it is known.
//! * *Idle*: no transaction is open. One begins only with data in hand and a link that answers.
//! * *Filling*: records go out. *Closing*: no more go; the reports of those in flight are awaited.
//! * *Sealing* (**rule A**): only now, with every data record's report Ok, the watermark goes into the transaction. A
//!   part that a late `EndTxn` tears off has no watermark then: torn records come again, and none is ever lost.
//! * *Committing*: `commit_transaction` in slices. A slice that runs out of time is resumed, never aborted.
//! * *Proving* (**rule B**): was `EndTxn` sent more than once? Then the first one may still be on its way and would
//!   commit a part of the next transaction of this epoch: so this producer is over, and the next one has a new epoch.
//! * *Aborting*: only where it is known that no `EndTxn` was sent, and that Kafka refused records for what they are.
//! * *Over*: this producer sends no more; another one begins at *Starting*, with a new epoch.

/// See the drawing above.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Starting,
    Recovering,
    Idle,
    Filling,
    Closing,
    Sealing,
    Committing,
    Proving,
    Aborting,
    Over,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Move {
    /// `init_transactions` is done.
    Registered,
    /// The watermark is known, or nothing can be in doubt.
    Known,
    /// `begin_transaction` is done.
    Begun,
    /// No more records for this transaction.
    Closed,
    /// All reports are Ok, and the watermark was sent.
    Sealed,
    /// The watermark's report is Ok.
    Reported,
    /// `commit_transaction` returned Ok.
    Committed,
    /// `EndTxn` was sent once.
    FirstEndTxn,
    /// `EndTxn` was sent again, or nobody can say.
    Retried,
    /// Kafka refused records.
    Refused,
    /// `abort_transaction` returned Ok.
    Aborted,
    /// Anything else went wrong.
    Lost,
}

impl State {
    /// The only function that knows which move leads where; `None`: not legal.
    pub(super) fn after(self, happened: Move) -> Option<Self> {
        Some(match (self, happened) {
            (Self::Starting, Move::Registered) => Self::Recovering,
            (Self::Recovering, Move::Known) | (Self::Proving, Move::FirstEndTxn) => Self::Idle,
            (Self::Idle, Move::Begun) => Self::Filling,
            (Self::Filling, Move::Closed) => Self::Closing,
            (Self::Closing, Move::Sealed) => Self::Sealing,
            (Self::Sealing, Move::Reported) => Self::Committing,
            (Self::Committing, Move::Committed) | (Self::Aborting, Move::Aborted) => Self::Proving,
            (Self::Filling | Self::Closing, Move::Refused) => Self::Aborting,
            (Self::Proving, Move::Retried) | (_, Move::Lost) => Self::Over,
            _ => return None,
        })
    }

    /// A transaction is open, or may be.
    pub(super) fn is_open(self) -> bool {
        match self {
            Self::Filling | Self::Closing | Self::Sealing | Self::Committing | Self::Aborting => true,
            Self::Starting | Self::Recovering | Self::Idle | Self::Proving | Self::Over => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATES: [State; 10] = [
        State::Starting,
        State::Recovering,
        State::Idle,
        State::Filling,
        State::Closing,
        State::Sealing,
        State::Committing,
        State::Proving,
        State::Aborting,
        State::Over,
    ];
    const MOVES: [Move; 12] = [
        Move::Registered,
        Move::Known,
        Move::Begun,
        Move::Closed,
        Move::Sealed,
        Move::Reported,
        Move::Committed,
        Move::FirstEndTxn,
        Move::Retried,
        Move::Refused,
        Move::Aborted,
        Move::Lost,
    ];

    #[test]
    fn a_commit_comes_only_after_the_watermark_and_the_watermark_only_after_all_reports() {
        let into = |target: State| -> Vec<(State, Move)> {
            let pairs = STATES.into_iter().flat_map(|from| MOVES.into_iter().map(move |happened| (from, happened)));
            pairs.filter(|(from, happened)| from.after(*happened) == Some(target)).collect()
        };
        assert_eq!(into(State::Committing), [(State::Sealing, Move::Reported)]);
        assert_eq!(into(State::Sealing), [(State::Closing, Move::Sealed)]);
        assert_eq!(into(State::Closing), [(State::Filling, Move::Closed)]);
    }

    #[test]
    fn nothing_is_aborted_once_its_commit_was_asked_for() {
        for state in [State::Sealing, State::Committing, State::Proving] {
            assert_eq!(state.after(Move::Refused), None, "{state:?}");
        }
    }

    #[test]
    fn nothing_is_sent_before_the_watermark_is_known_and_a_producer_that_is_over_stays_over() {
        for state in [State::Starting, State::Recovering] {
            assert_eq!(state.after(Move::Begun), None);
        }
        for happened in MOVES {
            assert!(matches!(State::Over.after(happened), None | Some(State::Over)), "{happened:?}");
        }
        for state in STATES {
            assert_eq!(state.after(Move::Lost), Some(State::Over));
        }
    }
}
