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
# Where each paper stands in the survey's 13 directions (Wang et al. 2024,
# arXiv:2407.16216v1). A reconstruction from the survey's definitions and the papers,
# not the printed table.

# %%
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import ListedColormap

from xpo_jax.survey import table, taxonomy

# %% [markdown]
# One row a paper, one column a direction. Dark: the first pole of the direction (a
# fitted reward, on-policy, ..), light: the second, between: both, white: does not
# apply. A star: the survey, the paper or its code says so; a question mark: left open.

# %%
poles = [list(direction) for direction in taxonomy.DIRECTIONS.values()]
shade = np.full((len(table.PAPERS), len(poles)), np.nan)
for i, paper in enumerate(table.PAPERS):
  for j, (cell, pole) in enumerate(zip(paper.cells.values(), poles, strict=True)):
    if cell.values:
      shade[i, j] = np.mean([pole.index(value) for value in cell.values])

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
heads = [f"{one.value} / {two.value}" for one, two in poles]
axis.set_xticks(range(len(heads)), heads, rotation=60, ha="left", fontsize=7)
_ = axis.xaxis.tick_top()

# %% [markdown]
# ## Which papers share a position?
#
# Papers that the 13 directions cannot tell apart: what parts them is the loss itself.

# %%
groups = {}
for paper in table.PAPERS:
  position = tuple(cell.values for cell in paper.cells.values())
  groups.setdefault(position, []).append(paper.name)
for members in sorted(groups.values(), key=len, reverse=True):
  if len(members) > 1:
    print(f"{len(members):2d}  {', '.join(members)}")

# %% [markdown]
# `xpo list` prints the table as text, `xpo explain dpo` one row with its notes.
