"""`lrkd-prep TOOL ...`, which `python -m data_prep.TOOL ...` is too; without a tool it lists them."""

import importlib
import sys
from collections.abc import Sequence

TOOLS = """usage: lrkd-prep TOOL --help, or python -m data_prep.TOOL --help

Each tool turns what people download into one folder that `lrkd.data.prepared` reads (layout: data_prep/README.md).

  data_prep.recordio   insightface's train.rec: CASIA-WebFace, MS1MV2/3, Glint360K, WebFace
  data_prep.pairs_bin  insightface's .bin pair sets: lfw, agedb_30, cfp_fp, cfp_ff, calfw, cplfw, vgg2_fp
  data_prep.lfw        Labeled Faces in the Wild: the deep-funneled archive or folder, with its pairs and people files
  data_prep.agedb      AgeDB: the raw folder, names and ages from the file names, pairs 30 years apart
  data_prep.cfp        CFP: frontal and profile faces, with the pairs of FF and FP
  data_prep.tinyface   TinyFace: training set, probes, gallery and distractors for identification
  data_prep.qmul       QMUL-SurvFace: training set, verification pairs, open-set identification
  data_prep.scface     SCface: mugshots, and five surveillance cameras at three distances
  data_prep.align      photographs and five landmarks a face (a CSV or your detector) -> aligned faces
  data_prep.folder     your own photographs, one folder per person
  data_prep.jpeg       a prepared folder as JPEGs, a twelfth of its size, and back
"""

NAMES = [line.split()[0].removeprefix("data_prep.") for line in TOOLS.splitlines() if line.startswith("  data_prep.")]


def main(words: Sequence[str] | None = None) -> int:
    """Run the tool that the first word names, on the words after it; return the exit status of `commandline.run`.

    Args:
        words: The command's words; default: those of the process.
    """
    tool, *rest = list(sys.argv[1:] if words is None else words) or ["--help"]
    if tool in ("-h", "--help"):
        print(TOOLS, end="")
        return 0
    if tool not in NAMES:
        print(f"error: expected one of {', '.join(NAMES)}, got {tool!r}", file=sys.stderr)
        return 2
    from data_prep import commandline

    return commandline.run(importlib.import_module(f"data_prep.{tool}").main, rest)


if __name__ == "__main__":
    sys.exit(main())
