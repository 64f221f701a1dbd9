-- Schema 3: leases of a spoke's agents, and kills that a hub keeps until they are proven. Never edited; changes are
-- further steps.

-- How far an agent's lease reaches, as last written: never later than the truth.
CREATE TABLE leases (
    agent_id      TEXT    NOT NULL PRIMARY KEY REFERENCES agents (agent_id) ON DELETE CASCADE,
    boot_id       TEXT    NOT NULL,
    boot_deadline INTEGER NOT NULL CHECK (boot_deadline >= 0),
    deadline      INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE kill_intents (
    ordered   INTEGER PRIMARY KEY,
    intent_id TEXT    NOT NULL UNIQUE,
    pending   INTEGER NOT NULL CHECK (pending IN (0, 1)),
    record    TEXT    NOT NULL
) STRICT;
CREATE INDEX kill_intents_pending ON kill_intents (ordered) WHERE pending = 1;
CREATE INDEX kill_intents_settled ON kill_intents (ordered) WHERE pending = 0;
