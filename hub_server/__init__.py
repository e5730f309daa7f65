"""Cortex Hub: the state of AI assistants as one gRPC service over Postgres.

The map of the rooms, from the wire down:

server       the composition root: the only place where the parts meet
cli          the ``hub`` command; with several workers, supervisor (the parent), worker and port
rpc          the one path of every call: authenticate, check, call, translate errors, observe
calls        what a call is, and how much uploads may hold of memory
limits       levels, field limits and sensitive fields, read from the protos
errors       ``HubError`` and the one table from reason to gRPC status code
caller       the authenticated caller as a value

identity     who is it, what is allowed      each room has the same furniture:
chat         in which conversation, what       servicer    check, call, convert
             was said                          service     the rules; opens the transaction
memory       what is remembered                repository  SQL only, never commits
knowledge    what is known                     models      the tables
             chat has more: appends (group commit), tokens (reservations), watching, spans,
             served (whose a session and its message are)
             identity has more: logins and refresh (tokens), keys (service keys, tenants),
             authentication, secrets, scopes, owner (for ``hub admin``), wire, and SQL for each
             memory has more: remembering (what comes of it), rules, sameness, scoring, report, turn
             knowledge has more: search, filters, own_chunks, chunking, index, watching

context      what a model needs to answer, out of chat, memory and knowledge, within a budget
transfer     a user as a stream of records, out of one hub and into another
erasure      the list of what is a user's, and what stays of who was erased
audit        who did what: one event in the transaction of the act
wakeups      who waits for a change of a row, in whichever process it is made
tokenizer    counts tokens where callers do not
search       one search: embed, ask the index, let Postgres decide
spaces       the counter by which a view knows that it is up to date
pgvector     the engine that searches vectors in Postgres; vector_store is its SQL
retrieval    views: vectors, BM25, fusion; knows no gRPC and no SQL
embedding    texts to vectors
jobs         background work: ingestion, re-embedding, embedding of messages, purge, erasing
parsers      reads one uploaded file, in a process of its own

database     engine, pooled connections that carry their tenant, transactions
postgres     the embedded Postgres
preflight    what must be true of a database before the hub serves from it
migrations   Alembic
batching     group commit: many waiting calls, one statement
idempotency  retried calls and their first answers
paging       page tokens
passwords, workers, convert, ids, logs, settings   what their names say
"""
