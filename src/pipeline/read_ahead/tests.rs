use futures::FutureExt;

use super::*;

fn may_fetch(read_ahead: &ReadAhead, partition: usize) -> bool {
    read_ahead.room(partition).now_or_never().is_some()
}

#[test]
fn a_deep_partition_leaves_the_others_their_share() {
    let read_ahead = ReadAhead::new(16, 1 << 30, &[Class::ONLY; 2]);
    let mut held = Vec::new();
    while may_fetch(&read_ahead, 0) {
        held.push(read_ahead.hold(0, 10));
    }
    assert_eq!(
        held.len(),
        2 + 12,
        "its share, and of the pool all that is worth a fetch"
    );
    for _ in 0..2 {
        assert!(may_fetch(&read_ahead, 1));
        held.push(read_ahead.hold(1, 10));
    }
    assert!(!may_fetch(&read_ahead, 1));
    assert!(read_ahead.open().0 <= 16, "the bound is the sum");
    held.remove(0);
    assert!(may_fetch(&read_ahead, 1), "what one frees, another may use");
}

fn topic(flow: u32, weight: u32) -> Class {
    Class {
        flow,
        weight: NonZeroU32::new(weight).unwrap(),
        member: 0,
    }
}

/// Fetches records of one byte, one at a time, for as long as the partition may.
fn fill(read_ahead: &Arc<ReadAhead>, partition: usize, held: &mut Vec<OpenToken>) -> usize {
    let before = held.len();
    while may_fetch(read_ahead, partition) {
        held.push(read_ahead.hold(partition, 1));
    }
    held.len() - before
}

#[test]
fn a_topics_share_is_its_weights_however_many_partitions_it_has() {
    // Partition 0 is the only one of a topic of weight 3, the others are of one of weight 1.
    let mut classes = vec![topic(0, 3)];
    classes.extend([topic(1, 1); 4]);
    let read_ahead = ReadAhead::new(64, 1 << 30, &classes);
    let mut held = Vec::new();
    let first = fill(&read_ahead, 1, &mut held);
    assert_eq!(
        first,
        1 + 43,
        "its share, and of the pool all that is worth a fetch"
    );
    for partition in 2..5 {
        assert_eq!(fill(&read_ahead, partition, &mut held), 1);
    }
    assert_eq!(
        fill(&read_ahead, 0, &mut held),
        7,
        "half of its share, and one"
    );
    assert!(read_ahead.open().0 <= 64, "the bound is the sum");
}

#[test]
fn shares_that_come_to_nothing_keep_the_sum_within_the_bound() {
    let mut classes = vec![topic(0, 1_000)];
    classes.extend([topic(1, 1); 999]);
    let read_ahead = ReadAhead::new(1_024, 1 << 30, &classes);
    let used = read_ahead.used();
    let shares = used.partitions.iter().map(|partition| partition.share);
    let (records, bytes) = shares.fold((0, 0), |(records, bytes), share| {
        (records + share.records, bytes + share.bytes)
    });
    assert!(records <= 256 && bytes <= 1 << 28, "{records}, {bytes}");
    assert_eq!(used.partitions[0].share.records, 255);
    drop(used);
    assert!(may_fetch(&read_ahead, 999), "who holds nothing may fetch");
}

/// What a topic had of the pool while it was alone goes to the other, document by document, up to its part.
#[test]
fn a_pool_that_is_used_up_is_divided_by_weight() {
    let read_ahead = ReadAhead::new(64, 1 << 30, &[topic(0, 3), topic(1, 1)]);
    let (mut deep, mut other) = (Vec::new(), Vec::new());
    let alone = fill(&read_ahead, 1, &mut deep);
    assert_eq!(alone, 4 + 43);
    assert_eq!(fill(&read_ahead, 0, &mut other), 7);
    for _ in 0..100 {
        let mut waits = Box::pin(read_ahead.room(0));
        let is_waiting = waits.as_mut().now_or_never().is_none();
        drop(deep.pop());
        fill(&read_ahead, 1, &mut deep);
        if is_waiting && waits.now_or_never().is_some() {
            other.push(read_ahead.hold(0, 1));
        }
    }
    let of_pool = other.len().saturating_sub(12);
    assert!(
        (30..=36).contains(&of_pool),
        "{of_pool}: three quarters of the pool, less what is not worth a fetch"
    );
    drop(other);
    fill(&read_ahead, 1, &mut deep);
    assert_eq!(deep.len(), alone, "nothing is kept for whom does not wait");
}

#[test]
fn a_fetch_asks_for_what_may_be_held_of_small_records_and_no_more() {
    let read_ahead = ReadAhead::new(1_024, 16 << 20, &[Class::ONLY; 16]);
    assert_eq!(
        read_ahead.fetch_bytes(0),
        FETCH_BYTES_MIN,
        "nothing is known"
    );
    read_ahead.learn(0, FETCH_BYTES_MIN, 16, 16_000);
    // Its share of 16 records, and 48 of the pool.
    assert_eq!(read_ahead.fetch_bytes(0), 64 * 1_000);
    assert_eq!(
        read_ahead.fetch_bytes(1),
        FETCH_BYTES_MIN,
        "another's say nothing"
    );
    let held: Vec<_> = (0..784).map(|_| read_ahead.hold(0, 1_000)).collect();
    assert_eq!(
        read_ahead.fetch_bytes(0),
        FETCH_BYTES_MIN,
        "share and pool are used up"
    );
    drop(held);
    for _ in 0..60 {
        read_ahead.learn(0, 1 << 20, 10, 100_000);
    }
    let asked = read_ahead.fetch_bytes(0);
    assert!(
        (240_000..=256 * 1024).contains(&asked),
        "{asked}: its part of the bytes for fetches, 256 KiB"
    );
}

