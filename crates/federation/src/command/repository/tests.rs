use super::*;

fn include(glob: &str, url: &str) -> bool {
    RepositoryGlobs::new(&[glob.to_owned()])
        .unwrap()
        .include(url)
}

#[test]
fn urls_of_every_form_are_taken() {
    for url in [
        "file:///srv/git/a.git",
        "file:///srv/with%20space/a",
        "file:///srv/git/a/",
        "https://example.org/team/a.git",
        "https://example.org:8443/team/a",
        "https://[2001:db8::1]/team/a",
        "ssh://git@example.org/team/a.git",
        "ssh://git@example.org:2222/team/a.git",
        "ssh://example.org/team/a.git",
        "git@example.org:team/a.git",
        "git@example.org:/srv/a.git",
        "git@[2001:db8::1]:team/a.git",
        "file:///srv/jörg/a",
    ] {
        assert!(check(url).is_ok(), "{url}: {:?}", check(url));
    }
}

/// F14: what could be spelled in a second way would slip by the globs.
#[test]
fn f14_urls_with_a_second_spelling_are_refused() {
    use RepositoryFault::{Character, Credentials, Form, Host, Length, Percent, Segment};
    for (url, fault) in [
        ("", Length),
        ("/srv/a", Form),
        ("srv/a", Form),
        ("a", Form),
        ("file://srv/a", Form),
        ("file://host/srv/a", Form),
        ("FILE:///srv/a", Form),
        ("http://example.org/a", Form),
        ("git://example.org/a", Form),
        ("ext::sh -c id", Character),
        ("ext::sh", Form),
        ("fd::7", Form),
        ("file:///srv/a/../b", Segment),
        ("file:///srv/./b", Segment),
        ("file:///srv//b", Segment),
        ("file:////srv/b", Segment),
        ("file:///", Form),
        ("file:///srv/a/..", Segment),
        ("file:///srv/%2e%2e/b", Percent),
        ("file:///srv/%2E%2E/b", Percent),
        ("file:///srv%2fb", Percent),
        ("file:///srv/%62", Percent),
        ("file:///srv/%", Percent),
        ("file:///srv/%é", Percent),
        ("file:///srv/%252e", Percent),
        ("file:///srv/%00", Percent),
        ("file:///srv/a\\b", Character),
        ("file:///srv/a\nb", Character),
        ("file:///srv/a b", Character),
        ("https://example.org/a?b", Character),
        ("https://example.org/a#b", Character),
        ("https://Example.org/a", Host),
        ("https://example.org./a", Host),
        ("https://example.org:/a/", Host),
        ("https://example.org:0443/a", Host),
        ("https://example.org:99999/a", Host),
        ("https:///a", Host),
        ("https://-oProxyCommand=x/a", Host),
        ("https://example.org", Form),
        ("https://user@example.org/a", Credentials),
        ("https://user:secret@example.org/a", Credentials),
        ("https://example.org@evil.example/a", Credentials),
        ("ssh://user:secret@example.org/a", Credentials),
        ("ssh://-oProxyCommand=x/a", Host),
        ("ssh://-l@example.org/a", Form),
        ("ssh://a@b@example.org/a", Host),
        ("-oProxyCommand=x@example.org:a", Form),
        ("git@-oProxyCommand=x:a", Host),
        ("git@example.org:-x", Segment),
        ("git@example.org:../a", Segment),
        ("git@example.org:a/../b", Segment),
        ("git@example.org", Form),
        ("git@example.org:", Segment),
        ("--upload-pack=x", Form),
    ] {
        assert_eq!(check(url), Err(fault), "{url}");
        assert!(!include("**", url), "{url}");
    }
    let long = format!("file:///{}", "a".repeat(MAX_REPOSITORY_BYTES));
    assert_eq!(check(&long), Err(Length));
}

#[test]
fn f14_a_star_stops_at_a_slash() {
    assert!(include(
        "https://example.org/team/*",
        "https://example.org/team/a"
    ));
    assert!(include(
        "https://example.org/team/*",
        "https://example.org/team/a/"
    ));
    assert!(!include(
        "https://example.org/team/*",
        "https://example.org/team/a/b"
    ));
    assert!(!include(
        "https://example.org/team/*",
        "https://example.org/other/a"
    ));
    assert!(!include("https://*/team/a", "https://example.org/x/team/a"));
    assert!(include(
        "https://example.org/team/**",
        "https://example.org/team/a/b"
    ));
    assert!(!include(
        "https://example.org/team?a",
        "https://example.org/team/a"
    ));
    for class in ["https://example.org/team[!x]a", "https://a/\\\\[.-0]a", "["] {
        let globs = RepositoryGlobs::new(&[class.to_owned()]);
        assert!(matches!(globs, Err(GlobError::Class { .. })), "{class}");
    }
    assert!(include(
        r"https://\[2001:db8::1\]/**",
        "https://[2001:db8::1]/a"
    ));
    // A prefix is not a folder.
    assert!(!include("file:///srv/git/**", "file:///srv/git-private/a"));
    assert!(!include("file:///srv/a", "file:///srv/a.git"));
    assert!(!include("file:///srv/a", "https://example.org/srv/a"));
}

#[test]
fn no_globs_include_nothing() {
    assert!(!RepositoryGlobs::new(&[]).unwrap().include("file:///srv/a"));
    assert!(matches!(
        RepositoryGlobs::new(&["file:///{a".to_owned()]),
        Err(GlobError::Syntax { .. })
    ));
    assert!(matches!(
        RepositoryGlobs::new(&vec![String::new(); MAX_GLOBS + 1]),
        Err(GlobError::TooMany)
    ));
}
