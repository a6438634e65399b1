//! What a vhost-user port needs beyond DPDK's driver: which rings the guest has enabled, who serves them, and a socket that
//! a guest cannot reach before the port is ready for it.
//!
//! **Rings.** A guest enables as many queue pairs as it likes, changes that while it runs, and may have more or fewer than this
//! host has workers. So the port has [`PAIRS`] of them, whatever the number of workers. Those that a guest sends on are dealt
//! out: each belongs to one worker for good. Those that it receives on are shared where there are fewer than workers: each has a
//! lock, held for the burst that one worker hands over. No other kind of device has one.
//!
//! **The socket.** What a guest is offered must be said to DPDK after its driver has begun to listen (or to call, as a client) and
//! before a guest has asked. So the driver is given another path in the same folder, and the real one leads there only when
//! everything is said: the listening socket is renamed; a client's path is a link that is made then.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::{fs, io};

use forebay_dpdk_sys as sys;
use parking_lot::Mutex;

use crate::device_spec::{DeviceSpec, SOCKET_PATH_BYTES};
use crate::error::DeviceError;

/// Queue pairs of a port: a bit each of a word, and as many as virtual machines have cores.
pub(crate) const PAIRS: u16 = 64;

/// Packets that a ring of a guest holds: QEMU's default, which guests seldom change.
pub(crate) const RING_PACKETS: u16 = 256;

/// Makes the names of doors unique in the process.
static NEXT_DOOR: AtomicU32 = AtomicU32::new(0);

/// The way to a port's socket: closed until [`Door::open`], gone when dropped.
#[derive(Debug)]
pub(crate) struct Door {
    path: PathBuf,
    behind: PathBuf,
    calls: bool,
}

impl Door {
    /// A closed door; `None` for devices that are no vhost ports.
    ///
    /// # Errors
    /// The path behind it would be too long for a socket.
    pub(crate) fn of(spec: &DeviceSpec) -> Result<Option<Self>, DeviceError> {
        let DeviceSpec::Vhost { path, extras } = spec else { return Ok(None) };
        let number = NEXT_DOOR.fetch_add(1, Ordering::Relaxed);
        let behind = Path::new(path).with_file_name(format!(".fb{}-{number}", std::process::id()));
        if behind.as_os_str().len() >= SOCKET_PATH_BYTES {
            return Err(DeviceError::BadValue {
                device: spec.to_string(),
                value: format!("path {path}"),
                reason: "its folder's name is too long for a socket: choose a shorter path".into(),
            });
        }
        // A process of the same number, long gone, may have left one.
        let _ = fs::remove_file(&behind);
        Ok(Some(Self { path: path.into(), behind, calls: extras.get("client") == Some("1") }))
    }

    /// The device as DPDK is told of it.
    pub(crate) fn disguise(&self, spec: &DeviceSpec) -> DeviceSpec {
        match spec {
            DeviceSpec::Vhost { extras, .. } => {
                let path = self.behind.to_string_lossy().into_owned();
                DeviceSpec::Vhost { path, extras: extras.clone() }
            }
            other => other.clone(),
        }
    }

    /// Tells DPDK what guests are offered; then lets them in.
    pub(crate) fn open(&self, port: u16) -> io::Result<()> {
        let behind = CString::new(self.behind.as_os_str().as_bytes())?;
        // SAFETY: the port is configured, and the path outlives the call.
        match unsafe { sys::fb_vhost_attach(port, behind.as_ptr()) } {
            0 if self.calls => std::os::unix::fs::symlink(std::path::absolute(&self.path)?, &self.behind),
            0 => {
                fs::rename(&self.behind, &self.path)?;
                self.hurry();
                Ok(())
            }
            error => Err(io::Error::from_raw_os_error(-error)),
        }
    }

    /// Has DPDK look for guests now, not at the end of a second: a guest that waits for a host to come back feels it. By a call
    /// from a socket of ours.
    fn hurry(&self) {
        // DPDK knows the port's own by its path, so this is another one.
        let mut path = self.behind.clone().into_os_string();
        path.push("c");
        let Ok(listener) = UnixListener::bind(&path) else { return };
        if let Ok(path) = CString::new(path.as_bytes()) {
            // SAFETY: EAL runs, and the path outlives the call. Should it fail, guests wait for a second.
            let _ = unsafe { sys::fb_vhost_hurry(path.as_ptr()) };
        }
        drop(listener);
        let _ = fs::remove_file(&path);
    }

    /// Lets no guest in any more. The driver closes what is behind.
    pub(crate) fn close(&self) {
        // It may have been removed by somebody who tidied up: then there is nothing left to do.
        let _ = fs::remove_file(if self.calls { &self.behind } else { &self.path });
    }
}

/// The rings of an open vhost port.
#[derive(Debug)]
pub(crate) struct Rings {
    enabled: &'static sys::VhostRings,
    to_guest: [Mutex<()>; PAIRS as usize],
}

impl Rings {
    /// The rings of a port that exists.
    pub(crate) fn of(port: u16) -> Option<Arc<Self>> {
        // SAFETY: what it points to is never moved or freed, and is only touched by atomic operations.
        let enabled = unsafe { sys::fb_vhost_rings(port).as_ref() }?;
        Some(Arc::new(Self { enabled, to_guest: [const { Mutex::new(()) }; PAIRS as usize] }))
    }

    pub(crate) fn guest(&self) -> GuestQueues {
        let pairs = self.enabled.to_guest.load(Ordering::Relaxed).count_ones();
        let unserved = self.enabled.beyond.load(Ordering::Relaxed) != 0;
        GuestQueues { pairs, unserved, departures: self.enabled.departures.load(Ordering::Relaxed) }
    }
}

