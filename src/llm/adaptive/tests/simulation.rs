//! A model server and its clients on a clock of their own: event by event, the same for the same seed.
//!
//! The server runs so many calls at once, whoever comes beyond waits in the order of arrival, and beyond a bound is refused. There is always
//! a next document, unless intake is set. Its length and its luck depend on its number alone: two runs differ only by what clients do.

#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "small numbers of a simulation"
)]

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use super::super::{Bounds, Controller, Sample};

const SECOND: u64 = 1_000_000;
/// How long a refusal takes.
const REFUSAL_MICROS: u64 = 3_000;

#[derive(Clone, Copy)]
pub(super) struct Server {
    /// Calls that run at once.
    pub(super) slots: usize,
    /// The share by which a token takes longer when all slots are busy, compared with none.
    pub(super) rise: f64,
    /// Milliseconds of a call and of one token of its answer.
    pub(super) call_ms: f64,
    pub(super) token_ms: f64,
    /// Tokens of the shortest and of the longest answer, evenly spread.
    pub(super) tokens: (u64, u64),
    /// Whether the queue is told with each answer.
    pub(super) told: bool,
    /// Calls running and waiting beyond which one is refused.
    pub(super) bound: Option<usize>,
    /// Documents a second; none: always more.
    pub(super) intake: Option<u64>,
}

#[derive(Clone, Copy)]
pub(super) enum Client {
    Fixed(usize),
    Adaptive(Bounds),
}

/// What happened in one second, over all clients.
#[derive(Clone, Default)]
pub(super) struct Second {
    /// Work done, in tokens, with one for the call itself.
    pub(super) work: f64,
    /// Work of each client.
    pub(super) each: Vec<f64>,
    /// The limit, on average.
    pub(super) limit: f64,
    /// The lowest limit.
    pub(super) limit_min: usize,
    /// The limit at the end.
    pub(super) limit_last: usize,
    pub(super) refused: usize,
}

pub(super) struct Trace(pub(super) Vec<Second>);

impl Trace {
    /// Work done from one second (inclusive) to another (exclusive).
    pub(super) fn work(&self, from: usize, to: usize) -> f64 {
        self.0[from..to].iter().map(|second| second.work).sum()
    }

    /// The limit, on average over the same seconds.
    pub(super) fn limit(&self, from: usize, to: usize) -> f64 {
        let sum: f64 = self.0[from..to].iter().map(|second| second.limit).sum();
        sum / (to - from) as f64
    }

    /// Seconds from `from` until the limit is at most `most`.
    pub(super) fn falls_within(&self, from: usize, most: f64) -> Option<usize> {
        self.0[from..]
            .iter()
            .position(|second| second.limit_last as f64 <= most)
            .map(|seconds| seconds + 1)
    }
}

#[derive(PartialEq, Eq, PartialOrd, Ord, Clone, Copy)]
struct Call {
    client: usize,
    sent: u64,
    tokens: u64,
    /// Thousandths by which its time differs from the usual.
    luck: u64,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Answered(Call),
    Refused(Call),
    Intake,
}

struct World {
    now: u64,
    zero: Instant,
    seed: u64,
    documents: u64,
    backlog: usize,
    events: BinaryHeap<Reverse<(u64, Event)>>,
    running: usize,
    queue: VecDeque<Call>,
    /// Each client's calls in flight.
    flight: Vec<usize>,
    clients: Vec<(Client, Controller)>,
    trace: Vec<Second>,
}

/// Runs `stages`, each a server and the second at which the next one takes over; the last one's is the end.
pub(super) fn run(stages: &[(u64, Server)], clients: &[Client], seed: u64) -> Trace {
    let zero = Instant::now();
    let end = stages.last().unwrap().0;
    let any = Bounds {
        initial: 1,
        min: 1,
        max: 1,
    };
    let controller = |client: &Client| match *client {
        Client::Fixed(_) => Controller::new(any, zero),
        Client::Adaptive(bounds) => Controller::new(bounds, zero),
    };
    let second = Second {
        each: vec![0.0; clients.len()],
        limit_min: usize::MAX,
        ..Second::default()
    };
    let mut world = World {
        now: 0,
        zero,
        seed,
        documents: 0,
        backlog: 0,
        events: BinaryHeap::new(),
        running: 0,
        queue: VecDeque::new(),
        flight: vec![0; clients.len()],
        clients: clients.iter().map(|c| (*c, controller(c))).collect(),
        trace: vec![second; end as usize],
    };
    if stages[0].1.intake.is_some() {
        world.events.push(Reverse((0, Event::Intake)));
    }
    loop {
        let (_, server) = stages
            .iter()
            .find(|(until, _)| world.now < until * SECOND)
            .unwrap();
        world.send(server);
        let Some(Reverse((at, event))) = world.events.pop() else {
            break;
        };
        world.pass_until(at.min(end * SECOND));
        if at >= end * SECOND {
            break;
        }
        world.happen(server, event);
    }
    Trace(world.trace)
}

