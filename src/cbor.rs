//! CBOR, and the only file that names `serde_cbor`.
//!
//! The crate is archived (RUSTSEC-2021-0127: unmaintained, no known flaw). It is used to encode, and to decode only
//! bytes that Tidegate wrote itself and whose CRC was checked, into fixed tuples, never into an open-ended value.
//! Its output for these tuples equals ciborium's byte for byte (`buffer/chunk.rs` has the test), so another crate
//! needs no new format.

use serde::{Deserialize, Serialize};

/// Encoding or decoding failed.
#[derive(Debug, thiserror::Error)]
#[error("CBOR: {0}")]
pub(crate) struct Error(#[from] serde_cbor::Error);

/// Appends one item.
///
/// # Errors
/// Only when the value's own `Serialize` fails.
pub(crate) fn append<T: Serialize>(value: &T, to: &mut Vec<u8>) -> Result<(), Error> {
    Ok(serde_cbor::to_writer(to, value)?)
}

/// Reads one item that fills the whole slice.
///
/// # Errors
/// When it is not that item, or bytes are left over.
pub(crate) fn read<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, Error> {
    Ok(serde_cbor::from_slice(bytes)?)
}

/// Reads a CBOR sequence (RFC 8742): items behind one another, until the bytes end.
pub(crate) fn read_sequence<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> impl Iterator<Item = Result<T, Error>> {
    serde_cbor::Deserializer::from_slice(bytes).into_iter::<T>().map(|item| Ok(item?))
}

/// A byte string; serde takes a plain `&[u8]` for a list of numbers when it writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub(crate) struct Blob<'a>(pub(crate) &'a [u8]);

impl Serialize for Blob<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0)
    }
}