/// What the guest of a vhost port uses of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GuestQueues {
    /// Queue pairs that it has enabled; 0 without a guest.
    pub pairs: u32,
    /// It has enabled more of them than a port has: what it sends there is not fetched.
    pub unserved: bool,
    /// How often a guest of the port's number has gone, since the process began.
    pub departures: u64,
}

impl GuestQueues {
    /// Queue pairs that a port has.
    pub const LIMIT: u16 = PAIRS;
}

/// The rings that one worker receives from.
#[derive(Debug)]
pub(crate) struct Share {
    rings: Arc<Rings>,
    /// Which belong to this worker.
    own: u64,
    /// The ring that comes first next time, so that a busy one does not keep the others waiting.
    first: u32,
}

impl Share {
    /// The share of worker `worker` of `workers`.
    pub(crate) fn new(rings: Arc<Rings>, worker: u16, workers: u16) -> Self {
        let own = (worker..PAIRS).step_by(usize::from(workers.max(1))).fold(0, |own, ring| own | 1 << ring);
        Self { rings, own, first: 0 }
    }

    /// Asks each enabled ring in turn, until one says that there is enough.
    #[inline]
    pub(crate) fn each(&mut self, mut ask: impl FnMut(u16) -> bool) {
        let enabled = self.rings.enabled.from_guest.load(Ordering::Relaxed) & self.own;
        // The first ring's bit lowest, then in order, around the end of the word.
        let mut left = enabled.rotate_right(self.first);
        while left != 0 {
            let ring = (left.trailing_zeros() + self.first) % u64::BITS;
            left &= left - 1;
            if ask(ring as u16) {
                self.first = (ring + 1) % u64::BITS;
                return;
            }
        }
    }
}

/// The ring that one worker sends to.
#[derive(Debug)]
pub(crate) struct Turn {
    rings: Arc<Rings>,
    worker: u16,
}

impl Turn {
    /// For worker `worker`.
    pub(crate) fn new(rings: Arc<Rings>, worker: u16) -> Self {
        Self { rings, worker }
    }

    /// Does something with a ring that the guest has enabled, as its only user meanwhile; `None` where it has none.
    #[inline]
    pub(crate) fn take<T>(&self, serve: impl FnOnce(u16) -> T) -> Option<T> {
        let ring = nth_bit(self.rings.enabled.to_guest.load(Ordering::Relaxed), u32::from(self.worker))?;
        let _only = self.rings.to_guest.get(usize::from(ring))?.lock();
        Some(serve(ring))
    }
}

/// The `number`th of the bits that are set, counted around; `None` where none is.
#[inline]
fn nth_bit(mut bits: u64, number: u32) -> Option<u16> {
    let skip = number.checked_rem(bits.count_ones())?;
    for _ in 0..skip {
        bits &= bits - 1;
    }
    Some(bits.trailing_zeros() as u16)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use super::*;

    fn rings(from_guest: u64, to_guest: u64) -> Arc<Rings> {
        let enabled = Box::leak(Box::new(sys::VhostRings {
            from_guest: AtomicU64::new(from_guest),
            to_guest: AtomicU64::new(to_guest),
            beyond: AtomicU64::new(0),
            departures: AtomicU64::new(0),
        }));
        Arc::new(Rings { enabled, to_guest: [const { Mutex::new(()) }; PAIRS as usize] })
    }

    #[test]
    fn every_ring_of_a_guest_has_one_worker() {
        for (workers, enabled) in [(1, u64::MAX), (2, 0b1), (3, 0b1011), (5, 1 << 63 | 1)] {
            let rings = rings(enabled, 0);
            let mut served = 0_u64;
            for worker in 0..workers {
                Share::new(rings.clone(), worker, workers).each(|ring| {
                    assert_eq!(served & 1 << ring, 0, "ring {ring} has two workers");
                    served |= 1 << ring;
                    false
                });
            }
            assert_eq!(served, enabled, "{workers} workers");
        }
    }

    #[test]
    fn a_ring_that_fills_a_burst_lets_the_others_go_first() {
        let mut share = Share::new(rings(0b1101, 0), 0, 1);
        let mut order = Vec::new();
        for _ in 0..4 {
            share.each(|ring| {
                order.push(ring);
                true
            });
        }
        assert_eq!(order, [0, 2, 3, 0]);
        order.clear();
        share.first = 3;
        share.each(|ring| {
            order.push(ring);
            false
        });
        assert_eq!(order, [3, 0, 2]);
    }

    #[test]
    fn workers_share_the_rings_that_there_are() {
        let chosen = |enabled, worker| Turn::new(rings(0, enabled), worker).take(|ring| ring);
        assert_eq!([0, 1, 2].map(|worker| chosen(0b1, worker)), [Some(0); 3]);
        assert_eq!([0, 1, 2].map(|worker| chosen(0b1010, worker)), [Some(1), Some(3), Some(1)]);
        assert_eq!(chosen(u64::MAX, 63), Some(63));
        assert_eq!(chosen(0, 1), None);
    }

    #[test]
    fn a_path_that_leaves_no_room_for_a_door_is_refused() {
        let spec = |path: &str| format!("vhost:{path}").parse::<DeviceSpec>().unwrap();
        assert!(
            Door::of(&spec("/run/a.sock"))
                .unwrap()
                .is_some_and(|door| { door.behind.to_string_lossy().starts_with("/run/.fb") })
        );
        let long = format!("/{}/a", "b".repeat(103));
        assert!(Door::of(&spec(&long)).unwrap_err().to_string().contains("choose a shorter path"));
        assert!(Door::of(&"tap:vm1".parse().unwrap()).unwrap().is_none());
    }
}
