//! A commit whose outcome is unknown, step by step, without the thread.

use rusqlite::Connection;

use super::*;
use crate::buffer::chunk::{ChunkReader, ChunkWriter};
use crate::buffer::commit::{Batch, Scratch};
use crate::buffer::copies::Tools;
use crate::buffer::error::WriteError;
use crate::buffer::settle::{Part, Pending};
use crate::buffer::start::Doors;
use crate::buffer::statements::Statements;
use crate::buffer::writer::{Attempted, Writer};

/// A writer that has ten events and was about to commit five more and the delivery of the first three.
struct Scene {
    dir: tempfile::TempDir,
    writer: Writer<u64>,
    connection: Connection,
    doors: Doors<u64>,
    reply: mpsc::UnboundedSender<Durable<u64>>,
    durable: mpsc::UnboundedReceiver<Durable<u64>>,
}

fn arrivals(numbers: RangeInclusive<u64>, receipt: u64, reply: &mpsc::UnboundedSender<Durable<u64>>) -> Arrivals<u64> {
    let (events, reply) = (numbers.map(event).collect(), reply.clone());
    Arrivals { events, sessions: vec![], receipt, reply, room: None, waits: true }
}

fn first_three() -> Settlement {
    Settlement { delivered: delivered(1..=3), ..Settlement::default() }
}

/// The same transaction by another hand, so that it is on disk without the writer knowing.
fn commit_behind_its_back(scene: &Scene) {
    let connection = Connection::open(scene.dir.path().join("buffer.db")).unwrap();
    let mut books = scene.writer.books.clone();
    let (reply, _nobody) = mpsc::unbounded_channel();
    let mut batch = Batch::new();
    batch.add(arrivals(11..=15, 0, &reply), books.next);
    let mut pending = Pending::default();
    pending.add(1, first_three(), &books, None);
    let mut tools = Tools {
        writer: ChunkWriter::new(true),
        reader: ChunkReader::default(),
        unread: std::collections::BTreeSet::default(),
    };
    let mut tx = Statements::prepare(&connection).unwrap();
    batch.commit(Some((&pending, Part::All)), &mut books, &mut tx, &mut tools, &mut Scratch::default()).unwrap();
}

fn scene() -> Scene {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = open(dir.path());
    bench.store(1..=10);
    bench.close();
    let (buffer, _) = Buffer::open(settings(), dir.path(), &names()).unwrap();
    let (mut writer, connection, doors) = buffer.assemble(Pulse::new());
    let (reply, durable) = mpsc::unbounded_channel();
    doors.intake.store(arrivals(11..=15, 15, &reply)).unwrap();
    let ticket = doors.settler.settle(first_three()).unwrap();
    assert_eq!(ticket, 1);
    writer.inbox.wait(Duration::ZERO, false, &writer.books);
    writer.attempted = Attempted { batch: true, settlements: Some(Part::All) };
    Scene { dir, writer, connection, doors, reply, durable }
}

impl Scene {
    /// Runs the thread's loop to its end and opens the files again.
    fn finish(self, connection: Connection) -> (tempfile::TempDir, Bench) {
        let Doors { intake, settler, reader, .. } = self.doors;
        drop((intake, settler, reader));
        self.writer.run(connection).unwrap();
        let bench = open(self.dir.path());
        (self.dir, bench)
    }
}

fn check(bench: &mut Bench, last: u64, released: u64) {
    assert_eq!(sequences(&bench.read_all()), (released + 1..=last).collect::<Vec<_>>());
    let books = bench.totals(|status| status.next_sequence > 0);
    assert_eq!((books.received, books.delivered, books.held), (last, released, last - released));
}

#[test]
fn a_failed_commit_that_is_on_disk_is_acknowledged_and_not_stored_again() {
    let mut scene = scene();
    commit_behind_its_back(&scene);
    let failed = WriteError::Doubt(rusqlite::Error::InvalidQuery);
    scene.writer.recover(&failed).map(drop).unwrap();
    assert_eq!(scene.durable.try_recv().unwrap().into_receipt(), 15);
    assert_eq!(scene.doors.settler.applied(), 1);
    assert_eq!(sequences(&scene.doors.reader.next(Duration::ZERO).unwrap()), (1..=15).collect::<Vec<_>>());
    assert!(scene.writer.inbox.batch.is_empty() && scene.writer.inbox.pending.is_empty());
    let connection = scene.writer.database.open_existing().unwrap();
    let (_dir, mut bench) = scene.finish(connection);
    assert_eq!(bench.recovered.released, 3);
    check(&mut bench, 15, 3);
}

#[test]
fn a_failed_commit_that_is_not_on_disk_is_stored_again_with_what_came_meanwhile() {
    let mut scene = scene();
    // As far as a transaction gets before its COMMIT fails: the books in memory are ahead.
    scene.writer.books.transaction += 1;
    scene.writer.books.settled.insert_span(1, 3);
    scene.writer.books.next = 16;
    scene.doors.intake.store(arrivals(16..=17, 17, &scene.reply)).unwrap();
    let twice_and_more = Settlement { delivered: delivered(2..=5), ..Settlement::default() };
    let ticket = scene.doors.settler.settle(twice_and_more).unwrap();
    let failed = WriteError::Doubt(rusqlite::Error::InvalidQuery);
    scene.writer.recover(&failed).map(drop).unwrap();
    assert!(scene.durable.is_empty(), "nothing is acknowledged in doubt");
    assert!(scene.doors.settler.applied() < ticket);
    let connection = std::mem::replace(&mut scene.connection, Connection::open_in_memory().unwrap());
    let mut durable = std::mem::replace(&mut scene.durable, mpsc::unbounded_channel().1);
    let (_dir, mut bench) = scene.finish(connection);
    assert_eq!(durable.try_recv().unwrap().into_receipt(), 15);
    assert_eq!(durable.try_recv().unwrap().into_receipt(), 17);
    assert_eq!(bench.recovered.released, 5);
    check(&mut bench, 17, 5);
}

#[test]
fn books_that_went_back_are_not_believed() {
    let mut scene = scene();
    scene.writer.durable += 1;
    let Doors { intake, settler, .. } = scene.doors;
    drop((intake, settler));
    let failed = WriteError::Doubt(rusqlite::Error::InvalidQuery);
    let error = scene.writer.recover(&failed).map(drop).unwrap_err();
    assert!(error.to_string().contains("5 readings not stored"), "{error}");
    assert!(error.to_string().contains("holds transaction"), "{error}");
    assert!(scene.durable.is_empty());
}
