# The same recipes at home and in CI (.ci/run, which also installs what they need).

set shell := ["bash", "-euo", "pipefail", "-c"]

# List the recipes.
default:
    @just --list

# All tests: a process each, time limits, nothing may be left running (.config/nextest.toml).
test *ARGS: executables
    cargo test --doc --workspace
    cargo nextest run --workspace {{ ARGS }}

# The executables that the end-to-end tests start.
executables:
    cargo build --workspace --bins

# Everything that is not a test: format, lints, dependencies and their directions, documentation.
check: fmt-check deny machete named-tests clippy docs

# As it is done before a change goes in: installs what is missing, and lets no test skip.
ci:
    .ci/run

fmt:
    cargo fmt --all

fmt-check:
    cargo fmt --all --check

clippy:
    cargo clippy --workspace --all-targets -- -D warnings

# `check advisories` is left out: its database is no registry's and must be fetched by hand. `unused-wrapper` is
# allowed because deny.toml names crates that are yet to come.
#
# Licences, sources, and who may depend on whom.
deny:
    cargo deny --all-features check -A unused-wrapper bans licenses sources

# Dependencies that nothing uses.
machete:
    cargo machete

# Every test that the documentation names is there.
named-tests:
    #!/usr/bin/env bash
    set -euo pipefail
    missing=0
    for name in $(grep -ohE '`[a-z0-9]+(_[a-z0-9]+){2,}`' docs/failures.md docs/ARCHITECTURE.md | tr -d '`' | sort -u); do
        grep -rqE "fn $name\b" crates || { echo "named in docs/, but not there: $name"; missing=1; }
    done
    exit "$missing"

docs:
    RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --workspace --document-private-items

# The model of the lifecycle and the killswitch, with the bounds that take minutes; some 5 GB of memory.
model:
    cargo test --release -p mosaic-orchestrator --lib lifecycle::model -- --ignored --nocapture

# The figures of docs/benchmarks.md.
bench *ARGS:
    cargo run --release -p mosaic-e2e --bin bench -- {{ ARGS }}

# A storm of random operations, crashes and outages, and what must hold all the same: docs/storm.md.
storm *ARGS: executables
    nice cargo run -p mosaic-e2e --bin storm -- {{ ARGS }}

# The tour: a hub and two spokes, an agent's work, a kill, a kill-all, the audit.
demo *ARGS:
    cargo run --release -- demo {{ ARGS }}

# A hub and spokes on this machine, connected, until Ctrl-C.
dev *ARGS:
    cargo run --release -- dev {{ ARGS }}
