-- name: pause_put
INSERT INTO pause (lane, since, until, unload) VALUES (:lane, :since, :until, :unload)
ON CONFLICT (lane) DO UPDATE SET since = excluded.since, until = excluded.until, unload = excluded.unload;

-- name: pause_drop
DELETE FROM pause WHERE lane = :lane;

-- name: pauses
-- One that is over stays until the lane is paused again, or resumed.
SELECT lane, since, until, unload FROM pause WHERE until IS NULL OR until > :now ORDER BY lane;
