//! Which driver a process reads its input with.

use std::fmt;

use super::DriverSetting;

/// A client that reads the input. The output is written by `wire` in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Driver {
    /// Fetch loops on rskafka's partition clients, at least once.
    Rskafka,
    /// Our own, on the `kafka-protocol` codecs: read committed, and what is packed.
    Wire,
}

impl fmt::Display for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Rskafka => "rskafka",
            Self::Wire => "wire",
        })
    }
}

/// Most partitions that `auto` leaves to rskafka, which has a connection for each and asks for the metadata of all with each. 1,000 of them take
/// 3.7 % of a core while idle and 3.8 s to begin; on `wire` 1.3 % and 0.4 s (`docs/performance.md`).
const RSKAFKA_PARTITIONS_MAX: usize = 256;

/// What the settings ask of a driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Needs {
    /// `processing.guarantee = exactly_once`.
    pub transactions: bool,
    /// `input.isolation_level = read_committed`.
    pub read_committed: bool,
    /// What [`KafkaConfig::needs_wire`](super::KafkaConfig::needs_wire) says.
    pub security: Option<&'static str>,
    /// `kafka.security_protocol = SASL_PLAINTEXT`. rskafka can do it, and yet hashes as often as a broker asks for, and reads a password file once.
    pub is_authenticated: bool,
}

/// The driver, and why it was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DriverChoice {
    /// The driver.
    pub driver: Driver,
    /// Why, for the operator.
    pub reason: &'static str,
}

impl DriverChoice {
    /// The choice where so many partitions may have to be read: many are not left to rskafka, unless it was asked for by name.
    #[must_use]
    pub fn for_partitions(self, setting: DriverSetting, partitions: usize) -> Self {
        if setting == DriverSetting::Auto
            && self.driver == Driver::Rskafka
            && partitions > RSKAFKA_PARTITIONS_MAX
        {
            return Self {
                driver: Driver::Wire,
                reason: "more than 256 partitions, and rskafka has a connection for each",
            };
        }
        self
    }
}

/// Follows the setting; `auto` takes rskafka unless a setting needs what it lacks, or SASL is in force.
///
/// # Errors
/// With the setting that rskafka cannot serve, when it was asked for by name.
pub const fn choose_driver(
    setting: DriverSetting,
    needs: Needs,
) -> Result<DriverChoice, &'static str> {
    let lacking = if needs.transactions {
        Some("processing.guarantee = exactly_once")
    } else if needs.read_committed {
        Some("input.isolation_level = read_committed")
    } else {
        needs.security
    };
    match (setting, lacking) {
        (DriverSetting::Rskafka, Some(setting)) => Err(setting),
        (DriverSetting::Rskafka, None) => Ok(DriverChoice {
            driver: Driver::Rskafka,
            reason: "kafka.driver",
        }),
        (DriverSetting::Wire, _) => Ok(DriverChoice {
            driver: Driver::Wire,
            reason: "kafka.driver",
        }),
        (DriverSetting::Auto, Some(reason)) => Ok(DriverChoice {
            driver: Driver::Wire,
            reason,
        }),
        (DriverSetting::Auto, None) if needs.is_authenticated => Ok(DriverChoice {
            driver: Driver::Wire,
            reason: "kafka.security_protocol = SASL_PLAINTEXT",
        }),
        (DriverSetting::Auto, None) => Ok(DriverChoice {
            driver: Driver::Rskafka,
            reason: "no setting needs more",
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_leaves_no_more_than_some_partitions_to_rskafka() {
        let choice = |setting, partitions| {
            let needs = Needs {
                transactions: false,
                read_committed: false,
                security: None,
                is_authenticated: false,
            };
            let choice = choose_driver(setting, needs).unwrap();
            choice.for_partitions(setting, partitions).driver
        };
        assert_eq!(choice(DriverSetting::Auto, 256), Driver::Rskafka);
        assert_eq!(choice(DriverSetting::Auto, 257), Driver::Wire);
        assert_eq!(choice(DriverSetting::Rskafka, 257), Driver::Rskafka);
        assert_eq!(choice(DriverSetting::Wire, 1), Driver::Wire);
    }

    #[test]
    fn auto_takes_rskafka_unless_a_setting_needs_more() {
        let needs = |transactions, read_committed| Needs {
            transactions,
            read_committed,
            security: None,
            is_authenticated: false,
        };
        let encrypted = Needs {
            security: Some("kafka.security_protocol = SSL"),
            ..needs(false, false)
        };
        let authenticated = Needs {
            is_authenticated: true,
            ..needs(false, false)
        };
        let auto = |needs| choose_driver(DriverSetting::Auto, needs).unwrap();
        assert_eq!(auto(needs(false, false)).driver, Driver::Rskafka);
        for (needs, setting) in [
            (needs(true, true), "processing.guarantee"),
            (needs(false, true), "input.isolation_level"),
            (encrypted, "kafka.security_protocol"),
        ] {
            let choice = auto(needs);
            assert_eq!(choice.driver, Driver::Wire);
            assert!(choice.reason.starts_with(setting));
            let refused = choose_driver(DriverSetting::Rskafka, needs).unwrap_err();
            assert!(refused.starts_with(setting));
        }
        assert_eq!(auto(authenticated).driver, Driver::Wire);
        let by_name = choose_driver(DriverSetting::Rskafka, authenticated).unwrap();
        assert_eq!(by_name.driver, Driver::Rskafka);
        let wire = choose_driver(DriverSetting::Wire, needs(false, false)).unwrap();
        assert_eq!(wire.driver, Driver::Wire);
    }
}
