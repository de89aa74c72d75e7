-- Pauses that are over stay for a week: the time that they took is no waiting, after a restart neither.

ALTER TABLE pause RENAME TO pause_of_003;
CREATE TABLE pause (
    lane TEXT NOT NULL,
    since REAL NOT NULL,
    until REAL,                  -- NULL: until somebody resumes it
    unload INTEGER NOT NULL,
    ended_at REAL,               -- before its time: it was resumed, or another one took its place
    PRIMARY KEY (lane, since)
) WITHOUT ROWID;
INSERT INTO pause (lane, since, until, unload) SELECT lane, since, until, unload FROM pause_of_003;
DROP TABLE pause_of_003;
