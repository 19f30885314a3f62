//! The headers of a record as bytes, names included.
//!
//! rdkafka gives a header's name as `&str` and panics when it is not UTF-8 (0.39: `to_str().unwrap()` in
//! `Headers::try_get`). Kafka does not ask for UTF-8, and whoever reads a topic reads strangers' records too: one of them
//! ended `tidegate audit` of the packages, which abort at a panic. There is no way around it through rdkafka's safe
//! functions, so these few lines ask librdkafka themselves. They are a crate of their own because the package `tidegate`
//! forbids unsafe code, and nothing else may come in here. *When rdkafka gives names as bytes, this can go.*

use std::ffi::{CStr, c_void};
use std::ptr;
use std::slice;

use rdkafka::bindings::{rd_kafka_header_get_all, rd_kafka_headers_t, rd_kafka_message_headers, rd_kafka_resp_err_t};
use rdkafka::message::BorrowedMessage;

/// One header: name and value. A value that is null is not an empty one.
pub type Header<'m> = (&'m [u8], Option<&'m [u8]>);

/// The headers of a record, in their order. None when it has none, and when librdkafka cannot parse them.
pub fn of<'m>(message: &'m BorrowedMessage<'_>) -> impl Iterator<Item = Header<'m>> + use<'m> {
    let mut headers: *mut rd_kafka_headers_t = ptr::null_mut();
    // SAFETY: `message.ptr()` points to a message that lives as long as `message`, and `headers` to room for a pointer.
    // librdkafka parses the headers at the first call and keeps them in the message. Consumers hand a message to one
    // thread; rdkafka's own `Message::headers` makes the same call behind `&self`.
    let error = unsafe { rd_kafka_message_headers(message.ptr(), &raw mut headers) };
    let found = error == rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR && !headers.is_null();
    (0..).map_while(move |index| {
        if !found {
            return None;
        }
        // SAFETY: the headers are owned by the message, nobody changes them, and 'm borrows the message.
        unsafe { header(headers, index) }
    })
}

/// One of them; `None` behind the last.
///
/// # Safety
/// `headers` are librdkafka's, and they live, unchanged, for 'm.
unsafe fn header<'m>(headers: *const rd_kafka_headers_t, index: usize) -> Option<Header<'m>> {
    let mut name = ptr::null();
    let mut value: *const c_void = ptr::null();
    let mut size = 0_usize;
    // SAFETY: the caller's word for `headers`; the others point to room for what is written to them.
    let error = unsafe { rd_kafka_header_get_all(headers, index, &raw mut name, &raw mut value, &raw mut size) };
    if error != rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR || name.is_null() {
        return None;
    }
    // SAFETY: librdkafka ends each name with a zero byte; a name that holds one itself ends there, as for all C programs.
    let name = unsafe { CStr::from_ptr(name) }.to_bytes();
    // SAFETY: librdkafka says where the value is and how long; it lives as long as the headers.
    let value = (!value.is_null()).then(|| unsafe { slice::from_raw_parts(value.cast::<u8>(), size) });
    Some((name, value))
}

#[cfg(test)]
mod tests {
    use rdkafka::bindings::{rd_kafka_header_add, rd_kafka_headers_destroy, rd_kafka_headers_new};

    use super::*;

    #[test]
    fn names_are_bytes_and_null_is_not_empty() {
        // SAFETY: the headers are made, filled and destroyed here, and not used afterwards.
        unsafe {
            let headers = rd_kafka_headers_new(4);
            for (name, value) in [(&b"\xff\xfe"[..], Some(&b"1"[..])), (b"", Some(b"")), (b"tidegate-id", None)] {
                let (at, len) = value.map_or((ptr::null(), 0), |value| (value.as_ptr(), value.len()));
                let len = isize::try_from(len).unwrap();
                rd_kafka_header_add(
                    headers,
                    name.as_ptr().cast(),
                    isize::try_from(name.len()).unwrap(),
                    at.cast(),
                    len,
                );
            }
            let all: Vec<Header<'_>> = (0..).map_while(|index| header(headers, index)).collect();
            assert_eq!(all, [(&b"\xff\xfe"[..], Some(&b"1"[..])), (b"", Some(b"")), (b"tidegate-id", None)]);
            rd_kafka_headers_destroy(headers);
        }
    }
}
