//! Columns that stand under each other.

use std::io::{self, Write};

use crate::cli::output::{Terminal, Tone, harmless};

/// Cells of one line.
pub(super) type Row = Vec<String>;

/// Writes the rows below the titles; each column is as wide as its widest cell, the last as long as it is.
pub(super) fn write(
    titles: &[&str],
    rows: &[Row],
    terminal: &Terminal,
    out: &mut (dyn Write + Send),
) -> io::Result<()> {
    let width = |column: usize, title: &str| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        let widest = cells.map(|cell| cell.chars().count()).max().unwrap_or(0);
        widest.max(title.chars().count())
    };
    let widths: Vec<_> = titles
        .iter()
        .enumerate()
        .map(|(column, title)| width(column, title))
        .collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let padded = cells.zip(&widths).map(|(cell, width)| {
            let cell = harmless(cell);
            format!("{cell:<width$}")
        });
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    let head = line(&mut titles.iter().copied());
    writeln!(out, "{}", terminal.paint(Tone::Faint, head))?;
    for row in rows {
        writeln!(out, "{}", line(&mut row.iter().map(String::as_str)))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_under_each_other_and_nothing_acts_on_the_terminal() {
        let mut out = Vec::new();
        let row = |cells: [&str; 3]| cells.map(str::to_owned).to_vec();
        let rows = [row(["docs/0", "7", "a\u{1b}b"]), row(["d/1", "1024", ""])];
        write(
            &["partition", "n", "owner"],
            &rows,
            &Terminal::plain(),
            &mut out,
        )
        .unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "partition  n     owner\ndocs/0     7     a\u{fffd}b\nd/1        1024\n"
        );
    }
}
