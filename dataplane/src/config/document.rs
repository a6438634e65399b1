//! The whole file: its tables in turn, each reporting what is wrong with it, and the config where nothing is.

use toml::de::DeTable;

use super::cores::{Machine, list};
use super::model::{Config, Control, Dpdk, Host, Hugepages, Idle, Layout, Port, Workers};
use super::object::{Fault, Field, Object};
use super::pipeline;
use super::pipelines::{self, Surroundings};
use super::port::{COMMON_KEYS, Draft, PortFields, UPLINK_KEYS, VF_KEYS, draft};
use super::problem::{Problem, Problems};
use super::reader::{Table, Text};
use super::siblings::Siblings;
use super::value::{self, host_name, named, path, socket_addr, socket_path, within};

const STATE_DEFAULT: &str = "/var/lib/forebay";
const SOCKET_DEFAULT: &str = "/run/forebay/forebay.sock";
const HUGEPAGES_DEFAULT: Hugepages = Hugepages::Auto;
const LAYOUT_DEFAULT: Layout = Layout::Fused;
const IDLE_DEFAULT: Idle = Idle::LastPacket;

/// 512 MiB are some 200 000 buffers of 2 KiB with their headers: the rings of 32 devices, and bursts in flight.
const MEMORY_DEFAULT_MIB: u32 = 512;

/// Some 27 000 buffers: rings of 1024 descriptors in both directions for a dozen devices.
const MEMORY_MIN_MIB: u32 = 64;

/// 1 TiB, beyond which a number is a slip of units.
const MEMORY_MAX_MIB: u32 = 1_048_576;

/// Waking a sleeping thread takes single microseconds; 50 leave room for it and for the burst that it wakes for.
const ADDED_LATENCY_DEFAULT_US: u32 = 50;

/// In 10 ms a 10 Gbit/s port receives 8000 packets of full size, more than any receive ring holds.
const ADDED_LATENCY_MAX_US: u32 = 10_000;
/// The least and most flows that a worker remembers: one set of each kind of test traffic, and 2 GiB.
const FLOW_CACHE_MIN: u32 = 64;
const FLOW_CACHE_MAX: u32 = 1 << 24;
/// 130 bytes each: 34 MiB for a worker whose tenants have that many flows at a time.
const FLOW_CACHE_DEFAULT: u32 = 1 << 18;

/// Reads a document, for a machine.
pub(super) fn read(text: &str, machine: &Machine) -> Result<Config, Problems> {
    let text_lines = Text::new(text);
    let (document, errors) = DeTable::parse_recoverable(text);
    let mut root = Table::new(&text_lines, Some(document.get_ref()), Object::new("", "", None));
    root.allow(&["host", "control", "dpdk", "port", "workers", "pipeline"]);

    let mut problems = Vec::new();
    let host = host(root.table("host"), machine, &mut problems);
    let control = control(root.table("control"), &mut problems);
    let dpdk = dpdk(root.table("dpdk"), &mut problems);
    let mut ports = ports(&mut root);
    let mut pipelines: Vec<pipeline::Draft> =
        root.tables("pipeline", "pipeline").into_iter().map(|table| pipeline::read(table, machine)).collect();
    let workers = workers(root.table("workers"), machine, !pipelines.is_empty(), &mut problems);
    let beside = Surroundings {
        machine,
        workers: workers.as_ref(),
        memory_mib: dpdk.map(|dpdk| dpdk.memory_mib),
        memory_left_mib: MEMORY_MIN_MIB,
    };
    let settled = pipelines::settle(&mut pipelines, &mut ports, &beside);
    ports.iter_mut().for_each(|draft| problems.append(&mut draft.object.problems));
    pipelines.iter_mut().for_each(|draft| draft.report(&mut problems));
    problems.append(&mut root.object.problems);

    if !errors.is_empty() {
        return Err(Problems::new(beside_syntax_errors(&text_lines, &errors, problems)));
    }
    let ports: Option<Vec<Port>> = ports.into_iter().map(|draft| draft.port).collect();
    match (host, control, dpdk, ports, workers, settled) {
        (Some(host), Some(control), Some(dpdk), Some(ports), Some(workers), Some(pipelines))
            if problems.is_empty() =>
        {
            Ok(Config { host, control, dpdk, ports, workers, pipelines })
        }
        _ => Err(Problems::new(problems)),
    }
}

/// Where the text is no TOML, what it was meant to say is a guess: of the other problems only those remain that follow
/// from a value alone, on a line that was read without error.
fn beside_syntax_errors(text: &Text<'_>, errors: &[toml::de::Error], others: Vec<Problem>) -> Vec<Problem> {
    let line = |error: &toml::de::Error| error.span().map(|span| text.line(span.start));
    let mut problems: Vec<Problem> = errors
        .iter()
        .map(|error| {
            let message: String = error.message().lines().collect::<Vec<_>>().join(", ");
            Problem::of_file(line(error), format!("not TOML: {message}"), "correct the line")
        })
        .collect();
    let broken: Vec<Option<usize>> = problems.iter().map(|problem| problem.line).collect();
    problems.extend(others.into_iter().filter(|other| other.of_value && !broken.contains(&other.line)));
    problems
}

fn host(mut table: Table<'_>, machine: &Machine, problems: &mut Vec<Problem>) -> Option<Host> {
    table.allow(&["name", "state"]);
    let (name, state) = (table.text("name"), table.text("state"));
    let object = &mut table.object;
    let name = if name.is_absent() {
        let kernels = host_name(&machine.host_name).ok();
        if kernels.is_none() {
            let remedy = format!("the kernel's host name {:?} cannot serve: write a name", machine.host_name);
            object.missing("name", remedy);
        }
        kernels
    } else {
        object.check(&name, host_name)
    };
    let state = if state.is_absent() { Some(STATE_DEFAULT.into()) } else { object.check(&state, path) };
    problems.append(&mut object.problems);
    Some(Host { name: name?, state: state? })
}

