"""The tables of the file of messages, as the migrations that lead to them.

A released migration is never changed; a new one is added at the end.
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
    """
    -- Received: what becomes of it, and who takes it up next: 'june', or 'program' once it may be claimed.
    ALTER TABLE messages ADD COLUMN route TEXT NOT NULL DEFAULT 'assistant';
    ALTER TABLE messages ADD COLUMN taker TEXT NOT NULL DEFAULT 'june';
    ALTER TABLE messages ADD COLUMN timings_s TEXT NOT NULL DEFAULT '{}';
    -- To be sent: what a program called it; the people it goes to if its chat does not take it.
    ALTER TABLE messages ADD COLUMN purpose TEXT NOT NULL DEFAULT '';
    ALTER TABLE messages ADD COLUMN other_users TEXT NOT NULL DEFAULT '[]';
    ALTER TABLE messages ADD COLUMN edited_text TEXT;
    ALTER TABLE messages ADD COLUMN forwards INTEGER;
    ALTER TABLE messages ADD COLUMN is_unspoken INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE messages ADD COLUMN is_question INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE messages ADD COLUMN expires_at_s REAL;
    ALTER TABLE messages ADD COLUMN answered_by INTEGER;

    DROP VIEW entries;
    CREATE VIEW entries AS
        SELECT *, EXISTS (SELECT 1 FROM voices WHERE message_id = id) AS has_voice FROM messages;

    DROP INDEX messages_to_claim;
    CREATE INDEX messages_to_claim ON messages (taker, is_urgent DESC, id)
        WHERE direction = 'in' AND status = 'NEW';
    CREATE INDEX messages_leased ON messages (lease_until_s)
        WHERE status = 'PROCESSING' AND claimed_by = 'program';
    CREATE INDEX messages_asked ON messages (chat, id) WHERE is_question AND answered_by IS NULL
        AND status IN ('NEW', 'PROCESSING', 'SENT');
    CREATE INDEX messages_unanswered ON messages (expires_at_s) WHERE is_question AND answered_by IS NULL
        AND status IN ('NEW', 'SENT');
    CREATE INDEX messages_unspoken ON messages (id) WHERE is_unspoken;
    CREATE INDEX messages_by_status ON messages (status, id);
    CREATE INDEX messages_by_time ON messages (created_at_s);

    -- Which message of ours a chat app's id stands for, so that a reply to it is understood.
    CREATE TABLE sent_as (
        chat TEXT NOT NULL,
        platform_message_id TEXT NOT NULL,
        message_id INTEGER NOT NULL REFERENCES messages (id) ON DELETE CASCADE,
        PRIMARY KEY (chat, platform_message_id)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX sent_as_of ON sent_as (message_id);
    INSERT OR IGNORE INTO sent_as
        SELECT chat, json_extract(value, '$.message_id'), messages.id FROM messages, json_each(delivered)
        WHERE direction = 'out' AND messages.kind <> 'edit' ORDER BY messages.id;

    CREATE TABLE idempotency_keys (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        key TEXT NOT NULL UNIQUE,
        request_sha256 TEXT NOT NULL,
        message_id INTEGER NOT NULL,
        attempts INTEGER NOT NULL,
        created_at_s REAL NOT NULL
    ) STRICT;

    -- What changed, whichever room of june changed it: the last 10,000.
    CREATE TABLE events (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        message_id INTEGER NOT NULL
    ) STRICT;
    CREATE TRIGGER message_added AFTER INSERT ON messages WHEN NEW.kind <> 'edit' BEGIN
        INSERT INTO events (message_id) VALUES (NEW.id);
    END;
    CREATE TRIGGER message_changed AFTER UPDATE ON messages
    WHEN NEW.kind <> 'edit' AND
        (NEW.status, NEW.text, NEW.edited_text, NEW.transcript, NEW.lease_until_s, NEW.attempts, NEW.chat)
        IS NOT
        (OLD.status, OLD.text, OLD.edited_text, OLD.transcript, OLD.lease_until_s, OLD.attempts, OLD.chat)
    BEGIN
        INSERT INTO events (message_id) VALUES (NEW.id);
    END;
    CREATE TRIGGER event_added AFTER INSERT ON events BEGIN
        DELETE FROM events WHERE id <= NEW.id - 10000;
    END;
    """,
    """
    -- Received: what its answer cost, over all attempts that came to an end.
    ALTER TABLE messages ADD COLUMN prompt_tokens INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE messages ADD COLUMN completion_tokens INTEGER NOT NULL DEFAULT 0;

    -- Without these each message that is deleted costs a look at all others: does one refer to it?
    CREATE INDEX messages_answering ON messages (answers) WHERE answers IS NOT NULL;
    CREATE INDEX messages_editing ON messages (edits) WHERE edits IS NOT NULL;
    """,
)
"""Migration n (from 0) leads from schema version n to n + 1; `PRAGMA user_version` holds the version."""

VERSION = len(MIGRATIONS)
"""The schema version that this june reads and writes."""
