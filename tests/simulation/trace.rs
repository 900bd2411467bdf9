//! What happened in a run: a hash of it always, its text on request.

use std::fmt::{self, Write as _};

use tokio::time::Instant;

#[derive(Debug)]
pub struct Trace {
    began: Instant,
    hash: u64,
    printed: bool,
}

impl Trace {
    pub fn new(printed: bool) -> Self {
        Self {
            began: Instant::now(),
            hash: 0xcbf2_9ce4_8422_2325,
            printed,
        }
    }

    pub fn note(&mut self, event: fmt::Arguments<'_>) {
        let micros = self.began.elapsed().as_micros();
        writeln!(self, "{micros} {event}").unwrap();
        if self.printed {
            let seconds = self.began.elapsed().as_secs_f64();
            println!("{seconds:>9.3} {event}");
        }
    }

    pub fn hash(&self) -> u64 {
        self.hash
    }
}

/// FNV-1a over the text of the events.
impl fmt::Write for Trace {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        Ok(())
    }
}
