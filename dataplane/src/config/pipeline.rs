//! One `[[pipeline]]` table: from its keys to a draft, with all that can be said of it by itself. What it may have beside
//! others is the matter of `pipelines.rs`.

use super::cores::Machine;
use super::model::{PathStage, StageGroup, WhenFull};
use super::object::{At, Fault, Field, Object};
use super::problem::Problem;
use super::reader::Table;
use super::value::{named, pipeline_name, within};

pub(super) const PRIORITY_DEFAULT: u32 = 0;
pub(super) const WHEN_FULL_DEFAULT: WhenFull = WhenFull::Drop;

/// 16 bursts: some 100 us of the slower stage's work.
pub(super) const RING_PACKETS_DEFAULT: usize = 1024;

/// Room for ranks within a hundred classes; more would only be harder to read.
const PRIORITY_MAX: u32 = 1000;

/// One burst, below which a ring would cut every burst in two.
const RING_PACKETS_MIN: usize = 64;

/// Some 150 MiB of buffers in one ring. A packet behind so many others waits for milliseconds.
const RING_PACKETS_MAX: usize = 65_536;

/// Some 5000 buffers: rings of 1024 descriptors in both directions for two devices, and bursts in flight.
const MEMORY_MIN_MIB: u32 = 16;

/// 1 TiB, beyond which a number is a slip of units.
const MEMORY_MAX_MIB: u32 = 1_048_576;

const IN_ORDER: &str = "name receive, classify and transform once each, in this order";

/// A pipeline on its way: what others must know of it is there even where the rest is wrong.
pub(super) struct Draft {
    pub object: Object,
    pub name: Option<At<String>>,
    /// `None` where it is wrong.
    pub priority: Option<u32>,
    pub ports: Field<Vec<At<String>>>,
    /// To be checked when its cores are known.
    pub min_cores: Field<i64>,
    /// Given and right.
    pub memory: Option<(u32, At<i64>)>,
    /// Empty where that is wrong as a whole; then the object has a problem.
    pub groups: Vec<GroupDraft>,
}

/// Stages that share cores, on their way.
pub(super) struct GroupDraft {
    pub object: Object,
    /// The group for people: `stage[1] of pipeline "gold"`; the pipeline where it is all of that.
    pub title: String,
    pub cores: Cores,
    /// As named; empty where the group is the whole path unsaid.
    run: Vec<At<String>>,
    /// What `run` says; `None` where it is wrong.
    stages: Option<Vec<PathStage>>,
    when_full: Option<WhenFull>,
    ring_packets: Option<usize>,
}

/// The cores of a group.
pub(super) enum Cores {
    /// Not named: a share of what pipelines leave over.
    Shared,
    Named(Vec<usize>, At<String>),
    /// Wrong, which is reported already.
    Bad,
}

impl Draft {
    /// Moves everything that was found wrong to `problems`.
    pub fn report(&mut self, problems: &mut Vec<Problem>) {
        problems.append(&mut self.object.problems);
        self.groups.iter_mut().for_each(|group| problems.append(&mut group.object.problems));
    }
}

impl GroupDraft {
    /// The group on these cores, where nothing is wrong with it.
    pub fn on(&self, cores: Vec<usize>) -> Option<StageGroup> {
        Some(StageGroup {
            stages: self.stages.clone()?,
            cores,
            when_full: self.when_full?,
            ring_packets: self.ring_packets?,
        })
    }
}

/// Reads one table.
pub(super) fn read(mut table: Table<'_>, machine: &Machine) -> Draft {
    table.allow(&["name", "priority", "ports", "cores", "min_cores", "memory_mib", "stage"]);
    let (name, ports) = (table.text("name"), table.texts("ports"));
    table.object.entitle("pipeline", &name);
    let (priority, min_cores, memory) =
        (table.integer("priority"), table.integer("min_cores"), table.integer("memory_mib"));
    let cores = table.text("cores");
    let groups = groups(&mut table, &cores, machine);

    let mut object = table.object;
    if name.is_absent() {
        object.missing("name", "give the pipeline a name, such as gold");
    }
    let checked_name = object.check(&name, pipeline_name);
    if let Some(list) = ports.given()
        && list.value.is_empty()
    {
        let remedy = "name ports, or leave it out in one pipeline, which then takes all others";
        object.misplaced("ports", list.line, Fault::new("an empty list", remedy));
    }
    let checked = object.check(&priority, |number| within(*number, 0, PRIORITY_MAX, ""));
    let priority = if priority.is_absent() { Some(PRIORITY_DEFAULT) } else { checked };
    let checked = object.check(&memory, |mib| within(*mib, MEMORY_MIN_MIB, MEMORY_MAX_MIB, " MiB"));
    let memory = checked.zip(memory.given().cloned());
    Draft {
        object,
        name: checked_name.and(name.given().cloned()),
        priority,
        ports,
        min_cores,
        memory,
        groups,
    }
}

