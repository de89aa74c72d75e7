-- name: delivery_insert
-- It is held (its due_at is NULL) while an earlier event of the job has not had its first attempt.
INSERT INTO delivery (event_id, job_id, type, sequence, url, receiver, state, series, tried, due_at)
VALUES (
    :event_id, :job_id, :type, :sequence, :url, :receiver, 'pending', 1, 0,
    CASE WHEN EXISTS (
        SELECT 1 FROM delivery INDEXED BY delivery_job
        WHERE job_id = :job_id AND state = 'pending' AND series = 1 AND tried = 0
    ) THEN NULL ELSE :at END
) RETURNING due_at;

-- name: announcement_insert
INSERT INTO delivery (event_id, type, url, receiver, state, series, tried, due_at, body)
VALUES (:event_id, :type, :url, :receiver, 'pending', 1, 0, :at, :body);

-- name: last_announcement
SELECT * FROM delivery INDEXED BY delivery_own WHERE job_id IS NULL ORDER BY position DESC LIMIT 1;

-- name: receivers
-- From one receiver to the next in the index, however many deliveries each has.
WITH RECURSIVE next(receiver) AS (
    SELECT min(receiver) FROM delivery INDEXED BY delivery_due
    WHERE state = 'pending' AND due_at IS NOT NULL
    UNION ALL
    SELECT (
        SELECT min(receiver) FROM delivery INDEXED BY delivery_due
        WHERE state = 'pending' AND due_at IS NOT NULL AND receiver > next.receiver
    ) FROM next WHERE next.receiver IS NOT NULL
)
SELECT receiver, (
    SELECT min(due_at) FROM delivery INDEXED BY delivery_due
    WHERE state = 'pending' AND due_at IS NOT NULL AND receiver = next.receiver
) FROM next WHERE receiver IS NOT NULL;

-- name: deliveries_due
SELECT event_id, due_at FROM delivery INDEXED BY delivery_due
WHERE state = 'pending' AND due_at IS NOT NULL AND receiver = :receiver
ORDER BY due_at, position
LIMIT :limit;

-- name: delivery_compose
UPDATE delivery SET body = :body WHERE position = :position;

-- name: event_by_sequence
SELECT id, job_id, sequence, status, previous_status, at, facts FROM event
WHERE job_id = :job_id AND sequence = :sequence;

-- name: result_of
-- Only while the event is still the last that happened to its job.
SELECT artifact.size, piece.data FROM job JOIN artifact USING (seq) JOIN piece USING (seq, run, name)
WHERE job.id = :job_id AND job.sequence = :sequence AND job.status = 'succeeded'
    AND artifact.name = 'response.json' AND artifact.size <= :limit AND piece.number = 0;

-- name: attempt_insert
INSERT INTO attempt (delivery, number, at, address, status, error, duration_ms, response)
SELECT position, (SELECT coalesce(max(number), 0) + 1 FROM attempt WHERE attempt.delivery = position),
    :at, :address, :status, :error, :duration_ms, :response
FROM delivery WHERE event_id = :event_id;

-- name: delivery_move
UPDATE delivery SET state = :state, tried = :tried, due_at = :due_at, ended_at = :ended_at
WHERE event_id = :event_id AND series = :series AND tried = :tried - 1 AND state = 'pending';

-- name: delivery_next_held
SELECT delivery.position, delivery.receiver, event.at
FROM delivery INDEXED BY delivery_job JOIN event USING (job_id, sequence)
WHERE delivery.job_id = :job_id AND delivery.state = 'pending' AND delivery.due_at IS NULL
ORDER BY delivery.sequence
LIMIT 1;

-- name: delivery_release
UPDATE delivery SET due_at = :at WHERE position = :position;

-- name: delivery_by_event
SELECT * FROM delivery WHERE event_id = :event_id;

-- name: delivery_again
UPDATE delivery SET state = 'pending', series = series + 1, tried = 0, due_at = :now, ended_at = NULL
WHERE event_id = :event_id
RETURNING *;

-- name: deliveries_of
SELECT * FROM delivery INDEXED BY delivery_job WHERE job_id = :job_id ORDER BY sequence;

-- name: attempts_of
SELECT attempt.* FROM delivery INDEXED BY delivery_job JOIN attempt ON delivery.position = attempt.delivery
WHERE job_id = :job_id
ORDER BY attempt.delivery, number;

-- name: delivery_states
SELECT DISTINCT job_id, state FROM delivery INDEXED BY delivery_job
WHERE job_id IN (SELECT value FROM json_each(:job_ids));

-- name: delivery_statuses
SELECT job_id, attempt.status FROM delivery INDEXED BY delivery_job JOIN attempt ON delivery.position = attempt.delivery
WHERE job_id IN (SELECT value FROM json_each(:job_ids))
ORDER BY attempt.at, attempt.number;

-- name: deliveries_old
SELECT position, event_id, job_id, sequence FROM delivery INDEXED BY delivery_ended
WHERE ended_at IS NOT NULL AND ended_at <= :until
ORDER BY ended_at
LIMIT :limit;

-- name: delivery_drop
DELETE FROM delivery WHERE position = :position;

-- name: event_drop_orphan
DELETE FROM event
WHERE job_id = :job_id AND sequence = :sequence
    AND NOT EXISTS (SELECT 1 FROM job WHERE id = :job_id)
    AND NOT EXISTS (SELECT 1 FROM tombstone WHERE id = :job_id AND has_events = 1);
