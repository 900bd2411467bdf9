//! The table, and the same as JSON.

use std::fs;

use serde::Serialize;

/// One figure and its bar.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) what: String,
    pub(crate) driver: String,
    pub(crate) guarantee: String,
    pub(crate) unit: &'static str,
    /// One of each run that counts.
    pub(crate) runs: Vec<f64>,
    /// Runs that others disturbed.
    pub(crate) disturbed: usize,
    /// `None` for what is only told.
    pub(crate) bar: Option<Bar>,
}

#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) enum Bar {
    AtMost(f64),
    AtLeast(f64),
}

impl Bar {
    fn is_met(self, figure: f64) -> bool {
        match self {
            Self::AtMost(bar) => figure <= bar,
            Self::AtLeast(bar) => figure >= bar,
        }
    }

    fn text(self) -> String {
        match self {
            Self::AtMost(bar) => format!("≤ {bar}"),
            Self::AtLeast(bar) => format!("≥ {bar}"),
        }
    }
}

impl Row {
    /// Least, median and most.
    fn spread(&self) -> Option<[f64; 3]> {
        let mut runs = self.runs.clone();
        runs.sort_by(f64::total_cmp);
        Some([*runs.first()?, runs[runs.len() / 2], *runs.last()?])
    }

    fn line(&self) -> String {
        let (figure, median) = match self.spread() {
            Some([least, median, most]) => (
                format!("{median:.3} ({least:.3} to {most:.3})"),
                Some(median),
            ),
            None => ("none".to_owned(), None),
        };
        let verdict = match (self.bar, median) {
            (Some(bar), Some(median)) if bar.is_met(median) => "pass",
            (Some(_), Some(_)) => "**falls short**",
            (Some(_), None) => "not judged",
            (None, _) => "",
        };
        format!(
            "| {} | {} | {} | {figure} | {} | {} | {verdict} | {} |",
            self.what,
            self.driver,
            self.guarantee,
            self.unit,
            self.bar.map(Bar::text).unwrap_or_default(),
            self.disturbed
        )
    }
}

#[derive(Debug, Default)]
pub(crate) struct Table(Vec<Row>);

impl Table {
    /// Adds a row and tells it, as the others may take long.
    pub(crate) fn add(&mut self, row: Row) {
        eprintln!("{}", row.line());
        self.0.push(row);
    }

    pub(crate) fn print(&self) {
        println!(
            "| figure | driver | guarantee | median (least to most) | unit | bar | verdict | disturbed |"
        );
        println!("| --- | --- | --- | --- | --- | --- | --- | --- |");
        self.0.iter().for_each(|row| println!("{}", row.line()));
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/target/bars.json");
        let json = serde_json::to_vec_pretty(&self.0).expect("it is plain data");
        fs::write(path, json).expect("written");
    }
}
