//! What DPDK's af_packet driver leaves undone, or does in a way that is wrong for us.
//!
//! Ring geometry: the driver lays frames end to end and ignores that the kernel starts each block anew, so blocks must
//! be whole numbers of frames. Its default frame of 2048 bytes cuts longer packets off without a word, so the frame
//! follows from the MTU. Promiscuity: the driver sets the interface's flag and never takes it back; a membership on a
//! socket of our own is counted by the kernel and ends with it. Echo: the driver also receives what the host itself
//! sends on the interface, as if it had come from the wire; a filter on its sockets keeps that out.

use std::fs;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use forebay_dpdk_sys as sys;

use crate::netdev;

/// Ethernet header and two VLAN tags.
const LINK_HEADER_BYTES: u32 = 14 + 4 + 4;

/// Where the kernel puts the packet in a frame: TPACKET2_HDRLEN (52) and 16 for the link header, aligned to 16, less
/// the 14 of an Ethernet header.
const FRAME_HEADER_BYTES: u32 = 80 - 14;

/// The driver's idea of the space before the packet, TPACKET2_HDRLEN less `struct sockaddr_ll`; it wants buffers that
/// hold the frame less this.
const DRIVER_HEADER_BYTES: u32 = 32;

/// Frames come in steps of this: then at most four make a whole number of pages.
const FRAME_STEP_BYTES: u32 = 1024;

const PAGE_BYTES: u32 = 4096;

/// The geometry of a packet ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ring {
    pub frame_bytes: u32,
    pub block_bytes: u32,
    pub frames: u32,
}

impl Ring {
    /// A ring for packets of this MTU, of at least `frames` frames.
    pub(crate) fn new(mtu: u16, frames: u16) -> Self {
        let longest = u32::from(mtu) + LINK_HEADER_BYTES + FRAME_HEADER_BYTES;
        let frame_bytes = longest.next_multiple_of(FRAME_STEP_BYTES).max(2 * FRAME_STEP_BYTES);
        let mut block_bytes = frame_bytes;
        while !block_bytes.is_multiple_of(PAGE_BYTES) {
            block_bytes += frame_bytes;
        }
        let per_block = block_bytes / frame_bytes;
        Self { frame_bytes, block_bytes, frames: u32::from(frames.max(1)).next_multiple_of(per_block) }
    }

    /// Bytes of data that the driver wants each packet buffer to hold.
    pub(crate) fn buffer_bytes(self) -> u32 {
        self.frame_bytes - DRIVER_HEADER_BYTES
    }
}

/// Keeps an interface promiscuous, or deaf to unicast for others but open to all multicast, as long as it lives.
#[derive(Debug)]
pub(crate) struct Membership {
    _socket: OwnedFd,
}

impl Membership {
    pub(crate) fn join(index: u32, promiscuous: bool) -> io::Result<Self> {
        // Protocol 0: the socket itself receives nothing.
        let socket = netdev::socket(libc::AF_PACKET, libc::SOCK_RAW)?;
        let kind = if promiscuous { libc::PACKET_MR_PROMISC } else { libc::PACKET_MR_ALLMULTI };
        let request = libc::packet_mreq {
            mr_ifindex: i32::try_from(index).unwrap_or(0),
            mr_type: kind as u16,
            mr_alen: 0,
            mr_address: [0; 8],
        };
        set_option(socket.as_raw_fd(), libc::SOL_PACKET, libc::PACKET_ADD_MEMBERSHIP, &request)?;
        Ok(Self { _socket: socket })
    }
}

/// A classic BPF program that drops what the host itself sends (linux/filter.h). The socket option made for this does
/// not reach sockets in a fanout group, which the driver's are; a filter does.
const NOT_OUTGOING: [libc::sock_filter; 4] = {
    const LOAD_BYTE: u16 = 0x30;
    const JUMP_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    /// SKF_AD_OFF + SKF_AD_PKTTYPE: not packet bytes but the kernel's note of where the packet goes.
    const PACKET_TYPE: u32 = (-0x1000_i32 + 4) as u32;
    const fn step(code: u16, jt: u8, jf: u8, k: u32) -> libc::sock_filter {
        libc::sock_filter { code, jt, jf, k }
    }
    [
        step(LOAD_BYTE, 0, 0, PACKET_TYPE),
        step(JUMP_EQUAL, 0, 1, libc::PACKET_OUTGOING as u32),
        step(RETURN, 0, 0, 0),
        step(RETURN, 0, 0, u32::MAX),
    ]
};

