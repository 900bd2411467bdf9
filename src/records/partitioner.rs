//! Which partition a key belongs to: as the Java client has it, so that results of one key meet records that others wrote.

/// MurmurHash2 with the seed of Kafka's `Utils.murmur2`.
#[must_use]
pub fn murmur2(data: &[u8]) -> i32 {
    const SEED: u32 = 0x9747_b28c;
    const MULTIPLIER: u32 = 0x5bd1_e995;
    const SHIFT: u32 = 24;

    // Java's array length is an int and wraps into the hash the same way; no Kafka key comes near 2^31 bytes.
    let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
    let mut hash = SEED ^ length;
    let (words, rest) = data.as_chunks::<4>();
    for word in words {
        let mut k = u32::from_le_bytes(*word).wrapping_mul(MULTIPLIER);
        k ^= k >> SHIFT;
        hash = hash.wrapping_mul(MULTIPLIER) ^ k.wrapping_mul(MULTIPLIER);
    }
    if !rest.is_empty() {
        for (byte, shift) in rest.iter().zip([0, 8, 16]) {
            hash ^= u32::from(*byte) << shift;
        }
        hash = hash.wrapping_mul(MULTIPLIER);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(MULTIPLIER);
    hash ^= hash >> 15;
    hash.cast_signed()
}

/// The partition of a key among `partitions` (at least 1; less counts as 1).
#[must_use]
pub fn partition_for_key(key: &[u8], partitions: i32) -> i32 {
    // `Utils.toPositive`: the sign bit is cleared, not the value negated.
    (murmur2(key) & i32::MAX) % partitions.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The vectors of Kafka's own `UtilsTest.testMurmur2`.
    #[test]
    fn hashes_are_those_of_the_java_client() {
        for (key, hash) in [
            ("21", -973_932_308),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            (
                "lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8",
                -58_897_971,
            ),
            ("abc", 479_470_107),
        ] {
            assert_eq!(murmur2(key.as_bytes()), hash, "{key}");
        }
    }

    #[test]
    fn a_partition_is_always_in_range() {
        for partitions in [1, 2, 3, 7, 100] {
            for key in ["", "a", "ab", "abc", "abcd", "21", "foobar"] {
                let partition = partition_for_key(key.as_bytes(), partitions);
                assert!((0..partitions).contains(&partition), "{key}: {partition}");
            }
        }
        assert_eq!(partition_for_key(b"any", 0), 0);
    }

    /// −973932308 with its sign bit cleared is 1173551340.
    #[test]
    fn the_sign_bit_is_cleared() {
        assert_eq!(partition_for_key(b"21", 1000), 340);
    }
}
