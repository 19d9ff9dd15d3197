"""Tables of an audit's analysis as lists of plain records."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from lvr_jax.prism.report import interventions, tables


def conditions(analysis: Mapping) -> list[dict]:
    """Each condition against the clean pass, by the answer's content: accuracy and its change with interval, items lost
    and gained, exact McNemar p and Holm's over all conditions, the shift of the right letter's margin."""
    found = []
    for effect in analysis["conditions"]:
        s = effect["stats"]
        interval = (s or {}).get("delta_interval") or {}
        found.append({
            "condition": effect["name"], "evidence": effect["content"], "items": s["n"] if s else 0,
            "missing": effect["missing"], "accuracy": s["accuracy"]["point"] if s else None,
            "delta": s["delta"] if s else None, "low": interval.get("low"), "high": interval.get("high"),
            "lost": s["lost"] if s else None, "gained": s["gained"] if s else None,
            "p": s["p_mcnemar"] if s else None, "p_holm": s["p_mcnemar_holm"] if s else None,
            "margin_delta": ((s or {}).get("margin_delta") or {}).get("point"), "changed": effect["changed"],
            "unreadable": effect["unreadable"], "latents": effect["fed"],
        })  # fmt: skip
    return found


def answers(analysis: Mapping) -> list[dict]:
    """Each item under each condition: what was said, whether it is right, and whose latents were fed."""
    return [
        {"item": a["id"], "category": a["category"], "gold": a["gold_content"], "condition": c, "content": content,
         "right": a["right"][c], "letter": a["letter"][c], "letter_right": a["letter_right"][c],
         "margin": (a["margin"] or {}).get(c), "missing": c in a["missing"], "donor": a["donors"].get(c),
         "text": a["replies"].get(c, a["reply"])}
        for a in analysis["answers"] for c, content in a["content"].items()
    ]  # fmt: skip


TABLES: Mapping[str, Callable[[Mapping], list[dict]]] = {"conditions": conditions, "answers": answers}


def of_report(analysis: Mapping) -> dict[str, list[dict]]:
    """The report's other tables of a checkpoint by name, as text."""
    made = [*tables.of_checkpoint(analysis), *filter(None, (make(analysis) for make in interventions.TABLES))]
    found = {table.key.removesuffix(f"-{analysis['name']}"): table for table in made}
    return {name: [dict(zip(table.columns, row)) for row in table.rows] for name, table in found.items()
            if name not in TABLES}  # fmt: skip
