"""`safeflux doctor`: installed versions, their known problems, and the machine. Needs no torch."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from safeflux.cli._shared import as_json, examples
from safeflux.doctor.checks import Finding, find_damage, find_known, find_onnxruntime, find_unmet, installed
from safeflux.doctor.known import Level
from safeflux.doctor.machine import Answer, Machine, ask_onnxruntime, ask_torch, look
from safeflux.reference.onnx_session import runtimes


@click.command(epilog=examples("safeflux doctor", "safeflux doctor --devices --json"))
@click.option("--devices", is_flag=True, help="Also list the devices of torch and ONNX Runtime; takes a few seconds.")
@as_json
@click.pass_context
def doctor(ctx: click.Context, devices: bool, as_json: bool) -> None:
    """Report installed versions and their known problems; exit 1 if there is one.

    Missing and damaged files of safeflux are reported too. A limit (something that works under a condition) is
    reported, but the exit code stays 0.
    """
    versions, machine = installed(), look(Path())
    answers = _ask() if devices else {}
    findings = [*find_damage(), *find_unmet(), *find_onnxruntime(), *find_known(versions), *_faults(answers)]
    is_ok = all(finding.level is not Level.BAD for finding in findings)
    if as_json:
        report = {"ok": is_ok, "versions": versions, "machine": asdict(machine)}
        report |= {"devices": {name: asdict(answer) for name, answer in answers.items()}}
        click.echo(json.dumps(report | {"findings": [asdict(finding) for finding in findings]}))
    else:
        _print(versions, machine, answers, findings)
    if not is_ok:
        ctx.exit(1)


def _ask() -> dict[str, Answer]:
    answers = {"torch": ask_torch()}
    return answers | {"onnxruntime": ask_onnxruntime()} if runtimes() else answers


def _faults(answers: Mapping[str, Answer]) -> list[Finding]:
    return [
        Finding(name, Level.BAD, f"cannot be used: {answer.fault}", f"reinstall {name}", "safeflux doctor --devices")
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
    if "onnxruntime" in answers:
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


def _size(count: int) -> str:
    return f"{count / 2**30:,.1f} GiB"


def _device(one: Mapping[str, object]) -> str:
    name = f"{one['kind']} {one['name']}".strip()
    memory = one["memory"]
    size = f", {_size(memory)}" if isinstance(memory, int) else ""
    return f"{name} ({'bf16' if one['bf16'] else 'no bf16'}{size})"
