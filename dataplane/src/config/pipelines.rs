//! What pipelines must not do to each other: share a name, a port, a core, or memory that is not there. And how those
//! share cores that name none.
//!
//! Cores that are named are given away first, and the rest is shared afterwards, so that the order of the file means
//! nothing but among equals.

use std::collections::{BTreeMap, HashMap};

use super::cores::{Machine, list};
use super::model::{Device, Layout, MAIN_PIPELINE, PathStage, Pipeline, StageGroup, Workers};
use super::object::Fault;
use super::pipeline::{Cores, Draft, RING_PACKETS_DEFAULT, WHEN_FULL_DEFAULT};
use super::port;
use super::value::within;

/// What stands beside the pipelines in the file, as far as it is right.
pub(super) struct Surroundings<'a> {
    pub machine: &'a Machine,
    pub workers: Option<&'a Workers>,
    pub memory_mib: Option<u32>,
    /// What the pipelines leave for everything else, in MiB.
    pub memory_left_mib: u32,
}

/// The one pipeline of a file that declares none: what `workers.layout` says, on the cores of `[workers]`.
fn main(workers: &Workers) -> Pipeline {
    // Two cores at least where the layout is split: neither part is empty.
    let groups = match (workers.layout, workers.cores.split_at(workers.cores.len() / 2)) {
        (Layout::Fused, _) => vec![group(&PathStage::PATH, &workers.cores)],
        (Layout::Split, (front, back)) => {
            vec![
                group(&[PathStage::Receive, PathStage::Classify], front),
                group(&[PathStage::Transform], back),
            ]
        }
    };
    Pipeline { name: MAIN_PIPELINE.into(), priority: 0, ports: None, min_cores: 1, memory_mib: None, groups }
}

fn group(stages: &[PathStage], cores: &[usize]) -> StageGroup {
    StageGroup {
        stages: stages.to_vec(),
        cores: cores.to_vec(),
        when_full: WHEN_FULL_DEFAULT,
        ring_packets: RING_PACKETS_DEFAULT,
    }
}

/// Reports to the drafts, and to ports, what does not fit. The pipelines, where nothing is wrong with any; the one of a
/// file that declares none.
pub(super) fn settle(
    drafts: &mut [Draft],
    ports: &mut [port::Draft],
    beside: &Surroundings<'_>,
) -> Option<Vec<Pipeline>> {
    if drafts.is_empty() {
        return Some(vec![main(beside.workers?)]);
    }
    check_names(drafts);
    check_memory(drafts, beside);
    check_ports(drafts, ports);
    let owners = own_cores(drafts);
    let shares = share_cores(drafts, &owners, beside);
    let mut pipelines = Vec::with_capacity(drafts.len());
    for (index, draft) in drafts.iter_mut().enumerate() {
        pipelines.extend(finish(draft, shares.get(&index), beside.machine));
    }
    (pipelines.len() == drafts.len()).then_some(pipelines)
}

fn check_names(drafts: &mut [Draft]) {
    let mut lines: HashMap<String, Option<usize>> = HashMap::new();
    for draft in drafts {
        let Some(name) = &draft.name else { continue };
        if let Some(first) = lines.get(&name.value) {
            let place = first.map_or(String::new(), |line| format!(" on line {line}"));
            let problem = format!("another pipeline has this name{place}");
            draft.object.conflict(name, problem, "give each pipeline a name of its own");
        } else {
            lines.insert(name.value.clone(), draft.object.line);
        }
    }
}

fn check_memory(drafts: &mut [Draft], beside: &Surroundings<'_>) {
    let Some(all) = beside.memory_mib else { return };
    let most = u64::from(all.saturating_sub(beside.memory_left_mib));
    let mut taken = 0;
    for Draft { object, memory, .. } in drafts {
        let Some((mib, at)) = memory else { continue };
        taken += u64::from(*mib);
        if taken > most {
            let problem = format!(
                "with it pipelines have {taken} of the {all} MiB of dpdk.memory_mib, which leaves less than {} MiB",
                beside.memory_left_mib
            );
            let enough = taken + u64::from(beside.memory_left_mib);
            let remedy = format!("lower it, or set dpdk.memory_mib to {enough} or more");
            return object.conflict(at, problem, remedy);
        }
    }
}

