//! Topic names of one connection, shared: a sensor repeats its topic all day, so its name is allocated and routed once.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::sync::Arc;

use crate::event::{RouteId, Sender};
use crate::ingest::limits::{MAX_CACHED_TOPIC_BYTES, TOPIC_COST_BYTES};
use crate::route::Routes;

/// Known topics with their ledger line. Bounded: when full, it starts afresh.
#[derive(Debug)]
pub(crate) struct Topics {
    routes: Arc<Routes>,
    route_ids: Arc<[RouteId]>,
    known: HashMap<Name, RouteId>,
    bytes: usize,
    max_bytes: usize,
    sender: Option<Arc<Sender>>,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Name(Arc<str>);

impl Borrow<str> for Name {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl Topics {
    /// Nothing known. `route_ids` has the ledger line of each route, in the order of the tables.
    #[must_use]
    pub(crate) fn new(routes: Arc<Routes>, route_ids: Arc<[RouteId]>, max_bytes: usize) -> Self {
        Self { routes, route_ids, known: HashMap::new(), bytes: 0, max_bytes, sender: None }
    }

    /// All that comes on this connection is of that client.
    #[must_use]
    pub(crate) fn of(self, sender: Arc<Sender>) -> Self {
        Self { sender: Some(sender), ..self }
    }

    /// Who publishes on this connection, where that is known.
    #[must_use]
    pub(crate) fn sender(&self) -> Option<Arc<Sender>> {
        self.sender.clone()
    }

    /// The shared name and the ledger line.
    pub(crate) fn resolve(&mut self, topic: &str) -> (Arc<str>, RouteId) {
        if let Some((name, route)) = self.known.get_key_value(topic) {
            return (Arc::clone(&name.0), *route);
        }
        let name: Arc<str> = topic.into();
        let route = self.routes.find(topic).and_then(|index| self.route_ids.get(index).copied());
        let route = route.unwrap_or(RouteId::UNROUTED);
        if topic.len() <= MAX_CACHED_TOPIC_BYTES {
            let cost = topic.len() + TOPIC_COST_BYTES;
            self.bytes += cost;
            if self.bytes > self.max_bytes {
                self.known = HashMap::new();
                self.bytes = cost;
            }
            self.known.insert(Name(Arc::clone(&name)), route);
        }
        (name, route)
    }
}

#[cfg(test)]
impl Topics {
    /// Routes nothing.
    pub(crate) fn unrouted() -> Self {
        Self::new(Arc::default(), Arc::from([]), 4096)
    }
}
