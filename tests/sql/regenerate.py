"""Write the plans of the golden cases anew: ``python tests/sql/regenerate.py``, after a change of the planner.

Only the texts of plans are written; bounds, answers and refusals are left to who reads the difference.
"""

from __future__ import annotations

import json

from sharded import Template
from shop import SHOP
from test_golden import CASES, FILES, GOLDEN_SHARDS, too_old


def main() -> None:
    with Template(SHOP) as template, template.cluster(GOLDEN_SHARDS) as cluster:
        for name in FILES:
            cases = json.loads((CASES / name).read_text(encoding="utf-8"))
            for case in cases:
                if not too_old(case["sql"]):
                    case["plan"] = str(cluster.plan(case["sql"], case.get("parameters", ()))).splitlines()
            (CASES / name).write_text(json.dumps(cases, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
