-- What schema 3 adds to schema 2. Described in docs/formats/store-layout.md; keep the two in step.

-- Layers that a compression made others of, with the same files: eStargz puts its table into the tar.
CREATE TABLE rewritten (
  diff_id     TEXT NOT NULL,
  compression TEXT NOT NULL,
  made        TEXT NOT NULL,
  PRIMARY KEY (diff_id, compression)
) STRICT, WITHOUT ROWID;
CREATE INDEX rewritten_by_made ON rewritten (made);
