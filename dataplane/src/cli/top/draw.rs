//! How `forebay top` looks: a view and the state of the screen become text on a frame. Nothing is computed here, and
//! nothing asks the daemon or the terminal.

use std::time::Duration;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Modifier, Style, Stylize as _};
use ratatui::text::{Line, Span};
use ratatui::widgets::Paragraph;

use super::view::{Order, TopView};
use crate::cli::pipeline_view::WorkerView;
use crate::cli::table::{Column, Table, items, left, right, tenths};

/// Cells of the bar that shows a worker's time: one for each 10 %, so that its table fits on 80 columns.
const BAR_CELLS: usize = 10;

/// What the user has chosen, and what stands in the way.
#[derive(Debug, Default)]
pub struct Screen {
    pub paused: bool,
    pub order: Order,
    /// The first line of the body that is shown. Drawing keeps it within the body.
    pub scroll: u16,
    /// Why there are no new figures.
    pub lost: Option<String>,
}

/// Draws a frame; without a view, where the daemon has not answered yet.
pub fn draw(frame: &mut Frame<'_>, view: Option<&TopView<'_>>, screen: &mut Screen) {
    let rows = [Constraint::Length(2), Constraint::Min(0), Constraint::Length(1)];
    let [head, body, foot] = Layout::vertical(rows).areas(frame.area());
    frame.render_widget(Paragraph::new(header(view, screen)), head);
    let lines = view.map(|view| sections(view, screen.order)).unwrap_or_default();
    let last = u16::try_from(lines.len()).unwrap_or(u16::MAX).saturating_sub(body.height);
    screen.scroll = screen.scroll.min(last);
    let more = last > screen.scroll;
    frame.render_widget(Paragraph::new(lines).scroll((screen.scroll, 0)), body);
    frame.render_widget(footer(screen, more), foot);
}

fn header(view: Option<&TopView<'_>>, screen: &Screen) -> Vec<Line<'static>> {
    let mut lines = match view {
        Some(view) => vec![
            Line::from(vec![
                Span::from(view.host.to_owned()).bold(),
                Span::from(format!(
                    ": up {}, {} rules, {} of {} buffers in use",
                    age(view.uptime_ns),
                    view.rules,
                    view.buffers_in_use,
                    view.buffers
                )),
            ]),
            Line::from(format!(
                "layout {}, idle {}, over {:.1} s",
                view.pipeline.layout,
                view.pipeline.idle,
                Duration::from_nanos(view.pipeline.interval_ns).as_secs_f64()
            )),
        ],
        None => vec![Line::from("waiting for the daemon"), Line::default()],
    };
    // In place of the second line: a header that grows would move everything below.
    if let Some(why) = &screen.lost {
        lines[1] = Line::from(format!("no new figures, asking again: {why}")).bold().red();
    } else if screen.paused {
        lines[1] = Line::from("paused (p goes on)").bold().yellow();
    }
    lines
}

fn footer(screen: &Screen, more: bool) -> Line<'static> {
    let keys = format!(
        "q quit  p pause  s sort ({})  ↑↓ scroll{}  █ busy ▒ polling ░ asleep",
        screen.order.text(),
        if more { " (more)" } else { "" }
    );
    Line::from(keys).dim()
}

