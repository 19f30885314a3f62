//! Where each MQTT topic goes, remembered: a sensor repeats its topic all day.

use std::collections::HashMap;
use std::sync::Arc;

use crate::route::{NoTarget, Routes, Target};

/// Topics remembered. At 10,000 the map holds about 2.5 MB; with more topics than that it starts afresh now and then,
/// which costs a match of the routes for each.
const MOST: usize = 10_000;

/// The routes and what was found out with them.
#[derive(Debug)]
pub(super) struct Targets {
    routes: Arc<Routes>,
    known: HashMap<Arc<str>, Arc<Target>>,
}

impl Targets {
    /// Knows nothing yet.
    pub(super) fn new(routes: Arc<Routes>) -> Self {
        Self { routes, known: HashMap::new() }
    }

    /// Where an event of that MQTT topic goes.
    pub(super) fn find(&mut self, mqtt_topic: &Arc<str>) -> Result<Arc<Target>, NoTarget> {
        if let Some(target) = self.known.get(mqtt_topic) {
            return Ok(Arc::clone(target));
        }
        let target = Arc::new(self.routes.target(mqtt_topic)?);
        if self.known.len() >= MOST {
            self.known.clear();
        }
        self.known.insert(Arc::clone(mqtt_topic), Arc::clone(&target));
        Ok(target)
    }
}
