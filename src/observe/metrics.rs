//! `/metrics`: the snapshot in OpenMetrics text, which Prometheus reads.
//!
//! Event counters come from the ledger in the database, so they go on where they stopped after a restart. Counters of
//! connections and commits begin at zero with the process. Units are base units: bytes and seconds.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use super::status::{Books, LinkPart, Sources, Status, TransactionsPart};
use crate::forward::status::{COMMIT_BOUNDS_S, CommitTimes, Reason};

/// Content type of what [`Metrics::text`] makes.
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The registry with its one collector.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
}

impl Metrics {
    /// Over these sources.
    #[must_use]
    pub(crate) fn new(sources: Arc<Sources>) -> Self {
        let mut registry = Registry::with_prefix("tidegate");
        registry.register_collector(Box::new(Agent { sources }));
        Self { registry }
    }

    /// One scrape.
    ///
    /// # Errors
    /// When the library refuses to format, which it has no reason to.
    pub(crate) fn text(&self) -> Result<String, fmt::Error> {
        let mut out = String::with_capacity(8 * 1024);
        text::encode(&mut out, &self.registry)?;
        Ok(out)
    }
}

#[derive(Debug)]
struct Agent {
    sources: Arc<Sources>,
}

impl Collector for Agent {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let status = self.sources.snapshot();
        let mut page = Page { encoder };
        page.gauge(
            "build_info",
            "Always 1; the version is the label.",
            [(&[("version", status.version.as_str())][..], 1)],
        )?;
        events(&mut page, &status)?;
        buffer(&mut page, &status)?;
        links(&mut page, &status)?;
        kafka(&mut page, &status)?;
        clock(&mut page, &status)?;
        process(&mut page, &status)
    }
}

fn events(page: &mut Page<'_>, status: &Status) -> fmt::Result {
    let mut by_route = |name, help, value: fn(&Books) -> u64| {
        let labels: Vec<_> = status.routes.iter().map(|r| ([("route", r.route.as_str())], value(&r.books))).collect();
        page.counter(name, help, labels.iter().map(|(l, v)| (&l[..], *v)))
    };
    by_route("events_received", "Events received since the buffer was created.", |b| b.received)?;
    by_route("events_delivered", "Events that Kafka confirmed since the buffer was created.", |b| b.delivered)?;
    by_route("events_dead_lettered", "Events moved to the dead letters since the buffer was created.", |b| {
        b.dead_lettered
    })?;
    by_route("events_dropped", "Events dropped by a configured policy since the buffer was created.", |b| b.dropped)?;
    by_route("events_purged", "Events purged by an operator since the buffer was created.", |b| b.purged)?;
    by_route(
        "events_lost",
        "Events lost with a damaged part of the buffer's file since the buffer was created.",
        |b| b.lost,
    )?;
    let held: Vec<_> = status.routes.iter().map(|r| ([("route", r.route.as_str())], signed(r.books.held))).collect();
    page.gauge("events_held", "Events in the buffer now.", held.iter().map(|(l, v)| (&l[..], *v)))?;
    page.gauge(
        "books_balanced",
        "1 while received = delivered + dead-lettered + dropped + purged + lost + held.",
        one(status.balanced),
    )
}

fn buffer(page: &mut Page<'_>, status: &Status) -> fmt::Result {
    let part = &status.buffer;
    page.gauge("buffer_used_bytes", "Disk space that events use.", [(NONE, signed(part.used_bytes))])?;
    page.gauge("buffer_limit_bytes", "The limit, [buffer] max_bytes.", [(NONE, signed(part.max_bytes))])?;
    page.gauge("buffer_full", "1 while the agent takes no readings because the limit is reached.", one(part.full))?;
    page.gauge_f64(
        "buffer_oldest_event_age_seconds",
        "Age of the oldest event held, 0 when empty.",
        part.oldest_age_s.unwrap_or(0.0),
    )?;
    page.counter("buffer_commits", "Synced commits since start.", [(NONE, part.commits)])?;
    page.counter_f64("buffer_commit_seconds", "Time of all these commits together.", part.commit_seconds)?;
    page.counter_f64(
        "buffer_commit_wait_seconds",
        "Time that all these commits waited for more readings.",
        part.commit_wait_seconds,
    )?;
    page.counter(
        "buffer_write_failures",
        "Failed writes since start; after each the agent opens the database again.",
        [(NONE, part.write_failures)],
    )
}

