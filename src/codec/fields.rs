//! The fields of an encoded message, one after the other.

use crate::text;

/// The bytes are not a protobuf message, or not one of this type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Malformed;

/// How deep groups and messages may lie in each other: prost's limit.
const MAX_DEPTH: u32 = 100;

/// Reads the fields of a message.
#[derive(Debug)]
pub(crate) struct Fields<'a> {
    rest: &'a [u8],
    depth: u32,
}

/// The content of a field. Its wire type decides which of these it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content<'a> {
    Varint(u64),
    /// A string, bytes, a message, or numbers that are packed.
    Bytes(&'a [u8]),
    /// A number of fixed length, or a group. No message of ours has such a field.
    Other,
}

impl<'a> Fields<'a> {
    /// The fields of a whole message.
    pub(crate) fn new(message: &'a [u8]) -> Self {
        Self {
            rest: message,
            depth: MAX_DEPTH,
        }
    }

    /// The fields of a message that is the content of a field.
    pub(crate) fn of(&self, content: Content<'a>) -> Result<Self, Malformed> {
        Ok(Self {
            rest: content.bytes()?,
            depth: self.depth.checked_sub(1).ok_or(Malformed)?,
        })
    }

    /// The next field: its number and its content. `None` after the last one.
    #[inline]
    pub(crate) fn next(&mut self) -> Result<Option<(u32, Content<'a>)>, Malformed> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let (number, wire_type) = self.key()?;
        Ok(Some((number, self.content(number, wire_type, self.depth)?)))
    }

    fn key(&mut self) -> Result<(u32, u8), Malformed> {
        let key = u32::try_from(self.varint()?).map_err(|_| Malformed)?;
        match key >> 3 {
            0 => Err(Malformed),
            number => Ok((number, (key & 7) as u8)),
        }
    }

    #[inline]
    fn content(
        &mut self,
        number: u32,
        wire_type: u8,
        depth: u32,
    ) -> Result<Content<'a>, Malformed> {
        match wire_type {
            0 => Ok(Content::Varint(self.varint()?)),
            2 => {
                let length = usize::try_from(self.varint()?).map_err(|_| Malformed)?;
                Ok(Content::Bytes(self.take(length)?))
            }
            1 => self.take(8).map(|_| Content::Other),
            5 => self.take(4).map(|_| Content::Other),
            3 => self.skip_group(number, depth).map(|()| Content::Other),
            _ => Err(Malformed),
        }
    }

    fn skip_group(&mut self, group: u32, depth: u32) -> Result<(), Malformed> {
        const END: u8 = 4;
        loop {
            match self.key()? {
                (number, END) if number == group => return Ok(()),
                (_, END) => return Err(Malformed),
                (number, wire_type) => {
                    let depth = depth.checked_sub(1).filter(|depth| *depth > 0);
                    self.content(number, wire_type, depth.ok_or(Malformed)?)?;
                }
            }
        }
    }

    #[inline]
    fn take(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(Malformed)?;
        self.rest = rest;
        Ok(taken)
    }

    #[inline]
    fn varint(&mut self) -> Result<u64, Malformed> {
        match self.rest {
            [byte @ ..0x80, rest @ ..] => {
                self.rest = rest;
                Ok(u64::from(*byte))
            }
            _ => self.long_varint(),
        }
    }

    fn long_varint(&mut self) -> Result<u64, Malformed> {
        let mut value = 0;
        for (at, byte) in self.rest.iter().take(10).enumerate() {
            // Ten bytes have room for 70 bits.
            if at == 9 && *byte > 1 {
                return Err(Malformed);
            }
            value |= u64::from(byte & 0x7f) << (7 * at);
            if *byte < 0x80 {
                self.rest = &self.rest[at + 1..];
                return Ok(value);
            }
        }
        Err(Malformed)
    }
}

impl<'a> Content<'a> {
    #[inline]
    pub(crate) fn varint(self) -> Result<u64, Malformed> {
        match self {
            Self::Varint(value) => Ok(value),
            Self::Bytes(_) | Self::Other => Err(Malformed),
        }
    }

    #[inline]
    pub(crate) fn bytes(self) -> Result<&'a [u8], Malformed> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            Self::Varint(_) | Self::Other => Err(Malformed),
        }
    }

    #[inline]
    pub(crate) fn text(self) -> Result<&'a str, Malformed> {
        text::from_utf8(self.bytes()?).ok_or(Malformed)
    }

    /// A varint of type int64: its bits are those of the number.
    #[inline]
    pub(crate) fn int64(self) -> Result<i64, Malformed> {
        Ok(self.varint()?.cast_signed())
    }
}
