-- name: piece_put
INSERT INTO piece (seq, run, name, number, data) VALUES (:seq, :run, :name, :number, :data)
ON CONFLICT (seq, run, name, number) DO UPDATE SET data = excluded.data;

-- name: running_seq
SELECT seq FROM job WHERE id = :job_id AND status = 'running' AND epoch = :epoch AND run = :run;

-- name: body
SELECT data FROM piece WHERE seq = :seq AND run = 0 AND name = '' ORDER BY number;

-- name: artifact_insert
INSERT INTO artifact (seq, name, position, run, content_type, size, sha256)
VALUES (:seq, :name, :position, :run, :content_type, :size, :sha256);

-- name: artifacts_drop
DELETE FROM artifact WHERE seq = :seq;

-- name: artifacts_of
SELECT seq, name, content_type, size, sha256 FROM artifact
WHERE seq IN (SELECT value FROM json_each(:seqs))
ORDER BY seq, position;

-- name: artifact_by_name
SELECT artifact.name, content_type, size, sha256
FROM artifact JOIN job USING (seq)
WHERE job.id = :job_id AND artifact.name = :name;

-- name: piece_by_number
SELECT data
FROM job JOIN artifact USING (seq) JOIN piece USING (seq, run, name)
WHERE job.id = :job_id AND artifact.name = :name AND piece.number = :number;

-- name: discard_run
INSERT OR IGNORE INTO garbage SELECT seq, run FROM piece WHERE seq = :seq AND run = :run LIMIT 1;

-- name: discard_outputs
INSERT OR IGNORE INTO garbage SELECT DISTINCT seq, run FROM piece WHERE seq = :seq AND run > 0;

-- name: discard_all
INSERT OR IGNORE INTO garbage SELECT DISTINCT seq, run FROM piece WHERE seq = :seq;
