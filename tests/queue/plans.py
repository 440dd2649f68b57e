"""How SQLite would run the statements of a store: by an index, or through whole tables.

`python -m tests.queue.plans` prints the plan of every statement.
"""

from __future__ import annotations

import re

from engine.queue.database import open_in_memory, statements

#: Tables that grow with the queue.
LARGE = ("messages", "contents", "pieces", "recipients", "outcomes", "sites", "domains", "lanes")
#: Indexes that hold only what there is little of: recipients that are out, that have ended, …
SMALL = ("recipients_out", "recipients_ended", "recipients_expiring")
#: Their rows are bound, so there is no statement to plan.
BOUND = ("insert_contents", "insert_pieces")


def plan_of(name, db=None):
    """Return the steps of a statement's plan; of a table's alias, the table's name."""
    db = db or open_in_memory()
    text = statements()[name]
    names = dict(re.findall(r"\b(?:from|join|update|into) ([a-z]+) as ([a-z]+)", text))
    aliases = {alias: table for table, alias in names.items()}
    bindings = dict.fromkeys(re.findall(r"(?<!:):([a-z_]+)", text))
    steps = []
    for step in db.plan(name, **bindings):
        how, _, rest = step.partition(" ")
        table, _, using = rest.partition(" ")
        steps.append(f"{how} {aliases.get(table, table)} {using}".strip())
    return steps


def walks(name, db=None):
    """Return the steps of a statement that go through a whole large table, or a large index."""
    return [
        step
        for step in plan_of(name, db)
        if step.startswith("SCAN ")
        and step.split()[1] in LARGE
        and not any(index in step for index in SMALL)
    ]


if __name__ == "__main__":
    for each in statements():
        if each not in BOUND:
            print(f"{each}:", *plan_of(each), sep="\n    ")
