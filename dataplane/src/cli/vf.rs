//! `forebay vf`: listing, creating, binding and releasing SR-IOV virtual functions of this machine. No daemon is asked.

use std::io::{self, Write as _};
use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};
use forebay_api::validate::MacAddr;
use forebay_sriov::vf::{
    BindOptions, FunctionKind, Functions, LinkState, Listed, Owner, Target, VFIO_PCI, VfSettings,
};
use serde::Serialize;

use super::failure::Failure;
use super::table::{Table, left, right};
use super::{Form, Out, write_json};

#[derive(Debug, Subcommand)]
pub enum VfCommand {
    /// Show PFs and VFs.
    List {
        #[command(flatten)]
        form: Form,
    },
    /// Give a PF this many VFs, without drivers.
    Create {
        /// The PF: its interface, or its PCI address.
        pf: Target,
        /// How many VFs it shall have.
        count: u32,
        /// Even where that removes VFs, or where the PF carries this host's own traffic.
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        form: Form,
    },
    /// Bind a VF, or another PCI function, to a driver, and set it up through its PF.
    Bind {
        /// PF/INDEX, or a PCI address.
        function: Target,
        #[command(flatten)]
        options: Box<BindArgs>,
        #[command(flatten)]
        form: Form,
    },
    /// Restore what was before: of a VF, or of a PF and all its VFs.
    Release {
        /// PF/INDEX, a PCI address, or a PF.
        function: Target,
        /// Even where drivers of this host have VFs that go.
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        form: Form,
    },
}

#[derive(Debug, Args)]
pub struct BindArgs {
    /// The driver.
    #[arg(long, default_value = VFIO_PCI)]
    driver: String,
    /// The VF's MAC address.
    #[arg(long)]
    mac: Option<MacAddr>,
    /// The VLAN that the VF's frames are put into; 0 for none.
    #[arg(long, value_name = "ID", value_parser = clap::value_parser!(u16).range(0..=4094))]
    vlan: Option<u16>,
    /// Whether the NIC drops frames from other MAC addresses.
    #[arg(long)]
    spoof_check: Option<Switch>,
    /// Whether the VF may change its MAC address and hear everything.
    #[arg(long)]
    trust: Option<Switch>,
    /// The link that the VF sees.
    #[arg(long)]
    link_state: Option<Link>,
    /// Least rate at which it may always send, Mbit/s; 0 for none.
    #[arg(long, value_name = "MBPS")]
    min_rate_mbps: Option<u32>,
    /// Largest rate at which it may send, Mbit/s; 0 for no limit.
    #[arg(long, value_name = "MBPS")]
    max_rate_mbps: Option<u32>,
    /// Bind it without an IOMMU too: the device can then write anywhere in memory.
    #[arg(long)]
    no_iommu: bool,
    /// Even where it carries this host's own traffic, or shares its IOMMU group.
    #[arg(long)]
    force: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Switch {
    On,
    Off,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Link {
    Auto,
    Enable,
    Disable,
}

impl BindArgs {
    fn options(&self) -> BindOptions {
        let switch = |value: Option<Switch>| value.map(|value| matches!(value, Switch::On));
        BindOptions {
            driver: self.driver.clone(),
            settings: VfSettings {
                mac: self.mac.map(|mac| mac.0),
                vlan: self.vlan,
                spoof_check: switch(self.spoof_check),
                trust: switch(self.trust),
                link_state: self.link_state.map(|state| match state {
                    Link::Auto => LinkState::Auto,
                    Link::Enable => LinkState::Enable,
                    Link::Disable => LinkState::Disable,
                }),
                min_rate_mbps: self.min_rate_mbps,
                max_rate_mbps: self.max_rate_mbps,
            },
            no_iommu: self.no_iommu,
            force: self.force,
            owner: Owner::Command,
        }
    }
}

/// Does one command on this machine.
pub fn main(command: VfCommand) -> ExitCode {
    let mut out = io::BufWriter::new(io::stdout().lock());
    let done = execute(&Functions::of_this_host(), command, &mut out);
    super::status_of(done.and_then(|()| Ok(out.flush()?)))
}

fn execute(functions: &Functions, command: VfCommand, out: &mut Out<'_>) -> Result<(), Failure> {
    match command {
        VfCommand::List { form } => write_list(&functions.list()?, form, out)?,
        VfCommand::Create { pf, count, force, form } => {
            let created = functions.create(&pf, count, force, &Owner::Command)?;
            let answer = CreatedJson {
                pf: created.pf.short_name(),
                address: &created.pf.address,
                num_vfs: created.num_vfs,
                former_num_vfs: created.former_vfs,
            };
            if form.json {
                write_json(out, &answer)?;
            } else {
                writeln!(out, "{}: {} VFs, {} before", answer.pf, answer.num_vfs, answer.former_num_vfs)?;
            }
        }
        VfCommand::Bind { function, options, form } => {
            let bound = functions.bind(&function, &options.options())?;
            if bound.without_iommu {
                eprintln!(
                    "forebay: warning: {} works without an IOMMU: whoever drives it can read and write all of this \
                     machine's memory",
                    bound.before.address
                );
            }
            let former = bound.before.driver.as_deref();
            let answer = BoundJson {
                address: &bound.before.address,
                driver: &bound.driver,
                former_driver: former,
                without_iommu: bound.without_iommu,
            };
            if form.json {
                write_json(out, &answer)?;
            } else {
                writeln!(
                    out,
                    "{}: {}, {} before",
                    answer.address,
                    answer.driver,
                    former.unwrap_or("no driver")
                )?;
            }
        }
        VfCommand::Release { function, force, form } => {
            let released = functions.release(&function, force)?;
            if form.json {
                let physical = released.physical.iter().map(|(pf, num_vfs)| PfJson { pf, num_vfs: *num_vfs });
                let (functions, physical) = (&released.functions, physical.collect());
                write_json(out, &ReleasedJson { functions, physical })?;
                return Ok(());
            }
            for address in &released.functions {
                writeln!(out, "{address}: as before")?;
            }
            for (pf, num_vfs) in &released.physical {
                writeln!(out, "{pf}: {num_vfs} VFs, as before")?;
            }
        }
    }
    Ok(())
}

#[derive(Serialize)]
struct CreatedJson<'a> {
    pf: &'a str,
    address: &'a str,
    num_vfs: u32,
    former_num_vfs: u32,
}

#[derive(Serialize)]
struct BoundJson<'a> {
    address: &'a str,
    driver: &'a str,
    former_driver: Option<&'a str>,
    without_iommu: bool,
}

