"""The tables of the file of messages, as the steps that lead to them.

A step that was released is never changed: a new one is put behind it.
"""

MIGRATIONS = (
    """
    -- What was received and what is to be sent: one object, one id space, in the order of arrival.
    CREATE TABLE messages (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        direction TEXT NOT NULL CHECK (direction IN ('in', 'out')),
        platform TEXT NOT NULL,
        chat TEXT NOT NULL,
        user TEXT NOT NULL DEFAULT '',
        user_name TEXT NOT NULL DEFAULT '',
        role TEXT NOT NULL DEFAULT '',
        kind TEXT NOT NULL,
        text TEXT NOT NULL,
        status TEXT NOT NULL DEFAULT 'NEW',
        claimed_by TEXT NOT NULL DEFAULT '',
        lease_until_s REAL,
        attempts INTEGER NOT NULL DEFAULT 0,
        due_at_s REAL NOT NULL DEFAULT 0,
        created_at_s REAL NOT NULL,
        updated_at_s REAL NOT NULL,
        outcome TEXT NOT NULL DEFAULT '',
        error TEXT NOT NULL DEFAULT '',
        platform_message_id TEXT NOT NULL DEFAULT '',
        reply_to TEXT NOT NULL DEFAULT '',
        duration_s REAL,
        preview_id TEXT NOT NULL DEFAULT '',
        trace_context TEXT NOT NULL DEFAULT '',
        -- received
        is_group INTEGER NOT NULL DEFAULT 0,
        is_addressed INTEGER NOT NULL DEFAULT 1,
        is_urgent INTEGER NOT NULL DEFAULT 0,
        sent_at_s REAL NOT NULL DEFAULT 0,
        attachment TEXT,
        transcript TEXT,
        language TEXT NOT NULL DEFAULT '',
        answer TEXT NOT NULL DEFAULT '',
        -- to be sent
        answers INTEGER REFERENCES messages (id),
        edits INTEGER REFERENCES messages (id),
        echo TEXT NOT NULL DEFAULT '',
        text_is_sent INTEGER NOT NULL DEFAULT 0,
        may_group INTEGER NOT NULL DEFAULT 0,
        delivered TEXT NOT NULL DEFAULT '[]'
    ) STRICT;

    CREATE UNIQUE INDEX messages_received_once ON messages (chat, platform_message_id) WHERE direction = 'in';
    CREATE INDEX messages_to_claim ON messages (is_urgent DESC, id) WHERE direction = 'in' AND status = 'NEW';
    CREATE INDEX messages_to_send ON messages (chat, id) WHERE direction = 'out' AND status = 'NEW';
    CREATE INDEX messages_in_work ON messages (direction, chat) WHERE status = 'PROCESSING';
    CREATE INDEX messages_of_chat ON messages (chat, id);
    CREATE INDEX messages_answered ON messages (chat, id) WHERE direction = 'in' AND outcome = 'answered';
    CREATE INDEX messages_of_sender ON messages (user, created_at_s) WHERE direction = 'in';

    -- Apart from the messages, because a row is written anew whole whenever its status changes.
    CREATE TABLE voices (
        message_id INTEGER PRIMARY KEY REFERENCES messages (id),
        ogg_opus BLOB NOT NULL,
        waveform BLOB NOT NULL
    ) STRICT;

    CREATE VIEW entries AS
        SELECT *, EXISTS (SELECT 1 FROM voices WHERE message_id = id) AS has_voice FROM messages;

    CREATE TABLE chats (
        chat TEXT PRIMARY KEY,
        mode TEXT NOT NULL DEFAULT '',
        language TEXT NOT NULL DEFAULT '',
        forgotten_up_to_id INTEGER NOT NULL DEFAULT 0
    ) STRICT;

    CREATE TABLE cursors (
        name TEXT PRIMARY KEY,
        value TEXT NOT NULL
    ) STRICT;

    CREATE TABLE people (
        user TEXT PRIMARY KEY,
        role TEXT NOT NULL CHECK (role IN ('allowed', 'denied')),
        name TEXT NOT NULL,
        added_by TEXT NOT NULL,
        added_at_s REAL NOT NULL
    ) STRICT;

    CREATE TABLE pairing_codes (
        code_sha256 BLOB PRIMARY KEY,
        expires_at_s REAL NOT NULL,
        made_by TEXT NOT NULL
    ) STRICT;
    """,
)
"""Step n leads from schema version n to n + 1; `PRAGMA user_version` holds the version."""
