//! `tidegate audit` on a real Kafka: a whole stream is explained, each planted fault is named.

use std::process::ExitStatus;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;

use crate::support::agent::{Build, Gateway};
use crate::support::client::{Connection, clean};
use crate::support::kafka::{self, Kafka, unique_topic};
use crate::support::process::{Folder, Process};
use crate::support::publisher::{Plan, Publisher};
use crate::support::settle::settle;
use crate::support::stream::{Hand, Planted, delete_before, delivered, hole};
use crate::support::wire::{Message, Version};
use crate::support::{Outcome, PATIENCE, asked, trouble};

const ONE: &str = "11111111-1111-4111-8111-111111111111";
const TWO: &str = "22222222-2222-4222-8222-222222222222";

/// Topics of one test: data with three partitions, and a watermark topic.
struct Stage {
    kafka: &'static Kafka,
    data: String,
    watermarks: String,
}

impl Stage {
    fn new(claim: &str) -> Outcome<Self> {
        let kafka = kafka::shared()?;
        let stage = Self { kafka, data: unique_topic(claim), watermarks: unique_topic("watermarks") };
        kafka.create_topic(&stage.data, 3, &[])?;
        kafka.create_topic(&stage.watermarks, 1, &[("cleanup.policy", "compact")])?;
        Ok(stage)
    }

    /// A reading of one of three sensors, each with a partition of its own.
    fn event(&self, buffer: &str, sequence: u64) -> Planted<'_> {
        let sensor = (sequence % 3) as usize;
        Planted {
            topic: &self.data,
            partition: sensor as i32,
            id: format!("{buffer}:{sequence}"),
            instance: "",
            was: None,
            mqtt_topic: ["s/0", "s/1", "s/2"][sensor],
            at_ms: now_ms(),
        }
    }

    fn events(&self, hand: &Hand, buffer: &str, sequences: impl IntoIterator<Item = u64>) -> Outcome<()> {
        for sequence in sequences {
            hand.event(&self.event(buffer, sequence))?;
        }
        hand.flush()
    }

    fn say(&self, hand: &Hand, key: &str, value: &str) -> Outcome<()> {
        hand.say(&self.watermarks, key, value)?;
        hand.flush()
    }

    /// The audit of this stage.
    fn audit(&self, more: &[&str]) -> Outcome<Audit> {
        let brokers = self.kafka.brokers();
        let usual = ["--brokers", &brokers, "--topic", &self.data, "--watermark-topic", &self.watermarks];
        audit(&[&usual[..], more].concat())
    }
}

/// What an audit said.
pub struct Audit {
    pub code: Option<i32>,
    pub said: String,
    buffers: Vec<Value>,
    pub summary: Value,
    peak_kib: u64,
}

impl Audit {
    fn buffer(&self, id: &str) -> &Value {
        self.buffers.iter().find(|buffer| buffer["buffer"] == id).unwrap_or(&Value::Null)
    }

    fn notes(&self) -> String {
        self.summary["notes"].to_string()
    }
}

/// `tidegate audit --json` with these arguments.
pub fn audit(arguments: &[&str]) -> Outcome<Audit> {
    let folder = Folder::new("audit")?;
    let mut command = Process::command(Build::Real.binary()?);
    command.arg("audit").args(arguments).arg("--json").current_dir(folder.path());
    let (out, err) = (folder.path().join("out"), folder.path().join("err"));
    command.stdout(std::fs::File::create(&out)?).stderr(std::fs::File::create(&err)?);
    let mut process = Process::start("audit", command)?;
    let mut peak_kib = 0;
    let limit = std::time::Instant::now() + PATIENCE * 10;
    let status: ExitStatus = loop {
        let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid())).unwrap_or_default();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.split_whitespace().next()?.parse().ok());
        peak_kib = peak_kib.max(peak.unwrap_or(0));
        if let Some(status) = process.exited() {
            break status;
        }
        if std::time::Instant::now() > limit {
            return trouble!("audit {arguments:?} does not end");
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let said = std::fs::read_to_string(&out)? + &std::fs::read_to_string(&err)?;
    let lines: Vec<Value> =
        std::fs::read_to_string(&out)?.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let (summary, buffers): (Vec<Value>, Vec<Value>) = lines.into_iter().partition(|line| !line["summary"].is_null());
    let summary = summary.first().map_or(Value::Null, |line| line["summary"].clone());
    Ok(Audit { code: status.code(), said, buffers, summary, peak_kib })
}

fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}

#[test]
fn gateways_of_a_fleet_that_write_elsewhere_are_no_gap_here() -> Outcome<()> {
    let stage = Stage::new("fleet")?;
    let hand = Hand::plain(&stage.kafka.brokers())?;
    let other = |number: u64| format!("{number:08}-2222-4222-8222-222222222222");
    let wrote = |buffer: &str, topic: &str| stage.say(&hand, &format!("{buffer}/topic/{topic}"), r#"{"v":1}"#);
    stage.events(&hand, ONE, 1..=300)?;
    stage.say(&hand, ONE, &delivered(300))?;
    wrote(ONE, &stage.data)?;
    for number in 1..=33 {
        stage.say(&hand, &other(number), &delivered(2_500 + number))?;
        wrote(&other(number), "another.site")?;
    }
    let found = stage.audit(&[])?;
    assert_eq!((found.code, &found.summary["other_buffers"]), (Some(0), &33.into()), "{}", found.said);
    assert!(found.notes().contains("33 buffers wrote only to other topics"), "{}", found.notes());
    // Whose readings were to come here, and of whom nothing is here, is a gap.
    wrote(&other(7), &stage.data)?;
    wrote(TWO, &stage.data)?;
    stage.say(&hand, TWO, &delivered(40))?;
    let found = stage.audit(&[])?;
    assert_eq!(found.code, Some(2), "{}", found.said);
    assert_eq!(found.buffer(TWO)["missing"]["unexplained"], 40, "{}", found.said);
    let both = found.buffer(&other(7));
    assert_eq!((&both["missing"]["elsewhere"], &both["explained"]), (&2_507.into(), &true.into()), "{}", found.said);
    Ok(())
}

#[test]
fn a_whole_stream_in_transactions_is_explained() -> Outcome<()> {
    let stage = Stage::new("whole")?;
    let hand = Hand::transactional(&stage.kafka.brokers(), &stage.data)?;
    for batch in 0..10 {
        hand.begin()?;
        stage.events(&hand, ONE, batch * 100 + 1..=batch * 100 + 100)?;
        stage.say(&hand, ONE, &delivered(batch * 100 + 100))?;
        hand.commit()?;
    }
    let found = stage.audit(&[])?;
    assert_eq!(found.code, Some(0), "{}", found.said);
    let one = found.buffer(ONE);
    assert_eq!((&one["events"], &one["watermark"], &one["explained"]), (&1000.into(), &1000.into(), &true.into()));
    assert_eq!(one["judged"], serde_json::json!([1, 1000]));
    assert_eq!(found.summary["verdict"], "explained");
    assert_eq!(found.summary["notes"], serde_json::json!([]));
    Ok(())
}

#[test]
fn a_planted_gap_repeat_break_of_order_and_broken_id_is_each_found() -> Outcome<()> {
    let cases: [(&str, &[u64], &str); 3] = [
        ("gap", &[1, 2, 3, 4, 8, 9], "/missing/unexplained"),
        ("repeat", &[1, 2, 3, 4, 5, 2, 6, 7, 8, 9], "/repeats/count"),
        ("order", &[1, 2, 3, 4, 8, 6, 7, 5, 9], "/order_breaks/count"),
    ];
    for (claim, sequences, place) in cases {
        let stage = Stage::new(claim)?;
        let hand = Hand::plain(&stage.kafka.brokers())?;
        stage.events(&hand, ONE, sequences.iter().copied())?;
        stage.events(&hand, TWO, 1..=9)?;
        stage.say(&hand, ONE, &delivered(9))?;
        stage.say(&hand, TWO, &delivered(9))?;
        let found = stage.audit(&[])?;
        assert_eq!(found.code, Some(2), "{claim}: {}", found.said);
        assert!(found.buffer(ONE).pointer(place).and_then(Value::as_u64) > Some(0), "{claim}: {}", found.said);
        assert_eq!(found.buffer(TWO)["explained"], true, "{claim}: {}", found.said);
        // Asked for the other buffer alone, there is nothing to find.
        assert_eq!(stage.audit(&["--buffer", TWO])?.code, Some(0));
    }
    let stage = Stage::new("broken")?;
    let hand = Hand::plain(&stage.kafka.brokers())?;
    stage.say(&hand, ONE, &delivered(1))?;
    let mut event = stage.event(ONE, 1);
    hand.event(&event)?;
    event.id = String::new();
    hand.event(&event)?;
    hand.flush()?;
    let found = stage.audit(&[])?;
    assert_eq!((found.code, &found.summary["foreign"]), (Some(0), &1.into()), "{}", found.said);
    event.id = "11111111-1111-4111-8111-111111111111:1x".into();
    hand.event(&event)?;
    hand.flush()?;
    let found = stage.audit(&[])?;
    assert_eq!((found.code, &found.summary["broken"]), (Some(2), &1.into()), "{}", found.said);
    Ok(())
}

#[test]
fn declared_holes_parked_readings_and_what_is_on_its_way_are_explained() -> Outcome<()> {
    let stage = Stage::new("declared")?;
    let hand = Hand::plain(&stage.kafka.brokers())?;
    for (key, value) in [
        (ONE.to_owned(), delivered(50)),
        (format!("{ONE}/hole/3"), hole(3, 3, "dead-lettered")),
        (format!("{ONE}/hole/5"), hole(5, 9, "dropped")),
        (format!("{ONE}/hole/10"), hole(10, 11, "purged")),
        (
            format!("{ONE}/lane/other"),
            format!(
                r#"{{"v":1,"instance":"{:032x}","delivered":0,"waiting":{{"first":20,"last":30,"events":4}},"at":1}}"#,
                7
            ),
        ),
        (format!("{TWO}/identity"), format!(r#"{{"v":1,"was":"{ONE}","last":49,"at":1}}"#)),
    ] {
        stage.say(&hand, &key, &value)?;
    }
    stage.events(&hand, ONE, [1, 2, 4].into_iter().chain(12..=20).chain(25..=47).chain([50, 53]))?;
    // A clone has delivered 47 once more, and 48 and 49, under a new id.
    for sequence in 47..=49 {
        let mut event = stage.event(TWO, sequence);
        event.was = Some(format!("{ONE}:{sequence}"));
        hand.event(&event)?;
    }
    hand.flush()?;
    let found = stage.audit(&[])?;
    assert_eq!(found.code, Some(0), "{}", found.said);
    let missing = serde_json::json!({
        "dead_lettered": 1, "dropped": 5, "purged": 2, "lost": 0, "unread": 0, "waiting": 4, "under_new_id": 2, "not_yet_delivered": 2,
        "elsewhere": 0, "unexplained": 0, "unexplained_beside_waiting": 0
    });
    assert_eq!(found.buffer(ONE)["missing"], missing, "{}", found.said);
    assert_eq!(found.buffer(ONE)["declared_repeats"], 1);
    Ok(())
}

#[test]
fn an_aborted_transaction_is_not_seen_unless_asked_for() -> Outcome<()> {
    let stage = Stage::new("aborted")?;
    let hand = Hand::transactional(&stage.kafka.brokers(), &stage.data)?;
    hand.begin()?;
    stage.events(&hand, ONE, 1..=90)?;
    stage.say(&hand, ONE, &delivered(500))?;
    hand.abort()?;
    hand.begin()?;
    stage.events(&hand, ONE, 1..=60)?;
    stage.say(&hand, ONE, &delivered(60))?;
    hand.commit()?;
    // The last thing in each partition is the mark of an abort.
    hand.begin()?;
    stage.events(&hand, ONE, 61..=70)?;
    hand.abort()?;
    let found = stage.audit(&[])?;
    assert_eq!((found.code, &found.summary["events"]), (Some(0), &60.into()), "{}", found.said);
    let found = stage.audit(&["--isolation", "read-uncommitted"])?;
    assert_eq!((found.code, &found.summary["repeats"]), (Some(2), &70.into()), "{}", found.said);
    Ok(())
}

#[test]
fn an_open_transaction_is_waited_for() -> Outcome<()> {
    let stage = Stage::new("open")?;
    let (hand, other) =
        (Hand::transactional(&stage.kafka.brokers(), &stage.data)?, Hand::transactional(&stage.kafka.brokers(), TWO)?);
    other.begin()?;
    stage.events(&other, TWO, 1..=9)?;
    hand.begin()?;
    stage.events(&hand, ONE, 1..=9)?;
    stage.say(&hand, ONE, &delivered(9))?;
    hand.commit()?;
    // The other's open transaction hides all nine, which the watermark says are there.
    let found = std::thread::scope(|scope| {
        let audit = scope.spawn(|| stage.audit(&[]));
        std::thread::sleep(Duration::from_secs(3));
        other.commit()?;
        audit.join().unwrap_or_else(|_| trouble!("panicked"))
    })?;
    assert_eq!((found.code, &found.summary["events"]), (Some(0), &18.into()), "{}", found.said);
    Ok(())
}

#[test]
fn what_kafka_has_removed_by_age_and_what_is_outside_of_the_time_asked_for_is_not_missing() -> Outcome<()> {
    let stage = Stage::new("cut")?;
    let hand = Hand::plain(&stage.kafka.brokers())?;
    let begin = now_ms() - 300_000;
    for sequence in (1..=90).chain(101..=300) {
        hand.event(&Planted { at_ms: begin + sequence as i64 * 1000, ..stage.event(ONE, sequence) })?;
    }
    hand.flush()?;
    stage.say(&hand, ONE, &delivered(300))?;
    let at = |sequence: i64| humantime(begin + sequence * 1000);
    let judged = |more: &[&str]| -> Outcome<(Option<i32>, Value)> {
        let found = stage.audit(more)?;
        Ok((found.code, found.buffer(ONE)["judged"].clone()))
    };
    assert_eq!(judged(&[])?, (Some(2), serde_json::json!([1, 300])));
    assert_eq!(judged(&["--from", &at(150)])?, (Some(0), serde_json::json!([150, 300])));
    assert_eq!(judged(&["--from", &at(80)])?, (Some(2), serde_json::json!([80, 300])));
    assert_eq!(judged(&["--to", &at(50)])?, (Some(0), serde_json::json!([1, 49])));
    assert_eq!(judged(&["--from", &at(20), "--to", &at(50)])?, (Some(0), serde_json::json!([20, 49])));
    // Nothing arrived since.
    assert_eq!(judged(&["--from", &humantime(now_ms() + 3_600_000)])?, (Some(0), Value::Null));
    // Kafka removes more of one partition than of the others: judged is what is whole in all.
    delete_before(&stage.kafka.brokers(), &stage.data, &[(0, 40), (1, 5)])?;
    let found = stage.audit(&[])?;
    assert_eq!(found.code, Some(0), "{}", found.said);
    assert_eq!(found.buffer(ONE)["judged"][1], 300);
    assert!(found.buffer(ONE)["judged"][0].as_u64() > Some(120), "{}", found.said);
    assert!(found.notes().contains("removed the oldest records of 2 partitions"), "{}", found.said);
    Ok(())
}

fn humantime(ms: i64) -> String {
    // RFC 3339 by `date`, which is not Tidegate's code.
    let output = std::process::Command::new("date")
        .args(["-u", "+%Y-%m-%dT%H:%M:%S.%3NZ", "-d", &format!("@{}.{:03}", ms / 1000, ms % 1000)])
        .output();
    output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default()
}

#[test]
fn without_a_watermark_topic_a_whole_stream_passes_and_a_gap_is_said_to_be_without_explanation() -> Outcome<()> {
    let stage = Stage::new("plain")?;
    let hand = Hand::plain(&stage.kafka.brokers())?;
    stage.events(&hand, ONE, 1..=90)?;
    let usual = ["--brokers", &stage.kafka.brokers(), "--topics", &format!("{}|nothing", stage.data)];
    let found = audit(&[&usual[..], &["--watermark-topic", "no-such-topic"]].concat())?;
    assert_eq!(found.code, Some(0), "{}", found.said);
    assert!(found.notes().contains("holds nothing"), "{}", found.said);
    stage.events(&hand, ONE, 95..=99)?;
    let found = audit(&[&usual[..], &["--watermark-topic", "no-such-topic"]].concat())?;
    assert_eq!(found.code, Some(2), "{}", found.said);
    assert_eq!(found.buffer(ONE)["gaps"], serde_json::json!([[91, 94]]));
    Ok(())
}

#[test]
fn an_audit_that_cannot_look_says_so_and_a_wrong_configuration_is_exit_78() -> Outcome<()> {
    let brokers = kafka::shared()?.brokers();
    for (arguments, code, word) in [
        (vec!["--brokers", &brokers, "--topic", "no-such-topic"], 1, "no-such-topic"),
        (vec!["--brokers", &brokers, "--topics", "no-such.*"], 1, "no-such"),
        (vec!["--brokers", "127.0.0.1:1", "--topic", "x"], 1, "Kafka could not be asked"),
        (vec!["--config", "/nowhere/tidegate.toml"], 78, "cannot be read"),
        (vec!["--brokers", &brokers], 78, "--topic"),
        (vec!["--brokers", &brokers, "--topics", "("], 78, "--topics"),
    ] {
        let found = audit(&arguments)?;
        assert_eq!(found.code, Some(code), "{arguments:?}: {}", found.said);
        assert!(found.said.contains(word), "{arguments:?}: {}", found.said);
    }
    Ok(())
}

#[test]
fn what_an_agent_has_delivered_is_explained_with_the_topics_of_its_own_configuration() -> Outcome<()> {
    let kafka = kafka::shared()?;
    let name = unique_topic("agent");
    for topic in [format!("{name}.a"), format!("{name}.b"), format!("{name}-all")] {
        kafka.create_topic(&topic, 2, &[])?;
    }
    let mut gateway = Gateway::new(Build::Real, &kafka.brokers())?;
    let routes = format!("{name}.{{site}}");
    let missing = format!("{name}-missing");
    gateway.listen("").route("s/{site}/#", &routes).route("none", &missing).route("#", &format!("{name}-all"));
    let mut agent = gateway.start()?;
    let topics = ["s/a/1", "s/a/2", "s/b/1", "rest/1"].map(str::to_owned).to_vec();
    let publisher =
        Publisher::start(gateway.listener(), Plan::new(&name, "", 1).topics(topics).window(100).count(4000));
    let log = publisher.finish(PATIENCE * 2)?;
    let all = [format!("{name}.a"), format!("{name}.b"), format!("{name}-all")];
    settle(&agent, &kafka.brokers(), &all.each_ref().map(String::as_str), &[log])?.exactly_once()?;
    agent.stop(PATIENCE)?;
    let output = gateway.command(&["audit", "--json", "--watermark-topic", "no-such-topic"])?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(0), "{said}{}", String::from_utf8_lossy(&output.stderr));
    let summary: Value = serde_json::from_str(said.lines().last().unwrap_or_default())?;
    assert_eq!(summary["summary"]["events"], 4000);
    assert_eq!(summary["summary"]["topics"], serde_json::json!([all[2], all[0], all[1]]));
    // The words for people say the same.
    let output = gateway.command(&["audit", "--watermark-topic", "no-such-topic"])?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("4000 events") && said.contains("explained: nothing repeated"), "{said}");
    Ok(())
}

#[test]
fn what_an_agent_has_delivered_exactly_once_is_explained_through_kills_dead_letters_and_a_parked_topic() -> Outcome<()>
{
    let kafka = kafka::shared()?;
    let (topic, late, watermarks) = (unique_topic("txn-audit"), unique_topic("txn-late"), unique_topic("watermarks"));
    kafka.create_topic(&topic, 3, &[("max.message.bytes", "5000")])?;
    kafka.create_topic(&watermarks, 1, &[("cleanup.policy", "compact")])?;
    let mut gateway = Gateway::new(Build::Real, &kafka.brokers())?;
    gateway.exactly_once(&watermarks).listen("").route("late/#", &late).route("#", &topic);
    let mut agent = gateway.start()?;
    let mut sent = 0;
    for round in 0..4 {
        let name = format!("s{round}");
        let topics = (0..10).map(|n| format!("{name}/{n}")).collect();
        let publisher =
            Publisher::start(gateway.listener(), Plan::new(&name, "", 2).topics(topics).count(500).rate(400));
        let (mut sensor, _) = Connection::open(gateway.listener(), Version::V5, clean(&format!("bad-{round}")))?;
        let bad = (0..20_000).map(|_| fastrand::u8(..)).collect();
        sensor.publish(&Message { topic: "t/bad".into(), payload: bad, qos: 1, ..Message::default() }, 1)?;
        for id in 2..5 {
            let reading = Message { topic: "late/x".into(), payload: b"1".to_vec(), qos: 1, ..Message::default() };
            sensor.publish(&reading, id)?;
        }
        std::thread::sleep(Duration::from_millis(700));
        agent.kill();
        agent = gateway.start()?;
        publisher.finish(PATIENCE)?;
        sent += 500;
    }
    agent.wait_book("dead_lettered", 4)?;
    agent.wait_book("held", 12)?;
    let audit = || -> Outcome<(Option<i32>, Value, String)> {
        let output = gateway.command(&["audit", "--json"])?;
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        let last = said.lines().last().unwrap_or_default();
        Ok((output.status.code(), serde_json::from_str(last).unwrap_or(Value::Null), said))
    };
    let (code, found, said) = audit()?;
    assert_eq!(code, Some(0), "{said}");
    let missing = &found["summary"]["missing"];
    assert_eq!((&missing["dead_lettered"], &missing["waiting"]), (&4.into(), &12.into()), "{said}");
    assert_eq!(found["summary"]["events"], sent, "{said}");
    // The topic appears, and what waited arrives.
    kafka.create_topic(&late, 1, &[])?;
    agent.wait_book("held", 0)?;
    let (code, found, said) = audit()?;
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(
        (&found["summary"]["events"], &found["summary"]["missing"]["waiting"]),
        (&(sent + 12).into(), &0.into())
    );
    Ok(())
}

/// 64 MiB, the aim.
const MOST_KIB: u64 = 65_536;

#[test]
fn memory_is_bounded_however_many_records() -> Outcome<()> {
    let records: u64 = asked("TIDEGATE_AUDIT_RECORDS", 300_000)?;
    let stage = Stage::new("many")?;
    let hand = Hand::new(&stage.kafka.brokers(), &[("queue.buffering.max.kbytes", "65536"), ("linger.ms", "20")])?;
    let buffers: Vec<String> = (0..20).map(|n| format!("{n:08x}-1111-4111-8111-111111111111")).collect();
    for sequence in 1..=records / 20 {
        for buffer in &buffers {
            hand.event(&stage.event(buffer, sequence))?;
        }
    }
    hand.flush()?;
    for buffer in &buffers {
        stage.say(&hand, buffer, &delivered(records / 20))?;
    }
    let found = stage.audit(&[])?;
    let seconds = &found.summary["seconds"];
    eprintln!("audit of {records} records: {seconds} s, {} KiB resident at most", found.peak_kib);
    assert_eq!((found.code, &found.summary["events"]), (Some(0), &records.into()), "{}", found.said);
    assert!(found.peak_kib < MOST_KIB, "{} KiB", found.peak_kib);
    Ok(())
}