#[derive(Serialize)]
struct ReleasedJson<'a> {
    functions: &'a [String],
    physical: Vec<PfJson<'a>>,
}

#[derive(Serialize)]
struct PfJson<'a> {
    pf: &'a str,
    num_vfs: u32,
}

/// A PF or VF. What is not known, or means nothing to its kind, is null.
#[derive(Serialize)]
struct FunctionJson<'a> {
    name: &'a str,
    address: &'a str,
    kind: &'static str,
    driver: Option<&'a str>,
    driver_override: Option<&'a str>,
    interfaces: &'a [String],
    numa_node: Option<u32>,
    iommu_group: Option<u32>,
    vendor_id: String,
    device_id: String,
    num_vfs: Option<u32>,
    total_vfs: Option<u32>,
    pf: Option<&'a str>,
    index: Option<u32>,
    mac: Option<String>,
    vlan: Option<u16>,
    spoof_check: Option<bool>,
    trust: Option<bool>,
    link_state: Option<String>,
    min_rate_mbps: Option<u32>,
    max_rate_mbps: Option<u32>,
    changed_by: Option<String>,
}

impl<'a> FunctionJson<'a> {
    fn new(listed: &'a Listed) -> Self {
        let (function, settings) = (&listed.function, &listed.settings);
        let (num_vfs, total_vfs, pf, index) = match &function.kind {
            FunctionKind::Physical { num_vfs, total_vfs } => (Some(*num_vfs), Some(*total_vfs), None, None),
            FunctionKind::Virtual { pf, index } => (None, None, Some(pf.as_str()), Some(*index)),
            FunctionKind::Plain => (None, None, None, None),
        };
        Self {
            name: &listed.name,
            address: &function.address,
            kind: kind(&function.kind),
            driver: function.driver.as_deref(),
            driver_override: function.driver_override.as_deref(),
            interfaces: &function.interfaces,
            numa_node: function.numa_node,
            iommu_group: function.iommu_group,
            vendor_id: format!("{:04x}", function.vendor_id),
            device_id: format!("{:04x}", function.device_id),
            num_vfs,
            total_vfs,
            pf,
            index,
            mac: settings.mac.map(|mac| MacAddr(mac).to_string()),
            vlan: settings.vlan,
            spoof_check: settings.spoof_check,
            trust: settings.trust,
            link_state: settings.link_state.map(|state| state.to_string()),
            min_rate_mbps: settings.min_rate_mbps,
            max_rate_mbps: settings.max_rate_mbps,
            changed_by: listed.owner.as_ref().map(ToString::to_string),
        }
    }
}

fn kind(kind: &FunctionKind) -> &'static str {
    match kind {
        FunctionKind::Physical { .. } => "pf",
        FunctionKind::Virtual { .. } => "vf",
        FunctionKind::Plain => "function",
    }
}

