//! The kernel interface behind a device: whether it exists and runs, and its MTU.

use std::ffi::CString;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// The index of an interface of this network namespace.
pub(crate) fn index(name: &str) -> Option<u32> {
    let name = CString::new(name).ok()?;
    // SAFETY: the name is a C string that outlives the call.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => None,
        index => Some(index),
    }
}

/// Whether the interface is up and has a carrier.
pub(crate) fn is_running(name: &str) -> io::Result<bool> {
    let request = ioctl(name, libc::SIOCGIFFLAGS, |_| ())?;
    // SAFETY: the kernel has filled in the flags.
    let flags = i32::from(unsafe { request.ifr_ifru.ifru_flags });
    Ok(flags & libc::IFF_UP != 0 && flags & libc::IFF_RUNNING != 0)
}

/// The interface's MTU, bytes.
pub(crate) fn mtu(name: &str) -> io::Result<u32> {
    let request = ioctl(name, libc::SIOCGIFMTU, |_| ())?;
    // SAFETY: the kernel has filled in the MTU.
    Ok(u32::try_from(unsafe { request.ifr_ifru.ifru_mtu }).unwrap_or(0))
}

/// Sets the interface's MTU, bytes.
pub(crate) fn set_mtu(name: &str, mtu: u16) -> io::Result<()> {
    ioctl(name, libc::SIOCSIFMTU, |request| request.ifr_ifru.ifru_mtu = i32::from(mtu)).map(drop)
}

fn ioctl(name: &str, request: libc::Ioctl, fill: impl FnOnce(&mut libc::ifreq)) -> io::Result<libc::ifreq> {
    // SAFETY: zeroes are a valid request.
    let mut data: libc::ifreq = unsafe { mem::zeroed() };
    if name.len() >= data.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (slot, byte) in data.ifr_name.iter_mut().zip(name.bytes()) {
        *slot = byte as libc::c_char;
    }
    fill(&mut data);
    let socket = socket(libc::AF_INET, libc::SOCK_DGRAM)?;
    // SAFETY: the socket is open and the request outlives the call.
    match unsafe { libc::ioctl(socket.as_raw_fd(), request, &mut data) } {
        0 => Ok(data),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A socket that is closed when dropped and on exec.
pub(crate) fn socket(family: i32, kind: i32) -> io::Result<OwnedFd> {
    // SAFETY: no pointers are involved.
    let fd = unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and belongs to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_the_loopback() {
        assert!(index("lo").is_some());
        assert!(mtu("lo").unwrap() >= 1500);
        assert_eq!(index("no-such-if"), None);
        assert!(is_running("no-such-if").is_err());
        assert!(mtu("a name that is far too long").is_err());
    }
}
