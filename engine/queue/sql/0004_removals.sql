-- Schema 4: whom a person took out of the queue, until that is in the log of outcomes.

create table removals (
    number integer primary key autoincrement,   -- whoever forgets one must not meet a later one
    message text not null,                      -- its id
    recipient text not null,
    attempts integer not null,
    action text not null,
    reason text not null,
    at integer not null
);
