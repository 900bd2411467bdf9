//! The server's side of SCRAM (RFC 5802, RFC 7677), written apart from the library that the clients use.
//!
//! The stored keys are derived from the password in each exchange: the sandbox has few users, and nothing on disk.

use bytes::Bytes;
use sha2::{Digest, Sha256, Sha512};
use uuid::Uuid;

use super::config::SaslUsers;

/// Kafka's default and least iteration count.
const ITERATIONS: u32 = 4096;

/// Which SCRAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hash {
    Sha256,
    Sha512,
}

impl Hash {
    pub(super) fn mechanism(self) -> &'static str {
        match self {
            Self::Sha256 => "SCRAM-SHA-256",
            Self::Sha512 => "SCRAM-SHA-512",
        }
    }

    fn digest(self, parts: &[&[u8]]) -> Vec<u8> {
        fn over<D: Digest>(parts: &[&[u8]]) -> Vec<u8> {
            let mut digest = D::new();
            for part in parts {
                digest.update(part);
            }
            digest.finalize().to_vec()
        }
        match self {
            Self::Sha256 => over::<Sha256>(parts),
            Self::Sha512 => over::<Sha512>(parts),
        }
    }

    fn block_bytes(self) -> usize {
        match self {
            Self::Sha256 => 64,
            Self::Sha512 => 128,
        }
    }

    /// HMAC (RFC 2104).
    fn hmac(self, key: &[u8], parts: &[&[u8]]) -> Vec<u8> {
        let mut block = if key.len() > self.block_bytes() {
            self.digest(&[key])
        } else {
            key.to_vec()
        };
        block.resize(self.block_bytes(), 0);
        let padded = |pad: u8| block.iter().map(|byte| byte ^ pad).collect::<Vec<_>>();
        let inner_pad = padded(0x36);
        let mut inner = vec![inner_pad.as_slice()];
        inner.extend_from_slice(parts);
        self.digest(&[&padded(0x5c), &self.digest(&inner)])
    }

    /// `Hi` of RFC 5802: PBKDF2 with one block.
    fn salted_password(self, password: &[u8], salt: &[u8]) -> Vec<u8> {
        let mut round = self.hmac(password, &[salt, &1_u32.to_be_bytes()]);
        let mut result = round.clone();
        for _ in 1..ITERATIONS {
            round = self.hmac(password, &[&round]);
            result = xor(&result, &round);
        }
        result
    }
}

fn xor(left: &[u8], right: &[u8]) -> Vec<u8> {
    left.iter().zip(right).map(|(a, b)| a ^ b).collect()
}

/// The exchange failed: malformed message, unknown user or wrong password, which the client is not told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ScramError(pub Hash);

/// What follows a client's message.
#[derive(Debug)]
pub(super) enum Step {
    Continue(Exchange, Bytes),
    Done(Bytes),
}

/// One exchange: before its first message, or between the two.
#[derive(Debug)]
pub(super) struct Exchange {
    hash: Hash,
    begun: Option<Begun>,
}

#[derive(Debug)]
struct Begun {
    user: String,
    client_first_bare: String,
    server_first: String,
    nonce: String,
    salt: [u8; 16],
    /// What the client's last message must say of channel binding: its own header again.
    channel_binding: String,
}

impl Exchange {
    pub(super) fn new(hash: Hash) -> Self {
        Self { hash, begun: None }
    }

    pub(super) fn step(self, users: &SaslUsers, message: &[u8]) -> Result<Step, ScramError> {
        let message = std::str::from_utf8(message)
            .ok()
            .ok_or(ScramError(self.hash))?;
        match self.begun {
            None => first(self.hash, users, message),
            Some(begun) => last(self.hash, users, &begun, message),
        }
        .ok_or(ScramError(self.hash))
    }
}

/// `n,[a=…],n=user,r=nonce[,extensions]`.
fn first(hash: Hash, users: &SaslUsers, message: &str) -> Option<Step> {
    let (binding, rest) = message.split_once(',')?;
    let (_, bare) = rest.split_once(',')?;
    if binding != "n" && binding != "y" {
        return None;
    }
    let mut fields = bare.split(',');
    let user = fields.next()?.strip_prefix("n=")?;
    let user = user.replace("=2C", ",").replace("=3D", "=");
    let client_nonce = fields.next()?.strip_prefix("r=")?;
    let header = message.strip_suffix(bare)?;
    let nonce = format!("{client_nonce}{}", Uuid::new_v4().simple());
    let salt = Uuid::new_v4().into_bytes();
    // Kafka ends the exchange here already when it does not know the user.
    users.get(&user)?;
    let server_first = format!("r={nonce},s={},i={ITERATIONS}", to_base64(&salt));
    let answer = Bytes::from(server_first.clone());
    let begun = Begun {
        user,
        client_first_bare: bare.to_owned(),
        server_first,
        nonce,
        salt,
        channel_binding: to_base64(header.as_bytes()),
    };
    let next = Exchange {
        hash,
        begun: Some(begun),
    };
    Some(Step::Continue(next, answer))
}

