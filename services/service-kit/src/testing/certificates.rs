//! Certificates for tests, of authorities that nobody else believes.

use std::path::{Path, PathBuf};

use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, SanType,
    date_time_ymd,
};

use crate::auth::CertificateFiles;

/// An authority.
#[derive(Debug)]
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate to be issued. Valid from 2000 to 2200 unless it is told otherwise.
#[derive(Clone, Debug)]
pub struct Wish {
    /// Host names and URIs, the latter with `://`.
    pub names: Vec<String>,
    /// First and last year of its validity.
    pub years: (i32, i32),
}

impl Wish {
    /// One for `localhost` and, where it is not empty, this URI.
    pub fn of(uri: &str) -> Self {
        let names = ["localhost", uri].into_iter().filter(|name| !name.is_empty());
        Self { names: names.map(str::to_owned).collect(), years: (2000, 2200) }
    }
}

impl Authority {
    /// A new one.
    ///
    /// # Panics
    /// When it cannot be made: the test cannot go on.
    #[expect(clippy::new_without_default, reason = "it draws a key")]
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "an authority of a test");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.not_before = date_time_ymd(2000, 1, 1);
        params.not_after = date_time_ymd(2300, 1, 1);
        let key = KeyPair::generate().expect("a key");
        Self(CertifiedIssuer::self_signed(params, key).expect("an authority"))
    }

    /// Issues a certificate and writes it, its key and this authority into the folder, over what it has.
    ///
    /// # Panics
    /// When it cannot be issued or written.
    pub fn issue(&self, folder: &Path, wish: &Wish) -> CertificateFiles {
        let mut params = CertificateParams::default();
        let name = |name: &String| {
            let text = Ia5String::try_from(name.as_str()).expect("ASCII");
            if name.contains("://") { SanType::URI(text) } else { SanType::DnsName(text) }
        };
        params.subject_alt_names = wish.names.iter().map(name).collect();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.not_before = date_time_ymd(wish.years.0, 1, 1);
        params.not_after = date_time_ymd(wish.years.1, 12, 31);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.0).expect("a certificate");
        std::fs::create_dir_all(folder).expect("a folder");
        let write = |name: &str, pem: String| -> PathBuf {
            let path = folder.join(name);
            std::fs::write(&path, pem).expect("a file");
            path
        };
        CertificateFiles {
            certificate: write("tls.crt", certificate.pem()),
            private_key: write("tls.key", key.serialize_pem()),
            ca: write("ca.crt", self.0.pem()),
        }
    }
}
