"""`python -m data_prep` lists the tools."""

import sys
from collections.abc import Sequence

TOOLS = """usage: python -m data_prep.TOOL --help

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


def run(words: Sequence[str]) -> int:
    """Print the tools; a word that asks for anything else is an error, also the name of a tool without its dot."""
    wrong = [word for word in words if word not in ("-h", "--help")]
    if not wrong:
        print(TOOLS, end="")
        return 0
    tool = wrong[0] if f"  data_prep.{wrong[0]} " in TOOLS else "TOOL"
    said = f"expected python -m data_prep.{tool}, got the word {wrong[0]!r}; python -m data_prep lists the tools"
    print(f"error: {said}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
