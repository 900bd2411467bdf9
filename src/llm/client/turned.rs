//! What can be turned while the client works.

use super::{LlmConfig, VllmClient};
use crate::llm::Concurrency;

impl VllmClient {
    /// From now on no call about a document is begun, or they flow again. Those that run are finished, and probes of servers that are held
    /// go on.
    pub fn set_paused(&self, paused: bool) {
        self.pool().set_paused(paused);
    }

    /// Follows other limits, as far as they can change while it works: a number of calls at each server, and the budgets that there are.
    pub fn set_limits(&self, llm: &LlmConfig) {
        if let Concurrency::Fixed(calls) = llm.concurrency {
            let endpoints = self.endpoints.iter().enumerate();
            for (lane, endpoint) in endpoints.filter(|(_, endpoint)| !endpoint.is_adaptive()) {
                self.pool().set_limit(lane, calls);
                self.metrics().endpoint_limit(endpoint.url(), calls);
            }
        }
        if let Some(budget) = &self.budget {
            budget.set_limits(llm);
        }
    }
}
