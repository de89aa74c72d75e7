-- Webhooks: which events a job's receiver wants, and the deliveries of events with their attempts.

ALTER TABLE job ADD COLUMN webhook_events TEXT;  -- JSON list; NULL is all

CREATE TABLE delivery (
    -- The order in which they were made: first attempts that are due at one moment go out in it.
    position INTEGER PRIMARY KEY AUTOINCREMENT,
    event_id TEXT NOT NULL UNIQUE,
    job_id TEXT,                 -- NULL for an event of foreman's own. No reference: it may outlive its job
    type TEXT NOT NULL,
    sequence INTEGER,
    url TEXT NOT NULL,
    receiver TEXT NOT NULL,      -- scheme, host and port of the URL
    state TEXT NOT NULL CHECK (state IN ('pending', 'delivered', 'failed', 'stopped')),
    series INTEGER NOT NULL,     -- raised when somebody asks for it to be sent again
    tried INTEGER NOT NULL,      -- attempts of this series
    due_at REAL,                 -- NULL: it waits for the first attempt of an earlier event of its job, or is over
    body BLOB,                   -- NULL until it is composed
    ended_at REAL
);

-- What a look costs does not depend on how many wait for other receivers.
CREATE INDEX delivery_due ON delivery (receiver, due_at, position)
    WHERE state = 'pending' AND due_at IS NOT NULL;
CREATE INDEX delivery_job ON delivery (job_id, sequence) WHERE job_id IS NOT NULL;
CREATE INDEX delivery_own ON delivery (position) WHERE job_id IS NULL;
CREATE INDEX delivery_ended ON delivery (ended_at) WHERE ended_at IS NOT NULL;

CREATE TABLE attempt (
    delivery INTEGER NOT NULL REFERENCES delivery ON DELETE CASCADE,
    number INTEGER NOT NULL,     -- from 1, over all series
    at REAL NOT NULL,
    address TEXT,
    status INTEGER,
    error TEXT,
    duration_ms INTEGER NOT NULL,
    response BLOB NOT NULL,
    PRIMARY KEY (delivery, number)
) WITHOUT ROWID;
