//! The `Flows` service: what workers report of their flow caches.

use super::server::Service;
use forebay_api::v1;
use tonic::{Request, Response, Status};

#[tonic::async_trait]
impl v1::flows_server::Flows for Service {
    type ListStream = tokio_stream::Iter<std::vec::IntoIter<Result<v1::Flow, Status>>>;

    async fn list(
        &self,
        request: Request<v1::ListFlowsRequest>,
    ) -> Result<Response<Self::ListStream>, Status> {
        let v1::ListFlowsRequest { port, limit } = request.into_inner();
        let flows = self.change(move |host| host.flows(&port, limit)).await?;
        let flows: Vec<_> = flows.into_iter().map(Ok).collect();
        Ok(Response::new(tokio_stream::iter(flows)))
    }
}
