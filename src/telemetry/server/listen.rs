//! The value of `admin.listen`.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Where to listen, or not at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Listen {
    /// Not at all.
    Off,
    /// On this address; port 0 takes a free one.
    On(SocketAddr),
}

impl Default for Listen {
    fn default() -> Self {
        Self::On(SocketAddr::from((Ipv4Addr::LOCALHOST, 9100)))
    }
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        if text == "off" {
            return Ok(Self::Off);
        }
        let numeric = match text.strip_prefix("localhost:") {
            Some(port) => format!("127.0.0.1:{port}"),
            None => text.to_owned(),
        };
        numeric.parse().map(Self::On).map_err(|_unnamed| {
            format!("`{text}` is not an address and port such as 127.0.0.1:9100, nor \"off\"")
        })
    }
}

impl TryFrom<String> for Listen {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::On(address) => address.fmt(f),
        }
    }
}

impl From<Listen> for String {
    fn from(listen: Listen) -> Self {
        listen.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_or_off_is_read() {
        assert_eq!("off".parse(), Ok(Listen::Off));
        assert_eq!("127.0.0.1:9100".parse(), Ok(Listen::default()));
        assert_eq!("localhost:9100".parse(), Ok(Listen::default()));
        assert!(matches!(
            "[::]:0".parse(),
            Ok(Listen::On(SocketAddr::V6(_)))
        ));
    }

    #[test]
    fn anything_else_says_what_to_write() {
        for text in ["", "9100", "localhost", "127.0.0.1:99999", "somewhere:9100"] {
            let error = text.parse::<Listen>().unwrap_err();
            assert!(error.contains("127.0.0.1:9100"), "{error}");
        }
    }
}