/// Each port that has a device is received from by one pipeline.
fn check_ports(drafts: &mut [Draft], ports: &mut [port::Draft]) {
    let mut by_name: HashMap<&str, &port::Draft> = HashMap::new();
    for port in ports.iter() {
        if let Some(name) = &port.name {
            by_name.entry(&name.value).or_insert(port);
        }
    }
    let mut receivers: HashMap<String, String> = HashMap::new();
    let mut rest: Option<String> = None;
    let mut is_clear = true;
    for draft in drafts.iter_mut() {
        let title = draft.object.title.clone();
        if draft.ports.is_absent() {
            if let Some(first) = &rest {
                draft
                    .object
                    .missing("ports", format!("{first} takes all others already: name those of this one"));
            }
            rest.get_or_insert(title);
            continue;
        }
        for at in draft.ports.given().into_iter().flat_map(|list| &list.value) {
            let port = &at.value;
            let (problem, remedy) = match (by_name.get(port.as_str()), receivers.get(port)) {
                (None, _) => (
                    format!("there is no port {port:?}"),
                    format!(
                        "declare port {port:?}, or leave ports out in one pipeline, which then takes all others"
                    ),
                ),
                (Some(port::Draft { device: Some((Device::Vlan { port: parent, .. }, _)), .. }), _) => (
                    format!("its packets come with those of port {parent:?}"),
                    format!("name {parent} instead"),
                ),
                (Some(_), Some(other)) if *other == title => {
                    ("listed twice".to_string(), "remove one of them".to_string())
                }
                (Some(_), Some(other)) => (
                    format!("{other} receives its packets already"),
                    "name it in one pipeline only".to_string(),
                ),
                (Some(_), None) => {
                    receivers.insert(port.clone(), title.clone());
                    continue;
                }
            };
            draft.object.conflict(at, problem, remedy);
        }
        is_clear &= !draft.object.problems.iter().any(|problem| problem.leaf.starts_with("ports"));
    }
    // A name that is wrong may have been meant for any port.
    if rest.is_none() && is_clear {
        ports.iter_mut().for_each(|port| check_received(port, &receivers));
    }
}

fn check_received(port: &mut port::Draft, receivers: &HashMap<String, String>) {
    let (Some(name), Some((Device::Dpdk(_), _))) = (&port.name, &port.device) else { return };
    if !receivers.contains_key(&name.value) {
        let remedy = "add it to ports of a pipeline, or leave ports out in one, which then takes all others";
        port.object.conflict(name, "no pipeline receives its packets", remedy);
    }
}

/// Gives away the cores that are named: each core to whom it belongs, as people say it.
fn own_cores(drafts: &mut [Draft]) -> HashMap<usize, String> {
    let mut owners: HashMap<usize, String> = HashMap::new();
    for group in drafts.iter_mut().flat_map(|draft| &mut draft.groups) {
        let Cores::Named(cores, at) = &group.cores else { continue };
        let mut taken: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        for core in cores {
            if let Some(owner) = owners.get(core) {
                taken.entry(owner.clone()).or_default().push(*core);
            } else {
                owners.insert(*core, group.title.clone());
            }
        }
        for (owner, cores) in taken {
            let (cores, verb) = named_list(&cores, "belongs", "belong");
            let remedy = "give each stage of each pipeline cores of its own";
            group.object.conflict(at, format!("{cores} {verb} to {owner}"), remedy);
        }
    }
    owners
}