impl World {
    fn limit(&self, client: usize) -> usize {
        match &self.clients[client] {
            (Client::Fixed(limit), _) => *limit,
            (Client::Adaptive(_), controller) => controller.limit(),
        }
    }

    /// Sends what the limits allow and starts what the server has slots for.
    fn send(&mut self, server: &Server) {
        for client in 0..self.clients.len() {
            while self.flight[client] < self.limit(client)
                && (server.intake.is_none() || self.backlog > 0)
            {
                self.backlog = self.backlog.saturating_sub(1);
                self.flight[client] += 1;
                let call = self.next_call(client, server);
                if server
                    .bound
                    .is_some_and(|bound| self.running + self.queue.len() >= bound)
                {
                    let at = self.now + REFUSAL_MICROS;
                    self.events.push(Reverse((at, Event::Refused(call))));
                } else {
                    self.queue.push_back(call);
                }
            }
        }
        while self.running < server.slots
            && let Some(call) = self.queue.pop_front()
        {
            self.running += 1;
            let busy = self.running as f64 / server.slots as f64;
            let token_ms = server.token_ms * (1.0 + server.rise * busy);
            let ms = server.call_ms + token_ms * call.tokens as f64;
            let micros = ms * (950 + call.luck) as f64;
            let at = self.now + micros as u64;
            self.events.push(Reverse((at, Event::Answered(call))));
        }
    }

    fn next_call(&mut self, client: usize, server: &Server) -> Call {
        self.documents += 1;
        let (least, most) = server.tokens;
        Call {
            client,
            sent: self.now,
            tokens: least + mix(self.seed, self.documents) % (most - least + 1),
            luck: mix(!self.seed, self.documents) % 100,
        }
    }

    fn pass_until(&mut self, at: u64) {
        let limit: usize = (0..self.clients.len()).map(|c| self.limit(c)).sum();
        while self.now < at {
            let next = ((self.now / SECOND + 1) * SECOND).min(at);
            let second = &mut self.trace[(self.now / SECOND) as usize];
            second.limit += limit as f64 * (next - self.now) as f64 / SECOND as f64;
            second.limit_min = second.limit_min.min(limit);
            second.limit_last = limit;
            self.now = next;
        }
    }

    fn happen(&mut self, server: &Server, event: Event) {
        let now = self.zero + Duration::from_micros(self.now);
        let second = &mut self.trace[(self.now / SECOND) as usize];
        match event {
            Event::Answered(call) => {
                let work = call.tokens as f64 + 1.0;
                second.work += work;
                second.each[call.client] += work;
                self.running -= 1;
                let sample = Sample {
                    elapsed: Duration::from_micros(self.now - call.sent),
                    prompt_tokens: 0,
                    completion_tokens: call.tokens,
                    waiting: server.told.then_some(self.queue.len() as f64),
                    running: self.flight[call.client],
                };
                self.clients[call.client].1.answered(now, sample);
                self.flight[call.client] -= 1;
            }
            Event::Refused(call) => {
                second.refused += 1;
                let elapsed = Duration::from_micros(self.now - call.sent);
                self.clients[call.client].1.refused(now, elapsed);
                self.flight[call.client] -= 1;
            }
            Event::Intake => {
                self.backlog += 1;
                if let Some(rate) = server.intake {
                    let at = self.now + SECOND / rate;
                    self.events.push(Reverse((at, Event::Intake)));
                }
            }
        }
    }
}

/// A number that looks random for each pair: the finaliser of SplitMix64.
fn mix(seed: u64, number: u64) -> u64 {
    let mut bits = seed
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .wrapping_add(number.wrapping_mul(0xbf58_476d_1ce4_e5b9));
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}
