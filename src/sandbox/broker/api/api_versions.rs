//! ApiVersions, versions 0 to 3.
//!
//! An unsupported version is answered in version 0 with error 35 and the versions of this API alone, as Kafka does (KIP-511).

use bytes::{Buf, Bytes};
use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::api_versions_response::ApiVersion;
use kafka_protocol::messages::{ApiVersionsRequest, ApiVersionsResponse};
use kafka_protocol::protocol::Request;

use super::super::connection::{ConnectionError, Context};
use super::{Api, Entry, Outcome, Reply, TABLE, encode};

/// From this version on the client says who it is.
const NAMES_CLIENT_FROM: i16 = 3;

impl Api for ApiVersionsRequest {
    const SERVED: (i16, i16) = (0, 3);

    fn layout(_: i16) -> &'static str {
        ""
    }

    fn refuse(&self, code: ResponseError) -> ApiVersionsResponse {
        ApiVersionsResponse::default()
            .with_error_code(code.code())
            .with_api_keys(TABLE.iter().map(advertise).collect())
    }

    async fn serve(self, _: &mut Context, version: i16) -> Reply<ApiVersionsResponse> {
        let is_named = is_software_name(&self.client_software_name)
            && is_software_name(&self.client_software_version);
        if version >= NAMES_CLIENT_FROM && !is_named {
            return Reply::Answer(self.refuse(ResponseError::InvalidRequest));
        }
        let keys = TABLE.iter().map(advertise).collect();
        Reply::Answer(ApiVersionsResponse::default().with_api_keys(keys))
    }
}

fn advertise(entry: &Entry) -> ApiVersion {
    ApiVersion::default()
        .with_api_key(entry.key)
        .with_min_version(entry.min)
        .with_max_version(entry.max)
}

/// Letters and digits, with dots and hyphens between them.
fn is_software_name(name: &str) -> bool {
    let is_edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    is_edge(name.chars().next())
        && is_edge(name.chars().next_back())
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-'))
}

/// Answers a version that is not served; `rest` is the frame after key and version.
pub(super) fn refuse_version(mut rest: Bytes) -> Result<Outcome, ConnectionError> {
    // Every header version begins with the correlation id.
    let Ok(correlation_id) = rest.try_get_i32() else {
        return Err(ConnectionError::Header);
    };
    let own = TABLE
        .iter()
        .filter(|entry| entry.key == ApiVersionsRequest::KEY);
    let response = ApiVersionsResponse::default()
        .with_error_code(ResponseError::UnsupportedVersion.code())
        .with_api_keys(own.map(advertise).collect());
    encode(correlation_id, 0, &response).map(Outcome::Reply)
}
