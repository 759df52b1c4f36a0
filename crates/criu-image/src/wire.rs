//! Protobuf's wire format, as far as it must be known without a schema.

/// Whether a message has a field with a number above `highest` on its top level.
///
/// Tells images of a newer CRIU from ones we know in full. The bytes are taken to be a valid
/// message; on others the answer is `true`, since they are nothing that we know.
pub(crate) fn has_field_above(mut bytes: &[u8], highest: u64) -> bool {
    while !bytes.is_empty() {
        match skip_field(&mut bytes) {
            Some(number) if number <= highest => {}
            _ => return true,
        }
    }
    false
}

fn skip_field(bytes: &mut &[u8]) -> Option<u64> {
    let key = varint(bytes)?;
    let length = match key & 7 {
        0 => {
            varint(bytes)?;
            0
        }
        1 => 8,
        2 => usize::try_from(varint(bytes)?).ok()?,
        5 => 4,
        // Groups: CRIU has none.
        _ => return None,
    };
    *bytes = bytes.get(length..)?;
    Some(key >> 3)
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields() {
        assert!(!has_field_above(&[], 0));
        // Field 1 varint 300, field 2 of 2 bytes, field 3 of 4 bytes, field 4 of 8 bytes.
        let message = [
            0x08, 0xac, 0x02, 0x12, 2, 0xff, 0xff, 0x1d, 0, 0, 0, 0, 0x21, 0, 0, 0, 0, 0, 0, 0, 0,
        ];
        assert!(!has_field_above(&message, 4));
        assert!(has_field_above(&message, 3));
        for end in [1, 2, 4, 5, 8, 13, message.len() - 1] {
            assert!(has_field_above(&message[..end], 4), "{end}");
        }
        assert!(has_field_above(&[0xff; 16], 4));
    }
}
