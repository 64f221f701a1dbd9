-- Schema 1: the first release. Never edited; changes are further steps.
-- Ids are their canonical text, times are milliseconds since the Unix epoch, hashes are 32 bytes.

CREATE TABLE claims (
    peer       TEXT    NOT NULL,
    message_id BLOB    NOT NULL,
    digest     BLOB    NOT NULL CHECK (length(digest) = 32),
    expires_at INTEGER NOT NULL,
    PRIMARY KEY (peer, message_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX claims_by_expiry ON claims (expires_at);

-- Apart from the claims, so that looking a claim up never pages through responses.
CREATE TABLE responses (
    peer       TEXT NOT NULL,
    message_id BLOB NOT NULL,
    response   BLOB NOT NULL,
    PRIMARY KEY (peer, message_id),
    FOREIGN KEY (peer, message_id) REFERENCES claims (peer, message_id) ON DELETE CASCADE
) STRICT;

CREATE TABLE connections (
    made          INTEGER PRIMARY KEY,
    connection_id TEXT    NOT NULL UNIQUE,
    peer          TEXT    NOT NULL,
    state         TEXT    NOT NULL,
    version       INTEGER NOT NULL CHECK (version > 0),
    record        TEXT    NOT NULL
) STRICT;

CREATE TABLE invites (
    invite_id   TEXT    NOT NULL PRIMARY KEY,
    secret_hash BLOB    NOT NULL UNIQUE CHECK (length(secret_hash) = 32),
    grants      TEXT    NOT NULL,
    created_at  INTEGER NOT NULL,
    expires_at  INTEGER NOT NULL,
    used_by     TEXT
) STRICT;

CREATE TABLE agents (
    accepted        INTEGER PRIMARY KEY,
    agent_id        TEXT    NOT NULL UNIQUE,
    connection_id   TEXT,
    task_id         TEXT    NOT NULL,
    state           TEXT    NOT NULL,
    version         INTEGER NOT NULL CHECK (version > 0),
    queued_at       INTEGER NOT NULL,
    ended_at        INTEGER,
    active          INTEGER NOT NULL CHECK (active IN (0, 1)),
    cleanup_pending INTEGER NOT NULL CHECK (cleanup_pending IN (0, 1)),
    record          TEXT    NOT NULL,
    CHECK (active = (ended_at IS NULL))
) STRICT;
CREATE INDEX agents_active ON agents (accepted) WHERE active = 1;
CREATE INDEX agents_to_clean ON agents (accepted) WHERE active = 0 AND cleanup_pending = 1;
CREATE INDEX agents_retirable ON agents (ended_at, accepted) WHERE active = 0 AND cleanup_pending = 0;
CREATE INDEX agents_by_connection ON agents (connection_id, agent_id);
CREATE INDEX agents_by_task ON agents (task_id, agent_id);

CREATE TABLE remote_agents (
    accepted       INTEGER PRIMARY KEY,
    agent_id       TEXT    NOT NULL UNIQUE,
    connection_id  TEXT    NOT NULL,
    task_id        TEXT    NOT NULL,
    operator       TEXT    NOT NULL,
    request_digest TEXT    NOT NULL,
    created_at     INTEGER NOT NULL,
    last_status    TEXT,
    terminal       INTEGER NOT NULL CHECK (terminal IN (0, 1)),
    last_seen_at   INTEGER
) STRICT;
CREATE INDEX remote_agents_by_connection ON remote_agents (connection_id, agent_id);
CREATE INDEX remote_agents_by_task ON remote_agents (task_id, agent_id);
CREATE INDEX remote_agents_ended ON remote_agents (accepted) WHERE terminal = 1;

CREATE TABLE commands (
    sent       INTEGER PRIMARY KEY,
    message_id TEXT NOT NULL UNIQUE,
    record     TEXT NOT NULL
) STRICT;

CREATE TABLE tokens (
    made       INTEGER PRIMARY KEY,
    name       TEXT    NOT NULL UNIQUE,
    role       TEXT    NOT NULL,
    hash       BLOB    NOT NULL UNIQUE CHECK (length(hash) = 32),
    created_at INTEGER NOT NULL
) STRICT;

CREATE TABLE audit (
    seq       INTEGER PRIMARY KEY CHECK (seq > 0),
    prev_hash BLOB NOT NULL CHECK (length(prev_hash) = 32),
    hash      BLOB NOT NULL CHECK (length(hash) = 32),
    event     TEXT NOT NULL
) STRICT;
-- Against our own mistakes; whoever writes to the file by other means is found by the chain.
CREATE TRIGGER audit_is_not_edited BEFORE UPDATE ON audit
BEGIN SELECT RAISE(ABORT, 'the audit trail is append-only'); END;
CREATE TRIGGER audit_is_not_cut BEFORE DELETE ON audit
BEGIN SELECT RAISE(ABORT, 'the audit trail is append-only'); END;

CREATE TABLE witnessed (
    instance TEXT    NOT NULL,
    seq      INTEGER NOT NULL,
    hash     TEXT    NOT NULL,
    seen_at  INTEGER NOT NULL,
    PRIMARY KEY (instance, seq)
) STRICT, WITHOUT ROWID;

CREATE TABLE contradictions (
    instance TEXT    NOT NULL,
    seq      INTEGER NOT NULL,
    hash     TEXT    NOT NULL,
    seen_at  INTEGER NOT NULL,
    PRIMARY KEY (instance, seq, hash)
) STRICT, WITHOUT ROWID;

CREATE TABLE health (
    id     INTEGER PRIMARY KEY CHECK (id = 1),
    checks INTEGER NOT NULL
) STRICT;
