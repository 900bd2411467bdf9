//! From what some records take to what the whole backlog would take: unfinished records times the mean of those that were read.
//!
//! Pure. Each figure comes with the sum that it was made by.

use std::time::Duration;

use super::asked::Asked;
use super::sample::Sample;
use crate::llm::{Concurrency, LlmConfig};

/// What the estimate is made from, beside the sample.
#[derive(Debug, Clone, Copy)]
pub(super) struct Basis<'a> {
    /// Unfinished records of the backlog.
    pub(super) unfinished: u64,
    /// What answers took, when the model was asked.
    pub(super) asked: Option<Asked>,
    /// What a call takes, when that was told.
    pub(super) seconds_per_call: Option<f64>,
    /// Concurrency, budgets and prices.
    pub(super) llm: &'a LlmConfig,
}

/// What the backlog would take.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Estimate {
    /// Documents that would be answered.
    pub(super) documents: u64,
    /// Calls of these.
    pub(super) calls: u64,
    pub(super) prompt_tokens: u64,
    pub(super) completion_tokens: u64,
    /// Whether the answers' tokens are the most that there can be, as none was measured.
    pub(super) completion_tokens_are_the_most: bool,
    /// `None` when there is nothing to tell it by.
    pub(super) seconds: Option<f64>,
    /// `None` without prices.
    pub(super) cost: Option<f64>,
    /// How each figure was made, by its name.
    pub(super) arithmetic: Vec<(&'static str, String)>,
}

impl Estimate {
    /// Of an empty sample there is none.
    pub(super) fn new(sample: &Sample, basis: &Basis<'_>) -> Self {
        let mut estimate = Self::default();
        if sample.records == 0 || basis.unfinished == 0 {
            return estimate;
        }
        estimate.amounts(sample, basis);
        estimate.time(basis);
        estimate.cost(basis.llm);
        estimate
    }

    fn amounts(&mut self, sample: &Sample, basis: &Basis<'_>) {
        let (unfinished, records) = (basis.unfinished, sample.records);
        let by_record = |sum: u64| scaled(unfinished, sum, records);
        let from = format!("{} records", grouped(unfinished));
        self.documents = by_record(sample.documents);
        self.calls = by_record(sample.load.calls);
        self.prompt_tokens = by_record(sample.load.prompt_tokens);
        let (documents, calls) = (grouped(self.documents), grouped(self.calls));
        self.tell(
            "documents",
            format!(
                "{from} × {} of {} = {documents}",
                grouped(sample.documents),
                grouped(records)
            ),
        );
        let each = |sum: u64, of: u64| format!("{:.2}", mean(sum, of));
        let calls_each = each(sample.load.calls, records);
        self.tell("calls", format!("{from} × {calls_each} each = {calls}"));
        let tokens = grouped(self.prompt_tokens);
        let tokens_each = each(sample.load.prompt_tokens, records);
        self.tell(
            "prompt tokens",
            format!("{from} × {tokens_each} each = {tokens}"),
        );
        let answered = basis.asked.filter(|asked| asked.answered > 0);
        let told = if let Some(asked) = answered {
            self.completion_tokens =
                scaled(self.documents, asked.completion_tokens, asked.answered);
            format!(
                "{documents} documents × {} each, the mean of {} answers = {}",
                each(asked.completion_tokens, asked.answered),
                grouped(asked.answered),
                grouped(self.completion_tokens)
            )
        } else {
            self.completion_tokens_are_the_most = true;
            self.completion_tokens = by_record(sample.load.completion_tokens);
            format!(
                "{from} × at most {} each = at most {}",
                each(sample.load.completion_tokens, records),
                grouped(self.completion_tokens)
            )
        };
        self.tell("answer tokens", told);
    }

    fn tell(&mut self, name: &'static str, sum: String) {
        self.arithmetic.push((name, sum));
    }

    fn time(&mut self, basis: &Basis<'_>) {
        let by_model = self.time_of_model(basis);
        let by_budget = self.time_of_budgets(basis.llm);
        // Without the model's part it takes that long at the least.
        let least = if by_model.is_none() { "at least " } else { "" };
        let times = by_model.into_iter().chain(by_budget);
        let longest = times.max_by(|left, right| left.0.total_cmp(&right.0));
        if let Some((seconds, sum)) = longest {
            self.seconds = Some(seconds);
            self.tell("time", format!("{sum} = {least}{}", spoken(seconds)));
        }
    }

