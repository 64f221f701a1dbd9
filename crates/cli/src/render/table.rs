//! Aligned columns.

use std::fmt;

use anstyle::Style;

use super::{BOLD, clean, styled};

/// A cell: whatever its text is, it can only be seen.
#[derive(Debug, Clone)]
pub(crate) struct Cell {
    style: Style,
    text: String,
}

impl Cell {
    /// Text in a style.
    pub(crate) fn styled(style: Style, text: impl fmt::Display) -> Self {
        let text = clean(&text.to_string());
        Self { style, text }
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self::styled(Style::new(), text)
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self::styled(Style::new(), text)
    }
}

/// A table whose last column may be as long as it likes.
pub(crate) struct Table<const N: usize> {
    head: [&'static str; N],
    rows: Vec<[Cell; N]>,
}

impl<const N: usize> Table<N> {
    pub(crate) fn new(head: [&'static str; N]) -> Self {
        Self {
            head,
            rows: Vec::new(),
        }
    }

    pub(crate) fn row<C: Into<Cell>>(&mut self, row: [C; N]) {
        self.rows.push(row.map(Into::into));
    }
}

impl<const N: usize> fmt::Display for Table<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head = self.head.map(|title| Cell::styled(BOLD, title));
        let rows = || std::iter::once(&head).chain(&self.rows);
        let widths: Vec<usize> = (0..N)
            .map(|column| {
                rows()
                    .map(|row| row[column].text.chars().count())
                    .max()
                    .unwrap_or(0)
            })
            .collect();
        for (number, row) in rows().enumerate() {
            if number > 0 {
                writeln!(f)?;
            }
            for (column, cell) in row.iter().enumerate() {
                f.write_str(&styled(cell.style, &cell.text))?;
                if column + 1 < N {
                    let padding = widths[column].saturating_sub(cell.text.chars().count()) + 2;
                    write!(f, "{:padding$}", "")?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_align_whatever_their_colour() {
        let mut table = Table::new(["A", "STATE", "B"]);
        table.row([
            "1".into(),
            Cell::styled(super::super::GOOD, "ok"),
            "x".into(),
        ]);
        table.row(["100", "failed", "y\nz"]);
        let plain = anstream::adapter::strip_str(&table.to_string()).to_string();
        assert_eq!(plain, "A    STATE   B\n1    ok      x\n100  failed  y z");
    }

    #[test]
    fn a_cell_moves_no_cursor() {
        let mut table = Table::new(["A"]);
        table.row(["x\u{1b}[2J\u{9b}1A\u{202e}"]);
        assert!(table.to_string().ends_with("x[2J1A"), "{table}");
    }
}
