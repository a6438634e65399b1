//! Why a function was not changed. Each names the object, the value and the remedy.

use std::io;
use std::path::{Path, PathBuf};

use super::kernel::User;

/// Why an operation on functions failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VfError {
    /// There is no such function.
    #[error("there is no PCI function {target} (see: forebay vf list, or lspci -D)")]
    NoFunction {
        /// What was asked for.
        target: String,
    },
    /// There is no such PF.
    #[error("PF {name}: there is no interface and no PCI function of that name here (see: forebay vf list)")]
    NoPf {
        /// What was asked for.
        name: String,
    },
    /// The function cannot have VFs.
    #[error(
        "PF {pf}: has no SR-IOV (is it switched on in the NIC's and the machine's firmware? see: forebay vf list)"
    )]
    NoSriov {
        /// The function.
        pf: String,
    },
    /// The PF has fewer VFs.
    #[error("VF {pf}/{index}: the PF has {num_vfs} VFs (make more: forebay vf release {pf}; forebay vf create {pf} {})", index + 1)]
    NoVf {
        /// The PF.
        pf: String,
        /// The number asked for.
        index: u32,
        /// How many there are.
        num_vfs: u32,
    },
    /// More than the PF can have.
    #[error("PF {pf}: {count} VFs are more than it can have, {total_vfs} (ask for at most that)")]
    TooMany {
        /// The PF.
        pf: String,
        /// The number asked for.
        count: u32,
        /// How many there can be.
        total_vfs: u32,
    },
    /// There are VFs, and another number was asked for.
    #[error(
        "PF {pf}: has {num_vfs} VFs, {count} were asked for; another number removes them all first \
         (forebay vf release {pf}, or --force if nothing uses them)"
    )]
    OtherCount {
        /// The PF.
        pf: String,
        /// The number asked for.
        count: u32,
        /// How many there are.
        num_vfs: u32,
    },
    /// A setting that only VFs have.
    #[error(
        "function {address}: is no VF, so it has no MAC, VLAN or rate that a PF could set (leave them out)"
    )]
    NotVirtual {
        /// The function.
        address: String,
    },
    /// The PF cannot be reached by netlink.
    #[error(
        "VF {vf}: its PF {pf} has no interface here, which its settings go through (bind the PF to its kernel driver, in this network namespace)"
    )]
    NoPfInterface {
        /// The VF.
        vf: String,
        /// The PF's address.
        pf: String,
    },
    /// The host itself uses the function.
    #[error("{object}: interface {interface} {what} (take that off it, or insist with --force)")]
    CarriesHost {
        /// The function or PF.
        object: String,
        /// The interface on it, or one that stands on that.
        interface: String,
        /// What it does for the host.
        what: String,
    },
    /// There is no IOMMU.
    #[error(
        "function {address}: has no IOMMU group, so nothing would keep the device from writing anywhere in memory (switch the \
         IOMMU on in the firmware, and with intel_iommu=on or amd_iommu=on; or accept that with --no-iommu)"
    )]
    NoIommu {
        /// The function.
        address: String,
    },
    /// The kernel cannot do without an IOMMU.
    #[error(
        "function {address}: this kernel's vfio has no mode without IOMMU (it needs CONFIG_VFIO_NOIOMMU; \
         switch the IOMMU on: intel_iommu=on or amd_iommu=on)"
    )]
    NoIommuMode {
        /// The function.
        address: String,
    },
    /// Others are in the same IOMMU group.
    #[error(
        "function {address}: shares IOMMU group {group} with {others}, which could reach its memory and it theirs \
         (use a slot with ACS, or insist with --force once those are bound to vfio-pci or to nothing)"
    )]
    SharedGroup {
        /// The function.
        address: String,
        /// The group.
        group: u32,
        /// The others, with their drivers.
        others: String,
    },
    /// The driver is not there.
    #[error("driver {driver}: not there, and modprobe does not help: {reason} (does this kernel have it?)")]
    NoDriver {
        /// The driver.
        driver: String,
        /// What modprobe says.
        reason: String,
    },
    /// A process has the function open.
    #[error("function {address}: in use by {user} (stop that first)")]
    InUse {
        /// The function.
        address: String,
        /// Who.
        user: User,
    },
    /// The driver did not take the function.
    #[error("function {address}: driver {driver} does not take it, it is bound to {found} (see: dmesg)")]
    NotTaken {
        /// The function.
        address: String,
        /// The driver that should have.
        driver: String,
        /// The driver that has.
        found: String,
    },
    /// Nothing is known of it.
    #[error("{object}: Forebay has not changed it, so there is nothing to restore (see: forebay vf list)")]
    NotOurs {
        /// The function or PF.
        object: String,
    },
    /// A write to sysfs failed.
    #[error("{object}: cannot {step}: {source} (it needs root; see: dmesg)")]
    Write {
        /// The function or PF.
        object: String,
        /// What was tried.
        step: String,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The PF's driver refused a setting.
    #[error(
        "VF {pf}/{index}: the PF does not take {setting}: {source} (does its driver know it? see: dmesg)"
    )]
    Setting {
        /// The PF.
        pf: String,
        /// The VF's number.
        index: u32,
        /// What was to be set.
        setting: String,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The kernel does not answer.
    #[error("cannot ask the kernel for {what}: {source} (are netlink sockets allowed here?)")]
    Ask {
        /// What was asked for.
        what: String,
        /// The kernel's reason.
        source: io::Error,
    },
    /// A file cannot be read or written.
    #[error("{}: {source} ({remedy})", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The kernel's reason.
        source: io::Error,
        /// What to do.
        remedy: &'static str,
    },
    /// Not all of a failed change could be undone.
    #[error("{cause}; undoing it failed too: {left}")]
    HalfUndone {
        /// Why the change failed.
        cause: Box<VfError>,
        /// What is still changed.
        left: String,
    },
    /// Not everything could be restored.
    #[error("not restored: {left}")]
    HalfRestored {
        /// What is still changed, and why.
        left: String,
    },
}

impl VfError {
    pub(super) fn read(path: &Path, source: io::Error) -> Self {
        Self::File { path: path.to_owned(), source, remedy: "is sysfs mounted, and readable?" }
    }
}
