//! When a difference is an alarm, so that looking again and again does not cry wolf. Pure.
//!
//! A reference is cut into `m` blocks as long as a window, and each block's distance from the rest of the reference is known. A window *stands
//! out* where it lies farther from the reference than every one of those blocks. An alarm takes `k` windows in a row that stand out.
//!
//! While nothing changes, `m` blocks and `k` windows are exchangeable, so that the `k` largest distances of the `m + k` are those of the windows
//! with probability 1 / C(m + k, k), whatever the distribution is, and with the noise of the reference itself paid for. Each look at each
//! statistic is one chance: their expected number bounds the false alarms (Boole's inequality, which asks for no independence).

/// False alarms are told per so many documents.
pub const PER_DOCUMENTS: u32 = 100_000;

/// A rule that asks for more windows in a row than this would hardly ever answer.
const WINDOWS_MAX: u32 = 1_000;

/// How many windows in a row an alarm takes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rule {
    /// `k`.
    pub windows: u32,
    /// False alarms expected in [`PER_DOCUMENTS`] documents, at most.
    pub false_alarms: f64,
}

impl Rule {
    /// The least number of windows that keeps the false alarms of `tests` statistics to `false_alarms` per [`PER_DOCUMENTS`] documents.
    #[must_use]
    pub fn new(blocks: u32, tests: u32, window_documents: u32, false_alarms: f64) -> Self {
        let looks = f64::from(PER_DOCUMENTS) / f64::from(window_documents.max(1));
        let chances = looks * f64::from(tests);
        let mut ways = 1.0;
        let mut windows = 0;
        while windows < WINDOWS_MAX {
            windows += 1;
            // C(m + k, k) from C(m + k − 1, k − 1).
            ways *= f64::from(blocks.saturating_add(windows)) / f64::from(windows);
            if chances / ways <= false_alarms {
                break;
            }
        }
        Self {
            windows,
            false_alarms: chances / ways,
        }
    }

    /// From its first document on, a difference that makes every window stand out is told within so many documents: one window may have begun
    /// before it.
    #[must_use]
    pub const fn documents_to_alarm(&self, window_documents: u32) -> u32 {
        (self.windows.saturating_add(1)).saturating_mul(window_documents)
    }
}

/// What a window turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// So many windows in a row stand out.
    Shifted,
    /// So many in a row do not, after an alarm.
    Back,
}

/// The windows in a row of one statistic.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Run {
    in_a_row: u32,
    is_shifted: bool,
}

impl Run {
    /// Whether there was an alarm that has not passed.
    #[must_use]
    pub const fn is_shifted(&self) -> bool {
        self.is_shifted
    }

    /// Notes the next window.
    pub fn note(&mut self, stands_out: bool, windows: u32) -> Option<Turn> {
        if stands_out == self.is_shifted {
            self.in_a_row = 0;
            return None;
        }
        self.in_a_row += 1;
        if self.in_a_row < windows {
            return None;
        }
        *self = Self {
            in_a_row: 0,
            is_shifted: stands_out,
        };
        Some(if stands_out {
            Turn::Shifted
        } else {
            Turn::Back
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// C(45, 5) = 1,221,759 and C(44, 4) = 135,751: nine statistics in windows of 100 have 9,000 chances in 100,000 documents.
    #[test]
    fn the_least_number_of_windows_that_keeps_the_promise_is_taken() {
        let rule = Rule::new(40, 9, 100, 0.01);
        assert_eq!(rule.windows, 5);
        assert!((rule.false_alarms - 9_000.0 / 1_221_759.0).abs() < 1e-12);
        assert_eq!(rule.documents_to_alarm(100), 600);
        let rule = Rule::new(40, 9, 100, 0.07);
        assert_eq!(rule.windows, 4);
        assert!((rule.false_alarms - 9_000.0 / 135_751.0).abs() < 1e-12);
        assert_eq!(Rule::new(40, 41, 100, 0.01).windows, 6, "more statistics");
        assert_eq!(Rule::new(10, 9, 100, 0.01).windows, 13, "fewer blocks");
        assert_eq!(Rule::new(0, 1, 1, 0.01).windows, WINDOWS_MAX, "it ends");
    }

    #[test]
    fn an_alarm_takes_windows_in_a_row_and_so_does_its_end() {
        let mut run = Run::default();
        let noted: Vec<_> = [
            true, true, false, true, true, true, true, false, false, true, false, false, false,
        ]
        .into_iter()
        .map(|stands_out| run.note(stands_out, 3))
        .collect();
        assert_eq!(noted[5], Some(Turn::Shifted));
        assert_eq!(noted[12], Some(Turn::Back));
        assert_eq!(noted.iter().flatten().count(), 2, "{noted:?}");
        assert!(!run.is_shifted());
    }
}
