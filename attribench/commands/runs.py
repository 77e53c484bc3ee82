"""The commands that compute on a data set."""

from __future__ import annotations

import json
from pathlib import Path

from attribench.commands.parsing import add_galleries_option, add_protocol_option, configured, new_parser, runtime_of
from attribench.commands.writable import writable_folder
from attribench.errors import UsageError


def run(arguments: list[str]) -> int:
    parser = new_parser("run", "Retrain, attribute, and score methods by LDS on both query sets; prints the table.")
    parser.add_argument("--results", type=str, default="results", help="Folder the records are filed in.")
    parser.add_argument("--tuned", action="store_true", help="Apply the options that attribench tune chose.")
    add_protocol_option(parser)
    add_galleries_option(parser)
    given = configured(parser, arguments, methods=True)
    if given is None:
        return 0
    options, config, broken = given

    from attribench.computing.progress import terminal_progress
    from attribench.reporting.formats import render
    from attribench.reporting.tables import leaderboards
    from attribench.workflows import benchmark

    results = writable_folder("--results", options.results)
    outcome = benchmark.run(
        config,
        runtime_of(options),
        results,
        terminal_progress(),
        protocol=options.protocol,
        tuned=options.tuned,
    )
    if outcome.records:
        print(render(leaderboards(outcome.records, results), "terminal").rstrip())
    for name, reason in {**outcome.skipped, **broken}.items():
        print(f"{name} was skipped: {reason}")
    return 0 if outcome.records else 1


def tune(arguments: list[str]) -> int:
    parser = new_parser("tune", "Choose a method's options on validation queries; attribench run --tuned applies them.")
    parser.add_argument("--results", type=str, default="results", help="Folder the choice is filed in.")
    add_protocol_option(parser)
    given = configured(parser, arguments, methods=True)
    if given is None:
        return 0
    options, config, _ = given

    from attribench.computing.progress import terminal_progress
    from attribench.workflows import tuning

    results = writable_folder("--results", options.results)
    for method in config.methods:
        tuning.check_tunable(method)
    for method in config.methods:
        choice, path = tuning.tune(config, method, runtime_of(options), results, options.protocol, terminal_progress())
        tried = f"best of {len(choice.trials)} tried, LDS×100 {100 * choice.lds:.1f} on the choosing data"
        print(f"{method.name}: {tried}: {choice.tuned_on}\n  {choice.options}\n  filed in {path}")
    return 0


def score(arguments: list[str]) -> int:
    parser = new_parser(
        "score",
        "Evaluate scores that other code computed (.npy, .npz, .parquet) by LDS; prints their row beside the others.",
    )
    parser.add_argument("files", type=str, nargs="+", help="Queries × train images, in the order of their ids: see "
                        "attribench ground-truth show. Several: one a query set.")  # fmt: skip
    parser.add_argument("--query-set", "--query_set", type=str, default="validation", help="validation or generation; "
                        "for several files, separated by commas.")  # fmt: skip
    parser.add_argument("--name", type=str, help="The row's name (default: the first file's).")
    add_galleries_option(parser)
    parser.add_argument("--results", type=str, default="results", help="Folder the record is filed in.")
    given = configured(parser, arguments, methods=False)
    if given is None:
        return 0
    options, config, _ = given
    sets = options.query_set.split(",")
    if len(sets) != len(options.files) or len(set(sets)) != len(sets):
        raise UsageError(
            f"--query-set {options.query_set}: name one query set for each of {len(options.files)} file(s)."
        )

    from attribench.computing.names import readable
    from attribench.computing.progress import terminal_progress
    from attribench.records.lds import load_records
    from attribench.reporting.boards import boards
    from attribench.reporting.formats import render
    from attribench.reporting.tables import leaderboard
    from attribench.workflows.outside_scores import score_files

    results = writable_folder("--results", options.results)
    files = dict(zip(sets, map(Path, options.files), strict=True))
    name = readable(options.name or Path(options.files[0]).stem)
    record, path = score_files(config, files, name, runtime_of(options), results, terminal_progress())
    for board in boards(load_records(results, [record.dataset]), results):
        if record in board.records:
            print(render([leaderboard(board)], "terminal").rstrip())
    print(f"{record.method}: recorded in {path}")
    return 0


def status(arguments: list[str]) -> int:
    parser = new_parser(
        "status", "What is done and what is missing for a data set and preset, and how much disk it takes."
    )
    given = configured(parser, arguments, methods=False)
    if given is None:
        return 0
    options, config, _ = given

    from attribench.commands.status_lines import status_lines
    from attribench.computing.progress import silent_progress
    from attribench.workflows.opening import open_experiment

    for line in status_lines(open_experiment(config, runtime_of(options), silent_progress)):
        print(line)
    return 0