fn control(mut table: Table<'_>, problems: &mut Vec<Problem>) -> Option<Control> {
    table.allow(&["socket", "metrics"]);
    let (socket, metrics) = (table.text("socket"), table.text("metrics"));
    let object = &mut table.object;
    let socket =
        if socket.is_absent() { Some(SOCKET_DEFAULT.into()) } else { object.check(&socket, socket_path) };
    let metrics = object.check(&metrics, socket_addr);
    problems.append(&mut object.problems);
    Some(Control { socket: socket?, metrics })
}

fn dpdk(mut table: Table<'_>, problems: &mut Vec<Problem>) -> Option<Dpdk> {
    table.allow(&["hugepages", "memory_mib"]);
    let (hugepages, memory) = (table.text("hugepages"), table.integer("memory_mib"));
    let object = &mut table.object;
    let hugepages = or_default(object.check(&hugepages, named), hugepages.is_absent(), HUGEPAGES_DEFAULT);
    let checked = object.check(&memory, |mib| within(*mib, MEMORY_MIN_MIB, MEMORY_MAX_MIB, " MiB"));
    let memory_mib = or_default(checked, memory.is_absent(), MEMORY_DEFAULT_MIB);
    problems.append(&mut object.problems);
    Some(Dpdk { hugepages: hugepages?, memory_mib: memory_mib? })
}

fn or_default<T>(checked: Option<T>, absent: bool, default: T) -> Option<T> {
    if absent { Some(default) } else { checked }
}

/// The ports, which are checked against each other, but not yet reported.
fn ports(root: &mut Table<'_>) -> Vec<Draft> {
    let mut drafts: Vec<Draft> = root.tables("port", "port").into_iter().map(port).collect();
    let mut siblings = Siblings::default();
    drafts.iter_mut().for_each(|draft| siblings.admit(draft));
    drafts.iter_mut().for_each(|draft| siblings.check_parent(draft));
    drafts
}

fn port(mut table: Table<'_>) -> Draft {
    let fields = PortFields {
        name: table.text("name"),
        kind: table.text("kind"),
        device: table.text("device"),
        mtu: table.integer("mtu"),
        mac: table.text("mac"),
        ipv4: table.text("ipv4"),
        ipv6: table.text("ipv6"),
        gateway: table.text_or_texts("gateway"),
        neighbors: table.texts("neighbors"),
        ip: table.texts("ip"),
        gateway_mac: table.text("gateway_mac"),
        trap: table.texts("trap"),
    };
    table.allow(&[&COMMON_KEYS[..], &VF_KEYS, &UPLINK_KEYS].concat());
    let mut object = table.object;
    object.entitle("port", &fields.name);
    draft(fields, object)
}

fn workers(
    mut table: Table<'_>,
    machine: &Machine,
    has_pipelines: bool,
    problems: &mut Vec<Problem>,
) -> Option<Workers> {
    table.allow(&["cores", "layout", "idle", "max_added_latency_us", "flow_cache_entries"]);
    let (cores_field, idle) = (table.text("cores"), table.text("idle"));
    let latency = table.integer("max_added_latency_us");
    let flows = table.integer("flow_cache_entries");
    let layout_field = layout_text(&mut table);
    let object = &mut table.object;

    let checked = object.check(&cores_field, |text| machine.cores(text));
    let cores = or_default(checked, cores_field.is_absent(), machine.default_cores());
    let layout = or_default(object.check(&layout_field, named), layout_field.is_absent(), LAYOUT_DEFAULT);
    let idle = or_default(object.check(&idle, value::idle), idle.is_absent(), IDLE_DEFAULT);
    let checked = object.check(&latency, |us| within(*us, 1, ADDED_LATENCY_MAX_US, " µs"));
    let latency = or_default(checked, latency.is_absent(), ADDED_LATENCY_DEFAULT_US);
    let checked = object.check(&flows, |count| within(*count, FLOW_CACHE_MIN, FLOW_CACHE_MAX, " flows"));
    let flows = or_default(checked, flows.is_absent(), FLOW_CACHE_DEFAULT);
    if let (true, Some(at)) = (has_pipelines, layout_field.given()) {
        object.conflict(at, "[[pipeline]] tables say which stages share a core", "remove it, or the tables");
    } else if let (Some(Layout::Split), Some([core]), Some(at)) =
        (layout, cores.as_deref(), layout_field.given())
    {
        let remedy = if machine.cores.len() > 1 {
            format!("name two or more of {} in cores, or write \"fused\"", list(&machine.cores))
        } else {
            "this machine has one core: write \"fused\"".to_string()
        };
        object.conflict(at, format!("needs two cores, and there is only core {core}"), remedy);
    }
    problems.append(&mut object.problems);
    Some(Workers {
        cores: cores?,
        layout: layout?,
        idle: idle?,
        max_added_latency_us: latency?,
        flow_cache_entries: flows?,
    })
}

/// The layout's text; who writes a layout of his own here is told where it belongs.
fn layout_text(table: &mut Table<'_>) -> Field<String> {
    let is_list =
        table.get("layout").is_some_and(|value| value.get_ref().is_array() || value.get_ref().is_table());
    if !is_list {
        return table.text("layout");
    }
    let line = table.key_line("layout");
    let remedy = "write [[pipeline]] tables instead: each has its stages in [[pipeline.stage]] tables";
    table.object.misplaced("layout", line, Fault::new("not the place for a layout of your own", remedy));
    Field::Bad
}
