-- What schema 2 adds to schema 1. Described in docs/formats/store-layout.md; keep the two in step.

-- Which files a record's key covers, in the writer's own form: so that a miss can name the one that changed.
CREATE TABLE record_files (
  key   BLOB PRIMARY KEY REFERENCES records (key) ON DELETE CASCADE,
  files BLOB NOT NULL
) STRICT;

-- Builds that have ended; the journal of each is builds/<id>.
CREATE TABLE builds (
  id         TEXT PRIMARY KEY,
  series     BLOB NOT NULL,
  started    INTEGER NOT NULL,
  took       INTEGER NOT NULL,
  status     TEXT NOT NULL,
  context    TEXT NOT NULL,
  dockerfile TEXT NOT NULL,
  target     TEXT,
  tags       TEXT NOT NULL,
  error      TEXT,
  steps      INTEGER NOT NULL,
  ran        INTEGER NOT NULL,
  cached     INTEGER NOT NULL,
  saved      INTEGER NOT NULL,
  warnings   INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX builds_by_start ON builds (started);
CREATE INDEX builds_by_series ON builds (series, started);
