-- Schema 3: what else the choice of a host and of commands depends on.

alter table messages add column is_tls_optional integer not null default 0;
alter table messages add column is_binary integer not null default 0;
