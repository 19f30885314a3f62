//! A disk that fails, for real: the file size limit of the process is lowered under SQLite's feet, in a process of
//! its own, because the limit holds for all of it.

use std::process::Command;

use super::*;

/// Set in the child; the directory to work in.
const CHILD: &str = "TIDEGATE_TEST_FAULT_DIR";

fn limit_file_size(bytes: &str) {
    let pid = std::process::id().to_string();
    let done = Command::new("prlimit").args(["--pid", &pid, &format!("--fsize={bytes}:unlimited")]).status().unwrap();
    assert!(done.success(), "prlimit (util-linux) failed");
}

/// Calls itself in a process of its own, and looks at what that left behind.
#[test]
fn a_failing_disk_acknowledges_nothing_and_recovers_unaided() {
    if let Some(dir) = std::env::var_os(CHILD) {
        in_a_process_of_its_own(Path::new(&dir));
    }
    let dir = tempfile::tempdir().unwrap();
    let child = Command::new("sh")
        // Without the signal the write fails with EFBIG, as it would with any other error of the disk.
        .args(["-c", r#"trap "" XFSZ; exec "$0" "$@""#])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture"])
        .arg("buffer::tests::faults::a_failing_disk_acknowledges_nothing_and_recovers_unaided")
        .env(CHILD, dir.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&child.stdout);
    let complaint = String::from_utf8_lossy(&child.stderr);
    assert!(said.contains("the disk failed and came back"), "{said}\n{complaint}");

    // The process is gone; what it acknowledged is here, once, in order.
    let mut bench = open(dir.path());
    assert_eq!(sequences(&bench.read_all()), (31..=60).collect::<Vec<_>>());
    assert_eq!(bench.recovered.released, 30);
    let books = bench.totals(|status| status.next_sequence > 0);
    assert_eq!((books.received, books.delivered, books.held), (60, 30, 30));
}

fn in_a_process_of_its_own(dir: &Path) -> ! {
    let mut bench = open(dir);
    bench.store(1..=30);
    assert_eq!(bench.read_all().len(), 30);
    limit_file_size("4096");
    bench.send((31..=50).map(event).collect(), 50);
    let ticket = bench.running.settler.settle(Settlement { delivered: delivered(1..=20), ..Settlement::default() });
    wait_for("a second failure", || bench.status().write_failures >= 2);
    let later = bench.running.settler.settle(Settlement { delivered: delivered(15..=30), ..Settlement::default() });
    bench.send((51..=60).map(event).collect(), 60);
    std::thread::sleep(Duration::from_millis(300));
    assert!(bench.durable.is_empty(), "acknowledged on a failing disk");
    assert!(bench.running.settler.applied() < ticket.unwrap());
    assert_eq!(bench.running.reader.next(Duration::ZERO).unwrap(), []);
    limit_file_size("unlimited");
    assert_eq!((bench.acknowledged(), bench.acknowledged()), (50, 60));
    wait_for("the settlements", || bench.running.settler.applied() >= later.unwrap());
    assert_eq!(sequences(&bench.read_all()), (31..=60).collect::<Vec<_>>());
    println!("the disk failed and came back");
    // No tidy end: the directory is left as a crash leaves it.
    std::process::abort();
}
