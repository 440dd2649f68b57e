-- Schema 2: what is needed to warn senders of delays, each time once.

alter table messages add column not_before integer;     -- as submitted
alter table recipients add column warned_at integer;    -- when the sender was last told of the delay
