//! Every SQL statement of the write connection, prepared once for its life.

use rusqlite::{Connection, Statement};

/// Prepared.
pub(super) struct Statements<'c> {
    pub(super) connection: &'c Connection,
    pub(super) begin: Statement<'c>,
    pub(super) commit: Statement<'c>,
    pub(super) insert_chunk: Statement<'c>,
    pub(super) find_chunk: Statement<'c>,
    pub(super) delete_chunks: Statement<'c>,
    pub(super) insert_dead_letter: Statement<'c>,
    pub(super) insert_lane: Statement<'c>,
    pub(super) update_lane: Statement<'c>,
    pub(super) delete_lane: Statement<'c>,
    pub(super) insert_lane_chunk: Statement<'c>,
    pub(super) find_lane_chunk: Statement<'c>,
    pub(super) delete_lane_chunk: Statement<'c>,
    pub(super) copy_lane_chunk: Statement<'c>,
    pub(super) update_lane_chunk: Statement<'c>,
    pub(super) insert_unread: Statement<'c>,
    pub(super) upsert_session: Statement<'c>,
    pub(super) delete_session: Statement<'c>,
    pub(super) insert_topic: Statement<'c>,
    pub(super) set_in_line: Statement<'c>,
    pub(super) update_state: Statement<'c>,
    pub(super) page_count: Statement<'c>,
    pub(super) free_pages: Statement<'c>,
    pub(super) oldest: Statement<'c>,
}

impl<'c> Statements<'c> {
    pub(super) fn prepare(connection: &'c Connection) -> rusqlite::Result<Self> {
        let sql = |sql| connection.prepare(sql);
        Ok(Self {
            connection,
            begin: sql("BEGIN IMMEDIATE")?,
            commit: sql("COMMIT")?,
            insert_chunk: sql("INSERT INTO chunk (first, last, oldest_ms, body) VALUES (?1, ?2, ?3, ?4)")?,
            find_chunk: sql("SELECT first, last, body FROM chunk WHERE first <= ?1 ORDER BY first DESC LIMIT 1")?,
            delete_chunks: sql("DELETE FROM chunk WHERE first BETWEEN ?1 AND ?2 AND last <= ?2")?,
            insert_dead_letter: sql(
                "INSERT INTO dead_letter (sequence, last, at_ms, kafka_topic, route, reason, body) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            )?,
            insert_lane: sql("INSERT INTO lane (kafka_topic, held) VALUES (?1, 0)")?,
            update_lane: sql("UPDATE lane SET held = ?2 WHERE id = ?1")?,
            delete_lane: sql("DELETE FROM lane WHERE id = ?1")?,
            insert_lane_chunk: sql(
                "INSERT INTO lane_chunk (lane, first, last, oldest_ms, body) VALUES (?1, ?2, ?3, ?4, ?5)",
            )?,
            find_lane_chunk: sql("SELECT first, last, body FROM lane_chunk WHERE id = ?1 AND lane = ?2")?,
            update_lane_chunk: sql(
                "UPDATE lane_chunk SET first = ?2, last = ?3, oldest_ms = ?4, body = ?5 WHERE id = ?1",
            )?,
            delete_lane_chunk: sql("DELETE FROM lane_chunk WHERE id = ?1")?,
            insert_unread: sql("INSERT INTO unread (first, last) VALUES (?1, ?2) \
                 ON CONFLICT (first) DO UPDATE SET last = max(last, ?2)")?,
            copy_lane_chunk: sql("INSERT INTO lane_chunk (lane, first, last, oldest_ms, body) \
                 SELECT lane, first, last, oldest_ms, body FROM lane_chunk WHERE id = ?1 AND lane = ?2")?,
            upsert_session: sql("INSERT INTO session (name, used_ms, expiry_s, packet_ids) VALUES (?1, ?2, ?3, ?4) \
                 ON CONFLICT (name) DO UPDATE SET used_ms = ?2, expiry_s = ?3, packet_ids = ?4")?,
            delete_session: sql("DELETE FROM session WHERE name = ?1")?,
            insert_topic: sql("INSERT OR IGNORE INTO admitted (kafka_topic) VALUES (?1)")?,
            set_in_line: sql("INSERT OR REPLACE INTO in_line (id, mark) VALUES (1, ?1)")?,
            update_state: sql("UPDATE state SET body = ?1 WHERE id = 1")?,
            page_count: sql("PRAGMA page_count")?,
            free_pages: sql("PRAGMA freelist_count")?,
            oldest: sql(
                "SELECT min(at) FROM (SELECT * FROM (SELECT oldest_ms AS at FROM chunk ORDER BY first LIMIT 1) \
                 UNION ALL SELECT * FROM (SELECT oldest_ms AS at FROM lane_chunk ORDER BY id LIMIT 1))",
            )?,
        })
    }
}
