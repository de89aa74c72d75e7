-- name: event_insert
INSERT INTO event (id, job_id, sequence, status, previous_status, at, facts)
VALUES (:event_id, :job_id, :sequence, :status, :previous_status, :at, :facts);

-- name: events_of
SELECT id, job_id, sequence, status, previous_status, at, facts FROM event
WHERE job_id = :job_id
ORDER BY sequence;

-- name: events_drop
-- A delivery that was never tried needs its event still; both go with the delivery.
DELETE FROM event
WHERE job_id = :job_id
    AND NOT EXISTS (SELECT 1 FROM delivery WHERE delivery.event_id = event.id AND delivery.body IS NULL);
