//! The id of a rule in 16 bytes: a million rules have a million ids, and most of them are short.
//!
//! Up to 14 bytes stand in the id itself, and whoever looks for a rule reads no other memory. Up to 40 bytes, which
//! the text form of a UUID has, are one allocation; longer ones are two.

/// Bytes that stand in the id itself.
const INLINE_BYTES: usize = 14;
/// Bytes of an allocation of one size: with the allocator's own, 48.
const MIDDLE_BYTES: usize = 40;

/// An id. The bytes are those of a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleId(Form);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Form {
    /// Length and bytes.
    Inline(u8, [u8; INLINE_BYTES]),
    Middle(u8, Box<[u8; MIDDLE_BYTES]>),
    Long(Box<Box<str>>),
}

impl RuleId {
    /// The bytes of its text.
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        match &self.0 {
            Form::Inline(length, bytes) => &bytes[..usize::from(*length)],
            Form::Middle(length, bytes) => &bytes[..usize::from(*length)],
            Form::Long(text) => text.as_bytes(),
        }
    }

    /// Its text.
    pub fn text(&self) -> &str {
        match &self.0 {
            Form::Long(text) => text,
            // Only texts come in.
            Form::Inline(..) | Form::Middle(..) => std::str::from_utf8(self.bytes()).unwrap_or_default(),
        }
    }
}

impl From<&str> for RuleId {
    fn from(text: &str) -> RuleId {
        fn padded<const N: usize>(text: &str) -> (u8, [u8; N]) {
            let mut bytes = [0; N];
            bytes[..text.len()].copy_from_slice(text.as_bytes());
            (text.len() as u8, bytes)
        }
        if text.len() <= INLINE_BYTES {
            let (length, bytes) = padded(text);
            RuleId(Form::Inline(length, bytes))
        } else if text.len() <= MIDDLE_BYTES {
            let (length, bytes) = padded(text);
            RuleId(Form::Middle(length, Box::new(bytes)))
        } else {
            RuleId(Form::Long(Box::new(text.into())))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_every_length_come_back() {
        assert_eq!(size_of::<RuleId>(), 16);
        for length in 0..100 {
            let text: String = "äb0-".chars().cycle().take(length).collect();
            let id = RuleId::from(text.as_str());
            assert_eq!((id.text(), id.bytes()), (text.as_str(), text.as_bytes()));
            assert_eq!(id.clone(), id);
        }
    }
}
