//! Tables for people: aligned columns, and colour where the terminal has it.

use anstyle::Style;

use crate::telemetry::printable;

/// The space between two columns.
const GAP: usize = 2;

/// One cell of a table.
#[derive(Debug, Default)]
pub(super) struct Cell {
    text: String,
    style: Style,
}

impl Cell {
    /// A cell in `style`.
    pub(super) fn styled(text: impl Into<String>, style: Style) -> Self {
        // What an instance says of itself is in it.
        let text = printable(&text.into()).into_owned();
        Self { text, style }
    }

    fn width(&self) -> usize {
        self.text.chars().count()
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::styled(text, Style::new())
    }
}

/// The first row of a table.
pub(super) fn header<const N: usize>(names: [&str; N]) -> Vec<Cell> {
    let bold = |name: &str| Cell::styled(name, Style::new().bold());
    names.map(bold).into()
}

/// `rows` as aligned columns, each as wide as its widest cell.
pub(super) fn table(rows: &[Vec<Cell>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(Cell::width).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let lines = rows.iter().map(|row| line(row, &widths));
    lines.collect::<Vec<_>>().join("\n")
}

/// One row, without space behind its last cell that has text.
fn line(row: &[Cell], widths: &[usize]) -> String {
    let shown = row.iter().rposition(|cell| !cell.text.is_empty());
    let row = &row[..shown.map_or(0, |last| last + 1)];
    let mut line = String::new();
    for (number, (cell, width)) in row.iter().zip(widths).enumerate() {
        let Cell { text, style } = cell;
        let is_last = number + 1 == row.len();
        let space = if is_last {
            0
        } else {
            width - cell.width() + GAP
        };
        line += &format!("{style}{text}{style:#}{:space$}", "");
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_aligned_without_trailing_space() {
        let rows = [["REGION", "STATE", "X"], ["é", "ready", ""]];
        let rows = rows.map(|row| row.map(Cell::from).into());
        assert_eq!(table(&rows), "REGION  STATE  X\né       ready");
    }

    #[test]
    fn colour_takes_no_width() {
        let bold = Style::new().bold();
        let rows = [
            header(["A", "B"]),
            vec![Cell::styled("long", bold), "b".into()],
        ];
        let plain = anstream::adapter::strip_str(&table(&rows)).to_string();
        assert_eq!(plain, "A     B\nlong  b");
    }
}
