-- Statements of engine.queue.sql_entries: looking and steering.

-- One step through all recipients.  A step looks at so many, however few of them are selected, so
-- that nobody else waits for long.  Absent conditions are null.
-- name: entries
select json_group_array(json_array(
    r.number, m.id, m.reverse_path, r.address, r.state, r.attempts, r.due, m.submitted_at,
    m.deadline, m.tenant, m.job, m.priority, s.name, r.result, r.reason, o.record, r.domain,
    coalesce(s.not_before, 0), coalesce(s.reason, '')
) order by r.number)
from (select * from recipients where number > :after order by number limit :step) as r
join messages as m on m.number = r.message
left join domains as d on d.name = r.domain
left join sites as s on s.number = d.site
left join outcomes as o on o.recipient = r.number
where (:states is null or r.state in (select value from json_each(:states)))
    and (:recipient is null or r.address = :recipient)
    and (:domain is null or r.domain = :domain)
    and (:suffix is null or substr(r.domain, -length(:suffix)) = :suffix)
    and (:sender is null or m.reverse_path = :sender)
    and (:tenant is null or m.tenant = :tenant)
    and (:job is null or m.job = :job)

-- The same for one message, which is found at once.
-- name: entries_of_message
select json_group_array(json_array(
    r.number, m.id, m.reverse_path, r.address, r.state, r.attempts, r.due, m.submitted_at,
    m.deadline, m.tenant, m.job, m.priority, s.name, r.result, r.reason, o.record, r.domain,
    coalesce(s.not_before, 0), coalesce(s.reason, '')
) order by r.number)
from (
    select * from recipients
    where message = (select number from messages where id = :message) and number > :after
    order by number limit :step
) as r
join messages as m on m.number = r.message
left join domains as d on d.name = r.domain
left join sites as s on s.number = d.site
left join outcomes as o on o.recipient = r.number
where (:states is null or r.state in (select value from json_each(:states)))
    and (:recipient is null or r.address = :recipient)
    and (:domain is null or r.domain = :domain)
    and (:suffix is null or substr(r.domain, -length(:suffix)) = :suffix)
    and (:sender is null or m.reverse_path = :sender)
    and (:tenant is null or m.tenant = :tenant)
    and (:job is null or m.job = :job)

-- How far a step goes: its last recipient, and how many it looks at.
-- name: step_end
select max(number), count(*)
from (select number from recipients where number > :after order by number limit :step)

-- name: step_end_of_message
select max(number), count(*) from (
    select number from recipients
    where message = (select number from messages where id = :message) and number > :after
    order by number limit :step
)

-- What steering needs to know of them.
-- name: recipients_steered
select json_group_array(json_array(
    r.number, r.message, r.lease, r.state, r.wish, r.lane, r.domain, m.priority, m.tenant, m.job,
    r.due
))
from json_each(:numbers) as j
join recipients as r on r.number = j.value
join messages as m on m.number = r.message

-- name: wish_for
update recipients set wish = :wish, reason = coalesce(:reason, reason)
where number in (select value from json_each(:numbers)) and state = 'leased'

-- Sites of these domains that are backed off.
-- name: sites_backed_off
select json_group_array(distinct s.name)
from json_each(:domains) as j
join domains as d on d.name = j.value
join sites as s on s.number = d.site
where s.not_before > :now

-- Each from an index that holds just these, or nearly.
-- name: counts
select
    (select count(*) from recipients),
    (select count(*) from recipients where lane is not null),
    (select count(*) from recipients where lane is not null and due <= :now),
    (select count(*) from recipients where site is not null),
    (select count(*) from recipients where state = 'ended'),
    (select count(*) from (select distinct message from recipients)),
    (select submitted_at from messages where number = (select min(message) from recipients)),
    (select min(due) from recipients where lane is not null)

-- The largest backlogs.  Goes once through the index of what waits, lane by lane.
-- name: backlog
select json_group_array(json_array(
    s.name, s.not_before, s.failures, s.reason, b.queued, b.due, b.out, b.first
) order by b.queued + b.out desc, s.name)
from (
    select site, sum(queued) as queued, sum(due) as due, sum(out) as out, min(first) as first
    from (
        select l.site, w.queued, w.due, 0 as out, w.first
        from (
            select lane, count(*) as queued, sum(due <= :now) as due, min(due) as first
            from recipients where lane is not null group by lane
        ) as w
        join lanes as l on l.number = w.lane
        union all
        select site, 0, 0, count(*), null from recipients where site is not null group by site
    )
    group by site order by sum(queued) + sum(out) desc limit :limit
) as b
join sites as s on s.number = b.site

-- name: message_numbers
select json_group_array(number) from (
    select number from messages where number > :after and finished_at is null
    order by number limit :limit
)

-- name: ended_messages
select json_group_array(message) from (
    select distinct message from recipients where state = 'ended' and message > :after
    order by message limit :limit
)

-- Those of these messages that somebody is at.  By what is out, which is little: a message may have
-- a hundred thousand recipients.
-- name: messages_at_work
select json_group_array(distinct r.message)
from recipients as r
where r.site is not null and +r.message in (select value from json_each(:messages))

-- Recipients of messages, whole.
-- name: recipients_of
select json_group_array(json_array(
    r.number, r.message, r.address, r.notify, r.orcpt, r.state, r.attempts, r.due, s.name,
    r.result, r.reason, o.record
) order by r.message, r.number)
from json_each(:messages) as j
join recipients as r on r.message = j.value
left join domains as d on d.name = r.domain
left join sites as s on s.number = d.site
left join outcomes as o on o.recipient = r.number
where :state is null or r.state = :state

-- One step through all recipients: those who wait, for as long as one of these waits, and whose
-- sender has not heard of it since that was over; the first of them.  Columns as above.
-- name: recipients_delayed
select json_group_array(json_array(
    r.number, r.message, r.address, r.notify, r.orcpt, r.state, r.attempts, r.due, s.name,
    r.result, r.reason, o.record
) order by r.number)
from (
    select w.*
    from (select * from recipients where number > :after order by number limit :step) as w
    join messages as m on m.number = w.message
    where w.state in ('queued', 'leased') and m.reverse_path <> ''
        and exists (
            select 1 from json_each(:waits) as j
            where max(m.submitted_at, coalesce(m.not_before, 0)) + j.value <= :now
                and coalesce(w.warned_at, 0)
                    < max(m.submitted_at, coalesce(m.not_before, 0)) + j.value
        )
    order by w.number limit :limit
) as r
left join domains as d on d.name = r.domain
left join sites as s on s.number = d.site
left join outcomes as o on o.recipient = r.number

-- name: note_warned
update recipients set warned_at = :now
where number in (select value from json_each(:numbers)) and state <> 'ended'

-- name: ended_among
select json_group_array(json_array(number, message))
from recipients where number in (select value from json_each(:numbers)) and state = 'ended'

-- name: removals
select json_group_array(json_array(
    number, message, recipient, attempts, action, reason, at
) order by number)
from (select * from removals order by number limit :limit)

-- name: forget_removals
delete from removals where number in (select value from json_each(:numbers))

-- name: sites_unwell
select json_group_array(json_array(name, not_before, failures, reason) order by name)
from sites where not_before > 0 or failures > 0
