//! The thread that listens to the workers: resolves next hops, takes what was trapped, watches links, logs events.
//!
//! It is an ordinary thread that looks every millisecond: workers make no system call to wake it, and a first packet
//! that waits one millisecond more for ARP is no loss.

use super::crew::{Ends, Joined};
use super::host::Host;
use super::notice::{Notice, Trapped};
use super::renewal::Renewal;
use super::resolver::Question;
use super::view::LinkNews;
use crate::snapshot::{PortRole, Snapshot};
use crate::stages::dispatch::Handoff;
use crate::stages::ledger::{Class, Origin};
use crate::wire::{BROADCAST_MAC, arp, nd};
use forebay_pipeline::batch::Batch;
use forebay_pipeline::ring::{RingConsumer, RingProducer};
use forebay_pipeline::worker::WorkerEvent;
use forebay_sriov::GuestQueues;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::broadcast;

/// Between two looks at the workers' rings.
const LOOK_INTERVAL: Duration = Duration::from_millis(1);
/// Between two looks at the clock of neighbours and at the links of devices.
const TICK_INTERVAL: Duration = Duration::from_millis(100);
/// Paths whose MTU is to be minded at the next tick; what is beyond them will be said again.
const PATHS: usize = 1024;
/// Trapped packets that a slow subscriber may be behind.
const TRAP_BACKLOG: usize = 1024;

/// A packet that was trapped, for whoever subscribes.
#[derive(Clone, Debug)]
pub struct TrappedFrame {
    /// The port that received it.
    pub port: String,
    /// The frame; of a tunnelled packet, the inner one.
    pub frame: Vec<u8>,
}

/// The running thread. Stops when dropped.
pub struct Steward {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    trapped: broadcast::Sender<Arc<TrappedFrame>>,
}

impl Steward {
    /// Starts the thread.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn start(host: Arc<Host>, ends: Ends) -> std::io::Result<Steward> {
        let stop = Arc::new(AtomicBool::new(false));
        let (trapped, _) = broadcast::channel(TRAP_BACKLOG);
        let mut work = Work {
            host,
            ends,
            notices: Vec::new(),
            traps: Vec::new(),
            inject: None,
            trapped: trapped.clone(),
            path_mtus: HashMap::new(),
            renewal: Renewal::default(),
            guests: HashMap::new(),
            next_tick: Instant::now(),
        };
        let asked = stop.clone();
        let thread = std::thread::Builder::new().name("steward".into()).spawn(move || {
            while !asked.load(Ordering::Relaxed) {
                work.look();
                std::thread::sleep(LOOK_INTERVAL);
            }
        })?;
        Ok(Steward { stop, thread: Some(thread), trapped })
    }

    /// From now on, what is trapped.
    pub fn trapped(&self) -> broadcast::Sender<Arc<TrappedFrame>> {
        self.trapped.clone()
    }
}

impl Drop for Steward {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was printed by itself; nothing is left to do about it here.
            let _ = thread.join();
        }
    }
}

struct Work {
    host: Arc<Host>,
    ends: Ends,
    /// What workers saw.
    notices: Vec<RingConsumer<Notice>>,
    /// What workers trapped.
    traps: Vec<RingConsumer<Trapped>>,
    /// Packets that we want to be sent.
    inject: Option<RingProducer<Handoff>>,
    trapped: broadcast::Sender<Arc<TrappedFrame>>,
    /// What the underlay said of paths to far ends and nobody has minded yet.
    path_mtus: HashMap<IpAddr, u16>,
    /// Devices that were reset or taken away.
    renewal: Renewal,
    /// What the guests of vhost ports used of them when last looked at.
    guests: HashMap<String, GuestQueues>,
    next_tick: Instant,
}

impl Work {
    fn look(&mut self) {
        let now = Instant::now();
        self.welcome();
        let snapshot = self.host.snapshot();
        let mut questions = self.hear(now);
        self.take_trapped(&snapshot);
        if now >= self.next_tick {
            self.next_tick = now + TICK_INTERVAL;
            questions.extend(self.host.resolver().lock().tick(now));
            self.host.mind_path_mtus(&mut self.path_mtus, now);
            self.renewal.look(&self.host, now);
            self.watch_links();
            while let Ok(event) = self.ends.events.try_recv() {
                let WorkerEvent::Panicked { worker, message, count, .. } = event;
                tracing::error!("worker {worker:?} panicked ({count} times so far) and goes on: {message}");
            }
        }
        for question in questions {
            self.ask(&snapshot, question);
        }
    }

