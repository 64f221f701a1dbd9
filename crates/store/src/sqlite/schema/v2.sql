-- Schema 2: what agents spend, in tokens and millionths of a US dollar. Never edited; changes are further steps.

-- The day counts from 1970-01-01 in UTC. An empty connection_id is the spoke's own operator.
CREATE TABLE spending (
    day           INTEGER NOT NULL,
    connection_id TEXT    NOT NULL,
    micro_usd     INTEGER NOT NULL CHECK (micro_usd >= 0),
    tokens        INTEGER NOT NULL CHECK (tokens >= 0),
    PRIMARY KEY (day, connection_id)
) STRICT, WITHOUT ROWID;

-- Each agent's total as it was counted last: what a day's sum moves by is the difference to it.
CREATE TABLE agent_spending (
    agent_id  TEXT    NOT NULL PRIMARY KEY REFERENCES agents (agent_id) ON DELETE CASCADE,
    micro_usd INTEGER NOT NULL CHECK (micro_usd >= 0),
    tokens    INTEGER NOT NULL CHECK (tokens >= 0)
) STRICT, WITHOUT ROWID;
