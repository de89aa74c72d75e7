-- name: open_epoch
INSERT INTO boot (opened_at) VALUES (:now) RETURNING epoch;

-- name: job_insert
INSERT INTO job (
    id, status, endpoint, takes_turn, model, option_key, priority, metadata, timeout, start_within,
    start_deadline, max_attempts, on_interrupt, transcript, webhook_url, webhook_events, created_at, run_at,
    waiting_since, sequence
) VALUES (
    :job_id, :status, :endpoint, :takes_turn, :model, :option_key, :priority, :metadata, :timeout,
    :start_within, :start_deadline, :max_attempts, :on_interrupt, :transcript, :webhook_url, :webhook_events,
    :created_at, :run_at, :waiting_since, 1
) RETURNING *;

-- name: job_by_id
SELECT * FROM job WHERE id = :job_id;

-- name: job_move
-- The transition table is enforced here, and the fence of the run that was read before.
UPDATE job SET
    status = :status, start_deadline = :start_deadline, not_before = :not_before,
    waiting_since = :waiting_since, started_at = :started_at, finished_at = :finished_at,
    cancel_requested_at = :cancel_requested_at, attempt = :attempt, interruptions = :interruptions,
    run = :run, epoch = :epoch, sequence = :sequence, errors = :errors, metrics = :metrics
WHERE seq = :seq AND status IN (SELECT value FROM json_each(:allowed))
    AND run = :old_run AND epoch IS :old_epoch;

-- name: job_request_cancel
UPDATE job SET cancel_requested_at = :now WHERE seq = :seq AND status = 'running';

-- name: jobs_orphaned
SELECT * FROM job INDEXED BY job_running WHERE status = 'running' AND epoch < :epoch;

-- name: jobs_expired
-- INDEXED BY, here and elsewhere: left to choose, SQLite walks all jobs of a state.
SELECT * FROM job INDEXED BY job_start_deadline
WHERE start_deadline IS NOT NULL AND started_at IS NULL AND status IN ('scheduled', 'queued')
    AND start_deadline <= :now
ORDER BY start_deadline
LIMIT :limit;

-- name: jobs_to_release
SELECT * FROM job INDEXED BY job_run_at
WHERE status = 'scheduled' AND run_at <= :now
ORDER BY run_at
LIMIT :limit;

-- name: backoffs_end
-- Their jobs stay queued, and wait in their lines from now on.
UPDATE job SET not_before = NULL
WHERE seq IN (
    SELECT seq FROM job INDEXED BY job_not_before
    WHERE status = 'queued' AND not_before IS NOT NULL AND not_before <= :now
    ORDER BY not_before
    LIMIT :limit
)
RETURNING takes_turn, model, option_key;

-- name: next_due
SELECT min(moment) FROM (
    SELECT min(start_deadline) AS moment FROM job INDEXED BY job_start_deadline
    WHERE start_deadline IS NOT NULL AND started_at IS NULL AND status IN ('scheduled', 'queued')
    UNION ALL
    SELECT min(run_at) FROM job INDEXED BY job_run_at WHERE status = 'scheduled'
    UNION ALL
    SELECT min(not_before) FROM job INDEXED BY job_not_before
    WHERE status = 'queued' AND not_before IS NOT NULL
);

-- name: list_all
SELECT * FROM job WHERE id < :after ORDER BY id DESC LIMIT :limit;

-- name: list_by_status
SELECT * FROM job WHERE status = :status AND id < :after ORDER BY id DESC LIMIT :limit;

-- name: list_by_model
SELECT * FROM job WHERE model = :model AND status = :status AND id < :after ORDER BY id DESC LIMIT :limit;
