//! Topic aliases of one connection (MQTT 5): a number in place of a topic that was named with it before. None are granted,
//! because Paho Java loops when its connection is lost while it uses them; understood all the same, because an application
//! may use them without asking (paho sends them then).

use std::sync::Arc;

use crate::ingest::close::Close;
use crate::ingest::codec::{Publish, reason};
use crate::ingest::limits::{MAX_ALIAS_BYTES, MAX_ALIASES};

/// What the numbers stand for.
#[derive(Debug, Default)]
pub(super) struct Aliases {
    /// By number, from 1.
    names: Vec<Option<Arc<str>>>,
    bytes: usize,
}

impl Aliases {
    /// Remembers the topic of a message that names one beside its number, or gives a message without a topic its own.
    pub(super) fn resolve(&mut self, publish: &mut Publish) -> Result<(), Close> {
        let Some(alias) = publish.alias else { return Ok(()) };
        let place = usize::from(alias).saturating_sub(1);
        if alias > MAX_ALIASES {
            let detail = format!("{alias}; allowed: 1 to {MAX_ALIASES}");
            return Err(Close::broke(
                reason::TOPIC_ALIAS_INVALID,
                "the client used a topic alias that was not granted",
                detail,
            ));
        }
        if publish.topic().is_empty() {
            let Some(Some(name)) = self.names.get(place) else {
                let detail = format!("alias {alias} stands for no topic on this connection");
                return Err(Close::broke(reason::PROTOCOL_ERROR, "the client broke the MQTT protocol", detail));
            };
            publish.rename(Arc::clone(name));
            return Ok(());
        }
        if self.names.len() <= place {
            self.names.resize(place + 1, None);
        }
        let Some(slot) = self.names.get_mut(place) else { return Ok(()) };
        let before = slot.as_ref().map_or(0, |name| name.len());
        // custody rule 5: a client may name topics of 64 KiB.
        let bytes = self.bytes - before + publish.topic().len();
        if bytes > MAX_ALIAS_BYTES {
            let detail = format!("their topics have {bytes} bytes; allowed: at most {MAX_ALIAS_BYTES}");
            return Err(Close::broke(
                reason::QUOTA_EXCEEDED,
                "the client's topic aliases take too much memory",
                detail,
            ));
        }
        self.bytes = bytes;
        *slot = Some(publish.topic().into());
        Ok(())
    }
}