fn write_list(all: &[Listed], form: Form, out: &mut Out<'_>) -> io::Result<()> {
    if form.json {
        return all.iter().try_for_each(|listed| write_json(out, &FunctionJson::new(listed)));
    }
    let mut table = Table::new([
        left("NAME"),
        left("ADDRESS"),
        left("KIND"),
        left("DRIVER"),
        left("INTERFACE"),
        right("NUMA"),
        right("IOMMU"),
        right("VFS"),
        left("MAC"),
        right("VLAN"),
        left("SPOOF-CHECK"),
        left("TRUST"),
        left("LINK"),
        right("MAX-MBPS"),
        left("CHANGED-BY"),
    ]);
    for listed in all {
        let row = FunctionJson::new(listed);
        let number = |number: Option<u32>| number.map_or_else(|| "-".to_owned(), |number| number.to_string());
        let switch = |on: Option<bool>| on.map_or("-", |on| if on { "on" } else { "off" }).to_owned();
        let word = |word: Option<String>| word.unwrap_or_else(|| "-".into());
        let vfs = row.num_vfs.zip(row.total_vfs).map(|(now, all)| format!("{now}/{all}"));
        table.row(
            out,
            [
                row.name.to_owned(),
                row.address.to_owned(),
                row.kind.to_owned(),
                row.driver.unwrap_or("-").to_owned(),
                word(row.interfaces.first().cloned()),
                number(row.numa_node),
                number(row.iommu_group),
                word(vfs),
                word(row.mac),
                number(row.vlan.map(u32::from)),
                switch(row.spoof_check),
                switch(row.trust),
                word(row.link_state),
                number(row.max_rate_mbps),
                word(row.changed_by),
            ],
        )?;
    }
    table.finish(out)
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use forebay_sriov::vf::Function;

    use super::*;

    #[derive(Parser)]
    struct Words {
        #[command(subcommand)]
        command: VfCommand,
    }

    fn parsed(words: &str) -> Result<VfCommand, clap::Error> {
        Words::try_parse_from(std::iter::once("vf").chain(words.split(' '))).map(|words| words.command)
    }

    #[test]
    fn words_become_settings() {
        let command = parsed(
            "bind ens1/3 --mac 02:00:00:00:01:01 --vlan 7 --spoof-check off --trust on --link-state enable \
             --max-rate-mbps 1000",
        );
        let Ok(VfCommand::Bind { function, options, .. }) = command else { panic!("{command:?}") };
        assert_eq!(function, Target::Vf { pf: "ens1".into(), index: 3 });
        let options = options.options();
        let expected = VfSettings {
            mac: Some([2, 0, 0, 0, 1, 1]),
            vlan: Some(7),
            spoof_check: Some(false),
            trust: Some(true),
            link_state: Some(LinkState::Enable),
            min_rate_mbps: None,
            max_rate_mbps: Some(1000),
        };
        assert_eq!((options.settings, options.driver.as_str()), (expected, "vfio-pci"));
        assert!(!options.force && !options.no_iommu && options.owner == Owner::Command);
        for wrong in [
            "bind",
            "bind a/b/c",
            "bind ens1/x",
            "bind ens1/1 --vlan 4095",
            "bind ens1/1 --mac 1:2",
            "create ens1 x",
        ] {
            assert!(parsed(wrong).is_err(), "{wrong}");
        }
    }

    fn listed() -> Vec<Listed> {
        let function = Function {
            address: "0000:3b:00.0".into(),
            kind: FunctionKind::Physical { num_vfs: 1, total_vfs: 8 },
            driver: Some("igb".into()),
            driver_override: None,
            numa_node: Some(1),
            iommu_group: Some(7),
            interfaces: vec!["ens1".into()],
            vendor_id: 0x8086,
            device_id: 0x10c9,
        };
        let vf = Function {
            address: "0000:3b:10.0".into(),
            kind: FunctionKind::Virtual { pf: "0000:3b:00.0".into(), index: 0 },
            driver: None,
            interfaces: Vec::new(),
            ..function.clone()
        };
        let settings =
            VfSettings { mac: Some([2, 0, 0, 0, 1, 1]), spoof_check: Some(true), ..VfSettings::default() };
        let owner = Some(Owner::Daemon("host-a".into()));
        vec![
            Listed { function, name: "ens1".into(), settings: VfSettings::default(), owner: None },
            Listed { function: vf, name: "ens1/0".into(), settings, owner },
        ]
    }

    fn written(json: bool) -> String {
        let mut out = Vec::new();
        write_list(&listed(), Form { json }, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn json_has_one_function_a_line() {
        let text = written(true);
        let lines: Vec<serde_json::Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!((lines[0]["kind"].as_str(), lines[0]["total_vfs"].as_u64()), (Some("pf"), Some(8)));
        assert_eq!(lines[0]["device_id"].as_str(), Some("10c9"));
        assert_eq!((lines[1]["pf"].as_str(), lines[1]["index"].as_u64()), (Some("0000:3b:00.0"), Some(0)));
        assert_eq!(lines[1]["mac"].as_str(), Some("02:00:00:00:01:01"));
        assert_eq!(lines[1]["changed_by"].as_str(), Some("daemon host-a"));
        assert!(lines[1]["driver"].is_null() && lines[1]["vlan"].is_null());
    }

    #[test]
    fn text_shows_what_is_unknown_as_a_dash() {
        let text = written(false);
        let row: Vec<&str> = text.lines().nth(2).unwrap().split_whitespace().collect();
        assert_eq!(row[..7], ["ens1/0", "0000:3b:10.0", "vf", "-", "-", "1", "7"]);
        assert!(text.lines().nth(1).unwrap().contains("1/8"));
    }
}
