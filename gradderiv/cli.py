"""The command line. Above all else, imported by nothing; torch is imported only by the verbs that need it.

Exit status of every verb: 0 it holds · 1 something does not · 2 the call was wrong · 3 not decided · 70 a fault of ours ·
130 interrupted.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from gradderiv._cli_book import book
from gradderiv._cli_exercise import exercise
from gradderiv._version import __version__

app = typer.Typer(
    name="gradderiv",
    help="Every derivative of attention in closed form, verified on floats, on residues mod a prime and on symbols.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
bench = typer.Typer(help="The benchmarks behind README's figures.", no_args_is_help=True)
app.add_typer(bench, name="bench")
app.add_typer(book, name="book")
app.add_typer(exercise, name="exercise")

DTYPES = ("float64", "float32", "bfloat16")


def _version(value: bool) -> None:
    if value:
        typer.echo(f"gradderiv {__version__}")
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def verify(
    rules: Annotated[
        list[str] | None, typer.Argument(help="Rules to verify; all when none is named.")
    ] = None,
    oracle: Annotated[list[str] | None, typer.Option(help="Only this oracle; may be repeated.")] = None,
    problem: Annotated[list[str] | None, typer.Option(help="Only this problem; may be repeated.")] = None,
    dtype: Annotated[list[str] | None, typer.Option(help=f"Only this type: {', '.join(DTYPES)}.")] = None,
    device: Annotated[str, typer.Option(help="Where tensors live.")] = "cpu",
    seed: Annotated[int, typer.Option(help="Draws values, points and primes.")] = 0,
    quick: Annotated[
        bool, typer.Option("--quick", help="A few problems that meet every rule and oracle.")
    ] = False,
    json: Annotated[Path | None, typer.Option(help="Write every record to this file.")] = None,
    kill_table: Annotated[
        bool, typer.Option("--kill-table", help="Also try the wrong-on-purpose rules against every oracle.")
    ] = False,
    plot: Annotated[Path | None, typer.Option(help="Write pictures of the errors to this folder.")] = None,
) -> None:
    """Verify the closed forms, entry by entry."""
    _require_writable(json)
    with _progress("importing torch") as step:
        import torch

        from gradderiv.checks.verify import verify as run

        if plot is not None:
            from gradderiv.checks.plot import require

            require(plot)
        dtypes = [getattr(torch, d) for d in _dtypes(dtype)]
        report = run(
            rules or None, oracle or None, problems=problem or None, dtypes=dtypes, device=device, seed=seed,
            quick=quick, progress=step, workers=min(os.cpu_count() or 1, 4),
        )  # fmt: skip
    if json is not None:
        report.to_json(json)
    _print_report(report)
    if plot is not None:
        from gradderiv.checks.plot import plot_errors

        files = plot_errors(report, plot)
        _write(
            "".join(f"wrote {file}\n" for file in files) or "no float comparison of ours failed: no picture\n"
        )
    status = report.exit_status
    if kill_table:
        from gradderiv.checks.kill import kill_table as kill

        with _progress("mutants") as step:
            table = kill(seed=seed, progress=step)
        _write(f"\n{table.text(verbose=True, unicode=_speaks_unicode())}\n")
        status = status if table.as_declared else 1
    raise typer.Exit(status)


@app.command()
def show(
    rule: Annotated[
        str, typer.Argument(help="A rule (attention, multihead_vjp …) or a gradient (W_Q, b_K …).")
    ],
    tex: Annotated[bool, typer.Option("--tex", help="Print TeX.")] = False,
    derivation: Annotated[bool, typer.Option("--derivation", help="The chain that derives it.")] = False,
    symbolic: Annotated[
        bool, typer.Option("--symbolic", help="One entry of a tiny case, spelled out.")
    ] = False,
) -> None:
    """Print a formula from the code that runs."""
    from gradderiv.book.formulas.show import show as render

    charset = "unicode" if _speaks_unicode() else "ascii"
    typer.echo(render(rule, tex=tex, derivation=derivation, symbolic=symbolic, charset=charset))


@app.command()
def options() -> None:
    """List attention's options in their order, and which of them are verified together."""
    from gradderiv.checks.coverage import coverage, vocabulary

    _write(f"{vocabulary()}\n\n{coverage()}\n")


