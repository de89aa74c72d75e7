-- Scheduling: lanes that are held back, and how many jobs wait in all.

CREATE TABLE pause (
    lane TEXT PRIMARY KEY,
    since REAL NOT NULL,
    until REAL,                  -- NULL: until somebody resumes it
    unload INTEGER NOT NULL
) WITHOUT ROWID;

-- One row: the jobs that are scheduled or queued. A sum over the lines would not have those in a backoff.
CREATE TABLE waiting (jobs INTEGER NOT NULL);
INSERT INTO waiting SELECT count(*) FROM job WHERE status IN ('scheduled', 'queued');

CREATE TRIGGER job_begins_to_wait AFTER INSERT ON job
WHEN new.status IN ('scheduled', 'queued')
BEGIN
    UPDATE waiting SET jobs = jobs + 1;
END;

CREATE TRIGGER job_waits_again AFTER UPDATE OF status ON job
WHEN new.status IN ('scheduled', 'queued') AND old.status NOT IN ('scheduled', 'queued')
BEGIN
    UPDATE waiting SET jobs = jobs + 1;
END;

CREATE TRIGGER job_waits_no_more AFTER UPDATE OF status ON job
WHEN old.status IN ('scheduled', 'queued') AND new.status NOT IN ('scheduled', 'queued')
BEGIN
    UPDATE waiting SET jobs = jobs - 1;
END;

-- What jobs and loads took so far: averages by which later ones are foretold.
CREATE TABLE estimate (
    measure TEXT NOT NULL,
    lane TEXT NOT NULL,          -- '' is both
    key TEXT NOT NULL,           -- a model key as JSON; '' is all
    value REAL NOT NULL,
    count INTEGER NOT NULL,      -- of the measurements that made it
    measured_at REAL NOT NULL,
    PRIMARY KEY (measure, lane, key)
) WITHOUT ROWID;
CREATE INDEX estimate_measured_at ON estimate (measured_at);
