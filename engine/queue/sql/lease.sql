-- Statements of engine.queue.sql_lease.

-- Lanes whose time has come, to be put into the line.
-- name: lanes_come_due
select json_group_array(json_array(number, priority, tenant, job)) from (
    select number, priority, tenant, job from lanes
    where is_ready = 0 and due <= :now order by due limit :limit
)

-- name: lines_up
update lanes set is_ready = 1, turn = j.value ->> 1
from json_each(:rows) as j where lanes.number = j.value ->> 0

-- How many recipients of each site are out.
-- name: sites_out
select json_group_array(json_array(site, out)) from (
    select site, count(*) as out from recipients where site is not null group by site
)

-- The head of the line, without sites that have as many out as they may.
-- name: lanes_next
select json_group_array(json_array(
    number, priority, tenant, job, turn, site, name, not_before, failures, reason
)) from (
    select l.number, l.priority, l.tenant, l.job, l.turn, l.site, s.name, s.not_before, s.failures,
        s.reason
    from lanes as l join sites as s on s.number = l.site
    where l.is_ready = 1 and l.site not in (select value from json_each(:full))
    order by l.priority desc, l.turn limit :limit
)

-- What each lane has: the first of it that are due.  Rows: lane, due before.
-- name: recipients_next
select json_group_array(json_array(
    r.lane, r.number, r.message, r.address, r.domain, r.notify, r.orcpt, r.attempts,
    r.first_attempt_at, r.wait, r.reason
) order by j.key, r.due, r.number)
from json_each(:rows) as j cross join recipients as r
where r.number in (
    select w.number from recipients as w
    where w.lane = j.value ->> 0 and w.due <= j.value ->> 1
    order by w.due, w.number limit :limit
)

-- name: recipients_expired
select json_group_array(json_array(
    lane, number, message, address, domain, notify, orcpt, attempts, first_attempt_at, wait, reason
)) from (
    select * from recipients
    where deadline is not null and lane is not null and deadline <= :now
    order by deadline limit :limit
)

-- name: insert_lease
insert into leases (owner, deadline) values (:owner, :deadline)

-- name: take_recipients
update recipients set
    state = 'leased', lease = :lease, site = (select l.site from lanes as l where l.number = lane),
    lane = null, attempts = attempts + :count, due = :retry_at,
    first_attempt_at = coalesce(first_attempt_at, :now), wish = null
where number in (select value from json_each(:numbers))

-- When the first of what is left in these lanes is due; null where nothing is.
-- name: lanes_left
select json_group_array(json_array(
    l.number, (select min(r.due) from recipients as r where r.lane = l.number), s.not_before
))
from json_each(:lanes) as j
join lanes as l on l.number = j.value
join sites as s on s.number = l.site

-- name: close_lanes
delete from lanes where number in (select value from json_each(:lanes))

-- Rows: lane, due.
-- name: steps_aside
update lanes set is_ready = 0, due = j.value ->> 1
from json_each(:rows) as j where lanes.number = j.value ->> 0

-- What comes next: when a lane may be put into the line, the first deadline, and whether any lane
-- stands in the line now.
-- name: outlook
select
    (select min(due) from lanes where is_ready = 0),
    (select min(deadline) from recipients where deadline is not null and lane is not null),
    exists (select 1 from lanes where is_ready = 1)

-- name: clocks
select json_group_array(json_array(priority, turn)) from clocks

-- Of each job: its last turn, how many jobs of its tenant stand in the line (so many that it makes
-- no more difference suffice), and its weight.  Rows: priority, tenant, job.
-- name: shares_of
select json_group_array(json_array(
    (
        select s.turn from shares as s
        where s.priority = j.value ->> 0 and s.tenant = j.value ->> 1 and s.job = j.value ->> 2
    ),
    (
        select count(*) from (
            select 1 from shares as s
            where s.priority = j.value ->> 0 and s.tenant = j.value ->> 1 and s.turn > coalesce(
                (select c.turn from clocks as c where c.priority = j.value ->> 0), 0
            )
            limit 100
        )
    ),
    coalesce((
        select w.weight from weights as w where w.tenant = j.value ->> 1 and w.is_job = 0
    ), 1.0) * coalesce((
        select w.weight from weights as w
        where w.tenant = j.value ->> 1 and w.is_job = 1 and w.job = j.value ->> 2
    ), 1.0)
) order by j.key)
from json_each(:rows) as j