fn links(page: &mut Page<'_>, status: &Status) -> fmt::Result {
    let labels: Vec<_> = status.links.iter().map(|l| [("link", l.name.as_str()), ("kind", l.kind.as_str())]).collect();
    let values = |value: fn(&LinkPart) -> u64| {
        labels.iter().zip(status.links.iter().map(value)).map(|(l, v)| (&l[..], v)).collect::<Vec<_>>()
    };
    page.gauge(
        "mqtt_connected",
        "Sessions connected now.",
        values(|l| l.connected).into_iter().map(|(l, v)| (l, signed(v))),
    )?;
    page.counter("mqtt_messages", "PUBLISH packets received since start.", values(|l| l.messages))?;
    page.counter("mqtt_payload_bytes", "Payload bytes of these packets since start.", values(|l| l.payload_bytes))?;
    page.counter(
        "mqtt_acknowledgements",
        "PUBACK, PUBREC and PUBCOMP sent since start.",
        values(|l| l.acknowledgements),
    )?;
    page.counter(
        "mqtt_dropped",
        "QoS 0 messages dropped because the buffer had no room, since start.",
        values(|l| l.dropped),
    )?;
    page.counter("mqtt_repeats", "QoS 2 repeats recognised by packet id, since start.", values(|l| l.repeats))?;
    page.counter(
        "mqtt_unreleased_lost",
        "QoS 2 messages that were not complete when their session was lost, since start: each may arrive again as a \
         new reading.",
        values(|l| l.unreleased_lost),
    )?;
    page.counter("mqtt_connects", "Connections made since start.", values(|l| l.connects))?;
    page.counter("mqtt_failures", "Connections ended by an error since start.", values(|l| l.failures))?;
    page.counter("mqtt_refusals", "Connections or subscriptions refused since start.", values(|l| l.refusals))?;
    page.counter(
        "mqtt_subscriptions",
        "Filters that clients of a listener subscribed to since start; nothing is sent to them.",
        values(|l| l.subscriptions),
    )?;
    page.counter(
        "mqtt_set_aside",
        "Messages and wills to topics that begin with $ since start; a listener does not forward these.",
        values(|l| l.set_aside),
    )
}

fn kafka(page: &mut Page<'_>, status: &Status) -> fmt::Result {
    let part = &status.kafka;
    page.gauge("kafka_connected", "1 while a Kafka broker answers.", one(part.connected))?;
    page.gauge(
        "kafka_in_flight_records",
        "Records sent that Kafka has not answered yet.",
        [(NONE, signed(part.in_flight))],
    )?;
    page.counter("kafka_delivered_records", "Records confirmed since start.", [(NONE, part.delivered)])?;
    page.counter(
        "kafka_retried_records",
        "Records that failed and were sent again, since start.",
        [(NONE, part.retried)],
    )?;
    page.counter(
        "kafka_unread",
        "Readings in the buffer that could not be read since start (at most so many).",
        [(NONE, part.unread)],
    )?;
    page.counter("kafka_producers", "Producers made since start.", [(NONE, part.producers)])?;
    #[expect(clippy::cast_precision_loss, reason = "milliseconds since 1970 fit 2^53 for 285,000 years")]
    let last_s = part.last_delivered_ms.unwrap_or(0) as f64 / 1000.0;
    page.gauge_f64(
        "kafka_last_delivery_timestamp_seconds",
        "Time of Kafka's last confirmation; 0 if there was none since start.",
        last_s,
    )?;
    let is_parked = part.parked.iter().any(|parked| parked.held > 0);
    let waits = |reason: Reason| {
        is_parked && reason == Reason::ParkedTopic
            || part.waiting.as_ref().is_some_and(|waiting| waiting.reason == reason.name())
    };
    let reasons = Reason::ALL.map(|reason| ([("reason", reason.name())], i64::from(waits(reason))));
    page.gauge(
        "kafka_waiting",
        "1 while readings wait for this reason; tidegate status explains it and says what to do.",
        reasons.iter().map(|(l, v)| (&l[..], *v)),
    )?;
    if let Some(own) = &part.transactions {
        transactions(page, own)?;
    }
    let parked: Vec<_> = part.parked.iter().map(|p| ([("topic", p.topic.as_str())], signed(p.held))).collect();
    page.gauge(
        "kafka_parked_events",
        "Events that wait for a missing or forbidden Kafka topic.",
        parked.iter().map(|(l, v)| (&l[..], *v)),
    )
}

