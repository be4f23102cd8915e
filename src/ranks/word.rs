//! What a rank says to every other one once a second: that it lives, was asked to stop, has failed, or has left.
//! Depends on nothing. Promises that every word takes the same number of values in a message, and that a text
//! which is too long is cut between two characters.

/// Bytes of a word before its text: the kind, the length of the text, the exit code.
const HEAD: usize = 6;

/// The state of a rank, as its words say.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Word {
    /// It works.
    Alive,
    /// It was asked to stop.
    Stopping,
    Failed(Failure),
    /// It needs nothing any more.
    Left {
        /// Whether it has given up no exchange, whose messages could still be on their way.
        whole: bool,
    },
}

/// What a rank that has failed says.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Failure {
    /// Its error.
    pub text: String,
    /// The code with which it exits.
    pub code: u8,
}

impl Word {
    /// Values that a word takes in a message.
    pub const VALUES: usize = 1024;

    /// The word as values of a message.
    pub fn values(&self) -> Vec<f32> {
        let mut values = vec![0f32; Word::VALUES];
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut values);
        let (kind, text, code) = match self {
            Word::Alive => (0, "", 0),
            Word::Stopping => (4, "", 0),
            Word::Failed(Failure { text, code }) => (1, text.as_str(), *code),
            Word::Left { whole: true } => (2, "", 0),
            Word::Left { whole: false } => (3, "", 0),
        };
        let mut length = (bytes.len() - HEAD).min(text.len());
        while !text.is_char_boundary(length) {
            length -= 1;
        }
        bytes[0] = kind;
        bytes[1..5].copy_from_slice(&(length as u32).to_le_bytes());
        bytes[5] = code;
        bytes[HEAD..HEAD + length].copy_from_slice(&text.as_bytes()[..length]);
        values
    }

    /// The word that values of a message hold.
    pub fn read(values: &[f32]) -> Word {
        let bytes: &[u8] = bytemuck::cast_slice(values);
        let length = u32::from_le_bytes([bytes[1], bytes[2], bytes[3], bytes[4]]) as usize;
        let text = bytes.get(HEAD..HEAD + length);
        match bytes[0] {
            0 => Word::Alive,
            1 => Word::Failed(Failure {
                text: String::from_utf8_lossy(text.unwrap_or_default()).into_owned(),
                code: bytes[5],
            }),
            4 => Word::Stopping,
            kind => Word::Left { whole: kind == 2 },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_keep_their_text() {
        let failed = |text: &str, code| {
            let text = text.to_string();
            Word::Failed(Failure { text, code })
        };
        for word in [
            Word::Alive,
            Word::Stopping,
            Word::Left { whole: true },
            Word::Left { whole: false },
            failed("", 1),
            failed("a shard is damaged: ä", 2),
        ] {
            assert_eq!(Word::read(&word.values()), word);
        }
        let long = "ä".repeat(Word::VALUES * 4);
        let Word::Failed(read) = Word::read(&failed(&long, 2).values()) else {
            panic!("no failure");
        };
        assert!(long.starts_with(&read.text) && read.text.len() > Word::VALUES * 4 - 8);
    }
}
