"""`safeflux doctor`: what is installed, what is known to be wrong with it, and what this machine can do. No torch."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from safeflux.cli._options import as_json
from safeflux.doctor import Finding, Level, find_damage, find_known, find_unmet, installed
from safeflux.machine import Answer, Machine, ask_onnxruntime, ask_torch, look

_ASKED = {"torch": ask_torch, "onnxruntime": ask_onnxruntime}


@click.command()
@click.option("--devices", is_flag=True, help="Ask torch and ONNX Runtime what they can use; takes some seconds.")
@as_json
@click.pass_context
def doctor(ctx: click.Context, devices: bool, as_json: bool) -> None:
    """Tell what is installed, and what is known to be wrong with it; exit 1 if something is.

    Files of safeflux that are missing or damaged are told too. A limit is something that works, if one knows about it:
    it is told, and the exit code is 0.
    """
    versions, machine = installed(), look(Path())
    answers = {name: ask() for name, ask in _ASKED.items()} if devices else {}
    findings = [*find_damage(), *find_unmet(), *find_known(versions), *_faults(answers)]
    is_ok = all(finding.level is not Level.BAD for finding in findings)
    if as_json:
        told = {"ok": is_ok, "versions": versions, "machine": asdict(machine)}
        told |= {"devices": {name: asdict(answer) for name, answer in answers.items()}}
        click.echo(json.dumps(told | {"findings": [asdict(finding) for finding in findings]}))
    else:
        _print(versions, machine, answers, findings)
    if not is_ok:
        ctx.exit(1)


def _faults(answers: Mapping[str, Answer]) -> list[Finding]:
    return [
        Finding(name, Level.BAD, f"cannot be used: {answer.fault}", f"install {name} anew", "safeflux doctor --devices")
        for name, answer in answers.items()
        if answer.fault
    ]


def _print(
    versions: Mapping[str, str | None], machine: Machine, answers: Mapping[str, Answer], findings: list[Finding]
) -> None:
    rows = {"python": machine.python} | {name: found or "not installed" for name, found in versions.items()}
    rows |= {
        "system": machine.system,
        "cores": str(machine.cores),
        "memory": _size(machine.memory),
        "disk free here": _size(machine.free),
    }
    if "torch" in answers:
        rows["devices"] = ", ".join(map(_device, answers["torch"].value)) or "not known"
        rows["ONNX Runtime"] = ", ".join(answers["onnxruntime"].value) or "not known"
    table = Table(box=None, pad_edge=False, show_header=False)
    for row in rows.items():
        table.add_row(*row)
    Console(width=120, highlight=False, markup=False).print(table)
    click.echo()
    for finding in findings:
        click.echo(str(finding))
    click.echo(f"{_count(findings, Level.BAD)} bad, {_count(findings, Level.LIMIT)} limits")


def _count(findings: list[Finding], level: Level) -> int:
    return sum(finding.level is level for finding in findings)


def _size(count: int | None) -> str:
    return "not known" if count is None else f"{count / 2**30:,.1f} GiB"


def _device(one: Mapping[str, object]) -> str:
    name = f"{one['kind']} {one['name']}".strip()
    memory = one["memory"]
    size = f", {_size(memory)}" if isinstance(memory, int) else ""
    return f"{name} ({'bf16' if one['bf16'] else 'no bf16'}{size})"
