//! The send loop: one for the stream and for every parked topic's queue, with transactions and without.

use std::sync::Arc;
use std::time::Instant;

use rdkafka::types::RDKafkaErrorCode as Code;

use super::bisection::Permit;
use super::feed::Feed;
use super::next::Next;
use super::producer::{Failure, MESSAGE_OVERHEAD_BYTES, Producer};
use super::sender::{Sender, Sent};
use super::targets::Turn;
use super::verdict::{Verdict, dead_letter_reason, send_verdict};
use super::wire::Wire;
use crate::event::{Sequence, Stored};
use crate::route::Target;

impl Sender {
    /// Hands over what may go, one reading after the other, in order.
    pub(super) fn send(&mut self, producer: &Producer, feed: &mut Feed<'_>, wire: &mut Wire, now: Instant) -> Sent {
        loop {
            let (target, turn) = match feed.next(producer, self.generation, now) {
                Next::Send(target, turn) => (target, turn),
                Next::Settled => continue,
                Next::Nothing => return Sent::Done,
            };
            let Some(stored) = feed.front() else { return Sent::Done };
            if turn == Turn::NotYet {
                return Sent::Done;
            }
            if let Err(full) = self.room(producer, stored, wire, now) {
                return full;
            }
            if !self.knows_the_link(producer, &target.topic, wire) {
                return Sent::Done;
            }
            match self.delivery.may_send(producer, feed.was_due(), now) {
                Ok(true) => {}
                Ok(false) => return Sent::Done,
                Err(code) => return Sent::NotBegun(code),
            }
            let (sequence, in_flight) = (stored.sequence, producer.in_flight().0);
            match wire.send(producer, stored, &target) {
                Ok(()) => {
                    feed.sent(&target, turn, self.generation);
                    self.note_sent(sequence, in_flight, now);
                }
                Err(code) => {
                    if let Some(sent) = self.not_taken(code, &target, in_flight, producer, feed, now) {
                        return sent;
                    }
                }
            }
        }
    }

    /// A producer for long links is another one, and better made before anything is sent. With transactions the start has
    /// measured a round trip; without, a broker that was met is asked for the topic that is to be sent to.
    fn knows_the_link(&mut self, producer: &Producer, topic: &Arc<str>, wire: &mut Wire) -> bool {
        if !wire.timeouts.is_new_to_the_link() {
            return true;
        }
        let Some(measuring) = &self.measuring else {
            // Without a thread it is asked again.
            self.measuring = producer.round_trip(topic).ok();
            return false;
        };
        let Some(answer) = measuring.answer() else { return false };
        self.measuring = None;
        let Some(round_trip) = answer else { return false };
        wire.timeouts.measured(round_trip);
        // Let it be told whether this producer suits the link.
        wire.timeouts.suits(self.config())
    }

    /// May one more go? By memory, by what the link takes, by the bisection.
    fn room(&mut self, producer: &Producer, stored: &Stored, wire: &Wire, now: Instant) -> Result<(), Sent> {
        let (in_flight, bytes) = producer.in_flight();
        let (most, most_bytes) = self.delivery.bounds();
        if in_flight >= most || bytes >= most_bytes {
            return Err(Sent::Done);
        }
        let cost = stored.event.cost_bytes() + MESSAGE_OVERHEAD_BYTES;
        if !self.window.takes(bytes, cost, wire.timeouts.flight(), wire.timeouts.is_long(), now) {
            return Err(Sent::Done);
        }
        match self.bisection.permit(stored.sequence, self.delivery.unproven(producer, in_flight)) {
            Permit::Go => Ok(()),
            Permit::NotYet => Err(Sent::GroupDone),
            Permit::GoSmaller => Err(Sent::BatchesTooLarge),
        }
    }

    fn note_sent(&mut self, sequence: Sequence, in_flight: usize, now: Instant) {
        self.bisection.sent();
        self.window.sent(sequence, now);
        if in_flight == 0 {
            self.moved = now;
        }
    }

    /// librdkafka did not take the one in front. `None`: it is settled, and the next one may go.
    fn not_taken(
        &mut self,
        code: Code,
        target: &Target,
        in_flight: usize,
        producer: &Producer,
        feed: &mut Feed<'_>,
        now: Instant,
    ) -> Option<Sent> {
        let reason = match send_verdict(code) {
            // The queue is full of others; when it is empty, this one alone is too large for it.
            Verdict::Wait if in_flight > 0 => return Some(Sent::Done),
            Verdict::Wait => "it is larger than queue.buffering.max.kbytes in [kafka.options]".to_owned(),
            Verdict::DeadLetter => dead_letter_reason(code),
            Verdict::Resend | Verdict::NewProducer | Verdict::Alone | Verdict::Retime | Verdict::ParkTopic => {
                // Others of the topic may be in flight; they come first, so this waits for their reports.
                let Stored { sequence, event } = feed.front()?;
                let (sequence, route, topic) = (*sequence, event.route, target.topic.to_string());
                self.failures.push(Failure { sequence, route, topic, code });
                return Some(Sent::Failed);
            }
        };
        feed.put_aside(producer, &target.topic, reason, now);
        None
    }
}
