//! What ports stand on, and the network cards of the machine with the drivers that have them.

use super::{Finding, Level, Subject, System};
use std::path::Path;

pub(super) const PCI: &str = "/sys/bus/pci/devices";

/// Kernel drivers that DPDK works beside: they keep the function and lend its queues.
const SHARING: &[&str] = &["mlx4_core", "mlx5_core", "mana"];

/// Drivers that hand a function over.
const HANDING: &[&str] = &["vfio-pci", "uio_pci_generic", "igb_uio"];

/// Who has a function.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Keeper {
    /// It is ready: a driver that hands it over has it.
    Handed(String),
    /// It is ready: its kernel driver shares it.
    Shared(String),
    /// The kernel's driver has it, or none.
    Kernel(Option<String>),
}

/// A port of the config file on a PCI function.
pub(super) struct OnPci {
    pub port: String,
    /// As the config file names it.
    pub named: String,
    /// `None`: there is no such function.
    pub address: Option<String>,
    pub keeper: Keeper,
}

/// The ports of the config file on PCI functions: `pci:ADDRESS`, or `vf:PF/INDEX`.
pub(super) fn of_config(system: &System, subject: &Subject) -> Vec<OnPci> {
    let by_address = subject.ports_of(&["pci"]).map(|(port, address)| {
        let there = system.has(format!("{PCI}/{address}"));
        (port, address, there.then(|| address.to_owned()))
    });
    let by_index = subject.ports_of(&["vf"]).map(|(port, name)| {
        let link = name
            .rsplit_once('/')
            .and_then(|(pf, index)| system.link(format!("{}/virtfn{index}", physical(system, pf))));
        (port, name, link)
    });
    let found = |(port, named, address): (&str, &str, Option<String>)| {
        let keeper = keeper(system, address.as_deref().unwrap_or_default());
        OnPci { port: port.to_owned(), named: named.to_owned(), address, keeper }
    };
    by_address.chain(by_index).map(found).collect()
}

/// The folder of a physical function, named by its interface or its address.
fn physical(system: &System, pf: &str) -> String {
    let by_address = format!("{PCI}/{pf}");
    if system.has(&by_address) { by_address } else { format!("/sys/class/net/{pf}/device") }
}

fn keeper(system: &System, address: &str) -> Keeper {
    let driver = system.link(format!("{PCI}/{address}/driver"));
    match driver {
        Some(driver) if HANDING.contains(&driver.as_str()) => Keeper::Handed(driver),
        Some(driver) if SHARING.contains(&driver.as_str()) => Keeper::Shared(driver),
        other => Keeper::Kernel(other),
    }
}

pub(super) fn examine(system: &System, subject: &Subject) -> Vec<Finding> {
    let on_pci = of_config(system, subject);
    let mut findings: Vec<Finding> = on_pci.iter().map(|device| function(system, device)).collect();
    findings.extend(verbs(system, &on_pci));
    findings.extend(
        subject.ports_of(&["af_packet", "af_xdp"]).map(|(port, name)| interface(system, name).of(port)),
    );
    findings.extend(subject.ports_of(&["tap"]).map(|(port, _)| tap(system).of(port)));
    let sockets = subject.ports_of(&["vhost", "virtio_user", "memif"]);
    findings.extend(sockets.map(|(port, path)| socket_folder(system, path).of(port)));
    findings.extend(cards(system));
    findings
}

const PORT: &str = "port_device";

fn function(system: &System, device: &OnPci) -> Finding {
    let OnPci { port, named, address, keeper } = device;
    let finding = match (address, keeper) {
        (None, _) if named.contains('/') => to_be_made(system, named),
        (None, _) => {
            let value = format!("{named}: no such PCI function");
            Finding::bad(Level::Fail, PORT, value, "see: lspci -D -d ::0200")
        }
        (Some(address), Keeper::Handed(driver)) => Finding::ok(PORT, format!("{address}: bound to {driver}")),
        (Some(address), Keeper::Shared(driver)) => {
            Finding::ok(PORT, format!("{address}: {driver} shares it with DPDK"))
        }
        (Some(address), Keeper::Kernel(driver)) => {
            let driver = driver.as_deref().unwrap_or("no driver");
            Finding::ok(PORT, format!("{address}: bound to {driver}, and to vfio-pci while the daemon runs"))
        }
    };
    finding.of(port)
}

/// NVIDIA's drivers lend their queues by way of verbs.
fn verbs(system: &System, on_pci: &[OnPci]) -> Option<Finding> {
    const NAME: &str = "verbs";
    let driver = on_pci.iter().find_map(|device| match &device.keeper {
        Keeper::Shared(driver) => driver.strip_suffix("_core"),
        Keeper::Handed(_) | Keeper::Kernel(_) => None,
    })?;
    let devices = system.names("/sys/class/infiniband_verbs");
    Some(match devices.into_iter().find(|name| name.starts_with("uverbs")) {
        Some(device) => Finding::ok(NAME, device),
        None => {
            let value = format!("no device of ib_uverbs: {driver}_core lends no queues");
            Finding::bad(Level::Fail, NAME, value, format!("modprobe -a {driver}_ib ib_uverbs"))
        }
    })
}

