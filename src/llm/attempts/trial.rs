//! What an attempt has to do with the trials of its flow: it may begin one, is tried on it, and ends it.

use tokio::time::{Instant, sleep};

use super::Attempts;
use crate::llm::CompleteError;
use crate::llm::classify::{Failure, Fault};
use crate::llm::endpoint::Shape;
use crate::llm::policy::View;
use crate::llm::pool::Permit;
use crate::llm::refusals::Refused;

impl Attempts<'_> {
    /// Its request was refused.
    pub(super) fn note_refusal(&self, failure: &Failure) -> Refused {
        let (client, flow) = (self.client, self.flow());
        let position = self.question.position;
        let reason = || {
            let (topic, last) = (&position.topic_partition.topic, &failure.detail);
            format!("document after document of `{topic}` is refused, the last: {last}")
        };
        client.refusals.note(flow, position, reason, |held| {
            client.turn_trial(flow, true, held);
            self.tell_trial(failure);
        })
    }

    /// It was answered by a call that was sent at `sent`.
    pub(super) fn end_trial(&self, sent: Instant) {
        let (client, flow) = (self.client, self.flow());
        client.refusals.answered(flow, sent, |held| {
            client.turn_trial(flow, false, held);
            let topic = &self.question.position.topic_partition.topic;
            tracing::info!(%topic, "the model server takes documents again: the work goes on");
        });
    }

    /// Its prompt is refused whatever the document, others' are not: held beside them, it costs nobody else anything.
    pub(super) fn put_on_trial(&self, refusal: &Failure) {
        let (client, flow) = (self.client, self.flow());
        let topic = &self.question.position.topic_partition.topic;
        let reason = format!(
            "what is asked about `{topic}` is refused also without a document: {}",
            refusal.detail
        );
        let begins = client
            .refusals
            .put_on_trial(flow, reason, |held| client.turn_trial(flow, true, held));
        if begins {
            self.tell_trial(refusal);
        }
    }

    /// What speaks for or against the document after a failure.
    pub(super) fn view(&self, failure: &Failure) -> View {
        match failure.fault {
            Fault::Request => {
                let shape = Shape::of(self.question.messages);
                self.client.view_of_refused(self.flow(), shape)
            }
            _ => self.client.view(),
        }
    }

    /// Refused while all are: keeps the others waiting for a while, then gives the turn to the next. Those that were on their way when the
    /// trial began were no tries of it: the last of them alone waits.
    pub(super) async fn wait_on_trial(
        &self,
        mut permit: Permit,
        failure: &Failure,
    ) -> Result<(), CompleteError> {
        let (client, flow) = (self.client, self.flow());
        if !client.pool().may_go(&permit) {
            return Ok(());
        }
        // Other topics go on meanwhile.
        permit.rest();
        let (pace, is_time) = client.refusals.pace(flow);
        if is_time {
            self.tell_trial(failure);
        }
        let _waiting = client.waits();
        client.unless_abandoned(flow, sleep(pace)).await?;
        drop(permit);
        Ok(())
    }

    fn tell_trial(&self, failure: &Failure) {
        tracing::warn!(
            topic = %self.question.position.topic_partition.topic,
            reason = %failure.detail,
            "the model server refuses document after document of a topic: its work is held and one document at a time is tried, nothing is lost; correct the settings under [llm] and [prompt], or the server's; if it is the documents that are wrong, set llm.refusals_to_hold = 0"
        );
    }
}
