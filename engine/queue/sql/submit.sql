-- Statements of engine.queue.sql_submit.  `:rows` and other lists are JSON arrays.

-- Which of these ids are known, and what they stand for.
-- name: known_messages
select json_group_array(json_array(m.id, m.number, m.fingerprint))
from json_each(:ids) as j join messages as m on m.id = j.value

-- name: insert_messages
insert into messages (
    id, reverse_path, envid, ret, require_tls, smtputf8, tenant, job, priority, submitted_at,
    deadline, octets, is_8bit, longest_line, has_utf8_header, sha256, upload, not_before,
    is_tls_optional, is_binary, fingerprint
)
select
    value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5, value ->> 6,
    value ->> 7, value ->> 8, value ->> 9, value ->> 10, value ->> 11, value ->> 12, value ->> 13,
    value ->> 14, value ->> 15, value ->> 16, value ->> 17, value ->> 18, value ->> 19,
    value ->> 20
from json_each(:rows)

-- The rows are bound, for JSON has no octets.
-- name: insert_contents
insert into contents (message, octets) values

-- name: insert_upload
insert into uploads (started_at) values (:now)

-- name: insert_pieces
insert into pieces (upload, piece, octets) values

-- The upload belongs to a message now, and is not swept any more.
-- name: finish_uploads
delete from uploads where number in (select value from json_each(:uploads))

-- name: drop_pieces_of
delete from pieces where upload in (
    select u.number from json_each(:uploads) as j join uploads as u on u.number = j.value
)

-- name: new_domains
select json_group_array(j.value)
from json_each(:domains) as j
where not exists (select 1 from domains as d where d.name = j.value)

-- A domain is its own site until somebody has found out better.
-- name: insert_sites
insert into sites (name) select value from json_each(:names) where true on conflict (name) do nothing

-- name: insert_domains
insert into domains (name, site)
select j.value, s.number from json_each(:names) as j join sites as s on s.name = j.value
where true on conflict (name) do nothing

-- Make lanes, or let them be looked at earlier.  Rows: domain, priority, tenant, job, due.
-- name: open_lanes
insert into lanes (site, priority, tenant, job, due)
select
    d.site, j.value ->> 1, j.value ->> 2, j.value ->> 3,
    min(max(j.value ->> 4, min(s.not_before, (j.value ->> 4) + :overdue)))
from json_each(:rows) as j
join domains as d on d.name = j.value ->> 0
join sites as s on s.number = d.site
group by 1, 2, 3, 4
on conflict (site, priority, tenant, job, part) do update set due = excluded.due
where lanes.is_ready = 0 and lanes.due > excluded.due

-- Rows as above; in their order, with the number of each lane.
-- name: numbers_of_lanes
select json_group_array(l.number order by j.key)
from json_each(:rows) as j
join domains as d on d.name = j.value ->> 0
join lanes as l
    on l.site = d.site and l.priority = j.value ->> 1 and l.tenant = j.value ->> 2
    and l.job = j.value ->> 3 and l.part = 0

-- Lanes that somebody left: those with nobody go, the others are looked at when it is time.
-- name: drop_empty_lanes
delete from lanes where number in (select value from json_each(:lanes))
    and not exists (select 1 from recipients as r where r.lane = lanes.number)

-- name: look_again_at_lanes
update lanes set due = max(h.head, min(h.not_before, h.head + :overdue))
from (
    select l.number, s.not_before,
        (select min(r.due) from recipients as r where r.lane = l.number) as head
    from json_each(:lanes) as j
    join lanes as l on l.number = j.value
    join sites as s on s.number = l.site
) as h
where lanes.number = h.number and lanes.is_ready = 0

-- name: insert_recipients
insert into recipients (message, address, domain, notify, orcpt, deadline, state, due, lane)
select
    value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5, value ->> 6,
    value ->> 7, value ->> 8
from json_each(:rows)