/// The body, section by section; sections without rows are left out.
fn sections(view: &TopView<'_>, order: Order) -> Vec<Line<'static>> {
    let mut lines = pipelines(view);
    lines.extend(workers(view));
    lines.extend(stages(view));
    lines.extend(queues(view));
    lines.extend(ports(view, order));
    lines
}

fn pipelines(view: &TopView<'_>) -> Vec<Line<'static>> {
    let columns = [
        left("PIPELINE"),
        right("PRIORITY"),
        right("CORES"),
        right("KEEPS"),
        right("GOT"),
        right("GAVE"),
        right("BUFFERS"),
        left("PORTS"),
    ];
    let rows = view.pipeline.pipelines.iter().map(|pipeline| {
        let ports = if pipeline.ports.is_empty() { "all others'".into() } else { pipeline.ports.join(" ") };
        let buffers = pipeline.buffers_in_use.zip(pipeline.buffers);
        let buffers = buffers.map_or_else(|| "host's".into(), |(used, all)| format!("{used} of {all}"));
        let row = [
            pipeline.name.to_owned(),
            pipeline.priority.to_string(),
            pipeline.cores.to_string(),
            pipeline.min_cores.to_string(),
            pipeline.cores_gained.to_string(),
            pipeline.cores_lost.to_string(),
            buffers,
            ports,
        ];
        (false, row)
    });
    section(columns, rows)
}

fn workers(view: &TopView<'_>) -> Vec<Line<'static>> {
    let columns = [
        left("WORKER"),
        right("CORE"),
        left("PIPELINE"),
        left("TIME"),
        right("BUSY%"),
        right("SLEEP%"),
        right("KPPS"),
        right("PATH CYC"),
        right("PKT/CALL"),
    ];
    let rows = view.pipeline.workers.iter().map(|worker| {
        let row = [
            worker.name.to_owned(),
            worker.core.to_string(),
            worker.pipeline.to_owned(),
            bar(worker),
            format!("{:.1}", worker.busy_percent),
            format!("{:.1}", worker.asleep_percent),
            thousands(worker.packets_per_second),
            tenths(worker.path_cycles_per_packet),
            tenths(worker.packets_per_call),
        ];
        (worker.panics > 0, row)
    });
    section(columns, rows)
}

fn stages(view: &TopView<'_>) -> Vec<Line<'static>> {
    let columns =
        [left("WORKER"), left("STAGE"), right("KPPS"), right("CYCLES/PACKET"), right("PACKETS/CALL")];
    let all = view.pipeline.workers.iter();
    let rows = all.flat_map(|worker| worker.stages.iter().map(move |stage| (worker, stage)));
    let rows = rows.map(|(worker, stage)| {
        let row = [
            worker.name.to_owned(),
            stage.name.to_owned(),
            thousands(stage.packets_per_second),
            tenths(stage.cycles_per_packet),
            tenths(stage.packets_per_call),
        ];
        (false, row)
    });
    section(columns, rows)
}

fn queues(view: &TopView<'_>) -> Vec<Line<'static>> {
    let columns = [
        left("QUEUE"),
        right("DEPTH"),
        right("P50"),
        right("P99"),
        right("MAX"),
        right("CAPACITY"),
        right("REFUSED"),
    ];
    let rows = view.pipeline.workers.iter().flat_map(|worker| &worker.queues).map(|queue| {
        let row = [
            queue.name.to_owned(),
            queue.depth.to_string(),
            items(queue.depth_p50),
            items(queue.depth_p99),
            items(queue.depth_max),
            queue.capacity.to_string(),
            queue.refused.to_string(),
        ];
        (queue.refused > 0, row)
    });
    section(columns, rows)
}

fn ports(view: &TopView<'_>, order: Order) -> Vec<Line<'static>> {
    let columns = [
        left("PORT"),
        left("KIND"),
        right("RX PPS"),
        right("RX MBIT/S"),
        right("TX PPS"),
        right("TX MBIT/S"),
        right("DROPS/S"),
        left("MOST BY"),
    ];
    let rows = view.ports_by(order).into_iter().map(|(name, port)| {
        let row = [
            name.to_owned(),
            port.kind.to_owned(),
            format!("{:.0}", port.rx_packets_per_second),
            format!("{:.2}", port.rx_bits_per_second / 1e6),
            format!("{:.0}", port.tx_packets_per_second),
            format!("{:.2}", port.tx_bits_per_second / 1e6),
            format!("{:.0}", port.drops_per_second),
            port.top_drop_reason.unwrap_or_default().to_owned(),
        ];
        (port.top_drop_reason.is_some(), row)
    });
    section(columns, rows)
}

/// A table, its titles in bold, and an empty line behind it. Rows that are marked want attention.
fn section<const N: usize>(
    columns: [Column; N],
    rows: impl Iterator<Item = (bool, [String; N])>,
) -> Vec<Line<'static>> {
    let (marks, rows): (Vec<bool>, Vec<_>) = rows.unzip();
    if rows.is_empty() {
        return Vec::new();
    }
    let mut text = Vec::new();
    let mut table = Table::new(columns);
    for row in rows {
        // Writing to memory cannot fail.
        let _ = table.row(&mut text, row);
    }
    let _ = table.finish(&mut text);
    let text = String::from_utf8_lossy(&text);
    let styles = marks.into_iter().map(|is_marked| match is_marked {
        true => Style::new().yellow(),
        false => Style::new(),
    });
    let title = Style::new().add_modifier(Modifier::BOLD);
    let lines = text.lines().zip(std::iter::once(title).chain(styles));
    let lines = lines.map(|(line, style)| Line::styled(line.to_owned(), style));
    lines.chain([Line::default()]).collect()
}

/// A worker's time: busy, polling, asleep.
fn bar(worker: &WorkerView<'_>) -> String {
    // Percentages are between 0 and 100.
    let cells = |percent: f64| (percent / 100.0 * BAR_CELLS as f64).round() as usize;
    let busy = cells(worker.busy_percent).min(BAR_CELLS);
    let asleep = cells(worker.asleep_percent).min(BAR_CELLS - busy);
    let polling = BAR_CELLS - busy - asleep;
    format!("{}{}{}", "█".repeat(busy), "▒".repeat(polling), "░".repeat(asleep))
}

fn thousands(number: f64) -> String {
    format!("{:.1}", number / 1000.0)
}

/// Days, hours, minutes and seconds.
fn age(nanoseconds: u64) -> String {
    let seconds = Duration::from_nanos(nanoseconds).as_secs();
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    let days = if days > 0 { format!("{days} d ") } else { String::new() };
    format!("{days}{hours:02}:{minutes:02}:{:02}", seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::top::view::tests::sample;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    /// The screen as text, line by line.
    fn drawn(width: u16, height: u16, screen: &mut Screen, is_known: bool) -> Vec<String> {
        let (before, after) = (sample(1), sample(3));
        let view = TopView::new(Some(&before), &after);
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, is_known.then_some(&view), screen)).unwrap();
        let cells = terminal.backend().buffer().content();
        let lines = cells.chunks(usize::from(width));
        let line =
            |cells: &[ratatui::buffer::Cell]| cells.iter().map(|cell| cell.symbol()).collect::<String>();
        lines.map(|cells| line(cells).trim_end().to_owned()).collect()
    }

    #[test]
    fn everything_is_on_a_large_screen() {
        let lines = drawn(120, 30, &mut Screen::default(), true);
        let shown = lines.join("\n");
        assert_eq!(lines[0], "host-a: up 00:00:03, 7 rules, 512 of 4096 buffers in use", "{shown}");
        assert_eq!(lines[1], "layout fused, idle last-packet, over 2.0 s", "{shown}");
        for wanted in [
            "main             0      1      0    0     0   host's  all others'",
            "worker-1     1  main      ███▒▒░░░░░   25.0    50.0   0.1      50.0      10.0",
            "worker-1  receive    0.1           50.0          10.0",
            "classify      3    2    2  1023      1024        2",
            "vm3   vf       100       0.10       5       0.00       41  no_rule",
        ] {
            assert!(lines.iter().any(|line| line == wanted), "no {wanted:?} in:\n{shown}");
        }
        assert!(lines[29].starts_with("q quit  p pause  s sort (name)  ↑↓ scroll  █ busy"), "{shown}");
    }

    #[test]
    fn the_order_is_that_of_the_screen() {
        let mut screen = Screen { order: Order::Received, ..Screen::default() };
        let lines = drawn(120, 30, &mut screen, true);
        let ports: Vec<_> =
            lines.iter().filter(|line| line.starts_with("vm")).map(|line| &line[..3]).collect();
        assert_eq!(ports, ["vm2", "vm3", "vm1"]);
        assert!(lines[29].contains("sort (rx)"));
    }

    #[test]
    fn a_small_screen_scrolls_and_stays_within_the_body() {
        let mut screen = Screen::default();
        let lines = drawn(60, 8, &mut screen, true);
        assert!(lines[2].starts_with("PIPELINE") && lines[7].contains("(more)"), "{lines:?}");
        screen.scroll = 3;
        assert!(drawn(60, 8, &mut screen, true)[2].starts_with("WORKER"));
        screen.scroll = u16::MAX;
        let lines = drawn(60, 8, &mut screen, true);
        assert!(lines[5].starts_with("vm3") && !lines[7].contains("(more)"), "{lines:?}");
        assert!(screen.scroll < 30, "{screen:?}");
        // Nothing to see, and nothing to fall over.
        drawn(1, 1, &mut screen, true);
    }

    #[test]
    fn it_says_why_figures_stand_still() {
        let mut screen = Screen { paused: true, ..Screen::default() };
        assert_eq!(drawn(80, 10, &mut screen, true)[1], "paused (p goes on)");
        screen.lost = Some("the daemon's answer did not arrive".into());
        let lines = drawn(80, 10, &mut screen, true);
        assert_eq!(lines[1], "no new figures, asking again: the daemon's answer did not arrive");
        assert!(lines[0].starts_with("host-a: up"), "the last figures stay");
        assert_eq!(drawn(80, 10, &mut Screen::default(), false)[0], "waiting for the daemon");
    }

    #[test]
    fn ages_are_read_at_a_glance() {
        assert_eq!(age(59_999_999_999), "00:00:59");
        assert_eq!(age((2 * 86_400 + 3 * 3600 + 4 * 60 + 5) * 1_000_000_000), "2 d 03:04:05");
    }
}
