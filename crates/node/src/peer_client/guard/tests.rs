use super::*;

/// F18: every spelling of an address that is not public, past the parser's help.
#[test]
fn f18_private_literals_are_refused_in_every_spelling() {
    for host in [
        "127.0.0.1",
        "2130706433",
        "0x7f.1",
        "0x7f000001",
        "0177.0.0.1",
        "127.1",
        "0",
        "0.0.0.0",
        "10.0.0.1",
        "172.16.0.1",
        "172.31.255.255",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "198.18.0.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[::127.0.0.1]",
        "[64:ff9b::10.0.0.1]",
        "[64:ff9b:1::1]",
        "[2002:7f00:1::]",
        "[2001::1]",
        "[2001:db8::1]",
        "[fc00::1]",
        "[fd12::1]",
        "[fe80::1]",
        "[fec0::1]",
        "[ff02::1]",
        "[100::1]",
        "localhost",
        "LOCALHOST.",
        "x.localhost",
        "metadata.google.internal",
        "printer.local",
        "①②⑦.0.0.1",
    ] {
        let url = format!("https://{host}:7400");
        assert_eq!(
            PeerUrl::parse(&url, false),
            Err(PeerUrlError::NotPublic),
            "{host}"
        );
        assert!(PeerUrl::parse(&url, true).is_ok(), "{host}");
    }
}

#[test]
fn public_hosts_are_taken() {
    for host in [
        "example.org",
        "8.8.8.8",
        "[2606:4700::1111]",
        "[64:ff9b::8.8.8.8]",
        "172.32.0.1",
    ] {
        assert!(
            PeerUrl::parse(&format!("https://{host}"), false).is_ok(),
            "{host}"
        );
    }
}

#[test]
fn a_peer_url_is_scheme_host_and_port() {
    for bad in [
        "ftp://example.org",
        "example.org",
        "",
        "file:///etc/passwd",
        "data:,x",
    ] {
        assert_eq!(
            PeerUrl::parse(bad, true),
            Err(PeerUrlError::NotHttp),
            "{bad}"
        );
    }
    for bad in [
        "https://u@example.org",
        "https://u:p@example.org",
        "https://example.org/x",
        "https://example.org/?q",
        "https://example.org/#f",
    ] {
        assert_eq!(
            PeerUrl::parse(bad, true),
            Err(PeerUrlError::NotABase),
            "{bad}"
        );
    }
    assert_eq!(
        PeerUrl::parse("http://example.org", false),
        Err(PeerUrlError::NotHttps)
    );
    let url = PeerUrl::parse("http://127.0.0.1:7400", true).unwrap();
    assert_eq!(url.base(), "http://127.0.0.1:7400");
    assert_eq!(url.at("/x/y").as_str(), "http://127.0.0.1:7400/x/y");
}

/// F18: a name that leads to a private address, alone or among public ones.
#[test]
fn f18_names_that_lead_to_private_addresses_are_refused() {
    let strict = GuardedResolver {
        allow_private: false,
    };
    let at = |text: &str| SocketAddr::new(text.parse().unwrap(), 0);
    assert!(strict.permit(vec![at("8.8.8.8")]).is_ok());
    assert_eq!(
        strict.permit(vec![at("8.8.8.8"), at("10.0.0.1")]),
        Err(NoPublicAddress)
    );
    assert_eq!(strict.permit(vec![at("::1")]), Err(NoPublicAddress));
    assert_eq!(strict.permit(Vec::new()), Err(NoPublicAddress));
    let open = GuardedResolver {
        allow_private: true,
    };
    assert!(open.permit(vec![at("::1")]).is_ok());
}
