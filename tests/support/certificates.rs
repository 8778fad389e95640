//! A certificate authority for the tests.

use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    SanType, date_time_ymd,
};

/// A certificate authority. Its own certificate is in `pem`.
pub struct Authority {
    pub pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key, as PEM.
#[derive(Debug, Clone)]
pub struct Identity {
    pub cert: String,
    pub key: String,
}

/// The validity period of a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Validity {
    Now,
    Expired,
    /// Valid for this time, rounded down to whole seconds.
    For(Duration),
}

impl Authority {
    pub fn new() -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
            .distinguished_name
            .push(DnType::CommonName, "an authority of the tests");
        let pem = params.self_signed(&key).expect("signs").pem();
        Self {
            pem,
            issuer: Issuer::new(params, key),
        }
    }

    /// Issues a certificate for a name: a URI if the name has a colon, else a host name.
    pub fn issue(&self, name: &str, validity: Validity) -> Identity {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(DnType::CommonName, "somebody");
        let text = name.try_into().expect("ASCII");
        params.subject_alt_names = vec![if name.contains(':') {
            SanType::URI(text)
        } else {
            SanType::DnsName(text)
        }];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        match validity {
            Validity::Now => {}
            Validity::Expired => {
                params.not_before = date_time_ymd(2020, 1, 1);
                params.not_after = date_time_ymd(2021, 1, 1);
            }
            Validity::For(time) => params.not_after = (SystemTime::now() + time).into(),
        }
        let cert = params.signed_by(&key, &self.issuer).expect("signs").pem();
        Identity {
            cert,
            key: key.serialize_pem(),
        }
    }
}
