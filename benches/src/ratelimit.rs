//! The part of envoyproxy/ratelimit's API and configuration that the benchmark needs.

use prost::{Enumeration, Message};

/// The call that counts a hit and says whether it is within the limit.
pub const PATH: &str = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit";

/// A limit for each id, so high that no hit is refused. Its window is an hour, so that hardly any run
/// sees a change of windows.
pub const CONFIGURATION: &str = "\
domain: bench
descriptors:
  - key: id
    rate_limit:
      unit: hour
      requests_per_unit: 1000000000
";

#[derive(Clone, PartialEq, Message)]
pub struct RateLimitRequest {
    #[prost(string, tag = "1")]
    domain: String,
    #[prost(message, repeated, tag = "2")]
    descriptors: Vec<Descriptor>,
}

#[derive(Clone, PartialEq, Message)]
struct Descriptor {
    #[prost(message, repeated, tag = "1")]
    entries: Vec<DescriptorEntry>,
}

#[derive(Clone, PartialEq, Message)]
struct DescriptorEntry {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(string, tag = "2")]
    value: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct RateLimitResponse {
    #[prost(enumeration = "Code", tag = "1")]
    overall_code: i32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Enumeration)]
#[repr(i32)]
enum Code {
    Unknown = 0,
    Ok = 1,
    OverLimit = 2,
}

/// One hit for this id.
pub fn request(id: &str) -> RateLimitRequest {
    RateLimitRequest {
        domain: "bench".to_owned(),
        descriptors: vec![Descriptor {
            entries: vec![DescriptorEntry {
                key: "id".to_owned(),
                value: id.to_owned(),
            }],
        }],
    }
}

impl RateLimitResponse {
    pub fn is_ok(&self) -> bool {
        self.overall_code() == Code::Ok
    }
}
