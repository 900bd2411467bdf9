//! What only an operator can put right is held and told, and costs no document.

use crate::harness::{Job, KEY, SOON, TOLD_WITHIN, Turn, texts};

const DOCUMENTS: usize = 20;

/// The key file holds another key at first; it is read again, without a restart.
#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_key_holds_until_the_file_has_the_right_one() {
    let Some(turn) = Turn::take_own().await else {
        return;
    };
    let mut job = Job::new(&turn).await;
    job.write_key("another-key");
    job.write(texts(DOCUMENTS));
    let processor = job.start();
    let told = processor
        .line(&["the work is held", "refuses the key"], TOLD_WITHIN)
        .await;
    assert!(told.contains("llm.api_key_file"), "{told}");
    assert!(!told.contains("another-key"), "{told}");
    assert!(job.results().is_empty() && job.dead_letters().is_empty());
    job.write_key(KEY);
    processor.line(&["the work goes on"], SOON).await;
    job.assert_all_answered(&turn, processor).await;
}

/// The name is no file that could be read again: the work is held, and the next run does it.
#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_is_not_served_holds_until_the_next_run_names_the_right_one() {
    let Some(turn) = Turn::take().await else {
        return;
    };
    let mut job = Job::new(&turn).await;
    job.write(texts(DOCUMENTS));
    job.set("llm.model", "no/such-model");
    let mut processor = job.start();
    let told = processor
        .line(&["the work is held", "no/such-model"], TOLD_WITHIN)
        .await;
    assert!(told.contains("MODEL_NAME"), "{told}");
    assert!(
        told.contains(&turn.model),
        "it names what is served: {told}"
    );
    assert!(processor.is_running(), "it waits");
    processor.drain(SOON).await;
    assert!(job.results().is_empty() && job.dead_letters().is_empty());
    job.set("llm.model", &turn.model);
    let processor = job.start();
    job.assert_all_answered(&turn, processor).await;
}
