//! Under which names the server answers.
//!
//! A page in a browser may have its own name point to an address that only the browser reaches (DNS rebinding): the browser takes what
//! answers there for the page's own site, and lets it read everything. What gives it away is `Host`, which still has the page's name. So a
//! name must be known. An address is no name that could be made to point elsewhere, and `localhost` is looked up nowhere.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

/// It says nothing but that the process lives, and who is refused it would restart a process that works.
const OPEN_PATH: &str = "/livez";
/// Bytes of a name that are repeated; DNS has none that is longer.
const NAME_BYTES_MAX: usize = 253;

/// The value of `admin.allowed_hosts`: names, comma separated. `.example.org` stands for the names below it too, `*` for all.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AllowedHosts(Vec<String>);

impl AllowedHosts {
    /// Whether a request for this host, with or without a port, is answered.
    #[must_use]
    pub fn allows(&self, host: &str) -> bool {
        // A page always has a name; HTTP/1.0 may have none.
        host.is_empty() || name_of(host).is_some_and(|name| self.knows(&name))
    }

    fn knows(&self, name: &str) -> bool {
        let bare = name.trim_start_matches('[').trim_end_matches(']');
        let is_address = name.parse::<Ipv4Addr>().is_ok() || bare.parse::<Ipv6Addr>().is_ok();
        let is_here = is_below(name, "localhost");
        let is_named = |entry: &String| match entry.strip_prefix('.') {
            Some(domain) => is_below(name, domain),
            None => entry == "*" || entry == name,
        };
        is_address || is_here || self.0.iter().any(is_named)
    }
}

/// The host without port and last dot, in lower case.
fn name_of(host: &str) -> Option<String> {
    let authority = host.parse::<Authority>().ok()?;
    let name = authority.host();
    Some(name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase())
}

/// Whether it is the domain, or a name in it.
fn is_below(name: &str, domain: &str) -> bool {
    let before = name.strip_suffix(domain);
    before.is_some_and(|before| before.is_empty() || before.ends_with('.'))
}

impl FromStr for AllowedHosts {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let entries = text.split(',').map(str::trim);
        let mut names = Vec::new();
        for entry in entries.filter(|entry| !entry.is_empty()) {
            let name = entry.strip_prefix('.').unwrap_or(entry);
            let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
            if entry != "*" && (name.is_empty() || !name.chars().all(is_part)) {
                return Err(format!(
                    "`{entry}` is not the name of a host such as metrics.example.org, without a port, nor .example.org for those below it, nor \"*\""
                ));
            }
            names.push(entry.trim_end_matches('.').to_ascii_lowercase());
        }
        Ok(Self(names))
    }
}

impl TryFrom<String> for AllowedHosts {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl fmt::Display for AllowedHosts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join(","))
    }
}

impl From<AllowedHosts> for String {
    fn from(hosts: AllowedHosts) -> Self {
        hosts.to_string()
    }
}

/// What the server asks for each request.
#[derive(Debug, Clone)]
pub(super) struct HostCheck {
    allowed: AllowedHosts,
    /// The first refusal is told: it may be a scraper's. Others are not, as anyone can cause them.
    is_told: Arc<AtomicBool>,
}

impl HostCheck {
    pub(super) fn new(allowed: AllowedHosts) -> Self {
        Self {
            allowed,
            is_told: Arc::default(),
        }
    }

    /// The host that is refused. Where the request line has one it counts as well, and so does each of several `Host`.
    fn refused(&self, request: &Request) -> Option<String> {
        let hosts = request.headers().get_all(header::HOST).into_iter();
        let hosts = hosts.map(|host| String::from_utf8_lossy(host.as_bytes()).into_owned());
        let line = request.uri().authority().map(ToString::to_string);
        hosts.chain(line).find(|host| !self.allowed.allows(host))
    }

    fn refusal(&self, host: &str) -> Response {
        let name: String = match name_of(host) {
            Some(name) => name.chars().take(NAME_BYTES_MAX).collect(),
            None => "that is sent".to_owned(),
        };
        if !self.is_told.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                host = %name,
                "admin server: a request was refused, as its host is not in admin.allowed_hosts; further ones are not told"
            );
        }
        let text = format!(
            "the host {name} is not in admin.allowed_hosts: ask for an IP address or localhost, or name it there\n"
        );
        (StatusCode::FORBIDDEN, text).into_response()
    }
}

pub(super) async fn check(
    State(check): State<HostCheck>,
    request: Request,
    next: Next,
) -> Response {
    match check.refused(&request) {
        Some(host) if request.uri().path() != OPEN_PATH => check.refusal(&host),
        _ => next.run(request).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(text: &str) -> AllowedHosts {
        text.parse().unwrap()
    }

    #[test]
    fn addresses_and_localhost_need_no_setting_and_names_do() {
        let none = AllowedHosts::default();
        for host in [
            "127.0.0.1:9100",
            "10.1.2.3",
            "[::1]:9100",
            "[fd00::7]",
            "localhost:9100",
            "LOCALHOST",
            "localhost.",
            "klp.localhost:9100",
            "",
        ] {
            assert!(none.allows(host), "{host}");
        }
        for host in [
            "evil.example:9100",
            "localhost.evil.example",
            "notlocalhost",
            "127.0.0.1.evil.example",
            "127.0.0.1@evil.example",
            "127.1",
            "a b",
            "/",
            ":9100",
        ] {
            assert!(!none.allows(host), "{host}");
        }
    }

    #[test]
    fn a_setting_names_more() {
        let some = allowed(" processor, Metrics.Example.org. ,.svc.cluster.local,");
        for host in [
            "processor:9100",
            "PROCESSOR.",
            "metrics.example.org",
            "klp-0.klp.default.svc.cluster.local:9100",
            "svc.cluster.local",
        ] {
            assert!(some.allows(host), "{host}");
        }
        for host in [
            "processor.example.org",
            "example.org",
            "notsvc.cluster.local",
        ] {
            assert!(!some.allows(host), "{host}");
        }
        assert!(allowed("*").allows("evil.example"));
        let written = "processor,metrics.example.org,.svc.cluster.local";
        assert_eq!(some.to_string(), written);
        assert_eq!(allowed(written), some);
    }

    #[test]
    fn what_is_no_name_says_what_to_write() {
        for text in [
            "processor:9100",
            "http://processor",
            "*.example.org",
            ".",
            "a b",
        ] {
            let error = text.parse::<AllowedHosts>().unwrap_err();
            assert!(error.contains("without a port"), "{error}");
        }
    }
}
