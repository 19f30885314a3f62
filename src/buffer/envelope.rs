//! The wrapper around every blob in the database: what it is, how long it is, and whether it is still what was written. Its
//! layout stands in the [specification](super).
//!
//! Opening never panics, whatever the bytes are; a length above [`MAX_RAW_BYTES`] is refused before memory is taken.

use zstd::bulk::{Compressor, Decompressor};

use super::limits::{CHUNK_RAW_BYTES, MAX_RAW_BYTES};

const VERSION: u8 = 1;
const CODEC_NONE: u8 = 0;
const CODEC_ZSTD: u8 = 1;
const HEAD_BYTES: usize = 10;
const CHECKED_HEAD_BYTES: usize = 6;

/// zstd level 1: higher levels gain nothing on readings (measured).
const ZSTD_LEVEL: i32 = 1;

/// Why a blob cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Damage {
    /// Shorter than the head.
    #[error("{0} bytes are too short")]
    Short(usize),
    /// The bytes changed since they were written.
    #[error("the checksum is {found:08x} and should be {written:08x}")]
    Checksum { found: u32, written: u32 },
    /// A newer Tidegate wrote it.
    #[error("this version does not know format {version} with codec {codec}")]
    Unknown { version: u8, codec: u8 },
    /// Announces more than any event can hold.
    #[error("the length {0} is above the limit")]
    TooLong(u64),
    /// zstd refuses it.
    #[error("it cannot be decompressed: {0}")]
    Zstd(String),
    /// Not as long as announced.
    #[error("the length is {found} and should be {announced}")]
    Length { found: usize, announced: usize },
    /// What is inside is not what it should be.
    #[error("{0}")]
    Content(String),
}

impl From<crate::cbor::Error> for Damage {
    fn from(error: crate::cbor::Error) -> Self {
        Self::Content(error.to_string())
    }
}

/// Wraps. Its buffers and zstd's context are made once and used again.
#[derive(Default)]
pub(super) struct Sealer {
    compressor: Option<Compressor<'static>>,
    packed: Vec<u8>,
    body: Vec<u8>,
}

impl Sealer {
    /// Wraps `raw`; `None` when it is longer than [`MAX_RAW_BYTES`]. What zstd cannot shrink is stored as it is.
    pub(super) fn seal(&mut self, raw: &[u8], compress: bool) -> Option<&[u8]> {
        if raw.len() > MAX_RAW_BYTES {
            return None;
        }
        let raw_len = u32::try_from(raw.len()).ok()?;
        self.body.shrink_to(CHUNK_RAW_BYTES);
        self.packed.shrink_to(zstd::zstd_safe::compress_bound(CHUNK_RAW_BYTES));
        let packed = compress && self.pack(raw);
        let (codec, data) = if packed { (CODEC_ZSTD, self.packed.as_slice()) } else { (CODEC_NONE, raw) };
        let mut head = [VERSION, codec, 0, 0, 0, 0];
        for (to, from) in head.iter_mut().skip(2).zip(raw_len.to_le_bytes()) {
            *to = from;
        }
        let checksum = crc32c::crc32c_append(crc32c::crc32c(&head), data);
        self.body.clear();
        self.body.extend_from_slice(&head);
        self.body.extend_from_slice(&checksum.to_le_bytes());
        self.body.extend_from_slice(data);
        Some(&self.body)
    }

    /// True when `packed` now holds something shorter than `raw`.
    fn pack(&mut self, raw: &[u8]) -> bool {
        if self.compressor.is_none() {
            self.compressor = Compressor::new(ZSTD_LEVEL).ok();
        }
        let Some(compressor) = self.compressor.as_mut() else { return false };
        self.packed.clear();
        self.packed.reserve(zstd::zstd_safe::compress_bound(raw.len()));
        compressor.compress_to_buffer(raw, &mut self.packed).is_ok_and(|len| len < raw.len())
    }
}

/// Unwraps. zstd's context is made once and used again.
#[derive(Default)]
pub(super) struct Opener {
    decompressor: Option<Decompressor<'static>>,
}

