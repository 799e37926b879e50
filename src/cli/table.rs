//! Tables for people: aligned columns, and colour where the terminal has it. A library for tables is larger than this: one
//! that knows colours brings a second crate for terminals, where `anstream` already decides who sees them.

use std::{fmt::Display, iter};

use anstyle::{AnsiColor, Style};

use crate::telemetry::printable;

const GAP: usize = 2;

#[derive(Debug, Default)]
pub(super) struct Cell {
    text: String,
    style: Style,
}

impl Cell {
    pub(super) fn coloured(text: impl Display, colour: AnsiColor) -> Self {
        Self {
            style: colour.on_default(),
            ..Self::from(text)
        }
    }

    /// A cell that is empty where there is no `text`.
    pub(super) fn of(text: Option<impl Display>) -> Self {
        text.map(Self::from).unwrap_or_default()
    }
}

impl<T: Display> From<T> for Cell {
    /// What an instance says of itself may be in `text`: nothing of it that a terminal obeys gets there.
    fn from(text: T) -> Self {
        Self {
            text: printable(&text.to_string()).into_owned(),
            style: Style::new(),
        }
    }
}

/// `rows` below `header`, each column as wide as its widest cell.
pub(super) fn table<const N: usize>(
    header: [&str; N],
    rows: impl IntoIterator<Item = [Cell; N]>,
) -> String {
    let header = header.map(|name| Cell {
        text: name.to_owned(),
        style: Style::new().bold(),
    });
    let rows: Vec<_> = iter::once(header).chain(rows).collect();
    let mut widths = [0; N];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.text.chars().count().max(*width);
        }
    }
    let line = |row: &[Cell; N]| {
        let cells = row.iter().zip(widths).map(|(Cell { text, style }, width)| {
            let space = width - text.chars().count() + GAP;
            format!("{style}{text}{style:#}{:space$}", "")
        });
        cells.collect::<String>().trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_without_trailing_space_and_colour_takes_no_width() {
        let red = Cell::coloured("é", AnsiColor::Red);
        let rows = [
            [red, "ready".into(), "".into()],
            ["b".into(), "".into(), 1.into()],
        ];
        let table = table(["REGION", "STATE", "X"], rows);
        assert!(table.contains("\u{1b}[31mé\u{1b}[0m"), "{table:?}");
        let plain = anstream::adapter::strip_str(&table).to_string();
        assert_eq!(plain, "REGION  STATE  X\né       ready\nb              1");
    }
}
