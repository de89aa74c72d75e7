-- The first schema. Times are epoch seconds.

-- One row for each life of the database. A running job of an earlier epoch is an orphan.
CREATE TABLE boot (
    epoch INTEGER PRIMARY KEY AUTOINCREMENT,
    opened_at REAL NOT NULL
);

CREATE TABLE job (
    -- The order of arrival. AUTOINCREMENT: a number is never used again, and pieces may outlive their job.
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    status TEXT NOT NULL
        CHECK (status IN ('scheduled', 'queued', 'running', 'succeeded', 'failed', 'cancelled', 'expired')),
    endpoint TEXT NOT NULL,
    -- The line that it waits in.
    takes_turn INTEGER NOT NULL,
    model TEXT NOT NULL,
    option_key TEXT NOT NULL,
    priority INTEGER NOT NULL,
    metadata TEXT NOT NULL,      -- JSON object
    timeout REAL,                -- seconds; 0 is without end, NULL the default
    start_within REAL,           -- seconds, as it was handed in
    start_deadline REAL,         -- until its first start
    max_attempts INTEGER NOT NULL,
    on_interrupt TEXT NOT NULL,
    transcript INTEGER NOT NULL,
    webhook_url TEXT,
    created_at REAL NOT NULL,
    run_at REAL,                 -- the submitter's "not before"
    not_before REAL,             -- the end of a backoff; NULL when there is none, or it is over
    waiting_since REAL NOT NULL, -- the moment from which it could run
    started_at REAL,             -- of the latest run
    finished_at REAL,
    cancel_requested_at REAL,    -- only while it runs, and after
    attempt INTEGER NOT NULL DEFAULT 0,       -- those that count
    interruptions INTEGER NOT NULL DEFAULT 0,
    run INTEGER NOT NULL DEFAULT 0,           -- all claims: with the epoch, the fence of a run
    epoch INTEGER,               -- in which the latest run was claimed
    sequence INTEGER NOT NULL,   -- of the latest event
    errors TEXT NOT NULL DEFAULT '[]',        -- JSON list, one for each failed attempt
    metrics TEXT                 -- JSON object
);

-- A choice costs the same with ten jobs waiting or a million.
CREATE INDEX job_head ON job (takes_turn, model, option_key, priority DESC, waiting_since, seq)
    WHERE status = 'queued' AND not_before IS NULL;
CREATE INDEX job_age ON job (takes_turn, model, option_key, waiting_since, seq)
    WHERE status = 'queued' AND not_before IS NULL;
-- What is due, and what will be.
CREATE INDEX job_not_before ON job (not_before) WHERE status = 'queued' AND not_before IS NOT NULL;
CREATE INDEX job_run_at ON job (run_at) WHERE status = 'scheduled';
CREATE INDEX job_start_deadline ON job (start_deadline)
    WHERE start_deadline IS NOT NULL AND started_at IS NULL AND status IN ('scheduled', 'queued');
CREATE INDEX job_running ON job (epoch) WHERE status = 'running';
CREATE INDEX job_ended ON job (status, finished_at) WHERE finished_at IS NOT NULL;
-- Lists, newest first.
CREATE INDEX job_status ON job (status, id);
CREATE INDEX job_model ON job (model, status, id);

-- How many jobs wait in each line. Kept by triggers, so that no statement can forget it.
CREATE TABLE line (
    takes_turn INTEGER NOT NULL,
    model TEXT NOT NULL,
    option_key TEXT NOT NULL,
    waiting INTEGER NOT NULL,
    PRIMARY KEY (takes_turn, model, option_key)
) WITHOUT ROWID;

CREATE TRIGGER job_arrives AFTER INSERT ON job
WHEN new.status = 'queued' AND new.not_before IS NULL
BEGIN
    INSERT INTO line VALUES (new.takes_turn, new.model, new.option_key, 1)
        ON CONFLICT DO UPDATE SET waiting = waiting + 1;
END;

CREATE TRIGGER job_joins AFTER UPDATE OF status, not_before ON job
WHEN new.status = 'queued' AND new.not_before IS NULL
    AND NOT (old.status = 'queued' AND old.not_before IS NULL)
BEGIN
    INSERT INTO line VALUES (new.takes_turn, new.model, new.option_key, 1)
        ON CONFLICT DO UPDATE SET waiting = waiting + 1;
END;

CREATE TRIGGER job_leaves AFTER UPDATE OF status, not_before ON job
WHEN old.status = 'queued' AND old.not_before IS NULL
    AND NOT (new.status = 'queued' AND new.not_before IS NULL)
BEGIN
    UPDATE line SET waiting = waiting - 1
        WHERE takes_turn = old.takes_turn AND model = old.model AND option_key = old.option_key;
    DELETE FROM line
        WHERE takes_turn = old.takes_turn AND model = old.model AND option_key = old.option_key AND waiting = 0;
END;

-- The artifacts that can be seen: those of the run that ended the job.
CREATE TABLE artifact (
    seq INTEGER NOT NULL REFERENCES job ON DELETE CASCADE,
    name TEXT NOT NULL,
    position INTEGER NOT NULL,   -- its place in the list
    run INTEGER NOT NULL,
    content_type TEXT NOT NULL,
    size INTEGER NOT NULL,
    sha256 TEXT NOT NULL,
    PRIMARY KEY (seq, name)
) WITHOUT ROWID;

-- Bytes. Run 0 and no name is the body that was submitted; the others are artifacts, also of runs that are
-- not over, or were lost.
CREATE TABLE piece (
    id INTEGER PRIMARY KEY,
    seq INTEGER NOT NULL,        -- no reference: pieces go in small steps, after their job
    run INTEGER NOT NULL,
    name TEXT NOT NULL,
    number INTEGER NOT NULL,
    data BLOB NOT NULL,
    UNIQUE (seq, run, name, number)
);

-- Runs whose pieces nobody sees any more, and which are removed step by step.
CREATE TABLE garbage (
    seq INTEGER NOT NULL,
    run INTEGER NOT NULL,
    PRIMARY KEY (seq, run)
) WITHOUT ROWID;

-- The outbox: one row for each transition, written in its transaction.
CREATE TABLE event (
    position INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL,
    job_id TEXT NOT NULL,        -- no reference: an event may outlive its job
    sequence INTEGER NOT NULL,
    status TEXT NOT NULL,
    previous_status TEXT,
    at REAL NOT NULL,
    facts TEXT NOT NULL,         -- JSON object
    UNIQUE (job_id, sequence)
);

CREATE TABLE tombstone (
    id TEXT PRIMARY KEY,
    status TEXT NOT NULL,
    created_at REAL NOT NULL,
    finished_at REAL NOT NULL,
    buried_at REAL NOT NULL,
    has_events INTEGER NOT NULL  -- of a job that was deleted before its time: its events stay until then
) WITHOUT ROWID;
CREATE INDEX tombstone_buried_at ON tombstone (buried_at);
CREATE INDEX tombstone_events ON tombstone (status, finished_at) WHERE has_events = 1;
