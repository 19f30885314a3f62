//! What the spectator sees: a story line by line, four bars that move on a terminal, plain lines once a second
//! elsewhere, and the books.
//!
//! All of it goes to standard output; a closed pipe there ends the telling and not the demo, which cleans up.

use std::cell::Cell;
use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Pause between plain lines.
const PLAIN_EVERY: Duration = Duration::from_secs(1);

/// The four numbers of the live view.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Numbers {
    pub(super) published: u64,
    pub(super) acknowledged: u64,
    pub(super) held: u64,
    pub(super) in_kafka: u64,
}

/// The only place that prints.
pub(super) struct View {
    started: Instant,
    live: Option<Live>,
    colour: bool,
    last_plain: Cell<Option<Instant>>,
}

struct Live {
    all: MultiProgress,
    published: ProgressBar,
    acknowledged: ProgressBar,
    held: ProgressBar,
    in_kafka: ProgressBar,
}

impl View {
    /// `expected`: how many readings a full bar means.
    pub(super) fn new(expected: u64) -> Self {
        let said = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let terminal =
            io::stdout().is_terminal() && io::stderr().is_terminal() && said("TERM").is_some_and(|t| t != "dumb");
        let colour = terminal && said("NO_COLOR").is_none();
        let live = terminal.then(|| Live::new(expected, colour));
        Self { started: Instant::now(), live, colour, last_plain: Cell::new(None) }
    }

    /// A line as it is.
    pub(super) fn line(&self, text: impl Display) {
        match &self.live {
            Some(live) => for_a_spectator(live.all.println(text.to_string())),
            None => for_a_spectator(writeln!(io::stdout(), "{text}")),
        }
    }

    /// A line of the story, with its second.
    pub(super) fn scene(&self, text: impl Display) {
        let at = format!("{:>5.1} s", self.started.elapsed().as_secs_f64());
        self.line(format!("{}  {text}", self.bold(&at)));
    }

    /// The clock starts here.
    pub(super) fn curtain(&mut self) {
        self.started = Instant::now();
        if let Some(live) = &self.live {
            live.raise();
        }
    }

    /// Called often; draws as often as is fit.
    pub(super) fn draw(&self, numbers: Numbers) {
        if let Some(live) = &self.live {
            live.draw(numbers);
        } else if self.last_plain.get().is_none_or(|last| last.elapsed() >= PLAIN_EVERY) {
            self.last_plain.set(Some(Instant::now()));
            self.scene(format!(
                "  published {} · acknowledged {} · in the buffer {} · in Kafka {}",
                grouped(numbers.published),
                grouped(numbers.acknowledged),
                grouped(numbers.held),
                grouped(numbers.in_kafka),
            ));
        }
    }

    /// The bars stay as they are; what follows is printed below them.
    pub(super) fn close(&mut self) {
        if let Some(live) = self.live.take() {
            live.leave();
        }
    }

    pub(super) fn bold(&self, text: &str) -> String {
        self.coloured("1", text)
    }

    pub(super) fn good(&self, text: &str) -> String {
        self.coloured("1;32", text)
    }

    pub(super) fn bad(&self, text: &str) -> String {
        self.coloured("1;31", text)
    }

    fn coloured(&self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

impl Live {
    fn new(expected: u64, colour: bool) -> Self {
        let all = MultiProgress::with_draw_target(ProgressDrawTarget::stdout());
        let bar = |name: &'static str, hue: &str| {
            let hue = if colour { format!(".{hue}") } else { String::new() };
            let style = ProgressStyle::with_template(&format!("  {{prefix:14}} {{bar:40{hue}}} {{msg:>10}}"))
                .unwrap_or_else(|_| ProgressStyle::default_bar())
                .progress_chars("█▉▊▋▌▍▎▏ ");
            ProgressBar::new(expected.max(1)).with_style(style).with_prefix(name)
        };
        Self {
            published: bar("published", "bold"),
            acknowledged: bar("acknowledged", "cyan"),
            held: bar("in the buffer", "yellow"),
            in_kafka: bar("in Kafka", "green"),
            all,
        }
    }

    fn bars(&self) -> [&ProgressBar; 4] {
        [&self.published, &self.acknowledged, &self.held, &self.in_kafka]
    }

    fn raise(&self) {
        for bar in self.bars() {
            self.all.add(bar.clone());
        }
    }

    fn draw(&self, numbers: Numbers) {
        let numbers = [numbers.published, numbers.acknowledged, numbers.held, numbers.in_kafka];
        for (bar, number) in self.bars().into_iter().zip(numbers) {
            bar.set_message(grouped(number));
            bar.set_position(number);
        }
    }

    fn leave(&self) {
        for bar in self.bars() {
            bar.abandon();
        }
    }
}

/// 1234567 as 1,234,567.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + 6);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Nobody may be listening any more; the demo plays on to its end all the same.
fn for_a_spectator(told: io::Result<()>) {
    drop(told);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_by_thousands() {
        let pairs = [(0, "0"), (999, "999"), (1000, "1,000"), (12_345, "12,345"), (1_234_567, "1,234,567")];
        for (number, text) in pairs {
            assert_eq!(grouped(number), text);
        }
    }
}