def counterfactual(arguments: list[str]) -> int:
    parser = new_parser(
        "counterfactual",
        "Retrain without each generated query's highest-scored train images, generate the query again and compare; "
        "prints the table.",
    )
    parser.add_argument("--results", type=str, default="results", help="Folder the records are filed in.")
    parser.add_argument("--clip_model", type=str, default="ViT-B-32", help="CLIP model that compares images.")
    parser.add_argument("--clip_pretrained", type=str, default="openai", help="open_clip's tag of its weights.")
    parser.add_argument("--clip_checkpoint", type=str, help="A local file with its weights, in place of the download.")
    add_galleries_option(parser)
    given = configured(parser, arguments, methods=True)
    if given is None:
        return 0
    options, config, broken = given

    from attribench.computing.progress import terminal_progress
    from attribench.reporting.counterfactual_tables import counterfactual_tables
    from attribench.reporting.formats import render
    from attribench.workflows.counterfactual import Clip
    from attribench.workflows.counterfactual import run as evaluate

    clip = Clip(options.clip_model, options.clip_pretrained, options.clip_checkpoint)
    results = writable_folder("--results", options.results)
    outcome = evaluate(config, runtime_of(options), results, terminal_progress(), clip)
    print(render(counterfactual_tables(outcome.records), "terminal").rstrip())
    for name, reason in {**outcome.skipped, **broken}.items():
        print(f"{name} was skipped: {reason}")
    return 0 if len(outcome.records) > 1 else 1


def sweep(arguments: list[str]) -> int:
    parser = new_parser("sweep", "Measure how an option of a method moves its LDS; chooses nothing, retrains nothing.")
    parser.add_argument("--vary", type=str, help="Option and values, as patch_size=[3, 5, 7].")
    parser.add_argument("--series", type=str, help="A second option, a curve for each of its values.")
    parser.add_argument("--results", type=str, default="results", help="Folder the record is filed in.")
    given = configured(parser, arguments, methods=True)
    if given is None:
        return 0
    options, config, _ = given
    if not options.vary:
        raise UsageError("--vary is needed: an option and its values, as --vary 'top_k=[1, 10, 100]'.")

    from attribench.computing.progress import terminal_progress
    from attribench.settings import QUERY_SETS
    from attribench.workflows.sweep import Axis
    from attribench.workflows.sweep import sweep as measure

    series = Axis.parse(options.series) if options.series else None
    vary = Axis.parse(options.vary)
    results = writable_folder("--results", options.results)
    record, path = measure(config, runtime_of(options), results, terminal_progress(), vary, series)
    for point in record.points:
        name = f"{record.vary}={point.value}" + (f", {record.series_option}={point.series}" if series else "")
        found = {query_set: point.results[query_set] for query_set in QUERY_SETS if query_set in point.results}
        shown = "; ".join(f"{query_set} {result.text}" for query_set, result in found.items())
        print(f"{name}: LDS×100 {shown}")
    for query_set, reason in record.undefined.items():
        print(f"{record.method} is not defined on {query_set} queries: {reason}")
    print(f"{record.title}; 95 % intervals over queries and subsets; filed in {path}")
    return 0


def explain(arguments: list[str]) -> int:
    parser = new_parser("explain", "Show where in the picture a query's strongest train images come in, as heat maps.")
    parser.add_argument("--query", type=str, default="0", help="The query: its number from 0, or its id.")
    parser.add_argument(
        "--query_set", type=str, default="validation", help="validation, or generation (needs the target model)."
    )
    parser.add_argument("--top", type=int, default=6, help="How many train images.")
    parser.add_argument("--out", type=str, default="explanations", help="Folder for figure and maps.")
    given = configured(parser, arguments, methods=True)
    if given is None:
        return 0
    options, config, _ = given

    from attribench.computing.progress import terminal_progress
    from attribench.reporting.figures.pictures import explanation
    from attribench.reporting.figures.style import save
    from attribench.store.files import atomic_write
    from attribench.workflows.explanation import explain_query

    out = writable_folder("--out", options.out)
    runtime, progress = runtime_of(options), terminal_progress()
    shown = explain_query(config, runtime, options.query_set, options.query, options.top, progress)
    for item in shown.explanation.images:
        print(f"{item.rank:>3}. {item.image_id}  score {item.score:.6g}  (map {item.evidence.query_map.sum():.6g})")
    figures = save(explanation(shown.explanation, shown.method), out / shown.file_name)
    maps = out / f"{shown.file_name}.json"
    content = {"method": shown.method, **shown.explanation.summary()}
    atomic_write(maps, (json.dumps(content, ensure_ascii=False) + "\n").encode())
    print(*figures, maps, sep="\n")
    return 0
