use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::*;

/// An identity provider: answers each request as told, and keeps what was asked.
struct Provider {
    url: String,
    asked: Arc<AtomicUsize>,
    last: Arc<std::sync::Mutex<String>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Provider {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Provider {
    async fn start(answer: impl Fn(usize) -> (u16, String) + Send + 'static) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let url = format!("http://{}/token", listener.local_addr().unwrap());
        let (asked, last) = (
            Arc::<AtomicUsize>::default(),
            Arc::<std::sync::Mutex<String>>::default(),
        );
        let (counted, kept) = (Arc::clone(&asked), Arc::clone(&last));
        let task = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut bytes = Vec::new();
                let mut piece = [0; 4096];
                loop {
                    let read = stream.read(&mut piece).await.unwrap_or(0);
                    bytes.extend_from_slice(&piece[..read]);
                    let text = String::from_utf8_lossy(&bytes);
                    if read == 0 || text.contains("grant_type") {
                        break;
                    }
                }
                *kept.lock().unwrap() = String::from_utf8(bytes).unwrap();
                let (status, body) = answer(counted.fetch_add(1, Ordering::Relaxed));
                let head = format!(
                    "HTTP/1.1 {status} X\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                    body.len()
                );
                // The client may have hung up.
                drop(stream.write_all(format!("{head}{body}").as_bytes()).await);
            }
        });
        Self {
            url,
            asked,
            last,
            task,
        }
    }

    fn config(&self) -> KafkaConfig {
        KafkaConfig {
            sasl_oauthbearer_token_endpoint_url: self.url.clone(),
            sasl_oauthbearer_client_credentials_client_id: "me".to_owned(),
            sasl_oauthbearer_client_credentials_client_secret: Some(Secret::new("hush")),
            sasl_oauthbearer_scope: "kafka read".to_owned(),
            ..KafkaConfig::default()
        }
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

fn good(number: usize, expires_in: u64) -> (u16, String) {
    let body = format!("{{\"access_token\":\"token-{number}\",\"expires_in\":{expires_in}}}");
    (200, body)
}

#[tokio::test]
async fn a_token_is_asked_for_as_the_grant_has_it_and_once_for_all() {
    let provider = Provider::start(|number| good(number, 3600)).await;
    let (tokens, config) = (Tokens::default(), provider.config());
    let all = futures::future::join_all((0..20).map(|_| tokens.token(&config))).await;
    for token in all {
        assert_eq!(token.unwrap().expose(), "token-0");
    }
    assert_eq!(provider.asked(), 1);
    let asked = provider.last.lock().unwrap().clone();
    assert!(asked.starts_with("POST /token HTTP/1.1"), "{asked}");
    assert!(
        asked.ends_with("\r\n\r\ngrant_type=client_credentials&scope=kafka%20read"),
        "{asked}"
    );
    // me:hush
    assert!(asked.contains("Basic bWU6aHVzaA=="), "{asked}");
}

#[tokio::test]
async fn a_token_is_renewed_before_it_ends_and_kept_while_it_cannot_be() {
    let provider = Provider::start(|number| match number {
        1 => (503, String::new()),
        number => good(number, 100),
    })
    .await;
    let (tokens, config) = (Tokens::default(), provider.config());
    let token = async || {
        tokens
            .token(&config)
            .await
            .map(|token| token.expose().to_owned())
    };
    assert_eq!(token().await.unwrap(), "token-0");
    let change = async |change: fn(&mut Held)| change(tokens.held.lock().await.as_mut().unwrap());
    let since = Instant::now();
    change(|held| {
        assert_eq!((held.expires_at - held.refresh_at).as_secs(), 20);
        held.refresh_at = Instant::now();
    })
    .await;
    // The server fails, and the old one serves, for a while without asking again.
    assert_eq!(token().await.unwrap(), "token-0");
    assert_eq!(token().await.unwrap(), "token-0");
    assert_eq!(provider.asked(), 2);
    change(|held| held.refresh_at = Instant::now()).await;
    assert_eq!(token().await.unwrap(), "token-2");
    assert!(since.elapsed() < Duration::from_secs(5));
}

/// A provider that hangs takes no connection away while there is a token.
#[tokio::test]
async fn an_old_token_serves_in_time_where_nobody_answers() {
    let provider = Provider::start(|number| good(number, 100)).await;
    let tokens = Tokens::default();
    tokens.token(&provider.config()).await.unwrap();
    tokens.held.lock().await.as_mut().unwrap().refresh_at = Instant::now();
    let silent = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let config = KafkaConfig {
        sasl_oauthbearer_token_endpoint_url: format!(
            "http://{}/token",
            silent.local_addr().unwrap()
        ),
        connect_timeout: Duration::from_secs(2),
        ..provider.config()
    };
    let all = futures::future::join_all((0..3).map(|_| tokens.token(&config)));
    let all = timeout(config.connect_timeout, all).await.unwrap();
    for token in all {
        assert_eq!(token.unwrap().expose(), "token-0");
    }
}

#[tokio::test]
async fn a_token_that_has_ended_or_was_refused_serves_no_more() {
    let provider = Provider::start(|number| match number {
        0 | 1 => good(number, 0),
        2 => good(number, 3600),
        3 => (503, String::new()),
        _ => (200, "{}".to_owned()),
    })
    .await;
    let (tokens, config) = (Tokens::default(), provider.config());
    for number in 0..3 {
        let token = tokens.token(&config).await.unwrap();
        assert_eq!(token.expose(), format!("token-{number}"));
    }
    tokens.refused(&Secret::new("token-1")).await;
    assert_eq!(tokens.token(&config).await.unwrap().expose(), "token-2");
    tokens.refused(&Secret::new("token-2")).await;
    assert!(tokens.token(&config).await.is_err());
}

#[tokio::test]
async fn what_is_no_token_names_the_setting_and_shows_no_secret() {
    let long = format!("{{\"access_token\":\"{}\"}}", "x".repeat(600 * 1024));
    let answers = [
        (
            401,
            r#"{"error":"invalid_client","error_description":"hush is wrong\u001b[0m"}"#.to_owned(),
            "invalid_client: *** is wrong[0m",
        ),
        (302, String::new(), "it answers 302"),
        (500, "<html>".repeat(1000), "it answers 500 ("),
        (200, "hush".to_owned(), "no JSON with an access_token"),
        (
            200,
            r#"{"access_token":7,"x":"hush"}"#.to_owned(),
            "no JSON with",
        ),
        (
            200,
            r#"{"access_token":"two words"}"#.to_owned(),
            "no token",
        ),
        (200, long, "larger than"),
    ];
    for (status, body, says) in answers {
        let answer = body.clone();
        let provider = Provider::start(move |_| (status, answer.clone())).await;
        let error = Tokens::default().token(&provider.config()).await;
        let text = error.unwrap_err().to_string();
        assert!(text.contains(says), "{text}");
        assert!(
            text.contains("kafka.sasl_oauthbearer_token_endpoint_url"),
            "{text}"
        );
        assert!(!text.contains("hush") && text.len() < 600, "{text}");
    }
}

#[tokio::test]
async fn the_life_of_a_token_is_told_beside_it_or_in_it() {
    let exp = clock::now().as_second() + 1000;
    let claims = URL_SAFE_NO_PAD.encode(format!("{{\"exp\":{exp}.0}}"));
    let jwt = format!("{{\"access_token\":\"e30.{claims}.sig\"}}");
    for (body, seconds) in [
        (jwt, 1000),
        (r#"{"access_token":"t","expires_in":"500"}"#.to_owned(), 500),
        (r#"{"access_token":"t"}"#.to_owned(), 60),
        (r#"{"access_token":"t","expires_in":1e300}"#.to_owned(), 60),
        (
            r#"{"access_token":"t","expires_in":18446744073709551615}"#.to_owned(),
            LIFE_MAX.as_secs(),
        ),
    ] {
        let answer = body.clone();
        let provider = Provider::start(move |_| (200, answer.clone())).await;
        let tokens = Tokens::default();
        tokens.token(&provider.config()).await.unwrap();
        let held = tokens.held.lock().await;
        let left = held.as_ref().unwrap().expires_at - Instant::now();
        assert!(left.as_secs().abs_diff(seconds) <= 2, "{body}: {left:?}");
    }
}

#[tokio::test]
async fn no_secret_is_in_what_is_debugged() {
    let provider = Provider::start(|number| good(number, 3600)).await;
    let (tokens, config) = (Tokens::default(), provider.config());
    tokens.token(&config).await.unwrap();
    let shown = format!("{tokens:?} {config:?}");
    assert!(
        !shown.contains("hush") && !shown.contains("token-0"),
        "{shown}"
    );
}

/// What a token says of its end is the word of whoever made it.
#[test]
fn a_token_that_ends_with_time_itself_is_read() {
    for exp in [i64::MIN, i64::MAX] {
        let claims = URL_SAFE_NO_PAD.encode(format!("{{\"exp\":{exp}}}"));
        let token = format!("e30.{claims}.c2ln");
        let expired = expired_since(&Secret::new(token.as_str()));
        assert_eq!(expired.is_some(), exp < 0, "{exp}");
        let body = format!("{{\"access_token\":\"{token}\"}}");
        let held = held(body.as_bytes(), &|_| unreachable!("{exp}"));
        let life = held.unwrap().expires_at - Instant::now();
        assert_eq!(life > LIFE_UNTOLD, exp > 0, "{exp}: {life:?}");
    }
}
