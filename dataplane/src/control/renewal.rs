//! Devices that were reset, or are taken away, under a running host: the port lets go of its device at once, and gets it back
//! as soon as it can be opened again.
//!
//! The port itself stays as it is: name, rules, counters, its number. Between the two it is down, and what is sent to it is
//! dropped and counted as `port_down`.

use super::host::{Host, HostError};
use super::ports::PortRecord;
use super::tables::Applied;
use crate::config::Device as Place;
use forebay_sriov::{DeviceError, Trouble};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Between letting go of a device and the first try to open it again, and between the tries: long enough for the kernel to go
/// on with what it waited for, and for a PF to come back from its own reset.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);

/// The number of a device that is not there: no snapshot has room for so many.
const NO_DEVICE: u16 = u16::MAX;

/// Ports whose devices have failed, by name.
#[derive(Default)]
pub(super) struct Renewal {
    ports: BTreeMap<String, State>,
}

enum State {
    /// It still has the device.
    Failed,
    /// It waits for the device; whether the reason has been told.
    Waits { next_try: Instant, told: bool },
}

impl Renewal {
    /// Looks for failed devices, and does what can be done now: while a change is being made, nothing.
    pub(super) fn look(&mut self, host: &Host, now: Instant) {
        for (port, trouble) in host.device_troubles() {
            match trouble {
                Trouble::WasReset => tracing::warn!("port {port:?}: its device was reset; it is opened anew"),
                Trouble::GoesAway => {
                    tracing::warn!("port {port:?}: its device is taken away; the port is down")
                }
            }
            self.ports.insert(port, State::Failed);
        }
        self.ports.retain(|port, state| match state {
            State::Failed => {
                match host.leave_device(port) {
                    Some(Ok(())) => {
                        *state = State::Waits { next_try: now + RETRY_INTERVAL, told: false };
                    }
                    // Somebody has removed the port.
                    Some(Err(HostError::NoPort { .. })) => return false,
                    Some(Err(error)) => tracing::error!("port {port:?}: {error}"),
                    None => {}
                }
                true
            }
            State::Waits { next_try, told } if *next_try <= now => match host.return_device(port) {
                Some(Ok(())) => {
                    tracing::info!("port {port:?}: its device is open again");
                    false
                }
                Some(Err(HostError::NoPort { .. })) => false,
                Some(Err(error)) => {
                    if !std::mem::replace(told, true) {
                        tracing::error!("{error}; tried again until it works, or the port is removed");
                    }
                    *next_try = now + RETRY_INTERVAL;
                    true
                }
                None => true,
            },
            State::Waits { .. } => true,
        });
    }
}

impl Host {
    /// What has befallen devices since the last call.
    fn device_troubles(&self) -> Vec<(String, Trouble)> {
        let ports = self.ports.read();
        let records = ports.by_name.iter();
        records
            .filter_map(|(name, record)| Some((name.clone(), record.device.as_ref()?.take_trouble()?)))
            .collect()
    }

    /// Closes a port's device, and leaves the port without one. `None` while a change is being made.
    fn leave_device(&self, name: &str) -> Option<Result<(), HostError>> {
        let desk = &mut *self.desk.try_lock()?;
        let Some(device) = self.ports.write().by_name.get_mut(name).and_then(|record| record.device.take())
        else {
            return Some(Err(HostError::NoPort { port: name.to_owned() }));
        };
        self.move_ports(device.id(), NO_DEVICE, None);
        let mut left = || {
            self.publish_ports(desk, Applied::default(), false)?;
            if let Some(crew) = self.crew.lock().as_mut() {
                crew.release(device.id());
            }
            self.settle(desk)
        };
        let left = left();
        // A worker that does not answer holds the device; it is closed when that lets go.
        let closed = device.close(Vec::new());
        Some(left.and_then(|()| closed.map_err(|source| failed(name, source))))
    }

    /// Opens a port's device again. `None` while a change is being made.
    fn return_device(&self, name: &str) -> Option<Result<(), HostError>> {
        let desk = &mut *self.desk.try_lock()?;
        let waiting = |record: &&PortRecord| record.device.is_none() && record.device_id == NO_DEVICE;
        let config = self.ports.read().by_name.get(name).filter(waiting).map(|record| record.config.clone());
        let Some(config) = config else {
            return Some(Err(HostError::NoPort { port: name.to_owned() }));
        };
        let Place::Dpdk(text) = &config.device else { return Some(Ok(())) };
        let mut open = || {
            let (line, queues, pool) = self.place_of(&config)?;
            let mut device = self.open_device(&config, text, queues, &pool)?;
            if let Some(crew) = self.crew.lock().as_mut() {
                crew.attach(device.id(), line, device.take_queues());
            }
            let (id, own) = (device.id(), device.mac());
            if let Some(record) = self.ports.write().by_name.get_mut(name) {
                record.mac = config.mac.map_or(own, |mac| mac.0);
                record.device = Some(device);
                record.device_id = id;
            }
            self.move_ports(NO_DEVICE, id, Some(name));
            let moved = self.meet_ports(desk);
            self.publish_ports(desk, Applied::default(), moved)
        };
        Some(open())
    }

    /// Gives another number to the device of ports that have it: of all, or of those behind a port.
    fn move_ports(&self, from: u16, to: u16, behind: Option<&str>) {
        let mut ports = self.ports.write();
        for record in ports.by_name.values_mut().filter(|record| record.device_id == from) {
            let is_behind =
                matches!(&record.config.device, Place::Vlan { port, .. } if Some(port.as_str()) == behind);
            if behind.is_none() || is_behind {
                record.device_id = to;
                record.up.store(to != NO_DEVICE, std::sync::atomic::Ordering::Relaxed);
            }
        }
    }
}

fn failed(port: &str, source: DeviceError) -> HostError {
    HostError::Device { port: port.to_owned(), source }
}
