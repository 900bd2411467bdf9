//! The API key: where it comes from, and that it can stand in a header.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use reqwest::header::HeaderValue;

use super::{LlmConfig, LlmError};
use crate::types::Secret;

/// A key file is a line; more is the wrong file.
const KEY_BYTES_MAX: usize = 16 * 1024;

/// What stands before the key in the header.
const SCHEME: &str = "Bearer ";

/// Checks that a key can be sent.
///
/// # Errors
/// What is wrong, without the key.
pub(super) fn check(key: &str) -> Result<(), &'static str> {
    if key.is_empty() {
        Err("is empty: remove it or write a key")
    } else if key.len() > KEY_BYTES_MAX {
        Err("is too long for a key")
    } else if !key.bytes().all(|byte| byte.is_ascii_graphic()) {
        Err("holds a character that no HTTP header may: write visible ASCII without spaces")
    } else {
        Ok(())
    }
}

/// The `Authorization` header as it stands now. A key file can be read again, so that a rotated key needs no restart.
#[derive(Debug)]
pub(super) struct Authorization {
    file: Option<PathBuf>,
    header: Mutex<Option<HeaderValue>>,
}

impl Authorization {
    /// # Errors
    /// When the key file cannot be read or holds no key.
    pub(super) fn new(config: &LlmConfig) -> Result<Self, LlmError> {
        let file = config.api_key_file.clone();
        let key = match (&file, &config.api_key) {
            (Some(path), _) => Some(read(path)?),
            (None, key) => key.clone(),
        };
        let header = key
            .map(|key| {
                check(key.expose()).map_err(|problem| LlmError::ApiKey { problem })?;
                bearer(&key)
            })
            .transpose()?;
        Ok(Self {
            file,
            header: Mutex::new(header),
        })
    }

    /// The header's value, when there is a key.
    pub(super) fn header(&self) -> Option<HeaderValue> {
        self.header
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// A sentence with stars where it repeats the key, as a server's words may.
    pub(super) fn redact(&self, text: String) -> String {
        let header = self.header();
        let bearer = header.as_ref().and_then(|header| header.to_str().ok());
        match bearer.and_then(|bearer| bearer.strip_prefix(SCHEME)) {
            Some(key) => Secret::new(key).redact(text),
            None => text,
        }
    }

    /// Reads the key file again; without one, or when it cannot be read, the old key stays.
    pub(super) fn reload(&self) {
        let Some(path) = &self.file else { return };
        match read(path).and_then(|key| bearer(&key)) {
            Ok(header) => {
                *self.header.lock().unwrap_or_else(PoisonError::into_inner) = Some(header);
            }
            Err(error) => tracing::debug!(%error, "the key file could not be read again"),
        }
    }
}

fn bearer(key: &Secret) -> Result<HeaderValue, LlmError> {
    let mut value =
        HeaderValue::from_str(&format!("{SCHEME}{}", key.expose())).map_err(|_invalid| {
            // The source would print the key.
            LlmError::ApiKey {
                problem: "cannot stand in an HTTP header",
            }
        })?;
    value.set_sensitive(true);
    Ok(value)
}

fn read(path: &std::path::Path) -> Result<Secret, LlmError> {
    let text = std::fs::read_to_string(path).map_err(|source| LlmError::KeyFile {
        path: path.to_owned(),
        source,
    })?;
    let key = text.trim();
    check(key).map_err(|problem| LlmError::KeyFileContent {
        path: path.to_owned(),
        problem,
    })?;
    Ok(Secret::new(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_file_is_trimmed_and_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        std::fs::write(&path, "first\n").unwrap();
        let auth = Authorization::new(&LlmConfig {
            api_key_file: Some(path.clone()),
            ..LlmConfig::default()
        })
        .unwrap();
        assert_eq!(auth.header().unwrap(), "Bearer first");
        std::fs::write(&path, "second").unwrap();
        auth.reload();
        assert_eq!(auth.header().unwrap(), "Bearer second");
        assert!(!format!("{auth:?}").contains("second"));
    }

    #[test]
    fn a_missing_key_file_names_the_setting() {
        let error = Authorization::new(&LlmConfig {
            api_key_file: Some("/nonexistent/key".into()),
            ..LlmConfig::default()
        })
        .unwrap_err();
        assert!(error.to_string().contains("llm.api_key_file"), "{error}");
    }
}
