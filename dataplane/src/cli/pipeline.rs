//! `forebay pipeline show`: where the workers' cycles go.

use std::io;
use std::time::{Duration, Instant};

use clap::Subcommand;
use forebay_api::client::Client;
use forebay_api::v1::GetPipelineRequest;

use super::failure::Failure;
use super::pipeline_view::{PipelineView, StageView};
use super::stats::write_equation;
use super::table::{Table, items, left, right, tenths};
use super::{Form, Out, write_json};

#[derive(Debug, Subcommand)]
pub enum PipelineCommand {
    /// Show stages, cores, cycles per packet, packets per call, queue depths and idle share.
    Show {
        /// Time to watch, in milliseconds; 0 for the totals since the start.
        #[arg(long, value_name = "MS", default_value_t = 1000)]
        interval_ms: u64,
        #[command(flatten)]
        form: Form,
    },
}

pub async fn execute(mut client: Client, command: PipelineCommand, out: &mut Out<'_>) -> Result<(), Failure> {
    let PipelineCommand::Show { interval_ms, form } = command;
    let mut before = None;
    if interval_ms > 0 {
        let sample = client.stats.pipeline(GetPipelineRequest {}).await?.into_inner();
        before = Some((sample, Instant::now()));
        tokio::time::sleep(Duration::from_millis(interval_ms)).await;
    }
    let after = client.stats.pipeline(GetPipelineRequest {}).await?.into_inner();
    let watched = before.as_ref().map(|(sample, since)| (sample, since.elapsed()));
    let view = PipelineView::new(watched, &after);
    if form.json {
        write_json(out, &view)?;
    } else {
        write_text(&view, out)?;
    }
    Ok(())
}

fn write_text(view: &PipelineView<'_>, out: &mut Out<'_>) -> io::Result<()> {
    let seconds = Duration::from_nanos(view.interval_ns).as_secs_f64();
    writeln!(out, "layout {}, idle {}, over {seconds:.1} s", view.layout, view.idle)?;
    for pipeline in &view.pipelines {
        let own = |count: Option<u64>| {
            count.map_or_else(String::new, |count| format!(", {count} buffers of its own"))
        };
        let ports = if pipeline.ports.is_empty() { "all others'".into() } else { pipeline.ports.join(", ") };
        writeln!(
            out,
            "pipeline {}: priority {}, {} cores (keeps {}; got {}, gave {}), ports: {ports}{}",
            pipeline.name,
            pipeline.priority,
            pipeline.cores,
            pipeline.min_cores,
            pipeline.cores_gained,
            pipeline.cores_lost,
            own(pipeline.buffers),
        )?;
    }
    for worker in &view.workers {
        writeln!(
            out,
            "{} on core {} for {}: busy {:.1} %, asleep {:.1} %, path {} cycles/packet, input and output {} cycles/packet, \
             {} rounds ({} empty), {} sleeps, {} receive queues{}",
            worker.name,
            worker.core,
            worker.pipeline,
            worker.busy_percent,
            worker.asleep_percent,
            tenths(worker.path_cycles_per_packet),
            tenths(worker.io_cycles_per_packet),
            worker.rounds,
            worker.empty_rounds,
            worker.sleeps,
            worker.receive_queues,
            if worker.panics > 0 { format!(", {} panics", worker.panics) } else { String::new() },
        )?;
        write_stages(&worker.stages, out)?;
        for queue in &worker.queues {
            writeln!(
                out,
                "  queue {}: {} of {}, p50 {}, p99 {}, max {}, refused {}",
                queue.name,
                queue.depth,
                queue.capacity,
                items(queue.depth_p50),
                items(queue.depth_p99),
                items(queue.depth_max),
                queue.refused
            )?;
        }
        write_equation(&format!("  {}", worker.name), worker.equation, out)?;
    }
    Ok(())
}

fn write_stages(stages: &[StageView<'_>], out: &mut Out<'_>) -> io::Result<()> {
    let columns = [left("STAGE"), right("PACKETS/S"), right("CYCLES/PACKET"), right("PACKETS/CALL")];
    let mut table = Table::new(columns).indented("  ");
    for stage in stages {
        table.row(
            out,
            [
                stage.name.to_owned(),
                format!("{:.0}", stage.packets_per_second),
                tenths(stage.cycles_per_packet),
                tenths(stage.packets_per_call),
            ],
        )?;
    }
    table.finish(out)
}

#[cfg(test)]
mod tests {
    use super::super::pipeline_view::tests::sample;
    use super::*;

    #[test]
    fn text_and_json_show_the_same() {
        let after = sample(1);
        let view = PipelineView::new(None, &after);
        let (mut text, mut json) = (Vec::new(), Vec::new());
        write_text(&view, &mut text).unwrap();
        write_json(&mut json, &view).unwrap();
        let text = String::from_utf8(text).unwrap();
        assert!(
            text.starts_with(
                "layout fused, idle last-packet, over 1.0 s\npipeline main: priority 0, 1 cores (keeps 0; got 0, gave 0), \
                 ports: all others'\nworker-1 on core 1 for main: busy 25.0 %"
            ),
            "{text}"
        );
        assert!(text.contains("queue classify: 3 of 1024, p50 2, p99 2, max 1023, refused 1"), "{text}");
        let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
        assert_eq!(json["workers"][0]["stages"][0]["cycles_per_packet"].as_f64(), Some(50.0));
        assert!(json["workers"][0]["stages"][3]["cycles_per_packet"].is_null());
    }
}
