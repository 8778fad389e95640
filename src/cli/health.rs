//! `dyndata health`.

use clap::Args;

use super::{
    error::CliError,
    render::{Output, print_line},
    target::Target,
};
use crate::proto::health::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

/// The arguments of `health`.
#[derive(Debug, Args)]
pub struct HealthArgs {
    #[command(flatten)]
    target: Box<Target>,
}

impl HealthArgs {
    pub(super) async fn run(self) -> Result<(), CliError> {
        let Self { target } = self;
        let mut client = HealthClient::new(target.channel().await?);
        let request = target.request(HealthCheckRequest::default())?;
        let reply = client.check(request).await?;
        match reply.into_inner().status() {
            ServingStatus::Serving => print_line(match target.output {
                Output::Text => "SERVING",
                Output::Json => "{\n  \"status\": \"SERVING\"\n}",
            }),
            status => Err(CliError::NotServing(status.as_str_name())),
        }
    }
}
