//! Durations of a whole run in a few kilobytes: every value is known to within a sixteenth of itself.

use std::time::Duration;

use serde::Serialize;

/// 16 buckets for each doubling.
const SUB_BITS: u32 = 4;
const SUB_BUCKETS: usize = 1 << SUB_BITS;
/// The last doubling ends at 2^40 microseconds, some twelve days; longer values count there.
const DOUBLINGS: usize = 40;
const BUCKETS: usize = (DOUBLINGS - 3) * SUB_BUCKETS;

/// A bounded histogram of durations.
#[derive(Debug, Clone)]
pub struct DurationHistogram {
    buckets: Vec<u64>,
    count: u64,
    max: Duration,
}

/// The values that a person looks at, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Quantiles {
    /// How many values there were.
    pub count: u64,
    /// Half of them were at most this.
    pub p50_ms: u64,
    /// 95 of 100 were at most this.
    pub p95_ms: u64,
    /// The largest, exactly.
    pub max_ms: u64,
}

impl Default for DurationHistogram {
    fn default() -> Self {
        Self {
            buckets: vec![0; BUCKETS],
            count: 0,
            max: Duration::ZERO,
        }
    }
}

impl DurationHistogram {
    /// Counts a value.
    pub fn record(&mut self, value: Duration) {
        let micros = u64::try_from(value.as_micros()).unwrap_or(u64::MAX);
        if let Some(bucket) = self.buckets.get_mut(bucket_of(micros)) {
            *bucket += 1;
        }
        self.count += 1;
        self.max = self.max.max(value);
    }

    /// The value that `percent` of all values do not exceed, to within a sixteenth; zero when there are none.
    #[must_use]
    pub fn percentile(&self, percent: u64) -> Duration {
        let rank = self.count.saturating_mul(percent).div_ceil(100).max(1);
        let mut seen = 0;
        for (index, bucket) in self.buckets.iter().enumerate() {
            seen += bucket;
            if seen >= rank {
                return Duration::from_micros(upper_bound(index)).min(self.max);
            }
        }
        self.max
    }

    /// Count, median, 95th percentile and maximum.
    #[must_use]
    pub fn quantiles(&self) -> Quantiles {
        let ms = |value: Duration| u64::try_from(value.as_millis()).unwrap_or(u64::MAX);
        Quantiles {
            count: self.count,
            p50_ms: ms(self.percentile(50)),
            p95_ms: ms(self.percentile(95)),
            max_ms: ms(self.max),
        }
    }
}

/// Values below 16 have a bucket each; above, the highest bit chooses the doubling and the next four bits the bucket in it.
fn bucket_of(micros: u64) -> usize {
    let index = match micros.checked_ilog2() {
        Some(highest) if highest >= SUB_BITS => {
            let shift = highest - SUB_BITS;
            u64::from(shift) * (1 << SUB_BITS) + (micros >> shift)
        }
        _ => micros,
    };
    usize::try_from(index).map_or(BUCKETS - 1, |index| index.min(BUCKETS - 1))
}

/// The largest value that falls into the bucket.
fn upper_bound(index: usize) -> u64 {
    let index = u64::try_from(index).unwrap_or(u64::MAX);
    let sub_buckets = 1 << SUB_BITS;
    if index < 2 * sub_buckets {
        return index;
    }
    let shift = index / sub_buckets - 1;
    ((index % sub_buckets + sub_buckets + 1) << shift) - 1
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn nothing_recorded_is_zero() {
        assert_eq!(
            DurationHistogram::default().quantiles(),
            Quantiles::default()
        );
    }

    #[test]
    fn one_value_is_all_of_them() {
        let mut histogram = DurationHistogram::default();
        histogram.record(Duration::from_millis(50));
        let quantiles = histogram.quantiles();
        assert_eq!(
            (quantiles.p50_ms, quantiles.p95_ms, quantiles.max_ms),
            (50, 50, 50)
        );
    }

    #[test]
    fn the_largest_duration_fits() {
        let mut histogram = DurationHistogram::default();
        histogram.record(Duration::MAX);
        histogram.record(Duration::ZERO);
        assert_eq!(histogram.percentile(50), Duration::ZERO);
        assert_eq!(histogram.quantiles().count, 2);
    }

    proptest! {
        #[test]
        fn a_value_lies_in_its_bucket(micros in 0_u64..1 << 40) {
            let index = bucket_of(micros);
            let upper = upper_bound(index);
            prop_assert!(micros <= upper);
            prop_assert!(upper - micros <= micros / 16, "{micros} is told as {upper}");
            prop_assert!(index == 0 || upper_bound(index - 1) < micros);
        }

        #[test]
        fn a_percentile_is_near_the_true_one(mut values in prop::collection::vec(0_u64..10_000_000, 1..200), percent in 1_u64..=100) {
            let mut histogram = DurationHistogram::default();
            for value in &values {
                histogram.record(Duration::from_micros(*value));
            }
            values.sort_unstable();
            let rank = usize::try_from((values.len() as u64 * percent).div_ceil(100)).unwrap();
            let exact = values[rank - 1];
            let told = u64::try_from(histogram.percentile(percent).as_micros()).unwrap();
            prop_assert!(told >= exact && told - exact <= exact / 16, "{exact} is told as {told}");
        }
    }
}
