//! Who has a socket and has not been let in yet.
//!
//! Sockets are few. Whoever connects and says nothing, or waits for the check of a wrong password, would keep others
//! out. So these strangers are counted by where they come from, and when all sockets are taken, one more displaces a
//! stranger of the origin that has the most: one host can fill the listener and keeps out nobody but itself. A newcomer
//! of that origin displaces, too, so that a sensor beside it gets its moment to say CONNECT.
//!
//! ```text
//!   arrives ──▶ Silent ──▶ Asking ──▶ Claiming ──▶ (in: no stranger any more)
//!                 │           │           │
//!                 └───────────┴───────────┴──────▶ Leaving ──▶ (ended)
//! ```
//!
//! The listener's own task owns the gate. Nobody is displaced while its claim is answered, because the answer may bring
//! a session, which must not be dropped.

use std::collections::{HashMap, VecDeque};

use tokio::sync::oneshot;

use super::origin::{ConnectionId, Origin};

/// How far a stranger has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// Its CONNECT is not complete.
    Silent,
    /// Its password is looked at.
    Asking,
    /// The registry answers it.
    Claiming,
    /// It was turned away, and its socket is open for a moment.
    Leaving,
}

/// All strangers of a listener.
#[derive(Debug, Default)]
pub(super) struct Gate {
    strangers: HashMap<ConnectionId, Stranger>,
    /// In the order in which they came.
    by_origin: HashMap<Origin, VecDeque<ConnectionId>>,
    /// Told to go, and not gone yet.
    going: usize,
}

#[derive(Debug)]
struct Stranger {
    origin: Origin,
    stage: Stage,
    /// Taken when it is told to go.
    go: Option<oneshot::Sender<()>>,
}

impl Gate {
    /// Somebody has connected. What is returned fires when it has to go.
    pub(super) fn arrive(&mut self, connection: ConnectionId, origin: Origin) -> oneshot::Receiver<()> {
        let (go, told) = oneshot::channel();
        self.strangers.insert(connection, Stranger { origin, stage: Stage::Silent, go: Some(go) });
        self.by_origin.entry(origin).or_default().push_back(connection);
        told
    }

    /// A stranger has come so far.
    pub(super) fn moved(&mut self, connection: ConnectionId, to: Stage) {
        if let Some(stranger) = self.strangers.get_mut(&connection) {
            stranger.stage = to;
        }
    }

    /// It is in, or gone.
    pub(super) fn passed(&mut self, connection: ConnectionId) {
        let Some(Stranger { origin, go, .. }) = self.strangers.remove(&connection) else { return };
        if go.is_none() {
            self.going -= 1;
            return;
        }
        self.unlist(connection, origin);
    }

    /// Strangers that were told to go and have their socket still.
    pub(super) fn going(&self) -> usize {
        self.going
    }

    /// Tells one to go, of the origin that has the most, with the newcomer among them. False: there is none to be told.
    #[must_use]
    pub(super) fn make_room(&mut self, newcomer: Origin) -> bool {
        let share = |(origin, strangers): &(&Origin, &VecDeque<ConnectionId>)| {
            let its_own = **origin == newcomer;
            (strangers.len() + usize::from(its_own), its_own)
        };
        let Some(origin) = self.by_origin.iter().max_by_key(share).map(|(origin, _)| *origin) else { return false };
        let Some(connection) = self.least_promising(origin) else { return false };
        self.unlist(connection, origin);
        if let Some(go) = self.strangers.get_mut(&connection).and_then(|stranger| stranger.go.take()) {
            self.going += 1;
            if go.send(()).is_err() {
                tracing::trace!(connection, "the connection is closing already");
            }
        }
        true
    }

    /// Who was turned away already, then who has been silent longest, then who would wait longest for its check.
    fn least_promising(&self, origin: Origin) -> Option<ConnectionId> {
        let strangers = self.by_origin.get(&origin)?;
        let at = |id: &ConnectionId, stage| self.strangers.get(id).is_some_and(|stranger| stranger.stage == stage);
        let first = |stage| strangers.iter().find(move |id| at(id, stage));
        let asking = || strangers.iter().rev().find(|id| at(id, Stage::Asking));
        first(Stage::Leaving).or_else(|| first(Stage::Silent)).or_else(asking).copied()
    }

    fn unlist(&mut self, connection: ConnectionId, origin: Origin) {
        if let Some(strangers) = self.by_origin.get_mut(&origin) {
            strangers.retain(|stranger| *stranger != connection);
            if strangers.is_empty() {
                self.by_origin.remove(&origin);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    fn origin(last: u8) -> Origin {
        IpAddr::from([192, 0, 2, last]).into()
    }

    fn told(receivers: &mut [oneshot::Receiver<()>]) -> Vec<usize> {
        let told = receivers.iter_mut().enumerate().filter_map(|(n, go)| go.try_recv().is_ok().then_some(n));
        told.collect()
    }

    #[test]
    fn the_oldest_silent_one_of_the_origin_with_the_most_gives_way() {
        let mut gate = Gate::default();
        let mut all: Vec<_> = (0..5).map(|id| gate.arrive(id, origin(if id == 1 { 2 } else { 1 }))).collect();
        assert!(gate.make_room(origin(3)));
        assert_eq!(told(&mut all), [0]);
        assert!(gate.make_room(origin(2)), "2 has two with the newcomer, 1 has three");
        assert_eq!(told(&mut all), [2]);
        assert!(gate.make_room(origin(2)), "two each: the newcomer's own gives way");
        assert_eq!(told(&mut all), [1]);
        assert_eq!(gate.going(), 3);
        for id in 0..5 {
            gate.passed(id);
        }
        assert_eq!(gate.going(), 0);
        assert!(!gate.make_room(origin(1)), "nobody is there");
        assert!(gate.strangers.is_empty() && gate.by_origin.is_empty());
    }

    #[test]
    fn who_was_turned_away_goes_first_and_who_claims_a_session_never() {
        let mut gate = Gate::default();
        let mut all: Vec<_> = (0..5).map(|id| gate.arrive(id, origin(1))).collect();
        gate.moved(0, Stage::Claiming);
        gate.moved(1, Stage::Asking);
        gate.moved(2, Stage::Asking);
        gate.moved(4, Stage::Leaving);
        for expected in [4, 3, 2, 1] {
            assert!(gate.make_room(origin(1)));
            assert_eq!(told(&mut all), [expected]);
        }
        assert!(!gate.make_room(origin(1)));
    }
}
