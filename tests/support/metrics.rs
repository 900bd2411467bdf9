//! The counters of a running processor, as a Prometheus reads them.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

/// Longer than any answer takes.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// Where the admin server listens, from the line of the log that tells it.
pub(crate) fn admin_address(line: &str) -> String {
    let (_, rest) = line.split_once("127.0.0.1:").expect("an address");
    let port: String = rest.chars().take_while(char::is_ascii_digit).collect();
    format!("127.0.0.1:{port}")
}

/// The value of each of these counters, which have no labels, at one moment.
pub(crate) fn counters<const N: usize>(address: &str, names: [&str; N]) -> [u64; N] {
    let page = page(address);
    names.map(|name| {
        let value = value(&page, name);
        value.unwrap_or_else(|| panic!("no {name} in:\n{page}"))
    })
}

/// The sum of a counter over all its samples that have these labels, written as on the page; 0 while it was not counted.
pub(crate) fn sample(address: &str, sample: &str) -> u64 {
    let (name, labels) = sample.split_once('{').unwrap_or((sample, "}"));
    let labels = labels.trim_end_matches('}').split(',');
    let labels: Vec<_> = labels.collect();
    let page = page(address);
    let counts = page.lines().filter_map(|line| {
        let (found, count) = line.strip_prefix(name)?.rsplit_once(' ')?;
        let is_it = found.is_empty() || found.starts_with('{');
        let has_all = labels.iter().all(|label| found.contains(label));
        (is_it && has_all).then(|| count.parse::<u64>().expect("a count"))
    });
    counts.sum()
}

fn page(address: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("the admin server answers");
    stream
        .set_read_timeout(Some(ANSWER_WITHIN))
        .expect("a limit");
    write!(
        stream,
        "GET /metrics HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"
    )
    .expect("asked");
    let mut page = String::new();
    stream.read_to_string(&mut page).expect("a page");
    page
}

fn value(page: &str, name: &str) -> Option<u64> {
    let value = page
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
    Some(value.parse().expect("a count"))
}
