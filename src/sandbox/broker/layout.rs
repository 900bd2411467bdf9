//! A walk over a request before it is decoded: does every list and text in it really have the bytes that it says?
//!
//! The codec crate allocates a list by its announced length before it reads the first item, so a few bytes could ask for all memory and
//! end the process. Kafka guards its own codec in the same way.
//!
//! A layout is a word over the fields in their order: `b s i l u` are numbers of 1, 2, 4, 8 and 16 bytes, `S` is text (null included),
//! `B` is bytes, `[…]` is a list of plain items and `{…}` a list of structures. Blanks separate. What follows the last list need not be
//! named.

use bytes::{Buf, Bytes};

/// Whether the body has what it announces.
pub(super) fn is_sound(layout: &str, flexible: bool, body: &Bytes) -> bool {
    let mut body = body.clone();
    Walk { flexible }
        .fields(layout.as_bytes(), &mut body)
        .is_some()
}

#[derive(Clone, Copy)]
struct Walk {
    /// Flexible versions have variable-length lengths, and tagged fields behind each structure (KIP-482).
    flexible: bool,
}

impl Walk {
    fn fields(self, layout: &[u8], body: &mut Bytes) -> Option<()> {
        let mut rest = layout;
        while let Some((symbol, tail)) = rest.split_first() {
            rest = tail;
            match symbol {
                b'b' => skip(body, 1)?,
                b's' => skip(body, 2)?,
                b'i' => skip(body, 4)?,
                b'l' => skip(body, 8)?,
                b'u' => skip(body, 16)?,
                b'S' => {
                    let length = self.length(body, true)?;
                    skip(body, length)?;
                }
                b'B' => {
                    let length = self.length(body, false)?;
                    skip(body, length)?;
                }
                b'[' | b'{' => {
                    let (items, after) = split_group(tail)?;
                    self.list(items, *symbol == b'{', body)?;
                    rest = after;
                }
                _ => {}
            }
        }
        Some(())
    }

    fn list(self, items: &[u8], structures: bool, body: &mut Bytes) -> Option<()> {
        let count = self.length(body, false)?;
        // Every item has at least one byte.
        if count > body.len() {
            return None;
        }
        for _ in 0..count {
            self.fields(items, body)?;
            if structures && self.flexible {
                skip_tags(body)?;
            }
        }
        Some(())
    }

    /// A length; null is 0.
    fn length(self, body: &mut Bytes, short: bool) -> Option<usize> {
        let length = if self.flexible {
            i64::from(get_unsigned(body)?) - 1
        } else if short {
            i64::from(body.try_get_i16().ok()?)
        } else {
            i64::from(body.try_get_i32().ok()?)
        };
        match length {
            -1 => Some(0),
            length => usize::try_from(length).ok(),
        }
    }
}

fn skip(body: &mut Bytes, bytes: usize) -> Option<()> {
    (bytes <= body.len()).then(|| body.advance(bytes))
}

fn skip_tags(body: &mut Bytes) -> Option<()> {
    for _ in 0..get_unsigned(body)? {
        get_unsigned(body)?;
        let length = usize::try_from(get_unsigned(body)?).ok()?;
        skip(body, length)?;
    }
    Some(())
}

fn get_unsigned(body: &mut Bytes) -> Option<u32> {
    let mut value = 0_u32;
    for shift in (0..35).step_by(7) {
        let byte = body.try_get_u8().ok()?;
        value |= u32::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// What stands up to the bracket that closes the group, and what follows it.
fn split_group(layout: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut depth = 1_usize;
    let end = layout.iter().position(|symbol| {
        match symbol {
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth -= 1,
            _ => {}
        }
        depth == 0
    })?;
    let (items, after) = layout.split_at_checked(end)?;
    Some((items, after.get(1..)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_is_sound_and_what_is_only_announced_is_not() {
        // A list of two structures of a text and a list of numbers, in both encodings.
        let plain = [
            0, 0, 0, 2, 0, 1, b'a', 0, 0, 0, 1, 0, 0, 0, 9, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
        ];
        let flexible = [3, 2, b'a', 2, 0, 0, 0, 9, 0, 0, 0, 1, 5, 2, 7, 7];
        for (body, is_flexible) in [(&plain[..], false), (&flexible[..], true)] {
            let sound =
                |body: &[u8]| is_sound("{S [i]}", is_flexible, &Bytes::copy_from_slice(body));
            assert!(sound(body));
            assert!((0..body.len()).all(|cut| !sound(&body[..cut])));
        }
        let huge = [0x7f, 0xff, 0xff, 0xff, 0];
        assert!(!is_sound("[b]", false, &Bytes::copy_from_slice(&huge)));
        let huge = [0xff, 0xff, 0xff, 0xff, 7];
        assert!(!is_sound("{S}", true, &Bytes::copy_from_slice(&huge)));
    }
}
