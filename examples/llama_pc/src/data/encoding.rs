//! How tokens are stored in a file.

/// The type of a file's tokens, little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    I64,
}

impl Encoding {
    /// Bytes of a token.
    pub const fn width(self) -> usize {
        match self {
            Self::U8 | Self::I8 => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 => 4,
            Self::I64 => 8,
        }
    }

    /// The tokens in the bytes.
    pub fn decode(self, bytes: &[u8]) -> Box<dyn Iterator<Item = i64> + '_> {
        match self {
            Self::U8 => Box::new(bytes.iter().map(|byte| i64::from(*byte))),
            Self::I8 => Box::new(bytes.iter().map(|byte| i64::from(*byte as i8))),
            Self::U16 => Box::new(bytes.as_chunks().0.iter().map(|b| i64::from(u16::from_le_bytes(*b)))),
            Self::I16 => Box::new(bytes.as_chunks().0.iter().map(|b| i64::from(i16::from_le_bytes(*b)))),
            Self::U32 => Box::new(bytes.as_chunks().0.iter().map(|b| i64::from(u32::from_le_bytes(*b)))),
            Self::I32 => Box::new(bytes.as_chunks().0.iter().map(|b| i64::from(i32::from_le_bytes(*b)))),
            Self::I64 => Box::new(bytes.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b))),
        }
    }
}

/// A contiguous range of tokens in a file.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    /// The number of its first token in the shard.
    pub first: usize,
    /// Where that lies, in bytes.
    pub start: usize,
}
