-- name: event_insert
INSERT INTO event (id, job_id, sequence, status, previous_status, at, facts)
VALUES (:event_id, :job_id, :sequence, :status, :previous_status, :at, :facts);

-- name: events_of
SELECT id, job_id, sequence, status, previous_status, at, facts FROM event
WHERE job_id = :job_id
ORDER BY sequence;

-- name: events_drop
DELETE FROM event WHERE job_id = :job_id;