#[test]
fn bytes_are_bounded_too_and_a_giant_record_still_passes() {
    let read_ahead = ReadAhead::new(1_000, 64 * 1024, &[Class::ONLY]);
    let giant = read_ahead.hold(0, 10 * 1024 * 1024);
    assert!(!may_fetch(&read_ahead, 0));
    drop(giant);
    assert!(may_fetch(&read_ahead, 0));
    assert_eq!(read_ahead.open(), (0, 0));
}

#[tokio::test]
async fn a_waiter_is_woken_when_a_place_is_freed() {
    let read_ahead = ReadAhead::new(1, 1 << 20, &[Class::ONLY]);
    let held: Vec<_> = (0..4).map(|_| read_ahead.hold(0, 1)).collect();
    let mut waiting = Box::pin(read_ahead.room(0));
    assert!(waiting.as_mut().now_or_never().is_none());
    drop(held);
    waiting.await;
}

/// A broker counts bytes as they are packed.
#[test]
fn records_that_were_packed_are_learned_as_the_fetch_counts_them() {
    let read_ahead = ReadAhead::new(1_024, 16 << 20, &[Class::ONLY]);
    // 8 to 1: 131 documents of 1,000 bytes in 16 KiB.
    read_ahead.learn(0, FETCH_BYTES_MIN, 131, 131_000);
    assert_eq!(read_ahead.fetch_bytes(0), 1_024 * 125);
    read_ahead.learn(0, 1_024 * 125, 0, 0);
    assert_eq!(
        read_ahead.fetch_bytes(0),
        1_024 * 125,
        "nothing says nothing"
    );
}

/// The bound is on what records take here, not on what they took on the way.
#[test]
fn a_fetch_asks_for_no_more_than_the_bound_on_bytes_has_room_for_once_unpacked() {
    let read_ahead = ReadAhead::new(100_000, 16 << 20, &[Class::ONLY]);
    // 4 to 1: 4 documents of 64 KiB for 64 KiB asked for.
    read_ahead.learn(0, 64 * 1024, 4, 4 * 64 * 1024);
    assert_eq!(
        read_ahead.fetch_bytes(0),
        16 * 16 * 1024,
        "its part of the bytes for fetches is 1 MiB, unpacked too"
    );
    let each = 64 * 1024 + RECORD_OVERHEAD_BYTES;
    let held: Vec<_> = (0..(12 << 20) / each - 3)
        .map(|_| read_ahead.hold(0, 64 * 1024))
        .collect();
    assert_eq!(
        read_ahead.fetch_bytes(0),
        3 * 16 * 1024,
        "of the bound on bytes three have room"
    );
    drop(held);
    read_ahead.learn(0, 64 * 1024, 16, 16 * 64 * 1024);
    assert_eq!(
        read_ahead.fetch_bytes(0),
        16 * 4 * 1024,
        "what packs better than was thought is believed at once"
    );
}

/// A topic of one partition beside one of fifty.
#[test]
fn a_topic_with_few_partitions_may_use_the_pool_as_one_with_many() {
    let mut classes = vec![topic(0, 1)];
    classes.extend([topic(1, 1); 50]);
    let read_ahead = ReadAhead::new(1_024, 1 << 30, &classes);
    let mut held = Vec::new();
    let alone = fill(&read_ahead, 0, &mut held);
    assert_eq!(alone, 128 + 768 - 95, "its share, and the pool");
    held.clear();
    let mut many = Vec::new();
    for partition in 1..=50 {
        fill(&read_ahead, partition, &mut many);
    }
    let waiting = Waiting::new(&read_ahead, 0);
    let beside: usize = fill(&read_ahead, 0, &mut held);
    drop(many);
    assert!(beside > 0, "who holds nothing may fetch");
    assert!(fill(&read_ahead, 0, &mut held) > 300, "half of the pool");
    drop(waiting);
}

/// One document costs one wake at most, however many partitions wait.
#[test]
fn what_becomes_free_wakes_its_own_partition_and_the_first_that_waits() {
    let read_ahead = ReadAhead::new(128, 1 << 30, &[Class::ONLY; 32]);
    let held = read_ahead.hold(0, 1);
    // A share of one, and 93 of the pool's 96.
    let mut more: Vec<_> = (1..32)
        .flat_map(|other| [other; 4])
        .map(|other| read_ahead.hold(other, 1))
        .collect();
    let mut waits: Vec<_> = (1..32)
        .map(|other| Box::pin(read_ahead.room(other)))
        .collect();
    for wait in &mut waits {
        assert!(wait.as_mut().now_or_never().is_none());
    }
    let queued = || read_ahead.used().topics[0].queue.len();
    assert_eq!(queued(), 31);
    while !read_ahead.used().is_pool_worth_it() {
        more.pop().unwrap();
    }
    let before = queued();
    drop(held);
    assert_eq!(queued(), before - 1);
    drop(waits);
    assert_eq!((queued(), read_ahead.used().topics[0].waiting), (0, 0));
    drop(more);
}
