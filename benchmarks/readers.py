"""Is the wiki reader's memory constant? `python -m benchmarks.readers`; ratios from one run.

A dump is repeated until its XML has the given number of megabytes. Each copy of an article has another title and a slightly
different text, so that it is not a duplicate. Stage `data` reads it, once as one file and once as parts, each in its own
process. Measured is the driver's peak resident memory above that before reading (imports, tokenizer, Ray).
The dump is the one in shared/data if it exists, otherwise one of random words.
"""

import argparse
import bz2
import json
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.results import RESULTS, ROOT, machine, ratio, write_results
from cpo_ray.config.loading import parse_config

SHARED = ROOT.parent / "shared" / "data"
MEGABYTE, GIB = 1_000_000, 2**20  # bytes; kB, the unit of getrusage
PARTS = 4
SMALL = 35  # MB of XML in the dump to compare with
SIZES = {"train_rows": 1500, "validation_rows": 100, "test_rows": 400}


def dump_pieces():
    """(head, pages, tail, source): the XML of a dump in three pieces, and a description of its source."""
    files = sorted((SHARED / "wiki").glob("*.bz2"))
    if files:
        head, page, rest = bz2.decompress(files[0].read_bytes()).decode().partition("  <page>")
        pages, tail, _ = (page + rest).partition("</mediawiki>")
        return head, pages, tail, "the small Wikipedia dump"
    draw = random.Random(17)
    words = ["".join(draw.choices("abcdefghij", k=draw.randint(2, 9))) for _ in range(20_000)]
    texts = (" ".join(draw.choices(words, k=4000)) for _ in range(200))
    pages = "".join(
        f"  <page><title>Article {n}</title><ns>0</ns><id>{n}</id><revision><id>1</id><text>{text}</text></revision></page>\n"
        for n, text in enumerate(texts)
    )
    return "<mediawiki><siteinfo></siteinfo>\n", pages, "</mediawiki>\n", "invented words"


def write_dumps(folder, megabytes):
    """Write `one.xml.bz2` with `megabytes` of XML, and the same in parts. Returns their paths, the size and the source."""
    head, pages, tail, source = dump_pieces()
    copies = max(PARTS, round(megabytes * MEGABYTE / len(pages.encode())))
    (folder / "parts").mkdir(parents=True)
    one, parts = folder / "one.xml.bz2", [folder / "parts" / f"{number}.xml.bz2" for number in range(PARTS)]
    for file in (one, *parts):
        file.write_bytes(bz2.compress(head.encode(), 1))
    for copy in range(copies):
        retitled = re.sub(r"<title>([^<]*)</title>", rf"<title>\1 (copy {copy})</title>", pages)
        stored = bz2.compress(re.sub(r"(<text[^>]*>)", rf"\1Copy {copy}. ", retitled).encode(), 1)
        for file in (one, parts[copy % PARTS]):
            with file.open("ab") as out:
                out.write(stored)
    for file in (one, *parts):
        with file.open("ab") as out:
            out.write(bz2.compress((tail or "</mediawiki>").encode(), 1))
    return {"one file": one, "parts": folder / "parts"}, copies * len(pages.encode()) / MEGABYTE, source


def configure(path, tokenizer):
    data = {
        "source": "wikidump",
        "path": str(path),
        "tokenizer": {"path": str(tokenizer)},
        "passages": {"tokens": 128},
        "max_prompt_tokens": 24,
        "max_response_tokens": 112,
        **SIZES,
    }
    return parse_config(
        {"name": "readers", "data": data, "cluster": {"local_cpus": 2, "object_store_gib": 0.25}}, "benchmark"
    )


def child(path, tokenizer, out):
    """Read in this process; write seconds, articles and the peak memory above the start to result.json."""
    import cpo_ray.data.wikidump  # noqa: F401 - imported before the measurement, so that it is not counted
    from cpo_ray.cluster.session import ray_cluster
    from cpo_ray.data.examples import needs_ray, prepare_examples
    from cpo_ray.data.tokenization import load_tokenizer
    from cpo_ray.monitoring.console import redirect_output

    config = configure(path, tokenizer)
    load_tokenizer(str(tokenizer))
    with redirect_output(out.with_suffix(".log")), ray_cluster(config.cluster) as lazy:
        if needs_ray(config.data):
            lazy.ensure()
        base, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
        summary = prepare_examples(config, out)
        seconds = time.monotonic() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result = {"gib": (peak - base) / GIB, "seconds": seconds, "articles": summary["articles"]}
    (out / "result.json").write_text(json.dumps(result))


def measure(path, tokenizer, folder):
    out = folder / "out" / path.name
    out.mkdir(parents=True)
    subprocess.run(
        [sys.executable, "-m", "benchmarks.readers", "--read", str(path), str(tokenizer), str(out)],
        cwd=ROOT,
        check=True,
        stdout=sys.stderr,
    )
    return json.loads((out / "result.json").read_text())


def make_tokenizer(folder):
    """GPT-2's if it exists in shared/data, otherwise one trained on a few words."""
    if (SHARED / "tokenizers").is_dir():
        return SHARED / "tokenizers"
    from cpo_ray.data.tokenization import train_tokenizer

    train_tokenizer([dump_pieces()[1][:200_000]], 2000).save_pretrained(folder / "tokenizer")
    return folder / "tokenizer"


def memory_ratio(big, small, how):
    what = (
        f"GiB of the driver above its start, {big['megabytes']:.0f} MB of XML as {how}, {big['articles']} articles "
        f"({small['gib']:.3f} for {small['megabytes']:.0f} MB)"
    )
    return ratio([big["gib"]], "<= 1", "the limit of 1 GiB", what)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=1000)
    parser.add_argument("--read", nargs=3, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.read:
        child(*options.read)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder, seen = Path(temporary), {}
        tokenizer = make_tokenizer(folder)
        for size in (SMALL, options.megabytes):
            paths, megabytes, source = write_dumps(folder / f"{size:g}", size)
            for how, path in paths.items():
                seen[how, size] = measure(path, tokenizer, folder / f"{size:g}") | {"megabytes": megabytes}
                sys.stderr.write(f"{how}, {megabytes:.0f} MB: {seen[how, size]}\n")
    big = {how: seen[how, options.megabytes] for how in ("one file", "parts")}
    rate = big["one file"]["megabytes"] / big["one file"]["seconds"]
    faster = ratio(
        [big["one file"]["seconds"] / big["parts"]["seconds"]],
        ">= 1",
        f"one file, {rate:.1f} MB of XML per second",
        f"times faster, {PARTS} parts on 2 CPUs",
    )
    ratios = {f"memory_{how.replace(' ', '_')}": memory_ratio(big[how], seen[how, SMALL], how) for how in big}
    command = f"python -m benchmarks.readers --megabytes {options.megabytes:g}"
    write_results(RESULTS / "readers.json", command, machine(source), ratios | {"parts_vs_one_file": faster})


if __name__ == "__main__":
    main()
