use super::*;
use crate::sandbox::broker::config::BrokerConfig;
use crate::sandbox::broker::state::NewTopic;

fn state() -> State {
    let mut state = State::new(&BrokerConfig::default());
    let topic = NewTopic {
        name: "t",
        partitions: 1,
        configs: Vec::new(),
    };
    state.create_topic(&topic).unwrap();
    state
}

fn init(state: &mut State) -> ProducerEpoch {
    state.init_producer("id", 1_000, None).unwrap()
}

fn begin(state: &mut State, producer: ProducerEpoch) {
    let partitions = [("t".to_owned(), 0)];
    let transactions = &mut state.transactions;
    transactions
        .add_partitions("id", producer, partitions)
        .unwrap();
}

#[test]
fn an_exhausted_epoch_brings_a_new_producer_id() {
    let mut state = state();
    let first = init(&mut state);
    state.transactions.ids.get_mut("id").unwrap().producer.epoch = EPOCH_EXHAUSTED - 1;
    let last = init(&mut state);
    assert_eq!((last.id, last.epoch), (first.id, EPOCH_EXHAUSTED));
    let next = state.init_producer("id", 1_000, Some(last)).unwrap();
    assert_ne!(next.id, first.id);
    assert_eq!(next.epoch, 0);
    let repeated = state.init_producer("id", 1_000, Some(last));
    assert_eq!(
        repeated,
        Ok(next),
        "who has not heard the answer gets it again"
    );
    let old = ProducerEpoch { epoch: 3, ..first };
    assert_eq!(
        state.init_producer("id", 1_000, Some(old)),
        Err(ResponseError::ProducerFenced)
    );
}

#[test]
fn an_expired_id_is_unknown_and_what_it_had_open_is_aborted() {
    let mut state = state();
    let producer = init(&mut state);
    begin(&mut state, producer);
    assert!(state.expire_transactional_id("id"));
    assert!(!state.expire_transactional_id("id"));
    assert_eq!(state.partition("t", 0).unwrap().log.end(), 1, "the marker");
    assert_eq!(
        state.end_transaction("id", producer, true),
        Err(ResponseError::InvalidProducerIdMapping)
    );
}

#[test]
fn a_topic_that_is_deleted_meanwhile_does_not_keep_its_transaction() {
    let mut state = state();
    let producer = init(&mut state);
    begin(&mut state, producer);
    state.delete_topic("t").unwrap();
    assert_eq!(state.end_transaction("id", producer, true), Ok(()));
    assert!(state.transactions.open().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_transaction_is_aborted_at_its_timeout_and_not_before() {
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], 1));
    let shared = Arc::new(Shared::new(BrokerConfig::default(), address));
    *shared.state() = state();
    let stop = CancellationToken::new();
    let timers = tokio::spawn(run_timers(Arc::clone(&shared), stop.clone()));
    let producer = shared.change(|state| {
        let producer = init(state);
        begin(state, producer);
        producer
    });
    tokio::time::sleep(Duration::from_millis(999)).await;
    assert_eq!(shared.state().transactions.open().len(), 1);
    tokio::time::sleep(Duration::from_millis(2)).await;
    assert!(shared.state().transactions.open().is_empty());
    let ended = shared.change(|state| state.end_transaction("id", producer, true));
    assert_eq!(ended, Err(ResponseError::ProducerFenced));
    let next = shared.change(|state| state.init_producer("id", 1_000, None));
    assert_eq!(next.unwrap().epoch, producer.epoch + 2);
    stop.cancel();
    timers.await.unwrap();
}
