"""What the two sides of the comparison have in common: they take orders as lines of JSON, and answer in kind."""

import json
import os
import sys


def serve(prepare, facts):
    """Answer orders until there are no more.

    Args:
        prepare: row -> (steps, report), where `steps(n)` returns the seconds of n steps, and `report()` facts that are
            known after them.
        facts: of this side, for the record.
    """
    # What libraries print goes elsewhere.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    steps = report = None
    for line in sys.stdin:
        order = json.loads(line)
        try:
            if order["do"] == "facts":
                answer = facts
            elif order["do"] == "prepare":
                steps, report = prepare(order["row"])
                steps(order["warm_up"])
                answer = {}
            elif order["do"] == "steps":
                answer = {"seconds": steps(order["count"])}
            elif order["do"] == "report":
                answer = report()
            else:
                # The arrays live in these.
                steps = report = None
                answer = {}
        except (RuntimeError, ValueError, NotImplementedError) as error:
            # Out of memory, or a kernel that this device lacks: the other rows are worth having.
            answer = {"error": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}
        print(json.dumps(answer), file=answers, flush=True)
