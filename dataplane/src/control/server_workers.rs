//! The service of workers: who asks for a core to be used, or not any more.

use super::host::HostError;
use super::server::Service;
use forebay_api::v1;
use tonic::{Request, Response, Status};

fn stopping() -> Status {
    Status::unavailable("the host is stopping (ask again when it runs)")
}

#[tonic::async_trait]
impl v1::workers_server::Workers for Service {
    async fn add(
        &self,
        request: Request<v1::AddWorkerRequest>,
    ) -> Result<Response<v1::AddWorkerResponse>, Status> {
        let v1::AddWorkerRequest { core, pipeline, stage } = request.into_inner();
        let added = self.change(move |host| {
            let added = host.change_crew(|crew| crew.add_worker(core as usize, &pipeline, &stage));
            added.transpose().map_err(HostError::from)
        });
        let (name, changed) = added.await?.ok_or_else(stopping)?;
        if changed {
            tracing::info!("worker {name:?} was added on core {core}");
        }
        Ok(Response::new(v1::AddWorkerResponse { name, changed }))
    }

    async fn remove(
        &self,
        request: Request<v1::RemoveWorkerRequest>,
    ) -> Result<Response<v1::RemoveWorkerResponse>, Status> {
        let core = request.into_inner().core;
        let removed = self.change(move |host| {
            let removed = host.change_crew(|crew| crew.remove_worker(core as usize));
            removed.transpose().map_err(HostError::from)
        });
        let name = removed.await?.ok_or_else(stopping)?;
        tracing::info!("worker {name:?} was removed from core {core}");
        Ok(Response::new(v1::RemoveWorkerResponse { name }))
    }
}
