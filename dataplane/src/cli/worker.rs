//! `forebay worker`: the threads that move packets, and the cores that they have.

use clap::Subcommand;
use forebay_api::client::Client;
use forebay_api::v1::{AddWorkerRequest, GetPipelineRequest, RemoveWorkerRequest, Worker};
use serde::Serialize;

use super::failure::Failure;
use super::table::{Table, left, right};
use super::{Form, Out, write_json};

#[derive(Debug, Subcommand)]
pub enum WorkerCommand {
    /// Show the workers, their cores and pipelines.
    List {
        #[command(flatten)]
        form: Form,
    },
    /// Add a worker on a core. It takes over receive queues, or flows, from the others of its pipeline.
    Add {
        /// The core.
        core: u32,
        /// The pipeline that it is for, where there are several.
        #[arg(long, value_name = "NAME", default_value = "")]
        pipeline: String,
        /// The stage that it runs, of a pipeline whose stages have cores of their own; the last where it is not said.
        #[arg(long, value_name = "STAGE", default_value = "")]
        stage: String,
        #[command(flatten)]
        form: Form,
    },
    /// Take the work from the worker on a core, and end it.
    Remove {
        /// The core.
        core: u32,
        #[command(flatten)]
        form: Form,
    },
}

pub async fn execute(mut client: Client, command: WorkerCommand, out: &mut Out<'_>) -> Result<(), Failure> {
    match command {
        WorkerCommand::List { form } => {
            let answer = client.stats.pipeline(GetPipelineRequest {}).await?.into_inner();
            let workers: Vec<_> = answer.workers.iter().map(WorkerOut::new).collect();
            if form.json {
                write_json(out, &workers)?;
            } else {
                write_workers(&workers, out)?;
            }
        }
        WorkerCommand::Add { core, pipeline, stage, form } => {
            let request = AddWorkerRequest { core, pipeline, stage };
            let added = client.workers.add(request).await?.into_inner();
            if form.json {
                write_json(out, &Added { worker: &added.name, changed: added.changed })?;
            } else if added.changed {
                writeln!(out, "{} added on core {core}", added.name)?;
            } else {
                writeln!(out, "{} was on core {core} already", added.name)?;
            }
        }
        WorkerCommand::Remove { core, form } => {
            let name = client.workers.remove(RemoveWorkerRequest { core }).await?.into_inner().name;
            if form.json {
                write_json(out, &Removed { worker: &name, removed: 1 })?;
            } else {
                writeln!(out, "{name} removed from core {core}")?;
            }
        }
    }
    Ok(())
}

#[derive(Serialize)]
struct Added<'a> {
    worker: &'a str,
    changed: bool,
}

#[derive(Serialize)]
struct Removed<'a> {
    worker: &'a str,
    removed: u64,
}

#[derive(Serialize)]
struct WorkerOut<'a> {
    name: &'a str,
    core: u32,
    pipeline: &'a str,
    stages: Vec<&'a str>,
    receive_queues: u32,
}

impl<'a> WorkerOut<'a> {
    fn new(worker: &'a Worker) -> Self {
        Self {
            name: &worker.name,
            core: worker.core,
            pipeline: &worker.pipeline,
            stages: worker.stages.iter().map(|stage| stage.name.as_str()).collect(),
            receive_queues: worker.receive_queues,
        }
    }
}

fn write_workers(workers: &[WorkerOut<'_>], out: &mut Out<'_>) -> std::io::Result<()> {
    let columns = [left("WORKER"), right("CORE"), left("PIPELINE"), right("QUEUES"), left("STAGES")];
    let mut table = Table::new(columns);
    for worker in workers {
        let row = [
            worker.name.to_owned(),
            worker.core.to_string(),
            worker.pipeline.to_owned(),
            worker.receive_queues.to_string(),
            worker.stages.join(" "),
        ];
        table.row(out, row)?;
    }
    table.finish(out)
}