-- name: set_clocks
insert into clocks (priority, turn) select value ->> 0, value ->> 1 from json_each(:rows) where true
on conflict (priority) do update set turn = excluded.turn

-- name: set_shares
insert into shares (priority, tenant, job, turn)
select value ->> 0, value ->> 1, value ->> 2, value ->> 3 from json_each(:rows) where true
on conflict (priority, tenant, job) do update set turn = excluded.turn

-- name: set_weight
insert into weights (tenant, job, is_job, weight) values (:tenant, :job, :is_job, :weight)
on conflict (tenant, is_job, job) do update set weight = excluded.weight

-- Envelopes of messages.
-- name: messages_of
select json_group_array(json_array(
    m.number, m.id, m.reverse_path, m.envid, m.ret, m.require_tls, m.smtputf8, m.tenant, m.job,
    m.priority, m.submitted_at, m.deadline, m.octets, m.is_8bit, m.longest_line, m.has_utf8_header,
    m.sha256, m.upload, m.not_before, m.is_tls_optional, m.is_binary
))
from json_each(:messages) as j join messages as m on m.number = j.value

-- Their contents, one behind the other.  SQLite joins octets as they are, and the cast does not
-- change them; one row, see engine.queue.database.  In whatever order: both columns are made of the
-- rows as they come, and to sort contents takes three times as long as to read them.
-- name: contents_of
select
    cast(group_concat(octets, '') as blob),
    json_group_array(json_array(message, length(octets)))
from contents where message in (select value from json_each(:messages))

-- name: pieces_of
select
    cast(group_concat(octets, '' order by piece) as blob), count(*)
from pieces where upload = :upload and piece >= :first and piece < :end

-- Content that is not what was written: keep its recipients for a person.
-- name: hold_damaged
update recipients set state = 'held', lane = null, reason = :reason
where message in (select value from json_each(:messages)) and state = 'queued'

-- name: leases_of
select json_group_array(json_array(number, lease))
from recipients where number in (select value from json_each(:numbers)) and state = 'leased'

-- Rows: lease, recipient.
-- name: insert_marks
insert into marks (lease, recipient)
select value ->> 0, value ->> 1 from json_each(:rows) where true on conflict do nothing

-- name: extend_leases
update leases set deadline = :deadline where owner = :owner

-- Recipients that are out, by who has them.
-- name: owners
select json_group_array(json_array(owner, deadline, recipients)) from (
    select l.owner, max(l.deadline) as deadline, (
        select count(*) from recipients as r
        where r.site is not null and r.lease in (select number from leases as o where o.owner = l.owner)
    ) as recipients
    from leases as l group by l.owner order by l.owner
)

-- name: count_out
select count(*) from recipients
where site is not null and lease in (select number from leases where owner = :owner)

-- Leases nobody has to answer for any more.
-- name: close_leases
delete from leases where number in (
    select number from leases where owner = :owner
    except select lease from recipients where site is not null
)

-- name: drop_marks
delete from marks where lease not in (select number from leases)

-- Leases of others that have run out, or whose owners are dead.
-- name: lost_leases
select json_group_array(number) from leases
where owner <> :owner and (deadline <= :now or owner in (select value from json_each(:dead)))

-- Those of them who may have been delivered.
-- name: recipients_doubtful
select json_group_array(json_array(
    null, r.number, r.message, r.address, r.domain, r.notify, r.orcpt, r.attempts,
    r.first_attempt_at, r.wait, r.reason
) order by r.number)
from recipients as r
where r.site is not null and r.lease in (select value from json_each(:leases))
    and exists (select 1 from marks as m where m.lease = r.lease and m.recipient = r.number)

-- name: adopt_recipients
update recipients set lease = :lease where number in (select value from json_each(:numbers))

-- What the rest needs to get back into lanes.
-- name: recipients_lost
select json_group_array(json_array(
    r.number, r.message, r.lease, r.state, r.wish, r.lane, r.domain, m.priority, m.tenant, m.job,
    r.due
))
from recipients as r join messages as m on m.number = r.message
where r.site is not null and r.lease in (select value from json_each(:leases))

-- name: delete_leases
delete from leases where number in (select value from json_each(:leases))

-- name: delete_marks
delete from marks where lease in (select value from json_each(:leases))
