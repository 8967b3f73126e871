//! A packet's header (virtio 1.2 §5.10.6).

/// Bytes of a header.
pub(crate) const HEADER_BYTES: usize = 44;

/// The largest payload that Linux takes in one packet, in bytes.
pub(crate) const MAX_PAYLOAD: usize = 64 << 10;

/// The host's context id, well known.
pub(crate) const HOST_CID: u64 = 2;

/// VIRTIO_VSOCK_TYPE_STREAM.
pub(crate) const TYPE_STREAM: u16 = 1;

/// The sender of a SHUTDOWN will not receive any more.
pub(crate) const SHUTDOWN_RECEIVE: u32 = 1;
/// The sender of a SHUTDOWN will not send any more.
pub(crate) const SHUTDOWN_SEND: u32 = 2;

/// What a packet is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub(crate) enum Op {
    Request = 1,
    Response = 2,
    Reset = 3,
    Shutdown = 4,
    Data = 5,
    CreditUpdate = 6,
    CreditRequest = 7,
}

impl Op {
    fn number(self) -> u16 {
        match self {
            Self::Request => 1,
            Self::Response => 2,
            Self::Reset => 3,
            Self::Shutdown => 4,
            Self::Data => 5,
            Self::CreditUpdate => 6,
            Self::CreditRequest => 7,
        }
    }

    pub(crate) fn from_number(number: u16) -> Option<Self> {
        [
            Self::Request,
            Self::Response,
            Self::Reset,
            Self::Shutdown,
            Self::Data,
            Self::CreditUpdate,
            Self::CreditRequest,
        ]
        .into_iter()
        .find(|op| op.number() == number)
    }
}

/// A header as it is in guest memory, in this machine's numbers. Nothing in it
/// is checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) src_cid: u64,
    pub(crate) dst_cid: u64,
    pub(crate) src_port: u32,
    pub(crate) dst_port: u32,
    pub(crate) len: u32,
    pub(crate) kind: u16,
    pub(crate) op: u16,
    pub(crate) flags: u32,
    pub(crate) buf_alloc: u32,
    pub(crate) fwd_cnt: u32,
}

impl Header {
    /// A header without data, with the type of every packet that is sent.
    pub(crate) fn stream(op: Op) -> Self {
        Self {
            kind: TYPE_STREAM,
            op: op.number(),
            ..Self::default()
        }
    }

    /// The RST that answers a packet for which there is no connection.
    pub(crate) fn reset_to(packet: &Self) -> Self {
        Self {
            src_cid: packet.dst_cid,
            dst_cid: packet.src_cid,
            src_port: packet.dst_port,
            dst_port: packet.src_port,
            ..Self::stream(Op::Reset)
        }
    }

    pub(crate) fn decode(bytes: &[u8; HEADER_BYTES]) -> Self {
        let mut rest = &bytes[..];
        Self {
            src_cid: u64::from_le_bytes(take(&mut rest)),
            dst_cid: u64::from_le_bytes(take(&mut rest)),
            src_port: u32::from_le_bytes(take(&mut rest)),
            dst_port: u32::from_le_bytes(take(&mut rest)),
            len: u32::from_le_bytes(take(&mut rest)),
            kind: u16::from_le_bytes(take(&mut rest)),
            op: u16::from_le_bytes(take(&mut rest)),
            flags: u32::from_le_bytes(take(&mut rest)),
            buf_alloc: u32::from_le_bytes(take(&mut rest)),
            fwd_cnt: u32::from_le_bytes(take(&mut rest)),
        }
    }

    pub(crate) fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        let mut rest = &mut bytes[..];
        put(&mut rest, self.src_cid.to_le_bytes());
        put(&mut rest, self.dst_cid.to_le_bytes());
        put(&mut rest, self.src_port.to_le_bytes());
        put(&mut rest, self.dst_port.to_le_bytes());
        put(&mut rest, self.len.to_le_bytes());
        put(&mut rest, self.kind.to_le_bytes());
        put(&mut rest, self.op.to_le_bytes());
        put(&mut rest, self.flags.to_le_bytes());
        put(&mut rest, self.buf_alloc.to_le_bytes());
        put(&mut rest, self.fwd_cnt.to_le_bytes());
        bytes
    }
}

/// The next field; the fields' sizes add up to a header's.
fn take<const N: usize>(rest: &mut &[u8]) -> [u8; N] {
    let mut field = [0; N];
    if let Some((head, tail)) = rest.split_first_chunk() {
        field = *head;
        *rest = tail;
    }
    field
}

fn put<const N: usize>(rest: &mut &mut [u8], field: [u8; N]) {
    if let Some((head, tail)) = std::mem::take(rest).split_first_chunk_mut() {
        *head = field;
        *rest = tail;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_header_is_laid_out_as_in_the_specification() {
        let header = Header {
            src_cid: 0x0807_0605_0403_0201,
            dst_cid: 2,
            src_port: 0x1413_1211,
            dst_port: 1024,
            len: 0x1c1b_1a19,
            kind: TYPE_STREAM,
            op: Op::Data.number(),
            flags: 3,
            buf_alloc: 0x2827_2625,
            fwd_cnt: 0x2c2b_2a29,
        };
        let bytes = header.encode();
        assert_eq!(bytes[..8], [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(bytes[16..20], [0x11, 0x12, 0x13, 0x14]);
        assert_eq!(bytes[24..28], [0x19, 0x1a, 0x1b, 0x1c]);
        assert_eq!(bytes[28..32], [1, 0, 5, 0]);
        assert_eq!(bytes[40..], [0x29, 0x2a, 0x2b, 0x2c]);
    }

    proptest! {
        #[test]
        fn headers_come_back_as_they_were(bytes in prop::array::uniform32(any::<u8>()),
                                          tail in prop::array::uniform12(any::<u8>())) {
            let mut all = [0; HEADER_BYTES];
            all[..32].copy_from_slice(&bytes);
            all[32..].copy_from_slice(&tail);
            prop_assert_eq!(Header::decode(&all).encode(), all);
        }
    }
}
