//! The figures as Markdown.

use std::{fmt::Write as _, fs, thread};

/// What was measured.
#[derive(Debug)]
pub(crate) struct Report {
    text: String,
}

/// An aim, and whether it was met.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Aim {
    /// At least so much.
    AtLeast(f64),
    /// Less than so much.
    Under(f64),
    /// No more than so much.
    AtMost(f64),
}

impl Report {
    /// A report that tells first of the machine.
    pub(crate) fn begin(quick: bool) -> Self {
        let mut report = Self {
            text: String::new(),
        };
        let cores = thread::available_parallelism().map_or(0, usize::from);
        let load = load();
        report.line(format!(
            "{cores} cores ({}), Linux {}, load {load} before the start{}",
            processor().unwrap_or_default(),
            read("/proc/sys/kernel/osrelease"),
            if quick {
                "; one short round of each: a look, not a figure"
            } else {
                ""
            },
        ));
        report
    }

    /// A line of text.
    pub(crate) fn line(&mut self, line: impl AsRef<str>) {
        println!("{}", line.as_ref());
        self.text.push_str(line.as_ref());
        self.text.push('\n');
    }

    /// A headline and the head of a table.
    pub(crate) fn table(&mut self, title: &str, head: &[&str]) {
        self.line(format!("\n### {title}\n"));
        self.row(head);
        self.row(&vec!["---"; head.len()]);
    }

    /// A row of a table.
    pub(crate) fn row(&mut self, cells: &[impl AsRef<str>]) {
        let mut line = "|".to_owned();
        for cell in cells {
            // Writing to a string cannot fail.
            let _ = write!(line, " {} |", cell.as_ref());
        }
        self.line(line);
    }

    /// All of it once more, in one piece, with the load at the end.
    pub(crate) fn print(&mut self) {
        self.line(format!("\nload {} at the end", load()));
    }
}

/// What an aim came to.
pub(crate) fn verdict(value: f64, aim: Aim, unit: &str) -> String {
    let (met, words) = match aim {
        Aim::AtLeast(least) => (value >= least, format!("≥ {least}{unit}")),
        Aim::Under(most) => (value < most, format!("< {most}{unit}")),
        Aim::AtMost(most) => (value <= most, format!("≤ {most}{unit}")),
    };
    let mark = if met { "met" } else { "**missed**" };
    format!("{words}: {mark}")
}

fn read(path: &str) -> String {
    fs::read_to_string(path)
        .map(|text| text.trim().to_owned())
        .unwrap_or_default()
}

fn load() -> String {
    read("/proc/loadavg")
        .split(' ')
        .next()
        .unwrap_or_default()
        .to_owned()
}

fn processor() -> Option<String> {
    let text = read("/proc/cpuinfo");
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}
