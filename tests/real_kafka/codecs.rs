//! What others compressed is read, whatever they chose: a Java producer writes in every codec.

use crate::harness::{Job, Kafka, PARTITIONS, SOON};
use crate::support::eventually;
use crate::topic_log::Results;

const CODECS: [&str; 5] = ["none", "gzip", "snappy", "lz4", "zstd"];
/// Records of each codec.
const RECORDS: usize = 40;

#[tokio::test(flavor = "multi_thread")]
async fn every_codec_of_a_java_producer_is_read() {
    let Some(kafka) = Kafka::turn().await else {
        return;
    };
    let job = Job::new(&kafka, "codecs").await;
    kafka.create_topic(&job.name, PARTITIONS).await;
    let bootstrap = format!("bootstrap.servers={}", kafka.address());
    for codec in CODECS {
        let compression = format!("compression.type={codec}");
        #[rustfmt::skip]
        let arguments = [
            "kafka-producer-perf-test", "--topic", &job.name, "--num-records", &RECORDS.to_string(),
            "--record-size", "300", "--throughput", "-1",
            "--producer-props", &bootstrap, "acks=all", &compression, "linger.ms=20",
        ];
        kafka.tool(&arguments).await;
    }
    let processor = job.start();
    let mut results = Results::new(&kafka, &job);
    let all = RECORDS * CODECS.len();
    eventually("every record has a result", SOON, async || {
        results.gather().await;
        (results.answered.len() == all).then_some(())
    })
    .await;
    let words = ["INFO", "packed batches lie here", &job.name];
    processor.line(&words, SOON).await;
    processor.drain(SOON).await;
    results.gather().await;
    assert_eq!((results.answered.len(), results.repeats()), (all, 0));
}
