//! Answers that are no HTTP that a server would speak, byte by byte: what is read of them is bounded.

use std::sync::Arc;
use std::time::Duration;

use kafka_llm_processor::llm::{
    Call, HttpTransport, LlmConfig, Reply, Transport as _, TransportError,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::time::timeout;

/// An answer that has not ended by itself until then had no bound.
const ENDS_WITHIN: Duration = Duration::from_secs(20);
/// More than the bounds of all answers here together.
const SENT_MAX: usize = 64 * 1024 * 1024;

/// Asks a server that begins with `head` and goes on with `piece` until the client leaves or it has sent far too much; how much it sent.
async fn ask(head: &'static str, piece: &'static [u8]) -> (Result<Reply, TransportError>, usize) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = [0; 1024];
        assert!(stream.read(&mut request).await.unwrap() > 0);
        let mut sent = 0;
        let mut fine = stream.write_all(head.as_bytes()).await.is_ok();
        while fine && !piece.is_empty() && sent < SENT_MAX {
            fine = stream.write_all(piece).await.is_ok();
            sent += piece.len();
        }
        sent
    });
    let config = LlmConfig {
        url: url.clone(),
        timeout: Duration::from_secs(2),
        response_bytes_max: 64 * 1024,
        ..LlmConfig::default()
    };
    let transport = HttpTransport::new(&config).unwrap();
    let call = Call {
        base: Arc::from(url.as_str()),
        path: "/v1/models",
        headers: Default::default(),
        body: None,
    };
    let answer = timeout(ENDS_WITHIN, transport.exchange(call)).await;
    (answer.expect("it ends"), server.await.unwrap())
}

#[tokio::test]
async fn header_lines_without_end_are_cut_off() {
    let (answer, sent) = ask("HTTP/1.1 200 OK\r\n", b"x-more: of the same\r\n").await;
    answer.unwrap_err();
    assert!(sent < SENT_MAX, "{sent} bytes were taken");
}

#[tokio::test]
async fn a_header_line_without_end_is_cut_off() {
    let (answer, sent) = ask("HTTP/1.1 200 OK\r\nx-more: ", &[b'a'; 4096]).await;
    answer.unwrap_err();
    assert!(sent < SENT_MAX, "{sent} bytes were taken");
}

#[tokio::test]
async fn chunk_extensions_without_end_are_cut_off() {
    let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1;";
    let (answer, sent) = ask(head, &[b'a'; 4096]).await;
    answer.unwrap_err();
    assert!(sent < SENT_MAX, "{sent} bytes were taken");
}

#[tokio::test]
async fn a_length_beyond_the_bound_is_not_believed() {
    let head = "HTTP/1.1 200 OK\r\ncontent-length: 18446744073709551615\r\n\r\n";
    let (answer, sent) = ask(head, &[b'a'; 4096]).await;
    answer.unwrap_err();
    assert!(sent < SENT_MAX, "{sent} bytes were taken");
}

/// No compressed answer is asked for, so none is inflated: a bomb stays as small as it came.
#[tokio::test]
async fn a_compressed_answer_stays_compressed() {
    let head =
        "HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 4\r\n\r\n\u{1f}b\u{8}\u{0}";
    let (answer, _) = ask(head, b"").await;
    assert_eq!(answer.unwrap().body.len(), 4);
}