impl Opener {
    /// What was wrapped, if it is still that.
    pub(super) fn open(&mut self, body: &[u8]) -> Result<Vec<u8>, Damage> {
        let (head, data) = body.split_first_chunk::<HEAD_BYTES>().ok_or(Damage::Short(body.len()))?;
        let &[version, codec, l0, l1, l2, l3, c0, c1, c2, c3] = head;
        let written = u32::from_le_bytes([c0, c1, c2, c3]);
        let checked = head.get(..CHECKED_HEAD_BYTES).unwrap_or_default();
        let found = crc32c::crc32c_append(crc32c::crc32c(checked), data);
        if found != written {
            return Err(Damage::Checksum { found, written });
        }
        let raw_len = u32::from_le_bytes([l0, l1, l2, l3]);
        let announced = usize::try_from(raw_len)
            .ok()
            .filter(|len| *len <= MAX_RAW_BYTES)
            .ok_or(Damage::TooLong(u64::from(raw_len)))?;
        let raw = match (version, codec) {
            (VERSION, CODEC_NONE) => data.to_vec(),
            (VERSION, CODEC_ZSTD) => self.unpack(data, announced)?,
            (version, codec) => return Err(Damage::Unknown { version, codec }),
        };
        if raw.len() != announced {
            return Err(Damage::Length { found: raw.len(), announced });
        }
        Ok(raw)
    }

    fn unpack(&mut self, data: &[u8], announced: usize) -> Result<Vec<u8>, Damage> {
        let decompressor = match &mut self.decompressor {
            Some(made) => made,
            none => none.insert(Decompressor::new().map_err(|e| Damage::Zstd(e.to_string()))?),
        };
        let mut raw = Vec::with_capacity(announced);
        decompressor.decompress_to_buffer(data, &mut raw).map_err(|e| Damage::Zstd(e.to_string()))?;
        Ok(raw)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_was_wrapped_comes_out_with_and_without_zstd() {
        let (mut sealer, mut opener) = (Sealer::default(), Opener::default());
        for raw in [Vec::new(), b"x".to_vec(), vec![7; 100_000], (0..=255).collect()] {
            for compress in [false, true] {
                let body = sealer.seal(&raw, compress).unwrap().to_vec();
                assert_eq!(opener.open(&body).unwrap(), raw);
            }
        }
        assert!(sealer.seal(&vec![7; 100_000], true).unwrap().len() < 200);
        let noise: Vec<u8> = (0..1000).map(|_| fastrand::u8(..)).collect();
        assert_eq!(sealer.seal(&noise, true).unwrap().len(), noise.len() + HEAD_BYTES);
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let body = Sealer::default().seal(br#"{"temperature":21.5,"temperature_2":21.5}"#, true).unwrap().to_vec();
        let mut opener = Opener::default();
        for bit in 0..body.len() * 8 {
            let mut damaged = body.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(matches!(opener.open(&damaged), Err(Damage::Checksum { .. })), "bit {bit}");
        }
        for len in 0..body.len() {
            assert!(opener.open(&body[..len]).is_err(), "cut to {len}");
        }
    }

    #[test]
    fn a_length_above_the_limit_is_refused_before_memory_is_taken() {
        let mut body = vec![VERSION, CODEC_ZSTD, 0xff, 0xff, 0xff, 0xff];
        let checksum = crc32c::crc32c(&body);
        body.extend_from_slice(&checksum.to_le_bytes());
        assert_eq!(Opener::default().open(&body), Err(Damage::TooLong(u64::from(u32::MAX))));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), right_sum in any::<bool>()) {
            if right_sum && bytes.len() >= HEAD_BYTES {
                bytes[0] = VERSION;
                bytes[1] %= 2;
                bytes[4] = 0;
                bytes[5] = 0;
                let sum = crc32c::crc32c_append(crc32c::crc32c(&bytes[..6]), &bytes[10..]);
                bytes[6..10].copy_from_slice(&sum.to_le_bytes());
            }
            drop(Opener::default().open(&bytes));
        }
    }
}
