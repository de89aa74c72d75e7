-- name: lines
SELECT takes_turn, model, option_key FROM line WHERE waiting > 0;

-- name: lines_drop
DELETE FROM line;

-- name: lines_count
INSERT INTO line
SELECT takes_turn, model, option_key, count(*) FROM job INDEXED BY job_age
WHERE status = 'queued' AND not_before IS NULL
GROUP BY takes_turn, model, option_key;

-- name: waiting
SELECT jobs FROM waiting;

-- name: waiting_count
-- In the place of the one row, whether it is there or not; the lines were just counted.
REPLACE INTO waiting (rowid, jobs) SELECT 1, (
    SELECT coalesce(sum(waiting), 0) FROM line
) + (
    SELECT count(*) FROM job INDEXED BY job_not_before WHERE status = 'queued' AND not_before IS NOT NULL
) + (
    SELECT count(*) FROM job INDEXED BY job_run_at WHERE status = 'scheduled'
);

-- name: line_count
SELECT waiting FROM line
WHERE takes_turn = :takes_turn AND model = :model AND option_key = :option_key;

-- name: line_head
SELECT id, priority, waiting_since, seq FROM job INDEXED BY job_head
WHERE status = 'queued' AND not_before IS NULL
    AND takes_turn = :takes_turn AND model = :model AND option_key = :option_key
ORDER BY priority DESC, waiting_since, seq
LIMIT 1;

-- name: line_oldest
SELECT id, priority, waiting_since, seq FROM job INDEXED BY job_age
WHERE status = 'queued' AND not_before IS NULL
    AND takes_turn = :takes_turn AND model = :model AND option_key = :option_key
ORDER BY waiting_since, seq
LIMIT 1;

-- name: line_place
SELECT takes_turn, model, option_key, priority, waiting_since, seq FROM job
WHERE id = :job_id AND status = 'queued' AND not_before IS NULL;

-- name: line_ahead
-- In three parts, each of which is one range of the index: of a comparison of two columns at once SQLite takes
-- the first one only for its range, and jobs that were released together are of one moment.
SELECT (
    SELECT count(*) FROM job INDEXED BY job_head
    WHERE status = 'queued' AND not_before IS NULL
        AND takes_turn = :takes_turn AND model = :model AND option_key = :option_key
        AND priority > :priority
) + (
    SELECT count(*) FROM job INDEXED BY job_head
    WHERE status = 'queued' AND not_before IS NULL
        AND takes_turn = :takes_turn AND model = :model AND option_key = :option_key
        AND priority = :priority AND waiting_since < :waiting_since
) + (
    SELECT count(*) FROM job INDEXED BY job_head
    WHERE status = 'queued' AND not_before IS NULL
        AND takes_turn = :takes_turn AND model = :model AND option_key = :option_key
        AND priority = :priority AND waiting_since = :waiting_since AND seq < :seq
);

-- name: line_behind
-- At most so many of each part: a job that has just come has few behind it, whatever is before it.
SELECT (
    SELECT count(*) FROM (
        SELECT 1 FROM job INDEXED BY job_head
        WHERE status = 'queued' AND not_before IS NULL
            AND takes_turn = :takes_turn AND model = :model AND option_key = :option_key
            AND priority = :priority AND waiting_since = :waiting_since AND seq > :seq
        LIMIT :limit
    )
) + (
    SELECT count(*) FROM (
        SELECT 1 FROM job INDEXED BY job_head
        WHERE status = 'queued' AND not_before IS NULL
            AND takes_turn = :takes_turn AND model = :model AND option_key = :option_key
            AND priority = :priority AND waiting_since > :waiting_since
        LIMIT :limit
    )
) + (
    SELECT count(*) FROM (
        SELECT 1 FROM job INDEXED BY job_head
        WHERE status = 'queued' AND not_before IS NULL
            AND takes_turn = :takes_turn AND model = :model AND option_key = :option_key
            AND priority < :priority
        LIMIT :limit
    )
);
