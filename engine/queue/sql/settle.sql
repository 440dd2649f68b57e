-- Statements of engine.queue.sql_settle.

-- Where these recipients stand.
-- name: recipients_standing
select json_group_array(json_array(
    r.number, r.message, r.lease, r.state, r.wish, r.lane, r.domain, m.priority, m.tenant, m.job
))
from json_each(:numbers) as j
join recipients as r on r.number = j.value
join messages as m on m.number = r.message

-- name: delete_recipients
delete from recipients where number in (select value from json_each(:numbers))

-- name: delete_outcomes
delete from outcomes where recipient in (select value from json_each(:numbers))

-- Rows: number, result, reason or null, attempts that do not count.
-- name: end_recipients
update recipients set
    state = 'ended', lane = null, lease = null, site = null, wish = null, result = j.value ->> 1,
    reason = coalesce(j.value ->> 2, reason), attempts = attempts - (j.value ->> 3)
from json_each(:rows) as j where recipients.number = j.value ->> 0

-- Who is about to be taken out by hand; who has ended once is in the log.  Rows: number, action, reason
-- or null for what it is, attempts that do not count.
-- name: note_removals
insert into removals (message, recipient, attempts, action, reason, at)
select m.id, r.address, r.attempts - (j.value ->> 3), j.value ->> 1,
    coalesce(j.value ->> 2, r.reason), :now
from json_each(:rows) as j
join recipients as r on r.number = j.value ->> 0
join messages as m on m.number = r.message
where r.result is null order by r.number

-- Rows: number, lane, due, wait or null for what it is, reason or null, attempts that do not count,
-- whether a late settlement by the lease still counts.
-- name: queue_recipients
update recipients set
    state = 'queued', lane = j.value ->> 1, due = j.value ->> 2, site = null, wish = null,
    wait = coalesce(j.value ->> 3, wait), reason = coalesce(j.value ->> 4, reason),
    attempts = attempts - (j.value ->> 5), lease = iif(j.value ->> 6, lease, null),
    first_attempt_at = iif(attempts > j.value ->> 5, first_attempt_at, null)
from json_each(:rows) as j where recipients.number = j.value ->> 0

-- Rows: number, reason or null, attempts that do not count, whether a late settlement still counts.
-- name: hold_recipients
update recipients set
    state = 'held', lane = null, site = null, wish = null, reason = coalesce(j.value ->> 1, reason),
    attempts = attempts - (j.value ->> 2), lease = iif(j.value ->> 3, lease, null),
    first_attempt_at = iif(attempts > j.value ->> 2, first_attempt_at, null)
from json_each(:rows) as j where recipients.number = j.value ->> 0

-- Rows: number, record.
-- name: keep_outcomes
insert into outcomes (recipient, record)
select value ->> 0, value ->> 1 from json_each(:rows) where true
on conflict (recipient) do update set record = excluded.record

-- Contents of messages with nobody left; then the messages themselves, of which the id stays.
-- name: drop_contents
delete from contents where message in (select value from json_each(:messages))
    and not exists (select 1 from recipients as r where r.message = contents.message)

-- name: drop_pieces
delete from pieces where upload in (
    select m.upload from json_each(:messages) as j join messages as m on m.number = j.value
    where m.upload is not null
        and not exists (select 1 from recipients as r where r.message = m.number)
)

-- name: finish_messages
update messages set finished_at = :now
where number in (select value from json_each(:messages)) and finished_at is null
    and not exists (select 1 from recipients as r where r.message = messages.number)

-- How sites have been doing.  Rows: name, not_before, failures, reason.
-- name: note_sites
insert into sites (name, not_before, failures, reason)
select value ->> 0, value ->> 1, value ->> 2, value ->> 3 from json_each(:rows) where true
on conflict (name) do update set
    not_before = excluded.not_before, failures = excluded.failures, reason = excluded.reason

-- Their lanes leave the line, or come back to it when their time has come.
-- name: lanes_of_sites
update lanes set is_ready = 0, due = max(h.head, min(h.not_before, h.head + :overdue))
from (
    select l.number, s.not_before,
        coalesce((select min(r.due) from recipients as r where r.lane = l.number), l.due) as head
    from json_each(:names) as j
    join sites as s on s.name = j.value
    join lanes as l on l.site = s.number
) as h
where lanes.number = h.number

-- Of these domains, those whose site is another one so far.  Rows: domain, name of its site.
-- name: moved_domains
select json_group_array(json_array(d.name, j.value ->> 1, old.number, old.name))
from json_each(:rows) as j
join domains as d on d.name = j.value ->> 0
join sites as old on old.number = d.site
where old.name <> j.value ->> 1

-- name: numbers_of_sites
select json_group_array(json_array(s.name, s.number))
from json_each(:names) as j join sites as s on s.name = j.value

-- Rows: domain, site.
-- name: set_sites
update domains set site = j.value ->> 1
from json_each(:rows) as j where domains.name = j.value ->> 0

-- The lanes of sites, where they are to go, the lane for the same mail that is there already if
-- there is one, and how long they are, as far as that matters.  Rows: old site, new site.
-- name: lanes_to_move
select json_group_array(json_array(
    l.number, l.priority, l.tenant, l.job, j.value ->> 1, t.number,
    (select count(*) from (select 1 from recipients as r where r.lane = l.number limit :most))
) order by l.number)
from json_each(:rows) as j
join lanes as l on l.site = j.value ->> 0
left join lanes as t
    on t.site = j.value ->> 1 and t.priority = l.priority and t.tenant = l.tenant
    and t.job = l.job and t.part = 0

-- Rows: lane, site, part.
-- name: move_lanes
update lanes set site = j.value ->> 1, part = j.value ->> 2
from json_each(:rows) as j where lanes.number = j.value ->> 0

-- Rows: lane, the lane it becomes part of.
-- name: merge_lanes
update recipients set lane = j.value ->> 1
from json_each(:rows) as j where recipients.lane = j.value ->> 0

-- Rows: old site, new site.
-- name: move_out
update recipients set site = j.value ->> 1
from json_each(:rows) as j where recipients.site = j.value ->> 0

-- name: delete_sites
delete from sites where number in (select value from json_each(:sites))
    and not exists (select 1 from domains as d where d.site = sites.number)
