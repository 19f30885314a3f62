//! The start: what the last run has left, and the parts of the loop.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use rdkafka::config::ClientConfig;
use tokio::sync::watch;
use uuid::Uuid;

use super::admission::Admission;
use super::clients::{Clients, Wake};
use super::custody::{Crowd, Custody, unix_ms};
use super::declarations::Declarations;
use super::delivery::Delivery as Mode;
use super::end_txn;
use super::error::ForwardError;
use super::options;
use super::outstanding::Skips;
use super::parked_topics::ParkedTopics;
use super::parking::Parking;
use super::producer::Producer;
use super::record::Records;
use super::relay::Relay;
use super::relocation::Relocation;
use super::retention;
use super::sender::Sender;
use super::session::TransactionContext;
use super::status::{ForwardStatus, Transactions};
use super::stream::Stream;
use super::stream::watermark::StreamWatermark;
use super::stream_sender::StreamSender;
use super::targets::Targets;
use super::time::Times;
use super::time_request::TimeRequest;
use super::timeouts::Timeouts;
use super::transactional::Transactional;
use super::wire::Wire;
use crate::buffer::{BufferReader, Hole, Instances, LaneId, OVERFLOW, Recovered, Settler};
use crate::event::{RouteId, Sequence};
use crate::observe::pulse::Pulse;
use crate::planted::{Bug, planted};
use crate::route::{Definition, Route, Routes};
use crate::settings::{self, Delivery, Timestamp};
use crate::stop::Stop;

/// What the forwarder takes over from the last run.
#[derive(Debug, Clone)]
pub(crate) struct Recovery {
    /// Identity of the buffer.
    pub buffer_id: Uuid,
    /// Sequences of the main lane that are settled although older ones are not.
    pub settled: Vec<std::ops::RangeInclusive<Sequence>>,
    /// Sequences that will never come and that no dead letter speaks of.
    pub holes: Vec<Hole>,
    /// Lanes that hold events, with their Kafka topic.
    pub lanes: Vec<(LaneId, Arc<str>)>,
    /// Everything up to here is settled.
    pub released: Sequence,
    /// Routes that the configuration has no more, as they were written, by the ledger line of what they took in.
    pub gone: BTreeMap<RouteId, Definition>,
    /// Kafka topics that were admitted, while something waits beyond [`settings::Kafka::max_topics`].
    pub admitted: Vec<Arc<str>>,
    /// The mark of the configuration that the lanes were last brought in line with.
    pub in_line_with: Option<u64>,
    /// Who has written watermarks for this buffer, and who will.
    pub instances: Instances,
}

impl From<&Recovered> for Recovery {
    fn from(recovered: &Recovered) -> Self {
        let Recovered { buffer_id, settled, holes, lanes, released, gone, admitted, in_line_with, instances, .. } =
            recovered;
        Self {
            buffer_id: *buffer_id,
            settled: settled.clone(),
            holes: holes.clone(),
            lanes: lanes.clone(),
            released: *released,
            gone: gone.clone(),
            admitted: admitted.clone(),
            in_line_with: *in_line_with,
            instances: instances.clone(),
        }
    }
}

/// Forwards until told to stop. Blocks; runs on a thread of its own.
///
/// # Errors
/// When the configuration makes no producer, or when the buffer has stopped first.
#[expect(clippy::too_many_arguments, reason = "each is a part of its own, handed over once by run.rs")]
pub(crate) fn run(
    settings: &settings::Kafka,
    agent_id: &str,
    routes: Arc<Routes>,
    reader: BufferReader,
    settler: Settler,
    recovery: Recovery,
    status: watch::Sender<ForwardStatus>,
    pulse: Pulse,
    stop: Stop,
) -> Result<(), ForwardError> {
    let exactly_once = settings.delivery == Delivery::ExactlyOnce;
    let (mut config, queues_config) = client_configs(settings, agent_id, recovery.buffer_id);
    let clients = Clients::new(Wake::new(reader.waker()))?;
    let context = exactly_once.then(|| Arc::new(context(settings, agent_id, &recovery, &clients)));
    let timeouts = Timeouts::new(&config);
    timeouts.apply(&mut config);
    let slot = clients.slot().ok_or_else(|| ForwardError::Options("no slot for it".to_owned()))?;
    let producer =
        Producer::new(&config, &clients, slot).map_err(|error| ForwardError::Options(options::cause(&error)))?;
    let declarations = if exactly_once { declared_at_a_start(&recovery) } else { Declarations::unheard() };
    let now = Instant::now();
    let routes = Arc::unwrap_or_clone(routes).with_gone(former_routes(recovery.gone));
    let lanes = recovered_lanes(&recovery.lanes, recovery.admitted, recovery.in_line_with, &routes, settings);
    let (own, of_queues) = deliveries(context.as_ref(), settings, recovery.buffer_id);
    let committed = context.as_ref().map_or(0, |context| context.instances.watermark);
    let watermark = StreamWatermark::new(recovery.released, committed);
    let mut stream = Stream::new(settings.linger, Skips::new(recovery.settled), watermark);
    stream.asks_about = lanes.asked_for;
    stream.known_topic = context.as_ref().map(|context| Arc::clone(&context.topic));
    let transactions = exactly_once.then(|| Transactions { timeout: timeouts.timeout(), ..Transactions::default() });
    if exactly_once {
        warn_of_an_untested_library();
    }
    if settings.timestamp == Timestamp::Arrival {
        retention::watch(options::reader_config(settings, agent_id), Arc::new(routes.clone()), stop.clone());
    }
    let targets = Targets::new(Arc::new(routes));
    let records = Records::new(recovery.buffer_id, recovery.instances, settings.headers);
    let mut wire = Wire::new(clients, timeouts, records, Times::new(settings.timestamp));
    let held = (lanes.parking, lanes.admission, lanes.is_on_hold);
    let mut custody = Custody::new((reader, settler), targets, held, declarations, transactions);
    if recovery.lanes.iter().any(|(_, topic)| &**topic == OVERFLOW) {
        custody.shut_overflow(now);
    }
    let mut stream = StreamSender::new(Sender::new(config, own), stream);
    stream.begins_with(producer, &mut custody, &mut wire);
    let parked_topics = ParkedTopics::new(queues_config, of_queues);
    Relay::new((custody, wire), lanes.relocation, stream, parked_topics, status, pulse, stop).run()
}

