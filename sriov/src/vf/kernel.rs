//! What the kernel is asked to do, and where it answers other than through the files of sysfs.

use std::fmt;
use std::fs;
use std::io;
use std::path::Path;
use std::process::Command;

use super::netlink;
use super::safety::HostNetwork;
use super::settings::{Setting, VfSettings};

/// The kernel of a machine.
pub(super) trait Kernel: Send + Sync {
    /// Writes a value to a file of sysfs, in one call: the kernel takes each as a command.
    fn write(&self, path: &Path, value: &str) -> io::Result<()>;

    /// Loads a driver. Errors: modprobe's words.
    fn load_module(&self, name: &str) -> Result<(), String>;

    /// What the host's own network needs.
    fn host_network(&self) -> io::Result<HostNetwork>;

    /// What a PF has set for a VF.
    fn vf_settings(&self, pf_interface: &str, index: u32) -> io::Result<VfSettings>;

    /// Makes a PF set something for a VF.
    fn set_vf(&self, pf_interface: &str, index: u32, setting: Setting) -> io::Result<()>;

    /// A process that has the IOMMU group open, and with it the functions in it.
    fn group_user(&self, group: u32) -> Option<User>;
}

/// A process that uses a function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Process id.
    pub pid: u32,
    /// The program's name.
    pub program: String,
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (process {})", self.program, self.pid)
    }
}

/// The kernel that this runs on.
pub(super) struct LiveKernel;

impl Kernel for LiveKernel {
    fn write(&self, path: &Path, value: &str) -> io::Result<()> {
        fs::write(path, value)
    }

    fn load_module(&self, name: &str) -> Result<(), String> {
        let done = Command::new("modprobe").arg(name).output().map_err(|error| error.to_string())?;
        if done.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&done.stderr);
        Err(said.split_whitespace().collect::<Vec<_>>().join(" "))
    }

    fn host_network(&self) -> io::Result<HostNetwork> {
        netlink::host_network()
    }

    fn vf_settings(&self, pf_interface: &str, index: u32) -> io::Result<VfSettings> {
        netlink::vf_settings(pf_interface, index)
    }

    fn set_vf(&self, pf_interface: &str, index: u32, setting: Setting) -> io::Result<()> {
        netlink::set_vf(pf_interface, index, setting)
    }

    fn group_user(&self, group: u32) -> Option<User> {
        // The second is its name without an IOMMU.
        let files = [format!("/dev/vfio/{group}"), format!("/dev/vfio/noiommu-{group}")];
        let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        for pid in pids {
            let open = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
            let mut links = open.filter_map(|entry| fs::read_link(entry.path()).ok());
            if links.any(|link| files.iter().any(|file| link.as_os_str() == file.as_str())) {
                let program = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
                return Some(User { pid, program: program.trim().to_owned() });
            }
        }
        None
    }
}
