"""``limelight models``: the known model families, and the self-test of a checkpoint."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from limelight.cli import options


@options.grouped
def models(
    check: Annotated[
        str | None,
        typer.Option(
            metavar="NAME_OR_PATH", help="Load this checkpoint, print what was detected, and run the self-test."
        ),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Skip the decoding strategies.")] = False,
    as_json: options.AsJson = False,
    loading: options.Loading = options.Loading(),
    debug: options.Debug = False,
) -> None:
    """List the model families, or test whether all features of the library work with a checkpoint.

    Most models need no family file: everything is detected from config, processor and modules. The self-test loads the
    checkpoint, binds the hooks, compares logits and decoding with the model's own, computes relevance, runs every
    strategy for two tokens, and verifies that the model is unmodified. It exits with 1 when a check fails.

    **Examples**

        limelight models

        limelight models --check demo-vision

        limelight models --check llava-hf/llava-1.5-7b-hf --dtype bfloat16 --device cuda --quick
    """
    from limelight.cli import terminal

    with terminal.quiet():
        if check is None:
            _families(as_json)
            return
        from limelight.cli import output
        from limelight.cli.check import Check, detected, self_test

        adapter = terminal.load(check, loading)
        found, results = detected(adapter), list[Check]()
        if not as_json:
            _print_detected(found)
        with terminal.err.status("self-test …") as status:
            for one in self_test(adapter, strategies=not quick):
                results.append(one)
                status.update(f"self-test: {one.name} …")
                if not as_json:
                    _print_check(one)
    failed = [r for r in results if r.ok is False]
    if as_json:
        checks = [{"name": r.name, "ok": r.ok, "detail": r.detail} for r in results]
        output.print_json({"checkpoint": check, "detected": found, "checks": checks, "ok": not failed})
    else:
        counts = {True: "passed", False: "failed", None: "not supported by this model"}
        summary = ", ".join(
            f"{sum(r.ok is k for r in results)} {v}" for k, v in counts.items() if any(r.ok is k for r in results)
        )
        terminal.out.print(summary)
    if failed:
        raise typer.Exit(1)


def _families(as_json: bool) -> None:
    from limelight.cli import output, terminal
    from limelight.models.checkpoints.weights_on_disk import COMPOSED, FETCH, FETCHED, fetched, missing_parts
    from limelight.models.families import GENERIC, families
    from limelight.models.loading import PACKAGED, packaged

    rows: dict[str, dict[str, Any]] = {}
    for family in [*families().values(), GENERIC]:
        paper = family.paper
        rows[family.name] = {
            "model_types": list(family.model_types),
            "lime": {"lr": paper.lr, "kl_weight": paper.kl_weight, "tau": paper.tau, "steps": paper.steps},
        }
    shipped = [n for n in PACKAGED if n not in COMPOSED and _is_there(packaged, n)]
    there = {n: _is_there(fetched, n) for n in FETCHED} | {n: not missing_parts(n) for n in COMPOSED}
    if as_json:
        output.print_json({"families": rows, "shipped": shipped, "fetched": [n for n, k in there.items() if k]})
        return
    terminal.out.print("[bold]families with their own file[/], and their settings of lime")
    for name, row in rows.items():
        types = ", ".join(row["model_types"]) or "all other models (detected)"
        lime = ", ".join(f"{k} {v:g}" for k, v in row["lime"].items())
        terminal.out.print(f"  {name:14} {types}\n  {'':14} {lime}", markup=False)
    terminal.out.print(f"[bold]shipped[/]  {', '.join(shipped) or 'none'}")
    fetchable = ", ".join(
        n if k else f"{n} (not yet: {FETCH} {' '.join(COMPOSED.get(n, (n,)))})" for n, k in there.items()
    )
    terminal.out.print(f"[bold]fetched[/]  {fetchable}")
    terminal.out.print("`limelight models --check NAME_OR_PATH` tests a checkpoint", markup=False)


def _is_there(folder_of: Any, name: str) -> bool:
    from limelight.errors import ModelError

    try:
        folder_of(name)
    except ModelError:
        return False
    return True


def _print_detected(found: dict[str, Any]) -> None:
    from limelight.cli import terminal

    width = max(map(len, found))
    for name, value in found.items():
        terminal.out.print(f"{name:>{width}}  {value}", markup=False)
    terminal.out.print()


def _print_check(one: Any) -> None:
    from limelight.cli import terminal

    mark = {True: "[green]ok[/]  ", False: "[red]FAIL[/]", None: "[yellow]--[/]  "}[one.ok]
    from rich.markup import escape

    terminal.out.print(f"{mark} {escape(one.name)}: {escape(one.detail)}")