/// The cores of `[workers]` that no pipeline names, evenly over those that name none: by number of the draft. Empty where
/// they are not known, or not enough, which is reported.
fn share_cores(
    drafts: &mut [Draft],
    owners: &HashMap<usize, String>,
    beside: &Surroundings<'_>,
) -> HashMap<usize, Vec<usize>> {
    let mut sharers: Vec<usize> = (0..drafts.len())
        .filter(|index| drafts[*index].groups.iter().any(|group| matches!(group.cores, Cores::Shared)))
        .collect();
    // A stable sort: equals stay in the order of the file.
    sharers.sort_by_key(|index| std::cmp::Reverse(drafts[*index].priority));
    let is_bad = |draft: &Draft| {
        draft.groups.is_empty() || draft.groups.iter().any(|group| matches!(group.cores, Cores::Bad))
    };
    let Some(workers) = beside.workers.filter(|_| !drafts.iter().any(is_bad)) else { return HashMap::new() };
    let left: Vec<usize> = workers.cores.iter().copied().filter(|core| !owners.contains_key(core)).collect();
    if let Some(without) = sharers.get(left.len()) {
        let missing = sharers.len() - left.len();
        let is_spare = |core: &usize| !workers.cores.contains(core) && !owners.contains_key(core);
        let spare: Vec<usize> = beside.machine.cores.iter().copied().filter(is_spare).collect();
        let fault = too_few(sharers.len(), &left, missing, &spare);
        let object = &mut drafts[*without].object;
        object.misplaced("cores", object.line, fault);
        return HashMap::new();
    }
    let mut shares = HashMap::new();
    let mut left = &left[..];
    for (place, index) in sharers.iter().enumerate() {
        let (share, others) = left.split_at(left.len().div_ceil(sharers.len() - place));
        shares.insert(*index, share.to_vec());
        left = others;
    }
    shares
}

fn too_few(sharers: usize, left: &[usize], missing: usize, spare: &[usize]) -> Fault {
    let whose =
        if sharers == 1 { "one pipeline names".to_string() } else { format!("{sharers} pipelines name") };
    let left = match left {
        [] => "none of workers.cores is".to_string(),
        some => {
            let (cores, verb) = named_list(some, "is", "are");
            format!("only {cores} of workers.cores {verb}")
        }
    };
    let plural = if missing == 1 { "" } else { "s" };
    let problem = format!("{whose} no cores, and {left} left: {missing} core{plural} too few");
    let remedy = if spare.len() >= missing {
        format!("add {missing} of {} to workers.cores, or declare fewer pipelines", list(spare))
    } else {
        "declare fewer pipelines, or name fewer cores in others".to_string()
    };
    Fault::new(problem, remedy)
}

/// `core 1` or `cores 1-2`, and the verb that goes with it.
fn named_list<'a>(cores: &[usize], one: &'a str, several: &'a str) -> (String, &'a str) {
    if cores.len() == 1 {
        (format!("core {}", list(cores)), one)
    } else {
        (format!("cores {}", list(cores)), several)
    }
}

/// The pipeline, where nothing is wrong with it.
fn finish(draft: &mut Draft, share: Option<&Vec<usize>>, machine: &Machine) -> Option<Pipeline> {
    let cores: Option<Vec<Vec<usize>>> = draft
        .groups
        .iter()
        .map(|group| match &group.cores {
            Cores::Named(cores, _) => Some(cores.clone()),
            Cores::Shared => share.cloned(),
            Cores::Bad => None,
        })
        .collect();
    let count = cores.as_ref().map(|cores| cores.iter().map(Vec::len).sum::<usize>());
    let most = count.unwrap_or(machine.cores.len());
    // Stages with cores of their own keep one each.
    let least = usize::from(draft.groups.len() > 1);
    let unit = if most == 1 { " core" } else { " cores" };
    let checked = draft.object.check(&draft.min_cores, |min| within(*min, least, most, unit));
    let min_cores = if draft.min_cores.is_absent() { Some(1) } else { checked };
    let groups: Option<Vec<StageGroup>> =
        draft.groups.iter().zip(cores?).map(|(group, cores)| group.on(cores)).collect();
    let ports = draft.ports.given().map(|list| list.value.iter().map(|at| at.value.clone()).collect());
    Some(Pipeline {
        name: draft.name.as_ref()?.value.clone(),
        priority: draft.priority?,
        ports,
        min_cores: min_cores?,
        memory_mib: draft.memory.as_ref().map(|(mib, _)| *mib),
        groups: groups?,
    })
}
