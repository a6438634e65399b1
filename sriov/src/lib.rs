//! The ground floor: EAL, packet memory and ports. The only room of Forebay that knows DPDK.
//!
//! [`Eal::start`] gives the proof that DPDK runs; a [`PacketPool`] holds the memory of packets; a [`Device`], opened
//! from a [`DeviceSpec`], receives and sends [`Packet`]s in [`PacketBurst`]s through its queues. What DPDK leaves to
//! the caller's discipline is kept here by types: a packet has one owner, a queue has one user at a time, and a
//! device is closed only after its last queue is gone.

// This crate is the border to C. Every block says why it is sound.
#![allow(unsafe_code)]

mod af_packet;
mod burst;
mod capabilities;
mod claim;
mod device;
mod device_plan;
mod device_spec;
mod eal;
mod error;
mod huge_slice;
mod hugepages;
mod netdev;
mod packet;
mod packet_edit;
mod pool;
mod precheck;
mod queue;
mod tap_signals;
mod trouble;
pub mod tsc;
pub mod vf;
mod vhost;
mod wake;

pub use burst::{BURST, Drain, PacketBurst};
pub use capabilities::Capabilities;
pub use device::{Device, DeviceOptions, DeviceStats};
pub use device_spec::{DeviceSpec, DeviceSpecError, Extras};
pub use eal::{Eal, EalOptions, RegisteredThread};
pub use error::{DeviceError, EalError, PoolError};
pub use huge_slice::HugeSlice;
pub use hugepages::Hugepages;
pub use packet::{ChecksumStatus, Packet, Segments};
pub use pool::{DEFAULT_DATA_ROOM_BYTES, HEADROOM_BYTES, PacketPool};
pub use queue::{RxQueue, TxQueue};
pub use trouble::Trouble;
pub use vhost::GuestQueues;
pub use wake::Wake;
