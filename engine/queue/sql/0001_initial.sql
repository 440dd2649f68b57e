-- Schema 1.  What was released stays as it is: changes come as further numbered files.
--
-- Times are integers of milliseconds since the epoch.  Statements that only SQLite understands
-- (partial indexes excepted, which PostgreSQL has too) are marked.

-- One row for each message id that is known.  Once the message is done with, `finished_at` is set
-- and only this row is left, so that the id is still known for a while.
create table messages (
    number integer primary key,
    id text not null unique,
    reverse_path text not null,             -- '' is the null path
    envid text,
    ret text,
    require_tls integer not null,
    smtputf8 integer not null,
    tenant text not null,
    job text not null,
    priority integer not null,
    submitted_at integer not null,
    deadline integer,
    octets integer not null,                -- of the content, as are the next four
    is_8bit integer not null,
    longest_line integer not null,
    has_utf8_header integer not null,
    sha256 text not null,
    upload integer,                         -- where the pieces of a large content are
    fingerprint text not null,              -- tells the message from another with its id
    finished_at integer
);
create index messages_finished on messages (finished_at) where finished_at is not null;

-- Small contents, whole; apart from the messages so that these can be read quickly.
create table contents (
    message integer primary key,
    octets blob not null
);

-- Large contents, in pieces that are there before their message is.
create table uploads (
    number integer primary key autoincrement,
    started_at integer not null
);
create table pieces (
    upload integer not null,
    piece integer not null,
    octets blob not null,
    primary key (upload, piece)
);

create table recipients (
    number integer primary key,
    message integer not null,
    address text not null,
    domain text not null,                   -- routing domain
    notify text not null,                   -- words joined by commas
    orcpt text,
    deadline integer,                       -- the message's
    state text not null,
    attempts integer not null default 0,
    first_attempt_at integer,
    due integer not null,                   -- while leased: when it is due should the lease be lost
    wait integer not null default 0,        -- by the rule, before jitter
    lane integer,                           -- only while queued
    lease integer,                          -- while leased, and after a lost lease until the next
    site integer,                           -- the site it counts for, only while leased
    wish text,                              -- what a person asked for while it was leased
    result text,                            -- how it ended
    reason text not null default ''
);
create index recipients_message on recipients (message);
-- What a lease takes from a lane.
create index recipients_waiting on recipients (lane, due) where lane is not null;
-- What is out, by site; small, because only so many are out at a time.
create index recipients_out on recipients (site, lease) where site is not null;
create index recipients_expiring on recipients (deadline)
    where deadline is not null and lane is not null;
create index recipients_ended on recipients (message) where state = 'ended';

-- Last outcomes, as JSON; apart from the recipients because they are large and seldom looked at.
create table outcomes (
    recipient integer primary key,
    record text not null
);

-- Numbers are never used again: a settlement names its lease, and must not meet a later one.
create table leases (
    number integer primary key autoincrement,
    owner text not null,
    deadline integer not null
);
-- The journal: recipients whose content went out to its end under a lease, or was about to.
create table marks (
    lease integer not null,
    recipient integer not null,
    primary key (lease, recipient)
) without rowid;                            -- SQLite's way to keep it in this order

create table sites (
    number integer primary key,
    name text not null unique,
    not_before integer not null default 0,
    failures integer not null default 0,
    reason text not null default ''
);
create table domains (
    name text primary key,
    site integer not null
) without rowid;
create index domains_site on domains (site);

-- Where recipients wait.  A lane exists while somebody waits in it.
create table lanes (
    number integer primary key,
    site integer not null,
    priority integer not null,
    tenant text not null,
    job text not null,
    part integer not null default 0,        -- not 0: it came from another site, and is too long to merge
    is_ready integer not null default 0,    -- whether it stands in the line for a lease
    due integer not null,                   -- when it will, if it does not
    turn real not null default 0,           -- its place there
    unique (site, priority, tenant, job, part)
);
create index lanes_line on lanes (priority desc, turn) where is_ready = 1;
create index lanes_due on lanes (due) where is_ready = 0;

-- Clocks of fair shares, see engine.queue.turns: of each priority, and of each job.
create table clocks (
    priority integer primary key,
    turn real not null
);
create table shares (
    priority integer not null,
    tenant text not null,
    job text not null,
    turn real not null,
    primary key (priority, tenant, job)
) without rowid;
create table weights (
    tenant text not null,
    job text not null,                      -- '' is never a job's here: see the next
    is_job integer not null,
    weight real not null,
    primary key (tenant, is_job, job)
) without rowid;