    fn time_of_model(&self, basis: &Basis<'_>) -> Option<(f64, String)> {
        let (documents, calls) = (grouped(self.documents), grouped(self.calls));
        if let Some(asked) = basis.asked.filter(|asked| asked.answered > 0) {
            let each = asked.seconds / float(asked.answered);
            let at_a_time = asked.at_a_time.min(asked.documents);
            let sum = format!(
                "{documents} documents ÷ {:.2} a second ({} answered in {:.1} s, up to {at_a_time} at a time)",
                1.0 / each.max(f64::MIN_POSITIVE),
                grouped(asked.answered),
                asked.seconds
            );
            return Some((float(self.documents) * each, sum));
        }
        let seconds = basis.seconds_per_call?;
        let servers = basis.llm.base_urls().map_or(1, |urls| urls.len());
        let at_a_time = basis.llm.concurrency_initial().saturating_mul(servers);
        let at_a_time = u64::try_from(at_a_time).unwrap_or(u64::MAX).max(1);
        let found_out = match basis.llm.concurrency {
            Concurrency::Adaptive => ", where `adaptive` begins",
            Concurrency::Fixed(_) => "",
        };
        let sum = format!(
            "{calls} calls × {seconds} s ÷ {} at a time (llm.concurrency{found_out})",
            grouped(at_a_time)
        );
        Some((float(self.calls) * seconds / float(at_a_time), sum))
    }

    /// The slowest of the budgets.
    fn time_of_budgets(&self, llm: &LlmConfig) -> Option<(f64, String)> {
        let tokens = self.prompt_tokens.saturating_add(self.completion_tokens);
        let (minute, day) = (("minute", 60.0), ("day", 86_400.0));
        let calls = (self.calls, "calls", minute);
        let budgets = [
            ("llm.requests_per_minute", llm.requests_per_minute, calls),
            (
                "llm.tokens_per_minute",
                llm.tokens_per_minute,
                (tokens, "tokens", minute),
            ),
            (
                "llm.tokens_per_day",
                llm.tokens_per_day,
                (tokens, "tokens", day),
            ),
        ];
        let times = budgets.into_iter().filter_map(|(key, budget, of)| {
            let (budget, (amount, unit, (period, seconds))) = (budget?, of);
            let time = float(amount) / float(budget.max(1)) * seconds;
            let (amount, budget) = (grouped(amount), grouped(budget));
            let sum = format!("{amount} {unit} ÷ {budget} a {period} ({key})");
            Some((time, sum))
        });
        times.max_by(|left, right| left.0.total_cmp(&right.0))
    }

    fn cost(&mut self, llm: &LlmConfig) {
        let (prompts, answers) = (
            llm.price_per_million_prompt_tokens,
            llm.price_per_million_completion_tokens,
        );
        if prompts.is_none() && answers.is_none() {
            return;
        }
        let (prompts, answers) = (prompts.unwrap_or(0.0), answers.unwrap_or(0.0));
        let cost =
            (float(self.prompt_tokens) * prompts + float(self.completion_tokens) * answers) / 1e6;
        let most = if self.completion_tokens_are_the_most {
            "at most "
        } else {
            ""
        };
        let sum = format!(
            "({} × {prompts} + {} × {answers}) ÷ 1,000,000 = {most}{cost:.2}",
            grouped(self.prompt_tokens),
            grouped(self.completion_tokens)
        );
        self.cost = Some(cost);
        self.tell("cost", sum);
    }
}

/// `sum` of `of` things, for `amount` of them; rounded up.
fn scaled(amount: u64, sum: u64, of: u64) -> u64 {
    let scaled = (u128::from(amount) * u128::from(sum)).div_ceil(u128::from(of.max(1)));
    u64::try_from(scaled).unwrap_or(u64::MAX)
}

#[allow(
    clippy::cast_precision_loss,
    reason = "an estimate has no fifteen digits"
)]
const fn float(number: u64) -> f64 {
    number as f64
}

fn mean(sum: u64, of: u64) -> f64 {
    float(sum) / float(of.max(1))
}

