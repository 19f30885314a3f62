//! What a client does that is not as it thinks, and that its connection survives: counted, and logged once a connection.

use super::client_log::Tone;

/// One kind of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Remark {
    /// A filter of a SUBSCRIBE, with `subscriptions = "accept"`.
    Subscribed,
    /// A filter of a SUBSCRIBE, with `subscriptions = "refuse"`.
    SubscribeRefused,
    /// A message or a will to a topic of the server's.
    ServerTopic,
    /// A message above `max_packet_bytes`.
    TooLarge,
}

impl Remark {
    /// For the log: how, by which cause, and what it means.
    pub(super) fn words(self) -> (Tone, &'static str, &'static str) {
        match self {
            Self::Subscribed => {
                (Tone::Everyday, "SUBSCRIBE granted", "nothing will be sent: Tidegate cannot send to its clients yet")
            }
            Self::SubscribeRefused => (Tone::Odd, "SUBSCRIBE refused", "Tidegate sends nothing to its clients"),
            Self::ServerTopic => (
                Tone::Everyday,
                "a message to a topic that begins with $ is not forwarded",
                "such topics are for the server's own use",
            ),
            Self::TooLarge => (
                Tone::Odd,
                "a message larger than max_packet_bytes is not taken",
                "raise max_packet_bytes of this [[listen]] table; an MQTT 5 client is told, and of an older client's \
                 message the beginning is kept as a dead letter",
            ),
        }
    }
}

/// What has happened since somebody asked.
#[derive(Debug, Default)]
pub(super) struct Remarks(Vec<(Remark, u64)>);

impl Remarks {
    pub(super) fn add(&mut self, remark: Remark, times: usize) {
        let times = u64::try_from(times).unwrap_or(u64::MAX);
        match self.0.iter_mut().find(|(known, _)| *known == remark) {
            Some((_, count)) => *count += times,
            None => self.0.push((remark, times)),
        }
    }

    pub(super) fn take(&mut self) -> Vec<(Remark, u64)> {
        std::mem::take(&mut self.0)
    }
}
