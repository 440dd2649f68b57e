-- Statements of engine.queue.sql_upkeep: forgetting, and looking for damage.

-- name: forget_messages
delete from messages where number in (
    select number from messages where finished_at is not null and finished_at <= :before
    order by finished_at limit :limit
)

-- Whom nobody logs: their store is not a worker's.
-- name: drop_stale_removals
delete from removals where at <= :before

-- Pieces that came before a submitter went away.
-- name: drop_stale_pieces
delete from pieces where upload in (select number from uploads where started_at <= :before)

-- name: drop_stale_uploads
delete from uploads where started_at <= :before

-- Back-offs that are over.
-- name: clear_sites
update sites set not_before = 0, reason = '' where not_before > 0 and not_before <= :now and failures = 0

-- Sites without mail, unless they are not in good health; a step at a time.
-- name: idle_sites
select json_group_array(s.number)
from (select * from sites where number > :after order by number limit :limit) as s
where s.not_before <= :now and s.failures = 0
    and not exists (select 1 from lanes as l where l.site = s.number)
    and not exists (select 1 from recipients as r where r.site = s.number)

-- name: next_sites
select max(number), count(*)
from (select number from sites where number > :after order by number limit :limit)

-- name: drop_domains
delete from domains where site in (select value from json_each(:sites))

-- name: drop_sites
delete from sites where number in (select value from json_each(:sites))

-- Whose turn lies behind the clock is treated as if it had none.
-- name: drop_shares
delete from shares
where turn <= coalesce((select turn from clocks as c where c.priority = shares.priority), 0)

-- Contents to look at, a step at a time.
-- name: messages_to_check
select json_group_array(json_array(number, id, octets, sha256, upload)) from (
    select number, id, octets, sha256, upload from messages
    where number > :after and finished_at is null order by number limit :limit
)

-- Recipients that belong nowhere: there are none, unless the file is damaged.
-- name: strays
select json_group_array(number) from (
    select number from recipients as r
    where number > :after and (
        not exists (select 1 from messages as m where m.number = r.message)
        or (state = 'queued') <> (lane is not null)
        or (state = 'leased') <> (site is not null)
        or (lane is not null and not exists (select 1 from lanes as l where l.number = r.lane))
    )
    order by number limit :limit
)
