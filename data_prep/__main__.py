"""`python -m data_prep` lists the tools."""

TOOLS = """usage: python -m data_prep.TOOL --help

Each tool turns what people download into one folder that `lrkd.data.prepared` reads (layout: data_prep/README.md).

  data_prep.lfw     Labeled Faces in the Wild: the deep-funneled archive or folder, with its pairs and people files
  data_prep.folder  your own photographs, one folder per person
"""

if __name__ == "__main__":
    print(TOOLS, end="")
