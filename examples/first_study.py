# %% [markdown]
# # A first study, from Python
#
# Three tiny trainings, read, drawn, and then one more. It runs as a script, or cell by cell in an
# editor that knows `# %%`; what it makes is in the working folder. Under a minute on two cores.

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
# The best trial is a dictionary, as `hpo best --json` prints it; all trials are a DataFrame.

# %%
best = study.best
print(best["values"], best["params"])
print(study.trials[["number", "state", "value.valid_ppl", "param.optim.lr"]])

# %% [markdown]
# Optuna's own figures take `study.optuna`; `study.report` writes all of ours as one page.

# %%
plot_optimization_history(study.optuna).write_html("history.html", include_plotlyjs=True)
study.report("report.html")

# %% [markdown]
# One trial more. Another day, in another process, `hpo.load("first")` is this study again.

# %%
study = hpo.resume("first", trials=3)
print(study)
