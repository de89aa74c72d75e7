-- name: estimates
SELECT measure, lane, key, value, count FROM estimate ORDER BY measured_at;

-- name: estimate_put
INSERT INTO estimate (measure, lane, key, value, count, measured_at)
VALUES (:measure, :lane, :key, :value, :count, :now)
ON CONFLICT DO UPDATE SET value = excluded.value, count = excluded.count, measured_at = excluded.measured_at;

-- name: estimates_forget
-- All but so many of the latest.
DELETE FROM estimate WHERE measured_at < (
    SELECT measured_at FROM estimate ORDER BY measured_at DESC LIMIT 1 OFFSET :most - 1
);
