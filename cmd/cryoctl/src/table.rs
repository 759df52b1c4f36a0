//! Tables as checkpointctl prints them: those of Go's tabwriter with kubectl's settings.

/// Narrowest column, its padding included.
const MIN_WIDTH: usize = 6;

/// Spaces between two columns.
const PADDING: usize = 3;

/// A table that knows its widths, so that its rows may come one by one.
#[derive(Debug)]
pub(crate) struct Table {
    header: Vec<String>,
    widths: Vec<usize>,
}

impl Table {
    /// A table with these columns; their names are printed in capitals.
    pub(crate) fn new(header: &[&str]) -> Self {
        let header: Vec<_> = header.iter().map(|name| name.to_uppercase()).collect();
        let widths = header.iter().map(|name| width(name)).collect();
        Self { header, widths }
    }

    /// Makes room for a row, which has as many cells as the header.
    pub(crate) fn fit<'a>(&mut self, row: impl IntoIterator<Item = &'a str>) {
        for (at, cell) in self.widths.iter_mut().zip(row) {
            *at = (*at).max(width(cell));
        }
    }

    /// The header, and a line of dashes below.
    pub(crate) fn head(&self) -> String {
        let dashes: Vec<_> = self
            .header
            .iter()
            .map(|name| "-".repeat(name.chars().count()))
            .collect();
        let mut text = self.row(self.header.iter().map(String::as_str));
        text.push_str(&self.row(dashes.iter().map(String::as_str)));
        text
    }

    /// One row. Its last cell is not filled up.
    pub(crate) fn row<'a>(&self, cells: impl IntoIterator<Item = &'a str>) -> String {
        let mut text = String::new();
        let last = self.widths.len().saturating_sub(1);
        for (index, (cell, width)) in cells.into_iter().zip(&self.widths).enumerate() {
            text.push_str(cell);
            if index < last {
                let length = cell.chars().count();
                text.extend(std::iter::repeat_n(' ', width.saturating_sub(length)));
            }
        }
        text.push('\n');
        text
    }
}

fn width(cell: &str) -> usize {
    (cell.chars().count() + PADDING).max(MIN_WIDTH)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As Debian's checkpointctl prints it.
    #[test]
    fn columns() {
        let mut table = Table::new(&["PID", "Process name", "Memory size"]);
        let rows = [["2", "sh", "0 B"], ["8", "a-long-process-name", "1.0 MiB"]];
        for row in rows {
            table.fit(row);
        }
        let text = table.head() + &rows.map(|row| table.row(row)).concat();
        assert_eq!(
            text,
            "PID   PROCESS NAME          MEMORY SIZE\n\
             ---   ------------          -----------\n\
             2     sh                    0 B\n\
             8     a-long-process-name   1.0 MiB\n"
        );
    }
}
