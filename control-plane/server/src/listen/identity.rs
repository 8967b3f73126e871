//! Who a certificate is of: the URI among its subject's alternative names (RFC 5280,
//! section 4.2.1.6), `longship://card/HOST` or `longship://operator/NAME`.

use rustls::pki_types::CertificateDer;

use crate::auth::Who;
use crate::validate;

const SCHEME: &str = "longship://";

/// Who a certificate is of that has been found to be signed by the clients' CA; `None`
/// where it does not say, or says more than one thing.
pub(super) fn of(certificate: &CertificateDer<'_>) -> Option<Who> {
    let certificate = webpki::EndEntityCert::try_from(certificate).ok()?;
    let mut names = certificate
        .valid_uri_names()
        .filter(|uri| uri.starts_with(SCHEME));
    match (names.next(), names.next()) {
        (Some(name), None) => who(name),
        _ => None,
    }
}

fn who(uri: &str) -> Option<Who> {
    let (kind, name) = uri.strip_prefix(SCHEME)?.split_once('/')?;
    validate::dns_label("", name).ok()?;
    match kind {
        "card" => Some(Who::Card { host: name.into() }),
        "operator" => Some(Who::Operator),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_cards_or_an_operators_or_nobodys() {
        let host = "host-1".into();
        assert_eq!(who("longship://card/host-1"), Some(Who::Card { host }));
        assert_eq!(who("longship://operator/ann"), Some(Who::Operator));
        for nobody in [
            "longship://card/",
            "longship://card/host-1/more",
            "longship://card/Host",
            "longship://operator",
            "longship://tenant/red",
            "longship://",
            "http://card/host-1",
        ] {
            assert_eq!(who(nobody), None, "{nobody}");
        }
    }

    #[test]
    fn what_is_no_certificate_is_nobodys() {
        for bytes in [&b""[..], b"0", &[0x30, 0x82, 0xff, 0xff]] {
            assert_eq!(of(&CertificateDer::from(bytes)), None);
        }
    }
}
