"""`python -m data_prep` lists the tools."""

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
  data_prep.align      photographs -> aligned faces, by our detector, yours, or a CSV of five landmarks a face
  data_prep.folder     your own photographs, one folder per person
  data_prep.jpeg       a prepared folder as JPEGs, a twelfth of its size, and back
"""

if __name__ == "__main__":
    print(TOOLS, end="")