@app.command()
def prove(
    target: Annotated[str, typer.Argument(help="FILE.py:NAME or package.module:NAME; the file is executed.")],
    shape: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=2,7,12: a random input of that shape; may be repeated, in the order of the call."
        ),
    ] = None,
    reference: Annotated[
        str | None, typer.Option(help="Another FILE.py:NAME on the same inputs, to which it must be equal.")
    ] = None,
    order: Annotated[int, typer.Option(help="2 proves the derivative of the backward, too.")] = 1,
    forward_mode: Annotated[
        bool, typer.Option("--forward-mode", help="Prove the jvp of hand-written Functions, too.")
    ] = False,
    no_gradient: Annotated[
        list[str] | None,
        typer.Option(help="An input, or 'output 1', that is meant to have no gradient; may be repeated."),
    ] = None,
    fills_are_minus_infinity: Annotated[
        bool,
        typer.Option(
            "--fills-are-minus-infinity", help="Read constants of -10000 and less as minus infinity."
        ),
    ] = False,
    heads: Annotated[
        int | None, typer.Option(help="How many heads there are: lets a mistake be located in one.")
    ] = None,
    bound: Annotated[
        int, typer.Option(help="The failure probability asked for is 2 to the power of this.")
    ] = -40,
    device: Annotated[
        str | None,
        typer.Option(help="Where the residues live; a GPU, if there is one and the function runs on it."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Draws primes, points, keys and dropout masks.")] = 0,
    json: Annotated[Path | None, typer.Option(help="Write every record to this file.")] = None,
) -> None:
    """Prove the backward of your function in exact arithmetic. FILE.py is executed: name only files that you trust."""
    _require_writable(json)
    with _progress("importing torch") as step:
        from gradderiv.checks.named import inputs_of, load, on_gpu
        from gradderiv.checks.prove import prove as run

        function = load(target)
        given, names = inputs_of(target, function, shape or [], seed)
        proof = run(
            function, given, reference=None if reference is None else load(reference), names=names, order=order,
            forward_mode=forward_mode, no_gradient=no_gradient or (), fills_are_minus_infinity=fills_are_minus_infinity, seed=seed, target=bound,
            n_heads=heads, device=device or on_gpu(function, given), progress=step,
        )  # fmt: skip
        proof.replay_with(shlex.join(["gradderiv", *sys.argv[1:]]))
    if json is not None:
        proof.to_json(json)
    _print_proof(proof)
    raise typer.Exit(proof.exit_status)


@app.command()
def casebook(
    name: Annotated[str | None, typer.Argument(help="A case; the list of cases when none is named.")] = None,
) -> None:
    """Real difficulties from public threads, reproduced and explained."""
    from gradderiv.casebook import CASES, tell

    width = max(map(len, CASES)) + 2
    listed = (
        textwrap.fill(f"{case:{width}}{what}", 79, subsequent_indent=" " * width)
        for case, what in CASES.items()
    )
    text = "\n".join(listed) if name is None else tell(name)
    if not _speaks_unicode():
        from gradderiv.checks.render import ascii_text

        text = ascii_text(text)
    _write(text + "\n")


@bench.command("prove")
def bench_prove(
    seed: Annotated[int, typer.Option(help="Draws weights, points and primes.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="Small sizes only.")] = False,
    large: Annotated[
        bool,
        typer.Option(
            "--large", help="Also one layer of the shape of Llama 7B: minutes, and more than 10 GB."
        ),
    ] = False,
    json: Annotated[Path | None, typer.Option(help="Write the figures to this file.")] = None,
) -> None:
    """Time, memory and detection of proofs beside gradcheck and a comparison in float64."""
    _require_writable(json)
    from gradderiv.bench.prove import run

    with _progress("bench prove") as step:
        result = run(seed=seed, quick=quick, large=large, progress=step)
    _print_figures(result, json)


@bench.command("graph")
def bench_graph(
    seed: Annotated[int, typer.Option(help="Draws queries, keys and values.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="Two lengths, fewer repeats.")] = False,
    large: Annotated[
        bool, typer.Option("--large", help="Also 8192 tokens: more than 5 GB for the dense form.")
    ] = False,
    threads: Annotated[int, typer.Option(min=1, help="With more than one, the clock counts.")] = 1,
    json: Annotated[Path | None, typer.Option(help="Write the figures to this file.")] = None,
) -> None:
    """Time and memory of attention on neighbour lists beside dense masked attention."""
    _require_writable(json)
    from gradderiv.bench.graph import run

    with _progress("bench graph") as step:
        result = run(seed=seed, quick=quick, large=large, threads=threads, progress=step)
    _print_figures(result, json)


@bench.command("attention")
def bench_attention(
    seed: Annotated[int, typer.Option(help="Draws inputs, directions and the order of turns.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="Small sizes only: seconds.")] = False,
    large: Annotated[
        bool, typer.Option("--large", help="All sizes, and memory up to 32768 tokens: an hour, up to 14 GB.")
    ] = False,
    threads: Annotated[int, typer.Option(min=1, help="With more than one, the clock counts.")] = 2,
    dtype: Annotated[str, typer.Option(help="float32, float64, bfloat16 or float16.")] = "float32",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    json: Annotated[Path | None, typer.Option(help="Write the figures to this file.")] = None,
) -> None:
    """Time and memory of attention's derivatives of first and second order beside torch's kernels."""
    _require_writable(json)
    from gradderiv.bench.attention import run

    with _progress("bench attention") as step:
        result = run(
            seed=seed, quick=quick, large=large, threads=threads, dtype=dtype, device=device, progress=step
        )
    _print_figures(result, json)


@bench.command("verify")
def bench_verify(
    seed: Annotated[int, typer.Option(help="Draws the weights.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer weight scales and repeats.")] = False,
    json: Annotated[Path | None, typer.Option(help="Write the figures to this file.")] = None,
) -> None:
    """Time and detection power of our checks, of gradcheck, and of a comparison by hand."""
    _require_writable(json)
    from gradderiv.bench.verify import run

    with _progress("bench verify") as step:
        result = run(seed=seed, quick=quick, progress=step)
    _print_figures(result, json)


def main(arguments: list[str] | None = None) -> int:
    """Run a verb; the exit status says how it ended."""
    from gradderiv.errors import GradderivError

    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    try:
        status = app(args=arguments, prog_name="gradderiv", standalone_mode=False)
    except typer.Abort:
        return _say("interrupted", 130)
    except typer.TyperException as error:
        usage = getattr(error, "show", None)
        if usage is None:
            return _say(str(error), 2)
        usage()  # names the command and its --help, too
        return 2
    except KeyboardInterrupt:
        return _say("interrupted", 130)
    except GradderivError as error:
        return _say(str(error), 2)
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except Exception:
        import traceback

        traceback.print_exc()
        return _say(
            "this is a fault of gradderiv's, not of your call: please report it with the lines above", 70
        )
    return _say("interrupted", 130) if status == 130 else int(status or 0)


def _say(text: str, status: int) -> int:
    print(f"gradderiv: {text}", file=sys.stderr)
    return status


def _dtypes(names: list[str] | None) -> list[str]:
    for name in names or ():
        if name not in DTYPES:
            raise typer.BadParameter(f"{name!r} is none of {', '.join(DTYPES)}", param_hint="--dtype")
    return names or list(DTYPES)


def _require_writable(file: Path | None) -> None:
    """Say before the work that the result could not be written after it."""
    if file is None:
        return
    why = ""
    if not file.parent.is_dir():
        why = f"the folder {str(file.parent)!r} does not exist"
    elif file.is_dir():
        why = f"{str(file)!r} is a folder; name a file"
    elif not os.access(file if file.exists() else file.parent, os.W_OK):
        why = f"{str(file)!r} may not be written"
    if why:
        raise typer.BadParameter(why, param_hint="--json")


def _speaks_unicode() -> bool:
    try:
        "τ𝓚ᵀ✓".encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _print_figures(result: Any, json: Path | None) -> None:
    from gradderiv.checks.report import write_whole

    typer.echo(str(result))
    if json is not None:
        write_whole(json, result.to_json() + "\n")


def _print_report(report: Any) -> None:
    from gradderiv.checks.render import table

    _print(table, report)


def _print_proof(proof: Any) -> None:
    from gradderiv.checks.render_proof import table

    _print(table, proof)


def _print(table: Callable[..., Any], report: Any) -> None:
    from rich.console import Console

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 80)
    with console.capture() as printed:
        console.print(table(report, ascii_only=not _speaks_unicode(), width=console.width))
    _write(printed.get())


def _write(text: str) -> None:
    """To standard output; a reader who has gone away (``| head``) changes nothing about the verdict."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextlib.contextmanager
def _progress(title: str) -> Iterator[Callable[[int, int, str], None]]:
    """A progress line on a terminal's standard error; nothing in a pipe."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"), TimeElapsedColumn(),
        console=console, transient=True, disable=not console.is_terminal,
    )  # fmt: skip
    with bar:
        task = bar.add_task(title, total=None)

        def step(done: int, total: int, label: str) -> None:
            bar.update(task, completed=done, total=total, description=f"{label:<36.36}")

        yield step
