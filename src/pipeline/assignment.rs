//! Which input partitions this process works on.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

/// `input.assignment`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Assignment {
    /// All partitions: for one instance.
    #[default]
    All,
    /// Those that `input.static_*` name: several instances, each with its own.
    Static,
    /// Those that Kafka's group coordinator gives to this member of `kafka.group_id`.
    Group,
}

impl fmt::Display for Assignment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::All => "all",
            Self::Static => "static",
            Self::Group => "group",
        })
    }
}

/// The name in `input.static_ordinal` that stands for the number at the end of the host's name, as a StatefulSet gives it.
const ORDINAL_FROM_HOST: &str = "hostname";

/// The partitions of a process with static assignment, in each input topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StaticShare {
    /// These.
    List(BTreeSet<i32>),
    /// Every one whose number modulo `count` is `ordinal`.
    Ordinal {
        /// Which of the instances this is, from 0.
        ordinal: i32,
        /// How many instances there are, at least 1.
        count: i32,
    },
}

impl StaticShare {
    /// Reads `input.static_partitions`, such as `0-3,7`, or `input.static_ordinal` with `input.static_count`; `host` is the host's name.
    ///
    /// # Errors
    /// With the key and what is wrong with it.
    pub fn parse(
        partitions: &str,
        ordinal: &str,
        count: i32,
        host: Option<&str>,
    ) -> Result<Self, String> {
        match (partitions.is_empty(), ordinal.is_empty()) {
            (true, true) => Err("input.assignment = static: name the partitions with input.static_partitions, such as \"0-3,7\", or this instance with input.static_ordinal and input.static_count".to_owned()),
            (false, false) => Err("input.static_partitions and input.static_ordinal are both set: choose one".to_owned()),
            (false, true) => parse_list(partitions).map(Self::List),
            (true, false) => {
                let ordinal = parse_ordinal(ordinal, host)?;
                if count < 1 || ordinal >= count {
                    return Err(format!("input.static_count = {count}: must be above input.static_ordinal ({ordinal})"));
                }
                Ok(Self::Ordinal { ordinal, count })
            }
        }
    }

    /// Whether a partition belongs to it.
    #[must_use]
    pub fn contains(&self, partition: i32) -> bool {
        match self {
            Self::List(list) => list.contains(&partition),
            Self::Ordinal { ordinal, count } => partition.rem_euclid(*count) == *ordinal,
        }
    }

    /// A partition that it names and a topic with `partitions` of them does not have.
    #[must_use]
    pub fn missing_in(&self, partitions: i32) -> Option<i32> {
        match self {
            Self::List(list) => list.range(partitions..).next().copied(),
            Self::Ordinal { .. } => None,
        }
    }
}

fn parse_list(list: &str) -> Result<BTreeSet<i32>, String> {
    let problem = |part: &str| {
        format!(
            "input.static_partitions = `{list}`: `{part}` is neither a partition nor a range such as 0-3"
        )
    };
    let number = |text: &str| {
        text.trim()
            .parse::<i32>()
            .ok()
            .filter(|number| *number >= 0)
    };
    let mut partitions = BTreeSet::new();
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        match (number(first), number(last)) {
            // No topic has more partitions than that; a range beyond it is a slip of the pen.
            (Some(first), Some(last)) if first <= last && last <= PARTITION_MAX => {
                partitions.extend(first..=last);
            }
            _ => return Err(problem(part)),
        }
    }
    Ok(partitions)
}

/// The highest partition number that a list may name.
const PARTITION_MAX: i32 = 100_000;

fn parse_ordinal(ordinal: &str, host: Option<&str>) -> Result<i32, String> {
    if ordinal != ORDINAL_FROM_HOST {
        return ordinal
            .parse()
            .ok()
            .filter(|ordinal| *ordinal >= 0)
            .ok_or_else(|| {
                format!("input.static_ordinal = `{ordinal}`: must be a number from 0, or `{ORDINAL_FROM_HOST}`")
            });
    }
    let host = host.unwrap_or_default();
    host.rsplit_once('-')
        .and_then(|(_, number)| number.parse().ok())
        .ok_or_else(|| {
            format!("input.static_ordinal = `{ORDINAL_FROM_HOST}`: the host's name `{host}` (HOSTNAME) does not end in a number, such as processor-0")
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_names_partitions_and_ranges() {
        let share = StaticShare::parse("0-2, 7", "", 0, None).unwrap();
        let ours: Vec<_> = (0..10).filter(|p| share.contains(*p)).collect();
        assert_eq!(ours, [0, 1, 2, 7]);
        assert_eq!(share.missing_in(8), None);
        assert_eq!(share.missing_in(7), Some(7));
        for bad in ["x", "3-1", "-1", "1,,2", "0-9999999"] {
            let problem = StaticShare::parse(bad, "", 0, None).unwrap_err();
            assert!(problem.starts_with("input.static_partitions"), "{problem}");
        }
    }

    #[test]
    fn ordinals_share_all_partitions_and_none_twice() {
        let share = |ordinal: &str| StaticShare::parse("", ordinal, 3, None).unwrap();
        let shares = [share("0"), share("1"), share("2")];
        for partition in 0..20 {
            let owners = shares.iter().filter(|share| share.contains(partition));
            assert_eq!(owners.count(), 1, "partition {partition}");
        }
        let host = Some("processor-2");
        assert_eq!(StaticShare::parse("", "hostname", 3, host), Ok(share("2")));
    }

    #[test]
    fn what_cannot_be_is_told_with_its_key() {
        let problem = |partitions, ordinal, count, host| {
            StaticShare::parse(partitions, ordinal, count, host).unwrap_err()
        };
        assert!(problem("", "", 0, None).contains("input.static_partitions"));
        assert!(problem("1", "1", 2, None).contains("both set"));
        assert!(problem("", "2", 2, None).starts_with("input.static_count"));
        assert!(problem("", "-1", 2, None).starts_with("input.static_ordinal"));
        assert!(problem("", "hostname", 2, Some("laptop")).contains("laptop"));
    }
}
