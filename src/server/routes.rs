//! Health and reflection, which tonic's own router serves.

use tonic::service::Routes;
use tonic_health::{
    pb::health_server::HealthServer,
    server::{HealthReporter, HealthService},
};

use crate::{config::Reflection, proto};

/// The services besides the server's own.
pub(super) fn routes(health: HealthReporter, reflection: Reflection) -> Routes {
    let descriptors = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(proto::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            // So that grpcurl shows the details of an error.
            .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
    };
    let health = HealthServer::new(HealthService::from_health_reporter(health));
    let mut routes = Routes::new(health);
    if reflection == Reflection::Off {
        return routes.prepare();
    }
    // Older grpcurl, Postman and Kreya ask for v1alpha.
    match (descriptors().build_v1(), descriptors().build_v1alpha()) {
        (Ok(v1), Ok(v1alpha)) => routes = routes.add_service(v1).add_service(v1alpha),
        // The descriptor sets are built in, so a test would have failed first.
        (Err(error), _) | (_, Err(error)) => tracing::error!(%error, "no reflection"),
    }
    routes.prepare()
}
