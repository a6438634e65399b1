//! Where Forebay puts files: it can, and there is room.

use super::{Finding, Level, Subject, System};
use rustix::fs::{Access, access, statvfs};
use std::path::Path;

/// Room for the rules of a full host, some 500 MiB, and for the log's cleaning to have its copy.
const STATE_ROOM_MIB: u64 = 1024;

pub(super) fn examine(system: &System, subject: &Subject) -> Vec<Finding> {
    let socket = subject.socket.parent().unwrap_or(Path::new("/"));
    let mut findings = vec![
        writable(system, "control_folder", socket, "control.socket"),
        writable(system, "state_folder", &subject.state, "host.state"),
    ];
    findings.extend(room(system, &subject.state));
    findings
}

/// Whether the folder can be written to, or made: then the first folder above it that is there counts.
fn writable(system: &System, name: &'static str, folder: &Path, key: &str) -> Finding {
    let shown = folder.display();
    let there = existing(system, folder);
    let finding = if !system.path(there).is_dir() {
        let value = format!("{} is not a folder", there.display());
        Finding::bad(Level::Fail, name, value, format!("set {key} to another path"))
    } else if let Err(error) = access(system.path(there), Access::WRITE_OK | Access::EXEC_OK) {
        let value = format!("{} cannot be written to: {error}", there.display());
        let remedy = format!("mkdir -p {shown} && chown \"$USER\" {shown}; or set {key} to another path");
        Finding::bad(Level::Fail, name, value, remedy)
    } else if there == folder {
        Finding::ok(name, "can be written to")
    } else {
        Finding::ok(name, "can be made")
    };
    finding.of(folder.to_string_lossy())
}

fn existing<'a>(system: &System, folder: &'a Path) -> &'a Path {
    folder.ancestors().find(|folder| system.has(folder)).unwrap_or(Path::new("/"))
}

fn room(system: &System, folder: &Path) -> Option<Finding> {
    const NAME: &str = "state_room";
    let room = statvfs(system.path(existing(system, folder))).ok()?;
    let free = (room.f_bavail * room.f_frsize) >> 20;
    let seen = format!("{free} MiB free");
    let finding = if free >= STATE_ROOM_MIB {
        Finding::ok(NAME, seen)
    } else {
        let value = format!("{seen}; the rules of a full host take up to {STATE_ROOM_MIB} MiB");
        Finding::warn(NAME, value, "make room there, or set host.state to a folder on another disk")
    };
    Some(finding.of(folder.to_string_lossy()).with("free_mib", free))
}