/// A virtual function that is not there: the daemon makes those that its ports name, where there are none yet.
fn to_be_made(system: &System, named: &str) -> Finding {
    let (pf, index) = named.rsplit_once('/').unwrap_or((named, ""));
    let folder = physical(system, pf);
    let count = |file: &str| u64::try_from(system.number(format!("{folder}/{file}"))?).ok();
    let (total, made) = (count("sriov_totalvfs").unwrap_or(0), count("sriov_numvfs").unwrap_or(0));
    let needed = index.parse().map_or(u64::MAX, |index: u64| index.saturating_add(1));
    if !system.has(&folder) {
        let value = format!("{named}: no physical function {pf}");
        return Finding::bad(Level::Fail, PORT, value, "see: forebay vf list");
    }
    if needed > total {
        let value = format!("{named}: {pf} can have {total} virtual functions");
        let remedy = "choose another PF (see: forebay vf list), or switch SR-IOV on in the BIOS and the card's firmware";
        return Finding::bad(Level::Fail, PORT, value, remedy);
    }
    if made > 0 {
        let value = format!("{named}: {pf} has {made} virtual functions");
        return Finding::bad(Level::Fail, PORT, value, format!("forebay vf create --force {pf} {needed}"));
    }
    Finding::ok(PORT, format!("{named}: made when the daemon starts"))
}

fn interface(system: &System, name: &str) -> Finding {
    let folder = format!("/sys/class/net/{name}");
    if !system.has(&folder) {
        let value = format!("{name}: no such interface in this network namespace");
        return Finding::bad(Level::Fail, PORT, value, "see: ip link");
    }
    // Bit 0 of the flags: IFF_UP.
    let flags = system.text(format!("{folder}/flags")).unwrap_or_default();
    let flags = u32::from_str_radix(flags.trim_start_matches("0x"), 16).unwrap_or(0);
    if flags & 1 == 0 {
        let value = format!("{name}: it is down, and the port will be");
        return Finding::warn(PORT, value, format!("ip link set {name} up"));
    }
    Finding::ok(PORT, format!("interface {name}"))
}

fn tap(system: &System) -> Finding {
    match system.has("/dev/net/tun") {
        true => Finding::ok(PORT, "/dev/net/tun"),
        false => Finding::bad(
            Level::Fail,
            PORT,
            "no /dev/net/tun",
            "modprobe tun && echo tun > /etc/modules-load.d/forebay-tun.conf",
        ),
    }
}

fn socket_folder(system: &System, path: &str) -> Finding {
    let folder = Path::new(path).parent().map(Path::to_string_lossy).unwrap_or_default();
    match folder.is_empty() || system.path(&*folder).is_dir() {
        true => Finding::ok(PORT, format!("socket {path}")),
        false => Finding::bad(
            Level::Fail,
            PORT,
            format!("no folder {folder} for its socket"),
            format!("mkdir -p {folder}"),
        ),
    }
}

/// Every network card: class 02 of PCI.
fn cards(system: &System) -> Vec<Finding> {
    const NAME: &str = "network_card";
    let is_network = |address: &String| {
        system.text(format!("{PCI}/{address}/class")).is_some_and(|class| class.starts_with("0x02"))
    };
    let finding = |address: String| {
        let folder = format!("{PCI}/{address}");
        let mut parts = vec![match keeper(system, &address) {
            Keeper::Handed(driver) => format!("driver {driver}, for DPDK"),
            Keeper::Shared(driver) => format!("driver {driver}, shared with DPDK"),
            Keeper::Kernel(Some(driver)) => format!("driver {driver}"),
            Keeper::Kernel(None) => "no driver".to_owned(),
        }];
        parts.extend(interfaces(system, &folder).into_iter().map(|name| format!("interface {name}")));
        let count = |file: &str| u64::try_from(system.number(format!("{folder}/{file}"))?).ok();
        let (total, made) = (count("sriov_totalvfs").unwrap_or(0), count("sriov_numvfs").unwrap_or(0));
        if total > 0 {
            parts.push(format!("{made} of {total} virtual functions made"));
        }
        Finding::ok(NAME, parts.join(", ")).of(address)
    };
    let cards = system.names(PCI).into_iter().filter(is_network);
    // A card with 128 virtual functions is one card.
    cards.filter(|address| !system.has(format!("{PCI}/{address}/physfn"))).map(finding).collect()
}

/// The kernel's interfaces of a function; a virtio function has a device of its own between.
fn interfaces(system: &System, folder: &str) -> Vec<String> {
    let between = system.names(folder).into_iter().filter(|name| name.starts_with("virtio"));
    let folders =
        [format!("{folder}/net")].into_iter().chain(between.map(|name| format!("{folder}/{name}/net")));
    folders.flat_map(|folder| system.names(folder)).collect()
}
