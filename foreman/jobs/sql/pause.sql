-- name: pause_put
INSERT INTO pause (lane, since, until, unload) VALUES (:lane, :since, :until, :unload)
ON CONFLICT (lane, since) DO UPDATE
SET until = excluded.until, unload = excluded.unload, ended_at = NULL;

-- name: pause_replace
-- The scalar min() is NULL if one of its values is.
UPDATE pause SET ended_at = min(coalesce(until, :since), :since)
WHERE lane = :lane AND since <> :since AND ended_at IS NULL;

-- name: pause_end
UPDATE pause SET ended_at = min(coalesce(until, :now), :now) WHERE lane = :lane AND ended_at IS NULL;

-- name: pauses_forget
DELETE FROM pause WHERE coalesce(ended_at, until) < :before;

-- name: pauses
SELECT lane, since, until, unload FROM pause
WHERE ended_at IS NULL AND (until IS NULL OR until > :now) ORDER BY lane;

-- name: pauses_ended
-- The latest, the oldest of them first.
SELECT * FROM (
    SELECT lane, since, coalesce(ended_at, until) AS ended, unload FROM pause
    WHERE ended_at IS NOT NULL OR until <= :now
    ORDER BY since DESC LIMIT :limit
) WHERE ended > :after ORDER BY since;