/// With commas between thousands.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// Seconds as people say them, without what is too small to matter.
fn spoken(seconds: f64) -> String {
    let Ok(time) = Duration::try_from_secs_f64(seconds) else {
        return format!("{seconds:.0} s");
    };
    if time < Duration::from_secs(10) {
        return format!("{seconds:.1}s");
    }
    let least = if time < Duration::from_hours(24) {
        1
    } else {
        60
    };
    let time = Duration::from_secs(time.as_secs() / least * least);
    humantime::format_duration(time).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::llm::Load;

    /// Ten records: eight documents of 100 tokens, a call each.
    fn sample() -> Sample {
        Sample {
            records: 10,
            skipped: 2,
            documents: 8,
            whole: 8,
            load: Load {
                calls: 8,
                prompt_tokens: 800,
                completion_tokens: 8 * 50,
            },
            ..Sample::default()
        }
    }

    fn basis(llm: &LlmConfig) -> Basis<'_> {
        Basis {
            unfinished: 1_000,
            asked: None,
            seconds_per_call: None,
            llm,
        }
    }

    fn sum<'a>(estimate: &'a Estimate, name: &str) -> &'a str {
        let mut sums = estimate.arithmetic.iter();
        sums.find(|(found, _)| *found == name)
            .map_or("", |(_, sum)| sum)
    }

    #[test]
    fn the_backlog_takes_unfinished_records_times_the_mean() {
        let llm = LlmConfig::default();
        let estimate = Estimate::new(&sample(), &basis(&llm));
        assert_eq!((estimate.documents, estimate.calls), (800, 800));
        assert_eq!(estimate.prompt_tokens, 80_000);
        assert_eq!(estimate.completion_tokens, 40_000);
        assert!(estimate.completion_tokens_are_the_most);
        assert_eq!((estimate.seconds, estimate.cost), (None, None));
        assert_eq!(sum(&estimate, "documents"), "1,000 records × 8 of 10 = 800");
        assert_eq!(
            sum(&estimate, "prompt tokens"),
            "1,000 records × 80.00 each = 80,000"
        );
        assert!(sum(&estimate, "answer tokens").ends_with("= at most 40,000"));
    }

    #[test]
    fn time_is_told_by_seconds_per_call_and_concurrency() {
        let llm = LlmConfig {
            url: "http://a:1,http://b:1".to_owned(),
            concurrency: Concurrency::Fixed(4),
            ..LlmConfig::default()
        };
        let told = Basis {
            seconds_per_call: Some(2.0),
            ..basis(&llm)
        };
        let estimate = Estimate::new(&sample(), &told);
        assert_eq!(estimate.seconds, Some(800.0 * 2.0 / 8.0));
        assert_eq!(
            sum(&estimate, "time"),
            "800 calls × 2 s ÷ 8 at a time (llm.concurrency) = 3m 20s"
        );
    }

    #[test]
    fn measured_answers_tell_time_and_length() {
        let llm = LlmConfig::default();
        let asked = Asked {
            documents: 5,
            answered: 4,
            calls: 4,
            completion_tokens: 40,
            seconds: 2.0,
            at_a_time: 64,
        };
        let told = Basis {
            asked: Some(asked),
            ..basis(&llm)
        };
        let estimate = Estimate::new(&sample(), &told);
        assert_eq!(estimate.completion_tokens, 8_000);
        assert!(!estimate.completion_tokens_are_the_most);
        assert_eq!(estimate.seconds, Some(400.0));
        assert_eq!(
            sum(&estimate, "time"),
            "800 documents ÷ 2.00 a second (4 answered in 2.0 s, up to 5 at a time) = 6m 40s"
        );
    }

    #[test]
    fn a_budget_that_is_slower_than_the_model_decides_the_time() {
        let llm = LlmConfig {
            requests_per_minute: Some(1_000),
            tokens_per_minute: Some(12_000),
            tokens_per_day: Some(1_000_000_000),
            ..LlmConfig::default()
        };
        let estimate = Estimate::new(&sample(), &basis(&llm));
        assert_eq!(estimate.seconds, Some(600.0));
        assert_eq!(
            sum(&estimate, "time"),
            "120,000 tokens ÷ 12,000 a minute (llm.tokens_per_minute) = at least 10m"
        );
        let told = Basis {
            seconds_per_call: Some(64.0),
            ..basis(&llm)
        };
        assert_eq!(Estimate::new(&sample(), &told).seconds, Some(800.0));
    }

    #[test]
    fn the_cost_is_told_where_a_price_is_set() {
        let llm = LlmConfig {
            price_per_million_prompt_tokens: Some(0.5),
            price_per_million_completion_tokens: Some(1.5),
            ..LlmConfig::default()
        };
        let estimate = Estimate::new(&sample(), &basis(&llm));
        let cost = estimate.cost.unwrap();
        assert!((cost - 0.1).abs() < 1e-9, "{cost}");
        assert_eq!(
            sum(&estimate, "cost"),
            "(80,000 × 0.5 + 40,000 × 1.5) ÷ 1,000,000 = at most 0.10"
        );
    }

    #[test]
    fn of_nothing_nothing_is_told() {
        let llm = LlmConfig::default();
        let empty = Estimate::new(&Sample::default(), &basis(&llm));
        assert_eq!(empty, Estimate::default());
        let done = Basis {
            unfinished: 0,
            ..basis(&llm)
        };
        assert_eq!(Estimate::new(&sample(), &done), Estimate::default());
    }

    #[test]
    fn numbers_are_written_for_people() {
        for (number, text) in [
            (0, "0"),
            (999, "999"),
            (1_000, "1,000"),
            (1_234_567, "1,234,567"),
        ] {
            assert_eq!(grouped(number), text);
        }
        for (seconds, text) in [(0.25, "0.2s"), (61.9, "1m 1s"), (90_061.0, "1day 1h 1m")] {
            assert_eq!(spoken(seconds), text);
        }
    }
}
