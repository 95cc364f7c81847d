# %% [markdown]
# # A first study, from Python
#
# Two tiny trials, their results as numbers and figures, and then a third trial. This file runs as a
# script, or cell by cell in an editor that knows `# %%`. It writes into the working folder, and
# takes less than a minute on two cores.

# %%
from optuna.visualization import plot_optimization_history

import hpo

study = hpo.start(
    {
        "study": "first",
        "sampler": {"name": "tpe", "seed": 0},
        "budget": {"trials": 2},
        "train": {
            "eval_every": 10,
            "data": {"name": "pydocs", "context": 32, "batch_size": 8},
            "model": {"layers": 2, "d_model": 32, "heads": 2, "d_ff": 64},
            "layerdrop": {"policy": "linear"},
        },
        "space": {
            "optim.lr": {"type": "float", "low": 1e-3, "high": 1e-2, "log": True},
            "layerdrop.p_init": {"type": "float", "low": 0.05, "high": 0.4},
        },
    },
    settings={"steps": 30, "optim.warmup_steps": 5},
)
print(study)

# %% [markdown]
# `study.best` is a dictionary, as `hpo best --json` prints it. `study.trials` is a DataFrame.

# %%
best = study.best
print(best["values"], best["params"])
print(study.trials[["number", "state", "value.valid_ppl", "param.optim.lr"]])

# %% [markdown]
# Optuna's own figures take `study.optuna`. `study.report` writes all of our figures as one page.

# %%
plot_optimization_history(study.optuna).write_html("history.html", include_plotlyjs=True)
study.report("report.html")

# %% [markdown]
# Run one more trial. Later, or in another process, `hpo.load("first")` gives this study again.

# %%
study = hpo.resume("first", trials=3)
print(study)