fn transactions(page: &mut Page<'_>, part: &TransactionsPart) -> fmt::Result {
    page.gauge(
        "kafka_watermark_sequence",
        "The committed watermark: every sequence up to it is delivered, or the books say what became of it.",
        [(NONE, signed(part.watermark))],
    )?;
    page.counter("kafka_transactions_committed", "Transactions committed since start.", [(NONE, part.committed)])?;
    page.counter("kafka_transactions_aborted", "Transactions aborted since start.", [(NONE, part.aborted)])?;
    page.counter(
        "kafka_end_txn_retried",
        "Transactions whose end librdkafka sent twice since start; after each the agent made a new producer.",
        [(NONE, part.end_txn_retried)],
    )?;
    page.histogram(
        "kafka_transaction_commit_seconds",
        "Time from sending the last record to the end of the commit, of the transactions committed since start.",
        &part.commits,
    )?;
    page.gauge(
        "kafka_blocked",
        "1 while the agent can send nothing; kafka_waiting has the reason.",
        one(!part.blocked.is_empty()),
    )
}

fn clock(page: &mut Page<'_>, status: &Status) -> fmt::Result {
    let part = &status.clock;
    page.gauge("clock_synchronised", "1 while the wall clock follows a time server.", one(part.synchronised))?;
    page.counter("clock_jumps", "Times the wall clock was set, since start.", [(NONE, part.jumps)])?;
    match part.ahead_of_kafka_s {
        None => Ok(()),
        Some(ahead_s) => page.gauge_f64(
            "clock_ahead_of_kafka_seconds",
            "How far the wall clock is ahead of Kafka's; absent until Kafka's time is known.",
            ahead_s,
        ),
    }
}

fn process(page: &mut Page<'_>, status: &Status) -> fmt::Result {
    page.gauge("uptime_seconds", "Seconds since start.", [(NONE, signed(status.uptime_s))])?;
    if let Some(bytes) = resident_bytes() {
        page.gauge("resident_memory_bytes", "Resident memory of the agent.", [(NONE, signed(bytes))])?;
    }
    Ok(())
}

/// `VmRSS` of this process.
fn resident_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

type Labels<'a> = &'a [(&'a str, &'a str)];

const NONE: Labels<'static> = &[];

fn one(yes: bool) -> [(Labels<'static>, i64); 1] {
    [(NONE, i64::from(yes))]
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// The library's encoder with the two kinds of metric that Tidegate has.
struct Page<'a> {
    encoder: DescriptorEncoder<'a>,
}

impl Page<'_> {
    fn counter<'l>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = (Labels<'l>, u64)>,
    ) -> fmt::Result {
        let mut family = self.encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        values
            .into_iter()
            .try_for_each(|(labels, value)| ConstCounter::new(value).encode(family.encode_family(&labels)?))
    }

    fn counter_f64(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        let counter = ConstCounter::new(value);
        counter.encode(self.encoder.encode_descriptor(name, help, None, MetricType::Counter)?)
    }

    fn histogram(&mut self, name: &str, help: &str, times: &CommitTimes) -> fmt::Result {
        let bounds = COMMIT_BOUNDS_S.into_iter().chain([f64::INFINITY]);
        let classes: Vec<(f64, u64)> = bounds.zip(times.counts).collect();
        let count = times.counts.into_iter().sum();
        self.encoder.encode_descriptor(name, help, None, MetricType::Histogram)?.encode_histogram::<NoLabelSet>(
            times.seconds,
            count,
            &classes,
            None,
        )
    }

    fn gauge<'l>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = (Labels<'l>, i64)>,
    ) -> fmt::Result {
        let mut family = self.encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        values.into_iter().try_for_each(|(labels, value)| ConstGauge::new(value).encode(family.encode_family(&labels)?))
    }

    fn gauge_f64(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        let gauge = ConstGauge::new(value);
        gauge.encode(self.encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)
    }
}