/// For the stream's producers, and for those of parked topics.
fn client_configs(settings: &settings::Kafka, agent_id: &str, buffer_id: Uuid) -> (ClientConfig, ClientConfig) {
    let plain = options::client_config(settings, agent_id);
    match settings.delivery {
        Delivery::AtLeastOnce => (plain.clone(), plain),
        Delivery::ExactlyOnce => {
            let name = format!("tidegate-{buffer_id}");
            let parked = options::transactional(plain.clone(), &format!("{name}-parked"));
            (options::transactional(plain, &name), parked)
        }
    }
}

fn context(settings: &settings::Kafka, agent_id: &str, recovery: &Recovery, clients: &Clients) -> TransactionContext {
    TransactionContext {
        clients: clients.clone(),
        reader: options::reader_config(settings, agent_id),
        topic: Arc::from(settings.watermark_topic.as_str()),
        buffer_id: recovery.buffer_id,
        instances: recovery.instances.clone(),
        topic_is_right: Arc::default(),
    }
}

/// The stream's, and that of parked topics. Only the stream asks for Kafka's time.
fn deliveries(context: Option<&Arc<TransactionContext>>, settings: &settings::Kafka, buffer_id: Uuid) -> (Mode, Mode) {
    let Some(context) = context else {
        let time_request = TimeRequest::new(&settings.watermark_topic, buffer_id);
        return (Mode::AtLeastOnce(Some(time_request)), Mode::AtLeastOnce(None));
    };
    let exactly_once = || Mode::ExactlyOnce(Box::new(Transactional::new(Arc::clone(context))));
    (exactly_once(), exactly_once())
}

/// What the first transaction of a start says besides its watermark.
fn declared_at_a_start(recovery: &Recovery) -> Declarations {
    let mut declarations = Declarations::default();
    if let Some((was, last)) = recovery.instances.former.last().copied() {
        declarations.was(was, last, unix_ms());
    }
    for hole in &recovery.holes {
        declarations.lost(hole);
    }
    declarations
}

/// What is made of the lanes that the buffer held at the start.
struct RecoveredLanes {
    parking: Parking,
    admission: Admission,
    relocation: Relocation,
    /// They are brought in line with the configuration first.
    is_on_hold: bool,
    /// Kafka's word about these is asked for.
    asked_for: Vec<Arc<str>>,
}

fn recovered_lanes(
    held: &[(LaneId, Arc<str>)],
    admitted: Vec<Arc<str>>,
    in_line_with: Option<u64>,
    routes: &Routes,
    settings: &settings::Kafka,
) -> RecoveredLanes {
    let now = Instant::now();
    let waits_beyond = held.iter().any(|(_, topic)| &**topic == OVERFLOW);
    let mark = routes.mark().wrapping_shl(16) ^ u64::try_from(settings.max_topics).unwrap_or_default();
    let is_on_hold = !held.is_empty() && in_line_with != Some(mark);
    let mut admission = Admission::new(settings.max_topics, admitted, !waits_beyond || is_on_hold);
    let relocation = if is_on_hold {
        Relocation::new(held, mark, settings.delivery == Delivery::ExactlyOnce)
    } else {
        Relocation::none()
    };
    let (mut parking, mut lines) = (Parking::default(), Crowd::default());
    for (_, topic) in held.iter().filter(|(_, topic)| &**topic != OVERFLOW) {
        admission.recovered(topic);
        if lines.may_say(now).is_some() {
            let all = held.len();
            tracing::info!(
                topic = &**topic,
                all,
                "kafka: the topic was parked when the agent stopped; the agent tries it again"
            );
        }
        parking.recovered(Arc::clone(topic), now, unix_ms());
    }
    let asked_for = if is_on_hold { held.iter().map(|(_, topic)| Arc::clone(topic)).collect() } else { Vec::new() };
    RecoveredLanes { parking, admission, relocation, is_on_hold, asked_for }
}

/// What earlier configurations said of readings that may be held.
fn former_routes(gone: BTreeMap<RouteId, Definition>) -> BTreeMap<RouteId, Route> {
    if planted(Bug::RouteIsVerdict) {
        return BTreeMap::new();
    }
    let parse = |(id, definition): (RouteId, Definition)| match Route::parse(&definition) {
        Ok(route) => Some((id, route)),
        Err(why) => {
            let from = &*definition.from;
            tracing::warn!(
                from,
                why,
                "kafka: this version cannot read a route of an earlier configuration; its \
                 readings go by the present routes"
            );
            None
        }
    };
    gone.into_iter().filter_map(parse).collect()
}

/// Rule B reads librdkafka's log, which is no interface.
fn warn_of_an_untested_library() {
    let (_, version) = rdkafka::util::get_rdkafka_version();
    if version != end_txn::TESTED {
        tracing::warn!(
            version,
            tested = end_txn::TESTED,
            "kafka: Tidegate was not tested for exactly-once with this version of librdkafka"
        );
    }
}
