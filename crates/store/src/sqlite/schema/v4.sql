-- Schema 4: when forgotten claims expired. Never edited; changes are further steps.

-- Ranges of milliseconds since the Unix epoch, apart from each other: a message whose claim would expire within one may
-- have been claimed before.
CREATE TABLE forgotten_claims (
    first INTEGER NOT NULL PRIMARY KEY,
    last  INTEGER NOT NULL CHECK (last >= first)
) STRICT;
