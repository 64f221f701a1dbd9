-- A store of schema 4 with a row of each kind. Never edited once it is released: a file like this must open for
-- ever.
PRAGMA application_id = 1297044289;
PRAGMA user_version = 4;
PRAGMA foreign_keys = OFF;
BEGIN TRANSACTION;
CREATE TABLE agent_spending (
    agent_id  TEXT    NOT NULL PRIMARY KEY REFERENCES agents (agent_id) ON DELETE CASCADE,
    micro_usd INTEGER NOT NULL CHECK (micro_usd >= 0),
    tokens    INTEGER NOT NULL CHECK (tokens >= 0)
) STRICT, WITHOUT ROWID;
INSERT INTO "agent_spending" VALUES('01a2064b-9fb4-731b-9402-bdd1700d9e09',2500000,4000);
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
INSERT INTO "agents" VALUES(1,'01a2064b-9fb4-731b-9402-bdd1700d9e09','01a2064b-9fb3-74ac-8033-85a80f946600','MOS-1','running',1,1795000000000,NULL,1,0,'{"agentId":"01a2064b-9fb4-731b-9402-bdd1700d9e09","connectionId":"01a2064b-9fb3-74ac-8033-85a80f946600","version":1,"state":"running","request":{"agentId":"01a2064b-9fb4-731b-9402-bdd1700d9e09","taskId":"MOS-1","agentType":"worker","context":{"repository":"file:///repository","branch":"main","workItems":["work"]}},"options":{},"status":{"agentId":"01a2064b-9fb4-731b-9402-bdd1700d9e09","taskId":"MOS-1","agentType":"worker","runtime":"shell","sandbox":"process","state":"running","attempt":0,"repository":"file:///repository","branch":"main","agentBranch":"mosaic/01a2064b-9fb4-731b-9402-bdd1700d9e09","queuedAt":"2026-11-18T11:06:40Z","progress":{"turns":0,"toolCalls":0},"usage":{"inputTokens":0,"outputTokens":0,"cacheReadTokens":0,"cacheCreationTokens":0}},"notBefore":null,"attemptStart":null,"cleanupPending":false}');
INSERT INTO "agents" VALUES(2,'01a2064b-9fb4-731b-9402-bdd26b04b98f',NULL,'MOS-1','killed',1,1795000000000,1795000001000,0,1,'{"agentId":"01a2064b-9fb4-731b-9402-bdd26b04b98f","connectionId":null,"version":1,"state":"killed","request":{"agentId":"01a2064b-9fb4-731b-9402-bdd26b04b98f","taskId":"MOS-1","agentType":"worker","context":{"repository":"file:///repository","branch":"main","workItems":["work"]}},"options":{},"status":{"agentId":"01a2064b-9fb4-731b-9402-bdd26b04b98f","taskId":"MOS-1","agentType":"worker","runtime":"shell","sandbox":"process","state":"killed","attempt":0,"repository":"file:///repository","branch":"main","agentBranch":"mosaic/01a2064b-9fb4-731b-9402-bdd26b04b98f","queuedAt":"2026-11-18T11:06:40Z","endedAt":"2026-11-18T11:06:41Z","progress":{"turns":0,"toolCalls":0},"usage":{"inputTokens":0,"outputTokens":0,"cacheReadTokens":0,"cacheCreationTokens":0}},"notBefore":null,"attemptStart":null,"cleanupPending":true}');
CREATE TABLE audit (
    seq       INTEGER PRIMARY KEY CHECK (seq > 0),
    prev_hash BLOB NOT NULL CHECK (length(prev_hash) = 32),
    hash      BLOB NOT NULL CHECK (length(hash) = 32),
    event     TEXT NOT NULL
) STRICT;
INSERT INTO "audit" VALUES(1,X'0000000000000000000000000000000000000000000000000000000000000000',X'A0CAE1746203BA42487B813BBC3D9CD22D2721D6CD74B0F8CFD0C6056718EA9F','{"at":"2026-11-18T11:06:40Z","actor":{"kind":"system"},"action":"connection.accept","outcome":"ok"}');
INSERT INTO "audit" VALUES(2,X'A0CAE1746203BA42487B813BBC3D9CD22D2721D6CD74B0F8CFD0C6056718EA9F',X'06228E18EB98393B3B07379AD89DEC68A68A3B42BA9B0AD624F4E149DB241A83','{"at":"2026-11-18T11:06:40Z","actor":{"kind":"system"},"action":"invite","outcome":"ok"}');
INSERT INTO "audit" VALUES(3,X'06228E18EB98393B3B07379AD89DEC68A68A3B42BA9B0AD624F4E149DB241A83',X'773C89B84A73DDE752A91470754381F4C3053117D869AB7AF9220436BD7A647F','{"at":"2026-11-18T11:06:40Z","actor":{"kind":"system"},"action":"agent.spawn","outcome":"ok"}');
INSERT INTO "audit" VALUES(4,X'773C89B84A73DDE752A91470754381F4C3053117D869AB7AF9220436BD7A647F',X'F9FFFA30A101598045A61552119EF5CC3BF9D377BF8ECB63F91C806909BDE34F','{"at":"2026-11-18T11:06:40Z","actor":{"kind":"system"},"action":"agent.spawn","outcome":"ok"}');
INSERT INTO "audit" VALUES(5,X'F9FFFA30A101598045A61552119EF5CC3BF9D377BF8ECB63F91C806909BDE34F',X'6D3D8ABDF49C917D10B227E18F44BA11E84F62EF00C2E47C28AE3B9C402E5B4F','{"at":"2026-11-18T11:06:40Z","actor":{"kind":"system"},"action":"token.create","outcome":"ok"}');
CREATE TABLE claims (
    peer       TEXT    NOT NULL,
    message_id BLOB    NOT NULL,
    digest     BLOB    NOT NULL CHECK (length(digest) = 32),
    expires_at INTEGER NOT NULL,
    PRIMARY KEY (peer, message_id)
) STRICT, WITHOUT ROWID;
INSERT INTO "claims" VALUES('mi1bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb',X'01A2064B9FB2740ABA768D1CAEEC7ED5',X'0101010101010101010101010101010101010101010101010101010101010101',1795000060000);
CREATE TABLE commands (
    sent       INTEGER PRIMARY KEY,
    message_id TEXT NOT NULL UNIQUE,
    record     TEXT NOT NULL
) STRICT;
INSERT INTO "commands" VALUES(1,'01a2064b-9fb5-7641-a1a6-c188f651d82c','{"messageId":"01a2064b-9fb5-7641-a1a6-c188f651d82c","commandType":"agent.status","connectionId":"01a2064b-9fb5-7641-a1a6-c189d02188e0","operator":"admin","state":"sent","issuedAt":"2026-11-18T11:06:40Z"}');
CREATE TABLE connections (
    made          INTEGER PRIMARY KEY,
    connection_id TEXT    NOT NULL UNIQUE,
    peer          TEXT    NOT NULL,
    state         TEXT    NOT NULL,
    version       INTEGER NOT NULL CHECK (version > 0),
    record        TEXT    NOT NULL
) STRICT;
INSERT INTO "connections" VALUES(1,'01a2064b-9fb3-74ac-8033-85a80f946600','mi1bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb','active',1,'{"connectionId":"01a2064b-9fb3-74ac-8033-85a80f946600","peer":"mi1bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb","name":"spoke","role":"orchestrator","keys":[],"protocol":1,"state":"active","granted":{"commands":["agent.spawn","agent.status","agent.list","agent.kill","agent.killAll","agent.watch","agent.result","agent.renew","instance.ping"],"repositories":["**"],"runtimes":["*"],"sandboxes":["process","docker"],"caps":{"maxAgents":256,"spawnsPerMinute":600,"maxTimeoutSecs":86400,"maxRetries":5,"network":"open"}},"received":{"commands":[],"repositories":[],"runtimes":[],"sandboxes":[],"caps":{"maxAgents":256,"spawnsPerMinute":600,"maxTimeoutSecs":86400,"maxRetries":5,"network":"open"}},"outgoing":false,"createdAt":"2026-11-18T11:06:40Z","updatedAt":"2026-11-18T11:06:40Z","version":1}');
CREATE TABLE contradictions (
    instance TEXT    NOT NULL,
    seq      INTEGER NOT NULL,
    hash     TEXT    NOT NULL,
    seen_at  INTEGER NOT NULL,
    PRIMARY KEY (instance, seq, hash)
) STRICT, WITHOUT ROWID;
INSERT INTO "contradictions" VALUES('mi1bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb',9,'cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc',1795000002000);
CREATE TABLE forgotten_claims (
    first INTEGER NOT NULL PRIMARY KEY,
    last  INTEGER NOT NULL CHECK (last >= first)
) STRICT;
INSERT INTO "forgotten_claims" VALUES(1795000010000,1795000030000);
CREATE TABLE health (
    id     INTEGER PRIMARY KEY CHECK (id = 1),
    checks INTEGER NOT NULL
) STRICT;
INSERT INTO "health" VALUES(1,1);
CREATE TABLE invites (
    invite_id   TEXT    NOT NULL PRIMARY KEY,
    secret_hash BLOB    NOT NULL UNIQUE CHECK (length(secret_hash) = 32),
    grants      TEXT    NOT NULL,
    created_at  INTEGER NOT NULL,
    expires_at  INTEGER NOT NULL,
    used_by     TEXT
) STRICT;
INSERT INTO "invites" VALUES('01a2064b-9fb3-74ac-8033-85a9ad68575b',X'0707070707070707070707070707070707070707070707070707070707070707','{"commands":["agent.spawn","agent.status","agent.list","agent.kill","agent.killAll","agent.watch","agent.result","agent.renew","instance.ping"],"repositories":["file://**"],"runtimes":["*"],"sandboxes":["process","docker"],"caps":{"maxAgents":256,"spawnsPerMinute":600,"maxTimeoutSecs":86400,"maxRetries":5,"network":"open"}}',1795000000000,1795000100000,NULL);
CREATE TABLE kill_intents (
    ordered   INTEGER PRIMARY KEY,
    intent_id TEXT    NOT NULL UNIQUE,
    pending   INTEGER NOT NULL CHECK (pending IN (0, 1)),
    record    TEXT    NOT NULL
) STRICT;
INSERT INTO "kill_intents" VALUES(1,'01a2064b-9fb6-7c11-8a54-0d1f6b3c9e21',1,'{"intentId":"01a2064b-9fb6-7c11-8a54-0d1f6b3c9e21","connectionId":"01a2064b-9fb3-74ac-8033-85a80f946600","target":{"kind":"all","taskId":"MOS-1","label":{"key":"team","value":"core"}},"hold":true,"reason":"enough","author":{"kind":"operator","token":"admin"},"orderedAt":"2026-11-18T11:06:40Z","state":"pending","attempts":3,"lastAttemptAt":"2026-11-18T11:06:41Z","durable":true}');
INSERT INTO "kill_intents" VALUES(2,'01a2064b-9fb6-7c11-8a54-0d20f0b7d5a4',0,'{"intentId":"01a2064b-9fb6-7c11-8a54-0d20f0b7d5a4","connectionId":"01a2064b-9fb3-74ac-8033-85a80f946600","target":{"kind":"agent","agentId":"01a2064b-9fb5-7641-a1a6-c187b921cb91"},"author":{"kind":"operator","token":"admin"},"orderedAt":"2026-11-18T11:06:40Z","state":"proven","attempts":1,"lastAttemptAt":"2026-11-18T11:06:41Z","deliveredAt":"2026-11-18T11:06:41Z","settledAt":"2026-11-18T11:06:42Z","durable":true}');
CREATE TABLE leases (
    agent_id      TEXT    NOT NULL PRIMARY KEY REFERENCES agents (agent_id) ON DELETE CASCADE,
    boot_id       TEXT    NOT NULL,
    boot_deadline INTEGER NOT NULL CHECK (boot_deadline >= 0),
    deadline      INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
INSERT INTO "leases" VALUES('01a2064b-9fb4-731b-9402-bdd1700d9e09','a boot',60000,1795000060000);
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
INSERT INTO "remote_agents" VALUES(1,'01a2064b-9fb5-7641-a1a6-c187b921cb91','01a2064b-9fb3-74ac-8033-85a80f946600','MOS-1','admin','abababababababababababababababababababababababababababababababab',1795000000000,NULL,0,NULL);
CREATE TABLE responses (
    peer       TEXT NOT NULL,
    message_id BLOB NOT NULL,
    response   BLOB NOT NULL,
    PRIMARY KEY (peer, message_id),
    FOREIGN KEY (peer, message_id) REFERENCES claims (peer, message_id) ON DELETE CASCADE
) STRICT;
INSERT INTO "responses" VALUES('mi1bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb',X'01A2064B9FB2740ABA768D1CAEEC7ED5',X'6B657074');
CREATE TABLE spending (
    day           INTEGER NOT NULL,
    connection_id TEXT    NOT NULL,
    micro_usd     INTEGER NOT NULL CHECK (micro_usd >= 0),
    tokens        INTEGER NOT NULL CHECK (tokens >= 0),
    PRIMARY KEY (day, connection_id)
) STRICT, WITHOUT ROWID;
INSERT INTO "spending" VALUES(20775,'01a2064b-9fb3-74ac-8033-85a80f946600',2500000,4000);
CREATE TABLE tokens (
    made       INTEGER PRIMARY KEY,
    name       TEXT    NOT NULL UNIQUE,
    role       TEXT    NOT NULL,
    hash       BLOB    NOT NULL UNIQUE CHECK (length(hash) = 32),
    created_at INTEGER NOT NULL
) STRICT;
INSERT INTO "tokens" VALUES(1,'admin','"operator"',X'0101010101010101010101010101010101010101010101010101010101010101',1795000000000);
CREATE TABLE witnessed (
    instance TEXT    NOT NULL,
    seq      INTEGER NOT NULL,
    hash     TEXT    NOT NULL,
    seen_at  INTEGER NOT NULL,
    PRIMARY KEY (instance, seq)
) STRICT, WITHOUT ROWID;
INSERT INTO "witnessed" VALUES('mi1bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb',9,'bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb',1795000002000);
CREATE INDEX claims_by_expiry ON claims (expires_at);
CREATE INDEX agents_active ON agents (accepted) WHERE active = 1;
CREATE INDEX agents_to_clean ON agents (accepted) WHERE active = 0 AND cleanup_pending = 1;
CREATE INDEX agents_retirable ON agents (ended_at, accepted) WHERE active = 0 AND cleanup_pending = 0;
CREATE INDEX agents_by_connection ON agents (connection_id, agent_id);
CREATE INDEX agents_by_task ON agents (task_id, agent_id);
CREATE INDEX remote_agents_by_connection ON remote_agents (connection_id, agent_id);
CREATE INDEX remote_agents_by_task ON remote_agents (task_id, agent_id);
CREATE INDEX remote_agents_ended ON remote_agents (accepted) WHERE terminal = 1;
CREATE INDEX kill_intents_pending ON kill_intents (ordered) WHERE pending = 1;
CREATE INDEX kill_intents_settled ON kill_intents (ordered) WHERE pending = 0;
CREATE TRIGGER audit_is_not_edited BEFORE UPDATE ON audit
BEGIN SELECT RAISE(ABORT, 'the audit trail is append-only'); END;
CREATE TRIGGER audit_is_not_cut BEFORE DELETE ON audit
BEGIN SELECT RAISE(ABORT, 'the audit trail is append-only'); END;
COMMIT;
