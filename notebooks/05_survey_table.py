# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The survey's table
#
# Values of each paper in the survey's 13 directions (Wang et al. 2024,
# arXiv:2407.16216v1). A reconstruction from the survey's definitions and the papers,
# not the printed table.

# %%
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import ListedColormap

from xpo_jax.survey import table, taxonomy

# %% [markdown]
# One row per paper, one column per direction. Dark: the first value of the direction (a
# fitted reward, on-policy, ..), light: the second, between: both, white: not
# applicable. A star: stated by the survey, the paper or its code; a question mark: left
# open.

# %%
value_pairs = [list(direction) for direction in taxonomy.DIRECTIONS.values()]
shade = np.full((len(table.PAPERS), len(value_pairs)), np.nan)
for i, paper in enumerate(table.PAPERS):
  for j, (cell, pair) in enumerate(zip(paper.cells.values(), value_pairs, strict=True)):
    if cell.values:
      shade[i, j] = np.mean([pair.index(value) for value in cell.values])

figure, axis = plt.subplots(figsize=(9, 0.2 * len(table.PAPERS)), layout="constrained")
axis.imshow(
  shade, cmap=ListedColormap(["#31688e", "#8fb5c9", "#dce9ee"]), aspect="auto"
)
for i, paper in enumerate(table.PAPERS):
  for j, cell in enumerate(paper.cells.values()):
    color = "white" if shade[i, j] == 0 else "black"
    axis.text(j, i, cell.basis.value, ha="center", va="center", fontsize=6, color=color)
names = [f"{paper.name}  {paper.section}".strip() for paper in table.PAPERS]
axis.set_yticks(range(len(names)), names, fontsize=6)
labels = [f"{one.value} / {two.value}" for one, two in value_pairs]
axis.set_xticks(range(len(labels)), labels, rotation=60, ha="left", fontsize=7)
_ = axis.xaxis.tick_top()

# %% [markdown]
# ## Papers with the same values
#
# Papers that the 13 directions do not distinguish: they differ only in the loss.

# %%
groups = {}
for paper in table.PAPERS:
  values = tuple(cell.values for cell in paper.cells.values())
  groups.setdefault(values, []).append(paper.name)
for members in sorted(groups.values(), key=len, reverse=True):
  if len(members) > 1:
    print(f"{len(members):2d}  {', '.join(members)}")

# %% [markdown]
# `xpo list` prints the table as text, `xpo explain dpo` one row with its notes.
