-- name: jobs_past_retention
SELECT seq, id FROM job INDEXED BY job_ended
WHERE finished_at IS NOT NULL AND status = :status AND finished_at <= :until
ORDER BY finished_at
LIMIT :limit;

-- name: tombstone_insert
INSERT INTO tombstone (id, status, created_at, finished_at, buried_at, has_events)
SELECT id, status, created_at, finished_at, :now, :has_events FROM job
WHERE seq = :seq AND status IN (SELECT value FROM json_each(:allowed))
RETURNING id, status, created_at, finished_at;

-- name: job_drop
DELETE FROM job WHERE seq = :seq AND status IN (SELECT value FROM json_each(:allowed));

-- name: tombstone_by_id
SELECT id, status, created_at, finished_at FROM tombstone WHERE id = :job_id;

-- name: garbage_runs
SELECT seq, run FROM garbage LIMIT 1;

-- name: garbage_runs_of
SELECT seq, run FROM garbage WHERE seq = :seq LIMIT 1;

-- name: garbage_pieces_drop
DELETE FROM piece WHERE id IN (SELECT id FROM piece WHERE seq = :seq AND run = :run LIMIT :limit);

-- name: garbage_run_done
DELETE FROM garbage WHERE seq = :seq AND run = :run;

-- name: tombstones_with_old_events
SELECT id FROM tombstone INDEXED BY tombstone_events
WHERE has_events = 1 AND status = :status AND finished_at <= :until
ORDER BY finished_at
LIMIT :limit;

-- name: tombstone_events_dropped
UPDATE tombstone SET has_events = 0 WHERE id = :job_id;

-- name: tombstones_old
SELECT id FROM tombstone WHERE buried_at <= :until ORDER BY buried_at LIMIT :limit;

-- name: tombstone_drop
DELETE FROM tombstone WHERE id = :job_id;