    /// Takes the ends of what is new, and forgets those of workers that are gone.
    fn welcome(&mut self) {
        let (notices, traps) = (self.notices.len(), self.traps.len());
        while let Ok(joined) = self.ends.joined.try_recv() {
            match joined {
                Joined::Notices(ring) => self.notices.push(ring),
                Joined::Traps(ring) => self.traps.push(ring),
                Joined::Inject(ring) => self.inject = Some(ring),
            }
        }
        if (notices, traps) != (self.notices.len(), self.traps.len()) {
            self.notices.retain(|ring| !(ring.is_abandoned() && ring.is_empty()));
            self.traps.retain(|ring| !(ring.is_abandoned() && ring.is_empty()));
        }
    }

    fn watch_links(&mut self) {
        let LinkNews { changed, guests } = self.host.watch_links();
        for (port, up) in &changed {
            tracing::info!("port {port:?}: link is {}", if *up { "up" } else { "down" });
        }
        let mut before = std::mem::take(&mut self.guests);
        for (port, guest) in guests {
            let was = before
                .remove(&port)
                .unwrap_or(GuestQueues { departures: guest.departures, ..GuestQueues::default() });
            let GuestQueues { pairs, unserved, departures } = guest;
            if was.departures != departures && !changed.iter().any(|(other, up)| *other == port && !up) {
                // It was back before anybody looked.
                tracing::info!("port {port:?}: link was down, and its guest is back");
            }
            if was.pairs != pairs {
                tracing::info!("port {port:?}: its guest has {pairs} queue pairs");
            }
            if unserved && !was.unserved {
                let limit = GuestQueues::LIMIT;
                tracing::warn!(
                    "port {port:?}: its guest has more than {limit} queue pairs, and what it sends on those is not \
                     fetched (start it with queues={limit} at most)"
                );
            }
            self.guests.insert(port, guest);
        }
    }

    /// Reads what workers saw; returns what is to be asked because of it.
    fn hear(&mut self, now: Instant) -> Vec<Question> {
        let mut questions = Vec::new();
        let mut batch = Batch::new();
        for ring in &mut self.notices {
            while ring.pop(&mut batch) > 0 {
                let mut resolver = self.host.resolver().lock();
                for notice in batch.drain(..) {
                    match notice {
                        Notice::Seen { uplink, address, mac } => resolver.seen(uplink, address, mac, now),
                        Notice::TooBig { remote, mtu } => {
                            let is_full = self.path_mtus.len() >= PATHS;
                            match self.path_mtus.entry(remote) {
                                Entry::Occupied(mut known) => *known.get_mut() = mtu.min(*known.get()),
                                Entry::Vacant(place) if !is_full => drop(place.insert(mtu)),
                                Entry::Vacant(_) => {}
                            }
                        }
                        Notice::Unresolved { slot } => questions.extend(resolver.wanted(slot, now)),
                    }
                }
            }
        }
        questions
    }

    fn take_trapped(&mut self, snapshot: &Snapshot) {
        let mut batch = Batch::new();
        for ring in &mut self.traps {
            while ring.pop(&mut batch) > 0 {
                let wanted = self.trapped.receiver_count() > 0;
                for Trapped { port, packet } in batch.drain(..).filter(|_| wanted) {
                    let mut frame = vec![0; packet.len()];
                    packet.copy_to(0, &mut frame);
                    let port = snapshot.port(port).map(|port| port.name.to_string()).unwrap_or_default();
                    // Nobody listens any more: the packet is counted as trapped all the same.
                    let _ = self.trapped.send(Arc::new(TrappedFrame { port, frame }));
                }
            }
        }
    }

    /// Sends "who has this address?" out of an uplink.
    fn ask(&mut self, snapshot: &Snapshot, Question { uplink, address }: Question) {
        let Some(port) = snapshot.port(uplink) else { return };
        let PortRole::Uplink(own) = &port.role else { return };
        let packet = match (address, own.ipv4, own.ipv6) {
            (IpAddr::V4(target_ip), Some(sender_ip), _) => {
                let question = arp::Arp {
                    operation: arp::REQUEST,
                    sender_mac: port.mac,
                    sender_ip,
                    target_mac: [0; 6],
                    target_ip,
                };
                debug_assert_ne!(sender_ip, Ipv4Addr::UNSPECIFIED);
                self.host.pool().allocate_with(&question.frame(port.mac, BROADCAST_MAC))
            }
            (IpAddr::V6(target), _, Some(source)) => {
                let question = nd::Neighbor::question(source, port.mac, target);
                self.host.pool().allocate_with(&question.frame(port.mac, nd::multicast_mac(question.dst)))
            }
            _ => return,
        };
        let Some(packet) = packet else { return };
        let origin =
            Origin { from: uplink, to: uplink, class: Class::Originated, bytes: packet.len() as u32 };
        let mut batch = Batch::new();
        batch.push(Handoff { packet, origin });
        // A full ring loses the question; the next one comes in a second.
        if let Some(inject) = &mut self.inject {
            inject.push(&mut batch);
        }
    }
}
