//! Kafka's protocol, as far as a link needs it that loses, delays or answers single requests: where a request ends, which
//! one it is, and a batch on its way (Produce, versions 9 to 12: what librdkafka speaks).

/// A request by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i16)]
pub enum Request {
    Produce = 0,
    FindCoordinator = 10,
    InitProducerId = 22,
    AddPartitionsToTxn = 24,
    EndTxn = 26,
}

/// Behind its length, a request begins with its number.
pub fn is(frame: &[u8], request: Request) -> bool {
    frame.get(4..6) == Some(&(request as i16).to_be_bytes()[..])
}

/// Requests or answers: a length and so many bytes. What does not look like that is passed on as it is.
pub struct Frames {
    pub is_kafka: bool,
    pub rest: Vec<u8>,
}

impl Frames {
    pub fn feed(&mut self, bytes: &[u8]) -> Vec<Vec<u8>> {
        self.rest.extend_from_slice(bytes);
        let mut whole = Vec::new();
        while let Some(head) = self.rest.first_chunk::<4>() {
            let length = u32::from_be_bytes(*head) as usize + 4;
            if length > 100 << 20 {
                self.is_kafka = false;
                break;
            }
            if self.rest.len() < length {
                break;
            }
            let next = self.rest.split_off(length);
            whole.push(std::mem::replace(&mut self.rest, next));
        }
        whole
    }
}

/// A Produce request with one batch.
#[derive(Debug, PartialEq, Eq)]
pub struct Batch<'a> {
    correlation: i32,
    pub topic: &'a str,
    partition: i32,
    /// As it lies in Kafka's log: 61 bytes of head, then records.
    pub records: &'a [u8],
}

impl<'a> Batch<'a> {
    /// Strict: whatever is not as it was when this was written is an error, in words.
    pub fn read(frame: &'a [u8]) -> Result<Self, String> {
        let mut fields = Fields(frame.get(4..).unwrap_or_default());
        let number = fields.i16()?;
        let version = fields.i16()?;
        if number != Request::Produce as i16 || !(9..=12).contains(&version) {
            return Err(format!("request {number} version {version}; known is Produce, versions 9 to 12"));
        }
        let correlation = fields.i32()?;
        let client_id = usize::try_from(fields.i16()?).unwrap_or(0);
        fields.take(client_id)?;
        fields.no_tags()?;
        let _transactional_id = fields.compact()?;
        fields.take(2 + 4)?; // acks, time-out
        fields.one("topic")?;
        let topic = std::str::from_utf8(fields.compact()?).map_err(|error| format!("a topic's name: {error}"))?;
        fields.one("partition")?;
        let partition = fields.i32()?;
        let records = fields.compact()?;
        for _ in ["partition", "topic", "request"] {
            fields.no_tags()?;
        }
        match fields.0.len() {
            0 if records.len() > 61 => Ok(Self { correlation, topic, partition, records }),
            0 => Err(format!("a batch of {} bytes", records.len())),
            more => Err(format!("{more} bytes behind a request")),
        }
    }

    /// How many records it bears.
    pub fn count(&self) -> usize {
        let last_offset_delta = self.records.get(23..27).and_then(|bytes| bytes.first_chunk::<4>());
        last_offset_delta.map_or(0, |bytes| i32::from_be_bytes(*bytes) as usize + 1)
    }

    /// Does it hold these bytes? Only what is not compressed can be found.
    pub fn holds(&self, bytes: &[u8]) -> bool {
        bytes.is_empty() || self.records.windows(bytes.len()).any(|window| window == bytes)
    }

    /// What a broker answers that refuses it, with its length.
    pub fn refused(&self, error: i16) -> Vec<u8> {
        let mut answer = self.correlation.to_be_bytes().to_vec();
        answer.push(0); // no tags in the head
        answer.push(2); // one topic
        answer.push(self.topic.len() as u8 + 1);
        answer.extend(self.topic.as_bytes());
        answer.push(2); // one partition
        answer.extend(self.partition.to_be_bytes());
        answer.extend(error.to_be_bytes());
        // Base offset, time of appending, first offset of the log: unknown.
        answer.extend([0xff; 3 * 8]);
        answer.extend([1, 0]); // no single records to blame, no text
        answer.extend([0, 0]); // no tags of the partition, of the topic
        answer.extend([0; 4]); // no throttling
        answer.push(0);
        let mut frame = (answer.len() as u32).to_be_bytes().to_vec();
        frame.extend(answer);
        frame
    }
}

/// What is left of a request.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], String> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or("a request ends too early")?;
        self.0 = rest;
        Ok(taken)
    }

    fn i16(&mut self) -> Result<i16, String> {
        self.take(2).map(|bytes| i16::from_be_bytes([bytes[0], bytes[1]]))
    }

    fn i32(&mut self) -> Result<i32, String> {
        self.take(4).map(|bytes| i32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    /// Seven bits a byte, the lowest first.
    fn varint(&mut self) -> Result<usize, String> {
        let mut value = 0;
        for shift in [0, 7, 14, 21, 28] {
            let byte = self.take(1)?[0];
            value |= usize::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err("a number of more than five bytes".to_owned())
    }

    /// Length and one, then so many bytes; nothing for none.
    fn compact(&mut self) -> Result<&'a [u8], String> {
        let length = self.varint()?.saturating_sub(1);
        self.take(length)
    }

    fn one(&mut self, what: &str) -> Result<(), String> {
        match self.varint()? {
            2 => Ok(()),
            other => Err(format!("{} of {what}s in a request; known is one", other as i64 - 1)),
        }
    }

    fn no_tags(&mut self) -> Result<(), String> {
        if self.varint()? == 0 { Ok(()) } else { Err("tagged fields in a request".to_owned()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(version: i16, topics: u8) -> Vec<u8> {
        let mut body = vec![0, 0];
        body.extend(version.to_be_bytes());
        body.extend(7_i32.to_be_bytes());
        body.extend([0, 2, b'm', b'e', 0, 0, 0xff, 0xff, 0, 0, 0, 9, topics + 1, 2, b't', 2]);
        body.extend(3_i32.to_be_bytes());
        let mut batch = [vec![0; 61], b"records".to_vec()].concat();
        batch[26] = 4;
        body.push(batch.len() as u8 + 1);
        body.extend(batch);
        body.extend([0, 0, 0]);
        [(body.len() as u32).to_be_bytes().to_vec(), body].concat()
    }

    #[test]
    fn a_batch_is_read_and_refused() {
        let frame = request(10, 1);
        let batch = Batch::read(&frame).unwrap();
        assert_eq!((batch.correlation, batch.topic, batch.partition, batch.count()), (7, "t", 3, 5));
        assert!(batch.holds(b"record") && !batch.holds(b"else"));
        let answer = batch.refused(-1);
        assert_eq!(answer.len(), 4 + i32::from_be_bytes(answer[..4].try_into().unwrap()) as usize);
        assert_eq!(answer[4..8], [0, 0, 0, 7]);
        assert_eq!(answer[12..18], [2, 0, 0, 0, 3, 0xff]);
    }

    #[test]
    fn what_is_not_as_expected_is_said() {
        for (frame, why) in [
            (request(8, 1), "version 8"),
            (request(10, 2), "2 of topics"),
            (request(10, 1)[..40].to_vec(), "too early"),
            ([request(10, 1), vec![0]].concat(), "behind a request"),
        ] {
            let found = Batch::read(&frame).unwrap_err();
            assert!(found.contains(why), "{found}");
        }
    }
}