/// Its `[[pipeline.stage]]` tables; without them, one group of all stages.
fn groups(table: &mut Table<'_>, cores: &Field<String>, machine: &Machine) -> Vec<GroupDraft> {
    let title = table.object.title.clone();
    let Some(line) = table.key_line("stage") else {
        let object = Object::new(table.object.path.clone(), title.clone(), table.object.line);
        return vec![whole(object, cores, machine)];
    };
    let before = table.object.problems.len();
    let mut groups: Vec<GroupDraft> = table
        .tables("stage", "pipeline.stage")
        .into_iter()
        .enumerate()
        .map(|(i, stage)| group(stage, format!("stage[{i}] of {title}"), i == 0, machine))
        .collect();
    if let Some(at) = cores.given() {
        let remedy = "remove it, or the tables";
        table.object.conflict(at, "its [[pipeline.stage]] tables have the cores", remedy);
    }
    if groups.is_empty() && table.object.problems.len() == before {
        let remedy = "write [[pipeline.stage]] tables, or remove it";
        table.object.misplaced("stage", Some(line), Fault::new("an empty list", remedy));
    }
    check_path(&mut groups);
    groups
}

/// Every stage on each of the pipeline's cores.
fn whole(mut object: Object, cores: &Field<String>, machine: &Machine) -> GroupDraft {
    let cores = if cores.is_absent() { Cores::Shared } else { named_cores(&mut object, cores, machine) };
    GroupDraft {
        title: object.title.clone(),
        object,
        cores,
        run: Vec::new(),
        stages: Some(PathStage::PATH.to_vec()),
        when_full: Some(WHEN_FULL_DEFAULT),
        ring_packets: Some(RING_PACKETS_DEFAULT),
    }
}

fn named_cores(object: &mut Object, field: &Field<String>, machine: &Machine) -> Cores {
    match object.check(field, |text| machine.cores(text)).zip(field.given()) {
        Some((cores, at)) => Cores::Named(cores, at.clone()),
        None => Cores::Bad,
    }
}

fn group(mut table: Table<'_>, title: String, is_first: bool, machine: &Machine) -> GroupDraft {
    table.allow(&["run", "cores", "when_full", "ring_packets"]);
    let before = table.object.problems.len();
    let run = table.texts("run");
    let run_is_whole = table.object.problems.len() == before;
    let (cores, when_full, ring) =
        (table.text("cores"), table.text("when_full"), table.integer("ring_packets"));
    let mut object = table.object;
    if run.is_absent() {
        object.missing("run", "write the stages that share its cores, such as [\"receive\"]");
    }
    if cores.is_absent() {
        object.missing("cores", "name the cores that it runs on, such as \"1\"");
    }
    let needless = [
        ("when_full", &when_full.given().map(|at| at.line)),
        ("ring_packets", &ring.given().map(|at| at.line)),
    ];
    for (key, line) in needless {
        if let (true, Some(line)) = (is_first, line) {
            let fault =
                Fault::new("no ring leads to the first stage", "remove it, or move it to a later one");
            object.misplaced(key, *line, fault);
        }
    }
    let stages = stages(&mut object, &run).filter(|_| run_is_whole);
    let run = run.given().map_or(Vec::new(), |list| list.value.clone());
    let cores = named_cores(&mut object, &cores, machine);
    let checked = object.check(&when_full, named);
    let when_full = if when_full.is_absent() { Some(WHEN_FULL_DEFAULT) } else { checked };
    let checked = object.check(&ring, |packets| ring_packets(*packets));
    let ring_packets = if ring.is_absent() { Some(RING_PACKETS_DEFAULT) } else { checked };
    GroupDraft { object, title, cores, run, stages, when_full, ring_packets }
}

fn ring_packets(packets: i64) -> Result<usize, Fault> {
    let packets = within(packets, RING_PACKETS_MIN, RING_PACKETS_MAX, " packets")?;
    if packets.is_power_of_two() {
        return Ok(packets);
    }
    let remedy = format!("write {} or {}", packets.next_power_of_two() / 2, packets.next_power_of_two());
    Err(Fault::new("not a power of two", remedy))
}

/// The stages of one group, in the order in which they are named; `None` where one is unknown, or there is none.
fn stages(object: &mut Object, run: &Field<Vec<At<String>>>) -> Option<Vec<PathStage>> {
    let list = run.given()?;
    if list.value.is_empty() {
        let fault = Fault::new("an empty list", "name stages, or remove the table");
        object.misplaced("run", list.line, fault);
    }
    let before = object.problems.len();
    let stages: Vec<PathStage> = list.value.iter().filter_map(|at| object.check_at(at, named)).collect();
    (object.problems.len() == before && !stages.is_empty()).then_some(stages)
}

/// The groups are the whole path, in its order. Reports the first place where they are not.
fn check_path(groups: &mut [GroupDraft]) {
    if groups.iter().any(|group| group.stages.is_none()) {
        return;
    }
    let mut ahead = &PathStage::PATH[..];
    for group in groups.iter_mut() {
        for (stage, at) in group.stages.iter().flatten().zip(&group.run) {
            let problem = match ahead {
                [next, rest @ ..] if next == stage => {
                    ahead = rest;
                    continue;
                }
                [next, ..] if next < stage => format!("runs before {next}"),
                _ => "runs already".to_string(),
            };
            return group.object.conflict(at, problem, IN_ORDER);
        }
    }
    if let (Some(last), false) = (groups.last_mut(), ahead.is_empty()) {
        let names: Vec<String> = ahead.iter().map(PathStage::to_string).collect();
        let problem = format!("the path ends here, and nothing runs {}", names.join(" and "));
        let line = last.run.last().and_then(|at| at.line);
        last.object.misplaced(
            "run",
            line,
            Fault::new(problem, "add it here, or in one more [[pipeline.stage]]"),
        );
    }
}