/// `c=binding,r=nonce[,extensions],p=proof`.
fn last(hash: Hash, users: &SaslUsers, begun: &Begun, message: &str) -> Option<Step> {
    let (without_proof, proof) = message.rsplit_once(",p=")?;
    let expected = format!("c={},r={}", begun.channel_binding, begun.nonce);
    if without_proof != expected {
        return None;
    }
    let proof = from_base64(proof)?;
    let password = users.get(&begun.user)?;
    let salted = hash.salted_password(password.expose().as_bytes(), &begun.salt);
    let client_key = hash.hmac(&salted, &[b"Client Key"]);
    let stored_key = hash.digest(&[&client_key]);
    let auth_message = format!(
        "{},{},{without_proof}",
        begun.client_first_bare, begun.server_first
    );
    let signature = hash.hmac(&stored_key, &[auth_message.as_bytes()]);
    if proof != xor(&client_key, &signature) {
        return None;
    }
    let server_key = hash.hmac(&salted, &[b"Server Key"]);
    let verifier = hash.hmac(&server_key, &[auth_message.as_bytes()]);
    Some(Step::Done(Bytes::from(format!(
        "v={}",
        to_base64(&verifier)
    ))))
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Base 64 with padding (RFC 4648).
fn to_base64(bytes: &[u8]) -> String {
    let mut out = String::new();
    for chunk in bytes.chunks(3) {
        let mut group = [0; 4];
        for (slot, byte) in group.iter_mut().skip(1).zip(chunk) {
            *slot = *byte;
        }
        let bits = u32::from_be_bytes(group);
        for position in 0..4_usize {
            let index = (bits >> (18 - 6 * position)) & 63;
            let letter = usize::try_from(index)
                .ok()
                .and_then(|index| ALPHABET.get(index));
            let is_padding = position > chunk.len();
            out.push(if is_padding {
                '='
            } else {
                char::from(*letter.unwrap_or(&b'='))
            });
        }
    }
    out
}

fn from_base64(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(4) {
        return None;
    }
    let digits = text.trim_end_matches('=');
    let mut out = Vec::with_capacity(digits.len());
    let mut bits = 0_u32;
    let mut held = 0;
    for digit in digits.bytes() {
        let index = ALPHABET.iter().position(|letter| *letter == digit)?;
        bits = (bits << 6) | u32::try_from(index).ok()?;
        held += 6;
        if held >= 8 {
            held -= 8;
            let [.., low] = (bits >> held).to_be_bytes();
            out.push(low);
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of RFC 4648 at each length of the last group.
    #[test]
    fn base64_pads_as_the_standard_says() {
        for (plain, encoded) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(to_base64(plain.as_bytes()), encoded);
            assert_eq!(from_base64(encoded).unwrap(), plain.as_bytes());
        }
        assert_eq!(from_base64("Zg="), None);
        assert_eq!(from_base64("Z?=="), None);
    }

    /// RFC 4231, test case 2, and its first case with a key longer than a block.
    #[test]
    fn hmac_agrees_with_the_standard() {
        let mac = Hash::Sha256.hmac(b"Jefe", &[b"what do ya want ", b"for nothing?"]);
        assert!(mac.starts_with(&[0x5b, 0xdc, 0xc1, 0x46]), "{mac:x?}");
        let mac = Hash::Sha512.hmac(b"Jefe", &[b"what do ya want for nothing?"]);
        assert!(mac.starts_with(&[0x16, 0x4b, 0x7a, 0x7b]), "{mac:x?}");
        let key = [0xaa; 131];
        let mac = Hash::Sha256.hmac(
            &key,
            &[b"Test Using Larger Than Block-Size Key - Hash Key First"],
        );
        assert!(mac.starts_with(&[0x60, 0xe4, 0x31, 0x59]), "{mac:x?}");
    }
}