/// Tells the packet sockets of this process that are bound to the interface not to receive what the host sends.
/// The driver does not give its sockets away, so they are found among the open files.
pub(crate) fn ignore_outgoing(index: u32) -> io::Result<usize> {
    let program =
        libc::sock_fprog { len: NOT_OUTGOING.len() as u16, filter: NOT_OUTGOING.as_ptr().cast_mut() };
    let sockets = sockets(index)?;
    for socket in &sockets {
        set_option(*socket, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)?;
    }
    Ok(sockets.len())
}

/// The socket of a started device's queue, which is readable while the queue holds packets; `None` where what the driver
/// names is no packet socket of the interface.
pub(crate) fn socket_of(port: u16, queue: u16, index: u32) -> Option<RawFd> {
    // SAFETY: the port is started, and the call checks the queue's number.
    let named = unsafe { sys::fb_af_packet_descriptor(port, queue) };
    is_bound(named, index).then_some(named)
}

/// The packet sockets of this process that are bound to the interface.
fn sockets(index: u32) -> io::Result<Vec<RawFd>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc/self/fd")? {
        let Some(fd) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        if is_bound(fd, index) {
            found.push(fd);
        }
    }
    Ok(found)
}

fn is_bound(fd: RawFd, index: u32) -> bool {
    // SAFETY: zeroes are a valid address; the kernel writes at most `length` bytes into it. A descriptor that is no
    // socket, or was closed meanwhile, makes the call fail.
    let (result, address) = unsafe {
        let mut address: libc::sockaddr_ll = mem::zeroed();
        let mut length = mem::size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        (libc::getsockname(fd, (&raw mut address).cast(), &mut length), address)
    };
    let bound = address.sll_ifindex == i32::try_from(index).unwrap_or(0) && address.sll_protocol != 0;
    result == 0 && i32::from(address.sll_family) == libc::AF_PACKET && bound
}

fn set_option<T>(fd: RawFd, level: i32, option: i32, value: &T) -> io::Result<()> {
    let length = mem::size_of::<T>() as libc::socklen_t;
    // SAFETY: the value, and what it points to, outlives the call; it has the length given.
    match unsafe { libc::setsockopt(fd, level, option, (&raw const *value).cast(), length) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rings_hold_the_mtu_in_whole_blocks() {
        for mtu in (68..=u16::MAX).step_by(13) {
            let ring = Ring::new(mtu, 500);
            assert!(ring.frame_bytes >= u32::from(mtu) + 22 + 66, "{mtu}: {ring:?}");
            assert_eq!(ring.block_bytes % ring.frame_bytes, 0);
            assert_eq!(ring.block_bytes % PAGE_BYTES, 0);
            assert!(ring.block_bytes <= 4 * ring.frame_bytes);
            assert_eq!(ring.frames % (ring.block_bytes / ring.frame_bytes), 0);
            assert!((500..504).contains(&ring.frames));
        }
        assert_eq!(Ring::new(1500, 512), Ring { frame_bytes: 2048, block_bytes: 4096, frames: 512 });
        assert!(Ring::new(1500, 512).buffer_bytes() <= 2048);
        assert_eq!(Ring::new(9000, 512).frame_bytes, 9216);
    }

    #[test]
    fn a_membership_is_counted_by_the_kernel() {
        let lo = netdev::index("lo").unwrap();
        assert!(Membership::join(lo, true).is_ok());
        assert!(Membership::join(lo, false).is_ok());
        assert!(Membership::join(0x7fff_0000, true).is_err());
    }
}
