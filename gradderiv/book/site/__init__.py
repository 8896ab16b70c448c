"""The book as a site that asks no other machine for anything: chapters are run, then written as pages.

notebooks.py    a chapter, run in this process, as a notebook
outputs.py      what its cells print and display
pages.py        what stands beside the chapters: contents, reference, guide, laws
conf.py         the settings of Sphinx
sphinx.py       our renderer of formulas, and the call of Sphinx
build.py        from the chapters to a folder of pages
"""
